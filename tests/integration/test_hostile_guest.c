/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A guest that keeps no rule: packets, chains and rings that no driver makes,
 * and more of everything than there is room for. It gets the answer that the
 * virtio specification has for it, or silence; its neighbour notices nothing.
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

#include <cmocka.h>

#include "tests/integration/setup.h"

#define KIB   1024u
#define MIB   (1024u * KIB)
#define LIMIT SETUP_LIMIT
#define QUIET 50

/* Ports of packets that belong to nobody, and of a listener of the host. */
#define ODD_PORT 7777u
#define NO_PORT	 9999u
#define PORT	 2000u

static int end(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
	return setup_end(state);
}

/* ---- what came back ---- */

#define HEARD_MAX 64

/* Packets to one port of the guest; only those of another type are kept from its sockets. */
struct ear {
	uint32_t port;
	struct packet packets[HEARD_MAX];
	size_t n;
};

static bool hear(void *context, const struct packet *packet, const struct iovec *payload,
		 size_t n_payload)
{
	struct ear *ear = context;

	(void)payload;
	(void)n_payload;
	if (packet->dst_port != ear->port)
		return false;
	if (ear->n < HEARD_MAX)
		ear->packets[ear->n++] = *packet;
	return packet->type != PACKET_STREAM;
}

static void listen_in(struct guest *guest, struct ear *ear, uint32_t port)
{
	*ear = (struct ear){.port = port};
	guest->on_packet = hear;
	guest->on_packet_context = ear;
}

static bool has_heard(void *context)
{
	return ((struct ear *)context)->n > 0;
}

/* One RST, from where the packet went and of its type, and nothing else. */
static void check_rst(const struct ear *ear, const struct packet *packet)
{
	const struct packet *rst = &ear->packets[0];

	assert_int_equal(ear->n, 1);
	assert_int_equal(rst->op, PACKET_RST);
	assert_int_equal(rst->type, packet->type);
	assert_int_equal(rst->src_cid, packet->dst_cid);
	assert_int_equal(rst->src_port, packet->dst_port);
	assert_int_equal(rst->dst_port, packet->src_port);
	assert_int_equal(rst->len, 0);
}

struct awaited {
	const struct host_stream *stream;
	size_t len;
};

static bool has_received(void *context)
{
	const struct awaited *awaited = context;

	return awaited->stream->n_received >= awaited->len;
}

/* A few bytes both ways: this connection lives. */
static void check_lives(struct guest_connection *connection, struct host_stream *stream)
{
	struct awaited awaited = {.stream = stream, .len = 5};
	char bytes[5];

	stream->n_received = 0;
	assert_int_equal(guest_send_all(connection, "hello", 5, LIMIT), 0);
	assert_int_equal(guest_wait_until(connection->guest, has_received, &awaited, LIMIT), 0);
	assert_int_equal(stream->n_received, 5);
	assert_memory_equal(stream->received, "hello", 5);
	assert_int_equal(host_write(stream->watch.fd, "world", 5, LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, bytes, 5, LIMIT), 5);
	assert_memory_equal(bytes, "world", 5);
}

static bool is_over(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error;
}

/*
 * Whatever was sent before has been handled, and its answer been taken: packets
 * are handled in order, and this connection's answer is the last.
 */
static void fence(struct guest_connection *connection, struct host_stream *stream)
{
	check_lives(connection, stream);
	check_lives(connection, stream);
}

static void send_odd(struct guest *guest, const struct packet *packet, size_t len)
{
	assert_int_equal(guest_send_packet(guest, packet, NULL, len, NULL), 0);
}

static struct packet odd_packet(const struct guest *guest, uint16_t op)
{
	return (struct packet){
		.src_cid = guest->cid,
		.dst_cid = PACKET_HOST_CID,
		.src_port = ODD_PORT,
		.dst_port = NO_PORT,
		.type = PACKET_STREAM,
		.op = op,
		.buf_alloc = 4096,
	};
}

/* ---- packets that belong to no connection ---- */

static void test_a_packet_of_no_connection_gets_rst_but_a_rst_gets_none(void **state)
{
	static const struct {
		uint16_t op, type;
		uint32_t len;
		bool has_rst;
	} rows[] = {
		{PACKET_INVALID, 1, 0, true},
		{PACKET_REQUEST, 1, 0, true}, /* nobody listens there */
		{PACKET_RESPONSE, 1, 0, true},
		{PACKET_RST, 1, 0, false},
		{PACKET_SHUTDOWN, 1, 0, true},
		{PACKET_RW, 1, 0, true},
		{PACKET_RW, 1, 1000, true},
		{PACKET_CREDIT_UPDATE, 1, 0, true},
		{PACKET_CREDIT_REQUEST, 1, 0, true},
		{8, 1, 0, true},
		{UINT16_MAX, 1, 0, true},
		/* Types that were not negotiated, or do not exist. */
		{PACKET_REQUEST, 2, 0, true},
		{PACKET_REQUEST, 0, 0, true},
		{PACKET_REQUEST, 3, 0, true},
		{PACKET_REQUEST, UINT16_MAX, 0, true},
		{PACKET_RW, 2, 10, true},
		{PACKET_RST, 2, 0, false},
		{PACKET_RST, UINT16_MAX, 0, false},
		{PACKET_RST, 1, 100, false},
	};
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *alive = setup_connect(setup, 0, PORT, &stream);
	struct ear ear;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct packet packet = odd_packet(guest, rows[i].op);

		packet.type = rows[i].type;
		packet.len = rows[i].len;
		packet.src_port += (uint32_t)i;
		listen_in(guest, &ear, packet.src_port);
		send_odd(guest, &packet, packet.len);
		fence(alive, &stream);
		/* A REQUEST is answered when the host was asked. */
		if (rows[i].has_rst)
			assert_int_equal(guest_wait_until(guest, has_heard, &ear, LIMIT), 0);
		if (rows[i].has_rst)
			check_rst(&ear, &packet);
		else
			assert_int_equal(ear.n, 0);
	}
	listen_in(guest, &ear, ODD_PORT + 3);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(ear.n, 0);
	guest->on_packet = NULL;
	setup_end_stream(setup, 0, &stream);
}

/* In the table below: the guest's own CID as source, the host's as destination. */
#define RIGHT UINT64_C(0x7777)

static void test_packets_of_others_are_dropped_and_requests_to_nobody_refused(void **state)
{
	static const struct {
		uint64_t src_cid, dst_cid;
		uint16_t op;
		bool has_rst;
	} rows[] = {
		{0, RIGHT, PACKET_REQUEST, false},
		{1, RIGHT, PACKET_REQUEST, false},
		{2, RIGHT, PACKET_REQUEST, false},
		{4, RIGHT, PACKET_REQUEST, false},
		{UINT64_MAX, RIGHT, PACKET_REQUEST, false},
		{UINT64_C(1) << 32 | 3, RIGHT, PACKET_REQUEST, false},
		{UINT64_C(1) << 63 | 3, RIGHT, PACKET_RW, false},
		{4, RIGHT, PACKET_RST, false},
		{4, 99, PACKET_REQUEST, false},
		{RIGHT, 0, PACKET_REQUEST, true},
		{RIGHT, 1, PACKET_REQUEST, true},
		{RIGHT, 3, PACKET_REQUEST, true},
		{RIGHT, 4, PACKET_REQUEST, true}, /* the neighbour, who is not there */
		{RIGHT, 99, PACKET_REQUEST, true},
		{RIGHT, UINT32_MAX, PACKET_REQUEST, true},
		{RIGHT, UINT64_C(1) << 32 | 2, PACKET_REQUEST, true},
		{RIGHT, UINT64_MAX, PACKET_REQUEST, true},
		{RIGHT, 0, PACKET_RST, false},
		{RIGHT, 99, PACKET_RST, false},
		{RIGHT, 99, PACKET_RW, true},
		{RIGHT, 99, PACKET_SHUTDOWN, true},
		{RIGHT, 0, PACKET_RW, false},
		{RIGHT, UINT64_C(1) << 32 | 2, PACKET_CREDIT_REQUEST, false},
	};
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *alive = setup_connect(setup, 0, PORT, &stream);
	int listener = host_listen(setup->uds_paths[0], NO_PORT);
	struct pollfd anybody = {.fd = listener, .events = POLLIN};

	assert_true(listener >= 0);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct packet packet = odd_packet(guest, rows[i].op);
		struct ear ear;

		if (rows[i].src_cid != RIGHT)
			packet.src_cid = rows[i].src_cid;
		if (rows[i].dst_cid != RIGHT)
			packet.dst_cid = rows[i].dst_cid;
		listen_in(guest, &ear, ODD_PORT);
		send_odd(guest, &packet, 0);
		fence(alive, &stream);
		/* Whether a guest has that CID is asked of the front. */
		if (rows[i].has_rst)
			assert_int_equal(guest_wait_until(guest, has_heard, &ear, LIMIT), 0);
		if (rows[i].has_rst)
			check_rst(&ear, &packet);
		else
			assert_int_equal(ear.n, 0);
	}
	assert_int_equal(poll(&anybody, 1, QUIET), 0);
	close(listener);
	guest->on_packet = NULL;
	setup_end_stream(setup, 0, &stream);
}

/* ---- packets of a connection ---- */

enum outcome {
	LIVES,	   /* nothing came back, nothing happened */
	LIVES_RST, /* a RST of the packet's own type; the connection is another thing */
	RESET,	   /* RST, and the host program's socket is closed */
	ENDED,	   /* the same without RST */
};

static void check_outcome(struct guest_connection *connection, struct host_stream *stream,
			  const struct ear *ear, const struct packet *packet, enum outcome outcome)
{
	struct guest *guest = connection->guest;

	if (outcome == LIVES)
		assert_int_equal(ear->n, 0);
	if (outcome == LIVES_RST || outcome == RESET)
		check_rst(ear, packet);
	if (outcome == LIVES || outcome == LIVES_RST) {
		check_lives(connection, stream);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		assert_int_equal(guest_wait_until(guest, is_over, stream, LIMIT), 0);
		return;
	}
	assert_int_equal(guest_wait_until(guest, is_over, stream, LIMIT), 0);
	assert_int_equal(stream->n_received, 0);
	assert_int_equal(ear->n, outcome == RESET);
	/* For the test's own guest it is over as well. */
	if (outcome == ENDED)
		guest_abort(connection);
	assert_int_equal(connection->state, GUEST_CLOSED);
	guest_forget(connection);
}

static void test_an_odd_packet_of_a_connection_is_ignored_or_ends_it(void **state)
{
	static const struct {
		uint16_t op, type;
		uint32_t len, n_bytes, flags;
		enum outcome outcome;
	} rows[] = {
		{PACKET_INVALID, 1, 0, 0, 0, LIVES},
		{8, 1, 0, 0, 0, LIVES},
		{UINT16_MAX, 1, 0, 0, 0, LIVES},
		{PACKET_RESPONSE, 1, 0, 0, 0, LIVES},
		{PACKET_RW, 1, 0, 0, 0, LIVES},
		{PACKET_RW, 1, 0, 1000, 0, LIVES},
		/* Payload where none belongs. */
		{PACKET_CREDIT_UPDATE, 1, 1000, 1000, 0, LIVES},
		{PACKET_INVALID, 1, 1000, 1000, 0, LIVES},
		{PACKET_CREDIT_UPDATE, 1, 1000, 999, 0, LIVES},
		{PACKET_CREDIT_UPDATE, 1, UINT32_MAX, 0, 0, LIVES},
		/* Flags that mean nothing. */
		{PACKET_SHUTDOWN, 1, 0, 0, 0, LIVES},
		{PACKET_SHUTDOWN, 1, 0, 0, 0xfffffffc, LIVES},
		{PACKET_SHUTDOWN, 1, 0, 0, PACKET_SHUTDOWN_BOTH, RESET},
		{PACKET_SHUTDOWN, 1, 0, 0, UINT32_MAX, RESET},
		/* Another type is another connection. */
		{PACKET_RW, 2, 10, 10, 0, LIVES_RST},
		{PACKET_SHUTDOWN, 2, 0, 0, PACKET_SHUTDOWN_BOTH, LIVES_RST},
		{PACKET_REQUEST, 0, 0, 0, 0, LIVES_RST},
		{PACKET_RST, 2, 0, 0, 0, LIVES},
		/* Where would the next byte belong? */
		{PACKET_RW, 1, 1, 0, 0, RESET},
		{PACKET_RW, 1, 1000, 999, 0, RESET},
		{PACKET_RW, 1, PACKET_PAYLOAD_MAX + 1, PACKET_PAYLOAD_MAX + 1, 0, RESET},
		{PACKET_RW, 1, UINT32_MAX, 100, 0, RESET},
		{PACKET_REQUEST, 1, 0, 0, 0, RESET},
		{PACKET_RST, 1, 0, 0, 0, ENDED},
		{PACKET_RST, 1, 100, 100, UINT32_MAX, ENDED},
	};
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream, odd_stream;
	struct guest_connection *alive = setup_connect(setup, 0, PORT, &stream);

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct guest_connection *odd = setup_connect(setup, 0, PORT + 1, &odd_stream);
		struct packet packet = guest_packet(odd, (enum packet_op)rows[i].op);
		struct ear ear;

		packet.type = rows[i].type;
		packet.len = rows[i].len;
		packet.flags = rows[i].flags;
		listen_in(guest, &ear, odd->port);
		send_odd(guest, &packet, rows[i].n_bytes);
		fence(alive, &stream);
		check_outcome(odd, &odd_stream, &ear, &packet, rows[i].outcome);
		guest->on_packet = NULL;
		setup_end_stream(setup, 0, &odd_stream);
	}
	setup_end_stream(setup, 0, &stream);
}

static void test_bytes_behind_len_are_no_part_of_the_stream(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);
	struct awaited awaited = {.stream = &stream, .len = 10};
	struct packet packet = guest_packet(connection, PACKET_RW);

	packet.len = 10;
	assert_int_equal(guest_send_packet(guest, &packet, "0123456789abcdef", 16, NULL), 0);
	connection->tx_cnt += 10;
	assert_int_equal(guest_wait_until(guest, has_received, &awaited, LIMIT), 0);
	assert_int_equal(stream.n_received, 10);
	assert_memory_equal(stream.received, "0123456789", 10);
	check_lives(connection, &stream);
	setup_end_stream(setup, 0, &stream);
}

static void test_bytes_before_a_malformed_packet_still_arrive(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	/* Often enough that both packets are met at once. */
	for (int i = 0; i < 30; i++) {
		struct host_stream stream;
		struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);
		struct packet packet = guest_packet(connection, PACKET_RW);

		packet.len = 1000;
		assert_int_equal(guest_send(connection, "hello", 5), 5);
		send_odd(guest, &packet, 10);
		assert_int_equal(guest_wait_until(guest, is_over, &stream, LIMIT), 0);
		assert_int_equal(stream.n_received, 5);
		assert_memory_equal(stream.received, "hello", 5);
		assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
		setup_end_stream(setup, 0, &stream);
	}
}

static void test_shutdown_hints_add_up_and_bytes_after_them_end_the_connection(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	for (int is_rude = 0; is_rude < 2; is_rude++) {
		struct host_stream stream;
		struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);
		struct packet packet = guest_packet(connection, PACKET_SHUTDOWN);
		struct ear ear;

		listen_in(guest, &ear, connection->port);
		packet.flags = PACKET_SHUTDOWN_SEND;
		send_odd(guest, &packet, 0);
		assert_int_equal(guest_wait_until(guest, is_over, &stream, LIMIT), 0);
		assert_int_equal(ear.n, 0);
		if (is_rude) {
			packet.op = PACKET_RW;
			packet.len = 10;
			send_odd(guest, &packet, 10);
		} else {
			packet.flags = PACKET_SHUTDOWN_RECEIVE;
			send_odd(guest, &packet, 0);
		}
		assert_int_equal(guest_wait_until(guest, has_heard, &ear, LIMIT), 0);
		check_rst(&ear, &packet);
		assert_int_equal(connection->state, GUEST_CLOSED);
		assert_int_equal(stream.n_received, 0);
		guest->on_packet = NULL;
		setup_end_stream(setup, 0, &stream);
	}
}

static void test_a_pair_of_ports_may_be_used_again_at_once(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	int listener = host_listen(setup->uds_paths[0], PORT);

	assert_true(listener >= 0);
	for (int i = 0; i < 10; i++) {
		struct guest_connection *connection;
		int fd;

		connection = guest_connect_wait(guest, PACKET_HOST_CID, PORT, LIMIT);
		assert_non_null(connection);
		assert_int_equal(connection->port, 50001);
		fd = host_accept(listener, LIMIT);
		assert_true(fd >= 0);
		assert_int_equal(guest_send_all(connection, "hello", 5, LIMIT), 0);
		/* Nobody reads: what is left over of it must not reach the next one. */
		assert_int_equal(i % 2 ? guest_abort(connection) : guest_finish(connection, LIMIT),
				 0);
		/* Or the end of the program is told, as that of a connection of this name. */
		assert_int_equal(socket_wait(fd, POLLRDHUP, deadline_in(LIMIT)), 0);
		if (i % 2)
			guest_forget(connection);
		guest->next_port = 50000;
		close(fd);
	}
	close(listener);
}

/* ---- credit ---- */

static void test_bytes_beyond_our_buffer_end_the_connection(void **state)
{
	static const uint8_t bytes[PACKET_PAYLOAD_MAX];
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream, alive_stream;
	struct guest_connection *alive = setup_connect(setup, 0, PORT, &alive_stream);
	struct guest_connection *connection = setup_connect(setup, 0, PORT + 1, &stream);
	struct packet packet;
	struct ear ear;

	host_stream_pause(&stream, true);
	listen_in(guest, &ear, connection->port);
	/* As long as asking for credit gives some. */
	for (ssize_t n = 1; n > 0;) {
		packet = guest_packet(connection, PACKET_CREDIT_REQUEST);
		send_odd(guest, &packet, 0);
		fence(alive, &alive_stream);
		n = guest_send(connection, bytes, sizeof(bytes));
		assert_true(n > 0 || n == -EAGAIN);
	}
	assert_int_equal(connection->tx_cnt - connection->peer_fwd_cnt, 256 * KIB);
	packet = guest_packet(connection, PACKET_RW);
	packet.len = 1;
	ear.n = 0;
	send_odd(guest, &packet, 1);
	fence(alive, &alive_stream);
	check_rst(&ear, &packet);
	assert_int_equal(connection->state, GUEST_CLOSED);
	host_stream_pause(&stream, false);
	assert_int_equal(guest_wait_until(guest, is_over, &stream, LIMIT), 0);
	guest->on_packet = NULL;
	setup_end_stream(setup, 0, &stream);
	setup_end_stream(setup, 0, &alive_stream);
}

static bool has_4096(void *context)
{
	return ((struct guest_connection *)context)->n_received >= 4096;
}

static void test_a_fwd_cnt_that_lies_gets_no_bytes(void **state)
{
	static const uint32_t lies[] = {4097, 8192, INT32_MAX, UINT32_C(1) << 31, UINT32_MAX};
	static uint8_t sent[64 * KIB], received[64 * KIB];
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.buf_alloc = 4096});
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);

	pattern_fill(sent, sizeof(sent), 9, 0);
	host_stream_send(&stream, sent, sizeof(sent), true);
	assert_int_equal(guest_wait_until(guest, has_4096, connection, LIMIT), 0);
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct packet packet = guest_packet(connection, PACKET_CREDIT_UPDATE);

		packet.fwd_cnt = lies[i];
		packet.buf_alloc = 4096;
		send_odd(guest, &packet, 0);
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_int_equal(connection->n_received, 4096);
	}
	assert_int_equal(daemon_wait_log(&setup->daemon, "packet dropped: operation 6", LIMIT), 0);
	/* The truth still counts. */
	assert_int_equal(guest_receive_all(connection, received, sizeof(received), LIMIT),
			 sizeof(received));
	assert_memory_equal(received, sent, sizeof(sent));
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

/* ---- a connection that the host program asked for ---- */

struct call {
	struct packet request;
	bool is_there;
	struct ear ear;
};

/* Takes the REQUEST, and what comes for its ports behind it. */
static bool hold_call(void *context, const struct packet *packet, const struct iovec *payload,
		      size_t n_payload)
{
	struct call *call = context;

	(void)payload;
	(void)n_payload;
	if (packet->dst_port != ODD_PORT)
		return false;
	if (packet->op == PACKET_REQUEST) {
		call->request = *packet;
		call->is_there = true;
	} else if (call->ear.n < HEARD_MAX) {
		call->ear.packets[call->ear.n++] = *packet;
	}
	return true;
}

static bool has_call(void *context)
{
	return ((struct call *)context)->is_there;
}

static void test_what_is_no_answer_to_a_request_refuses_it(void **state)
{
	static const uint16_t ops[] = {
		PACKET_INVALID,	      PACKET_REQUEST,	     PACKET_RST, PACKET_SHUTDOWN, PACKET_RW,
		PACKET_CREDIT_UPDATE, PACKET_CREDIT_REQUEST, 8,		 UINT16_MAX};
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *alive = setup_connect(setup, 0, PORT, &stream);

	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		struct packet packet = odd_packet(guest, ops[i]);
		struct call call = {0};
		int fd;

		guest->on_packet = hold_call;
		guest->on_packet_context = &call;
		fd = host_connect(setup->uds_paths[0], ODD_PORT, LIMIT);
		assert_true(fd >= 0);
		assert_int_equal(guest_wait_until(guest, has_call, &call, LIMIT), 0);
		packet.dst_port = call.request.src_port;
		packet.flags = PACKET_SHUTDOWN_BOTH;
		packet.len = ops[i] == PACKET_RW ? 10 : 0;
		send_odd(guest, &packet, packet.len);
		assert_int_equal(host_wait_end(fd, LIMIT), 0);
		fence(alive, &stream);
		if (ops[i] == PACKET_RST)
			assert_int_equal(call.ear.n, 0);
		else
			check_rst(&call.ear, &packet);
		close(fd);
	}
	guest->on_packet = NULL;
	setup_end_stream(setup, 0, &stream);
}

/* ---- chains ---- */

/* A chain of the test's own; how many bytes the device says it wrote. */
static uint32_t send_chain(struct guest *guest, const struct ring_buffer *buffers, size_t n)
{
	struct ring *ring = &guest->rings[GUEST_TX];
	struct ring_completion done;

	assert_int_equal(guest_process(guest) < 0, 0);
	assert_int_equal(ring->n_in_flight, 0);
	assert_int_equal(ring_add(ring, buffers, n, 0, 0), 0);
	ring_submit(ring);
	while (!ring_expect_call(ring))
		assert_int_equal(ring_wait(ring, LIMIT), 0);
	assert_int_equal(ring_take(ring, &done), 1);
	return done.len;
}

static void test_chains_that_are_no_packet_are_given_back_and_the_ring_goes_on(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *alive = setup_connect(setup, 0, PORT, &stream);
	uint64_t at = memory_allocate(&guest->memory, 4096, 64);
	struct packet packet = odd_packet(guest, PACKET_RW);
	const struct {
		struct ring_buffer buffers[3];
		size_t n;
	} rows[] = {
		{{{at, 0, false}}, 1},
		{{{at, 1, false}}, 1},
		{{{at, 43, false}}, 1},
		{{{at, 20, false}, {at + 20, 23, false}}, 2},
		{{{at, 44, true}}, 1},
		{{{at, 4096, true}}, 1},
		{{{at, 44, false}, {at + 44, 100, true}}, 2},
		{{{at, 44, true}, {at + 44, 100, false}}, 2},
		{{{at, 44, false}, {at + 44, 100, true}, {at + 144, 100, false}}, 3},
	};
	struct ear ear;

	assert_true(at > 0);
	memcpy(memory_at(&guest->memory, at), &packet, PACKET_HEADER_LEN);
	fence(alive, &stream);
	listen_in(guest, &ear, ODD_PORT);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		assert_int_equal(send_chain(guest, rows[i].buffers, rows[i].n), 0);
		fence(alive, &stream);
		assert_int_equal(ear.n, 0);
		assert_memory_equal(memory_at(&guest->memory, at), &packet, PACKET_HEADER_LEN);
	}
	guest->on_packet = NULL;
	setup_end_stream(setup, 0, &stream);
}

/* Wait for the device to use a buffer without taking it. */
static void wait_used(struct ring *ring)
{
	while (!ring_expect_call(ring))
		assert_int_equal(ring_wait(ring, LIMIT), 0);
}

static void test_rx_chains_without_room_are_given_back_and_the_packet_is_kept(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){.n_rx_buffers = 1});
	struct ring *ring = &guest->rings[GUEST_RX];
	struct host_stream stream;
	uint64_t at = memory_allocate(&guest->memory, 4096, 64);
	const struct {
		struct ring_buffer buffers[2];
		size_t n;
	} rows[] = {
		{{{at, 0, true}}, 1},
		{{{at, 43, true}}, 1},
		{{{at, 20, true}, {at + 64, 23, true}}, 2},
		{{{at, 1000, false}}, 1},
		{{{at, 1000, false}, {at + 1000, 1000, true}}, 2},
		{{{at, 44, true}, {at + 1000, 100, false}}, 2},
		{{{at, 44, true}}, 1}, /* room for a header; this packet has a byte more */
	};
	const struct ring_buffer good = {at + 2048, 1000, true};
	const size_t n_rows = sizeof(rows) / sizeof(rows[0]);
	struct ring_completion done;
	struct packet packet = {0};

	assert_true(at > 0);
	setup_connect(setup, 0, PORT, &stream);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	for (uint32_t i = 0; i < n_rows; i++)
		assert_int_equal(ring_add(ring, rows[i].buffers, rows[i].n, 0, 100 + i), 0);
	assert_int_equal(ring_add(ring, &good, 1, 0, 200), 0);
	ring_submit(ring);
	/* The guest's own buffer takes the first byte, then all the others are looked at. */
	assert_int_equal(host_write(stream.watch.fd, "A", 1, LIMIT), 0);
	wait_used(ring);
	assert_int_equal(ring_take(ring, &done), 1);
	assert_int_equal(done.len, PACKET_HEADER_LEN + 1);
	assert_int_equal(host_write(stream.watch.fd, "B", 1, LIMIT), 0);
	for (uint32_t i = 0; i < n_rows; i++) {
		wait_used(ring);
		assert_int_equal(ring_take(ring, &done), 1);
		assert_int_equal(done.cookie, 100 + i);
		assert_int_equal(done.len, 0);
	}
	wait_used(ring);
	assert_int_equal(ring_take(ring, &done), 1);
	assert_int_equal(done.cookie, 200);
	assert_int_equal(done.len, PACKET_HEADER_LEN + 1);
	memcpy(&packet, memory_at(&guest->memory, at + 2048), PACKET_HEADER_LEN);
	assert_int_equal(packet.op, PACKET_RW);
	assert_int_equal(packet.len, 1);
	assert_memory_equal(memory_at(&guest->memory, at + 2048 + PACKET_HEADER_LEN), "B", 1);
	setup_end_stream(setup, 0, &stream);
}

/* ---- rings ---- */

enum { FLAG_NEXT = RING_DESCRIPTOR_NEXT, FLAG_INDIRECT = RING_DESCRIPTOR_INDIRECT };

enum layouts { OF_SPLIT = 1, OF_PACKED = 2, OF_BOTH = 3 };

/* Break the ring at its next descriptor; at: a page of guest memory. */
struct breakage {
	const char *reason;
	void (*break_it)(struct ring *ring, uint64_t at);
	enum layouts layouts;
};

static void offer(struct ring *ring, uint64_t address, uint32_t len, uint16_t flags, uint16_t next)
{
	ring_offer_descriptor(ring, address, len, flags, next);
}

static struct ring_descriptor *table(struct ring *ring, uint64_t at)
{
	return memory_at(ring->memory, at);
}

static void jump(struct ring *ring, uint64_t at)
{
	(void)at;
	ring_set_avail_idx(ring, (uint16_t)(ring->avail_idx + ring->size + 1));
}

static void jump_back(struct ring *ring, uint64_t at)
{
	(void)at;
	ring_set_avail_idx(ring, (uint16_t)(ring->avail_idx - ring->n_in_flight - 1));
}

static void bad_head(struct ring *ring, uint64_t at)
{
	(void)at;
	ring_offer_raw(ring, ring->size);
	ring_set_avail_idx(ring, ring->avail_idx);
}

static void bad_next(struct ring *ring, uint64_t at)
{
	offer(ring, at, 44, FLAG_NEXT, ring->size);
}

static void loop(struct ring *ring, uint64_t at)
{
	offer(ring, at, 44, FLAG_NEXT, ring->free_head);
}

static void loop_of_nothing(struct ring *ring, uint64_t at)
{
	offer(ring, at, 0, FLAG_NEXT, ring->free_head);
}

static void no_memory(struct ring *ring, uint64_t at)
{
	(void)at;
	offer(ring, UINT64_C(1) << 40, 44, 0, 0);
}

static void beyond_memory(struct ring *ring, uint64_t at)
{
	(void)at;
	offer(ring, (65 << 20) - 40, 44, 0, 0);
}

static void wrapping(struct ring *ring, uint64_t at)
{
	(void)at;
	offer(ring, UINT64_MAX - 10, 44, 0, 0);
}

static void huge(struct ring *ring, uint64_t at)
{
	offer(ring, at, UINT32_MAX, 0, 0);
}

static void crooked_table(struct ring *ring, uint64_t at)
{
	offer(ring, at, 40, FLAG_INDIRECT, 0);
}

static void empty_table(struct ring *ring, uint64_t at)
{
	offer(ring, at, 0, FLAG_INDIRECT, 0);
}

static void huge_table(struct ring *ring, uint64_t at)
{
	offer(ring, at, 16 * 32769, FLAG_INDIRECT, 0);
}

static void lost_table(struct ring *ring, uint64_t at)
{
	(void)at;
	offer(ring, UINT64_C(1) << 40, 32, FLAG_INDIRECT, 0);
}

static void table_and_next(struct ring *ring, uint64_t at)
{
	*table(ring, at) = (struct ring_descriptor){at, 44, 0, 0};
	offer(ring, at, 16, FLAG_INDIRECT | FLAG_NEXT, 0);
}

static void table_in_table(struct ring *ring, uint64_t at)
{
	*table(ring, at) = (struct ring_descriptor){at, 16, FLAG_INDIRECT, 0};
	offer(ring, at, 16, FLAG_INDIRECT, 0);
}

static void table_loop(struct ring *ring, uint64_t at)
{
	*table(ring, at) = (struct ring_descriptor){at, 44, FLAG_NEXT, 0};
	offer(ring, at, 16, FLAG_INDIRECT, 0);
}

static void table_overrun(struct ring *ring, uint64_t at)
{
	*table(ring, at) = (struct ring_descriptor){at, 44, FLAG_NEXT, 1};
	offer(ring, at, 16, FLAG_INDIRECT, 0);
}

static void whole_round(struct ring *ring, uint64_t at)
{
	for (uint32_t i = 0; i < ring->size; i++)
		offer(ring, at, 44, FLAG_NEXT, 0);
}

static void table_in_row(struct ring *ring, uint64_t at)
{
	/* The second one first: the head makes them a chain. */
	ring->avail_idx++;
	offer(ring, at, 16, FLAG_INDIRECT, 0);
	ring->avail_idx = (uint16_t)(ring->avail_idx - 2);
	offer(ring, at, 44, FLAG_NEXT, 0);
}

static void test_a_broken_ring_is_stopped_and_a_new_driver_may_start_it_again(void **state)
{
	static const struct breakage rows[] = {
		{"avail index jumped", jump, OF_SPLIT},
		{"avail index jumped", jump_back, OF_SPLIT},
		{"descriptor index outside the ring", bad_head, OF_SPLIT},
		{"descriptor index outside the ring", bad_next, OF_SPLIT},
		{"chain longer than the ring", loop, OF_SPLIT},
		{"chain longer than the ring", loop_of_nothing, OF_SPLIT},
		{"address outside guest memory", no_memory, OF_BOTH},
		{"address outside guest memory", beyond_memory, OF_BOTH},
		{"address outside guest memory", wrapping, OF_BOTH},
		{"address outside guest memory", huge, OF_BOTH},
		{"malformed indirect table", crooked_table, OF_BOTH},
		{"malformed indirect table", empty_table, OF_BOTH},
		{"malformed indirect table", huge_table, OF_BOTH},
		{"malformed indirect table", lost_table, OF_BOTH},
		{"malformed indirect table", table_and_next, OF_BOTH},
		{"malformed indirect table", table_in_table, OF_SPLIT},
		{"chain longer than the ring", table_loop, OF_SPLIT},
		{"descriptor index outside the ring", table_overrun, OF_SPLIT},
		{"chain longer than the ring", whole_round, OF_PACKED},
		{"malformed indirect table", table_in_row, OF_PACKED},
	};
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream neighbour_stream, stream;
	struct guest_connection *neighbour;
	uint64_t at = memory_allocate(&guest->memory, 4096, 64);

	assert_true(at > 0);
	setup_guest(setup, 1, (struct guest_options){0});
	neighbour = setup_connect(setup, 1, PORT, &neighbour_stream);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct ring *ring = &guest->rings[GUEST_TX];
		uint64_t count;

		if (!(rows[i].layouts & (ring->is_packed ? OF_PACKED : OF_SPLIT)))
			continue;
		rows[i].break_it(ring, at);
		ring_kick(ring);
		assert_int_equal(socket_wait(ring->err, POLLIN, deadline_in(LIMIT)), 0);
		assert_int_equal(read(ring->err, &count, sizeof(count)), sizeof(count));
		assert_int_equal(count, 1);
		assert_int_equal(daemon_wait_log(&setup->daemon, rows[i].reason, LIMIT), 0);
		/* More of it changes nothing. */
		ring_kick(ring);
		check_lives(neighbour, &neighbour_stream);
		assert_int_equal(socket_wait(ring->err, POLLIN, deadline_in(0)), -ETIMEDOUT);

		assert_int_equal(guest_reset(guest), 0);
		assert_int_equal(guest_resume(guest), 0);
		check_lives(setup_connect(setup, 0, PORT, &stream), &stream);
		setup_end_stream(setup, 0, &stream);
	}
	/* It knows nothing of what it did. */
	setup->expects_violations = true;
	assert_string_equal(guest_violations(&setup->guests[1]), "");
	setup_end_stream(setup, 1, &neighbour_stream);
}

/* ---- floods ---- */

/* Resident memory of one process, in bytes. */
static int64_t resident(pid_t pid)
{
	char path[64];
	FILE *file;
	long n_pages;

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_int_equal(fscanf(file, "%*d %ld", &n_pages), 1);
	fclose(file);
	return n_pages * sysconf(_SC_PAGESIZE);
}

static void wait_fds(struct setup *setup, int n_fds)
{
	int64_t deadline = deadline_in(LIMIT);

	while (daemon_count_fds(&setup->daemon) != n_fds) {
		if (deadline_left(deadline) == 0)
			fail_msg("%d fds instead of %d", daemon_count_fds(&setup->daemon), n_fds);
		assert_int_equal(guest_poll_for(&setup->guests[0], 2), 0);
	}
}

#define FLOOD 10000u

/* A hostile guest that takes no answer, and its neighbour. */
struct flood {
	struct setup *setup;
	struct guest *guest;
	struct guest_connection *alive, *neighbour;
	struct host_stream stream, neighbour_stream;
	pid_t worker;
	int64_t resident;
	uint32_t n_rst;
};

static bool count_rst(void *context, const struct packet *packet, const struct iovec *payload,
		      size_t n_payload)
{
	struct flood *flood = context;

	(void)payload;
	(void)n_payload;
	flood->n_rst += packet->op == PACKET_RST;
	return packet->dst_port >= 100000;
}

static void flood_begin(struct flood *flood, struct setup *setup)
{
	*flood = (struct flood){.setup = setup};
	flood->guest = setup_guest(setup, 0, (struct guest_options){.n_rx_buffers = 1});
	setup_guest(setup, 1, (struct guest_options){0});
	flood->alive = setup_connect(setup, 0, PORT, &flood->stream);
	flood->neighbour = setup_connect(setup, 1, PORT, &flood->neighbour_stream);
	flood->worker = setup_worker(setup, 0);
	check_lives(flood->alive, &flood->stream);
	/* Each of the guest's pages is the worker's as well once it was looked at. */
	for (uint32_t i = 0; i < flood->guest->options.n_tx_buffers; i++) {
		struct packet packet = guest_packet(flood->alive, PACKET_CREDIT_UPDATE);

		send_odd(flood->guest, &packet, 0);
	}
	check_lives(flood->alive, &flood->stream);
	flood->resident = resident(flood->worker);
	/* The one rx buffer is used, and nobody takes it. */
	assert_int_equal(host_write(flood->stream.watch.fd, "x", 1, LIMIT), 0);
	wait_used(&flood->guest->rings[GUEST_RX]);
	flood->guest->on_packet = count_rst;
	flood->guest->on_packet_context = flood;
}

/*
 * Send packets with port after port, until there are enough of them or vsockd
 * takes no more: it sleeps and has not called. How many it may have taken.
 */
static uint32_t flood_send(struct flood *flood, struct packet packet, uint32_t n, bool has_ports)
{
	struct ring *ring = &flood->guest->rings[GUEST_TX];

	for (uint32_t i = 0; i < n; i++) {
		if (has_ports)
			packet.src_port = 100000 + i;
		if (i % 1000 == 0)
			check_lives(flood->neighbour, &flood->neighbour_stream);
		while (guest_send_packet(flood->guest, &packet, NULL, 0, NULL) == -EAGAIN) {
			bool has_slept = daemon_is_asleep(&flood->setup->daemon);

			if (!ring_expect_call(ring) && ring_wait(ring, 2 * QUIET) == -ETIMEDOUT &&
			    has_slept)
				return i;
		}
	}
	return n;
}

static void check_bounded(struct flood *flood, int64_t limit)
{
	check_lives(flood->neighbour, &flood->neighbour_stream);
	assert_true(resident(flood->worker) - flood->resident < limit);
}

struct wanted {
	const struct flood *flood;
	uint32_t n_rst;
};

static bool has_rsts(void *context)
{
	const struct wanted *wanted = context;

	return wanted->flood->n_rst >= wanted->n_rst;
}

/* The guest takes its answers: exactly so many RSTs, and all is as before. */
static void flood_end(struct flood *flood, uint32_t n_rst)
{
	struct wanted wanted = {.flood = flood, .n_rst = n_rst};
	char byte;

	assert_int_equal(guest_wait_until(flood->guest, has_rsts, &wanted, LIMIT), 0);
	assert_int_equal(guest_receive_all(flood->alive, &byte, 1, LIMIT), 1);
	check_lives(flood->alive, &flood->stream);
	assert_int_equal(guest_poll_for(flood->guest, QUIET), 0);
	assert_int_equal(flood->n_rst, n_rst);
}

static void flood_over(struct flood *flood)
{
	flood->guest->on_packet = NULL;
	setup_end_stream(flood->setup, 0, &flood->stream);
	setup_end_stream(flood->setup, 1, &flood->neighbour_stream);
}

static void test_packets_of_nobody_stop_the_tx_ring_until_their_answers_are_taken(void **state)
{
	struct flood flood;
	uint32_t n;

	flood_begin(&flood, *state);
	n = flood_send(&flood, odd_packet(flood.guest, PACKET_RW), FLOOD, true);
	/* Some answers wait, and some packets in the ring; the rest is the guest's problem. */
	assert_in_range(n, 64, 2000);
	check_bounded(&flood, MIB);
	flood_end(&flood, n);
	flood_over(&flood);
}

static void test_a_flood_of_rst_is_swallowed(void **state)
{
	struct flood flood;

	flood_begin(&flood, *state);
	assert_int_equal(flood_send(&flood, odd_packet(flood.guest, PACKET_RST), FLOOD, true),
			 FLOOD);
	check_bounded(&flood, MIB);
	flood_end(&flood, 0);
	flood_over(&flood);
}

static void test_a_flood_of_credit_requests_is_one_answer_that_is_due(void **state)
{
	struct flood flood;
	struct guest_statistics before;

	flood_begin(&flood, *state);
	assert_int_equal(
		flood_send(&flood, guest_packet(flood.alive, PACKET_CREDIT_REQUEST), FLOOD, false),
		FLOOD);
	check_bounded(&flood, MIB);
	before = guest_statistics(flood.guest, GUEST_RX);
	flood_end(&flood, 0);
	/* The byte, the answer, and what moved behind them. */
	assert_in_range(guest_statistics(flood.guest, GUEST_RX).n_packets - before.n_packets, 2,
			10);
	flood_over(&flood);
}

static void test_a_flood_of_requests_to_nobody_is_bounded_and_all_are_refused(void **state)
{
	struct flood flood;
	uint32_t n;

	flood_begin(&flood, *state);
	n = flood_send(&flood, odd_packet(flood.guest, PACKET_REQUEST), FLOOD, true);
	/* An entry for each as long as it lasts. */
	assert_in_range(n, 4095, 6000);
	check_bounded(&flood, 8 * MIB);
	flood_end(&flood, n);
	flood_over(&flood);
}

static int start_two_with_64_connections(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 2, "max-connections=64", NULL);
	return 0;
}

static void test_a_flood_of_requests_to_a_listener_gets_what_may_be_and_no_more(void **state)
{
	struct setup *setup = *state;
	int listener = host_listen(setup->uds_paths[0], NO_PORT);
	struct flood flood;
	uint32_t n;

	assert_true(listener >= 0);
	flood_begin(&flood, setup);
	n = flood_send(&flood, odd_packet(flood.guest, PACKET_REQUEST), FLOOD, true);
	assert_in_range(n, 64, 2000);
	check_bounded(&flood, MIB);
	/* One connection is the test's own. */
	flood_end(&flood, n - 63);
	for (int i = 0; i < 63; i++) {
		int fd = host_accept(listener, LIMIT);

		assert_true(fd >= 0);
		close(fd);
	}
	assert_int_equal(host_accept(listener, QUIET), -ETIMEDOUT);
	close(listener);
	/* The guest's sockets know nothing of those: their goodbye is no violation. */
	assert_int_equal(guest_poll_for(flood.guest, QUIET), 0);
	flood_over(&flood);
}

/* Asked and given up again, while a full backlog keeps each of them waiting. */
static void test_requests_that_are_given_up_at_once_leave_nothing_behind(void **state)
{
	struct setup *setup = *state;
	int listener = host_listen(setup->uds_paths[0], NO_PORT), n_fds;
	struct flood flood;

	assert_true(listener >= 0);
	assert_int_equal(listen(listener, 0), 0);
	flood_begin(&flood, setup);
	n_fds = setup_count_fds(setup);
	for (uint32_t i = 0; i < 3000; i++) {
		struct packet packet = odd_packet(flood.guest, PACKET_REQUEST);

		packet.src_port = 100000 + i % 100;
		assert_int_equal(flood_send(&flood, packet, 1, false), 1);
		packet.op = PACKET_RST;
		assert_int_equal(flood_send(&flood, packet, 1, false), 1);
	}
	check_bounded(&flood, 8 * MIB);
	close(listener);
	flood_end(&flood, 0);
	wait_fds(setup, n_fds);
	flood_over(&flood);
}

/* ---- wear ---- */

static void come_and_go(struct setup *setup, int listener, bool is_from_host)
{
	struct guest *guest = &setup->guests[0];
	struct guest_connection *connection;
	char byte;
	int fd;

	if (is_from_host) {
		fd = host_connect(setup->uds_paths[0], PORT, LIMIT);
		connection = guest_accept_wait(guest, PORT, LIMIT);
	} else {
		connection = guest_connect_wait(guest, PACKET_HOST_CID, PORT, LIMIT);
		fd = host_accept(listener, LIMIT);
	}
	assert_true(fd >= 0);
	assert_non_null(connection);
	assert_int_equal(guest_send_all(connection, "a", 1, LIMIT), 0);
	assert_int_equal(host_write(fd, "b", 1, LIMIT), 0);
	assert_int_equal(guest_receive_all(connection, &byte, 1, LIMIT), 1);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	close(fd);
}

#ifdef __SANITIZE_ADDRESS__
#define WEAR (8 * MIB) /* freed memory is kept for a while */
#else
#define WEAR (MIB / 2)
#endif

static void test_five_thousand_connections_leave_nothing_behind(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	int listener = host_listen(setup->uds_paths[0], PORT), n_fds;
	int64_t before;

	assert_true(listener >= 0);
	assert_int_equal(guest_listen(guest, PORT), 0);
	for (int i = 0; i < 500; i++)
		come_and_go(setup, listener, i % 2);
	n_fds = setup_count_fds(setup);
	before = daemon_resident(&setup->daemon);
	for (int i = 0; i < 5000; i++)
		come_and_go(setup, listener, i % 2);
	assert_true(daemon_resident(&setup->daemon) - before < (int64_t)WEAR);
	wait_fds(setup, n_fds);
	close(listener);
}

#define WITH_ONE(test) cmocka_unit_test_setup_teardown(test, setup_start_one, end)
#define WITH_TWO(test) cmocka_unit_test_setup_teardown(test, setup_start_two, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_ONE(test_a_packet_of_no_connection_gets_rst_but_a_rst_gets_none),
		WITH_TWO(test_packets_of_others_are_dropped_and_requests_to_nobody_refused),
		WITH_ONE(test_an_odd_packet_of_a_connection_is_ignored_or_ends_it),
		WITH_ONE(test_bytes_behind_len_are_no_part_of_the_stream),
		WITH_ONE(test_bytes_before_a_malformed_packet_still_arrive),
		WITH_ONE(test_shutdown_hints_add_up_and_bytes_after_them_end_the_connection),
		WITH_ONE(test_a_pair_of_ports_may_be_used_again_at_once),
		WITH_ONE(test_bytes_beyond_our_buffer_end_the_connection),
		WITH_ONE(test_a_fwd_cnt_that_lies_gets_no_bytes),
		WITH_ONE(test_what_is_no_answer_to_a_request_refuses_it),
		WITH_ONE(test_chains_that_are_no_packet_are_given_back_and_the_ring_goes_on),
		WITH_ONE(test_rx_chains_without_room_are_given_back_and_the_packet_is_kept),
		WITH_TWO(test_a_broken_ring_is_stopped_and_a_new_driver_may_start_it_again),
		WITH_TWO(test_packets_of_nobody_stop_the_tx_ring_until_their_answers_are_taken),
		WITH_TWO(test_a_flood_of_rst_is_swallowed),
		WITH_TWO(test_a_flood_of_credit_requests_is_one_answer_that_is_due),
		WITH_TWO(test_a_flood_of_requests_to_nobody_is_bounded_and_all_are_refused),
		cmocka_unit_test_setup_teardown(
			test_a_flood_of_requests_to_a_listener_gets_what_may_be_and_no_more,
			start_two_with_64_connections, end),
		WITH_TWO(test_requests_that_are_given_up_at_once_leave_nothing_behind),
		WITH_ONE(test_five_thousand_connections_leave_nothing_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
