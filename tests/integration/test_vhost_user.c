/* SPDX-License-Identifier: Apache-2.0 */

/* The vhost-user messages of front-ends that mean well, through real sockets. */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define LIMIT SETUP_LIMIT

/* Long enough for a wrong thing to happen, short enough to wait for nothing. */
#define NOTHING_HAPPENS 50

#define ACK BIT64(VHOST_PROTOCOL_REPLY_ACK)

static const uint64_t version_1 = BIT64(VIRTIO_VERSION_1);

static void start_vhost(struct setup *setup, struct vhost *ret_vhost)
{
	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, ret_vhost), 0);
}

static bool is_set(int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	return poll(&poll_fd, 1, 0) == 1;
}

static void clear(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) > 0)
		;
}

/* The kicks of everything that was offered so far never arrive. */
static void swallow_kicks(struct guest *guest)
{
	for (size_t i = 0; i < guest->n_rings; i++)
		clear(guest->rings[i].kick);
}

static void stop(struct guest *guest)
{
	assert_int_equal(guest_stop(guest), 0);
}

static void resume(struct guest *guest)
{
	assert_int_equal(guest_resume(guest), 0);
}

/* Start the rings as they were stopped, with what each test wants of it. */
static void start_by_hand(struct guest *guest, bool has_kick, bool has_call)
{
	for (uint32_t i = 0; i < guest->n_rings; i++) {
		struct ring *ring = &guest->rings[i];
		struct vhost_ring_address address = ring_addresses(ring, i);
		struct vhost *vhost = &guest->vhost;

		assert_int_equal(vhost_set_ring(vhost, VHOST_SET_VRING_NUM, i, ring->size), 0);
		assert_int_equal(vhost_set_ring(vhost, VHOST_SET_VRING_BASE, i, guest->base[i]), 0);
		assert_int_equal(vhost_set_ring_address(vhost, &address), 0);
		if (has_call)
			assert_int_equal(
				vhost_set_ring_fd(vhost, VHOST_SET_VRING_CALL, i, ring->call), 0);
		assert_int_equal(vhost_set_ring_fd(vhost, VHOST_SET_VRING_KICK, i,
						   has_kick ? ring->kick : -1),
				 0);
	}
	assert_int_equal(guest_enable(guest, true), 0);
	guest->is_started = true;
}

/* ---- sequences ---- */

struct sequence {
	struct guest_options options;
	const char *name;
};

static const struct sequence sequences[] = {
	{{.style = GUEST_LIKE_QEMU}, "QEMU"},
	{{.style = GUEST_LIKE_QEMU, .is_prefilled = true, .injects_kicks = true}, "QEMU 11.1"},
	{{.style = GUEST_LIKE_QEMU, .omits_protocol_bit = true}, "QEMU before 7.2"},
	{{.style = GUEST_LIKE_QEMU,
	  .protocol_features = BIT64(VHOST_PROTOCOL_CONFIG) | BIT64(VHOST_PROTOCOL_MQ)},
	 "QEMU without acks, slots and reset"},
	{{.style = GUEST_LIKE_CROSVM}, "crosvm"},
	{{.style = GUEST_LIKE_CROSVM, .is_prefilled = true}, "crosvm, prefilled"},
	{{.style = GUEST_LIKE_CLOUD_HYPERVISOR}, "cloud-hypervisor"},
	{{.style = GUEST_LIKE_CLOUD_HYPERVISOR,
	  .protocol_features = BIT64(VHOST_PROTOCOL_CONFIG) | BIT64(VHOST_PROTOCOL_MQ)},
	 "cloud-hypervisor without acks"},
};

static void run_sequence(struct setup *setup, const struct sequence *sequence)
{
	struct guest *guest = setup_guest(setup, 0, sequence->options);
	struct transfer transfer;

	transfer_all(setup, 0, 1000, 300 * KIB);
	transfer_start(&transfer, setup, 0, 1001, 300 * KIB);
	transfer_run_to(&transfer, 100 * KIB);
	stop(guest);
	resume(guest);
	transfer_finish(&transfer);
	assert_int_equal(guest_reset(guest), 0);
	resume(guest);
	transfer_all(setup, 0, 1002, 300 * KIB);
	stop(guest);
	setup_end_guest(setup, 0);
}

static void test_every_vmm_starts_stops_resets_and_starts_again(void **state)
{
	for (size_t i = 0; i < sizeof(sequences) / sizeof(sequences[0]); i++) {
		print_message("%s\n", sequences[i].name);
		run_sequence(*state, &sequences[i]);
	}
}

static void test_a_session_that_was_never_started_ends_without_a_trace(void **state)
{
	struct setup *setup = *state;
	struct vhost vhost;
	uint64_t value;

	for (int i = 0; i < 3; i++) {
		start_vhost(setup, &vhost);
		assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &value), 0);
		vhost_close(&vhost);
	}
	transfer_all((setup_guest(setup, 0, (struct guest_options){0}), setup), 0, 1, 1000);
}

static void test_the_offered_features_are_exactly_these(void **state)
{
	struct vhost vhost;
	uint64_t value;

	start_vhost(*state, &vhost);
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &value), 0);
	assert_true(value ==
		    (BIT64(VIRTIO_VERSION_1) | BIT64(VIRTIO_INDIRECT) | BIT64(VIRTIO_EVENT_IDX) |
		     BIT64(VIRTIO_RING_PACKED) | BIT64(VIRTIO_IN_ORDER) |
		     BIT64(VIRTIO_NOTIFICATION_DATA) | BIT64(VIRTIO_LOG_ALL) |
		     BIT64(VIRTIO_PROTOCOL_FEATURES) | BIT64(VIRTIO_STREAM) |
		     BIT64(VIRTIO_SEQPACKET) | BIT64(VIRTIO_NO_IMPLIED_STREAM)));
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_PROTOCOL_FEATURES, &value), 0);
	assert_true(value == (BIT64(VHOST_PROTOCOL_MQ) | BIT64(VHOST_PROTOCOL_LOG_SHMFD) |
			      BIT64(VHOST_PROTOCOL_REPLY_ACK) | BIT64(VHOST_PROTOCOL_CONFIG) |
			      BIT64(VHOST_PROTOCOL_RESET_DEVICE) |
			      BIT64(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS) |
			      BIT64(VHOST_PROTOCOL_DEVICE_STATE)));
	assert_int_equal(vhost_set_u64(&vhost, VHOST_SET_PROTOCOL_FEATURES, value), 0);
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_QUEUE_NUM, &value), 0);
	assert_int_equal(value, 3);
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_MAX_MEM_SLOTS, &value), 0);
	assert_int_equal(value, 32);
	vhost_close(&vhost);
}

static void test_features_that_were_not_offered_are_refused(void **state)
{
	struct vhost vhost;
	uint64_t value, offered;

	start_vhost(*state, &vhost);
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &offered), 0);
	assert_int_equal(vhost_set_u64(&vhost, VHOST_SET_PROTOCOL_FEATURES, ACK), 0);
	for (unsigned int bit = 0; bit < 64; bit++)
		assert_int_equal(vhost_set_u64(&vhost, VHOST_SET_FEATURES, BIT64(bit)),
				 offered & BIT64(bit) ? 0 : VHOST_E_NACK);
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_FEATURES, &value), 0);
	assert_true(value == offered);
	vhost_close(&vhost);
}

static void check_config(struct vhost *vhost, const uint8_t *expected, uint32_t offset,
			 uint32_t size)
{
	uint8_t bytes[256];
	uint64_t features;

	/* Of no bytes, success and failure look alike. */
	if (size == 0 || (uint64_t)offset + size > 8) {
		assert_int_equal(vhost_get_config(vhost, offset, size, 0, bytes), VHOST_E_NACK);
	} else {
		assert_int_equal(vhost_get_config(vhost, offset, size, 1, bytes), 0);
		assert_memory_equal(bytes, expected + offset, size);
	}
	assert_int_equal(vhost_get_u64(vhost, VHOST_GET_FEATURES, &features), 0);
}

static void test_any_part_of_the_configuration_is_read_and_nothing_beyond(void **state)
{
	static const uint32_t far[] = {UINT32_MAX, UINT32_MAX - 7, 0x80000000, 256, 8};
	const uint8_t expected[8] = {(uint8_t)setup_cid(0)};
	struct vhost vhost;

	start_vhost(*state, &vhost);
	assert_int_equal(
		vhost_set_u64(&vhost, VHOST_SET_PROTOCOL_FEATURES, BIT64(VHOST_PROTOCOL_CONFIG)),
		0);
	for (uint32_t offset = 0; offset < 12; offset++)
		for (uint32_t size = 0; size < 12; size++)
			check_config(&vhost, expected, offset, size);
	for (size_t i = 0; i < sizeof(far) / sizeof(far[0]); i++) {
		check_config(&vhost, expected, far[i], 1);
		check_config(&vhost, expected, far[i], 8);
		check_config(&vhost, expected, 0, 256);
	}
	vhost_close(&vhost);
}

static void test_the_configuration_cannot_be_written(void **state)
{
	struct vhost vhost;
	uint64_t cid = 99;

	start_vhost(*state, &vhost);
	assert_int_equal(vhost_set_u64(&vhost, VHOST_SET_PROTOCOL_FEATURES,
				       ACK | BIT64(VHOST_PROTOCOL_CONFIG)),
			 0);
	assert_int_equal(vhost_set_config(&vhost, 0, 8, 0, &cid), VHOST_E_NACK);
	assert_int_equal(vhost_get_config(&vhost, 0, 8, 0, &cid), 0);
	assert_int_equal(cid, setup_cid(0));
	vhost_close(&vhost);
}

/* ---- rings ---- */

static void test_every_ring_size_and_every_pair_of_ring_features_carries_the_same(void **state)
{
	static const uint16_t sizes[] = {2, 256, 1024, 32768};
	struct setup *setup = *state;

	for (unsigned int i = 0; i < 16; i++) {
		const struct guest_layout layout = {
			.cuts = {44}, .n_cuts = 1, .is_indirect = i & 1};
		struct guest_options options = {
			.queue_size = sizes[i / 4],
			.features = version_1 | (i & 1 ? BIT64(VIRTIO_INDIRECT) : 0) |
				    (i & 2 ? BIT64(VIRTIO_EVENT_IDX) : 0),
			.n_rx_buffers = 1024,
			.tx_layout = layout,
			.rx_layout = layout,
		};

		setup_guest(setup, 0, options);
		transfer_all(setup, 0, 1000, options.queue_size == 2 ? 50 * KIB : 500 * KIB);
		setup_end_guest(setup, 0);
	}
}

static void test_a_kick_before_the_ring_is_enabled_is_not_lost(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, 1000, &stream);

	assert_int_equal(guest_enable(guest, false), 0);
	assert_int_equal(guest_send(connection, "12345", 5), 5);
	ring_kick(&guest->rings[GUEST_TX]);
	assert_int_equal(guest_poll_for(guest, NOTHING_HAPPENS), 0);
	assert_int_equal(stream.n_received, 0);
	assert_int_equal(guest_enable(guest, true), 0);
	while (stream.n_received < 5)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_a_ring_that_is_enabled_again_needs_no_kick(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, 1000, &stream);

	assert_int_equal(guest_enable(guest, false), 0);
	assert_int_equal(guest_send(connection, "12345", 5), 5);
	swallow_kicks(guest);
	assert_int_equal(guest_enable(guest, true), 0);
	while (stream.n_received < 5)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

/* Snapshots of the used rings and all guest memory between them. */
static void test_disabled_rings_are_left_untouched(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		setup_guest(setup, 0, (struct guest_options){.style = GUEST_LIKE_CROSVM});
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, 1000, &stream);
	uint16_t used[GUEST_RINGS];

	assert_int_equal(guest_poll_for(guest, NOTHING_HAPPENS), 0);
	assert_int_equal(guest_enable(guest, false), 0);
	for (size_t i = 0; i < guest->n_rings; i++)
		used[i] = ring_used_idx(&guest->rings[i]);
	assert_int_equal(guest_send(connection, "12345", 5), 5);
	ring_kick(&guest->rings[GUEST_TX]);
	ring_kick(&guest->rings[GUEST_RX]);
	assert_int_equal(host_write(stream.watch.fd, "abc", 3, LIMIT), 0);
	assert_int_equal(guest_poll_for(guest, NOTHING_HAPPENS), 0);
	for (size_t i = 0; i < guest->n_rings; i++)
		assert_int_equal(ring_used_idx(&guest->rings[i]), used[i]);
	assert_int_equal(stream.n_received, 0);
	assert_int_equal(guest_enable(guest, true), 0);
	while (stream.n_received < 5 || connection->n_received < 3)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_a_ring_without_a_kick_fd_is_polled(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	stop(guest);
	start_by_hand(guest, false, true);
	transfer_all(setup, 0, 1000, 300 * KIB);
	/* And back to one that is kicked. */
	stop(guest);
	start_by_hand(guest, true, true);
	transfer_all(setup, 0, 1001, 300 * KIB);
}

static void test_a_ring_starts_at_set_vring_kick_with_what_is_there(void **state)
{
	struct setup *setup = *state;

	for (int style = GUEST_LIKE_QEMU; style <= GUEST_LIKE_CLOUD_HYPERVISOR; style++) {
		struct guest *guest = setup_guest(
			setup, 0, (struct guest_options){.style = (enum guest_style)style});
		struct host_stream stream;
		struct guest_connection *connection = setup_connect(setup, 0, 1000, &stream);

		stop(guest);
		assert_int_equal(guest_send(connection, "12345", 5), 5);
		swallow_kicks(guest);
		resume(guest);
		swallow_kicks(guest);
		assert_int_equal(host_write(stream.watch.fd, "abc", 3, LIMIT), 0);
		while (stream.n_received < 5 || connection->n_received < 3)
			assert_true(guest_poll(guest, LIMIT) > 0);
		assert_int_equal(guest_finish(connection, LIMIT), 0);
		setup_end_stream(setup, 0, &stream);
		setup_end_guest(setup, 0);
	}
}

static void test_a_base_is_the_same_when_asked_for_twice(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	uint32_t base;

	transfer_all(setup, 0, 1000, 300 * KIB);
	stop(guest);
	assert_true(guest->base[GUEST_TX] > 0);
	for (uint32_t i = 0; i < guest->n_rings; i++) {
		assert_int_equal(vhost_get_ring_base(&guest->vhost, i, &base), 0);
		assert_int_equal(base, guest->base[i]);
	}
	resume(guest);
	transfer_all(setup, 0, 1001, 300 * KIB);
}

static void test_the_base_of_a_ring_that_never_ran_is_the_one_that_was_set(void **state)
{
	struct vhost vhost;
	uint32_t base;

	start_vhost(*state, &vhost);
	assert_int_equal(vhost_get_ring_base(&vhost, 1, &base), 0);
	assert_int_equal(base, 0);
	assert_int_equal(vhost_set_ring(&vhost, VHOST_SET_VRING_BASE, 1, 65535), 0);
	assert_int_equal(vhost_get_ring_base(&vhost, 1, &base), 0);
	assert_int_equal(base, 65535);
	vhost_close(&vhost);
}

static void test_the_call_fd_is_kept_over_a_stop(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	stop(guest);
	start_by_hand(guest, true, false);
	/* The guest notes what it was not called for. */
	transfer_all(setup, 0, 1000, 300 * KIB);
}

static void test_a_call_fd_is_replaced_while_the_ring_runs(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct transfer transfer;
	int old[2];

	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 300 * KIB);
	for (uint32_t i = 0; i < 2; i++) {
		struct ring *ring = &guest->rings[i];

		old[i] = ring->call;
		ring->call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		assert_int_equal(
			vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_CALL, i, ring->call), 0);
		clear(old[i]);
	}
	transfer_finish(&transfer);
	for (size_t i = 0; i < 2; i++) {
		assert_false(is_set(old[i]));
		close(old[i]);
	}
}

static void test_a_driver_without_a_call_fd_polls_its_ring(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	int64_t deadline = deadline_in(LIMIT);

	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_CALL, i, -1), 0);
		clear(guest->rings[i].call);
	}
	connection = guest_connect(guest, PACKET_HOST_CID, 1000);
	while (connection->state == GUEST_CONNECTING) {
		assert_true(deadline_left(deadline) > 0);
		assert_true(guest_process(guest) >= 0);
	}
	assert_false(is_set(guest->rings[GUEST_RX].call));
	assert_int_equal(connection->error, ECONNRESET);
}

/* ---- stop, reset and end ---- */

static void test_stops_in_the_middle_of_a_transfer_lose_nothing(void **state)
{
	struct setup *setup = *state;

	for (size_t i = 0; i < sizeof(sequences) / sizeof(sequences[0]); i++) {
		struct guest *guest = setup_guest(setup, 0, sequences[i].options);
		struct transfer transfer;

		transfer_start(&transfer, setup, 0, 1000, 2048 * KIB);
		for (size_t n = 100; n < 2000; n += 100) {
			transfer_run_to(&transfer, n * KIB);
			stop(guest);
			/* What comes meanwhile waits. */
			transfer_step(&transfer, 0);
			resume(guest);
		}
		transfer_finish(&transfer);
		setup_end_guest(setup, 0);
	}
}

static void test_pauses_by_disabling_lose_nothing(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		setup_guest(setup, 0, (struct guest_options){.style = GUEST_LIKE_CLOUD_HYPERVISOR});
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 2048 * KIB);
	for (size_t n = 100; n < 2000; n += 100) {
		transfer_run_to(&transfer, n * KIB);
		assert_int_equal(guest_enable(guest, false), 0);
		transfer_step(&transfer, 0);
		assert_int_equal(guest_enable(guest, true), 0);
	}
	transfer_finish(&transfer);
}

static bool has_ended(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error;
}

/* A connection with 5 bytes on their way, and the guest stopped. */
static struct guest *start_and_stop(struct setup *setup, struct guest_options options,
				    struct host_stream *ret_stream)
{
	struct guest *guest = setup_guest(setup, 0, options);
	struct guest_connection *connection = setup_connect(setup, 0, 1000, ret_stream);

	assert_int_equal(guest_send(connection, "12345", 5), 5);
	while (ret_stream->n_received < 5)
		assert_true(guest_poll(guest, LIMIT) > 0);
	stop(guest);
	assert_int_equal(guest_poll_for(guest, NOTHING_HAPPENS), 0);
	assert_false(has_ended(ret_stream));
	return guest;
}

static void test_a_start_at_another_base_drops_connections(void **state)
{
	static const struct guest_options without_reset[] = {
		{.style = GUEST_LIKE_QEMU, .protocol_features = ACK | BIT64(VHOST_PROTOCOL_CONFIG)},
		{.style = GUEST_LIKE_CROSVM},
		{.style = GUEST_LIKE_CLOUD_HYPERVISOR},
	};
	struct setup *setup = *state;

	for (size_t i = 0; i < 3; i++) {
		struct host_stream stream;
		struct guest *guest = start_and_stop(setup, without_reset[i], &stream);

		assert_false(vhost_has(&guest->vhost, VHOST_PROTOCOL_RESET_DEVICE));
		assert_int_equal(guest_reset(guest), 0);
		resume(guest);
		assert_int_equal(guest_wait_until(guest, has_ended, &stream, LIMIT), 0);
		setup_end_stream(setup, 0, &stream);
		transfer_all(setup, 0, 1001, 100 * KIB);
		setup_end_guest(setup, 0);
	}
}

static void test_reset_device_drops_connections_on_the_host(void **state)
{
	struct setup *setup = *state;
	struct host_stream stream;
	struct guest *guest = start_and_stop(setup, (struct guest_options){0}, &stream);

	assert_true(vhost_has(&guest->vhost, VHOST_PROTOCOL_RESET_DEVICE));
	assert_int_equal(guest_reset(guest), 0);
	/* Before anything else is told. */
	assert_int_equal(guest_wait_until(guest, has_ended, &stream, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	resume(guest);
	transfer_all(setup, 0, 1001, 100 * KIB);
}

/* As the document has it: rings are disabled, all else stays; memory too. */
static void test_reset_device_stops_running_rings(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	struct host_stream stream;

	setup_connect(setup, 0, 1000, &stream);
	assert_int_equal(vhost_order(&guest->vhost, VHOST_RESET_DEVICE), 0);
	assert_int_equal(guest_wait_until(guest, has_ended, &stream, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	connection = guest_connect(guest, PACKET_HOST_CID, 1001);
	assert_int_equal(guest_poll_for(guest, NOTHING_HAPPENS), 0);
	assert_int_equal(connection->state, GUEST_CONNECTING);
	assert_int_equal(guest_enable(guest, true), 0);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	transfer_all(setup, 0, 1002, 100 * KIB);
}

static void test_reset_owner_disables_rings_and_costs_no_connection(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 300 * KIB);
	assert_int_equal(vhost_order(&guest->vhost, VHOST_RESET_OWNER), 0);
	assert_int_equal(guest_poll_for(guest, NOTHING_HAPPENS), 0);
	/* Where the transfer left off the guest may be without credit. */
	if (guest_send(transfer.connection, transfer.bytes[0] + transfer.n_to_host, 1) == 1)
		transfer.n_to_host++;
	assert_int_equal(guest_enable(guest, true), 0);
	transfer_finish(&transfer);
}

static void test_the_end_of_a_session_drops_connections_and_the_next_one_works(void **state)
{
	struct setup *setup = *state;

	for (int i = 0; i < 3; i++) {
		struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
		struct host_stream stream;
		int fd;

		setup_connect(setup, 0, 1000, &stream);
		fd = dup(stream.watch.fd);
		setup_end_stream(setup, 0, &stream);
		assert_true(guest_poll(guest, 0) >= 0);
		setup_end_guest(setup, 0);
		assert_int_equal(host_wait_end(fd, LIMIT), 0);
		close(fd);
		setup_guest(setup, 0, (struct guest_options){0});
		transfer_all(setup, 0, 1001, 100 * KIB);
		setup_end_guest(setup, 0);
	}
}

static void test_what_a_guest_sent_before_it_left_is_delivered(void **state)
{
	static uint8_t bytes[100 * KIB];
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, 1000, &stream);

	host_stream_pause(&stream, true);
	pattern_fill(bytes, sizeof(bytes), 7, 0);
	assert_int_equal(guest_send_all(connection, bytes, sizeof(bytes), LIMIT), 0);
	while (guest->rings[GUEST_TX].n_in_flight > 0)
		assert_true(guest_poll(guest, LIMIT) > 0);
	guest_unwatch(guest, &stream.watch);
	setup_end_guest(setup, 0);
	memset(bytes, 0, sizeof(bytes));
	assert_int_equal(host_read(stream.watch.fd, bytes, sizeof(bytes), LIMIT), 0);
	assert_true(pattern_is(bytes, sizeof(bytes), 7, 0));
	assert_int_equal(host_wait_end(stream.watch.fd, LIMIT), 0);
	host_stream_end(&stream);
}

static void test_a_second_front_end_waits_until_the_first_one_left(void **state)
{
	struct setup *setup = *state;
	struct vhost second;
	uint64_t features;

	setup_guest(setup, 0, (struct guest_options){0});
	start_vhost(setup, &second);
	second.timeout = NOTHING_HAPPENS;
	assert_int_equal(vhost_get_u64(&second, VHOST_GET_FEATURES, &features), -ETIMEDOUT);
	transfer_all(setup, 0, 1000, 100 * KIB);
	setup_end_guest(setup, 0);
	second.timeout = LIMIT;
	assert_int_equal(vhost_receive(&second, VHOST_GET_FEATURES, &features, 8, NULL), 8);
	vhost_close(&second);
}

#define ONE_VM(test) cmocka_unit_test_setup_teardown(test, setup_start_one, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ONE_VM(test_every_vmm_starts_stops_resets_and_starts_again),
		ONE_VM(test_a_session_that_was_never_started_ends_without_a_trace),
		ONE_VM(test_the_offered_features_are_exactly_these),
		ONE_VM(test_features_that_were_not_offered_are_refused),
		ONE_VM(test_any_part_of_the_configuration_is_read_and_nothing_beyond),
		ONE_VM(test_the_configuration_cannot_be_written),
		ONE_VM(test_every_ring_size_and_every_pair_of_ring_features_carries_the_same),
		ONE_VM(test_a_kick_before_the_ring_is_enabled_is_not_lost),
		ONE_VM(test_a_ring_that_is_enabled_again_needs_no_kick),
		ONE_VM(test_disabled_rings_are_left_untouched),
		ONE_VM(test_a_ring_without_a_kick_fd_is_polled),
		ONE_VM(test_a_ring_starts_at_set_vring_kick_with_what_is_there),
		ONE_VM(test_a_base_is_the_same_when_asked_for_twice),
		ONE_VM(test_the_base_of_a_ring_that_never_ran_is_the_one_that_was_set),
		ONE_VM(test_the_call_fd_is_kept_over_a_stop),
		ONE_VM(test_a_call_fd_is_replaced_while_the_ring_runs),
		ONE_VM(test_a_driver_without_a_call_fd_polls_its_ring),
		ONE_VM(test_stops_in_the_middle_of_a_transfer_lose_nothing),
		ONE_VM(test_pauses_by_disabling_lose_nothing),
		ONE_VM(test_a_start_at_another_base_drops_connections),
		ONE_VM(test_reset_device_drops_connections_on_the_host),
		ONE_VM(test_reset_device_stops_running_rings),
		ONE_VM(test_reset_owner_disables_rings_and_costs_no_connection),
		ONE_VM(test_the_end_of_a_session_drops_connections_and_the_next_one_works),
		ONE_VM(test_what_a_guest_sent_before_it_left_is_delivered),
		ONE_VM(test_a_second_front_end_waits_until_the_first_one_left),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
