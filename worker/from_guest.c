/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "worker/device.h"

/* Packets in one round: host programs get their turn after it. */
#define ROUND_PACKETS 256
/* Chains whose payload goes into one write; none is given back before it. */
#define BATCH_PACKETS 64

/* The bytes of one packet, as parts of guest memory. */
struct tx_payload {
	struct connection *connection; /* NULL: written */
	size_t first, n_parts, len;    /* of batch.payload[] */
	uint32_t message_flags;	       /* PACKET_SEQ_...; of a stream: none */
};

/*
 * Packets that wait to be given back, in order, and the bytes among them, of any
 * connections: each connection's go out in one call, or each message's. The bytes stay in
 * guest memory until they are written or copied, so the chains stay ours as long.
 */
struct tx_batch {
	struct ring_ticket tickets[BATCH_PACKETS];
	uint32_t n_tickets;
	struct tx_payload packets[BATCH_PACKETS];
	uint32_t n_packets;
	size_t n_parts; /* used of parts[] */
	size_t n_payload;
	struct iovec parts[RING_PARTS_MAX];
	struct iovec payload[RING_PARTS_MAX];
	struct iovec joined[RING_PARTS_MAX + 1]; /* see seqpacket_write() */
};

static struct tx_batch batch;

/*
 * All that waits for the connection of packet i, from there on: the bytes of a
 * stream in one call, messages in one call each.
 */
static void write_all(struct device *device, uint32_t i)
{
	struct connection *connection = batch.packets[i].connection;
	bool has_messages = connection->type == PACKET_TYPE_SEQPACKET;
	size_t n_parts = 0, len = 0;

	for (; i < batch.n_packets; i++) {
		struct tx_payload *packet = &batch.packets[i];

		if (packet->connection != connection)
			continue;
		for (size_t k = 0; k < packet->n_parts; k++)
			batch.joined[n_parts++] = batch.payload[packet->first + k];
		len += packet->len;
		packet->connection = NULL;
		if (packet->message_flags & PACKET_SEQ_EOM) {
			seqpacket_write(device, connection, batch.joined, n_parts, len,
					packet->message_flags);
			n_parts = 0;
			len = 0;
		}
	}
	if (has_messages && len > 0)
		seqpacket_write(device, connection, batch.joined, n_parts, len, 0);
	else if (!has_messages)
		host_write(device, connection, batch.joined, n_parts, len);
}

static void flush_batch(struct device *device)
{
	struct ring *ring = &device->rings[RING_TX];

	for (uint32_t i = 0; i < batch.n_packets; i++)
		if (batch.packets[i].connection)
			write_all(device, i);
	for (uint32_t i = 0; i < batch.n_tickets; i++)
		ring_push(ring, &batch.tickets[i], 0);
	batch.n_packets = 0;
	batch.n_tickets = 0;
	batch.n_parts = 0;
	batch.n_payload = 0;
}

/* Packets without an answer: a line at each power of two, so none can flood. */
static void drop(struct device *device, uint16_t op)
{
	device->n_dropped++;
	statistics_count(device, COUNTER_DROPPED, 1);
	if ((device->n_dropped & (device->n_dropped - 1)) == 0)
		control_report(device, REPORT_PACKET_DROPPED, device->n_dropped, op, 0);
}

static void misbehaved(struct device *device, struct connection *connection, uint16_t op)
{
	flush_batch(device); /* bytes before this packet were in order */
	if (connection->state == CONNECTION_DEAD)
		return; /* some message among them ended it */
	control_report(device, REPORT_PEER_MISBEHAVED, connection->host_port,
		       connection->guest_port, op);
	host_reset(device, connection);
}

static void on_request(struct device *device, const struct packet_header *header)
{
	struct connection *connection;

	connection = connection_take(&device->connections, CONNECTION_REQUESTED,
				     device->connections.n_allowed);
	if (!connection) {
		device->n_refused++;
		statistics_count(device, COUNTER_GUEST_LIMITED, 1);
		if ((device->n_refused & (device->n_refused - 1)) == 0)
			control_report(device, REPORT_CONNECTION_LIMIT,
				       device->connections.n_allowed, device->n_refused, 0);
		to_guest_send_orphan_rst(device, header);
		return;
	}
	connection->type = header->type;
	if (!host_open_window(device, connection)) {
		connection_free(&device->connections, connection);
		to_guest_send_orphan_rst(device, header);
		return;
	}
	connection->history.since = device->now;
	connection->guest_port = header->src_port;
	connection->host_port = header->dst_port;
	connection->peer_cid = (uint32_t)header->dst_cid; /* is_ours() */
	credit_update(&connection->credit, header->buf_alloc, header->fwd_cnt);
	connection_hash(&device->connections, connection);
	connection->tell |= CONNECTION_TELL_CONNECT;
	if (!device->is_quarantined)
		link_append(&device->connections.tell, &connection->tell_link);
}

/*
 * A pair of ports that is in use: a guest that lost its state (a reset that we
 * did not see) asks anew. What is closing makes room, what lives is reset.
 */
static void on_request_again(struct device *device, struct connection *connection,
			     const struct packet_header *header)
{
	switch (connection->state) {
	case CONNECTION_CLOSING:
		host_drain(device, connection, false);
		on_request(device, header);
		return;
	case CONNECTION_REQUESTED:
		host_abandon(device, connection);
		to_guest_send_orphan_rst(device, header);
		return;
	default:
		host_reset(device, connection);
	}
}

static void on_rst(struct device *device, struct connection *connection)
{
	switch (connection->state) {
	case CONNECTION_REQUESTED:
		host_abandon(device, connection);
		return;
	case CONNECTION_CONNECTING:
		if (connection->timer == CONNECTION_TIMER_RETRY)
			return;
		if (connection->n_retries > 0) {
			connection->n_retries--;
			device_arm(device, connection, CONNECTION_TIMER_RETRY);
			return;
		}
		host_handshake_failed(device, connection, REPORT_HANDSHAKE_REFUSED);
		return;
	default:
		connection->is_reset |= connection->state == CONNECTION_ESTABLISHED;
		host_drain(device, connection, false);
	}
}

static void on_shutdown(struct device *device, struct connection *connection, uint32_t flags)
{
	/* virtio 1.3, 5.10.6.5: hints are permanent, each adds to those before. */
	connection->guest_shutdown |= (uint8_t)(flags & PACKET_SHUTDOWN_BOTH);
	if (connection->guest_shutdown == PACKET_SHUTDOWN_BOTH) {
		host_drain(device, connection, true);
		return;
	}
	if (connection->guest_shutdown == PACKET_SHUTDOWN_RECEIVE && !connection->has_ended) {
		/* Host programs that write on are told so; nothing more is read. */
		host_stop_reading(connection);
		connection->has_ended = true;
		connection->early_skip = connection->early_len;
		seqpacket_drop(device, connection);
		to_guest_notice(device, connection);
	}
	host_shut_write_when_empty(device, connection);
}

/* false when the packet ended the connection. */
static bool check_rw(struct device *device, struct connection *connection, uint32_t len)
{
	if (connection->state == CONNECTION_ESTABLISHED &&
	    !(connection->guest_shutdown & PACKET_SHUTDOWN_SEND) &&
	    credit_received(&connection->credit, len))
		return true;
	/* Bytes on their way while we said goodbye have nowhere to go. */
	if (connection->state != CONNECTION_CLOSING)
		misbehaved(device, connection, PACKET_OP_RW);
	return false;
}

/* Did the guest say this by itself? Its answers come in order, but one may never come. */
static bool is_announcement(struct connection *connection, const struct packet_header *header)
{
	if (header->op != PACKET_OP_CREDIT_UPDATE)
		return false;
	connection->n_unanswered = 0;
	if (connection->n_asked == 0)
		return true;
	connection->n_asked--;
	return false;
}

/* Linux announces each message that it reads: if that moves no counter it had no byte. */
static bool take_empty(struct connection *connection)
{
	if (!credit_waits_for_empty(&connection->credit))
		return false;
	connection->tells_empty = true;
	credit_empty_consumed(&connection->credit, 1);
	return true;
}

static void take_credit(struct device *device, struct connection *connection,
			const struct packet_header *header)
{
	struct credit *credit = &connection->credit;
	uint32_t before = credit->peer_fwd_cnt, buffer_before = credit->peer_buf_alloc;
	bool is_announced;

	if (!credit_update(credit, header->buf_alloc, header->fwd_cnt)) {
		drop(device, header->op);
		return;
	}
	is_announced = is_announcement(connection, header);
	if (credit->peer_fwd_cnt == before && credit->peer_buf_alloc == buffer_before &&
	    !(is_announced && take_empty(connection)))
		return;
	connection->has_asked_credit = false;
	if (connection->timer == CONNECTION_TIMER_CREDIT ||
	    connection->timer == CONNECTION_TIMER_MESSAGE)
		connection_disarm(connection);
	to_guest_notice(device, connection);
}

static void on_control(struct device *device, struct connection *connection,
		       const struct packet_header *header)
{
	if (header->op == PACKET_OP_RST) {
		on_rst(device, connection);
		return;
	}
	if (header->op == PACKET_OP_REQUEST) {
		on_request_again(device, connection, header);
		return;
	}
	if (connection->state == CONNECTION_REQUESTED) {
		/* The guest gave up (SHUTDOWN), or speaks before it was answered. */
		host_abandon(device, connection);
		to_guest_send_orphan_rst(device, header);
		return;
	}
	if (connection->state == CONNECTION_OPENING) {
		host_reset(device, connection);
		return;
	}
	if (connection->state == CONNECTION_CONNECTING && header->op != PACKET_OP_RESPONSE) {
		misbehaved(device, connection, header->op);
		return;
	}
	take_credit(device, connection, header);

	switch (header->op) {
	case PACKET_OP_RESPONSE:
		if (connection->state == CONNECTION_CONNECTING &&
		    !(connection->due & CONNECTION_SEND_REQUEST))
			host_answer(device, connection);
		else
			drop(device, header->op);
		return;
	case PACKET_OP_SHUTDOWN:
		on_shutdown(device, connection, header->flags);
		return;
	case PACKET_OP_CREDIT_REQUEST:
		to_guest_send(device, connection, CONNECTION_SEND_CREDIT_UPDATE);
		return;
	case PACKET_OP_CREDIT_UPDATE:
		return;
	default:
		drop(device, header->op);
	}
}

static void on_unknown_connection(struct device *device, const struct packet_header *header)
{
	if (header->op == PACKET_OP_RST)
		return; /* never answered: two ends could go on for ever */
	if (header->op == PACKET_OP_REQUEST)
		on_request(device, header);
	else
		to_guest_send_orphan_rst(device, header);
}

/* A batch has as many places for packets as for chains. */
static void add_payload(struct connection *connection, const struct chain *chain, uint32_t len,
			uint32_t message_flags)
{
	struct tx_payload *packet = &batch.packets[batch.n_packets++];

	packet->connection = connection;
	packet->first = batch.n_payload;
	packet->n_parts = packet_slice(chain->parts, chain->n_readable, PACKET_HEADER_LEN, len,
				       batch.payload + batch.n_payload);
	packet->len = len;
	packet->message_flags = message_flags;
	batch.n_payload += packet->n_parts;
	batch.n_parts += chain->n_readable;
}

static void on_rw(struct device *device, struct connection *connection, const struct chain *chain,
		  const struct packet_header *header)
{
	uint32_t message_flags = connection->type == PACKET_TYPE_SEQPACKET ? header->flags : 0;

	take_credit(device, connection, header);
	if (!check_rw(device, connection, header->len))
		return;
	connection->history.from_guest += header->len;
	statistics_count(device, COUNTER_FROM_GUEST_BYTES, header->len);
	device_pass(device, header->len);
	if (header->len > 0 || (message_flags & PACKET_SEQ_EOM))
		add_payload(connection, chain, header->len, message_flags);
}

/* May a guest live there? The front knows which do. */
static bool is_sibling(const struct device *device, uint64_t cid)
{
	return cid >= PACKET_GUEST_CID_MIN && cid <= PACKET_GUEST_CID_MAX &&
	       cid != device->guest_cid;
}

/* Whose packet is it? false: nobody's, and it deserves no answer beyond what was sent. */
static bool is_ours(struct device *device, const struct packet_header *header)
{
	if (header->src_cid != device->guest_cid) {
		drop(device, header->op);
		return false;
	}
	if (header->dst_cid != PACKET_HOST_CID && !is_sibling(device, header->dst_cid)) {
		/* Nobody lives there: the guest's program is told at once. */
		if (header->op == PACKET_OP_REQUEST)
			to_guest_send_orphan_rst(device, header);
		else
			drop(device, header->op);
		return false;
	}
	if (header->type > PACKET_TYPE_SEQPACKET || !(device->types & 1u << header->type)) {
		if (header->op != PACKET_OP_RST)
			to_guest_send_orphan_rst(device, header);
		return false;
	}
	return true;
}

static void on_packet(struct device *device, const struct chain *chain,
		      const struct packet_header *header)
{
	struct connection *connection;

	if (!is_ours(device, header))
		return;
	connection = connection_find(&device->connections, (uint32_t)header->dst_cid,
				     header->src_port, header->dst_port, header->type);
	if (header->len > PACKET_PAYLOAD_MAX ||
	    header->len > chain->readable_len - PACKET_HEADER_LEN) {
		/* Where the next byte of this stream belongs is unknown from here on. */
		if (connection && header->op == PACKET_OP_RW &&
		    connection->state == CONNECTION_ESTABLISHED)
			misbehaved(device, connection, header->op);
		else
			drop(device, header->op);
		return;
	}
	if (!connection)
		on_unknown_connection(device, header);
	else if (header->op == PACKET_OP_RW && (connection->state == CONNECTION_ESTABLISHED ||
						connection->state == CONNECTION_CLOSING))
		on_rw(device, connection, chain, header);
	else
		on_control(device, connection, header);
}

/* Packets that end nothing and move no bytes may pass those that wait to be written. */
static bool may_pass_batch(const struct packet_header *header)
{
	return header->op == PACKET_OP_RW || header->op == PACKET_OP_CREDIT_UPDATE;
}

static void take_chain(struct device *device, const struct chain *chain)
{
	struct packet_header header;

	if (chain->is_malformed || chain->n_writable > 0 ||
	    !packet_read_header(chain->parts, chain->n_readable, &header)) {
		drop(device, PACKET_OP_INVALID);
	} else {
		capture_packet(&device->capture, &header, chain->parts, chain->n_readable,
			       header.len);
		if (batch.n_packets > 0 && !may_pass_batch(&header))
			flush_batch(device);
		on_packet(device, chain, &header);
	}
	batch.tickets[batch.n_tickets++] = chain->ticket;
}

bool from_guest_run(struct device *device)
{
	struct ring *ring = &device->rings[RING_TX];
	uint32_t n_packets = 0;
	struct chain chain;
	int r;

	ring_disable_kicks(ring);
	while (n_packets < ROUND_PACKETS && to_guest_has_orphan_room(device) &&
	       !device->rate.is_dry) {
		if (batch.n_tickets == BATCH_PACKETS)
			flush_batch(device);
		r = ring_pop(ring, &device->memory, batch.parts + batch.n_parts,
			     RING_PARTS_MAX - batch.n_parts, &chain);
		if (r == -EAGAIN) {
			flush_batch(device);
			continue;
		}
		if (r != 1)
			break;
		take_chain(device, &chain);
		n_packets++;
	}
	flush_batch(device);
	ring_publish_uncalled(ring);
	statistics_count(device, COUNTER_FROM_GUEST_PACKETS, n_packets);
	return n_packets == ROUND_PACKETS;
}
