/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A client of HTTP on 127.0.0.1, that reads what it gets and understands none of it.
 */

#include <stddef.h>
#include <sys/types.h>

/* A port on which nobody listens now; somebody else may take it. */
int http_free_port(void);

/* Connected and non-blocking, or negative errno. */
int http_connect(int port);

/*
 * Read to the end and close. What came, as text, with what does not fit left out; its
 * whole length, -ETIMEDOUT, or other negative errno.
 */
ssize_t http_read(int fd, char *ret_text, size_t size, int timeout);

/* All three: connect, send, read. */
ssize_t http_ask(int port, const char *request, char *ret_text, size_t size, int timeout);
