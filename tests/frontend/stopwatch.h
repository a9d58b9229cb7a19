/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How much of a time the machine is to blame for. Who claims that something takes no
 * longer than so many milliseconds takes off what its processes waited for a processor,
 * and what a hypervisor gave to others: what is left is waiting for an event, or work.
 */

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/frontend/daemon.h"

#define STOPWATCH_PIDS_MAX (DAEMON_PIDS_MAX + 1)

/* Since stopwatch_start(). */
struct stopwatch {
	int64_t began_ns;
	int64_t stolen_ns;
	pid_t pids[STOPWATCH_PIDS_MAX];
	int64_t waited_ns[STOPWATCH_PIDS_MAX];
	size_t n_pids;
};

/* Of these processes and the caller; at most DAEMON_PIDS_MAX. */
void stopwatch_start(struct stopwatch *watch, const pid_t *pids, size_t n_pids);

/* Milliseconds since then, and those of them that the machine is not to blame for. */
int64_t stopwatch_elapsed(const struct stopwatch *watch);
int64_t stopwatch_spent(const struct stopwatch *watch);

/* The same of a daemon and all its descendants, also those that come meanwhile. */
void stopwatch_start_daemon(struct stopwatch *watch, const struct daemon *daemon);
int64_t stopwatch_spent_daemon(const struct stopwatch *watch, const struct daemon *daemon);
