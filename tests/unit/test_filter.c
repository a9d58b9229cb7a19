/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/filter.h"

static struct filter filter;

static int set_up(void **state)
{
	(void)state;
	filter = (struct filter){0};
	return 0;
}

static void test_without_a_list_every_port_passes(void **state)
{
	(void)state;
	assert_true(filter_passes(&filter, 0));
	assert_true(filter_passes(&filter, UINT32_MAX));
}

static void test_what_is_denied_is_denied_and_what_is_allowed_is_all(void **state)
{
	(void)state;
	assert_true(filter_begin(&filter, 3));
	assert_true(filter_add(&filter, &(struct filter_range){20, 30, true}));
	assert_true(filter_add(&filter, &(struct filter_range){25, 40, false}));
	assert_true(filter_add(&filter, &(struct filter_range){UINT32_MAX, UINT32_MAX, false}));
	assert_false(filter_passes(&filter, 19));
	assert_false(filter_passes(&filter, 25));
	assert_true(filter_passes(&filter, 31));
	assert_true(filter_passes(&filter, 40));
	assert_false(filter_passes(&filter, 41));
	assert_true(filter_passes(&filter, UINT32_MAX));
}

static void test_a_new_list_holds_when_all_of_it_is_there(void **state)
{
	(void)state;
	assert_true(filter_begin(&filter, 1));
	assert_true(filter_add(&filter, &(struct filter_range){22, 22, true}));
	assert_true(filter_begin(&filter, 2));
	assert_false(filter_passes(&filter, 22));
	assert_true(filter_add(&filter, &(struct filter_range){80, 80, false}));
	assert_false(filter_passes(&filter, 22));
	assert_true(filter_passes(&filter, 23));
	assert_true(filter_add(&filter, &(struct filter_range){81, 81, false}));
	assert_false(filter_passes(&filter, 23));
	assert_true(filter_passes(&filter, 80));
	assert_true(filter_begin(&filter, 0));
	assert_true(filter_passes(&filter, 22));
}

static void test_no_list_is_longer_than_it_was_announced(void **state)
{
	(void)state;
	assert_false(filter_begin(&filter, FILTER_RANGES_MAX + 1));
	assert_false(filter_add(&filter, &(struct filter_range){1, 1, true}));
	assert_true(filter_begin(&filter, FILTER_RANGES_MAX));
	for (uint32_t i = 0; i < FILTER_RANGES_MAX; i++)
		assert_true(filter_add(&filter, &(struct filter_range){i, i, true}));
	assert_false(filter_add(&filter, &(struct filter_range){500, 500, true}));
	assert_true(filter_passes(&filter, 500));
	assert_false(filter_passes(&filter, FILTER_RANGES_MAX - 1));
}

#define TEST(name) cmocka_unit_test_setup(name, set_up)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_without_a_list_every_port_passes),
		TEST(test_what_is_denied_is_denied_and_what_is_allowed_is_all),
		TEST(test_a_new_list_holds_when_all_of_it_is_there),
		TEST(test_no_list_is_longer_than_it_was_announced),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
