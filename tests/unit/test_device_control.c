/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){0});
	return 0;
}

static int set_up_idle(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.is_idle = true});
	return 0;
}

static int set_up_event_idx(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.features = RIG_F_EVENT_IDX});
	return 0;
}

static int set_up_polling(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.features = RIG_F_EVENT_IDX, .poll_us = 50});
	return 0;
}

static int set_up_polled(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.is_polled = true});
	return 0;
}

static int set_up_many(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.n_connections = 1500, .num = 4096, .n_handshakes = 1500});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static uint16_t flags_of_used(uint32_t ring)
{
	uint16_t flags;

	memcpy(&flags, rig.memory + rig.rings[ring].used, 2);
	return flags;
}

static uint16_t avail_event(uint32_t ring)
{
	const struct rig_ring *driver = &rig.rings[ring];
	uint16_t event;

	memcpy(&event, rig.memory + driver->used + 4 + 8 * (size_t)driver->num, 2);
	return event;
}

static uint64_t errors(uint32_t ring)
{
	uint64_t n = 0;

	return read(rig.rings[ring].error, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

/* ---- stopped and disabled ---- */

static void test_nothing_is_touched_while_the_rings_are_stopped(void **state)
{
	struct rig_peer writing, closing, asking, waiting, connecting = {.guest_port = 9};
	uint8_t *before = malloc(RIG_MEMORY_SIZE);

	(void)state;
	assert_non_null(before);
	rig_offer(40, 4096);
	writing = rig_guest_connects(1000, 80);
	closing = rig_guest_connects(1001, 80);
	asking = rig_ask(1002, 80);
	waiting = rig_guest_connects(1003, 80);
	rig_narrow(&waiting);
	rig_choke(&waiting, 1, 40000);
	while (rig.rings[RING_RX].used_idx != rig_used_index(RING_RX))
		rig_expect(&waiting, PACKET_OP_CREDIT_UPDATE);
	/* Offered, and left where it is. */
	rig_stop_rings();
	rig_say(&writing, PACKET_OP_CREDIT_REQUEST, 0);
	rig_say(&writing, PACKET_OP_RW, 0);
	rig_calls(RING_RX);
	rig_calls(RING_TX);
	memcpy(before, rig.memory, RIG_MEMORY_SIZE);

	rig_host_writes(&writing, "while you slept", 15);
	rig_close_host(&closing);
	rig_connected(&asking);
	connecting.endpoint = rig_accept(&connecting.host);
	rig_host_writes(&connecting, "CONNECT 9\n", 10);
	for (uint32_t i = 0; i < 20; i++) {
		static uint8_t some[10000];

		assert_true(recv(waiting.host, some, sizeof(some), 0) != 0);
		rig_sleep(20000);
	}
	assert_memory_equal(before, rig.memory, RIG_MEMORY_SIZE);
	assert_int_equal(rig_calls(RING_RX), 0);
	assert_int_equal(rig_calls(RING_TX), 0);

	/* And nothing was lost by it. */
	rig_start_rings();
	rig_run();
	for (uint32_t n_seen = 0; n_seen < 5;) {
		static struct rig_packet packet;

		assert_true(rig_take(&packet));
		n_seen += packet.header.op != PACKET_OP_CREDIT_UPDATE;
		if (packet.header.op == PACKET_OP_RW)
			assert_memory_equal(packet.payload, "while you slept", 15);
		if (packet.header.op == PACKET_OP_SHUTDOWN)
			assert_int_equal(packet.header.dst_port, 1001);
		if (packet.header.op == PACKET_OP_RESPONSE)
			assert_int_equal(packet.header.dst_port, 1002);
		if (packet.header.op == PACKET_OP_REQUEST) {
			assert_int_equal(packet.header.dst_port, 9);
			n_seen++;
		}
		assert_int_not_equal(packet.header.op, PACKET_OP_RST);
	}
	rig_close_host(&writing);
	rig_close_host(&asking);
	rig_close_host(&waiting);
	rig_close_host(&connecting);
	free(before);
}

static void test_timers_of_the_guest_stand_still_while_its_rings_do(void **state)
{
	struct rig_peer connecting, handshake = {0}, closing;

	(void)state;
	rig_offer(4, 4096);
	connecting = rig_host_asks(9);
	closing = rig_guest_connects(1000, 80);
	rig_close_host(&closing);
	rig_run();
	rig_expect(&closing, PACKET_OP_SHUTDOWN);
	handshake.endpoint = rig_accept(&handshake.host);
	rig_sleep(CONNECTION_CONNECT_MS / 2);
	rig_stop_rings();
	rig_sleep(600000);

	/* A guest that was paused has the time that it had left. */
	assert_int_equal(rig_ring_start(RING_TX, rig_used_index(RING_TX), false), 0);
	assert_int_equal(rig_ring_start(RING_RX, rig_used_index(RING_RX), false), 0);
	rig_run();
	rig_expect_no_packet();
	assert_false(rig_is_closed(connecting.endpoint));
	assert_false(rig_is_closed(handshake.endpoint));
	assert_false(rig_is_closed(closing.endpoint));
	rig_sleep(CONNECTION_CONNECT_MS / 2 - 1);
	assert_false(rig_is_closed(connecting.endpoint));
	rig_say(&connecting, PACKET_OP_RESPONSE, 0);
	assert_false(rig_is_closed(connecting.endpoint));
	device_set_time(&rig.device, rig.device.now_us + 1000 * CONNECTION_HANDSHAKE_MS);
	assert_int_equal(device_timeout(&rig.device), 0);
	rig_run();
	assert_true(rig_is_closed(handshake.endpoint));
	rig_close_host(&connecting);
	rig_close_host(&handshake);
}

static void test_idle_connections_wake_nobody(void **state)
{
	struct rig_peer peers[8];
	struct epoll_event event;

	(void)state;
	rig_offer(20, 4096);
	for (uint32_t i = 0; i < 8; i++) {
		peers[i] = i % 2 ? rig_guest_connects(1000 + i, 80) : rig_host_connects(9 + i);
		rig_rw(&peers[i], "x", 1);
		rig_host_reads(&peers[i], "x", 1);
	}
	rig_run();
	assert_int_equal(device_timeout(&rig.device), -1);
	assert_int_equal(epoll_wait(rig.epoll, &event, 1, 0), 0);
	for (uint32_t i = 0; i < 8; i++)
		rig_close_host(&peers[i]);
}

static void test_a_disabled_ring_is_left_alone_until_it_is_enabled(void **state)
{
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};
	struct packet_header header = rig_header(&peer, PACKET_OP_CREDIT_REQUEST);
	uint64_t one = 1;

	(void)state;
	rig_offer(4, 4096);
	rig_put(&header, NULL);
	for (uint32_t i = 0; i < RING_EVENT; i++)
		assert_int_equal(rig_ring_start(i, 0, false), 0);
	assert_int_equal(write(rig.rings[RING_TX].kick, &one, sizeof(one)), sizeof(one));
	rig_run();
	assert_int_equal(rig_used_index(RING_TX), 0);

	/* No kick comes after it. */
	rig_ring_enable(RING_TX, true);
	assert_int_equal(rig_used_index(RING_TX), 1);
	rig_expect_no_packet();
	rig_ring_enable(RING_RX, true);
	rig_expect_rst(PACKET_HOST_CID, 80, 1000, PACKET_TYPE_STREAM);

	rig_ring_enable(RING_TX, false);
	rig_put(&header, NULL);
	rig_run();
	assert_int_equal(rig_used_index(RING_TX), 1);
}

static void test_chains_that_were_there_before_the_start_are_taken_without_a_kick(void **state)
{
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};
	struct packet_header header = rig_header(&peer, PACKET_OP_CREDIT_REQUEST);

	(void)state;
	rig_offer(4, 4096);
	rig_put(&header, NULL);
	rig_ring_enable(RING_RX, true);
	rig_ring_enable(RING_TX, true);
	assert_int_equal(rig_ring_start(RING_RX, 0, false), 0);
	assert_int_equal(rig_ring_start(RING_TX, 0, false), 0);
	rig_expect_rst(PACKET_HOST_CID, 80, 1000, PACKET_TYPE_STREAM);
	assert_int_equal(rig_n_sent(), 1);
}

static void test_a_stopped_ring_goes_on_where_it_was(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(10, 4096);
	peer = rig_guest_connects(1000, 80);
	for (uint8_t i = 0; i < 200; i++) {
		struct packet_header header = rig_header(&peer, PACKET_OP_RW);

		header.len = 1;
		rig_put(&header, &i);
		rig_stop_rings(); /* what was put is taken now or later, but once */
		rig_start_rings();
		rig_run();
		rig_host_reads(&peer, &i, 1);
		assert_int_equal(rig_n_sent(), i == 0 ? 2 : 1);
	}
	assert_int_equal(rig_ring_stop(RING_TX), 201);
	assert_int_equal(rig_ring_stop(RING_TX), 201);
	rig_close_host(&peer);
}

static void test_a_ring_may_begin_at_any_index_or_behind_the_used_one(void **state)
{
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};
	struct packet_header header = rig_header(&peer, PACKET_OP_CREDIT_REQUEST);
	struct rig_ring *tx = &rig.rings[RING_TX];
	const uint16_t start = 65530;

	(void)state;
	memcpy(rig.memory + tx->used + 2, &start, 2);
	memcpy(rig.memory + tx->avail + 2, &start, 2);
	tx->avail_idx = tx->used_idx = start;
	rig_ring_enable(RING_TX, true);
	assert_int_equal(rig_ring_start(RING_TX, start, false), 0);
	for (uint32_t i = 0; i < 20; i++) {
		rig_send(&header, NULL);
		assert_int_equal(rig_n_sent(), 1);
	}
	assert_int_equal(rig_ring_stop(RING_TX), 14);

	/* After a crash nobody knows better than the used ring; the base is not looked at. */
	rig_put(&header, NULL);
	assert_int_equal(rig_ring_start(RING_TX, 999, true), 0);
	assert_int_equal(rig_n_sent(), 1);
	assert_int_equal(rig_ring_stop(RING_TX), 15);
}

/* ---- kicks and calls ---- */

static void test_a_kick_wakes_the_worker_each_time(void **state)
{
	struct epoll_event event;

	(void)state;
	rig_run();
	for (uint32_t i = 0; i < 3; i++)
		for (uint32_t ring = 0; ring < RING_EVENT; ring++) {
			uint64_t one = 1;

			assert_int_equal(epoll_wait(rig.epoll, &event, 1, 0), 0);
			assert_int_equal(write(rig.rings[ring].kick, &one, sizeof(one)),
					 sizeof(one));
			assert_int_equal(epoll_wait(rig.epoll, &event, 1, 0), 1);
			assert_int_equal(event.data.u64, device_event(DEVICE_EVENT_KICK, ring, 0));
		}
}

static void test_a_kick_fd_that_was_replaced_wakes_nobody(void **state)
{
	struct epoll_event event;
	int old = rig.rings[RING_TX].kick;
	uint64_t one = 1;

	(void)state;
	rig.rings[RING_TX].kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	/* On a started ring nothing else is looked at. */
	assert_int_equal(rig_ring_start(RING_TX, 77, false), 0);
	assert_int_equal(write(old, &one, sizeof(one)), sizeof(one));
	assert_int_equal(epoll_wait(rig.epoll, &event, 1, 0), 0);
	assert_int_equal(write(rig.rings[RING_TX].kick, &one, sizeof(one)), sizeof(one));
	assert_int_equal(epoll_wait(rig.epoll, &event, 1, 0), 1);
	assert_int_equal(rig_ring_stop(RING_TX), 0);
	close(old);
}

static void test_a_ring_without_kick_fd_is_looked_at_every_millisecond(void **state)
{
	(void)state;
	assert_int_equal(device_timeout(&rig.device), 1);
	rig_stop_rings();
	assert_int_equal(device_timeout(&rig.device), -1);
}

/* Of ring 2 nothing is wanted but room for that event, and its coming back. */
static void test_an_event_ring_without_kick_fd_is_looked_at_while_a_reset_is_due(void **state)
{
	Vsockd__Quarantine order = VSOCKD__QUARANTINE__INIT;

	(void)state;
	rig_stop_rings();
	rig_ring_enable(RING_EVENT, true);
	assert_int_equal(rig_ring_start(RING_EVENT, 0, false), 0);
	rig_run();
	assert_int_equal(device_timeout(&rig.device), -1);
	order.is_on = true;
	order.sends_reset = true;
	assert_int_equal(rig_command_of(&order.base, -1), 0);
	assert_int_equal(device_timeout(&rig.device), 1);
}

static void test_used_chains_are_called_once_for_many(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(60, 200);
	peer = rig_guest_connects(1000, 80);
	rig_n_sent();
	rig_calls(RING_RX);
	rig_calls(RING_TX);
	for (uint32_t i = 0; i < 30; i++) {
		struct packet_header header = rig_header(&peer, PACKET_OP_RW);

		header.len = 1;
		rig_put(&header, "x");
	}
	rig_run();
	assert_int_equal(rig_n_sent(), 30);
	assert_int_equal(rig_calls(RING_TX), 1);
	rig_close_host(&peer);
}

static void test_a_new_call_fd_is_signalled_once(void **state)
{
	Vsockd__RingCall call = VSOCKD__RING_CALL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	(void)state;
	call.ring = RING_TX;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_CALL;
	envelope.ring_call = &call;
	rig_calls(RING_TX);
	assert_int_equal(rig_command(&envelope, rig.rings[RING_TX].call), 0);
	assert_int_equal(rig_calls(RING_TX), 1);
	rig_stop_rings();
	assert_int_equal(rig_command(&envelope, rig.rings[RING_TX].call), 0);
	assert_int_equal(rig_calls(RING_TX), 0);
	assert_int_equal(rig_command(&envelope, -1), 0);
	rig_start_rings();
	rig_run();
	assert_int_equal(rig_calls(RING_TX), 0);
}

static void test_avail_event_is_written_anew_at_every_start(void **state)
{
	struct rig_ring *tx = &rig.rings[RING_TX], *rx = &rig.rings[RING_RX];
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};
	struct packet_header header = rig_header(&peer, PACKET_OP_RST);
	const uint16_t stale = 30000;

	(void)state;
	assert_int_equal(avail_event(RING_TX), 0);
	rig_send(&header, NULL);
	assert_int_equal(avail_event(RING_TX), 1);
	rig_stop_rings();
	memcpy(rig.memory + tx->used + 4 + 8 * (size_t)tx->num, &stale, 2);
	assert_int_equal(rig_ring_start(RING_TX, 1, false), 0);
	assert_int_equal(avail_event(RING_TX), 1);
	assert_int_equal(flags_of_used(RING_TX), 0);

	/* Ring 0 too, though nothing waits for its buffers. */
	memcpy(rig.memory + rx->used + 4 + 8 * (size_t)rx->num, &stale, 2);
	assert_int_equal(rig_ring_start(RING_RX, 0, false), 0);
	assert_int_equal(avail_event(RING_RX), 0);
}

static void test_a_worker_that_polls_wants_no_kick_until_its_time_is_over(void **state)
{
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};
	struct packet_header header = rig_header(&peer, PACKET_OP_RST);

	(void)state;
	/* The second packet comes a moment before the end, and puts it off. */
	for (uint32_t n = 0; n < 2; n++) {
		rig_put(&header, NULL);
		assert_true(device_pump(&rig.device));
		device_set_time(&rig.device, rig.device.now_us + 49);
		assert_true(device_pump(&rig.device));
		assert_int_equal(avail_event(RING_TX), 0);
	}
	device_set_time(&rig.device, rig.device.now_us + 1);
	assert_false(device_pump(&rig.device));
	assert_int_equal(avail_event(RING_TX), 2);
	/* Time alone does not begin it again. */
	device_set_time(&rig.device, rig.device.now_us + 1);
	assert_false(device_pump(&rig.device));
}

static void test_with_event_idx_rx_kicks_are_asked_for_only_when_something_waits(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(3, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_host_writes(&peer, "a", 1);
	rig_run();
	rig_expect(&peer, PACKET_OP_RW);
	assert_int_not_equal(avail_event(RING_RX), 3);
	rig_host_writes(&peer, "b", 1);
	rig_run();
	rig_host_writes(&peer, "c", 1);
	rig_run();
	assert_int_equal(avail_event(RING_RX), 3);
	rig_close_host(&peer);
}

/* ---- broken rings ---- */

static void break_tx(uint16_t idx)
{
	memcpy(rig.memory + rig.rings[RING_TX].avail + 2, &idx, 2);
}

static void test_a_broken_ring_is_reported_once_and_left_alone(void **state)
{
	struct rig_peer peer;
	struct rig_told told;
	uint16_t used;

	(void)state;
	rig_offer(10, 4096);
	peer = rig_guest_connects(1000, 80);
	used = rig_used_index(RING_TX);
	break_tx(1000);
	rig_run();
	rig_expect_report(REPORT_RING_BROKEN, &told);
	assert_int_equal(told.values[1], RING_TX);
	assert_int_equal(told.values[2], REPORT_RING_AVAIL_JUMP);
	assert_int_equal(told.values[3], 1000);
	assert_int_equal(errors(RING_TX), 1);
	assert_int_equal(errors(RING_RX), 0);

	break_tx((uint16_t)(used + 1));
	rig_sleep(1000);
	assert_int_equal(rig_used_index(RING_TX), used);
	assert_int_equal(errors(RING_TX), 0);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_REPORT, NULL));

	/* The other ring goes on. */
	rig_host_writes(&peer, "still", 5);
	rig_run();
	assert_memory_equal(rig_expect(&peer, PACKET_OP_RW)->payload, "still", 5);

	/* A new start heals it; the connection lives. */
	break_tx(used);
	assert_int_equal(rig_ring_stop(RING_TX), used);
	assert_int_equal(rig_ring_start(RING_TX, used, false), 0);
	rig_rw(&peer, "healed", 6);
	rig_host_reads(&peer, "healed", 6);
	rig_close_host(&peer);
}

static void test_bytes_before_the_chain_that_breaks_the_ring_are_delivered(void **state)
{
	struct rig_peer peer;
	struct packet_header header;
	struct rig_buffer outside = {RIG_GUEST_BASE - 4096, 44, 0};

	(void)state;
	rig_offer(10, 4096);
	peer = rig_guest_connects(1000, 80);
	header = rig_header(&peer, PACKET_OP_RW);
	header.len = 4;
	rig_put(&header, "good");
	rig_put_chain(RING_TX, &outside, 1);
	rig_run();
	rig_host_reads(&peer, "good", 4);
	rig_expect_report(REPORT_RING_BROKEN, NULL);
	assert_int_equal(rig_ring_stop(RING_TX), 2);
	rig_close_host(&peer);
}

static void test_a_broken_rx_ring_keeps_what_was_due(void **state)
{
	struct rig_peer peer;
	struct rig_told told;
	struct rig_buffer outside = {UINT64_MAX - 10, 4096, RIG_WRITE};
	static const uint16_t one = 1;

	(void)state;
	peer = rig_ask(1000, 80);
	rig_put_chain(RING_RX, &outside, 1);
	rig_connected(&peer);
	rig_run();
	rig_expect_report(REPORT_RING_BROKEN, &told);
	assert_int_equal(told.values[1], RING_RX);
	assert_int_equal(told.values[2], REPORT_RING_BAD_PLACE);
	assert_int_equal(errors(RING_RX), 1);
	assert_int_equal(rig_used_index(RING_RX), 0);

	rig_ring_stop(RING_RX);
	rig.rings[RING_RX].used_idx = one;
	memcpy(rig.memory + rig.rings[RING_RX].used + 2, &one, 2);
	assert_int_equal(rig_ring_start(RING_RX, 1, false), 0);
	rig_offer(1, 4096);
	rig_run();
	rig_expect(&peer, PACKET_OP_RESPONSE);
	rig_close_host(&peer);
}

static void test_a_failed_device_signals_every_error_fd(void **state)
{
	Vsockd__Fail fail = VSOCKD__FAIL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	(void)state;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_FAIL;
	envelope.fail = &fail;
	assert_int_equal(rig_command(&envelope, -1), 0);
	for (uint32_t i = 0; i < RINGS; i++)
		assert_int_equal(errors(i), 1);
}

/* ---- memory ---- */

static void test_rings_follow_a_new_memory_table(void **state)
{
	struct rig_peer peer;

	(void)state;
	rig_offer(10, 4096);
	peer = rig_guest_connects(1000, 80);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(rig_memory_add(0, RIG_MEMORY_SIZE, true), 0);
		rig_rw(&peer, "between", 7); /* nothing has changed yet */
		rig_host_reads(&peer, "between", 7);
		assert_int_equal(rig_memory_commit(), 0);
		rig_rw(&peer, "after", 5);
		rig_host_reads(&peer, "after", 5);
		rig_host_writes(&peer, "back", 4);
		rig_run();
		assert_memory_equal(rig_expect(&peer, PACKET_OP_RW)->payload, "back", 4);
	}
	rig_close_host(&peer);
}

static void test_a_ring_whose_memory_goes_is_broken_before_it_is_touched(void **state)
{
	struct rig_told told;

	(void)state;
	/* Only what lies behind the rings stays. */
	assert_int_equal(rig_memory_add(0x1000000, 0x100000, true), 0);
	assert_int_equal(rig_memory_commit(), 0);
	for (uint32_t i = 0; i < RING_EVENT; i++) {
		rig_expect_report(REPORT_RING_BROKEN, &told);
		assert_int_equal(told.values[2], REPORT_RING_BAD_PLACE);
		assert_int_equal(errors(i), 1);
	}
	assert_int_equal(rig_ring_stop(RING_TX), 0);
	assert_int_equal(rig_ring_start(RING_TX, 0, false), -EFAULT);
}

/* ---- the front ---- */

static void test_a_reset_forgets_every_connection_and_says_nothing_to_the_guest(void **state)
{
	struct rig_peer established, asking, closing, connecting, draining, handshake = {0};

	(void)state;
	rig_offer(40, 4096);
	established = rig_guest_connects(1000, 80);
	asking = rig_ask(1001, 80);
	closing = rig_guest_connects(1002, 80);
	rig_close_host(&closing);
	rig_run();
	rig_expect(&closing, PACKET_OP_SHUTDOWN);
	connecting = rig_host_asks(9);
	draining = rig_guest_connects(1003, 80);
	rig_narrow(&draining);
	rig_choke(&draining, 1, 3000);
	rig_say(&draining, PACKET_OP_RST, 0);
	handshake.endpoint = rig_accept(&handshake.host);
	rig_run();

	/* Packets that wait for buffers belong to the past as well. */
	rig_offer(1, 4096);
	rig_stop_rings();
	rig_host_writes(&established, "old", 3);
	rig_start_rings();
	while (rig.rings[RING_RX].used_idx != rig_used_index(RING_RX)) {
		static struct rig_packet packet;

		rig_take(&packet);
	}
	rig_reset();
	rig_offer(40, 4096);
	rig_sleep(CONNECTION_CLOSING_MS);
	rig_expect_no_packet();
	assert_true(rig_is_closed(established.endpoint));
	assert_true(rig_is_closed(closing.endpoint));
	assert_true(rig_is_closed(connecting.endpoint));
	assert_true(rig_is_closed(handshake.endpoint));
	rig_host_reads_end(&established);
	rig_host_reads_end(&connecting);
	rig_host_reads_end(&handshake);
	/* What the guest had sent before still drains. */
	assert_false(rig_is_closed(draining.endpoint));
	assert_int_equal(rig.device.connections.n_handshakes, 0);

	/* The answer of the front comes too late. */
	rig_connected(&asking);
	rig_run();
	assert_true(rig_is_closed(asking.endpoint));
	rig_sleep(CONNECTION_DRAINING_MS);
	assert_true(rig_is_closed(draining.endpoint));
	assert_int_equal(rig.device.connections.n_used, 0);
	rig_expect_no_packet();

	rig_close_host(&established);
	rig_close_host(&asking);
	rig_close_host(&connecting);
	rig_close_host(&draining);
	rig_close_host(&handshake);
}

static void test_a_reset_forgets_packets_that_waited_for_buffers(void **state)
{
	struct rig_peer peer, stranger = {.guest_port = 5, .host_port = 6};

	(void)state;
	rig_say(&stranger, PACKET_OP_RW, 0); /* RST */
	peer = rig_ask(1000, 80);
	rig_refused(&peer, -ECONNREFUSED); /* RST */
	rig_run();
	peer = rig_ask(1001, 80);
	rig_connected(&peer); /* RESPONSE */
	rig_run();
	rig_reset();
	rig_offer(8, 4096);
	rig_run();
	rig_expect_no_packet();
	assert_int_equal(rig.device.connections.n_used, 0);
	rig_close_host(&peer);
}

static void test_lost_connections_of_a_former_worker_get_rst(void **state)
{
	Vsockd__Lost lost = VSOCKD__LOST__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	static struct rig_packet packet;
	bool was_reset[32] = {false};

	(void)state;
	lost.type = PACKET_TYPE_STREAM;
	lost.cid = PACKET_HOST_CID;
	lost.host_port = 80;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_LOST;
	envelope.lost = &lost;
	/* Twice the limit is what the table holds. */
	for (lost.guest_port = 0; lost.guest_port < 32; lost.guest_port++) {
		lost.endpoint = lost.guest_port;
		/* Anything that can be closed: the socket went with the former worker. */
		rig.copies[lost.endpoint] = eventfd(0, EFD_CLOEXEC);
		rig_post(&envelope, -1);
	}
	rig_run();
	assert_true(rig.is_attached);
	rig_offer(64, PACKET_HEADER_LEN);
	rig_run();
	for (uint32_t i = 0; i < 32; i++) {
		assert_true(rig_take(&packet));
		assert_int_equal(packet.header.op, PACKET_OP_RST);
		assert_int_equal(packet.header.src_port, 80);
		assert_in_range(packet.header.dst_port, 0, 31);
		assert_false(was_reset[packet.header.dst_port]);
		was_reset[packet.header.dst_port] = true;
	}
	rig_expect_no_packet();
	assert_int_equal(rig.device.connections.n_used, 0);
	/* The front owes the guest a RST until it hears that it was sent. */
	for (uint32_t i = 0; i < 32; i++)
		assert_true(rig_is_closed(i));
}

static void test_an_assignment_that_the_worker_is_too_small_for_is_refused(void **state)
{
	static const struct {
		uint32_t n_connections, buffer_size;
		int status;
	} rows[] = {
		{17, 64 * 1024, -ENOSPC},
		{16, 64 * 1024 + 1, -ENOSPC},
		{32, 16 * 1024, -ENOSPC}, /* bytes enough, entries not */
		{UINT32_MAX, UINT32_MAX, -ENOSPC},
		{UINT32_MAX - 16382, UINT32_MAX, -ENOSPC}, /* the product wraps */
		{16, 64 * 1024, 0},
	};
	Vsockd__Assign assign = VSOCKD__ASSIGN__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	(void)state;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_ASSIGN;
	envelope.assign = &assign;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		rig.device.is_assigned = false;
		assign.max_connections = rows[i].n_connections;
		assign.buffer_size = rows[i].buffer_size;
		assert_int_equal(rig_command(&envelope, -1), rows[i].status);
		assert_int_equal(rig.device.is_assigned, rows[i].status == 0);
	}
}

static void test_limits_that_cannot_be_kept_are_refused(void **state)
{
	Vsockd__Limits limits = VSOCKD__LIMITS__INIT;
	Vsockd__PortRange range = VSOCKD__PORT_RANGE__INIT;

	(void)state;
	limits.bytes_per_second = RATE_MAX;
	limits.n_ranges = 1;
	assert_int_equal(rig_command_of(&limits.base, -1), 0);
	assert_int_equal(rig_command_of(&range.base, -1), 0);
	/* One more than was announced. */
	assert_int_equal(rig_command_of(&range.base, -1), -ENOSPC);
	limits.bytes_per_second = RATE_MAX + 1;
	assert_int_equal(rig_command_of(&limits.base, -1), -ERANGE);
	limits.bytes_per_second = 0;
	limits.n_ranges = UINT32_MAX;
	assert_int_equal(rig_command_of(&limits.base, -1), -ENOSPC);
}

static bool is_accepted(const Vsockd__Envelope *envelope, int fd)
{
	rig_end();
	rig_start(&(struct rig_options){0});
	rig_post(envelope, fd);
	rig_run();
	return rig.is_attached;
}

static void test_a_front_that_breaks_the_rules_is_left(void **state)
{
	Vsockd__Connected connected = VSOCKD__CONNECTED__INIT;
	Vsockd__RingStop stop = VSOCKD__RING_STOP__INIT;
	Vsockd__RingEnable enable = VSOCKD__RING_ENABLE__INIT;
	Vsockd__RingStart start = VSOCKD__RING_START__INIT;
	Vsockd__Assign assign = VSOCKD__ASSIGN__INIT;
	Vsockd__Ready ready = VSOCKD__READY__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	(void)state;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_CONNECTED;
	envelope.connected = &connected;
	connected.status = -1;
	assert_false(is_accepted(&envelope, -1)); /* never asked */
	connected.request = 31;
	assert_false(is_accepted(&envelope, -1));
	connected.request = 32; /* outside the table */
	assert_false(is_accepted(&envelope, -1));
	connected.request = UINT32_MAX;
	assert_false(is_accepted(&envelope, -1));

	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_STOP;
	envelope.ring_stop = &stop;
	stop.ring = RINGS;
	assert_false(is_accepted(&envelope, -1));
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_ENABLE;
	envelope.ring_enable = &enable;
	enable.ring = UINT32_MAX;
	assert_false(is_accepted(&envelope, -1));
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_START;
	envelope.ring_start = &start;
	start.ring = RINGS;
	assert_false(is_accepted(&envelope, -1));

	envelope.body_case = VSOCKD__ENVELOPE__BODY_ASSIGN; /* a second time */
	envelope.assign = &assign;
	assert_false(is_accepted(&envelope, -1));
	envelope.body_case = VSOCKD__ENVELOPE__BODY_READY; /* the other direction */
	envelope.ready = &ready;
	assert_false(is_accepted(&envelope, -1));
}

/* Nobody has looked at it yet. */
static void put_request(uint32_t guest_port)
{
	rig_put(&(struct packet_header){.src_cid = RIG_CID,
					.dst_cid = PACKET_HOST_CID,
					.src_port = guest_port,
					.dst_port = 80,
					.type = PACKET_TYPE_STREAM,
					.op = PACKET_OP_REQUEST,
					.buf_alloc = RIG_GUEST_BUFFER},
		NULL);
}

/* A worker may come in the place of this one, and find it on the ring. */
static void test_what_the_front_cannot_be_told_any_more_is_not_taken(void **state)
{
	uint16_t used = rig_used_index(RING_TX);

	(void)state;
	put_request(1000);
	close(rig.front);
	rig.front = -1;
	rig_run();
	assert_false(rig.is_attached);
	assert_int_equal(rig_used_index(RING_TX), used);
}

static void test_an_answer_with_and_without_socket_has_to_say_so(void **state)
{
	struct rig_peer peer;
	Vsockd__Connected connected = VSOCKD__CONNECTED__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	(void)state;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_CONNECTED;
	envelope.connected = &connected;
	peer = rig_ask(1000, 80);
	connected.request = peer.request;
	rig_post(&envelope, -1); /* success without fd */
	rig_run();
	assert_false(rig.is_attached);
	rig_end();

	rig_start(&(struct rig_options){0});
	peer = rig_ask(1000, 80);
	connected.request = peer.request;
	connected.status = -ECONNREFUSED;
	rig_post(&envelope, 0); /* failure with one */
	rig_run();
	assert_false(rig.is_attached);
}

static void test_a_ring_that_cannot_be_is_not_started(void **state)
{
	static const uint16_t sizes[] = {0, 3, 100, UINT16_MAX};

	(void)state;
	rig_ring_enable(RING_TX, true);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		rig.rings[RING_TX].num = sizes[i];
		assert_int_equal(rig_ring_start(RING_TX, 0, false), -EINVAL);
	}
	rig.rings[RING_TX].num = 128;
	rig.rings[RING_TX].desc = RIG_MEMORY_SIZE - 16;
	assert_int_equal(rig_ring_start(RING_TX, 0, false), -EFAULT);
	rig.rings[RING_TX].desc = 8; /* misaligned */
	assert_int_equal(rig_ring_start(RING_TX, 0, false), -EFAULT);
	rig.rings[RING_TX].desc = 16;
	assert_int_equal(rig_ring_start(RING_TX, 0, false), 0);
}

static void test_no_question_is_lost_when_the_front_is_slow(void **state)
{
	struct rig_peer peer = {.host_port = 80, .buf_alloc = RIG_GUEST_BUFFER};
	uint32_t n_told = 0;
	int small = 1;

	(void)state;
	assert_int_equal(
		setsockopt(rig.device.channel, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	for (uint32_t i = 0; i < 1000; i++) {
		struct packet_header header;

		peer.guest_port = i;
		header = rig_header(&peer, PACKET_OP_REQUEST);
		rig_put(&header, NULL);
	}
	/* The loop without the front: pump until nothing is left, then say what can be said. */
	while (device_pump(&rig.device))
		;
	assert_true(control_flush(&rig.device));
	assert_true(rig.device.waits_to_write);
	assert_int_equal(rig_n_sent(), 1000);

	/* Room on the channel wakes the worker up. */
	for (uint32_t i = 0; i < 1000 && n_told < 1000; i++) {
		struct epoll_event event;
		struct rig_told told;

		rig_collect();
		while (rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told))
			assert_int_equal(told.values[3], n_told++);
		if (epoll_wait(rig.epoll, &event, 1, 0) == 1)
			assert_true(device_note_event(&rig.device, event.data.u64, event.events));
	}
	assert_int_equal(n_told, 1000);
	assert_false(rig.device.waits_to_write);
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, NULL));
}

static void test_the_end_is_told_when_the_guest_has_its_rst_though_the_front_was_slow(void **state)
{
	struct rig_peer peer = {.guest_port = 9};
	struct epoll_event event;

	(void)state;
	rig_offer(1, 4096);
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONNECT 9\n", 10);
	while (epoll_wait(rig.epoll, &event, 1, 0) == 1)
		device_note_event(&rig.device, event.data.u64, event.events);
	device_pump(&rig.device); /* the REQUEST is out, the front was told nothing */
	peer.host_port = rig.device.connections.next_port - 1;
	rig_expect(&peer, PACKET_OP_REQUEST);
	device_set_time(&rig.device, rig.device.now_us + 1000 * CONNECTION_CONNECT_MS);
	device_pump(&rig.device); /* RST is due, without a buffer for it */
	rig_run();
	rig_expect_told(VSOCKD__ENVELOPE__BODY_OPENED, NULL);
	assert_false(rig_is_closed(peer.endpoint));
	rig_offer(1, 4096);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_the_front_is_asked_before_the_guest_is_called_for_what_it_sent(void **state)
{
	struct rig_peer peer = {.guest_port = 9, .host_port = 80, .buf_alloc = RIG_GUEST_BUFFER};
	struct packet_header header = rig_header(&peer, PACKET_OP_REQUEST);

	(void)state;
	rig_run();
	(void)rig_calls(RING_TX);
	rig_put(&header, NULL);
	device_pump(&rig.device);
	assert_int_equal(rig_n_sent(), 1); /* it sees that, if it looks */
	assert_int_equal(rig_calls(RING_TX), 0);
	assert_true(control_flush(&rig.device));
	assert_int_equal(rig_calls(RING_TX), 1);
	rig_collect();
	rig_expect_told(VSOCKD__ENVELOPE__BODY_CONNECT, NULL);
}

static void test_a_guest_has_its_answer_before_the_socket_is_closed(void **state)
{
	struct rig_peer peer;
	struct packet_header header;
	char byte;

	(void)state;
	rig_offer(2, 4096);
	peer = rig_guest_connects(9, 80);
	header = rig_header(&peer, PACKET_OP_SHUTDOWN);
	header.flags = PACKET_SHUTDOWN_BOTH;
	rig_put(&header, NULL);
	device_pump(&rig.device);
	rig_expect(&peer, PACKET_OP_RST);
	assert_int_equal(recv(peer.host, &byte, 1, MSG_DONTWAIT), -1);
	assert_true(control_flush(&rig.device));
	assert_int_equal(recv(peer.host, &byte, 1, MSG_DONTWAIT), 0);
	rig_collect();
	assert_true(rig_is_closed(peer.endpoint));
	rig_close_host(&peer);
}

static void test_commands_wait_while_an_answer_does(void **state)
{
	Vsockd__RingEnable enable = VSOCKD__RING_ENABLE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	struct channel_packet packet;
	uint32_t n_done = 0;
	int small = 1;

	(void)state;
	assert_int_equal(
		setsockopt(rig.device.channel, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_ENABLE;
	envelope.ring_enable = &enable;
	enable.ring = RING_EVENT;
	for (uint32_t i = 0; i < 30; i++) {
		envelope.sequence = i + 1;
		rig_post(&envelope, -1);
	}
	for (uint32_t i = 0; i < 1000 && n_done < 30; i++) {
		struct epoll_event events[4];
		const char *reason;
		int n = epoll_wait(rig.epoll, events, 4, 0);

		for (int k = 0; k < n; k++)
			assert_true(device_note_event(&rig.device, events[k].data.u64,
						      events[k].events));
		assert_true(control_flush(&rig.device));
		if (i % 8 || channel_receive(rig.front, &packet) != 0)
			continue;
		/* Every one, in order. */
		assert_int_equal(
			message_decode(&packet, MESSAGE_TO_FRONT, MESSAGE_ASSIGNED, &reason)
				->done->sequence,
			++n_done);
	}
	assert_int_equal(n_done, 30);
}

static void test_an_event_of_a_former_life_is_not_noted(void **state)
{
	struct rig_peer old, peer;
	const struct connection *connection;
	uint64_t event;

	(void)state;
	rig.after_run = NULL; /* one worker's table is looked at */
	rig_offer(8, 4096);
	old = rig_guest_connects(1000, 80);
	connection = connection_find(&rig.device.connections, PACKET_HOST_CID, 1000, 80,
				     PACKET_TYPE_STREAM);
	event = device_event(DEVICE_EVENT_CONNECTION, 0, connection->generation);
	assert_ptr_equal(connection, &rig.device.connections.all[0]);
	rig_say(&old, PACKET_OP_RST, 0);
	peer = rig_guest_connects(1001, 80);
	assert_ptr_equal(connection_find(&rig.device.connections, PACKET_HOST_CID, 1001, 80,
					 PACKET_TYPE_STREAM),
			 connection);
	assert_true(device_note_event(&rig.device, event, EPOLLIN | EPOLLHUP));
	assert_false(connection->has_hung_up);
	assert_false(connection->is_readable);
	rig_close_host(&old);
	rig_close_host(&peer);
}

/* It shows when something is to be said, or when there is room for what could not be. */
static void test_a_front_that_goes_is_missed(void **state)
{
	Vsockd__Limits limits = VSOCKD__LIMITS__INIT;
	Vsockd__Envelope envelope;
	uint16_t used;

	(void)state;
	rig.after_run = NULL;
	message_wrap(&limits.base, &envelope);
	envelope.sequence = ++rig.sequence;
	rig_post(&envelope, -1);
	close(rig.front);
	rig.front = -1;
	assert_false(control_receive(&rig.device));

	rig_end();
	rig_start(&(struct rig_options){0});
	rig.after_run = NULL;
	rig_fill(rig.device.channel);
	put_request(1000);
	device_pump(&rig.device);
	assert_true(control_flush(&rig.device));
	assert_true(rig.device.waits_to_write);
	used = rig_used_index(RING_TX);
	put_request(1001);
	close(rig.front);
	rig.front = -1;
	rig_run();
	assert_false(rig.is_attached);
	assert_int_equal(rig_used_index(RING_TX), used);
}

static void test_a_worker_without_front_delivers_what_the_guest_sent_and_ends(void **state)
{
	struct rig_peer peer, other;
	static uint8_t bytes[200000];
	uint16_t rx_used;
	uint32_t total;

	(void)state;
	rig_offer(40, 4096);
	peer = rig_guest_connects(1000, 80);
	other = rig_guest_connects(1001, 80);
	rig_narrow(&peer);
	total = rig_choke(&peer, 5, 30000);
	for (uint32_t i = 0; i < total; i++)
		bytes[i] = rig_byte(5, i);
	/* The guest is left alone from here on. */
	rx_used = rig_used_index(RING_RX);
	rig_host_writes(&other, "x", 1);
	close(rig.front);
	rig.front = -1;
	rig_run();
	assert_false(rig.is_attached);
	device_detach(&rig.device);
	assert_false(device_is_drained(&rig.device));

	for (uint32_t done = 0; done < total;) {
		static uint8_t got[sizeof(bytes)];
		struct epoll_event events[8];
		ssize_t n = recv(peer.host, got, sizeof(got), 0);
		int n_events;

		assert_true(n > 0);
		assert_memory_equal(got, bytes + done, (size_t)n);
		done += (uint32_t)n;
		n_events = epoll_wait(rig.epoll, events, 8, 0);
		for (int k = 0; k < n_events; k++)
			device_note_event(&rig.device, events[k].data.u64, events[k].events);
		device_pump(&rig.device);
		(void)control_flush(&rig.device);
	}
	rig_host_reads_end(&peer);
	assert_true(device_is_drained(&rig.device));
	assert_int_equal(rig_used_index(RING_RX), rx_used);
	rig_host_reads_end(&other);
	rig_close_host(&peer);
	rig_close_host(&other);
}

static void test_thousands_of_connections_leave_nothing_behind(void **state)
{
	const struct rig_ring *rx = &rig.rings[RING_RX];

	(void)state;
	for (uint32_t i = 0; i < 3000; i++) {
		struct rig_peer peer;

		while ((uint16_t)(rx->avail_idx - rx->used_idx) < 4)
			rig_offer(1, 4096);
		peer = i % 2 ? rig_guest_connects(1000 + i, 80) : rig_host_connects(9);
		rig_rw(&peer, "abc", 3);
		rig_host_reads(&peer, "abc", 3);
		rig_say(&peer, i % 3 ? PACKET_OP_RST : PACKET_OP_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
		assert_true(rig_is_closed(peer.endpoint));
		while (rig.rings[RING_RX].used_idx != rig_used_index(RING_RX))
			rig_expect(&peer, PACKET_OP_RST);
		rig_n_sent();
		assert_int_equal(rig.device.connections.n_used, 0);
		rig_close_host(&peer);
		rig.n_told = 0;
	}
	assert_int_equal(rig.device.connections.n_handshakes, 0);
	/* Entries are used again, so is the pool. */
	assert_in_range(rig.device.connections.n_touched, 0, 4);
	assert_in_range(rig.device.pool.n_touched, 0, 4);
}

#define TEST(name)		cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_WITH(set_up, name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_nothing_is_touched_while_the_rings_are_stopped),
		TEST(test_timers_of_the_guest_stand_still_while_its_rings_do),
		TEST(test_idle_connections_wake_nobody),
		TEST_WITH(set_up_idle, test_a_disabled_ring_is_left_alone_until_it_is_enabled),
		TEST_WITH(set_up_idle,
			  test_chains_that_were_there_before_the_start_are_taken_without_a_kick),
		TEST(test_a_stopped_ring_goes_on_where_it_was),
		TEST_WITH(set_up_idle, test_a_ring_may_begin_at_any_index_or_behind_the_used_one),
		TEST(test_a_kick_wakes_the_worker_each_time),
		TEST(test_a_kick_fd_that_was_replaced_wakes_nobody),
		TEST_WITH(set_up_polled,
			  test_a_ring_without_kick_fd_is_looked_at_every_millisecond),
		TEST_WITH(set_up_polled,
			  test_an_event_ring_without_kick_fd_is_looked_at_while_a_reset_is_due),
		TEST(test_used_chains_are_called_once_for_many),
		TEST(test_a_new_call_fd_is_signalled_once),
		TEST_WITH(set_up_event_idx, test_avail_event_is_written_anew_at_every_start),
		TEST_WITH(set_up_polling,
			  test_a_worker_that_polls_wants_no_kick_until_its_time_is_over),
		TEST_WITH(set_up_event_idx,
			  test_with_event_idx_rx_kicks_are_asked_for_only_when_something_waits),
		TEST(test_a_broken_ring_is_reported_once_and_left_alone),
		TEST(test_bytes_before_the_chain_that_breaks_the_ring_are_delivered),
		TEST(test_a_broken_rx_ring_keeps_what_was_due),
		TEST(test_a_failed_device_signals_every_error_fd),
		TEST(test_rings_follow_a_new_memory_table),
		TEST(test_a_ring_whose_memory_goes_is_broken_before_it_is_touched),
		TEST(test_a_reset_forgets_every_connection_and_says_nothing_to_the_guest),
		TEST(test_a_reset_forgets_packets_that_waited_for_buffers),
		TEST(test_lost_connections_of_a_former_worker_get_rst),
		TEST(test_an_assignment_that_the_worker_is_too_small_for_is_refused),
		TEST(test_limits_that_cannot_be_kept_are_refused),
		TEST(test_a_front_that_breaks_the_rules_is_left),
		TEST(test_what_the_front_cannot_be_told_any_more_is_not_taken),
		TEST(test_an_answer_with_and_without_socket_has_to_say_so),
		TEST_WITH(set_up_idle, test_a_ring_that_cannot_be_is_not_started),
		TEST_WITH(set_up_many, test_no_question_is_lost_when_the_front_is_slow),
		TEST(test_the_end_is_told_when_the_guest_has_its_rst_though_the_front_was_slow),
		TEST(test_the_front_is_asked_before_the_guest_is_called_for_what_it_sent),
		TEST(test_a_guest_has_its_answer_before_the_socket_is_closed),
		TEST(test_commands_wait_while_an_answer_does),
		TEST(test_an_event_of_a_former_life_is_not_noted),
		TEST(test_a_front_that_goes_is_missed),
		TEST(test_a_worker_without_front_delivers_what_the_guest_sent_and_ends),
		TEST(test_thousands_of_connections_leave_nothing_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
