/* SPDX-License-Identifier: Apache-2.0 */

/* A device state is saved and transferred, and all that may go wrong with that. */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/migration.h"

/* ---- saving ---- */

static void test_a_state_says_what_its_source_was(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct host_stream stream;
	struct guest_connection *connection;
	size_t len;

	assert_int_equal(guest_stop(guest), 0);
	assert_int_equal(migration_save(&guest->vhost, false), EMPTY_LEN);
	assert_memory_equal(migration_state, "vsockd", 6);
	assert_int_equal(migration_get32(migration_state + AT_VERSION), 1);
	assert_int_equal(migration_get32(migration_state + AT_LENGTH), EMPTY_LEN);
	assert_int_equal(migration_get64(migration_state + AT_CID), setup_cid(0));
	assert_int_equal(migration_get64(migration_state + AT_FEATURES), guest->vhost.features);
	assert_int_equal(migration_get32(migration_state + AT_FLAGS), HAD_DRIVER | HAD_EVENT_RING);
	assert_int_equal(migration_get32(migration_state + AT_COUNT), 0);

	migration_resume(guest);
	connection = setup_connect(setup, 0, PORT, &stream);
	assert_int_equal(guest_stop(guest), 0);
	len = migration_save(&guest->vhost, false);
	assert_int_equal(len, EMPTY_LEN + 16);
	assert_int_equal(migration_get32(migration_state + AT_COUNT), 1);
	assert_int_equal(migration_get32(migration_state + 40), connection->port);
	assert_int_equal(migration_get32(migration_state + 44), PORT);
	assert_int_equal(migration_get32(migration_state + 48), PACKET_STREAM);

	migration_resume(guest);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_a_device_without_a_driver_says_so(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);

	assert_int_equal(guest_reset(guest), 0);
	migration_save(&guest->vhost, false);
	assert_int_equal(migration_get32(migration_state + AT_FLAGS), 0);
}

static void test_a_front_end_that_keeps_the_event_queue_is_noticed(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	assert_int_equal(guest_stop(guest), 0);
	migration_save(&guest->vhost, false);
	assert_int_equal(migration_get32(migration_state + AT_FLAGS), HAD_DRIVER);
}

static void test_a_source_that_was_saved_goes_on(void **state)
{
	static const enum guest_style styles[] = {GUEST_LIKE_QEMU, GUEST_LIKE_CROSVM,
						  GUEST_LIKE_CLOUD_HYPERVISOR};
	struct setup *setup = *state;

	for (size_t i = 0; i < 3; i++) {
		struct guest *guest =
			setup_guest(setup, 0, (struct guest_options){.style = styles[i]});
		struct host_stream stream;
		struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);

		migration_exchange(connection, &stream, 30000);
		for (size_t n = 0; n < 4; n++) {
			assert_int_equal(guest_stop(guest), 0);
			assert_int_equal(migration_save(&guest->vhost,
							styles[i] == GUEST_LIKE_CLOUD_HYPERVISOR),
					 EMPTY_LEN + 16);
			migration_resume(guest);
			migration_exchange(connection, &stream, 30000);
		}
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		setup_end_stream(setup, 0, &stream);
		migration_assert_connects(setup, 0);
		program_assert_serves(setup, guest);
		assert_int_equal(guest->n_transport_resets, 0);
		setup_end_guest(setup, 0);
	}
}

static void test_what_host_programs_sent_while_a_state_was_saved_is_not_lost(void **state)
{
	static uint8_t bytes[200 * KIB], got[200 * KIB];
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);
	struct program program;

	assert_int_equal(guest_stop(guest), 0);
	pattern_fill(bytes, sizeof(bytes), 3, 0);
	host_stream_send(&stream, bytes, sizeof(bytes), false);
	program_call(setup, guest, &program, 77);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	program_assert_held(guest, &program);
	migration_save(&guest->vhost, false);
	migration_resume(guest);
	assert_int_equal(guest_receive_all(connection, got, sizeof(got), LIMIT), sizeof(got));
	assert_memory_equal(got, bytes, sizeof(got));
	program_assert_served(guest, &program);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

/* So many connections that their state fills a pipe of one page. */
#define MANY 400

static void connect_many(struct setup *setup, int *fds)
{
	int listener = host_listen(setup->uds_paths[0], PORT);
	char path[160];

	assert_true(listener >= 0);
	for (size_t i = 0; i < MANY; i++) {
		assert_non_null(
			guest_connect_wait(&setup->guests[0], PACKET_HOST_CID, PORT, LIMIT));
		fds[i] = host_accept(listener, LIMIT);
		assert_true(fds[i] >= 0);
	}
	close(listener);
	snprintf(path, sizeof(path), "%s_%u", setup->uds_paths[0], PORT);
	assert_int_equal(unlink(path), 0);
}

static void close_many(const int *fds)
{
	for (size_t i = 0; i < MANY; i++)
		close(fds[i]);
}

/* Through a pipe of one page, or a socket that takes less; who writes to either may block. */
static int begin_tight_save(struct vhost *vhost, bool is_socket)
{
	uint32_t payload[2] = {SAVE, 0};
	int fds[2], least = 1;
	uint64_t answer;

	if (is_socket) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		assert_int_equal(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &least, sizeof(least)),
				 0);
	} else {
		assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
		assert_int_equal(fcntl(fds[1], F_SETPIPE_SZ, PAGE), PAGE);
	}
	assert_int_equal(vhost_ask(vhost, VHOST_SET_DEVICE_STATE_FD, payload, sizeof(payload),
				   &fds[1], 1, &answer, sizeof(answer), NULL),
			 0);
	assert_int_equal(answer, 0x100);
	close(fds[1]);
	return fds[0];
}

static void leave_unread(struct setup *setup, bool is_socket)
{
	static int fds[MANY];
	struct guest *guest = migration_start_guest(setup);
	uint64_t features;
	int fd;

	connect_many(setup, fds);
	assert_int_equal(guest_stop(guest), 0);
	fd = begin_tight_save(&guest->vhost, is_socket);
	migration_assert_connects(setup, 1);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
	assert_int_equal(migration_read(fd), EMPTY_LEN + 16 * MANY);
	assert_int_equal(migration_check(&guest->vhost), GOOD);

	/* And one that never will. */
	fd = begin_tight_save(&guest->vhost, is_socket);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
	setup_end_guest(setup, 0);
	migration_assert_connects(setup, 1);
	close(fd);
	close_many(fds);
}

static void test_a_reader_that_does_not_read_stops_nobody_else(void **state)
{
	setup_guest(*state, 1, (struct guest_options){0});
	leave_unread(*state, false);
	leave_unread(*state, true);
}

/* A saving that never ends is no reason to hold anybody once the rings run again. */
static void test_a_front_end_that_asks_no_further_is_not_held_up(void **state)
{
	static int fds[MANY];
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	int fd;

	connect_many(setup, fds);
	assert_int_equal(guest_stop(guest), 0);
	fd = begin_tight_save(&guest->vhost, false);
	migration_resume(guest);
	migration_assert_connects(setup, 0);
	program_assert_serves(setup, guest);
	close(fd);
	close_many(fds);
}

static void test_a_reader_that_leaves_makes_the_saving_fail(void **state)
{
	static int fds[MANY];
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);

	connect_many(setup, fds);
	assert_int_equal(guest_stop(guest), 0);
	close(begin_tight_save(&guest->vhost, false));
	assert_int_equal(migration_check(&guest->vhost), BAD);
	assert_true(daemon_log_has(&setup->daemon, "the pipe broke"));
	assert_int_equal(migration_save(&guest->vhost, false), EMPTY_LEN + 16 * MANY);
	close_many(fds);
}

/* ---- states that are refused ---- */

/* A state with two connections, of a guest that is stopped. */
static size_t make_state(struct setup *setup, struct guest *guest)
{
	struct host_stream streams[2];
	size_t len;

	for (uint32_t i = 0; i < 2; i++)
		setup_connect(setup, 0, PORT + i, &streams[i]);
	assert_int_equal(guest_stop(guest), 0);
	len = migration_save(&guest->vhost, false);
	assert_int_equal(len, EMPTY_LEN + 32);
	for (uint32_t i = 0; i < 2; i++)
		setup_end_stream(setup, 0, &streams[i]);
	guest_detach(guest);
	guest->n_transport_resets = 0;
	return len;
}

/* After states that were refused the device is what it was: fresh, and of use. */
static void assert_unharmed(struct setup *setup, struct guest *guest)
{
	assert_int_equal(guest_reset(guest), 0);
	migration_resume(guest);
	program_assert_serves(setup, guest);
	migration_assert_connects(setup, 0);
	migration_assert_no_more_resets(guest, 0);
}

static void test_a_truncated_state_is_refused(void **state)
{
	static uint8_t good[256];
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len = make_state(setup, guest);

	memcpy(good, migration_state, len);
	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	for (size_t i = 1; i < len; i++)
		assert_int_equal(migration_load(&guest->vhost, good, i), BAD);
	assert_true(daemon_log_has(&setup->daemon, "state refused: not a state of vsockd"));
	assert_unharmed(setup, guest);
}

static void test_a_state_with_a_flipped_bit_is_refused(void **state)
{
	static uint8_t bent[256];
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len = make_state(setup, guest);

	memcpy(bent, migration_state, len);
	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	for (size_t i = 0; i < 8 * len; i++) {
		bent[i / 8] ^= (uint8_t)(1 << i % 8);
		assert_int_equal(migration_load(&guest->vhost, bent, len), BAD);
		bent[i / 8] ^= (uint8_t)(1 << i % 8);
	}
	assert_unharmed(setup, guest);
}

static void test_a_state_that_is_not_for_us_is_refused_with_a_reason(void **state)
{
	static uint8_t bent[256], garbage[1 << 20];
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	static const struct {
		size_t at;
		uint32_t value;
		const char *reason;
	} cases[] = {
		{0, 0x21212121, "state refused: not a state of vsockd"},
		{AT_VERSION, 2, "state refused: a state of another version"},
		{AT_VERSION, 0, "state refused: a state of another version"},
		{AT_FLAGS, 0x80000003, "state refused: a state of another version"},
		{AT_FLAGS, 4, "state refused: a state of another version"},
		{AT_COUNT, 1, "state refused: truncated, or too long"},
		{AT_COUNT, UINT32_MAX, "state refused: truncated, or too long"},
		{AT_FEATURES, 1u << 3, "state refused: features 0x8 "},
		{AT_FEATURES + 4, 1u << 1 | 1, "state refused: features 0x200000000 "},
	};
	size_t len = make_state(setup, guest);

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memcpy(bent, migration_state, len);
		migration_put32(bent + cases[i].at, cases[i].value);
		if (cases[i].at == AT_FEATURES)
			migration_put32(bent + AT_FEATURES + 4, 0);
		if (cases[i].at == AT_FEATURES + 4)
			migration_put32(bent + AT_FEATURES, 0);
		migration_seal(bent, len);
		assert_int_equal(migration_load(&guest->vhost, bent, len), BAD);
		assert_int_equal(daemon_wait_log(&setup->daemon, cases[i].reason, LIMIT), 0);
	}
	pattern_fill(garbage, sizeof(garbage), 5, 0);
	assert_int_equal(migration_load(&guest->vhost, garbage, sizeof(garbage)), BAD);
	assert_int_equal(migration_load(&guest->vhost, garbage, 100), BAD);
	/* A byte more than it says. */
	assert_int_equal(migration_load(&guest->vhost, migration_state, len + 1), BAD);
	/* And the good one still is. */
	assert_int_equal(migration_load(&guest->vhost, migration_state, len), GOOD);
	assert_unharmed(setup, guest);
}

static void test_a_load_that_failed_leaves_living_connections_alone(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);

	for (size_t i = 0; i < 3; i++) {
		size_t len;

		assert_int_equal(guest_stop(guest), 0);
		len = migration_save(&guest->vhost, false);
		migration_put32(migration_state + AT_FEATURES, 8);
		migration_seal(migration_state, len);
		assert_int_equal(migration_load(&guest->vhost, migration_state, len), BAD);
		assert_int_equal(migration_load(&guest->vhost, (const uint8_t *)"garbage", 7), BAD);
		migration_resume(guest);
		migration_exchange(connection, &stream, 30000);
	}
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	program_assert_serves(setup, guest);
	migration_assert_connects(setup, 0);
	migration_assert_no_more_resets(guest, 0);
}

static void test_a_check_without_a_transfer_fails(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);

	assert_int_equal(migration_check(&guest->vhost), BAD);
	migration_assert_connects(setup, 0);
}

static void test_a_state_moves_only_while_all_rings_are_stopped(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	uint64_t answer;

	for (uint32_t direction = SAVE; direction <= LOAD; direction++) {
		close(migration_open(&guest->vhost, direction, false, &answer));
		assert_int_equal(answer, 0x101);
	}
	assert_true(daemon_log_has(&setup->daemon, "SET_DEVICE_STATE_FD: a ring is started"));
	migration_assert_connects(setup, 0);
}

static void test_a_second_transfer_is_refused_while_one_runs(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	size_t len = migration_snapshot(guest);
	uint64_t answer;
	int fd;

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	fd = migration_begin(&guest->vhost, LOAD, false);
	for (uint32_t direction = SAVE; direction <= LOAD; direction++) {
		close(migration_open(&guest->vhost, direction, true, &answer));
		assert_int_equal(answer, 0x101);
	}
	assert_int_equal(write(fd, migration_state, len), len);
	close(fd);
	assert_int_equal(migration_check(&guest->vhost), GOOD);
	migration_resume(guest);
	migration_wait_reset(guest);
}

static void send_check(struct vhost *vhost)
{
	struct vhost_header header = {
		.request = VHOST_CHECK_DEVICE_STATE,
		.flags = VHOST_FLAG_VERSION,
	};

	assert_int_equal(vhost_send_raw(vhost, &header, sizeof(header), NULL, 0), 0);
}

static void test_a_pipe_that_nobody_closes_stops_nobody_else(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	uint64_t features, answer;
	size_t len = migration_snapshot(guest);
	int fd;

	setup_guest(setup, 1, (struct guest_options){0});
	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	fd = migration_begin(&guest->vhost, LOAD, false);
	assert_int_equal(write(fd, migration_state, len), len);
	migration_assert_connects(setup, 1);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);

	/* CHECK is answered when there is an answer. */
	send_check(&guest->vhost);
	migration_assert_connects(setup, 1);
	assert_int_equal(socket_wait(guest->vhost.fd, POLLIN, deadline_in(QUIET)), -ETIMEDOUT);
	setup_check_nobody_spins(setup);
	close(fd);
	assert_int_equal(vhost_receive(&guest->vhost, VHOST_CHECK_DEVICE_STATE, &answer,
				       sizeof(answer), NULL),
			 sizeof(answer));
	assert_int_equal(answer, GOOD);
	migration_resume(guest);
	migration_wait_reset(guest);
}

/* The channel outlives it in other hands, behind CHECK or before it. */
static void test_a_front_end_that_dies_in_mid_load_is_noticed(void **state)
{
	struct setup *setup = *state;

	for (size_t i = 0; i < 2; i++) {
		struct guest *guest = migration_start_guest(setup);
		int fd;

		assert_int_equal(guest_stop(guest), 0);
		fd = migration_begin(&guest->vhost, i == 0 ? LOAD : SAVE, false);
		if (i == 0)
			send_check(&guest->vhost);
		setup_end_guest(setup, 0);
		setup_wait_idle(setup);
		close(fd);
	}
}

/* ---- a worker that dies meanwhile ---- */

static void test_a_worker_that_dies_with_a_state_makes_check_fail(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	uint64_t answer;
	size_t len;
	int fd;

	/* Before CHECK, and behind it; with a load and a saving that never end. */
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(guest_stop(guest), 0);
		len = migration_save(&guest->vhost, false);
		fd = migration_begin(&guest->vhost, LOAD, false);
		if (i == 1)
			send_check(&guest->vhost);
		assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
		if (i == 0)
			send_check(&guest->vhost);
		assert_int_equal(vhost_receive(&guest->vhost, VHOST_CHECK_DEVICE_STATE, &answer,
					       sizeof(answer), NULL),
				 sizeof(answer));
		assert_int_equal(answer, BAD);
		close(fd);
		/* The next attempt is good. */
		assert_int_equal(migration_load(&guest->vhost, migration_state, len), GOOD);
		guest->n_transport_resets = 0;
		migration_resume(guest);
		migration_wait_reset(guest);
		migration_answer_reset(guest);
		program_assert_serves(setup, guest);
	}
}

static void test_a_worker_that_dies_while_it_saves_makes_check_fail(void **state)
{
	static int fds[MANY];
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	int fd;

	connect_many(setup, fds);
	assert_int_equal(guest_stop(guest), 0);
	fd = begin_tight_save(&guest->vhost, false);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	assert_int_equal(migration_check(&guest->vhost), BAD);
	close(fd);
	close_many(fds);
	migration_resume(guest);
	program_assert_serves(setup, guest);
}

static void test_a_worker_that_dies_before_the_reset_has_a_successor_that_sends_it(void **state)
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
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	setup_worker(setup, 0);
	migration_assert_no_more_resets(guest, 0);
	program_assert_held(guest, &program);
	buffer.guest_address = guest->event_address;
	assert_int_equal(ring_add(&guest->rings[GUEST_EVENT], &buffer, 1, 0, 0), 0);
	ring_submit(&guest->rings[GUEST_EVENT]);
	migration_wait_reset(guest);
	migration_answer_reset(guest);
	program_assert_served(guest, &program);
	migration_assert_no_more_resets(guest, 1);
}

static void test_a_worker_that_dies_behind_the_reset_makes_nobody_hang(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_quarantined(setup);
	struct program program;

	/* Dead before it could say so, its successor would send another one. */
	assert_int_equal(daemon_wait_log(&setup->daemon, "transport reset sent", LIMIT), 0);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	migration_answer_reset(guest);
	program_call(setup, guest, &program, 100);
	program_assert_served(guest, &program);
	migration_assert_connects(setup, 0);
	migration_assert_no_more_resets(guest, 1);
}

#define ONE(f)	  cmocka_unit_test_setup_teardown(f, setup_start_one, migration_end)
#define TWO(f)	  cmocka_unit_test_setup_teardown(f, setup_start_two, migration_end)
#define KILLED(f) cmocka_unit_test_setup_teardown(f, setup_start_one, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ONE(test_a_state_says_what_its_source_was),
		ONE(test_a_device_without_a_driver_says_so),
		ONE(test_a_front_end_that_keeps_the_event_queue_is_noticed),
		ONE(test_a_source_that_was_saved_goes_on),
		ONE(test_what_host_programs_sent_while_a_state_was_saved_is_not_lost),
		ONE(test_a_front_end_that_asks_no_further_is_not_held_up),
		TWO(test_a_reader_that_does_not_read_stops_nobody_else),
		ONE(test_a_reader_that_leaves_makes_the_saving_fail),
		ONE(test_a_truncated_state_is_refused),
		ONE(test_a_state_with_a_flipped_bit_is_refused),
		ONE(test_a_state_that_is_not_for_us_is_refused_with_a_reason),
		ONE(test_a_load_that_failed_leaves_living_connections_alone),
		ONE(test_a_check_without_a_transfer_fails),
		ONE(test_a_state_moves_only_while_all_rings_are_stopped),
		ONE(test_a_second_transfer_is_refused_while_one_runs),
		TWO(test_a_pipe_that_nobody_closes_stops_nobody_else),
		ONE(test_a_front_end_that_dies_in_mid_load_is_noticed),
		KILLED(test_a_worker_that_dies_with_a_state_makes_check_fail),
		KILLED(test_a_worker_that_dies_while_it_saves_makes_check_fail),
		KILLED(test_a_worker_that_dies_before_the_reset_has_a_successor_that_sends_it),
		KILLED(test_a_worker_that_dies_behind_the_reset_makes_nobody_hang),
	};

	return cmocka_run_group_tests_name("state", tests, NULL, NULL);
}
