/* SPDX-License-Identifier: Apache-2.0 */

/* Who may reach which port, how often, and how much. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/transfer.h"

#define LIMIT SETUP_LIMIT

static int make_setup(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	return *state ? 0 : -1;
}

static void expect_refusal(struct guest *guest, uint64_t cid, uint32_t port)
{
	struct guest_connection *connection = guest_connect(guest, cid, port);

	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
}

static void test_a_guest_reaches_the_ports_that_it_may(void **state)
{
	struct setup *setup = *state;
	int listeners[4];
	struct guest *guest;

	setup_start(setup, 1, "allow-outgoing=80-82,deny-outgoing=81", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	for (uint32_t i = 0; i < 4; i++)
		listeners[i] = host_listen(setup->uds_paths[0], 80 + i);
	for (uint32_t i = 0; i < 4; i++) {
		struct guest_connection *connection;

		if (i % 2) {
			expect_refusal(guest, PACKET_HOST_CID, 80 + i);
			continue;
		}
		connection = guest_connect_wait(guest, PACKET_HOST_CID, 80 + i, LIMIT);
		assert_non_null(connection);
		close(host_accept(listeners[i], LIMIT));
		assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	}
	assert_int_equal(daemon_wait_log(&setup->daemon, "host port 81: Permission denied", LIMIT),
			 0);
	for (uint32_t i = 0; i < 4; i++)
		close(listeners[i]);
}

static void test_a_guest_is_reached_at_the_ports_that_may_be(void **state)
{
	struct guest_connection *connection;
	struct setup *setup = *state;
	struct guest *guest, *other;
	struct host_stream stream;
	int fd;

	setup_start(setup, 2, "deny-incoming=22", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	other = setup_guest(setup, 1, (struct guest_options){0});
	assert_int_equal(guest_listen(guest, 22), 0);
	assert_int_equal(guest_listen(guest, 23), 0);

	fd = host_connect(setup->uds_paths[0], 22, LIMIT);
	assert_int_equal(host_wait_end(fd, LIMIT), 0);
	close(fd);
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "guest port 22: that port is not for host programs",
					 LIMIT),
			 0);
	expect_refusal(other, setup_cid(0), 22);
	assert_int_equal(daemon_wait_log(&setup->daemon, "port 22: that port is denied", LIMIT), 0);
	/* The guest itself was not asked; and another port is another thing. */
	assert_null(guest_accept(guest, 22));
	host_stream_init(&stream, host_connect(setup->uds_paths[0], 23, LIMIT));
	guest_watch(guest, &stream.watch);
	connection = guest_accept_wait(guest, 23, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_more_connections_in_a_second_than_may_be_are_refused(void **state)
{
	struct guest_connection *connections[3];
	struct setup *setup = *state;
	struct guest *guest;
	int listener, fd;
	char byte = 'x';

	setup_start(setup, 1, "max-connection-rate=3", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	listener = host_listen(setup->uds_paths[0], 80);
	for (size_t i = 0; i < 3; i++) {
		connections[i] = guest_connect(guest, PACKET_HOST_CID, 80);
		assert_non_null(connections[i]);
	}
	/* As the clock moves on, one or the other of these may still be admitted. */
	for (size_t i = 0; i < 4 && !daemon_log_has(&setup->daemon, "more connections"); i++) {
		struct guest_connection *more = guest_connect(guest, PACKET_HOST_CID, 80);

		while (more->state == GUEST_CONNECTING)
			assert_true(guest_poll(guest, LIMIT) >= 0);
	}
	assert_int_equal(daemon_wait_log(&setup->daemon, "more connections in a second", LIMIT), 0);
	/* What runs goes on. */
	assert_int_equal(guest_wait_state(connections[0], GUEST_ESTABLISHED, LIMIT), 0);
	fd = host_accept(listener, LIMIT);
	assert_int_equal(guest_send_all(connections[0], &byte, 1, LIMIT), 0);
	assert_int_equal(host_read(fd, &byte, 1, LIMIT), 0);
	close(fd);
	/* And a second later there is room again. */
	assert_int_equal(guest_poll_for(guest, 1100), 0);
	assert_non_null(guest_connect_wait(guest, PACKET_HOST_CID, 80, LIMIT));
	close(listener);
}

static void test_more_bytes_in_a_second_than_may_be_wait_and_none_is_lost(void **state)
{
	struct setup *setup = *state;
	int64_t begin, took;

	setup_start(setup, 1, "max-bandwidth=2000000", NULL);
	setup_guest(setup, 0, (struct guest_options){0});
	begin = deadline_in(0);
	/* A megabyte each way: at two a second, but for what the bucket holds. */
	transfer_all(setup, 0, 80, 1u << 20);
	took = deadline_in(0) - begin;
	assert_in_range(took, 700, LIMIT);
	assert_int_equal(
		daemon_wait_log(&setup->daemon, "held up: 2000000 bytes in a second", LIMIT), 0);
}

#define OWN(name) cmocka_unit_test_setup_teardown(name, make_setup, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		OWN(test_a_guest_reaches_the_ports_that_it_may),
		OWN(test_a_guest_is_reached_at_the_ports_that_may_be),
		OWN(test_more_connections_in_a_second_than_may_be_are_refused),
		OWN(test_more_bytes_in_a_second_than_may_be_wait_and_none_is_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
