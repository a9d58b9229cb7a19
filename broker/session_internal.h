/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Between the files of the session: session.c takes a message from beginning to
 * end, session_memory.c, session_rings.c and session_migration.c handle those of their subject. A
 * handler changes the session, says in words what it refuses, and calls at most one
 * operation, last; it never undoes anything and closes no fd: what a failed message
 * changed is rolled back, and what a done one replaced is closed, in session.c.
 */

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "broker/session.h"

/* One message and what came with it, vhost_user_check()ed. */
struct session_incoming {
	const struct vhost_user_message *message;
	int *fds; /* a handler that keeps one leaves -1 behind */
	size_t n_fds;
};

/* Set the reason, with the message's name before it. Returns -EINVAL. */
int session_refuse(struct session *session, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* Reply to the message in hand; len leaves room for the header. */
void session_reply(struct session *session, const void *payload, size_t len);
void session_reply_u64(struct session *session, uint64_t value);
void session_reply_vring_base(struct session *session, uint32_t ring);

/* Call an operation of the device, if there is one. */
int session_call(struct session *session, int (*operation)(void *context));
int session_call_ring(struct session *session, int (*operation)(void *context, uint32_t ring),
		      uint32_t ring);

bool session_is_any_ring_started(const struct session *session);
/* Asked of the kernel alone: is it a unix socket? */
bool session_is_unix_socket(int fd);

uint64_t session_payload_u64(const struct session_incoming *incoming);
int session_take_fd(int *fd);

/*
 * Type, size and block size of a received fd, as far as the kernel knows them: a file
 * system that is asked could be the front-end's own, and let us wait. The path and the
 * flags are the only ones that the front's filter allows.
 */
int session_stat_fd(int fd, struct statx *ret_stat);

/* The page size of a file, of what it calls its block size. */
uint64_t session_file_alignment(uint64_t block_size);

/* session_migration.c: a message whose reply says whether it failed; true when it made one. */
bool session_answers_itself(struct session *session, int status);
int session_on_set_log_base(struct session *session, const struct session_incoming *incoming);
int session_on_set_log_fd(struct session *session, const struct session_incoming *incoming);
int session_on_set_device_state_fd(struct session *session,
				   const struct session_incoming *incoming);
int session_on_check_device_state(struct session *session, const struct session_incoming *incoming);

int session_on_set_mem_table(struct session *session, const struct session_incoming *incoming);
int session_on_get_max_mem_slots(struct session *session, const struct session_incoming *incoming);
int session_on_add_mem_reg(struct session *session, const struct session_incoming *incoming);
int session_on_rem_mem_reg(struct session *session, const struct session_incoming *incoming);
int session_on_set_vring_num(struct session *session, const struct session_incoming *incoming);
int session_on_set_vring_addr(struct session *session, const struct session_incoming *incoming);
int session_on_set_vring_base(struct session *session, const struct session_incoming *incoming);
int session_on_get_vring_base(struct session *session, const struct session_incoming *incoming);
int session_on_set_vring_kick(struct session *session, const struct session_incoming *incoming);
int session_on_set_vring_call(struct session *session, const struct session_incoming *incoming);
int session_on_set_vring_err(struct session *session, const struct session_incoming *incoming);
int session_on_vring_kick(struct session *session, const struct session_incoming *incoming);
int session_on_set_backend_req_fd(struct session *session, const struct session_incoming *incoming);
int session_on_set_vring_enable(struct session *session, const struct session_incoming *incoming);
