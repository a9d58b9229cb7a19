/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The exporter, the process that answers HTTP with metrics, as the spawner sees it:
 * started like a worker, with the listening socket in the place of the buffer, and
 * started again when it ends, each time later while that goes on. Nobody else waits
 * for it. Part of the spawner; logs.
 */

#include <stdbool.h>
#include <stdint.h>

#include "policy/start.h"

struct exporter_setup {
	int program;  /* O_PATH fd of vsockd-exporter */
	int channel;  /* its end of the pair with the front, for one after the other */
	int listener; /* TCP */
};

struct exporter {
	struct exporter_setup setup; /* fds are the caller's */
	uint32_t insecure;
	int timer; /* expires when it is to be started; -1: there is to be none */
	bool is_live;
	struct policy_process process;
	uint64_t started; /* ms */
	uint32_t n_short; /* that ended soon after their start, one after the other */
};

/* setup NULL: there is to be none. 0, or negative errno; then there is nothing to end. */
int exporter_init(struct exporter *exporter, const struct exporter_setup *setup, uint32_t insecure);

/* 0 with is_live, or negative errno after a line in the log. */
int exporter_start(struct exporter *exporter);

/* Its pidfd is readable: reap it, and set the timer. */
void exporter_ended(struct exporter *exporter);

/* The timer has expired: start it, or set the timer once more. */
void exporter_retry(struct exporter *exporter);

/* Kill and reap. */
void exporter_end(struct exporter *exporter);
