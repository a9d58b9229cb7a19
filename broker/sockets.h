/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The sockets that vsockd listens on: of each VM, by its place and a number, and of
 * vsockd itself. The spawner makes and removes them; the fds go to the front, either
 * by the fork or one by one, and the spawner keeps none: an open listener would
 * outlive the front. What it keeps is what was bound, to remove the right file.
 * Logs.
 */

#include <stdbool.h>
#include <stddef.h>

#include "broker/configuration.h"
#include "broker/listener.h"
#include "broker/ports.h"

/* The number of a socket among those of its VM. */
enum socket_number {
	SOCKET_FRONTEND, /* vhost-user */
	SOCKET_HOST,	 /* uds-path */
	SOCKET_MESSAGES, /* beside it, for SOCK_SEQPACKET */
	SOCKET_RULES,	 /* listens[0], and so on */
	SOCKETS_MAX = SOCKET_RULES + CONFIGURATION_RULES_MAX,
};

struct vm_sockets {
	struct listener all[SOCKETS_MAX]; /* path NULL: no file */
	bool is_connected; /* the fd of SOCKET_FRONTEND is no listener, but the session itself */
};

struct sockets {
	struct vm_sockets *vms;
	size_t n_vms;
	struct listener control, metrics;
	struct listener http; /* of metrics-http: the spawner's, for one exporter after the other */
};

/* Does the configuration of the VM have it, and does it name an address for it? */
bool sockets_has(const struct vm_configuration *vm, size_t number);

/* Where it is, so that the same place is the same text. */
void sockets_print(const struct vm_configuration *vm, size_t number,
		   char ret[static PORT_TEXT_SIZE]);

/* The path, if it is in the file system, else NULL; and who may connect there. */
const char *sockets_path(const struct vm_configuration *vm, size_t number);
const struct listener_access *sockets_access(const struct vm_configuration *vm, size_t number);

/* Bind one, unless it was passed. 0, or negative errno after a line in the log. */
int sockets_open(const struct vm_configuration *vm, size_t number, struct listener *ret_listener);

/*
 * Can the guest's connections go where the configuration says, as far as the host is
 * concerned? What a guest would find out else, one after the other. 0, or negative
 * errno after a line in the log.
 */
int sockets_check_connects(const struct vm_configuration *vm);

/*
 * All of a configuration; n_places is the room for VMs, now and later. 0, or negative
 * errno after a line in the log. What was made until then is removed by sockets_end().
 */
int sockets_init(struct sockets *sockets, const struct configuration *configuration,
		 size_t n_places);

/* For a successor of this process, while the fds are here; and no longer. */
void sockets_store(const struct vm_configuration *vm, size_t number, struct listener *listener);
void sockets_store_all(struct sockets *sockets, const struct configuration *configuration);
void sockets_forget(const struct vm_configuration *vm, size_t number, struct listener *listener);

/* The fds, once the front has them; but that of http. */
void sockets_close(struct sockets *sockets);

/* Remove one. */
void sockets_remove(struct listener *listener);

/* Remove all, unless a successor gets them; free everything. */
void sockets_end(struct sockets *sockets);
