/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A ring in hostile memory. The input lays out memory and ring, then writes into both
 * and calls what a worker calls, in any order that it may have. Each chain is compared
 * with a second walk over the same bytes, made with other means: by offsets into the
 * file behind the memory, never by address. What the ring writes is compared as well:
 * all that it may write is its own part, and there what it was told to.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"
#include "worker/ring.h"

#define MEMORY_SIZE FUZZ_MEMORY_SIZE
#define GUEST_BASE  UINT64_C(0x80000000)
#define USER_BASE   UINT64_C(0x7f0000000000)
#define REGIONS_MAX 4
#define OPERATIONS  400
#define NOWHERE	    UINT32_MAX

struct piece {
	uint32_t offset, len;
};

/* What the second walk finds. */
struct walk {
	bool is_broken, is_malformed;
	struct piece pieces[RING_PARTS_MAX];
	size_t n_pieces;
	uint64_t readable_len, writable_len;
};

/* A region as the target knows it: offsets into the file. */
struct place {
	uint64_t guest_address, user_address;
	uint32_t offset, size;
};

/* A chain that the device has: its name, its places, and where it begins. */
struct flight {
	struct ring_ticket ticket;
	uint16_t at;
};

static struct {
	int fd;
	uint8_t *view;		     /* of the whole file */
	uint8_t before[MEMORY_SIZE]; /* of the call in hand */
	struct place places[REGIONS_MAX];
	size_t n_places;
	struct guest_memory memory;
	struct ring ring;
	int call;
	uint32_t num;
	uint32_t desc, avail, used;	/* offsets; NOWHERE: outside of memory */
	struct flight in_flight[65536]; /* a queue */
	uint32_t first, n_in_flight, n_pushed;
	uint16_t avail_idx, next_avail; /* as a device has to have read them */
	uint16_t called_idx, used_idx;	/* packed: used_idx as far as was pushed */
	uint16_t offered;		/* packed: where the driver goes on */
	uint32_t n_uncalled;		/* packed: places */
	struct ring_journal journal;
	bool has_step;
	uint16_t step_from, step_to; /* packed: the last one, as a successor has to find it */
	bool was_called;
} f;

static uint16_t load16(uint32_t offset)
{
	uint16_t value;

	memcpy(&value, f.view + offset, sizeof(value));
	return value;
}

static void store16(uint32_t offset, uint16_t value)
{
	memcpy(f.view + offset, &value, sizeof(value));
}

/* ---- memory ---- */

static void add_place(const struct place *place)
{
	struct guest_region region = {
		.guest_address = place->guest_address,
		.size = place->size,
		.user_address = place->user_address,
	};

	CLAIM(guest_memory_add(&f.memory, &region, place->offset, 4096, dup(f.fd), false) == 0);
	f.places[f.n_places++] = *place;
}

/* Regions that touch, in one space of addresses or in both, or do not. */
static void lay_out_memory(struct input *input)
{
	uint8_t choice = input_u8(input);
	size_t n_places = 1 + choice % REGIONS_MAX;
	uint64_t guest_gap = choice & 0x40 ? 0x3000 : 0, user_gap = choice & 0x80 ? 0x100000 : 0;
	uint32_t offset = 0;

	for (size_t i = 0; i < n_places; i++) {
		uint32_t rest = (uint32_t)(MEMORY_SIZE - offset);
		uint32_t size = i + 1 == n_places ? rest : 16 * input_u16(input) % rest + 1;

		add_place(&(struct place){
			.guest_address = GUEST_BASE + offset + i * guest_gap,
			.user_address = USER_BASE + offset + i * user_gap,
			.offset = offset,
			.size = size,
		});
		offset += size;
		if (offset == MEMORY_SIZE)
			return;
	}
}

static uint32_t offset_of_guest(uint64_t guest_address, uint32_t *ret_room)
{
	for (size_t i = 0; i < f.n_places; i++) {
		const struct place *place = &f.places[i];
		uint64_t offset = guest_address - place->guest_address;

		if (offset >= place->size)
			continue;
		*ret_room = place->size - (uint32_t)offset;
		return place->offset + (uint32_t)offset;
	}
	return NOWHERE;
}

/* The whole of it in one region. */
static uint32_t offset_of_user(uint64_t user_address, uint64_t len)
{
	for (size_t i = 0; i < f.n_places; i++) {
		const struct place *place = &f.places[i];
		uint64_t offset = user_address - place->user_address;

		if (offset < place->size && len <= place->size - offset)
			return place->offset + (uint32_t)offset;
	}
	return NOWHERE;
}

static uint64_t guest_of_offset(uint32_t offset)
{
	for (size_t i = 0; i < f.n_places; i++)
		if (offset - f.places[i].offset < f.places[i].size)
			return f.places[i].guest_address + (offset - f.places[i].offset);
	return GUEST_BASE + MEMORY_SIZE + offset;
}

static uint64_t user_of_offset(uint32_t offset)
{
	for (size_t i = 0; i < f.n_places; i++)
		if (offset - f.places[i].offset < f.places[i].size)
			return f.places[i].user_address + (offset - f.places[i].offset);
	return USER_BASE + offset;
}

/* ---- the second walk ---- */

static void add_pieces(struct walk *walk, uint64_t guest_address, uint32_t len)
{
	while (len > 0) {
		uint32_t room, offset = offset_of_guest(guest_address, &room);

		walk->is_broken = offset == NOWHERE || walk->n_pieces == RING_PARTS_MAX;
		if (walk->is_broken)
			return;
		room = room < len ? room : len;
		walk->pieces[walk->n_pieces++] = (struct piece){offset, room};
		guest_address += room;
		len -= room;
	}
}

/* 16 bytes at a guest address, which may lie in several regions. */
static bool copy_descriptor(uint64_t guest_address, uint8_t *ret_bytes)
{
	for (size_t i = 0; i < 16; i++) {
		uint32_t room, offset = offset_of_guest(guest_address + i, &room);

		if (offset == NOWHERE)
			return false;
		ret_bytes[i] = f.view[offset];
	}
	return true;
}

/* Split virtqueue, virtio 1.3, 2.7: from a head through the ring's own or an indirect table. */
static void split_walk(uint16_t head, struct walk *walk)
{
	uint64_t table = 0;
	uint32_t table_num = f.num, n_steps = 0;
	uint16_t index = head;
	bool is_indirect = false, has_writable = false;

	for (;;) {
		uint8_t bytes[16] = {0};
		uint64_t address;
		uint32_t len;
		uint16_t flags, next;

		walk->is_broken = index >= table_num || n_steps++ >= table_num;
		if (!walk->is_broken && is_indirect)
			walk->is_broken = !copy_descriptor(table + 16 * (uint64_t)index, bytes);
		else if (!walk->is_broken)
			memcpy(bytes, f.view + f.desc + 16 * (uint32_t)index, sizeof(bytes));
		if (walk->is_broken)
			return;
		memcpy(&address, bytes, 8);
		memcpy(&len, bytes + 8, 4);
		memcpy(&flags, bytes + 12, 2);
		memcpy(&next, bytes + 14, 2);

		if (flags & 4) {
			uint32_t room;

			walk->is_broken = is_indirect || !f.ring.has_indirect || flags & 1 ||
					  len == 0 || len % 16 || len / 16 > RING_SIZE_MAX ||
					  offset_of_guest(address, &room) == NOWHERE;
			if (walk->is_broken)
				return;
			is_indirect = true;
			table = address;
			table_num = len / 16;
			n_steps = 0;
			index = 0;
			continue;
		}
		walk->is_malformed |= !(flags & 2) && has_writable;
		has_writable |= (flags & 2) && len > 0;
		add_pieces(walk, address, len);
		*(flags & 2 ? &walk->writable_len : &walk->readable_len) += len;
		if (walk->is_broken || !(flags & 1))
			return;
		index = next;
	}
}

/* Whether there is a chain, and where it begins: 1, 0, or -EPROTO where the index jumped. */
static int split_next(uint16_t *ret_head)
{
	uint16_t n_new;

	if (f.avail_idx == f.next_avail) {
		n_new = (uint16_t)(load16(f.avail + 2) - f.next_avail);
		if (n_new > f.num)
			return -EPROTO;
		f.avail_idx = (uint16_t)(f.next_avail + n_new);
	}
	*ret_head = load16(f.avail + 4 + 2 * (f.next_avail % f.num));
	return f.avail_idx != f.next_avail;
}

/* ---- packed virtqueue, virtio 1.3, 2.8 ---- */

/* Positions by counting: an index, and above it the round's bit. */
static uint16_t packed_step(uint16_t position, uint32_t n)
{
	uint32_t index = position & 0x7fffu, wrap = position >> 15;

	index += n;
	wrap += index / f.num;
	return (uint16_t)(index % f.num | (wrap & 1) << 15);
}

/* How far it is, of less than two rounds. */
static uint32_t packed_distance(uint16_t from, uint16_t to)
{
	uint32_t a = (from & 0x7fffu) + (from >> 15) * f.num;
	uint32_t b = (to & 0x7fffu) + (to >> 15) * f.num;

	return (b + 2 * f.num - a) % (2 * f.num);
}

static uint32_t packed_place(uint16_t position)
{
	return f.desc + 16 * (position & 0x7fffu);
}

static bool packed_is_available(uint16_t position)
{
	uint16_t flags = load16(packed_place(position) + 14);
	uint32_t avail = flags >> 7 & 1, used = flags >> 15, wrap = position >> 15;

	return avail == wrap && used != wrap;
}

static void packed_table(uint64_t table, uint32_t len, struct walk *walk)
{
	bool has_writable = false;
	uint32_t room;

	walk->is_broken = !f.ring.has_indirect || len == 0 || len % 16 ||
			  len / 16 > RING_SIZE_MAX || offset_of_guest(table, &room) == NOWHERE;
	for (uint32_t i = 0; !walk->is_broken && i < len / 16; i++) {
		uint8_t bytes[16];
		uint64_t address;
		uint32_t part;
		bool is_writable;

		walk->is_broken = !copy_descriptor(table + 16 * (uint64_t)i, bytes);
		if (walk->is_broken)
			return;
		memcpy(&address, bytes, 8);
		memcpy(&part, bytes + 8, 4);
		is_writable = bytes[14] & 2;
		walk->is_malformed |= !is_writable && has_writable;
		has_writable |= is_writable && part > 0;
		add_pieces(walk, address, part);
		*(is_writable ? &walk->writable_len : &walk->readable_len) += part;
	}
}

/* From the next available one on. */
static void packed_walk(struct walk *walk, struct ring_ticket *ret_ticket)
{
	uint16_t position = f.next_avail;
	bool has_writable = false;
	uint16_t flags;

	*ret_ticket = (struct ring_ticket){0};
	do {
		uint32_t place = packed_place(position), len;
		uint64_t address;

		walk->is_broken = ret_ticket->n_slots == f.num;
		if (walk->is_broken)
			return;
		memcpy(&address, f.view + place, 8);
		memcpy(&len, f.view + place + 8, 4);
		flags = load16(place + 14);
		ret_ticket->head = load16(place + 12);
		ret_ticket->n_slots++;
		if (flags & 4) {
			walk->is_broken = ret_ticket->n_slots > 1 || flags & 1;
			if (!walk->is_broken)
				packed_table(address, len, walk);
			break;
		}
		walk->is_malformed |= !(flags & 2) && has_writable;
		has_writable |= (flags & 2) && len > 0;
		add_pieces(walk, address, len);
		*(flags & 2 ? &walk->writable_len : &walk->readable_len) += len;
		position = packed_step(position, 1);
	} while (flags & 1 && !walk->is_broken);
	/* No more than there is room for can be with the device. */
	walk->is_broken |= packed_distance(f.used_idx, f.next_avail) + ret_ticket->n_slots > f.num;
}

/* As split_next(), with all that there is to know. */
static int next_chain(struct walk *walk, struct ring_ticket *ret_ticket)
{
	int right;

	*ret_ticket = (struct ring_ticket){.n_slots = 1};
	if (f.ring.is_packed) {
		right = packed_is_available(f.next_avail);
		if (right == 1)
			packed_walk(walk, ret_ticket);
	} else {
		right = split_next(&ret_ticket->head);
		if (right == 1)
			split_walk(ret_ticket->head, walk);
	}
	return right == 1 && walk->is_broken ? -EPROTO : right;
}

/* ---- what is called ---- */

static uint32_t offset_of_part(const struct iovec *part)
{
	const uint8_t *start = part->iov_base;

	for (size_t i = 0; i < f.memory.table.n_regions; i++) {
		const struct guest_region *region = &f.memory.table.regions[i];
		size_t offset = (size_t)(start - region->start);

		if (offset >= region->size)
			continue;
		CLAIM(part->iov_len <= region->size - offset);
		for (size_t k = 0; k < f.n_places; k++)
			if (f.places[k].guest_address == region->guest_address)
				return f.places[k].offset + (uint32_t)offset;
	}
	fuzz_fail("a part lies in guest memory", __FILE__, __LINE__);
}

static void check_chain(const struct chain *chain, const struct ring_ticket *ticket,
			const struct walk *walk)
{
	size_t n_parts = chain->n_readable + chain->n_writable;

	CLAIM(chain->ticket.head == ticket->head && chain->ticket.n_slots == ticket->n_slots);
	CLAIM(chain->ticket.has_room == (chain->n_writable > 0));
	CLAIM(chain->at == f.next_avail);
	CLAIM(chain->is_malformed == walk->is_malformed);
	CLAIM(chain->readable_len == walk->readable_len);
	CLAIM(chain->writable_len == walk->writable_len);
	CLAIM(n_parts == walk->n_pieces);
	for (size_t i = 0; i < n_parts; i++) {
		CLAIM(offset_of_part(&chain->parts[i]) == walk->pieces[i].offset);
		CLAIM(chain->parts[i].iov_len == walk->pieces[i].len);
	}
}

static void pop(struct input *input)
{
	static struct iovec parts[RING_PARTS_MAX];
	static struct walk walk;
	uint8_t choice = input_u8(input);
	size_t n_parts_max = choice < 64 ? choice : RING_PARTS_MAX;
	struct ring_ticket ticket;
	struct chain chain;
	int r, right;

	walk = (struct walk){0};
	right = next_chain(&walk, &ticket);
	r = ring_pop(&f.ring, &f.memory, parts, n_parts_max, &chain);
	if (r == -EAGAIN) {
		/* What lies behind the parts that there is room for was not looked at. */
		CLAIM(walk.n_pieces > n_parts_max || walk.is_broken);
		CLAIM(n_parts_max < RING_PARTS_MAX && !f.ring.is_broken);
		return;
	}
	CLAIM(r == right && f.ring.is_broken == (r == -EPROTO));
	if (r != 1)
		return;
	check_chain(&chain, &ticket, &walk);
	f.in_flight[(f.first + f.n_in_flight++) % 65536] =
		(struct flight){chain.ticket, f.next_avail};
	f.next_avail = f.ring.is_packed ? packed_step(f.next_avail, ticket.n_slots)
					: (uint16_t)(f.next_avail + 1);
}

/* Bytes that the call may have written: those are taken over, nothing else has changed. */
static void expect_written(uint32_t offset, uint32_t len)
{
	memcpy(f.before + offset, f.view + offset, len);
	CLAIM(memcmp(f.before, f.view, MEMORY_SIZE) == 0);
}

static void remember(void)
{
	memcpy(f.before, f.view, MEMORY_SIZE);
}

static void check_pushed(struct ring_ticket ticket, uint32_t len)
{
	uint32_t place = f.used + 4 + 8 * ((uint16_t)(f.used_idx + f.n_pushed) % f.num);
	uint32_t element[2];

	expect_written(place, 8);
	memcpy(element, f.view + place, sizeof(element));
	CLAIM(element[0] == ticket.head && element[1] == len);
}

/* Over the first of its descriptors, with the bits of this round. */
static void packed_check_pushed(struct ring_ticket ticket, uint32_t len)
{
	uint32_t place = packed_place(f.used_idx) + 8, wrap = f.used_idx >> 15, written;
	uint16_t flags = load16(place + 6);

	expect_written(place, 8);
	memcpy(&written, f.view + place, sizeof(written));
	CLAIM(written == len && load16(place + 4) == ticket.head);
	CLAIM(flags == (wrap << 15 | wrap << 7 | (len > 0 ? 2u : 0)));
	f.step_from = f.used_idx;
	f.used_idx = packed_step(f.used_idx, ticket.n_slots);
	f.step_to = f.used_idx;
	f.n_uncalled += ticket.n_slots;
}

static void push(struct input *input)
{
	uint32_t len = input_u8(input);
	struct ring_ticket ticket;

	if (f.n_in_flight == 0)
		return;
	ticket = f.in_flight[f.first].ticket;
	f.first = (f.first + 1) % 65536;
	f.n_in_flight--;
	remember();
	ring_push(&f.ring, &ticket, len);
	if (f.ring.is_packed)
		packed_check_pushed(ticket, len);
	else
		check_pushed(ticket, len);
	f.n_pushed++;
}

static uint64_t calls(void)
{
	uint64_t n;

	return read(f.call, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

/* virtio 1.3, 2.7.7.2, and one call after a start whatever the driver says. */
static bool wants_call(uint16_t from, uint16_t to)
{
	uint16_t event = load16(f.avail + 4 + 2 * f.num);

	if (!f.was_called)
		return true;
	if (!f.ring.has_event_idx)
		return !(load16(f.avail) & 1);
	return (uint16_t)(to - event - 1) < (uint16_t)(to - from);
}

/* Was one of the places used the one that the driver named? Each is asked for itself. */
static bool packed_wants_call(void)
{
	uint16_t event = load16(f.avail), flags = load16(f.avail + 2) & 3;
	bool is_passed = false;

	if (!f.was_called)
		return true;
	if (flags != 2 || !f.ring.has_event_idx)
		return flags != 1;
	for (uint32_t i = 1; i <= f.n_uncalled && i <= 2 * f.num; i++)
		is_passed |= packed_step(f.used_idx, 2 * f.num - i) == event;
	return is_passed;
}

static void packed_publish(void)
{
	bool is_called = f.n_pushed > 0 && packed_wants_call();

	remember();
	ring_publish(&f.ring);
	expect_written(0, 0);
	f.was_called |= f.n_pushed > 0;
	f.n_pushed = 0;
	f.n_uncalled = 0;
	/* A position that no ring has may be passed, or not. */
	if ((load16(f.avail) & 0x7fffu) < f.num)
		CLAIM((calls() > 0) == is_called);
	calls();
}

static void publish(void)
{
	uint16_t to = (uint16_t)(f.used_idx + f.n_pushed);
	bool is_called = f.n_pushed > 0;

	if (f.ring.is_packed) {
		packed_publish();
		return;
	}
	remember();
	ring_publish(&f.ring);
	expect_written(f.used + 2, 2);
	if (f.n_pushed > 0) {
		CLAIM(load16(f.used + 2) == to);
		/* Where the driver's wish lies in what was just written, who can say. */
		is_called = wants_call(f.called_idx, to);
		f.called_idx = to;
		f.was_called = true;
	}
	f.used_idx = to;
	f.n_pushed = 0;
	CLAIM((calls() > 0) == is_called);
}

static void unpop(struct input *input)
{
	uint16_t n = (uint16_t)input_below(input, f.n_in_flight < 255 ? f.n_in_flight + 1 : 256);

	if (n == 0)
		return;
	f.n_in_flight -= n;
	f.next_avail = f.in_flight[(f.first + f.n_in_flight) % 65536].at;
	ring_unpop(&f.ring, &(struct chain){.at = f.next_avail});
}

static void packed_handle_kicks(struct input *input)
{
	uint8_t choice = input_u8(input) % 3;
	uint16_t position = f.next_avail;
	bool has_event_idx = f.ring.has_event_idx;

	remember();
	if (choice == 0) {
		ring_disable_kicks(&f.ring);
		expect_written(f.used, has_event_idx ? 0 : 4);
		CLAIM(has_event_idx || load16(f.used + 2) == 1);
		return;
	}
	if (choice == 1) {
		position = (uint16_t)(input_below(input, f.num) | (input_u8(input) & 1u) << 15);
		CLAIM(ring_enable_kicks_at(&f.ring, position) == packed_is_available(position));
	} else {
		CLAIM(ring_enable_kicks(&f.ring) == packed_is_available(position));
	}
	expect_written(f.used, 4);
	CLAIM(load16(f.used + 2) == (has_event_idx ? 2 : 0));
	CLAIM(!has_event_idx || load16(f.used) == position);
}

static void handle_kicks(struct input *input)
{
	uint32_t flags = f.used, event = f.used + 4 + 8 * f.num;
	uint8_t choice = input_u8(input) % 3;
	uint16_t index = f.next_avail;
	bool has_chains = false;

	remember();
	if (choice == 0) {
		ring_disable_kicks(&f.ring);
		expect_written(flags, f.ring.has_event_idx ? 0 : 2);
		CLAIM(f.ring.has_event_idx || load16(flags) == 1);
		return;
	}
	if (choice == 1) {
		index = input_u16(input);
		has_chains = ring_enable_kicks_at(&f.ring, index);
	} else {
		has_chains = ring_enable_kicks(&f.ring);
	}
	expect_written(f.ring.has_event_idx ? event : flags, 2);
	CLAIM(load16(f.ring.has_event_idx ? event : flags) == (f.ring.has_event_idx ? index : 0));
	if (choice == 1) {
		CLAIM(has_chains == (load16(f.avail + 2) != index));
	} else {
		uint16_t head;
		int next = split_next(&head);

		CLAIM(has_chains == (next == 1) && f.ring.is_broken == (next == -EPROTO));
	}
}

/* ---- start ---- */

/* Where a region ends, or a few bytes beside: room for exactly so much, or not quite. */
static uint64_t user_at_end(struct input *input, uint32_t len)
{
	uint8_t choice = input_u8(input);
	const struct place *place = &f.places[choice / 8 % f.n_places];

	return place->user_address + place->size - len + choice % 8 - 4;
}

static void place_ring(struct input *input, struct ring_addresses *ret)
{
	uint8_t choice = input_u8(input);
	uint32_t desc_len, avail_len, used_len;

	/* Sizes that the memory has room for, mostly. */
	f.num = choice & 0x80 ? input_u16(input) : UINT32_C(1) << choice % 16 % 12;
	desc_len = 16 * f.num;
	avail_len = f.ring.has_packed ? 4 : 6 + 2 * f.num;
	used_len = f.ring.has_packed ? 4 : 6 + 8 * f.num;
	if ((choice & 0x60) == 0x60) {
		ret->desc = user_at_end(input, desc_len);
		ret->avail = user_at_end(input, avail_len);
		ret->used = user_at_end(input, used_len);
	} else if (choice & 0x40) {
		ret->desc = user_of_offset(input_u16(input));
		ret->avail = user_of_offset(input_u16(input));
		ret->used = user_of_offset(input_u16(input));
	} else {
		ret->desc = user_of_offset(0);
		ret->avail = user_of_offset(desc_len);
		ret->used = user_of_offset((desc_len + avail_len + 3) & ~3u);
	}
	f.desc = offset_of_user(ret->desc, desc_len);
	f.avail = offset_of_user(ret->avail, avail_len);
	f.used = offset_of_user(ret->used, used_len);
}

/* In the file, as its mapping is: regions begin anywhere, so alignment is one of addresses. */
static bool is_placed(void)
{
	return f.desc != NOWHERE && f.avail != NOWHERE && f.used != NOWHERE && f.desc % 16 == 0 &&
	       f.avail % (f.ring.has_packed ? 4 : 2) == 0 && f.used % 4 == 0;
}

/* Parts that overlap each other are the driver's business, but no second walk can follow. */
static bool is_apart(uint32_t a, uint32_t a_len, uint32_t b, uint32_t b_len)
{
	return a + a_len <= b || b + b_len <= a;
}

static bool is_followed(void)
{
	uint32_t desc_len = 16 * f.num, avail_len = 6 + 2 * f.num, used_len = 6 + 8 * f.num;

	if (f.ring.has_packed)
		avail_len = used_len = 4;
	if (f.ring.has_packed && !is_apart(f.avail, avail_len, f.desc, desc_len))
		return false;
	return is_apart(f.used, used_len, f.avail, avail_len) &&
	       is_apart(f.used, used_len, f.desc, desc_len);
}

/* Where a packed ring begins; false when it cannot begin there. */
static bool packed_base(uint32_t base, bool is_successor)
{
	f.next_avail = (uint16_t)base;
	f.used_idx = (uint16_t)(base >> 16);
	if (is_successor) {
		if (!f.has_step || (f.step_from & 0x7fffu) >= f.num)
			return false;
		f.used_idx = packed_is_available(f.step_from) ? f.step_from : f.step_to;
		f.next_avail = f.used_idx;
	}
	return (f.next_avail & 0x7fffu) < f.num && (f.used_idx & 0x7fffu) < f.num &&
	       packed_distance(f.used_idx, f.next_avail) <= f.num;
}

static bool is_size(void)
{
	return f.num > 0 && f.num <= RING_SIZE_MAX &&
	       (f.ring.has_packed || (f.num & (f.num - 1)) == 0);
}

static bool start(struct input *input)
{
	struct ring_addresses addresses;
	uint32_t base = input_u16(input);
	uint8_t features = input_u8(input);
	int r, right;

	f.ring.has_event_idx = features & 1;
	f.ring.has_indirect = features & 2;
	f.ring.has_packed = features & 8;
	f.ring.is_enabled = true;
	place_ring(input, &addresses);
	/* Mostly with nothing in flight. */
	if (f.ring.has_packed)
		base |= (features & 16 ? input_u16(input) : base) << 16;
	right = !is_size() ? -EINVAL : is_placed() ? 0 : -EFAULT;
	if (right == 0 && f.ring.has_packed && !packed_base(base, features & 4))
		right = -EINVAL;
	remember();
	r = ring_start(&f.ring, &f.memory, f.num, &addresses, base, features & 4);
	CLAIM(memcmp(f.before, f.view, MEMORY_SIZE) == 0);
	CLAIM(r == right);
	CLAIM(ring_is_running(&f.ring) == (r == 0));
	if (r == 0 && f.ring.has_packed) {
		f.offered = f.next_avail;
		/* Who reads the journal leaves it as it is. */
		if (!(features & 4)) {
			f.has_step = true;
			f.step_from = f.step_to = f.used_idx;
		}
	}
	if (r < 0 || !is_followed())
		return false;
	if (!f.ring.has_packed) {
		f.used_idx = load16(f.used + 2);
		f.next_avail = features & 4 ? f.used_idx : (uint16_t)base;
	}
	f.called_idx = f.used_idx;
	f.avail_idx = f.next_avail;
	f.n_in_flight = 0;
	f.n_pushed = 0;
	f.n_uncalled = 0;
	f.was_called = false;
	return true;
}

/* ---- the driver ---- */

static void write_anywhere(struct input *input)
{
	uint32_t offset = input_u16(input);
	uint8_t bytes[8];

	input_copy(input, bytes, sizeof(bytes));
	memcpy(f.view + offset, bytes,
	       MEMORY_SIZE - offset < sizeof(bytes) ? MEMORY_SIZE - offset : sizeof(bytes));
}

/* A descriptor in the ring, or in what may become an indirect table. */
static void write_descriptor(struct input *input)
{
	uint16_t choice = input_u16(input);
	uint64_t address = guest_of_offset(input_u16(input));
	uint32_t len = input_u16(input);
	uint8_t bits = input_u8(input);
	uint16_t flags = bits % 8, next = input_u8(input);
	uint32_t place = choice & 0x8000 ? 16 * (choice & 0xfffu) : f.desc + 16 * (choice % f.num);

	if (place + 16 > MEMORY_SIZE)
		return;
	if (f.ring.is_packed)
		flags = (uint16_t)(flags | (bits & 8u) << 4 | (bits & 16u) << 11);
	memcpy(f.view + place, &address, 8);
	memcpy(f.view + place + 8, &len, 4);
	memcpy(f.view + place + (f.ring.is_packed ? 14 : 12), &flags, 2);
	memcpy(f.view + place + (f.ring.is_packed ? 12 : 14), &next, 2);
}

static void offer(struct input *input)
{
	uint8_t head = input_u8(input);
	uint16_t idx = load16(f.avail + 2);

	if (f.ring.is_packed) {
		uint32_t place = packed_place(f.offered) + 14;

		/* As it was written there before, for this round; a chain ends where it says so. */
		store16(place, (uint16_t)((load16(place) & 7) |
					  (f.offered & 0x8000u ? 1u << 7 : 1u << 15)));
		store16(place - 2, head);
		f.offered = packed_step(f.offered, 1);
		return;
	}
	store16(f.avail + 4 + 2 * (idx % f.num), head);
	store16(f.avail + 2, (uint16_t)(idx + 1));
}

/* Regions are taken away and come back: the ring is found again, or breaks. */
static bool relocate(struct input *input)
{
	size_t index = input_below(input, (uint32_t)f.n_places);
	struct place place = f.places[index];

	CLAIM(guest_memory_remove(&f.memory, place.guest_address, place.size, place.user_address) ==
	      0);
	f.places[index] = f.places[--f.n_places];
	if (input_u8(input) & 1)
		add_place(&place);
	ring_relocate(&f.ring, &f.memory);
	if (f.ring.is_broken)
		return false;
	return f.n_places > 0;
}

/* false: what follows is not for this ring any more. */
static bool operate(struct input *input)
{
	switch (input_u8(input) % 12) {
	case 0:
		write_anywhere(input);
		return true;
	case 1:
	case 2:
		write_descriptor(input);
		return true;
	case 3:
	case 4:
		offer(input);
		return true;
	case 5:
	case 6:
		pop(input);
		return true;
	case 7:
		push(input);
		return true;
	case 8:
		publish();
		return true;
	case 9:
		unpop(input);
		return true;
	case 10:
		if (f.ring.is_packed)
			packed_handle_kicks(input);
		else
			handle_kicks(input);
		return true;
	default:
		return relocate(input);
	}
}

static uint32_t right_base(void)
{
	return f.ring.is_packed ? (uint32_t)f.used_idx << 16 | f.next_avail : f.next_avail;
}

static void run(struct input *input)
{
	uint32_t n = 0;

	while (input->len > 0 && n < OPERATIONS) {
		if (!start(input))
			return;
		while (input->len > 0 && n++ < OPERATIONS && operate(input))
			if (f.ring.is_broken) {
				/* What was fetched before is still given back. */
				while (f.n_in_flight > 0)
					push(input);
				publish();
				break;
			}
		CLAIM(ring_stop(&f.ring) == right_base());
		CLAIM(ring_stop(&f.ring) == right_base() && !ring_is_running(&f.ring));
		if (f.n_places == 0)
			return;
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	f.fd = memfd_create("fuzz", MFD_CLOEXEC);
	if (f.fd < 0 || ftruncate(f.fd, MEMORY_SIZE) < 0)
		abort();
	f.view = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f.fd, 0);
	f.call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (f.view == MAP_FAILED || f.call < 0)
		abort();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct input input = {bytes, len};
	size_t n_fds = fuzz_count_fds();

	memset(f.view, 0, MEMORY_SIZE);
	ring_init(&f.ring);
	f.ring.call = f.call;
	f.journal = (struct ring_journal){0};
	f.ring.journal = &f.journal;
	f.has_step = false;
	lay_out_memory(&input);
	run(&input);
	guest_memory_clear(&f.memory);
	f.n_places = 0;
	calls();
	CLAIM(fuzz_count_fds() == n_fds);
	return 0;
}
