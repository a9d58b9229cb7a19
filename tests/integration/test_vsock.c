/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AF_VSOCK on the host, beside a uds-path, by the loopback of the host's kernel
 * (module vsock_loopback). Skipped where there is none.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include <cmocka.h>

#include "tests/integration/setup.h"

#define LIMIT	SETUP_LIMIT
#define SKIPPED 77

/* Ports of the host, which all its processes share. */
static uint32_t port_a, port_b;

static struct sockaddr_vm local(uint32_t port)
{
	return (struct sockaddr_vm){
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_LOCAL,
		.svm_port = port,
	};
}

static int new_socket(void)
{
	return socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* -1: there is no loopback. */
static int listen_vsock(uint32_t port)
{
	struct sockaddr_vm address = local(port);
	int fd = new_socket();

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(fd, 16) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static int connect_vsock(uint32_t port)
{
	struct sockaddr_vm address = local(port);
	int fd = new_socket();

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		assert_int_equal(errno, EINPROGRESS);
	assert_int_equal(socket_wait(fd, POLLOUT, deadline_in(LIMIT)), 0);
	return fd;
}

static int start(void **state)
{
	char options[96];

	*state = calloc(1, sizeof(struct setup));
	if (!*state)
		return -1;
	snprintf(options, sizeof(options), "forward-cid=1,forward-listen=%u", port_b);
	setup_start(*state, 1, options, NULL);
	return 0;
}

static void talk(struct guest_connection *connection, int fd)
{
	char bytes[8];

	assert_int_equal(guest_send_all(connection, "there", 5, LIMIT), 0);
	assert_int_equal(host_read(fd, bytes, 5, LIMIT), 0);
	assert_memory_equal(bytes, "there", 5);
	assert_int_equal(host_write(fd, "and back", 8, LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, bytes, 8, LIMIT), 8);
	assert_memory_equal(bytes, "and back", 8);
}

/* The guest writes nothing, and hears that nobody would read it. */
static void expect_close(struct guest_connection *connection)
{
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, 0);
	assert_int_equal(connection->peer_shutdown, PACKET_SHUTDOWN_BOTH);
}

static void test_a_guest_reaches_the_same_port_of_the_cid(void **state)
{
	struct guest *guest = setup_guest(*state, 0, (struct guest_options){0});
	int listener = listen_vsock(port_a), fd;
	struct guest_connection *connection;

	connection = guest_connect_wait(guest, PACKET_HOST_CID, port_a, LIMIT);
	assert_non_null(connection);
	fd = host_accept(listener, LIMIT);
	assert_true(fd >= 0);
	talk(connection, fd);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	assert_int_equal(host_wait_end(fd, LIMIT), 0);
	close(fd);
	close(listener);
	/* Nobody listens: refused before the guest gives up by itself. */
	connection = guest_connect(guest, PACKET_HOST_CID, port_a);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
}

static void test_a_unix_socket_counts_before_the_cid(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	int vsock = listen_vsock(port_a), first = host_listen(setup->uds_paths[0], port_a), fd;
	struct guest_connection *connection;
	char path[128];

	connection = guest_connect_wait(guest, PACKET_HOST_CID, port_a, LIMIT);
	assert_non_null(connection);
	fd = host_accept(first, LIMIT);
	assert_true(fd >= 0);
	close(fd);
	close(first); /* the file stays: nobody listens there any more */
	connection = guest_connect_wait(guest, PACKET_HOST_CID, port_a, LIMIT);
	assert_non_null(connection);
	fd = host_accept(vsock, LIMIT);
	assert_true(fd >= 0);
	close(fd);
	close(vsock);
	snprintf(path, sizeof(path), "%s_%u", setup->uds_paths[0], port_a);
	assert_int_equal(unlink(path), 0);
}

static void test_the_host_reaches_the_guest_and_loses_no_early_byte(void **state)
{
	struct guest *guest = setup_guest(*state, 0, (struct guest_options){0});
	struct guest_connection *connection;
	char bytes[5];
	int fd;

	assert_int_equal(guest_listen(guest, port_b), 0);
	fd = connect_vsock(port_b);
	assert_int_equal(host_write(fd, "early", 5, LIMIT), 0);
	connection = guest_accept_wait(guest, port_b, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_receive_all(connection, bytes, 5, LIMIT), 5);
	assert_memory_equal(bytes, "early", 5);
	talk(connection, fd);
	close(fd);
	expect_close(connection);
}

static bool has_heard(void *context)
{
	const struct guest_connection *connection = context;

	return connection->peer_shutdown != 0;
}

static void test_a_guest_hears_which_half_a_program_closes(void **state)
{
	struct guest *guest = setup_guest(*state, 0, (struct guest_options){0});
	int listener = listen_vsock(port_a), fd;
	struct guest_connection *connection;
	char bytes[6];

	connection = guest_connect_wait(guest, PACKET_HOST_CID, port_a, LIMIT);
	assert_non_null(connection);
	fd = host_accept(listener, LIMIT);
	assert_true(fd >= 0);
	assert_int_equal(shutdown(fd, SHUT_WR), 0);
	assert_int_equal(guest_wait_until(guest, has_heard, connection, LIMIT), 0);
	assert_int_equal(connection->peer_shutdown, PACKET_SHUTDOWN_SEND);
	assert_int_equal(guest_send_all(connection, "answer", 6, LIMIT), 0);
	assert_int_equal(host_read(fd, bytes, 6, LIMIT), 0);
	assert_memory_equal(bytes, "answer", 6);
	assert_int_equal(connection->peer_shutdown, PACKET_SHUTDOWN_SEND);
	close(fd);
	expect_close(connection);
	close(listener);
}

#define STARTED(name) cmocka_unit_test_setup_teardown(name, start, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		STARTED(test_a_guest_reaches_the_same_port_of_the_cid),
		STARTED(test_a_unix_socket_counts_before_the_cid),
		STARTED(test_the_host_reaches_the_guest_and_loses_no_early_byte),
		STARTED(test_a_guest_hears_which_half_a_program_closes),
	};
	int listener;

	port_a = 0x40000000u + (uint32_t)getpid();
	port_b = port_a + 1000000;
	listener = listen_vsock(port_a);
	if (listener < 0) {
		fprintf(stderr, "skipped: no vsock loopback here (module vsock_loopback)\n");
		return SKIPPED;
	}
	close(listener);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
