/* SPDX-License-Identifier: Apache-2.0 */

/*
 * "Ring states" of the vhost-user document, each transition in each way of
 * negotiating and notifying there is: with feature bit 30 and without, kicked by
 * eventfd, in band or not at all, with a kick injected behind the start or none,
 * with event indices or without.
 */

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
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

/* Workers that may die in a row, see vsockd-migration(7). */
#define DEATHS_MAX 8

/* Far from any index that the device has reached. */
#define STALE 0x7a7a

static int start_in_band(void **state)
{
	struct setup *setup = calloc(1, sizeof(*setup));

	assert_non_null(setup);
	setup_start(setup, 1, "offer=inband-notifications", NULL);
	*state = setup;
	return 0;
}

struct way {
	enum guest_signals signals;
	bool omits_protocol_bit, injects_kicks, has_event_idx;
	enum guest_style style;
};

static struct guest_options options_of(const struct way *way)
{
	return (struct guest_options){
		.style = way->style,
		/* More than the VMM of that style would acknowledge. */
		.protocol_features = way->signals == GUEST_SIGNALS_IN_BAND ? UINT64_MAX : 0,
		.signals = way->signals,
		.omits_protocol_bit = way->omits_protocol_bit,
		.injects_kicks = way->injects_kicks,
		.is_prefilled = way->style != GUEST_LIKE_CLOUD_HYPERVISOR,
		.features = BIT64(VIRTIO_VERSION_1) | BIT64(VIRTIO_INDIRECT) |
			    (way->has_event_idx ? BIT64(VIRTIO_EVENT_IDX) : 0),
	};
}

/* The kicks of everything that was offered so far never arrive. */
static void swallow_kicks(struct guest *guest)
{
	uint64_t count;

	for (size_t i = 0; i < guest->n_rings; i++)
		while (read(guest->rings[i].kick, &count, sizeof(count)) > 0)
			;
}

/* Behind which chain the device wants to be kicked. */
static uint16_t *avail_event(const struct ring *ring)
{
	return ring->is_packed ? ring->used : ring->used + 2 + 4 * (size_t)ring->size;
}

struct pair {
	struct setup *setup;
	struct guest *guest;
	struct guest_connection *connection;
	struct host_stream stream;
	size_t n_up, n_down; /* bytes that have to arrive */
};

static bool has_all(void *context)
{
	const struct pair *pair = context;

	return pair->stream.n_received >= pair->n_up &&
	       pair->connection->n_received >= pair->n_down;
}

/* Bytes both ways, on their way; whether they arrive is the device's business. */
static void send_both(struct pair *pair)
{
	assert_int_equal(guest_send(pair->connection, "12345", 5), 5);
	assert_int_equal(host_write(pair->stream.watch.fd, "abc", 3, LIMIT), 0);
	pair->n_up += 5;
	pair->n_down += 3;
}

static void expect_both(struct pair *pair)
{
	if (guest_wait_until(pair->guest, has_all, pair, LIMIT) != 0)
		fail_msg("host got %zu of %zu, guest %zu of %zu: %s", pair->stream.n_received,
			 pair->n_up, (size_t)pair->connection->n_received, pair->n_down,
			 guest_violations(pair->guest));
}

/* Nothing of what was sent arrives, and no used index moves. */
static void expect_nothing(struct pair *pair)
{
	uint16_t used[GUEST_RINGS];

	for (size_t i = 0; i < pair->guest->n_rings; i++)
		used[i] = ring_used_idx(&pair->guest->rings[i]);
	poll(NULL, 0, NOTHING_HAPPENS);
	for (size_t i = 0; i < pair->guest->n_rings; i++)
		assert_int_equal(ring_used_idx(&pair->guest->rings[i]), used[i]);
}

static void stop(struct guest *guest)
{
	assert_int_equal(guest_stop(guest), 0);
}

static void resume(struct guest *guest)
{
	assert_int_equal(guest_resume(guest), 0);
}

/* Stopped: left alone, whatever is offered; started: all of it, without a kick. */
static void walk_stop_and_start(struct pair *pair)
{
	struct guest *guest = pair->guest;
	uint32_t base;

	stop(guest);
	send_both(pair);
	swallow_kicks(guest);
	expect_nothing(pair);
	for (uint32_t i = 0; i < guest->n_rings; i++) {
		assert_int_equal(vhost_get_ring_base(&guest->vhost, i, &base), 0);
		assert_int_equal(base, guest->base[i]);
		*avail_event(&guest->rings[i]) = STALE;
	}
	resume(guest);
	if (!guest->options.injects_kicks)
		swallow_kicks(guest);
	expect_both(pair);
	/* Ring 1 wants kicks whenever it is idle: the driver has to find the true index. */
	assert_true((guest->vhost.features & BIT64(VIRTIO_EVENT_IDX)) == 0 ||
		    *avail_event(&guest->rings[GUEST_TX]) != STALE);
}

/* Disabled: left alone as well; a kick in between is not lost. */
static void walk_disable_and_enable(struct pair *pair, bool is_kicked)
{
	assert_int_equal(guest_enable(pair->guest, false), 0);
	send_both(pair);
	if (is_kicked)
		ring_kick(&pair->guest->rings[GUEST_TX]);
	else
		swallow_kicks(pair->guest);
	expect_nothing(pair);
	assert_int_equal(guest_enable(pair->guest, true), 0);
	expect_both(pair);
}

/* Enabled while it is stopped, started while it is disabled. */
static void walk_both(struct pair *pair)
{
	struct guest *guest = pair->guest;
	struct vhost *vhost = &guest->vhost;

	stop(guest);
	for (uint32_t i = 0; i < guest->n_rings; i++)
		assert_int_equal(vhost_set_ring(vhost, VHOST_SET_VRING_ENABLE, i, 1), 0);
	send_both(pair);
	expect_nothing(pair);
	for (uint32_t i = 0; i < guest->n_rings; i++)
		assert_int_equal(vhost_set_ring(vhost, VHOST_SET_VRING_ENABLE, i, 0), 0);
	resume(guest); /* QEMU and cloud-hypervisor start all rings, then enable them */
	expect_both(pair);
}

/* What starts a ring may be said again of one that is started. */
static void walk_start_again(struct pair *pair)
{
	struct guest *guest = pair->guest;

	for (uint32_t i = 0; i < guest->n_rings; i++) {
		if (guest->options.signals == GUEST_SIGNALS_IN_BAND)
			assert_int_equal(vhost_set_ring(&guest->vhost, VHOST_VRING_KICK, i, 0), 0);
		else
			assert_int_equal(vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_KICK, i,
							   guest->rings[i].kick),
					 0);
	}
	send_both(pair);
	expect_both(pair);
}

static void walk(struct setup *setup, const struct way *way)
{
	struct pair pair = {.setup = setup, .guest = setup_guest(setup, 0, options_of(way))};

	pair.connection = setup_connect(setup, 0, 1000, &pair.stream);
	send_both(&pair);
	expect_both(&pair);
	walk_stop_and_start(&pair);
	if (!way->omits_protocol_bit) {
		walk_disable_and_enable(&pair, false);
		walk_disable_and_enable(&pair, true);
		walk_both(&pair);
	}
	walk_start_again(&pair);
	walk_stop_and_start(&pair);
	assert_int_equal(guest_finish(pair.connection, LIMIT), 0);
	setup_end_stream(setup, 0, &pair.stream);
	assert_int_equal(guest_reset(pair.guest), 0);
	resume(pair.guest);
	transfer_all(setup, 0, 1001, 300 * KIB);
	setup_end_guest(setup, 0);
}

static void walk_all(struct setup *setup, enum guest_style style)
{
	for (unsigned int i = 0; i < 24; i++) {
		const struct way way = {
			.signals = (enum guest_signals)(i / 8),
			.omits_protocol_bit = i & 1,
			.injects_kicks = i & 2,
			.has_event_idx = i & 4,
			.style = style,
		};

		print_message("signals %d, bit 30 %d, injected kick %d, event index %d\n",
			      (int)way.signals, !way.omits_protocol_bit, way.injects_kicks,
			      way.has_event_idx);
		walk(setup, &way);
	}
}

static void test_rings_start_stop_and_pause_in_every_way_as_in_qemu(void **state)
{
	walk_all(*state, GUEST_LIKE_QEMU);
}

static void test_rings_start_stop_and_pause_in_every_way_as_in_cloud_hypervisor(void **state)
{
	walk_all(*state, GUEST_LIKE_CLOUD_HYPERVISOR);
}

static void test_rings_start_stop_and_pause_in_every_way_as_in_crosvm(void **state)
{
	walk_all(*state, GUEST_LIKE_CROSVM);
}

/* ---- in band ---- */

static struct guest *start_guest(struct setup *setup, struct guest_options options)
{
	options.signals = GUEST_SIGNALS_IN_BAND;
	return setup_guest(setup, 0, options);
}

static void test_a_driver_without_any_eventfd_moves_every_byte(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, (struct guest_options){0});
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 2048 * KIB);
	for (size_t n = 200; n < 2000; n += 200) {
		transfer_run_to(&transfer, n * KIB);
		stop(guest);
		transfer_step(&transfer, 0);
		resume(guest);
	}
	transfer_finish(&transfer);
	assert_true(guest_statistics(guest, GUEST_RX).n_calls > 0);
	/* One message for a batch: never more of them than chains came back. */
	assert_true(guest_statistics(guest, GUEST_RX).n_calls <=
		    ring_used_idx(&guest->rings[GUEST_RX]));
}

/* Linux on UML kicks ring 1 when it has something to say, and never before. */
static void test_host_programs_are_served_before_the_first_packet_of_the_guest(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, (struct guest_options){.starts_tx_late = true});
	struct guest_connection *connection;
	struct host_stream stream;

	assert_int_equal(guest_listen(guest, 77), 0);
	host_stream_init(&stream, host_connect(setup->uds_paths[0], 77, LIMIT));
	assert_true(stream.watch.fd >= 0);
	guest_watch(guest, &stream.watch);
	connection = guest_accept_wait(guest, 77, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

/* QEMU acknowledges whatever is offered, and goes on with its eventfds. */
static void test_eventfds_are_preferred_to_messages(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	assert_true(vhost_has(&guest->vhost, VHOST_PROTOCOL_INBAND_NOTIFICATIONS));
	transfer_all(setup, 0, 1000, 300 * KIB);
	/* The guest would note any message of the back-end. */
	assert_int_equal(guest_poll_for(guest, NOTHING_HAPPENS), 0);
}

static void test_an_eventfd_may_take_the_place_of_messages(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, (struct guest_options){0});
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 300 * KIB);
	for (uint32_t i = 0; i < guest->n_rings; i++) {
		struct ring *ring = &guest->rings[i];

		assert_int_equal(
			vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_CALL, i, ring->call), 0);
		assert_int_equal(
			vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_KICK, i, ring->kick), 0);
		ring->on_kick = NULL;
	}
	/* What was said before; from now on it would be a violation. */
	guest_in_band_drain(guest);
	guest->options.signals = GUEST_SIGNALS_FD;
	transfer_finish(&transfer);
}

static void test_polling_may_take_the_place_of_messages(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, (struct guest_options){0});

	for (uint32_t i = 0; i < guest->n_rings; i++) {
		assert_int_equal(vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_KICK, i, -1), 0);
		guest->rings[i].on_kick = NULL;
	}
	/* Its kicks now go into eventfds that the back-end never saw. */
	transfer_all(setup, 0, 1000, 300 * KIB);
}

static void test_a_broken_ring_is_told_in_band(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, (struct guest_options){0});
	int64_t deadline = deadline_in(LIMIT);

	ring_offer_descriptor(&guest->rings[GUEST_TX], 1, 1, 0, 0);
	ring_kick(&guest->rings[GUEST_TX]);
	while (guest->n_ring_errors == 0) {
		assert_true(deadline_left(deadline) > 0);
		assert_true(guest_poll(guest, 10) >= 0);
	}
	assert_int_equal(guest->n_ring_errors, 1);
	assert_string_equal(guest_violations(guest), "");
}

/* There is no worker any more that could say it: the front does. */
static void test_a_device_that_failed_is_told_in_band(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, (struct guest_options){0});
	int64_t deadline = deadline_in(LIMIT);

	for (unsigned int i = 0; i < DEATHS_MAX; i++)
		assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, "device failed", LIMIT), 0);
	while (guest->n_ring_errors < guest->n_rings) {
		assert_true(deadline_left(deadline) > 0);
		assert_true(guest_poll(guest, 10) >= 0);
	}
	assert_int_equal(guest->n_ring_errors, guest->n_rings);
	assert_string_equal(guest_violations(guest), "");
	setup_end_guest(setup, 0);
	start_guest(setup, (struct guest_options){0});
	transfer_all(setup, 0, 1000, 300 * KIB);
}

/* A front-end that does not read costs one message a ring, and is told when it does. */
static void test_a_front_end_that_does_not_read_is_not_waited_for(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, (struct guest_options){0});
	struct guest_connection *connection;
	struct host_stream stream;
	int64_t deadline = deadline_in(LIMIT);
	static uint8_t bytes[64 * KIB];
	size_t n_host = 0;
	int filler = dup(guest->backend_fd), size = 1;

	assert_true(filler >= 0);
	assert_int_equal(setsockopt(filler, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)), 0);
	connection = setup_connect(setup, 0, 1000, &stream);
	stream.discards = true;
	/* The driver looks at its rings unasked, and reads no message. */
	for (unsigned int i = 0; i < 5000; i++) {
		ssize_t n;

		assert_true(deadline_left(deadline) > 0);
		ring_expect_call(&guest->rings[GUEST_RX]);
		ring_expect_call(&guest->rings[GUEST_TX]);
		n = send(stream.watch.fd, bytes, 64, MSG_DONTWAIT | MSG_NOSIGNAL);
		n_host += n > 0 ? (size_t)n : 0;
		assert_true(guest_process(guest) >= 0);
	}
	assert_true(n_host > 0);
	/* Now it reads: no call is missing at the end. */
	connection->sink = NULL;
	while (connection->n_received < n_host) {
		assert_true(deadline_left(deadline) > 0);
		assert_true(guest_poll(guest, 100) >= 0);
		while (guest_receive(connection, bytes, sizeof(bytes)) > 0)
			;
	}
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	close(filler);
}

static void test_the_back_end_channel_may_be_replaced(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = start_guest(setup, (struct guest_options){0});
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	for (size_t n = 100; n < 900; n += 100) {
		int pair[2];

		transfer_run_to(&transfer, n * KIB);
		assert_int_equal(
			socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair),
			0);
		assert_int_equal(
			vhost_send(&guest->vhost, VHOST_SET_BACKEND_REQ_FD, NULL, 0, &pair[1], 1),
			0);
		guest_in_band_drain(guest);
		close(pair[1]);
		close(guest->backend_fd);
		guest->backend_fd = pair[0];
		guest->is_backend_closed = false;
	}
	transfer_finish(&transfer);
}

static void test_a_worker_that_dies_has_a_successor_that_notifies_in_band(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;

	start_guest(setup, (struct guest_options){0});
	transfer_start(&transfer, setup, 0, 1000, 2048 * KIB);
	transfer_run_to(&transfer, 300 * KIB);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	transfer_expect_loss(&transfer, LIMIT);
	transfer_all(setup, 0, 1001, 300 * KIB);
}

/* ---- refusals ---- */

static void open_vhost(struct setup *setup, struct vhost *ret_vhost, uint64_t features)
{
	uint64_t value;

	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, ret_vhost), 0);
	assert_int_equal(vhost_get_u64(ret_vhost, VHOST_GET_PROTOCOL_FEATURES, &value), 0);
	assert_int_equal(value & features, features);
	assert_int_equal(vhost_set_u64(ret_vhost, VHOST_SET_PROTOCOL_FEATURES, features), 0);
}

#define ACK	    BIT64(VHOST_PROTOCOL_REPLY_ACK)
#define BACKEND_REQ BIT64(VHOST_PROTOCOL_BACKEND_REQ)
#define IN_BAND	    BIT64(VHOST_PROTOCOL_INBAND_NOTIFICATIONS)

static void test_in_band_notifications_need_a_channel_and_acks(void **state)
{
	static const uint64_t lacking[] = {IN_BAND, IN_BAND | ACK, IN_BAND | BACKEND_REQ};
	struct setup *setup = *state;
	struct vhost vhost;

	for (size_t i = 0; i < sizeof(lacking) / sizeof(lacking[0]); i++) {
		open_vhost(setup, &vhost, 0);
		vhost_set_u64(&vhost, VHOST_SET_PROTOCOL_FEATURES, lacking[i]);
		assert_int_equal(vhost_wait_closed(&vhost), 0);
		vhost_close(&vhost);
	}
	assert_true(daemon_log_has(&setup->daemon, "without BACKEND_REQ and REPLY_ACK"));
}

static void test_a_ring_that_is_not_set_up_is_not_kicked(void **state)
{
	struct vhost vhost;

	open_vhost(*state, &vhost, ACK | BACKEND_REQ | IN_BAND);
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(vhost_set_ring(&vhost, VHOST_VRING_KICK, i, 0), VHOST_E_NACK);
	assert_int_equal(vhost_set_ring(&vhost, VHOST_VRING_KICK, 0, 1), VHOST_E_NACK);
	vhost_close(&vhost);
}

static void test_the_back_end_channel_is_a_unix_socket(void **state)
{
	struct vhost vhost;
	int fds[2], fd;

	open_vhost(*state, &vhost, ACK | BACKEND_REQ | IN_BAND);
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(vhost_send(&vhost, VHOST_SET_BACKEND_REQ_FD, NULL, 0, &fds[1], 1),
			 VHOST_E_NACK);
	close(fds[0]);
	close(fds[1]);
	fd = eventfd(0, EFD_CLOEXEC);
	assert_int_equal(vhost_send(&vhost, VHOST_SET_BACKEND_REQ_FD, NULL, 0, &fd, 1),
			 VHOST_E_NACK);
	close(fd);
	assert_int_equal(vhost_send(&vhost, VHOST_SET_BACKEND_REQ_FD, NULL, 0, NULL, 0),
			 VHOST_E_NACK);
	vhost_close(&vhost);
}

static void test_nothing_of_it_is_offered_unasked(void **state)
{
	struct vhost vhost;
	uint64_t value;

	assert_int_equal(vhost_connect(((struct setup *)*state)->sockets[0], LIMIT, &vhost), 0);
	assert_int_equal(vhost_get_u64(&vhost, VHOST_GET_PROTOCOL_FEATURES, &value), 0);
	assert_int_equal(value & (BACKEND_REQ | IN_BAND), 0);
	vhost_close(&vhost);
}

int main(void)
{
#define IN_BAND_VM(name) cmocka_unit_test_setup_teardown(name, start_in_band, setup_end)
	const struct CMUnitTest tests[] = {
		IN_BAND_VM(test_rings_start_stop_and_pause_in_every_way_as_in_qemu),
		IN_BAND_VM(test_rings_start_stop_and_pause_in_every_way_as_in_cloud_hypervisor),
		IN_BAND_VM(test_rings_start_stop_and_pause_in_every_way_as_in_crosvm),
		IN_BAND_VM(test_a_driver_without_any_eventfd_moves_every_byte),
		IN_BAND_VM(test_host_programs_are_served_before_the_first_packet_of_the_guest),
		IN_BAND_VM(test_eventfds_are_preferred_to_messages),
		IN_BAND_VM(test_an_eventfd_may_take_the_place_of_messages),
		IN_BAND_VM(test_polling_may_take_the_place_of_messages),
		IN_BAND_VM(test_a_broken_ring_is_told_in_band),
		IN_BAND_VM(test_a_device_that_failed_is_told_in_band),
		IN_BAND_VM(test_a_front_end_that_does_not_read_is_not_waited_for),
		IN_BAND_VM(test_the_back_end_channel_may_be_replaced),
		IN_BAND_VM(test_a_worker_that_dies_has_a_successor_that_notifies_in_band),
		IN_BAND_VM(test_in_band_notifications_need_a_channel_and_acks),
		IN_BAND_VM(test_a_ring_that_is_not_set_up_is_not_kicked),
		IN_BAND_VM(test_the_back_end_channel_is_a_unix_socket),
		cmocka_unit_test_setup_teardown(test_nothing_of_it_is_offered_unasked,
						setup_start_one, setup_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
