/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/device_model.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

struct model model;

/* As many CREDIT_REQUESTs as a guest may leave unanswered before packets are counted no more. */
#define UNANSWERED_MAX 50

uint32_t model_choose(uint32_t n)
{
	return model.choices->choose(model.choices->context, n);
}

struct model_peer *model_take_peer(enum model_phase phase)
{
	for (size_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[i];

		if (peer->phase != MODEL_FREE)
			continue;
		memset(peer, 0, sizeof(*peer));
		peer->phase = phase;
		peer->rig.host = -1;
		peer->stream = 2 * model.n_streams++;
		peer->since = model.guest_now;
		return peer;
	}
	return NULL;
}

void model_expect_rst(uint64_t src_cid, uint32_t src_port, uint32_t dst_port, uint16_t type)
{
	assert_true(model.n_rsts < MODEL_RSTS);
	model.rsts[model.n_rsts++] = (struct model_rst){src_cid, src_port, dst_port, type};
}

static uint64_t cid_of(const struct model_peer *peer)
{
	return peer->rig.cid ? peer->rig.cid : PACKET_HOST_CID;
}

void model_expect_peer_rst(const struct model_peer *peer)
{
	model_expect_rst(cid_of(peer), peer->rig.host_port, peer->rig.guest_port,
			 PACKET_TYPE_STREAM);
}

bool model_has_room(const struct model_peer *peer)
{
	return !peer->is_narrow && peer->n_sent + peer->ok_len - peer->n_read <= 2000;
}

void model_end_peer(struct model_peer *peer, bool loses)
{
	if (model_has_room(peer) && !peer->has_shut_read)
		peer->n_certain = peer->n_sent;
	peer->phase = MODEL_ENDED;
	peer->loses = loses;
	peer->ended_at = model.now;
	peer->is_response_due = false;
	peer->is_update_due = false;
}

void model_told(struct model_peer *peer)
{
	uint32_t n_gone = 0;

	if (peer->n_told != peer->n_consumed || peer->told_buf_alloc != peer->rig.buf_alloc)
		peer->n_asked = 0;
	peer->n_told = peer->n_consumed;
	peer->told_buf_alloc = peer->rig.buf_alloc;
	while (n_gone < peer->n_ends && peer->ends[n_gone] <= peer->n_told)
		n_gone++;
	peer->n_ends -= n_gone;
	memmove(peer->ends, peer->ends + n_gone, peer->n_ends * sizeof(peer->ends[0]));
}

void model_move_counters(struct model_peer *peer)
{
	static const uint32_t places[] = {0, UINT32_MAX, INT32_MAX, UINT32_C(1) << 31};
	struct connections *connections = &rig.device.connections;

	peer->sent_base = places[model_choose(4)] - model_choose(5000);
	peer->received_base = places[model_choose(4)] - model_choose(5000);
	peer->rig.fwd_cnt = peer->received_base;
	for (uint32_t i = 0; i < connections->n_touched; i++) {
		struct connection *connection = &connections->all[i];

		if (connection->state == CONNECTION_FREE || connection->peer_cid != cid_of(peer) ||
		    connection->guest_port != peer->rig.guest_port ||
		    connection->host_port != peer->rig.host_port || !connection->is_hashed)
			continue;
		connection->credit.tx_cnt += peer->received_base;
		connection->credit.peer_fwd_cnt += peer->received_base;
		connection->credit.rx_cnt += peer->sent_base;
		connection->credit.fwd_cnt += peer->sent_base;
		connection->credit.announced += peer->sent_base;
		return;
	}
	fail_msg("the device has no such connection");
}

/* ---- messages to the front ---- */

static struct model_peer *peer_of_endpoint(uint32_t endpoint)
{
	for (size_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[i];

		if ((peer->phase == MODEL_LINE || peer->phase == MODEL_CALLED) &&
		    peer->rig.endpoint == endpoint)
			return peer;
	}
	return NULL;
}

/* A handshake that ended without a word to the guest: the host program sees the end. */
static void on_closed(uint32_t endpoint)
{
	struct model_peer *peer = peer_of_endpoint(endpoint);

	if (!peer)
		return;
	if (peer->phase == MODEL_LINE) {
		assert_true(peer->is_line_bad || peer->has_shut_write || peer->is_host_closed ||
			    model.guest_now - peer->since >= CONNECTION_HANDSHAKE_MS);
		model_end_peer(peer, true);
	} else if (peer->phase == MODEL_CALLED && !peer->is_known) {
		assert_true(peer->is_host_closed || (peer->has_shut_read && peer->has_shut_write));
		model_end_peer(peer, true);
	}
}

static void on_opened(const struct rig_told *told)
{
	struct model_peer *peer = peer_of_endpoint((uint32_t)told->values[0]);

	assert_non_null(peer);
	assert_int_equal(peer->phase, MODEL_LINE);
	assert_int_equal(peer->n_line_sent, peer->line_len);
	assert_int_equal(told->values[1], peer->rig.guest_port);
	for (size_t i = 0; i < MODEL_PEERS; i++)
		assert_true(model.peers[i].phase == MODEL_FREE ||
			    model.peers[i].phase == MODEL_ENDED ||
			    model.peers[i].rig.guest_port != peer->rig.guest_port ||
			    model.peers[i].rig.host_port != told->values[2]);
	peer->rig.host_port = (uint32_t)told->values[2];
	peer->ok_len =
		(uint64_t)snprintf(peer->ok, sizeof(peer->ok), "OK %u\n", peer->rig.host_port);
	peer->phase = MODEL_CALLED;
}

static void on_connect(const struct rig_told *told)
{
	for (size_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[i];

		if (peer->phase != MODEL_ASKED || peer->is_known ||
		    peer->rig.guest_port != told->values[3] ||
		    peer->rig.host_port != told->values[1])
			continue;
		assert_int_equal(told->values[4], cid_of(peer));
		assert_int_equal(told->values[2], PACKET_TYPE_STREAM);
		peer->is_known = true; /* to the front */
		peer->rig.request = (uint32_t)told->values[0];
		return;
	}
	fail_msg("Connect for which the guest did not ask");
}

static void hear_the_device(void)
{
	for (uint32_t i = 0; i < rig.n_told; i++) {
		const struct rig_told *told = &rig.told[i];

		if (told->type == VSOCKD__ENVELOPE__BODY_CONNECT)
			on_connect(told);
		else if (told->type == VSOCKD__ENVELOPE__BODY_OPENED)
			on_opened(told);
		else if (told->type == VSOCKD__ENVELOPE__BODY_CLOSED)
			on_closed((uint32_t)told->values[0]);
	}
	rig.n_told = 0;
}

/* ---- packets to the guest ---- */

static bool take_rst(const struct packet_header *header)
{
	for (uint32_t i = 0; i < model.n_rsts; i++) {
		const struct model_rst *rst = &model.rsts[i];

		if (rst->src_cid != header->src_cid || rst->src_port != header->src_port ||
		    rst->dst_port != header->dst_port || rst->type != header->type)
			continue;
		model.rsts[i] = model.rsts[--model.n_rsts];
		return true;
	}
	return false;
}

static struct model_peer *peer_of_packet(const struct packet_header *header)
{
	for (size_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[i];

		if (peer->phase >= MODEL_CALLED && peer->phase <= MODEL_GOODBYE &&
		    header->src_cid == cid_of(peer) && peer->rig.guest_port == header->dst_port &&
		    peer->rig.host_port == header->src_port)
			return peer;
	}
	return NULL;
}

bool model_has_hung_up(const struct model_peer *peer)
{
	return peer->is_host_closed || (peer->has_shut_read && peer->has_shut_write);
}

/* That neither the guest nor time brought about: the host program did. */
static void on_unasked_rst(struct model_peer *peer)
{
	if (peer->phase == MODEL_CALLED) {
		assert_true(peer->is_known);
		assert_true(model_has_hung_up(peer));
	} else {
		assert_int_equal(peer->phase, MODEL_OPEN);
		assert_true(peer->is_dirty);
		/* After the last byte that the host program had written. */
		assert_int_equal(peer->n_received, peer->n_written);
	}
	model_end_peer(peer, true);
}

static void check_credit(struct model_peer *peer, const struct packet_header *header)
{
	uint32_t n_taken = header->fwd_cnt - peer->sent_base;
	uint64_t n_stream_read = peer->n_read > peer->ok_len ? peer->n_read - peer->ok_len : 0;

	assert_int_equal(header->buf_alloc, rig.device.buffer_size);
	assert_in_range(n_taken, peer->n_known, peer->n_sent);
	assert_true(n_taken >= n_stream_read);
	peer->n_known = n_taken;
}

static void on_request(struct model_peer *peer)
{
	assert_int_equal(peer->phase, MODEL_CALLED);
	assert_false(peer->is_known);
	peer->is_known = true;
	peer->since = model.guest_now;
	peer->rig.buf_alloc = RIG_GUEST_BUFFER;
	model_move_counters(peer);
}

static uint32_t packet_limit(const struct model_peer *peer)
{
	uint32_t limit = peer->told_buf_alloc / CREDIT_PACKET_OVERHEAD;

	return limit > 0 ? limit : 1;
}

static void on_rw(struct model_peer *peer, const struct rig_packet *packet)
{
	uint32_t len = packet->header.len;

	assert_false(peer->is_response_due);
	assert_false(peer->device_said & PACKET_SHUTDOWN_SEND);
	assert_false(peer->guest_said & PACKET_SHUTDOWN_RECEIVE);
	assert_int_equal(packet->header.flags, 0);
	assert_in_range(len, 1, peer->n_written - peer->n_received);
	for (uint32_t i = 0; i < len; i++)
		if (packet->payload[i] != rig_byte(peer->stream + 1, peer->n_received + i))
			fail_msg("byte %u of %u is wrong", i, len);
	peer->n_received += len;
	peer->asked_at = model.guest_now; /* until now it might be sent packets */
	assert_in_range(peer->n_received - peer->n_told, 1, peer->told_buf_alloc);
	if (peer->n_ends == MODEL_PACKETS)
		memmove(peer->ends, peer->ends + 1, --peer->n_ends * sizeof(peer->ends[0]));
	peer->ends[peer->n_ends++] = peer->n_received;
	if (peer->n_sleeps < UNANSWERED_MAX)
		assert_in_range(peer->n_ends, 1, packet_limit(peer));
}

static void on_shutdown(struct model_peer *peer, uint32_t flags)
{
	assert_false(peer->is_response_due);
	assert_in_range(flags, PACKET_SHUTDOWN_RECEIVE, PACKET_SHUTDOWN_BOTH);
	assert_int_equal(flags & peer->device_said, peer->device_said);
	assert_int_not_equal(flags, peer->device_said);
	if (flags & PACKET_SHUTDOWN_SEND && !(peer->guest_said & PACKET_SHUTDOWN_RECEIVE)) {
		assert_true(peer->has_shut_write || peer->is_host_closed);
		assert_int_equal(peer->n_received, peer->n_written);
	}
	if (flags & PACKET_SHUTDOWN_RECEIVE)
		assert_true(peer->has_shut_read || peer->is_host_closed ||
			    (peer->guest_said & PACKET_SHUTDOWN_SEND && peer->has_shut_write));
	peer->device_said = flags;
	if (flags == PACKET_SHUTDOWN_BOTH) {
		peer->phase = MODEL_GOODBYE;
		peer->since = model.guest_now;
	}
}

static void on_packet(const struct rig_packet *packet)
{
	const struct packet_header *header = &packet->header;
	struct model_peer *peer;

	assert_in_range(header->op, PACKET_OP_REQUEST, PACKET_OP_CREDIT_REQUEST);
	model.n_packets[header->op]++;
	if (header->op == PACKET_OP_RST && take_rst(header))
		return;
	assert_int_equal(header->type, PACKET_TYPE_STREAM);
	/* The end of a former connection comes before anything of the next one of its ports. */
	assert_false(take_rst(header));
	peer = peer_of_packet(header);
	if (!peer)
		fail_msg("operation %u of no connection", header->op);
	if (header->op == PACKET_OP_RST) {
		on_unasked_rst(peer);
		return;
	}
	if (header->op == PACKET_OP_REQUEST)
		on_request(peer);
	else
		check_credit(peer, header);
	/* Every other packet than the bytes is a header alone. */
	assert_true(header->op == PACKET_OP_RW || header->len == 0);

	switch (header->op) {
	case PACKET_OP_REQUEST:
		return;
	case PACKET_OP_RESPONSE:
		assert_true(peer->is_response_due);
		peer->is_response_due = false;
		return;
	case PACKET_OP_RW:
		assert_int_equal(peer->phase, MODEL_OPEN);
		on_rw(peer, packet);
		break;
	case PACKET_OP_SHUTDOWN:
		assert_int_equal(peer->phase, MODEL_OPEN);
		on_shutdown(peer, header->flags);
		break;
	case PACKET_OP_CREDIT_REQUEST:
		assert_int_equal(peer->phase, MODEL_OPEN);
		/* One may have waited for a buffer while there was news. */
		assert_true(peer->n_asked++ < 2);
		peer->asked_at = model.guest_now;
		break;
	default:
		assert_in_range(peer->phase, MODEL_OPEN, MODEL_GOODBYE);
		assert_false(peer->is_response_due);
	}
	/* Each of them tells the credit. */
	peer->is_update_due = false;
}

/* ---- what has to have come ---- */

static bool has_credit_for_all(const struct model_peer *peer)
{
	return peer->n_told == peer->n_received && peer->told_buf_alloc > 0;
}

static bool is_blocked_by_packets(const struct model_peer *peer)
{
	return peer->n_written > peer->n_received &&
	       !(peer->guest_said & PACKET_SHUTDOWN_RECEIVE) &&
	       peer->n_received - peer->n_told < peer->told_buf_alloc &&
	       peer->n_ends >= packet_limit(peer) && peer->n_sleeps < UNANSWERED_MAX;
}

static void demand_of_open(struct model_peer *peer)
{
	bool is_ended = peer->has_shut_write || peer->is_host_closed;
	uint64_t n_stream_read = peer->n_read > peer->ok_len ? peer->n_read - peer->ok_len : 0;

	assert_false(peer->is_response_due);
	assert_false(peer->is_update_due);
	if (peer->guest_said & PACKET_SHUTDOWN_RECEIVE) {
		assert_true(peer->device_said & PACKET_SHUTDOWN_SEND);
	} else if (has_credit_for_all(peer)) {
		assert_int_equal(peer->n_received, peer->n_written);
		if (is_ended)
			assert_true(peer->device_said & PACKET_SHUTDOWN_SEND);
		/* Then it would be GOODBYE, or reset. */
		assert_false(peer->is_host_closed);
	}
	if (peer->is_unheard)
		assert_true(peer->device_said & PACKET_SHUTDOWN_RECEIVE);
	/* It may have consumed packets without a word: it is asked, and again. */
	if (!is_blocked_by_packets(peer))
		peer->asked_at = model.guest_now;
	assert_in_range(model.guest_now - peer->asked_at, 0, CONNECTION_CREDIT_MS - 1);
	/* A guest whose bytes were all read, or are not wanted, can send on. */
	if (n_stream_read == peer->n_sent || peer->device_said & PACKET_SHUTDOWN_RECEIVE)
		assert_in_range(peer->n_sent - peer->n_known, 0, rig.device.buffer_size / 2);
}

/* There are buffers, and nothing that the device could do: nothing may be due. */
static void demand(void)
{
	assert_int_equal(model.n_rsts, 0);
	for (size_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[i];

		switch (peer->phase) {
		case MODEL_ASKED:
			assert_true(peer->is_known); /* to the front */
			break;
		case MODEL_LINE:
			assert_true(model.guest_now - peer->since < CONNECTION_HANDSHAKE_MS);
			assert_false(peer->is_line_bad || peer->has_shut_write ||
				     peer->is_host_closed);
			assert_true(peer->n_line_sent < peer->line_len);
			break;
		case MODEL_CALLED:
			assert_true(peer->is_known);
			assert_false(model_has_hung_up(peer));
			break;
		case MODEL_OPEN:
			demand_of_open(peer);
			break;
		case MODEL_GOODBYE:
			assert_false(peer->is_update_due);
			break;
		default:
			break;
		}
	}
}

bool model_has_buffers(void)
{
	const struct rig_ring *ring = &rig.rings[RING_RX];

	return ring->avail_idx != ring->used_idx;
}

/* What the device's clocks end: now, whether the guest can be told or not. */
void model_pass_time(uint32_t ms)
{
	model.now += ms;
	if (!model.are_rings_stopped)
		model.guest_now += ms;
	for (size_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[i];
		uint64_t waited = model.guest_now - peer->since;

		peer->n_sleeps++;
		if (ms > 0)
			peer->n_asked = 0;
		if ((peer->phase == MODEL_CALLED && peer->is_known &&
		     waited >= CONNECTION_CONNECT_MS) ||
		    (peer->phase == MODEL_GOODBYE && waited >= CONNECTION_CLOSING_MS)) {
			model_expect_peer_rst(peer);
			model_end_peer(peer, true);
		}
	}
}

void model_absorb(void)
{
	static struct rig_packet packet;

	assert_true(rig.is_attached);
	assert_false(rig.device.rings[RING_RX].is_broken || rig.device.rings[RING_TX].is_broken);
	hear_the_device();
	while (rig_take(&packet)) {
		assert_false(model.are_rings_stopped);
		if (packet.used_len > 0)
			on_packet(&packet);
	}
	rig_n_sent();
	if (!model.are_rings_stopped && model_has_buffers())
		demand();
}

/* ---- bytes to host programs ---- */

static uint8_t byte_to_host(const struct model_peer *peer, uint64_t at)
{
	return at < peer->ok_len ? (uint8_t)peer->ok[at]
				 : rig_byte(peer->stream, at - peer->ok_len);
}

/* Where a drained host program sees the end, it has read all; EOF where nothing was unread. */
static void check_end(const struct model_peer *peer)
{
	bool is_lost = peer->loses || model.now - peer->ended_at >= CONNECTION_DRAINING_MS;

	if (peer->phase == MODEL_ENDED && is_lost) {
		assert_true(peer->n_certain == 0 || peer->n_read >= peer->ok_len + peer->n_certain);
		return;
	}
	assert_true(peer->phase == MODEL_ENDED || peer->guest_said & PACKET_SHUTDOWN_SEND);
	assert_int_equal(peer->n_read, peer->ok_len + peer->n_sent);
}

bool model_host_reads(struct model_peer *peer, size_t len)
{
	static uint8_t bytes[65536];
	ssize_t n = recv(peer->rig.host, bytes, len < sizeof(bytes) ? len : sizeof(bytes),
			 MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN)
		return false;
	if (n <= 0) {
		assert_true(n == 0 || errno == ECONNRESET);
		/* The end that it made itself says nothing. */
		if (!peer->has_shut_read)
			check_end(peer);
		return false;
	}
	assert_in_range(peer->n_read + (uint64_t)n, 1, peer->ok_len + peer->n_sent);
	for (ssize_t i = 0; i < n; i++)
		if (bytes[i] != byte_to_host(peer, peer->n_read + (uint64_t)i))
			fail_msg("byte %zd of %zd is wrong", i, n);
	peer->n_read += (uint64_t)n;
	return true;
}

/* ---- begin and end ---- */

static void expect_nothing_left(void)
{
	const struct device *device = &rig.device;

	for (uint32_t i = 0; i < rig.n_endpoints; i++)
		assert_true(rig_is_closed(i));
	assert_int_equal(device->connections.n_used, 0);
	assert_int_equal(device->connections.n_handshakes, 0);
	assert_int_equal(device->n_orphans, 0);
	assert_int_equal(rig_n_chunks(), 0);
	assert_int_equal(device_timeout(device), -1);
}

static void hang_up_all(void)
{
	rig_reset();
	for (size_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[i];

		if (peer->phase == MODEL_ASKED || peer->phase == MODEL_ABANDONED)
			rig_refused(&peer->rig, -ECONNREFUSED);
		if (peer->phase != MODEL_FREE && peer->rig.host >= 0)
			rig_close_host(&peer->rig);
	}
	rig_sleep(CONNECTION_DRAINING_MS);
	rig_run();
}

void model_run(const struct model_choices *choices, uint32_t n_steps)
{
	struct rig_options options = {.n_connections = 512, .n_handshakes = 512};

	memset(&model, 0, sizeof(model));
	model.choices = choices;
	model.next_port = 1000;
	options.buffer_size = model_choose(2) ? 4096 : 64 * 1024;
	options.num = model_choose(2) ? 256 : 64;
	options.features =
		(model_choose(2) ? RIG_F_EVENT_IDX : 0) | (model_choose(2) ? RIG_F_INDIRECT : 0);
	rig_start(&options);
	for (uint32_t i = 0; i < n_steps && choices->goes_on(choices->context); i++) {
		model_step();
		model_absorb();
	}
	hang_up_all();
	expect_nothing_left();
	rig_end();
}
