/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/frontend/guest_internal.h"

void guest_messages_note(struct guest_connection *connection, const struct packet *packet)
{
	struct guest *guest = connection->guest;

	if (connection->type != PACKET_SEQPACKET) {
		if (packet->flags != 0)
			guest_violate(guest, "RW of a stream with flags %u", packet->flags);
		return;
	}
	if (packet->flags & ~(uint32_t)(PACKET_EOM | PACKET_EOR))
		guest_violate(guest, "RW of a message with flags %u", packet->flags);
	if (packet->len == 0 && !(packet->flags & PACKET_EOM))
		guest_violate(guest, "RW without bytes that ends no message");
	connection->open_len += packet->len;
	if (!(packet->flags & PACKET_EOM))
		return;
	if (connection->n_messages == connection->messages_size) {
		size_t size = 2 * connection->messages_size + 64;
		uint32_t *lens = realloc(connection->message_lens, size * sizeof(*lens));

		if (!lens) {
			guest_violate(guest, "no memory for a message");
			return;
		}
		connection->message_lens = lens;
		connection->messages_size = size;
	}
	connection->message_lens[connection->n_messages++] =
		connection->open_len | (packet->flags & PACKET_EOR ? GUEST_RECORD : 0);
	connection->open_len = 0;
}

/* The next part of a message, as much as credit and a packet take. */
static ssize_t put_part(struct guest_connection *connection, const uint8_t *bytes, size_t len,
			uint32_t flags)
{
	struct packet packet = guest_packet(connection, PACKET_RW);
	uint32_t room = guest_credit(connection);
	int error;

	packet.len = (uint32_t)(len < connection->packet_size ? len : connection->packet_size);
	if (packet.len > room)
		packet.len = room;
	if (packet.len == 0 && len > 0)
		return -EAGAIN;
	if (packet.len == len)
		packet.flags = PACKET_EOM | flags;
	error = guest_packets_put(connection->guest, &packet, bytes, packet.len,
				  &connection->layout);
	if (error < 0)
		return error;
	guest_note_announced(connection);
	connection->tx_cnt += packet.len;
	connection->n_sent += packet.len;
	return packet.len;
}

int guest_send_message(struct guest_connection *connection, const void *bytes, size_t len,
		       uint32_t flags, int timeout)
{
	struct guest *guest = connection->guest;
	int64_t deadline = deadline_in(timeout);
	size_t n_sent = 0;

	if (len > connection->peer_buf_alloc)
		return -EMSGSIZE;
	for (;;) {
		int left = deadline_left(deadline);
		int error = guest_check_sendable(connection);
		ssize_t n = -EAGAIN;

		if (error < 0)
			return error;
		if (guest->n_pending == 0)
			n = put_part(connection, (const uint8_t *)bytes + n_sent, len - n_sent,
				     flags);
		if (n >= 0) {
			n_sent += (size_t)n;
			if (n_sent < len)
				continue;
			ring_submit(&guest->rings[GUEST_TX]);
			return 0;
		}
		ring_submit(&guest->rings[GUEST_TX]);
		if (n != -EAGAIN)
			return (int)n;
		if (left == 0)
			return -ETIMEDOUT;
		error = guest_poll(guest, left);
		if (error < 0)
			return error;
	}
}

ssize_t guest_receive_message(struct guest_connection *connection, void *bytes, size_t size)
{
	uint32_t len;

	if (connection->n_messages == 0) {
		if (connection->error)
			return -connection->error;
		if (connection->state == GUEST_CLOSED ||
		    ((connection->shutdown & PACKET_SHUTDOWN_RECEIVE) |
		     (connection->peer_shutdown & PACKET_SHUTDOWN_SEND)))
			return -ENODATA;
		return -EAGAIN;
	}
	len = connection->message_lens[0] & ~GUEST_RECORD;
	connection->has_ended_record = connection->message_lens[0] & GUEST_RECORD;
	connection->n_messages--;
	memmove(connection->message_lens, connection->message_lens + 1,
		connection->n_messages * sizeof(*connection->message_lens));
	if (len > 0)
		memcpy(bytes, connection->buffer + connection->read_at, len < size ? len : size);
	connection->read_at += len;
	connection->n_buffered -= len;
	if (connection->n_buffered == 0)
		connection->read_at = 0;
	connection->fwd_cnt += len;
	/* Linux tells of each. */
	if (connection->state == GUEST_ESTABLISHED)
		guest_say(connection, PACKET_CREDIT_UPDATE, 0);
	return (ssize_t)len;
}

ssize_t guest_receive_message_wait(struct guest_connection *connection, void *bytes, size_t size,
				   int timeout)
{
	int64_t deadline = deadline_in(timeout);

	for (;;) {
		ssize_t n = guest_receive_message(connection, bytes, size);
		int left = deadline_left(deadline);

		if (n != -EAGAIN)
			return n;
		if (left == 0)
			return -ETIMEDOUT;
		n = guest_poll(connection->guest, left);
		if (n < 0)
			return n;
	}
}
