/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockd with two VMs and traffic, looked at from outside: its processes hold
 * what they need and nothing else, and make every system call that they may.
 * As root vsockd is started as root and as an ordinary user and all of it is
 * looked at; an ordinary user sees a part, and what it does not see is printed.
 */

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "policy/start.h"
#include "tests/frontend/daemon.h"
#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/frontend/http.h"
#include "tests/sandbox/sandbox.h"

#define LIMIT	    30000 /* ms, of one wait */
#define VMS	    2
#define PORT	    7000
#define SLOW_HOSTS  24 /* each buffers a quarter of a MiB: more than a worker keeps for itself */
#define CONNECTIONS 64 /* --max-connections of both VMs */

static const char *const namespaces[] = {"user", "mnt", "net", "ipc", "uts", "pid", "cgroup"};
#define FRONT_NAMESPACES  5 /* of them */
#define WORKER_NAMESPACES 7

struct live {
	struct daemon daemon;
	struct guest guests[VMS];
	struct guest_connection *connections[VMS];
	struct host_stream hosts[VMS];
	pid_t front, workers[VMS + 1]; /* the last one is the spare */
	bool is_ordinary;	       /* vsockd runs as an ordinary user */
	int http_port;		       /* of metrics */
};

/* ---- vsockd, its guests and its processes ---- */

static bool has_bytes(void *context)
{
	return ((const struct host_stream *)context)->n_received > 0;
}

static void start_guest(struct live *live, size_t vm)
{
	char socket[108], uds_path[108];
	struct guest_options options = {.socket = socket, .timeout = LIMIT};
	int listener;

	snprintf(socket, sizeof(socket), "%s/vm%zu", live->daemon.directory, vm);
	snprintf(uds_path, sizeof(uds_path), "%s/host%zu", live->daemon.directory, vm);
	assert_int_equal(guest_start(&live->guests[vm], &options), 0);
	listener = host_listen(uds_path, PORT);
	assert_true(listener >= 0);
	/* vsockd may be another user. */
	snprintf(uds_path, sizeof(uds_path), "%s/host%zu_%d", live->daemon.directory, vm, PORT);
	assert_int_equal(chmod(uds_path, 0777), 0);
	live->connections[vm] = guest_connect_wait(&live->guests[vm], PACKET_HOST_CID, PORT, LIMIT);
	assert_non_null(live->connections[vm]);
	host_stream_init(&live->hosts[vm], host_accept(listener, LIMIT));
	guest_watch(&live->guests[vm], &live->hosts[vm].watch);
	close(listener);
	assert_int_equal(guest_send_all(live->connections[vm], "hello", 5, LIMIT), 0);
	assert_int_equal(guest_wait_until(&live->guests[vm], has_bytes, &live->hosts[vm], LIMIT),
			 0);
}

static void end_guest(struct live *live, size_t vm)
{
	guest_unwatch(&live->guests[vm], &live->hosts[vm].watch);
	host_stream_end(&live->hosts[vm]);
	assert_string_equal(guest_violations(&live->guests[vm]), "");
	guest_end(&live->guests[vm]);
}

/* Processes have no event for coming and going. */
static void wait_processes(const struct live *live, size_t n, pid_t pids[DAEMON_PIDS_MAX])
{
	static const struct timespec moment = {.tv_nsec = 1000000};
	int64_t deadline = deadline_in(LIMIT);

	while (daemon_pids(&live->daemon, pids) != n) {
		assert_true(deadline_left(deadline) > 0);
		nanosleep(&moment, NULL);
	}
}

/* Front and workers come from the spawner in this order; the spare is the youngest. */
static void find_processes(struct live *live)
{
	pid_t pids[DAEMON_PIDS_MAX];

	wait_processes(live, 3 + VMS, pids);
	live->front = pids[1];
	memcpy(live->workers, &pids[2], sizeof(live->workers));
}

static char vm_arguments[VMS][128];

static size_t add_arguments(const char **arguments, size_t n)
{
	for (size_t i = 0; i < VMS; i++) {
		snprintf(vm_arguments[i], sizeof(vm_arguments[i]),
			 "guest-cid=%zu,socket=@/vm%zu,uds-path=@/host%zu,max-connections=%d",
			 3 + i, i, i, CONNECTIONS);
		arguments[n++] = "--vm";
		arguments[n++] = vm_arguments[i];
	}
	arguments[n++] = "--worker";
	arguments[n++] = getenv("VSOCKD_WORKER");
	return n;
}

static void start(struct live *live, bool is_ordinary)
{
	const char *arguments[DAEMON_ARGUMENTS_MAX + 1] = {NULL};
	size_t n = 0;

	*live = (struct live){.is_ordinary = is_ordinary || geteuid() != 0};
	assert_int_equal(daemon_prepare(&live->daemon), 0);
	if (is_ordinary) {
		assert_int_equal(
			chown(live->daemon.directory, SANDBOX_ORDINARY_USER, SANDBOX_ORDINARY_USER),
			0);
		arguments[n++] = "setpriv";
		arguments[n++] = "--reuid=65534";
		arguments[n++] = "--regid=65534";
		arguments[n++] = "--clear-groups";
		arguments[n++] = "--inh-caps=-all";
		arguments[n++] = getenv("VSOCKD");
	} else {
		arguments[n++] = "";
	}
	add_arguments(arguments, n);
	assert_int_equal(daemon_start(&live->daemon, arguments, "host1", LIMIT), 0);
	assert_int_equal(daemon_wait_log(&live->daemon, "ready: ", LIMIT), 0);
	for (size_t i = 0; i < VMS; i++)
		start_guest(live, i);
	find_processes(live);
}

static void stop(struct live *live)
{
	for (size_t i = 0; i < VMS; i++)
		end_guest(live, i);
	assert_int_equal(daemon_stop(&live->daemon, LIMIT), 0);
}

/* ---- /proc ---- */

static FILE *open_proc(pid_t pid, const char *file)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	return fopen(path, "re");
}

/* What stands behind key at the start of a line; "" if there is no such line, or file. */
static void read_line(pid_t pid, const char *file, const char *key, char ret_value[256])
{
	FILE *stream = open_proc(pid, file);
	char line[512];

	ret_value[0] = '\0';
	if (!stream)
		return;
	while (fgets(line, sizeof(line), stream)) {
		const char *value = line + strlen(key);

		if (strncmp(line, key, strlen(key)) != 0)
			continue;
		snprintf(ret_value, 256, "%.255s", value + strspn(value, " \t"));
		ret_value[strcspn(ret_value, "\n")] = '\0';
	}
	fclose(stream);
}

static void expect_status(pid_t pid, const char *key, const char *value)
{
	char found[256];

	read_line(pid, "status", key, found);
	if (strcmp(found, value) != 0)
		fail_msg("process %d: %s is \"%s\", not \"%s\"", pid, key, found, value);
}

static void expect_limit(pid_t pid, const char *name, unsigned long long value)
{
	char found[256];
	unsigned long long soft, hard;

	read_line(pid, "limits", name, found);
	assert_int_equal(sscanf(found, "%llu %llu", &soft, &hard), 2);
	if (soft != value || hard != value)
		fail_msg("process %d: %s is \"%s\"", pid, name, found);
}

static bool may_look_inside(pid_t pid, const char *what)
{
	char path[64];

	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (dir) {
		closedir(dir);
		return true;
	}
	assert_int_not_equal(geteuid(), 0);
	print_message("not looked at, as only root may: inside of the %s\n", what);
	return false;
}

static void expect_ids(pid_t pid, uint32_t id)
{
	char ids[64];

	snprintf(ids, sizeof(ids), "%u\t%u\t%u\t%u", id, id, id, id);
	expect_status(pid, "Uid:", ids);
	expect_status(pid, "Gid:", ids);
}

static void expect_no_privileges(pid_t pid)
{
	static const char *const sets[] = {"CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"};

	for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		expect_status(pid, sets[i], "0000000000000000");
	expect_status(pid, "NoNewPrivs:", "1");
	expect_status(pid, "Seccomp:", policy_has_filter ? "2" : "0");
	expect_status(pid, "Threads:", "1");
	expect_limit(pid, "Max core file size", 0);
	if (policy_has_filter)
		expect_limit(pid, "Max processes", 0);
}

static void namespace_of(pid_t pid, const char *name, char ret_link[64])
{
	char path[64];
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, name);
	len = readlink(path, ret_link, 63);
	assert_true(len > 0);
	ret_link[len] = '\0';
}

static void expect_other_namespaces(pid_t one, pid_t other, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char its[64], others[64];

		namespace_of(one, namespaces[i], its);
		namespace_of(other, namespaces[i], others);
		if (strcmp(its, others) == 0)
			fail_msg("processes %d and %d share namespace %s", one, other,
				 namespaces[i]);
	}
}

static void expect_empty_root(pid_t pid)
{
	char path[64];
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/root", pid);
	dir = opendir(path);
	assert_non_null(dir);
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			fail_msg("process %d sees %s", pid, entry->d_name);
	closedir(dir);
}

static void expect_no_writable_code(pid_t pid)
{
	FILE *maps = open_proc(pid, "maps");
	char line[512], flags[8];
	size_t n = 0;

	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps)) {
		assert_int_equal(sscanf(line, "%*s %7s", flags), 1);
		if (strchr(flags, 'w') && strchr(flags, 'x'))
			fail_msg("process %d: %s", pid, line);
		n++;
	}
	fclose(maps);
	assert_true(n > 3);
}

static void expect_no_environment(pid_t pid)
{
	FILE *environment = open_proc(pid, "environ");

	assert_non_null(environment);
	assert_int_equal(fgetc(environment), EOF);
	fclose(environment);
}

/*
 * The spare is older than its walls. The last of them that shows is the filter;
 * without one, this limit.
 */
static void wait_confined(pid_t pid)
{
	static const struct timespec moment = {.tv_nsec = 1000000};
	int64_t deadline = deadline_in(LIMIT);
	char found[256];

	for (;;) {
		if (policy_has_filter)
			read_line(pid, "status", "Seccomp:", found);
		else
			read_line(pid, "limits", "Max msgqueue size", found);
		if (found[0] == (policy_has_filter ? '2' : '0'))
			return;
		assert_true(deadline_left(deadline) > 0);
		nanosleep(&moment, NULL);
	}
}

/* ---- fds ---- */

enum kind {
	FD_NULL,
	FD_LOG,
	FD_SOCKET,
	FD_EPOLL,
	FD_EVENTFD,
	FD_PIDFD,
	FD_SIGNALFD,
	FD_MEMFD,
	FD_PROGRAM,
	FD_OTHER,
	FD_KINDS,
};

static const char *const kind_names[FD_KINDS] = {
	"/dev/null", "log",	 "socket", "epoll",   "eventfd",
	"pidfd",     "signalfd", "memfd",  "program", "of another kind"};

static enum kind kind_of(const char *target)
{
	static const struct {
		const char *start;
		enum kind kind;
	} starts[] = {
		{"/dev/null", FD_NULL},
		{"socket:[", FD_SOCKET},
		{"anon_inode:[eventpoll]", FD_EPOLL},
		{"anon_inode:[eventfd]", FD_EVENTFD},
		{"anon_inode:[pidfd]", FD_PIDFD},
		{"pidfd:", FD_PIDFD},
		{"anon_inode:[signalfd]", FD_SIGNALFD},
		{"/memfd:", FD_MEMFD},
	};

	for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++)
		if (strncmp(target, starts[i].start, strlen(starts[i].start)) == 0)
			return starts[i].kind;
	if (strlen(target) > 4 && strcmp(target + strlen(target) - 4, "/log") == 0)
		return FD_LOG;
	return strstr(target, "vsockd-worker") ? FD_PROGRAM : FD_OTHER;
}

#define NAMES_MAX 256

/* What tells open files apart across processes: an inode, or an eventfd's number. */
struct names {
	char all[NAMES_MAX][64];
	size_t n;
};

static void add_eventfd(pid_t pid, const char *fd, struct names *names)
{
	char file[64], id[256];

	snprintf(file, sizeof(file), "fdinfo/%.32s", fd);
	read_line(pid, file, "eventfd-id:", id);
	if (id[0] == '\0')
		return; /* closed since it was listed */
	assert_true(names->n < NAMES_MAX);
	snprintf(names->all[names->n++], sizeof(names->all[0]), "eventfd %.40s", id);
}

static void list_fds(pid_t pid, size_t ret_counts[FD_KINDS], struct names *ret_names)
{
	char path[64];
	struct dirent *entry;
	DIR *dir;

	memset(ret_counts, 0, FD_KINDS * sizeof(ret_counts[0]));
	ret_names->n = 0;
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	assert_non_null(dir);
	while ((entry = readdir(dir))) {
		char target[PATH_MAX];
		ssize_t len = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);
		enum kind kind;

		if (entry->d_name[0] == '.' || (len < 0 && errno == ENOENT))
			continue; /* closed since it was listed */
		assert_true(len > 0 && ret_names->n < NAMES_MAX);
		target[len] = '\0';
		kind = kind_of(target);
		if (kind == FD_OTHER)
			fail_msg("process %d has fd %s: %s", pid, entry->d_name, target);
		ret_counts[kind]++;
		if (kind == FD_EVENTFD)
			add_eventfd(pid, entry->d_name, ret_names);
		else if (kind == FD_SOCKET || kind == FD_MEMFD)
			snprintf(ret_names->all[ret_names->n++], sizeof(ret_names->all[0]), "%.63s",
				 target);
	}
	closedir(dir);
}

#define ANY_NUMBER SIZE_MAX

static bool is_count(const size_t counts[FD_KINDS], const size_t expected[FD_KINDS], size_t kind)
{
	return counts[kind] == expected[kind] || expected[kind] == ANY_NUMBER;
}

static bool are_counts(const size_t counts[FD_KINDS], const size_t expected[FD_KINDS])
{
	for (size_t i = 0; i < FD_KINDS; i++)
		if (!is_count(counts, expected, i))
			return false;
	return true;
}

/* At rest: it may just be passing on a socket, of a connection or of a new worker. */
static void expect_fds(pid_t pid, const char *what, const size_t expected[FD_KINDS],
		       size_t ret_counts[FD_KINDS], struct names *ret_names)
{
	static const struct timespec moment = {.tv_nsec = 1000000};
	int64_t deadline = deadline_in(LIMIT);

	for (;;) {
		list_fds(pid, ret_counts, ret_names);
		if (are_counts(ret_counts, expected))
			return;
		if (deadline_left(deadline) == 0)
			break;
		nanosleep(&moment, NULL);
	}
	for (size_t i = 0; i < FD_KINDS; i++)
		if (!is_count(ret_counts, expected, i))
			fail_msg("%s has %zu fds %s, not %zu", what, ret_counts[i], kind_names[i],
				 expected[i]);
}

static void expect_disjoint(const struct names *one, const struct names *other)
{
	for (size_t i = 0; i < one->n; i++)
		for (size_t k = 0; k < other->n; k++)
			if (strcmp(one->all[i], other->all[k]) == 0)
				fail_msg("two workers share %s", one->all[i]);
}

/* Inodes of mapped memfds: guest memory, the connections' buffers, the journal of the rings. */
static void list_shared_maps(pid_t pid, struct names *ret_names)
{
	FILE *maps = open_proc(pid, "maps");
	char line[512];

	assert_non_null(maps);
	ret_names->n = 0;
	while (fgets(line, sizeof(line), maps)) {
		assert_true(ret_names->n < NAMES_MAX);
		if (strstr(line, "/memfd:") &&
		    sscanf(line, "%*s %*s %*s %*s %63s", ret_names->all[ret_names->n]) == 1)
			ret_names->n++;
	}
	fclose(maps);
}

/* ---- the audit ---- */

static void audit_spawner(const struct live *live)
{
	/* Chosen ids for workers, sockets of other users. */
	const char *kept = live->is_ordinary ? "0000000000000000" : "00000000000000c2";
	const size_t fds[FD_KINDS] = {
		[FD_NULL] = 1,	   [FD_LOG] = 2,	 [FD_SOCKET] = 1,  [FD_EPOLL] = 1,
		[FD_SIGNALFD] = 1, [FD_PIDFD] = 2 + VMS, [FD_PROGRAM] = 1,
	};
	size_t counts[FD_KINDS];
	struct names names;
	pid_t pid = live->daemon.pid;

	expect_status(pid, "CapInh:", "0000000000000000");
	expect_status(pid, "CapPrm:", kept);
	expect_status(pid, "CapEff:", kept);
	expect_status(pid, "CapAmb:", "0000000000000000");
	if (!live->is_ordinary)
		expect_status(pid, "CapBnd:", kept);
	expect_status(pid, "NoNewPrivs:", "1");
	expect_status(pid, "Threads:", "1");
	expect_limit(pid, "Max core file size", 0);
	if (!may_look_inside(pid, "spawner"))
		return;
	expect_fds(pid, "the spawner", fds, counts, &names);
	expect_no_writable_code(pid);
}

static void audit_front(const struct live *live)
{
	/* Each guest has a region, and kick, call and error fds of as many rings as it started. */
	size_t n_rings = live->guests[0].n_rings + live->guests[1].n_rings;
	const size_t fds[FD_KINDS] = {
		[FD_NULL] = 1,
		[FD_LOG] = 2,
		/* The spawner; three listeners, front-end and connection a VM; the workers. */
		[FD_SOCKET] = 1 + 5 * VMS + VMS + 1,
		[FD_EPOLL] = 1,
		/* Each guest's memory, each place's journal of rings, each worker's buffers. */
		[FD_MEMFD] = VMS + VMS + VMS + 1,
		[FD_EVENTFD] = ANY_NUMBER,
	};
	size_t counts[FD_KINDS];
	struct names names;
	pid_t pid = live->front;

	expect_no_privileges(pid);
	expect_ids(pid, live->is_ordinary ? (geteuid() ? geteuid() : SANDBOX_ORDINARY_USER)
					  : POLICY_FRONT_ID);
	if (!may_look_inside(pid, "front"))
		return;
	expect_fds(pid, "the front", fds, counts, &names);
	assert_in_range(counts[FD_EVENTFD], 2 * n_rings, 3 * n_rings);
	expect_other_namespaces(pid, getpid(), FRONT_NAMESPACES);
	expect_empty_root(pid);
	expect_no_writable_code(pid);
}

static void audit_worker(const struct live *live, size_t i, struct names *ret_fds,
			 struct names *ret_maps)
{
	size_t n_null = policy_has_filter ? 3 : 2, counts[FD_KINDS];
	bool is_spare = i == VMS;
	pid_t pid = live->workers[i];
	char uid[256];

	expect_no_privileges(pid);
	read_line(pid, "status", "Uid:", uid);
	if (live->is_ordinary)
		expect_ids(pid, geteuid() ? geteuid() : SANDBOX_ORDINARY_USER);
	else
		assert_in_range(strtoul(uid, NULL, 10), POLICY_WORKER_ID, POLICY_WORKER_ID + 16);
	expect_limit(pid, "Max locked memory", 0);
	expect_limit(pid, "Max msgqueue size", 0);
	expect_limit(pid, "Max open files", CONNECTIONS + 96);
	if (policy_has_filter)
		expect_limit(pid, "Max file size", 0);
	if (!may_look_inside(pid, "worker"))
		return;
	list_fds(pid, counts, ret_fds);
	assert_int_equal(counts[FD_NULL], n_null);
	assert_int_equal(counts[FD_LOG], 3 - n_null);
	assert_int_equal(counts[FD_EPOLL], 1);
	/* The channel, and the one connection. Memory is mapped, and its fd closed. */
	assert_int_equal(counts[FD_SOCKET], is_spare ? 1 : 2);
	assert_int_equal(counts[FD_MEMFD], 0);
	assert_int_equal(counts[FD_PIDFD] + counts[FD_SIGNALFD] + counts[FD_PROGRAM], 0);
	if (is_spare)
		assert_int_equal(counts[FD_EVENTFD], 0);
	else
		assert_in_range(counts[FD_EVENTFD], 2 * live->guests[i].n_rings,
				3 * live->guests[i].n_rings);
	list_shared_maps(pid, ret_maps);
	assert_int_equal(ret_maps->n, is_spare ? 1 : 3);
	expect_other_namespaces(pid, getpid(), WORKER_NAMESPACES);
	if (geteuid() == 0)
		expect_other_namespaces(pid, live->front, FRONT_NAMESPACES);
	expect_empty_root(pid);
	expect_no_writable_code(pid);
	expect_no_environment(pid);
}

/* Which of two that were started at a time was ready first, and got a VM, is chance. */
static void put_spare_last(struct live *live)
{
	struct names maps;

	for (size_t i = 0; i < VMS; i++) {
		pid_t pid = live->workers[i];

		if (!may_look_inside(pid, "worker"))
			return; /* and so nobody will */
		list_shared_maps(pid, &maps);
		if (maps.n > 1)
			continue;
		live->workers[i] = live->workers[VMS];
		live->workers[VMS] = pid;
	}
}

static void audit(struct live *live)
{
	struct names fds[VMS + 1] = {{.n = 0}}, maps[VMS + 1] = {{.n = 0}};

	put_spare_last(live);
	wait_confined(live->workers[VMS]);
	audit_spawner(live);
	audit_front(live);
	for (size_t i = 0; i <= VMS; i++)
		audit_worker(live, i, &fds[i], &maps[i]);
	for (size_t i = 0; i < VMS; i++) {
		expect_disjoint(&fds[i], &fds[i + 1]);
		expect_disjoint(&maps[i], &maps[i + 1]);
	}
	expect_disjoint(&fds[0], &fds[VMS]);
	expect_disjoint(&maps[0], &maps[VMS]);
	for (size_t i = 0; i < VMS && fds[i].n > 0; i++)
		expect_other_namespaces(live->workers[i], live->workers[i + 1], WORKER_NAMESPACES);
}

static void need_namespaces(void)
{
	if (!sandbox_has_namespaces())
		sandbox_skip("this user may not make user namespaces");
}

static void test_live_processes_hold_what_they_need_and_nothing_else(void **state)
{
	struct live live;

	(void)state;
	need_namespaces();
	start(&live, false);
	audit(&live);
	stop(&live);
}

static void test_so_do_those_of_an_ordinary_user(void **state)
{
	struct live live;

	(void)state;
	if (geteuid() != 0)
		return; /* the test above was that one */
	need_namespaces();
	start(&live, true);
	audit(&live);
	stop(&live);
}

/* ---- system calls ---- */

static void connect_from_host(struct live *live, size_t vm)
{
	struct guest *guest = &live->guests[vm];
	struct guest_connection *connection;
	struct host_stream stream;
	char path[108];
	uint32_t port;

	snprintf(path, sizeof(path), "%s/host%zu", live->daemon.directory, vm);
	assert_int_equal(guest_listen(guest, 99), 0);
	host_stream_init(&stream, host_connect(path, 99, LIMIT));
	guest_watch(guest, &stream.watch);
	connection = guest_accept_wait(guest, 99, LIMIT);
	assert_non_null(connection);
	while (host_stream_take_ok(&stream, &port) == 0)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(guest_shutdown(connection, PACKET_SHUTDOWN_SEND), 0);
	host_stream_send(&stream, "bye", 3, true);
	while (!stream.is_ended)
		assert_true(guest_poll(guest, LIMIT) >= 0);
	guest_unwatch(guest, &stream.watch);
	host_stream_end(&stream);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
}

static void exchange_messages(struct live *live, size_t vm)
{
	struct guest *guest = &live->guests[vm];
	struct guest_connection *connection;
	char path[108], bytes[32];
	int fd;

	snprintf(path, sizeof(path), "%s/host%zu", live->daemon.directory, vm);
	assert_int_equal(guest_listen_messages(guest, 98), 0);
	fd = host_connect_messages(path, 98, LIMIT);
	assert_true(fd >= 0);
	connection = guest_accept_wait(guest, 98, LIMIT);
	assert_non_null(connection);
	assert_int_equal(socket_wait(fd, POLLIN, deadline_in(LIMIT)), 0);
	assert_true(recv(fd, bytes, sizeof(bytes), 0) > 0);
	assert_int_equal(guest_send_message(connection, "", 0, 0, LIMIT), 0);
	assert_int_equal(socket_wait(fd, POLLIN, deadline_in(LIMIT)), 0);
	assert_int_equal(recv(fd, bytes, sizeof(bytes), 0), 0);
	assert_int_equal(send(fd, "message", 7, MSG_NOSIGNAL), 7);
	assert_int_equal(guest_receive_message_wait(connection, bytes, sizeof(bytes), LIMIT), 7);
	close(fd);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
}

/* Buffers fill up and empty again: their memory is given back. */
static void keep_hosts_slow(struct live *live, size_t vm)
{
	static uint8_t bytes[1 << 20];
	struct guest *guest = &live->guests[vm];
	struct guest_connection *connections[SLOW_HOSTS];
	struct host_stream hosts[SLOW_HOSTS];
	size_t n_sent[SLOW_HOSTS] = {0};
	char path[108];
	int listener;

	snprintf(path, sizeof(path), "%s/host%zu", live->daemon.directory, vm);
	listener = host_listen(path, PORT + 1);
	assert_true(listener >= 0);
	for (size_t i = 0; i < SLOW_HOSTS; i++) {
		ssize_t n;

		connections[i] = guest_connect_wait(guest, PACKET_HOST_CID, PORT + 1, LIMIT);
		assert_non_null(connections[i]);
		host_stream_init(&hosts[i], host_accept(listener, LIMIT));
		host_stream_pause(&hosts[i], true);
		guest_watch(guest, &hosts[i].watch);
		while ((n = guest_send(connections[i], bytes, sizeof(bytes))) > 0 ||
		       guest_poll(guest, 100) > 0)
			n_sent[i] += n > 0 ? (size_t)n : 0;
	}
	for (size_t i = 0; i < SLOW_HOSTS; i++) {
		host_stream_pause(&hosts[i], false);
		while (hosts[i].n_received < n_sent[i])
			assert_true(guest_poll(guest, LIMIT) > 0);
		guest_unwatch(guest, &hosts[i].watch);
		host_stream_end(&hosts[i]);
		guest_finish(connections[i], LIMIT);
	}
	close(listener);
}

struct seen {
	pid_t pid;
	bool is_worker, is_exporter, is_confined;
};

#define SEEN_MAX 32

struct usage {
	struct seen processes[SEEN_MAX];
	size_t n_processes;
	bool was_used[64]; /* by rule */
};

static struct seen *find_seen(struct usage *usage, pid_t pid)
{
	for (size_t i = 0; i < usage->n_processes; i++)
		if (usage->processes[i].pid == pid)
			return &usage->processes[i];
	assert_true(usage->n_processes < SEEN_MAX);
	usage->processes[usage->n_processes] = (struct seen){.pid = pid};
	return &usage->processes[usage->n_processes++];
}

static void note_call(struct usage *usage, const struct seen *seen, const char *call)
{
	enum policy_role role = seen->is_exporter ? POLICY_EXPORTER
				: seen->is_worker ? POLICY_WORKER
						  : POLICY_FRONT;
	const struct policy_rule *rules;
	size_t n_rules;

	rules = policy_rules(&n_rules);
	assert_true(n_rules < sizeof(usage->was_used));
	for (size_t i = 0; i < n_rules; i++)
		if (rules[i].role == role && strcmp(rules[i].call, call) == 0)
			usage->was_used[i] = true;
}

/* A line is "PID call(arguments) = result". */
static void note_line(struct usage *usage, const char *line)
{
	char call[64];
	struct seen *seen;
	int pid;

	if (sscanf(line, "%d %63[a-z0-9_](", &pid, call) != 2)
		return;
	seen = find_seen(usage, pid);
	if (strcmp(call, "execveat") == 0)
		seen->is_worker = true;
	/* Of those that are started as programs, the only one that asks where it listens. */
	if (strcmp(call, "getsockname") == 0 && seen->is_worker && !seen->is_confined)
		seen->is_exporter = true;
	if (seen->is_confined)
		note_call(usage, seen, call);
	if (strcmp(call, "seccomp") == 0 && strstr(line, "SECCOMP_SET_MODE_FILTER") &&
	    strstr(line, "NULL") == NULL)
		seen->is_confined = true;
}

static bool has_exporter(void)
{
	return getenv("VSOCKD_EXPORTER") != NULL;
}

/* What has a body, and what has none. */
static void scrape(const struct live *live)
{
	static const char *const methods[] = {"GET", "HEAD"};
	char request[64], answer[512];

	for (size_t i = 0; has_exporter() && i < 2; i++) {
		snprintf(request, sizeof(request), "%s /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
			 methods[i]);
		assert_true(http_ask(live->http_port, request, answer, sizeof(answer), LIMIT) > 0);
		assert_int_equal(strncmp(answer, "HTTP/1.1 200 ", 13), 0);
	}
}

/* Why a call may stand in the table that this traffic does not make. */
static const char *excuse(const struct policy_rule *rule)
{
	if (strcmp(rule->call, "clock_gettime") == 0)
		return "the vDSO has a clock here";
	if (rule->role != POLICY_WORKER && strcmp(rule->call, "exit_group") == 0)
		return "front and exporter end by themselves only when something failed";
	if (rule->role == POLICY_EXPORTER && !has_exporter())
		return "built without libmicrohttpd";
	if (strcmp(rule->call, "getsockopt") == 0)
		return "no state goes through a socket here, see integration/test_state.c";
	return NULL;
}

static void start_traced(struct live *live)
{
	const char *arguments[DAEMON_ARGUMENTS_MAX + 1] = {
		"strace", "-D", "-f", "-qq", "-s", "0", "-o", "@/trace", getenv("VSOCKD"), NULL};
	char address[32];
	size_t n;

	*live = (struct live){.is_ordinary = geteuid() != 0, .http_port = http_free_port()};
	assert_int_equal(daemon_prepare(&live->daemon), 0);
	n = add_arguments(arguments, 9);
	snprintf(address, sizeof(address), "127.0.0.1:%d", live->http_port);
	if (has_exporter()) {
		arguments[n++] = "--metrics-http";
		arguments[n++] = address;
	}
	assert_int_equal(daemon_start(&live->daemon, arguments, "host1", LIMIT), 0);
	assert_int_equal(daemon_wait_log(&live->daemon, "ready: ", LIMIT), 0);
}

/* A process is gone when its tracer has written down what it did. */
static void read_trace(struct live *live, struct usage *usage)
{
	FILE *trace = fopen(daemon_path(&live->daemon, "trace"), "re");
	char line[4096];

	assert_non_null(trace);
	while (fgets(line, sizeof(line), trace))
		note_line(usage, line);
	fclose(trace);
}

static bool can_trace(void)
{
	return system("command -v strace >/dev/null && strace -qq -o /dev/null true 2>/dev/null") ==
	       0;
}

static void test_each_allowed_call_is_made(void **state)
{
	static const char *const names[POLICY_ROLE_MAX] = {"front", "worker", "exporter"};
	static struct usage usage;
	const struct policy_rule *rules;
	size_t n_rules, n_unused = 0, n_confined = 0;
	pid_t pids[DAEMON_PIDS_MAX];
	struct live live;

	(void)state;
	need_namespaces();
	if (!policy_has_filter) {
		print_message("skipped: a build with a sanitizer has no filter\n");
		skip();
	}
	if (!can_trace()) {
		print_message("skipped: strace is not installed, or not permitted\n");
		skip();
	}
	usage = (struct usage){.n_processes = 0};
	start_traced(&live);
	for (size_t i = 0; i < VMS; i++)
		start_guest(&live, i);
	scrape(&live);
	connect_from_host(&live, 0);
	exchange_messages(&live, 0);
	keep_hosts_slow(&live, 0);
	assert_int_equal(guest_stop(&live.guests[1]), 0);
	assert_int_equal(vhost_change_memory(&live.guests[1].vhost, VHOST_REM_MEM_REG,
					     &live.guests[1].memory.regions[0], -1),
			 0);
	for (size_t i = 0; i < VMS; i++)
		end_guest(&live, i);
	/* They were dismissed, and end by themselves. */
	wait_processes(&live, 3 + has_exporter(), pids);
	read_trace(&live, &usage);
	assert_int_equal(daemon_stop(&live.daemon, LIMIT), 0);
	for (size_t i = 0; i < usage.n_processes; i++)
		n_confined += usage.processes[i].is_confined;
	assert_true(n_confined >= 2 + VMS + (size_t)has_exporter());
	rules = policy_rules(&n_rules);
	for (size_t i = 0; i < n_rules; i++) {
		if (usage.was_used[i])
			continue;
		print_message("%s: %s is not made: %s\n", names[rules[i].role], rules[i].call,
			      excuse(&rules[i]) ? excuse(&rules[i]) : "why is it allowed?");
		n_unused += !excuse(&rules[i]);
	}
	assert_int_equal(n_unused, 0);
}

static int run(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_live_processes_hold_what_they_need_and_nothing_else),
		cmocka_unit_test(test_so_do_those_of_an_ordinary_user),
		cmocka_unit_test(test_each_allowed_call_is_made),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
	return sandbox_run_as_both(run);
}
