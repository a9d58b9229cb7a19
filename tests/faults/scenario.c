/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/faults/scenario.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/operator.h"
#include "tests/integration/setup.h"
#include "tests/integration/tool.h"

/* Longer than any time limit of vsockd, so that what is still silent then is stuck. */
#define LIMIT 40000

#define NEIGHBOUR 0
#define SUFFERER  1
#define OUT_PORT  7000 /* a host program listens */
#define IN_PORT	  7001 /* the guest listens */
#define LEN	  50000

/* A connection and its two ends; bytes of a pattern go both ways. */
struct line {
	struct guest_connection *connection; /* NULL: none */
	struct host_stream stream;
	size_t n_to_host, n_to_guest, n_host_looked;
	bool is_wrong;
};

static struct {
	struct setup setup;
	struct line neighbour;
	bool is_strict;		 /* nothing may go wrong */
	const char *disturbance; /* what did not work first; NULL: nothing */
	bool has_guest;
	uint8_t bytes[2][4 * LEN];
	uint8_t state[65536];
} s;

/* Whatever does not work in silence is a failure; this did not, and was told so. */
static bool worked(bool has_worked, const char *what)
{
	if (has_worked)
		return true;
	if (s.is_strict)
		fail_msg("%s: does not work, although nothing fails", what);
	if (!s.disturbance)
		s.disturbance = what;
	return false;
}

/* The same of a call with a time limit. */
static bool returned(int result, const char *what)
{
	if (result == -ETIMEDOUT)
		fail_msg("%s: no answer", what);
	return worked(result >= 0, what);
}

static struct guest *guest_of(size_t vm)
{
	return &s.setup.guests[vm];
}

/* ---- lines ---- */

static void take_bytes(void *context, const uint8_t *bytes, size_t len)
{
	struct line *line = context;

	if (line->n_to_guest + len > sizeof(s.bytes[1]) ||
	    !pattern_is(bytes, len, 2, line->n_to_guest))
		line->is_wrong = true;
	line->n_to_guest += len;
}

static void look_at_host(struct line *line)
{
	const struct host_stream *stream = &line->stream;

	if (!pattern_is(stream->received + line->n_host_looked,
			stream->n_received - line->n_host_looked, 1, line->n_host_looked))
		line->is_wrong = true;
	line->n_host_looked = stream->n_received;
}

static void begin_line(struct line *line, size_t vm, struct guest_connection *connection, int fd)
{
	*line = (struct line){.connection = connection};
	connection->sink = take_bytes;
	connection->sink_context = line;
	host_stream_init(&line->stream, fd);
	guest_watch(guest_of(vm), &line->stream.watch);
}

static bool host_has_ended(const struct line *line)
{
	return line->stream.is_ended || line->stream.error;
}

static bool is_broken(const struct line *line)
{
	return line->connection->state != GUEST_ESTABLISHED || host_has_ended(line);
}

/* One turn of everything. false: the guest has lost its device. */
static bool turn(struct line *line, size_t vm, size_t n)
{
	ssize_t sent;
	int result;

	if (line->connection->state == GUEST_ESTABLISHED && line->n_to_host < n) {
		sent = guest_send(line->connection, s.bytes[0] + line->n_to_host,
				  n - line->n_to_host);
		line->n_to_host += sent > 0 ? (size_t)sent : 0;
	}
	result = guest_poll(guest_of(vm), 10);
	look_at_host(line);
	if (line->is_wrong)
		fail_msg("wrong bytes: the guest has %zu, the host %zu", line->n_to_guest,
			 line->stream.n_received);
	return result >= 0;
}

/* Without a guest: what the host program sees. */
static void await_host_end(struct line *line)
{
	int64_t deadline = deadline_in(LIMIT);

	while (!host_has_ended(line)) {
		if (socket_wait(line->stream.watch.fd, POLLIN, deadline) != 0)
			fail_msg("a connection whose guest is gone lives on");
		line->stream.watch.ready(&line->stream.watch, POLLIN);
	}
	look_at_host(line);
	assert_false(line->is_wrong);
}

/* Its end came to one side: it comes to the other one too. */
static void await_both_ends(struct line *line, size_t vm)
{
	int64_t deadline = deadline_in(LIMIT);

	while (line->connection->state != GUEST_CLOSED || !host_has_ended(line)) {
		if (line->connection->state == GUEST_ESTABLISHED && host_has_ended(line))
			(void)!guest_shutdown(line->connection, PACKET_SHUTDOWN_SEND);
		if (deadline_left(deadline) == 0)
			fail_msg("half a connection: guest state %d, host %s",
				 line->connection->state, host_has_ended(line) ? "ended" : "open");
		if (!turn(line, vm, 0)) {
			await_host_end(line);
			return;
		}
	}
}

static void end_line(struct line *line, size_t vm)
{
	if (!line->connection)
		return;
	guest_unwatch(guest_of(vm), &line->stream.watch);
	host_stream_end(&line->stream);
	line->connection = NULL;
}

/* Until both ends have n bytes. false: it has ended, on both ends. */
static bool move(struct line *line, size_t vm, size_t n)
{
	size_t before = 0, now, at_host = line->stream.n_received;
	int64_t deadline = deadline_in(LIMIT);

	(void)at_host;
	host_stream_send(&line->stream, s.bytes[1] + line->n_to_guest, n - line->n_to_guest, false);
	while (line->n_to_guest < n || line->stream.n_received < n) {
		now = line->n_to_guest + line->stream.n_received;
		if (now != before)
			deadline = deadline_in(LIMIT);
		before = now;
		if (deadline_left(deadline) == 0)
			fail_msg("stuck: the guest has %zu, the host %zu of %zu", line->n_to_guest,
				 line->stream.n_received, n);
		if (!turn(line, vm, n)) {
			await_host_end(line);
			return false;
		}
		if (is_broken(line)) {
			await_both_ends(line, vm);
			return false;
		}
	}
	return true;
}

/* Orderly, from the guest's side. */
static bool finish(struct line *line, size_t vm)
{
	int64_t deadline = deadline_in(LIMIT);

	if (guest_close(line->connection) < 0)
		return false;
	while (line->connection->state != GUEST_CLOSED || !host_has_ended(line)) {
		if (deadline_left(deadline) == 0)
			fail_msg("a connection does not end: guest state %d, host %s",
				 line->connection->state, host_has_ended(line) ? "ended" : "open");
		if (!turn(line, vm, 0)) {
			await_host_end(line);
			return false;
		}
	}
	guest_forget(line->connection);
	return true;
}

/* ---- how lines begin ---- */

static bool await_answer(struct guest *guest, const struct guest_connection *connection)
{
	int64_t deadline = deadline_in(LIMIT);

	while (connection->state == GUEST_CONNECTING) {
		if (deadline_left(deadline) == 0)
			fail_msg("a guest's request is not answered");
		if (guest_poll(guest, 10) < 0)
			return false;
	}
	return connection->state == GUEST_ESTABLISHED;
}

static bool connect_out(struct line *line, size_t vm, uint32_t port)
{
	int listener = host_listen(s.setup.uds_paths[vm], port), fd = -1;
	struct guest_connection *connection;
	char path[128];
	bool is_open;

	assert_true(listener >= 0);
	connection = guest_connect(guest_of(vm), PACKET_HOST_CID, port);
	assert_non_null(connection);
	is_open = await_answer(guest_of(vm), connection);
	if (is_open)
		fd = host_accept(listener, LIMIT);
	close(listener);
	snprintf(path, sizeof(path), "%s_%u", s.setup.uds_paths[vm], port);
	unlink(path);
	if (!is_open)
		return false;
	assert_true(fd >= 0);
	begin_line(line, vm, connection, fd);
	return true;
}

/* The guest listens. "OK PORT" comes first. */
static bool connect_in(struct line *line, size_t vm)
{
	struct guest_connection *connection = NULL;
	struct host_stream stream;
	int64_t deadline = deadline_in(LIMIT);
	int fd = host_connect(s.setup.uds_paths[vm], IN_PORT, LIMIT), ok = 0;
	uint32_t port;

	if (fd < 0)
		return false;
	host_stream_init(&stream, fd);
	guest_watch(guest_of(vm), &stream.watch);
	while (ok == 0 || !connection) {
		if (deadline_left(deadline) == 0)
			fail_msg("a host program is not answered: guest %s",
				 connection ? "has it" : "has nothing");
		if (guest_poll(guest_of(vm), 10) < 0)
			ok = -ENODEV;
		if (!connection)
			connection = guest_accept(guest_of(vm), IN_PORT);
		if (ok == 0)
			ok = host_stream_take_ok(&stream, &port);
		if (ok < 0)
			break;
	}
	guest_unwatch(guest_of(vm), &stream.watch);
	if (ok < 0) {
		host_stream_end(&stream);
		return false;
	}
	assert_int_equal(stream.n_received, 0);
	begin_line(line, vm, connection, stream.watch.fd);
	free(stream.received);
	return true;
}

/* ---- the neighbour ---- */

static void start_neighbour(void)
{
	setup_guest(&s.setup, NEIGHBOUR, (struct guest_options){.timeout = LIMIT});
	assert_true(connect_out(&s.neighbour, NEIGHBOUR, OUT_PORT));
	assert_true(move(&s.neighbour, NEIGHBOUR, 1000));
}

static void check_neighbour(void)
{
	size_t n = s.neighbour.n_to_host + 100;

	if (!move(&s.neighbour, NEIGHBOUR, n))
		fail_msg("the neighbour lost its connection");
}

/* ---- one life ---- */

static bool begin_guest(void)
{
	struct guest_options options = {
		.socket = s.setup.sockets[SUFFERER],
		.cid = setup_cid(SUFFERER),
		.style = GUEST_LIKE_CROSVM,
		.protocol_features =
			BIT64(VHOST_PROTOCOL_MQ) | BIT64(VHOST_PROTOCOL_REPLY_ACK) |
			BIT64(VHOST_PROTOCOL_CONFIG) | BIT64(VHOST_PROTOCOL_RESET_DEVICE) |
			BIT64(VHOST_PROTOCOL_LOG_SHMFD) | BIT64(VHOST_PROTOCOL_DEVICE_STATE),
		.timeout = LIMIT,
	};
	int result = guest_start(guest_of(SUFFERER), &options);

	if (result < 0)
		fprintf(stderr, "no start: %s %s\n", vhost_error(&guest_of(SUFFERER)->vhost),
			guest_violations(guest_of(SUFFERER)));
	s.has_guest = returned(result, "a guest starts");
	s.setup.has_guest[SUFFERER] = s.has_guest;
	return s.has_guest && returned(guest_listen(guest_of(SUFFERER), IN_PORT), "guest_listen");
}

static bool replace(void)
{
	int fd = operator_connect(daemon_path(&s.setup.daemon, TOOL_CONTROL), LIMIT), result;
	int64_t deadline = deadline_in(LIMIT);
	struct pollfd answer = {.fd = fd, .events = POLLIN};
	char reason[256] = "";

	assert_true(fd >= 0);
	result = operator_ask_replace(fd, setup_cid(SUFFERER));
	while (result == 0 && poll(&answer, 1, 0) == 0) {
		if (deadline_left(deadline) == 0)
			fail_msg("an operator is not answered");
		if (guest_poll(guest_of(SUFFERER), 10) < 0)
			break;
	}
	if (result == 0)
		result = operator_take_answer(fd, reason, sizeof(reason));
	close(fd);
	return worked(result == 0, "a worker is replaced");
}

static bool has_been_reset(uint64_t n)
{
	int64_t deadline = deadline_in(LIMIT);

	while (guest_of(SUFFERER)->n_transport_resets < n) {
		if (deadline_left(deadline) == 0)
			fail_msg("a guest that was restored is not reset");
		if (guest_poll(guest_of(SUFFERER), 10) < 0)
			return false;
	}
	return true;
}

static bool restore(void)
{
	struct guest *guest = guest_of(SUFFERER);
	uint64_t n = guest->n_transport_resets + 1;
	size_t len = 0;

	if (!returned(guest_stop(guest), "rings stop") ||
	    !worked(vhost_save(&guest->vhost, s.state, sizeof(s.state), &len) == 0,
		    "a state is saved"))
		return false;
	guest_detach(guest);
	return returned(guest_attach(guest, s.setup.sockets[SUFFERER], s.state, len),
			"a state is loaded") &&
	       returned(guest_resume(guest), "rings start") &&
	       worked(has_been_reset(n), "a guest is reset");
}

static void end_guest(void)
{
	char violations[2048];

	if (!s.has_guest)
		return;
	s.has_guest = false;
	s.setup.has_guest[SUFFERER] = false;
	snprintf(violations, sizeof(violations), "%s", guest_violations(guest_of(SUFFERER)));
	guest_end(guest_of(SUFFERER));
	assert_string_equal(violations, "");
}

static bool use_lines(struct line *out, struct line *in)
{
	if (!worked(connect_out(out, SUFFERER, OUT_PORT), "the guest connects") ||
	    !worked(move(out, SUFFERER, LEN), "bytes of the guest's connection"))
		return false;
	check_neighbour();
	return worked(connect_in(in, SUFFERER), "a host program connects") &&
	       worked(move(in, SUFFERER, LEN), "bytes of the host's connection");
}

static void live_on(struct line *out, struct line *in)
{
	if (!use_lines(out, in) || !replace())
		return;
	check_neighbour();
	if (!worked(move(out, SUFFERER, 2 * LEN), "bytes behind a replacement") ||
	    !worked(finish(out, SUFFERER), "an orderly end"))
		return;
	end_line(out, SUFFERER);
	if (!restore())
		return;
	await_both_ends(in, SUFFERER);
	end_line(in, SUFFERER);
	check_neighbour();
	if (worked(connect_in(in, SUFFERER), "a host program connects after a restore"))
		(void)worked(move(in, SUFFERER, LEN), "bytes behind a restore");
}

/* What is left of a life when the guest's front-end is gone. */
static void end_life(struct line *line)
{
	if (!line->connection)
		return;
	await_host_end(line);
	host_stream_end(&line->stream);
	line->connection = NULL;
}

/* A line of the log may be what is lost, or a socket what cannot be removed: one will do. */
static bool has_reloaded(bool has_third)
{
	return (access(daemon_path(&s.setup.daemon, "vm2"), F_OK) == 0) == has_third &&
	       (access(daemon_path(&s.setup.daemon, "host2"), F_OK) == 0) == has_third;
}

static void reload(bool has_third)
{
	size_t n_refused = daemon_count_log(&s.setup.daemon, "nothing has changed");
	size_t n_done = daemon_count_log(&s.setup.daemon, " removed, ");
	int64_t deadline = deadline_in(LIMIT);
	bool is_refused = false, is_done = false;

	setup_write_file(&s.setup, has_third ? 0x7 : 0x3, NULL);
	kill(s.setup.daemon.pid, SIGHUP);
	while (!is_done && !is_refused) {
		is_done = has_reloaded(has_third) ||
			  daemon_count_log(&s.setup.daemon, " removed, ") > n_done;
		is_refused = daemon_count_log(&s.setup.daemon, "nothing has changed") > n_refused;
		if (deadline_left(deadline) == 0)
			fail_msg("no end of a reload");
		if (guest_poll(guest_of(NEIGHBOUR), 2) < 0)
			fail_msg("the neighbour lost its device");
	}
	check_neighbour();
	(void)worked(!is_refused, "a reload");
}

static void live(void)
{
	struct line out = {.connection = NULL}, in = {.connection = NULL};

	if (begin_guest())
		live_on(&out, &in);
	reload(true);
	end_guest();
	end_life(&out);
	end_life(&in);
	reload(false);
	check_neighbour();
}

/* ---- the whole ---- */

static size_t count_complaints(void)
{
	return daemon_count_log(&s.setup.daemon, " error: ") +
	       daemon_count_log(&s.setup.daemon, " warning: ") +
	       daemon_count_log(&s.setup.daemon, " info: guest refused: ");
}

/* A few lines, not one for each try. */
#define COMPLAINTS_MAX 12

static void check_log(size_t n_before)
{
	size_t n = count_complaints() - n_before;

	if (s.disturbance && n == 0)
		fail_msg("\"%s\" did not work, and nothing says why", s.disturbance);
	if (n > COMPLAINTS_MAX)
		fail_msg("%zu lines about one failure", n);
	/* 9: it was told to end. */
	if (daemon_count_log(&s.setup.daemon, "ended by signal") >
	    daemon_count_log(&s.setup.daemon, "ended by signal 9"))
		fail_msg("a process was ended by a signal");
	if (daemon_log_has(&s.setup.daemon, "is not believed: "))
		fail_msg("a worker is not believed");
}

/* The fault comes in one of two, and another one shows that it is over. */
#define LIVES 3

static bool start(void)
{
	int status;

	setup_choose_file(&s.setup);
	status = setup_try_start(&s.setup, 2, NULL, TOOL_ARGUMENTS);
	if (status == 0)
		return true;
	if (s.is_strict || status >= 128 || status < 0)
		fail_msg("vsockd does not start: %d", status);
	return false;
}

bool scenario_run(struct plan *plan)
{
	size_t n_complaints;
	pid_t worker;

	memset(&s, 0, sizeof(s));
	for (size_t i = 0; i < 2; i++)
		pattern_fill(s.bytes[i], sizeof(s.bytes[i]), i + 1, 0);
	s.is_strict = plan->fault == 0;
	atomic_store(&plan->phase, PHASE_START);
	if (!start())
		return true;
	atomic_store(&plan->phase, PHASE_QUIET);
	start_neighbour();
	worker = setup_worker(&s.setup, NEIGHBOUR);
	n_complaints = count_complaints();

	atomic_store(&plan->phase, PHASE_LIFE);
	for (int i = 0; i < LIVES; i++) {
		/* The first one after the fault; without any, none. */
		s.is_strict = plan->fault == 0 || atomic_load(&plan->n_injected) > 0;
		live();
		if (s.is_strict)
			break;
	}
	check_log(n_complaints);
	assert_int_equal(setup_worker(&s.setup, NEIGHBOUR), worker);
	assert_true(finish(&s.neighbour, NEIGHBOUR));
	end_line(&s.neighbour, NEIGHBOUR);
	assert_int_equal(atomic_load(&plan->n_wall_clock), 0);
	atomic_store(&plan->phase, PHASE_END);
	setup_stop(&s.setup);
	return s.disturbance != NULL;
}

void scenario_give_up(void)
{
	if (s.setup.daemon.pid <= 0)
		return;
	kill(s.setup.daemon.pid, SIGKILL);
	(void)daemon_stop(&s.setup.daemon, LIMIT);
}
