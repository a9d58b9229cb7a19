/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Guest memory: regions, each a memfd of its own, at guest addresses that the
 * test chooses. All of it is mapped into one window of the test process in the
 * order of guest addresses, so that a block that crosses the border of two
 * adjacent regions is one piece here, while a back-end has to find its parts
 * in two files. User addresses, as told to the back-end, are neither guest
 * addresses nor addresses of this process, and never adjacent.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/frontend/vhost.h"

#define MEMORY_REGIONS_MAX VHOST_FDS_MAX
#define MEMORY_SPAN	   (UINT64_C(1) << 34) /* guest addresses are below this */

/* Page-aligned all of them. offset: the region starts there in its file. */
struct memory_layout {
	uint64_t guest_address, size, offset;
	bool is_unsealed; /* the front-end could truncate the file */
};

struct memory {
	uint8_t *window;
	struct vhost_region regions[MEMORY_REGIONS_MAX]; /* as told to the back-end */
	int fds[MEMORY_REGIONS_MAX];
	uint64_t n_used[MEMORY_REGIONS_MAX]; /* bytes handed out, from the region's start */
	size_t n_regions;
	bool has_guest_addresses; /* writable, before the first region: GPA_ADDRESSES */
};

int memory_init(struct memory *memory);
void memory_end(struct memory *memory);

/* Add a region of zeroes. 0 or negative errno; regions may not overlap. */
int memory_add(struct memory *memory, const struct memory_layout *layout);

/* Take away the region that was added last, of which nothing may be in use. */
int memory_remove_last(struct memory *memory);

/* A zeroed block within one region; its guest address, or 0 if no region has room. */
uint64_t memory_allocate(struct memory *memory, uint64_t size, uint64_t alignment);

/*
 * A block of size bytes of which the first `before` lie at the end of one region
 * and the rest at the start of the next. 0 unless two regions are adjacent and
 * both have that room; each border can be used once, before other allocations.
 */
uint64_t memory_allocate_across(struct memory *memory, uint64_t size, uint64_t before);

/* Where a guest address, or a range that crosses borders, is in this process. */
static inline void *memory_at(const struct memory *memory, uint64_t guest_address)
{
	return memory->window + guest_address;
}

/* What SET_VRING_ADDR takes: the user address of a guest address, 0 if there is none. */
uint64_t memory_user_address(const struct memory *memory, uint64_t guest_address);
