/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/guest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/frontend/guest_internal.h"

#define FEATURES_DEFAULT                                                                           \
	(BIT64(VIRTIO_VERSION_1) | BIT64(VIRTIO_INDIRECT) | BIT64(VIRTIO_EVENT_IDX) |              \
	 BIT64(VIRTIO_SEQPACKET))

/* What each VMM acknowledges if it is offered. QEMU: all it has names for but bit 20. */
static const uint64_t protocol_features[] = {
	[GUEST_LIKE_QEMU] = 0x7fffff & ~BIT64(20),
	[GUEST_LIKE_CROSVM] = BIT64(VHOST_PROTOCOL_MQ) | BIT64(VHOST_PROTOCOL_REPLY_ACK) |
			      BIT64(VHOST_PROTOCOL_BACKEND_REQ) | BIT64(VHOST_PROTOCOL_CONFIG) |
			      BIT64(VHOST_PROTOCOL_DEVICE_STATE) | BIT64(22),
	[GUEST_LIKE_CLOUD_HYPERVISOR] =
		BIT64(VHOST_PROTOCOL_MQ) | BIT64(VHOST_PROTOCOL_LOG_SHMFD) |
		BIT64(VHOST_PROTOCOL_REPLY_ACK) | BIT64(VHOST_PROTOCOL_BACKEND_REQ) |
		BIT64(VHOST_PROTOCOL_CONFIG) | BIT64(VHOST_PROTOCOL_INFLIGHT_SHMFD) |
		BIT64(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS) | BIT64(VHOST_PROTOCOL_DEVICE_STATE),
};

static int plain(int error)
{
	return error == VHOST_E_NACK ? -EREMOTEIO : error;
}

static bool is_like(const struct guest *guest, enum guest_style style)
{
	return guest->options.style == style;
}

static bool is_in_band(const struct guest *guest)
{
	return guest->options.signals == GUEST_SIGNALS_IN_BAND;
}

static void choose_rings(struct guest_options *options)
{
	static const struct {
		const char *name;
		uint64_t bit;
	} names[] = {
		{"packed", BIT64(VIRTIO_RING_PACKED)},
		{"in-order", BIT64(VIRTIO_IN_ORDER)},
		{"notification-data", BIT64(VIRTIO_NOTIFICATION_DATA)},
		{"-indirect", BIT64(VIRTIO_INDIRECT)},
		{"-event-idx", BIT64(VIRTIO_EVENT_IDX)},
	};
	const char *wanted = getenv("FRONTEND_RINGS");

	for (size_t i = 0; wanted && i < sizeof(names) / sizeof(names[0]); i++) {
		if (!strstr(wanted, names[i].name))
			continue;
		if (names[i].name[0] == '-')
			options->features &= ~names[i].bit;
		else
			options->features |= names[i].bit;
	}
}

static void fill_defaults(struct guest_options *options)
{
	if (!options->features)
		options->features = FEATURES_DEFAULT;
	choose_rings(options);
	if (!options->protocol_features)
		options->protocol_features = protocol_features[options->style];
	if (!options->queue_size)
		options->queue_size = 128;
	if (!options->rx_buffer_size)
		options->rx_buffer_size = 4096;
	if (!options->n_tx_buffers)
		options->n_tx_buffers = 64;
	if (!options->buf_alloc)
		options->buf_alloc = 256 * 1024;
	if (!options->timeout)
		options->timeout = SOCKET_TIMEOUT;
}

static int init_memory(struct guest *guest)
{
	const struct memory_layout whole = {.guest_address = 1 << 20, .size = 64 << 20};
	const struct guest_options *options = &guest->options;
	int error = memory_init(&guest->memory);

	guest->memory.has_guest_addresses = options->has_guest_addresses;
	if (!error && options->n_regions == 0)
		error = memory_add(&guest->memory, &whole);
	for (size_t i = 0; !error && i < options->n_regions; i++)
		error = memory_add(&guest->memory, &options->regions[i]);
	return error;
}

static int init(struct guest *guest, const struct guest_options *options)
{
	int error;

	memset(guest, 0, sizeof(*guest));
	guest->options = *options;
	fill_defaults(&guest->options);
	guest->vhost.fd = guest->backend_fd = -1;
	guest->cid = options->cid;
	guest->is_traced = getenv("FRONTEND_TRACE") != NULL;
	guest->next_port = 50000;
	guest->n_rings = is_like(guest, GUEST_LIKE_QEMU) ? 2 : 3;
	/* That VMM starts from the avail index: what was posted before would be skipped. */
	if (options->is_prefilled && is_like(guest, GUEST_LIKE_CLOUD_HYPERVISOR))
		return -EINVAL;
	error = init_memory(guest);
	/* Before the rings: only a fresh region has room at its start. */
	if (!error && options->is_straddling)
		error = guest_packets_init(guest);
	for (size_t i = 0; !error && i < guest->n_rings; i++) {
		guest->masked_call[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		error = ring_init(&guest->rings[i], &guest->memory, guest->options.queue_size);
	}
	if (options->signals == GUEST_SIGNALS_IN_BAND)
		guest_in_band_init(guest);
	if (!error && !options->is_straddling)
		error = guest_packets_init(guest);
	if (!error)
		guest_packets_reset(guest);
	return error;
}

int guest_read_cid(struct guest *guest)
{
	struct vhost *vhost = &guest->vhost;
	uint32_t halves[2];
	int error = 0;

	if (!vhost_has(vhost, VHOST_PROTOCOL_CONFIG))
		return 0;
	if (is_like(guest, GUEST_LIKE_QEMU))
		error = vhost_get_config(vhost, 0, 8, 0, halves);
	for (uint32_t i = 0; !error && i < 2 && !is_like(guest, GUEST_LIKE_QEMU); i++)
		error = vhost_get_config(vhost, 4 * i, 4, /* as crosvm and rust-vmm say */ 1,
					 &halves[i]);
	if (error)
		return plain(error);
	guest->cid = halves[0] | (uint64_t)halves[1] << 32;
	if (guest->options.cid && guest->cid != guest->options.cid)
		guest_violate(guest, "guest_cid is %lu, not %lu", (unsigned long)guest->cid,
			      (unsigned long)guest->options.cid);
	return 0;
}

int guest_set_backend_fd(struct guest *guest)
{
	int pair[2], error;

	if (!vhost_has(&guest->vhost, VHOST_PROTOCOL_BACKEND_REQ))
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return -errno;
	error = vhost_send(&guest->vhost, VHOST_SET_BACKEND_REQ_FD, NULL, 0, &pair[1], 1);
	close(pair[1]);
	if (guest->backend_fd >= 0)
		close(guest->backend_fd);
	guest->backend_fd = pair[0];
	guest->is_backend_closed = false;
	return error;
}

static int negotiate_protocol(struct guest *guest)
{
	struct vhost *vhost = &guest->vhost;
	uint64_t value;
	int error = 0;

	if (!(vhost->offered_features & BIT64(VIRTIO_PROTOCOL_FEATURES)))
		return 0;
	error = vhost_get_u64(vhost, VHOST_GET_PROTOCOL_FEATURES, &value);
	if (!error)
		error = vhost_set_u64(vhost, VHOST_SET_PROTOCOL_FEATURES,
				      value & guest->options.protocol_features);
	if (!error && vhost_has(vhost, VHOST_PROTOCOL_MQ)) {
		error = vhost_get_u64(vhost, VHOST_GET_QUEUE_NUM, &value);
		if (!error && value < guest->n_rings)
			return -EPROTO;
	}
	if (!error && vhost_has(vhost, VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS)) {
		error = vhost_get_u64(vhost, VHOST_GET_MAX_MEM_SLOTS, &value);
		if (!error && value < guest->memory.n_regions)
			return -EPROTO;
	}
	return error;
}

static int negotiate(struct guest *guest)
{
	struct vhost *vhost = &guest->vhost;
	bool is_qemu = is_like(guest, GUEST_LIKE_QEMU);
	uint64_t features;
	int error = 0;

	if (!is_qemu)
		error = vhost_order(vhost, VHOST_SET_OWNER);
	if (!error)
		error = vhost_get_u64(vhost, VHOST_GET_FEATURES, &features);
	if (!error)
		error = negotiate_protocol(guest);
	if (!error && !is_like(guest, GUEST_LIKE_CLOUD_HYPERVISOR))
		error = guest_set_backend_fd(guest);
	if (!error && is_qemu)
		error = vhost_order(vhost, VHOST_SET_OWNER);
	if (!error && is_qemu)
		error = vhost_get_u64(vhost, VHOST_GET_FEATURES, &features);
	for (uint32_t i = 0; !error && is_qemu && !is_in_band(guest) && i < guest->n_rings; i++) {
		error = vhost_set_ring_fd(vhost, VHOST_SET_VRING_CALL, i, guest->masked_call[i]);
		if (!error)
			error = vhost_set_ring_fd(vhost, VHOST_SET_VRING_ERR, i,
						  guest->rings[i].err);
	}
	return error ? error : guest_read_cid(guest);
}

static uint64_t wanted_features(const struct guest *guest)
{
	uint64_t features = guest->vhost.offered_features & guest->options.features;

	if (!guest->options.omits_protocol_bit)
		features |= guest->vhost.offered_features & BIT64(VIRTIO_PROTOCOL_FEATURES);
	return features;
}

int guest_set_features(struct guest *guest, bool is_forced)
{
	uint64_t features = wanted_features(guest);

	/* Also a driver that was there before the front-end knows by what it goes. */
	for (size_t i = 0; i < guest->n_rings; i++) {
		guest->rings[i].has_event_idx = features & BIT64(VIRTIO_EVENT_IDX);
		ring_set_layout(&guest->rings[i], features & BIT64(VIRTIO_RING_PACKED),
				features & BIT64(VIRTIO_IN_ORDER));
	}
	if (!is_forced && features == guest->vhost.features)
		return 0;
	return vhost_set_u64(&guest->vhost, VHOST_SET_FEATURES, features);
}

int guest_dial(struct guest *guest, const char *socket)
{
	int error = vhost_connect(socket, guest->options.timeout, &guest->vhost);

	if (error)
		return error;
	guest->is_disconnected = guest->is_memory_told = false;
	if (is_like(guest, GUEST_LIKE_CROSVM))
		guest->vhost.ack_requests = 0;
	if (is_like(guest, GUEST_LIKE_QEMU))
		guest->vhost.ack_requests = vhost_ack_like_qemu;
	return 0;
}

int guest_attach(struct guest *guest, const char *socket, const void *state, size_t len)
{
	int error = guest_dial(guest, socket);

	if (!error)
		error = negotiate(guest);
	if (!error && state)
		error = guest_set_features(guest, true);
	if (!error && state)
		error = vhost_load(&guest->vhost, state, len);
	return plain(error);
}

void guest_detach(struct guest *guest)
{
	vhost_close(&guest->vhost);
	if (guest->backend_fd >= 0)
		close(guest->backend_fd);
	guest->backend_fd = -1;
	guest->is_started = false;
}

int guest_tell_memory(struct guest *guest)
{
	const struct memory *memory = &guest->memory;
	int error = 0;

	if (!is_like(guest, GUEST_LIKE_QEMU) ||
	    !vhost_has(&guest->vhost, VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS))
		return vhost_set_memory(&guest->vhost, memory->regions, memory->fds,
					memory->n_regions);
	/* QEMU remembers what it told and tells only what changed. */
	for (size_t i = 0; !error && !guest->is_memory_told && i < memory->n_regions; i++)
		error = vhost_change_memory(&guest->vhost, VHOST_ADD_MEM_REG, &memory->regions[i],
					    memory->fds[i]);
	guest->is_memory_told = !error;
	return error;
}

/* The message that starts the ring. */
static int tell_kick(struct guest *guest, uint32_t index)
{
	struct vhost *vhost = &guest->vhost;

	switch (guest->options.signals) {
	case GUEST_SIGNALS_POLLED:
		return vhost_set_ring_fd(vhost, VHOST_SET_VRING_KICK, index, -1);
	case GUEST_SIGNALS_IN_BAND:
		if (index == GUEST_TX && guest->options.starts_tx_late)
			return 0;
		return vhost_set_ring(vhost, VHOST_VRING_KICK, index, 0);
	default:
		return vhost_set_ring_fd(vhost, VHOST_SET_VRING_KICK, index,
					 guest->rings[index].kick);
	}
}

static int start_ring(struct guest *guest, uint32_t index)
{
	struct vhost *vhost = &guest->vhost;
	struct ring *ring = &guest->rings[index];
	struct vhost_ring_address address = ring_addresses(ring, index);
	bool is_qemu = is_like(guest, GUEST_LIKE_QEMU);
	bool is_crosvm = is_like(guest, GUEST_LIKE_CROSVM);
	uint32_t base = guest->base[index];
	int error = 0;

	if (guest->has_base && ring_used_idx(ring) != guest->stopped_idx[index])
		guest_violate(guest, "ring %u was used while it was stopped", index);
	if (!guest->has_base)
		base = is_like(guest, GUEST_LIKE_CLOUD_HYPERVISOR) ? ring_last_base(ring)
								   : ring_first_base(ring);
	if (is_qemu || is_crosvm)
		error = vhost_set_ring(vhost, VHOST_SET_VRING_NUM, index, ring->size);
	if (!error && is_qemu)
		error = vhost_set_ring(vhost, VHOST_SET_VRING_BASE, index, base);
	if (!error)
		error = vhost_set_ring_address(vhost, &address);
	if (!error && !is_qemu)
		error = vhost_set_ring(vhost, VHOST_SET_VRING_BASE, index, base);
	if (!error && !is_qemu && !is_in_band(guest))
		error = vhost_set_ring_fd(vhost, VHOST_SET_VRING_CALL, index, ring->call);
	if (!error)
		error = tell_kick(guest, index);
	if (!error && guest->options.injects_kicks)
		ring_kick(ring);
	if (!error && is_crosvm && vhost->features & BIT64(VIRTIO_PROTOCOL_FEATURES))
		error = vhost_set_ring(vhost, VHOST_SET_VRING_ENABLE, index, 1);
	return error;
}

static int enable_rings(struct guest *guest, bool is_enabled)
{
	int error = 0;

	if (!(guest->vhost.features & BIT64(VIRTIO_PROTOCOL_FEATURES)))
		return 0;
	for (uint32_t i = 0; !error && i < guest->n_rings; i++)
		error = vhost_set_ring(&guest->vhost, VHOST_SET_VRING_ENABLE, i, is_enabled);
	return error;
}

int guest_enable(struct guest *guest, bool is_enabled)
{
	uint64_t features;
	int error = enable_rings(guest, is_enabled);

	/* Without acks, the answer to any question says that the order was carried out. */
	if (!error && guest->vhost.ack_requests == 0)
		error = vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features);
	return plain(error);
}

/* Behind the rings: what each VMM sends after the last of them was started. */
static int finish_start(struct guest *guest)
{
	int error = 0;

	if (!is_like(guest, GUEST_LIKE_CROSVM))
		error = enable_rings(guest, true);
	for (uint32_t i = 0;
	     !error && is_like(guest, GUEST_LIKE_QEMU) && !is_in_band(guest) && i < guest->n_rings;
	     i++)
		error = vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_CALL, i,
					  guest->rings[i].call);
	if (!error && is_like(guest, GUEST_LIKE_CLOUD_HYPERVISOR))
		error = guest_set_backend_fd(guest);
	return error;
}

int guest_resume(struct guest *guest)
{
	struct vhost *vhost = &guest->vhost;
	int error;

	error = guest_set_features(guest, !is_like(guest, GUEST_LIKE_CROSVM));
	if (!error)
		error = guest_tell_memory(guest);
	if (guest->options.is_prefilled)
		guest_packets_fill(guest);
	guest->is_starting = true;
	for (uint32_t i = 0;
	     !error && is_like(guest, GUEST_LIKE_CLOUD_HYPERVISOR) && i < guest->n_rings; i++)
		error = vhost_set_ring(vhost, VHOST_SET_VRING_NUM, i, guest->rings[i].size);
	for (uint32_t i = 0; !error && i < guest->n_rings; i++)
		error = start_ring(guest, i);
	if (!error)
		error = finish_start(guest);
	guest->is_starting = false;
	if (error)
		return plain(error);
	guest->is_started = true;
	guest_packets_fill(guest);
	return 0;
}

int guest_stop_ring(struct guest *guest, uint32_t index)
{
	const struct ring *ring = &guest->rings[index];
	const char *fault;
	uint32_t base;
	int error = vhost_get_ring_base(&guest->vhost, index, &base);

	if (error)
		return error;
	guest->base[index] = base;
	guest->has_base = true;
	guest->stopped_idx[index] = ring_used_idx(ring);
	fault = ring_judge_base(ring, base);
	if (fault)
		guest_violate(guest, "ring %u stopped at base 0x%x: %s", index, base, fault);
	return 0;
}

int guest_stop(struct guest *guest)
{
	bool is_qemu = is_like(guest, GUEST_LIKE_QEMU);
	bool is_enabling = guest->vhost.features & BIT64(VIRTIO_PROTOCOL_FEATURES);
	int error = is_qemu ? enable_rings(guest, false) : 0;

	for (uint32_t i = 0; !error && i < guest->n_rings; i++) {
		if (!is_qemu && is_enabling)
			error = vhost_set_ring(&guest->vhost, VHOST_SET_VRING_ENABLE, i, 0);
		if (!error)
			error = guest_stop_ring(guest, i);
	}
	if (error)
		return plain(error);
	/* What the back-end said before it answered. */
	if (guest->backend_fd >= 0)
		guest_in_band_drain(guest);
	guest->is_started = false;
	return 0;
}

void guest_forget_driver(struct guest *guest)
{
	guest_connections_drop(guest);
	for (size_t i = 0; i < guest->n_rings; i++)
		ring_reset(&guest->rings[i]);
	guest_packets_reset(guest);
	memset(guest->base, 0, sizeof(guest->base));
	guest->has_base = false;
}

int guest_reset(struct guest *guest)
{
	int error = guest->is_started ? guest_stop(guest) : 0;

	if (!error && vhost_has(&guest->vhost, VHOST_PROTOCOL_RESET_DEVICE))
		error = vhost_order(&guest->vhost, VHOST_RESET_DEVICE);
	guest_forget_driver(guest);
	return plain(error);
}

int guest_create(struct guest *guest, const struct guest_options *options)
{
	int error = init(guest, options);

	if (error)
		guest_end(guest);
	return error;
}

int guest_start(struct guest *guest, const struct guest_options *options)
{
	int error = init(guest, options);

	if (!error)
		error = guest_attach(guest, options->socket, NULL, 0);
	if (!error)
		error = guest_resume(guest);
	if (error)
		guest_end(guest);
	return error;
}

void guest_end(struct guest *guest)
{
	guest_detach(guest);
	guest_connections_end(guest);
	guest_packets_end(guest);
	for (size_t i = 0; i < guest->n_rings; i++) {
		if (guest->rings[i].memory)
			close(guest->masked_call[i]);
		ring_end(&guest->rings[i]);
	}
	memory_end(&guest->memory);
}
