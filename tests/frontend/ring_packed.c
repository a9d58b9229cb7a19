/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "tests/frontend/ring_internal.h"

#define FLAG_AVAIL (1u << 7)
#define FLAG_USED  (1u << 15)

/* The event areas, as one word: a position, and above it flags. */
#define EVENT_DISABLE  1u
#define EVENT_POSITION 2u

/* As it lies in memory, ring and tables alike. */
struct entry {
	uint64_t address;
	uint32_t len;
	uint16_t id, flags;
};
_Static_assert(sizeof(struct entry) == 16, "entry");

static uint32_t index_of(uint16_t position)
{
	return position & (uint32_t)~RING_WRAP;
}

static struct entry *entry_at(const struct ring *ring, uint16_t position)
{
	return (struct entry *)(void *)ring->descriptors + index_of(position);
}

uint16_t packed_advance(const struct ring *ring, uint16_t position, uint32_t n)
{
	uint32_t index = index_of(position) + n;
	uint32_t wrap = position & RING_WRAP;

	if (index >= ring->size) {
		index -= ring->size;
		wrap ^= RING_WRAP;
	}
	return (uint16_t)(index | wrap);
}

uint32_t packed_distance(const struct ring *ring, uint16_t from, uint16_t to)
{
	uint32_t n = index_of(to) + 2u * ring->size - index_of(from);

	return (n + ((from ^ to) & RING_WRAP ? ring->size : 0)) % (2u * ring->size);
}

/* The flags that make a descriptor available in the round of that position. */
static uint16_t round_flags(uint16_t position)
{
	return position & RING_WRAP ? FLAG_AVAIL : FLAG_USED;
}

static bool is_used(const struct ring *ring, uint16_t position)
{
	uint16_t flags = ring_load(&entry_at(ring, position)->flags);
	bool wrap = position & RING_WRAP;

	return !!(flags & FLAG_AVAIL) == wrap && !!(flags & FLAG_USED) == wrap;
}

/* Over the used entries, each of which stands for a chain, or for several in order. */
uint16_t packed_used_position(const struct ring *ring)
{
	uint16_t position = ring->used_idx, n_seen = ring->n_batch;

	for (uint16_t i = 0; i < n_seen; i++)
		position = packed_advance(
			ring, position,
			ring->chains[ring->order[(ring->order_first + i) % ring->size]]
				.n_descriptors);
	while (n_seen < ring->n_in_flight && is_used(ring, position)) {
		uint16_t id = entry_at(ring, position)->id;
		uint16_t n = ring->is_in_order ? ring_count_until(ring, n_seen, id) : 1;

		if (n == 0 || id >= ring->size)
			break; /* ring_take() will say so */
		for (uint16_t i = 0; i < n; i++, n_seen++) {
			uint16_t at = (uint16_t)((ring->order_first + n_seen) % ring->size);

			position = packed_advance(
				ring, position,
				ring->chains[ring->is_in_order ? ring->order[at] : id]
					.n_descriptors);
		}
	}
	return position;
}

static struct entry describe(const struct ring_buffer *buffer)
{
	return (struct entry){
		.address = buffer->guest_address,
		.len = buffer->len,
		.flags = buffer->is_writable ? RING_DESCRIPTOR_WRITE : 0,
	};
}

void packed_fill_table(void *table, const struct ring_buffer *buffers, size_t n)
{
	struct entry *entries = table;

	/* Ids have no meaning here: what stands in them must not matter. */
	for (size_t i = 0; i < n; i++) {
		entries[i] = describe(&buffers[i]);
		entries[i].id = 0xdead;
	}
}

void packed_place(struct ring *ring, uint16_t id, const struct ring_descriptor *table,
		  const struct ring_buffer *buffers)
{
	struct ring_chain *chain = &ring->chains[id];
	uint16_t n = chain->n_descriptors, position = ring->avail_idx;

	for (uint16_t i = 0; i < n; i++) {
		struct entry *place = entry_at(ring, position), entry;

		entry = table ? (struct entry){table->address, table->len, 0, table->flags}
			      : describe(&buffers[i]);
		/* Only the last one's id counts. */
		entry.id = i + 1 < n ? (uint16_t)~id : id;
		entry.flags |= round_flags(position);
		if (i + 1 < n)
			entry.flags |= RING_DESCRIPTOR_NEXT;
		place->address = entry.address;
		place->len = entry.len;
		place->id = entry.id;
		if (i == 0)
			chain->head_flags = entry.flags;
		else
			place->flags = entry.flags;
		position = packed_advance(ring, position, 1);
	}
	ring->free_head = ring->next[id];
	ring->avail_idx = position;
	ring->n_unkicked += n;
}

void packed_offer(struct ring *ring, const struct ring_descriptor *descriptor)
{
	struct entry *place = entry_at(ring, ring->avail_idx);

	place->address = descriptor->address;
	place->len = descriptor->len;
	place->id = descriptor->next;
	ring_store(&place->flags, descriptor->flags | round_flags(ring->avail_idx));
	ring->avail_idx = packed_advance(ring, ring->avail_idx, 1);
}

void packed_withdraw(struct ring *ring, uint16_t position)
{
	/* Used in the round before. */
	for (uint16_t at = position; at != ring->avail_idx; at = packed_advance(ring, at, 1))
		ring_store(&entry_at(ring, at)->flags, at & RING_WRAP ? 0 : FLAG_AVAIL | FLAG_USED);
	ring->avail_idx = position;
}

bool ring_is_used_descriptor(const struct ring *ring, uint16_t index)
{
	return is_used(ring, index) || is_used(ring, index | RING_WRAP);
}

void packed_publish(struct ring *ring)
{
	for (uint16_t i = ring->n_unpublished; i > 0; i--) {
		uint16_t at = (uint16_t)((ring->order_first + ring->n_in_flight - i) % ring->size);
		const struct ring_chain *chain = &ring->chains[ring->order[at]];

		ring_store(&entry_at(ring, chain->position)->flags, chain->head_flags);
	}
}

static uint32_t load_event(const uint16_t *area)
{
	return __atomic_load_n((const uint32_t *)(const void *)area, __ATOMIC_ACQUIRE);
}

static void store_event(uint16_t *area, uint16_t position, uint32_t flags)
{
	__atomic_store_n((uint32_t *)(void *)area, flags << 16 | position, __ATOMIC_RELEASE);
}

bool packed_wants_kick(struct ring *ring)
{
	uint32_t event = load_event(ring->used), n = ring->n_unkicked;

	ring->n_unkicked = 0;
	if (event >> 16 != EVENT_POSITION)
		return event >> 16 != EVENT_DISABLE;
	return n >= 2u * ring->size ||
	       packed_distance(ring, (uint16_t)event, ring->avail_idx) - 1 < n;
}

int packed_read_used(struct ring *ring, struct ring_used *ret)
{
	const struct entry *entry = entry_at(ring, ring->used_idx);

	if (ring->n_in_flight == 0 || !is_used(ring, ring->used_idx))
		return 0;
	*ret = (struct ring_used){.id = entry->id, .len = entry->len};
	return 1;
}

void packed_expect_call(struct ring *ring)
{
	if (ring->has_event_idx)
		store_event(ring->avail, ring->used_idx, EVENT_POSITION);
	else
		store_event(ring->avail, 0, 0);
}

void packed_ignore_calls(struct ring *ring)
{
	store_event(ring->avail, 0, EVENT_DISABLE);
}
