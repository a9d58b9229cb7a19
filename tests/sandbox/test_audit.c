/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel says about a confined process, seen from outside through /proc. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "policy/start.h"
#include "tests/sandbox/sandbox.h"

#define N_FILES		    64
#define N_FILES_OF_EXPORTER 139 /* for 128 clients */
#define BUFFER_LEN	    "65536"

static int program;  /* the helper */
static int exporter; /* vsockd-exporter; -1: it was not built */

struct confined {
	struct policy_process process;
	int channel;
};

static int make_channel(int pair[2])
{
	struct timeval limit = {.tv_sec = SANDBOX_SECONDS};

	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) ||
	       setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
}

static void expect(int channel, const char *text)
{
	char found[16] = {0};

	assert_int_equal(recv(channel, found, sizeof(found) - 1, 0), strlen(text));
	assert_string_equal(found, text);
}

/* On the second end of pair, which stays the caller's. */
static void start_worker_on(int pair[2], uint32_t insecure, struct confined *ret_confined)
{
	char mask[] = "--insecure=0";
	char *const argv[] = {(char[]){"vsockd-worker"}, (char[]){"--files=64"},
			      (char[]){"--buffer=" BUFFER_LEN}, mask, NULL};
	struct policy_worker worker = {.insecure = insecure, .program = program, .argv = argv};
	struct policy_failure failure = {""};

	mask[strlen(mask) - 1] = (char)('0' + insecure);
	worker.channel = pair[1];
	worker.buffer = memfd_create("connections", MFD_CLOEXEC);
	assert_int_equal(ftruncate(worker.buffer, atoi(BUFFER_LEN)), 0);
	if (policy_clone(&worker, &ret_confined->process, &failure))
		fail_msg("%s", failure.text);
	close(worker.buffer);
	ret_confined->channel = pair[0];
	expect(pair[0], "READY");
}

static void start_worker(uint32_t insecure, struct confined *ret_confined)
{
	int pair[2];

	assert_int_equal(make_channel(pair), 0);
	start_worker_on(pair, insecure, ret_confined);
	close(pair[1]);
}

/* The front of these tests: confined in this process's child, waits for the end. */
static void start_front(uint32_t insecure, struct confined *ret_confined)
{
	struct policy_limits limits = {.insecure = insecure, .n_files = N_FILES};
	struct policy_failure failure = {""};
	int pair[2], status;

	assert_int_equal(make_channel(pair), 0);
	status = policy_fork_front(insecure, &ret_confined->process, &failure);
	if (status == POLICY_IS_FRONT) {
		struct iovec part = {(char[]){"READY"}, 5};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

		close(pair[0]);
		if (policy_enter(POLICY_FRONT, &limits, &failure)) {
			(void)fprintf(stderr, "%s\n", failure.text);
			_exit(1);
		}
		(void)sendmsg(pair[1], &message, MSG_NOSIGNAL);
		while (recvmsg(pair[1], &message, 0) > 0)
			;
		_exit(0);
	}
	if (status)
		fail_msg("%s", failure.text);
	close(pair[1]);
	ret_confined->channel = pair[0];
	expect(pair[0], "READY");
}

static int await_end(struct confined *confined)
{
	int status;

	assert_int_equal(waitpid(confined->process.pid, &status, 0), confined->process.pid);
	close(confined->process.pidfd);
	close(confined->channel);
	return status;
}

static void stop(struct confined *confined)
{
	int status;

	assert_int_equal(kill(confined->process.pid, SIGKILL), 0);
	status = await_end(confined);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

/* The rest of the line that starts with key. */
static void read_line(pid_t pid, const char *file, const char *key, char ret_value[256])
{
	char path[64], line[512];
	bool is_found = false;
	FILE *stream;

	(void)snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	stream = fopen(path, "re");
	assert_non_null(stream);
	while (!is_found && fgets(line, sizeof(line), stream)) {
		if (strncmp(line, key, strlen(key)))
			continue;
		(void)snprintf(ret_value, 256, "%.255s",
			       line + strlen(key) + strspn(line + strlen(key), " \t"));
		ret_value[strcspn(ret_value, "\n")] = '\0';
		is_found = true;
	}
	(void)fclose(stream);
	assert_true(is_found);
}

static void expect_line(pid_t pid, const char *file, const char *key, const char *value)
{
	char found[256];

	read_line(pid, file, key, found);
	if (strcmp(found, value))
		fail_msg("%s: %s is \"%s\", not \"%s\"", file, key, found, value);
}

static void expect_limit(pid_t pid, const char *name, unsigned long long value)
{
	char found[256];
	unsigned long long soft, hard;

	read_line(pid, "limits", name, found);
	assert_int_equal(sscanf(found, "%llu %llu", &soft, &hard), 2);
	assert_int_equal(soft, value);
	assert_int_equal(hard, value);
}

static void expect_no_privileges(pid_t pid, unsigned long long n_files)
{
	expect_line(pid, "status", "CapInh:", "0000000000000000");
	expect_line(pid, "status", "CapPrm:", "0000000000000000");
	expect_line(pid, "status", "CapEff:", "0000000000000000");
	expect_line(pid, "status", "CapAmb:", "0000000000000000");
	expect_line(pid, "status", "NoNewPrivs:", "1");
	if (policy_has_filter)
		expect_line(pid, "status", "Seccomp:", "2");
	expect_line(pid, "status", "Threads:", "1");
	expect_limit(pid, "Max core file size", 0);
	expect_limit(pid, "Max open files", n_files);
}

static void expect_id(pid_t pid, uint32_t id)
{
	uint32_t uid = geteuid() ? geteuid() : id;
	char ids[64];

	(void)snprintf(ids, sizeof(ids), "%u\t%u\t%u\t%u", uid, uid, uid, uid);
	expect_line(pid, "status", "Uid:", ids);
}

static void link_of(const char *process, const char *name, char ret_target[PATH_MAX])
{
	char path[64];
	ssize_t len;

	(void)snprintf(path, sizeof(path), "/proc/%s/%s", process, name);
	len = readlink(path, ret_target, PATH_MAX - 1);
	assert_true(len > 0);
	ret_target[len] = '\0';
}

static void expect_own_namespaces(pid_t pid, const char *const *names, size_t n_names)
{
	char ours[PATH_MAX], its[PATH_MAX], process[16];

	(void)snprintf(process, sizeof(process), "%d", pid);
	for (size_t i = 0; i < n_names; i++) {
		link_of("self", names[i], ours);
		link_of(process, names[i], its);
		assert_string_not_equal(ours, its);
	}
}

static size_t count_entries(pid_t pid, const char *name)
{
	char path[64];
	struct dirent *entry;
	size_t n = 0;
	DIR *directory;

	(void)snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	directory = opendir(path);
	assert_non_null(directory);
	while ((entry = readdir(directory)))
		n += strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
	closedir(directory);
	return n;
}

/*
 * Root looks into everything. An ordinary user looks into what it execed in a
 * user namespace of its own; not into the front, which never execed and may not
 * be traced.
 */
static bool may_look_inside(pid_t pid)
{
	char path[64];
	DIR *directory;

	(void)snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	directory = opendir(path);
	if (directory)
		closedir(directory);
	else
		assert_int_not_equal(geteuid(), 0);
	return directory != NULL;
}

static void expect_empty_inside(pid_t pid)
{
	char root[64], target[PATH_MAX], process[16];
	int fd;

	if (!may_look_inside(pid))
		return;
	assert_int_equal(count_entries(pid, "root"), 0);
	(void)snprintf(root, sizeof(root), "/proc/%d/root/file", pid);
	fd = open(root, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_int_equal(fd, -1);
	assert_int_equal(errno, EROFS);
	(void)snprintf(process, sizeof(process), "%d", pid);
	link_of(process, "cwd", target);
	assert_string_equal(target, "/");
}

static void need_namespaces(void)
{
	if (!sandbox_has_namespaces())
		sandbox_skip("this user may not make user namespaces");
}

static void test_a_worker_holds_nothing_and_sees_nothing(void **state)
{
	static const char *const names[] = {"ns/user", "ns/mnt", "ns/net",   "ns/ipc",
					    "ns/uts",  "ns/pid", "ns/cgroup"};
	char environment[64], target[PATH_MAX], process[16], byte;
	struct confined worker;
	pid_t pid;
	int fd, stray;

	(void)state;
	need_namespaces();
	/* One that exec would not close. */
	stray = fcntl(STDIN_FILENO, F_DUPFD, 100);
	assert_true(stray >= 100);
	start_worker(0, &worker);
	close(stray);
	pid = worker.process.pid;
	expect_no_privileges(pid, N_FILES);
	expect_line(pid, "status", "CapBnd:", "0000000000000000");
	expect_id(pid, POLICY_WORKER_ID);
	if (policy_has_filter) {
		expect_limit(pid, "Max file size", 0);
		expect_limit(pid, "Max processes", 0);
	}
	expect_limit(pid, "Max locked memory", 0);
	expect_limit(pid, "Max msgqueue size", 0);
	expect_empty_inside(pid);
	if (may_look_inside(pid)) {
		expect_own_namespaces(pid, names, sizeof(names) / sizeof(names[0]));
		/* 0, 1, 2, the channel, epoll; the buffer was closed. */
		assert_int_equal(count_entries(pid, "fd"), 5);
		(void)snprintf(process, sizeof(process), "%d", pid);
		for (int i = 0; i < (policy_has_filter ? 3 : 2); i++) {
			char name[16];

			(void)snprintf(name, sizeof(name), "fd/%d", i);
			link_of(process, name, target);
			assert_string_equal(target, "/dev/null");
		}
		(void)snprintf(environment, sizeof(environment), "/proc/%d/environ", pid);
		fd = open(environment, O_RDONLY | O_CLOEXEC);
		assert_true(fd >= 0);
		assert_int_equal(read(fd, &byte, 1), 0);
		close(fd);
	}
	stop(&worker);
}

/* Ask for what is not there: who answers is behind all walls. */
static void expect_answer(const struct sockaddr_in *at)
{
	static const char request[] = "GET /none HTTP/1.1\r\nHost: x\r\n\r\n";
	struct timeval limit = {.tv_sec = SANDBOX_SECONDS};
	char answer[64] = "";
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, (const struct sockaddr *)at, sizeof(*at)), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
	assert_int_equal(send(fd, request, strlen(request), 0), strlen(request));
	assert_true(recv(fd, answer, sizeof(answer) - 1, MSG_WAITALL) > 0);
	assert_int_equal(strncmp(answer, "HTTP/1.1 404 ", 13), 0);
	close(fd);
}

static void start_exporter(struct confined *ret_confined)
{
	char *const argv[] = {(char[]){"vsockd-exporter"}, (char[]){"--insecure=0"}, NULL};
	struct policy_worker worker = {
		.slot = POLICY_EXPORTER_SLOT, .program = exporter, .argv = argv};
	struct sockaddr_in at = {.sin_family = AF_INET};
	struct policy_failure failure = {""};
	socklen_t len = sizeof(at);
	int pair[2];

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(make_channel(pair), 0);
	worker.channel = pair[1];
	worker.buffer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_int_equal(bind(worker.buffer, (const struct sockaddr *)&at, len), 0);
	assert_int_equal(listen(worker.buffer, 8), 0);
	assert_int_equal(getsockname(worker.buffer, (struct sockaddr *)&at, &len), 0);
	if (policy_clone(&worker, &ret_confined->process, &failure))
		fail_msg("%s", failure.text);
	close(worker.buffer);
	close(pair[1]);
	ret_confined->channel = pair[0];
	expect_answer(&at);
}

static void test_the_exporter_holds_its_sockets_and_sees_nothing(void **state)
{
	static const char *const names[] = {"ns/user", "ns/mnt", "ns/net",   "ns/ipc",
					    "ns/uts",  "ns/pid", "ns/cgroup"};
	struct confined confined;
	pid_t pid;

	(void)state;
	need_namespaces();
	if (exporter < 0)
		sandbox_skip("built without libmicrohttpd");
	start_exporter(&confined);
	pid = confined.process.pid;
	expect_no_privileges(pid, N_FILES_OF_EXPORTER);
	expect_line(pid, "status", "CapBnd:", "0000000000000000");
	expect_id(pid, POLICY_WORKER_ID + POLICY_EXPORTER_SLOT);
	if (policy_has_filter) {
		expect_limit(pid, "Max file size", 0);
		expect_limit(pid, "Max processes", 0);
	}
	expect_empty_inside(pid);
	if (may_look_inside(pid)) {
		expect_own_namespaces(pid, names, sizeof(names) / sizeof(names[0]));
		/* 0, 1, 2, the channel, the listener, two epolls; and the client that has left. */
		assert_in_range(count_entries(pid, "fd"), 7, 8);
	}
	stop(&confined);
}

static void test_the_front_holds_no_privilege_and_sees_no_file(void **state)
{
	static const char *const names[] = {"ns/user", "ns/mnt", "ns/net", "ns/ipc", "ns/uts"};
	struct confined front;

	(void)state;
	need_namespaces();
	start_front(0, &front);
	expect_no_privileges(front.process.pid, N_FILES);
	expect_line(front.process.pid, "status", "CapBnd:", "0000000000000000");
	expect_id(front.process.pid, POLICY_FRONT_ID);
	expect_empty_inside(front.process.pid);
	if (policy_has_filter)
		assert_int_equal(may_look_inside(front.process.pid), !geteuid());
	if (may_look_inside(front.process.pid))
		expect_own_namespaces(front.process.pid, names, sizeof(names) / sizeof(names[0]));
	stop(&front);
}

static void test_without_namespaces_no_privilege_is_left_either(void **state)
{
	struct confined confined;

	(void)state;
	start_worker(POLICY_INSECURE_NO_NAMESPACES, &confined);
	expect_no_privileges(confined.process.pid, N_FILES);
	expect_id(confined.process.pid, POLICY_WORKER_ID);
	if (!geteuid())
		expect_line(confined.process.pid, "status", "CapBnd:", "0000000000000000");
	stop(&confined);

	start_front(POLICY_INSECURE_NO_NAMESPACES, &confined);
	expect_no_privileges(confined.process.pid, N_FILES);
	expect_id(confined.process.pid, POLICY_FRONT_ID);
	if (!geteuid())
		expect_line(confined.process.pid, "status", "CapBnd:", "0000000000000000");
	stop(&confined);
}

static void test_without_a_filter_the_other_walls_stand(void **state)
{
	struct confined worker;

	(void)state;
	need_namespaces();
	start_worker(POLICY_INSECURE_NO_SECCOMP, &worker);
	expect_line(worker.process.pid, "status", "Seccomp:", "0");
	expect_line(worker.process.pid, "status", "CapBnd:", "0000000000000000");
	expect_empty_inside(worker.process.pid);
	stop(&worker);
}

/* Landlock is the only wall between this worker and its files. */
static void test_without_namespaces_and_filter_no_file_opens(void **state)
{
	struct confined worker;

	(void)state;
	/* LANDLOCK_CREATE_RULESET_VERSION */
	if (syscall(SYS_landlock_create_ruleset, NULL, 0, 1u) < 1)
		sandbox_skip("this kernel has no Landlock");
	start_worker(POLICY_INSECURE_NO_NAMESPACES | POLICY_INSECURE_NO_SECCOMP, &worker);
	assert_int_equal(send(worker.channel, "f", 1, 0), 1);
	expect(worker.channel, "yes");
	stop(&worker);
}

static void test_a_worker_uses_its_buffer_and_ends_with_its_channel(void **state)
{
	struct confined worker;
	int status;

	(void)state;
	need_namespaces();
	start_worker(0, &worker);
	assert_int_equal(send(worker.channel, "b", 1, 0), 1);
	expect(worker.channel, "yes");
	assert_int_equal(shutdown(worker.channel, SHUT_RDWR), 0);
	status = await_end(&worker);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_a_worker_that_opens_or_connects_dies(void **state)
{
	static const char orders[] = {'o', 's'};

	(void)state;
	need_namespaces();
	if (!policy_has_filter)
		sandbox_skip("a build with a sanitizer has no filter");
	for (size_t i = 0; i < sizeof(orders); i++) {
		struct confined worker;

		start_worker(0, &worker);
		assert_int_equal(send(worker.channel, &orders[i], 1, 0), 1);
		assert_true(sandbox_was_refused(await_end(&worker)));
	}
}

/*
 * The starter is a process of its own here, killed while its worker runs. The
 * channel stays open in this one, so it is not the end of that which ends it.
 */
static void test_a_worker_dies_with_its_starter(void **state)
{
	struct confined worker = {.channel = -1};
	int pair[2], pids[2], status;
	pid_t pid;

	(void)state;
	need_namespaces();
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
	assert_int_equal(make_channel(pair), 0);
	assert_int_equal(pipe(pids), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		start_worker_on(pair, 0, &worker);
		assert_int_equal(write(pids[1], &worker.process.pid, sizeof(pid_t)), sizeof(pid_t));
		(void)kill(getpid(), SIGKILL);
		_exit(1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(read(pids[0], &worker.process.pid, sizeof(pid_t)), sizeof(pid_t));
	assert_int_equal(waitpid(worker.process.pid, &status, 0), worker.process.pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
	close(pair[0]);
	close(pair[1]);
	close(pids[0]);
	close(pids[1]);
}

static void test_a_program_that_cannot_run_is_told_and_leaves_nothing(void **state)
{
	char *const argv[] = {(char[]){"vsockd-worker"}, NULL};
	struct policy_process process = {.pid = -7};
	struct policy_failure failure = {""};
	struct policy_worker worker = {.argv = argv};
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	(void)state;
	need_namespaces();
	worker.program = worker.channel = worker.buffer = null_fd;
	assert_int_equal(policy_clone(&worker, &process, &failure), -EACCES);
	assert_non_null(strstr(failure.text, "exec"));
	assert_int_equal(process.pid, -7);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
	close(null_fd);
}

/*
 * In a user namespace of its own a process may forbid further ones; where root
 * has forbidden them to an ordinary user the same error comes.
 */
static int start_where_namespaces_are_forbidden(void)
{
	char *const argv[] = {(char[]){"vsockd-worker"}, NULL};
	struct policy_worker worker = {.program = program, .argv = argv};
	struct policy_process process;
	struct policy_failure failure = {""};
	int fd = open("/proc/sys/user/max_user_namespaces", O_WRONLY | O_CLOEXEC);

	if (write(fd, "0", 1) != 1)
		return 1;
	if (policy_clone(&worker, &process, &failure) != -ENOSPC)
		return 2;
	return strstr(failure.text, "user.max_user_namespaces") &&
			       strstr(failure.text, "--insecure-no-namespaces")
		       ? 0
		       : 3;
}

static void test_forbidden_namespaces_are_named_with_the_way_out(void **state)
{
	struct policy_failure failure = {""};
	struct policy_process process;
	int status;

	(void)state;
	need_namespaces();
	status = policy_fork_front(0, &process, &failure);
	if (status == POLICY_IS_FRONT)
		_exit(start_where_namespaces_are_forbidden());
	assert_int_equal(status, 0);
	close(process.pidfd);
	assert_int_equal(waitpid(process.pid, &status, 0), process.pid);
	assert_int_equal(status, 0);
}

/* In a process of its own, as it can't take back what it gives up. */
static int reduce_and_kill_the_front(bool makes_sockets)
{
	struct policy_failure failure;
	struct confined front;
	const char *kept = geteuid()	   ? "0000000000000000"
			   : makes_sockets ? "00000000000000cb"
					   : "00000000000000c2";

	start_front(0, &front);
	if (policy_reduce_spawner(0, makes_sockets, &failure))
		return 1;
	expect_line(getpid(), "status", "CapInh:", "0000000000000000");
	expect_line(getpid(), "status", "CapPrm:", kept);
	expect_line(getpid(), "status", "CapEff:", kept);
	if (!geteuid())
		expect_line(getpid(), "status", "CapBnd:", kept);
	expect_line(getpid(), "status", "NoNewPrivs:", "1");
	stop(&front);
	return 0;
}

static void test_the_spawner_keeps_ids_and_connecting_and_no_more(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	need_namespaces();
	/* And the owners of sockets, if a reload is to make some. */
	for (int makes_sockets = 0; makes_sockets < 2; makes_sockets++) {
		pid = fork();
		assert_true(pid >= 0);
		if (!pid)
			_exit(reduce_and_kill_the_front(makes_sockets));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_worker_holds_nothing_and_sees_nothing),
		cmocka_unit_test(test_the_exporter_holds_its_sockets_and_sees_nothing),
		cmocka_unit_test(test_the_front_holds_no_privilege_and_sees_no_file),
		cmocka_unit_test(test_without_namespaces_no_privilege_is_left_either),
		cmocka_unit_test(test_without_a_filter_the_other_walls_stand),
		cmocka_unit_test(test_without_namespaces_and_filter_no_file_opens),
		cmocka_unit_test(test_a_worker_uses_its_buffer_and_ends_with_its_channel),
		cmocka_unit_test(test_a_worker_that_opens_or_connects_dies),
		cmocka_unit_test(test_a_worker_dies_with_its_starter),
		cmocka_unit_test(test_a_program_that_cannot_run_is_told_and_leaves_nothing),
		cmocka_unit_test(test_the_spawner_keeps_ids_and_connecting_and_no_more),
		cmocka_unit_test(test_forbidden_namespaces_are_named_with_the_way_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv)
{
	program = argc == 2 || argc == 3 ? open(argv[1], O_PATH | O_CLOEXEC) : -1;
	exporter = argc == 3 ? open(argv[2], O_PATH | O_CLOEXEC) : -1;
	if (program < 0) {
		(void)fprintf(stderr, "usage: test_audit HELPER [EXPORTER]\n");
		return 1;
	}
	return sandbox_run_as_both(run);
}
