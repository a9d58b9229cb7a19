/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The guest's end of what is measured: either a driver behind a back-end
 * (backend.h) or the bare limit (relay.h). One thread drives it; the host's
 * ends of the connections are host_fds, driven by another (host_program.h).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define DRIVER_CONNECTIONS_MAX 1024

/* The same for every candidate. */
#define DRIVER_QUEUE_SIZE     256
#define DRIVER_RX_BUFFER_SIZE 4096
#define DRIVER_TX_PACKETS     128 /* a header and a payload descriptor each */
#define DRIVER_BUF_ALLOC      (256 * 1024)
#define DRIVER_HEADER_LEN     44

struct driver {
	size_t n_connections;
	int host_fds[DRIVER_CONNECTIONS_MAX];	     /* the caller's, once opened */
	uint64_t n_received[DRIVER_CONNECTIONS_MAX]; /* bytes from the host */
	pid_t pid;				     /* of the first process that is measured */

	/* Queue n payloads on a connection. How many were taken, 0: no room now. */
	size_t (*send)(struct driver *driver, size_t connection, size_t payload, size_t n);

	/* Handle what waits; if nothing does, wait. Negative errno: it is broken. */
	int (*poll)(struct driver *driver, int timeout);
};
