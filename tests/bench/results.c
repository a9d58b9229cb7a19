/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/results.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static bool is_same(const struct results_key *a, const struct results_key *b)
{
	return strcmp(a->test, b->test) == 0 && strcmp(a->metric, b->metric) == 0 &&
	       a->payload == b->payload && a->n_connections == b->n_connections;
}

const struct series *results_find(const struct results *results, const struct results_key *key,
				  size_t candidate)
{
	for (size_t i = 0; i < results->n_series; i++) {
		const struct series *series = &results->series[i];

		if (series->candidate == candidate && is_same(&series->key, key))
			return series;
	}
	return NULL;
}

void results_add(struct results *results, const struct results_key *key, size_t candidate,
		 double value)
{
	struct series *series = (struct series *)results_find(results, key, candidate);

	if (!series) {
		series = realloc(results->series, (results->n_series + 1) * sizeof(*series));
		if (!series)
			abort();
		results->series = series;
		series = &results->series[results->n_series++];
		*series = (struct series){.key = *key, .candidate = candidate};
	}
	if (series->n == RESULTS_ROUNDS_MAX)
		return;
	series->rounds[series->n] = results->round;
	series->samples[series->n++] = value;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
	qsort(values, n, sizeof(*values), compare);
	return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double results_median(const struct series *series)
{
	double values[RESULTS_ROUNDS_MAX];

	memcpy(values, series->samples, series->n * sizeof(*values));
	return median(values, series->n);
}

double results_minimum(const struct series *series)
{
	double least = series->samples[0];

	for (size_t i = 1; i < series->n; i++)
		least = series->samples[i] < least ? series->samples[i] : least;
	return least;
}

double results_maximum(const struct series *series)
{
	double most = series->samples[0];

	for (size_t i = 1; i < series->n; i++)
		most = series->samples[i] > most ? series->samples[i] : most;
	return most;
}

bool results_ratio(const struct series *numerator, const struct series *denominator, double *ret)
{
	double ratios[RESULTS_ROUNDS_MAX];
	size_t n = 0;

	for (size_t i = 0; numerator && i < numerator->n; i++) {
		for (size_t k = 0; denominator && k < denominator->n; k++) {
			if (numerator->rounds[i] == denominator->rounds[k] &&
			    denominator->samples[k] > 0)
				ratios[n++] = numerator->samples[i] / denominator->samples[k];
		}
	}
	if (n == 0)
		return false;
	*ret = median(ratios, n);
	return true;
}

size_t results_candidate(const struct results *results, const char *name)
{
	for (size_t i = 0; i < results->n_candidates; i++) {
		if (strcmp(results->candidates[i], name) == 0)
			return i;
	}
	return SIZE_MAX;
}
