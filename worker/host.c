/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "policy/policy.h"
#include "worker/device.h"

/*
 * Edge-triggered and set once: a socket that is stalled, or a connection without
 * credit, costs no system call and no wake-up until something changes.
 */
bool host_watch(struct device *device, const struct connection *connection)
{
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
		.data.u64 = device_event(DEVICE_EVENT_CONNECTION,
					 connection_index(&device->connections, connection),
					 connection->generation),
	};

	return epoll_ctl(device->epoll, EPOLL_CTL_ADD, connection->fd, &event) == 0;
}

/*
 * The front learns of the end last: until then it counts the connection, so the
 * table cannot fill up with what it does not count.
 */
void host_free_when_done(struct device *device, struct connection *connection)
{
	if (connection->state != CONNECTION_DEAD || connection->due != 0)
		return;
	if (connection->tell != 0)
		link_append(&device->connections.tell, &connection->tell_link);
	else
		connection_free(&device->connections, connection);
}

/*
 * The front keeps a duplicate of the socket, so closing ours neither takes it
 * out of epoll nor ends the stream: both are done by hand.
 */
void host_release(struct device *device)
{
	for (uint32_t i = 0; i < device->n_released; i++) {
		int fd = device->released[i].fd;

		epoll_ctl(device->epoll, EPOLL_CTL_DEL, fd, NULL);
		if (device->released[i].is_shut)
			shutdown(fd, SHUT_RDWR);
		close(fd);
	}
	device->n_released = 0;
}

/*
 * Three calls, of which one wakes the host program: they wait until the guest has its
 * answer. Another guest's worker would take that end for an orderly one; after a reset
 * the front tells it first.
 */
static void release_socket(struct device *device, struct connection *connection)
{
	if (connection->fd < 0)
		return;
	if (device->n_released == RELEASED_MAX)
		host_release(device);
	device->released[device->n_released++] = (struct released){
		.fd = connection->fd,
		.is_shut = !connection_has_sibling(connection) || !connection->is_reset,
	};
	connection->fd = -1;
	if (connection->buffer.len > 0)
		buffer_consume(&device->pool, &connection->buffer, connection->buffer.len);
	seqpacket_drop(device, connection);
	connection->tell |= CONNECTION_TELL_CLOSED;
}

static void leave_handshake(struct device *device, struct connection *connection)
{
	if (connection->state == CONNECTION_HANDSHAKE)
		device->connections.n_handshakes--;
}

void host_close(struct device *device, struct connection *connection)
{
	leave_handshake(device, connection);
	connection_disarm(connection);
	connection_unhash(&device->connections, connection);
	release_socket(device, connection);
	connection->due &= CONNECTION_SEND_RST;
	connection->state = CONNECTION_DEAD;
	link_remove(&connection->flush_link);
	host_free_when_done(device, connection);
}

void host_reset(struct device *device, struct connection *connection)
{
	connection->is_reset |= connection->state == CONNECTION_ESTABLISHED;
	/* A guest that never saw the REQUEST has nothing to forget. */
	if (connection->due & CONNECTION_SEND_REQUEST)
		connection->due = 0;
	else
		to_guest_send(device, connection, CONNECTION_SEND_RST);
	host_close(device, connection);
}

/*
 * The kernel is short of memory, or of places in epoll sets. Bytes may be missing from
 * here on, so the connection ends, for both sides to see.
 */
static bool is_shortage(int error)
{
	return error == ENOMEM || error == ENOBUFS || error == ENOSPC || error == EAGAIN;
}

void host_fail(struct device *device, struct connection *connection, int error)
{
	if (is_shortage(error))
		control_report(device, REPORT_SHORTAGE, connection->host_port,
			       connection->guest_port, (uint64_t)error);
	/* A guest that has gone, or was never asked, is told nothing. */
	if (connection->state == CONNECTION_DRAINING || connection->state == CONNECTION_HANDSHAKE)
		host_close(device, connection);
	else
		host_reset(device, connection);
}

/* More than the messages that a unix socket holds, unless root has said otherwise. */
#define UNWANTED_READS_MAX 512

/*
 * What was written and not read goes out with it: a unix socket tells a writer that
 * waits for room only when there is some. An empty message ends that early, and is
 * rare enough; a TCP socket goes on to take what comes, so there is a limit.
 */
void host_stop_reading(const struct connection *connection)
{
	uint8_t unwanted[4096];
	struct iovec parts[64];
	int n_reads = 0;

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		parts[i] = (struct iovec){unwanted, sizeof(unwanted)};
	shutdown(connection->fd, SHUT_RD);
	while (n_reads < UNWANTED_READS_MAX &&
	       readv(connection->fd, parts, sizeof(parts) / sizeof(*parts)) > 0)
		n_reads++;
}

void host_drain(struct device *device, struct connection *connection, bool with_rst)
{
	connection->due = 0;
	if (with_rst)
		to_guest_send(device, connection, CONNECTION_SEND_RST);
	if (!connection_has_unsent(connection)) {
		host_close(device, connection);
		return;
	}
	/* Who waits to write would wait for as long as nobody reads. */
	host_stop_reading(connection);
	seqpacket_drop(device, connection);
	connection_unhash(&device->connections, connection);
	connection->state = CONNECTION_DRAINING;
	connection->guest_shutdown = PACKET_SHUTDOWN_BOTH;
	device_arm(device, connection, CONNECTION_TIMER_DRAINING);
}

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
	leave_handshake(device, connection);
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

void host_accepted(struct device *device, const Vsockd__Accepted *accepted, int fd)
{
	struct connection *connection;

	connection = connection_take(&device->connections, CONNECTION_HANDSHAKE,
				     device->connections.n_max);
	if (!connection)
		__builtin_trap(); /* the front counts endpoints; so many were not promised */
	connection->fd = fd;
	connection->endpoint = accepted->endpoint;
	connection->is_from_host = true;
	connection->history.since = device->now;
	connection->is_quiet = device->is_quiet || accepted->is_direct;
	connection->type = (uint16_t)accepted->type;
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
	struct connection *connection = connection_take(&device->connections, CONNECTION_CONNECTING,
							device->connections.n_max);

	if (!connection)
		__builtin_trap(); /* the front counts endpoints; so many were not promised */
	connection->fd = fd;
	connection->endpoint = accepted->endpoint;
	connection->is_from_host = true;
	connection->history.since = device->now;
	connection->type = (uint16_t)accepted->type;
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

void host_peer_reset(struct device *device, const Vsockd__PeerReset *reset)
{
	struct connection *connection =
		connection_find(&device->connections, reset->cid, reset->guest_port, reset->port,
				(uint16_t)reset->type);

	/* It may have ended meanwhile, and another one have its name. */
	if (!connection || connection->endpoint != reset->endpoint)
		return;
	if (connection->state == CONNECTION_CONNECTING) {
		host_reset(device, connection);
		return;
	}
	if (connection->state != CONNECTION_ESTABLISHED)
		return;
	connection->ends_in_rst = true;
	if (connection->has_ended)
		host_reset(device, connection);
	else
		to_guest_notice(device, connection);
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
	if (n < 0 && is_shortage(errno)) {
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

/*
 * The host program reads no more, but what it wrote before may wait to be read:
 * the guest is told that its bytes are not wanted, nothing else ends.
 */
void host_turn_deaf(struct device *device, struct connection *connection)
{
	uint32_t unread = connection->buffer.len;

	if (connection->state == CONNECTION_DRAINING) {
		host_close(device, connection);
		return;
	}
	connection->is_deaf = true;
	if (unread > 0) {
		buffer_consume(&device->pool, &connection->buffer, unread);
		credit_forwarded(&connection->credit, unread - seqpacket_heads(connection));
	}
	connection->n_kept = 0;
	connection->has_open = false;
	to_guest_notice(device, connection);
}

/* Returns how many bytes the socket took; -1 when it never will, which has been seen to. */
static ssize_t write_parts(struct device *device, struct connection *connection,
			   const struct iovec *parts, size_t n_parts)
{
	ssize_t n = writev(connection->fd, parts, n_parts < IOV_MAX ? (int)n_parts : IOV_MAX);

	connection->has_rested = false;
	if (n >= 0)
		return n;
	if (errno == EAGAIN) {
		connection->is_writable = false;
		return 0;
	}
	if (errno == EINTR)
		return 0;
	if (is_shortage(errno))
		host_fail(device, connection, errno);
	else
		host_turn_deaf(device, connection);
	return -1;
}

void host_took(struct device *device, struct connection *connection, size_t len)
{
	credit_forwarded(&connection->credit, (uint32_t)len);
	if (connection->state == CONNECTION_ESTABLISHED && credit_wants_update(&connection->credit))
		to_guest_send(device, connection, CONNECTION_SEND_CREDIT_UPDATE);
}

void host_shut_write_when_empty(struct device *device, struct connection *connection)
{
	(void)device;
	if (!(connection->guest_shutdown & PACKET_SHUTDOWN_SEND) ||
	    connection_has_unsent(connection) || connection->has_shut_write || connection->fd < 0)
		return;
	connection->has_shut_write = true;
	shutdown(connection->fd, SHUT_WR);
}

/*
 * Only between guests: a host program that takes what it was sent causes the same event,
 * and its bytes are to cost no call more than they do. It shows at the next write.
 */
static bool may_be_deaf(const struct connection *connection)
{
	return connection->has_rested && connection->state == CONNECTION_ESTABLISHED &&
	       connection->type == PACKET_TYPE_STREAM && connection_has_sibling(connection) &&
	       connection->buffer.len == 0;
}

bool host_may_be_deaf(struct connection *connection, uint32_t events)
{
	bool may_be = events == EPOLLOUT && may_be_deaf(connection);

	connection->has_rested = true;
	return may_be;
}

/* A stream takes nothing without a trace, but not when its other end reads no more. */
void host_check_reader(struct device *device, struct connection *connection)
{
	if (connection->is_deaf || connection->has_shut_write || connection->has_hung_up)
		return;
	if (sendmsg(connection->fd, policy_empty_message, MSG_NOSIGNAL) < 0 && errno == EPIPE)
		host_turn_deaf(device, connection);
}

static void flush_stream(struct device *device, struct connection *connection)
{
	struct iovec parts[64];

	while (connection->fd >= 0 && connection->is_writable && connection->buffer.len > 0) {
		size_t n_parts = buffer_peek(&device->pool, &connection->buffer, parts, 64);
		ssize_t n = write_parts(device, connection, parts, n_parts);

		if (n < 0)
			return;
		buffer_consume(&device->pool, &connection->buffer, (uint32_t)n);
		host_took(device, connection, (size_t)n);
	}
	if (may_be_deaf(connection))
		host_check_reader(device, connection);
}

void host_flush(struct device *device, struct connection *connection)
{
	if (connection->type == PACKET_TYPE_SEQPACKET)
		seqpacket_flush(device, connection);
	else
		flush_stream(device, connection);
	if (connection_has_unsent(connection) || connection->fd < 0)
		return;
	if (connection->state == CONNECTION_DRAINING)
		host_close(device, connection);
	else
		host_shut_write_when_empty(device, connection);
}

/* Drop the first len bytes of an array of parts; returns the first that is left. */
static size_t skip_parts(struct iovec *parts, size_t n_parts, size_t len)
{
	size_t i = 0;

	while (i < n_parts && len >= parts[i].iov_len)
		len -= parts[i++].iov_len;
	if (i < n_parts) {
		parts[i].iov_base = (uint8_t *)parts[i].iov_base + len;
		parts[i].iov_len -= len;
	}
	return i;
}

void host_write(struct device *device, struct connection *connection, struct iovec *parts,
		size_t n_parts, size_t len)
{
	size_t first = 0, written = 0;

	if (connection->is_deaf) {
		host_took(device, connection, len);
		return;
	}
	/* Bytes that wait go first. */
	while (connection->buffer.len == 0 && connection->is_writable && written < len) {
		ssize_t n = write_parts(device, connection, parts + first, n_parts - first);

		if (n < 0 && !connection->is_deaf)
			return; /* it has ended */
		if (n < 0) {
			host_took(device, connection, len - written);
			return;
		}
		first += skip_parts(parts + first, n_parts - first, (size_t)n);
		written += (size_t)n;
		host_took(device, connection, (size_t)n);
	}
	/* The pool holds buf_alloc of each connection, and no more was accepted. */
	if (written < len &&
	    !buffer_append(&device->pool, &connection->buffer, parts + first, n_parts - first))
		__builtin_trap();
	if (connection->buffer.len > 0 && connection->is_writable)
		link_append(&device->connections.flush, &connection->flush_link);
}
