/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/replacements.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/bench/subject.h"
#include "tests/frontend/host.h"
#include "tests/frontend/operator.h"

#define N_CONNECTIONS 64
#define PAYLOAD	      4096

/*
 * The bytes of all streams: a row of random ones that repeats, of a length that no
 * buffer has, begun elsewhere by each stream. With a stretch more than that, whatever
 * is sent or received at once lies there in one piece.
 */
#define PERIOD	   131071
#define STRETCH	   ((size_t)64 * 1024)
#define HOST_SENDS ((size_t)16 * 1024)

/*
 * The load is made out of what vsockd leaves of the processors: what is asked is not how
 * long a scheduler lets one wait among equals.
 */
static void give_way(void)
{
	const struct sched_param parameters = {0};

	(void)sched_setscheduler(0, SCHED_IDLE, &parameters);
}

/* How long one replacement, and what was sent last, may take. */
#define LIMIT_SECONDS 10.0

#define CONTROL "control.sock"

/* One direction. Times are seconds; the longest is read by the other thread. */
struct direction {
	uint64_t n_sent[N_CONNECTIONS], n_received[N_CONNECTIONS];
	uint64_t n_wrong; /* pieces */
	double last;	  /* when a byte arrived on some connection */
	uint32_t window;
	_Atomic uint64_t longest_ns; /* without one, in this window */
	_Atomic uint64_t n_arrivals;
};

struct run {
	struct backend *backend;
	struct driver *driver;
	struct direction to_host, to_guest;
	_Atomic uint32_t window;
	_Atomic bool is_ending; /* nothing new is sent */
	_Atomic bool is_over;	/* the host's thread returns */
	int epoll, control;
	pthread_t host;
	size_t n_failed;
	char reason[256];
};

/* Milliseconds of each replacement, or of a time of the same length without one. */
struct figures {
	double *to_host, *to_guest, *either, *quiet, *front;
	size_t n, n_front;
};

static uint8_t pattern[PERIOD + STRETCH];

static const uint8_t *bytes_at(size_t connection, uint64_t offset)
{
	return pattern + (connection * 1021 + offset) % PERIOD;
}

static void make_pattern(void)
{
	pattern_fill(pattern, PERIOD, 1, 0);
	memcpy(pattern + PERIOD, pattern, STRETCH);
}

static void arrive(struct run *run, struct direction *direction, size_t connection,
		   const uint8_t *bytes, size_t len)
{
	double now = subject_now();
	uint64_t gap = (uint64_t)((now - direction->last) * 1e9);
	uint32_t window = atomic_load(&run->window);

	if (memcmp(bytes, bytes_at(connection, direction->n_received[connection]), len) != 0)
		direction->n_wrong++;
	direction->n_received[connection] += len;
	direction->last = now;
	if (window != direction->window || gap > atomic_load(&direction->longest_ns))
		atomic_store(&direction->longest_ns, gap);
	direction->window = window;
	atomic_fetch_add(&direction->n_arrivals, 1);
}

/* ---- the host programs ---- */

static void host_reads(struct run *run, size_t connection, int fd)
{
	static uint8_t bytes[STRETCH];
	ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

	if (n > 0)
		arrive(run, &run->to_host, connection, bytes, (size_t)n);
}

static void host_writes(struct run *run, size_t connection, int fd)
{
	uint64_t *n_sent = &run->to_guest.n_sent[connection];
	struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)connection};
	ssize_t n;

	if (atomic_load(&run->is_ending)) {
		epoll_ctl(run->epoll, EPOLL_CTL_MOD, fd, &event);
		return;
	}
	n = send(fd, bytes_at(connection, *n_sent), HOST_SENDS, MSG_DONTWAIT | MSG_NOSIGNAL);
	*n_sent += n > 0 ? (uint64_t)n : 0;
}

static void *run_host(void *context)
{
	struct run *run = context;
	struct epoll_event events[N_CONNECTIONS];

	while (!atomic_load(&run->is_over)) {
		int n = epoll_wait(run->epoll, events, N_CONNECTIONS, SUBJECT_POLL_MILLISECONDS);

		for (int i = 0; i < n; i++) {
			size_t connection = events[i].data.u32;
			int fd = run->driver->host_fds[connection];

			if (events[i].events & EPOLLIN)
				host_reads(run, connection, fd);
			if (events[i].events & EPOLLOUT)
				host_writes(run, connection, fd);
		}
	}
	return NULL;
}

static int start_host(struct run *run)
{
	run->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (run->epoll < 0)
		return -errno;
	for (size_t i = 0; i < N_CONNECTIONS; i++) {
		struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.u32 = (uint32_t)i};

		if (epoll_ctl(run->epoll, EPOLL_CTL_ADD, run->driver->host_fds[i], &event) < 0)
			return -errno;
	}
	return -pthread_create(&run->host, NULL, run_host, run);
}

/* ---- the guest ---- */

struct sink {
	struct run *run;
	size_t connection;
};

static void guest_receives(void *context, const uint8_t *bytes, size_t len)
{
	const struct sink *sink = context;

	arrive(sink->run, &sink->run->to_guest, sink->connection, bytes, len);
}

static int guest_turn(struct run *run)
{
	size_t n_sent = 0;

	for (size_t i = 0; !atomic_load(&run->is_ending) && i < N_CONNECTIONS; i++) {
		uint64_t *offset = &run->to_host.n_sent[i];
		ssize_t n = guest_send(backend_connection(run->backend, i), bytes_at(i, *offset),
				       PAYLOAD);

		if (n < 0 && n != -EAGAIN)
			return (int)n;
		*offset += n > 0 ? (uint64_t)n : 0;
		n_sent += n > 0;
	}
	return run->driver->poll(run->driver, n_sent > 0 ? 0 : SUBJECT_POLL_MILLISECONDS);
}

static int guest_turns(struct run *run, double end)
{
	int n = 0;

	while (n >= 0 && subject_now() < end)
		n = guest_turn(run);
	return n < 0 ? n : 0;
}

/* ---- measuring ---- */

/* Until a byte arrived at both ends: what stood still goes on. */
static int wait_arrivals(struct run *run)
{
	uint64_t at_host = atomic_load(&run->to_host.n_arrivals);
	uint64_t at_guest = atomic_load(&run->to_guest.n_arrivals);
	double end = subject_now() + LIMIT_SECONDS;

	while (atomic_load(&run->to_host.n_arrivals) == at_host ||
	       atomic_load(&run->to_guest.n_arrivals) == at_guest) {
		int n = guest_turn(run);

		if (n < 0)
			return n;
		if (subject_now() > end)
			return -ETIMEDOUT;
	}
	return 0;
}

static int wait_answer(struct run *run)
{
	double end = subject_now() + LIMIT_SECONDS;
	int answer;

	while ((answer = operator_take_answer(run->control, run->reason, sizeof(run->reason))) ==
	       -EAGAIN) {
		int n = guest_turn(run);

		if (n < 0)
			return n;
		if (subject_now() > end)
			return -ETIMEDOUT;
	}
	run->n_failed += answer == 1;
	return answer < 0 ? answer : 0;
}

/* A new window begins with what arrives first behind this. */
static int open_window(struct run *run)
{
	atomic_fetch_add(&run->window, 1);
	return wait_arrivals(run);
}

static double longest(const struct run *run, double *ret_to_host, double *ret_to_guest)
{
	*ret_to_host = (double)atomic_load(&run->to_host.longest_ns) / 1e6;
	*ret_to_guest = (double)atomic_load(&run->to_guest.longest_ns) / 1e6;
	return *ret_to_host > *ret_to_guest ? *ret_to_host : *ret_to_guest;
}

static int replace_once(struct run *run, struct figures *figures)
{
	size_t i = figures->n;
	double ignored[2], began, lasted;
	int error = open_window(run);

	began = subject_now();
	if (!error)
		error = operator_ask_replace(run->control, BACKEND_CID);
	if (!error)
		error = wait_answer(run);
	if (!error)
		error = wait_arrivals(run);
	if (error)
		return error;
	lasted = subject_now() - began;
	figures->either[i] = longest(run, &figures->to_host[i], &figures->to_guest[i]);
	error = open_window(run);
	if (!error)
		error = guest_turns(run, subject_now() + lasted);
	if (!error)
		error = wait_arrivals(run);
	if (error)
		return error;
	figures->quiet[i] = longest(run, &ignored[0], &ignored[1]);
	figures->n++;
	return 0;
}

static uint64_t lost_bytes(const struct direction *direction)
{
	uint64_t n = 0;

	for (size_t i = 0; i < N_CONNECTIONS; i++)
		n += direction->n_sent[i] - direction->n_received[i];
	return n;
}

/* All that is on its way arrives, or nothing has for a while. */
static int drain(struct run *run)
{
	double end = subject_now() + SUBJECT_STUCK_SECONDS;
	uint64_t n_before = 0;

	atomic_store(&run->is_ending, true);
	while (subject_now() < end) {
		uint64_t n = atomic_load(&run->to_host.n_arrivals) +
			     atomic_load(&run->to_guest.n_arrivals);
		int error = guest_turn(run);

		if (error < 0)
			return error;
		if (n != n_before)
			end = subject_now() + SUBJECT_STUCK_SECONDS;
		n_before = n;
		if (error == 0 && lost_bytes(&run->to_guest) + lost_bytes(&run->to_host) == 0)
			break;
	}
	return 0;
}

static int measure(struct run *run, size_t n, struct figures *figures)
{
	static struct sink sinks[N_CONNECTIONS];
	int error;

	for (size_t i = 0; i < N_CONNECTIONS; i++) {
		struct guest_connection *connection = backend_connection(run->backend, i);

		sinks[i] = (struct sink){run, i};
		connection->sink = guest_receives;
		connection->sink_context = &sinks[i];
	}
	run->to_host.last = run->to_guest.last = subject_now();
	run->control = operator_connect(backend_path(run->backend, CONTROL), BACKEND_TIMEOUT);
	if (run->control < 0)
		return run->control;
	error = start_host(run);
	if (error)
		return error;
	for (size_t i = 0; !error && i < n; i++)
		error = replace_once(run, figures);
	if (!error)
		error = drain(run);
	atomic_store(&run->is_over, true);
	pthread_join(run->host, NULL);
	return error;
}

/* What vsockd says of each: it has no other clock for it than this. */
static void read_log(const char *path, struct figures *figures, size_t n_max)
{
	FILE *file = fopen(path, "re");
	char line[1024];

	while (file && figures->n_front < n_max && fgets(line, sizeof(line), file)) {
		const char *text = strstr(line, " replaced by worker ");
		uint64_t us;

		if (text && sscanf(text, " replaced by worker %*u in %" SCNu64 " us", &us) == 1)
			figures->front[figures->n_front++] = (double)us / 1e3;
	}
	if (file)
		fclose(file);
}

/* ---- what is given out ---- */

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct row {
	const char *name, *text;
	double *values;
	size_t n;
};

/* Of sorted values: the least that so many hundredths do not exceed; 0: the least. */
static double percentile(const struct row *row, size_t hundredths)
{
	size_t n = (row->n * hundredths + 99) / 100;

	return row->n > 0 ? row->values[n > 0 ? n - 1 : 0] : 0;
}

static int write_json(const struct row *rows, size_t n_rows, const struct run *run, size_t n,
		      const char *path)
{
	FILE *file = fopen(path, "we");

	if (!file)
		return -errno;
	fprintf(file,
		"{\"version\": 1, \"connections\": %d, \"replacements\": %zu, \"failed\": %zu,\n"
		"\"lost_bytes\": %" PRIu64 ", \"wrong_pieces\": %" PRIu64 ", \"pause_ms\": {\n",
		N_CONNECTIONS, n, run->n_failed,
		lost_bytes(&run->to_host) + lost_bytes(&run->to_guest),
		run->to_host.n_wrong + run->to_guest.n_wrong);
	for (size_t i = 0; i < n_rows; i++)
		fprintf(file,
			"\"%s\": {\"min\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}%s\n",
			rows[i].name, percentile(&rows[i], 0), percentile(&rows[i], 50),
			percentile(&rows[i], 99), percentile(&rows[i], 100),
			i + 1 < n_rows ? "," : "");
	fprintf(file, "}}\n");
	return fclose(file) == 0 ? 0 : -errno;
}

static void report(struct run *run, struct figures *figures, const char *json)
{
	struct row rows[] = {
		{"front", "as vsockd counts it", figures->front, figures->n_front},
		{"either", "no byte one way or the other", figures->either, figures->n},
		{"to_host", "no byte from the guest", figures->to_host, figures->n},
		{"to_guest", "no byte to the guest", figures->to_guest, figures->n},
		{"without", "the same without a replacement", figures->quiet, figures->n},
	};
	const size_t n_rows = sizeof(rows) / sizeof(rows[0]);
	int error;

	printf("%zu replacements, %zu failed, %d connections: %" PRIu64 " bytes lost, %" PRIu64
	       " pieces wrong\n\nlongest pause, ms                    min       p50       p99      "
	       " max\n",
	       figures->n, run->n_failed, N_CONNECTIONS,
	       lost_bytes(&run->to_host) + lost_bytes(&run->to_guest),
	       run->to_host.n_wrong + run->to_guest.n_wrong);
	for (size_t i = 0; i < n_rows; i++) {
		qsort(rows[i].values, rows[i].n, sizeof(double), compare_doubles);
		printf("%-30s %9.3f %9.3f %9.3f %9.3f\n", rows[i].text, percentile(&rows[i], 0),
		       percentile(&rows[i], 50), percentile(&rows[i], 99),
		       percentile(&rows[i], 100));
	}
	error = json ? write_json(rows, n_rows, run, figures->n, json) : 0;
	if (error)
		fprintf(stderr, "bench: %s: %s\n", json, strerror(-error));
}

static int fail(const char *what, const char *reason)
{
	fprintf(stderr, "bench: %s: %s\n", what, reason);
	return 1;
}

static int run_all(struct run *run, struct figures *figures, size_t n, const char *json)
{
	int error = backend_open(run->backend, N_CONNECTIONS, PAYLOAD);

	if (error)
		return fail("opening connections", strerror(-error));
	error = measure(run, n, figures);
	if (error)
		return fail("replacing", strerror(-error));
	read_log(backend_path(run->backend, "log"), figures, n);
	report(run, figures, json);
	if (run->n_failed > 0)
		return fail("not replaced", run->reason);
	if (backend_violations(run->backend) > 0)
		return fail("the protocol was broken", backend_first_violation(run->backend));
	return lost_bytes(&run->to_host) + lost_bytes(&run->to_guest) + run->to_host.n_wrong +
		       run->to_guest.n_wrong >
	       0;
}

int replacements_run(const struct backend_command *command, size_t n, const char *json)
{
	static struct run run = {.control = -1, .epoll = -1};
	struct backend_command with_control = *command;
	double *values = calloc(5 * n, sizeof(double));
	struct figures figures = {.to_host = values,
				  .to_guest = values + n,
				  .either = values + 2 * n,
				  .quiet = values + 3 * n,
				  .front = values + 4 * n};
	const char *reason = "no memory";
	size_t at = 0;
	int result;

	while (with_control.words[at])
		at++;
	if (!values || at + 2 > BACKEND_WORDS_MAX)
		return fail("replacing", reason);
	with_control.words[at++] = "--control";
	with_control.words[at++] = "@/" CONTROL;
	with_control.words[at] = NULL;
	make_pattern();
	run.backend = backend_start(&with_control, &reason);
	if (!run.backend)
		return fail(command->words[0], reason);
	run.driver = backend_driver(run.backend);
	give_way();
	result = run_all(&run, &figures, n, json);
	if (run.control >= 0)
		close(run.control);
	if (run.epoll >= 0)
		close(run.epoll);
	backend_stop(run.backend);
	free(values);
	return result;
}
