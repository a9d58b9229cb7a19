/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A state is loaded: the reset, the quarantine, and who is served when. The orders of
 * messages are those of crosvm, cloud-hypervisor and QEMU, see tests/frontend/guest.h.
 */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/migration.h"

/* ---- loading ---- */

static void test_a_saved_guest_is_reset_in_another_process(void **state)
{
	struct setup *setup = *state, *destination = calloc(1, sizeof(*destination));
	struct guest *guest = migration_start_guest(setup);
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);
	uint64_t count, n_kicks;
	size_t len;
	int kick;

	assert_non_null(destination);
	setup_start(destination, 1, NULL, NULL);
	len = migration_snapshot(guest);
	assert_int_equal(host_wait_end(stream.watch.fd, LIMIT), 0);
	assert_int_equal(guest_attach(guest, destination->sockets[0], migration_state, len), 0);

	/* No kick in sight, neither a new one nor one from before. */
	kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	close(guest->rings[GUEST_EVENT].kick);
	guest->rings[GUEST_EVENT].kick = kick;
	n_kicks = guest->rings[GUEST_EVENT].n_kicks;
	migration_resume(guest);
	migration_wait_reset(guest);
	assert_int_equal(guest->rings[GUEST_EVENT].n_kicks, n_kicks);
	assert_int_equal(read(kick, &count, sizeof(count)), -1);

	/* The connection that the state spoke of ends without the driver's doing. */
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
	migration_answer_reset(guest);
	program_assert_serves(destination, guest);
	migration_assert_no_more_resets(guest, 1);
	setup_end_stream(setup, 0, &stream);
	setup_end_guest(setup, 0);
	setup_stop(destination);
	free(destination);
}

static void test_a_state_is_loaded_through_a_socket_as_well(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len = migration_snapshot(guest);

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	assert_int_equal(migration_load_through(&guest->vhost, migration_state, len, true), GOOD);
	migration_resume(guest);
	migration_wait_reset(guest);
	migration_answer_reset(guest);
	program_assert_serves(setup, guest);
}

static void test_host_programs_of_every_moment_are_served_after_the_reset(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	static struct program before, between, during, after;
	size_t len = migration_snapshot(guest);

	migration_restore(setup, guest, migration_state, len);
	program_call(setup, guest, &before, 100);
	assert_int_equal(guest_resume(guest), 0);
	program_call(setup, guest, &between, 101);
	migration_wait_reset(guest);
	program_call(setup, guest, &during, 102);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	program_assert_held(guest, &before);
	program_assert_held(guest, &between);
	program_assert_held(guest, &during);

	migration_answer_reset(guest);
	program_call(setup, guest, &after, 103);
	program_assert_served(guest, &after);
	program_assert_served(guest, &before);
	program_assert_served(guest, &between);
	program_assert_served(guest, &during);
	migration_assert_no_more_resets(guest, 1);
}

static void test_a_host_program_that_calls_in_mid_load_is_held(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct program program;
	size_t len = migration_snapshot(guest);
	int fd;

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	fd = migration_begin(&guest->vhost, LOAD, false);
	program_call(setup, guest, &program, 100);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	program_assert_held(guest, &program);
	assert_int_equal(write(fd, migration_state, len), len);
	close(fd);
	assert_int_equal(migration_check(&guest->vhost), GOOD);
	migration_resume(guest);
	migration_wait_reset(guest);
	migration_answer_reset(guest);
	program_assert_served(guest, &program);
}

static void test_requests_of_the_guest_wait_for_the_end_of_the_quarantine(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_quarantined(setup);
	int listener = host_listen(setup->uds_paths[0], PORT), fd;
	struct guest_connection *connection;

	assert_true(listener >= 0);
	connection = guest_connect(guest, PACKET_HOST_CID, PORT);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(connection->state, GUEST_CONNECTING);
	assert_int_equal(host_accept(listener, 1), -ETIMEDOUT);
	/* This proof of the reset's end leaves the connection alone. */
	assert_int_equal(guest_read_cid(guest), 0);
	assert_int_equal(guest_wait_state(connection, GUEST_ESTABLISHED, LIMIT), 0);
	fd = host_accept(listener, LIMIT);
	assert_true(fd >= 0);
	close(fd);
	close(listener);
	guest_abort(connection);
}

static void test_packets_from_before_the_snapshot_are_answered_with_rst(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct guest_connection *connection;
	struct host_stream stream;
	size_t len;

	/* The state is of an earlier time than the connection. */
	assert_int_equal(guest_stop(guest), 0);
	len = migration_save(&guest->vhost, false);
	migration_resume(guest);
	connection = setup_connect(setup, 0, PORT, &stream);
	assert_int_equal(guest_stop(guest), 0);
	guest_detach(guest);
	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	migration_wait_reset(guest);
	assert_int_equal(connection->state, GUEST_ESTABLISHED);
	assert_int_equal(guest_send(connection, "late", 4), 4);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_the_configuration_ends_a_quarantine_only_behind_the_event(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct program program;
	size_t len = migration_snapshot(guest);

	migration_restore(setup, guest, migration_state, len);
	program_call(setup, guest, &program, 100);
	assert_int_equal(guest_read_cid(guest), 0);
	migration_resume(guest);
	migration_wait_reset(guest);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	program_assert_held(guest, &program);
	assert_int_equal(guest_read_cid(guest), 0);
	program_assert_served(guest, &program);
}

static void test_an_empty_event_ring_gets_its_reset_when_a_buffer_comes(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct ring_buffer buffer = {.len = 4, .is_writable = true};
	struct program program;
	size_t len = migration_snapshot(guest);

	migration_take_back_event_buffers(guest);
	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	program_call(setup, guest, &program, 100);
	migration_assert_no_more_resets(guest, 0);
	assert_int_equal(guest_read_cid(guest), 0);
	program_assert_held(guest, &program);
	setup_check_nobody_spins(setup);

	buffer.guest_address = guest->event_address;
	assert_int_equal(ring_add(&guest->rings[GUEST_EVENT], &buffer, 1, 0, 0), 0);
	ring_submit(&guest->rings[GUEST_EVENT]);
	migration_wait_reset(guest);
	program_assert_held(guest, &program);
	migration_answer_reset(guest);
	program_assert_served(guest, &program);
	migration_assert_no_more_resets(guest, 1);
}

/* There are as many buffers as the ring holds: one comes back, and the driver's is news. */
static void test_a_full_event_ring_ends_a_quarantine_as_well(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct ring *ring = &guest->rings[GUEST_EVENT];
	struct ring_buffer buffer = {.len = 4, .is_writable = true};
	struct program program;
	size_t len = migration_snapshot(guest);

	buffer.guest_address = guest->event_address;
	while (ring_add(ring, &buffer, 1, 0, 0) == 0)
		;
	assert_int_equal(ring->n_in_flight, ring->size);
	ring_submit(ring);
	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	migration_wait_reset(guest);
	program_call(setup, guest, &program, 100);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	program_assert_held(guest, &program);
	migration_answer_reset(guest);
	assert_int_equal(ring->n_in_flight, ring->size);
	program_assert_served(guest, &program);
	migration_assert_no_more_resets(guest, 1);
}

static void assert_comes_back(struct ring *ring, uint32_t cookie, uint32_t len)
{
	int64_t deadline = deadline_in(LIMIT);
	struct ring_completion done;
	int n;

	while ((n = ring_take(ring, &done)) == 0)
		if (!ring_expect_call(ring))
			assert_int_equal(ring_wait(ring, deadline_left(deadline)), 0);
	assert_int_equal(n, 1);
	assert_int_equal(done.cookie, cookie);
	assert_int_equal(done.len, len);
}

/* What cannot hold an event comes back empty, and the next one is waited for. */
static void test_useless_event_buffers_are_passed_over(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct ring *ring = &guest->rings[GUEST_EVENT];
	struct ring_buffer buffers[] = {
		{.guest_address = guest->event_address, .len = 3, .is_writable = true},
		{.guest_address = guest->event_address, .len = 4},
		{.guest_address = guest->event_address, .len = 1, .is_writable = true},
		{.guest_address = guest->event_address + 8, .len = 7, .is_writable = true},
	};
	size_t len = migration_snapshot(guest);

	migration_take_back_event_buffers(guest);
	memset(memory_at(&guest->memory, guest->event_address), 0xee, 64);
	assert_int_equal(ring_add(ring, &buffers[0], 1, 0, 0), 0);
	assert_int_equal(ring_add(ring, &buffers[1], 1, 0, 1), 0);
	ring_submit(ring);
	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	assert_comes_back(ring, 0, 0);
	assert_comes_back(ring, 1, 0);
	setup_check_nobody_spins(setup);
	/* In two parts. */
	assert_int_equal(ring_add(ring, &buffers[2], 2, 0, 2), 0);
	ring_submit(ring);
	assert_comes_back(ring, 2, 4);
	assert_memory_equal(memory_at(&guest->memory, guest->event_address),
			    "\0\xee\xee\xee\xee\xee\xee\xee\0\0\0\xee\xee\xee\xee", 15);
}

/* Neither call nor kick nor a read of the configuration tells the device of it. */
static void test_a_polled_event_ring_ends_a_quarantine_as_well(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct ring_buffer buffer = {
		.guest_address = guest->event_address,
		.len = 4,
		.is_writable = true,
	};
	struct program program;
	size_t len = migration_snapshot(guest);

	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	assert_int_equal(vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_KICK, GUEST_EVENT, -1),
			 0);
	migration_wait_reset(guest);
	program_call(setup, guest, &program, 100);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	program_assert_held(guest, &program);
	assert_int_equal(ring_add(&guest->rings[GUEST_EVENT], &buffer, 1, 0, 7), 0);
	ring_submit(&guest->rings[GUEST_EVENT]);
	program_assert_served(guest, &program);
}

static void test_each_load_is_followed_by_one_reset(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);

	for (size_t i = 0; i < 3; i++) {
		size_t len = migration_snapshot(guest);

		guest->n_transport_resets = 0;
		migration_restore(setup, guest, migration_state, len);
		migration_resume(guest);
		migration_wait_reset(guest);
		migration_answer_reset(guest);
		program_assert_serves(setup, guest);
		/* Stopping and starting is no second reason. */
		assert_int_equal(guest_stop(guest), 0);
		migration_resume(guest);
		migration_assert_no_more_resets(guest, 1);
		program_assert_serves(setup, guest);
	}
}

static void test_rings_may_stop_and_start_within_a_quarantine(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_quarantined(setup);
	struct program program;

	program_call(setup, guest, &program, 100);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(guest_stop(guest), 0);
		migration_resume(guest);
		migration_assert_no_more_resets(guest, 1);
		program_assert_held(guest, &program);
	}
	migration_answer_reset(guest);
	program_assert_served(guest, &program);
}

static void test_a_saved_quarantine_becomes_a_quarantine_again(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_quarantined(setup);
	size_t len = migration_snapshot(guest);

	assert_int_equal(migration_get32(migration_state + AT_FLAGS), HAD_DRIVER | HAD_EVENT_RING);
	guest->n_transport_resets = 0;
	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	migration_wait_reset(guest);
	migration_answer_reset(guest);
	program_assert_serves(setup, guest);
}

static void test_a_source_without_a_driver_owes_no_reset(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len;

	assert_int_equal(guest_reset(guest), 0);
	len = migration_save(&guest->vhost, false);
	guest_detach(guest);
	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	program_assert_serves(setup, guest);
	migration_assert_connects(setup, 0);
	migration_assert_no_more_resets(guest, 0);
}

static void test_an_empty_state_assumes_that_a_driver_lived(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct program program;

	assert_int_equal(guest_stop(guest), 0);
	guest_detach(guest);
	migration_restore(setup, guest, migration_state, 0);
	program_call(setup, guest, &program, 100);
	migration_resume(guest);
	migration_wait_reset(guest);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	program_assert_held(guest, &program);
	migration_answer_reset(guest);
	program_assert_served(guest, &program);
	migration_assert_no_more_resets(guest, 1);
}

static void test_a_front_end_that_keeps_the_event_queue_waits_for_nothing(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct program program;
	size_t len;

	/* With a state that knows of it, and with one that knows nothing. */
	for (size_t i = 0; i < 2; i++) {
		len = migration_snapshot(guest);
		migration_restore(setup, guest, migration_state, i == 0 ? len : 0);
		program_call(setup, guest, &program, 100);
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		program_assert_held(guest, &program);
		migration_resume(guest);
		program_assert_served(guest, &program);
		migration_assert_connects(setup, 0);
	}
}

static void test_a_front_end_that_drops_the_event_queue_is_not_waited_for_long(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct program program;
	size_t len = migration_snapshot(guest);

	assert_int_equal(migration_get32(migration_state + AT_FLAGS), HAD_DRIVER | HAD_EVENT_RING);
	migration_restore(setup, guest, migration_state, len);
	guest->n_rings = 2;
	program_call(setup, guest, &program, 100);
	migration_resume(guest);
	program_assert_served(guest, &program);
	guest->n_rings = 3;
}

/* Rings 0 and 1 ran, the decision about ring 2 is due, and they are stopped again. */
static void test_a_decision_that_waits_costs_nothing_while_the_rings_are_stopped(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct program program;
	size_t len = migration_snapshot(guest);

	migration_restore(setup, guest, migration_state, len);
	guest->n_rings = 2;
	migration_resume(guest);
	assert_int_equal(guest_stop(guest), 0);
	program_call(setup, guest, &program, 100);
	poll(NULL, 0, 1100); /* more than such a decision is put off */
	setup_check_nobody_spins(setup);
	guest->n_rings = 3;
	migration_resume(guest);
	migration_wait_reset(guest);
	program_assert_held(guest, &program);
	migration_answer_reset(guest);
	program_assert_served(guest, &program);
}

static void test_a_device_reset_cancels_what_a_load_left_to_do(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len = migration_snapshot(guest);

	/* Before the rings run, and while the driver is to handle the event. */
	for (size_t i = 0; i < 2; i++) {
		guest->n_transport_resets = 0;
		migration_restore(setup, guest, migration_state, len);
		if (i == 1) {
			migration_resume(guest);
			migration_wait_reset(guest);
		}
		assert_int_equal(guest_reset(guest), 0);
		migration_resume(guest);
		program_assert_serves(setup, guest);
		migration_assert_connects(setup, 0);
		migration_assert_no_more_resets(guest, i);
		assert_int_equal(guest_stop(guest), 0);
		guest_detach(guest);
	}
}

static void test_a_device_reset_ends_a_load_that_is_under_way(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len = migration_snapshot(guest);
	int fd;

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	fd = migration_begin(&guest->vhost, LOAD, false);
	assert_int_equal(guest_reset(guest), 0);
	if (write(fd, migration_state, len) < 0)
		assert_int_equal(errno, EPIPE);
	close(fd);
	assert_int_equal(migration_check(&guest->vhost), BAD);
	migration_resume(guest);
	program_assert_serves(setup, guest);
	migration_assert_connects(setup, 0);
	migration_assert_no_more_resets(guest, 0);
}

static void test_the_end_of_a_session_cancels_what_a_load_left_to_do(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len = migration_snapshot(guest);

	migration_restore(setup, guest, migration_state, len);
	guest_detach(guest);
	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	migration_resume(guest);
	program_assert_serves(setup, guest);
	migration_assert_connects(setup, 0);
	migration_assert_no_more_resets(guest, 0);
}

static void test_stopping_and_starting_alone_gates_nothing(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct program program;

	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(guest_stop(guest), 0);
		program_call(setup, guest, &program, 100);
		migration_resume(guest);
		program_assert_served(guest, &program);
		migration_assert_connects(setup, 0);
	}
	migration_assert_no_more_resets(guest, 0);
}

static void test_the_cid_of_the_destination_holds(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct guest_connection *connection;
	size_t len = migration_snapshot(guest);
	uint32_t port;
	int fd;

	guest->options.cid = setup_cid(1);
	assert_int_equal(guest_attach(guest, setup->sockets[1], migration_state, len), 0);
	migration_resume(guest);
	migration_wait_reset(guest);
	migration_answer_reset(guest);
	assert_int_equal(guest->cid, setup_cid(1));
	assert_true(daemon_log_has(&setup->daemon, "the guest had CID 3 before"));

	assert_int_equal(guest_listen(guest, PORT), 0);
	fd = host_connect(setup->uds_paths[1], PORT, LIMIT);
	assert_true(fd >= 0);
	connection = guest_accept_wait(guest, PORT, LIMIT);
	assert_non_null(connection);
	port = connection->peer_port;
	assert_int_not_equal(port, 0);
	close(fd);
}

/* From its beginning; done on return. */
static void start_event_ring(struct guest *guest)
{
	struct vhost *vhost = &guest->vhost;
	struct ring *ring = &guest->rings[GUEST_EVENT];
	struct vhost_ring_address address = ring_addresses(ring, GUEST_EVENT);
	uint64_t features;

	assert_int_equal(vhost_set_ring(vhost, VHOST_SET_VRING_NUM, GUEST_EVENT, ring->size), 0);
	assert_int_equal(vhost_set_ring_address(vhost, &address), 0);
	assert_int_equal(
		vhost_set_ring(vhost, VHOST_SET_VRING_BASE, GUEST_EVENT, ring_first_base(ring)), 0);
	assert_int_equal(vhost_set_ring_fd(vhost, VHOST_SET_VRING_KICK, GUEST_EVENT, ring->kick),
			 0);
	assert_int_equal(vhost_set_ring(vhost, VHOST_SET_VRING_ENABLE, GUEST_EVENT, 1), 0);
	assert_int_equal(vhost_get_u64(vhost, VHOST_GET_FEATURES, &features), 0);
}

/*
 * A driver that starts anew without RESET_DEVICE is known by the base of its rings. There
 * are no acks: it does not wait for what crosvm has still to say of the last one.
 */
static void test_a_new_driver_may_connect_before_its_event_ring_is_started(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(
		setup, 0, (struct guest_options){.style = GUEST_LIKE_CROSVM, .is_prefilled = true});
	size_t len = migration_snapshot(guest);
	struct guest_connection *connection;
	struct host_stream stream;

	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	migration_wait_reset(guest);
	migration_assert_connects(setup, 0);
	assert_int_equal(guest_reset(guest), 0);
	guest->n_rings = GUEST_EVENT; /* the two before it */
	migration_resume(guest);
	connection = setup_connect(setup, 0, 2000, &stream);
	guest->n_rings = GUEST_RINGS;
	start_event_ring(guest);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	migration_exchange(connection, &stream, 20000);
	setup_end_stream(setup, 0, &stream);
}

/* The same session, with connections that live: they belonged to another time. */
static void test_a_load_ends_the_connections_that_lived(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len;

	/* Of 8 connections, none stays in use. */
	for (size_t i = 0; i < 4; i++) {
		struct guest_connection *connections[4];
		struct host_stream streams[4];

		for (uint32_t k = 0; k < 4; k++)
			connections[k] = setup_connect(setup, 0, PORT + k, &streams[k]);
		assert_int_equal(guest_stop(guest), 0);
		len = migration_save(&guest->vhost, false);
		assert_int_equal(migration_load(&guest->vhost, migration_state, len), GOOD);
		guest->n_transport_resets = 0;
		migration_resume(guest);
		migration_wait_reset(guest);
		for (uint32_t k = 0; k < 4; k++) {
			assert_int_equal(guest_wait_state(connections[k], GUEST_CLOSED, LIMIT), 0);
			assert_int_equal(
				guest_wait_until(guest, program_has_ended, &streams[k], LIMIT), 0);
			guest_forget(connections[k]);
			setup_end_stream(setup, 0, &streams[k]);
		}
		migration_answer_reset(guest);
	}
	program_assert_serves(setup, guest);
}

static int start_with_eight_connections(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	if (!*state)
		return -1;
	setup_start(*state, 1, "max-connections=8", NULL);
	return 0;
}

#define ONE(f) cmocka_unit_test_setup_teardown(f, setup_start_one, migration_end)
#define TWO(f) cmocka_unit_test_setup_teardown(f, setup_start_two, migration_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ONE(test_a_saved_guest_is_reset_in_another_process),
		ONE(test_a_state_is_loaded_through_a_socket_as_well),
		ONE(test_host_programs_of_every_moment_are_served_after_the_reset),
		ONE(test_a_host_program_that_calls_in_mid_load_is_held),
		ONE(test_requests_of_the_guest_wait_for_the_end_of_the_quarantine),
		ONE(test_packets_from_before_the_snapshot_are_answered_with_rst),
		ONE(test_the_configuration_ends_a_quarantine_only_behind_the_event),
		ONE(test_an_empty_event_ring_gets_its_reset_when_a_buffer_comes),
		ONE(test_a_full_event_ring_ends_a_quarantine_as_well),
		ONE(test_useless_event_buffers_are_passed_over),
		ONE(test_a_polled_event_ring_ends_a_quarantine_as_well),
		ONE(test_each_load_is_followed_by_one_reset),
		ONE(test_rings_may_stop_and_start_within_a_quarantine),
		ONE(test_a_saved_quarantine_becomes_a_quarantine_again),
		ONE(test_a_source_without_a_driver_owes_no_reset),
		ONE(test_an_empty_state_assumes_that_a_driver_lived),
		ONE(test_a_front_end_that_keeps_the_event_queue_waits_for_nothing),
		ONE(test_a_front_end_that_drops_the_event_queue_is_not_waited_for_long),
		ONE(test_a_decision_that_waits_costs_nothing_while_the_rings_are_stopped),
		ONE(test_a_device_reset_cancels_what_a_load_left_to_do),
		ONE(test_a_device_reset_ends_a_load_that_is_under_way),
		ONE(test_the_end_of_a_session_cancels_what_a_load_left_to_do),
		ONE(test_stopping_and_starting_alone_gates_nothing),
		TWO(test_the_cid_of_the_destination_holds),
		ONE(test_a_new_driver_may_connect_before_its_event_ring_is_started),
		cmocka_unit_test_setup_teardown(test_a_load_ends_the_connections_that_lived,
						start_with_eight_connections, migration_end),
	};

	return cmocka_run_group_tests_name("restore", tests, NULL, NULL);
}
