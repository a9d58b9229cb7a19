/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A snapshot and its restore, step by step, for people to watch: QEMU cannot save
 * a VM with a vhost-user socket device, so the test front-end says what crosvm
 * says, and its driver does what Linux does.
 *
 *	show_restore VSOCKD WORKER
 */

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/frontend/daemon.h"
#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"

#define LIMIT	  10000 /* ms, of one wait */
#define HELD_MS	  300	/* so long nothing may happen */
#define PORT	  1234u
#define STATE_MAX 65536
#define SAVE	  0

struct show {
	struct daemon daemon;
	struct guest guest;
	char socket[128], uds_path[128];
	uint8_t state[STATE_MAX];
	size_t state_len;
	unsigned int n_passed, n_failed;
};

static struct show show;

static void check(bool is_true, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void check(bool is_true, const char *format, ...)
{
	va_list arguments;

	*(is_true ? &show.n_passed : &show.n_failed) += 1;
	printf("           %s ", is_true ? "yes:" : "NO: ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
}

/* Nothing of what follows makes sense without it. */
static void need(bool is_true, const char *what)
{
	if (is_true)
		return;
	check(false, "%s", what);
	printf("\n%u passed, %u failed\n", show.n_passed, show.n_failed);
	daemon_stop(&show.daemon, LIMIT);
	exit(1);
}

static struct guest_connection *connect_to_host(uint32_t port, struct host_stream *ret_stream)
{
	int listener = host_listen(show.uds_path, port), fd;
	struct guest_connection *connection =
		guest_connect_wait(&show.guest, PACKET_HOST_CID, port, LIMIT);

	fd = listener < 0 ? -1 : host_accept(listener, LIMIT);
	close(listener);
	need(connection && fd >= 0, "the guest connects to a host program");
	host_stream_init(ret_stream, fd);
	guest_watch(&show.guest, &ret_stream->watch);
	return connection;
}

static bool has_bytes(void *context)
{
	const struct host_stream *stream = context;

	return stream->n_received >= 5;
}

static bool has_ended(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error;
}

static bool is_echoed(struct guest_connection *connection, struct host_stream *stream)
{
	return guest_send_all(connection, "hello", 5, LIMIT) == 0 &&
	       guest_wait_until(&show.guest, has_bytes, stream, LIMIT) == 0 &&
	       memcmp(stream->received, "hello", 5) == 0;
}

/* SET_DEVICE_STATE_FD with a pipe, read to its end, then CHECK_DEVICE_STATE. */
static bool save_state(void)
{
	const uint32_t payload[2] = {SAVE, 0};
	uint64_t answer = 0;
	int fds[2];
	ssize_t n = 1;

	if (pipe(fds) < 0 ||
	    vhost_ask(&show.guest.vhost, VHOST_SET_DEVICE_STATE_FD, payload, sizeof(payload),
		      &fds[1], 1, &answer, sizeof(answer), NULL) != 0)
		return false;
	close(fds[1]);
	while (n > 0) {
		n = read(fds[0], show.state + show.state_len, STATE_MAX - show.state_len);
		show.state_len += n > 0 ? (size_t)n : 0;
	}
	close(fds[0]);
	return n == 0 && vhost_get_u64(&show.guest.vhost, VHOST_CHECK_DEVICE_STATE, &answer) == 0 &&
	       answer == 0;
}

static bool has_reset(void *context)
{
	(void)context;
	return show.guest.n_transport_resets > 0;
}

static void start(const char *vsockd, const char *worker)
{
	const char *const arguments[] = {vsockd,      "--guest-cid", "3",	"--socket",
					 "@/vm.sock", "--uds-path",  "@/vsock", "--worker",
					 worker,      NULL};
	struct guest_options options = {
		.socket = show.socket,
		.style = GUEST_LIKE_CROSVM,
		.is_prefilled = true,
		.holds_events = true,
	};

	need(daemon_start(&show.daemon, arguments, "vm.sock", LIMIT) == 0, "vsockd starts");
	snprintf(show.socket, sizeof(show.socket), "%s", daemon_path(&show.daemon, "vm.sock"));
	snprintf(show.uds_path, sizeof(show.uds_path), "%s", daemon_path(&show.daemon, "vsock"));
	need(guest_start(&show.guest, &options) == 0, "a guest starts");
}

static void show_snapshot(struct guest_connection *connection, struct host_stream *before)
{
	printf("[snapshot] The guest is saved, its VMM ends\n");
	check(is_echoed(connection, before), "a connection of the guest works");
	need(guest_stop(&show.guest) == 0 && save_state(), "the device is saved");
	check(true, "its state is %zu bytes", show.state_len);
	guest_detach(&show.guest);
	check(guest_wait_until(&show.guest, has_ended, before, LIMIT) == 0,
	      "the host program sees the end of its connection");
	guest_unwatch(&show.guest, &before->watch);
	host_stream_end(before);
}

static void show_quarantine(struct host_stream *caller)
{
	uint64_t features;
	int fd;

	printf("[restore]  A VMM loads the state, and another worker takes over\n");
	need(guest_attach(&show.guest, show.socket, show.state, show.state_len) == 0,
	     "the state is loaded, and CHECK_DEVICE_STATE says that it is good");
	check(true, "the state is loaded, and CHECK_DEVICE_STATE says that it is good");
	fd = host_connect(show.uds_path, PORT, LIMIT);
	need(fd >= 0 && guest_listen(&show.guest, PORT) == 0, "a host program calls");
	host_stream_init(caller, fd);
	guest_watch(&show.guest, &caller->watch);
	need(guest_resume(&show.guest) == 0 &&
		     vhost_get_u64(&show.guest.vhost, VHOST_GET_FEATURES, &features) == 0,
	     "the rings start");
	check(guest_wait_until(&show.guest, has_reset, NULL, LIMIT) == 0,
	      "TRANSPORT_RESET is in the event ring, without a kick");
	check(guest_poll_for(&show.guest, HELD_MS) == 0 && !guest_accept(&show.guest, PORT) &&
		      !has_ended(caller),
	      "a host program that called meanwhile is held, not dropped");
}

static bool is_answered(void *context)
{
	const struct host_stream *stream = context;

	return stream->n_received > 0 || has_ended(context);
}

static void show_release(struct host_stream *caller)
{
	struct guest_connection *accepted, *connection;
	struct host_stream after;
	uint32_t port;

	printf("[release]  The driver handles the reset and puts the buffer back\n");
	check(guest_answer_events(&show.guest) == 0, "it has dropped its old connections");
	accepted = guest_accept_wait(&show.guest, PORT, LIMIT);
	check(accepted && guest_wait_until(&show.guest, is_answered, caller, LIMIT) == 0 &&
		      host_stream_take_ok(caller, &port) == 1,
	      "the host program that was held is served");
	connection = connect_to_host(PORT + 1, &after);
	check(is_echoed(connection, &after), "new connections of the guest work");
	check(show.guest.n_transport_resets == 1, "one load, one reset");
	for (size_t i = 0; i < 2; i++) {
		struct host_stream *stream = i ? &after : caller;

		guest_unwatch(&show.guest, &stream->watch);
		host_stream_end(stream);
	}
}

int main(int argc, char **argv)
{
	struct guest_connection *connection;
	struct host_stream before, caller;

	if (argc != 3) {
		fprintf(stderr, "usage: show_restore VSOCKD WORKER\n");
		return 64;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	start(argv[1], argv[2]);
	connection = connect_to_host(PORT, &before);
	show_snapshot(connection, &before);
	show_quarantine(&caller);
	show_release(&caller);
	check(strcmp(guest_violations(&show.guest), "") == 0,
	      "vsockd has broken no rule of the device");
	guest_end(&show.guest);
	check(daemon_stop(&show.daemon, LIMIT) == 0, "vsockd ends with success");
	printf("\n%u passed, %u failed\n", show.n_passed, show.n_failed);
	return show.n_failed > 0;
}
