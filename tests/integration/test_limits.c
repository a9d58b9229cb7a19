/* SPDX-License-Identifier: Apache-2.0 */

/* Who may reach which port, how often, and how much. */

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/replacer.h"
#include "tests/integration/setup.h"
#include "tests/integration/tool.h"
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
	assert_int_equal(
		daemon_wait_log(&setup->daemon, "port 81: that port is denied to the guest", LIMIT),
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
	assert_int_equal(
		daemon_wait_log(&setup->daemon, "port 22: that port of the guest is denied", LIMIT),
		0);
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

/* Each successor goes on with what its predecessor had left: no new second begins. */
static void test_a_replacement_gives_no_bytes_for_free(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	struct guest *guest;
	size_t n_replaced = 0;
	int64_t begin;

	setup_start(setup, 1, "max-bandwidth=1000000", TOOL_ARGUMENTS);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	begin = deadline_in(0);
	transfer_start(&transfer, setup, 0, 80, 512 * 1024);
	for (size_t n = 32 * 1024; n <= 512 * 1024; n += 32 * 1024, n_replaced++) {
		transfer_run_to(&transfer, n);
		assert_int_equal(replace_worker(setup, guest, setup_cid(0)), 0);
	}
	transfer_finish(&transfer);
	/* A bucket for each of them would be twice what was moved at all. */
	assert_in_range(n_replaced, 16, 16);
	assert_in_range(deadline_in(0) - begin, 850, LIMIT);
}

static void reload(struct setup *setup, const char *vm_options)
{
	size_t n = daemon_count_log(&setup->daemon, "reload: 0 added, 0 removed, 1 changed");

	setup_write_file(setup, 1, vm_options);
	assert_int_equal(kill(setup->daemon.pid, SIGHUP), 0);
	assert_int_equal(daemon_wait_log_times(&setup->daemon,
					       "reload: 0 added, 0 removed, 1 changed", n + 1,
					       LIMIT),
			 0);
}

static void test_a_changed_limit_holds_for_the_vm_that_runs(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	struct guest *guest;
	int64_t begin;
	int fd;

	setup_choose_file(setup);
	setup_start(setup, 1, "max-bandwidth=65536", NULL);
	guest = setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(guest_listen(guest, 22), 0);
	/* At that rate it takes a minute. */
	transfer_start(&transfer, setup, 0, 80, 2u << 20);
	transfer_run_to(&transfer, 32 * 1024);
	begin = deadline_in(0);
	reload(setup, "deny-incoming=22");
	transfer_finish(&transfer);
	assert_in_range(deadline_in(0) - begin, 0, 20000);
	fd = host_connect(setup->uds_paths[0], 22, LIMIT);
	assert_int_equal(host_wait_end(fd, LIMIT), 0);
	close(fd);

	reload(setup, "max-bandwidth=2000000");
	begin = deadline_in(0);
	transfer_all(setup, 0, 81, 1u << 20);
	assert_in_range(deadline_in(0) - begin, 700, LIMIT);
	fd = host_connect(setup->uds_paths[0], 22, LIMIT);
	assert_non_null(guest_accept_wait(guest, 22, LIMIT));
	close(fd);
}

#define OWN(name) cmocka_unit_test_setup_teardown(name, make_setup, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		OWN(test_a_guest_reaches_the_ports_that_it_may),
		OWN(test_a_guest_is_reached_at_the_ports_that_may_be),
		OWN(test_more_connections_in_a_second_than_may_be_are_refused),
		OWN(test_more_bytes_in_a_second_than_may_be_wait_and_none_is_lost),
		OWN(test_a_replacement_gives_no_bytes_for_free),
		OWN(test_a_changed_limit_holds_for_the_vm_that_runs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
