/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The control socket as vsockctl uses it: one request, its rows, its end. What
 * goes wrong is said on stderr, once, here; the exit code to end with is returned.
 */

#include <stdint.h>

#include "ipc/control_message.h"

struct client {
	int socket;
	const char *path; /* the caller's */
};

/* "vsockctl: " and a line on stderr; returns code, for a return statement. */
int complain(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* 0 or an exit code. */
int client_open(const char *path, struct client *ret_client);
void client_close(struct client *client);

/* A request of this command about this VM (0: none, or all). */
Control__Request client_request(enum control_command command, uint64_t cid);

/* 0 or an exit code. */
int client_send(const struct client *client, const Control__Request *request);

/*
 * All of it: open, send, hand each row to the function (NULL: there are none),
 * close. 0 or an exit code.
 */
int client_ask(const char *path, const Control__Request *request,
	       void (*take)(void *context, const Control__Reply *reply), void *context);

/*
 * The next row: 1 with *ret_reply valid until the next call, 0 at the end, or
 * minus an exit code, said on stderr.
 */
int client_receive(const struct client *client, const Control__Reply **ret_reply);
/* The next row has to bring a socket: its fd, or minus an exit code; what it is for, for that. */
int client_receive_socket(const struct client *client, const char *what);
/* The same with the fd that came along, the caller's then; -1: none. */
int client_receive_fd(const struct client *client, const Control__Reply **ret_reply, int *ret_fd);
