/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The socket of one connected front-end: vhost-user messages in, replies out,
 * without ever blocking, whatever the socket's flags say. The front-end is hostile:
 * what breaks the framing ends the connection and says why. Fds are taken with the
 * first byte of a header only and are close-on-exec. Nothing beyond the message in
 * hand is read, and nothing at all while a reply waits to be sent, so a front-end
 * that does not read its replies costs one buffer. What a message means is the
 * session's business.
 *
 * Used by the front, behind its filter: recvmsg, sendmsg and close, no heap.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/vhost_user.h"

enum {
	FRONTEND_E_CLOSED = 2, /* the front-end closed the connection between two messages */
	FRONTEND_E_BROKEN = 3, /* it broke the protocol; frontend_reason() says how */
};

struct frontend {
	int socket; /* owned */
	/* private from here on */
	struct vhost_user_message message;
	size_t received; /* bytes of header and payload so far */
	int fds[VHOST_USER_FDS_MAX];
	size_t n_fds;
	uint8_t output[VHOST_USER_REPLY_MAX];
	size_t output_len, output_sent;
	char reason[VHOST_USER_REASON_MAX];
};

/* Takes over the socket: AF_UNIX, SOCK_STREAM. */
void frontend_init(struct frontend *frontend, int socket);

/*
 * The next message. 1: *ret_message is valid until the next call, its fds
 * ret_fds[0..*ret_n_fds) belong to the caller. 0: nothing complete yet, ask again
 * when the socket is readable, or after the flush if frontend_wants_write().
 * FRONTEND_E_... or negative errno: the connection is of no more use, no fd
 * was kept.
 */
int frontend_receive(struct frontend *frontend, const struct vhost_user_message **ret_message,
		     int ret_fds[static VHOST_USER_FDS_MAX], size_t *ret_n_fds);

/*
 * Send one reply, or keep what the socket does not take for frontend_flush(). 0, as
 * frontend_flush(), or -EBUSY when the reply before still waits and -EMSGSIZE
 * above VHOST_USER_REPLY_MAX; nothing was sent then.
 */
int frontend_send(struct frontend *frontend, const void *bytes, size_t len);

/* Send on. 0, also when something still waits; FRONTEND_E_CLOSED or negative errno. */
int frontend_flush(struct frontend *frontend);

/* Whether to wait for the socket to become writable. */
bool frontend_wants_write(const struct frontend *frontend);

/* Why FRONTEND_E_BROKEN, one line. */
const char *frontend_reason(const struct frontend *frontend);

/* Close the socket and the fds of an unfinished message. */
void frontend_end(struct frontend *frontend);
