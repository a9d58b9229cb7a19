/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the front may ask of the spawner about sockets: to connect a guest to the host, to
 * judge who has connected, to join two guests. A request names configured VMs and a
 * port, so the front cannot bring about more than the configuration says.
 */

#include <stdbool.h>
#include <stddef.h>

#include "broker/configuration.h"
#include "broker/spawner.h"

#define SPAWNER_SOCKETS_MAX 2

/* A CONNECT, JUDGE or PAIR: may the front of this configuration say it? */
bool spawner_sockets_is_permitted(const struct configuration *configuration,
				  const struct spawner_request *request);

/*
 * Carry out what is, or was before a reload, permitted. fd is that of a JUDGE or -1, and
 * stays the caller's. Returns how many fds go with the reply: they are the caller's, too.
 */
size_t spawner_sockets_answer(const struct configuration *configuration,
			      const struct spawner_request *request, int fd,
			      struct spawner_reply *ret_reply,
			      int ret_fds[static SPAWNER_SOCKETS_MAX]);
