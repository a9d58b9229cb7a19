/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/credit.h"
#include "worker/packet.h"

#define BUFFER	  (256u * 1024)
#define NEAR_WRAP UINT32_C(0xffffff00)

static uint64_t seed;

static uint32_t draw(uint32_t below)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(seed >> 33) % below;
}

/* As after almost 4 GiB in both directions. */
static void start_near_wrap(struct credit *credit, uint32_t buf_alloc)
{
	credit_init(credit, buf_alloc);
	credit->tx_cnt = credit->peer_fwd_cnt = NEAR_WRAP;
	credit->rx_cnt = credit->fwd_cnt = credit->announced = NEAR_WRAP;
}

static void test_nothing_may_be_sent_before_the_guest_says_so(void **state)
{
	struct credit credit;

	(void)state;
	credit_init(&credit, BUFFER);
	assert_int_equal(credit_bytes(&credit), 0);
	assert_true(credit_update(&credit, 1000, 0));
	assert_int_equal(credit_bytes(&credit), 1000);
}

static void test_what_is_in_flight_counts_until_it_is_consumed(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	assert_true(credit_update(&credit, 4096, NEAR_WRAP));
	credit_sent(&credit, 4000);
	assert_int_equal(credit_bytes(&credit), 96);
	assert_true(credit_update(&credit, 4096, NEAR_WRAP + 255));
	assert_int_equal(credit_bytes(&credit), 96 + 255);
	assert_true(credit_update(&credit, 4096, NEAR_WRAP + 4000)); /* beyond zero */
	assert_int_equal(credit_bytes(&credit), 4096);
}

static void test_a_fwd_cnt_of_bytes_never_sent_takes_nothing_over(void **state)
{
	static const uint32_t lies[] = {NEAR_WRAP + 1001, NEAR_WRAP - 1, 0x7fffff00, 0x80000000,
					NEAR_WRAP + 0x7fffffff};
	struct credit credit, before;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	assert_true(credit_update(&credit, 4096, NEAR_WRAP));
	credit_sent(&credit, 1000);
	before = credit;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		assert_false(credit_update(&credit, UINT32_MAX, lies[i]));
		assert_memory_equal(&credit, &before, sizeof(credit));
	}
	/* Going back is a lie as well. */
	assert_true(credit_update(&credit, 4096, NEAR_WRAP + 500));
	assert_false(credit_update(&credit, 4096, NEAR_WRAP + 499));
	assert_true(credit_update(&credit, 4096, NEAR_WRAP + 1000));
}

static void test_a_buffer_that_shrinks_below_what_is_in_flight_has_no_room(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	assert_true(credit_update(&credit, 4096, NEAR_WRAP));
	credit_sent(&credit, 3000);
	assert_true(credit_update(&credit, 2999, NEAR_WRAP));
	assert_int_equal(credit_bytes(&credit), 0);
	assert_true(credit_update(&credit, 3000, NEAR_WRAP));
	assert_int_equal(credit_bytes(&credit), 0);
	assert_true(credit_update(&credit, 3001, NEAR_WRAP));
	assert_int_equal(credit_bytes(&credit), 1);
	assert_true(credit_update(&credit, 0, NEAR_WRAP));
	assert_int_equal(credit_bytes(&credit), 0);
	assert_true(credit_update(&credit, 0, NEAR_WRAP + 3000));
	assert_int_equal(credit_bytes(&credit), 0);
}

static void test_a_huge_buffer_is_believed_up_to_half_of_the_counter(void **state)
{
	static const uint32_t sizes[] = {INT32_MAX, (uint32_t)INT32_MAX + 1, UINT32_MAX};
	struct credit credit;

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		start_near_wrap(&credit, BUFFER);
		assert_true(credit_update(&credit, sizes[i], NEAR_WRAP));
		assert_int_equal(credit_bytes(&credit), INT32_MAX);
		while (credit_bytes(&credit) > 0)
			credit_sent(&credit, credit_bytes(&credit) < PACKET_PAYLOAD_MAX
						     ? credit_bytes(&credit)
						     : PACKET_PAYLOAD_MAX);
		assert_int_equal(credit.tx_cnt - credit.peer_fwd_cnt, INT32_MAX);
		assert_true(credit_update(&credit, sizes[i], NEAR_WRAP + 1));
		assert_int_equal(credit_bytes(&credit), 1);
		assert_true(credit_update(&credit, sizes[i], NEAR_WRAP + INT32_MAX));
		assert_int_equal(credit_bytes(&credit), INT32_MAX);
		assert_int_equal(credit.n_packets, 0);
	}
}

static void test_packets_are_limited_by_what_the_guest_charges_for_each(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	assert_true(credit_update(&credit, BUFFER, NEAR_WRAP));
	for (uint32_t i = 0; i < BUFFER / CREDIT_PACKET_OVERHEAD; i++) {
		assert_int_equal(credit_packets(&credit), 256 - i);
		assert_int_equal(credit_runs_low(&credit), i >= 128);
		credit_sent(&credit, 1);
	}
	assert_int_equal(credit_packets(&credit), 0);
	assert_int_equal(credit_bytes(&credit), BUFFER - 256);

	/* Groups of neighbours: exact to a sixteenth, and never too much. */
	for (uint32_t i = 1; i <= 256; i++) {
		assert_true(credit_update(&credit, BUFFER, NEAR_WRAP + i));
		assert_in_range(credit_packets(&credit), i >= 16 ? i - 16 : 0, i);
	}
	assert_int_equal(credit_packets(&credit), 256);
}

static void test_a_tiny_buffer_takes_one_packet_at_a_time(void **state)
{
	struct credit credit;

	(void)state;
	credit_init(&credit, BUFFER);
	for (uint32_t size = 1; size < 2 * CREDIT_PACKET_OVERHEAD; size += 511) {
		uint32_t fwd_cnt = credit.tx_cnt;

		assert_true(credit_update(&credit, size, fwd_cnt));
		assert_int_equal(credit_packets(&credit), 1);
		credit_sent(&credit, 1);
		assert_int_equal(credit_packets(&credit), 0);
		assert_true(credit_update(&credit, size, fwd_cnt + 1));
		assert_int_equal(credit_packets(&credit), 1);
	}
}

static void test_a_limit_that_shrinks_below_what_waits_gives_no_packet(void **state)
{
	struct credit credit;

	(void)state;
	credit_init(&credit, BUFFER);
	assert_true(credit_update(&credit, BUFFER, 0));
	for (uint32_t i = 0; i < 100; i++)
		credit_sent(&credit, 1);
	assert_true(credit_update(&credit, 100 * CREDIT_PACKET_OVERHEAD, 0));
	assert_int_equal(credit_packets(&credit), 0);
	assert_true(credit_update(&credit, 10 * CREDIT_PACKET_OVERHEAD, 0));
	assert_int_equal(credit_packets(&credit), 0);
	assert_true(credit_runs_low(&credit));
	assert_true(credit_update(&credit, 10 * CREDIT_PACKET_OVERHEAD, 100));
	assert_int_equal(credit_packets(&credit), 10);
}

static void test_packets_sent_under_a_smaller_limit_are_not_forgotten(void **state)
{
	struct credit credit;

	(void)state;
	credit_init(&credit, BUFFER);
	assert_true(credit_update(&credit, 15 * CREDIT_PACKET_OVERHEAD, 0));
	for (uint32_t i = 0; i < 15; i++)
		credit_sent(&credit, 1); /* each of them a group */
	assert_true(credit_update(&credit, BUFFER, 0));
	for (uint32_t i = 15; i < 256; i++) {
		assert_int_equal(credit_packets(&credit), 256 - i);
		credit_sent(&credit, 1);
	}
	/* As to a guest that never answers: beyond every limit. */
	for (uint32_t i = 0; i < 1000; i++)
		credit_sent(&credit, 1);
	assert_int_equal(credit_packets(&credit), 0);
	assert_true(credit_update(&credit, BUFFER, 1255));
	assert_in_range(credit_packets(&credit), 0, 255);
	assert_true(credit_update(&credit, BUFFER, 1256));
	assert_int_equal(credit_packets(&credit), 256);
}

static void test_the_guest_may_send_what_our_buffer_holds_and_no_byte_more(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, 4096);
	assert_false(credit_received(&credit, 4097));
	assert_true(credit_received(&credit, 4095));
	assert_true(credit_received(&credit, 0));
	assert_false(credit_received(&credit, 2));
	assert_false(credit_received(&credit, UINT32_MAX));
	assert_true(credit_received(&credit, 1));
	assert_false(credit_received(&credit, 1));
	assert_true(credit_received(&credit, 0));
	credit_forwarded(&credit, 10);
	assert_true(credit_received(&credit, 10));
	assert_false(credit_received(&credit, 1));
}

static void test_an_update_is_worth_a_packet_at_half_of_the_buffer(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	credit.peer_buf_alloc = BUFFER;
	assert_false(credit_wants_update(&credit));
	assert_true(credit_received(&credit, BUFFER / 2));
	credit_forwarded(&credit, BUFFER / 2 - 1);
	assert_false(credit_wants_update(&credit));
	credit_forwarded(&credit, 1);
	assert_true(credit_wants_update(&credit));
	credit_announced(&credit);
	assert_false(credit_wants_update(&credit));
	assert_int_equal(credit.announced, credit.fwd_cnt);
}

/* Recent Linux guests send no more at a time than their own buffer would hold. */
static void test_an_update_is_worth_a_packet_at_half_of_a_smaller_buffer_of_the_guest(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	credit.peer_buf_alloc = 1000;
	assert_true(credit_received(&credit, 1000));
	credit_forwarded(&credit, 499);
	credit_announced(&credit);
	assert_false(credit_wants_update(&credit));
	credit_forwarded(&credit, 500);
	assert_true(credit_wants_update(&credit));
}

static void test_an_update_is_worth_a_packet_to_a_guest_that_sees_little_room(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	assert_true(credit_received(&credit, BUFFER - 1));
	assert_false(credit_wants_update(&credit)); /* there is none to tell of */
	credit_forwarded(&credit, 1);
	assert_true(credit_wants_update(&credit));
	credit_announced(&credit);
	assert_false(credit_wants_update(&credit));
}

/* A guest that says nothing gets empty messages without end; in the end a byte. */
static void test_empty_messages_are_counted_as_far_as_numbers_go(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	assert_true(credit_update(&credit, BUFFER, NEAR_WRAP));
	credit.n_packets = credit.n_empty = INT32_MAX - 1;
	for (uint32_t i = 0; i < 3; i++) {
		credit_sent(&credit, 0);
		assert_int_equal(credit.n_packets, INT32_MAX);
		assert_true(credit_is_sound(&credit, BUFFER, 0));
	}
	credit_sent(&credit, 1);
	credit_sent(&credit, 0);
	assert_int_equal(credit.n_packets, UINT32_C(1) << 31);
	assert_true(credit_is_sound(&credit, BUFFER, 0));
	assert_true(credit_update(&credit, BUFFER, NEAR_WRAP + 1));
	assert_int_equal(credit.n_packets, 0);
}

static void test_groups_of_packets_that_cannot_be_are_no_credit(void **state)
{
	struct credit credit;

	(void)state;
	start_near_wrap(&credit, BUFFER);
	assert_true(credit_is_sound(&credit, BUFFER, 0));
	credit.n_groups = CREDIT_GROUPS + 1;
	assert_false(credit_is_sound(&credit, BUFFER, 0));
	credit.n_groups = 0;
	credit.first_group = CREDIT_GROUPS;
	assert_false(credit_is_sound(&credit, BUFFER, 0));
}

/* Whatever the size: a guest that waits for room and gets all of it taken learns of it. */
static void test_no_guest_waits_for_ever(void **state)
{
	(void)state;
	for (uint32_t buffer = 1; buffer < 3000; buffer++) {
		struct credit credit;
		uint32_t room = buffer;

		start_near_wrap(&credit, buffer);
		for (uint32_t i = 0; i < 20; i++) {
			/* Small messages, as long as what the guest sees suffices. */
			uint32_t len = buffer / 7 + 1 < room ? buffer / 7 + 1 : room;

			assert_int_not_equal(len, 0);
			assert_true(credit_received(&credit, len));
			credit_forwarded(&credit, len);
			room -= len;
			if (credit_wants_update(&credit)) {
				credit_announced(&credit);
				room = buffer;
			}
		}
	}
}

/* ---- a second opinion: every packet remembered, 64-bit counters ---- */

#define PACKETS_MAX 100000

struct model {
	uint64_t sent, consumed, received, forwarded, announced;
	uint32_t buf_alloc;
	uint64_t ends[PACKETS_MAX];
	uint32_t first, n;
};

static struct model model;

static void check_model(const struct credit *credit, uint32_t our_buffer)
{
	uint64_t window = model.buf_alloc < INT32_MAX ? model.buf_alloc : INT32_MAX;
	uint64_t in_flight = model.sent - model.consumed;
	uint64_t limit = model.buf_alloc / CREDIT_PACKET_OVERHEAD;
	uint32_t unread;

	while (model.first < model.n && model.ends[model.first] <= model.consumed)
		model.first++;
	unread = model.n - model.first;
	limit = limit ? limit : 1;
	assert_int_equal(credit_waits_for_empty(credit), unread > 0 && in_flight == 0);

	assert_int_equal(credit_bytes(credit), in_flight < window ? window - in_flight : 0);
	assert_true(credit_packets(credit) <= (unread < limit ? limit - unread : 0));
	if (unread == 0)
		assert_int_equal(credit_packets(credit), limit);
	assert_true(credit->n_packets >= unread);
	assert_true(credit->n_groups <= CREDIT_GROUPS);
	assert_int_equal(credit->tx_cnt, (uint32_t)(NEAR_WRAP + model.sent));
	assert_int_equal(credit->fwd_cnt, (uint32_t)(NEAR_WRAP + model.forwarded));
	assert_true(model.received - model.forwarded <= our_buffer);
	if (model.forwarded == model.announced)
		assert_false(credit_wants_update(credit));
}

static void model_sends(struct credit *credit)
{
	uint32_t bytes = credit_bytes(credit), len;

	if (bytes == 0 || credit_packets(credit) == 0 || model.n == PACKETS_MAX)
		return;
	len = draw(4) ? 1 + draw(draw(2) ? 20 : PACKET_PAYLOAD_MAX) : 0;
	len = len < bytes ? len : bytes;
	credit_sent(credit, len);
	credit_announced(credit);
	model.announced = model.forwarded;
	model.sent += len;
	/* Nobody sees that an empty one was read before the byte behind it was. */
	model.ends[model.n++] = model.sent + (len == 0);
}

static void model_hears(struct credit *credit)
{
	uint64_t in_flight = model.sent - model.consumed;
	uint64_t consumed = model.consumed + (in_flight ? draw((uint32_t)in_flight + 1) : 0);
	uint32_t fwd_cnt = (uint32_t)(NEAR_WRAP + consumed);
	uint32_t buf_alloc = model.buf_alloc;

	if (draw(20) == 0)
		buf_alloc = draw(4) ? draw(1 << 20) : draw(UINT32_MAX);
	if (draw(10) == 0) { /* a lie */
		fwd_cnt = (uint32_t)(NEAR_WRAP + model.sent) + 1 +
			  draw(UINT32_MAX - (uint32_t)in_flight - 1);
		assert_false(credit_update(credit, buf_alloc, fwd_cnt));
		return;
	}
	assert_true(credit_update(credit, buf_alloc, fwd_cnt));
	model.consumed = consumed;
	model.buf_alloc = buf_alloc;
}

static void model_hears_of_empty(struct credit *credit)
{
	uint32_t n = 1 + draw(3), n_empty = 0;

	for (uint32_t i = model.first; i < model.n; i++)
		n_empty += model.ends[i] == model.sent + 1;
	if (!credit_waits_for_empty(credit))
		return;
	credit_empty_consumed(credit, n);
	model.first += n < n_empty ? n : n_empty;
}

static void model_receives(struct credit *credit, uint32_t our_buffer)
{
	uint32_t room = our_buffer - (uint32_t)(model.received - model.forwarded);
	uint32_t len = draw(our_buffer + our_buffer / 8 + 2);

	assert_int_equal(credit_received(credit, len), len <= room);
	if (len <= room)
		model.received += len;
}

static void test_credit_agrees_with_a_model_of_every_packet(void **state)
{
	(void)state;
	for (uint64_t run = 1; run <= 40; run++) {
		uint32_t our_buffer = 1024u << (run % 9);
		struct credit credit;

		memset(&model, 0, offsetof(struct model, ends));
		model.first = model.n = 0;
		seed = run;
		start_near_wrap(&credit, our_buffer);
		for (uint32_t i = 0; i < 5000; i++) {
			uint32_t unforwarded = (uint32_t)(model.received - model.forwarded);
			uint32_t n = draw(unforwarded + 1);

			switch (draw(7)) {
			case 0:
				model_hears(&credit);
				break;
			case 1:
				model_receives(&credit, our_buffer);
				break;
			case 3:
				model_hears_of_empty(&credit);
				break;
			case 2:
				credit_forwarded(&credit, n);
				model.forwarded += n;
				break;
			default:
				model_sends(&credit);
			}
			check_model(&credit, our_buffer);
		}
		assert_true(model.sent > 0 && model.received > 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_may_be_sent_before_the_guest_says_so),
		cmocka_unit_test(test_what_is_in_flight_counts_until_it_is_consumed),
		cmocka_unit_test(test_a_fwd_cnt_of_bytes_never_sent_takes_nothing_over),
		cmocka_unit_test(test_a_buffer_that_shrinks_below_what_is_in_flight_has_no_room),
		cmocka_unit_test(test_a_huge_buffer_is_believed_up_to_half_of_the_counter),
		cmocka_unit_test(test_packets_are_limited_by_what_the_guest_charges_for_each),
		cmocka_unit_test(test_a_tiny_buffer_takes_one_packet_at_a_time),
		cmocka_unit_test(test_a_limit_that_shrinks_below_what_waits_gives_no_packet),
		cmocka_unit_test(test_packets_sent_under_a_smaller_limit_are_not_forgotten),
		cmocka_unit_test(test_the_guest_may_send_what_our_buffer_holds_and_no_byte_more),
		cmocka_unit_test(test_an_update_is_worth_a_packet_at_half_of_the_buffer),
		cmocka_unit_test(
			test_an_update_is_worth_a_packet_at_half_of_a_smaller_buffer_of_the_guest),
		cmocka_unit_test(test_an_update_is_worth_a_packet_to_a_guest_that_sees_little_room),
		cmocka_unit_test(test_empty_messages_are_counted_as_far_as_numbers_go),
		cmocka_unit_test(test_groups_of_packets_that_cannot_be_are_no_credit),
		cmocka_unit_test(test_no_guest_waits_for_ever),
		cmocka_unit_test(test_credit_agrees_with_a_model_of_every_packet),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
