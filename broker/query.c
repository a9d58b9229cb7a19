/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/query.h"

#include "broker/front.h"

/*
 * A worker answers in microseconds, or is busy with its guest for a few
 * milliseconds. One that is stuck is no reason to keep an operator waiting.
 */
#define ANSWER_MS 2000

static bool is_late(const struct device *device)
{
	return device->query.worker && device->front->now - device->query.asked_at > ANSWER_MS;
}

/* May it be asked at all? It has to know first which device it serves. */
static bool has_worker(const struct device *device)
{
	const struct sync *sync = &device->sync;

	if (!device->worker)
		return false;
	/* Commands keep their order, so it is enough that the first one is on its way. */
	return sync_is_idle(device) || sync->next_step > 0 || sync->is_sent ||
	       sync->steps[0].kind != STEP_ASSIGN;
}

static bool send_question(struct device *device, bool is_for_counters, uint32_t first)
{
	Vsockd__CountersQuery counters = VSOCKD__COUNTERS_QUERY__INIT;
	Vsockd__ConnectionsQuery connections = VSOCKD__CONNECTIONS_QUERY__INIT;
	struct query *query = &device->query;

	counters.query = query->number + 1;
	connections.query = query->number + 1;
	connections.first = first;
	if (worker_send(device->front, device->worker, 0,
			is_for_counters ? &counters.base : &connections.base, -1) != 0)
		return false;
	query->number++;
	query->worker = device->worker;
	query->is_for_counters = is_for_counters;
	query->asked_at = device->front->now;
	query->n_counters = 0;
	query->n_connections = 0;
	return true;
}

enum query_result query_counters(struct device *device, uint64_t since)
{
	struct query *query = &device->query;

	if (query->counters_as_of >= since)
		return QUERY_READY;
	if (handover_is_busy(device))
		return QUERY_WAIT;
	if (!has_worker(device) || is_late(device))
		return QUERY_NONE;
	if (!query->worker)
		send_question(device, /* is_for_counters= */ true, 0);
	return QUERY_WAIT;
}

uint64_t query_counter(const struct device *device, enum counter counter)
{
	return device->query.past[counter] + device->query.live[counter];
}

enum query_result query_connections(struct device *device, const void *owner, uint32_t first)
{
	struct query *query = &device->query;

	if (query->owner == owner && query->is_answered)
		return QUERY_READY;
	if (handover_is_busy(device))
		return QUERY_WAIT;
	if (!has_worker(device) || is_late(device))
		return QUERY_NONE;
	/* Somebody else's question is out, or the answer to it is being read. */
	if (query->worker || query->owner)
		return QUERY_WAIT;
	if (send_question(device, /* is_for_counters= */ false, first)) {
		query->owner = owner;
		query->is_answered = false;
	}
	return QUERY_WAIT;
}

void query_release(struct device *device, const void *owner)
{
	if (device->query.owner == owner)
		device->query.owner = NULL;
}

static const char *check(const struct device *device, uint32_t number, bool is_for_counters)
{
	const struct query *query = &device->query;

	if (query->worker != device->worker || !query->worker || query->number != number ||
	    query->is_for_counters != is_for_counters)
		return "an answer to what was not asked";
	return NULL;
}

static void keep_counters(struct query *query)
{
	for (size_t i = 0; i < COUNTER_MAX; i++) {
		query->past[i] += query->live[i];
		query->live[i] = 0;
	}
	query->counted = NULL;
}

const char *query_counters_told(struct device *device, const Vsockd__Counters *counters)
{
	const uint64_t values[COUNTERS_PER_MESSAGE] = {
		counters->value0, counters->value1, counters->value2, counters->value3,
		counters->value4, counters->value5, counters->value6,
	};
	struct query *query = &device->query;
	const char *reason = check(device, counters->query, /* is_for_counters= */ true);

	if (reason)
		return reason;
	if (counters->first != query->n_counters)
		return "counters out of order";
	if (query->counted != device->worker)
		keep_counters(query);
	query->counted = device->worker;
	/* Sums grow; one that says otherwise could make ours go down. */
	for (uint32_t i = 0; i < COUNTERS_PER_MESSAGE && query->n_counters < COUNTER_MAX; i++) {
		if (values[i] < query->live[query->n_counters] || values[i] > INT64_MAX)
			return "counters that go down";
		query->live[query->n_counters++] = values[i];
	}
	if (query->n_counters == COUNTER_MAX) {
		query->counters_as_of = query->asked_at;
		query->worker = NULL;
	}
	return NULL;
}

const char *query_connection_told(struct device *device, const Vsockd__ConnectionInfo *info)
{
	struct query *query = &device->query;
	const char *reason = check(device, info->query, /* is_for_counters= */ false);

	if (reason)
		return reason;
	if (query->n_connections == CONNECTIONS_PER_QUERY)
		return "more connections than were asked for";
	if (info->state == 0 || info->state >= CONNECTION_REPORT_MAX)
		return "a connection of an unknown state";
	query->connections[query->n_connections++] = (struct query_connection){
		.endpoint = info->endpoint,
		.state = info->state,
		.is_from_host = info->is_from_host,
		.guest_port = info->guest_port,
		.host_port = info->host_port,
		.type = info->type,
		.to_guest = info->to_guest,
		.from_guest = info->from_guest,
		.age = info->age,
		.guest_room = info->guest_room,
		.host_room = info->host_room,
		.n_buffered = info->n_buffered,
	};
	return NULL;
}

const char *query_connections_ended(struct device *device, const Vsockd__ConnectionsEnd *end)
{
	struct query *query = &device->query;
	const char *reason = check(device, end->query, /* is_for_counters= */ false);

	if (reason)
		return reason;
	query->next = end->next;
	query->is_answered = true;
	query->worker = NULL;
	return NULL;
}

/* What is out will not be answered. */
static void forget_question(struct query *query, const struct worker *worker)
{
	if (query->worker != worker)
		return;
	query->worker = NULL;
	query->owner = NULL;
}

void query_worker_replaced(struct device *device, const struct worker *former)
{
	struct query *query = &device->query;

	forget_question(query, former);
	if (query->counted == former)
		query->counted = device->worker;
}

void query_worker_left(struct device *device, const struct worker *worker)
{
	struct query *query = &device->query;

	forget_question(query, worker);
	if (query->counted == worker)
		keep_counters(query);
}
