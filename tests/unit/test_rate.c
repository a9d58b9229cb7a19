/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/rate.h"

#define RATE  UINT64_C(1000000)
#define BURST 125000u /* an eighth of a second */

static struct rate rate;

static int set_up(void **state)
{
	(void)state;
	rate = (struct rate){0};
	rate_limit(&rate, RATE, 5000);
	return 0;
}

static void test_without_a_limit_everything_passes(void **state)
{
	(void)state;
	rate_limit(&rate, 0, 5000);
	assert_int_equal(rate_room(&rate), UINT32_MAX);
	assert_false(rate_take(&rate, UINT32_MAX));
	rate_fill(&rate, UINT64_MAX);
	assert_int_equal(rate_room(&rate), UINT32_MAX);
	assert_true(rate_wait(&rate) == UINT64_MAX);
}

static void test_what_is_in_the_bucket_passes_at_once_and_no_more(void **state)
{
	(void)state;
	assert_int_equal(rate_room(&rate), BURST);
	assert_false(rate_take(&rate, BURST - 1));
	assert_int_equal(rate_room(&rate), 1);
	assert_true(rate_take(&rate, 1));
	assert_int_equal(rate_room(&rate), 0);
	assert_false(rate_take(&rate, 1000)); /* said once */
}

static void test_a_dry_bucket_opens_when_a_quarter_is_there(void **state)
{
	(void)state;
	assert_true(rate_take(&rate, BURST));
	assert_in_range(rate_wait(&rate), 31, 33);
	rate_fill(&rate, 5000 + 31);
	assert_int_equal(rate_room(&rate), 0);
	rate_fill(&rate, 5000 + 32);
	assert_in_range(rate_room(&rate), BURST / 4, BURST / 3);
	assert_true(rate_wait(&rate) == UINT64_MAX);
}

static void test_a_debt_is_waited_for(void **state)
{
	(void)state;
	assert_true(rate_take(&rate, BURST + 1000000));
	assert_in_range(rate_wait(&rate), 1031, 1033);
	rate_fill(&rate, 5000 + 1000);
	assert_int_equal(rate_room(&rate), 0);
	rate_fill(&rate, 5000 + 1032);
	assert_true(rate_room(&rate) > 0);
}

static void test_a_long_rest_fills_the_bucket_and_no_more(void **state)
{
	(void)state;
	assert_true(rate_take(&rate, BURST));
	rate_fill(&rate, UINT64_MAX / 2);
	assert_int_equal(rate_room(&rate), BURST);
}

static void test_the_highest_rate_and_the_longest_rest_overflow_nothing(void **state)
{
	(void)state;
	rate_limit(&rate, UINT64_C(1) << 40, 5000);
	for (uint32_t i = 0; i < 100; i++)
		(void)rate_take(&rate, UINT32_MAX);
	rate_fill(&rate, UINT64_MAX);
	assert_int_equal(rate_room(&rate), UINT32_MAX);
}

/* Over a long time, in steps of any length: what passes is what may. */
static void test_in_the_long_run_the_rate_is_the_rate(void **state)
{
	uint64_t now = 5000, passed = 0, seed = 1;

	(void)state;
	while (now < 5000 + 100000) {
		uint32_t room = rate_room(&rate);

		seed = seed * UINT64_C(6364136223846793005) + 1;
		if (room > 3000)
			room = 3000 + (uint32_t)(seed >> 40) % 3000; /* a packet may be too long */
		passed += room;
		if (room > 0)
			(void)rate_take(&rate, room);
		else
			now += 1 + (seed >> 33) % 20;
		rate_fill(&rate, now);
	}
	assert_in_range(passed, 99 * RATE, 101 * RATE);
}

static void test_a_successor_goes_on_with_what_is_left(void **state)
{
	struct rate successor = {0};

	(void)state;
	(void)rate_take(&rate, BURST + 5000);
	rate_limit(&successor, RATE, 9000);
	rate_set_tokens(&successor, rate.tokens);
	assert_int_equal(rate_room(&successor), 0);
	assert_int_equal(rate_wait(&successor), rate_wait(&rate));
	/* It may say what it likes. */
	rate_set_tokens(&successor, INT64_MAX);
	assert_int_equal(rate_room(&successor), 0);
	rate_set_tokens(&successor, INT64_MIN);
	assert_true(rate_wait(&successor) < UINT64_MAX);
	rate_fill(&successor, 9000 + 100000);
	assert_int_equal(rate_room(&successor), 0);
}

static void test_another_limit_gives_no_new_burst(void **state)
{
	(void)state;
	assert_true(rate_take(&rate, BURST));
	rate_limit(&rate, 2 * RATE, 5000);
	assert_int_equal(rate_room(&rate), 0);
	assert_in_range(rate_wait(&rate), 31, 33);
	rate_fill(&rate, 5000 + 33);
	assert_in_range(rate_room(&rate), 64000, 68000);
	/* What is too much for the smaller one is gone. */
	rate_fill(&rate, 5000 + 1000);
	rate_limit(&rate, RATE, 5000 + 1000);
	assert_int_equal(rate_room(&rate), BURST);
}

static void test_a_limit_that_is_lifted_holds_nothing_up(void **state)
{
	(void)state;
	assert_true(rate_take(&rate, 10 * BURST));
	rate_limit(&rate, 0, 5000);
	assert_int_equal(rate_room(&rate), UINT32_MAX);
	assert_true(rate_wait(&rate) == UINT64_MAX);
	/* And the next one begins like the first. */
	rate_limit(&rate, RATE, 6000);
	assert_int_equal(rate_room(&rate), BURST);
}

#define TEST(name) cmocka_unit_test_setup(name, set_up)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_without_a_limit_everything_passes),
		TEST(test_what_is_in_the_bucket_passes_at_once_and_no_more),
		TEST(test_a_dry_bucket_opens_when_a_quarter_is_there),
		TEST(test_a_debt_is_waited_for),
		TEST(test_a_long_rest_fills_the_bucket_and_no_more),
		TEST(test_the_highest_rate_and_the_longest_rest_overflow_nothing),
		TEST(test_in_the_long_run_the_rate_is_the_rate),
		TEST(test_another_limit_gives_no_new_burst),
		TEST(test_a_limit_that_is_lifted_holds_nothing_up),
		TEST(test_a_successor_goes_on_with_what_is_left),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
