/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/device_rig.h"

static int set_up(void **state)
{
	(void)state;
	rig_start(&(struct rig_options){.is_idle = true});
	rig.in_band = RING_KICKED_IN_BAND | RING_CALLED_IN_BAND | RING_FAILS_IN_BAND;
	for (uint32_t i = 0; i < RINGS; i++) {
		rig_ring_enable(i, true);
		assert_int_equal(rig_ring_start(i, 0, false), 0);
	}
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_end();
	return 0;
}

static int command_ring(Vsockd__Envelope__BodyCase type, uint32_t ring, int fd)
{
	Vsockd__RingKick kick = VSOCKD__RING_KICK__INIT;
	Vsockd__RingCall call = VSOCKD__RING_CALL__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	kick.ring = ring;
	call.ring = ring;
	envelope.body_case = type;
	if (type == VSOCKD__ENVELOPE__BODY_RING_KICK)
		envelope.ring_kick = &kick;
	else
		envelope.ring_call = &call;
	return rig_command(&envelope, fd);
}

static void kick(uint32_t ring)
{
	assert_int_equal(command_ring(VSOCKD__ENVELOPE__BODY_RING_KICK, ring, -1), 0);
}

static uint32_t count_notifications(uint32_t ring, bool is_error)
{
	struct rig_told told;
	uint32_t n = 0;

	while (rig_take_told(VSOCKD__ENVELOPE__BODY_NOTIFY, &told))
		n += told.values[0] == ring && told.values[1] == is_error;
	return n;
}

static void put_rst(void)
{
	struct rig_peer peer = {.guest_port = 1000, .host_port = 80};
	struct packet_header header = rig_header(&peer, PACKET_OP_RST);

	rig_put(&header, NULL);
}

static void test_a_kick_is_answered_when_its_chains_are_used(void **state)
{
	struct rig_told told;

	(void)state;
	put_rst();
	kick(RING_TX);
	assert_int_equal(rig_n_sent(), 1);
	/* And behind the message that tells of it. */
	rig_expect_told(VSOCKD__ENVELOPE__BODY_NOTIFY, &told);
	assert_int_equal(told.values[0], RING_TX);
	assert_false(told.values[2]);
}

static void test_used_chains_are_told_once_for_many_and_no_eventfd_is_touched(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 30; i++)
		put_rst();
	kick(RING_TX);
	assert_int_equal(rig_n_sent(), 30);
	assert_int_equal(count_notifications(RING_TX, false), 1);
	assert_int_equal(rig_calls(RING_TX), 0);
}

static void test_a_ring_that_is_kicked_in_band_is_not_polled(void **state)
{
	(void)state;
	rig_run();
	assert_int_equal(device_timeout(&rig.device), -1);
	rig.in_band = 0;
	rig.rings[RING_TX].kick = -1;
	/* The front-end changed its mind. */
	assert_int_equal(rig_ring_start(RING_TX, 0, false), 0);
	assert_int_equal(device_timeout(&rig.device), 1);
}

static void test_a_broken_ring_is_told_once(void **state)
{
	const uint16_t far = 30000;

	(void)state;
	memcpy(rig.memory + rig.rings[RING_TX].avail + 2, &far, sizeof(far));
	kick(RING_TX);
	kick(RING_TX);
	assert_int_equal(count_notifications(RING_TX, true), 1);
	rig_expect_report(REPORT_RING_BROKEN, NULL);
}

static void test_an_eventfd_takes_the_place_of_messages(void **state)
{
	(void)state;
	assert_int_equal(
		command_ring(VSOCKD__ENVELOPE__BODY_RING_CALL, RING_TX, rig.rings[RING_TX].call),
		0);
	rig_calls(RING_TX);
	put_rst();
	kick(RING_TX);
	assert_int_equal(count_notifications(RING_TX, false), 0);
	assert_int_equal(rig_calls(RING_TX), 1);
}

static void test_a_stopped_ring_is_not_looked_at_when_it_is_kicked(void **state)
{
	(void)state;
	rig_run();
	count_notifications(RING_TX, false);
	assert_int_equal(rig_ring_stop(RING_TX), 0);
	put_rst();
	kick(RING_TX);
	assert_int_equal(rig_n_sent(), 0);
	assert_int_equal(count_notifications(RING_TX, false), 0);
	assert_int_equal(rig_ring_start(RING_TX, 0, false), 0);
	assert_int_equal(rig_n_sent(), 1);
	assert_int_equal(count_notifications(RING_TX, false), 1);
}

static int discard(void)
{
	Vsockd__Discard message = VSOCKD__DISCARD__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	envelope.body_case = VSOCKD__ENVELOPE__BODY_DISCARD;
	envelope.discard = &message;
	rig_post(&envelope, fds[1]);
	close(fds[1]);
	rig_run();
	return fds[0];
}

static bool is_closed_there(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_DONTWAIT) == 0;
}

/* The front closes its own right after the message: the worker must not be faster. */
static void test_what_is_discarded_is_kept_until_the_next(void **state)
{
	int first, second;

	(void)state;
	if (getenv("RIG_HANDS_OVER")) {
		print_message("skipped: each worker keeps its own, and others follow it\n");
		skip();
	}
	first = discard();
	assert_false(is_closed_there(first));
	second = discard();
	assert_true(is_closed_there(first));
	assert_false(is_closed_there(second));
	close(rig.device.discarded);
	close(first);
	close(second);
}

static void test_the_front_names_rings_that_exist(void **state)
{
	Vsockd__RingKick ring_kick = VSOCKD__RING_KICK__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;

	(void)state;
	ring_kick.ring = RINGS;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_RING_KICK;
	envelope.ring_kick = &ring_kick;
	rig_post(&envelope, -1);
	rig_run();
	assert_false(rig.is_attached);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_a_kick_is_answered_when_its_chains_are_used),
		TEST(test_used_chains_are_told_once_for_many_and_no_eventfd_is_touched),
		TEST(test_a_ring_that_is_kicked_in_band_is_not_polled),
		TEST(test_a_broken_ring_is_told_once),
		TEST(test_an_eventfd_takes_the_place_of_messages),
		TEST(test_a_stopped_ring_is_not_looked_at_when_it_is_kicked),
		TEST(test_what_is_discarded_is_kept_until_the_next),
		TEST(test_the_front_names_rings_that_exist),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
