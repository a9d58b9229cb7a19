/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/ring_rig.h"

/* What only a split ring has: indexes, a table that chains jump about in, two rings beside it. */

static void check_used(uint16_t index, uint32_t id, uint32_t len)
{
	uint32_t element[2];

	memcpy(element, at(RINGS + USED + 4 + 8 * (uint64_t)(index & (ring.num - 1))), 8);
	assert_int_equal(element[0], id);
	assert_int_equal(element[1], len);
}

static void test_a_start_takes_the_used_index_from_memory(void **state)
{
	(void)state;
	store16(RINGS + USED + 2, 65535);
	store16(RINGS + AVAIL + 2, 7);
	assert_int_equal(ring_start(&ring, &memory, 8, &usual, 5, false), 0);
	ring.is_enabled = true;
	for (uint16_t i = 0; i < 8; i++)
		describe(i, LOW, 10, 0, 0);
	assert_int_equal(pop(), 1);
	ring_push(&ring, &chain.ticket, 9);
	ring_publish(&ring);
	assert_int_equal(load16(RINGS + USED + 2), 0);
	check_used(65535, 0, 9);
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
			first_base = 60000;
			store16(RINGS + AVAIL + 2, 60000);
			start(num);
			store16(RINGS + AVAIL + 2, (uint16_t)(60000 + jump));
			assert_int_equal(ring_has_chains(&ring), jump <= num);
			assert_int_equal(ring.is_broken, jump > num);
			if (jump > num) {
				assert_int_equal(ring.broken_reason, REPORT_RING_AVAIL_JUMP);
				assert_int_equal(pop(), -EPROTO);
			}
		}
	}
}

static void test_the_entries_of_an_indirect_table_follow_each_other_by_index(void **state)
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
		assert_int_equal(chain.ticket.head, 0);
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

static void test_used_chains_are_visible_at_publish_and_not_before(void **state)
{
	(void)state;
	start(8);
	describe(1, LOW, 100, WRITE, 0);
	describe(6, LOW, 100, WRITE, 0);
	offer(6);
	offer(1);
	assert_int_equal(pop(), 1);
	ring_push(&ring, &chain.ticket, 100);
	assert_int_equal(pop(), 1);
	ring_push(&ring, &chain.ticket, 0);
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

static void test_a_table_within_a_table_breaks_the_ring(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW, 16, INDIRECT, 0);
	describe_in(LOW, 0, LOW, 16, INDIRECT, 0);
	offer(0);
	expect_broken(REPORT_RING_BAD_INDIRECT);
}

static void test_a_used_index_that_passes_used_event_calls(void **state)
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_set_up, rig_tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_start_takes_the_used_index_from_memory),
		TEST(test_a_start_behind_the_used_index_ignores_the_other),
		TEST(test_a_descriptor_index_outside_the_table_breaks_the_ring),
		TEST(test_a_loop_breaks_the_ring_and_a_chain_of_its_size_does_not),
		TEST(test_an_avail_index_that_jumps_breaks_the_ring),
		TEST(test_the_entries_of_an_indirect_table_follow_each_other_by_index),
		TEST(test_an_indirect_table_may_follow_descriptors_of_the_ring),
		TEST(test_a_chain_of_more_parts_than_there_can_be_breaks_the_ring),
		TEST(test_used_chains_are_visible_at_publish_and_not_before),
		TEST(test_a_table_within_a_table_breaks_the_ring),
		TEST(test_a_used_index_that_passes_used_event_calls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
