/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Connections that are busy both ways, every byte of them looked at: the guest's ends in
 * the caller's thread, which calls busy_turn(), the host programs' in another one. Either
 * as much as goes, or at a fixed rate.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/bench/backend.h"
#include "tests/bench/driver.h"

#define BUSY_CONNECTIONS 64
#define BUSY_PAYLOAD	 4096

/* One direction. Times are seconds; the longest is read by the other thread. */
struct busy_direction {
	uint64_t n_sent[BUSY_CONNECTIONS], n_received[BUSY_CONNECTIONS];
	uint64_t n_wrong; /* pieces */
	uint64_t n_paced; /* bytes that were sent at the fixed rate */
	size_t next;	  /* connection that is to send then */
	double last;	  /* when a byte arrived on some connection */
	uint32_t window;
	_Atomic uint64_t longest_ns; /* without one, in this window */
	_Atomic uint64_t n_arrivals;
};

struct busy {
	/* The caller's. */
	struct backend *backend;
	struct driver *driver;
	uint64_t rate; /* bytes a second and direction; 0: as many as go */
	/* Of busy.c; to be read. */
	double began;
	struct busy_direction to_host, to_guest;
	_Atomic uint32_t window;
	_Atomic bool is_ending; /* nothing new is sent */
	_Atomic bool is_over;	/* the host's thread returns */
	int epoll;
	pthread_t host;
};

/* All connections are open; the first bytes go. 0 or negative errno. */
int busy_start(struct busy *busy);
/* What the guest does in between. Negative errno when there is no guest any more. */
int busy_turn(struct busy *busy);
/* The host programs end. */
void busy_stop(struct busy *busy);

/* The load gives way to all other processes, for good. */
void busy_give_way(void);

/* Bytes that were sent and did not arrive; that arrived. */
uint64_t busy_lost(const struct busy_direction *direction);
uint64_t busy_arrived(const struct busy_direction *direction);
