/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Between the parts of measure.h: a candidate that was started, and a clock. */

#include "tests/bench/measure.h"

#define SUBJECT_MIB 1048576.0

/* No wait is longer: a back-end that lost its way costs a figure, not the run. */
#define SUBJECT_POLL_MILLISECONDS 20
#define SUBJECT_STUCK_SECONDS	  2.0

struct subject {
	const struct candidate *candidate;
	struct relay *relay;
	struct backend *backend; /* one of the two is NULL */
	struct driver *driver;
};

/* Seconds of CLOCK_MONOTONIC. */
double subject_now(void);

/* With so many connections from the guest. 0, or negative errno that was told of. */
int subject_start(const struct candidate *candidate, size_t n_connections, size_t payload,
		  struct subject *ret);
void subject_stop(struct subject *subject);

/* Says so on stderr; returns error. */
int subject_fail(const struct candidate *candidate, const char *reason, int error);
