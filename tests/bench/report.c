/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/report.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

static void print_number(char *text, size_t size, double value)
{
	if (value >= 100)
		snprintf(text, size, "%.0f", value);
	else
		snprintf(text, size, "%.3g", value);
}

static void print_cell(const struct results *results, const struct results_key *key,
		       size_t candidate)
{
	const struct series *series = results_find(results, key, candidate);
	char middle[24], least[24], most[24], spread[64] = "";

	if (!series) {
		printf(" %22s", "-");
		return;
	}
	print_number(middle, sizeof(middle), results_median(series));
	print_number(least, sizeof(least), results_minimum(series));
	print_number(most, sizeof(most), results_maximum(series));
	if (series->n > 1)
		snprintf(spread, sizeof(spread), " (%s-%s)", least, most);
	printf(" %8s%-14s", middle, spread);
}

static void print_ratio(const struct results *results, const struct results_key *key,
			const char *other)
{
	size_t own = results_candidate(results, CANDIDATE_VSOCKD);
	size_t candidate = results_candidate(results, other);
	double ratio;

	if (candidate == SIZE_MAX)
		return;
	if (results_ratio(results_find(results, key, own), results_find(results, key, candidate),
			  &ratio))
		printf(" %13.2f", ratio);
	else
		printf(" %13s", "-");
}

static bool is_measured(const struct results *results, const struct results_key *key)
{
	for (size_t i = 0; i < results->n_candidates; i++) {
		if (results_find(results, key, i))
			return true;
	}
	return false;
}

static void print_titles(const struct results *results, const char *title, const char *first)
{
	printf("\n%s\n%-28s", title, first);
	for (size_t i = 0; i < results->n_candidates; i++)
		printf(" %8s%-14s", results->candidates[i], "");
	if (results_candidate(results, CANDIDATE_LIMIT) != SIZE_MAX)
		printf(" %13s", "vsockd/limit");
	if (results_candidate(results, CANDIDATE_PEER) != SIZE_MAX)
		printf(" %13s", "vsockd/peer");
	printf("\n");
}

static void print_row(const struct results *results, const struct results_key *key,
		      const char *label)
{
	printf("%-28s", label);
	for (size_t i = 0; i < results->n_candidates; i++)
		print_cell(results, key, i);
	print_ratio(results, key, CANDIDATE_LIMIT);
	print_ratio(results, key, CANDIDATE_PEER);
	printf("\n");
}

/* Is this the first series with such a row? Others belong to the same one. */
static bool is_first(const struct results *results, size_t index)
{
	const struct results_key *key = &results->series[index].key;

	for (size_t i = 0; i < index; i++) {
		const struct results_key *other = &results->series[i].key;

		if (strcmp(other->test, key->test) == 0 &&
		    strcmp(other->metric, key->metric) == 0 && other->payload == key->payload &&
		    other->n_connections == key->n_connections)
			return false;
	}
	return true;
}

static void label_row(const struct results_key *key, char *ret, size_t size)
{
	if (key->payload > 0 && key->n_connections > 0)
		snprintf(ret, size, "%6zu B, %2zu connection%s", key->payload, key->n_connections,
			 key->n_connections > 1 ? "s" : "");
	else if (key->n_connections > 0)
		snprintf(ret, size, "%2zu at a time", key->n_connections);
	else
		snprintf(ret, size, "%s", key->metric);
}

static void print_table(const struct results *results, const char *test, const char *metric)
{
	char title[96];
	bool is_begun = false;

	snprintf(title, sizeof(title), "%s, %s", test, metric);
	for (size_t i = 0; i < results->n_series; i++) {
		const struct results_key *key = &results->series[i].key;
		char label[64];

		if (strcmp(key->test, test) != 0 || strcmp(key->metric, metric) != 0 ||
		    !is_first(results, i))
			continue;
		if (!is_begun)
			print_titles(results, title, "");
		is_begun = true;
		label_row(key, label, sizeof(label));
		print_row(results, key, label);
	}
}

/* A test whose rows are its metrics. */
static void print_metrics(const struct results *results, const char *test,
			  const char *const *metrics)
{
	bool is_begun = false;

	for (size_t i = 0; metrics[i]; i++) {
		const struct results_key key = {.test = test, .metric = metrics[i]};

		if (!is_measured(results, &key))
			continue;
		if (!is_begun)
			print_titles(results, test, "");
		is_begun = true;
		print_row(results, &key, metrics[i]);
	}
}

void report_print(const struct results *results)
{
	static const char *const streams[] = {TEST_FROM_GUEST, TEST_FROM_HOST, TEST_DUPLEX};
	static const char *const costs[] = {METRIC_RATE,     METRIC_CPU,   METRIC_ENDS_CPU,
					    METRIC_SWITCHES, METRIC_CALLS, METRIC_INSTRUCTIONS,
					    METRIC_SLOWEST};
	static const char *const times[] = {METRIC_P50, METRIC_P99, METRIC_P999, NULL};
	static const char *const opened[] = {METRIC_OPENED, METRIC_OPENED_CPU,
					     METRIC_OPENED_SWITCHES};
	static const char *const memory[] = {METRIC_RESIDENT,
					     METRIC_PSS,
					     METRIC_PRIVATE,
					     METRIC_PER_CONNECTION,
					     METRIC_PEAK_RESIDENT,
					     METRIC_PEAK_PRIVATE,
					     METRIC_WORKER_RESIDENT,
					     METRIC_WORKER_PRIVATE,
					     METRIC_WORKER_PER_CONNECTION,
					     NULL};

	printf("Median (least-most) of the rounds; ratios are of one round each, their median.\n");
	for (size_t i = 0; i < sizeof(costs) / sizeof(*costs); i++) {
		for (size_t k = 0; k < sizeof(streams) / sizeof(*streams); k++)
			print_table(results, streams[k], costs[i]);
	}
	print_metrics(results, TEST_ROUND_TRIP, times);
	for (size_t i = 0; i < sizeof(opened) / sizeof(*opened); i++) {
		print_table(results, TEST_OPENED_BY_GUEST, opened[i]);
		print_table(results, TEST_OPENED_BY_HOST, opened[i]);
	}
	print_metrics(results, TEST_MEMORY, memory);
}
