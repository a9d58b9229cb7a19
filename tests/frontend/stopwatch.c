/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/stopwatch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* On a run queue and not on a processor; 0 of one that is gone, or where the kernel does not say.
 */
static int64_t waited_ns(pid_t pid)
{
	int64_t waited = 0;
	char path[64];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/schedstat", pid);
	file = fopen(path, "re");
	if (!file)
		return 0;
	if (fscanf(file, "%*d %" SCNd64, &waited) != 1)
		waited = 0;
	fclose(file);
	return waited;
}

/* Of all processors together: whose turn it was is not known. */
static int64_t stolen_ns(void)
{
	FILE *file = fopen("/proc/stat", "re");
	int64_t ticks = 0;

	if (!file)
		return 0;
	if (fscanf(file, "cpu %*d %*d %*d %*d %*d %*d %*d %" SCNd64, &ticks) != 1)
		ticks = 0;
	fclose(file);
	return ticks * (1000000000 / sysconf(_SC_CLK_TCK));
}

void stopwatch_start(struct stopwatch *watch, const pid_t *pids, size_t n_pids)
{
	watch->n_pids = 0;
	watch->pids[watch->n_pids++] = getpid();
	for (size_t i = 0; i < n_pids && i < DAEMON_PIDS_MAX; i++)
		watch->pids[watch->n_pids++] = pids[i];
	for (size_t i = 0; i < watch->n_pids; i++)
		watch->waited_ns[i] = waited_ns(watch->pids[i]);
	watch->stolen_ns = stolen_ns();
	watch->began_ns = now_ns();
}

int64_t stopwatch_elapsed(const struct stopwatch *watch)
{
	return (now_ns() - watch->began_ns) / 1000000;
}

static int64_t waited_before(const struct stopwatch *watch, pid_t pid)
{
	for (size_t i = 0; i < watch->n_pids; i++)
		if (watch->pids[i] == pid)
			return watch->waited_ns[i];
	return 0; /* it began since */
}

static int64_t spent(const struct stopwatch *watch, const pid_t *pids, size_t n_pids)
{
	int64_t ns = now_ns() - watch->began_ns;

	ns -= stolen_ns() - watch->stolen_ns;
	for (size_t i = 0; i < n_pids; i++) {
		int64_t waited = waited_ns(pids[i]) - waited_before(watch, pids[i]);

		ns -= waited > 0 ? waited : 0;
	}
	return ns > 0 ? ns / 1000000 : 0;
}

int64_t stopwatch_spent(const struct stopwatch *watch)
{
	return spent(watch, watch->pids, watch->n_pids);
}

void stopwatch_start_daemon(struct stopwatch *watch, const struct daemon *daemon)
{
	pid_t pids[DAEMON_PIDS_MAX];

	stopwatch_start(watch, pids, daemon_pids(daemon, pids));
}

int64_t stopwatch_spent_daemon(const struct stopwatch *watch, const struct daemon *daemon)
{
	pid_t pids[STOPWATCH_PIDS_MAX];
	size_t n = daemon_pids(daemon, pids);

	pids[n++] = getpid();
	return spent(watch, pids, n);
}
