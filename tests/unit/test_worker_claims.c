/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a worker in wrong hands may say: each message that the table lets through, at a time
 * when this front has no reason to hear it. The reason that is returned ends the worker.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/front_rig.h"

#define ENDPOINTS 4

static struct front_rig rig;
static struct worker stranger;

static int set_up(void **state)
{
	(void)state;
	front_rig_init(&rig);
	stranger = (struct worker){.state = WORKER_SUCCESSOR, .device = &rig.device};
	return endpoints_init(&rig.device.endpoints, ENDPOINTS) ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	free(rig.device.endpoints.all);
	return 0;
}

static const char *say(const struct worker *worker, const ProtobufCMessage *body)
{
	Vsockd__Envelope envelope;

	message_wrap((ProtobufCMessage *)(uintptr_t)body, &envelope);
	return device_message(&rig.device, worker, &envelope);
}

/* One of each type that the other tests of it have no use for; numbers are 0. */
static const struct {
	const ProtobufCMessageDescriptor *type;
	const char *reason; /* NULL: it is taken for one that is late */
} claims[] = {
	{&vsockd__done__descriptor, "Done that nobody waits for"},
	{&vsockd__handover_device__descriptor, "a handover that nobody asked for"},
	{&vsockd__handover_ring__descriptor, "a handover that nobody asked for"},
	{&vsockd__handover_connections__descriptor, "a handover that nobody asked for"},
	{&vsockd__handover_more__descriptor, "a handover that nobody asked for"},
	{&vsockd__handover_list__descriptor, "a handover that nobody asked for"},
	{&vsockd__handover_orphan__descriptor, "a handover that nobody asked for"},
	{&vsockd__connect__descriptor, "Connect of a type"},
	{&vsockd__closed__descriptor, "Closed for a connection that is not open"},
	{&vsockd__cancel__descriptor, NULL},
	{&vsockd__answered__descriptor, "Answered for a connection that no guest asked for"},
	{&vsockd__opened__descriptor, "Opened for a connection that is not in its handshake"},
	{&vsockd__report__descriptor, "Report of an unknown event"},
	{&vsockd__counters__descriptor, "not asked"},
	{&vsockd__connection_info__descriptor, "not asked"},
	{&vsockd__connections_end__descriptor, "not asked"},
	{&vsockd__notify__descriptor, "Notify without in-band notifications"},
	{&vsockd__state_connection__descriptor, "StateConnection outside of a load"},
	{&vsockd__state_info__descriptor, "StateInfo outside of a load"},
	{&vsockd__state_done__descriptor, "StateDone without a transfer"},
	{&vsockd__reset_announced__descriptor, "ResetAnnounced that was not ordered"},
	{&vsockd__reset_sent__descriptor, "ResetSent that was not ordered"},
	{&vsockd__reset_handled__descriptor, "ResetHandled for what was not sent"},
	{&vsockd__ready__descriptor, "message without a handler"},
};
#define CLAIMS (sizeof(claims) / sizeof(claims[0]))

static const char *say_any(const struct worker *worker, const ProtobufCMessageDescriptor *type)
{
	static max_align_t bytes[CHANNEL_MESSAGE_MAX];
	ProtobufCMessage *body = (ProtobufCMessage *)(void *)bytes;

	assert_true(type->sizeof_message <= sizeof(bytes));
	protobuf_c_message_init(type, body);
	return say(worker, body);
}

static void test_what_nobody_asked_for_ends_the_worker(void **state)
{
	(void)state;
	for (size_t i = 0; i < CLAIMS; i++) {
		const char *reason = say_any(&rig.worker, claims[i].type);

		if (!claims[i].reason)
			assert_null(reason);
		else if (!reason || !strstr(reason, claims[i].reason))
			fail_msg("%s: %s", claims[i].type->short_name, reason ? reason : "taken");
	}
	assert_int_equal(rig.device.endpoints.n_used, 0);
}

static void test_a_successor_speaks_of_nothing_but_what_it_was_told(void **state)
{
	(void)state;
	for (size_t i = 1; i < CLAIMS; i++) {
		const char *reason = say_any(&stranger, claims[i].type);

		if (!reason || !strstr(reason, "successor"))
			fail_msg("%s: %s", claims[i].type->short_name, reason ? reason : "taken");
	}
	/* Done it says, but of nothing. */
	assert_non_null(say_any(&stranger, claims[0].type));
}

static const char *say_closed(uint32_t endpoint)
{
	Vsockd__Closed closed = VSOCKD__CLOSED__INIT;

	closed.endpoint = endpoint;
	return say(&rig.worker, &closed.base);
}

static const char *say_opened(uint32_t endpoint)
{
	Vsockd__Opened opened = VSOCKD__OPENED__INIT;

	opened.endpoint = endpoint;
	opened.guest_port = 22;
	opened.host_port = 5000;
	return say(&rig.worker, &opened.base);
}

static void test_a_connection_is_closed_once(void **state)
{
	uint32_t open = endpoints_take(&rig.device.endpoints, ENDPOINT_OPEN);
	uint32_t asked = endpoints_take(&rig.device.endpoints, ENDPOINT_CONNECTING);

	(void)state;
	assert_non_null(say_closed(asked));
	assert_non_null(say_closed(ENDPOINTS));
	assert_non_null(say_closed(UINT32_MAX));
	assert_int_equal(rig.device.endpoints.n_used, 2);
	assert_null(say_closed(open));
	assert_int_equal(rig.device.endpoints.n_used, 1);
	assert_non_null(say_closed(open));
	assert_int_equal(rig.device.endpoints.n_used, 1);
}

/* The ports by which the front would reset it in a guest. */
static void test_the_ports_of_a_connection_are_told_once(void **state)
{
	struct endpoints *endpoints = &rig.device.endpoints;
	uint32_t index = endpoints_take(endpoints, ENDPOINT_OPEN);

	(void)state;
	assert_non_null(say_opened(ENDPOINTS));
	assert_non_null(say_opened(endpoints_take(endpoints, ENDPOINT_WAITING)));
	assert_null(say_opened(index));
	assert_true(endpoints->all[index].has_ports);
	assert_int_equal(endpoints->all[index].guest_port, 22);
	assert_int_equal(endpoints->all[index].port, 5000);
	assert_non_null(say_opened(index));
}

static void test_requests_have_numbers_of_their_own(void **state)
{
	Vsockd__Connect connect = VSOCKD__CONNECT__INIT;
	Vsockd__Cancel cancel = VSOCKD__CANCEL__INIT;

	(void)state;
	connect.type = ENDPOINT_STREAM;
	connect.request = 2 * ENDPOINTS;
	assert_non_null(say(&rig.worker, &connect.base));
	cancel.request = 2 * ENDPOINTS;
	assert_non_null(say(&rig.worker, &cancel.base));
	connect.request = 3;
	rig.device.endpoints.requests[3] = 0;
	assert_non_null(say(&rig.worker, &connect.base));
	assert_int_equal(rig.device.endpoints.n_used, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_what_nobody_asked_for_ends_the_worker),
		TEST(test_a_successor_speaks_of_nothing_but_what_it_was_told),
		TEST(test_a_connection_is_closed_once),
		TEST(test_the_ports_of_a_connection_are_told_once),
		TEST(test_requests_have_numbers_of_their_own),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
