/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/integration/setup.h"

#include "tests/frontend/stopwatch.h"
#include "tests/integration/replacer.h"
#include "tests/integration/tool.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define WORKER "vsockd-worker"

/* What can only be looked at again and again: /proc has no event for it. */
static void wait_a_moment(int64_t deadline, const char *what)
{
	static const struct timespec moment = {.tv_nsec = 2000000};

	if (deadline_left(deadline) == 0)
		fail_msg("%s", what);
	nanosleep(&moment, NULL);
}

static bool is_zombie(pid_t pid)
{
	char state = daemon_process_state(pid);

	return state == 'Z' || state == 0;
}

/* In the order in which they were started; those that only wait to be buried do not count. */
static size_t find_workers(const struct setup *setup, pid_t *ret_pids)
{
	size_t n = daemon_find(&setup->daemon, WORKER, ret_pids), n_alive = 0;

	for (size_t i = 0; i < n; i++)
		if (!is_zombie(ret_pids[i]))
			ret_pids[n_alive++] = ret_pids[i];
	return n_alive;
}

static size_t count_workers(const struct setup *setup)
{
	pid_t pids[DAEMON_PIDS_MAX];

	return find_workers(setup, pids);
}

static size_t count_guests(const struct setup *setup)
{
	size_t n = 0;

	for (size_t i = 0; i < setup->n_vms; i++)
		n += setup->has_guest[i];
	return n;
}

static void wait_workers(const struct setup *setup, size_t n)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);

	while (count_workers(setup) != n) {
		if (deadline_left(deadline) == 0)
			fail_msg("%zu workers instead of %zu", count_workers(setup), n);
		wait_a_moment(deadline, "");
	}
}

/* A spare is there before it has opened everything; then it sleeps, as all do. */
int setup_count_fds(const struct setup *setup)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);
	int n, before = -1;
	bool is_asleep;

	for (;;) {
		is_asleep = daemon_is_asleep(&setup->daemon);
		n = daemon_count_fds(&setup->daemon);
		if (n < 0 || (is_asleep && n == before))
			return n;
		before = n;
		wait_a_moment(deadline, "the number of fds never rests");
	}
}

void setup_settle(const struct setup *setup)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);

	while (!daemon_is_asleep(&setup->daemon))
		wait_a_moment(deadline, "vsockd is never at rest");
}

void setup_wait_within(struct setup *setup, struct guest *guest, bool (*predicate)(void *context),
		       void *context, int milliseconds)
{
	struct stopwatch watch;

	stopwatch_start_daemon(&watch, &setup->daemon);
	assert_int_equal(guest_wait_until(guest, predicate, context, SETUP_LIMIT), 0);
	assert_in_range(stopwatch_spent_daemon(&watch, &setup->daemon), 0, milliseconds);
}

/* CPU time of all processes of vsockd so far, in clock ticks of 10 ms. */
static unsigned long cpu_ticks(const struct setup *setup)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(&setup->daemon, pids);
	unsigned long total = 0;

	for (size_t i = 0; i < n; i++) {
		unsigned long user, system;
		char path[64];
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/stat", pids[i]);
		file = fopen(path, "r");
		if (!file)
			continue; /* ended since it was listed */
		if (fscanf(file,
			   "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u "
			   "%lu %lu",
			   &user, &system) == 2)
			total += user + system;
		fclose(file);
	}
	return total;
}

#define QUIET_PERIOD 400 /* ms; 40 ticks of one that spins */
#define QUIET_TICKS  4

void setup_check_nobody_spins(const struct setup *setup)
{
	unsigned long before, after;

	if (setup->replacer)
		return;
	setup_settle(setup);
	before = cpu_ticks(setup);
	poll(NULL, 0, QUIET_PERIOD);
	/* Less than before when a worker that was dismissed has ended meanwhile. */
	after = cpu_ticks(setup);
	if (after > before + QUIET_TICKS)
		fail_msg("%lu ticks of work where there is none", after - before);
}

void setup_choose_user(struct setup *setup, uid_t user)
{
	if (geteuid() == 0)
		setup->user = user;
}

void setup_choose_file(struct setup *setup)
{
	setup->has_file = true;
}

/* Whose ids to take on, and what to execute then. */
static size_t add_program(struct setup *setup, const char **arguments)
{
	static char user[32], group[32];
	size_t n = 0;

	if (setup->user) {
		snprintf(user, sizeof(user), "--reuid=%u", setup->user);
		snprintf(group, sizeof(group), "--regid=%u", setup->user);
		assert_int_equal(chown(setup->daemon.directory, setup->user, setup->user), 0);
		arguments[n++] = "setpriv";
		arguments[n++] = user;
		arguments[n++] = group;
		arguments[n++] = "--clear-groups";
		/* The change of ids made the kernel forget it. */
		arguments[n++] = "--pdeathsig=KILL";
	}
	/* daemon_start() knows it too, but only in the first place. */
	arguments[n] = getenv("VSOCKD");
	assert_non_null(arguments[n]);
	return n + 1;
}

static void name_sockets(struct setup *setup)
{
	for (size_t i = 0; i < setup->n_vms; i++) {
		snprintf(setup->sockets[i], sizeof(setup->sockets[i]), "%s/vm%zu",
			 setup->daemon.directory, i);
		snprintf(setup->uds_paths[i], sizeof(setup->uds_paths[i]), "%s/host%zu",
			 setup->daemon.directory, i);
	}
}

/* "key=value,key=value" as YAML has it. */
static void print_options(FILE *file, const char *options)
{
	for (; *options; options++) {
		if (*options == '=' || *options == ',')
			fputs(*options == '=' ? ": " : ", ", file);
		else
			fputc(*options, file);
	}
}

void setup_write_file(struct setup *setup, uint32_t vms, const char *vm_options)
{
	/* As an editor does it: the file is there, before and after, and whole. */
	FILE *file = fopen(daemon_path(&setup->daemon, "vsockd.yaml~"), "w");

	assert_non_null(file);
	fprintf(file, "vms:\n");
	for (size_t i = 0; i < SETUP_VMS_MAX; i++) {
		if (!(vms & 1u << i))
			continue;
		fprintf(file, "- {guest_cid: %zu, socket: %s/vm%zu, uds_path: %s/host%zu", i + 3,
			setup->daemon.directory, i, setup->daemon.directory, i);
		if (vm_options) {
			fputs(", ", file);
			print_options(file, vm_options);
		}
		fputs("}\n", file);
	}
	assert_int_equal(fclose(file), 0);
	assert_int_equal(rename(daemon_path(&setup->daemon, "vsockd.yaml~"),
				daemon_path(&setup->daemon, "vsockd.yaml")),
			 0);
}

static size_t add_file(struct setup *setup, const char *options, const char **arguments)
{
	setup_write_file(setup, (1u << setup->n_vms) - 1, options);
	arguments[0] = "--config";
	arguments[1] = "@/vsockd.yaml";
	return 2;
}

static size_t add_vms(struct setup *setup, const char *options, const char **arguments)
{
	static char vms[SETUP_VMS_MAX][256];
	size_t n = 0;

	for (size_t i = 0; i < setup->n_vms; i++) {
		snprintf(vms[i], sizeof(vms[i]),
			 "guest-cid=%zu,socket=@/vm%zu,uds-path=@/host%zu%s%s", i + 3, i, i,
			 options ? "," : "", options ? options : "");
		arguments[n++] = "--vm";
		arguments[n++] = vms[i];
	}
	return n;
}

/* 0, or how vsockd ended in place of being ready. */
static int await_ready(struct setup *setup)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);

	while (!daemon_log_has(&setup->daemon, "ready: ")) {
		if (socket_wait(setup->daemon.pidfd, POLLIN, deadline_in(0)) == 0)
			return daemon_stop(&setup->daemon, SETUP_LIMIT);
		wait_a_moment(deadline, "vsockd is not ready");
	}
	return 0;
}

int setup_try_start(struct setup *setup, size_t n_vms, const char *vm_options,
		    const char *const *arguments)
{
	static const char *const with_control[] = {"--control", "@/" TOOL_CONTROL, NULL};
	const char *all[DAEMON_ARGUMENTS_MAX + 1] = {0};
	const char *worker = getenv("VSOCKD_WORKER"), *replaces = getenv("SETUP_REPLACES");
	pid_t spare[DAEMON_PIDS_MAX];
	int status;
	size_t n;

	*setup = (struct setup){
		.n_vms = n_vms,
		.user = setup->user,
		.has_file = setup->has_file,
	};
	assert_in_range(n_vms, 1, SETUP_VMS_MAX);
	assert_int_equal(daemon_prepare(&setup->daemon), 0);
	n = add_program(setup, all);
	name_sockets(setup);
	n += setup->has_file ? add_file(setup, vm_options, all + n)
			     : add_vms(setup, vm_options, all + n);
	if (worker) {
		all[n++] = "--worker";
		all[n++] = worker;
	}
	if (replaces && !arguments)
		arguments = with_control;
	for (; arguments && *arguments; arguments++) {
		assert_true(n < DAEMON_ARGUMENTS_MAX);
		all[n++] = *arguments;
	}
	assert_int_equal(daemon_start(&setup->daemon, all, NULL, SETUP_LIMIT), 0);
	status = await_ready(setup);
	if (status)
		return status;
	wait_workers(setup, 1);
	/* In the tests that choose their arguments themselves nobody replaces anything. */
	if (replaces && access(daemon_path(&setup->daemon, TOOL_CONTROL), F_OK) == 0)
		setup->replacer = replacer_fork(setup, atoi(replaces));
	setup->n_fds = setup_count_fds(setup);
	assert_int_equal(find_workers(setup, spare), 1);
	setup->n_spare_fds = daemon_count_fds_of(spare[0]);
	return 0;
}

void setup_start(struct setup *setup, size_t n_vms, const char *vm_options,
		 const char *const *arguments)
{
	assert_int_equal(setup_try_start(setup, n_vms, vm_options, arguments), 0);
}

static int start_some(void **state, size_t n_vms)
{
	*state = calloc(1, sizeof(struct setup));
	if (!*state)
		return -1;
	setup_start(*state, n_vms, NULL, NULL);
	return 0;
}

int setup_start_one(void **state)
{
	return start_some(state, 1);
}

int setup_start_two(void **state)
{
	return start_some(state, 2);
}

int setup_end(void **state)
{
	setup_stop(*state);
	free(*state);
	return 0;
}

struct guest *setup_guest(struct setup *setup, size_t vm, struct guest_options options)
{
	struct guest *guest = &setup->guests[vm];
	int error;

	assert_false(setup->has_guest[vm]);
	options.socket = setup->sockets[vm];
	options.cid = setup_cid(vm);
	error = guest_start(guest, &options);
	if (error)
		fail_msg("guest %zu: %s: %s %s", vm, strerror(-error), guest_violations(guest),
			 vhost_error(&guest->vhost));
	setup->has_guest[vm] = true;
	return guest;
}

void setup_end_guest(struct setup *setup, size_t vm)
{
	struct guest *guest = &setup->guests[vm];
	char violations[sizeof(guest->violations)];

	assert_true(setup->has_guest[vm]);
	setup->has_guest[vm] = false;
	snprintf(violations, sizeof(violations), "%s", guest_violations(guest));
	guest_end(guest);
	if (!setup->expects_violations)
		assert_string_equal(violations, "");
}

/* What so many fds too many come from, if it is nothing but spares that came too late. */
static int count_surplus(const struct setup *setup, size_t n_workers)
{
	/* Besides its own: its channel and its buffers in the front, its pidfd in the spawner. */
	return (int)(n_workers - 1) * (setup->n_spare_fds + 3);
}

/*
 * A front-end that leaves while its worker is being started leaves it behind as one
 * more spare; of all workers together there are at most so many. Fewer fds than expected
 * are no leak: some of a start may have been counted on a busy machine.
 */
void setup_wait_idle(struct setup *setup)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);
	size_t n_workers, n_max = 2 * setup->n_vms + 2;
	int n_fds, n_expected;

	assert_int_equal(count_guests(setup), 0);
	for (;;) {
		n_workers = count_workers(setup);
		n_fds = daemon_count_fds(&setup->daemon);
		n_expected = setup->n_fds + count_surplus(setup, n_workers);
		/* An ordinary user may not look into the confined processes. */
		if (n_workers >= 1 && n_workers <= n_max &&
		    (setup->n_fds < 0 || n_fds <= n_expected))
			return;
		if (deadline_left(deadline) == 0)
			fail_msg("%d fds instead of %d, %zu workers", n_fds, n_expected, n_workers);
		wait_a_moment(deadline, "");
	}
}

static void check_nothing_is_left(struct setup *setup, const pid_t *pids, size_t n_pids)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);

	for (size_t i = 0; i < n_pids; i++)
		while (kill(pids[i], 0) == 0)
			wait_a_moment(deadline, "a process of vsockd is left");
	for (size_t i = 0; i < setup->n_vms; i++) {
		assert_int_equal(access(setup->sockets[i], F_OK), -1);
		assert_int_equal(access(setup->uds_paths[i], F_OK), -1);
	}
}

static bool has_ended(const struct daemon *daemon)
{
	return socket_wait(daemon->pidfd, POLLIN, deadline_in(0)) == 0;
}

/* SIGTERM, and wait, without the removal of the directory. */
static int end_daemon(struct daemon *daemon)
{
	siginfo_t info = {0};
	int64_t deadline = deadline_in(SETUP_LIMIT);

	kill(daemon->pid, SIGTERM);
	while (waitid(P_PID, (id_t)daemon->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
	       info.si_pid == 0)
		wait_a_moment(deadline, "vsockd does not end");
	return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

/* Its connection is one of those that are counted. */
static void end_replacer(struct setup *setup)
{
	kill(setup->replacer, SIGKILL);
	waitpid(setup->replacer, NULL, 0);
	setup->replacer = 0;
	if (setup->n_fds >= 0)
		setup->n_fds--;
}

void setup_stop(struct setup *setup)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n_pids;
	int exit_code, result;

	for (size_t i = 0; i < setup->n_vms; i++)
		if (setup->has_guest[i])
			setup_end_guest(setup, i);
	if (setup->replacer > 0)
		end_replacer(setup);
	if (!has_ended(&setup->daemon))
		setup_wait_idle(setup);
	n_pids = daemon_pids(&setup->daemon, pids);
	exit_code = end_daemon(&setup->daemon);
	/* The daemon itself is not yet waited for. */
	check_nothing_is_left(setup, pids + 1, n_pids - 1);
	if (!setup->expects_report) {
		assert_false(daemon_log_has(&setup->daemon, "Sanitizer"));
		assert_false(daemon_log_has(&setup->daemon, "runtime error:"));
	}
	if (exit_code != setup->exit_code)
		fail_msg("vsockd ended with %d instead of %d", exit_code, setup->exit_code);
	result = daemon_stop(&setup->daemon, SETUP_LIMIT);
	if (result != -EBADMSG)
		assert_int_equal(result, exit_code);
}

/* 1: it has that file mapped; 0: it has not; -1: that is not for us to see. */
static int maps_file(pid_t pid, ino_t inode)
{
	char path[64], line[512];
	FILE *file;
	int result = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	file = fopen(path, "r");
	if (!file)
		return errno == EACCES ? -1 : 0;
	errno = 0;
	while (result == 0 && fgets(line, sizeof(line), file)) {
		unsigned long found;

		if (sscanf(line, "%*s %*s %*s %*s %lu", &found) == 1 && found == inode)
			result = 1;
	}
	/* Any other error is that it has ended meanwhile. */
	if (errno == EACCES || errno == EPERM)
		result = -1;
	fclose(file);
	return result;
}

/* Who may not look into them has to go by their order, of which the youngest is the spare. */
static pid_t guess_worker(struct setup *setup, size_t vm)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n;

	wait_workers(setup, count_guests(setup) + 1);
	n = find_workers(setup, pids);
	for (size_t i = 0; i + 1 < n; i++) {
		bool is_others = false;

		for (size_t j = 0; j < setup->n_vms; j++)
			is_others |= j != vm && setup->workers[j] == pids[i];
		if (!is_others)
			return pids[i];
	}
	fail_msg("VM %zu has no worker", vm);
	return -1;
}

pid_t setup_worker(struct setup *setup, size_t vm)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);
	struct stat memory;

	assert_true(setup->has_guest[vm]);
	assert_int_equal(fstat(setup->guests[vm].memory.fds[0], &memory), 0);
	for (;;) {
		pid_t pids[DAEMON_PIDS_MAX];
		size_t n = find_workers(setup, pids);

		for (size_t i = 0; i < n; i++) {
			int maps = maps_file(pids[i], memory.st_ino);

			if (maps < 0)
				pids[i] = guess_worker(setup, vm);
			if (maps != 0)
				return setup->workers[vm] = pids[i];
		}
		wait_a_moment(deadline, "a VM has no worker");
	}
}

struct guest_connection *setup_connect(struct setup *setup, size_t vm, uint32_t port,
				       struct host_stream *ret_stream)
{
	struct guest *guest = &setup->guests[vm];
	int listener = host_listen(setup->uds_paths[vm], port), fd;
	struct guest_connection *connection;
	char path[128];

	assert_true(listener >= 0);
	connection = guest_connect_wait(guest, PACKET_HOST_CID, port, SETUP_LIMIT);
	assert_non_null(connection);
	fd = host_accept(listener, SETUP_LIMIT);
	assert_true(fd >= 0);
	close(listener);
	snprintf(path, sizeof(path), "%s_%u", setup->uds_paths[vm], port);
	assert_int_equal(unlink(path), 0);
	host_stream_init(ret_stream, fd);
	guest_watch(guest, &ret_stream->watch);
	return connection;
}

void setup_end_stream(struct setup *setup, size_t vm, struct host_stream *stream)
{
	guest_unwatch(&setup->guests[vm], &stream->watch);
	host_stream_end(stream);
}
