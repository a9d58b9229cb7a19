/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sandbox/sandbox.h"

#include <errno.h>
#include <grp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

void sandbox_skip(const char *reason)
{
	const char *must_work = getenv("MUST_WORK");

	if (must_work && !strcmp(must_work, "1"))
		fail_msg("%s", reason);
	print_message("skipped: %s\n", reason);
	skip();
}

static int wait_for(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		assert_int_equal(errno, EINTR);
	return status;
}

bool sandbox_has_namespaces(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid)
		_exit(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) ? 1 : 0);
	return wait_for(pid) == 0;
}

int sandbox_run_as_both(int (*run)(void))
{
	int failures, status;
	pid_t pid;

	(void)alarm(20 * SANDBOX_SECONDS);
	failures = run();
	if (geteuid())
		return failures;

	(void)fflush(NULL);
	pid = fork();
	if (pid < 0)
		return 1;
	if (!pid) {
		(void)alarm(20 * SANDBOX_SECONDS);
		if (setgroups(0, NULL) ||
		    setresgid(SANDBOX_ORDINARY_USER, SANDBOX_ORDINARY_USER,
			      SANDBOX_ORDINARY_USER) ||
		    setresuid(SANDBOX_ORDINARY_USER, SANDBOX_ORDINARY_USER, SANDBOX_ORDINARY_USER))
			_exit(1);
		status = run();
		(void)fflush(NULL);
		_exit(status ? 1 : 0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		failures++;
	return failures;
}

/*
 * -1 is no fd, no address and no length that any call could do something with,
 * should a filter let through what it must not.
 */
void sandbox_allowed_arguments(const struct policy_rule *rule, long ret_arguments[6])
{
	for (size_t i = 0; i < 6; i++)
		ret_arguments[i] = -1;
	for (size_t i = 0; i < POLICY_COMPARISONS_MAX; i++) {
		const struct policy_comparison *comparison = &rule->comparisons[i];

		if (comparison->kind == POLICY_ANY)
			return;
		ret_arguments[comparison->argument] = (long)comparison->value;
	}
}

static void call_32_bit(long number, const long arguments[6])
{
#ifdef __x86_64__
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(arguments[0]), "c"(arguments[1]), "d"(arguments[2]),
			   "S"(arguments[3]), "D"(arguments[4])
			 : "memory", "r8", "r9", "r10", "r11");
	(void)result;
#else
	(void)number;
	(void)arguments;
#endif
}

int sandbox_call(enum policy_role role, long number, const long arguments[6], bool is_32_bit)
{
	const struct rlimit none = {0, 0};
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid)
		return wait_for(pid);

	(void)setrlimit(RLIMIT_CORE, &none);
	(void)alarm(SANDBOX_SECONDS); /* calls that would wait for ever; survives the filter */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || policy_load_filter(role)) {
		(void)kill(getpid(), SIGKILL);
		_exit(99);
	}
	if (is_32_bit)
		call_32_bit(number, arguments);
	else
		(void)syscall(number, arguments[0], arguments[1], arguments[2], arguments[3],
			      arguments[4], arguments[5]);
	(void)syscall(SYS_exit_group, 0L);
	__builtin_trap();
}

bool sandbox_was_refused(int wait_status)
{
	return WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGSYS;
}
