/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * systemd's part: hears what vsockd tells, keeps the sockets of the fd store, and passes
 * them on to the next vsockd in the same directory. All of it fails the cmocka test by an
 * assertion when something is wrong.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/frontend/daemon.h"
#include "tests/frontend/guest.h"

#define MANAGER_LIMIT	   30000 /* ms */
#define MANAGER_STORED_MAX 32

struct manager {
	struct daemon daemon;
	struct daemon_service service;
	struct guest guest; /* the test's */
	bool has_guest;	    /* writable: it is ended with the manager */
	int notify;	    /* the socket */
	char notify_path[128];
	size_t n_stored;
	int fds[MANAGER_STORED_MAX];
	char names[MANAGER_STORED_MAX][256];
	char all_names[MANAGER_STORED_MAX * 256];
	char last[512]; /* message that brought no socket */
};

/* For cmocka_unit_test_setup_teardown(); vsockd is not started yet. The end says how it ended. */
int manager_set_up(void **state);
int manager_tear_down(void **state);

/* The value of a line "KEY=value", or NULL. */
const char *manager_value(const char *message, const char *key, char ret[static 256]);

/* One message. false: none came in time. */
bool manager_hear(struct manager *manager, int64_t deadline);

/* Until a message has that key, which is then in manager->last. */
void manager_await(struct manager *manager, const char *key);

/* "vsockd.yaml" in the directory; "@" is replaced by its name. */
void manager_write_file(struct manager *manager, const char *text);

/* Start with what is in the store, as daemon_start(); and with that file, until it is ready. */
void manager_start_with(struct manager *manager, const char *const *arguments);
void manager_start(struct manager *manager);

/* As "systemctl stop": its exit code is 0. */
void manager_end(struct manager *manager);
