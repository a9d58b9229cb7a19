/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/device.h"

/* In ms. What a worker before this one told of it may be anything. */
static uint64_t age(const struct device *device, const struct connection *connection)
{
	uint64_t since = connection->history.since;

	return device->now > since ? device->now - since : 0;
}

void statistics_connected(struct device *device, const struct connection *connection)
{
	static const uint32_t bounds[] = COUNTER_TIMES_MS;
	enum counter sum =
		connection->is_from_host ? COUNTER_HOST_CONNECT_MS : COUNTER_GUEST_CONNECT_MS;
	uint64_t ms = age(device, connection);
	uint32_t at = 0;

	_Static_assert(sizeof(bounds) / sizeof(bounds[0]) + 1 == COUNTER_TIMES, "one is the rest");
	while (at < COUNTER_TIMES - 1 && ms > bounds[at])
		at++;
	statistics_count(
		device, connection->is_from_host ? COUNTER_HOST_CONNECTED : COUNTER_GUEST_CONNECTED,
		1);
	statistics_count(device, sum, ms);
	statistics_count(device, sum + 1 + at, 1);
}

void statistics_ask(struct device *device, enum answer_kind kind, uint32_t query, uint32_t first)
{
	device->answer = (struct answer){.kind = kind, .query = query, .next = first};
}

static int tell_counters(struct device *device)
{
	const struct answer *answer = &device->answer;
	Vsockd__Counters counters = VSOCKD__COUNTERS__INIT;
	uint64_t *values[COUNTERS_PER_MESSAGE] = {
		&counters.value0, &counters.value1, &counters.value2, &counters.value3,
		&counters.value4, &counters.value5, &counters.value6,
	};

	counters.query = answer->query;
	counters.first = answer->next;
	for (uint32_t i = 0; i < COUNTERS_PER_MESSAGE && answer->next + i < COUNTER_MAX; i++)
		*values[i] = device->counters[answer->next + i];
	return control_send(device, &counters.base);
}

static int answer_counters(struct device *device)
{
	struct answer *answer = &device->answer;

	while (answer->next < COUNTER_MAX) {
		int r = tell_counters(device);

		if (r != 0)
			return r;
		answer->next += COUNTERS_PER_MESSAGE;
	}
	answer->kind = ANSWER_NONE;
	return 0;
}

/* 0: it is none that anybody asks about. */
static uint32_t report_state(const struct connection *connection)
{
	switch ((enum connection_state)connection->state) {
	case CONNECTION_HANDSHAKE:
		return CONNECTION_REPORT_HANDSHAKE;
	case CONNECTION_CONNECTING:
		return CONNECTION_REPORT_ASKING_GUEST;
	case CONNECTION_REQUESTED:
		return CONNECTION_REPORT_ASKING_HOST;
	case CONNECTION_ESTABLISHED:
		return CONNECTION_REPORT_OPEN;
	case CONNECTION_CLOSING:
		return CONNECTION_REPORT_CLOSING;
	case CONNECTION_DRAINING:
		return CONNECTION_REPORT_DRAINING;
	default:
		return 0;
	}
}

static int tell_connection(struct device *device, const struct connection *connection)
{
	const struct credit *credit = &connection->credit;
	Vsockd__ConnectionInfo info = VSOCKD__CONNECTION_INFO__INIT;

	info.query = device->answer.query;
	info.endpoint = connection->endpoint;
	info.state = report_state(connection);
	info.is_from_host = connection->is_from_host;
	info.guest_port = connection->guest_port;
	info.host_port = connection->host_port;
	info.to_guest = connection->history.to_guest;
	info.from_guest = connection->history.from_guest;
	info.guest_room = credit_bytes(credit);
	info.host_room = credit->buf_alloc - (credit->rx_cnt - credit->fwd_cnt);
	info.n_buffered = connection->buffer.len - seqpacket_heads(connection);
	info.age = age(device, connection);
	info.type = connection->type;
	return control_send(device, &info.base);
}

static int tell_end(struct device *device)
{
	const struct answer *answer = &device->answer;
	Vsockd__ConnectionsEnd end = VSOCKD__CONNECTIONS_END__INIT;

	end.query = answer->query;
	end.next = answer->next < device->connections.n_touched ? answer->next : CONNECTIONS_END;
	return control_send(device, &end.base);
}

/* However large the table is, the guest waits no longer than for a part of it. */
static int answer_connections(struct device *device)
{
	struct answer *answer = &device->answer;
	int r;

	while (answer->next < device->connections.n_touched &&
	       answer->n_told < CONNECTIONS_PER_QUERY &&
	       answer->n_looked_at < CONNECTIONS_LOOKED_AT) {
		const struct connection *connection = &device->connections.all[answer->next];

		if (report_state(connection) != 0) {
			r = tell_connection(device, connection);
			if (r != 0)
				return r;
			answer->n_told++;
		}
		answer->next++;
		answer->n_looked_at++;
	}
	r = tell_end(device);
	if (r == 0)
		answer->kind = ANSWER_NONE;
	return r;
}

int statistics_answer(struct device *device)
{
	if (device->answer.kind == ANSWER_COUNTERS)
		return answer_counters(device);
	if (device->answer.kind == ANSWER_CONNECTIONS)
		return answer_connections(device);
	return 0;
}
