/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What a process and its descendants, with all their threads, have used. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct processes_usage {
	double cpu_seconds;
	uint64_t n_switches; /* voluntary context switches */
};

/*
 * In bytes. Of pages that others map too, as the guest's memory, resident has all, pss a
 * share, private none. 0 where /proc does not say.
 */
struct processes_memory {
	uint64_t resident, peak_resident;
	uint64_t pss, private;
};

#define PROCESSES_MAX 256

/* CPU time of the whole machine that went to anybody, and to us with all that we started. */
struct processes_machine {
	double all, own; /* seconds */
};

void processes_machine(struct processes_machine *ret);

void processes_usage(pid_t root, struct processes_usage *ret);
/* CPU seconds of all threads of this process: the guest and the host programs. */
double processes_own_cpu(void);
void processes_memory(pid_t root, struct processes_memory *ret);

/* The descendant of that name with the most memory of its own: false if there is none. */
bool processes_memory_of(pid_t root, const char *name, struct processes_memory *ret);

/*
 * Counts the system calls of all threads that exist now. 0, or negative errno
 * if the kernel does not let us: then processes_calls_reason() says why.
 */
struct processes_calls {
	int fds[PROCESSES_MAX];
	size_t n_fds;
};

int processes_calls_start(pid_t root, struct processes_calls *ret);
uint64_t processes_calls_read(const struct processes_calls *calls);
void processes_calls_end(struct processes_calls *calls);
const char *processes_calls_reason(int error);
