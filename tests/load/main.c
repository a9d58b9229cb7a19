/* SPDX-License-Identifier: Apache-2.0 */

/*
 *	load [--opened N] [--open N] [--busy N] [--megabytes N] [--trips N]
 *
 * So many connections opened and closed; so many open at once and idle; so many busy
 * ones, each byte checked; and what a neighbour that takes all it can get leaves of
 * throughput and round trips. What is held is printed; what must not grow is asserted.
 */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/load/attacks.h"

#define PORT	  2000
#define AT_A_TIME 64
#define SETTLE_MS 300
#define LEN	  100000 /* of a busy connection's pattern that is kept */
#define MIB	  (1u << 20)

static struct {
	size_t n_opened, n_open, n_busy, n_megabytes, n_trips;
} options = {100000, 5000, 64, 256, 5000};

static struct setup setup;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static double seconds_since(uint64_t began)
{
	return (double)(now_ns() - began) / 1e9;
}

static void start(size_t n_vms, size_t n_connections)
{
	char vm_options[64];

	snprintf(vm_options, sizeof(vm_options), "max-connections=%zu,groups=all", n_connections);
	setup_start(&setup, n_vms, vm_options, NULL);
}

/* ---- opened and closed ---- */

static int listen_at(size_t vm, uint32_t port)
{
	int listener = host_listen(setup.uds_paths[vm], port);

	assert_true(listener >= 0);
	return listener;
}

/* Once each of them, from the guest, and closed by it. */
static void open_and_close(struct guest *guest, int listener, size_t n)
{
	struct guest_connection *connections[AT_A_TIME];
	int fds[AT_A_TIME];

	for (size_t i = 0; i < n; i++)
		assert_non_null(connections[i] = guest_connect(guest, PACKET_HOST_CID, PORT));
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(guest_wait_state(connections[i], GUEST_ESTABLISHED, SETUP_LIMIT),
				 0);
		fds[i] = host_accept(listener, SETUP_LIMIT);
		assert_true(fds[i] >= 0);
	}
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(guest_close(connections[i]), 0);
		assert_int_equal(guest_wait_state(connections[i], GUEST_CLOSED, SETUP_LIMIT), 0);
		guest_forget(connections[i]);
		close(fds[i]);
	}
}

static void open_many(struct guest *guest, int listener, size_t n)
{
	for (; n > AT_A_TIME; n -= AT_A_TIME)
		open_and_close(guest, listener, AT_A_TIME);
	open_and_close(guest, listener, n);
}

/* The spare that follows the guest's worker is there. */
static int count_fds_at_rest(struct guest *guest)
{
	int n = -1, before;

	do {
		before = n;
		assert_int_equal(guest_poll_for(guest, SETTLE_MS), 0);
		n = daemon_count_fds(&setup.daemon);
	} while (n != before);
	return n;
}

/* What closed last the front is told of last. */
static void await_fds(struct guest *guest, int n)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);

	while (daemon_count_fds(&setup.daemon) > n) {
		if (deadline_left(deadline) == 0)
			fail_msg("%d fds instead of %d", daemon_count_fds(&setup.daemon), n);
		assert_true(guest_poll(guest, 10) >= 0);
	}
}

/* A few pages of the C library's, and of statistics that are touched for the first time. */
#define GROWTH_MAX (256 * 1024)
#define WARM_UP	   2000

static void test_connections_that_come_and_go_leave_nothing(void **state)
{
	struct guest *guest;
	int64_t resident;
	uint64_t began;
	double took;
	int listener, n_fds;

	(void)state;
	start(1, 1024);
	guest = setup_guest(&setup, 0, (struct guest_options){0});
	listener = listen_at(0, PORT);
	n_fds = count_fds_at_rest(guest);
	/* What is touched once is touched then. */
	open_many(guest, listener, WARM_UP);
	resident = daemon_resident(&setup.daemon);
	began = now_ns();
	open_many(guest, listener, options.n_opened);
	took = seconds_since(began);
	await_fds(guest, n_fds);
	printf("%zu connections opened and closed, %.0f a second; memory of all processes %+lld "
	       "KiB, no fd more\n",
	       options.n_opened, (double)options.n_opened / took,
	       (long long)(daemon_resident(&setup.daemon) - resident) / 1024);
	assert_true(daemon_resident(&setup.daemon) <= resident + GROWTH_MAX);
	close(listener);
	setup_stop(&setup);
}

/* ---- open at once ---- */

/* What the scheduler counts: how often each process ran, which no rounding hides. */
static uint64_t count_turns(void)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(&setup.daemon, pids);
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++) {
		unsigned long long turns = 0;
		char path[64];
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/schedstat", pids[i]);
		file = fopen(path, "r");
		if (!file || fscanf(file, "%*u %*u %llu", &turns) != 1)
			turns = 0;
		if (file)
			fclose(file);
		sum += turns;
	}
	return sum;
}

/* There is no event to wait for where nothing is to happen. */
#define IDLE_MS 2000

static void check_idle(struct guest *guest, size_t n)
{
	int64_t deadline = deadline_in(SETUP_LIMIT);
	uint64_t before;

	/* A spare, and what is owed to the front, may still be on their way. */
	do {
		before = count_turns();
		assert_int_equal(guest_poll_for(guest, SETTLE_MS), 0);
	} while (count_turns() != before && deadline_left(deadline) > 0);
	if (before == 0) {
		printf("this kernel does not count turns of processes\n");
		return;
	}
	assert_int_equal(guest_poll_for(guest, IDLE_MS), 0);
	printf("%zu idle connections: vsockd's processes ran %llu times in %d ms\n", n,
	       (unsigned long long)(count_turns() - before), IDLE_MS);
	assert_int_equal(count_turns(), before);
}

static void test_connections_that_stand_cost_no_time(void **state)
{
	size_t n = options.n_open;
	struct guest_connection **connections = calloc(n, sizeof(connections[0]));
	int *fds = calloc(n, sizeof(fds[0])), listener;
	struct guest *guest;
	int64_t resident;
	char byte;

	(void)state;
	assert_true(connections && fds);
	start(1, n);
	guest = setup_guest(&setup, 0, (struct guest_options){0});
	listener = listen_at(0, PORT);
	resident = daemon_resident(&setup.daemon);
	for (size_t i = 0; i < n; i++) {
		connections[i] = guest_connect_wait(guest, PACKET_HOST_CID, PORT, SETUP_LIMIT);
		assert_non_null(connections[i]);
		assert_true((fds[i] = host_accept(listener, SETUP_LIMIT)) >= 0);
	}
	printf("%zu connections open at once, %lld bytes of memory each\n", n,
	       (long long)(daemon_resident(&setup.daemon) - resident) / (long long)n);
	check_idle(guest, n);
	/* Each of them is one. */
	for (size_t i = 0; i < n; i++)
		assert_int_equal(host_write(fds[i], "x", 1, SETUP_LIMIT), 0);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(guest_receive_all(connections[i], &byte, 1, SETUP_LIMIT), 1);
		assert_int_equal(guest_abort(connections[i]), 0);
		close(fds[i]);
	}
	close(listener);
	free(connections);
	free(fds);
	setup_stop(&setup);
}

/* ---- busy ---- */

struct busy {
	struct guest_connection *connection;
	struct host_stream stream;
	size_t n_to_host, n_to_guest, n_checked;
};

static uint8_t patterns[2][LEN + 65536];

static void take_bytes(void *context, const uint8_t *bytes, size_t len)
{
	struct busy *busy = context;

	if (len > 65536 || memcmp(bytes, patterns[1] + busy->n_to_guest % LEN, len) != 0)
		fail_msg("wrong bytes at %zu", busy->n_to_guest);
	busy->n_to_guest += len;
}

static void check_host(struct busy *busy)
{
	struct host_stream *stream = &busy->stream;
	size_t at = 0;

	while (at < stream->n_received) {
		size_t n = stream->n_received - at < 65536 ? stream->n_received - at : 65536;

		if (memcmp(stream->received + at, patterns[0] + busy->n_checked % LEN, n) != 0)
			fail_msg("wrong bytes at %zu", busy->n_checked);
		at += n;
		busy->n_checked += n;
	}
	stream->n_received = 0;
}

/* false once all is there. */
static bool step(struct busy *busy, size_t total)
{
	struct host_stream *stream = &busy->stream;
	size_t rest = total - busy->n_to_host;
	ssize_t n = 0;

	if (rest > 0)
		n = guest_send(busy->connection, patterns[0] + busy->n_to_host % LEN,
			       rest < 65536 ? rest : 65536);
	busy->n_to_host += n > 0 ? (size_t)n : 0;
	check_host(busy);
	if (stream->error || stream->is_ended || busy->connection->state != GUEST_ESTABLISHED)
		fail_msg("a busy connection has ended");
	return busy->n_checked < total || busy->n_to_guest < total;
}

static void test_busy_connections_keep_every_byte(void **state)
{
	size_t n = options.n_busy, total = options.n_megabytes * MIB / n / LEN * LEN;
	struct busy *all = calloc(n, sizeof(*all));
	uint8_t *to_guest = malloc(total + LEN);
	struct guest *guest;
	uint64_t began;
	bool has_more = true;

	(void)state;
	assert_true(all && to_guest && total > 0);
	for (size_t i = 0; i < 2; i++) {
		pattern_fill(patterns[i], LEN, i + 1, 0);
		memcpy(patterns[i] + LEN, patterns[i], 65536);
	}
	for (size_t at = 0; at < total; at += LEN)
		memcpy(to_guest + at, patterns[1], LEN);
	start(1, 1024);
	guest = setup_guest(&setup, 0, (struct guest_options){0});
	for (size_t i = 0; i < n; i++) {
		all[i].connection = setup_connect(&setup, 0, PORT + (uint32_t)i, &all[i].stream);
		all[i].connection->sink = take_bytes;
		all[i].connection->sink_context = &all[i];
		host_stream_send(&all[i].stream, to_guest, total, false);
	}
	began = now_ns();
	while (has_more) {
		has_more = false;
		for (size_t i = 0; i < n; i++)
			has_more |= step(&all[i], total);
		assert_true(guest_poll(guest, 10) >= 0);
		if (seconds_since(began) > 600)
			fail_msg("busy connections are stuck");
	}
	printf("%zu busy connections, %zu MB each way, every byte checked: %.0f MB/s\n", n,
	       n * total / 1000000, 2.0 * (double)(n * total) / 1e6 / seconds_since(began));
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(guest_finish(all[i].connection, SETUP_LIMIT), 0);
		setup_end_stream(&setup, 0, &all[i].stream);
	}
	free(all);
	free(to_guest);
	setup_stop(&setup);
}

/* ---- neighbours ---- */

struct figures {
	double megabytes; /* a second */
	double p99;	  /* of a round trip, microseconds */
};

static int compare(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

	return (a > b) - (a < b);
}

static double measure_trips(struct guest_connection *connection, int fd)
{
	uint64_t *took = calloc(options.n_trips, sizeof(took[0]));
	char bytes[64] = {0};
	double p99;

	assert_non_null(took);
	for (size_t i = 0; i < options.n_trips; i++) {
		uint64_t began = now_ns();

		assert_int_equal(guest_send_all(connection, bytes, sizeof(bytes), SETUP_LIMIT), 0);
		assert_int_equal(host_read(fd, bytes, sizeof(bytes), SETUP_LIMIT), 0);
		assert_int_equal(host_write(fd, bytes, sizeof(bytes), SETUP_LIMIT), 0);
		assert_int_equal(guest_receive_all(connection, bytes, sizeof(bytes), SETUP_LIMIT),
				 sizeof(bytes));
		took[i] = now_ns() - began;
	}
	qsort(took, options.n_trips, sizeof(took[0]), compare);
	p99 = (double)took[options.n_trips * 99 / 100] / 1000;
	free(took);
	return p99;
}

/* A quarter of what busy connections move: there are many rows. */
static double measure_throughput(struct guest_connection *connection, int fd)
{
	size_t total = options.n_megabytes * MIB / 4, n_sent = 0, n_received = 0;
	uint64_t began = now_ns();
	struct host_stream stream;

	host_stream_init(&stream, dup(fd));
	guest_watch(connection->guest, &stream.watch);
	while (n_received < total) {
		ssize_t n = n_sent < total ? guest_send(connection, NULL, total - n_sent) : 0;

		n_sent += n > 0 ? (size_t)n : 0;
		assert_true(guest_poll(connection->guest, 10) >= 0);
		assert_false(stream.is_ended || stream.error);
		n_received += stream.n_received;
		stream.n_received = 0;
		if (seconds_since(began) > 300)
			fail_msg("a neighbour is stuck");
	}
	guest_unwatch(connection->guest, &stream.watch);
	host_stream_end(&stream);
	return (double)total / 1e6 / seconds_since(began);
}

static struct figures measure(struct guest_connection *connection, int fd)
{
	return (struct figures){
		.megabytes = measure_throughput(connection, fd),
		.p99 = measure_trips(connection, fd),
	};
}

/*
 * Guest, worker and host program of each VM share the processors with those of the others,
 * so a part is lost to whoever computes: the first row says how much. What stops a
 * neighbour altogether, or holds it up for as long as this, is vsockd's.
 */
#define P99_MAX_US 500000

static void measure_beside(const struct attack *attack, struct guest_connection *connection, int fd,
			   const struct figures *alone)
{
	pid_t pid = attack_start(&setup, attack);
	struct figures figures = measure(connection, fd);

	attack_end(pid);
	printf("| %-46s | %8.0f | %5.2f | %8.0f | %6.1f |\n", attack->name, figures.megabytes,
	       figures.megabytes / alone->megabytes, figures.p99, figures.p99 / alone->p99);
	fflush(stdout);
	assert_true(figures.p99 < P99_MAX_US);
}

static void test_a_neighbour_is_not_stopped_by_anybody(void **state)
{
	struct guest_connection *connection;
	struct figures alone;
	struct guest *guest;
	int listener, fd;

	(void)state;
	start(3, 1024);
	guest = setup_guest(&setup, 0, (struct guest_options){0});
	listener = listen_at(0, PORT);
	connection = guest_connect_wait(guest, PACKET_HOST_CID, PORT, SETUP_LIMIT);
	assert_non_null(connection);
	fd = host_accept(listener, SETUP_LIMIT);
	assert_true(fd >= 0);
	(void)measure(connection, fd); /* warm */
	alone = measure(connection, fd);
	printf("| %-46s | %8s | %5s | %8s | %6s |\n| --- | --- | --- | --- | --- |\n", "beside",
	       "MB/s", "ratio", "p99, us", "ratio");
	printf("| %-46s | %8.0f | %5.2f | %8.0f | %6.1f |\n", "nobody", alone.megabytes, 1.0,
	       alone.p99, 1.0);
	fflush(stdout);
	for (const struct attack *attack = attacks; attack->name; attack++)
		measure_beside(attack, connection, fd, &alone);
	assert_int_equal(guest_finish(connection, SETUP_LIMIT), 0);
	close(fd);
	close(listener);
	setup_stop(&setup);
}

/* ---- the command line ---- */

/* The hard limit is what there is; each process needs a file for each connection. */
static void raise_limit(void)
{
	struct rlimit limit;
	size_t n_max;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
	n_max = limit.rlim_max / 2;
	if (options.n_open > n_max) {
		printf("%zu connections open at once instead of %zu: the limit on open files is "
		       "%ju\n",
		       n_max, options.n_open, (uintmax_t)limit.rlim_max);
		options.n_open = n_max;
	}
}

static bool parse(int argc, char **argv)
{
	static const struct {
		const char *name;
		size_t *value;
	} known[] = {
		{"--opened", &options.n_opened},       {"--open", &options.n_open},
		{"--busy", &options.n_busy},	       {"--trips", &options.n_trips},
		{"--megabytes", &options.n_megabytes},
	};

	for (int i = 1; i < argc; i += 2) {
		bool is_known = false;

		for (size_t j = 0; j < sizeof(known) / sizeof(known[0]); j++) {
			if (strcmp(argv[i], known[j].name) != 0 || i + 1 == argc)
				continue;
			*known[j].value = strtoul(argv[i + 1], NULL, 10);
			is_known = *known[j].value > 0;
		}
		if (!is_known)
			return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_connections_that_come_and_go_leave_nothing),
		cmocka_unit_test(test_connections_that_stand_cost_no_time),
		cmocka_unit_test(test_busy_connections_keep_every_byte),
		cmocka_unit_test(test_a_neighbour_is_not_stopped_by_anybody),
	};
	size_t n = sizeof(tests) / sizeof(tests[0]);
	int n_failed;

	if (!parse(argc, argv)) {
		fprintf(stderr, "usage: load [--opened N] [--open N] [--busy N] [--megabytes N] "
				"[--trips N]\n");
		return EX_USAGE;
	}
	raise_limit();
	n_failed = cmocka_run_group_tests(tests, NULL, NULL);
	fflush(NULL);
	printf("%zu passed, %d failed\n", n - (size_t)n_failed, n_failed);
	return n_failed != 0;
}
