/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What each process of vsockd may do. policy_enter() puts the calling process
 * behind its walls, in the order in which each step still may be taken:
 * securebits and bounding set, empty root, capabilities, limits, no_new_privs,
 * Landlock, system-call filter. There is no half-confined state: when a step
 * fails the caller must exit. The process must be single-threaded.
 *
 * The namespaces themselves are made by whoever starts the process
 * (policy_clone() and policy_fork_front() in start.h), because a mapping of
 * user ids can only be written from outside.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

enum policy_role {
	POLICY_FRONT,
	POLICY_WORKER,
	POLICY_EXPORTER,
	POLICY_ROLE_MAX,
};

/* Walls that the operator chose to go without; each is logged at every start. */
enum {
	POLICY_INSECURE_NO_NAMESPACES = 1 << 0,
	POLICY_INSECURE_NO_SECCOMP = 1 << 1,
};

struct policy_limits {
	uint32_t insecure; /* POLICY_INSECURE_... */
	uint64_t n_files;  /* RLIMIT_NOFILE, soft and hard */
};

/* What failed, what the host forbids, which option goes on without it. */
struct policy_failure {
	char text[400];
};

/*
 * False in builds with a sanitizer, whose run-time needs calls that no filter
 * of ours allows: such a build is for tests, and says so at every start.
 */
extern const bool policy_has_filter;

/*
 * An empty string: the one path that the front's statx() may be given. The
 * filter compares the address, so no other path is ever looked up.
 */
extern const char policy_empty_path[1];

/*
 * A message without bytes, fds or address: the one that a worker's sendmsg() may
 * give to a host program, by the same comparison.
 */
extern const struct msghdr policy_empty_message[1];

/*
 * Confine the calling process for its role. 0, or negative errno with
 * ret_failure filled. After success on POLICY_WORKER and POLICY_EXPORTER only fds 0
 * to POLICY_..._FD_MAX are open and 2 is /dev/null (kept in sanitizer builds):
 * until then it is the stderr of vsockd, so that a failure can be told.
 */
int policy_enter(enum policy_role role, const struct policy_limits *limits,
		 struct policy_failure *ret_failure);

/* The worker's fixed fds; 0 and 1 are /dev/null. */
enum {
	POLICY_WORKER_CHANNEL_FD = 3, /* SOCK_SEQPACKET to the front */
	POLICY_WORKER_BUFFER_FD = 4,  /* sealed memfd; closed by the worker once mapped */
	POLICY_WORKER_EPOLL_FD = 5,   /* made by the worker before policy_enter() */
	POLICY_WORKER_FD_MAX = POLICY_WORKER_EPOLL_FD,
};

/* The exporter is started in the same way, with a socket in the place of the buffer. */
enum {
	POLICY_EXPORTER_LISTENER_FD = POLICY_WORKER_BUFFER_FD,
	POLICY_EXPORTER_EPOLL_FD = POLICY_WORKER_EPOLL_FD,
	POLICY_EXPORTER_FD_MAX, /* the library's epoll, made before policy_enter() too */
};
