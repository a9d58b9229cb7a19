/* SPDX-License-Identifier: Apache-2.0 */

/* VMs that an operator adds and removes: "vsockctl reload", "add" and "remove". */

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/tool.h"
#include "tests/integration/transfer.h"

#define LIMIT SETUP_LIMIT

/* sysexits.h */
enum { USAGE = 64, DATAERR = 65, UNAVAILABLE = 69, TEMPFAIL = 75 };

static struct tool tool;

static int start_with_file(void **state)
{
	struct setup *setup = calloc(1, sizeof(*setup));

	*state = setup;
	if (!setup)
		return -1;
	setup_choose_file(setup);
	setup_start(setup, 2, NULL, TOOL_ARGUMENTS);
	return 0;
}

static int start_without_file(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 1, NULL, TOOL_ARGUMENTS);
	return 0;
}

static void expect_text(const char *text)
{
	if (!strstr(tool.text, text))
		fail_msg("\"%s\" is not in: %s%s", text, tool.text, tool.complaint);
}

static void expect_complaint(const char *text)
{
	if (!strstr(tool.complaint, text))
		fail_msg("\"%s\" is not in: %s%s", text, tool.text, tool.complaint);
}

static const char *read_file(struct setup *setup)
{
	static char text[8192];
	FILE *file = fopen(daemon_path(&setup->daemon, "vsockd.yaml"), "r");
	size_t n;

	assert_non_null(file);
	n = fread(text, 1, sizeof(text) - 1, file);
	text[n] = '\0';
	fclose(file);
	return text;
}

static void append_to_file(struct setup *setup, const char *text)
{
	FILE *file = fopen(daemon_path(&setup->daemon, "vsockd.yaml"), "a");

	assert_non_null(file);
	fputs(text, file);
	assert_int_equal(fclose(file), 0);
}

static int run(struct setup *setup, const char *first, const char *second)
{
	return tool_run(&tool, setup, (const char *const[]){first, second, NULL});
}

/* VM number 2 of the setup, as setup_start() names its paths. */
static int add_third(struct setup *setup, const char *more)
{
	char socket[160], uds_path[160];

	snprintf(setup->sockets[2], sizeof(setup->sockets[2]), "%s/vm2", setup->daemon.directory);
	snprintf(setup->uds_paths[2], sizeof(setup->uds_paths[2]), "%s/host2",
		 setup->daemon.directory);
	snprintf(socket, sizeof(socket), "socket=%s", setup->sockets[2]);
	snprintf(uds_path, sizeof(uds_path), "uds-path=%s", setup->uds_paths[2]);
	return tool_run(&tool, setup,
			(const char *const[]){"add", "5", socket, uds_path, more, NULL});
}

static void test_a_vm_that_is_added_is_served_and_stands_in_the_file(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	struct stat before, after;
	const char *path = daemon_path(&setup->daemon, "vsockd.yaml");

	append_to_file(setup, "# kept\n");
	assert_int_equal(chmod(path, 0640), 0);
	assert_int_equal(stat(path, &before), 0);
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_start(&transfer, setup, 0, 2000, 1 << 20);
	transfer_run_to(&transfer, 1 << 19);
	assert_int_equal(add_third(setup, "max-connections=8"), 0);
	expect_text("VM 5: reload: added\n");
	expect_text("reload: 1 added, 0 removed, 0 changed\n");
	assert_non_null(strstr(read_file(setup), "# kept\n"));
	assert_non_null(strstr(read_file(setup), "max-connections: '8'}"));
	assert_int_equal(stat(path, &after), 0);
	assert_int_equal(after.st_mode, before.st_mode);
	setup->n_vms = 3;
	setup_guest(setup, 2, (struct guest_options){0});
	transfer_all(setup, 2, 2000, 1 << 16);
	setup_end_guest(setup, 2);
	/* Nobody else has noticed. */
	transfer_finish(&transfer);

	assert_int_equal(run(setup, "remove", "5"), 0);
	expect_text("VM 5: reload: removed\n");
	assert_null(strstr(read_file(setup), "guest-cid: 5"));
	assert_int_equal(access(setup->sockets[2], F_OK), -1);
	setup->n_vms = 2;
}

static void test_what_vsockd_refuses_is_not_kept_and_said_as_in_its_log(void **state)
{
	struct setup *setup = *state;
	char before[8192];

	snprintf(before, sizeof(before), "%s", read_file(setup));
	assert_int_equal(add_third(setup, "max-conections=8"), DATAERR);
	expect_complaint("unknown key \"max-conections\"");
	expect_complaint("; nothing has changed\n");
	assert_true(daemon_log_has(&setup->daemon, "unknown key \"max-conections\""));
	assert_string_equal(read_file(setup), before);
	/* A socket that somebody else has, which only the attempt to make it tells. */
	assert_int_equal(tool_run(&tool, setup,
				  (const char *const[]){"add", "5", "socket=/dev/null",
							"uds-path=/dev/null/x", NULL}),
			 DATAERR);
	expect_complaint("nothing has changed\n");
	assert_string_equal(read_file(setup), before);
	assert_int_equal(run(setup, "reload", NULL), 0);
	expect_text("reload: 0 added, 0 removed, 0 changed\n");
}

static void test_what_is_wrong_with_the_command_is_said(void **state)
{
	struct setup *setup = *state;

	assert_int_equal(run(setup, "remove", "9"), DATAERR);
	expect_complaint("there is no VM with CID 9");
	assert_int_equal(
		tool_run(&tool, setup, (const char *const[]){"add", "3", "socket=x", NULL}),
		DATAERR);
	expect_complaint("there is a VM with CID 3 already");
	assert_int_equal(tool_run(&tool, setup, (const char *const[]){"add", "5", "socket", NULL}),
			 USAGE);
	expect_complaint("\"socket\": not KEY=VALUE");
	assert_int_equal(
		tool_run(&tool, setup, (const char *const[]){"add", "5", "wait=1", "wait=2", NULL}),
		USAGE);
	expect_complaint("\"wait\" is given more than once");
	assert_int_equal(run(setup, "remove", "3"), 0);
	assert_int_equal(run(setup, "remove", "4"), DATAERR);
	expect_complaint("CID 4 is the only VM");
	setup_write_file(setup, 3, NULL);
	assert_int_equal(run(setup, "reload", NULL), 0);
}

static void test_rules_become_lists_and_quotes_stay(void **state)
{
	struct setup *setup = *state;
	char socket[160];

	snprintf(socket, sizeof(socket), "socket=%s/it's", setup->daemon.directory);
	assert_int_equal(tool_run(&tool, setup,
				  (const char *const[]){"add", "5", socket, "connect=1:unix:/a",
							"groups=a+b", "connect=2:deny", NULL}),
			 0);
	assert_non_null(
		strstr(read_file(setup), "connect: ['1:unix:/a', '2:deny'], groups: 'a+b'}"));
	assert_int_equal(access(socket + strlen("socket="), F_OK), 0);
	assert_int_equal(run(setup, "remove", "5"), 0);
}

static void test_reload_says_what_the_signal_would(void **state)
{
	struct setup *setup = *state;

	setup_write_file(setup, 1u << 1, "max-connections: 7");
	assert_int_equal(run(setup, "reload", NULL), 0);
	expect_text("VM 3: reload: removed\n");
	expect_text("VM 4: reload: changed max-connections");
	expect_text("reload: 0 added, 1 removed, 1 changed\n");
	append_to_file(setup, "nonsense\n");
	assert_int_equal(run(setup, "reload", NULL), DATAERR);
	expect_complaint("; nothing has changed\n");
	setup_write_file(setup, 3, NULL);
	assert_int_equal(run(setup, "reload", NULL), 0);
	expect_text("VM 3: reload: added\n");
}

static void test_who_asked_is_told_of_that_reload_and_not_of_the_signal_behind_it(void **state)
{
	struct setup *setup = *state;
	struct daemon *daemon = &setup->daemon;
	static struct tool asking;
	pid_t pids[DAEMON_PIDS_MAX];

	assert_true(daemon_pids(daemon, pids) >= 2);
	append_to_file(setup, "nonsense\n");
	assert_int_equal(kill(daemon->pid, SIGSTOP), 0);
	tool_start(&asking, daemon_path(daemon, TOOL_CONTROL),
		   (const char *const[]){"reload", NULL});
	assert_int_equal(daemon_wait_log(daemon, ": reload\n", LIMIT), 0);
	/* Answered behind the one that came first: the spawner has been asked. */
	assert_int_equal(run(setup, "status", NULL), 0);
	assert_int_equal(kill(pids[1], SIGSTOP), 0);
	assert_int_equal(kill(daemon->pid, SIGCONT), 0);
	assert_int_equal(daemon_wait_log(daemon, "nothing has changed", LIMIT), 0);
	setup_write_file(setup, 3, "max-connections: 7");
	assert_int_equal(kill(daemon->pid, SIGHUP), 0);
	assert_int_equal(daemon_wait_log(daemon, "0 added, 0 removed, 2 changed", LIMIT), 0);
	assert_int_equal(kill(pids[1], SIGCONT), 0);
	assert_int_equal(tool_end(&asking), DATAERR);
	if (!strstr(asking.complaint, "; nothing has changed\n"))
		fail_msg("told instead: %s%s", asking.text, asking.complaint);
}

/* As many as one message takes, and nobody reads it. The pair is the caller's. */
static void put_fds_on_their_way(int ret_pair[2])
{
	int fds[253];
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(fds))];
	} control = {.header = {.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS,
				.cmsg_len = CMSG_LEN(sizeof(fds))}};
	struct iovec part = {.iov_base = (char[]){0}, .iov_len = 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control.room)};

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ret_pair), 0);
	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		fds[i] = STDERR_FILENO;
	memcpy(CMSG_DATA(&control.header), fds, sizeof(fds));
	assert_int_equal(sendmsg(ret_pair[0], &message, 0), 1);
}

/* Linux counts those of a user together, against the limit of whoever sends. */
static void test_a_vm_whose_sockets_find_no_way_is_not_added(void **state)
{
	struct setup *setup = *state;
	static char before[8192];
	struct rlimit limit, fewer;
	int pair[2];

	if (prlimit(setup->daemon.pid, RLIMIT_NOFILE, NULL, &limit) < 0) {
		print_message("skipped: limits of other processes: %s\n", strerror(errno));
		skip();
	}
	fewer = (struct rlimit){.rlim_cur = 200, .rlim_max = limit.rlim_max};
	assert_int_equal(prlimit(setup->daemon.pid, RLIMIT_NOFILE, &fewer, NULL), 0);
	strcpy(before, read_file(setup));
	put_fds_on_their_way(pair);
	assert_int_equal(add_third(setup, NULL), TEMPFAIL);
	expect_complaint("too many open files of this user are on their way");
	assert_string_equal(read_file(setup), before);
	assert_int_equal(access(setup->sockets[2], F_OK), -1);
	assert_int_equal(run(setup, "show", "5"), DATAERR);
	close(pair[0]);
	close(pair[1]);
	assert_int_equal(add_third(setup, NULL), 0);
	setup->n_vms = 3;
	setup_guest(setup, 2, (struct guest_options){0});
	transfer_all(setup, 2, 2000, 1 << 16);
	setup_end_guest(setup, 2);
	assert_int_equal(prlimit(setup->daemon.pid, RLIMIT_NOFILE, &limit, NULL), 0);
	assert_int_equal(run(setup, "remove", "5"), 0);
	setup->n_vms = 2;
}

static void test_without_a_file_there_is_nothing_to_read(void **state)
{
	struct setup *setup = *state;

	assert_int_equal(run(setup, "reload", NULL), UNAVAILABLE);
	expect_complaint("vsockd was started without --config");
	assert_int_equal(run(setup, "remove", "3"), UNAVAILABLE);
	expect_complaint("vsockd was started without --config");
}

#define WITH_FILE(test)	   cmocka_unit_test_setup_teardown(test, start_with_file, setup_end)
#define WITHOUT_FILE(test) cmocka_unit_test_setup_teardown(test, start_without_file, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_FILE(test_a_vm_that_is_added_is_served_and_stands_in_the_file),
		WITH_FILE(test_what_vsockd_refuses_is_not_kept_and_said_as_in_its_log),
		WITH_FILE(test_what_is_wrong_with_the_command_is_said),
		WITH_FILE(test_rules_become_lists_and_quotes_stay),
		WITH_FILE(test_reload_says_what_the_signal_would),
		WITH_FILE(test_who_asked_is_told_of_that_reload_and_not_of_the_signal_behind_it),
		WITH_FILE(test_a_vm_whose_sockets_find_no_way_is_not_added),
		WITHOUT_FILE(test_without_a_file_there_is_nothing_to_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
