/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Messages (virtio 1.3, 5.10.6.4.1): what one side sends as one reaches the other
 * as one, or the connection ends. A unix socket of this type takes a message in one
 * call, and drops what one call does not fetch.
 *
 * From the guest: a message that is there as a whole goes from guest memory into
 * the socket. Otherwise it waits in the buffer, behind its length.
 *
 * MSG_EOR, the end of a record, does not pass a unix socket. Between two guests a
 * byte of ours behind each message says it, the mark; the worker at the other end
 * takes it away. So an empty message is no end there, either.
 *
 * To the guest: the length is asked for first. A message is fetched when the guest
 * has room for all of it, into the rx buffers that there are; what does not fit
 * them is the rest, which one connection at a time may have. It is copied as rx
 * buffers come: a driver may hold back new ones until it has the old ones.
 */

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/socket.h>

#include "policy/policy.h"
#include "worker/to_guest.h"

/* The length in front of a message in the buffer, and whether it ends a record. */
#define HEAD_LEN    4
#define HEAD_RECORD (UINT32_C(1) << 31)
_Static_assert(BUFFER_MESSAGE_MAX < HEAD_RECORD, "no length has that bit");

#define MARK_LEN    1
#define MARK_RECORD 1 /* any other bit is of no meaning: the other guest's worker wrote it */

/* rx buffers for one message. */
#define MESSAGE_CHAINS 256

/*
 * When the host program is finished, an empty message looks like the end. So many
 * of them are taken for messages if another one follows.
 */
#define MAYBE_MAX 64

/* ---- from the guest ---- */

enum sent {
	SENT,
	SENT_LATER,   /* when there is room in the socket */
	SENT_NEVER,   /* the host program reads no more */
	SENT_REFUSED, /* the socket takes no message of this length */
};

static uint32_t mark_len(const struct connection *connection)
{
	return connection_has_sibling(connection) ? MARK_LEN : 0;
}

static enum sent send_message(struct connection *connection, struct iovec *parts, size_t n_parts,
			      size_t len, bool ends_record)
{
	static const uint8_t marks[] = {0, MARK_RECORD};
	ssize_t n;

	if (connection_has_sibling(connection)) {
		parts[n_parts++] = (struct iovec){(void *)(uintptr_t)&marks[ends_record], MARK_LEN};
		len += MARK_LEN;
	}
	do {
		/* writev() keeps an empty message to itself. */
		n = len > 0 ? writev(connection->fd, parts, (int)n_parts)
			    : sendmsg(connection->fd, policy_empty_message, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n >= 0)
		return SENT;
	switch (errno) {
	case EAGAIN:
		connection->is_writable = false;
		return SENT_LATER;
	case EMSGSIZE:
	case ENOBUFS:
	case ENOMEM:
		return SENT_REFUSED;
	default:
		return SENT_NEVER;
	}
}

static void reset(struct device *device, struct connection *connection, enum report_event why,
		  uint64_t value)
{
	control_report(device, why, connection->host_port, connection->guest_port, value);
	/* A guest that has gone is told nothing. */
	if (connection->state == CONNECTION_DRAINING)
		host_close(device, connection);
	else
		host_reset(device, connection);
}

/* false when the connection ended, or was deaf and the message is gone. */
static bool after_sending(struct device *device, struct connection *connection, enum sent sent,
			  size_t len)
{
	switch (sent) {
	case SENT_NEVER:
		host_turn_deaf(device, connection);
		return false;
	case SENT_REFUSED:
		reset(device, connection, REPORT_MESSAGE_REFUSED, len);
		return false;
	default:
		return sent == SENT;
	}
}

uint32_t seqpacket_heads(const struct connection *connection)
{
	return connection->n_kept * HEAD_LEN;
}

static void append(struct device *device, struct connection *connection, const void *bytes,
		   size_t len)
{
	struct iovec part = {(void *)(uintptr_t)bytes, len};

	/* The pool holds buffer_max for each connection, and keep() counted. */
	if (!buffer_append(&device->pool, &connection->buffer, &part, 1))
		__builtin_trap();
}

static void begin_message(struct device *device, struct connection *connection)
{
	static const uint8_t head[HEAD_LEN];

	append(device, connection, head, sizeof(head));
	connection->n_kept++;
	connection->has_open = true;
	connection->open_len = 0;
}

static void end_message(struct device *device, struct connection *connection, bool ends_record)
{
	uint32_t at = connection->buffer.len - connection->open_len - HEAD_LEN;
	uint32_t head = connection->open_len | (ends_record ? HEAD_RECORD : 0);

	buffer_overwrite(&device->pool, &connection->buffer, at, &head, HEAD_LEN);
	connection->has_open = false;
}

/* Bytes are limited by credit; heads are what the rest of the buffer is for. */
static void keep(struct device *device, struct connection *connection, const struct iovec *parts,
		 size_t n_parts, size_t len, uint32_t flags)
{
	size_t needed = len + (connection->has_open ? 0 : HEAD_LEN);

	if (needed > connection->buffer_max - connection->buffer.len) {
		reset(device, connection, REPORT_MESSAGES_UNREAD, connection->n_kept);
		return;
	}
	if (!connection->has_open)
		begin_message(device, connection);
	for (size_t i = 0; i < n_parts; i++)
		append(device, connection, parts[i].iov_base, parts[i].iov_len);
	connection->open_len += (uint32_t)len;
	if (flags & PACKET_SEQ_EOM)
		end_message(device, connection, flags & PACKET_SEQ_EOR);
	/* More of it may come only when the guest knows what is free by now. */
	if (credit_wants_update(&connection->credit))
		to_guest_send(device, connection, CONNECTION_SEND_CREDIT_UPDATE);
	host_flush(device, connection);
}

void seqpacket_write(struct device *device, struct connection *connection, struct iovec *parts,
		     size_t n_parts, size_t len, uint32_t flags)
{
	enum sent sent = SENT_LATER;

	if (connection->state != CONNECTION_ESTABLISHED)
		return; /* a message of the same batch ended it */
	if (connection->is_deaf) {
		host_took(device, connection, len);
		return;
	}
	if ((flags & PACKET_SEQ_EOM) && connection->n_kept == 0 && connection->is_writable &&
	    n_parts < IOV_MAX)
		sent = send_message(connection, parts, n_parts, len, flags & PACKET_SEQ_EOR);
	if (sent == SENT_LATER)
		keep(device, connection, parts, n_parts, len, flags);
	else if (after_sending(device, connection, sent, len) || connection->is_deaf)
		host_took(device, connection, len);
}

/* The first message of the buffer. */
static enum sent send_first(struct device *device, struct connection *connection, uint32_t *ret_len)
{
	struct iovec parts[BUFFER_PARTS_MAX], payload[BUFFER_PARTS_MAX + 1];
	size_t n_parts;
	uint32_t head;

	buffer_read(&device->pool, &connection->buffer, 0, &head, HEAD_LEN);
	*ret_len = head & ~HEAD_RECORD;
	n_parts = buffer_peek(&device->pool, &connection->buffer, parts,
			      (*ret_len + HEAD_LEN) / BUFFER_CHUNK_LEN + 2);
	n_parts = packet_slice(parts, n_parts, HEAD_LEN, *ret_len, payload);
	return send_message(connection, payload, n_parts, *ret_len, head & HEAD_RECORD);
}

void seqpacket_flush(struct device *device, struct connection *connection)
{
	while (connection->fd >= 0 && connection->is_writable &&
	       connection_has_unsent(connection)) {
		uint32_t len;
		enum sent sent = send_first(device, connection, &len);

		if (!after_sending(device, connection, sent, len))
			return;
		buffer_consume(&device->pool, &connection->buffer, HEAD_LEN + len);
		connection->n_kept--;
		host_took(device, connection, len);
	}
}

bool seqpacket_is_sound(const struct connection *connection)
{
	uint64_t heads = (uint64_t)connection->n_kept * HEAD_LEN;

	if (connection->type != PACKET_TYPE_SEQPACKET)
		return connection->type == PACKET_TYPE_STREAM && connection->n_kept == 0 &&
		       !connection->has_open && connection->n_empty == 0 &&
		       connection->n_maybe == 0 && connection->rest.len == 0 &&
		       connection->credit.n_empty == 0;
	if (connection->buffer.len > connection->buffer_max || heads > connection->buffer.len ||
	    connection->has_open > connection->n_kept ||
	    (connection->has_open && connection->open_len > connection->buffer.len - heads))
		return false;
	return connection->rest.len == 0 || connection->state == CONNECTION_ESTABLISHED;
}

/* ---- to the guest ---- */

static void drop_rest(struct device *device, struct connection *connection)
{
	if (connection->rest.len == 0)
		return;
	buffer_consume(&device->pool, &connection->rest, connection->rest.len);
	device->has_rest = false;
}

void seqpacket_drop(struct device *device, struct connection *connection)
{
	drop_rest(device, connection);
	connection->n_empty = 0;
	connection->next_len = 0;
}

static void fill_parts(struct device *device, struct connection *connection,
		       const struct to_guest_room *room)
{
	for (size_t i = 0; i < room->n_parts; i++) {
		uint32_t len = (uint32_t)room->parts[i].iov_len;

		buffer_read(&device->pool, &connection->rest, 0, room->parts[i].iov_base, len);
		buffer_consume(&device->pool, &connection->rest, len);
	}
}

/* Of the message that is next: what it is for the guest. */
static uint32_t message_len(const struct connection *connection)
{
	return connection->next_len - mark_len(connection);
}

/* Of the last packet of a message. */
static uint32_t end_flags(const struct connection *connection)
{
	return PACKET_SEQ_EOM | (connection->ends_record ? PACKET_SEQ_EOR : 0);
}

static enum served send_rest(struct device *device, struct connection *connection)
{
	if (connection->rest.len == 0)
		return SERVED; /* there may be one of another connection */
	while (connection->rest.len > 0) {
		struct to_guest_room room =
			to_guest_fetch(device, MESSAGE_CHAINS, IOV_MAX, connection->rest.len);

		if (room.len == 0)
			return SERVED_STARVED;
		fill_parts(device, connection, &room);
		to_guest_send_fetched(device, connection, room.len,
				      connection->rest.len == 0 ? end_flags(connection) : 0);
	}
	device->has_rest = false;
	return SERVED;
}

/*
 * Linux announces each message that was read. Of one without a byte nothing else tells, no
 * answer either. A driver that has announced one before will do so again: if it does not,
 * its program does not read. When its word may have been taken for an answer, nobody knows.
 */
static bool will_announce(const struct connection *connection)
{
	return credit_waits_for_empty(&connection->credit) && connection->tells_empty &&
	       connection->n_asked == 0;
}

/* Others are asked, but not for each message; or believed to have read what is empty. */
static void await_message(struct device *device, struct connection *connection)
{
	if (connection->timer != CONNECTION_TIMER_MESSAGE && !will_announce(connection))
		device_arm(device, connection, CONNECTION_TIMER_MESSAGE);
}

void seqpacket_expire(struct device *device, struct connection *connection)
{
	/*
	 * It may announce nothing as long as its buffer is not full; and never what fills
	 * none, as such a driver has no limit on packets.
	 */
	if (!credit_waits_for_empty(&connection->credit))
		connection->due |= CONNECTION_SEND_CREDIT_REQUEST;
	else if (!will_announce(connection))
		credit_empty_consumed(&connection->credit, UINT32_MAX);
	to_guest_notice(device, connection);
}

/* false when something has to be waited for; the timer, or the guest, wakes up. */
static bool has_credit(struct device *device, struct connection *connection, uint32_t len)
{
	bool has_packets = to_guest_packet_credit(connection) > 0;

	if (has_packets && len <= credit_bytes(&connection->credit))
		return true;
	statistics_count(device, COUNTER_CREDIT_STALLS, 1);
	if (has_packets || credit_waits_for_empty(&connection->credit))
		await_message(device, connection);
	else
		to_guest_ask_credit(device, connection);
	return false;
}

static enum served send_empty_messages(struct device *device, struct connection *connection)
{
	while (connection->n_empty > 0) {
		if (!has_credit(device, connection, 0))
			return SERVED;
		if (!to_guest_send_empty(device, connection, PACKET_OP_RW, end_flags(connection)))
			return SERVED_STARVED;
		credit_sent(&connection->credit, 0);
		connection->n_empty--;
	}
	return SERVED;
}

static void take_empty(const struct connection *connection)
{
	uint8_t nothing;
	struct iovec part = {&nothing, sizeof(nothing)};
	ssize_t n = readv(connection->fd, &part, 1);

	(void)n;
}

static enum served end_messages(struct device *device, struct connection *connection)
{
	connection->is_readable = false;
	connection->n_maybe = 0;
	if (connection->ends_in_rst)
		host_reset(device, connection);
	else
		connection->has_ended = true;
	return SERVED;
}

/*
 * The socket gave no byte: an empty message, or the end. It is the end if the host
 * program is finished, and of that epoll tells. It may not have told yet; but when
 * all events were looked at after the socket, and this one was not among them, there
 * was an empty message. Once the program is finished the two look the same.
 */
static enum served take_nothing(struct device *device, struct connection *connection)
{
	if (connection->is_finished) {
		take_empty(connection);
		if (++connection->n_maybe < MAYBE_MAX)
			return SERVED_MORE;
		return end_messages(device, connection);
	}
	if (!connection->is_doubtful) {
		connection->is_doubtful = true;
		connection->doubt_since = device->n_looks;
	}
	if (connection->doubt_since == device->n_looks)
		return SERVED_LATER;
	connection->is_doubtful = false;
	take_empty(connection);
	connection->n_empty++;
	return SERVED_MORE;
}

/* Unlike a stream this one tells of a broken connection before what was sent on it. */
static enum served take_error(struct device *device, struct connection *connection, int error)
{
	if (error == EAGAIN) {
		connection->is_readable = false;
		return SERVED;
	}
	if (error != EINTR && connection->ends_in_rst)
		return end_messages(device, connection);
	connection->ends_in_rst |= error != EINTR;
	return SERVED_MORE;
}

/* Ask for the length of the next message; SERVED_MORE when it is known, or to ask again. */
static enum served look(struct device *device, struct connection *connection)
{
	ssize_t n =
		recvfrom(connection->fd, NULL, 0, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT, NULL, NULL);

	if (n < 0)
		return take_error(device, connection, errno);
	if (n == 0)
		return take_nothing(device, connection);
	connection->next_len = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
	connection->n_empty = (uint8_t)(connection->n_empty + connection->n_maybe);
	connection->n_maybe = 0;
	connection->is_doubtful = false;
	return SERVED_MORE;
}

/* Room for what the rx buffers don't hold, as further parts. false: there is none now. */
static bool add_rest(struct device *device, struct connection *connection,
		     struct to_guest_room *room)
{
	uint32_t len = message_len(connection) - room->len;
	size_t n;

	if (len == 0)
		return true;
	if (device->has_rest)
		return false;
	n = buffer_make(&device->pool, &connection->rest, len, room->parts + room->n_parts);
	if (n == 0)
		__builtin_trap(); /* the pool has room for one message besides the buffers */
	room->n_parts += n;
	device->has_rest = true;
	return true;
}

/* Another guest's: what there is of it is the mark. */
static enum served read_empty_message(struct device *device, struct connection *connection)
{
	uint8_t mark = 0;
	struct iovec part = {&mark, MARK_LEN};
	ssize_t n = readv(connection->fd, &part, 1);

	if (n != MARK_LEN)
		return take_error(device, connection, n < 0 ? errno : EPROTO);
	connection->next_len = 0;
	connection->ends_record = mark & MARK_RECORD;
	connection->n_empty++;
	return SERVED_MORE;
}

static enum served read_message(struct device *device, struct connection *connection)
{
	struct to_guest_room room = to_guest_fetch(
		device, MESSAGE_CHAINS, IOV_MAX - BUFFER_PARTS_MAX - 1, message_len(connection));
	uint8_t mark = 0;
	ssize_t n;

	if (room.len == 0)
		return SERVED_STARVED;
	if (!add_rest(device, connection, &room)) {
		/* Whose rest it is comes first, unless the worker before told another order. */
		to_guest_send_fetched(device, connection, 0, 0);
		return SERVED_LATER;
	}
	if (connection_has_sibling(connection))
		room.parts[room.n_parts++] = (struct iovec){&mark, MARK_LEN};
	n = readv(connection->fd, room.parts, (int)room.n_parts);
	if (n != (ssize_t)connection->next_len) {
		to_guest_send_fetched(device, connection, 0, 0);
		drop_rest(device, connection);
		return take_error(device, connection, n < 0 ? errno : EPROTO);
	}
	connection->next_len = 0;
	connection->ends_record = mark & MARK_RECORD;
	to_guest_send_fetched(device, connection, room.len,
			      connection->rest.len == 0 ? end_flags(connection) : 0);
	return SERVED_MORE;
}

/* More than the guest has room for in all would never get there. */
static uint32_t longest(const struct connection *connection)
{
	uint32_t window = connection->credit.peer_buf_alloc;

	return window < BUFFER_MESSAGE_MAX ? window : BUFFER_MESSAGE_MAX;
}

enum served seqpacket_serve(struct device *device, struct connection *connection)
{
	enum served served = send_rest(device, connection);

	if (served == SERVED)
		served = send_empty_messages(device, connection);
	if (served != SERVED || connection->n_empty > 0 || connection->has_ended)
		return served;
	if (connection->next_len == 0 && connection->is_readable)
		served = look(device, connection);
	if (connection->next_len == 0 || connection->n_empty > 0)
		return served;
	if (message_len(connection) > longest(connection)) {
		reset(device, connection, REPORT_MESSAGE_TOO_LONG, message_len(connection));
		return SERVED;
	}
	if (device->rate.is_dry)
		return SERVED_HELD;
	if (message_len(connection) == 0)
		return read_empty_message(device, connection);
	if (!has_credit(device, connection, message_len(connection)))
		return SERVED;
	return read_message(device, connection);
}
