/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cmocka.h>

#include "policy/rules.h"

/* The counts that the documentation promises. */
#define WORKER_CALLS_MAX 13
#define FRONT_CALLS_MAX	 12

static size_t count(enum policy_role role)
{
	size_t n_rules, n = 0;
	const struct policy_rule *rules = policy_rules(&n_rules);

	for (size_t i = 0; i < n_rules; i++)
		n += rules[i].role == role;
	return n;
}

static const struct policy_rule *find(enum policy_role role, long number)
{
	size_t n_rules;
	const struct policy_rule *rules = policy_rules(&n_rules);

	for (size_t i = 0; i < n_rules; i++) {
		if (rules[i].role == role && rules[i].number == number)
			return &rules[i];
	}
	return NULL;
}

static void test_no_process_has_more_calls_than_documented(void **state)
{
	(void)state;
	assert_int_equal(count(POLICY_WORKER), WORKER_CALLS_MAX);
	assert_int_equal(count(POLICY_FRONT), FRONT_CALLS_MAX);
}

static void test_each_call_stands_once_and_has_a_reason(void **state)
{
	size_t n_rules;
	const struct policy_rule *rules = policy_rules(&n_rules);

	(void)state;
	for (size_t i = 0; i < n_rules; i++) {
		assert_true(rules[i].role < POLICY_ROLE_MAX);
		assert_true(strlen(rules[i].reason) > 0);
		assert_ptr_equal(find(rules[i].role, rules[i].number), &rules[i]);
	}
}

static void test_a_worker_maps_shared_memory_and_nothing_else(void **state)
{
	const struct policy_rule *rule = find(POLICY_WORKER, SYS_mmap);

	(void)state;
	assert_non_null(rule);
	assert_int_equal(rule->comparisons[0].kind, POLICY_EQUAL);
	assert_int_equal(rule->comparisons[0].argument, 2);
	assert_int_equal(rule->comparisons[0].value, PROT_READ | PROT_WRITE);
	assert_int_equal(rule->comparisons[1].kind, POLICY_EQUAL);
	assert_int_equal(rule->comparisons[1].argument, 3);
	assert_int_equal(rule->comparisons[1].value, MAP_SHARED | MAP_NORESERVE);
}

static void test_no_process_opens_makes_or_becomes_anything(void **state)
{
	static const long never[] = {SYS_openat,   SYS_socket,	 SYS_connect,	   SYS_bind,
				     SYS_execve,   SYS_execveat, SYS_clone,	   SYS_ptrace,
				     SYS_mprotect, SYS_prctl,	 SYS_memfd_create, SYS_ioctl,
				     SYS_dup,	   SYS_kill,	 SYS_mremap,	   SYS_unshare};

	(void)state;
	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
		assert_null(find(POLICY_WORKER, never[i]));
		assert_null(find(POLICY_FRONT, never[i]));
	}
	assert_null(find(POLICY_FRONT, SYS_mmap));
	assert_null(find(POLICY_FRONT, SYS_readv));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_process_has_more_calls_than_documented),
		cmocka_unit_test(test_each_call_stands_once_and_has_a_reason),
		cmocka_unit_test(test_a_worker_maps_shared_memory_and_nothing_else),
		cmocka_unit_test(test_no_process_opens_makes_or_becomes_anything),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
