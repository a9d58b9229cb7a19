/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>

#include "worker/ring_internal.h"

/*
 * virtio 1.3, 2.8 "Packed Virtqueues". One table that both sides write: a
 * descriptor becomes the device's when its AVAIL bit, and the driver's again
 * when its USED bit, agrees with how often the writer has been round the ring.
 * A position is an index of the table with that bit of the round at the top.
 */
#define DESC_F_AVAIL  (1u << 7)
#define DESC_F_USED   (1u << 15)
#define POSITION_WRAP 0x8000u

/* The event areas: a position in the low half, flags in the high one (2.8.10). */
#define EVENT_SIZE	4
#define EVENT_F_ENABLE	0u
#define EVENT_F_DISABLE 1u
#define EVENT_F_DESC	2u
#define EVENT_F_MASK	3u

/* A step of the journal: whether one was ever made, from where, and to where. */
#define STEP_IS_VALID (UINT64_C(1) << 32)

struct ring_shape packed_shape(uint32_t num)
{
	return (struct ring_shape){
		.desc_len = DESC_SIZE * (uint64_t)num,
		.avail_len = EVENT_SIZE,
		.used_len = EVENT_SIZE,
		.avail_alignment = 4,
		.used_alignment = 4,
	};
}

static uint32_t index_of(uint16_t position)
{
	return position & ~POSITION_WRAP;
}

/* n is at most the ring's size. */
static uint16_t advance(const struct ring *ring, uint16_t position, uint32_t n)
{
	uint32_t index = index_of(position) + n, wrap = position & POSITION_WRAP;

	if (index >= ring->num) {
		index -= ring->num;
		wrap ^= POSITION_WRAP;
	}
	return (uint16_t)(index | wrap);
}

/* Steps from one position to another; positions repeat after two rounds. */
static uint32_t distance(const struct ring *ring, uint16_t from, uint16_t to)
{
	uint32_t n = index_of(to) - index_of(from);

	if ((from ^ to) & POSITION_WRAP)
		return n + ring->num;
	return index_of(to) < index_of(from) ? n + 2 * ring->num : n;
}

static uint8_t *place_of(const struct ring *ring, uint16_t position)
{
	return ring->desc + (size_t)DESC_SIZE * index_of(position);
}

/* len, buffer id and flags are one word: they are read, and written, at once. */
static uint64_t load_rest(const uint8_t *place)
{
	/* What the driver wrote before it made the descriptor available is read after it. */
	return __atomic_load_n((const uint64_t *)(const void *)(place + 8), __ATOMIC_ACQUIRE);
}

static uint64_t load_address(const uint8_t *place)
{
	return __atomic_load_n((const uint64_t *)(const void *)place, __ATOMIC_RELAXED);
}

static bool is_available(uint64_t rest, uint16_t position)
{
	bool wrap = position & POSITION_WRAP;
	uint32_t flags = (uint32_t)(rest >> 48);

	return !!(flags & DESC_F_AVAIL) == wrap && !!(flags & DESC_F_USED) != wrap;
}

/* ---- where a ring stands ---- */

/*
 * Before a descriptor is overwritten. The worker may be killed between any two
 * of its instructions; the order of the two stores is all that matters then.
 */
static void note_step(const struct ring *ring, uint16_t from, uint16_t to)
{
	if (ring->journal)
		__atomic_store_n(&ring->journal->step, STEP_IS_VALID | (uint64_t)to << 16 | from,
				 __ATOMIC_RELEASE);
}

/*
 * The last step that a worker wrote down was made if the descriptor there is no
 * longer one that waits to be used: the driver may have it back already, or may
 * have made the next of it, but never this one again without our help.
 */
static bool find_step(const struct ring *ring, uint16_t *ret_position)
{
	uint64_t step = ring->journal ? __atomic_load_n(&ring->journal->step, __ATOMIC_ACQUIRE) : 0;
	uint16_t from = (uint16_t)step, to = (uint16_t)(step >> 16);

	/* Another process wrote it, which may have been in the guest's hands. */
	if (!(step & STEP_IS_VALID) || index_of(from) >= ring->num)
		return false;
	*ret_position = is_available(load_rest(place_of(ring, from)), from) ? from : to;
	return true;
}

int packed_start(struct ring *ring, uint32_t base, bool from_used_index)
{
	uint16_t avail = (uint16_t)base, used = (uint16_t)(base >> 16);

	if (from_used_index) {
		if (!find_step(ring, &used))
			return -EINVAL;
		avail = used;
	}
	if (index_of(avail) >= ring->num || index_of(used) >= ring->num ||
	    distance(ring, used, avail) > ring->num)
		return -EINVAL;
	ring->next_avail = avail;
	ring->next_used = used;
	ring->n_uncalled = 0;
	/*
	 * What was read from the journal stands there; and who reads it while another
	 * worker still serves must not undo what that one has noted since.
	 */
	if (!from_used_index)
		note_step(ring, used, used);
	return 0;
}

bool packed_has_chains(const struct ring *ring)
{
	return is_available(load_rest(place_of(ring, ring->next_avail)), ring->next_avail);
}

/* ---- chains ---- */

static struct ring_buffer buffer_of(uint64_t guest_address, uint64_t rest)
{
	return (struct ring_buffer){
		.guest_address = guest_address,
		.len = (uint32_t)rest,
		.flags = (uint16_t)(rest >> 48),
	};
}

/*
 * virtio 1.3, 2.8.7: the table's length says where it ends; of the flags of its
 * descriptors only WRITE has a meaning, the others are not looked at.
 */
static int walk_table(struct ring *ring, struct guest_memory *memory,
		      const struct ring_buffer *head, size_t n_parts_max, struct chain *chain)
{
	struct ring_table table;
	struct ring_words words;
	int r = ring_open_table(ring, memory, head, &table);

	for (uint32_t i = 0; r == 0 && i < table.num; i++) {
		struct ring_buffer buffer;

		if (!ring_table_load(&table, memory, i, &words))
			return ring_break(ring, REPORT_RING_BAD_PLACE, table.guest_address);
		buffer = buffer_of(words.address, words.rest);
		r = ring_add_buffer(ring, memory, &buffer, n_parts_max, chain);
	}
	return r;
}

/* Descriptors in a row, no more than the ring has. The last one has the buffer id. */
static int walk_row(struct ring *ring, struct guest_memory *memory, struct ring_buffer *buffer,
		    size_t n_parts_max, struct chain *chain)
{
	uint16_t position = chain->at;

	for (;;) {
		const uint8_t *place;
		uint64_t rest;
		int r = ring_add_buffer(ring, memory, buffer, n_parts_max, chain);

		if (r < 0 || !(buffer->flags & DESC_F_NEXT))
			return r;
		if (chain->ticket.n_slots == ring->num)
			return ring_break(ring, REPORT_RING_LOOP, index_of(chain->at));
		chain->ticket.n_slots++;
		position = advance(ring, position, 1);
		place = place_of(ring, position);
		rest = load_rest(place);
		*buffer = buffer_of(load_address(place), rest);
		chain->ticket.head = (uint16_t)(rest >> 32);
		/* 2.8.19: a table stands alone. */
		if (buffer->flags & DESC_F_INDIRECT)
			return ring_break(ring, REPORT_RING_BAD_INDIRECT, buffer->len);
	}
}

int packed_pop(struct ring *ring, struct guest_memory *memory, size_t n_parts_max,
	       struct chain *chain)
{
	const uint8_t *place = place_of(ring, ring->next_avail);
	uint64_t rest = load_rest(place);
	struct ring_buffer buffer;
	int r;

	/* Read again: a hostile driver may have taken it away since packed_has_chains(). */
	if (!is_available(rest, ring->next_avail))
		return 0;
	buffer = buffer_of(load_address(place), rest);
	/* The driver's name for it, which nothing here depends on: given back as it is. */
	chain->ticket.head = (uint16_t)(rest >> 32);
	chain->ticket.n_slots = 1;
	if (buffer.flags & DESC_F_INDIRECT)
		r = walk_table(ring, memory, &buffer, n_parts_max, chain);
	else
		r = walk_row(ring, memory, &buffer, n_parts_max, chain);
	if (r < 0)
		return r;
	/* A driver can't offer more descriptors than the ring has. */
	if (distance(ring, ring->next_used, chain->at) + chain->ticket.n_slots > ring->num)
		return ring_break(ring, REPORT_RING_AVAIL_JUMP, index_of(chain->at));
	ring->next_avail = advance(ring, chain->at, chain->ticket.n_slots);
	return 1;
}

void packed_put_used(struct ring *ring, const struct ring_ticket *ticket, uint32_t len)
{
	uint16_t from = ring->next_used, to = advance(ring, from, ticket->n_slots);
	uint64_t flags = (from & POSITION_WRAP ? DESC_F_AVAIL | DESC_F_USED : 0) |
			 (len > 0 ? DESC_F_WRITE : 0);
	uint64_t rest = flags << 48 | (uint64_t)ticket->head << 32 | len;

	note_step(ring, from, to);
	/* What was written into the buffers comes before the word that gives them back. */
	__atomic_store_n((uint64_t *)(void *)(place_of(ring, from) + 8), rest, __ATOMIC_RELEASE);
	if (ring->is_logged && ring->log)
		dirty_log_mark(ring->log, ring->desc_address + DESC_SIZE * index_of(from),
			       DESC_SIZE);
	ring->next_used = to;
	ring->n_uncalled += ticket->n_slots;
}

/* ---- calls and kicks ---- */

/* 2.8.21.3.1: is one of the descriptors that were used the one that was asked for? */
static bool wants_call(struct ring *ring)
{
	uint32_t n_used = ring->n_uncalled, event, flags;

	ring->n_uncalled = 0;
	if (!ring->is_notified_once) {
		ring->is_notified_once = true;
		return true;
	}
	event = __atomic_load_n((const uint32_t *)(const void *)ring->avail, __ATOMIC_RELAXED);
	flags = event >> 16 & EVENT_F_MASK;
	if (flags == EVENT_F_DISABLE)
		return false;
	if (flags != EVENT_F_DESC || !ring->has_event_idx)
		return true;
	/* More than two rounds between two decisions pass every position. */
	return n_used >= 2 * ring->num ||
	       distance(ring, (uint16_t)event, ring->next_used) - 1 < n_used;
}

bool packed_publish(struct ring *ring)
{
	if (ring->n_uncalled == 0)
		return false;
	/* The driver writes its wish, then looks at the descriptor; we the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return wants_call(ring);
}

static void write_event(struct ring *ring, uint16_t position, uint32_t flags)
{
	__atomic_store_n((uint32_t *)(void *)ring->used, flags << 16 | position, __ATOMIC_RELAXED);
	ring_log(ring, 0, EVENT_SIZE);
}

void packed_ask_for_kicks(struct ring *ring, uint16_t position)
{
	if (ring->has_event_idx)
		write_event(ring, position, EVENT_F_DESC);
	else
		write_event(ring, 0, EVENT_F_ENABLE);
}

void packed_disable_kicks(struct ring *ring)
{
	/* With EVENT_IDX a position that lies behind asks for nothing. */
	if (!ring->has_event_idx)
		write_event(ring, 0, EVENT_F_DISABLE);
}

uint16_t packed_driver_position(const struct ring *ring)
{
	uint16_t position = ring->next_avail;

	for (uint32_t i = 0; i < ring->num && packed_driver_is_past(ring, position); i++)
		position = advance(ring, position, 1);
	return position;
}

bool packed_driver_is_past(const struct ring *ring, uint16_t position)
{
	return is_available(load_rest(place_of(ring, position)), position);
}
