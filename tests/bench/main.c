/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Measures vsockd, the bare limit and, if there is one, another back-end in
 * turns. Started by tests/bench/run, which says how.
 */

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/measure.h"
#include "tests/bench/output.h"
#include "tests/bench/replacements.h"
#include "tests/bench/report.h"

/* Of the load at a fixed rate, each way, unless another one is asked for. */
#define RATE_MIB     64
#define RATE_MIB_MAX 1048576

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum test_kind { STREAM, ROUND_TRIP, OPENING, MEMORY, CALLS };

struct test {
	enum test_kind kind;
	const char *name;
	size_t payload, n_connections;
	bool is_from_guest, is_from_host;
	bool is_in_quick;
};

struct plan {
	bool is_quick;
	size_t n_rounds;
	int warm_up, duration, opening, round_trip; /* milliseconds */
	size_t n_idle;				    /* connections that memory is measured with */
};

static const struct plan plans[] = {
	{.n_rounds = 3,
	 .warm_up = 40,
	 .duration = 220,
	 .opening = 400,
	 .round_trip = 600,
	 .n_idle = 512},
	{.is_quick = true,
	 .n_rounds = 3,
	 .warm_up = 30,
	 .duration = 150,
	 .opening = 200,
	 .round_trip = 250,
	 .n_idle = 256},
};

/* Ratios look for CANDIDATE_LIMIT; the other limits show what batching is worth. */
static struct candidate candidates[RESULTS_CANDIDATES_MAX] = {
	{.name = "limit-1", .n_batch = 1},
	{.name = CANDIDATE_LIMIT, .n_batch = 16},
	{.name = "limit-64", .n_batch = 64},
	{.name = CANDIDATE_VSOCKD},
	{.name = CANDIDATE_PEER},
};

static struct results results;
static struct plan plan;
static struct candidate counted = {.name = CANDIDATE_VSOCKD};
static const char *pipe_path; /* where counted says how much; NULL: it is not asked */
static const char *only;      /* names of tests have it; NULL: all tests */
static double began;

static double seconds(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9 - began;
}

static void add(const struct test *test, size_t candidate, const char *metric, double value)
{
	const struct results_key key = {.test = test->name,
					.metric = metric,
					.payload = test->payload,
					.n_connections = test->n_connections};

	results_add(&results, &key, candidate, value);
}

static void add_kib(const struct test *test, size_t candidate, const char *metric, uint64_t bytes)
{
	/* 0: /proc does not tell us. */
	if (bytes > 0)
		add(test, candidate, metric, (double)bytes / 1024);
}

static void run_stream(const struct test *test, size_t index)
{
	const struct test memory = {.name = TEST_MEMORY};
	const struct stream_shape shape = {
		.is_from_guest = test->is_from_guest,
		.is_from_host = test->is_from_host,
		.payload = test->payload,
		.n_connections = test->n_connections,
		.warm_up = plan.warm_up,
		/* So long that the turns of many connections even out. */
		.duration = test->n_connections > 16 ? 2 * plan.duration : plan.duration,
		.counts_calls = test->kind == CALLS,
	};
	struct stream_figures figures;

	if (measure_stream(&candidates[index], &shape, &figures) < 0)
		return;
	if (shape.counts_calls) {
		add(test, index, METRIC_CALLS, figures.calls_per_mib);
		return;
	}
	add(test, index, METRIC_RATE, figures.mib_per_second);
	add(test, index, METRIC_CPU, figures.cpu_per_gib);
	add(test, index, METRIC_ENDS_CPU, figures.ends_cpu_per_gib);
	add(test, index, METRIC_SWITCHES, figures.switches_per_mib);
	if (test->n_connections > 1)
		add(test, index, METRIC_SLOWEST, figures.slowest);
	if (test->is_from_guest && test->is_from_host)
		add(test, index, METRIC_GUEST_SHARE, figures.from_guest_share);
	if (test->n_connections == 64 && test->payload == 65536 && test->is_from_guest) {
		add_kib(&memory, index, METRIC_PEAK_RESIDENT, figures.peak.peak_resident);
		add_kib(&memory, index, METRIC_PEAK_PRIVATE, figures.peak.private);
	}
}

static void run_round_trip(const struct test *test, size_t index)
{
	struct round_trip_figures figures;

	if (measure_round_trip(&candidates[index], plan.round_trip, &figures) < 0)
		return;
	add(test, index, METRIC_P50, figures.p50);
	add(test, index, METRIC_P99, figures.p99);
	add(test, index, METRIC_P999, figures.p999);
}

static void run_opening(const struct test *test, size_t index)
{
	struct opening_figures figures;

	if (measure_opening(&candidates[index], test->is_from_guest, test->n_connections,
			    plan.opening, &figures) < 0)
		return;
	add(test, index, METRIC_OPENED, figures.per_second);
	add(test, index, METRIC_OPENED_CPU, figures.cpu_microseconds);
	add(test, index, METRIC_OPENED_SWITCHES, figures.switches);
}

static double per_connection(uint64_t before, uint64_t after)
{
	return after > before ? (double)(after - before) / (double)(plan.n_idle - 1) : 0;
}

static void run_memory(const struct test *test, size_t index)
{
	struct memory_figures figures;

	if (measure_memory(&candidates[index], plan.n_idle, &figures) < 0)
		return;
	add_kib(test, index, METRIC_RESIDENT, figures.idle.resident);
	add_kib(test, index, METRIC_PSS, figures.idle.pss);
	add_kib(test, index, METRIC_PRIVATE, figures.idle.private);
	add(test, index, METRIC_PER_CONNECTION,
	    per_connection(figures.idle.private, figures.with_connections.private));
	if (figures.worker.resident == 0)
		return;
	add_kib(test, index, METRIC_WORKER_RESIDENT, figures.worker.resident);
	add_kib(test, index, METRIC_WORKER_PRIVATE, figures.worker.private);
	add(test, index, METRIC_WORKER_PER_CONNECTION,
	    per_connection(figures.worker.private, figures.worker_with_connections.private));
}

/* The limit opens nothing and has no memory to speak of; only one connection has batches. */
static bool applies(const struct test *test, const struct candidate *candidate)
{
	bool is_limit = candidate->n_batch > 0;
	bool is_variant = is_limit && strcmp(candidate->name, CANDIDATE_LIMIT) != 0;

	if (test->kind == OPENING || test->kind == MEMORY)
		return !is_limit;
	if (is_variant)
		return test->kind == STREAM && test->n_connections == 1 &&
		       test->is_from_guest != test->is_from_host;
	return true;
}

static void run_test(const struct test *test, size_t index)
{
	switch (test->kind) {
	case STREAM:
	case CALLS:
		run_stream(test, index);
		return;
	case ROUND_TRIP:
		run_round_trip(test, index);
		return;
	case OPENING:
		run_opening(test, index);
		return;
	case MEMORY:
		run_memory(test, index);
		return;
	}
}

/* As --only has it. */
static const char *title(const struct test *test)
{
	static char text[80];

	snprintf(text, sizeof(text), "%s %zu B, %zu connections", test->name, test->payload,
		 test->n_connections);
	return text;
}

static void show_progress(const struct test *test, size_t n_done, size_t n_all)
{
	static double shown = -10;
	bool is_terminal = isatty(STDERR_FILENO);

	if (!is_terminal && seconds() - shown < 10)
		return;
	shown = seconds();
	fprintf(stderr, "%s%4.0f s  %3zu %%  round %zu of %zu  %s%s", is_terminal ? "\r" : "",
		shown, 100 * n_done / n_all, results.round + 1, plan.n_rounds, title(test),
		is_terminal ? "\033[K" : "\n");
}

static void run_round(const struct test *tests, size_t n_tests)
{
	for (size_t i = 0; i < n_tests; i++) {
		show_progress(&tests[i], results.round * n_tests + i, plan.n_rounds * n_tests);
		for (size_t k = 0; k < results.n_candidates; k++) {
			/* Nobody is always the one behind a certain other. */
			size_t index = (k + results.round + i) % results.n_candidates;

			if (applies(&tests[i], &candidates[index]))
				run_test(&tests[i], index);
		}
	}
}

/* Only where the kernel lets us, in a round of its own: counting costs time. */
static void count_calls(const struct test *tests, size_t n_tests)
{
	struct processes_calls calls;
	int error = processes_calls_start(getpid(), &calls);

	if (error) {
		printf("System calls are not counted: %s.\n", processes_calls_reason(error));
		return;
	}
	processes_calls_end(&calls);
	run_round(tests, n_tests);
}

static size_t add_streams(struct test *tests, const char *name, bool is_from_guest,
			  bool is_from_host)
{
	static const size_t payloads[] = {64, 1024, 4096, 16384, 65536};
	static const size_t connections[] = {1, 8, 16, 64};
	size_t n = 0;

	for (size_t c = 0; c < COUNT(connections); c++) {
		for (size_t p = 0; p < COUNT(payloads); p++)
			tests[n++] = (struct test){
				.kind = STREAM,
				.name = name,
				.payload = payloads[p],
				.n_connections = connections[c],
				.is_from_guest = is_from_guest,
				.is_from_host = is_from_host,
				.is_in_quick = connections[c] == 1
						       ? payloads[p] != 1024 && payloads[p] != 16384
						       : connections[c] != 8 && payloads[p] == 4096,
			};
	}
	return n;
}

#define TESTS_MAX 64

static size_t make_tests(struct test *tests)
{
	static const struct test others[] = {
		{STREAM, TEST_DUPLEX, 4096, 1, true, true, false},
		{STREAM, TEST_DUPLEX, 65536, 1, true, true, true},
		{STREAM, TEST_DUPLEX, 65536, 16, true, true, false},
		{ROUND_TRIP, TEST_ROUND_TRIP, 0, 0, false, false, true},
		{OPENING, TEST_OPENED_BY_GUEST, 0, 1, true, false, true},
		{OPENING, TEST_OPENED_BY_GUEST, 0, 16, true, false, true},
		{OPENING, TEST_OPENED_BY_HOST, 0, 1, false, true, true},
		{OPENING, TEST_OPENED_BY_HOST, 0, 16, false, true, true},
		{MEMORY, TEST_MEMORY, 0, 0, false, false, true},
	};
	size_t n = add_streams(tests, TEST_FROM_GUEST, true, false), n_kept = 0;

	n += add_streams(tests + n, TEST_FROM_HOST, false, true);
	for (size_t i = 0; i < COUNT(others); i++)
		tests[n++] = others[i];
	for (size_t i = 0; i < n; i++) {
		if ((!plan.is_quick || tests[i].is_in_quick) &&
		    (!only || strstr(title(&tests[i]), only)))
			tests[n_kept++] = tests[i];
	}
	return n_kept;
}

static void count_instructions(void)
{
	static const size_t payloads[] = {64, 4096, 65536};

	for (size_t i = 0; i < 2 * COUNT(payloads); i++) {
		bool is_from_guest = i < COUNT(payloads);
		struct test test = {.name = is_from_guest ? TEST_FROM_GUEST : TEST_FROM_HOST,
				    .payload = payloads[i % COUNT(payloads)],
				    .n_connections = 1};
		struct stream_shape shape = {.is_from_guest = is_from_guest,
					     .is_from_host = !is_from_guest,
					     .payload = test.payload,
					     .n_connections = 1,
					     .duration = 1000};
		double per_mib;

		if (measure_instructions(&counted, &shape, pipe_path, &per_mib) < 0) {
			printf("Instructions are not counted: the worker does not run under "
			       "valgrind here.\n");
			return;
		}
		add(&test, results_candidate(&results, CANDIDATE_VSOCKD), METRIC_INSTRUCTIONS,
		    per_mib);
	}
}

/* Figures of a machine that does something else as well are not worth much. */
static void warn_of_others(const struct processes_machine *before)
{
	struct processes_machine after;
	double all, own;

	processes_machine(&after);
	all = after.all - before->all;
	own = after.own - before->own;
	if (all > 0 && own < 0.95 * all)
		printf("Others used %.0f %% of the CPU time meanwhile: trust ratios only, and "
		       "those not much.\n",
		       100 * (all - own) / all);
}

static void run_all(void)
{
	static const struct test calls[] = {
		{CALLS, TEST_FROM_GUEST, 64, 1, true, false, true},
		{CALLS, TEST_FROM_GUEST, 4096, 1, true, false, true},
		{CALLS, TEST_FROM_GUEST, 65536, 1, true, false, true},
		{CALLS, TEST_FROM_GUEST, 4096, 16, true, false, true},
		{CALLS, TEST_FROM_HOST, 64, 1, false, true, true},
		{CALLS, TEST_FROM_HOST, 4096, 1, false, true, true},
		{CALLS, TEST_FROM_HOST, 65536, 1, false, true, true},
		{CALLS, TEST_FROM_HOST, 4096, 16, false, true, true},
	};
	struct test tests[TESTS_MAX];
	size_t n = make_tests(tests);
	struct processes_machine before;

	processes_machine(&before);
	for (results.round = 0; results.round < plan.n_rounds; results.round++)
		run_round(tests, n);
	results.round = 0;
	if (!only)
		count_calls(calls, COUNT(calls));
	warn_of_others(&before);
	if (pipe_path)
		count_instructions();
	fprintf(stderr, "%s%4.0f s  done\n", isatty(STDERR_FILENO) ? "\r\033[K" : "", seconds());
}

/* Split at spaces; without "@" the options that every back-end here has are added. */
static void parse_command(char *text, struct backend_command *ret)
{
	static const char *const options[] = {"--guest-cid",  "3",	    "--socket",
					      "@/vhost.sock", "--uds-path", "@/vsock"};
	bool has_place = strchr(text, '@') != NULL;
	size_t n = 0;

	for (char *word = strtok(text, " "); word && n < BACKEND_WORDS_MAX - COUNT(options);
	     word = strtok(NULL, " "))
		ret->words[n++] = word;
	for (size_t i = 0; !has_place && i < COUNT(options); i++)
		ret->words[n++] = options[i];
	ret->words[n] = NULL;
}

static int finish(const char *json, const char *plots)
{
	int error = 0, failed = 0;

	report_print(&results);
	if (json)
		error = output_json(&results, json);
	if (error)
		fprintf(stderr, "bench: %s: %s\n", json, strerror(-error));
	failed |= error;
	error = plots ? output_plots(&results, plots) : 0;
	if (error == -ENOENT)
		printf("\nNo plots: gnuplot is not installed.\n");
	else if (error)
		fprintf(stderr, "bench: %s: %s\n", plots, strerror(-error));
	return failed || (error && error != -ENOENT);
}

static int replace_workers(size_t n, uint64_t rate, const char *json)
{
	struct processes_machine before;
	int result;

	processes_machine(&before);
	result = replacements_run(&candidates[3].command, n, rate, json);
	warn_of_others(&before);
	return result;
}

static int usage(void)
{
	fprintf(stderr,
		"usage: bench --vsockd COMMAND [--peer COMMAND] [--json FILE] "
		"[--plot DIRECTORY] [--only TEXT] [--rounds N] [--quick] [--counted COMMAND "
		"--pipe FIFO] [--replacements N [--rate MIB]]\n");
	return 64;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"vsockd", required_argument, NULL, 'v'},
		{"peer", required_argument, NULL, 'p'},
		{"json", required_argument, NULL, 'j'},
		{"plot", required_argument, NULL, 'd'},
		{"quick", no_argument, NULL, 'q'},
		{"only", required_argument, NULL, 'o'},
		{"rounds", required_argument, NULL, 'r'},
		{"counted", required_argument, NULL, 'c'},
		{"pipe", required_argument, NULL, 'i'},
		{"replacements", required_argument, NULL, 'n'},
		{"rate", required_argument, NULL, 's'},
		{0},
	};
	const struct rlimit files = {.rlim_cur = 8192, .rlim_max = 8192};
	const char *json = NULL, *plots = NULL;
	bool has_vsockd = false, has_peer = false;
	size_t n_rounds = 0, n_replacements = 0, rate = RATE_MIB;
	int option;

	plan = plans[0];
	while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (option == 'v')
			parse_command(optarg, &candidates[3].command);
		else if (option == 'c')
			parse_command(optarg, &counted.command);
		else if (option == 'p')
			parse_command(optarg, &candidates[4].command);
		has_vsockd |= option == 'v';
		has_peer |= option == 'p';
		json = option == 'j' ? optarg : json;
		plots = option == 'd' ? optarg : plots;
		if (option == 'r')
			n_rounds = (size_t)strtoul(optarg, NULL, 10);
		if (option == 'n')
			n_replacements = (size_t)strtoul(optarg, NULL, 10);
		if (option == 's')
			rate = (size_t)strtoul(optarg, NULL, 10);
		pipe_path = option == 'i' ? optarg : pipe_path;
		only = option == 'o' ? optarg : only;
		plan = option == 'q' ? plans[1] : plan;
		if (option == '?')
			return usage();
	}
	if (!has_vsockd || optind != argc || n_rounds > RESULTS_ROUNDS_MAX ||
	    n_replacements > REPLACEMENTS_MAX || rate == 0 || rate > RATE_MIB_MAX)
		return usage();
	if (n_rounds > 0)
		plan.n_rounds = n_rounds;
	began = seconds();
	signal(SIGPIPE, SIG_IGN);
	(void)setrlimit(RLIMIT_NOFILE, &files);
	if (n_replacements > 0)
		return replace_workers(n_replacements, (uint64_t)rate << 20, json);
	results.n_candidates = has_peer ? 5 : 4;
	for (size_t i = 0; i < results.n_candidates; i++)
		results.candidates[i] = candidates[i].name;
	run_all();
	return finish(json, plots);
}
