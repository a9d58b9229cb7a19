/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/front.h"
#include "broker/metrics.h"

/* A front with two VMs, and a worker of the first one at the other end of a channel. */
static struct {
	struct front front;
	struct device devices[2];
	struct vm_configuration vms[2];
	struct worker worker;
	int far_end;
} rig;

static int set_up(void **state)
{
	int pair[2];

	(void)state;
	memset(&rig, 0, sizeof(rig));
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
		return -1;
	rig.far_end = pair[1];
	rig.worker = (struct worker){.state = WORKER_ASSIGNED, .channel = pair[0]};
	rig.worker.device = &rig.devices[0];
	rig.front.devices = rig.devices;
	rig.front.n_devices = 2;
	rig.front.now = 1000;
	for (int i = 0; i < 2; i++) {
		rig.vms[i].guest_cid = (uint64_t)i + 3;
		rig.devices[i].front = &rig.front;
		rig.devices[i].configuration = &rig.vms[i];
	}
	rig.devices[0].worker = &rig.worker;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	close(rig.far_end);
	close(rig.worker.channel);
	return 0;
}

/* The number of the question that the worker was asked; 0: none. */
static uint32_t question(Vsockd__Envelope__BodyCase type)
{
	const Vsockd__Envelope *envelope;
	struct channel_packet packet;
	const char *reason;

	if (channel_receive(rig.far_end, &packet) != 0)
		return 0;
	envelope = message_decode(&packet, MESSAGE_TO_WORKER, MESSAGE_ASSIGNED, &reason);
	assert_non_null(envelope);
	assert_int_equal(envelope->body_case, type);
	return type == VSOCKD__ENVELOPE__BODY_COUNTERS_QUERY ? envelope->counters_query->query
							     : envelope->connections_query->query;
}

static const char *tell_counters(uint32_t query, uint32_t first, uint64_t value)
{
	Vsockd__Counters counters = VSOCKD__COUNTERS__INIT;

	counters.query = query;
	counters.first = first;
	counters.value0 = value;
	return query_counters_told(&rig.devices[0], &counters);
}

static void answer_counters(uint32_t query, uint64_t value)
{
	for (uint32_t first = 0; first < COUNTER_MAX; first += COUNTERS_PER_MESSAGE)
		assert_null(tell_counters(query, first, first == 0 ? value : 0));
}

/* Ask, and answer. */
static void count(uint64_t value)
{
	struct device *device = &rig.devices[0];

	rig.front.now++;
	assert_int_equal(query_counters(device, rig.front.now), QUERY_WAIT);
	answer_counters(question(VSOCKD__ENVELOPE__BODY_COUNTERS_QUERY), value);
	assert_int_equal(query_counters(device, rig.front.now), QUERY_READY);
}

static const char *tell_connection(uint32_t query, uint32_t endpoint, uint32_t state)
{
	Vsockd__ConnectionInfo info = VSOCKD__CONNECTION_INFO__INIT;

	info.query = query;
	info.endpoint = endpoint;
	info.state = state;
	return query_connection_told(&rig.devices[0], &info);
}

static const char *tell_end(uint32_t query, uint32_t next)
{
	Vsockd__ConnectionsEnd end = VSOCKD__CONNECTIONS_END__INIT;

	end.query = query;
	end.next = next;
	return query_connections_ended(&rig.devices[0], &end);
}

static void test_an_answer_serves_all_who_asked_before_it(void **state)
{
	struct device *device = &rig.devices[0];
	uint32_t query;

	(void)state;
	assert_int_equal(query_counters(device, 1000), QUERY_WAIT);
	assert_int_equal(query_counters(device, 1000), QUERY_WAIT);
	query = question(VSOCKD__ENVELOPE__BODY_COUNTERS_QUERY);
	assert_int_equal(question(VSOCKD__ENVELOPE__BODY_COUNTERS_QUERY), 0);
	answer_counters(query, 5);
	assert_int_equal(query_counters(device, 1000), QUERY_READY);
	assert_int_equal(query_counter(device, 0), 5);
	/* Who asks later gets a later one. */
	rig.front.now = 1001;
	assert_int_equal(query_counters(device, 1001), QUERY_WAIT);
	assert_int_not_equal(question(VSOCKD__ENVELOPE__BODY_COUNTERS_QUERY), query);
}

static void test_counters_of_workers_that_ended_are_added_up(void **state)
{
	struct device *device = &rig.devices[0];

	(void)state;
	count(5);
	count(7);
	query_worker_left(device, &rig.worker);
	assert_int_equal(query_counter(device, 0), 7);
	/* The next one begins at 0, and may be told before the old one leaves. */
	count(2);
	assert_int_equal(query_counter(device, 0), 9);
	query_worker_left(device, &rig.worker);
	query_worker_left(device, &rig.worker);
	assert_int_equal(query_counter(device, 0), 9);
}

static void test_without_a_worker_nobody_waits(void **state)
{
	(void)state;
	assert_int_equal(query_counters(&rig.devices[1], 1000), QUERY_NONE);
	assert_int_equal(query_connections(&rig.devices[1], &rig, 0), QUERY_NONE);
	/* Nor for one that does not answer, or has not been told yet whom it serves. */
	assert_int_equal(query_counters(&rig.devices[0], 1000), QUERY_WAIT);
	rig.front.now += 60000;
	assert_int_equal(query_counters(&rig.devices[0], rig.front.now), QUERY_NONE);
	rig.devices[0].query.worker = NULL;
	rig.devices[0].sync.n_steps = 1;
	rig.devices[0].sync.steps[0].kind = STEP_ASSIGN;
	assert_int_equal(query_counters(&rig.devices[0], rig.front.now), QUERY_NONE);
}

static void test_counters_that_were_not_asked_for_or_go_down_are_not_believed(void **state)
{
	struct device *device = &rig.devices[0];
	uint32_t query;

	(void)state;
	assert_non_null(tell_counters(0, 0, 1));
	count(5);
	assert_non_null(tell_counters(device->query.number, 0, 9)); /* answered already */
	rig.front.now++;
	query_counters(device, rig.front.now);
	query = question(VSOCKD__ENVELOPE__BODY_COUNTERS_QUERY);
	assert_non_null(tell_counters(query + 1, 0, 9));
	assert_non_null(tell_counters(query, 2 * COUNTERS_PER_MESSAGE, 0));
	assert_non_null(tell_counters(query, UINT32_MAX, 0));
	assert_non_null(tell_counters(query, 0, 4));
	assert_non_null(tell_counters(query, 0, UINT64_MAX));
	assert_non_null(tell_connection(query, 0, CONNECTION_REPORT_OPEN));
	assert_non_null(tell_end(query, CONNECTIONS_END));
	assert_int_equal(query_counter(device, 0), 5);
}

static void test_connections_are_as_many_as_were_asked_for(void **state)
{
	struct device *device = &rig.devices[0];
	uint32_t query;

	(void)state;
	assert_int_equal(query_connections(device, &rig, 0), QUERY_WAIT);
	query = question(VSOCKD__ENVELOPE__BODY_CONNECTIONS_QUERY);
	assert_non_null(tell_connection(query, 0, 0));
	assert_non_null(tell_connection(query, 0, CONNECTION_REPORT_MAX));
	for (uint32_t i = 0; i < CONNECTIONS_PER_QUERY; i++)
		assert_null(tell_connection(query, i, CONNECTION_REPORT_OPEN));
	assert_non_null(tell_connection(query, 0, CONNECTION_REPORT_OPEN));
	assert_int_equal(query_connections(device, &rig, 0), QUERY_WAIT);
	assert_null(tell_end(query, 99));
	assert_int_equal(query_connections(device, &rig, 0), QUERY_READY);
	assert_int_equal(device->query.n_connections, CONNECTIONS_PER_QUERY);
	assert_int_equal(device->query.next, 99);
	/* Another one waits until this one has read them, and until its end is told. */
	assert_int_equal(query_connections(device, &rig.worker, 0), QUERY_WAIT);
	query_release(device, &rig);
	assert_int_equal(query_connections(device, &rig.worker, 0), QUERY_WAIT);
	query = question(VSOCKD__ENVELOPE__BODY_CONNECTIONS_QUERY);
	query_release(device, &rig.worker);
	assert_int_equal(query_connections(device, &rig, 0), QUERY_WAIT);
	assert_int_equal(question(VSOCKD__ENVELOPE__BODY_CONNECTIONS_QUERY), 0);
	assert_null(tell_end(query, CONNECTIONS_END));
	assert_int_equal(query_connections(device, &rig, 0), QUERY_WAIT);
	assert_int_not_equal(question(VSOCKD__ENVELOPE__BODY_CONNECTIONS_QUERY), 0);
}

static void test_what_a_worker_was_asked_is_forgotten_with_it(void **state)
{
	struct device *device = &rig.devices[0];
	uint32_t query;

	(void)state;
	assert_int_equal(query_connections(device, &rig, 0), QUERY_WAIT);
	query = question(VSOCKD__ENVELOPE__BODY_CONNECTIONS_QUERY);
	query_worker_left(device, &rig.worker);
	assert_non_null(tell_end(query, CONNECTIONS_END));
	assert_int_equal(query_connections(device, &rig, 0), QUERY_WAIT);
	assert_int_not_equal(question(VSOCKD__ENVELOPE__BODY_CONNECTIONS_QUERY), 0);
}

/* ---- how it is printed ---- */

/* OpenMetrics 1.0: a family's lines stand together, its type first; the end is marked. */
static void test_metrics_are_families_of_whole_lines(void **state)
{
	static char text[65536];
	struct metrics_position position = {0};
	char line[METRICS_LINE_MAX], family[64] = "";
	size_t len = 0;

	(void)state;
	count(5);
	while (metrics_line(&rig.front, &position, line)) {
		char name[64];

		assert_true(strlen(line) > 0 && strlen(line) < METRICS_LINE_MAX - 1);
		assert_int_equal(line[strlen(line) - 1], '\n');
		if (sscanf(line, "# TYPE %63s", name) == 1) {
			snprintf(name + strlen(name), sizeof(name) - strlen(name), " ");
			assert_null(strstr(text, name)); /* never before */
			name[strlen(name) - 1] = '\0';
			snprintf(family, sizeof(family), "%s", name);
		} else if (line[0] != '#') {
			assert_int_equal(strncmp(line, family, strlen(family)), 0);
		}
		len += (size_t)snprintf(text + len, sizeof(text) - len, "%s", line);
		assert_true(len < sizeof(text));
	}
	assert_string_equal(text + len - 6, "# EOF\n");
	assert_false(metrics_line(&rig.front, &position, line));
	assert_non_null(strstr(text, "\nvsockd_bytes_total{vm=\"3\",direction=\"to_guest\"} 5\n"));
	assert_non_null(strstr(text, "\nvsockd_bytes_total{vm=\"4\",direction=\"to_guest\"} 0\n"));
	assert_non_null(strstr(text, "vsockd_vm_state{vm=\"3\",vsockd_vm_state=\"waiting\"} 1\n"));
}

static void test_the_histogram_has_the_bounds_of_the_workers(void **state)
{
	static const uint32_t bounds[] = COUNTER_TIMES_MS;
	struct metrics_position position = {0};
	char line[METRICS_LINE_MAX];
	size_t n_seen = 0;

	(void)state;
	for (uint32_t i = 0; i < COUNTER_TIMES; i++)
		rig.devices[0].query.past[COUNTER_HOST_CONNECT_TIMES + i] = 1;
	rig.devices[0].query.past[COUNTER_HOST_CONNECT_MS] = 12345;
	while (metrics_line(&rig.front, &position, line)) {
		const char *bound = strstr(line, ",le=\"");
		unsigned int count;

		if (strstr(line, "_sum{vm=\"3\",from=\"host\"}"))
			assert_non_null(strstr(line, "} 12.345\n"));
		if (!bound || !strstr(line, "vm=\"3\",from=\"host\""))
			continue;
		assert_int_equal(sscanf(strchr(line, '}'), "} %u", &count), 1);
		assert_int_equal(count, ++n_seen); /* each holds the ones before */
		if (n_seen < COUNTER_TIMES)
			assert_int_equal(strtod(bound + 5, NULL) * 1000 + 0.5, bounds[n_seen - 1]);
		else
			assert_int_equal(strncmp(bound + 5, "+Inf", 4), 0);
	}
	assert_int_equal(n_seen, COUNTER_TIMES);
}

static void test_the_histogram_of_pauses_has_the_bounds_that_are_counted_by(void **state)
{
	static const uint32_t bounds[] = PAUSES_US;
	struct metrics_position position = {0};
	char line[METRICS_LINE_MAX];
	size_t n_seen = 0;

	(void)state;
	for (uint32_t i = 0; i < PAUSES_BUCKETS; i++)
		rig.devices[0].pauses.n[i] = 1;
	rig.devices[0].pauses.us = 1234567;
	while (metrics_line(&rig.front, &position, line)) {
		const char *bound = strstr(line, ",le=\"");
		unsigned int count;

		if (!strstr(line, "vsockd_replacement_pause_seconds") || !strstr(line, "vm=\"3\""))
			continue;
		if (strstr(line, "_sum{"))
			assert_non_null(strstr(line, "} 1.234567\n"));
		if (strstr(line, "_count{"))
			assert_non_null(strstr(line, "} 10\n"));
		if (!bound)
			continue;
		assert_int_equal(sscanf(strchr(line, '}'), "} %u", &count), 1);
		assert_int_equal(count, ++n_seen);
		if (n_seen < PAUSES_BUCKETS)
			assert_int_equal(strtod(bound + 5, NULL) * 1e6 + 0.5, bounds[n_seen - 1]);
		else
			assert_int_equal(strncmp(bound + 5, "+Inf", 4), 0);
	}
	assert_int_equal(n_seen, PAUSES_BUCKETS);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_an_answer_serves_all_who_asked_before_it),
		WITH_RIG(test_counters_of_workers_that_ended_are_added_up),
		WITH_RIG(test_without_a_worker_nobody_waits),
		WITH_RIG(test_counters_that_were_not_asked_for_or_go_down_are_not_believed),
		WITH_RIG(test_connections_are_as_many_as_were_asked_for),
		WITH_RIG(test_what_a_worker_was_asked_is_forgotten_with_it),
		WITH_RIG(test_metrics_are_families_of_whole_lines),
		WITH_RIG(test_the_histogram_has_the_bounds_of_the_workers),
		WITH_RIG(test_the_histogram_of_pauses_has_the_bounds_that_are_counted_by),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
