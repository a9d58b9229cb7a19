/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/ring.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/frontend/ring_internal.h"
#include "tests/frontend/socket.h"

enum { FLAGS, IDX, ENTRIES }; /* of both rings, in 16-bit words */

static size_t avail_len(const struct ring *ring)
{
	return 2 * ((size_t)ENTRIES + ring->size + 1);
}

static size_t used_len(const struct ring *ring)
{
	return 2 * (ENTRIES + (size_t)ring->size * 4 + 1);
}

uint16_t ring_load(const uint16_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

void ring_store(uint16_t *word, uint16_t value)
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
	return ring->is_packed ? packed_used_position(ring) : ring_load(&ring->used[IDX]);
}

int ring_init(struct ring *ring, struct memory *memory, uint16_t size)
{
	*ring = (struct ring){.memory = memory, .size = size};
	ring->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ring->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ring->err = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ring->chains = calloc(size, sizeof(*ring->chains));
	ring->next = calloc(size, sizeof(*ring->next));
	ring->order = calloc(size, sizeof(*ring->order));
	ring->descriptors_address = memory_allocate(memory, 16 * (uint64_t)size, 4096);
	ring->avail_address = memory_allocate(memory, avail_len(ring), 4096);
	ring->used_address = memory_allocate(memory, used_len(ring), 4096);
	if (ring->kick < 0 || ring->call < 0 || ring->err < 0 || !ring->chains || !ring->next ||
	    !ring->order || !ring->descriptors_address || !ring->avail_address ||
	    !ring->used_address) {
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
	free(ring->order);
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
	ring->avail_idx = ring->kicked_idx = ring->used_idx = ring->seen_idx =
		ring->is_packed ? RING_WRAP : 0;
	ring->free_head = ring->n_in_flight = 0;
	ring->n_free = ring->size;
	ring->order_first = ring->n_unpublished = ring->n_batch = 0;
	ring->n_unkicked = 0;
}

void ring_set_layout(struct ring *ring, bool is_packed, bool is_in_order)
{
	ring->is_in_order = is_in_order;
	if (ring->is_packed == is_packed)
		return;
	ring->is_packed = is_packed;
	ring_reset(ring);
}

uint32_t ring_first_base(const struct ring *ring)
{
	return ring->is_packed ? (uint32_t)RING_WRAP << 16 | RING_WRAP : 0;
}

uint32_t ring_last_base(const struct ring *ring)
{
	return ring->is_packed ? (uint32_t)ring->avail_idx << 16 | ring->avail_idx
			       : ring->avail_idx;
}

const char *ring_judge_base(const struct ring *ring, uint32_t base)
{
	uint16_t used = ring_used_idx(ring), avail = (uint16_t)base;

	if (avail != used || (ring->is_packed ? base >> 16 != used : base > UINT16_MAX))
		return "chains were taken and not given back";
	if (ring->is_packed ? packed_distance(ring, used, ring->avail_idx) > ring->size
			    : (uint16_t)(ring->avail_idx - avail) > ring->size)
		return "more was taken than was there";
	return NULL;
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

/* Into the table of a split ring, in the order of the free list. */
static void place(struct ring *ring, uint16_t head, const struct ring_descriptor *table,
		  const struct ring_buffer *buffers)
{
	uint16_t n = ring->chains[head].n_descriptors, index = head;

	for (uint16_t i = 0; i < n; i++) {
		ring->descriptors[index] = table ? *table : describe(&buffers[i]);
		if (i + 1 < n)
			ring->descriptors[index].flags |= RING_DESCRIPTOR_NEXT;
		ring->descriptors[index].next = ring->next[index];
		index = ring->next[index];
	}
	ring->free_head = index;
	ring_offer_raw(ring, head);
}

int ring_add(struct ring *ring, const struct ring_buffer *buffers, size_t n, uint64_t table_address,
	     uint32_t cookie)
{
	const struct ring_descriptor table = {
		.address = table_address,
		.len = 16 * (uint32_t)n,
		.flags = RING_DESCRIPTOR_INDIRECT,
	};
	size_t n_descriptors = table_address ? 1 : n;
	uint16_t head = ring->free_head;
	uint32_t writable = 0;

	if (n == 0 || n_descriptors > ring->n_free)
		return -ENOSPC;
	if (table_address && ring->is_packed)
		packed_fill_table(memory_at(ring->memory, table_address), buffers, n);
	else if (table_address)
		fill_table(memory_at(ring->memory, table_address), buffers, n);
	for (size_t i = 0; i < n; i++)
		writable += buffers[i].is_writable ? buffers[i].len : 0;
	ring->chains[head] = (struct ring_chain){
		.cookie = cookie,
		.writable = writable,
		.n_descriptors = (uint16_t)n_descriptors,
		.position = ring->avail_idx,
	};
	ring->order[(ring->order_first + ring->n_in_flight) % ring->size] = head;
	ring->n_free = (uint16_t)(ring->n_free - n_descriptors);
	ring->n_in_flight++;
	ring->n_unpublished++;
	if (ring->is_packed)
		packed_place(ring, head, table_address ? &table : NULL, buffers);
	else
		place(ring, head, table_address ? &table : NULL, buffers);
	return 0;
}

void ring_offer_descriptor(struct ring *ring, uint64_t address, uint32_t len, uint16_t flags,
			   uint16_t next)
{
	const struct ring_descriptor descriptor = {address, len, flags, next};
	uint16_t head = ring->free_head;

	if (ring->is_packed) {
		packed_offer(ring, &descriptor);
		return;
	}
	ring->descriptors[head] = descriptor;
	ring_offer_raw(ring, head);
	ring_set_avail_idx(ring, ring->avail_idx);
}

void ring_offer_raw(struct ring *ring, uint16_t head)
{
	ring->avail[ENTRIES + (ring->avail_idx & (ring->size - 1))] = head;
	ring->avail_idx++;
}

void ring_set_avail_idx(struct ring *ring, uint16_t idx)
{
	ring->avail_idx = idx;
	ring_store(&ring->avail[IDX], idx);
}

void ring_withdraw(struct ring *ring, uint16_t position)
{
	if (ring->is_packed)
		packed_withdraw(ring, position);
	else
		ring_set_avail_idx(ring, position);
	ring->kicked_idx = position;
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

	if (old == new && ring->n_unpublished == 0)
		return;
	if (ring->is_packed)
		packed_publish(ring);
	else
		ring_store(&ring->avail[IDX], new);
	ring->n_unpublished = 0;
	/* The chains must be visible before we read whether the device wants to hear of them. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (ring->is_packed)
		is_wanted = packed_wants_kick(ring);
	else if (ring->has_event_idx)
		is_wanted =
			(uint16_t)(new - ring_load(avail_event(ring)) - 1) < (uint16_t)(new - old);
	else
		is_wanted = !(ring_load(&ring->used[FLAGS]) & 1);
	ring->kicked_idx = new;
	if (is_wanted)
		ring_kick(ring);
}

static void free_chain(struct ring *ring, uint16_t head)
{
	uint16_t n = ring->chains[head].n_descriptors, last = head;

	/* Of a packed ring a chain has one id, however long it is. */
	for (uint16_t i = 1; i < n && !ring->is_packed; i++)
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

/* The used entry at used_idx. 1, 0 if there is none, or ring_take()'s failure. */
static int read_used(struct ring *ring, struct ring_used *ret)
{
	const struct ring_used *entries = (const struct ring_used *)&ring->used[ENTRIES];

	if (ring->used_idx == ring->seen_idx)
		ring->seen_idx = ring_used_idx(ring);
	if (ring->used_idx == ring->seen_idx)
		return 0;
	if ((uint16_t)(ring->seen_idx - ring->used_idx) > ring->n_in_flight)
		return fail(ring, "used index beyond what is in flight");
	*ret = entries[ring->used_idx & (ring->size - 1)];
	return 1;
}

uint16_t ring_count_until(const struct ring *ring, uint16_t first, uint32_t id)
{
	for (uint16_t n = first; n < ring->n_in_flight - ring->n_unpublished; n++)
		if (ring->order[(ring->order_first + n) % ring->size] == id)
			return (uint16_t)(n - first + 1);
	return 0;
}

/* Whose turn it is, now that an entry was read. */
static int begin_batch(struct ring *ring, const struct ring_used *used)
{
	uint16_t n = ring_count_until(ring, 0, used->id);

	if (n == 0)
		return fail(ring, "used chain that is not in flight");
	if (used->len > ring->chains[used->id].writable)
		return fail(ring, "used length beyond the writable bytes of the chain");
	/* vsockd gives back in order, promised or not; others may do as they like. */
	if (!ring->is_in_order && n > 1) {
		for (uint16_t i = (uint16_t)(n - 1); i > 0; i--)
			ring->order[(ring->order_first + i) % ring->size] =
				ring->order[(ring->order_first + i - 1) % ring->size];
		ring->order[ring->order_first] = (uint16_t)used->id;
		n = 1;
	}
	ring->n_batch = n;
	ring->batch_len = used->len;
	return 1;
}

int ring_take(struct ring *ring, struct ring_completion *ret)
{
	const struct ring_chain *chain;
	struct ring_used used;
	uint16_t head;
	int r;

	if (ring->n_batch == 0) {
		r = ring->is_packed ? packed_read_used(ring, &used) : read_used(ring, &used);
		if (r == 1)
			r = begin_batch(ring, &used);
		if (r != 1)
			return r;
	}
	head = ring->order[ring->order_first];
	chain = &ring->chains[head];
	ring->n_batch--;
	/* Those that were passed over count as filled to the end. */
	*ret = (struct ring_completion){
		.cookie = chain->cookie,
		.len = ring->n_batch == 0 ? ring->batch_len : chain->writable,
	};
	ring->used_idx = ring->is_packed
				 ? packed_advance(ring, ring->used_idx, chain->n_descriptors)
				 : (uint16_t)(ring->used_idx + 1);
	ring->order_first = (uint16_t)((ring->order_first + 1) % ring->size);
	free_chain(ring, head);
	return 1;
}

bool ring_expect_call(struct ring *ring)
{
	if (ring->is_packed)
		packed_expect_call(ring);
	else if (ring->has_event_idx)
		ring_store(used_event(ring), ring->used_idx);
	else
		ring_store(&ring->avail[FLAGS], 0);
	/* The wish must be visible before we look whether it came too late. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return ring_used_idx(ring) != ring->used_idx;
}

void ring_ignore_calls(struct ring *ring)
{
	/* With EVENT_IDX an index that lies behind is enough. */
	if (ring->is_packed)
		packed_ignore_calls(ring);
	else if (!ring->has_event_idx)
		ring_store(&ring->avail[FLAGS], 1);
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
