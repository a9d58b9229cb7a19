/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The driver's side of a virtqueue, split or packed (virtio 1.3, 2.7 and 2.8).
 * The free list, the cookies and the lengths are kept outside the shared
 * memory, so a back-end that writes where it should not is noticed, not
 * followed. The three tables are public: hostile tests write into them what
 * they like. Of a packed ring, avail and used are the event areas.
 *
 * A position is a free-running index of a split ring; of a packed one it is an
 * index of the table, with the wrap counter as its top bit.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/frontend/memory.h"

#define RING_SIZE_MAX 32768

enum { RING_DESCRIPTOR_NEXT = 1, RING_DESCRIPTOR_WRITE = 2, RING_DESCRIPTOR_INDIRECT = 4 };

struct ring_descriptor {
	uint64_t address;
	uint32_t len;
	uint16_t flags, next;
};

struct ring_used {
	uint32_t id, len;
};

struct ring_buffer {
	uint64_t guest_address;
	uint32_t len;
	bool is_writable; /* by the device; such buffers come last */
};

/* A chain that came back. */
struct ring_completion {
	uint32_t cookie; /* as given to ring_add() */
	uint32_t len;	 /* bytes that the device says it wrote */
};

struct ring {
	struct memory *memory;
	uint16_t size;
	bool has_event_idx;
	bool is_packed;	     /* see ring_set_layout() */
	bool is_in_order;    /* one used entry may stand for several chains */
	int kick, call, err; /* eventfds, owned by the ring */
	/* If set, in place of the kick eventfd. */
	void (*on_kick)(void *context, uint32_t index);
	void *context;
	uint32_t index;

	uint64_t descriptors_address, avail_address, used_address; /* guest addresses */
	struct ring_descriptor *descriptors;
	uint16_t *avail; /* flags, idx, heads[size], used_event */
	uint16_t *used;	 /* flags, idx, struct ring_used[size], avail_event */

	uint16_t avail_idx;  /* position next to be filled; published by ring_submit() */
	uint16_t kicked_idx; /* as it was at the last decision to kick */
	uint16_t used_idx;   /* position next to be taken */
	uint16_t seen_idx;   /* split: used idx as last read */
	uint16_t n_free, n_in_flight, free_head;
	uint64_t n_kicks, n_calls;
	const char *fault;	   /* why ring_take() failed */
	struct ring_chain *chains; /* private: by head, or by buffer id */
	uint16_t *next;		   /* private: the free list and the chains */
	uint16_t *order; /* private: what is in flight, oldest first, from order_first on */
	uint16_t order_first;
	uint16_t n_unpublished; /* private: chains behind those that were submitted */
	uint16_t n_batch;	/* private: chains that the last used entry stands for */
	uint32_t batch_len;	/* private: of the last of them */
	uint32_t n_unkicked;	/* private: descriptors since the last decision to kick */
};

/*
 * Places the tables into memory, with room for either layout. size: up to
 * RING_SIZE_MAX, for a split ring a power of two.
 */
int ring_init(struct ring *ring, struct memory *memory, uint16_t size);
void ring_end(struct ring *ring);

/* As a driver that starts anew: all tables zero, everything in flight forgotten. */
void ring_reset(struct ring *ring);

/* What was negotiated; another layout than before resets the ring. */
void ring_set_layout(struct ring *ring, bool is_packed, bool is_in_order);

/* Where a back-end begins that sees the ring for the first time, for SET_VRING_BASE. */
uint32_t ring_first_base(const struct ring *ring);

/* The same behind all that was made available: buffers before are skipped. */
uint32_t ring_last_base(const struct ring *ring);

/* What is wrong with the base of a ring that stopped with nothing in flight; NULL: nothing. */
const char *ring_judge_base(const struct ring *ring, uint32_t base);

/* For SET_VRING_ADDR of ring number index. */
struct vhost_ring_address ring_addresses(const struct ring *ring, uint32_t index);

/*
 * Add a chain; the device sees it at the next ring_submit(). With table_address
 * (guest address of room for n descriptors, 16 bytes each) the chain goes into
 * that indirect table, with 0 into the ring. -ENOSPC if the ring has no room.
 */
int ring_add(struct ring *ring, const struct ring_buffer *buffers, size_t n, uint64_t table_address,
	     uint32_t cookie);

/* Publish what was added and kick the device if it wants that. */
void ring_submit(struct ring *ring);
void ring_kick(struct ring *ring); /* in any case */

/*
 * Take one chain that came back. 1, 0 if there is none, -EPROTO when the device
 * broke the ring: used index beyond what is in flight, a chain that is not in
 * flight, more bytes than the chain can hold.
 */
int ring_take(struct ring *ring, struct ring_completion *ret);

/*
 * Ask for a call at the next chain that comes back. True if some already wait:
 * take them first, no call will come for them. ring_ignore_calls() is the
 * contrary; a call may still come.
 */
bool ring_expect_call(struct ring *ring);
void ring_ignore_calls(struct ring *ring);

/* Take the count from the call eventfd, if there is one. */
bool ring_clear_call(struct ring *ring);

/* Wait for a call. 0, -ETIMEDOUT, negative errno. */
int ring_wait(struct ring *ring, int timeout);

/* The position up to which chains came back, as it stands in memory. */
uint16_t ring_used_idx(const struct ring *ring);

/* Any descriptor, made available alone. next: of a packed ring, its buffer id. */
void ring_offer_descriptor(struct ring *ring, uint64_t address, uint32_t len, uint16_t flags,
			   uint16_t next);

/* Take back what was made available from that position on: the device did not fetch it. */
void ring_withdraw(struct ring *ring, uint16_t position);

/* Of a packed ring: was the descriptor at that index last written by the device? */
bool ring_is_used_descriptor(const struct ring *ring, uint16_t index);

/* For hostile tests on split rings: offer any head, publish any index. Nobody keeps account of it.
 */
void ring_offer_raw(struct ring *ring, uint16_t head);
void ring_set_avail_idx(struct ring *ring, uint16_t idx);
