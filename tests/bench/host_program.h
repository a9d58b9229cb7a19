/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The host programs at the other ends of the connections: one thread for all of them. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/bench/driver.h"

enum host_role {
	HOST_READS = 1,
	HOST_WRITES = 2,  /* payloads of the given size, as fast as they are taken */
	HOST_ECHOES = 4,  /* one connection only */
	HOST_ACCEPTS = 8, /* the one fd listens; what it accepts is closed when it ends */
};

struct host_program {
	pthread_t thread;
	const int *fds;
	size_t n_fds, payload;
	unsigned int roles;
	int epoll, stop;
	uint8_t *bytes;
	_Atomic uint64_t n_received[DRIVER_CONNECTIONS_MAX];
};

/* The fds stay the caller's. 0 or negative errno. */
int host_program_start(struct host_program *host, const int *fds, size_t n_fds, unsigned int roles,
		       size_t payload);
void host_program_stop(struct host_program *host);
