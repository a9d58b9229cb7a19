/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The dirty log of a migration: a bit for each 4 KiB page of guest memory that
 * this process wrote, set after the write, in a file of the front-end's that it
 * reads and clears meanwhile (QEMU's vhost-user document, "Migration"). No heap.
 * System calls: mmap, munmap, close, writev on the log fd.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "worker/guest_memory.h"

struct dirty_log {
	bool is_on;    /* VHOST_F_LOG_ALL is negotiated */
	uint8_t *bits; /* NULL: no log was given */
	uint64_t size; /* bytes */
	void *mapping;
	size_t mapping_len;
	int fd; /* owned; signalled when something was logged; -1: none */
	bool has_news;
};

void dirty_log_init(struct dirty_log *log);

/* Map a log; the one before is unmapped when that has worked. fd is closed in any case. */
int dirty_log_set(struct dirty_log *log, uint64_t size, uint64_t mmap_offset, uint64_t alignment,
		  int fd);

/* len bytes at a guest address were written. Beyond the log's end: nothing to mark. */
void dirty_log_mark(struct dirty_log *log, uint64_t guest_address, uint64_t len);

/* The first len bytes of these parts, which lie in guest memory, were written. */
void dirty_log_mark_parts(struct dirty_log *log, const struct guest_memory *memory,
			  const struct iovec *parts, size_t n_parts, size_t len);

/* Signal the log fd if something was marked since the last time. */
void dirty_log_signal(struct dirty_log *log);
