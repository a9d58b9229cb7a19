/* SPDX-License-Identifier: Apache-2.0 */
/* vsockd started by root with --user: what is left of root, and what still works. */
#include <errno.h>
#include <inttypes.h>
#include <pwd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "policy/start.h"
#include "tests/frontend/daemon.h"
#include "tests/frontend/guest.h"
#include "tests/sandbox/sandbox.h"

#define USER	     "nobody"
#define LIMIT	     (1000 * SANDBOX_SECONDS)
#define CHOWN_FOWNER (UINT64_C(1) << 0 | UINT64_C(1) << 3) /* CAP_CHOWN, CAP_FOWNER */
#define SETUID_GID   (UINT64_C(1) << 6 | UINT64_C(1) << 7) /* CAP_SETGID, CAP_SETUID */

/* What being an ordinary user forbids is no shortcoming of the host, MUST_WORK or not. */
static void need_root(void)
{
	if (!geteuid())
		return;
	print_message("skipped: only root can become another user\n");
	skip();
}

static void need_namespaces(void)
{
	if (!sandbox_has_namespaces())
		sandbox_skip("this user may not make user namespaces");
}

static const struct passwd *find_user(void)
{
	const struct passwd *user = getpwnam(USER);

	if (!user)
		sandbox_skip("there is no user " USER);
	return user;
}

/* The line of /proc/PID/status that starts with key, without it. */
static void read_status(pid_t pid, const char *key, char ret_value[512])
{
	char path[64];
	bool is_found = false;
	FILE *stream;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", pid);
	stream = fopen(path, "re");
	assert_non_null(stream);
	while (!is_found && fgets(ret_value, 512, stream))
		is_found = !strncmp(ret_value, key, strlen(key));
	(void)fclose(stream);
	assert_true(is_found);
	memmove(ret_value, ret_value + strlen(key), strlen(ret_value + strlen(key)) + 1);
}

/* The first number there: of ids the real one. */
static uint64_t status_of(pid_t pid, const char *key, int base)
{
	char value[512];

	read_status(pid, key, value);
	return strtoull(value, NULL, base);
}

static void expect_capabilities(pid_t pid, uint64_t kept)
{
	assert_int_equal(status_of(pid, "CapPrm:", 16), kept);
	assert_int_equal(status_of(pid, "CapEff:", 16), kept);
	assert_int_equal(status_of(pid, "CapBnd:", 16), kept);
	assert_int_equal(status_of(pid, "CapInh:", 16), 0);
	assert_int_equal(status_of(pid, "CapAmb:", 16), 0);
	assert_int_equal(status_of(pid, "NoNewPrivs:", 10), 1);
}

static void expect_ids(pid_t pid, uint64_t user, uint64_t group)
{
	char groups[512];

	assert_int_equal(status_of(pid, "Uid:", 10), user);
	assert_int_equal(status_of(pid, "Gid:", 10), group);
	read_status(pid, "Groups:", groups);
	assert_int_equal(strcspn(groups, "0123456789"), strlen(groups));
}

static void expect_socket(struct daemon *daemon, const char *name, mode_t mode, uid_t owner,
			  gid_t group)
{
	struct stat found;

	assert_int_equal(lstat(daemon_path(daemon, name), &found), 0);
	assert_int_equal(found.st_mode, S_IFSOCK | mode);
	assert_int_equal(found.st_uid, owner);
	assert_int_equal(found.st_gid, group);
}

static void start_as_user(struct daemon *daemon, const struct passwd *user)
{
	static const char *const arguments[] = {
		"",
		"--user",
		USER,
		"--log-level",
		"debug",
		"--vm",
		"guest-cid=3,socket=@/vm0,uds-path=@/host0",
		"--vm",
		"guest-cid=4,socket=@/vm1,uds-path=@/host1,socket-mode=660,socket-group=0,"
		"uds-owner=1,uds-mode=606",
		NULL,
	};

	assert_int_equal(daemon_prepare(daemon), 0);
	assert_int_equal(chown(daemon->directory, user->pw_uid, user->pw_gid), 0);
	assert_int_equal(daemon_start(daemon, arguments, "host1", LIMIT), 0);
}

static void start_guest(struct daemon *daemon, const char *name, struct guest *ret_guest)
{
	struct guest_options options = {.socket = daemon_path(daemon, name)};

	/* It returns when every message was obeyed, so its worker is there. */
	assert_int_equal(guest_start(ret_guest, &options), 0);
}

/* Two VMs and a spare: once the third runs, all three have their ids. */
static void expect_distinct_workers(struct daemon *daemon)
{
	pid_t pids[DAEMON_PIDS_MAX];
	uint64_t ids[DAEMON_PIDS_MAX];
	size_t n;

	assert_int_equal(daemon_wait_log(daemon, "worker 2 is process", LIMIT), 0);
	n = daemon_find(daemon, "vsockd-worker", pids);
	assert_int_equal(n, 3);
	for (size_t i = 0; i < n; i++) {
		ids[i] = status_of(pids[i], "Uid:", 10);
		assert_true(ids[i] >= POLICY_WORKER_ID);
		for (size_t j = 0; j < i; j++)
			assert_int_not_equal(ids[i], ids[j]);
	}
}

static void expect_front(const struct daemon *daemon)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_find(daemon, "vsockd", pids), n_fronts = 0;

	for (size_t i = 0; i < n; i++) {
		if (status_of(pids[i], "Uid:", 10) != POLICY_FRONT_ID)
			continue;
		n_fronts++;
		expect_ids(pids[i], POLICY_FRONT_ID, POLICY_FRONT_ID);
		expect_capabilities(pids[i], 0);
	}
	assert_int_equal(n_fronts, 1);
}

static void test_with_user_the_spawner_keeps_two_capabilities_and_workers_their_ids(void **state)
{
	struct daemon daemon = {.pidfd = -1};
	struct guest guests[2];
	const struct passwd *user;

	(void)state;
	need_root();
	need_namespaces();
	user = find_user();
	start_as_user(&daemon, user);
	start_guest(&daemon, "vm0", &guests[0]);
	start_guest(&daemon, "vm1", &guests[1]);

	expect_ids(daemon.pid, user->pw_uid, user->pw_gid);
	expect_capabilities(daemon.pid, SETUID_GID);
	expect_front(&daemon);
	expect_distinct_workers(&daemon);
	expect_socket(&daemon, "vm0", 0600, user->pw_uid, user->pw_gid);
	expect_socket(&daemon, "host0", 0600, user->pw_uid, user->pw_gid);
	expect_socket(&daemon, "vm1", 0660, user->pw_uid, 0);
	expect_socket(&daemon, "host1", 0606, 1, user->pw_gid);

	guest_end(&guests[0]);
	guest_end(&guests[1]);
	assert_int_equal(daemon_stop(&daemon, LIMIT), 0);
}

static void write_file(struct daemon *daemon, const char *more)
{
	FILE *file = fopen(daemon_path(daemon, "vsockd.yaml"), "w");

	assert_non_null(file);
	fprintf(file, "user: " USER "\nvms:\n- {socket: %s/vm0, uds-path: %s/host0%s}\n",
		daemon->directory, daemon->directory, more);
	if (*more)
		fprintf(file, "- {guest-cid: 4, socket: %s/vm1, uds-path: %s/host1%s}\n",
			daemon->directory, daemon->directory, more);
	assert_int_equal(fclose(file), 0);
}

static void test_with_user_a_reload_still_gives_sockets_away(void **state)
{
	static const char *const arguments[] = {"", "--config", "@/vsockd.yaml", NULL};
	struct daemon daemon = {.pidfd = -1};
	const struct passwd *user;

	(void)state;
	need_root();
	need_namespaces();
	user = find_user();
	assert_int_equal(daemon_prepare(&daemon), 0);
	assert_int_equal(chown(daemon.directory, user->pw_uid, user->pw_gid), 0);
	write_file(&daemon, "");
	assert_int_equal(daemon_start(&daemon, arguments, "host0", LIMIT), 0);
	assert_int_equal(daemon_wait_log(&daemon, "ready", LIMIT), 0);
	expect_capabilities(daemon.pid, SETUID_GID | CHOWN_FOWNER);

	write_file(&daemon, ", uds-owner: 1, socket-group: 0, socket-mode: 660");
	assert_int_equal(kill(daemon.pid, SIGHUP), 0);
	assert_int_equal(daemon_wait_log(&daemon, "1 added, 0 removed, 1 changed", LIMIT), 0);
	for (int vm = 0; vm < 2; vm++) {
		expect_socket(&daemon, vm ? "vm1" : "vm0", 0660, user->pw_uid, 0);
		expect_socket(&daemon, vm ? "host1" : "host0", 0600, 1, user->pw_gid);
	}
	assert_int_equal(daemon_stop(&daemon, LIMIT), 0);
}

static void test_with_user_a_directory_of_root_is_refused(void **state)
{
	static const char *const arguments[] = {"",	    "--user",	  USER,	    "--socket",
						"@/socket", "--uds-path", "@/host", NULL};
	struct daemon daemon = {.pidfd = -1};

	(void)state;
	need_root();
	(void)find_user();
	assert_int_equal(daemon_prepare(&daemon), 0);
	assert_int_equal(chmod(daemon.directory, 0755), 0);
	assert_int_equal(daemon_start(&daemon, arguments, "socket", LIMIT), -ECHILD);
}

/* In a process of its own, as nothing brings the privileges back. */
static int try_to_become_another(void)
{
	struct policy_failure failure = {""};

	if (!geteuid() &&
	    setresuid(SANDBOX_ORDINARY_USER, SANDBOX_ORDINARY_USER, SANDBOX_ORDINARY_USER))
		return 1;
	if (policy_become_user(1, 1, &failure) != -EPERM)
		return 2;
	if (!strstr(failure.text, "only root can"))
		return 3;
	return geteuid() == 1 ? 4 : 0;
}

static void test_an_ordinary_user_cannot_become_another(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		_exit(try_to_become_another());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			test_with_user_the_spawner_keeps_two_capabilities_and_workers_their_ids),
		cmocka_unit_test(test_with_user_a_reload_still_gives_sockets_away),
		cmocka_unit_test(test_with_user_a_directory_of_root_is_refused),
		cmocka_unit_test(test_an_ordinary_user_cannot_become_another),
	};

	(void)alarm(10 * SANDBOX_SECONDS);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
