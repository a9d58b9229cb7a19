/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "policy/rules.h"
#include "policy/walls.h"

/* The counts that the documentation promises. */
#define WORKER_CALLS_MAX   14
#define FRONT_CALLS_MAX	   13
#define EXPORTER_CALLS_MAX 12

static size_t count(enum policy_role role)
{
	size_t n_rules, n = 0;
	const struct policy_rule *rules = policy_rules(&n_rules);

	for (size_t i = 0; i < n_rules; i++)
		n += rules[i].role == role && (i == 0 || rules[i].number != rules[i - 1].number);
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
	assert_int_equal(count(POLICY_EXPORTER), EXPORTER_CALLS_MAX);
}

static void test_the_rules_of_a_call_stand_together_and_have_a_reason(void **state)
{
	size_t n_rules;
	const struct policy_rule *rules = policy_rules(&n_rules);

	(void)state;
	for (size_t i = 0; i < n_rules; i++) {
		assert_true(rules[i].role < POLICY_ROLE_MAX);
		assert_true(strlen(rules[i].reason) > 0);
		if (i == 0 || rules[i].number != rules[i - 1].number ||
		    rules[i].role != rules[i - 1].role)
			assert_ptr_equal(find(rules[i].role, rules[i].number), &rules[i]);
	}
}

static void expect_equal(const struct policy_rule *rule, size_t i, unsigned int argument,
			 uint64_t value)
{
	assert_int_equal(rule->comparisons[i].kind, POLICY_EQUAL);
	assert_int_equal(rule->comparisons[i].argument, argument);
	assert_int_equal(rule->comparisons[i].value, value);
}

static void test_a_worker_sends_to_the_front_and_to_others_an_empty_message(void **state)
{
	size_t n_rules, n_found = 0;
	const struct policy_rule *rules = policy_rules(&n_rules);

	(void)state;
	for (size_t i = 0; i < n_rules; i++) {
		if (rules[i].role != POLICY_WORKER || rules[i].number != SYS_sendmsg)
			continue;
		if (n_found++ == 0) {
			expect_equal(&rules[i], 0, 0, POLICY_WORKER_CHANNEL_FD);
			continue;
		}
		expect_equal(&rules[i], 0, 1, (uintptr_t)policy_empty_message);
		expect_equal(&rules[i], 1, 2, MSG_NOSIGNAL);
	}
	assert_int_equal(n_found, 2);
	assert_memory_equal(policy_empty_message, &(struct msghdr){0}, sizeof(struct msghdr));
}

static void test_a_worker_asks_for_the_length_of_a_message_and_takes_nothing(void **state)
{
	const struct policy_rule *rule = find(POLICY_WORKER, SYS_recvfrom);

	(void)state;
	assert_non_null(rule);
	expect_equal(rule, 0, 1, 0);
	expect_equal(rule, 1, 2, 0);
	expect_equal(rule, 2, 3, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
	expect_equal(rule, 3, 4, 0);
	expect_equal(rule, 4, 5, 0);
	/* The calls that could take an fd in are the channel's. */
	rule = find(POLICY_WORKER, SYS_recvmsg);
	assert_non_null(rule);
	expect_equal(rule, 0, 0, POLICY_WORKER_CHANNEL_FD);
	assert_null(find(POLICY_WORKER, SYS_recvmmsg));
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

static void test_the_front_asks_for_the_state_of_an_fd_and_never_of_a_path(void **state)
{
	const struct policy_rule *rule = find(POLICY_FRONT, SYS_statx);

	(void)state;
	assert_non_null(rule);
	/* No AT_FDCWD, which is negative. */
	assert_int_equal(rule->comparisons[0].kind, POLICY_AT_MOST);
	assert_int_equal(rule->comparisons[0].argument, 0);
	assert_int_equal(rule->comparisons[0].value, INT_MAX);
	assert_int_equal(rule->comparisons[1].kind, POLICY_EQUAL);
	assert_int_equal(rule->comparisons[1].argument, 1);
	assert_int_equal(rule->comparisons[1].value, (uintptr_t)policy_empty_path);
	assert_string_equal(policy_empty_path, "");
	assert_int_equal(rule->comparisons[2].kind, POLICY_EQUAL);
	assert_int_equal(rule->comparisons[2].argument, 2);
	assert_int_equal(rule->comparisons[2].value, AT_EMPTY_PATH | AT_STATX_DONT_SYNC);
	assert_null(find(POLICY_FRONT, SYS_fstat));
	assert_null(find(POLICY_FRONT, SYS_newfstatat));
	assert_null(find(POLICY_WORKER, SYS_statx));
}

static void expect_read_only(const void *object)
{
	uintptr_t address = (uintptr_t)object, begin, end;
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512], permissions[5];
	bool is_found = false;

	assert_non_null(maps);
	while (!is_found && fgets(line, sizeof(line), maps)) {
		assert_int_equal(
			sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, permissions),
			3);
		is_found = begin <= address && address < end;
	}
	(void)fclose(maps);
	assert_true(is_found);
	assert_int_equal(permissions[1], '-');
}

static void test_the_front_writes_its_log_and_no_other_file(void **state)
{
	const struct policy_rule *rule = find(POLICY_FRONT, SYS_writev);

	(void)state;
	assert_non_null(rule);
	assert_int_equal(rule->comparisons[0].kind, POLICY_EQUAL);
	assert_int_equal(rule->comparisons[0].argument, 0);
	assert_int_equal(rule->comparisons[0].value, STDERR_FILENO);
}

/* Else somebody could put a path or an fd there after all. */
static void test_the_empty_path_and_message_lie_in_memory_that_cannot_be_written(void **state)
{
	(void)state;
	expect_read_only(policy_empty_path);
	expect_read_only(policy_empty_message);
}

static void test_each_comparison_says_what_it_compares_with(void **state)
{
	size_t n_rules;
	const struct policy_rule *rules = policy_rules(&n_rules);

	(void)state;
	for (size_t i = 0; i < n_rules; i++)
		for (size_t j = 0; j < POLICY_COMPARISONS_MAX; j++)
			assert_int_equal(rules[i].comparisons[j].kind == POLICY_ANY,
					 !rules[i].comparisons[j].text ||
						 !rules[i].comparisons[j].text[0]);
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
		assert_null(find(POLICY_EXPORTER, never[i]));
	}
	assert_null(find(POLICY_FRONT, SYS_mmap));
	assert_null(find(POLICY_FRONT, SYS_readv));
	assert_null(find(POLICY_EXPORTER, SYS_mmap));
	assert_null(find(POLICY_EXPORTER, SYS_brk));
}

/* Memory fds must not leave a worker, and no fd of a host program must come in. */
static void test_a_worker_passes_fds_through_its_channel_alone(void **state)
{
	static const long calls[] = {SYS_sendmsg, SYS_recvmsg};

	(void)state;
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		const struct policy_rule *rule = find(POLICY_WORKER, calls[i]);

		assert_non_null(rule);
		assert_int_equal(rule->comparisons[0].kind, POLICY_EQUAL);
		assert_int_equal(rule->comparisons[0].argument, 0);
		assert_int_equal(rule->comparisons[0].value, POLICY_WORKER_CHANNEL_FD);
	}
}

static bool is_pinned(long number, unsigned int argument, uint64_t value)
{
	const struct policy_rule *rule = find(POLICY_EXPORTER, number);

	for (size_t i = 0; rule && i < POLICY_COMPARISONS_MAX; i++)
		if (rule->comparisons[i].kind == POLICY_EQUAL &&
		    rule->comparisons[i].argument == argument &&
		    rule->comparisons[i].value == value)
			return true;
	return false;
}

static void test_an_exporter_has_clients_of_its_listener_and_no_other_peer(void **state)
{
	(void)state;
	assert_true(is_pinned(SYS_accept4, 0, POLICY_EXPORTER_LISTENER_FD));
	assert_true(is_pinned(SYS_recvmsg, 0, POLICY_WORKER_CHANNEL_FD));
	/* No address: none but who is connected. */
	assert_true(is_pinned(SYS_sendto, 4, 0));
	assert_true(is_pinned(SYS_recvfrom, 4, 0));
	assert_null(find(POLICY_EXPORTER, SYS_readv));
	assert_null(find(POLICY_EXPORTER, SYS_read));
}

/* Behind an empty root there is nothing left to see it by, so it is tried alone. */
static void test_landlock_alone_keeps_files_away(void **state)
{
	pid_t pid;
	int status;

	(void)state;
	/* LANDLOCK_CREATE_RULESET_VERSION */
	if (syscall(SYS_landlock_create_ruleset, NULL, 0, 1u) < 1) {
		print_message("skipped: this kernel has no Landlock\n");
		skip();
	}
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (open("/proc/self/status", O_RDONLY | O_CLOEXEC) < 0 ||
		    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || policy_restrict_paths())
			_exit(1);
		_exit(open("/proc/self/status", O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES ? 0
											     : 2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_worker_passes_fds_through_its_channel_alone),
		cmocka_unit_test(test_an_exporter_has_clients_of_its_listener_and_no_other_peer),
		cmocka_unit_test(test_landlock_alone_keeps_files_away),
		cmocka_unit_test(test_no_process_has_more_calls_than_documented),
		cmocka_unit_test(test_the_rules_of_a_call_stand_together_and_have_a_reason),
		cmocka_unit_test(test_a_worker_sends_to_the_front_and_to_others_an_empty_message),
		cmocka_unit_test(test_a_worker_asks_for_the_length_of_a_message_and_takes_nothing),
		cmocka_unit_test(test_a_worker_maps_shared_memory_and_nothing_else),
		cmocka_unit_test(test_the_front_asks_for_the_state_of_an_fd_and_never_of_a_path),
		cmocka_unit_test(
			test_the_empty_path_and_message_lie_in_memory_that_cannot_be_written),
		cmocka_unit_test(test_the_front_writes_its_log_and_no_other_file),
		cmocka_unit_test(test_each_comparison_says_what_it_compares_with),
		cmocka_unit_test(test_no_process_opens_makes_or_becomes_anything),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
