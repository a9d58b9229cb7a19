/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A guest, host programs and a front-end that do whatever comes to their mind,
 * in an order drawn by fixed seeds; only the front keeps to its word, as it
 * counts sockets. What is looked for: traps, sanitizers' findings, a packet that
 * no device may send, and anything that is left when all is over.
 */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

#define SOCKETS	  6 /* what the front allows */
#define HOSTS_MAX 4000
#define STEPS	  12000

static struct {
	struct rig_peer asked[SOCKETS]; /* Connects without an answer */
	uint32_t n_asked;
	struct rig_peer hosts[HOSTS_MAX];
	uint32_t n_hosts;
	bool are_rings_stopped;
	uint32_t n_packets[8];
} f;

static uint32_t n_sockets(void)
{
	uint32_t n = f.n_asked;

	for (uint32_t i = 0; i < rig.n_endpoints; i++)
		n += !rig_is_closed(i);
	return n;
}

static uint32_t free_descriptors(uint32_t index)
{
	const struct rig_ring *ring = &rig.rings[index];

	return ring->num - 3u * (uint16_t)(ring->avail_idx - ring->used_idx);
}

/* ---- the front ---- */

static void hear_the_worker(void)
{
	struct rig_told told;

	while (rig_take_told(VSOCKD__ENVELOPE__BODY_CONNECT, &told)) {
		struct rig_peer peer = {.host = -1,
					.request = (uint32_t)told.values[0],
					.guest_port = (uint32_t)told.values[3],
					.host_port = (uint32_t)told.values[1],
					.cid = (uint32_t)told.values[4]};

		if (n_sockets() < SOCKETS) {
			f.asked[f.n_asked++] = peer;
			continue;
		}
		rig_refused(&peer, -EMFILE);
	}
	rig.n_told = 0;
}

static void answer_a_connect(void)
{
	uint32_t at;
	struct rig_peer peer;

	if (f.n_asked == 0)
		return;
	at = rig_random() % f.n_asked;
	peer = f.asked[at];
	f.asked[at] = f.asked[--f.n_asked];
	if (rig_random() % 4 == 0) {
		rig_refused(&peer, -ECONNREFUSED);
		return;
	}
	rig_connected(&peer);
	f.hosts[f.n_hosts++] = peer;
}

static void accept_a_host_program(void)
{
	static const char *const lines[] = {"CONNECT 1\n", "CONNECT 2\nearly bytes", "CONNECT 3",
					    "GET /\n", ""};
	const char *line = lines[rig_random() % 5];
	struct rig_peer peer = {0};

	if (n_sockets() >= SOCKETS)
		return;
	peer.endpoint = rig_accept(&peer.host);
	if (*line)
		rig_host_writes(&peer, line, strlen(line));
	f.hosts[f.n_hosts++] = peer;
}

static void accept_a_sibling(void)
{
	struct rig_peer peer = {
		.guest_port = 1 + rig_random() % 4,
		.host_port = 80 + rig_random() % 2,
		.cid = 3 + rig_random() % 2,
	};

	if (n_sockets() >= SOCKETS)
		return;
	rig_sibling_asks(&peer);
	f.hosts[f.n_hosts++] = peer;
}

/* As the front does it: of one that the worker did not close, and only once. */
static void reset_a_sibling(void)
{
	struct rig_peer *peer;

	if (f.n_hosts == 0)
		return;
	peer = &f.hosts[f.n_hosts - 1 - rig_random() % (f.n_hosts < 12 ? f.n_hosts : 12)];
	if (peer->cid <= PACKET_HOST_CID || peer->host < 0 || rig_is_closed(peer->endpoint))
		return;
	rig_peer_reset(peer);
	rig_close_host(peer);
}

static void toggle_rings(void)
{
	if (f.are_rings_stopped)
		rig_start_rings();
	else
		rig_stop_rings();
	f.are_rings_stopped = !f.are_rings_stopped;
}

/* ---- the guest ---- */

/* Ports of the few connections that there are, or almost. */
static void choose_ports(struct packet_header *header)
{
	const struct connections *all = &rig.device.connections;
	const struct connection *connection;

	header->src_port = 1 + rig_random() % 4;
	header->dst_port = 80 + rig_random() % 2;
	if (all->n_touched == 0 || rig_random() % 3 == 0)
		return;
	connection = &all->all[rig_random() % all->n_touched];
	header->src_port = connection->guest_port;
	header->dst_port = connection->host_port;
	if (rig_random() % 30)
		header->dst_cid = connection->peer_cid;
}

static void send_a_packet(void)
{
	static uint8_t payload[PACKET_PAYLOAD_MAX];
	static const uint32_t fwd_cnts[] = {0, 1, 1000, UINT32_MAX};
	struct packet_header header = {
		.src_cid = rig_random() % 30 ? RIG_CID : rig_random() % 50,
		.dst_cid = rig_random() % 8 ? PACKET_HOST_CID : rig_random() % 5,
		.type = rig_random() % 30 ? PACKET_TYPE_STREAM : (uint16_t)(rig_random() % 4),
		.op = (uint16_t)(rig_random() % 9),
		.flags = rig_random() % 5,
		.buf_alloc = rig_random() % 3 ? 1u << rig_random() % 32 : rig_random(),
		.fwd_cnt = fwd_cnts[rig_random() % 4],
	};
	uint32_t supplied = 0;

	if (free_descriptors(RING_TX) < 8)
		return;
	choose_ports(&header);
	/* Half of all it says are bytes, mostly of a sane length. */
	if (rig_random() % 2) {
		header.op = PACKET_OP_RW;
		supplied = rig_random() % (rig_random() % 4 ? 500 : PACKET_PAYLOAD_MAX);
	}
	header.len = supplied;
	if (supplied > 0) {
		rig_put(&header, payload);
		return;
	}
	if (rig_random() % 20 == 0)
		header.len = rig_random();
	rig_put(&header, NULL);
}

static void offer_buffers(void)
{
	if (free_descriptors(RING_RX) < 40)
		return;
	switch (rig_random() % 8) {
	case 0:
		rig_offer(1, rig_random() % 60); /* of no use, or almost */
		return;
	case 1: {
		struct rig_buffer buffers[2] = {
			{rig_place(100), 100, (uint16_t)(rig_random() % 2 * RIG_WRITE)},
			{rig_place(100), 100, (uint16_t)(rig_random() % 2 * RIG_WRITE)},
		};

		rig_put_chain(RING_RX, buffers, 2);
		return;
	}
	default:
		rig_offer(rig_random() % 10, 44 + rig_random() % 4000);
	}
}

static void take_packets(void)
{
	static struct rig_packet packet;

	while (rig_take(&packet)) {
		if (packet.used_len == 0)
			continue;
		assert_in_range(packet.header.op, PACKET_OP_REQUEST, PACKET_OP_CREDIT_REQUEST);
		if (packet.header.op != PACKET_OP_RW)
			assert_int_equal(packet.header.len, 0);
		if (packet.header.op != PACKET_OP_RST) {
			assert_in_range(packet.header.src_cid, PACKET_HOST_CID, 4);
			assert_int_equal(packet.header.type, PACKET_TYPE_STREAM);
		}
		f.n_packets[packet.header.op]++;
	}
	rig_n_sent();
}

/* ---- host programs ---- */

static void host_does_something(void)
{
	static uint8_t bytes[30000];
	struct rig_peer *peer;

	if (f.n_hosts == 0)
		return;
	peer = &f.hosts[f.n_hosts - 1 - rig_random() % (f.n_hosts < 12 ? f.n_hosts : 12)];
	if (peer->host < 0)
		return;
	switch (rig_random() % 16) {
	case 0:
		rig_close_host(peer);
		return;
	case 1:
		shutdown(peer->host, rig_random() % 2 ? SHUT_WR : SHUT_RD);
		return;
	case 2:
	case 3:
	case 4:
	case 5:
		(void)!recv(peer->host, bytes, rig_random() % sizeof(bytes), 0);
		return;
	default:
		(void)!send(peer->host, bytes, rig_random() % (rig_random() % 4 ? 100 : 30000),
			    MSG_NOSIGNAL);
	}
}

static void step(void)
{
	switch (rig_random() % 24) {
	case 0:
		if (rig_random() % 2)
			accept_a_host_program();
		else
			accept_a_sibling();
		return;
	case 1:
	case 2:
		answer_a_connect();
		return;
	case 3:
		if (rig_random() % 4 == 0)
			toggle_rings();
		return;
	case 4:
		if (rig_random() % 40 == 0)
			rig_reset();
		else if (rig_random() % 4 == 0)
			reset_a_sibling();
		return;
	case 5:
	case 6:
	case 7:
		offer_buffers();
		return;
	case 8:
		take_packets();
		return;
	case 9:
		rig_sleep(rig_random() % (rig_random() % 20 ? 30 : 10000));
		return;
	case 10:
	case 11:
		rig_run();
		return;
	case 12:
	case 13:
	case 14:
	case 15:
		host_does_something();
		return;
	default:
		send_a_packet();
	}
}

/* All hang up, time passes: the worker is as it was when it began. */
static void expect_nothing_left(void)
{
	if (f.are_rings_stopped)
		toggle_rings();
	for (uint32_t i = 0; i < 40; i++) {
		hear_the_worker();
		while (f.n_asked > 0)
			answer_a_connect();
		for (uint32_t k = 0; k < f.n_hosts; k++)
			rig_close_host(&f.hosts[k]);
		take_packets();
		rig_offer(free_descriptors(RING_RX) / 4, 100);
		rig_sleep(CONNECTION_HANDSHAKE_MS);
	}
	rig_reset();
	rig_sleep(CONNECTION_DRAINING_MS);
	hear_the_worker();
	assert_true(rig.is_attached);
	for (uint32_t i = 0; i < rig.n_endpoints; i++)
		assert_true(rig_is_closed(i));
	assert_int_equal(rig.device.connections.n_used, 0);
	assert_int_equal(rig.device.connections.n_handshakes, 0);
	assert_int_equal(rig.device.n_orphans, 0);
	assert_int_equal(rig_n_chunks(), 0);
	assert_int_equal(device_timeout(&rig.device), -1);
	for (uint32_t i = 0; i < rig.device.connections.n_buckets; i++)
		assert_null(rig.device.connections.buckets[i]);
	assert_false(rig.device.rings[RING_RX].is_broken);
	assert_false(rig.device.rings[RING_TX].is_broken);
}

static void test_nothing_that_anybody_does_harms_the_worker_or_stays_behind(void **state)
{
	uint32_t n_packets[8] = {0};

	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		const struct rig_options options = {
			.n_connections = SOCKETS,
			.n_handshakes = 3,
			.buffer_size = seed % 2 ? 4096 : 64 * 1024,
			.num = 256,
			.features = seed % 3 ? RIG_F_EVENT_IDX : 0,
		};

		memset(&f, 0, sizeof(f));
		rig_start(&options);
		rig.random = seed;
		for (uint32_t i = 0; i < STEPS && f.n_hosts < HOSTS_MAX - SOCKETS; i++) {
			step();
			hear_the_worker();
		}
		expect_nothing_left();
		for (uint32_t i = 0; i < 8; i++)
			n_packets[i] += f.n_packets[i];
		rig_end();
	}
	/* The noise was of use: every kind of packet was seen, and many of them. */
	for (uint32_t op = PACKET_OP_REQUEST; op <= PACKET_OP_CREDIT_REQUEST; op++)
		assert_in_range(n_packets[op], 20, UINT32_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_that_anybody_does_harms_the_worker_or_stays_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
