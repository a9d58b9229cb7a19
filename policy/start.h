/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How the spawner starts what is to be confined: processes in fresh namespaces,
 * with user ids of their own where the spawner may give them, waiting for
 * nothing but policy_enter(). For the spawner alone, which must be single-
 * threaded, have /proc, and have fds 0, 1 and 2 open.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "policy/policy.h"

/*
 * Host user and group ids, given when the spawner holds CAP_SETUID and
 * CAP_SETGID: far above those of people and services and below 2^31, where some
 * programs think that ids end. An ordinary user's processes keep its own id.
 */
#define POLICY_FRONT_ID	 0x7f000000u
#define POLICY_WORKER_ID 0x7f000001u /* plus the slot of the worker */

/* Of the exporter, which no worker ever has: there are far fewer. */
#define POLICY_EXPORTER_SLOT 0xffffu

/* A started process: the caller waits for it and closes pidfd. */
struct policy_process {
	pid_t pid;
	int pidfd; /* close-on-exec */
};

struct policy_worker {
	uint32_t insecure; /* POLICY_INSECURE_... */
	uint32_t slot;	   /* no two live workers have the same */
	int program;	   /* O_PATH or readable fd of the program */
	int channel;	   /* becomes POLICY_WORKER_CHANNEL_FD; stays the caller's here */
	int buffer; /* becomes POLICY_WORKER_BUFFER_FD, or the exporter's listener; the same */
	char *const *argv;
};

/*
 * Start a worker, or the exporter: all seven namespaces, uid 0 of its own user namespace, no
 * environment, fds 0 to 4 and no other. SIGPIPE is ignored, the caller's
 * blocked signals stay blocked. Returns 0 once the program runs (exec has
 * succeeded), or negative errno with ret_failure filled and nothing left behind.
 */
int policy_clone(const struct policy_worker *worker, struct policy_process *ret_process,
		 struct policy_failure *ret_failure);

/*
 * fork() the front, into its own user, mount, network, IPC and UTS namespaces.
 * Returns 0 in the parent, POLICY_IS_FRONT in the child, which inherits every
 * fd, ignores SIGPIPE, keeps the caller's blocked signals blocked, and has to
 * call policy_enter(POLICY_FRONT) before it reads a byte. Negative errno in the
 * parent on failure, with ret_failure filled and nothing left behind.
 */
enum { POLICY_IS_FRONT = 1 };
int policy_fork_front(uint32_t insecure, struct policy_process *ret_process,
		      struct policy_failure *ret_failure);

/*
 * First of all, for vsockd started as root: become another user for good, with
 * no supplementary group. Kept are the capabilities for what is still to be set
 * up (ids, owners of sockets, policy_reduce_spawner()); CAP_DAC_OVERRIDE is not
 * among them, so the spawner never gets it back. 0, or negative errno with
 * ret_failure filled: then the caller must exit, as it may be halfway there.
 */
int policy_become_user(uid_t user, gid_t group, struct policy_failure *ret_failure);

/*
 * Once everything is opened and the front has been forked: the spawner keeps
 * CAP_SETUID and CAP_SETGID to give workers their ids, CAP_DAC_OVERRIDE to
 * connect to sockets of other users and to unlink its own (each where it has
 * it: after policy_become_user() the first two are all); if makes_sockets, as it
 * is going to make further ones, CAP_CHOWN and CAP_FOWNER to give them away;
 * CAP_SYS_ADMIN only where the host keeps user namespaces for it, CAP_KILL and
 * CAP_SETPCAP only without namespaces. The bounding set is reduced to the same, supplementary
 * groups go, no_new_privs is set, there is no core and no tracing.
 */
int policy_reduce_spawner(uint32_t insecure, bool makes_sockets,
			  struct policy_failure *ret_failure);
