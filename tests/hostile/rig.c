/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/hostile/rig.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/frontend/stopwatch.h"

#define ECHO_PORT     5000
#define NEW_PORT      5001
#define LONG_MESSAGE  20000 /* each 16th; the others are short */
#define SHORT_MESSAGE 64

/* ---- the neighbour, in its own process ---- */

struct echo {
	struct watch watch;
	bool has_failed;
};

static void echo_ready(struct watch *watch, short events)
{
	struct echo *echo = (struct echo *)(void *)watch;
	uint8_t bytes[65536];
	ssize_t n;

	(void)events;
	while ((n = read(watch->fd, bytes, sizeof(bytes))) > 0)
		/* A message at a time is under way, and the socket has room for many. */
		if (host_write(watch->fd, bytes, (size_t)n, SOCKET_TIMEOUT) != 0)
			echo->has_failed = true;
	if (n == 0 || errno != EAGAIN)
		watch->events = 0;
}

static const char *round_trip(struct guest_connection *connection, uint64_t number,
			      uint64_t *offset)
{
	static uint8_t sent[LONG_MESSAGE], received[LONG_MESSAGE];
	size_t len = number % 16 ? SHORT_MESSAGE : LONG_MESSAGE;

	pattern_fill(sent, len, 3, *offset);
	if (guest_send_all(connection, sent, len, 2 * RIG_LIMIT) != 0)
		return "a message could not be sent";
	if (guest_receive_all(connection, received, len, 2 * RIG_LIMIT) != (ssize_t)len)
		return "the echo did not come";
	if (!pattern_is(received, len, 3, *offset))
		return "the echo is not what was sent";
	*offset += len;
	return NULL;
}

/* Front and spawner have a part in this, unlike in what connections carry. */
static const char *connect_anew(struct guest *guest, int listener)
{
	struct guest_connection *connection =
		guest_connect_wait(guest, PACKET_HOST_CID, NEW_PORT, 2 * RIG_LIMIT);
	int fd;

	if (!connection)
		return "no new connection";
	fd = host_accept(listener, RIG_LIMIT);
	if (fd < 0)
		return "a connection that is none";
	close(fd);
	return guest_finish(connection, 2 * RIG_LIMIT) != 0 ? "a connection does not end" : NULL;
}

static void keep_larger(_Atomic int64_t *worst, int64_t ms)
{
	if (ms > atomic_load(worst))
		atomic_store(worst, ms);
}

static const char *make_round_trips(const struct rig *rig, struct guest *guest,
				    struct guest_connection *connection, const struct echo *echo,
				    int listener)
{
	struct neighbour *neighbour = rig->neighbour;
	pid_t pids[DAEMON_PIDS_MAX];
	uint64_t offset = 0;

	/* Spawner, front, and the oldest worker, which is this guest's. */
	if (daemon_pids(&rig->daemon, pids) < 3)
		return "no worker";
	for (uint64_t i = 0; !neighbour->is_to_end; i++) {
		struct stopwatch watch;
		const char *failure;

		stopwatch_start(&watch, pids, 3);
		failure = round_trip(connection, i, &offset);
		if (!failure && i % 8 == 7)
			failure = connect_anew(guest, listener);
		if (failure || echo->has_failed)
			return failure ? failure : "the echo failed";
		keep_larger(&neighbour->longest_ms, stopwatch_elapsed(&watch));
		keep_larger(&neighbour->worst_ms, stopwatch_spent(&watch));
		atomic_fetch_add(&neighbour->n_round_trips, 1);
		/* Leave the processors to those who attack. */
		if (guest_poll_for(guest, 1) < 0)
			return "the guest lost its device";
	}
	return NULL;
}

static const char *serve(const struct rig *rig, struct guest *guest)
{
	struct guest_options options = {.socket = rig->neighbour_socket, .timeout = RIG_LIMIT};
	struct echo echo = {.watch = {.events = POLLIN, .ready = echo_ready}};
	struct guest_connection *connection;
	const char *failure;
	int listener, new_listener;

	if (guest_start(guest, &options) != 0)
		return "the guest does not start";
	listener = host_listen(rig->neighbour_uds_path, ECHO_PORT);
	connection = guest_connect_wait(guest, PACKET_HOST_CID, ECHO_PORT, RIG_LIMIT);
	if (!connection)
		return "the guest cannot connect";
	echo.watch.fd = host_accept(listener, RIG_LIMIT);
	guest_watch(guest, &echo.watch);
	new_listener = host_listen(rig->neighbour_uds_path, NEW_PORT);
	failure = make_round_trips(rig, guest, connection, &echo, new_listener);
	if (!failure && guest_finish(connection, RIG_LIMIT) != 0)
		failure = "the connection does not end";
	return failure;
}

static _Noreturn void be_neighbour(const struct rig *rig, pid_t parent)
{
	static struct guest guest;
	struct neighbour *neighbour = rig->neighbour;
	const char *failure;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	failure = serve(rig, &guest);
	if (failure || guest_violations(&guest)[0] != '\0') {
		snprintf(neighbour->failure, sizeof(neighbour->failure), "%s; %.100s; %.80s",
			 failure ? failure : "violations", guest_violations(&guest),
			 vhost_error(&guest.vhost));
		neighbour->has_failed = true;
		_exit(1);
	}
	guest_end(&guest);
	_exit(0);
}

static void start_neighbour(struct rig *rig)
{
	pid_t parent = getpid();

	rig->neighbour = mmap(NULL, sizeof(*rig->neighbour), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(rig->neighbour != MAP_FAILED);
	fflush(NULL);
	rig->neighbour_pid = fork();
	assert_true(rig->neighbour_pid >= 0);
	if (rig->neighbour_pid == 0)
		be_neighbour(rig, parent);
	rig_check_neighbour(rig, 20, "before any attack");
}

static void stop_neighbour(struct rig *rig)
{
	int status;

	rig->neighbour->is_to_end = true;
	assert_int_equal(waitpid(rig->neighbour_pid, &status, 0), rig->neighbour_pid);
	if (rig->neighbour->has_failed)
		fail_msg("neighbour: %s", rig->neighbour->failure);
	assert_int_equal(status, 0);
	munmap(rig->neighbour, sizeof(*rig->neighbour));
}

/* ---- vsockd ---- */

void rig_wait_a_moment(int64_t deadline, const char *what)
{
	static const struct timespec moment = {.tv_nsec = 1000000};

	if (deadline_left(deadline) == 0)
		fail_msg("%s", what);
	nanosleep(&moment, NULL);
}

int rig_count_fds(pid_t pid)
{
	char path[64];
	struct dirent *entry;
	int n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while ((entry = readdir(dir)))
		n += entry->d_name[0] != '.';
	closedir(dir);
	return n;
}

static size_t count_processes(const struct rig *rig)
{
	pid_t pids[DAEMON_PIDS_MAX];

	return daemon_pids(&rig->daemon, pids);
}

static pid_t find_front(const struct rig *rig)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(&rig->daemon, pids);

	/* It is forked before anything else, and no one of its kind later. */
	assert_true(n > 1);
	return pids[1];
}

/* A spare, and the neighbour's worker; the front has heard of both when twice the same is seen. */
static void note_rest(struct rig *rig)
{
	int64_t deadline = deadline_in(RIG_LIMIT);
	int n_before = -1;

	while (count_processes(rig) != 4)
		rig_wait_a_moment(deadline, "not as many processes as there should be at rest");
	rig->n_processes = 4;
	while ((rig->n_fds = rig_count_fds(rig->front)) != n_before) {
		n_before = rig->n_fds;
		rig_wait_a_moment(deadline, "the fds of the front never rest");
	}
	if (rig->n_fds < 0)
		print_message("not looked at: the front's fds, which this user may not see\n");
}

static void start(struct rig *rig, const char *worker, const char *options)
{
	char vm[256];
	const char *const arguments[] = {
		"",
		"--worker",
		worker,
		"--control",
		"@/control",
		"--vm",
		"guest-cid=3,socket=@/good,uds-path=@/good-host,max-connections=16",
		"--vm",
		vm,
		NULL};
	const char *directory = rig->daemon.directory;

	snprintf(vm, sizeof(vm), "guest-cid=%d,socket=@/bad,uds-path=@/bad-host,%s", RIG_CID,
		 options);

	snprintf(rig->socket, sizeof(rig->socket), "%s/bad", directory);
	snprintf(rig->uds_path, sizeof(rig->uds_path), "%s/bad-host", directory);
	snprintf(rig->neighbour_socket, sizeof(rig->neighbour_socket), "%s/good", directory);
	snprintf(rig->neighbour_uds_path, sizeof(rig->neighbour_uds_path), "%s/good-host",
		 directory);
	assert_int_equal(daemon_start(&rig->daemon, arguments, "bad-host", RIG_LIMIT), 0);
	assert_int_equal(daemon_wait_log(&rig->daemon, "ready: ", RIG_LIMIT), 0);
	rig->front = find_front(rig);
	start_neighbour(rig);
	note_rest(rig);
	rig_mark(rig);
}

void rig_start(struct rig *rig, const char *options)
{
	*rig = (struct rig){.n_processes = 0};
	assert_int_equal(daemon_prepare(&rig->daemon), 0);
	start(rig, getenv("VSOCKD_WORKER"), options);
}

static void copy_program(const char *from, const char *to)
{
	char bytes[65536];
	int source = open(from, O_RDONLY | O_CLOEXEC);
	int target = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
	ssize_t n;

	assert_true(source >= 0 && target >= 0);
	while ((n = read(source, bytes, sizeof(bytes))) > 0)
		assert_int_equal(write(target, bytes, (size_t)n), n);
	assert_int_equal(n, 0);
	close(source);
	close(target);
}

/* Workers have a user id of their own: the file is for everybody. */
static void make_orders(struct rig *rig)
{
	int fd = open(daemon_path(&rig->daemon, "orders"), O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	assert_true(fd >= 0);
	assert_int_equal(fchmod(fd, 0666), 0);
	assert_int_equal(ftruncate(fd, sizeof(*rig->orders)), 0);
	rig->orders = mmap(NULL, sizeof(*rig->orders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(rig->orders != MAP_FAILED);
	close(fd);
}

void rig_start_evil(struct rig *rig, const char *options)
{
	*rig = (struct rig){.n_processes = 0};
	assert_int_equal(daemon_prepare(&rig->daemon), 0);
	assert_int_equal(chmod(rig->daemon.directory, 0711), 0);
	copy_program(getenv("EVIL_WORKER"), daemon_path(&rig->daemon, "vsockd-worker"));
	make_orders(rig);
	start(rig, daemon_path(&rig->daemon, "vsockd-worker"), options);
}

void rig_stop(struct rig *rig)
{
	stop_neighbour(rig);
	assert_int_equal(daemon_stop(&rig->daemon, RIG_LIMIT), 0);
	if (rig->orders)
		munmap(rig->orders, sizeof(*rig->orders));
}

int rig_connect(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	return fd;
}

void rig_connect_frontend(const struct rig *rig, struct vhost *ret_vhost)
{
	*ret_vhost = (struct vhost){
		.fd = rig_connect(rig->socket),
		.timeout = RIG_LIMIT,
		.ack_requests = ~UINT64_C(0),
	};
}

/* ---- what an attack did ---- */

static FILE *open_log(struct rig *rig)
{
	FILE *log = fopen(daemon_path(&rig->daemon, "log"), "re");

	assert_non_null(log);
	return log;
}

void rig_mark(struct rig *rig)
{
	FILE *log = open_log(rig);

	assert_int_equal(fseek(log, 0, SEEK_END), 0);
	rig->log_at = ftell(log);
	fclose(log);
	atomic_store(&rig->neighbour->worst_ms, 0);
	atomic_store(&rig->neighbour->longest_ms, 0);
}

static void check_alive(const struct rig *rig, const char *what)
{
	const struct neighbour *neighbour = rig->neighbour;

	if (socket_wait(rig->daemon.pidfd, POLLIN, deadline_in(0)) == 0)
		fail_msg("%s: vsockd has ended", what);
	if (neighbour->has_failed)
		fail_msg("%s: neighbour: %s", what, neighbour->failure);
}

void rig_check_neighbour(struct rig *rig, unsigned int n_round_trips, const char *what)
{
	struct neighbour *neighbour = rig->neighbour;
	uint64_t n = atomic_load(&neighbour->n_round_trips), until = n + n_round_trips, n_before;
	int64_t deadline = deadline_in(RIG_LIMIT), worst;

	while (n < until) {
		check_alive(rig, what);
		if (deadline_left(deadline) == 0)
			fail_msg("%s: the neighbour makes no progress", what);
		rig_wait_a_moment(deadline_in(RIG_LIMIT), what);
		n_before = n;
		n = atomic_load(&neighbour->n_round_trips);
		if (n != n_before)
			deadline = deadline_in(RIG_LIMIT);
	}
	worst = atomic_load(&neighbour->worst_ms);
	if (worst >= RIG_ROUND_TRIP_MAX)
		fail_msg("%s: a round trip of the neighbour took %" PRId64 " ms, %" PRId64
			 " with what the machine took",
			 what, worst, atomic_load(&neighbour->longest_ms));
}

/*
 * One spare more than at rest, with its channel, is what stays when a VM that
 * waited for a worker left before it came.
 */
void rig_check_rest(struct rig *rig, const char *what)
{
	int64_t deadline = deadline_in(RIG_LIMIT);
	size_t n_processes, n_more;
	int n_fds, n_fds_least;

	for (;;) {
		check_alive(rig, what);
		n_processes = count_processes(rig);
		n_fds = rig_count_fds(rig->front);
		n_more = n_processes - rig->n_processes;
		n_fds_least = rig->n_fds + (int)n_more;
		if (n_more <= 1 && (rig->n_fds < 0 || (n_fds >= n_fds_least &&
						       n_fds <= n_fds_least + rig->n_kept_max)))
			return;
		if (deadline_left(deadline) == 0)
			fail_msg("%s: %zu processes, %d fds in the front; at rest %zu and %d", what,
				 n_processes, n_fds, rig->n_processes, rig->n_fds);
		rig_wait_a_moment(deadline_in(RIG_LIMIT), what);
	}
}

void rig_check(struct rig *rig, const char *what)
{
	rig_check_rest(rig, what);
	rig_check_neighbour(rig, 200, what);
}

void rig_check_service(const struct rig *rig, const char *what)
{
	struct vhost vhost;

	rig_connect_frontend(rig, &vhost);
	/* The second is acknowledged when a worker has done it. */
	if (vhost_set_u64(&vhost, VHOST_SET_PROTOCOL_FEATURES, BIT64(VHOST_PROTOCOL_REPLY_ACK)) ||
	    vhost_set_u64(&vhost, VHOST_SET_FEATURES, BIT64(VIRTIO_VERSION_1)))
		fail_msg("%s: no service: %s", what, vhost_error(&vhost));
	vhost_close(&vhost);
}

size_t rig_count_log(struct rig *rig, const char *text)
{
	FILE *log = open_log(rig);
	char *line = NULL;
	size_t size = 0, n = 0;

	assert_int_equal(fseek(log, rig->log_at, SEEK_SET), 0);
	while (getline(&line, &size, log) >= 0)
		n += strstr(line, text) != NULL;
	free(line);
	fclose(log);
	return n;
}

void rig_wait_log(struct rig *rig, const char *text, const char *what)
{
	int64_t deadline = deadline_in(RIG_LIMIT);

	while (rig_count_log(rig, text) == 0) {
		check_alive(rig, what);
		if (deadline_left(deadline) == 0)
			fail_msg("%s: no line \"%s\" in the log", what, text);
		rig_wait_a_moment(deadline_in(RIG_LIMIT), what);
	}
}
