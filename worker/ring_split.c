/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "worker/ring_internal.h"

/* virtio 1.3, 2.7 "Split Virtqueues". A position is a free-running index. */
#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY     1
#define RING_HEAD_SIZE	     4 /* flags and idx, of avail and used alike */
#define AVAIL_ELEMENT	     2
#define USED_ELEMENT	     8
#define EVENT_SIZE	     2

struct ring_shape split_shape(uint32_t num)
{
	return (struct ring_shape){
		.desc_len = DESC_SIZE * (uint64_t)num,
		.avail_len = RING_HEAD_SIZE + AVAIL_ELEMENT * (uint64_t)num + EVENT_SIZE,
		.used_len = RING_HEAD_SIZE + USED_ELEMENT * (uint64_t)num + EVENT_SIZE,
		.avail_alignment = 2,
		.used_alignment = 4,
	};
}

static uint8_t *avail_flags(const struct ring *ring)
{
	return ring->avail;
}

static uint8_t *avail_index(const struct ring *ring)
{
	return ring->avail + 2;
}

static uint8_t *used_flags(const struct ring *ring)
{
	return ring->used;
}

static uint8_t *used_index(const struct ring *ring)
{
	return ring->used + 2;
}

/* used_event follows the avail ring, avail_event the used ring. */
static uint8_t *used_event(const struct ring *ring)
{
	return ring->avail + RING_HEAD_SIZE + AVAIL_ELEMENT * ring->num;
}

static uint8_t *avail_event(const struct ring *ring)
{
	return ring->used + RING_HEAD_SIZE + USED_ELEMENT * ring->num;
}

void split_start(struct ring *ring, uint32_t base, bool from_used_index)
{
	ring->used_idx = guest_load16(used_index(ring));
	ring->next_used = ring->used_idx;
	/* The upper half of a split ring's base is without meaning. */
	ring->next_avail = from_used_index ? ring->used_idx : (uint16_t)base;
	ring->avail_idx = ring->next_avail;
}

bool split_has_chains(struct ring *ring)
{
	uint16_t avail_idx;

	avail_idx = guest_load16(avail_index(ring));
	/* A driver can't offer more chains than it has descriptors. */
	if ((uint16_t)(avail_idx - ring->next_avail) > ring->num) {
		ring_break(ring, REPORT_RING_AVAIL_JUMP, avail_idx);
		return false;
	}
	ring->avail_idx = avail_idx;
	/* What the driver wrote before it moved the index is read after it. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return avail_idx != ring->next_avail;
}

/* Walk from the head; as many steps as the table has entries, so a loop ends. */
static int walk_chain(struct ring *ring, struct guest_memory *memory, size_t n_parts_max,
		      struct chain *chain)
{
	struct ring_table table = {.start = ring->desc, .num = ring->num};
	uint32_t index = chain->ticket.head;
	bool is_indirect = false;
	int r;

	for (uint32_t n_steps = 0;; n_steps++) {
		struct ring_buffer buffer;
		struct ring_words words;

		if (index >= table.num)
			return ring_break(ring, REPORT_RING_BAD_INDEX, index);
		if (n_steps >= table.num)
			return ring_break(ring, REPORT_RING_LOOP, chain->ticket.head);
		if (!ring_table_load(&table, memory, index, &words))
			return ring_break(ring, REPORT_RING_BAD_PLACE, table.guest_address);
		buffer = (struct ring_buffer){
			.guest_address = words.address,
			.len = (uint32_t)words.rest,
			.flags = (uint16_t)(words.rest >> 32),
		};

		if (buffer.flags & DESC_F_INDIRECT) {
			if (is_indirect)
				return ring_break(ring, REPORT_RING_BAD_INDIRECT, buffer.len);
			r = ring_open_table(ring, memory, &buffer, &table);
			if (r < 0)
				return r;
			is_indirect = true;
			index = 0;
			n_steps = UINT32_MAX; /* the first step in the new table is step 0 */
			continue;
		}
		r = ring_add_buffer(ring, memory, &buffer, n_parts_max, chain);
		if (r < 0)
			return r;
		if (!(buffer.flags & DESC_F_NEXT))
			return 1;
		index = (uint16_t)(words.rest >> 48);
	}
}

int split_pop(struct ring *ring, struct guest_memory *memory, size_t n_parts_max,
	      struct chain *chain)
{
	const uint8_t *element;
	int r;

	element = ring->avail + RING_HEAD_SIZE +
		  AVAIL_ELEMENT * (size_t)(ring->next_avail & (ring->num - 1));
	chain->ticket.head = guest_load16(element);
	chain->ticket.n_slots = 1;
	r = walk_chain(ring, memory, n_parts_max, chain);
	if (r == 1)
		ring->next_avail++;
	return r;
}

void split_put_used(struct ring *ring, const struct ring_ticket *ticket, uint32_t len)
{
	size_t offset = RING_HEAD_SIZE + USED_ELEMENT * (size_t)(ring->next_used & (ring->num - 1));
	uint8_t *element = ring->used + offset;
	uint32_t id = ticket->head;

	memcpy(element, &id, sizeof(id));
	memcpy(element + 4, &len, sizeof(len));
	ring_log(ring, offset, USED_ELEMENT);
	ring->next_used = (uint16_t)(ring->next_used + ticket->n_slots);
}

/* virtio 1.3, 2.7.7.2: has the driver asked for a call between old and new? */
static bool wants_call(struct ring *ring, uint16_t before)
{
	if (!ring->is_notified_once) {
		ring->is_notified_once = true;
		return true;
	}
	if (!ring->has_event_idx)
		return !(guest_load16(avail_flags(ring)) & AVAIL_F_NO_INTERRUPT);
	return (uint16_t)(ring->used_idx - guest_load16(used_event(ring)) - 1) <
	       (uint16_t)(ring->used_idx - before);
}

bool split_publish(struct ring *ring)
{
	uint16_t before = ring->used_idx;

	if (before == ring->next_used)
		return false;
	/* Elements first, then the index that makes them the driver's. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	guest_store16(used_index(ring), ring->next_used);
	ring_log(ring, 0, RING_HEAD_SIZE);
	ring->used_idx = ring->next_used;
	/* The driver writes its wish, then reads our index; we the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return wants_call(ring, before);
}

void split_ask_for_kicks(struct ring *ring, uint16_t position)
{
	if (ring->has_event_idx) {
		guest_store16(avail_event(ring), position);
		ring_log(ring, RING_HEAD_SIZE + USED_ELEMENT * (uint64_t)ring->num, EVENT_SIZE);
	} else {
		guest_store16(used_flags(ring), 0);
		ring_log(ring, 0, RING_HEAD_SIZE);
	}
}

void split_disable_kicks(struct ring *ring)
{
	/* With EVENT_IDX an avail_event that lies behind asks for nothing. */
	if (!ring->has_event_idx) {
		guest_store16(used_flags(ring), USED_F_NO_NOTIFY);
		ring_log(ring, 0, RING_HEAD_SIZE);
	}
}

uint16_t split_driver_position(const struct ring *ring)
{
	return guest_load16(avail_index(ring));
}

bool split_driver_is_past(const struct ring *ring, uint16_t position)
{
	return split_driver_position(ring) != position;
}
