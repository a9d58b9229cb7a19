/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The guest's memory as this worker maps it: a table of regions, and the only
 * code that turns guest addresses into pointers. Everything behind a pointer
 * that comes out of here may change at any moment: it is read through
 * guest_load16/32/64 or copied once, and checked after that.
 *
 * Lengths in bytes. No heap. System calls: mmap, munmap, close.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define GUEST_MEMORY_REGIONS_MAX 32 /* what GET_MAX_MEM_SLOTS answers */

struct guest_region {
	uint64_t guest_address;
	uint64_t size;
	uint64_t user_address; /* where the front-end has it; ring addresses use these */
	uint8_t *start;	       /* ours */
	void *mapping;	       /* what to unmap: start rounded down to the file's page */
	size_t mapping_len;
};

struct guest_table {
	struct guest_region regions[GUEST_MEMORY_REGIONS_MAX]; /* by guest_address */
	size_t n_regions;
};

struct guest_memory {
	struct guest_table table;
	struct guest_table staged; /* the next table, until guest_memory_commit() */
	size_t last_hit;
};

/* A piece of a file, as mapped: start is where the piece begins. */
struct guest_mapping {
	uint8_t *start;
	void *place; /* what to unmap: start rounded down to the file's page */
	size_t len;
};

/*
 * Map len bytes at an offset of an fd, which stays open. alignment is the
 * page size of the file. 0, -EINVAL, or what mmap says.
 */
int guest_memory_map(int fd, uint64_t len, uint64_t mmap_offset, uint64_t alignment,
		     struct guest_mapping *ret_mapping);

/*
 * Map a region of an fd, which is closed in any case. 0, -EEXIST on overlap,
 * -ENOSPC when the table is full, -EINVAL, or what mmap says.
 */
int guest_memory_add(struct guest_memory *memory, const struct guest_region *region,
		     uint64_t mmap_offset, uint64_t alignment, int fd, bool is_staged);

/* Unmap a region; 0 or -ENOENT. Pointers into it are dead afterwards. */
int guest_memory_remove(struct guest_memory *memory, uint64_t guest_address, uint64_t size,
			uint64_t user_address);

/* The staged regions replace all others, which are unmapped. */
void guest_memory_commit(struct guest_memory *memory);

/* Unmap everything. */
void guest_memory_clear(struct guest_memory *memory);

/* The region that an address lies in; NULL: none. */
const struct guest_region *guest_memory_find(struct guest_memory *memory, uint64_t guest_address);

/*
 * Translate the part of [guest_address, guest_address + len) that lies in one
 * region, which may be shorter than len: ask again for the rest. false when the
 * first byte lies in no region. len > 0.
 */
static inline bool guest_memory_translate(struct guest_memory *memory, uint64_t guest_address,
					  uint32_t len, struct iovec *ret_part)
{
	const struct guest_table *table = &memory->table;
	const struct guest_region *region = &table->regions[memory->last_hit];
	uint64_t offset = guest_address - region->guest_address;

	/* Almost all buffers of a guest lie in the region of the buffer before. */
	if (memory->last_hit >= table->n_regions || offset >= region->size) {
		region = guest_memory_find(memory, guest_address);
		if (!region)
			return false;
		offset = guest_address - region->guest_address;
	}
	ret_part->iov_base = region->start + offset;
	ret_part->iov_len = len < region->size - offset ? len : (size_t)(region->size - offset);
	return true;
}

/* A whole piece by front-end user address, in one region; NULL otherwise. */
void *guest_memory_at_user_address(const struct guest_memory *memory, uint64_t user_address,
				   uint64_t len);

/* The guest address of a place in guest memory. */
bool guest_memory_address_of(const struct guest_memory *memory, const void *place,
			     uint64_t *ret_guest_address);

/*
 * One access each, never torn or repeated by the compiler. Little-endian in
 * memory (virtio 1.x), as are the machines this runs on.
 */
static inline uint16_t guest_load16(const void *place)
{
	return __atomic_load_n((const uint16_t *)place, __ATOMIC_RELAXED);
}

static inline void guest_store16(void *place, uint16_t value)
{
	__atomic_store_n((uint16_t *)place, value, __ATOMIC_RELAXED);
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are read as they stand");
