/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/message.h"
#include "worker/ring.h"

#define NEXT	 1
#define WRITE	 2
#define INDIRECT 4

/* Two regions that touch in the guest and nowhere else, and one for the rings. */
#define MIB	  UINT64_C(0x100000)
#define LOW	  UINT64_C(0x40000000)
#define BORDER	  (LOW + MIB)
#define END	  (BORDER + MIB)
#define RINGS	  UINT64_C(0x80000000)
#define USER	  UINT64_C(0x7f0000000000) /* user address of guest address 0 */
#define FILE_SIZE (8 * MIB)

/* Within the region for rings. */
#define DESC  UINT64_C(0)
#define AVAIL UINT64_C(0x80000)
#define USED  UINT64_C(0xa0000)

static struct guest_memory memory;
static struct ring ring;
static struct iovec parts[RING_PARTS_MAX];
static struct chain chain;
static uint8_t *view; /* of the whole file */
static int file;
static uint16_t avail_idx;
static uint64_t seed;

static uint32_t draw(uint32_t below)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(seed >> 33) % below;
}

/* Where a guest address is in the file. */
static uint8_t *at(uint64_t guest_address)
{
	if (guest_address >= RINGS)
		return view + 4 * MIB + (guest_address - RINGS);
	if (guest_address >= BORDER)
		return view + 2 * MIB + (guest_address - BORDER);
	return view + (guest_address - LOW);
}

static void add_region(uint64_t guest_address, uint64_t size, bool is_staged)
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

static void add_regions(bool is_staged)
{
	add_region(RINGS, 2 * MIB, is_staged);
	add_region(BORDER, MIB, is_staged);
	add_region(LOW, MIB, is_staged);
}

static const struct ring_addresses usual = {
	.desc = USER + RINGS + DESC,
	.avail = USER + RINGS + AVAIL,
	.used = USER + RINGS + USED,
};

static void start(uint32_t num)
{
	assert_int_equal(ring_start(&ring, &memory, num, &usual, avail_idx, false), 0);
	ring.is_enabled = true;
}

static int set_up(void **state)
{
	(void)state;
	memset(&memory, 0, sizeof(memory));
	file = memfd_create("guest", MFD_CLOEXEC);
	assert_true(file >= 0);
	assert_int_equal(ftruncate(file, (off_t)FILE_SIZE), 0);
	view = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	assert_ptr_not_equal(view, MAP_FAILED);
	add_regions(false);
	ring_init(&ring);
	ring.call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	ring.error = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	ring.has_indirect = true;
	avail_idx = 0;
	seed = 1;
	return 0;
}

static int tear_down(void **state)
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

static void store16(uint64_t guest_address, uint16_t value)
{
	memcpy(at(guest_address), &value, 2);
}

static uint16_t load16(uint64_t guest_address)
{
	uint16_t value;

	memcpy(&value, at(guest_address), 2);
	return value;
}

static void store_descriptor(uint8_t *place, uint64_t address, uint32_t len, uint16_t flags,
			     uint16_t next)
{
	memcpy(place, &address, 8);
	memcpy(place + 8, &len, 4);
	memcpy(place + 12, &flags, 2);
	memcpy(place + 14, &next, 2);
}

static void describe(uint32_t index, uint64_t address, uint32_t len, uint16_t flags, uint16_t next)
{
	store_descriptor(at(RINGS + DESC) + 16 * (size_t)index, address, len, flags, next);
}

/* An entry of a table that may lie over the border. */
static void describe_in(uint64_t table, uint32_t index, uint64_t address, uint32_t len,
			uint16_t flags, uint16_t next)
{
	uint8_t bytes[16];

	store_descriptor(bytes, address, len, flags, next);
	for (uint32_t i = 0; i < 16; i++)
		*at(table + 16 * (uint64_t)index + i) = bytes[i];
}

static void offer(uint16_t head)
{
	store16(RINGS + AVAIL + 4 + 2 * (uint64_t)(avail_idx & (ring.num - 1)), head);
	store16(RINGS + AVAIL + 2, ++avail_idx);
}

static int pop(void)
{
	return ring_pop(&ring, &memory, parts, RING_PARTS_MAX, &chain);
}

static uint64_t calls(void)
{
	uint64_t n = 0;

	return read(ring.call, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

static void check_used(uint16_t index, uint32_t id, uint32_t len)
{
	uint32_t element[2];

	memcpy(element, at(RINGS + USED + 4 + 8 * (uint64_t)(index & (ring.num - 1))), 8);
	assert_int_equal(element[0], id);
	assert_int_equal(element[1], len);
}

static void expect_broken(enum report_ring_reason reason)
{
	assert_int_equal(pop(), -EPROTO);
	assert_true(ring.is_broken);
	assert_int_equal(ring.broken_reason, reason);
	assert_false(ring_is_running(&ring));
}

/* Try the same again on a ring without a past. */
static void heal(void)
{
	uint32_t num = ring.num;

	ring_stop(&ring);
	avail_idx = 0;
	memset(at(RINGS), 0, 2 * MIB);
	start(num);
}

/* ---- start and stop ---- */

static void test_a_ring_runs_when_it_is_started_and_enabled(void **state)
{
	struct ring fresh;

	(void)state;
	ring_init(&fresh);
	assert_false(ring_is_running(&fresh));
	assert_int_equal(fresh.kick, -1);
	assert_int_equal(fresh.call, -1);
	assert_int_equal(fresh.error, -1);
	start(8);
	assert_true(ring_is_running(&ring));
	ring.is_enabled = false;
	assert_false(ring_is_running(&ring));
	ring.is_enabled = true;
	ring_stop(&ring);
	assert_false(ring_is_running(&ring));
}

static void test_a_size_that_is_no_power_of_two_up_to_32768_is_refused(void **state)
{
	static const uint32_t sizes[] = {
		0, 3, 6, 100, 32767, 32769, 65536, UINT32_C(1) << 31, UINT32_MAX};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		assert_int_equal(ring_start(&ring, &memory, sizes[i], &usual, 0, false), -EINVAL);
		assert_false(ring.is_started);
	}
	for (uint32_t size = 1; size <= 32768; size *= 2)
		assert_int_equal(ring_start(&ring, &memory, size, &usual, 0, false), 0);
}

static void test_a_ring_that_is_not_whole_in_guest_memory_is_refused(void **state)
{
	/* Three places, each to the last byte and one step beyond it. */
	const uint64_t end = USER + RINGS + 2 * MIB;
	const uint64_t lens[] = {16 * 128, 4 + 2 * 128 + 2, 4 + 8 * 128 + 2};

	(void)state;
	for (uint32_t which = 0; which < 3; which++) {
		struct ring_addresses addresses = usual;
		uint64_t *place = which == 0   ? &addresses.desc
				  : which == 1 ? &addresses.avail
					       : &addresses.used;
		/* Alignment that the part itself asks for, downwards. */
		uint64_t align = which == 0 ? 16 : which == 1 ? 2 : 4;

		*place = (end - lens[which]) & ~(align - 1);
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, 0, false), 0);
		*place += align;
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, 0, false), -EFAULT);
		assert_false(ring.is_started);
		*place = USER + END;
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, 0, false), -EFAULT);
		*place = UINT64_MAX - 15;
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, 0, false), -EFAULT);
		*place = 0;
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, 0, false), -EFAULT);
	}
}

static void test_a_misaligned_ring_is_refused(void **state)
{
	struct ring_addresses addresses = usual;

	(void)state;
	for (uint64_t i = 1; i < 16; i++) {
		addresses.desc = usual.desc + i;
		assert_int_equal(ring_start(&ring, &memory, 8, &addresses, 0, false), -EFAULT);
	}
	addresses = usual;
	addresses.avail++;
	assert_int_equal(ring_start(&ring, &memory, 8, &addresses, 0, false), -EFAULT);
	addresses = usual;
	for (uint64_t i = 1; i < 4; i++) {
		addresses.used = usual.used + i;
		assert_int_equal(ring_start(&ring, &memory, 8, &addresses, 0, false), -EFAULT);
	}
}

static void test_a_start_takes_the_used_index_from_memory(void **state)
{
	(void)state;
	store16(RINGS + USED + 2, 65535);
	store16(RINGS + AVAIL + 2, 7);
	avail_idx = 5;
	start(8);
	avail_idx = 7;
	for (uint16_t i = 0; i < 8; i++)
		describe(i, LOW, 10, 0, 0);
	assert_int_equal(pop(), 1);
	ring_push(&ring, 3, 9);
	ring_publish(&ring);
	assert_int_equal(load16(RINGS + USED + 2), 0);
	check_used(65535, 3, 9);
	assert_int_equal(pop(), 1);
	assert_int_equal(pop(), 0);
	assert_int_equal(ring_stop(&ring), 7);
}

static void test_a_start_behind_the_used_index_ignores_the_other(void **state)
{
	(void)state;
	store16(RINGS + USED + 2, 40000);
	store16(RINGS + AVAIL + 2, 40001);
	assert_int_equal(ring_start(&ring, &memory, 8, &usual, 123, true), 0);
	ring.is_enabled = true;
	describe(0, LOW, 10, 0, 0);
	assert_int_equal(pop(), 1);
	assert_int_equal(pop(), 0);
	assert_int_equal(ring_stop(&ring), 40001);
}

static void test_stop_gives_the_same_index_each_time(void **state)
{
	(void)state;
	start(8);
	describe(2, LOW, 10, 0, 0);
	for (uint32_t i = 0; i < 3; i++)
		offer(2);
	assert_int_equal(pop(), 1);
	assert_int_equal(pop(), 1);
	assert_int_equal(ring_stop(&ring), 2);
	assert_int_equal(ring_stop(&ring), 2);
	assert_int_equal(ring_start(&ring, &memory, 8, &usual, 2, false), 0);
	assert_int_equal(pop(), 1);
	assert_int_equal(ring_stop(&ring), 3);
}

static void test_a_ring_that_is_handed_over_goes_on_where_it_was(void **state)
{
	struct ring_state taken_over;

	(void)state;
	store16(RINGS + AVAIL, 1); /* no calls, but for the first */
	start(8);
	describe(0, LOW, 10, 0, 0);
	for (uint32_t i = 0; i < 3; i++)
		offer(0);
	for (uint32_t i = 0; i < 2; i++) {
		taken_over = ring_state(&ring);
		assert_int_equal(taken_over.was_called, i > 0);
		ring_stop(&ring);
		assert_int_equal(ring_resume(&ring, &memory, 8, &usual, &taken_over), 0);
		assert_int_equal(pop(), 1);
		ring_push(&ring, 0, 0);
		ring_publish(&ring);
		assert_int_equal(calls(), i == 0);
	}
	assert_int_equal(load16(RINGS + USED + 2), 2);
	assert_int_equal(pop(), 1);
	assert_int_equal(pop(), 0);
	assert_int_equal(ring_state(&ring).base, 3);
	taken_over.base = 2;
	assert_int_equal(ring_resume(&ring, &memory, 7, &usual, &taken_over), -EINVAL);
}

/* ---- chains ---- */

static void test_a_chain_of_the_ring_has_its_parts_in_order(void **state)
{
	(void)state;
	start(8);
	describe(5, LOW + 10, 44, NEXT, 1);
	describe(1, LOW + 100, 7, NEXT, 7);
	describe(7, LOW + 200, 1000, NEXT | WRITE, 0);
	describe(0, LOW + 5000, 1, WRITE, 3);
	assert_int_equal(pop(), 0);
	offer(5);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.head, 5);
	assert_false(chain.is_malformed);
	assert_int_equal(chain.n_readable, 2);
	assert_int_equal(chain.n_writable, 2);
	assert_int_equal(chain.readable_len, 51);
	assert_int_equal(chain.writable_len, 1001);
	assert_ptr_equal(chain.parts, parts);
	memset(parts[2].iov_base, 0x33, parts[2].iov_len);
	assert_int_equal(*at(LOW + 199), 0);
	assert_int_equal(*at(LOW + 200), 0x33);
	assert_int_equal(*at(LOW + 1199), 0x33);
	assert_int_equal(*at(LOW + 1200), 0);
	assert_int_equal(parts[0].iov_len, 44);
	assert_int_equal(parts[1].iov_len, 7);
	assert_int_equal(parts[3].iov_len, 1);
	assert_int_equal(pop(), 0);
}

static void test_a_readable_part_behind_a_writable_one_is_malformed_but_breaks_nothing(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW, 10, NEXT | WRITE, 1);
	describe(1, LOW + 10, 10, 0, 0);
	offer(0);
	assert_int_equal(pop(), 1);
	assert_true(chain.is_malformed);
	ring_push(&ring, chain.head, 0);
	describe(2, LOW, 10, 0, 0);
	offer(2);
	assert_int_equal(pop(), 1);
	assert_false(chain.is_malformed);
	assert_true(ring_is_running(&ring));
}

static void test_descriptors_without_length_have_no_part(void **state)
{
	(void)state;
	start(8);
	describe(0, 0, 0, NEXT, 1); /* at no place at all */
	describe(1, LOW, 5, NEXT, 2);
	describe(2, LOW, 0, NEXT | WRITE, 3);
	describe(3, UINT64_MAX, 0, WRITE, 0);
	offer(0);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.n_readable, 1);
	assert_int_equal(chain.n_writable, 0);
	describe(4, LOW, 0, 0, 0);
	offer(4);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.n_readable + chain.n_writable, 0);
	assert_int_equal(chain.readable_len + chain.writable_len, 0);
}

static void test_a_buffer_over_the_border_of_regions_is_cut_there(void **state)
{
	(void)state;
	start(8);
	for (uint32_t before = 1; before < 64; before++) {
		describe(0, BORDER - before, 64, NEXT, 1);
		describe(1, BORDER - before, 64, WRITE, 0);
		for (uint32_t i = 0; i < 64; i++)
			*at(BORDER - before + i) = (uint8_t)i;
		offer(0);
		assert_int_equal(pop(), 1);
		assert_int_equal(chain.n_readable, 2);
		assert_int_equal(chain.n_writable, 2);
		assert_int_equal(chain.readable_len, 64);
		assert_int_equal(chain.writable_len, 64);
		assert_int_equal(parts[2].iov_len, before);
		assert_int_equal(parts[3].iov_len, 64 - before);
		assert_int_equal(*(uint8_t *)parts[0].iov_base, 0);
		assert_int_equal(*(uint8_t *)parts[1].iov_base, before);
	}
}

static void test_a_buffer_that_leaves_guest_memory_breaks_the_ring(void **state)
{
	static const struct {
		uint64_t address;
		uint32_t len;
	} rows[] = {
		{LOW - 1, 1},
		{LOW - 1, 10},
		{END, 1},
		{END - 1, 2},
		{BORDER - 1, (uint32_t)MIB + 2},
		{LOW, UINT32_MAX},
		{0, 1},
		{UINT64_MAX, 1},
		{UINT64_MAX - 3, 100},
		{USER + LOW, 1}, /* a user address */
	};

	(void)state;
	start(8);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		for (uint16_t flags = 0; flags <= WRITE; flags += WRITE) {
			describe(0, rows[i].address, rows[i].len, flags, 0);
			offer(0);
			expect_broken(REPORT_RING_BAD_PLACE);
			heal();
		}
	describe(0, LOW, (uint32_t)(2 * MIB), 0, 0); /* to the last byte */
	offer(0);
	assert_int_equal(pop(), 1);
}

static void test_a_descriptor_index_outside_the_table_breaks_the_ring(void **state)
{
	static const uint16_t indexes[] = {8, 9, 255, 32768, UINT16_MAX};

	(void)state;
	start(8);
	for (size_t i = 0; i < sizeof(indexes) / sizeof(indexes[0]); i++) {
		offer(indexes[i]);
		expect_broken(REPORT_RING_BAD_INDEX);
		assert_int_equal(ring.broken_value, indexes[i]);
		heal();

		describe(0, LOW, 1, NEXT, indexes[i]);
		offer(0);
		expect_broken(REPORT_RING_BAD_INDEX);
		heal();

		describe(0, LOW, 8 * 16, INDIRECT, 0);
		describe_in(LOW, 0, LOW, 1, NEXT, indexes[i]);
		offer(0);
		expect_broken(REPORT_RING_BAD_INDEX);
		heal();
	}
}

static void test_a_loop_breaks_the_ring_and_a_chain_of_its_size_does_not(void **state)
{
	(void)state;
	start(8);
	describe(3, LOW, 1, NEXT, 3);
	offer(3);
	expect_broken(REPORT_RING_LOOP);
	heal();

	describe(3, LOW, 0, NEXT, 4); /* without a part to count */
	describe(4, LOW, 0, NEXT, 3);
	offer(3);
	expect_broken(REPORT_RING_LOOP);
	heal();

	for (uint16_t i = 0; i < 8; i++)
		describe(i, LOW, 1, NEXT, (uint16_t)(i + 1) % 8);
	offer(2);
	expect_broken(REPORT_RING_LOOP);
	heal();

	for (uint16_t i = 0; i < 8; i++)
		describe(i, LOW, 1, i == 7 ? 0 : NEXT, (uint16_t)(i + 1));
	offer(0);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.n_readable, 8);

	describe(0, LOW, 8 * 16, INDIRECT, 0);
	for (uint16_t i = 0; i < 8; i++)
		describe_in(LOW, i, LOW, 1, NEXT, (uint16_t)(i + 1) % 8);
	offer(0);
	expect_broken(REPORT_RING_LOOP);
}

static void test_an_avail_index_that_jumps_breaks_the_ring(void **state)
{
	static const uint32_t sizes[] = {1, 2, 128, 32768};

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		uint32_t num = sizes[i];

		for (uint32_t jump = 1; jump <= UINT16_MAX; jump += jump < 3 ? 1 : 61) {
			avail_idx = 60000;
			store16(RINGS + AVAIL + 2, avail_idx);
			start(num);
			store16(RINGS + AVAIL + 2, (uint16_t)(avail_idx + jump));
			assert_int_equal(ring_has_chains(&ring), jump <= num);
			assert_int_equal(ring.is_broken, jump > num);
			if (jump > num) {
				assert_int_equal(ring.broken_reason, REPORT_RING_AVAIL_JUMP);
				assert_int_equal(pop(), -EPROTO);
			}
		}
	}
}

/* ---- indirect tables ---- */

static void test_an_indirect_table_may_lie_anywhere(void **state)
{
	(void)state;
	start(8);
	/* Aligned or not, in one region or over the border, at every byte. */
	for (uint64_t table = BORDER - 80; table < BORDER + 32; table++) {
		describe(0, table, 3 * 16, INDIRECT, 0);
		describe_in(table, 0, LOW + 1000, 44, NEXT, 2);
		describe_in(table, 2, LOW + 2000, 9, NEXT, 1);
		describe_in(table, 1, LOW + 3000, 100, WRITE, 77);
		offer(0);
		assert_int_equal(pop(), 1);
		assert_int_equal(chain.head, 0);
		assert_int_equal(chain.n_readable, 2);
		assert_int_equal(chain.n_writable, 1);
		assert_int_equal(chain.readable_len, 53);
		assert_int_equal(chain.writable_len, 100);
		*(uint8_t *)parts[1].iov_base = (uint8_t)table;
		assert_int_equal(*at(LOW + 2000), (uint8_t)table);
	}
}

static void test_an_indirect_table_may_follow_descriptors_of_the_ring(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW + 1000, 44, NEXT, 1);
	describe(1, LOW + 2000, 6, NEXT, 2);
	/* Whether the table itself is writable means nothing (virtio 1.3, 2.7.5.3.2). */
	describe(2, LOW, 2 * 16, INDIRECT | WRITE, 0);
	describe_in(LOW, 0, LOW + 3000, 5, NEXT, 1);
	describe_in(LOW, 1, LOW + 4000, 7, WRITE, 0);
	offer(0);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.n_readable, 3);
	assert_int_equal(chain.readable_len, 55);
	assert_int_equal(chain.writable_len, 7);
}

static void test_an_indirect_table_may_be_longer_than_the_ring(void **state)
{
	const uint32_t n = 32768;

	(void)state;
	start(1);
	describe(0, LOW, n * 16, INDIRECT, 0);
	for (uint32_t i = 0; i < n; i++)
		describe_in(LOW, i, BORDER, 1, i + 1 < n ? NEXT : 0, (uint16_t)(i + 1));
	offer(0);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.n_readable, n);
}

static void test_an_indirect_table_of_a_forbidden_kind_breaks_the_ring(void **state)
{
	static const struct {
		uint64_t address;
		uint32_t len;
		uint16_t flags;
	} rows[] = {
		{LOW, 0, INDIRECT},
		{LOW, 8, INDIRECT},
		{LOW, 15, INDIRECT},
		{LOW, 17, INDIRECT},
		{LOW, 32768 * 16 + 16, INDIRECT},
		{LOW, UINT32_MAX, INDIRECT},
		{LOW, UINT32_MAX - 15, INDIRECT},
		{LOW, 16, INDIRECT | NEXT},
		{LOW - 16, 16, INDIRECT},
		{END, 16, INDIRECT},
		{UINT64_MAX, 16, INDIRECT},
	};

	(void)state;
	start(8);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		describe_in(LOW, 0, LOW, 1, 0, 0);
		describe(0, rows[i].address, rows[i].len, rows[i].flags, 1);
		describe(1, LOW, 1, 0, 0);
		offer(0);
		expect_broken(REPORT_RING_BAD_INDIRECT);
		heal();
	}

	/* A table in a table. */
	describe(0, LOW, 16, INDIRECT, 0);
	describe_in(LOW, 0, LOW, 16, INDIRECT, 0);
	offer(0);
	expect_broken(REPORT_RING_BAD_INDIRECT);
	heal();

	/* Not negotiated. */
	describe(0, LOW, 16, INDIRECT, 0);
	describe_in(LOW, 0, LOW, 1, 0, 0);
	ring.has_indirect = false;
	offer(0);
	expect_broken(REPORT_RING_BAD_INDIRECT);
}

static void test_an_indirect_table_that_leaves_guest_memory_breaks_the_ring(void **state)
{
	(void)state;
	start(8);
	/* Its first entry is there, the second only in part. */
	describe(0, END - 24, 2 * 16, INDIRECT, 0);
	store_descriptor(at(END - 24), LOW, 1, NEXT, 1);
	offer(0);
	expect_broken(REPORT_RING_BAD_PLACE);
}

static void test_a_chain_that_needs_more_parts_is_fetched_with_more(void **state)
{
	(void)state;
	start(8);
	for (uint16_t i = 0; i < 4; i++)
		describe(i, LOW, 1, i == 3 ? 0 : NEXT, (uint16_t)(i + 1));
	offer(0);
	for (size_t n = 0; n < 4; n++) {
		assert_int_equal(ring_pop(&ring, &memory, parts, n, &chain), -EAGAIN);
		assert_true(ring_is_running(&ring));
	}
	assert_int_equal(ring_pop(&ring, &memory, parts, 4, &chain), 1);
	assert_int_equal(chain.n_readable, 4);
	assert_int_equal(pop(), 0);
}

static void test_a_chain_of_more_parts_than_there_can_be_breaks_the_ring(void **state)
{
	const uint32_t n = 32768;

	(void)state;
	start(n);
	for (uint32_t i = 0; i < n - 1; i++)
		describe(i, BORDER, 1, NEXT, (uint16_t)(i + 1));
	describe(n - 1, LOW, n * 16, INDIRECT, 0);
	for (uint32_t i = 0; i < n; i++)
		describe_in(LOW, i, BORDER, 1, i + 1 < n ? NEXT : 0, (uint16_t)(i + 1));
	offer(0);
	expect_broken(REPORT_RING_LOOP);
}

/* ---- given back ---- */

static void test_used_chains_are_visible_at_publish_and_not_before(void **state)
{
	(void)state;
	start(8);
	describe(1, LOW, 100, WRITE, 0);
	describe(6, LOW, 100, WRITE, 0);
	offer(6);
	offer(1);
	assert_int_equal(pop(), 1);
	ring_push(&ring, 6, 100);
	assert_int_equal(pop(), 1);
	ring_push(&ring, 1, 0);
	assert_int_equal(load16(RINGS + USED + 2), 0);
	assert_int_equal(calls(), 0);
	ring_publish(&ring);
	assert_int_equal(load16(RINGS + USED + 2), 2);
	check_used(0, 6, 100);
	check_used(1, 1, 0);
	assert_int_equal(calls(), 1);
	ring_publish(&ring); /* nothing new */
	assert_int_equal(calls(), 0);
}

static void test_what_was_not_used_is_fetched_again(void **state)
{
	(void)state;
	start(4);
	for (uint16_t i = 0; i < 4; i++) {
		describe(i, LOW + i, 1, 0, 0);
		offer(i);
	}
	for (uint16_t i = 0; i < 4; i++)
		assert_int_equal(pop(), 1);
	assert_int_equal(pop(), 0);
	ring_unpop(&ring, 3);
	assert_true(ring_has_chains(&ring));
	for (uint16_t i = 1; i < 4; i++) {
		assert_int_equal(pop(), 1);
		assert_int_equal(chain.head, i);
	}
	assert_int_equal(pop(), 0);
	ring_unpop(&ring, 0);
	assert_int_equal(pop(), 0);
	/* All of them at once are no jump of the driver's. */
	ring_unpop(&ring, 4);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.head, 0);
	assert_false(ring.is_broken);
}

static void test_indexes_wrap_in_rings_of_any_size(void **state)
{
	static const uint32_t sizes[] = {1, 2, 128, 32768};

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		uint32_t num = sizes[i];
		uint32_t given = 0, taken = 0;

		memset(at(RINGS), 0, 2 * MIB);
		avail_idx = 0;
		start(num);
		seed = i + 1;
		while (taken < 3 * 65536) {
			uint32_t n = 1 + draw(num);

			/* As full as it gets, every time anew. */
			while (given - taken < n && given - taken < num) {
				uint16_t head = (uint16_t)(given * 5 % num);

				describe(head, LOW + given % MIB, 1 + given % 7, WRITE, 0);
				offer(head);
				given++;
			}
			n = 1 + draw(given - taken);
			for (uint32_t k = 0; k < n; k++) {
				assert_int_equal(pop(), 1);
				assert_int_equal(chain.head, taken * 5 % num);
				assert_int_equal(chain.writable_len, 1 + taken % 7);
				ring_push(&ring, chain.head, taken % 7);
				ring_publish(&ring);
				assert_int_equal(load16(RINGS + USED + 2), (uint16_t)(taken + 1));
				check_used((uint16_t)taken, taken * 5 % num, taken % 7);
				taken++;
			}
		}
		assert_int_equal(ring_stop(&ring), (uint16_t)taken);
	}
}

/* ---- calls and kicks ---- */

/* Give n chains back at once; how many calls it made. */
static uint64_t use(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		ring_push(&ring, 0, 0);
	ring_publish(&ring);
	return calls();
}

static void test_without_event_idx_the_flag_decides_about_calls(void **state)
{
	(void)state;
	store16(RINGS + AVAIL, 1);
	start(8);
	/* The first one after a start in any case: what came before may be unseen. */
	assert_int_equal(use(1), 1);
	assert_int_equal(use(1), 0);
	assert_int_equal(use(3), 0);
	store16(RINGS + AVAIL, 0);
	assert_int_equal(use(1), 1);
	assert_int_equal(use(8), 1);
	store16(RINGS + AVAIL, 1);
	assert_int_equal(use(1), 0);
	ring_stop(&ring);
	start(8);
	assert_int_equal(use(1), 1);
	assert_int_equal(use(1), 0);
}

static void test_with_event_idx_used_event_decides_about_calls(void **state)
{
	const uint64_t used_event = RINGS + AVAIL + 4 + 2 * 128;
	uint16_t used = 0;

	(void)state;
	ring.has_event_idx = true;
	store16(RINGS + AVAIL, 1); /* the flag means nothing then */
	start(128);
	store16(used_event, 5000);
	assert_int_equal(use(1), 1);
	used++;
	for (uint32_t i = 0; i < 100000; i++) {
		uint16_t n = (uint16_t)(1 + draw(128));
		uint16_t event = (uint16_t)(used - 200 + draw(400));
		bool is_passed = false;

		/* The index that completes the chain at used_event is used_event + 1. */
		for (uint16_t k = 0; k < n; k++)
			is_passed |= (uint16_t)(used + k) == event;
		store16(used_event, event);
		assert_int_equal(use(n), is_passed);
		used = (uint16_t)(used + n);
		assert_int_equal(load16(RINGS + USED + 2), used);
	}
}

static void test_with_event_idx_the_first_use_after_a_start_calls(void **state)
{
	const uint64_t used_event = RINGS + AVAIL + 4 + 2 * 8;

	(void)state;
	ring.has_event_idx = true;
	for (uint32_t i = 0; i < 3; i++) {
		start(8);
		store16(used_event, 30000);
		assert_int_equal(use(1), 1);
		assert_int_equal(use(1), 0);
		ring_stop(&ring);
	}
}

static void test_a_ring_without_call_fd_is_used_in_silence(void **state)
{
	int fd = ring.call;

	(void)state;
	ring.call = -1;
	start(8);
	for (uint32_t i = 0; i < 20; i++) {
		ring_push(&ring, 0, 0);
		ring_publish(&ring);
	}
	ring_call(&ring);
	ring.call = fd;
	assert_int_equal(calls(), 0);
	assert_int_equal(load16(RINGS + USED + 2), 20);
	ring_call(&ring);
	assert_int_equal(calls(), 1);
}

static void test_the_error_fd_is_its_own(void **state)
{
	uint64_t n = 0;

	(void)state;
	start(8);
	ring_signal_error(&ring);
	assert_int_equal(calls(), 0);
	assert_int_equal(read(ring.error, &n, sizeof(n)), sizeof(n));
	assert_int_equal(n, 1);
}

static void test_without_event_idx_a_flag_asks_for_kicks(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW, 1, 0, 0);
	ring_disable_kicks(&ring);
	assert_int_equal(load16(RINGS + USED), 1);
	assert_false(ring_enable_kicks(&ring));
	assert_int_equal(load16(RINGS + USED), 0);
	ring_disable_kicks(&ring);
	offer(0);
	/* It came before the wish: nobody will kick for it. */
	assert_true(ring_enable_kicks(&ring));
	assert_int_equal(pop(), 1);
	assert_false(ring_enable_kicks(&ring));
}

static void test_with_event_idx_avail_event_asks_for_the_next_chain(void **state)
{
	const uint64_t avail_event = RINGS + USED + 4 + 8 * 8;

	(void)state;
	ring.has_event_idx = true;
	avail_idx = 65534;
	store16(RINGS + AVAIL + 2, avail_idx);
	start(8);
	describe(0, LOW, 1, 0, 0);
	store16(avail_event, 1234);
	ring_disable_kicks(&ring);
	assert_int_equal(load16(avail_event), 1234); /* it lies behind: no wish */
	for (uint32_t i = 0; i < 10; i++) {
		uint16_t next = (uint16_t)(65534 + i);

		assert_false(ring_enable_kicks(&ring));
		assert_int_equal(load16(avail_event), next);
		offer(0);
		/* However often it is asked: what was not fetched is next. */
		for (uint32_t k = 0; k < 2; k++) {
			assert_true(ring_enable_kicks(&ring));
			assert_int_equal(load16(avail_event), next);
		}
		assert_int_equal(pop(), 1);
	}
	assert_int_equal(load16(RINGS + USED), 0);
}

/* ---- memory that changes ---- */

static void test_a_ring_is_found_again_after_its_memory_moved(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW + 7, 1, 0, 0);
	offer(0);
	assert_int_equal(pop(), 1);
	ring_push(&ring, 0, 5);
	add_regions(true);
	guest_memory_commit(&memory);
	ring_relocate(&ring, &memory);
	assert_true(ring_is_running(&ring));
	ring_publish(&ring);
	assert_int_equal(load16(RINGS + USED + 2), 1);
	offer(0);
	assert_int_equal(pop(), 1);
	assert_int_equal(ring_stop(&ring), 2);
}

static void test_a_ring_whose_memory_is_gone_is_broken(void **state)
{
	struct ring stopped;

	(void)state;
	start(8);
	ring_init(&stopped);
	add_region(LOW, MIB, true);
	guest_memory_commit(&memory);
	ring_relocate(&ring, &memory);
	assert_true(ring.is_broken);
	assert_int_equal(ring.broken_reason, REPORT_RING_BAD_PLACE);
	assert_false(ring_is_running(&ring));
	/* One that is not started has nothing to lose. */
	ring_relocate(&stopped, &memory);
	assert_false(stopped.is_broken);
}

static void test_a_broken_ring_stays_so_until_it_is_started(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW, 1, 0, 0);
	offer(99);
	expect_broken(REPORT_RING_BAD_INDEX);
	store16(RINGS + AVAIL + 4, 0); /* repaired, too late */
	assert_false(ring_is_running(&ring));
	ring_relocate(&ring, &memory);
	assert_false(ring_is_running(&ring));
	assert_int_equal(ring_stop(&ring), 0); /* the chain was not taken */
	assert_true(ring.is_broken);
	assert_int_equal(ring_start(&ring, &memory, 8, &usual, 0, false), 0);
	assert_true(ring_is_running(&ring));
	assert_int_equal(pop(), 1);
}

static bool is_in_guest_memory(const struct iovec *part)
{
	for (size_t i = 0; i < memory.table.n_regions; i++) {
		const struct guest_region *region = &memory.table.regions[i];
		const uint8_t *place = part->iov_base;

		if (place >= region->start && place < region->start + region->size)
			return part->iov_len <= (size_t)(region->start + region->size - place);
	}
	return false;
}

/* A word that could be meant, of which there are many kinds. */
static uint64_t almost_right(uint64_t place, uint64_t random)
{
	if (place >= RINGS + AVAIL)
		return random & UINT64_C(0x000f000f000f000f);
	if (place & 8) /* len, flags, next */
		return random % 8 * 16 | (random >> 8 & 7) << 32 | (random >> 11 & 15) << 48;
	switch (random & 3) {
	case 0:
		return BORDER - 64 + (random >> 2) % 128;
	case 1:
		return LOW;
	default:
		return LOW + (random >> 2) % (2 * MIB);
	}
}

/* A driver on another core that writes whatever it likes while we read. */
static void *scribble(void *stop)
{
	static const uint64_t places[] = {RINGS + DESC, RINGS + AVAIL, LOW, BORDER - 64};
	uint64_t random = 12345;

	while (!__atomic_load_n((bool *)stop, __ATOMIC_RELAXED)) {
		uint64_t place, value;

		random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		place = places[random >> 62] + (random >> 54) % 32 * 8;
		value = random >> 20 & 15 ? almost_right(place, random >> 24) : random;
		__atomic_store_n((uint64_t *)(void *)at(place), value, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void test_a_driver_that_writes_while_we_read_leads_nowhere(void **state)
{
	uint32_t n_popped = 0, n_broken = 0;
	bool stop = false;
	pthread_t thread;

	(void)state;
	start(16);
	assert_int_equal(pthread_create(&thread, NULL, scribble, &stop), 0);
	/* As long as it takes on a busy machine, within reason. */
	for (uint32_t i = 0; i < 300000 || ((n_popped < 1000 || n_broken < 1000) && i < 30000000);
	     i++) {
		int r;

		/* Both of its indexes are the driver's as well: begin where it stands. */
		avail_idx = (uint16_t)(load16(RINGS + AVAIL + 2) - 8);
		assert_int_equal(ring_start(&ring, &memory, 16, &usual, avail_idx, i % 8 == 0), 0);
		r = ring_pop(&ring, &memory, parts, i % 3 ? RING_PARTS_MAX : 3, &chain);
		n_popped += r == 1;
		n_broken += r == -EPROTO;
		if (r != 1)
			continue;
		for (size_t k = 0; k < chain.n_readable + chain.n_writable; k++)
			if (!is_in_guest_memory(&parts[k]))
				fail_msg("a part outside of guest memory");
		ring_push(&ring, chain.head, 1);
		ring_publish(&ring);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	/* The noise was of use: both happened, often. */
	assert_true(n_popped >= 1000);
	assert_true(n_broken >= 1000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_ring_runs_when_it_is_started_and_enabled),
		TEST(test_a_size_that_is_no_power_of_two_up_to_32768_is_refused),
		TEST(test_a_ring_that_is_not_whole_in_guest_memory_is_refused),
		TEST(test_a_misaligned_ring_is_refused),
		TEST(test_a_start_takes_the_used_index_from_memory),
		TEST(test_a_start_behind_the_used_index_ignores_the_other),
		TEST(test_stop_gives_the_same_index_each_time),
		TEST(test_a_ring_that_is_handed_over_goes_on_where_it_was),
		TEST(test_a_chain_of_the_ring_has_its_parts_in_order),
		TEST(test_a_readable_part_behind_a_writable_one_is_malformed_but_breaks_nothing),
		TEST(test_descriptors_without_length_have_no_part),
		TEST(test_a_buffer_over_the_border_of_regions_is_cut_there),
		TEST(test_a_buffer_that_leaves_guest_memory_breaks_the_ring),
		TEST(test_a_descriptor_index_outside_the_table_breaks_the_ring),
		TEST(test_a_loop_breaks_the_ring_and_a_chain_of_its_size_does_not),
		TEST(test_an_avail_index_that_jumps_breaks_the_ring),
		TEST(test_an_indirect_table_may_lie_anywhere),
		TEST(test_an_indirect_table_may_follow_descriptors_of_the_ring),
		TEST(test_an_indirect_table_may_be_longer_than_the_ring),
		TEST(test_an_indirect_table_of_a_forbidden_kind_breaks_the_ring),
		TEST(test_an_indirect_table_that_leaves_guest_memory_breaks_the_ring),
		TEST(test_a_chain_that_needs_more_parts_is_fetched_with_more),
		TEST(test_a_chain_of_more_parts_than_there_can_be_breaks_the_ring),
		TEST(test_used_chains_are_visible_at_publish_and_not_before),
		TEST(test_what_was_not_used_is_fetched_again),
		TEST(test_indexes_wrap_in_rings_of_any_size),
		TEST(test_without_event_idx_the_flag_decides_about_calls),
		TEST(test_with_event_idx_used_event_decides_about_calls),
		TEST(test_with_event_idx_the_first_use_after_a_start_calls),
		TEST(test_a_ring_without_call_fd_is_used_in_silence),
		TEST(test_the_error_fd_is_its_own),
		TEST(test_without_event_idx_a_flag_asks_for_kicks),
		TEST(test_with_event_idx_avail_event_asks_for_the_next_chain),
		TEST(test_a_ring_is_found_again_after_its_memory_moved),
		TEST(test_a_ring_whose_memory_is_gone_is_broken),
		TEST(test_a_broken_ring_stays_so_until_it_is_started),
		TEST(test_a_driver_that_writes_while_we_read_leads_nowhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
