/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A back-end, freshly started, with a driver in front of it that asks no more
 * than any of them can do: VERSION_1 and EVENT_IDX, header and payload in a
 * descriptor each.
 */

#include "tests/bench/driver.h"
#include "tests/frontend/daemon.h"
#include "tests/frontend/guest.h"

#define BACKEND_CID	  3
#define BACKEND_PORT	  5000
#define BACKEND_TIMEOUT	  5000
#define BACKEND_WORDS_MAX 32

/*
 * What to start, in words; "@" in them is a directory of its own. Options as
 * --socket @/vhost.sock are part of it.
 */
struct backend_command {
	const char *words[BACKEND_WORDS_MAX + 1];
};

struct backend;

/* NULL, and *ret_reason, if it does not start or does not take us. */
struct backend *backend_start(const struct backend_command *command, const char **ret_reason);

/* Open so many connections from the guest to a host program. 0 or negative errno. */
int backend_open(struct backend *backend, size_t n_connections, size_t payload);

struct driver *backend_driver(struct backend *backend);
struct guest *backend_guest(struct backend *backend);
struct guest_connection *backend_connection(struct backend *backend, size_t index);
const char *backend_path(struct backend *backend, const char *name); /* in its directory */
const char *backend_uds_path(struct backend *backend);
int backend_listener(struct backend *backend); /* of BACKEND_PORT */
size_t backend_violations(const struct backend *backend);
const char *backend_first_violation(const struct backend *backend);

/* The guest leaves: a back-end that is asked to end behind that has time to. */
void backend_end_guest(struct backend *backend);
void backend_stop(struct backend *backend);
