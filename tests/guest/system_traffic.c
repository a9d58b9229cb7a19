/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A VMM with a guest, and programs on the host, at the sockets of a vsockd that
 * somebody else has started:
 *
 *	system_traffic SOCKET UDS-PATH [COMMAND]
 *
 * Bytes go both ways, on a connection of each side's. Then, if there is a COMMAND, it
 * is run, a program on the host connects, the VMM comes back as one does whose
 * back-end was started again, that program is served, and bytes go both ways once more.
 * The exit status is 0 when all of it came true.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"

#define LIMIT	   60000 /* ms: an emulated processor is slow */
#define GUEST_PORT 7u
#define HOST_PORT  9u
#define LEN	   (1024u * 1024)

static struct guest guest;
static uint8_t bytes[LEN];

static void need(bool is_true, const char *what)
{
	if (is_true)
		return;
	fprintf(stderr, "system_traffic: not true: %s\n", what);
	exit(1);
}

static void come(const char *socket)
{
	struct guest_options options = {.socket = socket, .timeout = LIMIT};

	need(guest_start(&guest, &options) == 0, "the VMM is served");
	need(guest_listen(&guest, GUEST_PORT) == 0, "the guest listens");
}

static bool has_all(void *context)
{
	const struct host_stream *stream = context;

	return stream->n_received >= LEN || stream->is_ended || stream->error;
}

static bool has_answer(void *context)
{
	const struct host_stream *stream = context;

	return stream->n_received > 0 || stream->is_ended || stream->error;
}

static void receive_all(struct guest_connection *connection)
{
	static uint8_t received[LEN];
	size_t n_received = 0;

	while (n_received < LEN) {
		ssize_t n = guest_receive(connection, received + n_received, LEN - n_received);

		if (n > 0)
			n_received += (size_t)n;
		else
			need(guest_poll(&guest, LIMIT) > 0, "more bytes come to the guest");
	}
	need(memcmp(received, bytes, LEN) == 0, "they are what was sent");
}

static void exchange(struct guest_connection *connection, struct host_stream *stream)
{
	host_stream_send(stream, bytes, LEN, false);
	receive_all(connection);
	need(guest_send_all(connection, bytes, LEN, LIMIT) == 0 &&
		     guest_wait_until(&guest, has_all, stream, LIMIT) == 0 &&
		     stream->n_received == LEN && memcmp(stream->received, bytes, LEN) == 0,
	     "bytes go to the program on the host");
	guest_unwatch(&guest, &stream->watch);
	host_stream_end(stream);
}

/* A program on the host that has connected, maybe a while ago. */
static void serve(int fd)
{
	struct guest_connection *connection;
	struct host_stream stream;
	uint32_t port;

	need(fd >= 0, "a program on the host connects");
	host_stream_init(&stream, fd);
	guest_watch(&guest, &stream.watch);
	connection = guest_accept_wait(&guest, GUEST_PORT, LIMIT);
	need(connection && guest_wait_until(&guest, has_answer, &stream, LIMIT) == 0 &&
		     host_stream_take_ok(&stream, &port) == 1,
	     "it reaches the guest");
	exchange(connection, &stream);
}

static void reach(const char *uds_path)
{
	int listener = host_listen(uds_path, HOST_PORT);
	struct guest_connection *connection;
	struct host_stream stream;
	char path[128];

	/* vsockd connects as a user of its own. */
	snprintf(path, sizeof(path), "%s_%u", uds_path, HOST_PORT);
	need(listener >= 0 && chmod(path, 0666) == 0, "a program listens on the host");
	connection = guest_connect_wait(&guest, PACKET_HOST_CID, HOST_PORT, LIMIT);
	need(connection, "the guest reaches it");
	host_stream_init(&stream, host_accept(listener, LIMIT));
	close(listener);
	unlink(path);
	guest_watch(&guest, &stream.watch);
	exchange(connection, &stream);
}

int main(int argc, char **argv)
{
	const char *socket = argv[1], *uds_path = argv[2];
	int waiting;

	if (argc < 3 || argc > 4) {
		fprintf(stderr, "usage: system_traffic SOCKET UDS-PATH [COMMAND]\n");
		return 64;
	}
	for (size_t i = 0; i < LEN; i++)
		bytes[i] = (uint8_t)(i * 2654435761u >> 24);
	come(socket);
	serve(host_connect(uds_path, GUEST_PORT, LIMIT));
	reach(uds_path);
	if (argc == 4) {
		need(system(argv[3]) == 0, argv[3]);
		waiting = host_connect(uds_path, GUEST_PORT, LIMIT);
		guest_end(&guest);
		come(socket);
		serve(waiting);
		reach(uds_path);
	}
	need(strcmp(guest_violations(&guest), "") == 0, "no rule of the device is broken");
	guest_end(&guest);
	return 0;
}
