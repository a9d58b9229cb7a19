/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_model.h"
#include "tests/unit/handover_rig.h"

/* A peer in a phase between two, chosen among those there are; NULL when there is none. */
static struct model_peer *choose_peer(enum model_phase first, enum model_phase last)
{
	uint32_t start = model_choose(MODEL_PEERS);

	for (uint32_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[(start + i) % MODEL_PEERS];

		if (peer->phase >= first && peer->phase <= last)
			return peer;
	}
	return NULL;
}

static uint32_t choose_len(uint32_t max)
{
	switch (model_choose(4)) {
	case 0:
		return model_choose(max < 16 ? max + 1 : 16);
	case 1:
		return max;
	default:
		return max == 0 ? 0 : model_choose(max < 65535 ? max + 1 : 65536);
	}
}

/* ---- the guest ---- */

/* As one buffer, or as two or three, wherever the borders are. */
static void put_packet(const struct packet_header *header, const void *payload, uint32_t len)
{
	uint64_t place = rig_place(PACKET_HEADER_LEN + len);
	uint32_t total = PACKET_HEADER_LEN + len, at = 0;
	struct rig_buffer buffers[3];
	size_t n = 0;

	memcpy(rig_at(place), header, PACKET_HEADER_LEN);
	if (len > 0)
		memcpy(rig_at(place) + PACKET_HEADER_LEN, payload, len);
	for (uint32_t n_left = model_choose(3); n_left > 0 && at < total; n_left--) {
		uint32_t part = choose_len(total - at);

		buffers[n++] = (struct rig_buffer){place + at, part, 0};
		at += part;
	}
	buffers[n++] = (struct rig_buffer){place + at, total - at, 0};
	rig_put_chain(RING_TX, buffers, n);
	if (!model.is_batch)
		rig_run();
}

static uint32_t choose_buffer(void)
{
	static const uint32_t buffers[] = {0, 1, 1000, 4096, 10000, 65536, 1u << 31, UINT32_MAX};

	return model_choose(2) ? RIG_GUEST_BUFFER : buffers[model_choose(8)];
}

static void say(struct model_peer *peer, uint16_t op, uint32_t flags)
{
	struct packet_header header = rig_header(&peer->rig, PACKET_OP_INVALID);

	header.op = op;
	header.flags = flags;
	put_packet(&header, NULL, 0);
}

static bool is_in_use(uint32_t guest_port)
{
	for (size_t i = 0; i < MODEL_PEERS; i++)
		if (model.peers[i].phase != MODEL_FREE && model.peers[i].phase != MODEL_ENDED &&
		    model.peers[i].rig.guest_port == guest_port)
			return true;
	return false;
}

static void guest_connects(void)
{
	const struct model_peer *ended = choose_peer(MODEL_ENDED, MODEL_ENDED);
	struct model_peer *peer = model_take_peer(MODEL_ASKED);

	if (!peer)
		return;
	peer->rig.guest_port = model.next_port++;
	peer->rig.host_port = 80;
	/* Again with the ports of one that has ended, perhaps before the guest was told. */
	if (model_choose(3) == 0 && ended && !is_in_use(ended->rig.guest_port))
		peer->rig.guest_port = ended->rig.guest_port;
	peer->rig.cid = model_choose(4) == 0 ? 50 + model_choose(2) : 0;
	peer->rig.buf_alloc = choose_buffer();
	model_told(peer);
	say(peer, PACKET_OP_REQUEST, 0);
	model_move_counters(peer);
}

static uint32_t window(const struct model_peer *peer)
{
	return rig.device.buffer_size - (uint32_t)(peer->n_sent - peer->n_known);
}

static void guest_sends(struct model_peer *peer)
{
	static uint8_t bytes[PACKET_PAYLOAD_MAX];
	struct packet_header header = rig_header(&peer->rig, PACKET_OP_RW);
	uint32_t room = window(peer);

	if (peer->is_response_due || peer->guest_said & PACKET_SHUTDOWN_SEND)
		return;
	header.len = choose_len(room < sizeof(bytes) ? room : (uint32_t)sizeof(bytes));
	for (uint32_t i = 0; i < header.len; i++)
		bytes[i] = rig_byte(peer->stream, peer->n_sent + i);
	model_told(peer);
	/* What comes while the device says goodbye has nowhere to go. */
	peer->is_unheard |= peer->has_shut_read && header.len > 0 && model_has_room(peer);
	if (peer->phase == MODEL_OPEN)
		peer->n_sent += header.len;
	put_packet(&header, bytes, header.len);
}

static void guest_consumes(struct model_peer *peer)
{
	uint64_t n = peer->n_received - peer->n_consumed;

	n = model_choose(2) ? n : choose_len(n < 65535 ? (uint32_t)n : 65535);
	peer->n_consumed += n;
	peer->rig.fwd_cnt = peer->received_base + (uint32_t)peer->n_consumed;
	if (model_choose(4) == 0)
		peer->rig.buf_alloc = choose_buffer();
	if (model_choose(4) == 0)
		return; /* told with the next packet */
	model_told(peer);
	peer->n_sleeps = 0;
	say(peer, PACKET_OP_CREDIT_UPDATE, 0);
}

static void guest_asks_credit(struct model_peer *peer)
{
	if (peer->is_response_due)
		return;
	model_told(peer);
	peer->is_update_due = true;
	say(peer, PACKET_OP_CREDIT_REQUEST, 0);
}

static void guest_shuts_down(struct model_peer *peer)
{
	uint32_t flags = model_choose(4);

	peer->guest_said |= flags;
	model_told(peer);
	if (peer->guest_said == PACKET_SHUTDOWN_BOTH) {
		model_expect_peer_rst(peer);
		model_end_peer(peer, false);
	}
	say(peer, PACKET_OP_SHUTDOWN, flags);
}

/* What ends it whatever its phase, from the guest's side. */
static void guest_resets(struct model_peer *peer)
{
	if (peer->phase == MODEL_ASKED)
		peer->phase = MODEL_ABANDONED;
	else
		model_end_peer(peer, peer->phase == MODEL_CALLED);
	say(peer, PACKET_OP_RST, 0);
}

/* More than there is room for, or than there are bytes: the stream is broken. */
static void guest_overruns(struct model_peer *peer)
{
	static const uint8_t bytes[PACKET_PAYLOAD_MAX];
	struct packet_header header = rig_header(&peer->rig, PACKET_OP_RW);
	uint32_t len = 0;

	if (peer->phase != MODEL_OPEN)
		return;
	model_expect_peer_rst(peer);
	model_end_peer(peer, true);
	if (peer->guest_said & PACKET_SHUTDOWN_SEND) {
		header.len = len = 1;
	} else if (rig.device.buffer_size < sizeof(bytes) && model_choose(2)) {
		header.len = len = rig.device.buffer_size + 1;
	} else {
		len = model_choose(100);
		header.len = model_choose(2) ? PACKET_PAYLOAD_MAX + 1 : len + 1;
	}
	put_packet(&header, bytes, len);
}

/* Bytes consumed that were never sent, or fewer than were told: not believed, in no part. */
static void guest_lies(struct model_peer *peer)
{
	struct packet_header header = rig_header(&peer->rig, PACKET_OP_CREDIT_UPDATE);

	header.fwd_cnt =
		model_choose(2)
			? peer->received_base + (uint32_t)peer->n_received + 1 + model_choose(65536)
			: peer->received_base + (uint32_t)peer->n_told - 1 - model_choose(65536);
	header.buf_alloc = 17;
	peer->n_sleeps = 0;
	put_packet(&header, NULL, 0);
}

/* Operations that mean nothing on a connection that is open. */
static void guest_babbles(struct model_peer *peer)
{
	static const uint16_t ops[] = {PACKET_OP_INVALID, PACKET_OP_RESPONSE, 8, UINT16_MAX};

	model_told(peer);
	say(peer, ops[model_choose(4)], model_choose(65536));
}

/* The same two ports again: a guest that has forgotten. */
static void guest_asks_again(struct model_peer *peer)
{
	struct model_peer *again;

	switch (peer->phase) {
	case MODEL_GOODBYE:
		again = model_take_peer(MODEL_ASKED);
		if (!again)
			return;
		again->rig.guest_port = peer->rig.guest_port;
		again->rig.host_port = peer->rig.host_port;
		again->rig.cid = peer->rig.cid;
		again->rig.buf_alloc = RIG_GUEST_BUFFER;
		model_told(again);
		model_end_peer(peer, false);
		say(again, PACKET_OP_REQUEST, 0);
		model_move_counters(again);
		return;
	case MODEL_ASKED:
		peer->phase = MODEL_ABANDONED;
		break;
	default:
		model_end_peer(peer, true);
	}
	model_expect_peer_rst(peer);
	say(peer, PACKET_OP_REQUEST, 0);
}

/* Before there is an answer, or in place of one. */
static void guest_speaks_early(struct model_peer *peer)
{
	static const uint16_t ops[] = {PACKET_OP_RW, PACKET_OP_SHUTDOWN, PACKET_OP_CREDIT_UPDATE,
				       PACKET_OP_CREDIT_REQUEST};
	uint16_t op = ops[model_choose(4)];

	model_expect_peer_rst(peer);
	if (peer->phase == MODEL_ASKED)
		peer->phase = MODEL_ABANDONED;
	else
		model_end_peer(peer, true);
	say(peer, op, PACKET_SHUTDOWN_BOTH);
}

static void guest_answers(struct model_peer *peer)
{
	peer->rig.buf_alloc = choose_buffer();
	model_told(peer);
	if (peer->has_shut_read || peer->is_host_closed) {
		/* Nobody is left who could be told. */
		model_expect_peer_rst(peer);
		model_end_peer(peer, true);
	} else {
		peer->phase = MODEL_OPEN;
		peer->since = model.guest_now;
	}
	say(peer, PACKET_OP_RESPONSE, 0);
}

/* To nobody: a RST comes back, unless it was one, or was not for this host. */
static void guest_sends_astray(void)
{
	struct rig_peer nobody = {
		.guest_port = 1 + model_choose(3),
		.host_port = 1 + model_choose(3),
		.buf_alloc = 1,
	};
	struct packet_header header = rig_header(&nobody, PACKET_OP_INVALID);

	header.op = (uint16_t)(PACKET_OP_RESPONSE + model_choose(8));
	switch (model_choose(4)) {
	case 0:
		header.src_cid++;
		break;
	case 1:
		/* Where no guest can live. */
		header.dst_cid = model_choose(2) ? model_choose(2) : (UINT64_C(1) << 32) + 2;
		header.op = model_choose(2) ? PACKET_OP_REQUEST : header.op;
		if (header.op == PACKET_OP_REQUEST)
			model_expect_rst(header.dst_cid, header.dst_port, header.src_port,
					 header.type);
		break;
	case 2:
		header.type = (uint16_t)(model_choose(2) * 7);
		/* fall through */
	default:
		if (header.op != PACKET_OP_RST)
			model_expect_rst(header.dst_cid, header.dst_port, header.src_port,
					 header.type);
	}
	put_packet(&header, NULL, 0);
}

/* Chains that are no packet. */
static void guest_sends_rubbish(void)
{
	struct rig_buffer buffers[] = {
		{rig_place(PACKET_HEADER_LEN), model_choose(PACKET_HEADER_LEN), 0},
		{rig_place(PACKET_HEADER_LEN), model_choose(100), RIG_WRITE},
	};

	rig_put_chain(RING_TX, buffers, 1 + model_choose(2));
	rig_run();
}

static void offer(void)
{
	static const uint32_t sizes[] = {4096, 44, 45, 40, 300, 70000, 1500, 70000};
	const struct rig_ring *ring = &rig.rings[RING_RX];
	uint16_t n_free = (uint16_t)(ring->num - (uint16_t)(ring->avail_idx - ring->used_idx));
	uint32_t n = model_choose(model.is_scarce ? 3 : 16);

	if (model_choose(16) == 0)
		model.is_scarce = !model.is_scarce;
	rig_offer(n < n_free ? n : n_free, sizes[model_choose(8)]);
	rig_run();
}

/* ---- host programs ---- */

static void narrow(struct model_peer *peer)
{
	peer->is_narrow = model_choose(3) == 0;
	if (peer->is_narrow)
		rig_narrow(&peer->rig);
}

static void host_connects(void)
{
	struct model_peer *peer = model_take_peer(MODEL_LINE);

	if (!peer)
		return;
	peer->rig.guest_port = model.next_port++;
	peer->rig.buf_alloc = RIG_GUEST_BUFFER;
	peer->told_buf_alloc = RIG_GUEST_BUFFER;
	peer->line_len = (uint32_t)snprintf(peer->line, sizeof(peer->line), "CONNECT %u\n",
					    peer->rig.guest_port);
	peer->rig.endpoint = rig_accept(&peer->rig.host);
	narrow(peer);
	rig_run();
}

static void host_writes_stream(struct model_peer *peer)
{
	static uint8_t bytes[32768];
	uint32_t len = choose_len(sizeof(bytes));
	ssize_t n;

	for (uint32_t i = 0; i < len; i++)
		bytes[i] = rig_byte(peer->stream + 1, peer->n_written + i);
	n = send(peer->rig.host, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n > 0)
		peer->n_written += (uint64_t)n;
}

static void host_writes_line(struct model_peer *peer)
{
	uint32_t len = peer->line_len - peer->n_line_sent;

	if (peer->is_line_bad)
		return;
	if (model_choose(16) == 0) {
		peer->is_line_bad = true;
		(void)!send(peer->rig.host, "?", 1, MSG_NOSIGNAL);
		return;
	}
	len = model_choose(2) ? len : choose_len(len);
	if (len == 0)
		return;
	assert_int_equal(send(peer->rig.host, peer->line + peer->n_line_sent, len, MSG_NOSIGNAL),
			 len);
	peer->n_line_sent += len;
	/* In one piece with the first bytes of the stream, perhaps. */
	if (peer->n_line_sent == peer->line_len && model_choose(2))
		host_writes_stream(peer);
}

static void host_writes(struct model_peer *peer)
{
	if (peer->is_host_closed || peer->has_shut_write)
		return;
	if (peer->phase == MODEL_LINE && peer->n_line_sent < peer->line_len)
		host_writes_line(peer);
	else
		host_writes_stream(peer);
	rig_run();
}

static void host_reads(struct model_peer *peer)
{
	bool reads_all = model_choose(2), is_more;

	if (peer->is_host_closed)
		return;
	do {
		is_more = model_host_reads(peer, reads_all ? 65536 : 1 + choose_len(5000));
		rig_run();
		model_absorb();
	} while (reads_all && is_more);
	if (!reads_all || peer->has_shut_read)
		return;
	/* It took all that the device has for it. */
	if (peer->phase == MODEL_OPEN || peer->phase == MODEL_GOODBYE)
		assert_int_equal(peer->n_read, peer->ok_len + peer->n_sent);
}

static void host_closes(struct model_peer *peer)
{
	if (peer->is_host_closed)
		return;
	peer->is_dirty |= peer->n_read < peer->ok_len + peer->n_sent;
	peer->is_host_closed = true;
	rig_close_host(&peer->rig);
	peer->rig.host = -1;
	rig_run();
	if (peer->phase == MODEL_ENDED)
		peer->phase = MODEL_FREE;
}

static void host_shuts(struct model_peer *peer)
{
	if (peer->is_host_closed)
		return;
	if (model_choose(2)) {
		peer->has_shut_write = true;
		shutdown(peer->rig.host, SHUT_WR);
	} else {
		peer->has_shut_read = true;
		shutdown(peer->rig.host, SHUT_RD);
	}
	rig_run();
}

/* ---- the front ---- */

static void front_answers(struct model_peer *peer)
{
	bool was_abandoned = peer->phase == MODEL_ABANDONED;

	if (!peer->is_known)
		return; /* the question is still on its way */
	if (model_choose(4) == 0) {
		rig_refused(&peer->rig, -ECONNREFUSED);
		if (!was_abandoned)
			model_expect_peer_rst(peer);
		model_end_peer(peer, true);
	} else {
		rig_connected(&peer->rig);
		peer->since = model.guest_now;
		narrow(peer);
		if (was_abandoned) {
			model_end_peer(peer, true);
		} else {
			peer->phase = MODEL_OPEN;
			peer->is_response_due = true;
		}
	}
	rig_run();
}

static void toggle_rings(void)
{
	model.are_rings_stopped = !model.are_rings_stopped;
	if (model.are_rings_stopped)
		rig_stop_rings();
	else
		rig_start_rings();
}

/* Every connection is forgotten; what the guest had sent is still delivered. */
static void front_resets(void)
{
	rig_reset();
	model.n_rsts = 0;
	for (size_t i = 0; i < MODEL_PEERS; i++) {
		struct model_peer *peer = &model.peers[i];

		if (peer->phase == MODEL_ASKED)
			peer->phase = MODEL_ABANDONED;
		else if (peer->phase >= MODEL_LINE && peer->phase <= MODEL_GOODBYE)
			model_end_peer(peer, peer->phase < MODEL_OPEN);
	}
}

static void time_passes(void)
{
	uint32_t ms = model_choose(8) ? model_choose(30) : model_choose(12000);

	model_pass_time(ms);
	rig_sleep(ms);
}

/* ---- a step ---- */

static void guest_does_something(void)
{
	struct model_peer *peer = choose_peer(MODEL_OPEN, MODEL_GOODBYE);

	/* Where the device may have reset it already, and could not say so. */
	if (!peer || (peer->is_dirty && !model_has_buffers()))
		return;
	switch (model_choose(16)) {
	case 0:
		guest_shuts_down(peer);
		return;
	case 1:
		if (model_choose(4) == 0)
			guest_resets(peer);
		return;
	case 2:
		if (model_choose(4) == 0)
			guest_overruns(peer);
		return;
	case 3:
		if (model_choose(4) == 0 && !model.is_batch)
			guest_asks_again(peer);
		return;
	case 4:
		guest_lies(peer);
		return;
	case 5:
		guest_babbles(peer);
		return;
	case 6:
		guest_asks_credit(peer);
		return;
	case 7:
	case 8:
	case 9:
	case 10:
		guest_consumes(peer);
		return;
	default:
		guest_sends(peer);
	}
}

static void guest_is_asked(void)
{
	struct model_peer *peer = choose_peer(MODEL_CALLED, MODEL_CALLED);

	if (!peer || !peer->is_known || model_has_hung_up(peer))
		return;
	switch (model_choose(8)) {
	case 0:
		guest_resets(peer);
		return;
	case 1:
		guest_speaks_early(peer);
		return;
	case 2:
		guest_asks_again(peer);
		return;
	default:
		guest_answers(peer);
	}
}

static void guest_waits(void)
{
	struct model_peer *peer = choose_peer(MODEL_ASKED, MODEL_ASKED);

	if (!peer || !peer->is_known)
		return;
	switch (model_choose(6)) {
	case 0:
		guest_resets(peer);
		return;
	case 1:
		guest_speaks_early(peer);
		return;
	case 2:
		guest_asks_again(peer);
		return;
	}
}

static void guest_step(void)
{
	if (model.are_rings_stopped || model.n_rsts + 4 > MODEL_RSTS)
		return;
	switch (model_choose(16)) {
	case 0:
		guest_sends_astray();
		return;
	case 1:
		guest_sends_rubbish();
		return;
	case 2:
	case 3:
		guest_connects();
		return;
	case 4:
		guest_waits();
		return;
	case 5:
	case 6:
		guest_is_asked();
		return;
	case 7:
		model.is_batch = true;
		for (uint32_t n = model_choose(8); n > 0; n--)
			guest_does_something();
		model.is_batch = false;
		rig_run();
		return;
	default:
		guest_does_something();
	}
}

static void host_step(void)
{
	struct model_peer *peer = choose_peer(MODEL_LINE, MODEL_ENDED);

	if (!peer || model_choose(16) == 0) {
		host_connects();
		return;
	}
	if (peer->rig.host < 0) {
		if (peer->phase == MODEL_ENDED)
			peer->phase = MODEL_FREE;
		return;
	}
	switch (model_choose(16)) {
	case 0:
		host_closes(peer);
		return;
	case 1:
		host_shuts(peer);
		return;
	case 2:
	case 3:
	case 4:
	case 5:
	case 6:
	case 7:
		host_reads(peer);
		return;
	default:
		host_writes(peer);
	}
}

static void front_step(void)
{
	struct model_peer *peer = choose_peer(MODEL_ASKED, MODEL_ABANDONED);

	if (model_choose(64) == 0)
		front_resets();
	else if (model_choose(16) == 0)
		rig_hand_over();
	else if (model_choose(16) == 0)
		toggle_rings();
	else if (peer)
		front_answers(peer);
}

void model_step(void)
{
	switch (model_choose(16)) {
	case 0:
	case 1:
		offer();
		return;
	case 2:
		time_passes();
		return;
	case 3:
	case 4:
		front_step();
		return;
	case 5:
	case 6:
	case 7:
	case 8:
		host_step();
		return;
	default:
		guest_step();
	}
}
