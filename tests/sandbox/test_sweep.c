/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "tests/sandbox/sandbox.h"

#define SWEEP_END 600 /* well past the last number of any kernel */
#define X32_BIT	  0x40000000L

static const struct policy_rule *find_rule(enum policy_role role, long number)
{
	size_t n_rules;
	const struct policy_rule *rules = policy_rules(&n_rules);

	for (size_t i = 0; i < n_rules; i++) {
		if (rules[i].role == role && rules[i].number == number)
			return &rules[i];
	}
	return NULL;
}

/*
 * Recent kernels let uretprobe and uprobe past every filter, so that traced
 * programs keep working; outside a probe they only raise a signal.
 */
static bool passes_every_filter(long number)
{
#ifdef __x86_64__
	return number == 335 || number == 336;
#else
	(void)number;
	return false;
#endif
}

static bool is_as_the_table_says(enum policy_role role, long number)
{
	static const struct policy_rule none = {.number = -1};
	const struct policy_rule *rule = find_rule(role, number);
	long arguments[6];
	int status;

	if (passes_every_filter(number))
		return true;
	sandbox_allowed_arguments(rule ? rule : &none, arguments);
	status = sandbox_call(role, number, arguments, false);
	if (sandbox_was_refused(status) == !rule && (!rule || WIFEXITED(status)))
		return true;
	print_error("call %ld: wait status 0x%x, %s the table\n", number, (unsigned int)status,
		    rule ? "in" : "not in");
	return false;
}

static void sweep(enum policy_role role)
{
	int n_wrong = 0;

	if (!policy_has_filter)
		sandbox_skip("a build with a sanitizer has no filter");
	for (long number = 0; number < SWEEP_END; number++)
		n_wrong += !is_as_the_table_says(role, number);
	assert_int_equal(n_wrong, 0);
}

static void test_the_worker_survives_the_calls_of_its_table_and_no_other(void **state)
{
	(void)state;
	sweep(POLICY_WORKER);
}

static void test_the_front_survives_the_calls_of_its_table_and_no_other(void **state)
{
	(void)state;
	sweep(POLICY_FRONT);
}

static void test_the_exporter_survives_the_calls_of_its_table_and_no_other(void **state)
{
	(void)state;
	sweep(POLICY_EXPORTER);
}

#ifdef __x86_64__
static void refuse_foreign_calls(enum policy_role role)
{
	static const long arguments[6] = {-1, -1, -1, -1, -1, -1};
	int n_wrong = 0;

	if (!policy_has_filter)
		sandbox_skip("a build with a sanitizer has no filter");
	for (long number = 0; number < SWEEP_END; number++) {
		n_wrong += !sandbox_was_refused(
			sandbox_call(role, number | X32_BIT, arguments, false));
	}
	assert_int_equal(n_wrong, 0);

	for (long number = 0; number < SWEEP_END; number++) {
		int status = sandbox_call(role, number, arguments, true);

		/* SIGSEGV: a kernel without 32-bit calls has no such gate. */
		n_wrong += !(sandbox_was_refused(status) ||
			     (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV));
	}
	assert_int_equal(n_wrong, 0);
}

static void test_no_x32_and_no_32_bit_call_survives_in_the_worker(void **state)
{
	(void)state;
	refuse_foreign_calls(POLICY_WORKER);
}

static void test_no_x32_and_no_32_bit_call_survives_in_the_front(void **state)
{
	(void)state;
	refuse_foreign_calls(POLICY_FRONT);
}

static void test_no_x32_and_no_32_bit_call_survives_in_the_exporter(void **state)
{
	(void)state;
	refuse_foreign_calls(POLICY_EXPORTER);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_worker_survives_the_calls_of_its_table_and_no_other),
		cmocka_unit_test(test_the_front_survives_the_calls_of_its_table_and_no_other),
		cmocka_unit_test(test_the_exporter_survives_the_calls_of_its_table_and_no_other),
#ifdef __x86_64__
		cmocka_unit_test(test_no_x32_and_no_32_bit_call_survives_in_the_worker),
		cmocka_unit_test(test_no_x32_and_no_32_bit_call_survives_in_the_front),
		cmocka_unit_test(test_no_x32_and_no_32_bit_call_survives_in_the_exporter),
#endif
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
