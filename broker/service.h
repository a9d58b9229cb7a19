/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * vsockd as a service of systemd, or of what speaks like it: what it is told
 * (sd_notify(3)), and the sockets that it passes. Those are either ones that it has
 * made itself, for socket activation, or ones that a predecessor of this process
 * left in its fd store, so that who connects during a restart waits instead of being
 * refused. Used by the spawner; without a service manager everything here does
 * nothing. Logs.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/listener.h"
#include "broker/ports.h"

/* First of all: take what was passed, so that no child inherits it. */
void service_begin(void);

/*
 * The socket of that type that was passed and listens at that address; port is that
 * of an address that has none, and path of a unix one the caller's and outlives the
 * listener. true: it is ret_listener's now. A socket from the store whose file is
 * not there any more, or is another's, is of no use and not taken.
 */
bool service_take(const struct port_address *address, uint32_t port, int type, const char *path,
		  struct listener *ret_listener);

/* This fd that was passed is used already: the command line names it. */
void service_leave(int fd);

/* All were asked for: close what nobody has taken, here and in the store. */
void service_drop_rest(void);

/*
 * Put into the store, under a name made of the address, what is not there yet and can
 * be: then is_stored. And take out of it what is.
 */
void service_store(struct listener *listener, const struct port_address *address, uint32_t port);
void service_forget(struct listener *listener, const struct port_address *address, uint32_t port);

/* All VMs are served; also after service_reloading(). status: one line. */
void service_ready(const char *status);
void service_reloading(void);
void service_stopping(void);

/* How often service_alive() is to be called, in ms; 0: never. */
uint64_t service_watchdog(void);
void service_alive(void);
