/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/device.h"
#include "worker/handover.h"

/*
 * Words and items are copied as bytes, in the order of their numbers: what a
 * compiler makes of the generated structs is checked here.
 */
#define ARE_IN_A_ROW(type, first, last, n, size)                                                   \
	_Static_assert(offsetof(type, last) == offsetof(type, first) + ((n)-1) * (size), "")
ARE_IN_A_ROW(Vsockd__HandoverMore, word_0, word_23, HANDOVER_WORDS, 8);
ARE_IN_A_ROW(Vsockd__HandoverList, item_0, item_31, HANDOVER_LIST_MAX, 4);

/* ---- sockets ---- */

bool handover_sockets_init(struct handover_sockets *sockets, uint32_t n_max)
{
	*sockets = (struct handover_sockets){.all = calloc(n_max, sizeof(int)), .n_max = n_max};
	return sockets->all != NULL;
}

void handover_sockets_close(struct handover_sockets *sockets)
{
	for (uint32_t i = 0; i < sockets->n_touched; i++) {
		if (sockets->all[i] != 0)
			close(sockets->all[i] - 1);
		sockets->all[i] = 0;
	}
}

/* One of an endpoint that had another life meanwhile takes the place of the former. */
static bool give_socket(struct handover_sockets *sockets, uint32_t endpoint, int fd)
{
	if (endpoint >= sockets->n_max) {
		close(fd);
		return false;
	}
	if (sockets->all[endpoint] != 0)
		close(sockets->all[endpoint] - 1);
	sockets->all[endpoint] = fd + 1;
	if (endpoint >= sockets->n_touched)
		sockets->n_touched = endpoint + 1;
	return true;
}

/* -1: there is none, or it was taken before. */
static int take_socket(struct handover_sockets *sockets, uint32_t endpoint)
{
	int fd;

	if (endpoint >= sockets->n_touched)
		return -1;
	fd = sockets->all[endpoint] - 1;
	sockets->all[endpoint] = 0;
	return fd;
}

/* ---- the device ---- */

static int replace_pool(struct device *device, uint64_t size, int fd)
{
	struct buffer_pool *pool = &device->pool;
	uint64_t own_len = (uint64_t)pool->n_chunks * BUFFER_CHUNK_LEN;
	void *own = pool->start, *start;

	if (size < device_pool_len(device->connections.n_allowed, device->buffer_size))
		return -ENOSPC;
	start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (start == MAP_FAILED)
		return -errno;
	if (!buffer_pool_adopt(pool, start, size)) {
		munmap(start, size);
		return -ENOSPC;
	}
	munmap(own, own_len);
	return 0;
}

int handover_begin_taking(struct device *device, uint64_t size, int fd)
{
	int r = device->connections.n_touched == 0 ? replace_pool(device, size, fd) : -EBUSY;

	close(fd);
	if (r < 0)
		return r;
	device->handover = (struct handover){.phase = HANDOVER_TAKING};
	return 0;
}

static bool take_device(struct device *device, const Vsockd__HandoverDevice *told)
{
	if (device->handover.has_device || told->reset > RESET_SENT ||
	    told->reset_index > UINT16_MAX)
		return false;
	device->handover.has_device = true;
	device->handover.tape.len = told->tape_len;
	device->handover.n_chunks = buffer_n_chunks(&device->handover.tape);
	connections_assign(&device->connections, device->connections.n_allowed, told->next_port);
	device->n_dropped = told->n_dropped;
	device->n_refused = told->n_refused;
	device->is_quarantined = told->is_quarantined;
	device->reset = (enum reset)told->reset;
	device->reset_index = (uint16_t)told->reset_index;
	device->tells_reset_sent = told->tells_reset_sent;
	device->tells_reset_handled = told->tells_reset_handled;
	device->was_announced = told->was_announced;
	device->announced_used = told->announced_used;
	device->capture.n_dropped = told->capture_dropped;
	rate_set_tokens(&device->rate, (int64_t)told->rate_tokens);
	return true;
}

static bool take_ring(struct device *device, const Vsockd__HandoverRing *told)
{
	const struct ring_state state = {
		.base = told->ring_base,
		.was_called = told->was_called,
		.owes_first_call = told->owes_first_call,
	};
	struct ring_addresses addresses;
	struct ring *ring;

	if (told->ring >= RINGS || (device->handover.rings & 1u << told->ring) ||
	    told->broken_reason >= REPORT_RING_REASON_MAX)
		return false;
	ring = &device->rings[told->ring];
	device->handover.rings |= 1u << told->ring;
	/* A ring that lost its place in memory was not started here: it is in name only. */
	if (told->is_started != ring->is_started && !(told->is_started && told->is_broken))
		return false;
	addresses = ring->addresses;
	if (!ring->is_started)
		ring_rest(ring, state.base);
	else if (ring_resume(ring, &device->memory, ring->num, &addresses, &state) != 0)
		return false;
	ring->is_started = told->is_started;
	ring->is_broken = told->is_broken;
	ring->broken_reason = told->broken_reason;
	ring->broken_value = told->broken_value;
	return true;
}

/* Once, since the worker before may still write there. */
static bool read_tape(struct device *device, void *ret_bytes, uint32_t len)
{
	struct buffer *tape = &device->handover.tape;

	if (tape->len < len)
		return false;
	buffer_read(&device->pool, tape, 0, ret_bytes, len);
	buffer_consume(&device->pool, tape, len);
	return true;
}

/* The entry becomes what its record says. */
static bool read_record(struct device *device, struct connection *connection)
{
	uint8_t bytes[HANDOVER_RECORD_MAX];
	uint32_t len;

	return read_tape(device, &len, sizeof(len)) && len <= sizeof(bytes) &&
	       read_tape(device, bytes, len) && handover_get_record(device, connection, bytes, len);
}

static bool read_chunks(struct device *device, struct buffer *buffer)
{
	uint32_t n = buffer_n_chunks(buffer), chunk;

	for (uint32_t i = 0; i < n; i++)
		if (!read_tape(device, &chunk, sizeof(chunk)) ||
		    !buffer_adopt_chunk(&device->pool, buffer, i == 0, chunk))
			return false;
	return true;
}

static bool count_connection(struct device *device, const struct connection *connection)
{
	struct handover *handover = &device->handover;
	struct connections *connections = &device->connections;

	connections->budget.reserved += budget_cost(connection->buffer_max);
	connections->n_handshakes += connection->state == CONNECTION_HANDSHAKE;
	/* An entry for each socket that the front counts: so many others, and no more. */
	handover->n_bare +=
		!handover_has_endpoint(connection) && !handover_awaits_answer(connection);
	/* There is room for one in the pool. */
	if (connection->rest.len > 0 && device->has_rest)
		return false;
	device->has_rest |= connection->rest.len > 0;
	return handover->n_bare <= connections->n_allowed &&
	       connections->n_handshakes <= device->max_handshakes;
}

static bool take_connection(struct device *device, const struct handover_claim *claim)
{
	struct connections *connections = &device->connections;
	struct connection *connection;

	connection = connection_take_at(connections, claim->index, CONNECTION_DEAD);
	if (!connection)
		return false;
	connection->endpoint = claim->endpoint;
	connection->fd = claim->has_socket ? take_socket(&device->sockets, claim->endpoint) : -1;
	if (claim->has_socket != (connection->fd >= 0) || !read_record(device, connection) ||
	    claim->has_socket != handover_has_socket(connection) ||
	    claim->has_endpoint != handover_has_endpoint(connection) ||
	    claim->awaits_answer != handover_awaits_answer(connection) ||
	    !read_chunks(device, &connection->buffer) || !read_chunks(device, &connection->rest))
		return false;
	if (handover_is_hashed(connection)) {
		if (connection_find(connections, connection->peer_cid, connection->guest_port,
				    connection->host_port, connection->type))
			return false;
		connection_hash(connections, connection);
	}
	return count_connection(device, connection) &&
	       (connection->fd < 0 || host_watch(device, connection));
}

static bool take_connections(struct device *device, const Vsockd__HandoverConnections *told)
{
	const struct handover *handover = &device->handover;

	if (!handover->has_device || handover->n_chunks > 0 || handover->has_lists ||
	    told->n > HANDOVER_CLAIMS_MAX)
		return false;
	for (uint32_t i = 0; i < told->n; i++) {
		const struct handover_claim claim = message_claim(told, i);

		if (!take_connection(device, &claim))
			return false;
	}
	return true;
}

/* Sums; the front takes none beyond what it can add up. */
static bool take_counters(struct device *device, const Vsockd__HandoverMore *told)
{
	struct handover *handover = &device->handover;
	uint64_t words[HANDOVER_WORDS];

	if (!handover->has_device || handover->n_counters == COUNTER_MAX)
		return false;
	memcpy(words, &told->word_0, sizeof(words));
	for (size_t i = 0; i < HANDOVER_WORDS; i++) {
		if (words[i] > INT64_MAX)
			return false;
		if (handover->n_counters < COUNTER_MAX)
			device->counters[handover->n_counters++] = words[i];
	}
	return true;
}

static bool take_chunk(struct device *device, uint32_t chunk)
{
	struct handover *handover = &device->handover;
	bool is_first = handover->n_chunks == buffer_n_chunks(&handover->tape);

	if (handover->n_chunks == 0 ||
	    !buffer_adopt_chunk(&device->pool, &handover->tape, is_first, chunk))
		return false;
	handover->n_chunks--;
	return true;
}

static bool append(struct link *list, struct link *link)
{
	if (!link_is_empty(link))
		return false;
	link_append(list, link);
	return true;
}

static bool take_entry(struct device *device, uint32_t list, uint32_t index)
{
	struct connections *connections = &device->connections;
	struct connection *connection;

	if (index >= connections->n_touched)
		return false;
	connection = &connections->all[index];
	if (connection->state == CONNECTION_FREE)
		return false;
	switch (list) {
	case HANDOVER_READY:
		return append(&connections->ready, &connection->ready_link);
	case HANDOVER_TELL:
		return connection->tell && append(&connections->tell, &connection->tell_link);
	default:
		return connection_rearm(connections, connection,
					(enum connection_timer)(list - HANDOVER_TIMERS));
	}
}

static bool take_list(struct device *device, const Vsockd__HandoverList *told)
{
	uint32_t items[HANDOVER_LIST_MAX];

	if (told->list > HANDOVER_TAPE || told->n > HANDOVER_LIST_MAX)
		return false;
	device->handover.has_lists |= told->list != HANDOVER_TAPE;
	memcpy(items, &told->item_0, sizeof(items));
	for (uint32_t i = 0; i < told->n; i++)
		if (!(told->list == HANDOVER_TAPE ? take_chunk(device, items[i])
						  : take_entry(device, told->list, items[i])))
			return false;
	return true;
}

static bool take_orphan(struct device *device, const Vsockd__HandoverOrphan *told)
{
	if (device->n_orphans == ORPHANS_MAX || told->type > UINT16_MAX)
		return false;
	device->orphans[device->n_orphans++] = (struct orphan){
		.src_cid = told->src_cid,
		.src_port = told->src_port,
		.dst_port = told->dst_port,
		.type = (uint16_t)told->type,
	};
	return true;
}

void handover_take(struct device *device, const Vsockd__Envelope *envelope, int fd)
{
	struct handover *handover = &device->handover;
	bool is_good = !handover->is_bad && !handover->is_checked;

	switch (is_good ? envelope->body_case : VSOCKD__ENVELOPE__BODY__NOT_SET) {
	case VSOCKD__ENVELOPE__BODY_HANDOVER_DEVICE:
		is_good = take_device(device, envelope->handover_device);
		break;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_RING:
		is_good = take_ring(device, envelope->handover_ring);
		break;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_SOCKET:
		is_good = give_socket(&device->sockets, envelope->handover_socket->endpoint, fd);
		break;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTIONS:
		is_good = take_connections(device, envelope->handover_connections);
		break;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_MORE:
		is_good = take_counters(device, envelope->handover_more);
		break;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_LIST:
		is_good = take_list(device, envelope->handover_list);
		break;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_ORPHAN:
		is_good = take_orphan(device, envelope->handover_orphan);
		break;
	default:
		is_good = false;
		if (fd >= 0)
			close(fd);
	}
	handover->is_bad |= !is_good;
}

/*
 * An entry that its predecessor left in no list would wait for ever: all are looked
 * at once, and the front is told what it is due. What its socket can do was noted
 * and no more.
 */
static bool settle_connection(struct device *device, struct connection *connection)
{
	uint8_t held = device->is_quarantined ? CONNECTION_TELL_CONNECT : 0;

	if (connection->state == CONNECTION_FREE)
		return true;
	if (connection->timer != CONNECTION_TIMERS && link_is_empty(&connection->timer_link))
		return false;
	link_append(&device->connections.ready, &connection->ready_link);
	/*
	 * That another guest reads no more was perhaps an event of the worker before, which had
	 * stopped: among the first ones here it does not show, so its socket is asked.
	 */
	connection->has_rested = true;
	if (connection_has_sibling(connection) ||
	    (connection->buffer.len > 0 && connection->is_writable))
		link_append(&device->connections.flush, &connection->flush_link);
	if (connection->tell & ~held)
		link_append(&device->connections.tell, &connection->tell_link);
	return true;
}

static bool settle(struct device *device)
{
	/* Counters are taken behind the device. */
	if (device->handover.n_counters != COUNTER_MAX ||
	    device->handover.rings != (1u << RINGS) - 1)
		return false;
	for (uint32_t i = 0; i < device->connections.n_touched; i++)
		if (!settle_connection(device, &device->connections.all[i]))
			return false;
	buffer_pool_settle(&device->pool);
	return true;
}

int handover_check(struct device *device)
{
	struct handover *handover = &device->handover;

	/* Of connections that ended while they were given. */
	handover_sockets_close(&device->sockets);
	if (handover->is_checked || handover->is_bad || handover->n_chunks > 0 ||
	    handover->tape.len > 0 || !settle(device)) {
		handover->is_bad = true;
		return -EBADMSG;
	}
	handover->is_checked = true;
	return 0;
}

bool handover_commit(struct device *device)
{
	if (!device->handover.is_checked || device->handover.is_bad)
		return false;
	device->handover.phase = HANDOVER_NONE;
	/* Pages that were marked before are news to whoever reads the log. */
	device->log.has_news = device->log.is_on && device->log.bits;
	return true;
}
