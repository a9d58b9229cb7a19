/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The host programs of a test: sockets at uds_path (with the "CONNECT port"
 * handshake) and at uds_path_PORT. All fds are non-blocking, so that one thread
 * can be guest and host at once: a host_stream is watched by guest_poll() and
 * moves its bytes there. The plain calls at the end wait without moving the guest.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "tests/frontend/socket.h"

/* Connect to uds_path and send "CONNECT port\n". The fd or negative errno. */
int host_connect(const char *uds_path, uint32_t port, int timeout);

/* Listen at uds_path_PORT. The fd or negative errno. */
int host_listen(const char *uds_path, uint32_t port);

/*
 * The same with SOCK_SEQPACKET, at uds_path_seqpacket and uds_path_PORT. The answer to
 * CONNECT is a message.
 */
int host_connect_messages(const char *uds_path, uint32_t port, int timeout);
int host_listen_messages(const char *uds_path, uint32_t port);

/* Accept, waiting. The fd or negative errno. */
int host_accept(int listener, int timeout);

/*
 * Bytes both ways over one connected socket. Receives into memory of its own
 * until the end; sends what host_stream_send() was given.
 */
struct host_stream {
	struct watch watch; /* for guest_watch() */
	uint8_t *received;
	size_t n_received, capacity;
	const uint8_t *to_send; /* the caller's, until sent */
	size_t n_to_send;
	bool ends_when_sent; /* shutdown(SHUT_WR) behind the last byte */
	bool is_paused;	     /* read nothing: a slow host program; set by host_stream_pause() */
	bool discards;	     /* writable: count what is received and keep nothing */
	bool is_ended;	     /* end of file was read */
	int error;	     /* positive errno of a failed read or write */
};

/* Takes over the fd. */
void host_stream_init(struct host_stream *stream, int fd);
void host_stream_send(struct host_stream *stream, const void *bytes, size_t len, bool is_last);
void host_stream_pause(struct host_stream *stream, bool is_paused);

/* Closes the fd, frees what was received. After guest_unwatch(). */
void host_stream_end(struct host_stream *stream);

/*
 * Take the answer to CONNECT from the front of what was received. 1 and the
 * port of "OK port\n"; 0: not there yet; -EPROTO: something else; -ECONNRESET:
 * ended without it.
 */
int host_stream_take_ok(struct host_stream *stream, uint32_t *ret_port);

/* Exactly len bytes. 0, -ETIMEDOUT, -ECONNRESET (end of file) or negative errno. */
int host_write(int fd, const void *bytes, size_t len, int timeout);
int host_read(int fd, void *bytes, size_t len, int timeout);

/* Wait for the end of file; bytes before it are -EPROTO. */
int host_wait_end(int fd, int timeout);

/* Bytes that depend on seed and on their offset in the stream, in no short period. */
void pattern_fill(void *bytes, size_t len, uint64_t seed, uint64_t offset);
bool pattern_is(const void *bytes, size_t len, uint64_t seed, uint64_t offset);
