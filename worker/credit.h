/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Credit of one connection (virtio 1.3, 5.10.6.3), in 32-bit counters that
 * wrap. All the guest's numbers are claims: none can make us send more than it
 * has room for, or accept more than we have. Pure functions on a struct.
 */

#include <stdbool.h>
#include <stdint.h>

/*
 * Recent Linux guests charge a fixed overhead for each packet that waits unread
 * and reset the connection above buf_alloc. 1024 bytes for each packet stay
 * below that on every architecture.
 */
#define CREDIT_PACKET_OVERHEAD 1024

/*
 * Unread packets are counted in a few groups of neighbours, each gone when the
 * guest has consumed its last byte: exact to a sixteenth of the limit, and small
 * enough to have for each of many thousand connections.
 */
#define CREDIT_GROUPS 16

struct credit_group {
	uint32_t end; /* tx_cnt behind its last packet */
	uint32_t n_packets;
};

struct credit {
	/* towards the guest */
	uint32_t tx_cnt;	 /* bytes that we sent */
	uint32_t peer_fwd_cnt;	 /* bytes that the guest has consumed of them */
	uint32_t peer_buf_alloc; /* its buffer */
	/* from the guest */
	uint32_t rx_cnt;    /* bytes that it sent */
	uint32_t fwd_cnt;   /* bytes that the host program took */
	uint32_t announced; /* fwd_cnt as the guest knows it */
	uint32_t buf_alloc; /* our buffer */
	/* packets that the guest has not consumed */
	struct credit_group groups[CREDIT_GROUPS];
	uint32_t first_group, n_groups, n_packets;
	uint32_t n_empty; /* of them, without a byte and behind the last byte */
};

void credit_init(struct credit *credit, uint32_t buf_alloc);

/*
 * A packet of this flow says so. false when fwd_cnt claims bytes that were
 * never sent: nothing is taken over then.
 */
bool credit_update(struct credit *credit, uint32_t peer_buf_alloc, uint32_t peer_fwd_cnt);

/* How many bytes, and in how many packets, may be sent now. */
uint32_t credit_bytes(const struct credit *credit);
uint32_t credit_packets(const struct credit *credit);

/* Half of the packets that may wait unread do: time to ask how many still are. */
bool credit_runs_low(const struct credit *credit);

/*
 * Has the guest consumed every byte, and something else not? A message without a byte
 * moves none of its counters: what it says of them is not to be told from silence.
 */
bool credit_waits_for_empty(const struct credit *credit);

/* It said so in another way, of n packets at the most. */
void credit_empty_consumed(struct credit *credit, uint32_t n);

/* One packet of len bytes was sent, within the two above. */
void credit_sent(struct credit *credit, uint32_t len);

/* The guest sent len bytes. false when it had no room for them. */
bool credit_received(struct credit *credit, uint32_t len);

/* The host program took len bytes. */
void credit_forwarded(struct credit *credit, uint32_t len);

/*
 * Is it worth a packet to tell the guest? When half of what it may send is free
 * again without it knowing, or when it sees little room while there is more.
 */
bool credit_wants_update(const struct credit *credit);

/* A packet with fwd_cnt went out. */
void credit_announced(struct credit *credit);

/*
 * Can these counters have come about by the calls above, with unread bytes of the
 * guest of which len are buffered here? Of a credit that another process tells.
 */
bool credit_is_sound(const struct credit *credit, uint32_t buf_alloc, uint32_t len);
