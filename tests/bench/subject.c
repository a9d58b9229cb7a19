/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/bench/subject.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/bench/relay.h"

double subject_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int subject_fail(const struct candidate *candidate, const char *reason, int error)
{
	fprintf(stderr, "\nbench: %s: %s: %s\n", candidate->name, reason, strerror(-error));
	return error;
}

int subject_start(const struct candidate *candidate, size_t n_connections, size_t payload,
		  struct subject *ret)
{
	const char *reason = NULL;
	int error;

	*ret = (struct subject){.candidate = candidate};
	if (candidate->n_batch > 0) {
		ret->relay = relay_start(n_connections, payload, candidate->n_batch);
		if (!ret->relay)
			return subject_fail(candidate, "start", -ENOMEM);
		ret->driver = relay_driver(ret->relay);
		return 0;
	}
	ret->backend = backend_start(&candidate->command, &reason);
	if (!ret->backend)
		return subject_fail(candidate, reason, -ECHILD);
	ret->driver = backend_driver(ret->backend);
	error = backend_open(ret->backend, n_connections, payload);
	if (!error)
		return 0;
	backend_stop(ret->backend);
	return subject_fail(candidate, "opening connections", error);
}

void subject_stop(struct subject *subject)
{
	static const char *told; /* whose violations were shown last */

	if (subject->relay) {
		relay_stop(subject->relay);
		return;
	}
	if (backend_violations(subject->backend) > 0 && told != subject->candidate->name) {
		const char *violation = backend_first_violation(subject->backend);

		told = subject->candidate->name;
		fprintf(stderr, "\nbench: %s broke the protocol %zu times, first: %.*s\n", told,
			backend_violations(subject->backend), (int)strcspn(violation, "\n"),
			violation);
	}
	backend_stop(subject->backend);
}
