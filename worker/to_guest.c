/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "worker/to_guest.h"

/* Packets in one round, over all connections: the tx ring gets its turn. */
#define ROUND_PACKETS 256
/* Packets of one connection in a row, and what one readv() may fetch: the others get theirs. */
#define TURN_PACKETS	    64
#define SHARED_TURN_PACKETS 16 /* while other connections wait for theirs */
#define TURN_BYTES	    (256u * 1024)
/* So many rx buffers are given back at once at the most; a guest can begin to read. */
#define PUBLISH_PACKETS 64

/*
 * CREDIT_REQUESTs that stay unanswered for a second: a guest whose driver is
 * older than the answer to them, and than the limit on packets.
 */
#define UNANSWERED_MAX (1000 / CONNECTION_CREDIT_MS)

/* What one readv() fills: chains in order, and the parts behind their headers. */
struct rx_batch {
	struct chain chains[ROUND_PACKETS];
	uint32_t room[ROUND_PACKETS]; /* payload bytes that fit the chain */
	uint32_t n_chains;
	size_t n_parts;	  /* used of parts[] */
	size_t n_payload; /* used of payload[] */
	struct iovec parts[RING_PARTS_MAX];
	struct iovec payload[RING_PARTS_MAX];
};

static struct rx_batch batch;
static uint32_t n_unpublished;
static uint32_t n_given_back; /* in this round */

static void give_back(struct ring *ring, const struct chain *chain, uint32_t len)
{
	ring_push(ring, &chain->ticket, len);
	n_given_back++;
	if (++n_unpublished < PUBLISH_PACKETS)
		return;
	ring_publish(ring);
	n_unpublished = 0;
}

static bool is_usable(const struct chain *chain)
{
	return !chain->is_malformed && chain->n_readable == 0 &&
	       chain->writable_len >= PACKET_HEADER_LEN;
}

/* A driver can offer chains that are of no use for ever: they count, too. */
static bool is_round_over(void)
{
	return n_given_back >= ROUND_PACKETS;
}

/* The next chain that can take a header; others are given back empty. */
static bool pop_chain(struct device *device, struct iovec *parts, struct chain *ret_chain)
{
	struct ring *ring = &device->rings[RING_RX];

	while (!is_round_over() &&
	       ring_pop(ring, &device->memory, parts, RING_PARTS_MAX, ret_chain) == 1) {
		if (is_usable(ret_chain))
			return true;
		device->n_dropped++;
		statistics_count(device, COUNTER_DROPPED, 1);
		give_back(ring, ret_chain, 0);
	}
	return false;
}

static struct packet_header make_header(struct device *device, struct connection *connection,
					enum packet_op op, uint32_t len, uint32_t flags)
{
	/* Every packet tells the guest how far the host program has read. */
	credit_announced(&connection->credit);
	connection->due &= (uint8_t)~CONNECTION_SEND_CREDIT_UPDATE;
	return (struct packet_header){
		.src_cid = connection->peer_cid,
		.dst_cid = device->guest_cid,
		.src_port = connection->host_port,
		.dst_port = connection->guest_port,
		.len = len,
		.type = connection->type,
		.op = (uint16_t)op,
		.flags = flags,
		.buf_alloc = connection->credit.buf_alloc,
		.fwd_cnt = connection->credit.fwd_cnt,
	};
}

static void put_header(struct device *device, const struct chain *chain,
		       const struct packet_header *header)
{
	packet_write_header(chain->parts, chain->n_writable, header);
	dirty_log_mark_parts(&device->log, &device->memory, chain->parts, chain->n_writable,
			     PACKET_HEADER_LEN + header->len);
	statistics_count(device, COUNTER_TO_GUEST_PACKETS, 1);
	capture_packet(&device->capture, header, chain->parts, chain->n_writable, header->len);
	give_back(&device->rings[RING_RX], chain, PACKET_HEADER_LEN + header->len);
}

bool to_guest_send_empty(struct device *device, struct connection *connection, enum packet_op op,
			 uint32_t flags)
{
	struct packet_header header;
	struct chain chain;

	if (!pop_chain(device, batch.parts, &chain))
		return false;
	header = make_header(device, connection, op, 0, flags);
	put_header(device, &chain, &header);
	if (op == PACKET_OP_CREDIT_REQUEST && connection->n_asked < UINT8_MAX)
		connection->n_asked++;
	return true;
}

void to_guest_notice(struct device *device, struct connection *connection)
{
	/* What is held has bytes to read; what is due besides need not wait for that. */
	if (device->rate.is_dry && connection->due)
		link_remove(&connection->ready_link);
	link_append(&device->connections.ready, &connection->ready_link);
}

void to_guest_send(struct device *device, struct connection *connection, uint8_t due)
{
	connection->due |= due;
	to_guest_notice(device, connection);
}

bool to_guest_has_orphan_room(const struct device *device)
{
	return device->n_orphans < ORPHANS_MAX;
}

void to_guest_send_orphan_rst(struct device *device, const struct packet_header *header)
{
	uint32_t at = (device->first_orphan + device->n_orphans) % ORPHANS_MAX;

	device->orphans[at] = (struct orphan){
		.src_cid = header->dst_cid,
		.src_port = header->dst_port,
		.dst_port = header->src_port,
		.type = header->type,
	};
	device->n_orphans++;
}

static bool send_orphans(struct device *device)
{
	while (device->n_orphans > 0) {
		const struct orphan *orphan = &device->orphans[device->first_orphan];
		struct packet_header header = {
			.src_cid = orphan->src_cid,
			.dst_cid = device->guest_cid,
			.src_port = orphan->src_port,
			.dst_port = orphan->dst_port,
			.type = orphan->type,
			.op = PACKET_OP_RST,
		};
		struct chain chain;

		if (!pop_chain(device, batch.parts, &chain))
			return false;
		put_header(device, &chain, &header);
		device->first_orphan = (device->first_orphan + 1) % ORPHANS_MAX;
		device->n_orphans--;
	}
	return true;
}

/* One data packet in a chain whose payload is in place. */
static void finish_packet(struct device *device, struct connection *connection,
			  const struct chain *chain, uint32_t len, uint32_t flags)
{
	struct packet_header header = make_header(device, connection, PACKET_OP_RW, len, flags);

	credit_sent(&connection->credit, len);
	connection->history.to_guest += len;
	statistics_count(device, COUNTER_TO_GUEST_BYTES, len);
	device_pass(device, len);
	put_header(device, chain, &header);
}

uint32_t to_guest_packet_credit(const struct connection *connection)
{
	if (connection->n_unanswered >= UNANSWERED_MAX)
		return UINT32_MAX;
	return credit_packets(&connection->credit);
}

void to_guest_ask_credit(struct device *device, struct connection *connection)
{
	if (!connection->has_asked_credit) {
		connection->has_asked_credit = true;
		connection->due |= CONNECTION_SEND_CREDIT_REQUEST;
	}
	/* Bytes that are consumed are announced by themselves, packets are not. */
	if (credit_bytes(&connection->credit) > 0 && to_guest_packet_credit(connection) == 0 &&
	    connection->timer != CONNECTION_TIMER_CREDIT)
		device_arm(device, connection, CONNECTION_TIMER_CREDIT);
}

static uint32_t least(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

/* Stream bytes that came in one piece with the handshake. */
static enum served send_early(struct device *device, struct connection *connection)
{
	while (connection->early_skip < connection->early_len) {
		uint32_t len = (uint32_t)(connection->early_len - connection->early_skip);
		const uint8_t *bytes = connection->early + connection->early_skip;
		struct chain chain;
		size_t n_parts;

		len = least(len, credit_bytes(&connection->credit));
		if (len == 0 || to_guest_packet_credit(connection) == 0) {
			statistics_count(device, COUNTER_CREDIT_STALLS, 1);
			to_guest_ask_credit(device, connection);
			return SERVED;
		}
		if (!pop_chain(device, batch.parts, &chain))
			return SERVED_STARVED;
		if (chain.writable_len == PACKET_HEADER_LEN) {
			give_back(&device->rings[RING_RX], &chain, 0);
			continue;
		}
		if (chain.writable_len - PACKET_HEADER_LEN < len)
			len = (uint32_t)(chain.writable_len - PACKET_HEADER_LEN);
		n_parts = packet_slice(chain.parts, chain.n_writable, PACKET_HEADER_LEN, len,
				       batch.payload);
		for (size_t i = 0; i < n_parts; i++) {
			memcpy(batch.payload[i].iov_base, bytes, batch.payload[i].iov_len);
			bytes += batch.payload[i].iov_len;
		}
		connection->early_skip = (uint8_t)(connection->early_skip + len);
		finish_packet(device, connection, &chain, len, 0);
	}
	return SERVED;
}

/*
 * Add the next chain to the batch, with room for at most len bytes. Chains are
 * given back in order, so one that is no use ends the batch unless it is the
 * first. 0 when nothing was added.
 */
static uint32_t add_chain(struct device *device, uint32_t len, size_t n_parts_max)
{
	struct ring *ring = &device->rings[RING_RX];
	struct chain *chain = &batch.chains[batch.n_chains];
	uint32_t room = 0;
	size_t n_payload;

	for (;;) {
		if (is_round_over() || ring_pop(ring, &device->memory, batch.parts + batch.n_parts,
						RING_PARTS_MAX - batch.n_parts, chain) != 1)
			return 0;
		if (is_usable(chain) && chain->writable_len > PACKET_HEADER_LEN)
			break;
		if (batch.n_chains > 0) {
			ring_unpop(ring, chain);
			return 0;
		}
		device->n_dropped++;
		statistics_count(device, COUNTER_DROPPED, 1);
		give_back(ring, chain, 0);
	}
	if (chain->writable_len - PACKET_HEADER_LEN < len)
		len = (uint32_t)(chain->writable_len - PACKET_HEADER_LEN);
	len = least(len, PACKET_PAYLOAD_MAX);
	n_payload = packet_slice(chain->parts, chain->n_writable, PACKET_HEADER_LEN, len,
				 batch.payload + batch.n_payload);
	/* One readv() takes so many parts; a chain of more takes fewer bytes. */
	if (n_payload > n_parts_max - batch.n_payload)
		n_payload = n_parts_max - batch.n_payload;
	for (size_t i = 0; i < n_payload; i++)
		room += (uint32_t)batch.payload[batch.n_payload + i].iov_len;
	if (room == 0) {
		ring_unpop(ring, chain);
		return 0;
	}
	batch.room[batch.n_chains++] = room;
	batch.n_parts += chain->n_writable;
	batch.n_payload += n_payload;
	return room;
}

struct to_guest_room to_guest_fetch(struct device *device, uint32_t n_chains, size_t n_parts,
				    uint32_t len)
{
	uint32_t total = 0;

	batch.n_chains = 0;
	batch.n_parts = 0;
	batch.n_payload = 0;
	while (batch.n_chains < n_chains && total < len) {
		uint32_t room = add_chain(device, len - total, n_parts);

		if (room == 0)
			break;
		total += room;
	}
	return (struct to_guest_room){batch.payload, batch.n_payload, total};
}

/* Fetch chains for one read: as many as credit, fairness and experience say. */
static uint32_t fill_batch(struct device *device, const struct connection *connection)
{
	uint32_t bytes = least(least(credit_bytes(&connection->credit), TURN_BYTES),
			       rate_room(&device->rate));
	bool is_alone = link_is_empty(&device->connections.ready);
	uint32_t turn = is_alone ? TURN_PACKETS : SHARED_TURN_PACKETS;
	uint32_t packets =
		least(to_guest_packet_credit(connection), least(connection->read_ahead, turn));

	return to_guest_fetch(device, packets, IOV_MAX, bytes).len;
}

void to_guest_send_fetched(struct device *device, struct connection *connection, uint32_t len,
			   uint32_t flags)
{
	uint32_t n_used = 0;

	while (len > 0) {
		uint32_t n = least(len, batch.room[n_used]);

		len -= n;
		finish_packet(device, connection, &batch.chains[n_used], n, len == 0 ? flags : 0);
		n_used++;
	}
	if (n_used < batch.n_chains)
		ring_unpop(&device->rings[RING_RX], &batch.chains[n_used]);
	batch.n_chains = n_used;
}

/*
 * A stream that filled its buffers will fill more; one that did not gets as many
 * as it filled, so a single byte costs the walk of one chain.
 */
static void learn_read_ahead(struct connection *connection, bool was_filled)
{
	uint32_t next = was_filled ? batch.n_chains * 4 : batch.n_chains;

	connection->read_ahead = (uint8_t)least(next > 0 ? next : 1, TURN_PACKETS);
}

/*
 * A socket of AF_VSOCK does not hang up when its other end is closed, as a unix socket
 * does: a close looks like the end of the stream, or later like nothing but an event.
 */
static void end_stream(struct device *device, struct connection *connection)
{
	connection->is_readable = false;
	if (connection->ends_in_rst) {
		host_reset(device, connection);
		return;
	}
	connection->has_ended = true;
	/* Between guests it may have been a reset: the front's word of that is on its way. */
	if (!connection_has_sibling(connection))
		host_check_reader(device, connection);
}

/* One readv() from the host program into rx buffers. */
static enum served read_stream(struct device *device, struct connection *connection)
{
	uint32_t room;
	ssize_t n;

	if (device->rate.is_dry)
		return SERVED_HELD;
	if (credit_bytes(&connection->credit) == 0 || to_guest_packet_credit(connection) == 0) {
		statistics_count(device, COUNTER_CREDIT_STALLS, 1);
		to_guest_ask_credit(device, connection);
		return SERVED;
	}
	room = fill_batch(device, connection);
	if (room == 0)
		return SERVED_STARVED;

	n = readv(connection->fd, batch.payload, (int)batch.n_payload);
	to_guest_send_fetched(device, connection, n > 0 ? (uint32_t)n : 0, 0);
	if (n > 0) {
		learn_read_ahead(connection, (uint32_t)n == room);
		if (credit_runs_low(&connection->credit))
			to_guest_ask_credit(device, connection);
		/* The guest has a few bytes before it is asked whether there are more. */
		return (uint32_t)n < room && batch.n_chains == 1 ? SERVED_LATER : SERVED_MORE;
	}
	if (n < 0 && errno == EINTR)
		return SERVED_MORE;
	connection->is_readable = false;
	if (n == 0)
		end_stream(device, connection);
	else if (errno != EAGAIN)
		host_fail(device, connection, errno);
	return SERVED;
}

static enum served send_shutdown(struct device *device, struct connection *connection)
{
	uint8_t flags = connection->our_shutdown;

	if (connection->has_ended)
		flags |= PACKET_SHUTDOWN_SEND;
	if (connection->is_deaf || (connection->has_ended && connection->has_hung_up))
		flags |= PACKET_SHUTDOWN_RECEIVE;
	if (flags == connection->our_shutdown)
		return SERVED;
	if (!to_guest_send_empty(device, connection, PACKET_OP_SHUTDOWN, flags))
		return SERVED_STARVED;
	connection->our_shutdown = flags;
	if (flags == PACKET_SHUTDOWN_BOTH) {
		connection->state = CONNECTION_CLOSING;
		/* Nothing more comes that credit would be for. */
		connection->due &= (uint8_t)~CONNECTION_SEND_CREDIT_REQUEST;
		device_arm(device, connection, CONNECTION_TIMER_CLOSING);
	}
	return SERVED;
}

static bool send_due(struct device *device, struct connection *connection, uint8_t due,
		     enum packet_op op)
{
	if (!(connection->due & due))
		return true;
	if (!to_guest_send_empty(device, connection, op, 0))
		return false;
	connection->due &= (uint8_t)~due;
	return true;
}

static enum served serve_bytes(struct device *device, struct connection *connection)
{
	enum served served;

	if (connection->type == PACKET_TYPE_SEQPACKET)
		return seqpacket_serve(device, connection);
	served = send_early(device, connection);
	if (connection->early_skip < connection->early_len || !connection->is_readable)
		return served;
	if (!connection->has_ended)
		return read_stream(device, connection);
	end_stream(device, connection);
	return SERVED;
}

static enum served serve_established(struct device *device, struct connection *connection)
{
	enum served served;

	if (!send_due(device, connection, CONNECTION_SEND_RESPONSE, PACKET_OP_RESPONSE))
		return SERVED_STARVED;
	served = serve_bytes(device, connection);
	if (connection->state != CONNECTION_ESTABLISHED)
		return SERVED; /* the host program reset it */
	if (served == SERVED)
		served = send_shutdown(device, connection);
	if (!send_due(device, connection, CONNECTION_SEND_CREDIT_REQUEST,
		      PACKET_OP_CREDIT_REQUEST) ||
	    !send_due(device, connection, CONNECTION_SEND_CREDIT_UPDATE, PACKET_OP_CREDIT_UPDATE))
		return SERVED_STARVED;
	return served;
}

/* The socket was on its way: now it is connected, or will never be. */
static enum served serve_opening(struct device *device, struct connection *connection)
{
	if (connection->has_hung_up) {
		host_connect_failed(device, connection, /* is_late= */ false);
		return SERVED;
	}
	if (!connection->is_writable)
		return SERVED;
	connection_disarm(connection);
	connection->state = CONNECTION_ESTABLISHED;
	statistics_connected(device, connection);
	connection->due |= CONNECTION_SEND_RESPONSE;
	return serve_established(device, connection);
}

static enum served serve_connecting(struct device *device, struct connection *connection)
{
	if (connection->has_hung_up) {
		host_handshake_failed(device, connection, REPORT_HANDSHAKE_ENDED);
		return SERVED;
	}
	if (!(connection->due & CONNECTION_SEND_REQUEST))
		return SERVED;
	if (!send_due(device, connection, CONNECTION_SEND_REQUEST, PACKET_OP_REQUEST))
		return SERVED_STARVED;
	/* From now on the guest can answer. */
	device_arm(device, connection, CONNECTION_TIMER_CONNECT);
	return SERVED;
}

static enum served serve(struct device *device, struct connection *connection)
{
	while (connection->state == CONNECTION_HANDSHAKE && connection->is_readable)
		host_read_handshake(device, connection);

	if (connection->due & CONNECTION_SEND_RST) {
		if (!send_due(device, connection, CONNECTION_SEND_RST, PACKET_OP_RST))
			return SERVED_STARVED;
		host_free_when_done(device, connection);
		return SERVED;
	}
	switch (connection->state) {
	case CONNECTION_CONNECTING:
		return serve_connecting(device, connection);
	case CONNECTION_OPENING:
		return serve_opening(device, connection);
	case CONNECTION_ESTABLISHED:
		return serve_established(device, connection);
	case CONNECTION_CLOSING:
		return send_due(device, connection, CONNECTION_SEND_CREDIT_UPDATE,
				PACKET_OP_CREDIT_UPDATE)
			       ? SERVED
			       : SERVED_STARVED;
	default:
		return SERVED;
	}
}

void to_guest_release(struct device *device)
{
	struct link *held = &device->connections.held;

	while (!link_is_empty(held)) {
		struct link *link = held->next;

		link_remove(link);
		link_append(&device->connections.ready, link);
	}
}

static bool run_round(struct device *device, struct link *later)
{
	struct link *list = &device->connections.ready;
	struct ring *ring = &device->rings[RING_RX];

	if (!send_orphans(device)) {
		statistics_count(device, COUNTER_RX_STARVED, !is_round_over());
		return is_round_over();
	}
	while (!link_is_empty(list)) {
		struct connection *connection = CONNECTION_OF(ready_link, list->next);
		enum served served;

		if (is_round_over())
			return true;
		link_remove(&connection->ready_link);
		served = serve(device, connection);
		/*
		 * What found no buffer stays first: the RST of a former connection must not
		 * come behind the answer to the next one of the same ports.
		 */
		if (served == SERVED_STARVED)
			link_prepend(list, &connection->ready_link);
		else if (served == SERVED_MORE)
			link_append(list, &connection->ready_link);
		else if (served == SERVED_LATER)
			link_append(later, &connection->ready_link);
		else if (served == SERVED_HELD)
			link_append(&device->connections.held, &connection->ready_link);
		if (served == SERVED_STARVED && !ring_has_chains(ring)) {
			statistics_count(device, COUNTER_RX_STARVED, 1);
			return false;
		}
		if (ring->is_broken)
			return false;
	}
	return false;
}

bool to_guest_run(struct device *device)
{
	struct link later;
	bool has_more;

	link_init(&later);
	ring_disable_kicks(&device->rings[RING_RX]);
	has_more = run_round(device, &later);
	while (!link_is_empty(&later)) {
		struct link *link = later.next;

		link_remove(link);
		link_append(&device->connections.ready, link);
		has_more = true;
	}
	ring_publish(&device->rings[RING_RX]);
	n_unpublished = 0;
	n_given_back = 0;
	return has_more;
}
