/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The header of a virtio-vsock packet (virtio 1.3, 5.10.6): the first
 * PACKET_HEADER_LEN bytes of struct packet are the wire. The struct itself is
 * longer by its alignment, so copy by that length and never by sizeof.
 */

#include <stddef.h>
#include <stdint.h>

#define PACKET_HEADER_LEN  44
#define PACKET_PAYLOAD_MAX (64u * 1024)
#define PACKET_HOST_CID	   2

enum packet_op {
	PACKET_INVALID,
	PACKET_REQUEST,
	PACKET_RESPONSE,
	PACKET_RST,
	PACKET_SHUTDOWN,
	PACKET_RW,
	PACKET_CREDIT_UPDATE,
	PACKET_CREDIT_REQUEST,
	PACKET_OP_MAX,
};

enum { PACKET_STREAM = 1, PACKET_SEQPACKET = 2 };

/* Flags of SHUTDOWN: what the sender will no longer do. */
enum { PACKET_SHUTDOWN_RECEIVE = 1, PACKET_SHUTDOWN_SEND = 2, PACKET_SHUTDOWN_BOTH = 3 };

/* Flags of RW in messages. */
enum { PACKET_EOM = 1, PACKET_EOR = 2 };

struct packet {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
};

_Static_assert(offsetof(struct packet, op) == 30, "packed by nature");
_Static_assert(offsetof(struct packet, fwd_cnt) + 4 == PACKET_HEADER_LEN, "packed by nature");
