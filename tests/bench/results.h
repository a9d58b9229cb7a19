/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * All figures of a run: series of samples, one sample a round. A row is a test
 * with its payload and connections; it has a metric or several, each with a
 * series for every candidate.
 */

#include <stdbool.h>
#include <stddef.h>

#define RESULTS_ROUNDS_MAX     16
#define RESULTS_CANDIDATES_MAX 8

struct results_key {
	const char *test, *metric;
	size_t payload, n_connections; /* 0: does not apply */
};

struct series {
	struct results_key key;
	size_t candidate;
	double samples[RESULTS_ROUNDS_MAX];
	size_t rounds[RESULTS_ROUNDS_MAX]; /* of each sample: those of one round are compared */
	size_t n;
};

struct results {
	const char *candidates[RESULTS_CANDIDATES_MAX];
	size_t n_candidates;
	size_t round; /* what is being measured */
	struct series *series;
	size_t n_series;
};

void results_add(struct results *results, const struct results_key *key, size_t candidate,
		 double value);

/* NULL: not measured. */
const struct series *results_find(const struct results *results, const struct results_key *key,
				  size_t candidate);

/* Of a series that is not empty. */
double results_median(const struct series *series);
double results_minimum(const struct series *series);
double results_maximum(const struct series *series);

/* The median of the ratios of each round. false: they have none in common. */
bool results_ratio(const struct series *numerator, const struct series *denominator, double *ret);

/* The candidate of that name, or SIZE_MAX. */
size_t results_candidate(const struct results *results, const char *name);
