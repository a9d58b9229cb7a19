/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/chaos/rest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/chaos/shared.h"

/* Of a worker: its channel and its buffers in the front, its pidfd in the spawner. */
#define FDS_OF_WORKER 3

struct holdings {
	size_t n_workers;
	int n_fds; /* of front and spawner; negative: this user may not look */
};

static struct holdings at_first, at_last;

static bool is_one_of(pid_t pid, const pid_t *pids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (pids[i] == pid)
			return true;
	return false;
}

static struct holdings look(const struct daemon *daemon)
{
	pid_t pids[DAEMON_PIDS_MAX], workers[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(daemon, pids);
	struct holdings holdings = {
		.n_workers = daemon_find(daemon, "vsockd-worker", workers),
	};

	for (size_t i = 0; i < n; i++) {
		int n_fds = is_one_of(pids[i], workers, holdings.n_workers)
				    ? 0
				    : daemon_count_fds_of(pids[i]);

		if (n_fds < 0) {
			holdings.n_fds = n_fds;
			break;
		}
		holdings.n_fds += n_fds;
	}
	return holdings;
}

void rest_begin(struct daemon *daemon)
{
	int64_t deadline = now_ms() + LIMIT;
	struct holdings before;

	/* The first spare is there before it has opened everything: until twice the same is seen.
	 */
	do {
		before = at_first;
		look_after(200);
		at_first = look(daemon);
		if (now_ms() > deadline)
			tell_failure("vsockd never rests: %zu workers", at_first.n_workers);
	} while (at_first.n_workers != 1 || at_first.n_fds != before.n_fds);
}

/* A start that nobody waited for in the end leaves one more spare, of which there are few. */
static bool is_at_rest(void)
{
	int surplus = (int)(at_last.n_workers - 1) * FDS_OF_WORKER;

	if (at_last.n_workers < 1 || at_last.n_workers > 2 * VMS + 2)
		return false;
	/* One may have ended while its fds were counted. */
	return at_last.n_fds == -EACCES ||
	       (at_last.n_fds >= 0 && at_last.n_fds <= at_first.n_fds + surplus);
}

void rest_check(struct daemon *daemon)
{
	int64_t deadline = now_ms() + LIMIT;

	for (at_last = look(daemon); !is_at_rest(); at_last = look(daemon)) {
		look_after(20);
		if (now_ms() < deadline)
			continue;
		tell_failure("left at rest: %zu workers, and %d fds where %d were",
			     at_last.n_workers, at_last.n_fds, at_first.n_fds);
	}
}

const char *rest_says(void)
{
	static char text[128];

	snprintf(text, sizeof(text),
		 "%d fds of front and spawner at first, %d and %zu workers "
		 "at last",
		 at_first.n_fds, at_last.n_fds, at_last.n_workers);
	return text;
}
