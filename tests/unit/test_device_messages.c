/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

#define EOM 1u
#define EOR 2u

#define WINDOW (56u * 1024) /* seven eighths of the rig's 64 KiB */
#define LONG   (300u * 1024)

static uint8_t bytes[LONG], received[LONG];

static void start(const struct rig_options *options)
{
	struct rig_options chosen = *options;

	chosen.features |= RIG_F_SEQPACKET;
	rig_start(&chosen);
	for (uint32_t i = 0; i < LONG; i++)
		bytes[i] = rig_byte(3, i);
}

static int set_up(void **state)
{
	(void)state;
	start(&(struct rig_options){.num = 1024});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static const struct connection *connection_of(const struct rig_peer *peer)
{
	return connection_find(&rig.device.connections, PACKET_HOST_CID, peer->guest_port,
			       peer->host_port, PACKET_TYPE_SEQPACKET);
}

static struct rig_peer guest_connects(void)
{
	rig_offer(1, 4096);
	return rig_guest_connects_messages(1000, 80);
}

static struct rig_peer host_connects(void)
{
	rig_offer(1, 4096);
	return rig_host_connects_messages(1000);
}

/* ---- the host program ---- */

static void host_reads(const struct rig_peer *peer, const void *message, size_t len)
{
	ssize_t n = recv(peer->host, received, sizeof(received), MSG_TRUNC);

	if (n != (ssize_t)len)
		fail_msg("%zd bytes, %s; %zu were to come", n, strerror(errno), len);
	if (len > 0)
		assert_memory_equal(received, message, len);
}

/* ---- the guest ---- */

/* A message in packets of at most piece bytes; the host program is given time after all. */
static void guest_puts(const struct rig_peer *peer, const uint8_t *message, uint32_t len,
		       uint32_t piece)
{
	struct packet_header header = rig_header(peer, PACKET_OP_RW);
	uint32_t done = 0;

	do {
		header.len = len - done < piece ? len - done : piece;
		header.flags = done + header.len == len ? EOM : 0;
		rig_put(&header, header.len > 0 ? message + done : NULL);
		done += header.len;
	} while (done < len);
}

static void guest_sends(const struct rig_peer *peer, const uint8_t *message, uint32_t len)
{
	guest_puts(peer, message, len, PACKET_PAYLOAD_MAX);
	rig_run();
}

/* Takes data packets up to the one that ends a message; what else comes is looked over. */
static uint32_t guest_takes(struct rig_peer *peer)
{
	static struct rig_packet packet;
	uint32_t len = 0;

	for (;;) {
		if (!rig_take(&packet))
			fail_msg("no message, only %u bytes of one", len);
		if (packet.header.op != PACKET_OP_RW)
			continue;
		assert_int_equal(packet.header.type, PACKET_TYPE_SEQPACKET);
		assert_int_equal(packet.header.dst_port, peer->guest_port);
		assert_int_equal(packet.header.src_port, peer->host_port);
		assert_true(len + packet.header.len <= sizeof(received));
		memcpy(received + len, packet.payload, packet.header.len);
		len += packet.header.len;
		peer->fwd_cnt += packet.header.len;
		if (packet.header.flags == EOM)
			return len;
		assert_int_equal(packet.header.flags, 0);
		assert_true(packet.header.len > 0);
	}
}

static void drop_packets(void)
{
	static struct rig_packet packet;

	while (rig_take(&packet))
		;
}

static void guest_reads(struct rig_peer *peer, const void *message, uint32_t len)
{
	assert_int_equal(guest_takes(peer), len);
	if (len > 0)
		assert_memory_equal(received, message, len);
}

/* Behind what it was told of its credit. */
static void expect_rst(const struct rig_peer *peer)
{
	static struct rig_packet packet;

	do {
		if (!rig_take(&packet))
			fail_msg("no RST");
	} while (packet.header.op == PACKET_OP_CREDIT_UPDATE);
	assert_int_equal(packet.header.op, PACKET_OP_RST);
	assert_int_equal(packet.header.dst_port, peer->guest_port);
	assert_int_equal(packet.header.type, PACKET_TYPE_SEQPACKET);
}

static void expect_reset(const struct rig_peer *peer, enum report_event why, uint64_t value)
{
	struct rig_told told = {0};

	expect_rst(peer);
	rig_expect_report(why, &told);
	assert_int_equal(told.values[1], peer->host_port);
	assert_int_equal(told.values[2], peer->guest_port);
	assert_int_equal(told.values[3], value);
	assert_true(rig_is_closed(peer->endpoint));
	assert_int_equal(rig_n_chunks(), 0);
}

/* ---- types ---- */

static void test_a_driver_may_use_the_types_that_it_negotiated(void **state)
{
	static const struct {
		uint64_t features;
		bool has_stream, has_messages;
	} cases[] = {
		{0, true, false},
		{RIG_F_STREAM, true, false},
		{RIG_F_SEQPACKET, true, true},
		{RIG_F_STREAM | RIG_F_SEQPACKET, true, true},
		{RIG_F_NO_IMPLIED, false, false},
		{RIG_F_NO_IMPLIED | RIG_F_STREAM, true, false},
		{RIG_F_NO_IMPLIED | RIG_F_SEQPACKET, false, true},
		{RIG_F_NO_IMPLIED | RIG_F_STREAM | RIG_F_SEQPACKET, true, true},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const bool allowed[] = {false, cases[i].has_stream, cases[i].has_messages, false};
		struct rig_peer peer = {.guest_port = 7, .host_port = 80, .buf_alloc = 4096};

		rig_start(&(struct rig_options){.features = cases[i].features});
		rig_offer(4, 4096);
		for (uint16_t type = 0; type < 4; type++) {
			struct packet_header header = rig_header(&peer, PACKET_OP_REQUEST);
			struct rig_told told;

			header.type = type;
			rig_send(&header, NULL);
			assert_int_equal(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told),
					 allowed[type]);
			if (!allowed[type])
				rig_expect_rst(PACKET_HOST_CID, 80, 7, type);
		}
		rig_end();
	}
}

static void test_a_stream_and_messages_share_their_ports_and_nothing_else(void **state)
{
	struct rig_peer messages, stream;

	(void)state;
	rig_offer(2, 4096);
	stream = rig_guest_connects(1000, 80);
	messages = rig_guest_connects_messages(1000, 80);
	guest_sends(&messages, (const uint8_t *)"message", 7);
	rig_rw(&stream, "stream", 6);
	host_reads(&messages, "message", 7);
	rig_host_reads(&stream, "stream", 6);
	rig_say(&stream, PACKET_OP_RST, 0);
	guest_sends(&messages, (const uint8_t *)"more", 4);
	host_reads(&messages, "more", 4);
	rig_close_host(&messages);
	rig_close_host(&stream);
}

static void test_a_packet_of_the_other_type_is_reset_and_the_connection_stays(void **state)
{
	struct rig_peer peer = guest_connects();
	struct packet_header header = rig_header(&peer, PACKET_OP_RW);

	(void)state;
	rig_offer(1, 4096);
	header.type = PACKET_TYPE_STREAM;
	header.len = 5;
	rig_send(&header, "bytes");
	rig_expect_rst(PACKET_HOST_CID, 80, 1000, PACKET_TYPE_STREAM);
	guest_sends(&peer, (const uint8_t *)"still", 5);
	host_reads(&peer, "still", 5);
	rig_close_host(&peer);
}

/* ---- from the guest ---- */

static const uint32_t lens[] = {1,    2,     43,    44,	   45,	  4095,	      4096,
				4097, 16383, 16384, 16385, 40000, WINDOW - 1, WINDOW};
#define LENS (sizeof(lens) / sizeof(lens[0]))

static void test_a_message_of_any_length_comes_as_one_and_without_a_copy(void **state)
{
	struct rig_peer peer = guest_connects();

	(void)state;
	rig_offer(100, 4096);
	for (size_t i = 0; i < LENS; i++) {
		guest_sends(&peer, bytes + i, lens[i]);
		host_reads(&peer, bytes + i, lens[i]);
	}
	rig_host_reads_nothing(&peer);
	assert_int_equal(rig.device.pool.n_touched, 0);
	rig_close_host(&peer);
}

static void test_fragments_in_one_batch_become_one_message_without_a_copy(void **state)
{
	static const uint32_t pieces[] = {1, 3, 100, 4096, 4097};
	struct rig_peer peer = guest_connects();

	(void)state;
	rig_offer(100, 4096);
	for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
		uint32_t len = pieces[i] * 60 < WINDOW ? pieces[i] * 60 : WINDOW;

		guest_puts(&peer, bytes, len, pieces[i]);
		rig_run();
		host_reads(&peer, bytes, len);
	}
	assert_int_equal(rig.device.pool.n_touched, 0);
	rig_close_host(&peer);
}

static void test_fragments_that_come_one_by_one_wait_for_the_last(void **state)
{
	struct rig_peer peer = guest_connects();

	(void)state;
	rig_offer(100, 4096);
	for (size_t i = 0; i < LENS; i++) {
		uint32_t done = 0, piece = lens[i] / 7 + 1;

		while (lens[i] - done > piece) {
			rig_rw_flags(&peer, bytes + done, piece, 0);
			rig_host_reads_nothing(&peer);
			done += piece;
		}
		rig_rw_flags(&peer, bytes + done, lens[i] - done, EOM);
		host_reads(&peer, bytes, lens[i]);
		assert_int_equal(rig_n_chunks(), 0);
	}
	rig_close_host(&peer);
}

static void test_eom_ends_a_message_and_nothing_else_does(void **state)
{
	struct rig_peer peer = guest_connects();
	struct msghdr message = {0};
	struct iovec part = {received, sizeof(received)};

	(void)state;
	for (uint32_t flags = 0; flags < 8; flags++) {
		rig_rw_flags(&peer, "first ", 6, flags & ~EOM);
		rig_host_reads_nothing(&peer);
		rig_rw_flags(&peer, "last", 4, flags | EOM);
		message.msg_iov = &part;
		message.msg_iovlen = 1;
		assert_int_equal(recvmsg(peer.host, &message, 0), 10);
		assert_memory_equal(received, "first last", 10);
		/* There is no end of record between unix sockets. */
		assert_int_equal(message.msg_flags, 0);
	}
	rig_rw_flags(&peer, "", 0, 0);
	rig_host_reads_nothing(&peer);
	rig_rw_flags(&peer, "x", 1, 0xfffffffc);
	rig_host_reads_nothing(&peer);
	/* The end of a message may come without a byte. */
	rig_rw_flags(&peer, "", 0, EOM);
	host_reads(&peer, "x", 1);
	rig_close_host(&peer);
}

static void test_an_empty_message_is_one(void **state)
{
	struct rig_peer peer = guest_connects();

	(void)state;
	guest_puts(&peer, bytes, 0, 1);
	guest_puts(&peer, bytes, 3, 1);
	guest_puts(&peer, bytes, 0, 1);
	guest_puts(&peer, bytes, 0, 1);
	rig_run();
	host_reads(&peer, NULL, 0);
	host_reads(&peer, bytes, 3);
	host_reads(&peer, NULL, 0);
	host_reads(&peer, NULL, 0);
	rig_host_reads_nothing(&peer);
	rig_close_host(&peer);
}

static void test_a_message_of_more_parts_than_a_call_takes_comes_whole(void **state)
{
	static struct rig_buffer buffers[1000];
	struct rig_peer peer = guest_connects();
	struct packet_header header = rig_header(&peer, PACKET_OP_RW);

	(void)state;
	/* 1998 parts of a byte, in two packets. */
	for (uint32_t packet = 0; packet < 2; packet++) {
		header.len = 999;
		header.flags = packet == 1 ? EOM : 0;
		buffers[0] = (struct rig_buffer){rig_place(44), 44, 0};
		memcpy(rig_at(buffers[0].guest_address), &header, 44);
		for (uint32_t i = 1; i < 1000; i++) {
			buffers[i] = (struct rig_buffer){rig_place(2), 1, 0};
			*rig_at(buffers[i].guest_address) = bytes[packet * 999 + i - 1];
		}
		rig_put_chain(RING_TX, buffers, 1000);
		/* The ring has 1024 descriptors: the first packet has to go before the next. */
		rig_run();
	}
	host_reads(&peer, bytes, 1998);
	rig_close_host(&peer);
}

/* As many as the socket takes, and then some that wait in the buffer. */
static uint32_t fill_socket(const struct rig_peer *peer, uint32_t len, uint32_t n_more)
{
	uint32_t n = 0;

	while (connection_of(peer)->n_kept < n_more) {
		guest_sends(peer, bytes + n, len);
		assert_non_null(connection_of(peer));
		n++;
	}
	return n;
}

static void test_messages_wait_for_a_slow_reader_and_keep_their_borders(void **state)
{
	static const uint32_t sizes[] = {1, 100, 5000, 16380, 20000};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct rig_peer peer = guest_connects();
		uint32_t n_more = sizes[i] < 5000 ? 20 : 2, n;

		rig_offer(50, 4096);
		n = fill_socket(&peer, sizes[i], n_more);
		assert_true(n > n_more);
		guest_sends(&peer, NULL, 0);
		for (uint32_t k = 0; k < n; k++) {
			host_reads(&peer, bytes + k, sizes[i]);
			rig_run();
		}
		host_reads(&peer, NULL, 0);
		rig_host_reads_nothing(&peer);
		assert_int_equal(rig_n_chunks(), 0);
		/* All of its credit is back, and the guest knows. */
		assert_int_equal(connection_of(&peer)->credit.fwd_cnt, n * sizes[i]);
		rig_say(&peer, PACKET_OP_RST, 0);
		rig_close_host(&peer);
		drop_packets();
	}
}

static void test_credit_comes_back_while_a_message_is_not_whole(void **state)
{
	struct rig_peer peer = guest_connects();
	uint32_t announced = 0, sent = 0;
	static struct rig_packet packet;

	(void)state;
	/* Never more than the guest may send; and it has nothing else to wait for. */
	rig_offer(500, 4096);
	for (uint32_t i = 0; i < 40; i++) {
		uint32_t len = 1 + i * 1409, done = 0;

		while (done < len) {
			uint32_t room = WINDOW - (sent - announced);
			uint32_t n = len - done < 1000 ? len - done : 1000;

			n = n < room ? n : room;
			if (n == 0)
				fail_msg("message %u of %u bytes: no credit at %u", i, len, done);
			rig_rw_flags(&peer, bytes + done, n, done + n == len ? EOM : 0);
			done += n;
			sent += n;
			while (rig_take(&packet))
				announced = packet.header.fwd_cnt;
		}
		host_reads(&peer, bytes, len);
		rig_run();
	}
	rig_close_host(&peer);
}

static void test_a_message_without_end_is_reset_at_the_end_of_its_credit(void **state)
{
	struct rig_peer peer = guest_connects();

	(void)state;
	rig_offer(2, 4096);
	for (uint32_t done = 0; done < WINDOW; done += 4096) {
		rig_rw_flags(&peer, bytes, 4096, 0);
		assert_non_null(connection_of(&peer));
	}
	rig_host_reads_nothing(&peer);
	rig_rw_flags(&peer, bytes, 1, 0);
	expect_reset(&peer, REPORT_PEER_MISBEHAVED, PACKET_OP_RW);
	rig_host_reads_end(&peer);
	rig_close_host(&peer);
}

static void test_messages_without_bytes_are_not_kept_for_ever(void **state)
{
	struct rig_peer peer = guest_connects();
	uint32_t n = 0;

	(void)state;
	rig_offer(2, 4096);
	while (connection_of(&peer)) {
		guest_sends(&peer, NULL, 0);
		assert_true(n++ < 64 * 1024 / 4 + 1000);
	}
	assert_true(n > 64 * 1024 / 4);
	expect_reset(&peer, REPORT_MESSAGES_UNREAD, 64 * 1024 / 4);
	rig_close_host(&peer);
}

static void test_a_message_that_the_socket_refuses_ends_the_connection(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_end();
	start(&(struct rig_options){.buffer_size = 512 * 1024, .message_size = 400 * 1024});
	peer = guest_connects();
	rig_offer(20, 4096);
	rig_narrow(&peer);
	/* The smallest buffer that there is takes a few KiB. */
	guest_sends(&peer, bytes, 200 * 1024);
	expect_reset(&peer, REPORT_MESSAGE_REFUSED, 200 * 1024);
	rig_host_reads_end(&peer);
	rig_close_host(&peer);

	/* So does one that waited. */
	peer = guest_connects();
	rig_offer(20, 4096);
	rig_narrow(&peer);
	while (connection_of(&peer)->n_kept == 0)
		guest_sends(&peer, bytes, 100);
	guest_sends(&peer, bytes, 200 * 1024);
	assert_int_equal(connection_of(&peer)->n_kept, 2);
	while (recv(peer.host, received, sizeof(received), 0) > 0)
		rig_run();
	expect_reset(&peer, REPORT_MESSAGE_REFUSED, 200 * 1024);
	rig_close_host(&peer);
}

static void test_what_nobody_reads_any_more_is_dropped_and_its_credit_given_back(void **state)
{
	struct rig_peer peer = guest_connects();
	const struct rig_packet *packet;

	(void)state;
	rig_offer(20, 4096);
	fill_socket(&peer, 10000, 2);
	rig_rw_flags(&peer, bytes, 100, 0);
	assert_int_equal(shutdown(peer.host, SHUT_RD), 0);
	while (recv(peer.host, received, sizeof(received), 0) > 0)
		;
	rig_run();
	drop_packets();
	assert_int_equal(connection_of(&peer)->credit.fwd_cnt, connection_of(&peer)->credit.rx_cnt);
	assert_int_equal(rig_n_chunks(), 0);
	rig_offer(4, 4096);
	guest_sends(&peer, bytes, 30000);
	packet = rig_expect(&peer, PACKET_OP_CREDIT_UPDATE);
	assert_int_equal(packet->header.fwd_cnt, connection_of(&peer)->credit.fwd_cnt);
	rig_close_host(&peer);
}

static void test_whole_messages_are_delivered_after_the_guest_has_gone(void **state)
{
	struct rig_peer peer = guest_connects();
	uint32_t n;

	(void)state;
	rig_offer(20, 4096);
	n = fill_socket(&peer, 10000, 2);
	rig_rw_flags(&peer, bytes, 100, 0);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	expect_rst(&peer);
	for (uint32_t i = 0; i < n; i++) {
		host_reads(&peer, bytes + i, 10000);
		rig_run();
	}
	rig_host_reads_end(&peer);
	assert_true(rig_is_closed(peer.endpoint));
	assert_int_equal(rig_n_chunks(), 0);
	rig_close_host(&peer);
}

static void test_the_host_program_sees_the_end_behind_the_last_message(void **state)
{
	struct rig_peer peer = guest_connects();
	uint32_t n;

	(void)state;
	rig_offer(20, 4096);
	n = fill_socket(&peer, 10000, 2);
	rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_SEND);
	for (uint32_t i = 0; i < n; i++) {
		host_reads(&peer, bytes + i, 10000);
		rig_run();
	}
	rig_host_reads_end(&peer);
	/* The other direction goes on. */
	rig_host_writes(&peer, "reply", 5);
	rig_run();
	guest_reads(&peer, "reply", 5);
	rig_close_host(&peer);
}

/* ---- from the host ---- */

static void test_a_message_of_the_host_fills_rx_buffers_and_ends_in_the_last(void **state)
{
	struct rig_peer peer = host_connects();

	(void)state;
	for (size_t i = 0; i < LENS; i++) {
		rig_offer(20, 4096);
		rig_host_writes(&peer, bytes + i, lens[i]);
		rig_run();
		guest_reads(&peer, bytes + i, lens[i]);
		rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	}
	/* Every border of an rx buffer. */
	for (uint32_t len = 3 * 4052 - 2; len <= 3 * 4052 + 2; len++) {
		rig_offer(20, 4096);
		rig_host_writes(&peer, bytes, len);
		rig_run();
		guest_reads(&peer, bytes, len);
		rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	}
	assert_int_equal(rig.device.pool.n_touched, 0);
	rig_close_host(&peer);
}

static void test_messages_that_were_sent_early_come_after_the_handshake(void **state)
{
	struct rig_peer peer = {
		.type = PACKET_TYPE_SEQPACKET,
		.guest_port = 9,
		.buf_alloc = RIG_GUEST_BUFFER,
	};
	static struct rig_packet packet;
	char line[32];

	(void)state;
	rig_offer(5, 4096);
	peer.endpoint = rig_accept_of(PACKET_TYPE_SEQPACKET, &peer.host);
	rig_host_writes(&peer, "connect 9\n", 10);
	rig_host_writes(&peer, "one", 3);
	rig_host_writes(&peer, "three", 5);
	rig_run();
	assert_true(rig_take(&packet));
	assert_int_equal(packet.header.op, PACKET_OP_REQUEST);
	assert_int_equal(packet.header.type, PACKET_TYPE_SEQPACKET);
	assert_int_equal(packet.header.buf_alloc, WINDOW);
	peer.host_port = packet.header.src_port;
	rig_expect_no_packet();
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	snprintf(line, sizeof(line), "OK %u\n", peer.host_port);
	host_reads(&peer, line, strlen(line));
	guest_reads(&peer, "one", 3);
	guest_reads(&peer, "three", 5);
	rig_close_host(&peer);
}

static void test_the_line_is_a_message_of_its_own(void **state)
{
	static const char *const first[] = {
		"CONNECT 9",
		"CONNECT 9\nx",
		"CONNECT 9\n\n",
		"CONN",
		"CONNECT 00000000000000000000009\nand more",
		"CONNECT 9\r",
	};
	struct rig_told told = {0};

	(void)state;
	for (size_t i = 0; i < sizeof(first) / sizeof(first[0]); i++) {
		struct rig_peer peer = {.guest_port = 9};

		peer.endpoint = rig_accept_of(PACKET_TYPE_SEQPACKET, &peer.host);
		rig_host_writes(&peer, first[i], strlen(first[i]));
		rig_run();
		rig_expect_report(REPORT_HANDSHAKE_FAILED, &told);
		assert_int_equal(told.values[2], REPORT_HANDSHAKE_MALFORMED);
		assert_true(rig_is_closed(peer.endpoint));
		rig_close_host(&peer);
	}
}

static void test_a_message_waits_until_the_guest_has_room_for_all_of_it(void **state)
{
	struct rig_peer peer = host_connects();

	(void)state;
	peer.buf_alloc = 20000;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_offer(100, 4096);
	rig_host_writes(&peer, bytes, 15000);
	rig_host_writes(&peer, bytes + 1, 5001);
	rig_run();
	guest_reads(&peer, bytes, 15000);
	rig_expect_no_packet();
	peer.fwd_cnt = 0;
	rig_sleep(1000);
	/* It is asked now and then, and says that it has read nothing. */
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_expect_no_packet();
	peer.fwd_cnt = 1;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	guest_reads(&peer, bytes + 1, 5001);
	rig_sleep(1000);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

static void test_a_message_that_never_fits_the_guest_ends_the_connection(void **state)
{
	struct rig_peer peer = host_connects();

	(void)state;
	peer.buf_alloc = 20000;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_offer(100, 4096);
	rig_host_writes(&peer, bytes, 20000);
	rig_host_writes(&peer, bytes, 20001);
	rig_run();
	guest_reads(&peer, bytes, 20000);
	expect_reset(&peer, REPORT_MESSAGE_TOO_LONG, 20001);
	rig_close_host(&peer);
}

static void test_a_message_longer_than_the_rx_ring_comes_in_turns(void **state)
{
	struct rig_peer peer = host_connects(), other;

	(void)state;
	rig_offer(1, 4096);
	other = rig_host_connects_messages(2000);
	rig_offer(2, 1000);
	rig_host_writes(&peer, bytes, 50000);
	rig_run();
	assert_true(rig_n_chunks() > 0);
	rig_host_writes(&other, bytes + 7, 50000);
	rig_host_writes(&peer, bytes + 1, 3);
	for (uint32_t i = 0; i < 40; i++) {
		rig_offer(3, 1000);
		rig_run();
	}
	guest_reads(&peer, bytes, 50000);
	assert_true(rig.device.has_rest || connection_of(&other)->next_len == 0);
	/* Which of them is next is not said; the ports tell. */
	rig_offer(60, 1000);
	rig_run();
	assert_int_equal(rig_n_chunks(), 0);
	assert_false(rig.device.has_rest);
	rig_close_host(&peer);
	rig_close_host(&other);
}

static void test_the_rest_of_a_message_goes_with_its_connection(void **state)
{
	struct rig_peer peer, other;

	(void)state;
	for (uint32_t how = 0; how < 4; how++) {
		peer = host_connects();
		rig_offer(1, 4096);
		other = rig_host_connects_messages(2000);
		rig_offer(2, 1000);
		rig_host_writes(&peer, bytes, 50000);
		rig_run();
		assert_true(rig.device.has_rest);
		if (how == 0)
			rig_say(&peer, PACKET_OP_RST, 0);
		else if (how == 1)
			rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
		else if (how == 2)
			rig_say(&peer, PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_RECEIVE);
		else
			rig_reset();
		assert_false(rig.device.has_rest);
		assert_int_equal(rig_n_chunks(), 0);
		if (how < 3) {
			rig_offer(10, 4096);
			rig_run();
			drop_packets();
			rig_host_writes(&other, bytes, 30000);
			rig_run();
			guest_reads(&other, bytes, 30000);
		}
		rig_reset();
		rig_close_host(&peer);
		rig_close_host(&other);
		drop_packets();
	}
}

static void test_an_empty_message_of_the_host_is_told_from_its_end(void **state)
{
	struct rig_peer peer = host_connects();

	(void)state;
	rig_offer(100, 4096);
	rig_host_writes(&peer, "", 0);
	rig_run();
	guest_reads(&peer, NULL, 0);
	rig_host_writes(&peer, "", 0);
	rig_host_writes(&peer, "", 0);
	rig_host_writes(&peer, "x", 1);
	rig_host_writes(&peer, "", 0);
	rig_run();
	guest_reads(&peer, NULL, 0);
	guest_reads(&peer, NULL, 0);
	guest_reads(&peer, "x", 1);
	guest_reads(&peer, NULL, 0);
	rig_expect_no_packet();
	/* Finished before it was looked at: still those that another message follows. */
	rig_host_writes(&peer, "", 0);
	rig_host_writes(&peer, "", 0);
	rig_host_writes(&peer, "y", 1);
	assert_int_equal(shutdown(peer.host, SHUT_WR), 0);
	rig_run();
	guest_reads(&peer, NULL, 0);
	guest_reads(&peer, NULL, 0);
	guest_reads(&peer, "y", 1);
	assert_int_equal(rig_expect(&peer, PACKET_OP_SHUTDOWN)->header.flags, PACKET_SHUTDOWN_SEND);
	rig_expect_no_packet();
	guest_sends(&peer, bytes, 9);
	host_reads(&peer, bytes, 9);
	rig_close_host(&peer);
}

static void test_the_end_is_no_message(void **state)
{
	(void)state;
	for (uint32_t how = 0; how < 3; how++) {
		struct rig_peer peer = host_connects();

		rig_offer(3, 4096);
		if (how == 1)
			rig_host_writes(&peer, "last", 4);
		if (how == 2) {
			/* The event comes a round after the socket was found empty. */
			connection_of(&peer);
			rig_run();
		}
		rig_close_host(&peer);
		rig_run();
		if (how == 1)
			guest_reads(&peer, "last", 4);
		assert_int_equal(rig_expect(&peer, PACKET_OP_SHUTDOWN)->header.flags,
				 PACKET_SHUTDOWN_BOTH);
		rig_expect_no_packet();
		rig_say(&peer, PACKET_OP_RST, 0);
		assert_true(rig_is_closed(peer.endpoint));
	}
}

static void test_what_was_sent_before_a_reset_arrives_before_it(void **state)
{
	struct rig_peer peer = host_connects();

	(void)state;
	rig_offer(10, 4096);
	guest_sends(&peer, bytes, 10); /* which the program never reads */
	rig_host_writes(&peer, "words", 5);
	rig_host_writes(&peer, "last words", 10);
	rig_close_host(&peer);
	rig_run();
	guest_reads(&peer, "words", 5);
	guest_reads(&peer, "last words", 10);
	rig_expect(&peer, PACKET_OP_RST);
	rig_expect_no_packet();
}

static void test_small_messages_stop_at_what_the_guest_accounts_for(void **state)
{
	struct rig_peer peer = host_connects();
	uint32_t n = 0;

	(void)state;
	peer.buf_alloc = 32 * 1024;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_offer(200, 4096);
	for (uint32_t i = 0; i < 100; i++)
		rig_host_writes(&peer, bytes + i, 1);
	rig_run();
	while (n < 32)
		guest_reads(&peer, bytes + n++, 1);
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_expect_no_packet();
	while (n < 100) {
		rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
		for (uint32_t end = n + 32 < 100 ? n + 32 : 100; n < end; n++)
			guest_reads(&peer, bytes + n, 1);
		drop_packets();
	}
	rig_close_host(&peer);
}

/* Forty of them, and the guest accounts for 32; it has announced nothing. */
static struct rig_peer fill_with_empty_messages(void)
{
	struct rig_peer peer = host_connects();

	peer.buf_alloc = 32 * 1024;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_offer(100, 4096);
	for (uint32_t i = 0; i < 40; i++)
		rig_host_writes(&peer, "", 0);
	rig_run();
	for (uint32_t i = 0; i < 32; i++)
		guest_reads(&peer, NULL, 0);
	rig_expect_no_packet();
	return peer;
}

static void test_empty_messages_go_on_when_one_was_read_and_no_sooner(void **state)
{
	struct rig_peer peer = fill_with_empty_messages();

	(void)state;
	for (uint32_t i = 0; i < 8; i++) {
		/* Of these says none that anything was read. */
		rig_rw_flags(&peer, "x", 1, EOM);
		rig_host_reads(&peer, "x", 1);
		rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
		rig_expect(&peer, PACKET_OP_CREDIT_UPDATE);
		rig_expect_no_packet();
		/* A guest announces each message that it reads. */
		rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
		guest_reads(&peer, NULL, 0);
		rig_expect_no_packet();
		/* It may take its time: whoever announced one is not overrun by any timer. */
		rig_sleep(10000);
		rig_expect_no_packet();
	}
	rig_close_host(&peer);
}

static void test_a_guest_that_announces_no_empty_message_gets_more_by_and_by(void **state)
{
	struct rig_peer peer = fill_with_empty_messages();

	(void)state;
	rig_sleep(CONNECTION_MESSAGE_MS - 1);
	rig_expect_no_packet();
	rig_sleep(1);
	for (uint32_t i = 32; i < 40; i++)
		guest_reads(&peer, NULL, 0);
	rig_expect_no_packet();
	rig_close_host(&peer);
}

/* Empty messages in front of a byte are read when it is; those behind it are not. */
static void test_bytes_that_were_read_tell_of_the_empty_messages_before_them(void **state)
{
	struct rig_peer peer = host_connects();

	(void)state;
	peer.buf_alloc = 32 * 1024;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_offer(100, 4096);
	for (uint32_t i = 0; i < 60; i++)
		rig_host_writes(&peer, "x", i == 20);
	rig_run();
	for (uint32_t i = 0; i < 32; i++)
		guest_reads(&peer, "x", i == 20);
	rig_expect(&peer, PACKET_OP_CREDIT_REQUEST);
	rig_expect_no_packet();
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	for (uint32_t i = 32; i < 32 + 21; i++)
		guest_reads(&peer, NULL, 0);
	rig_expect_no_packet();
	for (uint32_t i = 32 + 21; i < 60; i++) {
		rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
		guest_reads(&peer, NULL, 0);
		rig_expect_no_packet();
	}
	rig_close_host(&peer);
}

/* A byte and as many empty messages as the guest accounts for; they alone are unread. */
static void read_a_byte_before_empty_messages(struct rig_peer *peer)
{
	for (uint32_t i = 0; i < 40; i++)
		rig_host_writes(peer, "x", i == 0);
	rig_run();
	for (uint32_t i = 0; i < 32; i++)
		guest_reads(peer, "x", i == 0);
	rig_expect(peer, PACKET_OP_CREDIT_REQUEST);
	/* It tells of the byte with another packet than the answer. */
	rig_rw_flags(peer, "y", 1, EOM);
	rig_host_reads(peer, "y", 1);
	guest_reads(peer, NULL, 0);
	rig_expect_no_packet();
}

static void announce_empty_messages(const struct rig_peer *peer, uint32_t n_before, uint32_t n)
{
	static struct rig_packet packet;

	for (uint32_t i = 0; i < n; i++) {
		rig_say(peer, PACKET_OP_CREDIT_UPDATE, 0);
		assert_int_equal(rig_take(&packet), i < n_before);
		rig_expect_no_packet();
	}
}

static void test_an_answer_says_nothing_of_empty_messages(void **state)
{
	struct rig_peer peer = host_connects();

	(void)state;
	peer.buf_alloc = 32 * 1024;
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_offer(200, 4096);
	read_a_byte_before_empty_messages(&peer);
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_expect_no_packet();
	announce_empty_messages(&peer, 7, 39);

	/* By now it is known to announce them. The answer comes late, and then nothing. */
	read_a_byte_before_empty_messages(&peer);
	rig_sleep(CONNECTION_MESSAGE_MS / 2);
	rig_say(&peer, PACKET_OP_CREDIT_UPDATE, 0);
	rig_sleep(10 * CONNECTION_MESSAGE_MS);
	rig_expect_no_packet();
	announce_empty_messages(&peer, 7, 39);

	/* One that never comes holds nobody up. */
	read_a_byte_before_empty_messages(&peer);
	rig_sleep(CONNECTION_MESSAGE_MS);
	for (uint32_t i = 0; i < 7; i++)
		guest_reads(&peer, NULL, 0);
	rig_close_host(&peer);
}

static void test_messages_to_the_guest_wait_for_their_second_whole(void **state)
{
	struct rig_peer peer;

	tear_down(state);
	start(&(struct rig_options){.num = 1024, .bytes_per_second = 10000});
	peer = host_connects();
	rig_offer(100, 4096);
	for (uint32_t i = 0; i < 5; i++)
		rig_host_writes(&peer, bytes + i, 20000);
	rig_run();
	/* The bucket is never smaller than the longest packet; the fourth was too much. */
	for (uint32_t i = 0; i < 4; i++)
		guest_reads(&peer, bytes + i, 20000);
	rig_expect_no_packet();
	assert_in_range(device_timeout(&rig.device), 1, 10000);
	rig_sleep((uint64_t)device_timeout(&rig.device) - 1);
	rig_expect_no_packet();
	rig_sleep(1);
	guest_reads(&peer, bytes + 4, 20000);
	rig_close_host(&peer);
}

static void test_rings_that_stand_still_hold_messages_back_and_lose_none(void **state)
{
	struct rig_peer peer = host_connects();

	(void)state;
	rig_offer(4, 1000);
	rig_host_writes(&peer, bytes, 10000);
	rig_run();
	rig_stop_rings();
	rig_host_writes(&peer, bytes + 3, 7);
	rig_run();
	rig_start_rings();
	rig_offer(40, 1000);
	rig_run();
	guest_reads(&peer, bytes, 10000);
	guest_reads(&peer, bytes + 3, 7);
	rig_close_host(&peer);
}

/* ---- all of it at a time ---- */

/* What is on its way in one direction: lengths, and where the bytes begin. */
struct flow {
	uint32_t lens[4096];
	uint32_t first, n;
};

static void flow_put(struct flow *flow, uint32_t len)
{
	assert_true(flow->n < 4096);
	flow->lens[(flow->first + flow->n++) % 4096] = len;
}

static uint32_t flow_take(struct flow *flow)
{
	assert_true(flow->n > 0);
	flow->n--;
	return flow->lens[flow->first++ % 4096];
}

static uint32_t draw_len(uint32_t max)
{
	switch (rig_random() % 4) {
	case 0:
		return rig_random() % 3;
	case 1:
		return rig_random() % 200;
	case 2:
		return rig_random() % 10000;
	default:
		return rig_random() % (max + 1);
	}
}

struct model {
	struct rig_peer peer;
	struct flow to_host, to_guest;
	uint32_t n_sent, announced; /* of the guest's bytes */
	uint32_t open_len, open_done;
	uint32_t read, taken; /* of the message that the guest is taking; all that it took */
};

static void guest_acts(struct model *model)
{
	struct packet_header header = rig_header(&model->peer, PACKET_OP_RW);
	uint32_t room = WINDOW - (model->n_sent - model->announced);

	if (model->open_done == model->open_len) {
		model->open_len = draw_len(WINDOW);
		model->open_done = 0;
		if (model->to_host.n > 2000)
			return;
	}
	header.len = model->open_len - model->open_done;
	if (rig_random() % 2)
		header.len = header.len > 0 ? 1 + rig_random() % header.len : 0;
	if (header.len > room)
		header.len = room;
	if (header.len == 0 && model->open_len > 0)
		return;
	header.flags = model->open_done + header.len == model->open_len ? EOM : 0;
	rig_put(&header, header.len > 0 ? bytes + model->open_done : NULL);
	model->open_done += header.len;
	model->n_sent += header.len;
	if (header.flags)
		flow_put(&model->to_host, model->open_len);
	if (header.flags && model->open_len == 0)
		model->open_len = model->open_done = 0;
}

static void guest_looks(struct model *model)
{
	static struct rig_packet packet;

	while (rig_take(&packet)) {
		if (packet.used_len == 0)
			continue;
		model->announced = packet.header.fwd_cnt;
		if (packet.header.op == PACKET_OP_CREDIT_REQUEST) {
			rig_say(&model->peer, PACKET_OP_CREDIT_UPDATE, 0);
			continue;
		}
		if (packet.header.op != PACKET_OP_RW) {
			assert_int_equal(packet.header.op, PACKET_OP_CREDIT_UPDATE);
			continue;
		}
		assert_memory_equal(packet.payload, bytes + model->read, packet.header.len);
		model->read += packet.header.len;
		model->taken += packet.header.len;
		assert_true(model->taken - model->peer.fwd_cnt <= model->peer.buf_alloc);
		if (!(packet.header.flags & EOM))
			continue;
		assert_int_equal(model->read, flow_take(&model->to_guest));
		model->read = 0;
		/* As Linux does: whole messages only make room. */
		if (rig_random() % 3) {
			model->peer.fwd_cnt = model->taken;
			rig_say(&model->peer, PACKET_OP_CREDIT_UPDATE, 0);
		}
	}
}

static void host_acts(struct model *model)
{
	uint32_t len = draw_len(60000);

	if (model->to_guest.n > 2000)
		return;
	if (send(model->peer.host, bytes, len, MSG_NOSIGNAL) == (ssize_t)len)
		flow_put(&model->to_guest, len);
	else
		assert_int_equal(errno, EAGAIN);
}

static bool host_looks(struct model *model)
{
	ssize_t n = recv(model->peer.host, received, sizeof(received), MSG_TRUNC);

	if (n < 0) {
		assert_int_equal(errno, EAGAIN);
		return false;
	}
	assert_int_equal(n, flow_take(&model->to_host));
	if (n > 0)
		assert_memory_equal(received, bytes, (size_t)n);
	return true;
}

static void run_model(struct model *model, uint32_t n_steps, bool is_slow)
{
	for (uint32_t step = 0; step < n_steps; step++) {
		uint16_t n_free = (uint16_t)(rig.rings[RING_RX].num -
					     (uint16_t)(rig.rings[RING_RX].avail_idx -
							rig.rings[RING_RX].used_idx));

		switch (rig_random() % 8) {
		case 0:
		case 1:
			guest_acts(model);
			break;
		case 2:
			host_acts(model);
			break;
		case 3:
		case 4:
			guest_looks(model);
			break;
		case 5:
			if (!is_slow || rig_random() % 10 == 0)
				host_looks(model);
			break;
		case 6:
			if (n_free > 8)
				rig_offer(rig_random() % 8, 45 + rig_random() % 5000);
			break;
		default:
			rig_run();
			rig_n_sent();
			if (rig_random() % 50 == 0)
				rig_sleep(200);
		}
		/* Two descriptors a packet. */
		if ((uint16_t)(rig.rings[RING_TX].avail_idx - rig_used_index(RING_TX)) >=
		    rig.rings[RING_TX].num / 4) {
			rig_run();
			rig_n_sent();
		}
	}
}

static void test_nothing_that_comes_in_any_order_breaks_a_message(void **state)
{
	(void)state;
	for (uint32_t seed = 1; seed <= 12; seed++) {
		static struct model model;

		rig_end();
		start(&(struct rig_options){
			.num = seed % 3 ? 256 : 16,
			.features = seed % 2 ? RIG_F_EVENT_IDX : 0,
		});
		rig.random = seed;
		model = (struct model){0};
		model.peer = seed % 2 ? guest_connects() : host_connects();
		model.peer.buf_alloc = 60000;
		rig_say(&model.peer, PACKET_OP_CREDIT_UPDATE, 0);
		run_model(&model, 6000, seed % 4 == 1);
		/* All that is under way gets there. */
		for (uint32_t i = 0; i < 20000; i++) {
			if (model.open_done < model.open_len)
				guest_acts(&model);
			rig_run();
			rig_n_sent();
			while (host_looks(&model))
				rig_run();
			guest_looks(&model);
			if (rig.rings[RING_RX].avail_idx == rig.rings[RING_RX].used_idx)
				rig_offer(8, 4096);
			model.peer.fwd_cnt = model.read == 0 ? model.taken : model.peer.fwd_cnt;
			rig_say(&model.peer, PACKET_OP_CREDIT_UPDATE, 0);
			if (model.to_host.n == 0 && model.to_guest.n == 0 &&
			    model.open_done == model.open_len)
				break;
		}
		assert_int_equal(model.to_host.n, 0);
		assert_int_equal(model.to_guest.n, 0);
		assert_int_equal(rig_n_chunks(), 0);
		rig_close_host(&model.peer);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_driver_may_use_the_types_that_it_negotiated),
		TEST(test_a_stream_and_messages_share_their_ports_and_nothing_else),
		TEST(test_a_packet_of_the_other_type_is_reset_and_the_connection_stays),
		TEST(test_a_message_of_any_length_comes_as_one_and_without_a_copy),
		TEST(test_fragments_in_one_batch_become_one_message_without_a_copy),
		TEST(test_fragments_that_come_one_by_one_wait_for_the_last),
		TEST(test_eom_ends_a_message_and_nothing_else_does),
		TEST(test_an_empty_message_is_one),
		TEST(test_a_message_of_more_parts_than_a_call_takes_comes_whole),
		TEST(test_messages_wait_for_a_slow_reader_and_keep_their_borders),
		TEST(test_credit_comes_back_while_a_message_is_not_whole),
		TEST(test_a_message_without_end_is_reset_at_the_end_of_its_credit),
		TEST(test_messages_without_bytes_are_not_kept_for_ever),
		TEST(test_a_message_that_the_socket_refuses_ends_the_connection),
		TEST(test_what_nobody_reads_any_more_is_dropped_and_its_credit_given_back),
		TEST(test_whole_messages_are_delivered_after_the_guest_has_gone),
		TEST(test_the_host_program_sees_the_end_behind_the_last_message),
		TEST(test_a_message_of_the_host_fills_rx_buffers_and_ends_in_the_last),
		TEST(test_messages_that_were_sent_early_come_after_the_handshake),
		TEST(test_the_line_is_a_message_of_its_own),
		TEST(test_a_message_waits_until_the_guest_has_room_for_all_of_it),
		TEST(test_a_message_that_never_fits_the_guest_ends_the_connection),
		TEST(test_a_message_longer_than_the_rx_ring_comes_in_turns),
		TEST(test_the_rest_of_a_message_goes_with_its_connection),
		TEST(test_an_empty_message_of_the_host_is_told_from_its_end),
		TEST(test_the_end_is_no_message),
		TEST(test_what_was_sent_before_a_reset_arrives_before_it),
		TEST(test_small_messages_stop_at_what_the_guest_accounts_for),
		TEST(test_empty_messages_go_on_when_one_was_read_and_no_sooner),
		TEST(test_a_guest_that_announces_no_empty_message_gets_more_by_and_by),
		TEST(test_bytes_that_were_read_tell_of_the_empty_messages_before_them),
		TEST(test_an_answer_says_nothing_of_empty_messages),
		TEST(test_messages_to_the_guest_wait_for_their_second_whole),
		TEST(test_rings_that_stand_still_hold_messages_back_and_lose_none),
		TEST(test_nothing_that_comes_in_any_order_breaks_a_message),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
