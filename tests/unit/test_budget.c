/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/budget.h"
#include "worker/buffer.h"

#define KIB 1024u
#define MIB (1024u * KIB)

/* Takes what is offered. */
static uint32_t take(struct budget *budget, uint32_t len)
{
	uint32_t offered = budget_offer(budget, len);

	budget->reserved += budget_cost(offered);
	return offered;
}

static void test_without_a_limit_a_buffer_is_as_long_as_it_may_be(void **state)
{
	struct budget budget = {.reserved = UINT64_C(1) << 60};

	(void)state;
	assert_int_equal(budget_offer(&budget, 256 * KIB), 256 * KIB);
	assert_int_equal(budget_offer(&budget, 1), 1);
}

static void test_a_buffer_costs_the_chunks_that_it_can_lie_in(void **state)
{
	(void)state;
	assert_int_equal(budget_cost(0), 0);
	assert_int_equal(budget_cost(1), 2 * BUFFER_CHUNK_LEN);
	assert_int_equal(budget_cost(BUFFER_CHUNK_LEN), 2 * BUFFER_CHUNK_LEN);
	assert_int_equal(budget_cost(BUFFER_CHUNK_LEN + 1), 3 * BUFFER_CHUNK_LEN);
}

static void test_while_much_is_left_each_gets_all(void **state)
{
	struct budget budget = {.limit = 64 * MIB};

	(void)state;
	for (int i = 0; i < 100; i++)
		assert_int_equal(take(&budget, 256 * KIB), 256 * KIB);
}

static void test_the_less_is_left_the_smaller_they_get_and_never_too_small(void **state)
{
	struct budget budget = {.limit = 8 * MIB};
	uint32_t before = 256 * KIB, n = 0, offered;

	(void)state;
	while ((offered = take(&budget, 256 * KIB)) > 0) {
		assert_in_range(offered, BUDGET_BUFFER_MIN, before);
		before = offered;
		n++;
		assert_true(budget.reserved <= budget.limit);
	}
	assert_int_equal(before, BUDGET_BUFFER_MIN);
	/* All of it is used, by more than those who would have got 256 KiB each. */
	assert_true(budget.limit - budget.reserved < budget_cost(BUDGET_BUFFER_MIN));
	assert_true(n > 2 * (8 * MIB / budget_cost(256 * KIB)));
}

static void test_small_buffers_stay_as_they_are(void **state)
{
	struct budget budget = {.limit = 1 * MIB};

	(void)state;
	for (int i = 0; i < 32; i++)
		assert_int_equal(take(&budget, 4 * KIB), 4 * KIB);
	assert_int_equal(take(&budget, 4 * KIB), 0);
	budget.reserved -= budget_cost(4 * KIB);
	assert_int_equal(take(&budget, 4 * KIB), 4 * KIB);
}

static void test_a_limit_below_what_is_reserved_lets_nobody_in(void **state)
{
	struct budget budget = {.limit = 1 * MIB, .reserved = 2 * MIB};

	(void)state;
	assert_int_equal(budget_offer(&budget, 4 * KIB), 0);
	budget.limit = 0;
	assert_int_equal(budget_offer(&budget, 4 * KIB), 4 * KIB);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_without_a_limit_a_buffer_is_as_long_as_it_may_be),
		cmocka_unit_test(test_a_buffer_costs_the_chunks_that_it_can_lie_in),
		cmocka_unit_test(test_while_much_is_left_each_gets_all),
		cmocka_unit_test(test_the_less_is_left_the_smaller_they_get_and_never_too_small),
		cmocka_unit_test(test_small_buffers_stay_as_they_are),
		cmocka_unit_test(test_a_limit_below_what_is_reserved_lets_nobody_in),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
