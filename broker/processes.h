/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The worker processes that the spawner has started: which live, under which
 * number, and how each is started alike, since a worker learns only later which
 * VM it serves. Part of the spawner; logs.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "policy/start.h"

struct configuration;

struct processes_slot {
	bool is_live;
	uint32_t number;  /* never used twice */
	uint32_t program; /* see struct spawner_reply */
	int buffer;	  /* until processes_forget_buffer(); -1 */
	struct policy_process process;
};

struct processes {
	struct processes_slot *slots; /* a slot decides the user id of its worker */
	uint32_t n_slots;
	uint32_t n_max; /* so many may live: fewer than slots while there are fewer VMs */
	uint32_t next_number;
	int program;		 /* the caller's: the file as it was at the start */
	const char *path;	 /* the caller's: where to look for it anew; NULL: nowhere */
	uint32_t n_programs;	 /* others than that were found there, one after the other */
	struct stat first, last; /* as it was at the start, and as it was last found there */
	bool is_failing;	 /* no worker could be started from there the last time */
	uint32_t insecure;
	uint64_t buffer_size;
	char files[32], connections[32], buffer[40], insecure_mask[32]; /* arguments */
};

/*
 * n_vms_max: VMs that there may be, later too. 0, or negative errno; then there is
 * nothing to end.
 */
int processes_init(struct processes *workers, const struct configuration *configuration,
		   size_t n_vms_max, int program, const char *path);

/* Workers that are started from now on can serve any VM of that configuration. */
int processes_adapt(struct processes *workers, const struct configuration *configuration);

/*
 * Start a worker whose fd 3 is a duplicate of channel. 0 or negative errno;
 * -EAGAIN when no more may live. is_first: of the program as it was at the start.
 */
int processes_start(struct processes *workers, int channel, bool is_first,
		    struct processes_slot **ret_slot);

/* Close the duplicate of its buffer: it was sent, or never will be. */
void processes_forget_buffer(struct processes_slot *slot);

/* Kill a worker by its number; one that has ended by then is no error. */
void processes_kill(struct processes *workers, uint32_t number);

/* Wait for a worker and free its slot. Wait status as of waitpid(2), or negative errno. */
int processes_reap(struct processes_slot *slot);

/* Kill and reap all, in that order, so that none is waited for in vain. */
void processes_end(struct processes *workers);

/* Wait for the end of a child: wait status as of waitpid(2), or negative errno. */
int processes_wait(int pidfd);
