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

void host_leave_handshake(struct device *device, struct connection *connection)
{
	if (connection->state == CONNECTION_HANDSHAKE)
		device->connections.n_handshakes--;
}

void host_close(struct device *device, struct connection *connection)
{
	host_leave_handshake(device, connection);
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

bool host_is_shortage(int error)
{
	return error == ENOMEM || error == ENOBUFS || error == ENOSPC || error == EAGAIN;
}

void host_fail(struct device *device, struct connection *connection, int error)
{
	if (host_is_shortage(error))
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
	if (host_is_shortage(errno))
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
