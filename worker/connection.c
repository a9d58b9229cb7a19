/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/connection.h"

#include <stdlib.h>

#include "worker/packet.h"

#define FIRST_PORT (UINT32_C(1) << 30)
#define LAST_PORT  ((UINT32_C(1) << 31) - 1)

static const uint32_t timer_ms[CONNECTION_TIMERS] = {
	[CONNECTION_TIMER_HANDSHAKE] = CONNECTION_HANDSHAKE_MS,
	[CONNECTION_TIMER_CONNECT] = CONNECTION_CONNECT_MS,
	[CONNECTION_TIMER_RETRY] = CONNECTION_RETRY_MS,
	[CONNECTION_TIMER_CREDIT] = CONNECTION_CREDIT_MS,
	[CONNECTION_TIMER_MESSAGE] = CONNECTION_MESSAGE_MS,
	[CONNECTION_TIMER_CLOSING] = CONNECTION_CLOSING_MS,
	[CONNECTION_TIMER_DRAINING] = CONNECTION_DRAINING_MS,
};

void link_init(struct link *link)
{
	link->next = link;
	link->previous = link;
}

bool link_is_empty(const struct link *link)
{
	return link->next == link;
}

void link_append(struct link *list, struct link *link)
{
	if (!link_is_empty(link))
		return;
	link->previous = list->previous;
	link->next = list;
	list->previous->next = link;
	list->previous = link;
}

void link_prepend(struct link *list, struct link *link)
{
	link_append(list->next, link);
}

void link_remove(struct link *link)
{
	link->previous->next = link->next;
	link->next->previous = link->previous;
	link_init(link);
}

bool connections_init(struct connections *connections, uint32_t n_allowed_max)
{
	uint32_t n_max = 2 * n_allowed_max;
	uint32_t n_buckets = 16;

	while (n_buckets < n_max)
		n_buckets *= 2;
	*connections = (struct connections){
		.all = calloc(n_max, sizeof(struct connection)),
		.n_max = n_max,
		.buckets = calloc(n_buckets, sizeof(struct connection *)),
		.n_buckets = n_buckets,
	};
	if (!connections->all || !connections->buckets)
		return false;
	link_init(&connections->free);
	link_init(&connections->ready);
	link_init(&connections->held);
	link_init(&connections->flush);
	link_init(&connections->tell);
	for (size_t i = 0; i < CONNECTION_TIMERS; i++)
		link_init(&connections->timers[i]);
	return true;
}

void connections_assign(struct connections *connections, uint32_t n_allowed, uint32_t first_port)
{
	connections->n_allowed = n_allowed;
	connections->next_port = FIRST_PORT | (first_port & (FIRST_PORT - 1));
}

/* Entries in the order of the table: what was never used costs no page. */
static struct connection *take_entry(struct connections *connections)
{
	struct link *link = connections->free.next;

	if (link != &connections->free) {
		link_remove(link);
		return CONNECTION_OF(timer_link, link);
	}
	return &connections->all[connections->n_touched++];
}

static void init_entry(struct connections *connections, struct connection *connection,
		       enum connection_state state)
{
	connections->n_used++;
	*connection = (struct connection){
		.state = (uint8_t)state,
		.timer = CONNECTION_TIMERS,
		.read_ahead = 1,
		.fd = -1,
		.peer_cid = PACKET_HOST_CID,
		.generation = connection->generation + 1,
	};
	link_init(&connection->ready_link);
	link_init(&connection->flush_link);
	link_init(&connection->tell_link);
	link_init(&connection->timer_link);
}

struct connection *connection_take(struct connections *connections, enum connection_state state,
				   uint32_t n_max)
{
	struct connection *connection;

	if (connections->n_used >= n_max)
		return NULL;
	connection = take_entry(connections);
	init_entry(connections, connection, state);
	return connection;
}

struct connection *connection_take_at(struct connections *connections, uint32_t index,
				      enum connection_state state)
{
	struct connection *connection;

	if (index < connections->n_touched || index >= connections->n_max)
		return NULL;
	while (connections->n_touched < index) {
		connection = &connections->all[connections->n_touched++];
		init_entry(connections, connection, CONNECTION_FREE);
		connections->n_used--;
		link_append(&connections->free, &connection->timer_link);
	}
	connection = &connections->all[connections->n_touched++];
	init_entry(connections, connection, state);
	return connection;
}

uint32_t connection_reserve(struct connections *connections, struct connection *connection,
			    uint32_t len)
{
	uint32_t offered = budget_offer(&connections->budget, len);

	if (offered == 0)
		return 0;
	connection->buffer_max = offered;
	connections->budget.reserved += budget_cost(offered);
	return offered;
}

void connection_free(struct connections *connections, struct connection *connection)
{
	connections->budget.reserved -= budget_cost(connection->buffer_max);
	connection_unhash(connections, connection);
	connection_disarm(connection);
	link_remove(&connection->ready_link);
	link_remove(&connection->flush_link);
	link_remove(&connection->tell_link);
	connection->state = CONNECTION_FREE;
	connections->n_used--;
	link_append(&connections->free, &connection->timer_link);
}

uint32_t connection_index(const struct connections *connections,
			  const struct connection *connection)
{
	return (uint32_t)(connection - connections->all);
}

/* A guest may choose its ports to collide; it slows nobody down but itself. */
static struct connection **bucket(const struct connections *connections, uint32_t peer_cid,
				  uint32_t guest_port, uint32_t host_port)
{
	uint64_t key = (((uint64_t)guest_port << 32 | host_port) ^ peer_cid) *
		       UINT64_C(0x9e3779b97f4a7c15);

	return &connections->buckets[(key >> 32) & (connections->n_buckets - 1)];
}

struct connection *connection_find(const struct connections *connections, uint32_t peer_cid,
				   uint32_t guest_port, uint32_t host_port, uint16_t type)
{
	struct connection *connection = *bucket(connections, peer_cid, guest_port, host_port);

	while (connection &&
	       (connection->guest_port != guest_port || connection->host_port != host_port ||
		connection->peer_cid != peer_cid || connection->type != type))
		connection = connection->next_in_bucket;
	return connection;
}

void connection_hash(struct connections *connections, struct connection *connection)
{
	struct connection **place = bucket(connections, connection->peer_cid,
					   connection->guest_port, connection->host_port);

	connection->next_in_bucket = *place;
	*place = connection;
	connection->is_hashed = true;
}

void connection_unhash(struct connections *connections, struct connection *connection)
{
	struct connection **place = bucket(connections, connection->peer_cid,
					   connection->guest_port, connection->host_port);

	if (!connection->is_hashed)
		return;
	while (*place != connection)
		place = &(*place)->next_in_bucket;
	*place = connection->next_in_bucket;
	connection->is_hashed = false;
}

bool connection_has_sibling(const struct connection *connection)
{
	return connection->peer_cid != PACKET_HOST_CID;
}

bool connection_has_unsent(const struct connection *connection)
{
	return connection->type == PACKET_TYPE_SEQPACKET ? connection->n_kept > connection->has_open
							 : connection->buffer.len > 0;
}

/* A guest's kernel may tell its sockets apart by their ports alone: Linux does. */
static bool is_port_in_use(const struct connections *connections, uint32_t guest_port,
			   uint32_t host_port)
{
	return connection_find(connections, PACKET_HOST_CID, guest_port, host_port,
			       PACKET_TYPE_STREAM) ||
	       connection_find(connections, PACKET_HOST_CID, guest_port, host_port,
			       PACKET_TYPE_SEQPACKET);
}

uint32_t connection_next_port(struct connections *connections, uint32_t guest_port)
{
	uint32_t port;

	do {
		port = connections->next_port;
		connections->next_port = port == LAST_PORT ? FIRST_PORT : port + 1;
	} while (is_port_in_use(connections, guest_port, port));
	return port;
}

void connection_arm(struct connections *connections, struct connection *connection,
		    enum connection_timer timer, uint64_t now)
{
	connection_disarm(connection);
	connection->timer = (uint8_t)timer;
	connection->deadline = now + timer_ms[timer];
	link_append(&connections->timers[timer], &connection->timer_link);
}

void connection_disarm(struct connection *connection)
{
	if (connection->timer == CONNECTION_TIMERS)
		return;
	link_remove(&connection->timer_link);
	connection->timer = CONNECTION_TIMERS;
}

uint32_t connection_timer_ms(enum connection_timer timer)
{
	return timer_ms[timer];
}

bool connection_rearm(struct connections *connections, struct connection *connection,
		      enum connection_timer timer)
{
	const struct link *list = &connections->timers[timer];

	if (connection->timer != timer || !link_is_empty(&connection->timer_link))
		return false;
	if (!link_is_empty(list) &&
	    CONNECTION_OF(timer_link, list->previous)->deadline > connection->deadline)
		return false;
	link_append(&connections->timers[timer], &connection->timer_link);
	return true;
}

static struct connection *first_of(const struct connections *connections, size_t timer)
{
	const struct link *list = &connections->timers[timer];

	return link_is_empty(list) ? NULL : CONNECTION_OF(timer_link, list->next);
}

uint64_t connections_deadline(const struct connections *connections, uint32_t timers)
{
	uint64_t deadline = UINT64_MAX;

	for (size_t i = 0; i < CONNECTION_TIMERS; i++) {
		const struct connection *first =
			timers & (1u << i) ? first_of(connections, i) : NULL;

		if (first && first->deadline < deadline)
			deadline = first->deadline;
	}
	return deadline;
}

struct connection *connections_expired(struct connections *connections, uint32_t timers,
				       uint64_t now, enum connection_timer *ret_timer)
{
	for (size_t i = 0; i < CONNECTION_TIMERS; i++) {
		struct connection *first = timers & (1u << i) ? first_of(connections, i) : NULL;

		if (!first || first->deadline > now)
			continue;
		*ret_timer = (enum connection_timer)i;
		connection_disarm(first);
		return first;
	}
	return NULL;
}
