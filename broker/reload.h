/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Taking up a changed configuration file while VMs run; the spawner's part. The file
 * is read as at the start. What it says of VMs is compared by guest CID with what
 * runs: VMs come and go, others get changed settings, and what is the same is not
 * touched. Everything that can fail comes first: a file that cannot be served changes
 * nothing. Logs.
 */

#include <stdbool.h>
#include <stdint.h>

#include "broker/banks.h"
#include "broker/configuration.h"
#include "broker/sockets.h"
#include "broker/spawner.h"

struct reload {
	int argc; /* the command line, which names the file */
	char **argv;
	struct configuration *configuration; /* the running one, by place; changed in here */
	struct sockets *sockets;	     /* the same */
	uint64_t n_files;		     /* the front's limit on open files */
	struct banks banks;
	unsigned int bank;	       /* that the front reads, or is about to */
	struct configuration previous; /* while is_pending: what the front may still go by */
	bool is_pending;	       /* the front has not said yet that it has changed over */
	size_t n_added, n_removed, n_changed; /* the last time */
};

/* A reload's messages to the front; once it is taken up, reload_forget() closes the fds. */
struct reload_messages {
	struct {
		struct spawner_reply reply;
		int fd; /* -1: none */
	} all[SOCKETS_MAX * CONFIGURATION_VMS_MAX + 1];
	size_t n;
};

/* Before the fork. 0 or negative errno. */
int reload_init(struct reload *reload, int argc, char **argv, struct configuration *configuration,
		struct sockets *sockets, uint64_t n_files);

/*
 * Read the file and make what it asks for. False when nothing has changed: the reason is in
 * the log, in a line behind which nothing is left of what was made for it. Not while
 * is_pending. Then the messages that have an fd, which stays the reload's, are to be sent,
 * and one of these is to be called:
 */
bool reload_prepare(struct reload *reload, struct reload_messages *ret_messages);
/* As if it had been false, for this reason. */
void reload_refuse(struct reload_messages *messages, const char *reason);
/* Carry it out. The messages without an fd are to be sent, and all to be forgotten. */
void reload_take_up(struct reload *reload, struct reload_messages *messages);
/* The line that ends it, once the messages are on their way: who waits for it may go on. */
void reload_say(const struct reload *reload);
void reload_forget(struct reload_messages *messages);

/* The front has changed over. */
void reload_finish(struct reload *reload);
