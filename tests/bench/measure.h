/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One measurement of one candidate, which is started for it and ended behind
 * it. 0, or negative errno with a reason on stderr: then there is no figure.
 */

#include "tests/bench/backend.h"
#include "tests/bench/processes.h"

struct candidate {
	const char *name;
	size_t n_batch; /* of the bare limit; 0: a back-end */
	struct backend_command command;
};

struct stream_shape {
	bool is_from_guest, is_from_host;
	size_t payload, n_connections;
	int warm_up, duration; /* milliseconds */
	bool counts_calls;     /* which slows everything down */
};

struct stream_figures {
	double mib_per_second; /* both directions together */
	double from_guest_share;
	double cpu_per_gib, switches_per_mib, calls_per_mib;
	double ends_cpu_per_gib; /* guest and host programs */
	double slowest;		 /* of the connections, as a share of their mean */
	struct processes_memory peak;
};

struct round_trip_figures {
	double p50, p99, p999; /* microseconds */
};

struct opening_figures {
	double per_second;
	/* Of the back-end's processes, for each connection. */
	double cpu_microseconds, switches;
};

struct memory_figures {
	struct processes_memory idle, with_connections; /* all processes */
	struct processes_memory worker;			/* idle; zero: no such process */
	struct processes_memory worker_with_connections;
};

#define MEASURE_WORKER "vsockd-worker"

int measure_stream(const struct candidate *candidate, const struct stream_shape *shape,
		   struct stream_figures *ret);
int measure_round_trip(const struct candidate *candidate, int duration,
		       struct round_trip_figures *ret);

/* Back-ends only. Connections opened and closed in a second, so many at a time. */
int measure_opening(const struct candidate *candidate, bool is_by_guest, size_t n_at_once,
		    int duration, struct opening_figures *ret);
int measure_memory(const struct candidate *candidate, size_t n_connections,
		   struct memory_figures *ret);

/*
 * Instructions of the worker for each MiB, in user space. The candidate's workers
 * write what valgrind says into the pipe; it is opened here.
 */
int measure_instructions(const struct candidate *candidate, const struct stream_shape *shape,
			 const char *pipe_path, double *ret_per_mib);
