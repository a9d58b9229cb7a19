/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/integration/migration.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

uint8_t migration_state[64 * KIB];

int migration_end(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
	assert_false(daemon_log_has(&setup->daemon, "not believed"));
	return setup_end(state);
}

/* ---- the transfer of a state ---- */

/* Our end of the channel and the answer, which is to be one of the two that there are. */
int migration_open(struct vhost *vhost, uint32_t direction, bool is_socket, uint64_t *ret_answer)
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

int migration_begin(struct vhost *vhost, uint32_t direction, bool is_socket)
{
	uint64_t answer;
	int fd = migration_open(vhost, direction, is_socket, &answer);

	assert_int_equal(answer, 0x100);
	return fd;
}

uint64_t migration_check(struct vhost *vhost)
{
	uint64_t value = UINT64_MAX;

	assert_int_equal(vhost_get_u64(vhost, VHOST_CHECK_DEVICE_STATE, &value), 0);
	return value;
}

size_t migration_read(int fd)
{
	int64_t deadline = deadline_in(LIMIT);
	size_t len = 0;
	ssize_t n = -1;

	while (n != 0) {
		assert_int_equal(socket_wait(fd, POLLIN, deadline), 0);
		n = read(fd, migration_state + len, sizeof(migration_state) - len);
		assert_true(n >= 0);
		len += (size_t)n;
	}
	close(fd);
	return len;
}

size_t migration_save(struct vhost *vhost, bool is_socket)
{
	size_t len = migration_read(migration_begin(vhost, SAVE, is_socket));

	assert_int_equal(migration_check(vhost), GOOD);
	return len;
}

/* Write, close, CHECK: its answer. A reader that has had enough is nothing to complain of. */
uint64_t migration_load_through(struct vhost *vhost, const uint8_t *bytes, size_t len,
				bool is_socket)
{
	int fd = migration_begin(vhost, LOAD, is_socket);
	size_t n_written = 0;
	ssize_t n = 0;

	while (n_written < len && n >= 0) {
		n = is_socket ? send(fd, bytes + n_written, len - n_written, MSG_NOSIGNAL)
			      : write(fd, bytes + n_written, len - n_written);
		n_written += n > 0 ? (size_t)n : 0;
	}
	close(fd);
	return migration_check(vhost);
}

uint64_t migration_load(struct vhost *vhost, const uint8_t *bytes, size_t len)
{
	return migration_load_through(vhost, bytes, len, false);
}

void migration_put32(uint8_t *place, uint32_t value)
{
	memcpy(place, &value, sizeof(value));
}

uint32_t migration_get32(const uint8_t *place)
{
	uint32_t value;

	memcpy(&value, place, sizeof(value));
	return value;
}

uint64_t migration_get64(const uint8_t *place)
{
	uint64_t value;

	memcpy(&value, place, sizeof(value));
	return value;
}

/* CRC-32 of IEEE 802.3, over all but the last 4 bytes, into these. */
void migration_seal(uint8_t *bytes, size_t len)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < len - 4; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ UINT32_C(0xedb88320) : crc >> 1;
	}
	migration_put32(bytes + len - 4, ~crc);
}

/* ---- guests ---- */

/* As crosvm; with RESET_DEVICE and the dirty log, which crosvm itself does not know. */
struct guest *migration_start_guest(struct setup *setup)
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

void migration_wait_reset(struct guest *guest)
{
	assert_int_equal(guest_wait_until(guest, has_reset, guest, LIMIT), 0);
	assert_int_equal(guest->n_transport_resets, 1);
}

void migration_assert_no_more_resets(struct guest *guest, uint64_t n)
{
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(guest->n_transport_resets, n);
}

/* The answer, of which crosvm asks for none, says that all rings run. */
void migration_resume(struct guest *guest)
{
	uint64_t features;

	assert_int_equal(guest_resume(guest), 0);
	assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
}

/* Stopped, saved, and the VMM gone. */
size_t migration_snapshot(struct guest *guest)
{
	size_t len;

	assert_int_equal(guest_stop(guest), 0);
	len = migration_save(&guest->vhost, false);
	guest_detach(guest);
	return len;
}

/* A VMM that loads this state; its rings are still to be started. */
void migration_restore(struct setup *setup, struct guest *guest, const uint8_t *bytes, size_t len)
{
	assert_int_equal(guest_attach(guest, setup->sockets[0], bytes, len), 0);
	assert_int_equal(guest->n_transport_resets, 0);
}

/* As a driver that handles the reset: its connections go, then the buffer comes back. */
void migration_answer_reset(struct guest *guest)
{
	assert_int_equal(guest_answer_events(guest), 0);
}

/* A guest that lived, was saved, restored, and has got its reset but did not handle it. */
struct guest *migration_start_quarantined(struct setup *setup)
{
	struct guest *guest = migration_start_guest(setup);
	size_t len = migration_snapshot(guest);

	migration_restore(setup, guest, migration_state, len);
	migration_resume(guest);
	migration_wait_reset(guest);
	return guest;
}

/* ---- host programs that call the guest ---- */

void program_call(struct setup *setup, struct guest *guest, struct program *program, uint32_t port)
{
	*program = (struct program){.port = port};
	assert_int_equal(guest_listen(guest, port), 0);
	pattern_fill(program->early, EARLY_LEN, port, 0);
	host_stream_init(&program->stream, host_connect(setup->uds_paths[0], port, LIMIT));
	assert_true(program->stream.watch.fd >= 0);
	assert_int_equal(host_write(program->stream.watch.fd, program->early, EARLY_LEN, LIMIT), 0);
	guest_watch(guest, &program->stream.watch);
}

void program_end(struct guest *guest, struct program *program)
{
	guest_unwatch(guest, &program->stream.watch);
	host_stream_end(&program->stream);
	guest_unlisten(guest, program->port);
}

void program_assert_held(struct guest *guest, const struct program *program)
{
	assert_null(guest_accept(guest, program->port));
	assert_int_equal(program->stream.n_received, 0);
	assert_false(program->stream.is_ended);
	assert_int_equal(program->stream.error, 0);
}

bool program_has_answer(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error ||
	       (stream->n_received > 0 &&
		memchr(stream->received, '\n', stream->n_received) != NULL);
}

bool program_has_ended(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error;
}

/* The guest's end, once all that was sent early is there. */
void program_assert_served(struct guest *guest, struct program *program)
{
	struct guest_connection *connection = guest_accept_wait(guest, program->port, LIMIT);
	uint8_t bytes[EARLY_LEN];
	uint32_t port;

	if (!connection)
		fail_msg("port %u is not served; host program: %s", program->port,
			 program->stream.is_ended || program->stream.error ? "sent away" : "waits");
	assert_int_equal(guest_receive_all(connection, bytes, EARLY_LEN, LIMIT), EARLY_LEN);
	assert_memory_equal(bytes, program->early, EARLY_LEN);
	assert_int_equal(guest_wait_until(guest, program_has_answer, &program->stream, LIMIT), 0);
	assert_int_equal(host_stream_take_ok(&program->stream, &port), 1);
	assert_int_equal(port, connection->peer_port);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	program_end(guest, program);
}

/* A program calls, and is served at once. */
void program_assert_serves(struct setup *setup, struct guest *guest)
{
	struct program program;

	program_call(setup, guest, &program, 5555);
	program_assert_served(guest, &program);
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
void migration_exchange(struct guest_connection *connection, struct host_stream *stream, size_t len)
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
void migration_assert_connects(struct setup *setup, size_t vm)
{
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, vm, PORT, &stream);

	migration_exchange(connection, &stream, 20000);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, vm, &stream);
}

void migration_take_back_event_buffers(struct guest *guest)
{
	struct ring *ring = &guest->rings[GUEST_EVENT];

	ring_reset(ring);
	guest->base[GUEST_EVENT] = ring_first_base(ring);
	guest->stopped_idx[GUEST_EVENT] = ring_used_idx(ring);
}
