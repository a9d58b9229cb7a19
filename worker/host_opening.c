/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker/device.h"

/*
 * What a guest may have unread on a connection with messages is also the longest
 * message that it sends: it must go into the host's socket at once. And a part of
 * the buffer is for the lengths of messages that wait in it.
 */
uint32_t host_window(const struct device *device, uint16_t type, uint32_t buffer_len)
{
	uint32_t window = buffer_len - buffer_len / 8;

	if (type != PACKET_TYPE_SEQPACKET)
		return buffer_len;
	if (window > device->message_size)
		window = device->message_size;
	return window < BUFFER_MESSAGE_MAX ? window : BUFFER_MESSAGE_MAX;
}

bool host_open_window(struct device *device, struct connection *connection)
{
	struct connections *connections = &device->connections;
	uint32_t len = connection_reserve(connections, connection, device->buffer_size);
	uint64_t n_refused;

	if (len > 0) {
		credit_init(&connection->credit, host_window(device, connection->type, len));
		return true;
	}
	n_refused = ++device->counters[COUNTER_MEMORY_REFUSED];
	/* At each power of two: a guest may ask as often as it likes. */
	if ((n_refused & (n_refused - 1)) == 0)
		control_report(device, REPORT_MEMORY_LIMIT, connections->budget.limit, n_refused,
			       0);
	return false;
}

static void request(struct device *device, struct connection *connection, uint32_t guest_port)
{
	if (!host_open_window(device, connection)) {
		connection->guest_port = guest_port;
		host_handshake_failed(device, connection, REPORT_HANDSHAKE_NO_MEMORY);
		return;
	}
	connection_disarm(connection);
	host_leave_handshake(device, connection);
	connection->state = CONNECTION_CONNECTING;
	connection->history.since = device->now;
	connection->guest_port = guest_port;
	connection->host_port = connection_next_port(&device->connections, guest_port);
	connection->n_retries = device->n_retries;
	connection_hash(&device->connections, connection);
	connection->tell |= CONNECTION_TELL_OPENED;
	link_append(&device->connections.tell, &connection->tell_link);
	to_guest_send(device, connection, CONNECTION_SEND_REQUEST);
}

static struct connection *take_accepted(struct device *device, const Vsockd__Accepted *accepted,
					int fd, enum connection_state state)
{
	struct connection *connection =
		connection_take(&device->connections, state, device->connections.n_max);

	if (!connection)
		__builtin_trap(); /* the front counts endpoints; so many were not promised */
	connection->fd = fd;
	connection->endpoint = accepted->endpoint;
	connection->is_from_host = true;
	connection->history.since = device->now;
	connection->type = (uint16_t)accepted->type;
	return connection;
}

void host_accepted(struct device *device, const Vsockd__Accepted *accepted, int fd)
{
	struct connection *connection = take_accepted(device, accepted, fd, CONNECTION_HANDSHAKE);

	connection->is_quiet = device->is_quiet || accepted->is_direct;
	device->connections.n_handshakes++;
	if (device->connections.n_handshakes > device->max_handshakes) {
		statistics_count(device, COUNTER_HANDSHAKE_LIMITED, 1);
		control_report(device, REPORT_HANDSHAKE_LIMIT, device->max_handshakes, 0, 0);
		host_close(device, connection);
		return;
	}
	if (!host_watch(device, connection)) {
		host_fail(device, connection, errno);
		return;
	}
	if (accepted->is_direct)
		request(device, connection, accepted->guest_port);
	else
		device_arm(device, connection, CONNECTION_TIMER_HANDSHAKE);
}

/*
 * The other guest's worker names a port pair that is still in use here when its
 * guest has forgotten what this one has not; a connection of this guest's own is
 * not given up for it.
 */
static bool make_way(struct device *device, const Vsockd__Accepted *accepted)
{
	struct connection *old =
		connection_find(&device->connections, accepted->cid, accepted->guest_port,
				accepted->port, (uint16_t)accepted->type);

	if (!old)
		return true;
	if (old->state == CONNECTION_CLOSING) {
		host_drain(device, old, false);
		return true;
	}
	if (!old->ends_in_rst)
		return false;
	host_reset(device, old);
	return true;
}

/* The other guest's worker sees its end close: nobody else is to be told. */
static bool watch_sibling(struct device *device, const struct connection *connection)
{
	bool is_watched = host_watch(device, connection);

	if (!is_watched)
		control_report(device, REPORT_SHORTAGE, connection->host_port,
			       connection->guest_port, (uint64_t)errno);
	return is_watched;
}

void host_accepted_sibling(struct device *device, const Vsockd__Accepted *accepted, int fd)
{
	bool has_way = make_way(device, accepted);
	struct connection *connection = take_accepted(device, accepted, fd, CONNECTION_CONNECTING);

	connection->peer_cid = accepted->cid;
	connection->guest_port = accepted->guest_port;
	connection->host_port = accepted->port;
	if (!has_way || !(device->types & 1u << connection->type) ||
	    !watch_sibling(device, connection) || !host_open_window(device, connection)) {
		host_close(device, connection);
		return;
	}
	connection_hash(&device->connections, connection);
	to_guest_send(device, connection, CONNECTION_SEND_REQUEST);
}

void host_abandon(struct device *device, struct connection *connection)
{
	connection_unhash(&device->connections, connection);
	connection->state = CONNECTION_ABANDONED;
	if (connection->tell & CONNECTION_TELL_CONNECT) {
		/* The front has not been asked: nobody will answer. */
		connection->tell = 0;
		connection_free(&device->connections, connection);
		return;
	}
	/* The host's answer comes soon in any case; another guest's may take its time. */
	if (!connection_has_sibling(connection))
		return;
	connection->tell |= CONNECTION_TELL_CANCEL;
	link_append(&device->connections.tell, &connection->tell_link);
}

void host_handshake_failed(struct device *device, struct connection *connection,
			   enum report_handshake_reason reason)
{
	static const enum counter counters[REPORT_HANDSHAKE_REASON_MAX] = {
		[REPORT_HANDSHAKE_MALFORMED] = COUNTER_HANDSHAKE_MALFORMED,
		[REPORT_HANDSHAKE_TIMEOUT] = COUNTER_HANDSHAKE_TIMEOUT,
		[REPORT_HANDSHAKE_ENDED] = COUNTER_HANDSHAKE_ENDED,
		[REPORT_HANDSHAKE_REFUSED] = COUNTER_HOST_REFUSED,
		[REPORT_HANDSHAKE_NO_ANSWER] = COUNTER_HOST_NO_ANSWER,
		[REPORT_HANDSHAKE_DENIED] = COUNTER_HOST_DENIED,
		[REPORT_HANDSHAKE_NO_MEMORY] = COUNTER_HANDSHAKE_LIMITED,
	};

	statistics_count(device, counters[reason], 1);
	control_report(device, REPORT_HANDSHAKE_FAILED, connection->endpoint, reason,
		       connection->guest_port);
	/* A guest that was asked, and did not say no itself, is to forget it; RETRY: it did. */
	if (connection->state == CONNECTION_CONNECTING && reason != REPORT_HANDSHAKE_REFUSED &&
	    connection->timer != CONNECTION_TIMER_RETRY)
		host_reset(device, connection);
	else
		host_close(device, connection);
}

/* A message is the line or it is not: it comes in one piece, and nothing behind it. */
static bool is_whole_line(const struct connection *connection, size_t len, size_t line_len)
{
	return connection->type != PACKET_TYPE_SEQPACKET || len == line_len;
}

void host_read_handshake(struct device *device, struct connection *connection)
{
	uint8_t surplus; /* shows that a message is too long */
	struct iovec room[] = {
		{connection->early + connection->early_len,
		 sizeof(connection->early) - connection->early_len},
		{&surplus, connection->type == PACKET_TYPE_SEQPACKET},
	};
	uint32_t guest_port;
	size_t line_len;
	ssize_t n;

	n = readv(connection->fd, room, 2);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		connection->is_readable = errno == EINTR;
		return;
	}
	if (n < 0 && host_is_shortage(errno)) {
		host_fail(device, connection, errno);
		return;
	}
	if (n <= 0) {
		host_handshake_failed(device, connection, REPORT_HANDSHAKE_ENDED);
		return;
	}
	connection->early_len = (uint8_t)(connection->early_len + n);
	switch (handshake_parse(connection->early, connection->early_len, &guest_port, &line_len)) {
	case 0:
		if (!is_whole_line(connection, connection->early_len, line_len))
			break;
		connection->early_skip = (uint8_t)line_len;
		if (filter_passes(&device->filter, guest_port)) {
			request(device, connection, guest_port);
			return;
		}
		connection->guest_port = guest_port;
		host_handshake_failed(device, connection, REPORT_HANDSHAKE_DENIED);
		return;
	case HANDSHAKE_E_INCOMPLETE:
		if (connection->type == PACKET_TYPE_SEQPACKET)
			break;
		return;
	default:
		break;
	}
	host_handshake_failed(device, connection, REPORT_HANDSHAKE_MALFORMED);
}

/* Nothing was written before: a socket without room for a line is gone. */
static bool send_answer(const struct connection *connection)
{
	char line[HANDSHAKE_ANSWER_MAX];
	struct iovec iov = {line, handshake_answer(connection->host_port, line)};
	ssize_t n;

	do
		n = writev(connection->fd, &iov, 1);
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)iov.iov_len;
}

void host_answer(struct device *device, struct connection *connection)
{
	if (connection_has_sibling(connection)) {
		connection->tell |= CONNECTION_TELL_ANSWERED;
		link_append(&device->connections.tell, &connection->tell_link);
	} else if (!connection->is_quiet && !send_answer(connection)) {
		host_fail(device, connection, errno);
		return;
	}
	connection_disarm(connection);
	connection->state = CONNECTION_ESTABLISHED;
	statistics_connected(device, connection);
	to_guest_notice(device, connection);
}

void host_connected(struct device *device, struct connection *connection,
		    const Vsockd__Connected *connected, int fd)
{
	connection->fd = fd;
	connection->endpoint = connected->endpoint;
	connection->tell &= (uint8_t)~CONNECTION_TELL_CANCEL;
	if (connection->state == CONNECTION_ABANDONED) {
		host_close(device, connection);
		return;
	}
	if (!host_watch(device, connection)) {
		host_fail(device, connection, errno);
		return;
	}
	if (connected->is_pending) {
		connection->state = CONNECTION_OPENING;
		device_arm(device, connection, CONNECTION_TIMER_CONNECT);
		return;
	}
	connection->state = CONNECTION_ESTABLISHED;
	connection->is_writable = true;
	statistics_connected(device, connection);
	to_guest_send(device, connection, CONNECTION_SEND_RESPONSE);
}

void host_connect_failed(struct device *device, struct connection *connection, bool is_late)
{
	statistics_count(device, COUNTER_GUEST_REFUSED, 1);
	control_report(device, REPORT_CONNECT_FAILED, connection->host_port, is_late, 0);
	host_reset(device, connection);
}

void host_refused(struct device *device, struct connection *connection)
{
	connection->tell &= (uint8_t)~CONNECTION_TELL_CANCEL;
	statistics_count(device, COUNTER_GUEST_REFUSED, 1);
	if (connection->state == CONNECTION_ABANDONED)
		host_close(device, connection);
	else
		host_reset(device, connection);
}
