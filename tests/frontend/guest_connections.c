/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/frontend/guest_internal.h"

/* Linux tells of free space when less than a packet's worth is known to the peer. */
#define CREDIT_UPDATE_BELOW (64u * 1024)

static struct guest_connection **bucket(struct guest *guest, uint32_t port, uint32_t peer_port)
{
	return &guest->buckets[(port * 31 ^ peer_port) % GUEST_BUCKETS];
}

/* The living connection of that name, else one that has ended, else NULL. */
static struct guest_connection *find(struct guest *guest, uint64_t peer_cid, uint32_t port,
				     uint32_t peer_port)
{
	struct guest_connection *ended = NULL;

	for (struct guest_connection *at = *bucket(guest, port, peer_port); at; at = at->next) {
		if (at->peer_cid != peer_cid || at->port != port || at->peer_port != peer_port)
			continue;
		if (at->state != GUEST_CLOSED)
			return at;
		ended = at;
	}
	return ended;
}

static struct guest_connection *new_connection(struct guest *guest, uint16_t type,
					       uint64_t peer_cid, uint32_t port, uint32_t peer_port)
{
	struct guest_connection *connection = calloc(1, sizeof(*connection));
	struct guest_connection **at = bucket(guest, port, peer_port);

	if (!connection)
		return NULL;
	connection->guest = guest;
	connection->type = type;
	connection->peer_cid = peer_cid;
	connection->port = port;
	connection->peer_port = peer_port;
	connection->buf_alloc = guest->options.buf_alloc;
	connection->packet_size = PACKET_PAYLOAD_MAX;
	connection->layout = guest->options.tx_layout;
	connection->next = *at;
	*at = connection;
	return connection;
}

static void unlink_incoming(struct guest_connection *connection)
{
	struct guest_connection **at = &connection->guest->incoming;

	while (*at && *at != connection)
		at = &(*at)->next_incoming;
	if (*at)
		*at = connection->next_incoming;
	connection->is_incoming = false;
}

void guest_forget(struct guest_connection *connection)
{
	struct guest *guest = connection->guest;
	struct guest_connection **at = bucket(guest, connection->port, connection->peer_port);

	if (connection->is_excused)
		guest->excused[guest->n_excused++ % GUEST_EXCUSED_MAX] = (struct guest_name){
			.peer_cid = connection->peer_cid,
			.port = connection->port,
			.peer_port = connection->peer_port,
		};
	if (connection->is_incoming)
		unlink_incoming(connection);
	while (*at != connection)
		at = &(*at)->next;
	*at = connection->next;
	free(connection->buffer);
	free(connection->message_lens);
	free(connection);
}

static void end(struct guest_connection *connection, int error)
{
	connection->state = GUEST_CLOSED;
	connection->error = error;
}

void guest_connections_drop(struct guest *guest)
{
	for (size_t i = 0; i < GUEST_BUCKETS; i++) {
		for (struct guest_connection *at = guest->buckets[i]; at; at = at->next) {
			if (at->state != GUEST_CLOSED)
				end(at, ECONNRESET);
		}
	}
	guest->n_pending = 0;
}

void guest_connections_excuse_requests(struct guest *guest)
{
	for (size_t i = 0; i < GUEST_BUCKETS; i++)
		for (struct guest_connection *at = guest->buckets[i]; at; at = at->next)
			at->is_excused |= at->state == GUEST_CONNECTING;
}

void guest_connections_end(struct guest *guest)
{
	for (size_t i = 0; i < GUEST_BUCKETS; i++) {
		while (guest->buckets[i])
			guest_forget(guest->buckets[i]);
	}
}

static void send_control(struct guest *guest, const struct packet *packet)
{
	const struct guest_layout whole = {0};

	if (guest->n_pending == 0 && guest_packets_put(guest, packet, NULL, 0, &whole) == 0) {
		ring_submit(&guest->rings[GUEST_TX]);
		return;
	}
	if (guest->n_pending == guest->pending_size) {
		size_t size = guest->pending_size ? 2 * guest->pending_size : 64;
		struct packet *pending = realloc(guest->pending, size * sizeof(*pending));

		if (!pending) {
			guest_violate(guest, "no memory for a control packet");
			return;
		}
		guest->pending = pending;
		guest->pending_size = size;
	}
	guest->pending[guest->n_pending++] = *packet;
}

size_t guest_connections_flush(struct guest *guest)
{
	const struct guest_layout whole = {0};
	size_t n = 0;

	while (n < guest->n_pending &&
	       guest_packets_put(guest, &guest->pending[n], NULL, 0, &whole) == 0)
		n++;
	if (n == 0)
		return 0;
	ring_submit(&guest->rings[GUEST_TX]);
	guest->n_pending -= n;
	memmove(guest->pending, guest->pending + n, guest->n_pending * sizeof(*guest->pending));
	return n;
}

struct packet guest_packet(const struct guest_connection *connection, enum packet_op op)
{
	return (struct packet){
		.src_cid = connection->guest->cid,
		.dst_cid = connection->peer_cid,
		.src_port = connection->port,
		.dst_port = connection->peer_port,
		.type = connection->type,
		.op = (uint16_t)op,
		.buf_alloc = connection->buf_alloc,
		.fwd_cnt = connection->fwd_cnt,
	};
}

/* What the next packet of this connection says about our buffer is now said. */
void guest_note_announced(struct guest_connection *connection)
{
	connection->last_fwd_cnt = connection->fwd_cnt;
	if (connection->buf_alloc > connection->largest_buf_alloc)
		connection->largest_buf_alloc = connection->buf_alloc;
}

void guest_say(struct guest_connection *connection, enum packet_op op, uint32_t flags)
{
	struct packet packet = guest_packet(connection, op);

	packet.flags = flags;
	guest_note_announced(connection);
	if (op == PACKET_RST)
		connection->is_excused = true;
	send_control(connection->guest, &packet);
}

/* Linux's answer to a packet that no socket wants. */
static void refuse(struct guest *guest, const struct packet *packet)
{
	struct packet reply = {
		.src_cid = packet->dst_cid,
		.dst_cid = packet->src_cid,
		.src_port = packet->dst_port,
		.dst_port = packet->src_port,
		.type = packet->type,
		.op = PACKET_RST,
	};

	if (packet->op != PACKET_RST)
		send_control(guest, &reply);
}

/* The type of the socket that listens there; 0: none. */
static uint16_t listener_type(const struct guest *guest, uint32_t port)
{
	for (size_t i = 0; i < guest->n_listeners; i++) {
		if (guest->listeners[i] == port)
			return guest->listener_types[i];
	}
	return 0;
}

static void on_request(struct guest *guest, const struct packet *packet)
{
	struct guest_connection *connection;
	struct guest_connection **last = &guest->incoming;

	if (listener_type(guest, packet->dst_port) != packet->type) {
		refuse(guest, packet);
		return;
	}
	connection = new_connection(guest, packet->type, packet->src_cid, packet->dst_port,
				    packet->src_port);
	if (!connection) {
		refuse(guest, packet);
		return;
	}
	connection->state = GUEST_ESTABLISHED;
	connection->peer_buf_alloc = packet->buf_alloc;
	if (packet->fwd_cnt != 0)
		guest_violate(guest, "REQUEST with fwd_cnt %u", packet->fwd_cnt);
	connection->is_incoming = true;
	while (*last)
		last = &(*last)->next_incoming;
	*last = connection;
	guest_say(connection, PACKET_RESPONSE, 0);
}

static void take_credit(struct guest_connection *connection, const struct packet *packet)
{
	uint32_t n_unread = connection->tx_cnt - connection->peer_fwd_cnt;

	connection->peer_buf_alloc = packet->buf_alloc;
	if (packet->fwd_cnt - connection->peer_fwd_cnt > n_unread) {
		guest_violate(connection->guest, "fwd_cnt %u, but it was %u and %u were sent",
			      packet->fwd_cnt, connection->peer_fwd_cnt, connection->tx_cnt);
		return;
	}
	connection->peer_fwd_cnt = packet->fwd_cnt;
}

static void update_credit(struct guest_connection *connection)
{
	uint32_t n_outstanding = connection->rx_cnt - connection->last_fwd_cnt;
	uint32_t seen_free =
		n_outstanding < connection->buf_alloc ? connection->buf_alloc - n_outstanding : 0;

	if (connection->state == GUEST_ESTABLISHED &&
	    connection->fwd_cnt != connection->last_fwd_cnt && seen_free < CREDIT_UPDATE_BELOW)
		guest_say(connection, PACKET_CREDIT_UPDATE, 0);
}

/* Room for len more bytes behind those that wait. */
static bool make_room(struct guest_connection *connection, size_t len)
{
	size_t needed = connection->n_buffered + len;

	if (connection->read_at + needed <= connection->buffer_size)
		return true;
	if (2 * needed > connection->buffer_size) {
		/* Twice what is needed, so that moving is rare. */
		size_t size = 2 * (needed > connection->buf_alloc ? needed : connection->buf_alloc);
		uint8_t *buffer = realloc(connection->buffer, size);

		if (!buffer)
			return false;
		connection->buffer = buffer;
		connection->buffer_size = size;
	}
	memmove(connection->buffer, connection->buffer + connection->read_at,
		connection->n_buffered);
	connection->read_at = 0;
	return true;
}

static void keep_payload(struct guest_connection *connection, const struct iovec *part)
{
	bool is_wanted = connection->state == GUEST_ESTABLISHED &&
			 !(connection->shutdown & PACKET_SHUTDOWN_RECEIVE);

	if (is_wanted && connection->sink)
		connection->sink(connection->sink_context, part->iov_base, part->iov_len);
	if (!is_wanted || connection->sink) {
		connection->fwd_cnt += (uint32_t)part->iov_len;
		return;
	}
	if (!make_room(connection, part->iov_len)) {
		guest_violate(connection->guest, "no memory for %zu bytes", part->iov_len);
		return;
	}
	memcpy(connection->buffer + connection->read_at + connection->n_buffered, part->iov_base,
	       part->iov_len);
	connection->n_buffered += part->iov_len;
}

static void on_payload(struct guest_connection *connection, const struct packet *packet,
		       const struct iovec *payload, size_t n_payload)
{
	struct guest *guest = connection->guest;
	uint32_t n_outstanding = connection->rx_cnt - connection->last_fwd_cnt;

	if (connection->state == GUEST_CONNECTING) {
		guest_violate(guest, "RW before RESPONSE");
		return;
	}
	if (connection->peer_shutdown & PACKET_SHUTDOWN_SEND) {
		guest_violate(guest, "RW after SHUTDOWN of that direction");
		return;
	}
	if ((uint64_t)n_outstanding + packet->len > connection->largest_buf_alloc) {
		guest_violate(guest, "RW of %u bytes with %u unread of %u", packet->len,
			      n_outstanding, connection->largest_buf_alloc);
		return;
	}
	connection->rx_cnt += packet->len;
	connection->n_received += packet->len;
	for (size_t i = 0; i < n_payload; i++)
		keep_payload(connection, &payload[i]);
	guest_messages_note(connection, packet);
	update_credit(connection);
}

/* Have both directions been ended in an orderly way by either side? */
static bool is_finished(const struct guest_connection *connection)
{
	bool is_tx_done = (connection->shutdown & PACKET_SHUTDOWN_SEND) ||
			  (connection->peer_shutdown & PACKET_SHUTDOWN_RECEIVE);
	bool is_rx_done = (connection->shutdown & PACKET_SHUTDOWN_RECEIVE) ||
			  (connection->peer_shutdown & PACKET_SHUTDOWN_SEND);

	return is_tx_done && is_rx_done;
}

static void on_shutdown(struct guest_connection *connection, uint32_t flags)
{
	if (flags == 0 || flags > PACKET_SHUTDOWN_BOTH)
		guest_violate(connection->guest, "SHUTDOWN with flags %u", flags);
	if (connection->state == GUEST_CONNECTING)
		guest_violate(connection->guest, "SHUTDOWN before RESPONSE");
	connection->peer_shutdown |= flags;
	/* Linux answers as soon as nothing is left to read; else when it is closed. */
	if (connection->peer_shutdown != PACKET_SHUTDOWN_BOTH || connection->n_buffered > 0)
		return;
	guest_say(connection, PACKET_RST, 0);
	end(connection, 0);
}

static void dispatch(struct guest_connection *connection, const struct packet *packet,
		     const struct iovec *payload, size_t n_payload)
{
	take_credit(connection, packet);
	switch (packet->op) {
	case PACKET_RESPONSE:
		if (connection->state == GUEST_CONNECTING)
			connection->state = GUEST_ESTABLISHED;
		else
			guest_violate(connection->guest, "RESPONSE that was not awaited");
		break;
	case PACKET_SHUTDOWN:
		on_shutdown(connection, packet->flags);
		break;
	case PACKET_RW:
		on_payload(connection, packet, payload, n_payload);
		break;
	case PACKET_CREDIT_REQUEST:
		guest_say(connection, PACKET_CREDIT_UPDATE, 0);
		break;
	default:
		break;
	}
}

/* May this packet have been on its way when we ended its connection? */
static bool is_excused(const struct guest *guest, const struct guest_connection *connection,
		       const struct packet *packet)
{
	if (connection)
		return connection->is_excused;
	for (size_t i = 0; i < GUEST_EXCUSED_MAX && i < guest->n_excused; i++) {
		const struct guest_name *name = &guest->excused[i];

		if (name->peer_cid == packet->src_cid && name->port == packet->dst_port &&
		    name->peer_port == packet->src_port)
			return true;
	}
	return false;
}

static bool is_type_negotiated(const struct guest *guest, uint16_t type)
{
	return type == PACKET_STREAM ||
	       (type == PACKET_SEQPACKET && (guest->vhost.features & BIT64(VIRTIO_SEQPACKET)));
}

static bool is_sound(struct guest *guest, const struct packet *packet)
{
	if (packet->dst_cid != guest->cid)
		guest_violate(guest, "packet for CID %lu", (unsigned long)packet->dst_cid);
	else if (!is_type_negotiated(guest, packet->type))
		guest_violate(guest, "packet of type %u", packet->type);
	else if (packet->op == PACKET_INVALID || packet->op >= PACKET_OP_MAX)
		guest_violate(guest, "packet with op %u", packet->op);
	else if (packet->op != PACKET_RW && packet->len > 0)
		guest_violate(guest, "op %u with %u bytes", packet->op, packet->len);
	else
		return true;
	return false;
}

void guest_connections_take(struct guest *guest, const struct packet *packet,
			    const struct iovec *payload, size_t n_payload)
{
	struct guest_connection *connection;
	bool is_alive;

	if (!is_sound(guest, packet))
		return;
	connection = find(guest, packet->src_cid, packet->dst_port, packet->src_port);
	is_alive = connection && connection->state != GUEST_CLOSED;
	if (packet->op == PACKET_REQUEST && !is_alive) {
		on_request(guest, packet);
		return;
	}
	if (packet->op == PACKET_REQUEST)
		guest_violate(guest, "REQUEST for a connection that lives");
	if (packet->op == PACKET_RST) {
		if (is_alive)
			end(connection, is_finished(connection) ? 0 : ECONNRESET);
		return;
	}
	if (is_alive && connection->type != packet->type) {
		guest_violate(guest, "op %u of type %u for a connection of type %u", packet->op,
			      packet->type, connection->type);
		refuse(guest, packet);
		return;
	}
	if (is_alive) {
		dispatch(connection, packet, payload, n_payload);
		return;
	}
	if (!is_excused(guest, connection, packet))
		guest_violate(guest, "op %u for %s connection, ports %u to %u", packet->op,
			      connection ? "an ended" : "an unknown", packet->src_port,
			      packet->dst_port);
	refuse(guest, packet);
}

static struct guest_connection *connect_as(struct guest *guest, uint16_t type, uint64_t cid,
					   uint32_t port)
{
	struct guest_connection *connection;

	do {
		guest->next_port++;
	} while (find(guest, cid, guest->next_port, port) ||
		 listener_type(guest, guest->next_port));
	connection = new_connection(guest, type, cid, guest->next_port, port);
	if (!connection)
		return NULL;
	connection->state = GUEST_CONNECTING;
	guest_say(connection, PACKET_REQUEST, 0);
	return connection;
}

struct guest_connection *guest_connect(struct guest *guest, uint64_t cid, uint32_t port)
{
	return connect_as(guest, PACKET_STREAM, cid, port);
}

struct guest_connection *guest_connect_messages(struct guest *guest, uint64_t cid, uint32_t port)
{
	return connect_as(guest, PACKET_SEQPACKET, cid, port);
}

static int listen_as(struct guest *guest, uint16_t type, uint32_t port)
{
	if (listener_type(guest, port))
		return -EADDRINUSE;
	if (guest->n_listeners == GUEST_LISTENERS_MAX)
		return -ENOBUFS;
	guest->listener_types[guest->n_listeners] = type;
	guest->listeners[guest->n_listeners++] = port;
	return 0;
}

int guest_listen(struct guest *guest, uint32_t port)
{
	return listen_as(guest, PACKET_STREAM, port);
}

int guest_listen_messages(struct guest *guest, uint32_t port)
{
	return listen_as(guest, PACKET_SEQPACKET, port);
}

void guest_unlisten(struct guest *guest, uint32_t port)
{
	for (size_t i = 0; i < guest->n_listeners; i++) {
		if (guest->listeners[i] != port)
			continue;
		guest->listeners[i] = guest->listeners[--guest->n_listeners];
		guest->listener_types[i] = guest->listener_types[guest->n_listeners];
	}
}

struct guest_connection *guest_accept(struct guest *guest, uint32_t port)
{
	for (struct guest_connection *at = guest->incoming; at; at = at->next_incoming) {
		if (at->port != port)
			continue;
		unlink_incoming(at);
		return at;
	}
	return NULL;
}

uint32_t guest_credit(const struct guest_connection *connection)
{
	/* As Linux since 2026: a peer does not get us to queue more than our own limit. */
	uint32_t window = connection->peer_buf_alloc < connection->buf_alloc
				  ? connection->peer_buf_alloc
				  : connection->buf_alloc;
	uint32_t n_unread = connection->tx_cnt - connection->peer_fwd_cnt;

	return n_unread < window ? window - n_unread : 0;
}

int guest_check_sendable(const struct guest_connection *connection)
{
	if (connection->state == GUEST_CONNECTING)
		return -ENOTCONN;
	if (connection->error)
		return -connection->error;
	if (connection->state != GUEST_ESTABLISHED ||
	    (connection->shutdown & PACKET_SHUTDOWN_SEND) ||
	    (connection->peer_shutdown & PACKET_SHUTDOWN_RECEIVE))
		return -EPIPE;
	return 0;
}

ssize_t guest_send(struct guest_connection *connection, const void *bytes, size_t len)
{
	struct guest *guest = connection->guest;
	size_t n_sent = 0;
	int error = guest_check_sendable(connection);

	if (error < 0)
		return error;
	while (n_sent < len && guest->n_pending == 0) {
		struct packet packet = guest_packet(connection, PACKET_RW);
		uint32_t room = guest_credit(connection);
		size_t part = len - n_sent;

		if (part > connection->packet_size)
			part = connection->packet_size;
		if (part > room)
			part = room;
		if (part == 0)
			break;
		packet.len = (uint32_t)part;
		error = guest_packets_put(guest, &packet,
					  bytes ? (const uint8_t *)bytes + n_sent : NULL, part,
					  &connection->layout);
		if (error < 0)
			break;
		guest_note_announced(connection);
		connection->tx_cnt += packet.len;
		n_sent += part;
	}
	ring_submit(&guest->rings[GUEST_TX]);
	connection->n_sent += n_sent;
	if (n_sent > 0)
		return (ssize_t)n_sent;
	return error < 0 ? error : -EAGAIN;
}

ssize_t guest_receive(struct guest_connection *connection, void *bytes, size_t len)
{
	if (connection->n_buffered == 0) {
		if (connection->error)
			return -connection->error;
		if (connection->state == GUEST_CLOSED ||
		    ((connection->shutdown & PACKET_SHUTDOWN_RECEIVE) |
		     (connection->peer_shutdown & PACKET_SHUTDOWN_SEND)))
			return 0;
		return -EAGAIN;
	}
	if (len > connection->n_buffered)
		len = connection->n_buffered;
	memcpy(bytes, connection->buffer + connection->read_at, len);
	connection->read_at += len;
	connection->n_buffered -= len;
	if (connection->n_buffered == 0)
		connection->read_at = 0;
	connection->fwd_cnt += (uint32_t)len;
	update_credit(connection);
	return (ssize_t)len;
}

int guest_shutdown(struct guest_connection *connection, uint32_t flags)
{
	if (connection->state != GUEST_ESTABLISHED)
		return -ENOTCONN;
	connection->shutdown |= flags;
	guest_say(connection, PACKET_SHUTDOWN, connection->shutdown);
	return 0;
}

int guest_abort(struct guest_connection *connection)
{
	if (connection->state == GUEST_CLOSED)
		return -ENOTCONN;
	guest_say(connection, PACKET_RST, 0);
	end(connection, ECONNRESET);
	return 0;
}

int guest_close(struct guest_connection *connection)
{
	if (connection->state == GUEST_CONNECTING) {
		/* Linux says nothing; a late RESPONSE is answered with RST. */
		connection->is_excused = true;
		end(connection, 0);
		return 0;
	}
	if (connection->state != GUEST_ESTABLISHED)
		return 0;
	if (connection->peer_shutdown == PACKET_SHUTDOWN_BOTH) {
		guest_say(connection, PACKET_RST, 0);
		end(connection, 0);
		return 0;
	}
	connection->state = GUEST_CLOSING;
	connection->shutdown = PACKET_SHUTDOWN_BOTH;
	guest_say(connection, PACKET_SHUTDOWN, PACKET_SHUTDOWN_BOTH);
	return 0;
}
