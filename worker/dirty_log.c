/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/dirty_log.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define LOG_PAGE 4096

void dirty_log_init(struct dirty_log *log)
{
	*log = (struct dirty_log){.fd = -1};
}

int dirty_log_set(struct dirty_log *log, uint64_t size, uint64_t mmap_offset, uint64_t alignment,
		  int fd)
{
	struct guest_mapping mapping;
	int r = guest_memory_map(fd, size, mmap_offset, alignment, &mapping);

	close(fd);
	if (r < 0)
		return r;
	if (log->bits)
		munmap(log->mapping, log->mapping_len);
	log->bits = mapping.start;
	log->size = size;
	log->mapping = mapping.place;
	log->mapping_len = mapping.len;
	return 0;
}

void dirty_log_mark(struct dirty_log *log, uint64_t guest_address, uint64_t len)
{
	uint64_t first = guest_address / LOG_PAGE, last;

	if (!log->is_on || !log->bits || len == 0)
		return;
	last = (guest_address + len - 1) / LOG_PAGE;
	for (uint64_t page = first; page <= last && page / 8 < log->size; page++)
		__atomic_fetch_or(&log->bits[page / 8], (uint8_t)(1u << page % 8),
				  __ATOMIC_SEQ_CST);
	log->has_news = true;
}

void dirty_log_mark_parts(struct dirty_log *log, const struct guest_memory *memory,
			  const struct iovec *parts, size_t n_parts, size_t len)
{
	if (!log->is_on || !log->bits)
		return;
	for (size_t i = 0; i < n_parts && len > 0; i++) {
		size_t n = parts[i].iov_len < len ? parts[i].iov_len : len;
		uint64_t guest_address;

		if (guest_memory_address_of(memory, parts[i].iov_base, &guest_address))
			dirty_log_mark(log, guest_address, n);
		len -= n;
	}
}

void dirty_log_signal(struct dirty_log *log)
{
	uint64_t one = 1;
	struct iovec iov = {&one, sizeof(one)};
	ssize_t n;

	if (!log->has_news)
		return;
	log->has_news = false;
	if (log->fd < 0)
		return;
	n = writev(log->fd, &iov, 1);
	(void)n; /* a full counter is a signal that waits already */
}
