/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
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
ARE_IN_A_ROW(Vsockd__HandoverConnection, word_0, word_23, HANDOVER_PIECE / 8, 8);
ARE_IN_A_ROW(Vsockd__HandoverMore, word_0, word_23, HANDOVER_PIECE / 8, 8);
ARE_IN_A_ROW(Vsockd__HandoverList, item_0, item_31, HANDOVER_LIST_MAX, 4);

static int replace_pool(struct device *device, uint64_t size, int fd)
{
	struct buffer_pool *pool = &device->pool;
	uint64_t own_len = (uint64_t)pool->n_chunks * BUFFER_CHUNK_LEN;
	void *own = pool->start, *start;

	if (size < buffer_pool_len(device->connections.n_allowed, device->buffer_size) +
			   BUFFER_MESSAGE_MAX)
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

/* Its record is whole: the entry becomes what it says. */
static bool read_record(struct device *device)
{
	struct handover *handover = &device->handover;
	struct connections *connections = &device->connections;
	struct connection *connection = handover->connection;

	if (!handover->has_record)
		return true;
	handover->has_record = false;
	if (!handover_get_record(device, connection, handover->bytes, handover->len) ||
	    handover->has_socket != handover_has_socket(connection) ||
	    handover->has_endpoint != handover_has_endpoint(connection) ||
	    handover->awaits_answer != handover_awaits_answer(connection))
		return false;
	if (handover_is_hashed(connection)) {
		if (connection_find(connections, connection->peer_cid, connection->guest_port,
				    connection->host_port, connection->type))
			return false;
		connection_hash(connections, connection);
	}
	connections->budget.reserved += budget_cost(connection->buffer_max);
	connections->n_handshakes += connection->state == CONNECTION_HANDSHAKE;
	/* An entry for each socket that the front counts: so many others, and no more. */
	handover->n_bare += !handover->has_endpoint && !handover->awaits_answer;
	handover->n_chunks = handover_n_chunks(connection);
	/* There is room for one in the pool. */
	if (connection->rest.len > 0 && device->has_rest)
		return false;
	device->has_rest |= connection->rest.len > 0;
	return handover->n_bare <= connections->n_allowed &&
	       connections->n_handshakes <= device->max_handshakes;
}

/* The connection in hand is done with. */
static bool finish_connection(struct device *device)
{
	return read_record(device) && device->handover.n_chunks == 0;
}

static bool take_connection(struct device *device, const Vsockd__HandoverConnection *told, int fd)
{
	struct handover *handover = &device->handover;
	struct connection *connection;

	connection = connection_take_at(&device->connections, told->index, CONNECTION_DEAD);
	if (!connection) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	connection->fd = fd;
	connection->endpoint = told->endpoint;
	handover->connection = connection;
	handover->has_record = true;
	handover->has_endpoint = told->has_endpoint;
	handover->has_socket = told->has_socket;
	handover->awaits_answer = told->awaits_answer;
	memcpy(handover->bytes, &told->word_0, HANDOVER_PIECE);
	handover->len = HANDOVER_PIECE;
	if (told->has_socket != (fd >= 0))
		return false;
	return fd < 0 || host_watch(device, connection);
}

/* Sums; the front takes none beyond what it can add up. */
static bool take_counters(struct device *device, const Vsockd__HandoverMore *told)
{
	struct handover *handover = &device->handover;
	uint64_t words[HANDOVER_PIECE / sizeof(uint64_t)];

	memcpy(words, &told->word_0, sizeof(words));
	for (size_t i = 0; i < HANDOVER_PIECE / sizeof(uint64_t); i++) {
		if (words[i] > INT64_MAX)
			return false;
		if (handover->n_counters < COUNTER_MAX)
			device->counters[handover->n_counters++] = words[i];
	}
	return true;
}

static bool take_more(struct device *device, const Vsockd__HandoverMore *told)
{
	struct handover *handover = &device->handover;

	if (handover->has_device && handover->n_counters < COUNTER_MAX)
		return take_counters(device, told);
	if (!handover->has_record || HANDOVER_RECORD_MAX - handover->len < HANDOVER_PIECE)
		return false;
	memcpy(handover->bytes + handover->len, &told->word_0, HANDOVER_PIECE);
	handover->len += HANDOVER_PIECE;
	return true;
}

static bool take_chunk(struct device *device, uint32_t chunk)
{
	struct handover *handover = &device->handover;
	struct buffer *buffer;
	uint32_t n_of_rest, n_left;

	if (!handover->connection || handover->n_chunks == 0)
		return false;
	n_of_rest = buffer_n_chunks(&handover->connection->rest);
	buffer = &handover->connection->rest;
	n_left = handover->n_chunks;
	if (n_left > n_of_rest) {
		buffer = &handover->connection->buffer;
		n_left -= n_of_rest;
	}
	if (!buffer_adopt_chunk(&device->pool, buffer, n_left == buffer_n_chunks(buffer), chunk))
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

	if (told->list > HANDOVER_CHUNKS || told->n > HANDOVER_LIST_MAX)
		return false;
	if (told->list != HANDOVER_CHUNKS) {
		if (!finish_connection(device))
			return false;
		/* Connections come first: no more of them, and none in hand. */
		device->handover.connection = NULL;
	} else if (!read_record(device)) {
		return false;
	}
	memcpy(items, &told->item_0, sizeof(items));
	for (uint32_t i = 0; i < told->n; i++)
		if (!(told->list == HANDOVER_CHUNKS ? take_chunk(device, items[i])
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
	case VSOCKD__ENVELOPE__BODY_HANDOVER_CONNECTION:
		is_good = finish_connection(device);
		is_good = take_connection(device, envelope->handover_connection, fd) && is_good;
		break;
	case VSOCKD__ENVELOPE__BODY_HANDOVER_MORE:
		is_good = take_more(device, envelope->handover_more);
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
	if (connection->buffer.len > 0 && connection->is_writable)
		link_append(&device->connections.flush, &connection->flush_link);
	if (connection->tell & ~held)
		link_append(&device->connections.tell, &connection->tell_link);
	return true;
}

static bool settle(struct device *device)
{
	if (!device->handover.has_device || device->handover.n_counters != COUNTER_MAX ||
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

	if (handover->is_checked || handover->is_bad || !finish_connection(device) ||
	    !settle(device)) {
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
