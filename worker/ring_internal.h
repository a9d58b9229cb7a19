/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Between the files of the ring: ring.c is its face and what both layouts share,
 * ring_split.c and ring_packed.c know how one layout lies in guest memory.
 */

#include <errno.h>

#include "ipc/message.h"
#include "worker/ring.h"

/* Flags of a descriptor, the same in both layouts. */
#define DESC_SIZE	16
#define DESC_F_NEXT	1
#define DESC_F_WRITE	2
#define DESC_F_INDIRECT 4

/* A descriptor as it was read, once: 16 bytes as two words. */
struct ring_words {
	uint64_t address, rest;
};

/* What both layouts have in a descriptor. */
struct ring_buffer {
	uint64_t guest_address;
	uint32_t len;
	uint16_t flags;
};

/* An indirect table in guest memory. */
struct ring_table {
	const uint8_t *start; /* NULL: crosses a border of regions, see guest_address */
	uint64_t guest_address;
	uint32_t num;
};

/* Returns -EPROTO. */
int ring_break(struct ring *ring, enum report_ring_reason reason, uint64_t value);

/* One that crosses a border of regions. false when the table left guest memory. */
bool ring_table_load_across(const struct ring_table *table, struct guest_memory *memory,
			    uint32_t index, struct ring_words *ret);

/* Find the table that a descriptor names, or break the ring. */
int ring_open_table(struct ring *ring, struct guest_memory *memory,
		    const struct ring_buffer *buffer, struct ring_table *ret_table);

/* ---- for each descriptor: in line, or a packet costs half as many instructions more ---- */

/*
 * Two loads of 8 bytes, each once: what is checked is what is used. An indirect
 * table has no alignment to rely on.
 */
static inline struct ring_words ring_load_words(const void *place)
{
	const volatile struct __attribute__((packed)) {
		uint64_t address;
		uint64_t rest;
	} *raw = place;

	return (struct ring_words){.address = raw->address, .rest = raw->rest};
}

/* false when the table left guest memory; only possible without a start. */
static inline bool ring_table_load(const struct ring_table *table, struct guest_memory *memory,
				   uint32_t index, struct ring_words *ret)
{
	if (!table->start)
		return ring_table_load_across(table, memory, index, ret);
	*ret = ring_load_words(table->start + (size_t)index * DESC_SIZE);
	return true;
}

/* Add the buffer of one descriptor, cut at the borders of regions. 0 or as ring_pop(). */
static inline int ring_add_buffer(struct ring *ring, struct guest_memory *memory,
				  const struct ring_buffer *buffer, size_t n_parts_max,
				  struct chain *chain)
{
	bool is_writable = buffer->flags & DESC_F_WRITE;
	uint64_t guest_address = buffer->guest_address;
	uint32_t len = buffer->len;

	if (!is_writable && chain->n_writable > 0)
		chain->is_malformed = true;
	while (len > 0) {
		size_t n_parts = chain->n_readable + chain->n_writable;

		if (n_parts == n_parts_max)
			return n_parts_max < RING_PARTS_MAX
				       ? -EAGAIN
				       : ring_break(ring, REPORT_RING_LOOP, chain->ticket.head);
		if (!guest_memory_translate(memory, guest_address, len, &chain->parts[n_parts]))
			return ring_break(ring, REPORT_RING_BAD_PLACE, guest_address);
		guest_address += chain->parts[n_parts].iov_len;
		len -= (uint32_t)chain->parts[n_parts].iov_len;
		if (is_writable)
			chain->n_writable++;
		else
			chain->n_readable++;
	}
	if (is_writable)
		chain->writable_len += buffer->len;
	else
		chain->readable_len += buffer->len;
	return 0;
}

/* len bytes at an offset from log_address were written. */
static inline void ring_log(const struct ring *ring, uint64_t offset, size_t len)
{
	if (ring->is_logged && ring->log)
		dirty_log_mark(ring->log, ring->log_address + offset, len);
}

/* How the parts of a ring must lie: bytes, and what virtio asks of their addresses. */
struct ring_shape {
	uint64_t desc_len, avail_len, used_len;
	uint32_t avail_alignment, used_alignment;
};

/* Of each layout, for the functions of ring.h. Popped from are rings that have chains. */
struct ring_shape split_shape(uint32_t num);
void split_start(struct ring *ring, uint32_t base, bool from_used_index);
bool split_has_chains(struct ring *ring);
int split_pop(struct ring *ring, struct guest_memory *memory, size_t n_parts_max,
	      struct chain *chain);
void split_put_used(struct ring *ring, const struct ring_ticket *ticket, uint32_t len);
bool split_publish(struct ring *ring); /* does the driver want to be called? */
void split_ask_for_kicks(struct ring *ring, uint16_t position);
void split_disable_kicks(struct ring *ring);
uint16_t split_driver_position(const struct ring *ring);
bool split_driver_is_past(const struct ring *ring, uint16_t position);

struct ring_shape packed_shape(uint32_t num);
int packed_start(struct ring *ring, uint32_t base, bool from_used_index);
bool packed_has_chains(const struct ring *ring);
int packed_pop(struct ring *ring, struct guest_memory *memory, size_t n_parts_max,
	       struct chain *chain);
void packed_put_used(struct ring *ring, const struct ring_ticket *ticket, uint32_t len);
bool packed_publish(struct ring *ring);
void packed_ask_for_kicks(struct ring *ring, uint16_t position);
void packed_disable_kicks(struct ring *ring);
uint16_t packed_driver_position(const struct ring *ring);
bool packed_driver_is_past(const struct ring *ring, uint16_t position);
