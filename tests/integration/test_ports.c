/* SPDX-License-Identifier: Apache-2.0 */

/* What leads to and from a guest's ports besides the uds-path. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include <cmocka.h>

#include "tests/frontend/http.h"
#include "tests/integration/setup.h"

#define LIMIT SETUP_LIMIT
#define PORT  1234
#define QUIET 150 /* ms, for what must not happen */

static int make_setup(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	return *state ? 0 : -1;
}

static int end_setup(void **state)
{
	return setup_end(state);
}

/* ---- sockets of the host ---- */

static int listen_unix(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	size_t len = strlen(path);

	memcpy(address.sun_path, path, len);
	if (path[0] == '@')
		address.sun_path[0] = '\0';
	assert_int_equal(bind(fd, (struct sockaddr *)&address,
			      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)),
			 0);
	assert_int_equal(listen(fd, 16), 0);
	return fd;
}

static int listen_tcp(uint16_t *ret_port)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	socklen_t len = sizeof(address);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, len), 0);
	assert_int_equal(listen(fd, 16), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
	*ret_port = ntohs(address.sin_port);
	return fd;
}

static int connect_to(int family, const void *address, socklen_t len)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (connect(fd, address, len))
		assert_int_equal(errno, EINPROGRESS);
	return fd;
}

static int connect_unix(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t len = strlen(path);

	memcpy(address.sun_path, path, len);
	if (path[0] == '@')
		address.sun_path[0] = '\0';
	return connect_to(AF_UNIX, &address,
			  (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
}

static int connect_tcp(uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return connect_to(AF_INET, &address, sizeof(address));
}

/* A few bytes both ways, then the guest closes and the host reads the end. */
static void talk_and_finish(struct guest *guest, struct guest_connection *connection, int fd)
{
	char bytes[8];

	assert_int_equal(guest_send_all(connection, "there", 5, LIMIT), 0);
	assert_int_equal(host_read(fd, bytes, 5, LIMIT), 0);
	assert_memory_equal(bytes, "there", 5);
	assert_int_equal(host_write(fd, "and back", 8, LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, bytes, 8, LIMIT), 8);
	assert_memory_equal(bytes, "and back", 8);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	assert_int_equal(host_wait_end(fd, LIMIT), 0);
	close(fd);
	(void)guest;
}

static void reach(struct guest *guest, uint32_t port, int listener)
{
	struct guest_connection *connection;
	int fd;

	connection = guest_connect_wait(guest, PACKET_HOST_CID, port, LIMIT);
	if (!connection)
		fail_msg("port %u is not reached", port);
	fd = host_accept(listener, LIMIT);
	assert_true(fd >= 0);
	talk_and_finish(guest, connection, fd);
}

static void refused(struct guest *guest, uint32_t port)
{
	struct guest_connection *connection = guest_connect(guest, PACKET_HOST_CID, port);

	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
}

/* ---- from the guest ---- */

static void test_a_guest_reaches_what_the_rules_say(void **state)
{
	struct setup *setup = *state;
	int tcp, second, abstract, path, uds;
	char name[64], options[512], full[128];
	struct guest *guest;
	uint16_t port, other;

	tcp = listen_tcp(&port);
	second = listen_tcp(&other);
	snprintf(name, sizeof(name), "@vsockd-test-%d", (int)getpid());
	abstract = listen_unix(name);
	snprintf(options, sizeof(options),
		 "connect=80:tcp:%u,connect=81:abstract:%s,connect=82-84:unix:@/web,"
		 "connect=90:deny,connect=%u-65535:tcp,connect=100:tcp:[::1]:1",
		 port, name + 1, other < port ? other : port);
	setup_start(setup, 1, options, NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});

	reach(guest, 80, tcp);
	reach(guest, port, tcp);
	reach(guest, other, second);
	reach(guest, 81, abstract);
	refused(guest, 82); /* nobody is there yet */
	snprintf(full, sizeof(full), "%s/web", setup->daemon.directory);
	path = listen_unix(full);
	reach(guest, 82, path);
	reach(guest, 84, path);
	/* A rule counts before what stands at the uds-path; else that does. */
	uds = host_listen(setup->uds_paths[0], 90);
	refused(guest, 90);
	assert_int_equal(daemon_wait_log(&setup->daemon, "host port 90: Permission denied", LIMIT),
			 0);
	close(uds);
	uds = host_listen(setup->uds_paths[0], 91);
	reach(guest, 91, uds);
	refused(guest, 100);
	close(uds);
	close(path);
	close(abstract);
	close(tcp);
	close(second);
	/* Nobody listens any more: the socket is refused, or its way ends so. */
	refused(guest, 80);
	assert_int_equal(daemon_wait_log(&setup->daemon, "guest refused: host port 80: ", LIMIT),
			 0);
}

static void test_bulk_through_tcp_loses_no_byte(void **state)
{
	static uint8_t bytes[8u << 20], got[8u << 20];
	struct guest_connection *connection;
	struct setup *setup = *state;
	struct host_stream stream;
	struct guest *guest;
	char options[64];
	uint16_t port;
	int tcp;

	tcp = listen_tcp(&port);
	snprintf(options, sizeof(options), "connect=80:tcp:%u", port);
	setup_start(setup, 1, options, NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	connection = guest_connect_wait(guest, PACKET_HOST_CID, 80, LIMIT);
	assert_non_null(connection);
	host_stream_init(&stream, host_accept(tcp, LIMIT));
	guest_watch(guest, &stream.watch);
	pattern_fill(bytes, sizeof(bytes), 1, 0);
	host_stream_send(&stream, bytes, sizeof(bytes), true);
	assert_int_equal(guest_send_all(connection, bytes, sizeof(bytes), LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, got, sizeof(got), LIMIT), sizeof(got));
	assert_memory_equal(bytes, got, sizeof(got));
	/* The host's half is closed; the guest's follows. */
	assert_int_equal(guest_receive_all(connection, got, 1, LIMIT), 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	while (!stream.is_ended && !stream.error)
		assert_true(guest_poll(guest, LIMIT) >= 0);
	assert_int_equal(stream.n_received, sizeof(bytes));
	assert_memory_equal(stream.received, bytes, sizeof(bytes));
	setup_end_stream(setup, 0, &stream);
	close(tcp);
}

/* ---- to the guest ---- */

static void called(struct guest *guest, uint32_t port, int fd)
{
	struct guest_connection *connection = guest_accept_wait(guest, port, LIMIT);

	if (!connection)
		fail_msg("port %u is not called", port);
	assert_int_equal(connection->peer_cid, PACKET_HOST_CID);
	talk_and_finish(guest, connection, fd);
}

static void test_listeners_lead_to_their_ports_without_a_word(void **state)
{
	struct setup *setup = *state;
	char name[64], options[512], full[128];
	struct guest *guest;
	uint16_t port;

	port = (uint16_t)http_free_port();
	snprintf(name, sizeof(name), "@vsockd-called-%d", (int)getpid());
	snprintf(options, sizeof(options),
		 "listen=22:tcp:%u,listen=23:abstract:%s,listen=24:unix:@/direct", port, name + 1);
	setup_start(setup, 1, options, NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	for (uint32_t i = 22; i <= 25; i++)
		assert_int_equal(guest_listen(guest, i), 0);
	snprintf(full, sizeof(full), "%s/direct", setup->daemon.directory);
	called(guest, 22, connect_tcp(port));
	called(guest, 23, connect_unix(name));
	called(guest, 24, connect_unix(full));
	/* Nobody listens in the guest: the end, and nothing before it. */
	guest_unlisten(guest, 24);
	{
		int fd = connect_unix(full);

		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_int_equal(host_wait_end(fd, LIMIT), 0);
		close(fd);
	}
	setup_end_guest(setup, 0);
	/* No driver: sent away. */
	{
		int fd = connect_tcp(port);

		assert_int_equal(host_wait_end(fd, LIMIT), 0);
		close(fd);
	}
}

static bool has_line(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error || stream->n_received > 0;
}

static void test_who_chokes_on_the_ok_line_gets_none(void **state)
{
	struct guest_connection *connection;
	struct setup *setup = *state;
	struct guest *guest;
	int fd;

	setup_start(setup, 1, "ok=off", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(guest_listen(guest, PORT), 0);
	fd = host_connect(setup->uds_paths[0], PORT, LIMIT);
	connection = guest_accept_wait(guest, PORT, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	talk_and_finish(guest, connection, fd);
}

static void test_a_host_program_may_come_before_the_guest_listens(void **state)
{
	struct guest_connection *connection;
	struct setup *setup = *state;
	struct host_stream stream;
	struct guest *guest;
	uint32_t port;

	setup_start(setup, 1, "wait=5", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	host_stream_init(&stream, host_connect(setup->uds_paths[0], PORT, LIMIT));
	guest_watch(guest, &stream.watch);
	assert_int_equal(guest_poll_for(guest, 4 * QUIET), 0);
	assert_false(has_line(&stream));
	assert_int_equal(guest_listen(guest, PORT), 0);
	connection = guest_accept_wait(guest, PORT, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_wait_until(guest, has_line, &stream, LIMIT), 0);
	assert_int_equal(host_stream_take_ok(&stream, &port), 1);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_a_guest_that_never_listens_is_waited_for_as_long_as_asked(void **state)
{
	struct setup *setup = *state;
	struct host_stream stream;
	struct guest *guest;
	int64_t begin;

	setup_start(setup, 1, "wait=1", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	host_stream_init(&stream, host_connect(setup->uds_paths[0], PORT, LIMIT));
	guest_watch(guest, &stream.watch);
	begin = deadline_in(0);
	assert_int_equal(guest_wait_until(guest, has_line, &stream, LIMIT), 0);
	assert_int_equal(stream.n_received, 0);
	assert_true(stream.is_ended);
	assert_in_range(deadline_in(0) - begin, 900, LIMIT);
	setup_end_stream(setup, 0, &stream);
}

/* ---- vsock on the host ---- */

static bool has_loopback(void)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_LOCAL,
		.svm_port = VMADDR_PORT_ANY,
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool has_it = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0;

	if (fd >= 0)
		close(fd);
	return has_it;
}

static void test_a_host_without_vsock_is_told_at_the_start(void **state)
{
	static const char *const refused_options[] = {"--forward-cid=1", "--connect=5:vsock:1",
						      "--listen=5:vsock:1:5"};
	char directory[] = "/tmp/vsockd-ports.XXXXXX";

	(void)state;
	if (has_loopback()) {
		print_message("skipped: this host has vsock\n");
		skip();
	}
	assert_non_null(mkdtemp(directory));
	for (size_t i = 0; i < 3; i++) {
		char command[512], line[512] = "";
		FILE *output;
		int status;

		snprintf(command, sizeof(command),
			 "\"$VSOCKD\" --socket %s/vm --uds-path %s/host %s 2>&1", directory,
			 directory, refused_options[i]);
		output = popen(command, "r");
		assert_non_null(output);
		/* A build with sanitizers says so first. */
		while (fgets(line, sizeof(line), output) && !strstr(line, "load the module"))
			;
		status = pclose(output);
		if (!strstr(line, "load the module"))
			fail_msg("%s: %s", refused_options[i], line);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), EX_CANTCREAT);
	}
	/* Nothing is left in the way of the next attempt. */
	assert_int_equal(rmdir(directory), 0);
}

#define OWN(name) cmocka_unit_test_setup_teardown(name, make_setup, end_setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
		OWN(test_a_guest_reaches_what_the_rules_say),
		OWN(test_bulk_through_tcp_loses_no_byte),
		OWN(test_listeners_lead_to_their_ports_without_a_word),
		OWN(test_who_chokes_on_the_ok_line_gets_none),
		OWN(test_a_host_program_may_come_before_the_guest_listens),
		OWN(test_a_guest_that_never_listens_is_waited_for_as_long_as_asked),
		cmocka_unit_test(test_a_host_without_vsock_is_told_at_the_start),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
