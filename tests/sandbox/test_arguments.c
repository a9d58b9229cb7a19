/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "tests/sandbox/sandbox.h"

static int check_refused(const struct policy_rule *rule, const struct policy_comparison *comparison,
			 const long allowed[6], uint64_t value)
{
	long arguments[6];
	int status;

	for (size_t i = 0; i < 6; i++)
		arguments[i] = allowed[i];
	arguments[comparison->argument] = (long)value;
	status = sandbox_call(rule->role, rule->number, arguments, false);
	if (sandbox_was_refused(status))
		return 0;
	print_error("%s: argument %u = 0x%llx passed, wait status 0x%x\n", rule->call,
		    comparison->argument, (unsigned long long)value, (unsigned int)status);
	return 1;
}

/* Every neighbour, every single bit, and the whole complement of the allowed value. */
static int perturb(const struct policy_rule *rule, const struct policy_comparison *comparison,
		   const long allowed[6])
{
	uint64_t value = comparison->value;
	int n_wrong = 0;

	n_wrong += check_refused(rule, comparison, allowed, value + 1);
	n_wrong += check_refused(rule, comparison, allowed, ~value);
	for (unsigned int bit = 0; bit < 64; bit++) {
		uint64_t other = value ^ (UINT64_C(1) << bit);

		if (comparison->kind == POLICY_EQUAL || other > value)
			n_wrong += check_refused(rule, comparison, allowed, other);
	}
	return n_wrong;
}

static void check_role(enum policy_role role)
{
	size_t n_rules;
	const struct policy_rule *rules = policy_rules(&n_rules);
	int n_wrong = 0;

	if (!policy_has_filter)
		sandbox_skip("a build with a sanitizer has no filter");
	for (size_t i = 0; i < n_rules; i++) {
		const struct policy_rule *rule = &rules[i];
		long allowed[6];

		if (rule->role != role)
			continue;
		sandbox_allowed_arguments(rule, allowed);
		n_wrong += !WIFEXITED(sandbox_call(role, rule->number, allowed, false));
		for (size_t j = 0; j < POLICY_COMPARISONS_MAX; j++) {
			if (rule->comparisons[j].kind == POLICY_ANY)
				break;
			n_wrong += perturb(rule, &rule->comparisons[j], allowed);
		}
	}
	assert_int_equal(n_wrong, 0);
}

static void test_the_worker_dies_of_any_argument_but_the_allowed(void **state)
{
	(void)state;
	check_role(POLICY_WORKER);
}

static void test_the_front_dies_of_any_argument_but_the_allowed(void **state)
{
	(void)state;
	check_role(POLICY_FRONT);
}

static void test_the_exporter_dies_of_any_argument_but_the_allowed(void **state)
{
	(void)state;
	check_role(POLICY_EXPORTER);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_worker_dies_of_any_argument_but_the_allowed),
		cmocka_unit_test(test_the_front_dies_of_any_argument_but_the_allowed),
		cmocka_unit_test(test_the_exporter_dies_of_any_argument_but_the_allowed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
