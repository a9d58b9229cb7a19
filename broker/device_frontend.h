/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The front-end of a device, and the session with it: from its connection to its end
 * messages are taken one by one, each when the worker has done what the one before asked,
 * and answered. One front-end a device; the next one waits in the backlog. What it sent and
 * cannot be closed is counted, and who sends much of that is given up.
 */

#include <stdbool.h>
#include <stdint.h>

struct device;

/* Would one be accepted right now? */
bool device_awaits_frontend(const struct device *device);
void device_accept_frontend(struct device *device);

/* Owns the socket. false, and it was logged: it is closed, there is no session. */
bool device_open_session(struct device *device, int socket);

/* With all that was the front-end's, worker and connections too. why NULL: it left. */
void device_close_session(struct device *device, const char *why);

/* Epoll events of its socket, 0: its messages wait for this round. */
void device_frontend_event(struct device *device, uint32_t events);

/* The operation that the session waited for is done. */
void device_complete(struct device *device, int status, uint32_t value);
