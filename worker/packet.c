/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/packet.h"

#include <string.h>

/* Kept out of the way of drivers as they are, whose header is one piece of memory. */
static __attribute__((noinline)) bool gather_header(const struct iovec *parts, size_t n_parts,
						    struct packet_header *ret)
{
	struct packet_header header;
	size_t len = 0;

	for (size_t i = 0; i < n_parts && len < PACKET_HEADER_LEN; i++) {
		size_t room = PACKET_HEADER_LEN - len;
		size_t n = parts[i].iov_len < room ? parts[i].iov_len : room;

		memcpy((uint8_t *)&header + len, parts[i].iov_base, n);
		len += n;
	}
	if (len < PACKET_HEADER_LEN)
		return false;
	*ret = header;
	return true;
}

/*
 * Never in line: what the caller looks at is the copy, and not what the guest has made of
 * the original since.
 */
__attribute__((noinline)) bool packet_read_header(const struct iovec *parts, size_t n_parts,
						  struct packet_header *ret)
{
	if (n_parts == 0 || parts[0].iov_len < PACKET_HEADER_LEN)
		return gather_header(parts, n_parts, ret);
	memcpy(ret, parts[0].iov_base, PACKET_HEADER_LEN);
	return true;
}

static __attribute__((noinline)) void scatter_header(const struct iovec *parts, size_t n_parts,
						     const struct packet_header *header)
{
	size_t len = 0;

	for (size_t i = 0; i < n_parts && len < PACKET_HEADER_LEN; i++) {
		size_t room = PACKET_HEADER_LEN - len;
		size_t n = parts[i].iov_len < room ? parts[i].iov_len : room;

		memcpy(parts[i].iov_base, (const uint8_t *)header + len, n);
		len += n;
	}
}

void packet_write_header(const struct iovec *parts, size_t n_parts,
			 const struct packet_header *header)
{
	if (n_parts == 0 || parts[0].iov_len < PACKET_HEADER_LEN)
		scatter_header(parts, n_parts, header);
	else
		memcpy(parts[0].iov_base, header, PACKET_HEADER_LEN);
}

size_t packet_slice(const struct iovec *parts, size_t n_parts, size_t skip, size_t len,
		    struct iovec *ret_parts)
{
	size_t n = 0;

	for (size_t i = 0; i < n_parts && len > 0; i++) {
		size_t part_len = parts[i].iov_len;

		if (skip >= part_len) {
			skip -= part_len;
			continue;
		}
		part_len -= skip;
		if (part_len > len)
			part_len = len;
		ret_parts[n].iov_base = (uint8_t *)parts[i].iov_base + skip;
		ret_parts[n].iov_len = part_len;
		n++;
		skip = 0;
		len -= part_len;
	}
	return n;
}
