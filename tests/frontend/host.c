/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/host.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_AT_ONCE (64 * 1024)
#define PATH_LEN     128 /* longer than sun_path */

static int connect_as(const char *path, int type, uint32_t port, int timeout)
{
	char line[32];
	int len = snprintf(line, sizeof(line), "CONNECT %u\n", port);
	int fd = socket_connect(path, type, timeout);
	int error;

	if (fd < 0)
		return fd;
	error = host_write(fd, line, (size_t)len, timeout);
	if (error == 0)
		return fd;
	close(fd);
	return error;
}

int host_connect(const char *uds_path, uint32_t port, int timeout)
{
	return connect_as(uds_path, SOCK_STREAM, port, timeout);
}

int host_connect_messages(const char *uds_path, uint32_t port, int timeout)
{
	char path[PATH_LEN];

	if (snprintf(path, sizeof(path), "%s_seqpacket", uds_path) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	return connect_as(path, SOCK_SEQPACKET, port, timeout);
}

static int listen_as(const char *uds_path, int type, uint32_t port)
{
	char path[PATH_LEN];

	if (snprintf(path, sizeof(path), "%s_%u", uds_path, port) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	return socket_listen(path, type);
}

int host_listen(const char *uds_path, uint32_t port)
{
	return listen_as(uds_path, SOCK_STREAM, port);
}

int host_listen_messages(const char *uds_path, uint32_t port)
{
	return listen_as(uds_path, SOCK_SEQPACKET, port);
}

int host_accept(int listener, int timeout)
{
	int error = socket_wait(listener, POLLIN, deadline_in(timeout));
	int fd;

	if (error < 0)
		return error;
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

static void choose_events(struct host_stream *stream)
{
	bool is_reading = !stream->is_paused && !stream->is_ended;

	stream->watch.events = 0;
	if (stream->error)
		return;
	if (is_reading)
		stream->watch.events |= POLLIN;
	if (stream->n_to_send > 0 || stream->ends_when_sent)
		stream->watch.events |= POLLOUT;
}

static void read_stream(struct host_stream *stream)
{
	ssize_t n;

	if (stream->discards)
		stream->capacity = stream->n_received = 0;
	if (stream->capacity - stream->n_received < READ_AT_ONCE) {
		size_t capacity = 2 * stream->capacity + READ_AT_ONCE;
		uint8_t *received = realloc(stream->received, capacity);

		if (!received) {
			stream->error = ENOMEM;
			return;
		}
		stream->received = received;
		stream->capacity = capacity;
	}
	n = recv(stream->watch.fd, stream->received + stream->n_received,
		 stream->capacity - stream->n_received, 0);
	if (n > 0)
		stream->n_received += (size_t)n;
	else if (n == 0)
		stream->is_ended = true;
	else if (errno != EAGAIN && errno != EINTR)
		stream->error = errno;
}

static void write_stream(struct host_stream *stream)
{
	while (stream->n_to_send > 0) {
		ssize_t n =
			send(stream->watch.fd, stream->to_send, stream->n_to_send, MSG_NOSIGNAL);

		if (n < 0) {
			if (errno != EAGAIN && errno != EINTR)
				stream->error = errno;
			return;
		}
		stream->to_send += n;
		stream->n_to_send -= (size_t)n;
	}
	if (stream->ends_when_sent)
		shutdown(stream->watch.fd, SHUT_WR);
	stream->ends_when_sent = false;
}

static void on_ready(struct watch *watch, short events)
{
	struct host_stream *stream = (struct host_stream *)watch;

	if ((watch->events & POLLIN) && (events & (POLLIN | POLLHUP | POLLERR)))
		read_stream(stream);
	if ((watch->events & POLLOUT) && (events & (POLLOUT | POLLHUP | POLLERR)))
		write_stream(stream);
	choose_events(stream);
}

void host_stream_init(struct host_stream *stream, int fd)
{
	*stream = (struct host_stream){.watch = {.fd = fd, .events = POLLIN, .ready = on_ready}};
}

void host_stream_send(struct host_stream *stream, const void *bytes, size_t len, bool is_last)
{
	stream->to_send = bytes;
	stream->n_to_send = len;
	stream->ends_when_sent = is_last;
	choose_events(stream);
}

void host_stream_pause(struct host_stream *stream, bool is_paused)
{
	stream->is_paused = is_paused;
	choose_events(stream);
}

void host_stream_end(struct host_stream *stream)
{
	if (stream->watch.fd >= 0)
		close(stream->watch.fd);
	free(stream->received);
	*stream = (struct host_stream){.watch = {.fd = -1}};
}

int host_stream_take_ok(struct host_stream *stream, uint32_t *ret_port)
{
	uint8_t *newline =
		stream->n_received > 0 ? memchr(stream->received, '\n', stream->n_received) : NULL;
	char line[32] = "";
	size_t len;
	unsigned int port;
	int end = -1;

	if (!newline && (stream->is_ended || stream->error))
		return -ECONNRESET;
	if (!newline)
		return stream->n_received < sizeof(line) ? 0 : -EPROTO;
	len = (size_t)(newline - stream->received) + 1;
	if (len >= sizeof(line))
		return -EPROTO;
	memcpy(line, stream->received, len);
	if (sscanf(line, "OK %u%n", &port, &end) != 1 || (size_t)end + 1 != len)
		return -EPROTO;
	stream->n_received -= len;
	memmove(stream->received, newline + 1, stream->n_received);
	*ret_port = port;
	return 1;
}

int host_write(int fd, const void *bytes, size_t len, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	size_t n_written = 0;

	while (n_written < len) {
		ssize_t n =
			send(fd, (const char *)bytes + n_written, len - n_written, MSG_NOSIGNAL);
		int error;

		if (n >= 0) {
			n_written += (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		error = socket_wait(fd, POLLOUT, deadline);
		if (error < 0)
			return error;
	}
	return 0;
}

int host_read(int fd, void *bytes, size_t len, int timeout)
{
	int64_t deadline = deadline_in(timeout);
	size_t n_read = 0;

	while (n_read < len) {
		ssize_t n = recv(fd, (char *)bytes + n_read, len - n_read, 0);
		int error;

		if (n == 0)
			return -ECONNRESET;
		if (n > 0) {
			n_read += (size_t)n;
			continue;
		}
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		error = socket_wait(fd, POLLIN, deadline);
		if (error < 0)
			return error;
	}
	return 0;
}

int host_wait_end(int fd, int timeout)
{
	char byte;
	int error = host_read(fd, &byte, 1, timeout);

	if (error == 0)
		return -EPROTO;
	return error == -ECONNRESET ? 0 : error;
}

/* The finaliser of splitmix64: eight bytes of pattern at a time. */
static uint64_t pattern_word(uint64_t seed, uint64_t index)
{
	uint64_t word = seed * UINT64_C(0x9e3779b97f4a7c15) + index;

	word = (word ^ (word >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	word = (word ^ (word >> 27)) * UINT64_C(0x94d049bb133111eb);
	return word ^ (word >> 31);
}

void pattern_fill(void *bytes, size_t len, uint64_t seed, uint64_t offset)
{
	uint8_t *at = bytes;

	for (size_t i = 0; i < len;) {
		uint64_t word = pattern_word(seed, (offset + i) / 8);
		size_t from = (offset + i) % 8, n = 8 - from;

		if (n > len - i)
			n = len - i;
		memcpy(at + i, (uint8_t *)&word + from, n);
		i += n;
	}
}

bool pattern_is(const void *bytes, size_t len, uint64_t seed, uint64_t offset)
{
	uint8_t expected[4096];

	for (size_t i = 0; i < len; i += sizeof(expected)) {
		size_t n = len - i < sizeof(expected) ? len - i : sizeof(expected);

		pattern_fill(expected, n, seed, offset + i);
		if (memcmp((const uint8_t *)bytes + i, expected, n) != 0)
			return false;
	}
	return true;
}
