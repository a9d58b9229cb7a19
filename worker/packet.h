/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The header of a virtio-vsock packet (virtio 1.3, 5.10.6) in private memory,
 * and the way between it and the parts of a chain: a driver may lay header and
 * payload over descriptors as it likes. Pure functions.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define PACKET_HEADER_LEN  44
#define PACKET_PAYLOAD_MAX (64u * 1024) /* Linux never sends more, nor do we accept it */

#define PACKET_HOST_CID 2

/* virtio 1.3, 5.10.4: 0, 1 and 2 are reserved, as is 0xffffffff; 64 bits on the wire. */
#define PACKET_GUEST_CID_MIN 3u
#define PACKET_GUEST_CID_MAX (UINT32_MAX - 1)

enum packet_type {
	PACKET_TYPE_STREAM = 1,
	PACKET_TYPE_SEQPACKET = 2,
};

enum packet_op {
	PACKET_OP_INVALID = 0,
	PACKET_OP_REQUEST = 1,
	PACKET_OP_RESPONSE = 2,
	PACKET_OP_RST = 3,
	PACKET_OP_SHUTDOWN = 4,
	PACKET_OP_RW = 5,
	PACKET_OP_CREDIT_UPDATE = 6,
	PACKET_OP_CREDIT_REQUEST = 7,
};

/* Flags of SHUTDOWN: what the sender will not do any more. */
#define PACKET_SHUTDOWN_RECEIVE 1u
#define PACKET_SHUTDOWN_SEND	2u
#define PACKET_SHUTDOWN_BOTH	3u

/* Flags of RW: the last packet of a message, and the end of a record. */
#define PACKET_SEQ_EOM 1u
#define PACKET_SEQ_EOR 2u

/* Bits of the device's own features (virtio 1.3, 5.10.3). */
#define PACKET_F_STREAM		   (UINT64_C(1) << 0)
#define PACKET_F_SEQPACKET	   (UINT64_C(1) << 1)
#define PACKET_F_NO_IMPLIED_STREAM (UINT64_C(1) << 2)

struct packet_header {
	uint64_t src_cid;
	uint64_t dst_cid;
	uint32_t src_port;
	uint32_t dst_port;
	uint32_t len;
	uint16_t type;
	uint16_t op;
	uint32_t flags;
	uint32_t buf_alloc;
	uint32_t fwd_cnt;
} __attribute__((packed));

_Static_assert(sizeof(struct packet_header) == PACKET_HEADER_LEN, "as on the wire");

/*
 * Copy the header out of the first parts, once. false when they hold fewer
 * bytes than a header has.
 */
bool packet_read_header(const struct iovec *parts, size_t n_parts, struct packet_header *ret);

/* Write the header over the first parts, which hold at least its length. */
void packet_write_header(const struct iovec *parts, size_t n_parts,
			 const struct packet_header *header);

/*
 * What lies behind the first skip bytes, at most len bytes of it, as parts of
 * its own in ret_parts, which has room for n_parts. Returns how many.
 */
size_t packet_slice(const struct iovec *parts, size_t n_parts, size_t skip, size_t len,
		    struct iovec *ret_parts);
