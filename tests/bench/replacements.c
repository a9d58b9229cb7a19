/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/replacements.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/bench/busy.h"
#include "tests/bench/subject.h"
#include "tests/frontend/operator.h"

/* How long one replacement, and what was sent last, may take. */
#define LIMIT_SECONDS 10.0

#define CONTROL "control.sock"

struct run {
	struct busy busy;
	double end; /* of the measurement */
	int control;
	size_t n_failed;
	char reason[256];
};

/* Milliseconds of each replacement, or of a time of the same length without one. */
struct figures {
	double *to_host, *to_guest, *either, *quiet, *front;
	size_t n, n_front;
};

static int guest_turns(struct run *run, double end)
{
	int n = 0;

	while (n >= 0 && subject_now() < end)
		n = busy_turn(&run->busy);
	return n < 0 ? n : 0;
}

/* ---- measuring ---- */

/* Until a byte arrived at both ends: what stood still goes on. */
static int wait_arrivals(struct run *run)
{
	uint64_t at_host = atomic_load(&run->busy.to_host.n_arrivals);
	uint64_t at_guest = atomic_load(&run->busy.to_guest.n_arrivals);
	double end = subject_now() + LIMIT_SECONDS;

	while (atomic_load(&run->busy.to_host.n_arrivals) == at_host ||
	       atomic_load(&run->busy.to_guest.n_arrivals) == at_guest) {
		int n = busy_turn(&run->busy);

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
		int n = busy_turn(&run->busy);

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
	atomic_fetch_add(&run->busy.window, 1);
	return wait_arrivals(run);
}

static double longest(const struct run *run, double *ret_to_host, double *ret_to_guest)
{
	*ret_to_host = (double)atomic_load(&run->busy.to_host.longest_ns) / 1e6;
	*ret_to_guest = (double)atomic_load(&run->busy.to_guest.longest_ns) / 1e6;
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

/* All that is on its way arrives, or nothing has for a while. */
static int drain(struct run *run)
{
	double end = subject_now() + SUBJECT_STUCK_SECONDS;
	uint64_t n_before = 0;

	atomic_store(&run->busy.is_ending, true);
	while (subject_now() < end) {
		uint64_t n = atomic_load(&run->busy.to_host.n_arrivals) +
			     atomic_load(&run->busy.to_guest.n_arrivals);
		int error = busy_turn(&run->busy);

		if (error < 0)
			return error;
		if (n != n_before)
			end = subject_now() + SUBJECT_STUCK_SECONDS;
		n_before = n;
		if (error == 0 &&
		    busy_lost(&run->busy.to_guest) + busy_lost(&run->busy.to_host) == 0)
			break;
	}
	return 0;
}

static int measure(struct run *run, size_t n, struct figures *figures)
{
	int error;

	run->control = operator_connect(backend_path(run->busy.backend, CONTROL), BACKEND_TIMEOUT);
	if (run->control < 0)
		return run->control;
	error = busy_start(&run->busy);
	if (error)
		return error;
	for (size_t i = 0; !error && i < n; i++)
		error = replace_once(run, figures);
	run->end = subject_now();
	if (!error)
		error = drain(run);
	busy_stop(&run->busy);
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

/* MiB a second. */
static double speed(const struct run *run, const struct busy_direction *direction)
{
	return (double)busy_arrived(direction) / (run->end - run->busy.began) / (1024 * 1024);
}

static void write_json(const struct row *rows, size_t n_rows, const struct run *run, size_t n,
		       FILE *file)
{
	fprintf(file,
		"{\"rate\": %" PRIu64
		", \"to_host_mib_s\": %.1f, \"to_guest_mib_s\": %.1f, \"connections\": %d, "
		"\"replacements\": %zu, \"failed\": %zu,\n"
		"\"lost_bytes\": %" PRIu64 ", \"wrong_pieces\": %" PRIu64 ", \"pause_ms\": {\n",
		run->busy.rate, speed(run, &run->busy.to_host), speed(run, &run->busy.to_guest),
		BUSY_CONNECTIONS, n, run->n_failed,
		busy_lost(&run->busy.to_host) + busy_lost(&run->busy.to_guest),
		run->busy.to_host.n_wrong + run->busy.to_guest.n_wrong);
	for (size_t i = 0; i < n_rows; i++)
		fprintf(file,
			"\"%s\": {\"min\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}%s\n",
			rows[i].name, percentile(&rows[i], 0), percentile(&rows[i], 50),
			percentile(&rows[i], 99), percentile(&rows[i], 100),
			i + 1 < n_rows ? "," : "");
	fprintf(file, "}}");
}

static void report(struct run *run, struct figures *figures, FILE *json)
{
	struct row rows[] = {
		{"front", "as vsockd counts it", figures->front, figures->n_front},
		{"either", "no byte one way or the other", figures->either, figures->n},
		{"to_host", "no byte from the guest", figures->to_host, figures->n},
		{"to_guest", "no byte to the guest", figures->to_guest, figures->n},
		{"without", "the same without a replacement", figures->quiet, figures->n},
	};
	const size_t n_rows = sizeof(rows) / sizeof(rows[0]);

	printf("%zu replacements, %zu failed, %d connections: %" PRIu64 " bytes lost, %" PRIu64
	       " pieces wrong\n%s: %.0f MiB a second from the guest, %.0f to it\n\n"
	       "longest pause, ms                    min       p50       p99       max\n",
	       figures->n, run->n_failed, BUSY_CONNECTIONS,
	       busy_lost(&run->busy.to_host) + busy_lost(&run->busy.to_guest),
	       run->busy.to_host.n_wrong + run->busy.to_guest.n_wrong,
	       run->busy.rate > 0 ? "at a fixed rate" : "as much as goes",
	       speed(run, &run->busy.to_host), speed(run, &run->busy.to_guest));
	for (size_t i = 0; i < n_rows; i++) {
		qsort(rows[i].values, rows[i].n, sizeof(double), compare_doubles);
		printf("%-30s %9.3f %9.3f %9.3f %9.3f\n", rows[i].text, percentile(&rows[i], 0),
		       percentile(&rows[i], 50), percentile(&rows[i], 99),
		       percentile(&rows[i], 100));
	}
	printf("\n");
	fflush(stdout);
	if (json)
		write_json(rows, n_rows, run, figures->n, json);
}

static int fail(const char *what, const char *reason)
{
	fprintf(stderr, "bench: %s: %s\n", what, reason);
	return 1;
}

static int run_all(struct run *run, struct figures *figures, size_t n, FILE *json)
{
	int error = backend_open(run->busy.backend, BUSY_CONNECTIONS, BUSY_PAYLOAD);

	if (error)
		return fail("opening connections", strerror(-error));
	error = measure(run, n, figures);
	if (error)
		return fail("replacing", strerror(-error));
	read_log(backend_path(run->busy.backend, "log"), figures, n);
	report(run, figures, json);
	if (run->n_failed > 0)
		return fail("not replaced", run->reason);
	if (backend_violations(run->busy.backend) > 0)
		return fail("the protocol was broken", backend_first_violation(run->busy.backend));
	return busy_lost(&run->busy.to_host) + busy_lost(&run->busy.to_guest) +
		       run->busy.to_host.n_wrong + run->busy.to_guest.n_wrong >
	       0;
}

static int run_load(const struct backend_command *command, uint64_t rate, size_t n, FILE *json)
{
	static struct run run;
	double *values = calloc(5 * n, sizeof(double));
	struct figures figures = {.to_host = values,
				  .to_guest = values + n,
				  .either = values + 2 * n,
				  .quiet = values + 3 * n,
				  .front = values + 4 * n};
	const char *reason = "no memory";
	int result;

	if (!values)
		return fail("replacing", reason);
	run = (struct run){.busy = {.rate = rate}, .control = -1};
	run.busy.backend = backend_start(command, &reason);
	if (!run.busy.backend)
		return fail(command->words[0], reason);
	run.busy.driver = backend_driver(run.busy.backend);
	if (rate == 0)
		busy_give_way();
	result = run_all(&run, &figures, n, json);
	if (run.control >= 0)
		close(run.control);
	backend_stop(run.busy.backend);
	free(values);
	return result;
}

/* First the load that does not give way: who does can't take that back. */
static int run_loads(const struct backend_command *command, uint64_t rate, size_t n, FILE *json)
{
	int result;

	if (json)
		fprintf(json, "{\"version\": 2, \"loads\": [\n");
	result = run_load(command, rate, n, json);
	if (json)
		fprintf(json, ",\n");
	if (result == 0)
		result = run_load(command, 0, n, json);
	if (json)
		fprintf(json, "]}\n");
	return result;
}

int replacements_run(const struct backend_command *command, size_t n, uint64_t rate,
		     const char *json)
{
	struct backend_command with_control = *command;
	FILE *file = NULL;
	size_t at = 0;
	int result;

	while (with_control.words[at])
		at++;
	if (at + 2 > BACKEND_WORDS_MAX)
		return fail("replacing", "too many words");
	with_control.words[at++] = "--control";
	with_control.words[at++] = "@/" CONTROL;
	with_control.words[at] = NULL;
	if (json) {
		file = fopen(json, "we");
		if (!file)
			return fail(json, strerror(errno));
	}
	result = run_loads(&with_control, rate, n, file);
	if (file && fclose(file) != 0)
		return fail(json, strerror(errno));
	return result;
}
