/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/measure.h"

#include <errno.h>
#include <stdlib.h>

#include "tests/bench/host_program.h"
#include "tests/bench/subject.h"

#define ROUND_TRIPS_MAX	    200000
#define WARM_UP_ROUND_TRIPS 200

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static int one_round_trip(struct driver *driver, double *ret_microseconds)
{
	uint64_t expected = driver->n_received[0] + 1;
	double start_time = subject_now();

	if (driver->send(driver, 0, 1, 1) != 1)
		return -EAGAIN;
	while (driver->n_received[0] < expected) {
		int n = driver->poll(driver, SUBJECT_POLL_MILLISECONDS);

		if (n < 0)
			return n;
		if (n == 0 && subject_now() - start_time > SUBJECT_STUCK_SECONDS)
			return -ETIMEDOUT;
	}
	*ret_microseconds = (subject_now() - start_time) * 1e6;
	return 0;
}

static int run_round_trips(struct driver *driver, int duration, struct round_trip_figures *ret)
{
	static double samples[ROUND_TRIPS_MAX];
	double end;
	size_t n = 0;
	int error = 0;

	for (int i = 0; !error && i < WARM_UP_ROUND_TRIPS; i++)
		error = one_round_trip(driver, &samples[0]);
	end = subject_now() + duration / 1e3;
	while (!error && n < ROUND_TRIPS_MAX && (n == 0 || subject_now() < end))
		error = one_round_trip(driver, &samples[n++]);
	if (error)
		return error;
	qsort(samples, n, sizeof(samples[0]), compare_doubles);
	*ret = (struct round_trip_figures){
		.p50 = samples[n / 2],
		.p99 = samples[n * 99 / 100],
		.p999 = samples[n * 999 / 1000],
	};
	return 0;
}

int measure_round_trip(const struct candidate *candidate, int duration,
		       struct round_trip_figures *ret)
{
	static struct host_program host;
	struct subject subject;
	/* The limit has as many slots as anywhere, not as many as bytes. */
	int error = subject_start(candidate, 1, 64, &subject);

	if (error)
		return error;
	error = host_program_start(&host, subject.driver->host_fds, 1, HOST_ECHOES, 1);
	if (!error) {
		error = run_round_trips(subject.driver, duration, ret);
		host_program_stop(&host);
	}
	subject_stop(&subject);
	return error ? subject_fail(candidate, "round trip", error) : 0;
}

/* Let everything settle that the last messages set going. */
#define SETTLE_MILLISECONDS 100

int measure_memory(const struct candidate *candidate, size_t n_connections,
		   struct memory_figures *ret)
{
	struct subject subject;
	/* With one connection: everything was used once. */
	int error = subject_start(candidate, 1, 64, &subject);

	if (error)
		return error;
	*ret = (struct memory_figures){0};
	error = guest_poll_for(backend_guest(subject.backend), SETTLE_MILLISECONDS);
	processes_memory(subject.driver->pid, &ret->idle);
	processes_memory_of(subject.driver->pid, MEASURE_WORKER, &ret->worker);
	if (!error)
		error = backend_open(subject.backend, n_connections, 64);
	if (!error)
		error = guest_poll_for(backend_guest(subject.backend), SETTLE_MILLISECONDS);
	processes_memory(subject.driver->pid, &ret->with_connections);
	processes_memory_of(subject.driver->pid, MEASURE_WORKER, &ret->worker_with_connections);
	subject_stop(&subject);
	return error ? subject_fail(candidate, "memory", error) : 0;
}
