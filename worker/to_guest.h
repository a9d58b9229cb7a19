/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What to_guest.c and seqpacket.c share: rx buffers for the bytes of one
 * connection. They are fetched, filled by the kernel or by hand, and sent; one
 * batch at a time.
 */

#include "worker/device.h"

enum served {
	SERVED,		/* nothing is due, or it waits for something else than buffers */
	SERVED_STARVED, /* no rx buffer */
	SERVED_MORE,	/* its turn is over */
	SERVED_LATER,	/* not before all events were looked at, and all others had a turn */
	SERVED_HELD,	/* as many bytes have passed as may; time brings it back */
};

/* The rx buffers that were fetched, behind their headers. */
struct to_guest_room {
	struct iovec *parts; /* IOV_MAX of them can be used, these are the first */
	size_t n_parts;
	uint32_t len; /* what fits into them; 0: there is no rx buffer */
};

/* Fetch rx buffers for so many bytes, in at most n_chains and n_parts. */
struct to_guest_room to_guest_fetch(struct device *device, uint32_t n_chains, size_t n_parts,
				    uint32_t len);

/*
 * Send the first len bytes of them, flags in the header of the last packet. What
 * stayed empty is fetched again later.
 */
void to_guest_send_fetched(struct device *device, struct connection *connection, uint32_t len,
			   uint32_t flags);

/* A packet without payload. false: there is no rx buffer. */
bool to_guest_send_empty(struct device *device, struct connection *connection, enum packet_op op,
			 uint32_t flags);

/* How many packets the guest's own accounting bears, see credit.h. */
uint32_t to_guest_packet_credit(const struct connection *connection);
/* There is not enough credit, of bytes or packets: wake up when there is. */
void to_guest_ask_credit(struct device *device, struct connection *connection);

/* seqpacket.c: the host program's messages. */
enum served seqpacket_serve(struct device *device, struct connection *connection);
