/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A ring that is stopped and started at every point of a transfer: the guest has one
 * buffer a direction, so between two steps there is at most one packet each way. Every
 * byte arrives once, and the base is always where the ring stood.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define LEN   (100 * KIB) /* some hundred packets */
#define LIMIT SETUP_LIMIT

enum way {
	ONE_RING,  /* in turns; the other one goes on */
	BOTH,	   /* told nothing but base and kick */
	THE_DEVICE /* all of it is told anew, as the VMM does */
};

static struct guest *start_guest(struct setup *setup, enum guest_style style)
{
	return setup_guest(setup, 0,
			   (struct guest_options){
				   .style = style,
				   .rx_buffer_size = 1024,
				   .n_rx_buffers = 1,
				   .n_tx_buffers = 1,
			   });
}

static uint32_t stop_ring(struct guest *guest, uint32_t index)
{
	const struct ring *ring = &guest->rings[index];
	uint32_t base = 0, again = 0;

	assert_int_equal(vhost_get_ring_base(&guest->vhost, index, &base), 0);
	assert_int_equal(vhost_get_ring_base(&guest->vhost, index, &again), 0);
	assert_int_equal(again, base);
	/* What was taken was given back, and nothing behind it was looked at. */
	assert_null(ring_judge_base(ring, base));
	return base;
}

static void start_ring(struct guest *guest, uint32_t index, uint32_t base)
{
	struct vhost *vhost = &guest->vhost;

	assert_int_equal(vhost_set_ring(vhost, VHOST_SET_VRING_BASE, index, base), 0);
	assert_int_equal(
		vhost_set_ring_fd(vhost, VHOST_SET_VRING_KICK, index, guest->rings[index].kick), 0);
}

static void stop_and_start(struct guest *guest, enum way way, unsigned int n)
{
	uint32_t bases[2];

	switch (way) {
	case ONE_RING:
		start_ring(guest, n % 2, stop_ring(guest, n % 2));
		return;
	case BOTH:
		for (uint32_t i = 0; i < 2; i++)
			bases[i] = stop_ring(guest, i);
		for (uint32_t i = 0; i < 2; i++)
			start_ring(guest, i, bases[i]);
		return;
	case THE_DEVICE:
		assert_int_equal(guest_stop(guest), 0);
		assert_int_equal(guest_resume(guest), 0);
		return;
	}
}

static bool is_done(const struct transfer *transfer)
{
	return transfer->n_to_guest == LEN && transfer->stream.n_received == LEN;
}

static void run(struct setup *setup, enum guest_style style, enum way way)
{
	struct guest *guest = start_guest(setup, style);
	int64_t deadline = deadline_in(4 * LIMIT);
	struct transfer transfer;
	unsigned int n = 0;

	transfer_start(&transfer, setup, 0, 1000, LEN);
	transfer.connection->packet_size = 700;
	while (!is_done(&transfer)) {
		if (deadline_left(deadline) == 0)
			fail_msg("style %d, way %d, %u stops: guest got %zu, host %zu", style, way,
				 n, transfer.n_to_guest, transfer.stream.n_received);
		transfer_step(&transfer, 0);
		stop_and_start(guest, way, n++);
	}
	/* Not all of it between two stops. */
	assert_true(n > 80);
	transfer_finish(&transfer);
	setup_end_guest(setup, 0);
}

static void run_all(struct setup *setup, enum way way)
{
	for (int style = GUEST_LIKE_QEMU; style <= GUEST_LIKE_CLOUD_HYPERVISOR; style++)
		run(setup, (enum guest_style)style, way);
}

static void test_one_ring_stops_at_every_point_and_the_other_goes_on(void **state)
{
	run_all(*state, ONE_RING);
}

static void test_both_rings_stop_at_every_point(void **state)
{
	run_all(*state, BOTH);
}

static void test_the_device_is_suspended_at_every_point(void **state)
{
	run_all(*state, THE_DEVICE);
}

#define ONE_VM(f) cmocka_unit_test_setup_teardown(f, setup_start_one, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ONE_VM(test_one_ring_stops_at_every_point_and_the_other_goes_on),
		ONE_VM(test_both_rings_stop_at_every_point),
		ONE_VM(test_the_device_is_suspended_at_every_point),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
