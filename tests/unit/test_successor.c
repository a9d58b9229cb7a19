/* SPDX-License-Identifier: Apache-2.0 */

/* What the front tells a worker and the one that is to go on in its place, and believes of them. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/control.h"
#include "broker/memory_file.h"
#include "tests/unit/front_rig.h"

/* Behind each channel the worker's end of it. */
static struct {
	struct front_rig front;
	struct worker successor;
	int worker, taker;
	int spawner;
	int listener;
} rig;

static int make_spawner(struct front *front)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return -1;
	front->spawner = pair[0];
	rig.spawner = pair[1];
	return 0;
}

static int make_worker(struct worker *worker, int *ret_end)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return -1;
	worker->channel = pair[0];
	worker->buffer = memory_file_make("buffers", 4096);
	worker->buffer_size = 4096;
	*ret_end = pair[1];
	return 0;
}

static int set_up(void **state)
{
	struct front *front = &rig.front.front;
	struct device *device = &rig.front.device;

	(void)state;
	front_rig_init(&rig.front);
	front->epoll = epoll_create1(EPOLL_CLOEXEC);
	front->now = 1000;
	front->is_spawning = true;
	rig.listener = eventfd(0, EFD_CLOEXEC);
	if (!control_init(front, rig.listener, NULL))
		return -1;
	rig.successor = (struct worker){.state = WORKER_SUCCESSOR, .device = device, .number = 1};
	device->has_frontend = true;
	device->restore.result = -ENODATA;
	device->notify.fd = -1;
	device->discarded = -1;
	device->ring_journal = memory_file_make("rings", RING_JOURNAL_LEN);
	device->log_tokens = 1;
	session_init(&device->session, rig.front.vm.guest_cid, SESSION_FEATURES, 0,
		     &sync_operations, device);
	siblings_init(device);
	front->workers = &rig.front.worker;
	front->n_workers = 1;
	if (make_spawner(front) < 0 || make_worker(&rig.front.worker, &rig.worker) < 0 ||
	    make_worker(&rig.successor, &rig.taker) < 0)
		return -1;
	return endpoints_init(&device->endpoints, 1) ? 0 : -1;
}

static int tear_down(void **state)
{
	const int fds[] = {rig.worker,
			   rig.spawner,
			   rig.front.front.spawner,
			   rig.taker,
			   rig.listener,
			   rig.front.worker.channel,
			   rig.front.worker.buffer,
			   rig.successor.channel,
			   rig.successor.buffer,
			   rig.front.device.ring_journal,
			   rig.front.front.epoll};

	(void)state;
	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	session_end(&rig.front.device.session);
	free(rig.front.front.control);
	free(rig.front.device.endpoints.all);
	return 0;
}

static const char *say(struct worker *worker, ProtobufCMessage *body)
{
	Vsockd__Envelope envelope;

	message_wrap(body, &envelope);
	return device_message(&rig.front.device, worker, &envelope);
}

/* The next command to that end of a channel, and what it says of a suspension; 0: there is none. */
static uint32_t take_command(int end, bool *ret_is_on, uint32_t *ret_sequence)
{
	const Vsockd__Envelope *envelope;
	struct channel_packet packet;
	const char *reason;

	if (channel_receive(end, &packet) != 0)
		return 0;
	if (packet.fd >= 0)
		close(packet.fd);
	envelope = message_decode(&packet, MESSAGE_TO_WORKER,
				  (enum message_state)(MESSAGE_SPARE | MESSAGE_ASSIGNED |
						       MESSAGE_TAKING | MESSAGE_FROZEN),
				  &reason);
	assert_non_null(envelope);
	*ret_sequence = envelope->sequence;
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_SUSPEND)
		*ret_is_on = envelope->suspend->is_on;
	return envelope->body_case;
}

/* Obey all commands up to one of that kind; false: it did not come. */
static bool obey_to(struct worker *worker, int end, uint32_t kind, bool *ret_is_on)
{
	uint32_t command, sequence;

	while ((command = take_command(end, ret_is_on, &sequence)) != 0) {
		Vsockd__Done done = VSOCKD__DONE__INIT;

		done.sequence = sequence;
		if (sequence != 0)
			assert_null(say(worker, &done.base));
		if (command == kind)
			return true;
	}
	return false;
}

static void begin_handover(void)
{
	rig.front.device.handover = (struct handover){
		.phase = HANDOVER_STARTING,
		.successor = &rig.successor,
	};
	handover_ready(&rig.front.device);
	assert_int_equal(rig.front.device.handover.phase, HANDOVER_PREPARING);
}

static void test_a_device_is_suspended_when_who_serves_it_is_not_who_may(void **state)
{
	struct device *device = &rig.front.device;
	bool is_on = false;

	(void)state;
	device->is_suspended = true;
	begin_handover();
	assert_true(obey_to(&rig.successor, rig.taker, VSOCKD__ENVELOPE__BODY_SUSPEND, &is_on));
	assert_true(is_on);
	rig.successor.state = WORKER_LEAVING;
	handover_successor_died(device, ECHILD);
	assert_int_equal(device->handover.phase, HANDOVER_NONE);
	assert_false(device_has_settled(device));
	assert_true(obey_to(&rig.front.worker, rig.worker, VSOCKD__ENVELOPE__BODY_SUSPEND, &is_on));
	assert_true(device_has_settled(device));
}

static void test_a_successor_is_told_what_changed_since_it_was_told_all(void **state)
{
	struct device *device = &rig.front.device;
	Vsockd__HandoverDevice told = VSOCKD__HANDOVER_DEVICE__INIT;
	bool is_on = false;

	(void)state;
	/* It goes on, and stops again before anybody but the first worker has known of that. */
	device->told_suspended = true;
	begin_handover();
	device->is_suspended = true;
	assert_true(obey_to(&rig.successor, rig.taker, VSOCKD__ENVELOPE__BODY_HANDOVER_SOCKETS,
			    &is_on));
	assert_false(is_on);
	assert_int_equal(device->handover.phase, HANDOVER_MOVING);
	assert_null(say(&rig.front.worker, &told.base));
	assert_true(
		obey_to(&rig.front.worker, rig.worker, VSOCKD__ENVELOPE__BODY_HANDOVER, &is_on));
	assert_true(
		obey_to(&rig.successor, rig.taker, VSOCKD__ENVELOPE__BODY_HANDOVER_COMMIT, &is_on));
	assert_int_equal(device->handover.phase, HANDOVER_NONE);
	assert_false(device_has_settled(device));
	assert_true(obey_to(&rig.successor, rig.taker, VSOCKD__ENVELOPE__BODY_SUSPEND, &is_on));
	assert_true(is_on);
	assert_true(device_has_settled(device));
}

static void test_a_device_is_handed_over_once(void **state)
{
	Vsockd__HandoverDevice told = VSOCKD__HANDOVER_DEVICE__INIT;
	bool is_on;

	(void)state;
	begin_handover();
	assert_true(obey_to(&rig.successor, rig.taker, VSOCKD__ENVELOPE__BODY_HANDOVER_SOCKETS,
			    &is_on));
	assert_null(say(&rig.front.worker, &told.base));
	/* Or the time that there is for it would begin anew. */
	rig.front.front.now += 1000;
	assert_non_null(say(&rig.front.worker, &told.base));
}

/* Until the worker has no room for any more. */
static void fill_channel(void)
{
	Vsockd__Abort abort = VSOCKD__ABORT__INIT;

	while (worker_send(&rig.front.front, &rig.front.worker, 0, &abort.base, -1) == 0)
		;
	assert_true(rig.front.worker.wants_write);
}

static void test_a_worker_that_reads_nothing_is_ended_as_one_that_does_not_answer(void **state)
{
	struct front *front = &rig.front.front;
	struct device *device = &rig.front.device;

	(void)state;
	fill_channel();
	/* No command can be sent, so there is none whose answer could be late. */
	device_suspend(device, true);
	assert_false(device->sync.is_sent);
	assert_true(workers_deadline(front) <= front->now + 5000);
	front->now = workers_deadline(front) - 1;
	workers_run_timers(front);
	assert_ptr_equal(device->worker, &rig.front.worker);
	front->now++;
	workers_run_timers(front);
	assert_null(device->worker);
	assert_int_equal(rig.front.worker.state, WORKER_LEAVING);
	assert_true(rig.front.worker.is_stopped);
}

static void test_a_worker_that_reads_has_all_the_time_that_it_needs(void **state)
{
	struct front *front = &rig.front.front;
	struct channel_packet packet;

	(void)state;
	for (int i = 0; i < 4; i++) {
		fill_channel();
		front->now += 4000;
		workers_run_timers(front);
		assert_int_equal(channel_receive(rig.worker, &packet), 0);
		workers_event(front, &rig.front.worker, EPOLLOUT);
	}
	assert_int_equal(workers_deadline(front), UINT64_MAX);
	assert_ptr_equal(rig.front.device.worker, &rig.front.worker);
}

/* As a worker that is busy with a step, so one that has gone: nobody else reminds of a message. */
static void test_the_end_of_a_worker_lets_the_next_message_in(void **state)
{
	struct device *device = &rig.front.device;

	(void)state;
	device_suspend(device, true);
	assert_true(device->sync.is_sent);
	device->has_failed = true;
	device->has_more = false;
	worker_kill(&rig.front.worker, &rig.front.front);
	assert_null(device->worker);
	assert_true(device->has_more);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_a_device_is_suspended_when_who_serves_it_is_not_who_may),
		WITH_RIG(test_a_successor_is_told_what_changed_since_it_was_told_all),
		WITH_RIG(test_a_device_is_handed_over_once),
		WITH_RIG(test_a_worker_that_reads_nothing_is_ended_as_one_that_does_not_answer),
		WITH_RIG(test_a_worker_that_reads_has_all_the_time_that_it_needs),
		WITH_RIG(test_the_end_of_a_worker_lets_the_next_message_in),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
