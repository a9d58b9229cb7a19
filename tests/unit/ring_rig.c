/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/ring_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define FILE_SIZE (8 * MIB)

/* Tables of chains, one behind the other and round again. */
#define TABLES	   (RINGS + MIB)
#define TABLES_LEN MIB

#define PACKED_AVAIL (1u << 7)
#define PACKED_USED  (1u << 15)
#define WRAP	     0x8000u

struct mode mode;
struct guest_memory memory;
struct ring ring;
struct ring_journal journal;
struct iovec parts[RING_PARTS_MAX];
struct chain chain;
uint32_t first_base;

const struct ring_addresses usual = {
	.desc = USER + RINGS + DESC,
	.avail = USER + RINGS + AVAIL,
	.used = USER + RINGS + USED,
};

static uint8_t *view; /* of the whole file */
static int file;
static uint64_t seed;

struct staged {
	uint64_t address;
	uint32_t len;
	uint16_t flags, next;
};

static struct staged staged[RING_SIZE_MAX];

/* Positions, as the layout has them; chains in flight, oldest first. */
static struct driver {
	uint16_t avail, offered_from, used;
	uint32_t first, n_in_flight;
	uint16_t n_slots[65536];
	uint32_t next_table;
} driver;

uint32_t draw(uint32_t below)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(seed >> 33) % below;
}

uint8_t *at(uint64_t guest_address)
{
	if (guest_address >= RINGS)
		return view + 4 * MIB + (guest_address - RINGS);
	if (guest_address >= BORDER)
		return view + 2 * MIB + (guest_address - BORDER);
	return view + (guest_address - LOW);
}

void store16(uint64_t guest_address, uint16_t value)
{
	memcpy(at(guest_address), &value, 2);
}

uint16_t load16(uint64_t guest_address)
{
	uint16_t value;

	memcpy(&value, at(guest_address), 2);
	return value;
}

void add_region(uint64_t guest_address, uint64_t size, bool is_staged)
{
	struct guest_region region = {
		.guest_address = guest_address,
		.size = size,
		.user_address = USER + guest_address,
	};

	assert_int_equal(guest_memory_add(&memory, &region, (uint64_t)(at(guest_address) - view),
					  4096, fcntl(file, F_DUPFD_CLOEXEC, 0), is_staged),
			 0);
}

void add_regions(bool is_staged)
{
	add_region(RINGS, 2 * MIB, is_staged);
	add_region(BORDER, MIB, is_staged);
	add_region(LOW, MIB, is_staged);
}

int rig_set_up(void **state)
{
	mode = *state ? *(const struct mode *)*state : (struct mode){0};
	memset(&memory, 0, sizeof(memory));
	file = memfd_create("guest", MFD_CLOEXEC);
	assert_true(file >= 0);
	assert_int_equal(ftruncate(file, (off_t)FILE_SIZE), 0);
	view = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	assert_ptr_not_equal(view, MAP_FAILED);
	add_regions(false);
	journal = (struct ring_journal){0};
	ring_init(&ring);
	ring.call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	ring.error = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	ring.journal = &journal;
	ring.has_indirect = true;
	ring.has_packed = mode.is_packed;
	ring.has_event_idx = mode.has_event_idx;
	first_base = mode.is_packed ? WRAP << 16 | WRAP : 0;
	seed = 1;
	driver_forget();
	return 0;
}

int rig_tear_down(void **state)
{
	(void)state;
	guest_memory_commit(&memory);
	guest_memory_commit(&memory);
	munmap(view, FILE_SIZE);
	close(file);
	close(ring.call);
	close(ring.error);
	return 0;
}

/* ---- the driver ---- */

static uint16_t advance(uint16_t position, uint32_t n)
{
	if (!mode.is_packed)
		return (uint16_t)(position + n);
	for (uint32_t i = 0; i < n; i++)
		position = (uint16_t)((position & ~WRAP) + 1 == ring.num ? (position & WRAP) ^ WRAP
									 : position + 1u);
	return position;
}

void driver_forget(void)
{
	driver = (struct driver){
		.avail = (uint16_t)first_base,
		.used = mode.is_packed ? (uint16_t)(first_base >> 16) : (uint16_t)first_base,
	};
}

void start(uint32_t num)
{
	assert_int_equal(ring_start(&ring, &memory, num, &usual, first_base, false), 0);
	ring.is_enabled = true;
	driver_forget();
}

void heal(void)
{
	uint32_t num = ring.num;

	ring_stop(&ring);
	memset(at(RINGS), 0, 2 * MIB);
	start(num);
}

static void store_bytes(uint64_t guest_address, const uint8_t bytes[static 16])
{
	for (uint32_t i = 0; i < 16; i++)
		*at(guest_address + i) = bytes[i];
}

/* In a packed descriptor the last two fields change places, and next is the id. */
static void store_descriptor(uint64_t place, const struct staged *from, uint16_t flags)
{
	uint8_t bytes[16];

	memcpy(bytes, &from->address, 8);
	memcpy(bytes + 8, &from->len, 4);
	memcpy(bytes + (mode.is_packed ? 14 : 12), &flags, 2);
	memcpy(bytes + (mode.is_packed ? 12 : 14), &from->next, 2);
	store_bytes(place, bytes);
}

void describe(uint32_t index, uint64_t address, uint32_t len, uint16_t flags, uint16_t next)
{
	staged[index] = (struct staged){address, len, flags, next};
	if (!mode.is_packed && !mode.is_indirect)
		store_descriptor(RINGS + DESC + 16 * (uint64_t)index, &staged[index], flags);
}

void describe_in(uint64_t table, uint32_t index, uint64_t address, uint32_t len, uint16_t flags,
		 uint16_t next)
{
	store_descriptor(table + 16 * (uint64_t)index, &(struct staged){address, len, flags, next},
			 flags);
}

/* The staged chain from a head on, in order. A staged table stays what it is. */
static uint32_t gather(uint16_t head, struct staged *ret)
{
	uint32_t n = 0;

	for (uint16_t index = head;; index = staged[index].next) {
		assert_true(index < RING_SIZE_MAX && n < RING_SIZE_MAX);
		ret[n++] = staged[index];
		if (!(staged[index].flags & NEXT))
			return n;
	}
}

/* Put a chain into a table; what stands for it in the ring. */
static struct staged wrap_up(const struct staged *from, uint32_t n)
{
	uint64_t table;

	if (driver.next_table + 16 * n > TABLES_LEN)
		driver.next_table = 0;
	table = TABLES + driver.next_table;
	driver.next_table += 16 * n;
	for (uint32_t i = 0; i < n; i++)
		describe_in(table, i, from[i].address, from[i].len, from[i].flags,
			    (uint16_t)(i + 1));
	return (struct staged){table, 16 * n, INDIRECT, 0};
}

/* Descriptors in a row, the first one's flags last. */
static void place_packed(const struct staged *from, uint32_t n, uint16_t id)
{
	for (uint32_t i = n; i-- > 0;) {
		uint16_t position = advance(driver.avail, i);
		struct staged entry = from[i];

		entry.next = id;
		store_descriptor(
			RINGS + DESC + 16 * (uint64_t)(position & ~WRAP), &entry,
			(uint16_t)(entry.flags | (position & WRAP ? PACKED_AVAIL : PACKED_USED)));
	}
}

void offer(uint16_t head)
{
	static struct staged row[RING_SIZE_MAX];
	uint32_t n = 1;

	driver.offered_from = driver.avail;
	if (mode.is_packed || mode.is_indirect)
		n = gather(head, row);
	if (mode.is_indirect && !(row[0].flags & INDIRECT)) {
		row[0] = wrap_up(row, n);
		n = 1;
	}
	if (mode.is_packed) {
		place_packed(row, n, head);
	} else {
		if (mode.is_indirect)
			store_descriptor(RINGS + DESC + 16 * (uint64_t)head, &row[0], row[0].flags);
		store16(RINGS + AVAIL + 4 + 2 * (uint64_t)(driver.avail & (ring.num - 1)), head);
		store16(RINGS + AVAIL + 2, (uint16_t)(driver.avail + 1));
		n = 1;
	}
	driver.n_slots[(uint16_t)(driver.first + driver.n_in_flight)] = (uint16_t)n;
	driver.n_in_flight++;
	driver.avail = advance(driver.avail, n);
}

static uint16_t flags_at(uint16_t position)
{
	return load16(RINGS + DESC + 16 * (uint64_t)(position & ~WRAP) + 14);
}

static bool is_used(uint16_t position)
{
	uint16_t flags = flags_at(position);
	bool wrap = position & WRAP;

	return !!(flags & PACKED_AVAIL) == wrap && !!(flags & PACKED_USED) == wrap;
}

uint32_t n_used(void)
{
	uint16_t position = driver.used;
	uint32_t n = 0;

	if (!mode.is_packed)
		return (uint16_t)(load16(RINGS + USED + 2) - driver.used);
	while (n < driver.n_in_flight && is_used(position))
		position = advance(position, driver.n_slots[(uint16_t)(driver.first + n++)]);
	return n;
}

void expect_used_batch(uint32_t n, uint16_t head, uint32_t len)
{
	uint64_t place = RINGS + USED + 4 + 8 * (uint64_t)(driver.used & (ring.num - 1));
	uint32_t id, used_len;

	if (mode.is_packed) {
		assert_true(is_used(driver.used));
		place = RINGS + DESC + 16 * (uint64_t)(driver.used & ~WRAP);
		id = load16(place + 12);
		memcpy(&used_len, at(place + 8), 4);
		/* Only what the device wrote something into says so. */
		assert_int_equal(!!(flags_at(driver.used) & WRITE), len > 0);
	} else {
		assert_true(n_used() >= n);
		memcpy(&id, at(place), 4);
		memcpy(&used_len, at(place + 4), 4);
	}
	assert_int_equal(id, head);
	assert_int_equal(used_len, len);
	for (uint32_t i = 0; i < n; i++, driver.first++, driver.n_in_flight--)
		driver.used = advance(driver.used, driver.n_slots[(uint16_t)driver.first]);
}

void expect_used(uint16_t head, uint32_t len)
{
	expect_used_batch(1, head, len);
}

bool wants_kick(void)
{
	const uint64_t avail_event = RINGS + USED + 4 + 8 * (uint64_t)ring.num;
	uint16_t flags = load16(RINGS + USED + 2);

	if (mode.is_packed)
		return flags == 0 || (flags == 2 && load16(RINGS + USED) == driver.offered_from);
	if (!mode.has_event_idx)
		return !(load16(RINGS + USED) & 1);
	return load16(avail_event) == driver.offered_from;
}

static void store_driver_event(uint16_t position, uint16_t flags)
{
	store16(RINGS + AVAIL, position);
	store16(RINGS + AVAIL + 2, flags);
}

void ask_for_no_calls(void)
{
	if (mode.is_packed)
		store_driver_event(0, 1);
	else if (mode.has_event_idx)
		ask_for_call_in(-1);
	else
		store16(RINGS + AVAIL, 1);
}

void ask_for_calls(void)
{
	if (mode.is_packed)
		store_driver_event(0, 0);
	else if (mode.has_event_idx)
		ask_for_call_in(0);
	else
		store16(RINGS + AVAIL, 0);
}

void ask_for_call_in(int n)
{
	uint32_t round = mode.is_packed ? 2 * ring.num : 65536;
	uint16_t position = advance(driver.used, n < 0 ? round - (uint32_t)-n : (uint32_t)n);

	if (mode.is_packed)
		store_driver_event(position, 2);
	else
		store16(RINGS + AVAIL + 4 + 2 * (uint64_t)ring.num, position);
}

int pop(void)
{
	return ring_pop(&ring, &memory, parts, RING_PARTS_MAX, &chain);
}

uint64_t calls(void)
{
	uint64_t n = 0;

	return read(ring.call, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

uint64_t use(uint32_t n)
{
	describe(0, LOW, 1, 0, 0);
	for (uint32_t i = 0; i < n; i++) {
		offer(0);
		assert_int_equal(pop(), 1);
		ring_push(&ring, &chain.ticket, 0);
	}
	ring_publish(&ring);
	for (uint32_t i = 0; i < n; i++)
		expect_used(0, 0);
	return calls();
}

void expect_broken(enum report_ring_reason reason)
{
	assert_int_equal(pop(), -EPROTO);
	assert_true(ring.is_broken);
	assert_int_equal(ring.broken_reason, reason);
	assert_false(ring_is_running(&ring));
}
