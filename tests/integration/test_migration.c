/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Snapshot and restore through the built programs: the device state and all that
 * may go wrong with it, the transport reset and the quarantine that follow a load,
 * and the dirty log. The orders of messages are those of crosvm, cloud-hypervisor
 * and QEMU, see tests/frontend/guest.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"

#define LIMIT SETUP_LIMIT
#define PORT  1234u
#define KIB   1024u
#define PAGE  4096u

/* Long enough for whatever is on its way, short enough to be had often. */
#define QUIET 60

/* What a state says of its source, and where: written down a second time. */
enum { HAD_DRIVER = 1, HAD_EVENT_RING = 2 };
enum {
	AT_VERSION = 8,
	AT_LENGTH = 12,
	AT_CID = 16,
	AT_FEATURES = 24,
	AT_FLAGS = 32,
	AT_COUNT = 36
};
#define EMPTY_LEN 44 /* of a state without connections */

#define SAVE 0
#define LOAD 1
#define GOOD 0
#define BAD  1

static uint8_t state_bytes[64 * KIB];

static int end(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
	assert_false(daemon_log_has(&setup->daemon, "not believed"));
	return setup_end(state);
}

/* ---- the transfer of a state ---- */

/* Our end of the channel and the answer, which is to be one of the two that there are. */
static int open_transfer(struct vhost *vhost, uint32_t direction, bool is_socket,
			 uint64_t *ret_answer)
{
	uint32_t payload[2] = {direction, 0};
	int fds[2], theirs = direction == LOAD ? 0 : 1;

	if (is_socket)
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	else
		assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(vhost_ask(vhost, VHOST_SET_DEVICE_STATE_FD, payload, sizeof(payload),
				   &fds[theirs], 1, ret_answer, sizeof(*ret_answer), NULL),
			 0);
	close(fds[theirs]);
	return fds[!theirs];
}

static int begin_transfer(struct vhost *vhost, uint32_t direction, bool is_socket)
{
	uint64_t answer;
	int fd = open_transfer(vhost, direction, is_socket, &answer);

	assert_int_equal(answer, 0x100);
	return fd;
}

static uint64_t check_state(struct vhost *vhost)
{
	uint64_t value = UINT64_MAX;

	assert_int_equal(vhost_get_u64(vhost, VHOST_CHECK_DEVICE_STATE, &value), 0);
	return value;
}

static size_t read_to_end(int fd)
{
	int64_t deadline = deadline_in(LIMIT);
	size_t len = 0;
	ssize_t n = -1;

	while (n != 0) {
		assert_int_equal(socket_wait(fd, POLLIN, deadline), 0);
		n = read(fd, state_bytes + len, sizeof(state_bytes) - len);
		assert_true(n >= 0);
		len += (size_t)n;
	}
	close(fd);
	return len;
}

static size_t save(struct vhost *vhost, bool is_socket)
{
	size_t len = read_to_end(begin_transfer(vhost, SAVE, is_socket));

	assert_int_equal(check_state(vhost), GOOD);
	return len;
}

/* Write, close, CHECK: its answer. A reader that has had enough is nothing to complain of. */
static uint64_t load_through(struct vhost *vhost, const uint8_t *bytes, size_t len, bool is_socket)
{
	int fd = begin_transfer(vhost, LOAD, is_socket);
	size_t n_written = 0;
	ssize_t n = 0;

	while (n_written < len && n >= 0) {
		n = is_socket ? send(fd, bytes + n_written, len - n_written, MSG_NOSIGNAL)
			      : write(fd, bytes + n_written, len - n_written);
		n_written += n > 0 ? (size_t)n : 0;
	}
	close(fd);
	return check_state(vhost);
}

static uint64_t load(struct vhost *vhost, const uint8_t *bytes, size_t len)
{
	return load_through(vhost, bytes, len, false);
}

static void put32(uint8_t *place, uint32_t value)
{
	memcpy(place, &value, sizeof(value));
}

static uint32_t get32(const uint8_t *place)
{
	uint32_t value;

	memcpy(&value, place, sizeof(value));
	return value;
}

static uint64_t get64(const uint8_t *place)
{
	uint64_t value;

	memcpy(&value, place, sizeof(value));
	return value;
}

/* CRC-32 of IEEE 802.3, over all but the last 4 bytes, into these. */
static void seal(uint8_t *bytes, size_t len)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < len - 4; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ UINT32_C(0xedb88320) : crc >> 1;
	}
	put32(bytes + len - 4, ~crc);
}

/* ---- guests ---- */

#define RESTORABLE                                                                                 \
	(BIT64(VHOST_PROTOCOL_MQ) | BIT64(VHOST_PROTOCOL_REPLY_ACK) |                              \
	 BIT64(VHOST_PROTOCOL_CONFIG) | BIT64(VHOST_PROTOCOL_RESET_DEVICE) |                       \
	 BIT64(VHOST_PROTOCOL_LOG_SHMFD) | BIT64(VHOST_PROTOCOL_DEVICE_STATE))

/* As crosvm; with RESET_DEVICE and the dirty log, which crosvm itself does not know. */
static struct guest *start_guest(struct setup *setup)
{
	return setup_guest(setup, 0,
			   (struct guest_options){
				   .style = GUEST_LIKE_CROSVM,
				   .protocol_features = RESTORABLE,
				   .is_prefilled = true,
				   .holds_events = true,
			   });
}

static bool has_reset(void *context)
{
	const struct guest *guest = context;

	return guest->n_transport_resets > 0;
}

static void wait_reset(struct guest *guest)
{
	assert_int_equal(guest_wait_until(guest, has_reset, guest, LIMIT), 0);
	assert_int_equal(guest->n_transport_resets, 1);
}

static void assert_no_more_resets(struct guest *guest, uint64_t n)
{
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(guest->n_transport_resets, n);
}

/* The answer, of which crosvm asks for none, says that all rings run. */
static void resume(struct guest *guest)
{
	uint64_t features;

	assert_int_equal(guest_resume(guest), 0);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
}

/* Stopped, saved, and the VMM gone. */
static size_t snapshot(struct guest *guest)
{
	size_t len;

	assert_int_equal(guest_stop(guest), 0);
	len = save(&guest->vhost, false);
	guest_detach(guest);
	return len;
}

/* A VMM that loads this state; its rings are still to be started. */
static void restore(struct setup *setup, struct guest *guest, const uint8_t *bytes, size_t len)
{
	assert_int_equal(guest_attach(guest, setup->sockets[0], bytes, len), 0);
	assert_int_equal(guest->n_transport_resets, 0);
}

/* As a driver that handles the reset: its connections go, then the buffer comes back. */
static void answer_reset(struct guest *guest)
{
	assert_int_equal(guest_answer_events(guest), 0);
}

/* A guest that lived, was saved, restored, and has got its reset but did not handle it. */
static struct guest *start_quarantined(struct setup *setup)
{
	struct guest *guest = start_guest(setup);
	size_t len = snapshot(guest);

	restore(setup, guest, state_bytes, len);
	resume(guest);
	wait_reset(guest);
	return guest;
}

/* ---- host programs that call the guest ---- */

#define EARLY_LEN 3000

struct program {
	struct host_stream stream;
	uint32_t port;
	uint8_t early[EARLY_LEN]; /* sent behind CONNECT, without waiting for the answer */
};

static void program_call(struct setup *setup, struct guest *guest, struct program *program,
			 uint32_t port)
{
	*program = (struct program){.port = port};
	assert_int_equal(guest_listen(guest, port), 0);
	pattern_fill(program->early, EARLY_LEN, port, 0);
	host_stream_init(&program->stream, host_connect(setup->uds_paths[0], port, LIMIT));
	assert_true(program->stream.watch.fd >= 0);
	assert_int_equal(host_write(program->stream.watch.fd, program->early, EARLY_LEN, LIMIT), 0);
	guest_watch(guest, &program->stream.watch);
}

static void program_end(struct guest *guest, struct program *program)
{
	guest_unwatch(guest, &program->stream.watch);
	host_stream_end(&program->stream);
	guest_unlisten(guest, program->port);
}

static void assert_held(struct guest *guest, const struct program *program)
{
	assert_null(guest_accept(guest, program->port));
	assert_int_equal(program->stream.n_received, 0);
	assert_false(program->stream.is_ended);
	assert_int_equal(program->stream.error, 0);
}

static bool has_answer(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error ||
	       (stream->n_received > 0 &&
		memchr(stream->received, '\n', stream->n_received) != NULL);
}

static bool has_ended(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error;
}

/* The guest's end, once all that was sent early is there. */
static void assert_served(struct guest *guest, struct program *program)
{
	struct guest_connection *connection = guest_accept_wait(guest, program->port, LIMIT);
	uint8_t bytes[EARLY_LEN];
	uint32_t port;

	if (!connection)
		fail_msg("port %u is not served; host program: %s", program->port,
			 program->stream.is_ended || program->stream.error ? "sent away" : "waits");
	assert_int_equal(guest_receive_all(connection, bytes, EARLY_LEN, LIMIT), EARLY_LEN);
	assert_memory_equal(bytes, program->early, EARLY_LEN);
	assert_int_equal(guest_wait_until(guest, has_answer, &program->stream, LIMIT), 0);
	assert_int_equal(host_stream_take_ok(&program->stream, &port), 1);
	assert_int_equal(port, connection->peer_port);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	program_end(guest, program);
}

/* A program calls, and is served at once. */
static void assert_serves(struct setup *setup, struct guest *guest)
{
	struct program program;

	program_call(setup, guest, &program, 5555);
	assert_served(guest, &program);
}

/* ---- guest programs that call the host ---- */

struct bytes_at_host {
	const struct host_stream *stream;
	size_t n;
};

static bool has_bytes(void *context)
{
	const struct bytes_at_host *wanted = context;

	return wanted->stream->n_received >= wanted->n || wanted->stream->is_ended;
}

/* Some bytes each way over a connection that stands. */
static void exchange(struct guest_connection *connection, struct host_stream *stream, size_t len)
{
	static uint8_t up[64 * KIB], down[64 * KIB], got[64 * KIB];
	size_t before = stream->n_received;
	struct bytes_at_host wanted = {stream, before + len};

	assert_true(len <= sizeof(up));
	pattern_fill(up, len, 7, before);
	pattern_fill(down, len, 8, before);
	host_stream_send(stream, down, len, false);
	assert_int_equal(guest_send_all(connection, up, len, LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, got, len, LIMIT), len);
	assert_memory_equal(got, down, len);
	assert_int_equal(guest_wait_until(connection->guest, has_bytes, &wanted, LIMIT), 0);
	assert_int_equal(stream->n_received, before + len);
	assert_memory_equal(stream->received + before, up, len);
}

/* A new connection from guest to host works from beginning to end. */
static void assert_connects(struct setup *setup, size_t vm)
{
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, vm, PORT, &stream);

	exchange(connection, &stream, 20000);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, vm, &stream);
}

/* CPU time of all processes of vsockd so far, in clock ticks of 10 ms. */
static unsigned long cpu_ticks(const struct setup *setup)
{
	pid_t pids[DAEMON_PIDS_MAX];
	size_t n = daemon_pids(&setup->daemon, pids);
	unsigned long total = 0;

	for (size_t i = 0; i < n; i++) {
		unsigned long user, system;
		char path[64];
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/stat", pids[i]);
		file = fopen(path, "r");
		assert_non_null(file);
		assert_int_equal(fscanf(file,
					"%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u "
					"%lu %lu",
					&user, &system),
				 2);
		fclose(file);
		total += user + system;
	}
	return total;
}

/* Over a time in which one that spins would use 40 ticks; the start of a spare uses some. */
static void assert_nobody_spins(const struct setup *setup)
{
	unsigned long before = cpu_ticks(setup);

	poll(NULL, 0, 400);
	/* Less than before when a worker that was dismissed has ended meanwhile. */
	assert_true(cpu_ticks(setup) <= before + 20);
}

/* ---- saving ---- */

static void test_a_state_says_what_its_source_was(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct host_stream stream;
	struct guest_connection *connection;
	size_t len;

	assert_int_equal(guest_stop(guest), 0);
	assert_int_equal(save(&guest->vhost, false), EMPTY_LEN);
	assert_memory_equal(state_bytes, "vsockd", 6);
	assert_int_equal(get32(state_bytes + AT_VERSION), 1);
	assert_int_equal(get32(state_bytes + AT_LENGTH), EMPTY_LEN);
	assert_int_equal(get64(state_bytes + AT_CID), setup_cid(0));
	assert_int_equal(get64(state_bytes + AT_FEATURES), guest->vhost.features);
	assert_int_equal(get32(state_bytes + AT_FLAGS), HAD_DRIVER | HAD_EVENT_RING);
	assert_int_equal(get32(state_bytes + AT_COUNT), 0);

	resume(guest);
	connection = setup_connect(setup, 0, PORT, &stream);
	assert_int_equal(guest_stop(guest), 0);
	len = save(&guest->vhost, false);
	assert_int_equal(len, EMPTY_LEN + 16);
	assert_int_equal(get32(state_bytes + AT_COUNT), 1);
	assert_int_equal(get32(state_bytes + 40), connection->port);
	assert_int_equal(get32(state_bytes + 44), PORT);
	assert_int_equal(get32(state_bytes + 48), PACKET_STREAM);

	resume(guest);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_a_device_without_a_driver_says_so(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);

	assert_int_equal(guest_reset(guest), 0);
	save(&guest->vhost, false);
	assert_int_equal(get32(state_bytes + AT_FLAGS), 0);
}

static void test_a_front_end_that_keeps_the_event_queue_is_noticed(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	assert_int_equal(guest_stop(guest), 0);
	save(&guest->vhost, false);
	assert_int_equal(get32(state_bytes + AT_FLAGS), HAD_DRIVER);
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

		exchange(connection, &stream, 30000);
		for (size_t n = 0; n < 4; n++) {
			assert_int_equal(guest_stop(guest), 0);
			assert_int_equal(
				save(&guest->vhost, styles[i] == GUEST_LIKE_CLOUD_HYPERVISOR),
				EMPTY_LEN + 16);
			resume(guest);
			exchange(connection, &stream, 30000);
		}
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		setup_end_stream(setup, 0, &stream);
		assert_connects(setup, 0);
		assert_serves(setup, guest);
		assert_int_equal(guest->n_transport_resets, 0);
		setup_end_guest(setup, 0);
	}
}

static void test_what_host_programs_sent_while_a_state_was_saved_is_not_lost(void **state)
{
	static uint8_t bytes[200 * KIB], got[200 * KIB];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);
	struct program program;

	assert_int_equal(guest_stop(guest), 0);
	pattern_fill(bytes, sizeof(bytes), 3, 0);
	host_stream_send(&stream, bytes, sizeof(bytes), false);
	program_call(setup, guest, &program, 77);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_held(guest, &program);
	save(&guest->vhost, false);
	resume(guest);
	assert_int_equal(guest_receive_all(connection, got, sizeof(got), LIMIT), sizeof(got));
	assert_memory_equal(got, bytes, sizeof(got));
	assert_served(guest, &program);
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

static int begin_tight_save(struct vhost *vhost)
{
	uint32_t payload[2] = {SAVE, 0};
	uint64_t answer;
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(fcntl(fds[1], F_SETPIPE_SZ, PAGE), PAGE);
	assert_int_equal(vhost_ask(vhost, VHOST_SET_DEVICE_STATE_FD, payload, sizeof(payload),
				   &fds[1], 1, &answer, sizeof(answer), NULL),
			 0);
	assert_int_equal(answer, 0x100);
	close(fds[1]);
	return fds[0];
}

static void test_a_reader_that_does_not_read_stops_nobody_else(void **state)
{
	static int fds[MANY];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	uint64_t features;
	int fd;

	setup_guest(setup, 1, (struct guest_options){0});
	connect_many(setup, fds);
	assert_int_equal(guest_stop(guest), 0);
	fd = begin_tight_save(&guest->vhost);
	assert_connects(setup, 1);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
	assert_int_equal(read_to_end(fd), EMPTY_LEN + 16 * MANY);
	assert_int_equal(check_state(&guest->vhost), GOOD);

	/* And one that never will. */
	fd = begin_tight_save(&guest->vhost);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
	setup_end_guest(setup, 0);
	assert_connects(setup, 1);
	close(fd);
	close_many(fds);
}

/* A saving that never ends is no reason to hold anybody once the rings run again. */
static void test_a_front_end_that_asks_no_further_is_not_held_up(void **state)
{
	static int fds[MANY];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	int fd;

	connect_many(setup, fds);
	assert_int_equal(guest_stop(guest), 0);
	fd = begin_tight_save(&guest->vhost);
	resume(guest);
	assert_connects(setup, 0);
	assert_serves(setup, guest);
	close(fd);
	close_many(fds);
}

static void test_a_reader_that_leaves_makes_the_saving_fail(void **state)
{
	static int fds[MANY];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);

	connect_many(setup, fds);
	assert_int_equal(guest_stop(guest), 0);
	close(begin_tight_save(&guest->vhost));
	assert_int_equal(check_state(&guest->vhost), BAD);
	assert_true(daemon_log_has(&setup->daemon, "the pipe broke"));
	assert_int_equal(save(&guest->vhost, false), EMPTY_LEN + 16 * MANY);
	close_many(fds);
}

/* ---- loading ---- */

static void test_a_saved_guest_is_reset_in_another_process(void **state)
{
	struct setup *setup = *state, *destination = calloc(1, sizeof(*destination));
	struct guest *guest = start_guest(setup);
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);
	uint64_t count, n_kicks;
	size_t len;
	int kick;

	assert_non_null(destination);
	setup_start(destination, 1, NULL, NULL);
	len = snapshot(guest);
	assert_int_equal(host_wait_end(stream.watch.fd, LIMIT), 0);
	assert_int_equal(guest_attach(guest, destination->sockets[0], state_bytes, len), 0);

	/* No kick in sight, neither a new one nor one from before. */
	kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	close(guest->rings[GUEST_EVENT].kick);
	guest->rings[GUEST_EVENT].kick = kick;
	n_kicks = guest->rings[GUEST_EVENT].n_kicks;
	resume(guest);
	wait_reset(guest);
	assert_int_equal(guest->rings[GUEST_EVENT].n_kicks, n_kicks);
	assert_int_equal(read(kick, &count, sizeof(count)), -1);

	/* The connection that the state spoke of ends without the driver's doing. */
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
	answer_reset(guest);
	assert_serves(destination, guest);
	assert_no_more_resets(guest, 1);
	setup_end_stream(setup, 0, &stream);
	setup_end_guest(setup, 0);
	setup_stop(destination);
	free(destination);
}

static void test_a_state_is_loaded_through_a_socket_as_well(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len = snapshot(guest);

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	assert_int_equal(load_through(&guest->vhost, state_bytes, len, true), GOOD);
	resume(guest);
	wait_reset(guest);
	answer_reset(guest);
	assert_serves(setup, guest);
}

static void test_host_programs_of_every_moment_are_served_after_the_reset(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	static struct program before, between, during, after;
	size_t len = snapshot(guest);

	restore(setup, guest, state_bytes, len);
	program_call(setup, guest, &before, 100);
	assert_int_equal(guest_resume(guest), 0);
	program_call(setup, guest, &between, 101);
	wait_reset(guest);
	program_call(setup, guest, &during, 102);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_held(guest, &before);
	assert_held(guest, &between);
	assert_held(guest, &during);

	answer_reset(guest);
	program_call(setup, guest, &after, 103);
	assert_served(guest, &after);
	assert_served(guest, &before);
	assert_served(guest, &between);
	assert_served(guest, &during);
	assert_no_more_resets(guest, 1);
}

static void test_a_host_program_that_calls_in_mid_load_is_held(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct program program;
	size_t len = snapshot(guest);
	int fd;

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	fd = begin_transfer(&guest->vhost, LOAD, false);
	program_call(setup, guest, &program, 100);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_held(guest, &program);
	assert_int_equal(write(fd, state_bytes, len), len);
	close(fd);
	assert_int_equal(check_state(&guest->vhost), GOOD);
	resume(guest);
	wait_reset(guest);
	answer_reset(guest);
	assert_served(guest, &program);
}

static void test_requests_of_the_guest_wait_for_the_end_of_the_quarantine(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_quarantined(setup);
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
	struct guest *guest = start_guest(setup);
	struct guest_connection *connection;
	struct host_stream stream;
	size_t len;

	/* The state is of an earlier time than the connection. */
	assert_int_equal(guest_stop(guest), 0);
	len = save(&guest->vhost, false);
	resume(guest);
	connection = setup_connect(setup, 0, PORT, &stream);
	assert_int_equal(guest_stop(guest), 0);
	guest_detach(guest);
	restore(setup, guest, state_bytes, len);
	resume(guest);
	wait_reset(guest);
	assert_int_equal(connection->state, GUEST_ESTABLISHED);
	assert_int_equal(guest_send(connection, "late", 4), 4);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_the_configuration_ends_a_quarantine_only_behind_the_event(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct program program;
	size_t len = snapshot(guest);

	restore(setup, guest, state_bytes, len);
	program_call(setup, guest, &program, 100);
	assert_int_equal(guest_read_cid(guest), 0);
	resume(guest);
	wait_reset(guest);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_held(guest, &program);
	assert_int_equal(guest_read_cid(guest), 0);
	assert_served(guest, &program);
}

static void take_back_event_buffers(struct guest *guest)
{
	ring_reset(&guest->rings[GUEST_EVENT]);
	guest->base[GUEST_EVENT] = guest->stopped_idx[GUEST_EVENT] = 0;
}

static void test_an_empty_event_ring_gets_its_reset_when_a_buffer_comes(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct ring_buffer buffer = {.len = 4, .is_writable = true};
	struct program program;
	size_t len = snapshot(guest);

	take_back_event_buffers(guest);
	restore(setup, guest, state_bytes, len);
	resume(guest);
	program_call(setup, guest, &program, 100);
	assert_no_more_resets(guest, 0);
	assert_int_equal(guest_read_cid(guest), 0);
	assert_held(guest, &program);
	assert_nobody_spins(setup);

	buffer.guest_address = guest->event_address;
	assert_int_equal(ring_add(&guest->rings[GUEST_EVENT], &buffer, 1, 0, 0), 0);
	ring_submit(&guest->rings[GUEST_EVENT]);
	wait_reset(guest);
	assert_held(guest, &program);
	answer_reset(guest);
	assert_served(guest, &program);
	assert_no_more_resets(guest, 1);
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
	struct guest *guest = start_guest(setup);
	struct ring *ring = &guest->rings[GUEST_EVENT];
	struct ring_buffer buffers[] = {
		{.guest_address = guest->event_address, .len = 3, .is_writable = true},
		{.guest_address = guest->event_address, .len = 4},
		{.guest_address = guest->event_address, .len = 1, .is_writable = true},
		{.guest_address = guest->event_address + 8, .len = 7, .is_writable = true},
	};
	size_t len = snapshot(guest);

	take_back_event_buffers(guest);
	memset(memory_at(&guest->memory, guest->event_address), 0xee, 64);
	assert_int_equal(ring_add(ring, &buffers[0], 1, 0, 0), 0);
	assert_int_equal(ring_add(ring, &buffers[1], 1, 0, 1), 0);
	ring_submit(ring);
	restore(setup, guest, state_bytes, len);
	resume(guest);
	assert_comes_back(ring, 0, 0);
	assert_comes_back(ring, 1, 0);
	assert_nobody_spins(setup);
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
	struct guest *guest = start_guest(setup);
	struct ring_buffer buffer = {
		.guest_address = guest->event_address,
		.len = 4,
		.is_writable = true,
	};
	struct program program;
	size_t len = snapshot(guest);

	restore(setup, guest, state_bytes, len);
	resume(guest);
	assert_int_equal(vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_KICK, GUEST_EVENT, -1),
			 0);
	wait_reset(guest);
	program_call(setup, guest, &program, 100);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_held(guest, &program);
	assert_int_equal(ring_add(&guest->rings[GUEST_EVENT], &buffer, 1, 0, 7), 0);
	ring_submit(&guest->rings[GUEST_EVENT]);
	assert_served(guest, &program);
}

static void test_each_load_is_followed_by_one_reset(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);

	for (size_t i = 0; i < 3; i++) {
		size_t len = snapshot(guest);

		guest->n_transport_resets = 0;
		restore(setup, guest, state_bytes, len);
		resume(guest);
		wait_reset(guest);
		answer_reset(guest);
		assert_serves(setup, guest);
		/* Stopping and starting is no second reason. */
		assert_int_equal(guest_stop(guest), 0);
		resume(guest);
		assert_no_more_resets(guest, 1);
		assert_serves(setup, guest);
	}
}

static void test_rings_may_stop_and_start_within_a_quarantine(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_quarantined(setup);
	struct program program;

	program_call(setup, guest, &program, 100);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(guest_stop(guest), 0);
		resume(guest);
		assert_no_more_resets(guest, 1);
		assert_held(guest, &program);
	}
	answer_reset(guest);
	assert_served(guest, &program);
}

static void test_a_saved_quarantine_becomes_a_quarantine_again(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_quarantined(setup);
	size_t len = snapshot(guest);

	assert_int_equal(get32(state_bytes + AT_FLAGS), HAD_DRIVER | HAD_EVENT_RING);
	guest->n_transport_resets = 0;
	restore(setup, guest, state_bytes, len);
	resume(guest);
	wait_reset(guest);
	answer_reset(guest);
	assert_serves(setup, guest);
}

static void test_a_source_without_a_driver_owes_no_reset(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len;

	assert_int_equal(guest_reset(guest), 0);
	len = save(&guest->vhost, false);
	guest_detach(guest);
	restore(setup, guest, state_bytes, len);
	resume(guest);
	assert_serves(setup, guest);
	assert_connects(setup, 0);
	assert_no_more_resets(guest, 0);
}

static void test_an_empty_state_assumes_that_a_driver_lived(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct program program;

	assert_int_equal(guest_stop(guest), 0);
	guest_detach(guest);
	restore(setup, guest, state_bytes, 0);
	program_call(setup, guest, &program, 100);
	resume(guest);
	wait_reset(guest);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_held(guest, &program);
	answer_reset(guest);
	assert_served(guest, &program);
	assert_no_more_resets(guest, 1);
}

static void test_a_front_end_that_keeps_the_event_queue_waits_for_nothing(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct program program;
	size_t len;

	/* With a state that knows of it, and with one that knows nothing. */
	for (size_t i = 0; i < 2; i++) {
		len = snapshot(guest);
		restore(setup, guest, state_bytes, i == 0 ? len : 0);
		program_call(setup, guest, &program, 100);
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_held(guest, &program);
		resume(guest);
		assert_served(guest, &program);
		assert_connects(setup, 0);
	}
}

static void test_a_front_end_that_drops_the_event_queue_is_not_waited_for_long(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct program program;
	size_t len = snapshot(guest);

	assert_int_equal(get32(state_bytes + AT_FLAGS), HAD_DRIVER | HAD_EVENT_RING);
	restore(setup, guest, state_bytes, len);
	guest->n_rings = 2;
	program_call(setup, guest, &program, 100);
	resume(guest);
	assert_served(guest, &program);
	guest->n_rings = 3;
}

/* Rings 0 and 1 ran, the decision about ring 2 is due, and they are stopped again. */
static void test_a_decision_that_waits_costs_nothing_while_the_rings_are_stopped(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct program program;
	size_t len = snapshot(guest);

	restore(setup, guest, state_bytes, len);
	guest->n_rings = 2;
	resume(guest);
	assert_int_equal(guest_stop(guest), 0);
	program_call(setup, guest, &program, 100);
	poll(NULL, 0, 1100); /* more than such a decision is put off */
	assert_nobody_spins(setup);
	guest->n_rings = 3;
	resume(guest);
	wait_reset(guest);
	assert_held(guest, &program);
	answer_reset(guest);
	assert_served(guest, &program);
}

static void test_a_device_reset_cancels_what_a_load_left_to_do(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len = snapshot(guest);

	/* Before the rings run, and while the driver is to handle the event. */
	for (size_t i = 0; i < 2; i++) {
		guest->n_transport_resets = 0;
		restore(setup, guest, state_bytes, len);
		if (i == 1) {
			resume(guest);
			wait_reset(guest);
		}
		assert_int_equal(guest_reset(guest), 0);
		resume(guest);
		assert_serves(setup, guest);
		assert_connects(setup, 0);
		assert_no_more_resets(guest, i);
		assert_int_equal(guest_stop(guest), 0);
		guest_detach(guest);
	}
}

static void test_a_device_reset_ends_a_load_that_is_under_way(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len = snapshot(guest);
	int fd;

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	fd = begin_transfer(&guest->vhost, LOAD, false);
	assert_int_equal(guest_reset(guest), 0);
	if (write(fd, state_bytes, len) < 0)
		assert_int_equal(errno, EPIPE);
	close(fd);
	assert_int_equal(check_state(&guest->vhost), BAD);
	resume(guest);
	assert_serves(setup, guest);
	assert_connects(setup, 0);
	assert_no_more_resets(guest, 0);
}

static void test_the_end_of_a_session_cancels_what_a_load_left_to_do(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len = snapshot(guest);

	restore(setup, guest, state_bytes, len);
	guest_detach(guest);
	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	resume(guest);
	assert_serves(setup, guest);
	assert_connects(setup, 0);
	assert_no_more_resets(guest, 0);
}

static void test_stopping_and_starting_alone_gates_nothing(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct program program;

	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(guest_stop(guest), 0);
		program_call(setup, guest, &program, 100);
		resume(guest);
		assert_served(guest, &program);
		assert_connects(setup, 0);
	}
	assert_no_more_resets(guest, 0);
}

static void test_the_cid_of_the_destination_holds(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct guest_connection *connection;
	size_t len = snapshot(guest);
	uint32_t port;
	int fd;

	guest->options.cid = setup_cid(1);
	assert_int_equal(guest_attach(guest, setup->sockets[1], state_bytes, len), 0);
	resume(guest);
	wait_reset(guest);
	answer_reset(guest);
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

/* The same session, with connections that live: they belonged to another time. */
static void test_a_load_ends_the_connections_that_lived(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len;

	/* Of 8 connections, none stays in use. */
	for (size_t i = 0; i < 4; i++) {
		struct guest_connection *connections[4];
		struct host_stream streams[4];

		for (uint32_t k = 0; k < 4; k++)
			connections[k] = setup_connect(setup, 0, PORT + k, &streams[k]);
		assert_int_equal(guest_stop(guest), 0);
		len = save(&guest->vhost, false);
		assert_int_equal(load(&guest->vhost, state_bytes, len), GOOD);
		guest->n_transport_resets = 0;
		resume(guest);
		wait_reset(guest);
		for (uint32_t k = 0; k < 4; k++) {
			assert_int_equal(guest_wait_state(connections[k], GUEST_CLOSED, LIMIT), 0);
			assert_int_equal(guest_wait_until(guest, has_ended, &streams[k], LIMIT), 0);
			guest_forget(connections[k]);
			setup_end_stream(setup, 0, &streams[k]);
		}
		answer_reset(guest);
	}
	assert_serves(setup, guest);
}

static int start_with_eight_connections(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	if (!*state)
		return -1;
	setup_start(*state, 1, "max-connections=8", NULL);
	return 0;
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
	len = save(&guest->vhost, false);
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
	resume(guest);
	assert_serves(setup, guest);
	assert_connects(setup, 0);
	assert_no_more_resets(guest, 0);
}

static void test_a_truncated_state_is_refused(void **state)
{
	static uint8_t good[256];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len = make_state(setup, guest);

	memcpy(good, state_bytes, len);
	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	for (size_t i = 1; i < len; i++)
		assert_int_equal(load(&guest->vhost, good, i), BAD);
	assert_true(daemon_log_has(&setup->daemon, "state refused: not a state of vsockd"));
	assert_unharmed(setup, guest);
}

static void test_a_state_with_a_flipped_bit_is_refused(void **state)
{
	static uint8_t bent[256];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len = make_state(setup, guest);

	memcpy(bent, state_bytes, len);
	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	for (size_t i = 0; i < 8 * len; i++) {
		bent[i / 8] ^= (uint8_t)(1 << i % 8);
		assert_int_equal(load(&guest->vhost, bent, len), BAD);
		bent[i / 8] ^= (uint8_t)(1 << i % 8);
	}
	assert_unharmed(setup, guest);
}

static void test_a_state_that_is_not_for_us_is_refused_with_a_reason(void **state)
{
	static uint8_t bent[256], garbage[1 << 20];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
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
		{AT_FEATURES + 4, 1u << 2 | 1, "state refused: features 0x400000000 "},
	};
	size_t len = make_state(setup, guest);

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memcpy(bent, state_bytes, len);
		put32(bent + cases[i].at, cases[i].value);
		if (cases[i].at == AT_FEATURES)
			put32(bent + AT_FEATURES + 4, 0);
		if (cases[i].at == AT_FEATURES + 4)
			put32(bent + AT_FEATURES, 0);
		seal(bent, len);
		assert_int_equal(load(&guest->vhost, bent, len), BAD);
		assert_int_equal(daemon_wait_log(&setup->daemon, cases[i].reason, LIMIT), 0);
	}
	pattern_fill(garbage, sizeof(garbage), 5, 0);
	assert_int_equal(load(&guest->vhost, garbage, sizeof(garbage)), BAD);
	assert_int_equal(load(&guest->vhost, garbage, 100), BAD);
	/* A byte more than it says. */
	assert_int_equal(load(&guest->vhost, state_bytes, len + 1), BAD);
	/* And the good one still is. */
	assert_int_equal(load(&guest->vhost, state_bytes, len), GOOD);
	assert_unharmed(setup, guest);
}

static void test_a_load_that_failed_leaves_living_connections_alone(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);

	for (size_t i = 0; i < 3; i++) {
		size_t len;

		assert_int_equal(guest_stop(guest), 0);
		len = save(&guest->vhost, false);
		put32(state_bytes + AT_FEATURES, 8);
		seal(state_bytes, len);
		assert_int_equal(load(&guest->vhost, state_bytes, len), BAD);
		assert_int_equal(load(&guest->vhost, (const uint8_t *)"garbage", 7), BAD);
		resume(guest);
		exchange(connection, &stream, 30000);
	}
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	assert_serves(setup, guest);
	assert_connects(setup, 0);
	assert_no_more_resets(guest, 0);
}

static void test_a_check_without_a_transfer_fails(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);

	assert_int_equal(check_state(&guest->vhost), BAD);
	assert_connects(setup, 0);
}

static void test_a_state_moves_only_while_all_rings_are_stopped(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	uint64_t answer;

	for (uint32_t direction = SAVE; direction <= LOAD; direction++) {
		close(open_transfer(&guest->vhost, direction, false, &answer));
		assert_int_equal(answer, 0x101);
	}
	assert_true(daemon_log_has(&setup->daemon, "SET_DEVICE_STATE_FD: a ring is started"));
	assert_connects(setup, 0);
}

static void test_a_second_transfer_is_refused_while_one_runs(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	size_t len = snapshot(guest);
	uint64_t answer;
	int fd;

	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	fd = begin_transfer(&guest->vhost, LOAD, false);
	for (uint32_t direction = SAVE; direction <= LOAD; direction++) {
		close(open_transfer(&guest->vhost, direction, true, &answer));
		assert_int_equal(answer, 0x101);
	}
	assert_int_equal(write(fd, state_bytes, len), len);
	close(fd);
	assert_int_equal(check_state(&guest->vhost), GOOD);
	resume(guest);
	wait_reset(guest);
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
	struct guest *guest = start_guest(setup);
	uint64_t features, answer;
	size_t len = snapshot(guest);
	int fd;

	setup_guest(setup, 1, (struct guest_options){0});
	assert_int_equal(guest_attach(guest, setup->sockets[0], NULL, 0), 0);
	fd = begin_transfer(&guest->vhost, LOAD, false);
	assert_int_equal(write(fd, state_bytes, len), len);
	assert_connects(setup, 1);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);

	/* CHECK is answered when there is an answer. */
	send_check(&guest->vhost);
	assert_connects(setup, 1);
	assert_int_equal(socket_wait(guest->vhost.fd, POLLIN, deadline_in(QUIET)), -ETIMEDOUT);
	assert_nobody_spins(setup);
	close(fd);
	assert_int_equal(vhost_receive(&guest->vhost, VHOST_CHECK_DEVICE_STATE, &answer,
				       sizeof(answer), NULL),
			 sizeof(answer));
	assert_int_equal(answer, GOOD);
	resume(guest);
	wait_reset(guest);
}

/* The channel outlives it in other hands, behind CHECK or before it. */
static void test_a_front_end_that_dies_in_mid_load_is_noticed(void **state)
{
	struct setup *setup = *state;

	for (size_t i = 0; i < 2; i++) {
		struct guest *guest = start_guest(setup);
		int fd;

		assert_int_equal(guest_stop(guest), 0);
		fd = begin_transfer(&guest->vhost, i == 0 ? LOAD : SAVE, false);
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
	struct guest *guest = start_guest(setup);
	uint64_t answer;
	size_t len;
	int fd;

	/* Before CHECK, and behind it; with a load and a saving that never end. */
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(guest_stop(guest), 0);
		len = save(&guest->vhost, false);
		fd = begin_transfer(&guest->vhost, LOAD, false);
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
		assert_int_equal(load(&guest->vhost, state_bytes, len), GOOD);
		guest->n_transport_resets = 0;
		resume(guest);
		wait_reset(guest);
		answer_reset(guest);
		assert_serves(setup, guest);
	}
}

static void test_a_worker_that_dies_while_it_saves_makes_check_fail(void **state)
{
	static int fds[MANY];
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	int fd;

	connect_many(setup, fds);
	assert_int_equal(guest_stop(guest), 0);
	fd = begin_tight_save(&guest->vhost);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	assert_int_equal(check_state(&guest->vhost), BAD);
	close(fd);
	close_many(fds);
	resume(guest);
	assert_serves(setup, guest);
}

static void test_a_worker_that_dies_before_the_reset_has_a_successor_that_sends_it(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct ring_buffer buffer = {.len = 4, .is_writable = true};
	struct program program;
	size_t len = snapshot(guest);

	take_back_event_buffers(guest);
	restore(setup, guest, state_bytes, len);
	resume(guest);
	program_call(setup, guest, &program, 100);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	setup_worker(setup, 0);
	assert_no_more_resets(guest, 0);
	assert_held(guest, &program);
	buffer.guest_address = guest->event_address;
	assert_int_equal(ring_add(&guest->rings[GUEST_EVENT], &buffer, 1, 0, 0), 0);
	ring_submit(&guest->rings[GUEST_EVENT]);
	wait_reset(guest);
	answer_reset(guest);
	assert_served(guest, &program);
	assert_no_more_resets(guest, 1);
}

static void test_a_worker_that_dies_behind_the_reset_makes_nobody_hang(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_quarantined(setup);
	struct program program;

	/* Dead before it could say so, its successor would send another one. */
	assert_int_equal(daemon_wait_log(&setup->daemon, "transport reset sent", LIMIT), 0);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	answer_reset(guest);
	program_call(setup, guest, &program, 100);
	assert_served(guest, &program);
	assert_connects(setup, 0);
	assert_no_more_resets(guest, 1);
}

/* ---- the dirty log ---- */

#define MEMORY_START (UINT64_C(1) << 20)
#define MEMORY_SIZE  (UINT64_C(64) << 20)
#define MEMORY_PAGES ((MEMORY_START + MEMORY_SIZE) / PAGE)
/* One page more than the memory has: for a used ring that is logged elsewhere. */
#define LOG_LEN ((MEMORY_PAGES + 8) / 8)

struct log {
	uint8_t *bits;
	int fd, event;
	uint64_t size;
};

static struct log new_log(uint64_t size)
{
	struct log log = {
		.fd = memfd_create("log", MFD_CLOEXEC),
		.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
		.size = size,
	};

	assert_true(log.fd >= 0 && log.event >= 0);
	assert_int_equal(ftruncate(log.fd, (off_t)size), 0);
	log.bits = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, log.fd, 0);
	assert_ptr_not_equal(log.bits, MAP_FAILED);
	return log;
}

static void end_log(struct log *log)
{
	munmap(log->bits, log->size);
	close(log->fd);
	close(log->event);
}

static bool is_marked(const struct log *log, uint64_t page)
{
	return log->bits[page / 8] >> page % 8 & 1;
}

static size_t count_marked(const struct log *log)
{
	size_t n = 0;

	for (uint64_t page = 0; page < 8 * log->size; page++)
		n += is_marked(log, page);
	return n;
}

static void set_log_flag(struct guest *guest, uint32_t ring, bool is_logged, uint64_t log_address)
{
	struct vhost_ring_address address = ring_addresses(&guest->rings[ring], ring);

	address.flags = is_logged;
	address.log = log_address;
	assert_int_equal(vhost_set_ring_address(&guest->vhost, &address), 0);
}

static void set_log_features(struct guest *guest, bool is_on)
{
	uint64_t features = guest->vhost.features & ~BIT64(VIRTIO_LOG_ALL);

	assert_int_equal(vhost_set_u64(&guest->vhost, VHOST_SET_FEATURES,
				       features | (is_on ? BIT64(VIRTIO_LOG_ALL) : 0)),
			 0);
}

/* As QEMU does it on a device that runs: the log, the feature, the flag of each ring. */
static void start_logging(struct guest *guest, const struct log *log)
{
	assert_int_equal(vhost_set_log(&guest->vhost, log->size, 0, log->fd), 0);
	assert_int_equal(vhost_send(&guest->vhost, VHOST_SET_LOG_FD, NULL, 0, &log->event, 1), 0);
	set_log_features(guest, true);
	for (uint32_t i = 0; i < guest->n_rings; i++)
		set_log_flag(guest, i, true, guest->rings[i].used_address);
	/* Without acks: an answer says that all before it was done. */
	assert_int_equal(guest_enable(guest, true), 0);
}

static bool overlaps_page(uint64_t page, uint64_t address, uint64_t len)
{
	return page * PAGE < address + len && address < (page + 1) * PAGE;
}

static uint64_t used_len(const struct ring *ring)
{
	return 6 + 8 * (uint64_t)ring->size;
}

/* What a device may write to; all but the rx buffers in pages of their own, or nearly. */
static bool is_for_device(const struct guest *guest, uint64_t page)
{
	bool is_any = overlaps_page(page, guest->rx_address,
				    (uint64_t)guest->rx_stride * guest->options.n_rx_buffers) ||
		      overlaps_page(page, guest->event_address, 4 * GUEST_EVENT_BUFFERS);

	for (size_t i = 0; i < guest->n_rings; i++)
		is_any |= overlaps_page(page, guest->rings[i].used_address,
					used_len(&guest->rings[i]));
	return is_any;
}

/* Byte ranges that the driver writes itself are of no interest: they are its own. */
static void forget_drivers_bytes(const struct guest *guest, uint8_t *copy)
{
	for (size_t i = 0; i < guest->n_rings; i++) {
		const struct ring *ring = &guest->rings[i];
		uint64_t at[2] = {ring->descriptors_address, ring->avail_address};
		uint64_t len[2] = {16 * (uint64_t)ring->size, 6 + 2 * (uint64_t)ring->size};

		for (size_t k = 0; k < 2; k++)
			memcpy(copy + (at[k] - MEMORY_START), memory_at(&guest->memory, at[k]),
			       len[k]);
	}
	memcpy(copy + (guest->tx_address - MEMORY_START),
	       memory_at(&guest->memory, guest->tx_address),
	       guest->event_address - guest->tx_address);
}

/* Every page that differs from the copy is marked; what is marked is the device's. */
static void assert_log_complete(const struct guest *guest, const struct log *log, uint8_t *copy)
{
	size_t n_changed = 0;

	forget_drivers_bytes(guest, copy);
	for (uint64_t page = MEMORY_START / PAGE; page < MEMORY_PAGES; page++) {
		const uint8_t *now = memory_at(&guest->memory, page * PAGE);
		bool is_changed = memcmp(now, copy + (page * PAGE - MEMORY_START), PAGE) != 0;

		n_changed += is_changed;
		if (is_changed && !is_marked(log, page))
			fail_msg("page 0x%lx was written and not marked", (unsigned long)page);
		if (is_marked(log, page) && !is_for_device(guest, page))
			fail_msg("page 0x%lx is marked and was not written", (unsigned long)page);
	}
	assert_true(n_changed >= 3);
}

static uint8_t *copy_memory(const struct guest *guest)
{
	uint8_t *copy = malloc(MEMORY_SIZE);

	assert_non_null(copy);
	memcpy(copy, memory_at(&guest->memory, MEMORY_START), MEMORY_SIZE);
	return copy;
}

static struct guest *start_logged(struct setup *setup, uint64_t features,
				  struct guest_layout layout, uint32_t rx_buffer_size)
{
	return setup_guest(
		setup, 0,
		(struct guest_options){
			.style = GUEST_LIKE_CROSVM,
			.protocol_features = RESTORABLE,
			.features = BIT64(VIRTIO_VERSION_1) | features,
			/* used index, its elements and avail_event in pages of their own */
			.queue_size = 1024,
			.rx_buffer_size = rx_buffer_size,
			.n_rx_buffers = 128,
			.rx_layout = layout,
			.is_prefilled = true,
			.holds_events = true,
		});
}

/* More packets than used elements lie in one page, and long ones. */
static void move_small_packets(struct setup *setup)
{
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);

	connection->packet_size = 20;
	for (size_t i = 0; i < 4; i++)
		exchange(connection, &stream, 20000);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_every_page_that_is_written_is_marked(void **state)
{
	static const struct guest_layout layouts[] = {{.n_cuts = 0},
						      {.cuts = {20, 44}, .n_cuts = 2}};
	struct setup *setup = *state;

	for (size_t i = 0; i < 8; i++) {
		uint64_t features = (i & 1 ? BIT64(VIRTIO_EVENT_IDX) : 0) |
				    (i & 2 ? BIT64(VIRTIO_INDIRECT) : 0);
		struct guest_layout layout = layouts[i / 4];
		struct log log = new_log(LOG_LEN);
		struct guest *guest;
		uint64_t count;
		uint8_t *copy;

		/* An indirect table would be the driver's, in the middle of the device's. */
		guest = start_logged(setup, features, layout, i & 1 ? 4096 : 65580);
		copy = copy_memory(guest);
		start_logging(guest, &log);
		move_small_packets(setup);
		assert_serves(setup, guest);
		assert_int_equal(guest_stop(guest), 0);
		assert_log_complete(guest, &log, copy);
		assert_int_equal(read(log.event, &count, sizeof(count)), sizeof(count));
		free(copy);
		setup_end_guest(setup, 0);
		end_log(&log);
	}
}

static void test_bits_that_were_cleared_are_set_again(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);

	start_logging(guest, &log);
	for (size_t i = 0; i < 4; i++) {
		uint8_t *copy = copy_memory(guest);

		memset(log.bits, 0, log.size);
		assert_connects(setup, 0);
		/* At rest, nothing is written behind the back of a front-end. */
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_log_complete(guest, &log, copy);
		free(copy);
	}
	assert_int_equal(guest_stop(guest), 0);
	memset(log.bits, 0, log.size);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(count_marked(&log), 0);
	end_log(&log);
}

static void test_nothing_is_marked_while_logging_is_off(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);
	uint64_t count;

	start_logging(guest, &log);
	set_log_features(guest, false);
	assert_int_equal(guest_enable(guest, true), 0);
	memset(log.bits, 0, log.size);
	while (read(log.event, &count, sizeof(count)) > 0)
		;
	assert_connects(setup, 0);
	assert_serves(setup, guest);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(count_marked(&log), 0);
	assert_int_equal(read(log.event, &count, sizeof(count)), -1);
	set_log_features(guest, true);
	assert_connects(setup, 0);
	assert_true(count_marked(&log) > 0);
	end_log(&log);
}

static void test_a_used_ring_is_logged_where_the_front_end_wants_it(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);

	start_logging(guest, &log);
	/* Ring 0 at a page that is no memory, ring 1 not at all. */
	set_log_flag(guest, GUEST_RX, true, MEMORY_START + MEMORY_SIZE);
	set_log_flag(guest, GUEST_TX, false, guest->rings[GUEST_TX].used_address);
	assert_int_equal(guest_enable(guest, true), 0);
	memset(log.bits, 0, log.size);
	assert_connects(setup, 0);
	assert_true(is_marked(&log, MEMORY_PAGES));
	assert_false(is_marked(&log, guest->rings[GUEST_RX].used_address / PAGE));
	assert_false(is_marked(&log, guest->rings[GUEST_TX].used_address / PAGE));
	assert_true(is_marked(&log, guest->rx_address / PAGE));
	/* An address far beyond any log. */
	set_log_flag(guest, GUEST_RX, true, UINT64_MAX - 7);
	set_log_flag(guest, GUEST_TX, true, UINT64_MAX);
	assert_connects(setup, 0);
	end_log(&log);
}

static void test_a_log_may_be_replaced_while_it_is_in_use(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);

	start_logging(guest, &log);
	for (size_t i = 0; i < 3; i++) {
		struct log next = new_log(LOG_LEN + i);
		uint8_t *copy;

		assert_int_equal(vhost_set_log(&guest->vhost, next.size, 0, next.fd), 0);
		memset(log.bits, 0, log.size);
		copy = copy_memory(guest);
		assert_connects(setup, 0);
		assert_log_complete(guest, &next, copy);
		assert_int_equal(count_marked(&log), 0);
		free(copy);
		end_log(&log);
		log = next;
	}
	end_log(&log);
}

static void test_a_log_that_is_too_small_is_not_left(void **state)
{
	static const struct {
		uint64_t size, offset;
	} cases[] = {
		{1, 0},
		{1, PAGE - 1},
		{7, 24},
		/* The first rx buffers still fit, and the rest does not. */
		{MEMORY_START / PAGE / 8 + 8, PAGE - 13},
	};
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct log log = new_log(4 * PAGE);

		assert_int_equal(
			vhost_set_log(&guest->vhost, cases[i].size, cases[i].offset, log.fd), 0);
		start_logging(guest, &log);
		assert_int_equal(
			vhost_set_log(&guest->vhost, cases[i].size, cases[i].offset, log.fd), 0);
		memset(log.bits, 0, log.size);
		assert_connects(setup, 0);
		assert_serves(setup, guest);
		for (uint64_t k = 0; k < log.size; k++)
			if (k < cases[i].offset || k >= cases[i].offset + cases[i].size)
				assert_int_equal(log.bits[k], 0);
		if (i == 3)
			assert_true(count_marked(&log) > 0);
		end_log(&log);
	}
}

static void test_the_event_buffer_is_logged(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup);
	struct log log = new_log(LOG_LEN);
	size_t len = snapshot(guest);
	uint8_t *copy;

	/* So that the event, a zero, is a change. */
	memset(memory_at(&guest->memory, guest->event_address), 0xee, 4 * GUEST_EVENT_BUFFERS);
	guest->options.features |= BIT64(VIRTIO_LOG_ALL);
	restore(setup, guest, state_bytes, len);
	assert_int_equal(vhost_set_log(&guest->vhost, log.size, 0, log.fd), 0);
	copy = copy_memory(guest);
	resume(guest);
	wait_reset(guest);
	assert_memory_not_equal(memory_at(&guest->memory, guest->event_address),
				copy + (guest->event_address - MEMORY_START),
				4 * GUEST_EVENT_BUFFERS);
	assert_true(is_marked(&log, guest->event_address / PAGE));
	free(copy);
	end_log(&log);
}

static void test_a_successor_of_a_dead_worker_goes_on_logging(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);
	uint8_t *copy;

	start_logging(guest, &log);
	copy = copy_memory(guest);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	assert_connects(setup, 0);
	assert_log_complete(guest, &log, copy);
	free(copy);
	end_log(&log);
}

#define ONE(f)	  cmocka_unit_test_setup_teardown(f, setup_start_one, end)
#define TWO(f)	  cmocka_unit_test_setup_teardown(f, setup_start_two, end)
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
		ONE(test_a_saved_guest_is_reset_in_another_process),
		ONE(test_a_state_is_loaded_through_a_socket_as_well),
		ONE(test_host_programs_of_every_moment_are_served_after_the_reset),
		ONE(test_a_host_program_that_calls_in_mid_load_is_held),
		ONE(test_requests_of_the_guest_wait_for_the_end_of_the_quarantine),
		ONE(test_packets_from_before_the_snapshot_are_answered_with_rst),
		ONE(test_the_configuration_ends_a_quarantine_only_behind_the_event),
		ONE(test_an_empty_event_ring_gets_its_reset_when_a_buffer_comes),
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
		cmocka_unit_test_setup_teardown(test_a_load_ends_the_connections_that_lived,
						start_with_eight_connections, end),
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
		ONE(test_every_page_that_is_written_is_marked),
		ONE(test_bits_that_were_cleared_are_set_again),
		ONE(test_nothing_is_marked_while_logging_is_off),
		ONE(test_a_used_ring_is_logged_where_the_front_end_wants_it),
		ONE(test_a_log_may_be_replaced_while_it_is_in_use),
		ONE(test_a_log_that_is_too_small_is_not_left),
		ONE(test_the_event_buffer_is_logged),
		KILLED(test_a_successor_of_a_dead_worker_goes_on_logging),
	};
	const char *pattern = getenv("ONLY");

	/* One of many, by a pattern: for whoever looks for the reason of a failure. */
	if (pattern)
		cmocka_set_test_filter(pattern);
	return cmocka_run_group_tests_name("migration", tests, NULL, NULL);
}
