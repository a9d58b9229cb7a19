/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/bench/host_program.h"
#include "tests/bench/subject.h"
#include "tests/frontend/socket.h"

/* One connection alone sends so many payloads before it looks what came back. */
#define PAYLOADS_IN_A_ROW 16

/* What has arrived on each connection, in one direction or both together. */
static uint64_t sum_received(const struct subject *subject, const struct host_program *host,
			     uint64_t *ret_each, uint64_t *ret_from_guest)
{
	uint64_t sum = 0, from_guest = 0;

	for (size_t i = 0; i < subject->driver->n_connections; i++) {
		uint64_t n = atomic_load_explicit(&host->n_received[i], memory_order_relaxed);

		ret_each[i] = n + subject->driver->n_received[i];
		from_guest += n;
		sum += ret_each[i];
	}
	*ret_from_guest = from_guest;
	return sum;
}

/*
 * Each connection once, beginning with the first that had no room the last time:
 * a full ring is nobody's disadvantage.
 */
static size_t send_in_turn(struct driver *driver, const struct stream_shape *shape, size_t *first)
{
	size_t n_in_a_row = shape->n_connections == 1 ? PAYLOADS_IN_A_ROW : 1;
	size_t next = *first, n_all = 0;
	bool has_room = true;

	for (size_t i = 0; i < driver->n_connections; i++) {
		size_t at = (*first + i) % driver->n_connections;
		size_t n = driver->send(driver, at, shape->payload, n_in_a_row);

		if (n == 0 && has_room)
			next = at;
		has_room &= n > 0;
		n_all += n;
	}
	*first = next;
	return n_all;
}

/* The guest's loop for that time. */
static int drive(struct driver *driver, const struct stream_shape *shape, int milliseconds)
{
	double end = subject_now() + milliseconds / 1e3;
	size_t first = 0;

	while (subject_now() < end) {
		size_t n_sent = shape->is_from_guest ? send_in_turn(driver, shape, &first) : 0;
		int n;

		n = driver->poll(driver, n_sent > 0 ? 0 : SUBJECT_POLL_MILLISECONDS);
		if (n < 0)
			return n;
	}
	return 0;
}

struct snapshot {
	double at;
	uint64_t n_bytes, n_from_guest, n_calls;
	uint64_t each[DRIVER_CONNECTIONS_MAX];
	struct processes_usage usage;
	double own_cpu;
};

static void take_snapshot(const struct subject *subject, const struct host_program *host,
			  const struct processes_calls *calls, struct snapshot *ret)
{
	ret->n_calls = processes_calls_read(calls);
	processes_usage(subject->driver->pid, &ret->usage);
	ret->own_cpu = processes_own_cpu();
	ret->n_bytes = sum_received(subject, host, ret->each, &ret->n_from_guest);
	ret->at = subject_now();
}

static void compare(const struct snapshot *before, const struct snapshot *after,
		    size_t n_connections, struct stream_figures *ret)
{
	double bytes = (double)(after->n_bytes - before->n_bytes);
	double mib = bytes / SUBJECT_MIB, mean = bytes / (double)n_connections;
	double slowest = mean;

	for (size_t i = 0; i < n_connections; i++) {
		double n = (double)(after->each[i] - before->each[i]);

		if (n < slowest)
			slowest = n;
	}
	ret->mib_per_second = mib / (after->at - before->at);
	ret->from_guest_share = (double)(after->n_from_guest - before->n_from_guest) / bytes;
	ret->cpu_per_gib = (after->usage.cpu_seconds - before->usage.cpu_seconds) / (mib / 1024);
	ret->ends_cpu_per_gib = (after->own_cpu - before->own_cpu) / (mib / 1024);
	ret->switches_per_mib = (double)(after->usage.n_switches - before->usage.n_switches) / mib;
	ret->calls_per_mib = (double)(after->n_calls - before->n_calls) / mib;
	ret->slowest = slowest / mean;
}

static int run_stream(struct subject *subject, struct host_program *host,
		      const struct stream_shape *shape, struct stream_figures *ret)
{
	static struct snapshot before, after;
	struct processes_calls calls = {0};
	int error = drive(subject->driver, shape, shape->warm_up);

	if (!error && shape->counts_calls)
		error = processes_calls_start(subject->driver->pid, &calls);
	take_snapshot(subject, host, &calls, &before);
	if (!error)
		error = drive(subject->driver, shape, shape->duration);
	take_snapshot(subject, host, &calls, &after);
	processes_calls_end(&calls);
	if (error)
		return error;
	if (after.n_bytes == before.n_bytes)
		return -ETIMEDOUT;
	compare(&before, &after, shape->n_connections, ret);
	processes_memory(subject->driver->pid, &ret->peak);
	return 0;
}

int measure_stream(const struct candidate *candidate, const struct stream_shape *shape,
		   struct stream_figures *ret)
{
	static struct host_program host;
	unsigned int roles =
		(shape->is_from_guest ? HOST_READS : 0) | (shape->is_from_host ? HOST_WRITES : 0);
	struct subject subject;
	int error = subject_start(candidate, shape->n_connections, shape->payload, &subject);

	if (error)
		return error;
	error = host_program_start(&host, subject.driver->host_fds, shape->n_connections, roles,
				   shape->payload);
	if (!error) {
		error = run_stream(&subject, &host, shape, ret);
		host_program_stop(&host);
	}
	subject_stop(&subject);
	return error ? subject_fail(candidate, "stream", error) : 0;
}

/* A program under valgrind takes its time. */
#define COUNTED_MILLISECONDS 20000

/* "==PID== Collected : N" of the first worker that ends: the other one is the spare. */
static int read_count(int pipe_fd, double *ret)
{
	static const char mark[] = "Collected : ";
	char text[16384];
	size_t len = 0;

	while (len + 1 < sizeof(text)) {
		int error = socket_wait(pipe_fd, POLLIN, deadline_in(COUNTED_MILLISECONDS));
		const char *found;
		ssize_t n;

		if (error)
			return error;
		n = read(pipe_fd, text + len, sizeof(text) - 1 - len);
		if (n < 0)
			return -errno;
		len += (size_t)n;
		text[len] = '\0';
		found = strstr(text, mark);
		if (found && strchr(found, '\n')) {
			*ret = strtod(found + strlen(mark), NULL);
			return 0;
		}
	}
	return -EPROTO;
}

/* All that a worker ran for so many milliseconds of a stream, and how many MiB it moved. */
static int count_stream(const struct candidate *candidate, const struct stream_shape *shape,
			int pipe_fd, double *ret_count, double *ret_mib)
{
	static struct host_program host;
	static uint64_t each[DRIVER_CONNECTIONS_MAX];
	uint64_t from_guest;
	struct subject subject;
	int error = subject_start(candidate, shape->n_connections, shape->payload, &subject);

	if (error)
		return error;
	error = host_program_start(&host, subject.driver->host_fds, shape->n_connections,
				   (shape->is_from_guest ? HOST_READS : 0) |
					   (shape->is_from_host ? HOST_WRITES : 0),
				   shape->payload);
	if (!error) {
		error = drive(subject.driver, shape, shape->duration);
		*ret_mib = (double)sum_received(&subject, &host, each, &from_guest) / SUBJECT_MIB;
		host_program_stop(&host);
	}
	backend_end_guest(subject.backend);
	if (!error)
		error = read_count(pipe_fd, ret_count);
	subject_stop(&subject);
	return error;
}

int measure_instructions(const struct candidate *candidate, const struct stream_shape *shape,
			 const char *pipe_path, double *ret_per_mib)
{
	struct stream_shape idle = *shape;
	double idle_count, idle_mib, count, mib;
	/* For both directions: so there is never an end of file. */
	int fd = open(pipe_path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	int error = fd < 0 ? -errno : 0;

	idle.is_from_guest = idle.is_from_host = false;
	idle.duration = 1;
	if (!error)
		error = count_stream(candidate, &idle, fd, &idle_count, &idle_mib);
	if (!error)
		error = count_stream(candidate, shape, fd, &count, &mib);
	if (fd >= 0)
		close(fd);
	if (error)
		return subject_fail(candidate, "counting instructions", error);
	*ret_per_mib = (count - idle_count) / mib;
	return 0;
}
