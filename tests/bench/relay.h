/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The bare limit: a process that moves payloads between shared memory and unix
 * sockets, with the smallest ring that one can think of, eventfds in both
 * directions, and up to n_batch payloads in one sendmsg() or readv(). It checks
 * nothing, has no credit and no confinement.
 */

#include "tests/bench/driver.h"

struct relay;

/*
 * Start it with so many connections; payload is the largest that is sent. NULL
 * if that fails. Its driver is relay_driver(); relay_stop() closes host_fds.
 */
struct relay *relay_start(size_t n_connections, size_t payload, size_t n_batch);
struct driver *relay_driver(struct relay *relay);
void relay_stop(struct relay *relay);
