/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Time limits and unix sockets: what every layer of the test front-end stands
 * on. Nothing in tests/frontend waits without a limit; a limit that passes is
 * -ETIMEDOUT. All sockets are close-on-exec and non-blocking.
 */

#include <stdbool.h>
#include <stdint.h>

/* Milliseconds; the default limit of a single wait. It only ends what hangs, on any machine. */
#define SOCKET_TIMEOUT 30000

/* A point of CLOCK_MONOTONIC in milliseconds. */
int64_t deadline_in(int milliseconds);

/* Milliseconds until then, 0 once it has passed. */
int deadline_left(int64_t deadline);

/* Wait for events (poll(2)) on fd. 0, -ETIMEDOUT or negative errno. */
int socket_wait(int fd, short events, int64_t deadline);

/*
 * Connect to a unix socket of the given type, waiting for the path to appear
 * and for its owner to listen. The fd, or negative errno (-ETIMEDOUT after
 * timeout milliseconds; -ENOENT if the directory does not exist).
 */
int socket_connect(const char *path, int type, int timeout);

/* Bind and listen. The fd or negative errno. */
int socket_listen(const char *path, int type);

/*
 * Wait until something appears at path. 0, or negative errno as above; -ECHILD
 * if other_fd (say, a pidfd; -1: none) becomes readable first.
 */
int socket_wait_path(const char *path, int other_fd, int timeout);

/* To another process, by a socket of a pair. false: that is gone. */
bool socket_pass_fd(int socket, int fd);

/* That fd, when who passed it has closed its end, or has ended; -1: none came. */
int socket_take_fd(int socket);

/*
 * An fd that whoever runs the one poll loop (guest_poll()) watches as well.
 * The owner may change events at any time; 0 means: not now.
 */
struct watch {
	int fd;
	short events;
	void (*ready)(struct watch *watch, short events);
	struct watch *next; /* private to the loop */
};
