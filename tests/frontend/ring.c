/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/ring.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/frontend/socket.h"

_Static_assert(sizeof(struct ring_descriptor) == 16, "descriptor");

enum { FLAGS, IDX, ENTRIES }; /* of both rings, in 16-bit words */

struct ring_chain {
	uint32_t cookie;
	uint32_t writable;	/* bytes */
	uint16_t n_descriptors; /* in the ring; 0: not in flight */
};

static size_t avail_len(const struct ring *ring)
{
	return 2 * ((size_t)ENTRIES + ring->size + 1);
}

static size_t used_len(const struct ring *ring)
{
	return 2 * (ENTRIES + (size_t)ring->size * 4 + 1);
}

static uint16_t load(const uint16_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void store(uint16_t *word, uint16_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static uint16_t *used_event(const struct ring *ring)
{
	return &ring->avail[ENTRIES + ring->size];
}

static const uint16_t *avail_event(const struct ring *ring)
{
	return &ring->used[ENTRIES + (size_t)ring->size * 4];
}

uint16_t ring_used_idx(const struct ring *ring)
{
	return load(&ring->used[IDX]);
}

int ring_init(struct ring *ring, struct memory *memory, uint16_t size)
{
	*ring = (struct ring){.memory = memory, .size = size};
	ring->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ring->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ring->err = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ring->chains = calloc(size, sizeof(*ring->chains));
	ring->next = calloc(size, sizeof(*ring->next));
	ring->descriptors_address = memory_allocate(memory, 16 * (uint64_t)size, 4096);
	ring->avail_address = memory_allocate(memory, avail_len(ring), 4096);
	ring->used_address = memory_allocate(memory, used_len(ring), 4096);
	if (ring->kick < 0 || ring->call < 0 || ring->err < 0 || !ring->chains || !ring->next ||
	    !ring->descriptors_address || !ring->avail_address || !ring->used_address) {
		ring_end(ring);
		return -ENOMEM;
	}
	ring->descriptors = memory_at(memory, ring->descriptors_address);
	ring->avail = memory_at(memory, ring->avail_address);
	ring->used = memory_at(memory, ring->used_address);
	ring_reset(ring);
	return 0;
}

void ring_end(struct ring *ring)
{
	int fds[] = {ring->kick, ring->call, ring->err};

	if (!ring->memory)
		return;
	for (size_t i = 0; i < 3; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	free(ring->chains);
	free(ring->next);
	*ring = (struct ring){0};
}

void ring_reset(struct ring *ring)
{
	memset(ring->descriptors, 0, 16 * (size_t)ring->size);
	memset(ring->avail, 0, avail_len(ring));
	memset(ring->used, 0, used_len(ring));
	memset(ring->chains, 0, ring->size * sizeof(*ring->chains));
	for (uint32_t i = 0; i < ring->size; i++)
		ring->next[i] = (uint16_t)(i + 1);
	ring->avail_idx = ring->kicked_idx = ring->used_idx = ring->seen_idx = 0;
	ring->free_head = ring->n_in_flight = 0;
	ring->n_free = ring->size;
}

struct vhost_ring_address ring_addresses(const struct ring *ring, uint32_t index)
{
	return (struct vhost_ring_address){
		.index = index,
		.desc = memory_user_address(ring->memory, ring->descriptors_address),
		.avail = memory_user_address(ring->memory, ring->avail_address),
		.used = memory_user_address(ring->memory, ring->used_address),
		.log = ring->used_address,
	};
}

static struct ring_descriptor describe(const struct ring_buffer *buffer)
{
	return (struct ring_descriptor){
		.address = buffer->guest_address,
		.len = buffer->len,
		.flags = buffer->is_writable ? RING_DESCRIPTOR_WRITE : 0,
	};
}

static void fill_table(struct ring_descriptor *table, const struct ring_buffer *buffers, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		table[i] = describe(&buffers[i]);
		if (i + 1 == n)
			continue;
		table[i].flags |= RING_DESCRIPTOR_NEXT;
		table[i].next = (uint16_t)(i + 1);
	}
}

int ring_add(struct ring *ring, const struct ring_buffer *buffers, size_t n, uint64_t table_address,
	     uint32_t cookie)
{
	size_t n_descriptors = table_address ? 1 : n;
	uint16_t head = ring->free_head, index = head;
	uint32_t writable = 0;

	if (n == 0 || n_descriptors > ring->n_free)
		return -ENOSPC;
	if (table_address) {
		fill_table(memory_at(ring->memory, table_address), buffers, n);
		ring->descriptors[index] = (struct ring_descriptor){
			.address = table_address,
			.len = 16 * (uint32_t)n,
			.flags = RING_DESCRIPTOR_INDIRECT,
		};
		index = ring->next[index];
	}
	for (size_t i = 0; i < n; i++) {
		writable += buffers[i].is_writable ? buffers[i].len : 0;
		if (table_address)
			continue;
		ring->descriptors[index] = describe(&buffers[i]);
		if (i + 1 < n)
			ring->descriptors[index].flags |= RING_DESCRIPTOR_NEXT;
		ring->descriptors[index].next = ring->next[index];
		index = ring->next[index];
	}
	ring->chains[head] = (struct ring_chain){
		.cookie = cookie,
		.writable = writable,
		.n_descriptors = (uint16_t)n_descriptors,
	};
	ring->free_head = index;
	ring->n_free = (uint16_t)(ring->n_free - n_descriptors);
	ring->n_in_flight++;
	ring_offer_raw(ring, head);
	return 0;
}

void ring_offer_raw(struct ring *ring, uint16_t head)
{
	ring->avail[ENTRIES + (ring->avail_idx & (ring->size - 1))] = head;
	ring->avail_idx++;
}

void ring_set_avail_idx(struct ring *ring, uint16_t idx)
{
	ring->avail_idx = idx;
	store(&ring->avail[IDX], idx);
}

void ring_kick(struct ring *ring)
{
	uint64_t one = 1;

	ring->n_kicks++;
	if (ring->on_kick) {
		ring->on_kick(ring->context, ring->index);
		return;
	}
	/* Fails only when 2^64 - 2 kicks wait: then one more is not missed. */
	if (write(ring->kick, &one, sizeof(one)) < 0)
		return;
}

void ring_submit(struct ring *ring)
{
	uint16_t old = ring->kicked_idx, new = ring->avail_idx;
	bool is_wanted;

	if (old == new)
		return;
	store(&ring->avail[IDX], new);
	/* The index must be visible before we read whether the device wants to hear of it. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (ring->has_event_idx)
		is_wanted = (uint16_t)(new - load(avail_event(ring)) - 1) < (uint16_t)(new - old);
	else
		is_wanted = !(load(&ring->used[FLAGS]) & 1);
	ring->kicked_idx = new;
	if (is_wanted)
		ring_kick(ring);
}

static void free_chain(struct ring *ring, uint16_t head)
{
	uint16_t n = ring->chains[head].n_descriptors, last = head;

	for (uint16_t i = 1; i < n; i++)
		last = ring->next[last];
	ring->next[last] = ring->free_head;
	ring->free_head = head;
	ring->n_free = (uint16_t)(ring->n_free + n);
	ring->n_in_flight--;
	ring->chains[head].n_descriptors = 0;
}

static int fail(struct ring *ring, const char *fault)
{
	ring->fault = fault;
	return -EPROTO;
}

int ring_take(struct ring *ring, struct ring_completion *ret)
{
	const struct ring_used *entries = (const struct ring_used *)&ring->used[ENTRIES];
	const struct ring_chain *chain;
	struct ring_used used;

	if (ring->used_idx == ring->seen_idx)
		ring->seen_idx = ring_used_idx(ring);
	if (ring->used_idx == ring->seen_idx)
		return 0;
	if ((uint16_t)(ring->seen_idx - ring->used_idx) > ring->n_in_flight)
		return fail(ring, "used index beyond what is in flight");
	used = entries[ring->used_idx & (ring->size - 1)];
	if (used.id >= ring->size || ring->chains[used.id].n_descriptors == 0)
		return fail(ring, "used chain that is not in flight");
	chain = &ring->chains[used.id];
	if (used.len > chain->writable)
		return fail(ring, "used length beyond the writable bytes of the chain");
	*ret = (struct ring_completion){.cookie = chain->cookie, .len = used.len};
	free_chain(ring, (uint16_t)used.id);
	ring->used_idx++;
	return 1;
}

bool ring_expect_call(struct ring *ring)
{
	if (ring->has_event_idx)
		store(used_event(ring), ring->used_idx);
	else
		store(&ring->avail[FLAGS], 0);
	/* The wish must be visible before we look whether it came too late. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return ring_used_idx(ring) != ring->used_idx;
}

void ring_ignore_calls(struct ring *ring)
{
	/* With EVENT_IDX an index that lies behind is enough. */
	if (!ring->has_event_idx)
		store(&ring->avail[FLAGS], 1);
}

bool ring_clear_call(struct ring *ring)
{
	uint64_t count;

	if (read(ring->call, &count, sizeof(count)) != sizeof(count))
		return false;
	ring->n_calls++;
	return true;
}

int ring_wait(struct ring *ring, int timeout)
{
	int error = socket_wait(ring->call, POLLIN, deadline_in(timeout));

	if (error < 0)
		return error;
	ring_clear_call(ring);
	return 0;
}
