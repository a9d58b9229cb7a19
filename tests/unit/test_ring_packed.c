/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/ring_rig.h"

/* What only a packed ring has: rounds, positions, ids, a table that both sides write. */

#define AVAIL_BIT (1u << 7)
#define USED_BIT  (1u << 15)
#define FIRST	  UINT32_C(0x80008000)

static struct mode packed = {.is_packed = true};

static int set_up(void **state)
{
	void *chosen = &packed;

	(void)state;
	return rig_set_up(&chosen);
}

/* Whatever a driver may have written at an index. */
static void write_raw(uint32_t index, uint64_t address, uint32_t len, uint16_t id, uint16_t flags)
{
	uint8_t *place = at(RINGS + DESC) + 16 * (size_t)index;

	memcpy(place, &address, 8);
	memcpy(place + 8, &len, 4);
	memcpy(place + 12, &id, 2);
	memcpy(place + 14, &flags, 2);
}

static int start_at(uint32_t num, uint32_t base)
{
	return ring_start(&ring, &memory, num, &usual, base, false);
}

/* ---- where it starts ---- */

static void test_a_base_within_the_ring_is_where_it_starts(void **state)
{
	static const uint32_t bases[] = {0x80008000, 0x00000000, 0x00078007,
					 0x80038003, 0x00038003, /* all of it in flight */
					 0x80008005, 0x80060003};

	(void)state;
	for (size_t i = 0; i < sizeof(bases) / sizeof(bases[0]); i++) {
		assert_int_equal(start_at(8, bases[i]), 0);
		assert_int_equal(ring_stop(&ring), bases[i]);
	}
}

static void test_a_base_that_no_ring_can_have_is_refused(void **state)
{
	static const uint32_t bases[] = {
		0x80008008, /* avail beyond the ring */
		0x80088000, /* used beyond it */
		0xffffffff,
		0x00007fff,
		0x80058003, /* used ahead of avail: more in flight than there is room for */
		0x80038004 ^ 0x80000000,
		0x80000001,
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bases) / sizeof(bases[0]); i++) {
		assert_int_equal(start_at(8, bases[i]), -EINVAL);
		assert_false(ring.is_started);
	}
}

static void test_the_layout_counts_from_the_next_start_on(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW, 10, 0, 0);
	offer(0);
	ring.has_packed = false;
	assert_int_equal(pop(), 1);
	ring_push(&ring, &chain.ticket, 0);
	assert_int_equal(ring_stop(&ring), 0x80018001);
	assert_int_equal(start_at(8, 0), 0);
	assert_false(ring.is_packed);
	assert_int_equal(start_at(7, 0), -EINVAL);
}

static void test_a_successor_without_a_note_does_not_start(void **state)
{
	(void)state;
	start(8);
	ring.journal = NULL;
	assert_int_equal(ring_start(&ring, &memory, 8, &usual, FIRST, true), -EINVAL);
	ring.journal = &journal;
	journal.step = 0;
	assert_int_equal(ring_start(&ring, &memory, 8, &usual, FIRST, true), -EINVAL);
}

/* The worker before may have been in the guest's hands. */
static void test_a_note_that_no_ring_can_have_is_refused_or_within_the_ring(void **state)
{
	(void)state;
	start(8);
	for (uint32_t i = 0; i < 100000; i++) {
		int r;

		journal.step = (uint64_t)draw(4) << 32 | (uint64_t)draw(65536) << 16 | draw(65536);
		r = ring_start(&ring, &memory, 8, &usual, FIRST, true);
		assert_true(r == 0 || r == -EINVAL);
		if (r == 0)
			assert_true((ring.next_used & 0x7fff) < 8 &&
				    ring.next_used == ring.next_avail);
	}
}

/* A successor that is being prepared reads what a worker that still serves writes. */
static void test_who_reads_the_notes_changes_none(void **state)
{
	struct ring reader;
	uint64_t noted;

	(void)state;
	start(8);
	describe(0, LOW, 10, NEXT, 1);
	describe(1, LOW, 10, 0, 0);
	for (uint32_t i = 0; i < 30; i++) {
		offer(0);
		assert_int_equal(pop(), 1);
		ring_push(&ring, &chain.ticket, 0);
		ring_publish(&ring);
		expect_used(0, 0);
		noted = journal.step;
		ring_init(&reader);
		reader.has_packed = true;
		reader.journal = &journal;
		assert_int_equal(ring_start(&reader, &memory, 8, &usual, FIRST, true), 0);
		assert_int_equal(reader.next_used, ring.next_used);
		assert_true(journal.step == noted);
	}
}

/*
 * Killed between the note of a step and the step, and right behind it: the two
 * places where memory and note differ.
 */
static void test_a_step_that_was_noted_is_made_once(void **state)
{
	(void)state;
	start(8);
	for (uint16_t i = 0; i < 3; i++)
		describe(i, LOW, 10, i < 2 ? NEXT : 0, (uint16_t)(i + 1));
	for (uint32_t round = 0; round < 50; round++) {
		uint16_t before = ring.next_used;
		uint8_t waiting[16];

		offer(0);
		memcpy(waiting, at(RINGS + DESC) + (size_t)16 * (before & 0x7fff), 16);
		assert_int_equal(pop(), 1);
		ring_push(&ring, &chain.ticket, 0);
		if (round % 2) { /* it was not made */
			memcpy(at(RINGS + DESC) + (size_t)16 * (before & 0x7fff), waiting, 16);
			assert_int_equal(ring_start(&ring, &memory, 8, &usual, 0, true), 0);
			assert_int_equal(ring.next_used, before);
			assert_int_equal(pop(), 1);
			assert_int_equal(chain.n_readable, 3);
			ring_push(&ring, &chain.ticket, 0);
		} else {
			assert_int_equal(ring_start(&ring, &memory, 8, &usual, 0, true), 0);
			assert_int_equal(pop(), 0);
		}
		expect_used(0, 0);
	}
}

/* ---- rounds ---- */

static void test_only_a_descriptor_of_this_round_is_available(void **state)
{
	static const uint16_t flags[] = {0, AVAIL_BIT, USED_BIT, AVAIL_BIT | USED_BIT};

	(void)state;
	for (uint32_t wrap = 0; wrap < 2; wrap++)
		for (uint32_t i = 0; i < 4; i++) {
			assert_int_equal(start_at(8, wrap ? FIRST : 0), 0);
			write_raw(0, LOW, 10, 0, flags[i]);
			assert_int_equal(ring_has_chains(&ring), i == (wrap ? 1 : 2));
		}
}

static void test_a_chain_goes_on_at_the_start_of_the_table(void **state)
{
	(void)state;
	first_base = 0x80068006;
	start(8);
	for (uint16_t i = 0; i < 4; i++)
		describe(i, LOW + 100u * i, 10u + i, i < 3 ? NEXT : 0, (uint16_t)(i + 1));
	offer(0);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.n_readable, 4);
	assert_int_equal(chain.readable_len, 10 + 11 + 12 + 13);
	assert_int_equal(chain.ticket.n_slots, 4);
	ring_push(&ring, &chain.ticket, 0);
	expect_used(0, 0);
	assert_int_equal(ring_stop(&ring), 0x00020002);
}

/* ---- ids ---- */

static void test_any_id_comes_back_as_it_was(void **state)
{
	static const uint16_t ids[] = {0, 7, 8, 255, 32767, 32768, 65535};

	(void)state;
	start(8);
	for (uint32_t i = 0; i < 100; i++) {
		uint16_t id = ids[draw(7)], again = ids[draw(7)];
		uint32_t first = ring.next_avail & 0x7fff;
		uint16_t round = ring.next_avail & 0x8000 ? AVAIL_BIT : USED_BIT;

		/* The last one counts; the same twice is the driver's affair. */
		if (first > 5) {
			ring_stop(&ring);
			memset(at(RINGS), 0, MIB);
			start(8);
			continue;
		}
		write_raw(first, LOW, 5, again, (uint16_t)(round | NEXT));
		write_raw(first + 1, LOW, 5, id, round);
		write_raw(first + 2, LOW, 5, id, round);
		for (uint32_t k = 0; k < 2; k++) {
			uint64_t place = RINGS + DESC + 16 * (uint64_t)(ring.next_used & 0x7fff);

			assert_int_equal(pop(), 1);
			assert_int_equal(chain.ticket.head, id);
			ring_push(&ring, &chain.ticket, 0);
			assert_int_equal(load16(place + 12), id);
		}
		assert_false(ring.is_broken);
	}
}

/* ---- chains that no driver may make ---- */

static void test_a_row_without_end_breaks_the_ring(void **state)
{
	(void)state;
	start(8);
	for (uint32_t i = 0; i < 8; i++)
		write_raw(i, LOW, 1, 0, AVAIL_BIT | NEXT);
	expect_broken(REPORT_RING_LOOP);
	start(1);
	write_raw(0, LOW, 0, 0, AVAIL_BIT | NEXT);
	expect_broken(REPORT_RING_LOOP);
}

static void test_more_descriptors_than_there_are_break_the_ring(void **state)
{
	(void)state;
	start(4);
	describe(0, LOW, 1, 0, 0);
	for (uint32_t i = 0; i < 4; i++) {
		offer(0);
		assert_int_equal(pop(), 1);
	}
	assert_int_equal(pop(), 0);
	/* Made available again while the device has it. */
	write_raw(0, LOW, 1, 0, USED_BIT);
	expect_broken(REPORT_RING_AVAIL_JUMP);

	memset(at(RINGS), 0, MIB);
	start(4);
	for (uint32_t i = 0; i < 2; i++) {
		offer(0);
		assert_int_equal(pop(), 1);
	}
	/* A chain that runs into those in flight. */
	for (uint32_t i = 2; i < 4; i++)
		write_raw(i, LOW, 1, 0, AVAIL_BIT | NEXT);
	expect_broken(REPORT_RING_AVAIL_JUMP);
}

static void test_a_table_within_a_row_breaks_the_ring(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW, 1, NEXT, 1);
	describe(1, LOW, 16, INDIRECT, 0);
	offer(0);
	expect_broken(REPORT_RING_BAD_INDIRECT);
	heal();
	describe(0, LOW, 16, INDIRECT | NEXT, 1);
	describe(1, LOW, 16, 0, 0);
	offer(0);
	expect_broken(REPORT_RING_BAD_INDIRECT);
}

/* virtio 1.3, 2.8.7: the length says where it ends, and of the flags only WRITE counts. */
static void test_the_flags_in_a_table_count_for_nothing_but_write(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW, 4 * 16, INDIRECT | WRITE, 0);
	describe_in(LOW, 0, LOW + 1000, 1, 0, 0);
	describe_in(LOW, 1, LOW + 2000, 2, NEXT, 7);
	describe_in(LOW, 2, LOW + 3000, 4, INDIRECT | AVAIL_BIT, UINT16_MAX);
	describe_in(LOW, 3, LOW + 4000, 8, 0xffff, 0);
	offer(0);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.n_readable, 3);
	assert_int_equal(chain.readable_len, 7);
	assert_int_equal(chain.writable_len, 8);
	assert_int_equal(chain.ticket.n_slots, 1);
	assert_int_equal(chain.ticket.head, 0);
}

/* ---- calls ---- */

static void test_positions_repeat_after_two_rounds(void **state)
{
	(void)state;
	ring.has_event_idx = true;
	for (uint32_t num = 1; num < 10; num++) {
		memset(at(RINGS), 0, MIB);
		start(num);
		assert_int_equal(use(1), 1);
		for (uint32_t i = 0; i < 2000; i++) {
			int n = 1 + (int)draw(num), event = (int)draw(2 * num);

			ask_for_call_in(event);
			assert_int_equal(use((uint32_t)n), event < n);
		}
	}
}

/* A small ring goes round more than once before anything is published. */
static void test_rounds_between_two_publications_pass_every_position(void **state)
{
	(void)state;
	ring.has_event_idx = true;
	for (uint32_t num = 1; num < 5; num++) {
		memset(at(RINGS), 0, MIB);
		start(num);
		assert_int_equal(use(1), 1);
		describe(0, LOW, 1, 0, 0);
		for (uint32_t i = 0; i < 200; i++) {
			uint32_t n = 1 + draw(4 * num), event = draw(2 * num);

			ask_for_call_in((int)event);
			for (uint32_t k = 0; k < n; k++) {
				offer(0);
				assert_int_equal(pop(), 1);
				ring_push(&ring, &chain.ticket, 0);
				expect_used(0, 0);
			}
			ring_publish(&ring);
			assert_int_equal(calls(), event < n);
		}
	}
}

static void test_what_an_event_area_may_not_say_is_a_wish_to_be_called(void **state)
{
	(void)state;
	start(8);
	use(1);
	store16(RINGS + AVAIL, 0x7fff);
	store16(RINGS + AVAIL + 2, 3);
	assert_int_equal(use(1), 1);
	store16(RINGS + AVAIL + 2, 2); /* not negotiated */
	assert_int_equal(use(1), 1);
	store16(RINGS + AVAIL + 2, 1 | 0xfffc);
	assert_int_equal(use(1), 0);
	/* Negotiated, and a position beyond the ring: whatever it does, it does no harm. */
	ring.has_event_idx = true;
	for (uint32_t i = 0; i < 65536; i += 13) {
		store16(RINGS + AVAIL, (uint16_t)i);
		store16(RINGS + AVAIL + 2, 2);
		use(1);
	}
	assert_false(ring.is_broken);
}

/* ---- pages that a migration has to copy ---- */

static void test_what_is_written_into_a_ring_is_logged(void **state)
{
	static uint8_t bits[1 << 17];
	struct dirty_log log = {.is_on = true, .bits = bits, .size = sizeof(bits), .fd = -1};
	const uint64_t used_page = (RINGS + USED) / 4096;

	(void)state;
	ring.log = &log;
	ring.log_address = RINGS + USED;
	start(1024);
	for (uint32_t round = 0; round < 2; round++) {
		ring.is_logged = round > 0;
		for (uint32_t i = 0; i < 1024; i++) {
			uint64_t page = (RINGS + DESC + 16 * (uint64_t)i) / 4096;

			memset(bits, 0, sizeof(bits));
			use(1);
			for (uint64_t k = RINGS / 4096; k < (RINGS + 2 * MIB) / 4096; k++)
				assert_int_equal(!!(bits[k / 8] & 1u << k % 8),
						 round > 0 && k == page);
		}
		memset(bits, 0, sizeof(bits));
		ring_enable_kicks(&ring);
		assert_int_equal(!!(bits[used_page / 8] & 1u << used_page % 8), round > 0);
		memset(bits, 0, sizeof(bits));
		ring_disable_kicks(&ring);
		assert_int_equal(!!(bits[used_page / 8] & 1u << used_page % 8), round > 0);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, rig_tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_base_within_the_ring_is_where_it_starts),
		TEST(test_a_base_that_no_ring_can_have_is_refused),
		TEST(test_the_layout_counts_from_the_next_start_on),
		TEST(test_a_successor_without_a_note_does_not_start),
		TEST(test_a_note_that_no_ring_can_have_is_refused_or_within_the_ring),
		TEST(test_who_reads_the_notes_changes_none),
		TEST(test_a_step_that_was_noted_is_made_once),
		TEST(test_only_a_descriptor_of_this_round_is_available),
		TEST(test_a_chain_goes_on_at_the_start_of_the_table),
		TEST(test_any_id_comes_back_as_it_was),
		TEST(test_a_row_without_end_breaks_the_ring),
		TEST(test_more_descriptors_than_there_are_break_the_ring),
		TEST(test_a_table_within_a_row_breaks_the_ring),
		TEST(test_the_flags_in_a_table_count_for_nothing_but_write),
		TEST(test_positions_repeat_after_two_rounds),
		TEST(test_rounds_between_two_publications_pass_every_position),
		TEST(test_what_an_event_area_may_not_say_is_a_wish_to_be_called),
		TEST(test_what_is_written_into_a_ring_is_logged),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
