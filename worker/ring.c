/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/ring.h"

#include <errno.h>
#include <string.h>

#include "worker/ring_internal.h"

#define DESC_ALIGNMENT 16

int ring_break(struct ring *ring, enum report_ring_reason reason, uint64_t value)
{
	ring->is_broken = true;
	ring->broken_reason = reason;
	ring->broken_value = value;
	return -EPROTO;
}

void ring_init(struct ring *ring)
{
	*ring = (struct ring){.kick = -1, .call = -1, .error = -1};
}

static bool find_parts(struct ring *ring, const struct guest_memory *memory)
{
	struct ring_shape shape =
		ring->is_packed ? packed_shape(ring->num) : split_shape(ring->num);
	uint8_t *desc, *avail, *used;

	desc = guest_memory_at_user_address(memory, ring->addresses.desc, shape.desc_len);
	avail = guest_memory_at_user_address(memory, ring->addresses.avail, shape.avail_len);
	used = guest_memory_at_user_address(memory, ring->addresses.used, shape.used_len);
	if (!desc || !avail || !used)
		return false;
	/* Virtio asks for it, and an atomic access of ours depends on it. */
	if ((uintptr_t)desc % DESC_ALIGNMENT || (uintptr_t)avail % shape.avail_alignment ||
	    (uintptr_t)used % shape.used_alignment)
		return false;
	ring->desc = desc;
	ring->avail = avail;
	ring->used = used;
	return guest_memory_address_of(memory, desc, &ring->desc_address);
}

int ring_start(struct ring *ring, struct guest_memory *memory, uint32_t num,
	       const struct ring_addresses *addresses, uint32_t base, bool from_used_index)
{
	int r = 0;

	ring->is_started = false;
	ring->is_broken = false;
	ring->is_packed = ring->has_packed;
	if (num == 0 || num > RING_SIZE_MAX || (!ring->is_packed && (num & (num - 1))))
		return -EINVAL;
	ring->num = num;
	ring->addresses = *addresses;
	if (!find_parts(ring, memory))
		return -EFAULT;

	if (ring->is_packed)
		r = packed_start(ring, base, from_used_index);
	else
		split_start(ring, base, from_used_index);
	if (r < 0)
		return r;
	ring->batch = (struct ring_ticket){0};
	ring->is_notified_once = false;
	ring->is_started = true;
	return 0;
}

static uint32_t base_of(const struct ring *ring)
{
	return ring->is_packed ? (uint32_t)ring->next_used << 16 | ring->next_avail
			       : ring->next_avail;
}

uint32_t ring_stop(struct ring *ring)
{
	ring->is_started = false;
	return base_of(ring);
}

struct ring_state ring_state(const struct ring *ring)
{
	return (struct ring_state){
		.base = base_of(ring),
		.was_called = ring->is_notified_once,
		.owes_first_call = ring->owes_first_call,
	};
}

int ring_resume(struct ring *ring, struct guest_memory *memory, uint32_t num,
		const struct ring_addresses *addresses, const struct ring_state *state)
{
	int r = ring_start(ring, memory, num, addresses, state->base, false);

	if (r < 0)
		return r;
	ring->is_notified_once = state->was_called;
	ring->owes_first_call = state->owes_first_call;
	return 0;
}

void ring_rest(struct ring *ring, uint32_t base)
{
	ring->is_packed = ring->has_packed;
	ring->next_avail = (uint16_t)base;
	ring->next_used = (uint16_t)(base >> 16);
}

uint32_t ring_used_position(const struct ring *ring)
{
	return ring->is_packed ? ring->next_used : ring->used_idx;
}

void ring_relocate(struct ring *ring, struct guest_memory *memory)
{
	if (ring->is_started && !ring->is_broken && !find_parts(ring, memory))
		ring_break(ring, REPORT_RING_BAD_PLACE, ring->addresses.desc);
}

bool ring_is_running(const struct ring *ring)
{
	return ring->is_started && ring->is_enabled && !ring->is_broken && !ring->is_suspended;
}

bool ring_has_chains(struct ring *ring)
{
	if (ring->is_packed)
		return packed_has_chains(ring);
	return ring->avail_idx != ring->next_avail || split_has_chains(ring);
}

bool ring_table_load_across(const struct ring_table *table, struct guest_memory *memory,
			    uint32_t index, struct ring_words *ret)
{
	uint64_t guest_address = table->guest_address + (uint64_t)index * DESC_SIZE;
	uint8_t copy[DESC_SIZE];
	size_t len = 0;

	while (len < DESC_SIZE) {
		struct iovec part;

		if (!guest_memory_translate(memory, guest_address + len,
					    (uint32_t)(DESC_SIZE - len), &part))
			return false;
		memcpy(copy + len, part.iov_base, part.iov_len);
		len += part.iov_len;
	}
	*ret = ring_load_words(copy);
	return true;
}

/*
 * virtio 1.3, 2.7.5.3 and 2.8.7: an indirect descriptor stands alone, its table
 * has whole entries, and no more than a ring may have.
 */
int ring_open_table(struct ring *ring, struct guest_memory *memory,
		    const struct ring_buffer *buffer, struct ring_table *ret_table)
{
	struct iovec part;

	if (!ring->has_indirect || (buffer->flags & DESC_F_NEXT) || buffer->len == 0 ||
	    buffer->len % DESC_SIZE || buffer->len / DESC_SIZE > RING_SIZE_MAX ||
	    !guest_memory_translate(memory, buffer->guest_address, buffer->len, &part))
		return ring_break(ring, REPORT_RING_BAD_INDIRECT, buffer->len);
	*ret_table = (struct ring_table){
		.start = part.iov_len == buffer->len ? part.iov_base : NULL,
		.guest_address = buffer->guest_address,
		.num = buffer->len / DESC_SIZE,
	};
	return 0;
}

int ring_pop(struct ring *ring, struct guest_memory *memory, struct iovec *parts,
	     size_t n_parts_max, struct chain *ret_chain)
{
	int r;

	if (!ring_has_chains(ring))
		return ring->is_broken ? -EPROTO : 0;
	*ret_chain = (struct chain){.at = ring->next_avail, .parts = parts};
	if (ring->is_packed)
		r = packed_pop(ring, memory, n_parts_max, ret_chain);
	else
		r = split_pop(ring, memory, n_parts_max, ret_chain);
	ret_chain->ticket.has_room = ret_chain->n_writable > 0;
	return r;
}

void ring_unpop(struct ring *ring, const struct chain *chain)
{
	ring->next_avail = chain->at;
}

static void put_used(struct ring *ring, const struct ring_ticket *ticket, uint32_t len)
{
	if (ring->is_packed)
		packed_put_used(ring, ticket, len);
	else
		split_put_used(ring, ticket, len);
}

static void add_to_batch(struct ring *ring, const struct ring_ticket *ticket, uint32_t len)
{
	uint32_t n_slots = ring->batch.n_slots + ticket->n_slots;

	ring->batch = *ticket;
	ring->batch.n_slots = (uint16_t)n_slots; /* of one ring, so no more than it has */
	/* A chain that is passed over counts as filled to the end: ones with room end the batch. */
	if (!ticket->has_room)
		return;
	put_used(ring, &ring->batch, len);
	ring->batch.n_slots = 0;
}

void ring_push(struct ring *ring, const struct ring_ticket *ticket, uint32_t len)
{
	if (ring->has_in_order)
		add_to_batch(ring, ticket, len);
	else
		put_used(ring, ticket, len);
}

/* Does the driver want to be called? */
static bool publish(struct ring *ring)
{
	if (ring->batch.n_slots > 0)
		put_used(ring, &ring->batch, 0);
	ring->batch.n_slots = 0;
	return ring->is_packed ? packed_publish(ring) : split_publish(ring);
}

void ring_publish(struct ring *ring)
{
	if (publish(ring))
		ring_call(ring);
}

void ring_publish_uncalled(struct ring *ring)
{
	ring->owes_call |= publish(ring);
}

static void ask_for_kicks(struct ring *ring, uint16_t position)
{
	if (ring->is_packed)
		packed_ask_for_kicks(ring, position);
	else
		split_ask_for_kicks(ring, position);
	/* Our wish, then what the driver made available; the driver the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool ring_enable_kicks(struct ring *ring)
{
	ask_for_kicks(ring, ring->next_avail);
	return ring_has_chains(ring);
}

bool ring_enable_kicks_at(struct ring *ring, uint16_t position)
{
	ask_for_kicks(ring, position);
	return ring_driver_is_past(ring, position);
}

void ring_disable_kicks(struct ring *ring)
{
	if (ring->is_packed)
		packed_disable_kicks(ring);
	else
		split_disable_kicks(ring);
}

uint16_t ring_driver_position(const struct ring *ring)
{
	return ring->is_packed ? packed_driver_position(ring) : split_driver_position(ring);
}

bool ring_driver_is_past(const struct ring *ring, uint16_t position)
{
	return ring->is_packed ? packed_driver_is_past(ring, position)
			       : split_driver_is_past(ring, position);
}

static void signal_fd(int fd)
{
	uint64_t one = 1;
	struct iovec iov = {&one, sizeof(one)};

	if (fd < 0)
		return;
	/* A full counter is a signal that waits already; other errors are the front-end's. */
	ssize_t n = writev(fd, &iov, 1);
	(void)n;
}

bool ring_is_polled(const struct ring *ring)
{
	return ring->kick < 0 && !(ring->in_band & RING_KICKED_IN_BAND);
}

bool ring_calls_in_band(const struct ring *ring)
{
	return ring->in_band & RING_CALLED_IN_BAND;
}

void ring_call(struct ring *ring)
{
	if (ring_calls_in_band(ring))
		ring->owes_call = true;
	else
		signal_fd(ring->call);
}

void ring_pay_call(struct ring *ring)
{
	if (!ring->owes_call || ring_calls_in_band(ring))
		return;
	ring->owes_call = false;
	signal_fd(ring->call);
}

void ring_signal_error(struct ring *ring)
{
	if (ring->in_band & RING_FAILS_IN_BAND)
		ring->owes_error = true;
	else
		signal_fd(ring->error);
}
