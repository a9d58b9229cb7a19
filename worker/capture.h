/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A copy of each packet for an operator: its header and its first bytes, one
 * record a packet over a SOCK_SEQPACKET socket that never blocks. A record that
 * finds no room is counted and left out; the guest waits for nobody. While nobody
 * looks it costs a comparison.
 *
 * No heap, no user-space copy of the payload. System calls: writev, close.
 */

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ipc/observation.h"
#include "worker/packet.h"

struct capture {
	int fd; /* owned; -1: nobody looks */
	uint32_t number;
	uint32_t payload_max;
	uint32_t n_dropped; /* since the last record that went out */
};

void capture_init(struct capture *capture);

/* Owns the fd, -1: nobody looks any more. The same number goes on with what is counted. */
void capture_set(struct capture *capture, int fd, uint32_t number, uint32_t payload_max);

/*
 * A packet whose payload begins behind the first PACKET_HEADER_LEN bytes of parts,
 * which are there, in guest memory; of the rest at most len bytes belong to it. Call it through
 * capture_packet().
 */
void capture_record(struct capture *capture, const struct packet_header *header,
		    const struct iovec *parts, size_t n_parts, uint32_t len);

static inline void capture_packet(struct capture *capture, const struct packet_header *header,
				  const struct iovec *parts, size_t n_parts, uint32_t len)
{
	if (__builtin_expect(capture->fd >= 0, 0))
		capture_record(capture, header, parts, n_parts, len);
}
