/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Between ring.c, which is the face and the split layout, and ring_packed.c. Not
 * for tests.
 */

#include "tests/frontend/ring.h"

_Static_assert(sizeof(struct ring_descriptor) == 16, "descriptor");

#define RING_WRAP ((uint16_t)0x8000) /* of a position in a packed ring */

struct ring_chain {
	uint32_t cookie;
	uint32_t writable;	/* bytes */
	uint16_t n_descriptors; /* in the ring; 0: not in flight */
	uint16_t position;	/* packed: of the first of them */
	uint16_t head_flags;	/* packed: which make it available */
};

uint16_t ring_load(const uint16_t *word);
void ring_store(uint16_t *word, uint16_t value);

/*
 * How many chains in flight, from the first-th on, an entry for this head or id
 * stands for if they are given back in order. 0: it is not in flight.
 */
uint16_t ring_count_until(const struct ring *ring, uint16_t first, uint32_t id);

uint16_t packed_advance(const struct ring *ring, uint16_t position, uint32_t n);
uint32_t packed_distance(const struct ring *ring, uint16_t from, uint16_t to);
uint16_t packed_used_position(const struct ring *ring);
void packed_fill_table(void *table, const struct ring_buffer *buffers, size_t n);
/* Takes the id from the free list. */
void packed_place(struct ring *ring, uint16_t id, const struct ring_descriptor *table,
		  const struct ring_buffer *buffers);
void packed_offer(struct ring *ring, const struct ring_descriptor *descriptor);
void packed_withdraw(struct ring *ring, uint16_t position);
void packed_publish(struct ring *ring);
bool packed_wants_kick(struct ring *ring);
int packed_read_used(struct ring *ring, struct ring_used *ret);
void packed_expect_call(struct ring *ring);
void packed_ignore_calls(struct ring *ring);
