/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The host's side of the guest test: unix sockets beside the back-end's, as a
 * host program uses them, and the connection over which the guest's agent takes
 * its commands. Every wait has a time limit; errors are negative errnos.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/guest/stream.h"

#define HOST_UDS_NAME	  "vsock"   /* --uds-path, in the current directory */
#define HOST_SIBLING_NAME "sibling" /* that of the second VM */
#define HOST_CONTROL_PORT 1000u	    /* the agent's, too */
#define HOST_TRANSFER_MS  60000

uint64_t host_now_ms(void);

/* Listen where the back-end looks for the host's port; an fd. */
int host_listen(uint32_t port);
void host_unlisten(uint32_t port, int listener);

/* The same for messages. */
int host_listen_messages(uint32_t port);
int host_connect_messages(uint32_t port, unsigned int limit_ms);

/* An fd; every read and write on it is limited to HOST_TRANSFER_MS. */
int host_accept(int listener, unsigned int limit_ms);

/* Connect to a guest's port. An fd; -ECONNREFUSED when the back-end hung up. */
int host_connect(uint32_t port, unsigned int limit_ms);

void host_set_time_limit(int fd, unsigned int limit_ms);

/* Wait until the stream ends, by an end or by a reset, and pass over what still comes. */
int host_wait_for_end(int fd, unsigned int limit_ms);

/* One agent; survives that all its connections are reset. */
struct agent {
	int listener;
	int control; /* -1: not connected */
};

struct agent_reply {
	int error; /* 0, or what failed in the guest, as a positive errno */
	uint64_t n_bytes;
	uint64_t sum;
	char text[STREAM_LINE_MAX];
};

/* uds_name: the --uds-path of its VM, in the current directory. */
int agent_listen(struct agent *agent, const char *uds_name);

/* Wait for the agent to connect (again). ret_last is its reply to the command before. */
int agent_wait(struct agent *agent, unsigned int limit_ms, struct agent_reply *ret_last);

int agent_tell(struct agent *agent, const char *format, ...) __attribute__((format(printf, 2, 3)));
int agent_wait_listening(struct agent *agent);
int agent_wait_reply(struct agent *agent, struct agent_reply *ret_reply);

/* Both directions of one connection at once; start, then finish. */
struct exchange {
	int fd;
	bool sends; /* the sequence of `seed`, then shuts down sending */
	uint64_t seed;
	uint64_t n_bytes;
	struct checksum received;
	int error;
	pthread_t sender, receiver;
};

int exchange_start(struct exchange *exchange);

/* Whether what came is the sequence that was expected: `seed`, `n_bytes`. Closes the fd. */
bool exchange_finish(struct exchange *exchange);
