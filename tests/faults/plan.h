/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which call is to fail, in memory that the test shares with all processes of a vsockd
 * that was linked with shim.c. They count their calls there, and write down what failed.
 * Pages of a file: nothing else gets through the walls of a worker, and no system call
 * is needed to look.
 */

#include <stdatomic.h>
#include <stdint.h>

/* In the environment of the spawner, and, by the shim's doing, of each worker. */
#define PLAN_VARIABLE "FAULTS_PLAN"

enum plan_role {
	ROLE_SPAWNER,
	ROLE_STARTER, /* what becomes a worker, until it is executed */
	ROLE_FRONT,
	ROLE_WORKER,
	ROLES,
};

/*
 * The calls of the C library that can fail for a reason beyond vsockd. Those that
 * confine a process are not among them: their failure has its tests in tests/sandbox.
 */
#define PLAN_CALLS(X)                                                                              \
	X(accept4)                                                                                 \
	X(bind)                                                                                    \
	X(clone)                                                                                   \
	X(calloc)                                                                                  \
	X(chmod)                                                                                   \
	X(close)                                                                                   \
	X(connect)                                                                                 \
	X(dup3)                                                                                    \
	X(epoll_create1)                                                                           \
	X(epoll_ctl)                                                                               \
	X(epoll_wait)                                                                              \
	X(execveat)                                                                                \
	X(fcntl)                                                                                   \
	X(flock)                                                                                   \
	X(fork)                                                                                    \
	X(fstat)                                                                                   \
	X(ftruncate)                                                                               \
	X(getrandom)                                                                               \
	X(getsockopt)                                                                              \
	X(listen)                                                                                  \
	X(lstat)                                                                                   \
	X(madvise)                                                                                 \
	X(malloc)                                                                                  \
	X(memfd_create)                                                                            \
	X(mmap)                                                                                    \
	X(munmap)                                                                                  \
	X(open)                                                                                    \
	X(pidfd_open)                                                                              \
	X(poll)                                                                                    \
	X(read)                                                                                    \
	X(readv)                                                                                   \
	X(recv)                                                                                    \
	X(recvfrom)                                                                                \
	X(recvmsg)                                                                                 \
	X(send)                                                                                    \
	X(sendmsg)                                                                                 \
	X(setsockopt)                                                                              \
	X(shutdown)                                                                                \
	X(signalfd)                                                                                \
	X(socket)                                                                                  \
	X(socketpair)                                                                              \
	X(stat)                                                                                    \
	X(statx)                                                                                   \
	X(strdup)                                                                                  \
	X(timerfd_create)                                                                          \
	X(timerfd_settime)                                                                         \
	X(unlink)                                                                                  \
	X(waitid)                                                                                  \
	X(write)                                                                                   \
	X(writev)

#define PLAN_CALL(name) CALL_##name,
enum plan_call { PLAN_CALLS(PLAN_CALL) CALLS };
#undef PLAN_CALL

/* Beside the numbers of errors, all of them smaller. */
enum {
	FAULT_SHORT = 10000, /* half of the bytes, at least one */
	FAULT_NO_FDS,	     /* fds that came along found no number: MSG_CTRUNC */
};

/* What is going on, as the test sees it. */
enum plan_phase {
	PHASE_START, /* vsockd starts */
	PHASE_QUIET, /* counted, and nothing fails */
	PHASE_LIFE,  /* of the guest that is to suffer */
	PHASE_END,   /* vsockd ends: what cannot be removed stays for the next start */
};

#define PLAN_SITES_MAX 8192

struct plan {
	_Atomic uint32_t phase; /* enum plan_phase */
	uint32_t role, call, nth, fault;
	_Atomic uint32_t n_workers;
	_Atomic uint32_t n_wall_clock; /* times that somebody asked for a time that may jump */
	_Atomic uint32_t n_injected;
	_Atomic uint32_t injected_phase;
	_Atomic uint32_t injected_site;
	_Atomic uint32_t counts[ROLES][CALLS];
	/* Where in the program the nth call came from; 0: it was not to be counted. */
	uint32_t sites[ROLES][CALLS][PLAN_SITES_MAX];
};
