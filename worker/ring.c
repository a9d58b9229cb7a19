/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/ring.h"

#include <errno.h>
#include <string.h>

#include "ipc/message.h"

/* Layout of a split virtqueue, virtio 1.3, 2.7.5 to 2.7.8. */
#define DESC_SIZE	     16
#define DESC_F_NEXT	     1
#define DESC_F_WRITE	     2
#define DESC_F_INDIRECT	     4
#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY     1
#define RING_HEAD_SIZE	     4 /* flags and idx, of avail and used alike */
#define AVAIL_ELEMENT	     2
#define USED_ELEMENT	     8
#define EVENT_SIZE	     2

struct descriptor {
	uint64_t guest_address;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

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

static int break_ring(struct ring *ring, enum report_ring_reason reason, uint64_t value)
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
	uint64_t num = ring->num;
	uint8_t *desc, *avail, *used;

	desc = guest_memory_at_user_address(memory, ring->addresses.desc, DESC_SIZE * num);
	avail = guest_memory_at_user_address(memory, ring->addresses.avail,
					     RING_HEAD_SIZE + AVAIL_ELEMENT * num + EVENT_SIZE);
	used = guest_memory_at_user_address(memory, ring->addresses.used,
					    RING_HEAD_SIZE + USED_ELEMENT * num + EVENT_SIZE);
	if (!desc || !avail || !used)
		return false;
	/* Virtio asks for it, and an atomic access of ours depends on it. */
	if ((uintptr_t)desc % 16 || (uintptr_t)avail % 2 || (uintptr_t)used % 4)
		return false;
	ring->desc = desc;
	ring->avail = avail;
	ring->used = used;
	return true;
}

int ring_start(struct ring *ring, struct guest_memory *memory, uint32_t num,
	       const struct ring_addresses *addresses, uint32_t base, bool from_used_index)
{
	ring->is_started = false;
	ring->is_broken = false;
	if (num == 0 || num > RING_SIZE_MAX || (num & (num - 1)))
		return -EINVAL;
	ring->num = num;
	ring->addresses = *addresses;
	if (!find_parts(ring, memory))
		return -EFAULT;

	ring->used_idx = guest_load16(used_index(ring));
	ring->next_used = ring->used_idx;
	ring->called_idx = ring->used_idx;
	/* The upper half of a split ring's base is without meaning. */
	ring->next_avail = from_used_index ? ring->used_idx : (uint16_t)base;
	ring->avail_idx = ring->next_avail;
	ring->is_notified_once = false;
	ring->is_started = true;
	return 0;
}

uint32_t ring_stop(struct ring *ring)
{
	ring->is_started = false;
	return ring->next_avail;
}

struct ring_state ring_state(const struct ring *ring)
{
	return (struct ring_state){.base = ring->next_avail, .was_called = ring->is_notified_once};
}

int ring_resume(struct ring *ring, struct guest_memory *memory, uint32_t num,
		const struct ring_addresses *addresses, const struct ring_state *state)
{
	int r = ring_start(ring, memory, num, addresses, state->base, false);

	if (r == 0)
		ring->is_notified_once = state->was_called;
	return r;
}

void ring_rest(struct ring *ring, uint32_t base)
{
	ring->next_avail = (uint16_t)base;
}

uint32_t ring_used_position(const struct ring *ring)
{
	return ring->used_idx;
}

void ring_relocate(struct ring *ring, struct guest_memory *memory)
{
	if (ring->is_started && !ring->is_broken && !find_parts(ring, memory))
		break_ring(ring, REPORT_RING_BAD_PLACE, ring->addresses.desc);
}

bool ring_is_running(const struct ring *ring)
{
	return ring->is_started && ring->is_enabled && !ring->is_broken && !ring->is_suspended;
}

bool ring_has_chains(struct ring *ring)
{
	uint16_t avail_idx;

	if (ring->avail_idx != ring->next_avail)
		return true;
	avail_idx = guest_load16(avail_index(ring));
	/* A driver can't offer more chains than it has descriptors. */
	if ((uint16_t)(avail_idx - ring->next_avail) > ring->num) {
		break_ring(ring, REPORT_RING_AVAIL_JUMP, avail_idx);
		return false;
	}
	ring->avail_idx = avail_idx;
	/* What the driver wrote before it moved the index is read after it. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return avail_idx != ring->next_avail;
}

/*
 * Two loads of 8 bytes, each once: what is checked is what is used. An indirect
 * table has no alignment to rely on.
 */
static struct descriptor load_descriptor(const void *place)
{
	const volatile struct __attribute__((packed)) {
		uint64_t address;
		uint64_t rest;
	} *raw = place;
	uint64_t rest = raw->rest;

	return (struct descriptor){
		.guest_address = raw->address,
		.len = (uint32_t)rest,
		.flags = (uint16_t)(rest >> 32),
		.next = (uint16_t)(rest >> 48),
	};
}

/* A table of descriptors: the ring's own, or an indirect one in guest memory. */
struct table {
	const uint8_t *start; /* NULL: crosses a border of regions, see guest_address */
	uint64_t guest_address;
	uint32_t num;
};

/* false when the table left guest memory; only possible without a start. */
static bool table_load(const struct table *table, struct guest_memory *memory, uint32_t index,
		       struct descriptor *ret)
{
	uint64_t guest_address = table->guest_address + (uint64_t)index * DESC_SIZE;
	uint8_t copy[DESC_SIZE];
	size_t len = 0;

	if (table->start) {
		*ret = load_descriptor(table->start + (size_t)index * DESC_SIZE);
		return true;
	}
	while (len < DESC_SIZE) {
		struct iovec part;

		if (!guest_memory_translate(memory, guest_address + len,
					    (uint32_t)(DESC_SIZE - len), &part))
			return false;
		memcpy(copy + len, part.iov_base, part.iov_len);
		len += part.iov_len;
	}
	*ret = load_descriptor(copy);
	return true;
}

/*
 * virtio 1.3, 2.7.5.3: an indirect descriptor stands alone, its table has whole
 * entries, no more than a ring may have, and no further level.
 */
static int open_indirect(struct ring *ring, struct guest_memory *memory,
			 const struct descriptor *descriptor, struct table *ret_table)
{
	struct iovec part;

	if (!ring->has_indirect || (descriptor->flags & DESC_F_NEXT) || descriptor->len == 0 ||
	    descriptor->len % DESC_SIZE || descriptor->len / DESC_SIZE > RING_SIZE_MAX ||
	    !guest_memory_translate(memory, descriptor->guest_address, descriptor->len, &part))
		return break_ring(ring, REPORT_RING_BAD_INDIRECT, descriptor->len);
	*ret_table = (struct table){
		.start = part.iov_len == descriptor->len ? part.iov_base : NULL,
		.guest_address = descriptor->guest_address,
		.num = descriptor->len / DESC_SIZE,
	};
	return 0;
}

/* Add the buffer of one descriptor, cut at the borders of regions. */
static int add_buffer(struct ring *ring, struct guest_memory *memory,
		      const struct descriptor *descriptor, size_t n_parts_max, struct chain *chain)
{
	bool is_writable = descriptor->flags & DESC_F_WRITE;
	uint64_t guest_address = descriptor->guest_address;
	uint32_t len = descriptor->len;

	if (!is_writable && chain->n_writable > 0)
		chain->is_malformed = true;
	while (len > 0) {
		size_t n_parts = chain->n_readable + chain->n_writable;

		if (n_parts == n_parts_max)
			return n_parts_max < RING_PARTS_MAX
				       ? -EAGAIN
				       : break_ring(ring, REPORT_RING_LOOP, chain->head);
		if (!guest_memory_translate(memory, guest_address, len, &chain->parts[n_parts]))
			return break_ring(ring, REPORT_RING_BAD_PLACE, guest_address);
		guest_address += chain->parts[n_parts].iov_len;
		len -= (uint32_t)chain->parts[n_parts].iov_len;
		if (is_writable)
			chain->n_writable++;
		else
			chain->n_readable++;
	}
	if (is_writable)
		chain->writable_len += descriptor->len;
	else
		chain->readable_len += descriptor->len;
	return 0;
}

/* Walk from the head; as many steps as the table has entries, so a loop ends. */
static int walk_chain(struct ring *ring, struct guest_memory *memory, size_t n_parts_max,
		      struct chain *chain)
{
	struct table table = {.start = ring->desc, .num = ring->num};
	struct descriptor descriptor;
	uint32_t index = chain->head;
	bool is_indirect = false;
	int r;

	for (uint32_t n_steps = 0;; n_steps++) {
		if (index >= table.num)
			return break_ring(ring, REPORT_RING_BAD_INDEX, index);
		if (n_steps >= table.num)
			return break_ring(ring, REPORT_RING_LOOP, chain->head);
		if (!table_load(&table, memory, index, &descriptor))
			return break_ring(ring, REPORT_RING_BAD_PLACE, table.guest_address);

		if (descriptor.flags & DESC_F_INDIRECT) {
			if (is_indirect)
				return break_ring(ring, REPORT_RING_BAD_INDIRECT, descriptor.len);
			r = open_indirect(ring, memory, &descriptor, &table);
			if (r < 0)
				return r;
			is_indirect = true;
			index = 0;
			n_steps = UINT32_MAX; /* the first step in the new table is step 0 */
			continue;
		}
		r = add_buffer(ring, memory, &descriptor, n_parts_max, chain);
		if (r < 0)
			return r;
		if (!(descriptor.flags & DESC_F_NEXT))
			return 1;
		index = descriptor.next;
	}
}

int ring_pop(struct ring *ring, struct guest_memory *memory, struct iovec *parts,
	     size_t n_parts_max, struct chain *ret_chain)
{
	const uint8_t *element;
	int r;

	if (!ring_has_chains(ring))
		return ring->is_broken ? -EPROTO : 0;

	element = ring->avail + RING_HEAD_SIZE +
		  AVAIL_ELEMENT * (size_t)(ring->next_avail & (ring->num - 1));
	*ret_chain = (struct chain){.head = guest_load16(element), .parts = parts};
	r = walk_chain(ring, memory, n_parts_max, ret_chain);
	if (r == 1)
		ring->next_avail++;
	return r;
}

void ring_unpop(struct ring *ring, uint16_t n)
{
	ring->next_avail = (uint16_t)(ring->next_avail - n);
}

/* len bytes at an offset of the used ring were written. */
static void log_used(const struct ring *ring, size_t offset, size_t len)
{
	if (ring->is_logged && ring->log)
		dirty_log_mark(ring->log, ring->log_address + offset, len);
}

void ring_push(struct ring *ring, uint16_t head, uint32_t len)
{
	size_t offset = RING_HEAD_SIZE + USED_ELEMENT * (size_t)(ring->next_used & (ring->num - 1));
	uint8_t *element = ring->used + offset;
	uint32_t id = head;

	memcpy(element, &id, sizeof(id));
	memcpy(element + 4, &len, sizeof(len));
	log_used(ring, offset, USED_ELEMENT);
	ring->next_used++;
}

/* virtio 1.3, 2.7.7.2: has the driver asked for a call between old and new? */
static bool wants_call(struct ring *ring)
{
	uint16_t before = ring->called_idx;

	ring->called_idx = ring->used_idx;
	if (!ring->is_notified_once) {
		ring->is_notified_once = true;
		return true;
	}
	if (!ring->has_event_idx)
		return !(guest_load16(avail_flags(ring)) & AVAIL_F_NO_INTERRUPT);
	return (uint16_t)(ring->used_idx - guest_load16(used_event(ring)) - 1) <
	       (uint16_t)(ring->used_idx - before);
}

void ring_publish(struct ring *ring)
{
	if (ring->used_idx == ring->next_used)
		return;
	/* Elements first, then the index that makes them the driver's. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	guest_store16(used_index(ring), ring->next_used);
	log_used(ring, 0, RING_HEAD_SIZE);
	ring->used_idx = ring->next_used;
	/* The driver writes its wish, then reads our index; we the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (wants_call(ring))
		ring_call(ring);
}

uint16_t ring_driver_index(const struct ring *ring)
{
	return guest_load16(avail_index(ring));
}

static void ask_for_kicks(struct ring *ring, uint16_t index)
{
	if (ring->has_event_idx) {
		guest_store16(avail_event(ring), index);
		log_used(ring, RING_HEAD_SIZE + USED_ELEMENT * (size_t)ring->num, EVENT_SIZE);
	} else {
		guest_store16(used_flags(ring), 0);
		log_used(ring, 0, RING_HEAD_SIZE);
	}
	/* Our wish, then the driver's index; the driver the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool ring_enable_kicks(struct ring *ring)
{
	ask_for_kicks(ring, ring->next_avail);
	return ring_has_chains(ring);
}

bool ring_enable_kicks_at(struct ring *ring, uint16_t index)
{
	ask_for_kicks(ring, index);
	return ring_driver_index(ring) != index;
}

void ring_disable_kicks(struct ring *ring)
{
	/* With EVENT_IDX an avail_event that lies behind asks for nothing. */
	if (!ring->has_event_idx) {
		guest_store16(used_flags(ring), USED_F_NO_NOTIFY);
		log_used(ring, 0, RING_HEAD_SIZE);
	}
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

void ring_call(struct ring *ring)
{
	if (ring->in_band & RING_CALLED_IN_BAND)
		ring->owes_call = true;
	else
		signal_fd(ring->call);
}

void ring_signal_error(struct ring *ring)
{
	if (ring->in_band & RING_FAILS_IN_BAND)
		ring->owes_error = true;
	else
		signal_fd(ring->error);
}
