/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/output.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/bench/report.h"

/* All strings are ours: none needs to be escaped. */
static void write_series(FILE *file, const struct results *results, const struct series *series)
{
	fprintf(file, "{\"test\": \"%s\", ", series->key.test);
	if (series->key.payload > 0)
		fprintf(file, "\"payload\": %zu, ", series->key.payload);
	if (series->key.n_connections > 0)
		fprintf(file, "\"connections\": %zu, ", series->key.n_connections);
	fprintf(file, "\"metric\": \"%s\", \"candidate\": \"%s\", ", series->key.metric,
		results->candidates[series->candidate]);
	fprintf(file, "\"median\": %.6g, \"min\": %.6g, \"max\": %.6g, \"samples\": [",
		results_median(series), results_minimum(series), results_maximum(series));
	for (size_t i = 0; i < series->n; i++)
		fprintf(file, "%s%.6g", i > 0 ? ", " : "", series->samples[i]);
	fprintf(file, "]}");
}

int output_json(const struct results *results, const char *path)
{
	FILE *file = fopen(path, "w");

	if (!file)
		return -errno;
	fprintf(file, "{\"version\": 1, \"series\": [\n");
	for (size_t i = 0; i < results->n_series; i++) {
		write_series(file, results, &results->series[i]);
		fprintf(file, i + 1 < results->n_series ? ",\n" : "\n");
	}
	fprintf(file, "]}\n");
	return fclose(file) == 0 ? 0 : -errno;
}

static void begin_plot(FILE *gnuplot, const char *directory, const char *name, const char *title,
		       const char *x, const char *y)
{
	fprintf(gnuplot,
		"reset\n"
		"set terminal svg size 720,440 font 'sans-serif,13' background '#ffffff'\n"
		"set output '%s/%s.svg'\n"
		"set title '%s'\nset xlabel '%s'\nset ylabel '%s'\n"
		"set grid ytics lc rgb '#dddddd'\nset border 3\nset tics nomirror\n"
		"set key top left reverse Left\nset yrange [0:*]\n"
		"set style line 1 lc rgb '#999999' lw 2 pt 7 ps 0.6\n"
		"set style line 2 lc rgb '#0060a8' lw 2 pt 7 ps 0.6\n"
		"set style line 3 lc rgb '#d55e00' lw 2 pt 7 ps 0.6\n",
		directory, name, title, x, y);
}

/* One line for each of limit, vsockd, peer: x, median, least, most; x as its label. */
static void plot_lines(FILE *gnuplot, const struct results *results, struct results_key key,
		       const size_t *x, size_t n_x, bool is_payload)
{
	static const char *const names[] = {CANDIDATE_LIMIT, CANDIDATE_VSOCKD, CANDIDATE_PEER};
	const char *separator = "plot ";

	for (size_t k = 0; k < 3; k++) {
		size_t candidate = results_candidate(results, names[k]);

		fprintf(gnuplot, "$line%zu << end\n", k);
		for (size_t i = 0; candidate != SIZE_MAX && i < n_x; i++) {
			const struct series *series;

			*(is_payload ? &key.payload : &key.n_connections) = x[i];
			series = results_find(results, &key, candidate);
			if (series)
				fprintf(gnuplot, "%zu %zu %g %g %g\n", i, x[i],
					results_median(series), results_minimum(series),
					results_maximum(series));
		}
		fprintf(gnuplot, "end\n");
	}
	fprintf(gnuplot, "set xrange [-0.3:%zu.3]\n", n_x - 1);
	for (size_t k = 0; k < 3; k++) {
		if (results_candidate(results, names[k]) == SIZE_MAX)
			continue;
		fprintf(gnuplot,
			"%s$line%zu using 1:3:4:5:xtic(2) with yerrorlines ls %zu title '%s'",
			separator, k, k + 1, names[k]);
		separator = ", ";
	}
	fprintf(gnuplot, "\n");
}

/* Groups of bars: a metric each, a bar for each of limit, vsockd, peer. */
static void plot_bars(FILE *gnuplot, const struct results *results, const struct results_key *keys,
		      const char *const *labels, size_t n)
{
	static const char *const names[] = {CANDIDATE_LIMIT, CANDIDATE_VSOCKD, CANDIDATE_PEER};
	const char *separator = "plot ";

	fprintf(gnuplot, "set style data histograms\nset style histogram clustered gap 1\n"
			 "set style fill solid\nset boxwidth 0.9\n$bars << end\n");
	for (size_t i = 0; i < n; i++) {
		fprintf(gnuplot, "\"%s\"", labels[i]);
		for (size_t k = 0; k < 3; k++) {
			size_t candidate = results_candidate(results, names[k]);
			const struct series *series = results_find(results, &keys[i], candidate);

			if (series)
				fprintf(gnuplot, " %g", results_median(series));
			else
				fprintf(gnuplot, " NaN");
		}
		fprintf(gnuplot, "\n");
	}
	fprintf(gnuplot, "end\n");
	for (size_t k = 0; k < 3; k++) {
		/* gnuplot takes no bars without a value. */
		if (!results_find(results, &keys[0], results_candidate(results, names[k])))
			continue;
		fprintf(gnuplot, "%s$bars using %zu:xtic(1) ls %zu title '%s'", separator, k + 2,
			k + 1, names[k]);
		separator = ", ";
	}
	fprintf(gnuplot, "\n");
}

static void plot_streams(FILE *gnuplot, const struct results *results, const char *directory)
{
	static const size_t payloads[] = {64, 1024, 4096, 16384, 65536};
	static const size_t connections[] = {1, 8, 16, 64};
	static const struct {
		const char *test, *metric, *name, *title;
		bool is_over_payloads;
	} plots[] = {
		{TEST_FROM_GUEST, METRIC_RATE, "guest-to-host", "Guest to host, one connection",
		 true},
		{TEST_FROM_HOST, METRIC_RATE, "host-to-guest", "Host to guest, one connection",
		 true},
		{TEST_FROM_GUEST, METRIC_CPU, "guest-to-host-cpu",
		 "Guest to host, one connection: CPU of the back-end", true},
		{TEST_FROM_HOST, METRIC_CPU, "host-to-guest-cpu",
		 "Host to guest, one connection: CPU of the back-end", true},
		{TEST_FROM_GUEST, METRIC_RATE, "guest-to-host-connections",
		 "Guest to host, 4 KiB payloads", false},
		{TEST_FROM_HOST, METRIC_RATE, "host-to-guest-connections",
		 "Host to guest, 4 KiB payloads", false},
	};

	for (size_t i = 0; i < sizeof(plots) / sizeof(*plots); i++) {
		struct results_key key = {.test = plots[i].test,
					  .metric = plots[i].metric,
					  .payload = 4096,
					  .n_connections = 1};
		bool is_over_payloads = plots[i].is_over_payloads;

		begin_plot(gnuplot, directory, plots[i].name, plots[i].title,
			   is_over_payloads ? "payload in bytes" : "connections", plots[i].metric);
		plot_lines(gnuplot, results, key, is_over_payloads ? payloads : connections,
			   is_over_payloads ? 5 : 4, is_over_payloads);
	}
}

static void plot_others(FILE *gnuplot, const struct results *results, const char *directory)
{
	static const struct results_key times[] = {
		{.test = TEST_ROUND_TRIP, .metric = METRIC_P50},
		{.test = TEST_ROUND_TRIP, .metric = METRIC_P99},
		{.test = TEST_ROUND_TRIP, .metric = METRIC_P999},
	};
	static const struct results_key opened[] = {
		{.test = TEST_OPENED_BY_GUEST, .metric = METRIC_OPENED, .n_connections = 1},
		{.test = TEST_OPENED_BY_GUEST, .metric = METRIC_OPENED, .n_connections = 16},
		{.test = TEST_OPENED_BY_HOST, .metric = METRIC_OPENED, .n_connections = 1},
		{.test = TEST_OPENED_BY_HOST, .metric = METRIC_OPENED, .n_connections = 16},
	};
	static const char *const time_labels[] = {"p50", "p99", "p99.9"};
	static const char *const opened_labels[] = {"guest, one at a time", "guest, 16",
						    "host, one at a time", "host, 16"};

	begin_plot(gnuplot, directory, "round-trip", "One byte there and back", "", "microseconds");
	plot_bars(gnuplot, results, times, time_labels, 3);
	begin_plot(gnuplot, directory, "connections-per-second",
		   "Connections opened and closed, and by whom", "", "connections/s");
	plot_bars(gnuplot, results, opened, opened_labels, 4);
}

int output_plots(const struct results *results, const char *directory)
{
	FILE *gnuplot;
	int status;

	if (system("command -v gnuplot >/dev/null 2>&1") != 0)
		return -ENOENT;
	if (mkdir(directory, 0777) < 0 && errno != EEXIST)
		return -errno;
	gnuplot = popen("gnuplot", "w");
	if (!gnuplot)
		return -errno;
	plot_streams(gnuplot, results, directory);
	plot_others(gnuplot, results, directory);
	status = pclose(gnuplot);
	return status == 0 ? 0 : -EIO;
}
