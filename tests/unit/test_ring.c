/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/ring_rig.h"

/* Both layouts, with and without EVENT_IDX, chains in the ring and in tables. */

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

static void test_a_size_that_its_layout_cannot_have_is_refused(void **state)
{
	static const uint32_t never[] = {0, 32769, 65536, UINT32_C(1) << 31, UINT32_MAX};
	static const uint32_t odd[] = {3, 6, 100, 32767};

	(void)state;
	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
		assert_int_equal(ring_start(&ring, &memory, never[i], &usual, first_base, false),
				 -EINVAL);
		assert_false(ring.is_started);
	}
	/* Free-running indexes need a power of two, rounds don't. */
	for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++)
		assert_int_equal(ring_start(&ring, &memory, odd[i], &usual, first_base, false),
				 mode.is_packed ? 0 : -EINVAL);
	for (uint32_t size = 1; size <= 32768; size *= 2)
		assert_int_equal(ring_start(&ring, &memory, size, &usual, first_base, false), 0);
}

static void test_a_ring_that_is_not_whole_in_guest_memory_is_refused(void **state)
{
	/* Three places, each to the last byte and one step beyond it. */
	const uint64_t end = USER + RINGS + 2 * MIB;
	const uint64_t lens[] = {16 * 128, mode.is_packed ? 4 : 4 + 2 * 128 + 2,
				 mode.is_packed ? 4 : 4 + 8 * 128 + 2};

	(void)state;
	for (uint32_t which = 0; which < 3; which++) {
		struct ring_addresses addresses = usual;
		uint64_t *place = which == 0   ? &addresses.desc
				  : which == 1 ? &addresses.avail
					       : &addresses.used;
		/* Alignment that the part itself asks for, downwards. */
		uint64_t align = which == 0 ? 16 : which == 1 && !mode.is_packed ? 2 : 4;

		*place = (end - lens[which]) & ~(align - 1);
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, first_base, false), 0);
		*place += align;
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, first_base, false),
				 -EFAULT);
		assert_false(ring.is_started);
		*place = USER + END;
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, first_base, false),
				 -EFAULT);
		*place = UINT64_MAX - 15;
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, first_base, false),
				 -EFAULT);
		*place = 0;
		assert_int_equal(ring_start(&ring, &memory, 128, &addresses, first_base, false),
				 -EFAULT);
	}
}

static void test_a_misaligned_ring_is_refused(void **state)
{
	struct ring_addresses addresses = usual;

	(void)state;
	for (uint64_t i = 1; i < 16; i++) {
		addresses.desc = usual.desc + i;
		assert_int_equal(ring_start(&ring, &memory, 8, &addresses, first_base, false),
				 -EFAULT);
	}
	addresses = usual;
	for (uint64_t i = 1; i < 4; i++) {
		bool is_good = !mode.is_packed && i == 2;

		addresses.avail = usual.avail + i;
		assert_int_equal(ring_start(&ring, &memory, 8, &addresses, first_base, false),
				 is_good ? 0 : -EFAULT);
	}
	addresses = usual;
	for (uint64_t i = 1; i < 4; i++) {
		addresses.used = usual.used + i;
		assert_int_equal(ring_start(&ring, &memory, 8, &addresses, first_base, false),
				 -EFAULT);
	}
}

static uint32_t base_after(uint32_t n)
{
	uint32_t base = first_base;

	for (uint32_t i = 0; i < n; i++)
		base += mode.is_packed ? 0x10001 : 1;
	return base;
}

static void test_stop_gives_the_same_base_each_time(void **state)
{
	(void)state;
	start(8);
	describe(2, LOW, 10, 0, 0);
	for (uint32_t i = 0; i < 3; i++)
		offer(2);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(pop(), 1);
		ring_push(&ring, &chain.ticket, 0);
	}
	ring_publish(&ring);
	assert_int_equal(ring_stop(&ring), base_after(2));
	assert_int_equal(ring_stop(&ring), base_after(2));
	assert_int_equal(ring_start(&ring, &memory, 8, &usual, base_after(2), false), 0);
	assert_int_equal(pop(), 1);
	ring_push(&ring, &chain.ticket, 0);
	assert_int_equal(ring_stop(&ring), base_after(3));
}

static void test_a_ring_that_is_handed_over_goes_on_where_it_was(void **state)
{
	struct ring_state taken_over;

	(void)state;
	start(8);
	ask_for_no_calls(); /* but for the first */
	describe(0, LOW, 10, 0, 0);
	for (uint32_t i = 0; i < 3; i++)
		offer(0);
	for (uint32_t i = 0; i < 2; i++) {
		taken_over = ring_state(&ring);
		assert_int_equal(taken_over.was_called, i > 0);
		ring_stop(&ring);
		assert_int_equal(ring_resume(&ring, &memory, 8, &usual, &taken_over), 0);
		assert_int_equal(pop(), 1);
		ring_push(&ring, &chain.ticket, 0);
		ring_publish(&ring);
		assert_int_equal(calls(), i == 0);
	}
	assert_int_equal(n_used(), 2);
	assert_int_equal(pop(), 1);
	assert_int_equal(pop(), 0);
	ring_push(&ring, &chain.ticket, 0);
	assert_int_equal(ring_state(&ring).base, base_after(3));
	assert_int_equal(ring_resume(&ring, &memory, 65536, &usual, &taken_over), -EINVAL);
}

/* Killed at any moment: what was given back is, and what was not is fetched again. */
static void test_a_successor_goes_on_behind_the_last_chain_given_back(void **state)
{
	static const uint32_t sizes[] = {1, 7, 8, 32768};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint32_t n_taken = 0;

		if (!mode.is_packed && (sizes[i] & (sizes[i] - 1)))
			continue;
		memset(at(RINGS), 0, 2 * MIB);
		start(sizes[i]);
		for (uint32_t k = 0; k < 300; k++) {
			uint32_t n = 1 + draw(sizes[i] < 20 ? sizes[i] : 20),
				 n_pushed = draw(n + 1);

			for (uint32_t head = 0; head < n; head++) {
				describe(head, LOW, 1 + head, WRITE, 0);
				offer((uint16_t)head);
			}
			for (uint32_t head = 0; head < n; head++) {
				assert_int_equal(pop(), 1);
				if (head < n_pushed)
					ring_push(&ring, &chain.ticket, 1);
			}
			ring_publish(&ring);
			/* The driver may have them back before anybody follows. */
			for (uint32_t head = 0; k % 2 && head < n_pushed; head++)
				expect_used((uint16_t)head, 1);
			assert_int_equal(ring_start(&ring, &memory, sizes[i], &usual, 12345, true),
					 0);
			for (uint32_t head = n_pushed; head < n; head++) {
				assert_int_equal(pop(), 1);
				assert_int_equal(chain.ticket.head, head);
				assert_int_equal(chain.writable_len, 1 + head);
				ring_push(&ring, &chain.ticket, 1);
			}
			ring_publish(&ring);
			assert_int_equal(pop(), 0);
			for (uint32_t head = k % 2 ? n_pushed : 0; head < n; head++)
				expect_used((uint16_t)head, 1);
			n_taken += n;
		}
		assert_true(n_taken > 300 || sizes[i] == 1);
	}
}

static void test_a_chain_has_its_parts_in_order(void **state)
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
	assert_int_equal(chain.ticket.head, 5);
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
	ring_push(&ring, &chain.ticket, 0);
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
		ring_push(&ring, &chain.ticket, 0);
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

static void test_a_chain_as_long_as_the_ring_is_whole(void **state)
{
	(void)state;
	start(8);
	for (uint32_t i = 0; i < 3; i++) {
		for (uint16_t k = 0; k < 8; k++)
			describe(k, LOW, 1, k == 7 ? 0 : NEXT, (uint16_t)(k + 1));
		offer(0);
		assert_int_equal(pop(), 1);
		assert_int_equal(chain.n_readable, 8);
		assert_int_equal(pop(), 0);
		ring_push(&ring, &chain.ticket, 0);
		ring_publish(&ring);
		expect_used(0, 0);
	}
}

static void test_an_indirect_table_may_lie_anywhere(void **state)
{
	(void)state;
	start(8);
	/* Aligned or not, in one region or over the border, at every byte. */
	for (uint64_t table = BORDER - 80; table < BORDER + 32; table++) {
		describe(0, table, 3 * 16, INDIRECT, 0);
		describe_in(table, 0, LOW + 1000, 44, NEXT, 1);
		describe_in(table, 1, LOW + 2000, 9, NEXT, 2);
		describe_in(table, 2, LOW + 3000, 100, WRITE, 77);
		offer(0);
		assert_int_equal(pop(), 1);
		assert_int_equal(chain.ticket.head, 0);
		assert_int_equal(chain.n_readable, 2);
		assert_int_equal(chain.n_writable, 1);
		assert_int_equal(chain.readable_len, 53);
		assert_int_equal(chain.writable_len, 100);
		*(uint8_t *)parts[1].iov_base = (uint8_t)table;
		assert_int_equal(*at(LOW + 2000), (uint8_t)table);
		ring_push(&ring, &chain.ticket, 0);
	}
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

	/* Not negotiated. */
	describe(0, LOW, 16, INDIRECT, 0);
	describe_in(LOW, 0, LOW, 1, 0, 0);
	ring.has_indirect = false;
	offer(0);
	expect_broken(REPORT_RING_BAD_INDIRECT);
}

static void test_an_indirect_table_that_leaves_guest_memory_breaks_the_ring(void **state)
{
	uint8_t entry[16];

	(void)state;
	start(8);
	/* Its first entry is there, the second only in part. */
	describe_in(LOW, 0, LOW, 1, NEXT, 1);
	memcpy(entry, at(LOW), sizeof(entry));
	memcpy(at(END - 24), entry, sizeof(entry));
	describe(0, END - 24, 2 * 16, INDIRECT, 0);
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

static void test_used_chains_are_visible_after_publish(void **state)
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
	assert_int_equal(calls(), 0);
	ring_publish(&ring);
	assert_int_equal(n_used(), 2);
	expect_used(6, 100);
	expect_used(1, 0);
	assert_int_equal(calls(), 1);
	ring_publish(&ring); /* nothing new */
	assert_int_equal(calls(), 0);
}

static void test_what_was_not_used_is_fetched_again(void **state)
{
	struct chain fetched[4];

	(void)state;
	start(4);
	for (uint16_t i = 0; i < 4; i++) {
		describe(i, LOW + i, 1, 0, 0);
		offer(i);
	}
	for (uint16_t i = 0; i < 4; i++)
		assert_int_equal(ring_pop(&ring, &memory, parts, RING_PARTS_MAX, &fetched[i]), 1);
	assert_int_equal(pop(), 0);
	ring_unpop(&ring, &fetched[1]);
	assert_true(ring_has_chains(&ring));
	for (uint16_t i = 1; i < 4; i++) {
		assert_int_equal(pop(), 1);
		assert_int_equal(chain.ticket.head, i);
	}
	assert_int_equal(pop(), 0);
	ring_unpop(&ring, &fetched[3]);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.ticket.head, 3);
	/* All of them at once are no jump of the driver's. */
	ring_unpop(&ring, &fetched[0]);
	assert_int_equal(pop(), 1);
	assert_int_equal(chain.ticket.head, 0);
	assert_false(ring.is_broken);
}

/* As full as it gets, every time anew, with chains of any length. */
static void test_rings_of_any_size_go_round(void **state)
{
	static const uint32_t sizes[] = {1, 2, 3, 127, 128, 32767, 32768};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		uint32_t num = sizes[i], given = 0, taken = 0, n_free = num;
		static uint8_t lens[32768];

		if (!mode.is_packed && (num & (num - 1)))
			continue;
		memset(at(RINGS), 0, 2 * MIB);
		start(num);
		while (taken < 2 * 65536 + num) {
			uint32_t n = 1 + draw(num);

			for (uint32_t len; n > 0 && n_free > 0; n--) {
				/* A split ring's descriptors are named by place: one for each. */
				len = mode.is_packed && !mode.is_indirect
					      ? 1 + draw(n_free < 3 ? n_free : 3)
					      : 1;
				for (uint16_t k = 0; k < len; k++)
					describe(mode.is_packed ? k : given * 5 % num,
						 LOW + given % MIB, 1 + given % 7,
						 WRITE | (k + 1u < len ? NEXT : 0),
						 (uint16_t)(k + 1));
				lens[given % num] = (uint8_t)len;
				offer((uint16_t)(mode.is_packed ? 0 : given * 5 % num));
				n_free -= len;
				given++;
			}
			n = 1 + draw(given - taken);
			for (uint32_t k = 0; k < n; k++, taken++) {
				uint32_t len = lens[taken % num];

				assert_int_equal(pop(), 1);
				assert_int_equal(chain.writable_len, len * (1 + taken % 7));
				ring_push(&ring, &chain.ticket, taken % 7);
				ring_publish(&ring);
				expect_used((uint16_t)(mode.is_packed ? 0 : taken * 5 % num),
					    taken % 7);
				n_free += len;
			}
		}
	}
}

/* ---- calls and kicks ---- */

static void test_the_first_chain_after_a_start_calls_in_any_case(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		start(8);
		/* What came before it may be unseen. */
		ask_for_no_calls();
		assert_int_equal(use(1), 1);
		ask_for_no_calls();
		assert_int_equal(use(1), 0);
		ring_stop(&ring);
		memset(at(RINGS), 0, MIB);
	}
}

static void test_the_driver_is_called_when_it_asks(void **state)
{
	(void)state;
	start(8);
	assert_int_equal(use(1), 1);
	for (uint32_t i = 0; i < 100; i++) {
		ask_for_no_calls();
		assert_int_equal(use(1 + i % 8), 0);
		ask_for_calls();
		assert_int_equal(use(1 + draw(8)), 1);
	}
}

static void test_with_event_idx_the_chain_that_was_asked_for_calls(void **state)
{
	(void)state;
	if (!mode.has_event_idx)
		return;
	start(100 + 28u * !mode.is_packed);
	assert_int_equal(use(1), 1);
	for (uint32_t i = 0; i < 20000; i++) {
		int n = 1 + (int)draw(100), event = (int)draw(200) - 100;

		ask_for_call_in(event);
		assert_int_equal(use((uint32_t)n), event >= 0 && event < n);
	}
}

static void test_a_ring_without_call_fd_is_used_in_silence(void **state)
{
	int fd = ring.call;

	(void)state;
	ring.call = -1;
	start(8);
	for (uint32_t i = 0; i < 20; i++) {
		ask_for_calls();
		use(1);
	}
	ring_call(&ring);
	ring.call = fd;
	assert_int_equal(calls(), 0);
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

static void test_kicks_are_asked_for_the_next_chain(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW, 1, 0, 0);
	for (uint32_t i = 0; i < 20; i++) {
		assert_false(ring_enable_kicks(&ring));
		offer(0);
		assert_true(wants_kick());
		/* However often it is asked: what was not fetched is next. It came before the wish.
		 */
		for (uint32_t k = 0; k < 2; k++) {
			assert_true(ring_enable_kicks(&ring));
			assert_true(wants_kick());
		}
		ring_disable_kicks(&ring);
		offer(0); /* and of more nobody wants to know */
		assert_false(wants_kick());
		for (uint32_t k = 0; k < 2; k++) {
			assert_int_equal(pop(), 1);
			ring_push(&ring, &chain.ticket, 0);
			ring_publish(&ring);
			expect_used(0, 0);
		}
	}
}

static void test_a_driver_that_goes_on_from_where_it_was_is_noticed(void **state)
{
	uint16_t position;

	(void)state;
	start(4);
	describe(0, LOW, 4, WRITE, 0);
	for (uint32_t i = 0; i < 10; i++) {
		/* Some chains wait, or all that there can be. */
		for (uint32_t k = 0; k < 1 + i % 4; k++)
			offer(0);
		position = ring_driver_position(&ring);
		for (uint32_t k = 0; k < 1 + i % 4; k++) {
			assert_int_equal(pop(), 1);
			ring_push(&ring, &chain.ticket, 4);
		}
		ring_publish(&ring);
		assert_false(ring_driver_is_past(&ring, position));
		assert_false(ring_enable_kicks_at(&ring, position));
		for (uint32_t k = 0; k < 1 + i % 4; k++)
			expect_used(0, 4);
		offer(0);
		assert_true(wants_kick());
		assert_true(ring_driver_is_past(&ring, position));
		assert_true(ring_enable_kicks_at(&ring, position));
		assert_int_equal(pop(), 1);
		ring_push(&ring, &chain.ticket, 0);
		ring_publish(&ring);
		expect_used(0, 0);
	}
}

/* ---- memory that changes ---- */

static void test_a_ring_is_found_again_after_its_memory_moved(void **state)
{
	(void)state;
	start(8);
	describe(0, LOW + 7, 1, 0, 0);
	offer(0);
	assert_int_equal(pop(), 1);
	ring_push(&ring, &chain.ticket, 5);
	add_regions(true);
	guest_memory_commit(&memory);
	ring_relocate(&ring, &memory);
	assert_true(ring_is_running(&ring));
	ring_publish(&ring);
	expect_used(0, 5);
	offer(0);
	assert_int_equal(pop(), 1);
	ring_push(&ring, &chain.ticket, 0);
	assert_int_equal(ring_stop(&ring), base_after(2));
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
	describe(0, 0, 1, 0, 0);
	offer(0);
	expect_broken(REPORT_RING_BAD_PLACE);
	describe(0, LOW, 1, 0, 0); /* repaired, too late */
	driver_forget();
	offer(0);
	assert_false(ring_is_running(&ring));
	ring_relocate(&ring, &memory);
	assert_false(ring_is_running(&ring));
	assert_int_equal(ring_stop(&ring), first_base); /* the chain was not taken */
	assert_true(ring.is_broken);
	assert_int_equal(ring_start(&ring, &memory, 8, &usual, first_base, false), 0);
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
	if (place & 8 && mode.is_packed) /* len, id, flags with those of the round */
		return random % 8 * 16 | (random >> 8 & 7) << 48 | (random >> 11 & 1) << 55 |
		       (random >> 12 & 1) << 63;
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
	if (mode.has_event_idx || mode.is_indirect)
		return; /* what it writes are tables as well, and nothing here is a wish */
	start(16);
	assert_int_equal(pthread_create(&thread, NULL, scribble, &stop), 0);
	/* As long as it takes on a busy machine, within reason. */
	for (uint32_t i = 0; i < 300000 || ((n_popped < 1000 || n_broken < 1000) && i < 30000000);
	     i++) {
		uint32_t base = draw(16) | draw(2) << 15;

		/* Both of its indexes are the driver's as well: begin where it stands. */
		base |= base << 16;
		if (!mode.is_packed)
			base = (uint16_t)(load16(RINGS + AVAIL + 2) - 8);
		assert_int_equal(ring_start(&ring, &memory, 16, &usual, base, i % 8 == 0), 0);
		int r = ring_pop(&ring, &memory, parts, i % 3 ? RING_PARTS_MAX : 3, &chain);
		n_popped += r == 1;
		n_broken += r == -EPROTO;
		if (r != 1)
			continue;
		for (size_t k = 0; k < chain.n_readable + chain.n_writable; k++)
			if (!is_in_guest_memory(&parts[k]))
				fail_msg("a part outside of guest memory");
		ring_push(&ring, &chain.ticket, 1);
		ring_publish(&ring);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	/* The noise was of use: both happened, often. */
	assert_true(n_popped >= 1000);
	assert_true(n_broken >= 1000);
}

/* ---- IN_ORDER ---- */

static void test_in_order_the_last_chain_speaks_for_those_before(void **state)
{
	(void)state;
	ring.has_in_order = true;
	start(8);
	for (uint16_t i = 0; i < 8; i++)
		describe(i, LOW, 4, i == 5 ? WRITE : 0, 0);
	for (uint32_t round = 0; round < 5; round++) {
		uint16_t before = ring.next_used;

		for (uint16_t i = 0; i < 8; i++)
			offer(i);
		for (uint16_t i = 0; i < 8; i++) {
			assert_int_equal(pop(), 1);
			assert_int_equal(chain.ticket.head, i);
			ring_push(&ring, &chain.ticket, i == 5 ? 3 : 0);
			/* One that has room has its own length, and ends what came before. */
			if (i < 5)
				assert_int_equal(ring.next_used, before);
		}
		ring_publish(&ring);
		expect_used_batch(6, 5, 3);
		expect_used_batch(2, 7, 0);
	}
	assert_int_equal(ring_has_chains(&ring), false);
}

static void test_in_order_a_successor_goes_on_behind_the_last_batch(void **state)
{
	(void)state;
	ring.has_in_order = true;
	start(8);
	for (uint16_t i = 0; i < 8; i++)
		describe(i, LOW, 1 + i, 0, 0);
	for (uint32_t round = 0; round < 20; round++) {
		uint32_t n = draw(9);

		for (uint16_t i = 0; i < 8; i++)
			offer(i);
		for (uint16_t i = 0; i < n; i++) {
			assert_int_equal(pop(), 1);
			ring_push(&ring, &chain.ticket, 0);
		}
		if (round % 2)
			ring_publish(&ring);
		else
			n = 0; /* killed before anything was told */
		assert_int_equal(ring_start(&ring, &memory, 8, &usual, 777, true), 0);
		if (n > 0)
			expect_used_batch(n, (uint16_t)(n - 1), 0);
		for (uint32_t i = n; i < 8; i++) {
			assert_int_equal(pop(), 1);
			assert_int_equal(chain.ticket.head, i);
			ring_push(&ring, &chain.ticket, 0);
		}
		ring_publish(&ring);
		if (n < 8)
			expect_used_batch(8 - n, 7, 0);
		assert_int_equal(pop(), 0);
	}
}

#define TEST(name)                                                                                 \
	{                                                                                          \
#name, name, rig_set_up, rig_tear_down, NULL                                       \
	}

static const struct CMUnitTest tests[] = {
	TEST(test_a_ring_runs_when_it_is_started_and_enabled),
	TEST(test_a_size_that_its_layout_cannot_have_is_refused),
	TEST(test_a_ring_that_is_not_whole_in_guest_memory_is_refused),
	TEST(test_a_misaligned_ring_is_refused),
	TEST(test_stop_gives_the_same_base_each_time),
	TEST(test_a_ring_that_is_handed_over_goes_on_where_it_was),
	TEST(test_a_successor_goes_on_behind_the_last_chain_given_back),
	TEST(test_a_chain_has_its_parts_in_order),
	TEST(test_a_readable_part_behind_a_writable_one_is_malformed_but_breaks_nothing),
	TEST(test_descriptors_without_length_have_no_part),
	TEST(test_a_buffer_over_the_border_of_regions_is_cut_there),
	TEST(test_a_buffer_that_leaves_guest_memory_breaks_the_ring),
	TEST(test_a_chain_as_long_as_the_ring_is_whole),
	TEST(test_an_indirect_table_may_lie_anywhere),
	TEST(test_an_indirect_table_may_be_longer_than_the_ring),
	TEST(test_an_indirect_table_of_a_forbidden_kind_breaks_the_ring),
	TEST(test_an_indirect_table_that_leaves_guest_memory_breaks_the_ring),
	TEST(test_a_chain_that_needs_more_parts_is_fetched_with_more),
	TEST(test_used_chains_are_visible_after_publish),
	TEST(test_what_was_not_used_is_fetched_again),
	TEST(test_rings_of_any_size_go_round),
	TEST(test_the_first_chain_after_a_start_calls_in_any_case),
	TEST(test_the_driver_is_called_when_it_asks),
	TEST(test_with_event_idx_the_chain_that_was_asked_for_calls),
	TEST(test_a_ring_without_call_fd_is_used_in_silence),
	TEST(test_the_error_fd_is_its_own),
	TEST(test_kicks_are_asked_for_the_next_chain),
	TEST(test_a_driver_that_goes_on_from_where_it_was_is_noticed),
	TEST(test_a_ring_is_found_again_after_its_memory_moved),
	TEST(test_a_ring_whose_memory_is_gone_is_broken),
	TEST(test_a_broken_ring_stays_so_until_it_is_started),
	TEST(test_a_driver_that_writes_while_we_read_leads_nowhere),
	TEST(test_in_order_the_last_chain_speaks_for_those_before),
	TEST(test_in_order_a_successor_goes_on_behind_the_last_batch),
};

#define N_TESTS (sizeof(tests) / sizeof(tests[0]))

/* Every test in every mode. */
static int run_in(struct mode *chosen)
{
	struct CMUnitTest of_mode[N_TESTS];
	char name[64];

	memcpy(of_mode, tests, sizeof(tests));
	for (size_t i = 0; i < N_TESTS; i++)
		of_mode[i].initial_state = chosen;
	(void)snprintf(name, sizeof(name), "%s%s%s", chosen->is_packed ? "packed" : "split",
		       chosen->has_event_idx ? ", EVENT_IDX" : "",
		       chosen->is_indirect ? ", INDIRECT" : "");
	print_message("%s\n", name);
	return _cmocka_run_group_tests(name, of_mode, N_TESTS, NULL, NULL);
}

int main(void)
{
	int n_failed = 0;

	for (uint32_t i = 0; i < 8; i++) {
		struct mode chosen = {
			.is_packed = i & 1,
			.has_event_idx = i & 2,
			.is_indirect = i & 4,
		};

		n_failed += run_in(&chosen);
	}
	return n_failed;
}
