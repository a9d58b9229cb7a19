/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/frontend/guest_internal.h"

/* Between two pieces of a packet lie so many bytes that the device must not touch. */
#define GAP    16
#define POISON 0xa5

/* Before each packet there is room for its indirect table. */
#define TABLE_LEN (16 * GUEST_PIECES_MAX)

/* Hostile tests send somewhat more than the device admits. */
#define TX_BYTES_MAX (PACKET_HEADER_LEN + PACKET_PAYLOAD_MAX + 4096)
#define TX_STRIDE    ((TABLE_LEN + TX_BYTES_MAX + GUEST_PIECES_MAX * GAP + 63) & ~63u)

/* One guest_process() handles at most so many packets before it kicks for new buffers. */
#define RX_BATCH 64

/* How long a call may be late, on a machine that is busy, before the lack of it is a violation. */
#define CALL_GRACE_MILLISECONDS 5000

enum { EVENT_TRANSPORT_RESET = 0, EVENT_LEN = 4 };

void guest_violate(struct guest *guest, const char *format, ...)
{
	size_t len = strlen(guest->violations);
	va_list arguments;

	guest->n_violations++;
	if (len + 160 > sizeof(guest->violations))
		return;
	va_start(arguments, format);
	vsnprintf(guest->violations + len, 159, format, arguments);
	va_end(arguments);
	strcat(guest->violations, "\n");
}

const char *guest_violations(const struct guest *guest)
{
	return guest->violations;
}

static void trace(const struct guest *guest, const char *direction, const struct packet *packet)
{
	static const char *const names[] = {"INVALID",	     "REQUEST",	      "RESPONSE",
					    "RST",	     "SHUTDOWN",      "RW",
					    "CREDIT_UPDATE", "CREDIT_REQUEST"};

	if (guest->is_traced)
		fprintf(stderr, "%s %s %lu:%u -> %lu:%u len %u flags %u buf_alloc %u fwd_cnt %u\n",
			direction, packet->op < PACKET_OP_MAX ? names[packet->op] : "?",
			(unsigned long)packet->src_cid, packet->src_port,
			(unsigned long)packet->dst_cid, packet->dst_port, packet->len,
			packet->flags, packet->buf_alloc, packet->fwd_cnt);
}

/* The lengths of the pieces of a packet of `total` bytes. Their number, at least 1. */
static uint32_t cut(const struct guest_layout *layout, uint32_t total,
		    uint32_t ret_pieces[GUEST_PIECES_MAX])
{
	uint32_t n = 0, start = 0;

	for (size_t i = 0; i < layout->n_cuts; i++) {
		if (layout->cuts[i] <= start || layout->cuts[i] >= total)
			continue;
		ret_pieces[n++] = layout->cuts[i] - start;
		start = layout->cuts[i];
	}
	while (layout->piece_len && total - start > layout->piece_len && n + 1 < GUEST_PIECES_MAX) {
		ret_pieces[n++] = layout->piece_len;
		start += layout->piece_len;
	}
	ret_pieces[n++] = total - start;
	return n;
}

static void describe(uint64_t address, const uint32_t *pieces, uint32_t n, bool is_writable,
		     struct ring_buffer *ret_buffers)
{
	for (uint32_t i = 0; i < n; i++) {
		ret_buffers[i] = (struct ring_buffer){
			.guest_address = address,
			.len = pieces[i],
			.is_writable = is_writable,
		};
		address += pieces[i] + GAP;
	}
}

static bool is_indirect(const struct guest *guest, const struct guest_layout *layout)
{
	return layout->is_indirect && (guest->vhost.features & BIT64(VIRTIO_INDIRECT));
}

/* The whole area, so that its buffer 0 lies across a border if that is asked for. */
static uint64_t place(struct guest *guest, uint64_t size, uint64_t before)
{
	uint64_t address = 0;

	if (guest->options.is_straddling)
		address = memory_allocate_across(&guest->memory, size, before & ~UINT64_C(15));
	return address ? address : memory_allocate(&guest->memory, size, 4096);
}

int guest_packets_init(struct guest *guest)
{
	struct guest_options *options = &guest->options;
	uint32_t n_chains;

	guest->n_rx_pieces = cut(&options->rx_layout, options->rx_buffer_size, guest->rx_pieces);
	if (!(options->features & BIT64(VIRTIO_INDIRECT)))
		options->rx_layout.is_indirect = false;
	n_chains = options->queue_size / (options->rx_layout.is_indirect ? 1 : guest->n_rx_pieces);
	if (!options->n_rx_buffers || options->n_rx_buffers > n_chains)
		options->n_rx_buffers = n_chains;
	guest->rx_table_len = options->rx_layout.is_indirect ? TABLE_LEN : 0;
	guest->rx_stride = guest->rx_table_len + options->rx_buffer_size + guest->n_rx_pieces * GAP;
	guest->rx_stride = (guest->rx_stride + 15) & ~15u;
	guest->rx_address = place(guest, (uint64_t)guest->rx_stride * options->n_rx_buffers,
				  guest->rx_table_len + options->rx_buffer_size / 2);
	guest->tx_address = place(guest, (uint64_t)TX_STRIDE * options->n_tx_buffers,
				  TABLE_LEN + PACKET_HEADER_LEN + 1000);
	guest->event_address = memory_allocate(&guest->memory, GUEST_EVENT_BUFFERS * EVENT_LEN, 64);
	guest->free_slots = calloc(options->n_tx_buffers, sizeof(*guest->free_slots));
	if (!guest->rx_address || !guest->tx_address || !guest->event_address || !guest->free_slots)
		return -ENOMEM;
	memset(memory_at(&guest->memory, guest->rx_address), POISON,
	       (size_t)guest->rx_stride * options->n_rx_buffers);
	return 0;
}

void guest_packets_reset(struct guest *guest)
{
	guest->n_free_slots = guest->options.n_tx_buffers;
	/* Slot 0 on top: the one that may straddle is the one that is always in use. */
	for (uint32_t i = 0; i < guest->n_free_slots; i++)
		guest->free_slots[i] = guest->n_free_slots - 1 - i;
	guest->n_pending = guest->n_held_events = 0;
	guest->is_filled = false;
}

void guest_packets_end(struct guest *guest)
{
	free(guest->free_slots);
	free(guest->pending);
	guest->free_slots = NULL;
	guest->pending = NULL;
	guest->n_free_slots = 0;
	guest->n_pending = guest->pending_size = 0;
}

static void post_rx(struct guest *guest, uint32_t slot)
{
	uint64_t address = guest->rx_address + (uint64_t)slot * guest->rx_stride;
	struct ring_buffer buffers[GUEST_PIECES_MAX];

	describe(address + guest->rx_table_len, guest->rx_pieces, guest->n_rx_pieces, true,
		 buffers);
	if (ring_add(&guest->rings[GUEST_RX], buffers, guest->n_rx_pieces,
		     is_indirect(guest, &guest->options.rx_layout) ? address : 0, slot) < 0)
		guest_violate(guest, "rx ring has no room for its own buffers");
}

static void post_event(struct guest *guest, uint32_t slot)
{
	struct ring_buffer buffer = {
		.guest_address = guest->event_address + slot * EVENT_LEN,
		.len = EVENT_LEN,
		.is_writable = true,
	};

	ring_add(&guest->rings[GUEST_EVENT], &buffer, 1, 0, slot);
}

void guest_packets_fill(struct guest *guest)
{
	uint32_t n_events = guest->options.queue_size;

	if (guest->is_filled)
		return;
	guest->is_filled = true;
	for (uint32_t i = 0; i < guest->options.n_rx_buffers; i++)
		post_rx(guest, i);
	ring_submit(&guest->rings[GUEST_RX]);
	if (guest->n_rings <= GUEST_EVENT)
		return;
	if (n_events > GUEST_EVENT_BUFFERS)
		n_events = GUEST_EVENT_BUFFERS;
	for (uint32_t i = 0; i < n_events; i++)
		post_event(guest, i);
	ring_submit(&guest->rings[GUEST_EVENT]);
}

/* Copy to where bytes offset.. of a packet lie in its pieces. */
static void scatter(uint8_t *at, const uint32_t *pieces, uint32_t n, uint32_t offset,
		    const uint8_t *bytes, size_t len)
{
	for (uint32_t i = 0; i < n && len > 0; i++) {
		size_t part = offset < pieces[i] ? pieces[i] - offset : 0;

		if (part > len)
			part = len;
		memcpy(at + offset, bytes, part);
		bytes += part;
		len -= part;
		offset = part > 0 ? 0 : offset - pieces[i];
		at += pieces[i] + GAP;
	}
}

static int broken(struct guest *guest, uint32_t ring)
{
	guest_violate(guest, "ring %u: %s", ring, guest->rings[ring].fault);
	return -EPROTO;
}

static int reclaim_tx(struct guest *guest)
{
	struct ring_completion done;
	int n = 0, result;

	while ((result = ring_take(&guest->rings[GUEST_TX], &done)) > 0) {
		guest->free_slots[guest->n_free_slots++] = done.cookie;
		n++;
	}
	return result < 0 ? broken(guest, GUEST_TX) : n;
}

int guest_packets_put(struct guest *guest, const struct packet *packet, const void *payload,
		      size_t len, const struct guest_layout *layout)
{
	uint32_t header_len = packet ? PACKET_HEADER_LEN : 0;
	struct ring_buffer buffers[GUEST_PIECES_MAX];
	uint32_t pieces[GUEST_PIECES_MAX], n;
	uint64_t address;
	uint8_t *at;

	if (len > TX_BYTES_MAX - PACKET_HEADER_LEN)
		return -EMSGSIZE;
	if (guest->n_free_slots == 0) {
		int n_reclaimed = reclaim_tx(guest);

		if (n_reclaimed <= 0)
			return n_reclaimed < 0 ? n_reclaimed : -EAGAIN;
	}
	n = cut(layout, header_len + (uint32_t)len, pieces);
	address = guest->tx_address +
		  (uint64_t)guest->free_slots[guest->n_free_slots - 1] * TX_STRIDE;
	at = memory_at(&guest->memory, address + TABLE_LEN);
	describe(address + TABLE_LEN, pieces, n, false, buffers);
	if (!is_indirect(guest, layout) && n > guest->options.queue_size)
		return -EMSGSIZE;
	if (ring_add(&guest->rings[GUEST_TX], buffers, n, is_indirect(guest, layout) ? address : 0,
		     guest->free_slots[guest->n_free_slots - 1]) < 0)
		return -EAGAIN;
	guest->n_free_slots--;
	if (packet)
		scatter(at, pieces, n, 0, (const uint8_t *)packet, header_len);
	if (payload)
		scatter(at, pieces, n, header_len, payload, len);
	guest->statistics[GUEST_TX].n_packets++;
	guest->statistics[GUEST_TX].n_bytes += len;
	if (packet)
		trace(guest, "tx", packet);
	return 0;
}

int guest_send_packet(struct guest *guest, const struct packet *packet, const void *payload,
		      size_t len, const struct guest_layout *layout)
{
	const struct guest_layout whole = {0};
	int error = guest_packets_put(guest, packet, payload, len, layout ? layout : &whole);

	ring_submit(&guest->rings[GUEST_TX]);
	return error;
}

int guest_send_bytes(struct guest *guest, const void *bytes, size_t len,
		     const struct guest_layout *layout)
{
	return guest_send_packet(guest, NULL, bytes, len, layout);
}

/* The parts of the first `len` bytes of a packet; their gaps must be untouched. */
static size_t gather(struct guest *guest, uint8_t *at, uint32_t len, struct iovec *ret_parts)
{
	size_t n = 0;

	for (uint32_t i = 0; i < guest->n_rx_pieces; i++) {
		uint32_t part = len < guest->rx_pieces[i] ? len : guest->rx_pieces[i];

		if (part > 0)
			ret_parts[n++] = (struct iovec){.iov_base = at, .iov_len = part};
		len -= part;
		at += guest->rx_pieces[i];
		for (uint32_t k = 0; k < GAP; k++) {
			if (at[k] == POISON)
				continue;
			guest_violate(guest, "rx: bytes written outside the descriptors");
			memset(at, POISON, GAP);
		}
		at += GAP;
	}
	return n;
}

/* Move len bytes from the front of parts into bytes; the parts that remain. */
static size_t take_bytes(struct iovec *parts, size_t n, void *bytes, size_t len)
{
	size_t first = 0;

	while (len > 0 && first < n) {
		size_t part = parts[first].iov_len < len ? parts[first].iov_len : len;

		memcpy(bytes, parts[first].iov_base, part);
		bytes = (uint8_t *)bytes + part;
		len -= part;
		parts[first].iov_base = (uint8_t *)parts[first].iov_base + part;
		parts[first].iov_len -= part;
		if (parts[first].iov_len == 0)
			first++;
	}
	return first;
}

static void receive_chain(struct guest *guest, const struct ring_completion *done)
{
	uint64_t address = guest->rx_address + (uint64_t)done->cookie * guest->rx_stride;
	struct iovec parts[GUEST_PIECES_MAX];
	struct packet packet = {0};
	size_t n, first;

	n = gather(guest, memory_at(&guest->memory, address + guest->rx_table_len), done->len,
		   parts);
	if (done->len < PACKET_HEADER_LEN) {
		guest_violate(guest, "rx: used length %u has no room for a header", done->len);
		return;
	}
	first = take_bytes(parts, n, &packet, PACKET_HEADER_LEN);
	guest->statistics[GUEST_RX].n_packets++;
	guest->statistics[GUEST_RX].n_bytes += done->len - PACKET_HEADER_LEN;
	trace(guest, "rx", &packet);
	if (packet.len != done->len - PACKET_HEADER_LEN) {
		guest_violate(guest, "rx: used length %u of a packet with len %u", done->len,
			      packet.len);
		return;
	}
	if (guest->on_packet &&
	    guest->on_packet(guest->on_packet_context, &packet, parts + first, n - first))
		return;
	guest_connections_take(guest, &packet, parts + first, n - first);
}

static int receive_packets(struct guest *guest)
{
	struct ring *ring = &guest->rings[GUEST_RX];
	struct ring_completion done;
	int n = 0, result = 0;

	while (n < RX_BATCH && (result = ring_take(ring, &done)) > 0) {
		receive_chain(guest, &done);
		post_rx(guest, done.cookie);
		n++;
	}
	if (n > 0)
		ring_submit(ring);
	return result < 0 ? broken(guest, GUEST_RX) : n;
}

int guest_answer_events(struct guest *guest)
{
	int error = 0;

	if (guest->n_held_events == 0)
		return 0;
	/* The order of Linux: first the reset is done, then the buffer goes back. */
	error = guest_read_cid(guest);
	/* The device may hold requests of a guest that did not know yet, and answer them now. */
	guest_connections_excuse_requests(guest);
	guest_connections_drop(guest);
	for (size_t i = 0; i < guest->n_held_events; i++)
		post_event(guest, guest->held_events[i]);
	guest->n_held_events = 0;
	ring_submit(&guest->rings[GUEST_EVENT]);
	return error;
}

static int receive_events(struct guest *guest)
{
	struct ring_completion done;
	int n = 0, result = 0;

	if (guest->n_rings <= GUEST_EVENT)
		return 0;
	while ((result = ring_take(&guest->rings[GUEST_EVENT], &done)) > 0) {
		uint32_t event;

		memcpy(&event,
		       memory_at(&guest->memory, guest->event_address + done.cookie * EVENT_LEN),
		       sizeof(event));
		if (done.len != EVENT_LEN || event != EVENT_TRANSPORT_RESET)
			guest_violate(guest, "event %u with used length %u", event, done.len);
		else
			guest->n_transport_resets++;
		guest->held_events[guest->n_held_events++] = done.cookie;
		n++;
	}
	if (result < 0)
		return broken(guest, GUEST_EVENT);
	/* What the device sent before is of connections that the driver still has. */
	while (n > 0 && (result = receive_packets(guest)) == RX_BATCH)
		;
	if (result >= 0 && n > 0 && !guest->options.holds_events)
		result = guest_answer_events(guest);
	return result < 0 ? result : n;
}

int guest_process(struct guest *guest)
{
	int n_sent, n_received, n_events;

	n_sent = reclaim_tx(guest);
	if (n_sent < 0)
		return n_sent;
	n_received = receive_packets(guest);
	if (n_received < 0)
		return n_received;
	n_events = receive_events(guest);
	if (n_events < 0)
		return n_events;
	return n_sent + n_received + n_events + (int)guest_connections_flush(guest);
}

/* Ask for calls. True if there is something to handle already. */
static bool expect_calls(struct guest *guest)
{
	bool has_more = false;

	for (size_t i = 0; i < guest->n_rings; i++)
		has_more |= ring_expect_call(&guest->rings[i]);
	return has_more;
}

/* After a wait that ended in silence: did something come without a call? */
static void check_calls(struct guest *guest)
{
	for (uint32_t i = 0; i < guest->n_rings; i++) {
		struct ring *ring = &guest->rings[i];

		int call = guest->options.signals == GUEST_SIGNALS_IN_BAND ? guest->backend_fd
									   : ring->call;

		if (guest->is_started && ring_used_idx(ring) != ring->used_idx &&
		    socket_wait(call, POLLIN, deadline_in(CALL_GRACE_MILLISECONDS)) < 0)
			guest_violate(guest, "ring %u: used without a call", i);
	}
}

#define POLL_FDS_MAX 256

/* Wait for calls, watched fds and the end of the session. As poll(2). */
static int wait_fds(struct guest *guest, int timeout)
{
	struct pollfd fds[POLL_FDS_MAX];
	struct watch *watched[POLL_FDS_MAX];
	size_t first_watch = guest->n_rings + 2, n_fds = first_watch;
	int n;

	for (size_t i = 0; i < guest->n_rings; i++)
		fds[i] = (struct pollfd){.fd = guest->rings[i].call, .events = POLLIN};
	fds[guest->n_rings] = (struct pollfd){.fd = guest->vhost.fd, .events = POLLIN};
	fds[guest->n_rings + 1] = (struct pollfd){
		.fd = guest->is_backend_closed ? -1 : guest->backend_fd, .events = POLLIN};
	for (struct watch *watch = guest->watches; watch; watch = watch->next) {
		if (n_fds == POLL_FDS_MAX)
			return -ENOBUFS;
		watched[n_fds] = watch;
		/* events 0 would still report a hang-up, again and again. */
		fds[n_fds++] = (struct pollfd){.fd = watch->events ? watch->fd : -1,
					       .events = watch->events};
	}
	n = poll(fds, n_fds, timeout);
	if (n <= 0)
		return n < 0 && errno != EINTR ? -errno : 0;
	for (size_t i = 0; i < guest->n_rings; i++) {
		if (fds[i].revents)
			ring_clear_call(&guest->rings[i]);
	}
	/* Nothing is awaited from the back-end here, so it can only be the end. */
	if (fds[guest->n_rings].revents)
		guest->is_disconnected = true;
	if (fds[guest->n_rings + 1].revents)
		guest_in_band_drain(guest);
	for (size_t i = first_watch; i < n_fds; i++) {
		if (fds[i].revents)
			watched[i]->ready(watched[i], fds[i].revents);
	}
	return n;
}

int guest_poll(struct guest *guest, int timeout)
{
	int n = guest_process(guest);
	int n_ready;

	if (n < 0 || (n > 0 && !guest->watches))
		return n;
	if (guest->is_disconnected)
		return -ECONNRESET;
	if (n > 0 || expect_calls(guest))
		timeout = 0;
	n_ready = wait_fds(guest, timeout);
	if (n_ready < 0)
		return n_ready;
	if (n_ready == 0 && timeout > 0)
		check_calls(guest);
	for (size_t i = 0; i < guest->n_rings; i++)
		ring_ignore_calls(&guest->rings[i]);
	n_ready += n;
	n = guest_process(guest);
	return n < 0 ? n : n + n_ready;
}

int guest_wait_until(struct guest *guest, bool (*predicate)(void *context), void *context,
		     int timeout)
{
	int64_t deadline = deadline_in(timeout);

	while (!predicate(context)) {
		int left = deadline_left(deadline);
		int n;

		if (left == 0)
			return -ETIMEDOUT;
		n = guest_poll(guest, left);
		if (n < 0)
			return n;
	}
	return 0;
}

static bool never(void *context)
{
	(void)context;
	return false;
}

int guest_poll_for(struct guest *guest, int milliseconds)
{
	int error = guest_wait_until(guest, never, NULL, milliseconds);

	return error == -ETIMEDOUT ? 0 : error;
}

void guest_watch(struct guest *guest, struct watch *watch)
{
	watch->next = guest->watches;
	guest->watches = watch;
}

void guest_unwatch(struct guest *guest, struct watch *watch)
{
	for (struct watch **at = &guest->watches; *at; at = &(*at)->next) {
		if (*at != watch)
			continue;
		*at = watch->next;
		return;
	}
}

struct guest_statistics guest_statistics(const struct guest *guest, int direction)
{
	struct guest_statistics statistics = guest->statistics[direction];

	statistics.n_kicks = guest->rings[direction].n_kicks;
	statistics.n_calls = guest->rings[direction].n_calls;
	return statistics;
}
