/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A device that goes on in another worker. That nothing is lost is what the other
 * tests of the device say again with RIG_HANDS_OVER; here is what they don't see:
 * the worker that has stopped, the one that is told lies, and the ends of ranges.
 */

#include <errno.h>
#include <fcntl.h>
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

#include "tests/unit/handover_rig.h"

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){0});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static struct connection *connection_of(const struct rig_peer *peer)
{
	struct connection *connection =
		connection_find(&rig.device.connections, PACKET_HOST_CID, peer->guest_port,
				peer->host_port, peer->type ? peer->type : PACKET_TYPE_STREAM);

	assert_non_null(connection);
	return connection;
}

static void fill(uint8_t *bytes, uint32_t stream, uint64_t at, size_t len)
{
	for (size_t i = 0; i < len; i++)
		bytes[i] = rig_byte(stream, at + i);
}

/* ---- the worker that stops ---- */

static void test_a_frozen_worker_touches_nothing_and_forgets_nothing(void **state)
{
	struct rig_peer peer;
	uint8_t *before = malloc(RIG_MEMORY_SIZE);

	(void)state;
	assert_non_null(before);
	rig_offer(8, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_make_other();
	rig_calls(RING_RX);
	rig_calls(RING_TX);
	rig_relay(NULL, UINT32_MAX);

	/* From both sides, and time passes. */
	rig_host_writes(&peer, "from host", 9);
	rig_put(&(struct packet_header){.src_cid = RIG_CID,
					.dst_cid = PACKET_HOST_CID,
					.src_port = 1000,
					.dst_port = 80,
					.len = 10,
					.type = PACKET_TYPE_STREAM,
					.op = PACKET_OP_RW,
					.buf_alloc = RIG_GUEST_BUFFER},
		"from guest");
	memcpy(before, rig.memory, RIG_MEMORY_SIZE);
	for (int i = 0; i < 20; i++) {
		device_set_time(&rig.device, rig.device.now_us + 1000000);
		assert_int_equal(device_timeout(&rig.device), -1);
		rig_run_worker(&rig_first);
		rig_run_worker(&rig_other);
	}
	assert_memory_equal(before, rig.memory, RIG_MEMORY_SIZE);
	assert_int_equal(rig_calls(RING_RX) + rig_calls(RING_TX), 0);
	rig_host_reads_nothing(&peer);

	rig_resume_first();
	rig_host_reads(&peer, "from guest", 10);
	assert_memory_equal(rig_expect(&peer, PACKET_OP_RW)->payload, "from host", 9);
	rig_expect_no_packet();
	rig_close_host(&peer);
	free(before);
}

static void test_a_worker_may_be_told_to_go_on_at_any_point(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(60, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_narrow(&peer);
	rig_choke(&peer, 1, 40000);
	for (uint32_t n = 0; n < 12; n++) {
		rig_make_other();
		rig_relay(NULL, n);
		rig_resume_first();
	}
	/* And to stop again. */
	rig_hand_over();
	assert_int_equal(connection_of(&peer)->buffer.len, 40000);
	assert_int_equal(rig_n_chunks(), 3);
	rig_close_host(&peer);
}

/* Whoever reads meanwhile: it is not told again that its socket has room. */
static void test_room_that_comes_between_check_and_commit_is_used(void **state)
{
	Vsockd__HandoverCommit body = VSOCKD__HANDOVER_COMMIT__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	struct rig_peer peer;
	uint8_t bytes[4096];

	(void)state;
	rig_offer(60, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_narrow(&peer);
	rig_choke(&peer, 1, 40000);
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	assert_int_equal(rig_check_other(), 0);
	while (recv(peer.host, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	rig_run_worker(&rig_other);
	rig_host_reads_nothing(&peer);

	envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_COMMIT;
	envelope.handover_commit = &body;
	assert_int_equal(rig_command_to(&rig_other, &envelope, -1), 0);
	assert_true(recv(peer.host, bytes, sizeof(bytes), MSG_DONTWAIT) > 0);
	rig_end_other();
}

static void test_a_worker_whose_successor_is_not_to_be_delivers_what_it_has(void **state)
{
	static uint8_t bytes[200000];
	struct rig_peer peer;
	uint32_t total, n = 0;

	(void)state;
	rig_offer(8, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_narrow(&peer);
	total = rig_choke(&peer, 1, 30000);
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	/* The channels close, of both. */
	device_detach(rig_other.device);
	assert_true(device_is_drained(rig_other.device));
	rig_end_other();
	device_detach(&rig.device);
	assert_false(device_is_drained(&rig.device));
	while (n < total) {
		ssize_t r = recv(peer.host, bytes + n, sizeof(bytes) - n, 0);

		assert_true(r > 0);
		n += (uint32_t)r;
		rig_run_worker(&rig_first);
	}
	for (uint32_t i = 0; i < total; i++)
		assert_int_equal(bytes[i], rig_byte(1, i));
	assert_true(device_is_drained(&rig.device));
	rig.copies[peer.endpoint] = -1; /* closed by hand: nobody hears the worker any more */
	rig_host_reads_end(&peer);
	rig_close_host(&peer);
}

static void test_a_device_state_on_its_way_keeps_its_worker(void **state)
{
	Vsockd__StateLoad load = VSOCKD__STATE_LOAD__INIT;
	Vsockd__Handover handover = VSOCKD__HANDOVER__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	int pipes[2];

	(void)state;
	rig.after_run = NULL;
	assert_int_equal(pipe2(pipes, O_NONBLOCK | O_CLOEXEC), 0);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_STATE_LOAD;
	envelope.state_load = &load;
	assert_int_equal(rig_command(&envelope, pipes[0]), 0);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER;
	envelope.handover = &handover;
	assert_int_equal(rig_command(&envelope, -1), -EBUSY);
	assert_false(device_is_at_rest(&rig.device));
	close(rig.device.state.fd);
	close(pipes[0]);
	close(pipes[1]);
}

/* ---- what goes along ---- */

static void test_counters_that_wrap_go_on(void **state)
{
	static const uint32_t starts[] = {UINT32_MAX - 10, INT32_MAX - 10, UINT32_MAX, 0};
	static uint8_t bytes[4096];

	(void)state;
	for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
		struct rig_peer peer;
		struct credit *credit;

		rig_offer(12, 4096);
		peer = rig_guest_connects(1000, 80);
		credit = &connection_of(&peer)->credit;
		credit->tx_cnt = credit->peer_fwd_cnt = starts[i];
		credit->rx_cnt = credit->fwd_cnt = credit->announced = starts[i];
		peer.fwd_cnt = starts[i];
		rig_hand_over();

		/* 3000 bytes each way, past the end of the numbers. */
		fill(bytes, 1, 0, 3000);
		rig_host_writes(&peer, bytes, 3000);
		rig_run();
		assert_int_equal(rig_expect(&peer, PACKET_OP_RW)->header.len, 3000);
		rig_hand_over();
		rig_rw(&peer, bytes, 3000);
		rig_host_reads(&peer, bytes, 3000);
		rig_hand_over();
		assert_int_equal(connection_of(&peer)->credit.n_packets, 1);
		peer.fwd_cnt += 3000;
		rig_say(&peer, PACKET_OP_CREDIT_REQUEST, 0);
		assert_int_equal(rig_expect(&peer, PACKET_OP_CREDIT_UPDATE)->header.fwd_cnt,
				 starts[i] + 3000);
		assert_int_equal(connection_of(&peer)->credit.n_packets, 0);
		rig_say(&peer, PACKET_OP_RST, 0);
		rig_close_host(&peer);
		rig_n_sent();
	}
}

static void test_ring_indices_wrap_like_before(void **state)
{
	(void)state;
	rig_stop_rings();
	for (uint32_t i = 0; i < RING_EVENT; i++) {
		uint16_t start = UINT16_MAX - 3;

		rig.rings[i].avail_idx = start;
		rig.rings[i].used_idx = start;
		memcpy(rig.memory + rig.rings[i].used + 2, &start, sizeof(start));
		memcpy(rig.memory + rig.rings[i].avail + 2, &start, sizeof(start));
		assert_int_equal(rig_ring_start(i, start, false), 0);
	}
	for (uint32_t i = 0; i < 10; i++) {
		struct rig_peer peer;

		rig_offer(1, 4096);
		peer = rig_guest_connects(1000 + i, 80);
		rig_hand_over();
		rig_rw(&peer, "x", 1);
		rig_host_reads(&peer, "x", 1);
		rig_say(&peer, PACKET_OP_RST, 0);
		rig_close_host(&peer);
	}
	assert_true(rig_ring_stop(RING_TX) < 100);
}

static void test_a_stopped_and_a_disabled_ring_stay_so(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(4, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_ring_enable(RING_TX, false);
	rig_ring_stop(RING_RX);
	rig_hand_over();
	rig_host_writes(&peer, "later", 5);
	rig_rw(&peer, "not yet", 7);
	rig_host_reads_nothing(&peer);
	rig_expect_no_packet();
	rig_hand_over();
	rig_ring_enable(RING_TX, true);
	rig_host_reads(&peer, "not yet", 7);
	assert_int_equal(rig_ring_start(RING_RX, rig_used_index(RING_RX), false), 0);
	assert_memory_equal(rig_expect(&peer, PACKET_OP_RW)->payload, "later", 5);
	rig_close_host(&peer);
}

/* A call that a dead worker may have owed is made when the ring runs, once, by whoever serves. */
static void test_a_call_that_is_owed_goes_along(void **state)
{
	(void)state;
	rig_ring_enable(RING_TX, false);
	rig_ring_stop(RING_TX);
	assert_int_equal(rig_ring_start(RING_TX, 0, true), 0);
	rig_calls(RING_TX);
	rig_hand_over();
	assert_int_equal(rig_calls(RING_TX), 0);
	rig_ring_enable(RING_TX, true);
	assert_int_equal(rig_calls(RING_TX), 1);
	rig_ring_enable(RING_TX, false);
	rig_hand_over();
	rig_ring_enable(RING_TX, true);
	assert_int_equal(rig_calls(RING_TX), 0);
}

static void test_a_broken_ring_is_reported_once_and_stays_broken(void **state)
{
	struct rig_told told;

	(void)state;
	rig.after_run = NULL;
	rig_put_chain(RING_TX, &(struct rig_buffer){1, 100, 0}, 1);
	rig_run();
	rig_expect_report(REPORT_RING_BROKEN, &told);
	rig_hand_over();
	assert_true(rig.device.rings[RING_TX].is_broken);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_REPORT, &told));
	/* Its memory goes: there is no such ring any more, but it was started. */
	assert_int_equal(rig_memory_commit(), 0);
	rig_hand_over();
	for (uint32_t i = 0; i < RING_EVENT; i++) {
		assert_true(rig.device.rings[i].is_started);
		assert_true(rig.device.rings[i].is_broken);
	}
	rig_ring_stop(RING_TX);
}

/* Every timer has the time that it had left, by clocks that know nothing of each other. */
static void test_timers_have_the_time_that_they_had(void **state)
{
	struct rig_peer slow = {.guest_port = 5, .buf_alloc = RIG_GUEST_BUFFER}, asked, closing,
			draining;

	(void)state;
	rig_offer(12, 4096);
	closing = rig_guest_connects(1000, 80);
	draining = rig_guest_connects(1001, 80);
	rig_narrow(&draining);
	rig_choke(&draining, 1, 5000);
	rig_say(&draining, PACKET_OP_RST, 0); /* 30 s from here */
	rig_close_host(&closing);
	rig_run(); /* 8 s */
	rig_expect(&closing, PACKET_OP_SHUTDOWN);
	slow.endpoint = rig_accept(&slow.host); /* 5 s */
	asked = rig_host_asks(7);		/* 2 s */
	for (uint32_t ms = 0; ms < 30000; ms += 500) {
		bool is_over[] = {rig_is_closed(asked.endpoint), rig_is_closed(slow.endpoint),
				  rig_is_closed(closing.endpoint),
				  rig_is_closed(draining.endpoint)};
		const uint32_t ends[] = {2000, 5000, 8000, 30000};

		for (size_t i = 0; i < 4; i++)
			assert_int_equal(is_over[i], ms >= ends[i]);
		rig_hand_over();
		rig_sleep(500);
	}
	assert_true(rig_is_closed(draining.endpoint));
	rig_close_host(&slow);
	rig_close_host(&asked);
	rig_close_host(&draining);
}

static void test_half_a_handshake_and_early_bytes_go_along(void **state)
{
	struct rig_peer peer = {.guest_port = 9, .buf_alloc = RIG_GUEST_BUFFER};
	static const char line[] = "CONNECT 9\nearly";
	char answer[32];

	(void)state;
	rig_offer(8, 4096);
	peer.endpoint = rig_accept(&peer.host);
	for (size_t i = 0; i < sizeof(line) - 1; i++) {
		rig_host_writes(&peer, line + i, 1);
		rig_run();
		rig_hand_over();
	}
	peer.host_port = rig.device.connections.next_port - 1;
	rig_expect(&peer, PACKET_OP_REQUEST);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_OPENED, NULL);
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	snprintf(answer, sizeof(answer), "OK %u\n", peer.host_port);
	rig_host_reads(&peer, answer, strlen(answer));
	assert_memory_equal(rig_expect(&peer, PACKET_OP_RW)->payload, "early", 5);
	rig_close_host(&peer);
}

static void test_host_ports_are_not_given_twice(void **state)
{
	struct rig_peer first, second;

	(void)state;
	rig_offer(8, 4096);
	first = rig_host_connects(9);
	rig_hand_over();
	second = rig_host_connects(9);
	assert_int_equal(second.host_port, first.host_port + 1);
	rig_close_host(&first);
	rig_close_host(&second);
}

static void test_answers_to_connects_find_their_entries(void **state)
{
	struct rig_peer peers[6];

	(void)state;
	rig_offer(20, 4096);
	for (uint32_t i = 0; i < 6; i++)
		peers[i] = rig_ask(1000 + i, 80);
	rig_say(&peers[1], PACKET_OP_RST, 0); /* given up */
	rig_hand_over();
	for (uint32_t i = 6; i-- > 0;) {
		if (i == 3) {
			rig_refused(&peers[i], -ECONNREFUSED);
			rig_run();
			rig_expect(&peers[i], PACKET_OP_RST);
			continue;
		}
		rig_connected(&peers[i]);
		rig_run();
		if (i == 1)
			assert_true(rig_is_closed(peers[i].endpoint));
		else
			rig_expect(&peers[i], PACKET_OP_RESPONSE);
		rig_hand_over();
	}
	for (uint32_t i = 0; i < 6; i++)
		if (i != 3)
			rig_close_host(&peers[i]);
}

static void test_full_tables_fit_into_another_worker(void **state)
{
	struct rig_peer peers[16];
	struct packet_header header = {
		.src_cid = RIG_CID,
		.dst_cid = PACKET_HOST_CID,
		.dst_port = 99,
		.type = PACKET_TYPE_STREAM,
		.op = PACKET_OP_RW,
	};

	(void)state;
	rig_end();
	rig_start(&(struct rig_options){.num = 4096, .buffer_size = 8192});
	rig_offer(16, 4096);
	for (uint32_t i = 0; i < 16; i++) {
		peers[i] = rig_guest_connects(1000 + i, 80);
		rig_narrow(&peers[i]);
		rig_choke(&peers[i], i, 8192);
	}
	/* No rx buffer: what ends stays in the table, and answers to nobody's packets pile up. */
	for (uint32_t i = 0; i < 8; i++)
		rig_say(&peers[i], PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	for (uint32_t i = 0; i < 300; i++) {
		header.src_port = 5000 + i;
		rig_put(&header, NULL);
	}
	rig_run();
	assert_int_equal(rig.device.n_orphans, ORPHANS_MAX);
	rig_hand_over();
	assert_int_equal(rig.device.n_orphans, ORPHANS_MAX);
	assert_int_equal(rig.device.connections.n_used, 16);
	assert_int_equal(rig_n_chunks(), 16);
	/* The answers, in order. */
	rig_offer(400, 100);
	rig_run();
	for (uint32_t i = 0; i < ORPHANS_MAX; i++)
		rig_expect_rst(PACKET_HOST_CID, 99, 5000 + i, PACKET_TYPE_STREAM);
	for (uint32_t i = 0; i < 16; i++)
		rig_close_host(&peers[i]);
	rig_reset();
	rig_sleep(CONNECTION_DRAINING_MS);
	assert_int_equal(rig.device.connections.n_used, 0);
	assert_int_equal(rig_n_chunks(), 0);
}

static void test_more_connections_than_a_message_names_go_along(void **state)
{
	enum { N = 150 };
	struct rig_peer peers[N];

	(void)state;
	rig_end();
	rig_start(&(struct rig_options){.num = 1024, .n_connections = 200});
	rig_offer(600, 256);
	for (uint32_t i = 0; i < N; i++)
		peers[i] = rig_guest_connects(1000 + i, 80);
	rig_narrow(&peers[30]);
	rig_choke(&peers[30], 1, 20000);
	rig_say(&peers[7], PACKET_OP_RST, 0);
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	assert_true(rig.device.handover.tape.len > BUFFER_CHUNK_LEN);
	assert_int_equal(rig_check_other(), 0);
	rig_commit_other();
	assert_int_equal(rig.device.connections.n_used, N - 1);
	assert_int_equal(rig_n_chunks(), 2);
	for (uint32_t i = 0; i < N; i++) {
		uint8_t byte = (uint8_t)i;

		if (i != 7 && i != 30) {
			rig_rw(&peers[i], &byte, 1);
			rig_host_reads(&peers[i], &byte, 1);
		}
		rig_close_host(&peers[i]);
	}
}

/* Both ways: of a worker that goes on, and of a successor that is told of nothing. */
static void test_a_tape_is_gone_when_it_was_read_or_is_of_no_use(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(8, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_make_other();
	rig_relay(NULL, UINT32_MAX);
	assert_int_equal(rig_n_chunks(), 1);
	rig_resume_first();
	assert_int_equal(rig_n_chunks(), 0);
	rig_hand_over();
	assert_int_equal(rig_n_chunks(), 0);
	assert_int_equal(rig.device.pool.n_touched, 0);
	rig_close_host(&peer);
}

static void test_a_socket_whose_connection_has_ended_meanwhile_is_closed(void **state)
{
	struct rig_peer stays, ends;
	int given;

	(void)state;
	rig.after_run = NULL;
	rig_offer(8, 4096);
	stays = rig_guest_connects(1000, 80);
	ends = rig_guest_connects(1001, 80);
	rig_make_other();
	given = rig_other.device->sockets.all[ends.endpoint] - 1;
	assert_true(fcntl(given, F_GETFD) >= 0);
	rig_say(&ends, PACKET_OP_RST, 0);
	assert_true(rig_is_closed(ends.endpoint));
	rig_relay(NULL, UINT32_MAX);
	assert_int_equal(rig_check_other(), 0);
	assert_int_equal(fcntl(given, F_GETFD), -1);
	rig_commit_other();
	rig_host_reads_end(&ends);
	rig_rw(&stays, "x", 1);
	rig_host_reads(&stays, "x", 1);
	rig_close_host(&ends);
	rig_close_host(&stays);
}

static void test_the_dirty_log_goes_on(void **state)
{
	Vsockd__LogSet set = VSOCKD__LOG_SET__INIT;
	Vsockd__Features features = VSOCKD__FEATURES__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	uint64_t rx_page = (RIG_GUEST_BASE + 0x100000) / 4096;
	struct rig_peer peer;
	uint8_t *bits;

	(void)state;
	set.size = (RIG_GUEST_BASE + RIG_MEMORY_SIZE) / 4096 / 8;
	set.alignment = 4096;
	rig_log_fd = memfd_create("log", MFD_CLOEXEC);
	assert_int_equal(ftruncate(rig_log_fd, (off_t)(set.size + 4096)), 0);
	bits = mmap(NULL, set.size, PROT_READ | PROT_WRITE, MAP_SHARED, rig_log_fd, 0);
	assert_ptr_not_equal(bits, MAP_FAILED);
	features.features = UINT64_C(1) << 26;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_FEATURES;
	envelope.features = &features;
	assert_int_equal(rig_command(&envelope, -1), 0);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_LOG_SET;
	envelope.log_set = &set;
	assert_int_equal(rig_command(&envelope, rig_log_fd), 0);
	rig_hand_over();
	memset(bits, 0, set.size);
	rig_offer(1, 4096);
	peer = rig_guest_connects(1000, 80);
	assert_true(bits[rx_page / 8] & 1u << rx_page % 8);
	rig_close_host(&peer);
	munmap(bits, set.size);
	close(rig_log_fd);
	rig_log_fd = -1;
}

/* ---- the transport reset ---- */

static void order_reset(bool was_announced, uint32_t used)
{
	Vsockd__Quarantine quarantine = VSOCKD__QUARANTINE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	quarantine.is_on = true;
	quarantine.sends_reset = true;
	quarantine.was_announced = was_announced;
	quarantine.used = used;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_QUARANTINE;
	envelope.quarantine = &quarantine;
	assert_int_equal(rig_command(&envelope, -1), 0);
}

static void offer_event_buffer(void)
{
	rig_put_chain(RING_EVENT, &(struct rig_buffer){rig_place(64), 8, RIG_WRITE}, 1);
}

static uint32_t announced(void)
{
	struct rig_told told;

	rig_expect_told(VSOCKD__ENVELOPE__BODY_RESET_ANNOUNCED, &told);
	return (uint32_t)told.values[0];
}

static void test_quarantine_and_reset_go_along(void **state)
{
	struct rig_told told;

	(void)state;
	rig_ring_enable(RING_EVENT, true);
	assert_int_equal(rig_ring_start(RING_EVENT, 0, false), 0);
	order_reset(false, 0);
	rig_hand_over();
	/* A request of the guest waits with it. */
	rig_say(&(struct rig_peer){.guest_port = 1000, .host_port = 80}, PACKET_OP_REQUEST, 0);
	rig_hand_over();
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told));
	offer_event_buffer();
	rig_run();
	assert_int_equal(rig_used_index(RING_EVENT), 1);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_RESET_SENT, NULL);
	rig_hand_over();
	assert_int_equal(rig_used_index(RING_EVENT), 1);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_RESET_HANDLED, &told));
	offer_event_buffer();
	rig_run();
	rig_expect_told(VSOCKD__ENVELOPE__BODY_RESET_HANDLED, NULL);
	assert_int_equal(rig_used_index(RING_EVENT), 1);
}

static void test_a_reset_is_announced_before_it_can_be_seen(void **state)
{
	struct rig_told told;
	int small = 1;
	uint32_t n;

	(void)state;
	rig.after_run = NULL;
	rig_ring_enable(RING_EVENT, true);
	assert_int_equal(rig_ring_start(RING_EVENT, 0, false), 0);
	order_reset(false, 0);
	/* A front that does not listen: the channel is full of lines for the log. */
	assert_int_equal(
		setsockopt(rig.device.channel, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	for (n = 0; n < 100; n++)
		control_report(&rig.device, REPORT_PACKET_DROPPED, n, 0, 0);
	offer_event_buffer();
	rig_run_worker(&rig_first);
	rig_run_worker(&rig_first);
	assert_int_equal(rig_used_index(RING_EVENT), 0);
	rig_run(); /* now it listens */
	assert_int_equal(announced(), 0);
	assert_int_equal(rig_used_index(RING_EVENT), 1);
	rig_expect_told(VSOCKD__ENVELOPE__BODY_RESET_SENT, &told);
	rig.n_told = 0;
}

/* The worker before died: had the driver got the event by then? */
static void test_a_reset_that_was_announced_is_sent_once(void **state)
{
	static const struct {
		uint16_t announced, used;
		bool is_sent_now;
	} rows[] = {
		{0, 0, true},  {0, 1, false},	       {7, 7, true},
		{7, 8, false}, {UINT16_MAX, 0, false}, {UINT16_MAX, UINT16_MAX, true},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct rig_ring *ring = &rig.rings[RING_EVENT];
		bool is_on_its_way = i % 2;

		rig_end();
		rig_start(&(struct rig_options){0});
		ring->avail_idx = rows[i].used;
		memcpy(rig.memory + ring->avail + 2, &rows[i].used, 2);
		memcpy(rig.memory + ring->used + 2, &rows[i].used, 2);
		offer_event_buffer();
		order_reset(true, rows[i].announced);
		if (is_on_its_way)
			rig_hand_over();
		rig_ring_enable(RING_EVENT, true);
		assert_int_equal(rig_ring_start(RING_EVENT, 0, true), 0);
		assert_int_equal((uint16_t)(rig_used_index(RING_EVENT) - rows[i].used),
				 rows[i].is_sent_now);
		if (rows[i].is_sent_now)
			assert_int_equal(announced(), rows[i].announced);
		rig_expect_told(VSOCKD__ENVELOPE__BODY_RESET_SENT, NULL);
		/* Nobody is left who would see it handled. */
		assert_int_equal(rig_take_told(VSOCKD__ENVELOPE__BODY_RESET_HANDLED, NULL),
				 !rows[i].is_sent_now);
	}
}

static void test_event_buffers_of_no_use_are_not_taken_for_the_reset(void **state)
{
	(void)state;
	rig_ring_enable(RING_EVENT, true);
	assert_int_equal(rig_ring_start(RING_EVENT, 0, false), 0);
	order_reset(false, 0);
	rig_put_chain(RING_EVENT, &(struct rig_buffer){rig_place(64), 3, RIG_WRITE}, 1);
	rig_put_chain(RING_EVENT, &(struct rig_buffer){rig_place(64), 8, 0}, 1);
	rig_run();
	assert_int_equal(rig_used_index(RING_EVENT), 2);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_RESET_ANNOUNCED, NULL));
	offer_event_buffer();
	rig_run();
	assert_int_equal(announced(), 2);
	assert_int_equal(rig_used_index(RING_EVENT), 3);
}

/* ---- lies ---- */

/* In the tape: the length of the first record, or a chunk behind it. */
enum tape_lie { NO_TAPE_LIE, TAPE_RECORD_LEN, TAPE_FIRST_CHUNK, TAPE_SECOND_CHUNK };

static struct lie {
	Vsockd__Envelope__BodyCase type;
	uint32_t nth;	 /* of that type */
	uint32_t offset; /* of the field, in the message or the claim */
	uint32_t size;
	uint64_t value;
	bool is_lost;	    /* instead: the message never comes */
	uint32_t claim;	    /* its number and 1: it is about that one */
	enum tape_lie tape; /* before the message */
} lie;
static uint32_t n_seen;

static void lie_about_claim(Vsockd__HandoverConnections *told)
{
	struct handover_claim claim = message_claim(told, lie.claim - 1);

	assert_in_range(lie.claim, 1, told->n);
	memcpy((uint8_t *)&claim + lie.offset, &lie.value, lie.size);
	message_put_claim(told, lie.claim - 1, &claim);
}

static void lie_in_tape(void)
{
	const struct buffer *tape = &rig.device.handover.tape;
	uint32_t value = (uint32_t)lie.value, at = 0, len;

	buffer_read(&rig.device.pool, tape, 0, &len, sizeof(len));
	if (lie.tape != TAPE_RECORD_LEN)
		at = (uint32_t)sizeof(len) + len + (lie.tape - TAPE_FIRST_CHUNK) * 4;
	buffer_overwrite(&rig.device.pool, tape, at, &value, sizeof(value));
}

static bool tell_lie(Vsockd__Envelope *envelope)
{
	if (envelope->body_case != lie.type || n_seen++ != lie.nth)
		return true;
	if (lie.is_lost)
		return false;
	if (lie.tape != NO_TAPE_LIE)
		lie_in_tape();
	else if (lie.claim > 0)
		lie_about_claim(envelope->handover_connections);
	else
		memcpy((uint8_t *)envelope->ready + lie.offset, &lie.value, lie.size);
	return true;
}

static int take_lie(void)
{
	int r;

	n_seen = 0;
	rig_make_other();
	rig_relay(tell_lie, UINT32_MAX);
	r = rig_check_other();
	assert_true(n_seen > lie.nth);
	rig_resume_first();
	return r;
}

#define LIE(upper, message, field, number, to)                                                     \
	{                                                                                          \
		.type = VSOCKD__ENVELOPE__BODY_##upper, .nth = number,                             \
		.offset = offsetof(message, field), .size = sizeof(((message *)0)->field),         \
		.value = to                                                                        \
	}
#define DEVICE_LIE(field, to)  LIE(HANDOVER_DEVICE, Vsockd__HandoverDevice, field, 0, to)
#define RING_LIE(field, n, to) LIE(HANDOVER_RING, Vsockd__HandoverRing, field, n, to)
#define CLAIM_LIE(field, n, to)                                                                    \
	{                                                                                          \
		.type = VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTIONS, .claim = (n) + 1,             \
		.offset = offsetof(struct handover_claim, field),                                  \
		.size = sizeof(((struct handover_claim *)0)->field), .value = to                   \
	}
#define TAPE_LIE(what, to)                                                                         \
	{                                                                                          \
		.type = VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTIONS, .tape = what, .value = to     \
	}
#define LIST_LIE(field, n, to) LIE(HANDOVER_LIST, Vsockd__HandoverList, field, n, to)

/*
 * Connections 0 and 1 live, 0 has bytes in two chunks; 2 is dead and owed a RST; 3
 * waits for Connected. Lists: 0 has the chunks of the tape, 1 those that are ready.
 */
static void make_some(struct rig_peer *peers)
{
	rig_offer(2, 4096);
	peers[0] = rig_guest_connects(1000, 80);
	peers[1] = rig_guest_connects(1001, 80);
	rig_narrow(&peers[0]);
	rig_choke(&peers[0], 1, 20000);
	peers[2] = rig_ask(1002, 80);
	rig_refused(&peers[2], -ECONNREFUSED);
	peers[3] = rig_ask(1003, 80);
	rig_run();
}

static void end_some(struct rig_peer *peers)
{
	for (uint32_t i = 0; i < 2; i++)
		rig_close_host(&peers[i]);
}

static void test_lies_about_what_can_be_checked_are_refused(void **state)
{
	static const struct lie lies[] = {
		DEVICE_LIE(reset, RESET_SENT + 1),
		DEVICE_LIE(reset_index, UINT16_MAX + 1),
		RING_LIE(ring, 0, 3),
		RING_LIE(ring, 0, UINT32_MAX),
		RING_LIE(ring, 0, 1), /* then it comes twice */
		RING_LIE(is_started, 0, 0),
		RING_LIE(is_started, 2, 1),
		RING_LIE(broken_reason, 1, REPORT_RING_REASON_MAX),
		DEVICE_LIE(tape_len, 0),
		DEVICE_LIE(tape_len, 100),
		DEVICE_LIE(tape_len, BUFFER_CHUNK_LEN), /* more than was written */
		DEVICE_LIE(tape_len, BUFFER_CHUNK_LEN + 1),
		DEVICE_LIE(tape_len, UINT32_MAX),
		CLAIM_LIE(index, 1, 0),
		CLAIM_LIE(index, 0, 32),
		CLAIM_LIE(index, 0, (1u << 29) - 1),
		CLAIM_LIE(index, 0, 1),
		CLAIM_LIE(endpoint, 0, UINT32_MAX),
		CLAIM_LIE(endpoint, 0, RIG_ENDPOINTS - 1), /* has no socket */
		CLAIM_LIE(has_socket, 0, 0),
		CLAIM_LIE(has_socket, 3, 1),
		CLAIM_LIE(has_endpoint, 0, 0),
		CLAIM_LIE(has_endpoint, 2, 1),
		CLAIM_LIE(awaits_answer, 0, 1),
		CLAIM_LIE(awaits_answer, 3, 0),
		LIE(HANDOVER_CONNECTIONS, Vsockd__HandoverConnections, n, 0, 3),
		LIE(HANDOVER_CONNECTIONS, Vsockd__HandoverConnections, n, 0, 5),
		LIE(HANDOVER_CONNECTIONS, Vsockd__HandoverConnections, n, 0,
		    HANDOVER_CLAIMS_MAX + 1),
		LIE(HANDOVER_CONNECTIONS, Vsockd__HandoverConnections, n, 0, UINT32_MAX),
		TAPE_LIE(TAPE_RECORD_LEN, 0),
		TAPE_LIE(TAPE_RECORD_LEN, HANDOVER_RECORD_MAX),
		TAPE_LIE(TAPE_RECORD_LEN, HANDOVER_RECORD_MAX + 1),
		TAPE_LIE(TAPE_RECORD_LEN, UINT32_MAX),
		TAPE_LIE(TAPE_SECOND_CHUNK, 0), /* twice the same */
		TAPE_LIE(TAPE_FIRST_CHUNK, 2),	/* the tape's own */
		TAPE_LIE(TAPE_FIRST_CHUNK, UINT32_MAX),
		TAPE_LIE(TAPE_FIRST_CHUNK, UINT32_MAX - 1),
		TAPE_LIE(TAPE_FIRST_CHUNK, 1000), /* of less than 400 */
		LIST_LIE(list, 0, HANDOVER_TAPE + 1),
		LIST_LIE(list, 0, HANDOVER_READY), /* no tape, then */
		LIST_LIE(list, 0, UINT32_MAX),
		LIST_LIE(n, 0, HANDOVER_LIST_MAX + 1),
		LIST_LIE(n, 0, UINT32_MAX),
		LIST_LIE(n, 0, 0),
		LIST_LIE(n, 0, 2),	/* more than bytes */
		LIST_LIE(item_0, 0, 0), /* where bytes wait */
		LIST_LIE(item_0, 0, UINT32_MAX),
		LIST_LIE(item_0, 0, 1000),
		LIST_LIE(item_0, 1, 4), /* there is no such connection */
		LIST_LIE(item_0, 1, UINT32_MAX),
		LIST_LIE(list, 1, HANDOVER_TELL),   /* has nothing to tell */
		LIST_LIE(list, 1, HANDOVER_TIMERS), /* has no timer */
		LIST_LIE(list, 1, HANDOVER_TIMERS + CONNECTION_TIMERS - 1),
		{VSOCKD__ENVELOPE__BODY_HANDOVER_DEVICE, .is_lost = true},
		{VSOCKD__ENVELOPE__BODY_HANDOVER_RING, 1, .is_lost = true},
		{VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTIONS, 0, .is_lost = true},
		{VSOCKD__ENVELOPE__BODY_HANDOVER_LIST, 0, .is_lost = true},
	};
	struct rig_peer peers[4];

	(void)state;
	rig.after_run = NULL;
	make_some(peers);
	assert_in_range(rig.device.pool.n_chunks, 3, 400);
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		lie = lies[i];
		if (take_lie() != -EBADMSG)
			fail_msg("lie %zu is believed", i);
	}
	/* The truth still is, and nothing was lost by all that. */
	rig_hand_over();
	rig_rw(&peers[1], "truth", 5);
	rig_host_reads(&peers[1], "truth", 5);
	assert_int_equal(connection_of(&peers[0])->buffer.len, 20000);
	end_some(peers);
}

/* ---- records ---- */

struct record {
	uint8_t bytes[HANDOVER_RECORD_MAX];
	size_t len;
};

static struct record record_of(const struct connection *connection)
{
	struct record record = {.len = 0};

	record.len = handover_put_record(&rig.device, connection, record.bytes);
	return record;
}

static void test_connections_that_cannot_be_are_refused(void **state)
{
	struct rig_peer peer;
	struct connection good, bad;

	(void)state;
	rig_offer(12, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_narrow(&peer);
	rig_choke(&peer, 1, 20000);
	rig_host_writes(&peer, "abc", 3);
	rig_run();
	good = *connection_of(&peer);
	assert_true(rig_is_believed(&good));
	assert_int_equal(good.credit.n_groups, 1);

#define REFUSED(change)                                                                            \
	do {                                                                                       \
		bad = good;                                                                        \
		change;                                                                            \
		if (rig_is_believed(&bad))                                                         \
			fail_msg("%s is believed", #change);                                       \
	} while (0)
	REFUSED(bad.state = CONNECTION_FREE);
	REFUSED(bad.state = CONNECTION_DEAD + 1);
	REFUSED(bad.state = UINT8_MAX);
	REFUSED(bad.state = CONNECTION_HANDSHAKE);
	REFUSED(bad.state = CONNECTION_DEAD);
	REFUSED(bad.state = CONNECTION_CLOSING);  /* without its timer */
	REFUSED(bad.state = CONNECTION_DRAINING); /* the same */
	REFUSED(bad.state = CONNECTION_REQUESTED);
	REFUSED(bad.due = CONNECTION_SEND_RST);
	REFUSED(bad.due = CONNECTION_SEND_REQUEST);
	REFUSED(bad.due = 1 << 5);
	REFUSED(bad.tell = CONNECTION_TELL_CLOSED);
	REFUSED(bad.tell = CONNECTION_TELL_CONNECT);
	REFUSED(bad.tell = 1 << 3);
	REFUSED(bad.timer = CONNECTION_TIMER_HANDSHAKE);
	REFUSED(bad.timer = CONNECTION_TIMERS + 1);
	REFUSED(bad.timer = UINT8_MAX);
	REFUSED((bad.timer = CONNECTION_TIMER_CREDIT,
		 bad.deadline = rig.device.guest_now + CONNECTION_CREDIT_MS + 1));
	REFUSED(bad.guest_shutdown = 4);
	REFUSED(bad.read_ahead = 0); /* it would look for buffers for ever */
	REFUSED(bad.our_shutdown = 4);
	REFUSED(memset(&bad.is_deaf, 2, 1));
	REFUSED(memset(&bad.has_ended, 0xff, 1));
	REFUSED((bad.state = CONNECTION_HANDSHAKE, bad.timer = CONNECTION_TIMER_HANDSHAKE));
	REFUSED(bad.peer_cid = PACKET_HOST_CID - 1);
	REFUSED(bad.peer_cid = RIG_CID);
	REFUSED(bad.peer_cid = UINT32_MAX);
	REFUSED(bad.type = 17);
	REFUSED(bad.early_len = HANDSHAKE_LINE_MAX + 1);
	REFUSED(bad.early_skip = 1);
	REFUSED(bad.credit.buf_alloc--);
	REFUSED(bad.credit.buf_alloc = UINT32_MAX);
	REFUSED(bad.credit.rx_cnt++);
	REFUSED(bad.credit.fwd_cnt--);
	REFUSED(bad.credit.fwd_cnt += 50000);
	REFUSED(bad.credit.tx_cnt++);
	REFUSED(bad.credit.peer_fwd_cnt += 4);
	REFUSED(bad.credit.tx_cnt += 0x80000000);
	REFUSED(bad.credit.n_groups = CREDIT_GROUPS + 1);
	REFUSED(bad.credit.n_groups = 0);
	REFUSED(bad.credit.n_groups = 2);
	REFUSED(bad.credit.n_packets = 2);
	REFUSED(bad.credit.n_packets = 0);
	REFUSED(bad.credit.n_empty = 1);
	REFUSED((bad.credit.n_packets = 0, bad.credit.n_empty = UINT32_MAX));
	REFUSED((bad.credit.n_packets = 2, bad.credit.n_empty = 1)); /* in a stream */
	REFUSED(memset(&bad.tells_empty, 2, 1));
	REFUSED((bad.credit.n_packets = 0, bad.credit.groups[0].n_packets = 0));
	REFUSED(bad.credit.groups[0].end++);
	REFUSED(bad.credit.groups[0].end -= 3);
	REFUSED(bad.buffer.skip = BUFFER_CHUNK_LEN);
	REFUSED(bad.buffer.skip = UINT32_MAX);
	REFUSED(bad.buffer.len++);
	REFUSED(bad.buffer.len = UINT32_MAX);
	REFUSED((bad.buffer.len = UINT32_MAX, bad.credit.rx_cnt = bad.credit.fwd_cnt - 1));
	REFUSED((bad.buffer.len = 70000, bad.credit.rx_cnt = bad.credit.fwd_cnt + 70000));
#undef REFUSED
	assert_true(rig_is_believed(&good));
	rig_close_host(&peer);
}

static void test_a_record_that_was_cut_is_refused(void **state)
{
	struct rig_peer peer;
	struct record record;
	struct connection taken = {.fd = -1};

	(void)state;
	rig_offer(12, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_host_writes(&peer, "abc", 3);
	rig_run();
	record = record_of(connection_of(&peer));
	for (size_t len = 0; len < record.len; len++)
		assert_false(handover_get_record(&rig.device, &taken, record.bytes, len));
	assert_true(handover_get_record(&rig.device, &taken, record.bytes, record.len));
	rig_close_host(&peer);
}

/* ---- noise ---- */

static uint32_t n_changes;

static void add_noise_to_tape(void)
{
	const struct buffer *tape = &rig.device.handover.tape;
	uint32_t at = rig_random() % tape->len;
	uint8_t byte;

	if (rig_random() % 16 == 0)
		handover_sockets_close(&rig_other.device->sockets);
	buffer_read(&rig.device.pool, tape, at, &byte, 1);
	byte ^= (uint8_t)(1u << rig_random() % 8);
	buffer_overwrite(&rig.device.pool, tape, at, &byte, 1);
}

/* A bit here or there, a message lost or said twice, sockets that are not there. */
static bool add_noise(Vsockd__Envelope *envelope)
{
	const ProtobufCMessageDescriptor *descriptor = envelope->ready->base.descriptor;
	const ProtobufCFieldDescriptor *field;
	uint8_t *place;
	size_t size;

	if (n_changes == 0 || rig_random() % 8)
		return true;
	n_changes--;
	if (rig_random() % 16 == 0)
		return false;
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTIONS &&
	    rig_random() % 4) {
		add_noise_to_tape();
		return true;
	}
	field = &descriptor->fields[rig_random() % descriptor->n_fields];
	place = (uint8_t *)envelope->ready + field->offset;
	if (field->type == PROTOBUF_C_TYPE_BOOL) {
		*(protobuf_c_boolean *)(void *)place ^= 1;
		return true;
	}
	size = field->type == PROTOBUF_C_TYPE_FIXED64 ? 8 : 4;
	if (rig_random() % 2)
		place[rig_random() % size] ^= (uint8_t)(1u << rig_random() % 8);
	else
		place[rig_random() % size] = (uint8_t)rig_random();
	return true;
}

/* Whatever it believed, it serves the guest without harm to anybody else. */
static void live_on(uint32_t n)
{
	static uint8_t bytes[5000];

	for (uint32_t i = 0; i < n; i++) {
		struct packet_header header = {
			.src_cid = RIG_CID,
			.dst_cid = PACKET_HOST_CID,
			.src_port = 1000 + rig_random() % 5,
			.dst_port = 80,
			.len = rig_random() % sizeof(bytes),
			.type = PACKET_TYPE_STREAM,
			.op = rig_random() % 2 ? PACKET_OP_RW : (uint16_t)(1 + rig_random() % 7),
			.buf_alloc = RIG_GUEST_BUFFER,
			.fwd_cnt = rig_random() % 4,
			.flags = rig_random() % 4,
		};

		if (header.op != PACKET_OP_RW)
			header.len = 0;
		rig_put(&header, bytes);
		device_set_time(rig_other.device,
				rig_other.device->now_us + rig_random() % 3000 * 1000);
		rig_run_worker(&rig_other);
	}
}

static void test_no_lie_whatever_does_harm(void **state)
{
	uint32_t n_believed = 0, n_refused = 0;

	(void)state;
	for (uint32_t i = 0; i < 800; i++) {
		struct rig_peer peers[4];
		bool is_good;

		rig_end();
		rig_start(&(struct rig_options){.num = 256});
		rig.after_run = NULL;
		rig.random = i;
		make_some(peers);
		n_changes = 1 + rig_random() % 2;
		rig_make_other();
		rig_relay(add_noise, UINT32_MAX);
		is_good = rig_check_other() == 0;
		if (is_good) {
			Vsockd__HandoverCommit body = VSOCKD__HANDOVER_COMMIT__INIT;
			Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

			n_believed++;
			envelope.body_case = VSOCKD__ENVELOPE__BODY_HANDOVER_COMMIT;
			envelope.handover_commit = &body;
			assert_int_equal(rig_command_to(&rig_other, &envelope, -1), 0);
			rig_offer(30, 4096);
			live_on(40);
		}
		n_refused += !is_good;
		rig_end_other();
		end_some(peers);
	}
	assert_in_range(n_believed, 50, 750);
	assert_in_range(n_refused, 50, 750);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_a_frozen_worker_touches_nothing_and_forgets_nothing),
		TEST(test_a_worker_may_be_told_to_go_on_at_any_point),
		TEST(test_room_that_comes_between_check_and_commit_is_used),
		TEST(test_a_worker_whose_successor_is_not_to_be_delivers_what_it_has),
		TEST(test_a_device_state_on_its_way_keeps_its_worker),
		TEST(test_counters_that_wrap_go_on),
		TEST(test_ring_indices_wrap_like_before),
		TEST(test_a_stopped_and_a_disabled_ring_stay_so),
		TEST(test_a_call_that_is_owed_goes_along),
		TEST(test_a_broken_ring_is_reported_once_and_stays_broken),
		TEST(test_timers_have_the_time_that_they_had),
		TEST(test_half_a_handshake_and_early_bytes_go_along),
		TEST(test_host_ports_are_not_given_twice),
		TEST(test_answers_to_connects_find_their_entries),
		TEST(test_full_tables_fit_into_another_worker),
		TEST(test_more_connections_than_a_message_names_go_along),
		TEST(test_a_tape_is_gone_when_it_was_read_or_is_of_no_use),
		TEST(test_a_socket_whose_connection_has_ended_meanwhile_is_closed),
		TEST(test_the_dirty_log_goes_on),
		TEST(test_quarantine_and_reset_go_along),
		TEST(test_a_reset_is_announced_before_it_can_be_seen),
		TEST(test_a_reset_that_was_announced_is_sent_once),
		TEST(test_event_buffers_of_no_use_are_not_taken_for_the_reset),
		TEST(test_lies_about_what_can_be_checked_are_refused),
		TEST(test_connections_that_cannot_be_are_refused),
		TEST(test_a_record_that_was_cut_is_refused),
		TEST(test_no_lie_whatever_does_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
