/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The spawner's end of the pair with the front. A reply goes out whole, with its fds, or
 * not at all; a request has its one size and the fds of its kind, or is none. Nobody waits
 * in here. Fds that are sent stay the caller's.
 */

#include <stddef.h>

#include "broker/spawner.h"

enum {
	SPAWNER_CHANNEL_E_AGAIN = 1, /* there is no room, or nothing to be read */
	SPAWNER_CHANNEL_E_CLOSED,    /* the front has gone, or is about to */
	SPAWNER_CHANNEL_E_BROKEN,    /* what came is no request; its fds are closed */
	SPAWNER_CHANNEL_E_BARE,	     /* sent without its fds, and ETOOMANYREFS as its error */
};

#define SPAWNER_CHANNEL_FDS_MAX 2

/*
 * Where the fds cannot go along, as too many of this user are on their way, the reply goes
 * without them and says so as its error. 0, E_AGAIN, E_CLOSED, E_BARE, or negative errno.
 */
int spawner_channel_send(int channel, const struct spawner_reply *reply, const int *fds,
			 size_t n_fds);

/*
 * 0 with an fd that is the caller's, or -1: only JUDGE has one, for which there may have
 * been no number left here. Or E_AGAIN, E_CLOSED, E_BROKEN.
 */
int spawner_channel_receive(int channel, struct spawner_request *ret_request, int *ret_fd);
