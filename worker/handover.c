/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/handover.h"

#include <string.h>

#include "worker/device.h"

/* A member of struct connection: as many bytes, not above max. Bytes beyond 8 are only bytes. */
struct field {
	size_t offset;
	size_t size;
	uint32_t max;
};

#define FIELD(member, max)                                                                         \
	{                                                                                          \
		offsetof(struct connection, member), sizeof(((struct connection *)0)->member), max \
	}

#define DUE_MAX                                                                                    \
	(CONNECTION_SEND_RST | CONNECTION_SEND_REQUEST | CONNECTION_SEND_RESPONSE |                \
	 CONNECTION_SEND_CREDIT_UPDATE | CONNECTION_SEND_CREDIT_REQUEST)
#define TELL_MAX                                                                                   \
	(CONNECTION_TELL_CONNECT | CONNECTION_TELL_CANCEL | CONNECTION_TELL_OPENED |               \
	 CONNECTION_TELL_ANSWERED | CONNECTION_TELL_CLOSED)
#define TELL_OPEN (CONNECTION_TELL_OPENED | CONNECTION_TELL_ANSWERED)

static const struct field fields[] = {
	FIELD(state, CONNECTION_DEAD),
	FIELD(due, DUE_MAX),
	FIELD(tell, TELL_MAX),
	FIELD(timer, CONNECTION_TIMERS),
	FIELD(guest_shutdown, PACKET_SHUTDOWN_BOTH),
	FIELD(our_shutdown, PACKET_SHUTDOWN_BOTH),
	FIELD(read_ahead, UINT8_MAX),
	FIELD(is_from_host, 1),
	FIELD(is_quiet, 1),
	FIELD(n_retries, UINT16_MAX),
	FIELD(has_ended, 1),
	FIELD(is_deaf, 1),
	FIELD(has_shut_write, 1),
	FIELD(is_reset, 1),
	FIELD(ends_in_rst, 1),
	FIELD(has_asked_credit, 1),
	FIELD(n_unanswered, UINT8_MAX),
	FIELD(n_asked, UINT8_MAX),
	FIELD(tells_empty, 1),
	FIELD(type, PACKET_TYPE_SEQPACKET),
	FIELD(guest_port, UINT32_MAX),
	FIELD(host_port, UINT32_MAX),
	FIELD(peer_cid, PACKET_GUEST_CID_MAX),
	FIELD(early_len, HANDSHAKE_LINE_MAX),
	FIELD(early_skip, HANDSHAKE_LINE_MAX),
	FIELD(early, UINT32_MAX),
	FIELD(credit.tx_cnt, UINT32_MAX),
	FIELD(credit.peer_fwd_cnt, UINT32_MAX),
	FIELD(credit.peer_buf_alloc, UINT32_MAX),
	FIELD(credit.rx_cnt, UINT32_MAX),
	FIELD(credit.fwd_cnt, UINT32_MAX),
	FIELD(credit.announced, UINT32_MAX),
	FIELD(credit.buf_alloc, UINT32_MAX),
	FIELD(buffer_max, UINT32_MAX),
	FIELD(credit.n_groups, CREDIT_GROUPS),
	FIELD(credit.n_packets, UINT32_MAX),
	FIELD(credit.n_empty, UINT32_MAX),
	FIELD(history, 0),
	FIELD(buffer.skip, BUFFER_CHUNK_LEN - 1),
	FIELD(buffer.len, UINT32_MAX),
	FIELD(has_open, 1),
	FIELD(ends_record, 1),
	FIELD(n_empty, UINT8_MAX),
	FIELD(n_maybe, UINT8_MAX),
	FIELD(n_kept, UINT32_MAX),
	FIELD(open_len, UINT32_MAX),
	FIELD(rest.skip, BUFFER_CHUNK_LEN - 1),
	FIELD(rest.len, BUFFER_MESSAGE_MAX),
};
#define N_FIELDS (sizeof(fields) / sizeof(fields[0]))

/* Behind the table: what is left of the timer, then the groups. */
#define GROUP_LEN sizeof(struct credit_group)
_Static_assert(sizeof(struct connection) < HANDOVER_RECORD_MAX, "a record has room for all of it");

/* Two entries for each connection, as in their table; and each chunk that there may be. */
uint64_t handover_tape_len(uint32_t n_connections, uint32_t buffer_size)
{
	uint64_t n_chunks = (buffer_pool_len(n_connections, buffer_size) + BUFFER_MESSAGE_MAX) /
			    BUFFER_CHUNK_LEN;
	uint64_t len = 2 * (uint64_t)n_connections * (sizeof(uint32_t) + HANDOVER_RECORD_MAX) +
		       n_chunks * sizeof(uint32_t);

	return (len + BUFFER_CHUNK_LEN - 1) / BUFFER_CHUNK_LEN * BUFFER_CHUNK_LEN;
}

#define NO_TIMER  (1u << CONNECTION_TIMERS)
#define TIMER(of) (1u << CONNECTION_TIMER_##of)

/* What is true of a connection between two packets, by its state. */
static const struct rule {
	bool has_socket, is_hashed, has_credit;
	uint8_t due, tell; /* what may be due */
	uint32_t timers;   /* one of them */
} rules[] = {
	[CONNECTION_HANDSHAKE] = {true, false, false, 0, 0, TIMER(HANDSHAKE)},
	[CONNECTION_CONNECTING] = {true, true, true, CONNECTION_SEND_REQUEST,
				   CONNECTION_TELL_OPENED,
				   TIMER(CONNECT) | TIMER(RETRY) | NO_TIMER},
	[CONNECTION_REQUESTED] = {false, true, true, 0, CONNECTION_TELL_CONNECT, NO_TIMER},
	[CONNECTION_OPENING] = {true, true, true, 0, 0, TIMER(CONNECT)},
	[CONNECTION_ABANDONED] = {false, false, false, 0, CONNECTION_TELL_CANCEL, NO_TIMER},
	[CONNECTION_ESTABLISHED] = {true, true, true,
				    CONNECTION_SEND_RESPONSE | CONNECTION_SEND_CREDIT_UPDATE |
					    CONNECTION_SEND_CREDIT_REQUEST,
				    TELL_OPEN, TIMER(CREDIT) | TIMER(MESSAGE) | NO_TIMER},
	[CONNECTION_CLOSING] = {true, true, true, CONNECTION_SEND_CREDIT_UPDATE, TELL_OPEN,
				TIMER(CLOSING)},
	[CONNECTION_DRAINING] = {true, false, true, CONNECTION_SEND_RST, TELL_OPEN,
				 TIMER(DRAINING)},
	[CONNECTION_DEAD] = {false, false, false, CONNECTION_SEND_RST,
			     TELL_OPEN | CONNECTION_TELL_CLOSED, NO_TIMER},
};

bool handover_has_socket(const struct connection *connection)
{
	return rules[connection->state].has_socket;
}

bool handover_has_endpoint(const struct connection *connection)
{
	return handover_has_socket(connection) || (connection->tell & CONNECTION_TELL_CLOSED);
}

bool handover_awaits_answer(const struct connection *connection)
{
	return (connection->state == CONNECTION_REQUESTED ||
		connection->state == CONNECTION_ABANDONED) &&
	       !(connection->tell & CONNECTION_TELL_CONNECT);
}

uint32_t handover_n_chunks(const struct connection *connection)
{
	return buffer_n_chunks(&connection->buffer) + buffer_n_chunks(&connection->rest);
}

bool handover_is_hashed(const struct connection *connection)
{
	return rules[connection->state].is_hashed;
}

/* The clock of a timer. */
static uint64_t now_of(const struct device *device, uint8_t timer)
{
	return timer == CONNECTION_TIMER_DRAINING ? device->now : device->guest_now;
}

static uint32_t time_left(const struct device *device, const struct connection *connection)
{
	uint64_t now = now_of(device, connection->timer);

	if (connection->timer == CONNECTION_TIMERS || connection->deadline <= now)
		return 0;
	return (uint32_t)(connection->deadline - now); /* at most the timer's length */
}

/* Of a field: a call for each of them would be most of the work. */
static void copy(uint8_t *to, const uint8_t *from, size_t size)
{
	switch (size) {
	case 1:
		*to = *from;
		return;
	case 4:
		memcpy(to, from, 4);
		return;
	default:
		memcpy(to, from, size);
	}
}

size_t handover_put_record(const struct device *device, const struct connection *connection,
			   uint8_t ret_bytes[static HANDOVER_RECORD_MAX])
{
	const struct credit *credit = &connection->credit;
	uint32_t left = time_left(device, connection);
	size_t len = 0;

	for (size_t i = 0; i < N_FIELDS; i++) {
		copy(ret_bytes + len, (const uint8_t *)connection + fields[i].offset,
		     fields[i].size);
		len += fields[i].size;
	}
	memcpy(ret_bytes + len, &left, sizeof(left));
	len += sizeof(left);
	for (uint32_t i = 0; i < credit->n_groups; i++) {
		uint32_t at = (credit->first_group + i) % CREDIT_GROUPS;

		memcpy(ret_bytes + len, &credit->groups[at], GROUP_LEN);
		len += GROUP_LEN;
	}
	return len;
}

/* Little-endian, as guest_memory.h has it checked. */
static uint64_t load(const uint8_t *bytes, size_t size)
{
	uint64_t value = 0;

	copy((uint8_t *)&value, bytes, size);
	return value;
}

static bool get_fields(struct connection *connection, const uint8_t *bytes, size_t len,
		       size_t *ret_used)
{
	size_t used = 0;

	for (size_t i = 0; i < N_FIELDS; i++) {
		const struct field *field = &fields[i];

		if (len - used < field->size || (field->size <= sizeof(uint64_t) &&
						 load(bytes + used, field->size) > field->max))
			return false;
		copy((uint8_t *)connection + field->offset, bytes + used, field->size);
		used += field->size;
	}
	*ret_used = used;
	return true;
}

/* A deadline as late as it was, and no timer that runs longer than such timers do. */
static bool set_deadline(const struct device *device, struct connection *connection, uint32_t left)
{
	if (connection->timer == CONNECTION_TIMERS)
		return true;
	if (left > connection_timer_ms((enum connection_timer)connection->timer))
		return false;
	connection->deadline = now_of(device, connection->timer) + left;
	return true;
}

static bool is_sound(const struct device *device, const struct connection *connection)
{
	const struct rule *rule = &rules[connection->state];

	if (connection->state == CONNECTION_FREE || (connection->due & ~rule->due) ||
	    (connection->tell & ~rule->tell) || !(rule->timers & 1u << connection->timer))
		return false;
	/* No rx buffer would ever be fetched for it, however many there are. */
	if (connection->read_ahead == 0)
		return false;
	/* Nothing would ever free it. */
	if (connection->state == CONNECTION_DEAD && !connection->due && !connection->tell)
		return false;
	if (connection->peer_cid < PACKET_HOST_CID || connection->peer_cid == device->guest_cid)
		return false;
	if (connection->early_skip > connection->early_len ||
	    (connection->state == CONNECTION_HANDSHAKE && connection->early_skip > 0))
		return false;
	if (!(rule->has_socket && rule->has_credit) && connection->buffer.len > 0)
		return false;
	if (!seqpacket_is_sound(connection))
		return false;
	/* The pool has room for no more, and the guest was told no more. */
	if (connection->buffer_max > device->buffer_size)
		return false;
	return !rule->has_credit ||
	       credit_is_sound(&connection->credit,
			       host_window(device, connection->type, connection->buffer_max),
			       connection->buffer.len - seqpacket_heads(connection));
}

bool handover_get_record(const struct device *device, struct connection *connection,
			 const uint8_t *bytes, size_t len)
{
	struct credit *credit = &connection->credit;
	size_t used;

	if (!get_fields(connection, bytes, len, &used) ||
	    len - used < sizeof(uint32_t) + credit->n_groups * GROUP_LEN)
		return false;
	if (!set_deadline(device, connection, (uint32_t)load(bytes + used, sizeof(uint32_t))))
		return false;
	credit->first_group = 0;
	memcpy(credit->groups, bytes + used + sizeof(uint32_t), credit->n_groups * GROUP_LEN);
	return is_sound(device, connection);
}
