/* SPDX-License-Identifier: Apache-2.0 */

/* Memory for buffers is bounded, and what the guest was told it may send is not. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

#define KIB	1024u
#define LIMIT	(1024 * KIB)
#define SIZE	(256 * KIB)
#define N_PEERS 64

static struct rig_peer peers[N_PEERS];
static uint32_t n_peers;

static int set_up(void **state)
{
	(void)state;
	n_peers = 0;
	rig_start(&(struct rig_options){.buffer_memory = LIMIT,
					.buffer_size = SIZE,
					.n_connections = N_PEERS,
					.features = RIG_F_SEQPACKET | RIG_F_STREAM});
	rig_offer(64, 4096);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static bool has_room(void)
{
	return budget_offer(&rig.device.connections.budget, SIZE) > 0;
}

static void expect_refusal(void)
{
	struct rig_peer peer = {.guest_port = 9999, .host_port = 99, .buf_alloc = RIG_GUEST_BUFFER};
	uint32_t n_used = rig.device.connections.n_used;

	rig_say(&peer, PACKET_OP_REQUEST, 0);
	rig_run();
	rig_expect(&peer, PACKET_OP_RST);
	rig_offer(1, 4096);
	assert_int_equal(rig.device.connections.n_used, n_used);
}

/* Guest port and stream are those of its number. */
static void connect_all(bool is_messages)
{
	while (has_room()) {
		assert_true(n_peers < N_PEERS);
		peers[n_peers] = is_messages ? rig_guest_connects_messages(1000 + n_peers, 80)
					     : rig_guest_connects(1000 + n_peers, 80);
		n_peers++;
		rig_offer(1, 4096);
	}
	assert_true(n_peers > LIMIT / SIZE);
	assert_true(rig.device.connections.budget.reserved <= LIMIT);
}

static const struct connection *device_side(uint32_t i)
{
	return connection_find(&rig.device.connections, PACKET_HOST_CID, peers[i].guest_port, 80,
			       peers[i].type ? peers[i].type : PACKET_TYPE_STREAM);
}

/* As much as it may, beyond what the host's socket takes. */
static uint64_t fill(uint32_t i)
{
	static uint8_t bytes[2048];
	uint64_t n_sent = 0;

	for (;;) {
		const struct connection *connection = device_side(i);
		uint32_t room;

		assert_non_null(connection);
		room = connection->credit.buf_alloc -
		       (connection->credit.rx_cnt - connection->credit.fwd_cnt);
		if (room < sizeof(bytes))
			return n_sent;
		for (size_t at = 0; at < sizeof(bytes); at++)
			bytes[at] = rig_byte(i, n_sent + at);
		struct packet_header header = rig_header(&peers[i], PACKET_OP_RW);

		header.len = sizeof(bytes);
		rig_put(&header, bytes);
		rig_run();
		n_sent += sizeof(bytes);
		while (rig_has_packet()) {
			(void)rig_take(&(struct rig_packet){0});
			rig_offer(1, 4096);
		}
	}
}

static void expect_bytes(uint32_t i, uint64_t n_sent)
{
	static uint8_t bytes[64 * 1024];

	for (uint64_t at = 0; at < n_sent;) {
		ssize_t n = recv(peers[i].host, bytes, sizeof(bytes), MSG_DONTWAIT);

		if (n < 0) {
			assert_int_equal(errno, EAGAIN);
			rig_run(); /* there is room for what waits */
			continue;
		}
		for (ssize_t k = 0; k < n; k++)
			if (bytes[k] != rig_byte(i, at + (uint64_t)k))
				fail_msg("a wrong byte");
		at += (uint64_t)n;
	}
}

static void test_all_windows_can_be_full_at_once(void **state)
{
	uint64_t n_sent[N_PEERS], n_waiting = 0;

	(void)state;
	connect_all(false);
	for (uint32_t i = 0; i < 5; i++)
		expect_refusal();
	/* At each power of two. */
	for (uint32_t i = 1; i < 5; i *= 2) {
		struct rig_told told;

		rig_expect_report(REPORT_MEMORY_LIMIT, &told);
		assert_int_equal(told.values[2], i);
	}
	assert_false(rig_take_told(VSOCKD__ENVELOPE__BODY_REPORT, NULL));
	for (uint32_t i = 0; i < n_peers; i++)
		n_sent[i] = fill(i);
	for (uint32_t i = 0; i < n_peers; i++) {
		n_waiting += device_side(i)->buffer.len;
		assert_true(device_side(i)->buffer.len + 2048 > device_side(i)->credit.buf_alloc);
	}
	assert_true(n_waiting >
		    LIMIT / 3); /* the rest is what chunks may be cut off at both ends */
	assert_true((uint64_t)rig.device.pool.n_touched * BUFFER_CHUNK_LEN <= LIMIT);
	for (uint32_t i = 0; i < n_peers; i++)
		expect_bytes(i, n_sent[i]);
	for (uint32_t i = 0; i < n_peers; i++)
		rig_close_host(&peers[i]);
}

static void test_who_ends_makes_room_for_another_one(void **state)
{
	(void)state;
	connect_all(false);
	expect_refusal();
	rig_say(&peers[0], PACKET_OP_RST, 0);
	rig_run();
	assert_true(has_room());
	peers[0] = rig_guest_connects(5000, 80);
	for (uint32_t i = 0; i < n_peers; i++)
		rig_close_host(&peers[i]);
}

static void test_when_all_have_ended_nothing_is_set_aside(void **state)
{
	(void)state;
	connect_all(false);
	for (uint32_t i = 0; i < n_peers; i++) {
		rig_say(&peers[i], PACKET_OP_RST, 0);
		rig_run();
		rig_close_host(&peers[i]);
	}
	rig_collect();
	rig_run();
	assert_int_equal(rig.device.connections.n_used, 0);
	assert_int_equal(rig.device.connections.budget.reserved, 0);
}

static void test_messages_get_a_part_as_streams_do(void **state)
{
	(void)state;
	connect_all(true);
	for (uint32_t i = 0; i < n_peers; i++) {
		const struct connection *connection = device_side(i);

		assert_in_range(connection->buffer_max, BUDGET_BUFFER_MIN, SIZE);
		assert_int_equal(connection->credit.buf_alloc,
				 connection->buffer_max - connection->buffer_max / 8);
	}
	expect_refusal();
	for (uint32_t i = 0; i < n_peers; i++)
		rig_close_host(&peers[i]);
}

static void test_a_host_program_that_finds_no_room_is_turned_away(void **state)
{
	struct rig_peer peer = {0};
	struct rig_told report;

	(void)state;
	connect_all(false);
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONNECT 22\n", 11);
	rig_run();
	rig_expect_no_packet();
	rig_expect_report(REPORT_HANDSHAKE_FAILED, &report);
	assert_int_equal(report.values[2], REPORT_HANDSHAKE_NO_MEMORY);
	rig_host_reads_end(&peer);
	rig_close_host(&peer);
	for (uint32_t i = 0; i < n_peers; i++)
		rig_close_host(&peers[i]);
}

static void test_a_lower_limit_takes_nothing_back(void **state)
{
	uint32_t window;

	(void)state;
	peers[n_peers++] = rig_guest_connects(1000, 80);
	window = device_side(0)->credit.buf_alloc;
	rig_limit(&(struct rig_options){.buffer_memory = 16 * KIB});
	expect_refusal();
	assert_int_equal(device_side(0)->credit.buf_alloc, window);
	expect_bytes(0, fill(0));
	while (rig_has_packet())
		(void)rig_take(&(struct rig_packet){0}); /* the guest hears of its credit */
	rig_limit(&(struct rig_options){0});
	peers[n_peers++] = rig_guest_connects(1001, 80);
	assert_int_equal(device_side(1)->credit.buf_alloc, SIZE);
	for (uint32_t i = 0; i < n_peers; i++)
		rig_close_host(&peers[i]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_all_windows_can_be_full_at_once),
		TEST(test_who_ends_makes_room_for_another_one),
		TEST(test_when_all_have_ended_nothing_is_set_aside),
		TEST(test_messages_get_a_part_as_streams_do),
		TEST(test_a_host_program_that_finds_no_room_is_turned_away),
		TEST(test_a_lower_limit_takes_nothing_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
