/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One vsockd with two VMs: one is under attack, and its neighbour's guest, in a
 * process of its own, does nothing but send bytes to an echo on the host and
 * compare what comes back. A test attacks; then rig_check() says whether the
 * neighbour felt it, whether vsockd lives, and whether the front let go of all
 * fds. All of it fails the cmocka test by an assertion.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/frontend/daemon.h"
#include "tests/frontend/vhost.h"
#include "tests/hostile/orders.h"

#define RIG_CID 100 /* of the VM under attack; the neighbour has 3 */

#if defined(__SANITIZE_ADDRESS__)
#define RIG_IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RIG_IS_SANITIZED 1
#endif
#endif

/*
 * Milliseconds that a round trip of the neighbour may take, without what the machine
 * is to blame for (tests/frontend/stopwatch.h). A healthy one takes a tenth of one; the
 * rest is for work that another process has to end first, and for sanitizers.
 */
#ifdef RIG_IS_SANITIZED
#define RIG_ROUND_TRIP_MAX 2000
#else
#define RIG_ROUND_TRIP_MAX 250
#endif
#define RIG_LIMIT 30000 /* ms, of one wait */

/* Shared with the neighbour's process. */
struct neighbour {
	_Atomic uint64_t n_round_trips;
	_Atomic int64_t worst_ms; /* without what the machine is to blame for */
	_Atomic int64_t longest_ms;
	_Atomic bool is_to_end;
	_Atomic bool has_failed;
	char failure[256];
};

struct rig {
	struct daemon daemon;
	char socket[108], uds_path[108]; /* of the VM under attack */
	char neighbour_socket[108], neighbour_uds_path[108];
	struct neighbour *neighbour;
	pid_t neighbour_pid;
	struct orders *orders; /* with rig_start_evil() */
	pid_t front;
	int n_fds;	/* of the front at rest; negative: this user may not see them */
	int n_kept_max; /* fds that the front may have kept open since, see broker/disposal.h */
	size_t n_processes;
	long log_at; /* what is in the log before is over */
};

/*
 * vsockd with its own worker, or with the evil one ($EVIL_WORKER). options: of the
 * VM under attack, as "max-connections=16".
 */
void rig_start(struct rig *rig, const char *options);
void rig_start_evil(struct rig *rig, const char *options);

/* The neighbour's connection ends in order, vsockd exits with 0. */
void rig_stop(struct rig *rig);

/* An attack begins: forget the neighbour's worst round trip and the log so far. */
void rig_mark(struct rig *rig);

/* Wait for as many round trips of the neighbour since the call; none, ever, was too slow. */
void rig_check_neighbour(struct rig *rig, unsigned int n_round_trips, const char *what);

/* Wait until as many processes, and fds in the front, are there as at rest. */
void rig_check_rest(struct rig *rig, const char *what);

/* Both, with 200 round trips. */
void rig_check(struct rig *rig, const char *what);

/*
 * Connect to a socket that is there: waits for room in the backlog, and takes
 * microseconds, where socket_connect() takes milliseconds. Non-blocking.
 */
int rig_connect(const char *path);
/* The same for vhost_connect(), to the VM under attack. */
void rig_connect_frontend(const struct rig *rig, struct vhost *ret_vhost);

/* A new front-end of the VM under attack is served, by a worker. */
void rig_check_service(const struct rig *rig, const char *what);

/* In the log since rig_mark(). */
size_t rig_count_log(struct rig *rig, const char *text);
void rig_wait_log(struct rig *rig, const char *text, const char *what);

/* A pause where there is no event: /proc, and sockets of others. Fails after the limit. */
void rig_wait_a_moment(int64_t deadline, const char *what);

/* Open fds of a process, negative errno where this user may not look. */
int rig_count_fds(pid_t pid);
