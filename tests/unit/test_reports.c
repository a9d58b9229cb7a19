/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/log.h"
#include "tests/unit/front_rig.h"

/* Lines that may be said at once: more than there are. */
#define MANY 100

static struct front_rig rig;

/* What is logged goes to a file in place of stderr. */
static int log_fd, stderr_before;

static int set_up(void **state)
{
	(void)state;
	log_open(LOG_DEBUG);
	front_rig_init(&rig);
	log_fd = memfd_create("log", MFD_CLOEXEC);
	stderr_before = dup(STDERR_FILENO);
	return log_fd < 0 || stderr_before < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
	(void)state;
	close(log_fd);
	close(stderr_before);
	return 0;
}

/* The reason for which the worker is ended, or NULL. */
static const char *report(uint32_t event, uint64_t first, uint64_t second, uint64_t third,
			  char *ret_line, size_t size)
{
	Vsockd__Report body = VSOCKD__REPORT__INIT;
	Vsockd__Envelope envelope;
	const char *reason;
	ssize_t len;

	body.event = event;
	body.first = first;
	body.second = second;
	body.third = third;
	message_wrap(&body.base, &envelope);
	rig.device.log_tokens = MANY;
	assert_int_equal(ftruncate(log_fd, 0), 0);
	assert_int_equal(lseek(log_fd, 0, SEEK_SET), 0);
	dup2(log_fd, STDERR_FILENO);
	reason = device_message(&rig.device, &rig.worker, &envelope);
	dup2(stderr_before, STDERR_FILENO);
	len = pread(log_fd, ret_line, size - 1, 0);
	assert_true(len >= 0);
	ret_line[len] = '\0';
	return reason;
}

static void test_each_report_has_its_line(void **state)
{
	static const struct {
		uint32_t event;
		uint64_t first, second, third;
		const char *text;
	} rows[] = {
		{REPORT_RING_BROKEN, 1, REPORT_RING_AVAIL_JUMP, 0x1f,
		 "ring 1 is broken: avail index jumped (0x1f)"},
		{REPORT_RING_BROKEN, 0, REPORT_RING_REASON_MAX, 0, "ring 0 is broken: ? (0x0)"},
		{REPORT_RING_BROKEN, 0, 0, 0, "ring 0 is broken: ? (0x0)"},
		{REPORT_HANDSHAKE_FAILED, 0, REPORT_HANDSHAKE_TIMEOUT, 22,
		 "handshake failed: guest port 22: no complete line in 5 s"},
		{REPORT_HANDSHAKE_FAILED, 0, UINT64_MAX, 22, "handshake failed: guest port 22: ?"},
		{REPORT_HANDSHAKE_FAILED, 0, 0, 22, "handshake failed: guest port 22: ?"},
		{REPORT_CONNECTION_LIMIT, 8, 2, 0,
		 "guest refused: all 8 connections in use (2 refused so far)"},
		{REPORT_HANDSHAKE_LIMIT, 16, 0, 0, "host program refused: 16 handshakes are open"},
		{REPORT_PACKET_DROPPED, 4, 7, 0, "packet dropped: operation 7 (4 dropped so far)"},
		{REPORT_RATE_LIMIT, 1000, 3, 0, "held up: 1000 bytes in a second (3 times so far)"},
		{REPORT_MEMORY_LIMIT, 4096, 1, 0,
		 "connection refused: all 4096 bytes for buffers are set aside (1 refused so far)"},
		{REPORT_CONNECT_FAILED, 80, 0, 0, "guest refused: host port 80: refused"},
		{REPORT_CONNECT_FAILED, 80, 1, 0, "guest refused: host port 80: no answer in 2 s"},
		{REPORT_PEER_MISBEHAVED, 80, 1024, 5,
		 "connection reset: guest port 1024, host port 80: operation 5 against the rules"},
		{REPORT_SHORTAGE, 80, 1024, ENOBUFS,
		 "connection reset: guest port 1024, host port 80: its socket: No buffer space"},
		{REPORT_SHORTAGE, 80, 1024, 4096,
		 "connection reset: guest port 1024, host port 80: its socket: ?"},
		{REPORT_RING_POLLED, 1, ENOSPC, 0,
		 "ring 1 is looked at each millisecond: its kicks cannot be waited for: No space"},
		{REPORT_MESSAGE_TOO_LONG, 80, 1024, 9, "9 is the length of a message for which"},
		{REPORT_MESSAGE_REFUSED, 80, 1024, 9,
		 "9 is the length of a message that the host's"},
		{REPORT_MESSAGES_UNREAD, 80, 1024, 9, "9 is the number of messages that the host"},
	};
	char line[1024];

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		assert_null(report(rows[i].event, rows[i].first, rows[i].second, rows[i].third,
				   line, sizeof(line)));
		if (!strstr(line, "vm=3 ") || !strstr(line, rows[i].text))
			fail_msg("not \"%s\", but \"%s\"", rows[i].text, line);
	}
}

static void test_a_report_of_nothing_that_is_known_ends_the_worker(void **state)
{
	static const uint32_t events[] = {0, REPORT_EVENT_MAX, UINT32_MAX};
	char line[1024];

	(void)state;
	for (size_t i = 0; i < sizeof(events) / sizeof(events[0]); i++) {
		assert_non_null(report(events[i], 1, 1, 1, line, sizeof(line)));
		assert_string_equal(line, "");
	}
}

/* A VMM can bring about a line as often as there may be one, and so keep none for the count. */
static void test_nobody_spins_until_there_is_a_line_for_what_was_left_out(void **state)
{
	struct device *device = &rig.device;

	(void)state;
	device_clear(device, &rig.front, 0);
	rig.front.now = 100000;
	device->log_refill = rig.front.now;
	device->log_tokens = 0;
	device_log(device, LOG_ERR, "left out");
	for (int i = 0; i < 10; i++) {
		rig.front.now += 500;
		dup2(log_fd, STDERR_FILENO);
		device_log(device, LOG_ERR, "one that may be said");
		device_update(device);
		dup2(stderr_before, STDERR_FILENO);
		assert_int_equal(device->n_unlogged, 1);
		assert_true(device_deadline(device) > rig.front.now);
	}
	/* It is told as soon as there is one. */
	rig.front.now = device_deadline(device) + 1000;
	dup2(log_fd, STDERR_FILENO);
	device_update(device);
	dup2(stderr_before, STDERR_FILENO);
	assert_int_equal(device->n_unlogged, 0);
	assert_int_equal(device_deadline(device), UINT64_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_each_report_has_its_line, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_a_report_of_nothing_that_is_known_ends_the_worker, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_nobody_spins_until_there_is_a_line_for_what_was_left_out, set_up,
			tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
