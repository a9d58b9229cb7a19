/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.features = RIG_F_EVENT_IDX});
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static void suspend(bool is_on)
{
	Vsockd__Suspend message = VSOCKD__SUSPEND__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	message.is_on = is_on;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_SUSPEND;
	envelope.suspend = &message;
	assert_int_equal(rig_command(&envelope, -1), 0);
}

static void offer_all(const struct rig_peer *peer)
{
	rig_say(peer, PACKET_OP_CREDIT_REQUEST, 0);
	rig_rw(peer, "asleep", 6);
	rig_host_writes(peer, "awake?", 6);
}

static void test_rings_that_run_are_left_alone_and_looked_at_afterwards(void **state)
{
	uint8_t *before = malloc(RIG_MEMORY_SIZE);
	struct rig_peer peer;

	(void)state;
	assert_non_null(before);
	rig_offer(20, 4096);
	peer = rig_guest_connects(1000, 80);
	rig_run();
	suspend(true);
	rig_calls(RING_RX);
	rig_calls(RING_TX);
	offer_all(&peer);
	memcpy(before, rig.memory, RIG_MEMORY_SIZE);
	rig_sleep(20000);
	assert_memory_equal(before, rig.memory, RIG_MEMORY_SIZE);
	assert_int_equal(rig_calls(RING_RX), 0);
	assert_int_equal(rig_calls(RING_TX), 0);
	rig_host_reads_nothing(&peer);

	suspend(false);
	rig_run();
	rig_host_reads(&peer, "asleep", 6);
	rig_expect(&peer, PACKET_OP_RW);
	rig_close_host(&peer);
	free(before);
}

/* A start writes avail_event: a ring that is suspended is started without. */
static void test_a_ring_is_started_without_a_touch(void **state)
{
	uint8_t *before = malloc(RIG_MEMORY_SIZE);

	(void)state;
	assert_non_null(before);
	rig_stop_rings();
	suspend(true);
	memset(rig.memory + rig.rings[RING_TX].used + 4 + 8 * (size_t)rig.rings[RING_TX].num, 0x5a,
	       2);
	memcpy(before, rig.memory, RIG_MEMORY_SIZE);
	rig_start_rings();
	rig_ring_enable(RING_TX, false);
	rig_ring_enable(RING_TX, true);
	assert_memory_equal(before, rig.memory, RIG_MEMORY_SIZE);
	suspend(false);
	assert_memory_not_equal(before, rig.memory, RIG_MEMORY_SIZE);
	free(before);
}

static void test_a_polled_ring_wakes_nobody(void **state)
{
	(void)state;
	rig.in_band = 0;
	rig_stop_rings();
	rig.rings[RING_TX].kick = -1;
	rig_start_rings();
	assert_int_equal(device_timeout(&rig.device), 1);
	suspend(true);
	assert_int_equal(device_timeout(&rig.device), -1);
	suspend(false);
	assert_int_equal(device_timeout(&rig.device), 1);
}

static uint32_t count_saved(void)
{
	Vsockd__StateSave save = VSOCKD__STATE_SAVE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	uint8_t bytes[4096];
	uint32_t count;
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_STATE_SAVE;
	envelope.state_save = &save;
	assert_int_equal(rig_command(&envelope, fds[1]), 0);
	close(fds[1]);
	rig_run();
	assert_true(read(fds[0], bytes, sizeof(bytes)) >= 40);
	close(fds[0]);
	memcpy(&count, bytes + 36, sizeof(count));
	return count;
}

/* The guest believes in what it was not told the end of. */
static void test_a_state_names_connections_whose_end_the_guest_has_not_seen(void **state)
{
	struct rig_peer peer, stranger = {.guest_port = 2000, .host_port = 99};

	(void)state;
	rig_offer(1, 4096);
	peer = rig_guest_connects(1000, 80);
	assert_int_equal(count_saved(), 1);
	/* No buffer is left for either RST. */
	rig_say(&peer, PACKET_OP_RESPONSE, 0);
	rig_say(&peer, PACKET_OP_REQUEST, 0);
	assert_int_equal(count_saved(), 1);
	rig_say(&stranger, PACKET_OP_RW, 0);
	assert_int_equal(count_saved(), 2);
	rig_offer(2, 4096);
	rig_run();
	assert_int_equal(count_saved(), 0);
}

/* And not in what it was never told of. */
static void test_a_state_names_no_connection_that_the_guest_never_saw(void **state)
{
	struct rig_peer peer = {.guest_port = 9};

	(void)state;
	peer.endpoint = rig_accept(&peer.host);
	rig_host_writes(&peer, "CONNECT 9\n", 10);
	assert_int_equal(count_saved(), 0);
	rig_offer(1, 4096);
	rig_run();
	assert_int_equal(count_saved(), 1);
	rig_close_host(&peer);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_rings_that_run_are_left_alone_and_looked_at_afterwards),
		TEST(test_a_ring_is_started_without_a_touch),
		TEST(test_a_polled_ring_wakes_nobody),
		TEST(test_a_state_names_connections_whose_end_the_guest_has_not_seen),
		TEST(test_a_state_names_no_connection_that_the_guest_never_saw),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
