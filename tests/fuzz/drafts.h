/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Messages of a front-end, as an input wants them: mostly of a shape that is taken, with
 * fds of the kind that belongs there, and now and then of any shape and any kind.
 */

#include "broker/session.h"
#include "broker/vhost_user.h"
#include "tests/fuzz/fuzz.h"

#define DRAFT_FDS_MAX	  40 /* more than a message may have */
#define DRAFT_HEADER_SIZE sizeof(struct vhost_user_header)

struct draft {
	struct vhost_user_message message;
	enum fuzz_fd kinds[DRAFT_FDS_MAX];
	int fds[DRAFT_FDS_MAX];
	size_t n_fds;
	size_t len; /* to be sent: mostly what the header promises */
};

/* Opens the fds; known is what the back-end has been told before. */
void draft_make(struct draft *draft, struct input *input, const struct session *known);

/* Send the bytes from..to over a socket, with the fds or without. Must find room. */
void draft_send(const struct draft *draft, int socket, size_t from, size_t to, bool has_fds);

/* All of it, if there is room and somebody who reads. */
bool draft_offer(const struct draft *draft, int socket);

/* Close the fds; what they were is still known. */
void draft_drop(struct draft *draft);
