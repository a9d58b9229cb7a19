/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>

#include "broker/control.h"
#include "broker/front.h"
#include "broker/log.h"

/* How often what may not come by itself is looked at: a worker that does not answer. */
#define LOOK_AGAIN_MS 250

/* For the worker to be told, and then for the guest to take one packet: so long each. */
#define KILL_MS 2000

/* The name of an endpoint: which, and which life of it. */
static uint32_t endpoint_number(const struct device *device, uint32_t index)
{
	return (uint32_t)device->endpoints.all[index].generation << 16 | index;
}

/* Of a connection that the worker has; NULL: it has none of that index. */
static const struct endpoint *find_endpoint(const struct device *device, uint32_t index)
{
	const struct endpoints *endpoints = &device->endpoints;

	if (index >= endpoints->n_max || !endpoint_is_at_worker(&endpoints->all[index]))
		return NULL;
	return &endpoints->all[index];
}

static bool is_wanted(const struct control_client *client, const struct device *device)
{
	return device_is_present(device) &&
	       (client->request.cid == 0 ||
		client->request.cid == device->configuration->guest_cid);
}

/* The VM that was asked for exists, or all of them were. */
static bool has_vm(struct front *front, struct control_client *client)
{
	return client->request.cid == 0 || control_device(front, client);
}

static bool wait(struct front *front, struct control_client *client)
{
	client->wait_until = front->now + LOOK_AGAIN_MS;
	return false;
}

static uint32_t program_of(const struct endpoint *endpoint)
{
	return endpoint->pid != 0 ? endpoint->pid : control_peer(endpoint->fd);
}

static bool say_connection(struct front *front, struct control_client *client,
			   struct device *device, const struct query_connection *told)
{
	const struct endpoint *endpoint = find_endpoint(device, told->endpoint);
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Connection connection = CONTROL__CONNECTION__INIT;

	connection.cid = device->configuration->guest_cid;
	/* One that is being made has no endpoint, and the number of another would be a lie. */
	if (endpoint && told->state != CONNECTION_REPORT_ASKING_HOST) {
		connection.number = endpoint_number(device, told->endpoint);
		connection.peer_cid = endpoint->cid;
		/* Between guests there is no program. */
		connection.pid = endpoint->cid == ENDPOINT_HOST_CID ? program_of(endpoint) : 0;
	}
	connection.state = told->state;
	connection.is_from_host = told->is_from_host;
	connection.guest_port = told->guest_port;
	connection.host_port = told->host_port;
	connection.type = told->type;
	connection.to_guest = told->to_guest;
	connection.from_guest = told->from_guest;
	connection.guest_room = told->guest_room;
	connection.host_room = told->host_room;
	connection.n_buffered = told->n_buffered;
	connection.age = told->age;
	reply.body_case = CONTROL__REPLY__BODY_CONNECTION;
	reply.connection = &connection;
	return control_send(front, client, &reply);
}

static void next_vm(struct control_client *client)
{
	client->cursor++;
	client->place[0] = 0;
	client->place[1] = 0;
}

/* place: where in the worker's table the next question begins; which row of the answer. */
static bool say_connections(struct front *front, struct control_client *client,
			    struct device *device)
{
	const struct query *query = &device->query;

	for (; client->place[1] < query->n_connections; client->place[1]++)
		if (!say_connection(front, client, device, &query->connections[client->place[1]]))
			return false;
	client->place[0] = query->next;
	client->place[1] = 0;
	query_release(device, client);
	if (query->next == CONNECTIONS_END)
		next_vm(client);
	return true;
}

bool control_connections(struct front *front, struct control_client *client)
{
	if (!has_vm(front, client))
		return true;
	while (client->cursor < front->n_devices) {
		struct device *device = &front->devices[client->cursor];

		if (!is_wanted(client, device)) {
			next_vm(client);
			continue;
		}
		switch (query_connections(device, client, client->place[0])) {
		case QUERY_WAIT:
			return wait(front, client);
		case QUERY_READY:
			if (!say_connections(front, client, device))
				return false;
			break;
		case QUERY_NONE:
			query_release(device, client);
			next_vm(client);
		}
	}
	return true;
}

void control_forget_query(struct front *front, struct control_client *client)
{
	for (size_t i = 0; i < front->n_devices; i++)
		query_release(&front->devices[i], client);
}

static int send_abort(struct front *front, const struct device *device, uint32_t index)
{
	Vsockd__Abort abort = VSOCKD__ABORT__INIT;

	abort.endpoint = index;
	return worker_send(front, device->worker, 0, &abort.base, -1);
}

bool control_kill(struct front *front, struct control_client *client)
{
	struct device *device = control_device(front, client);
	uint32_t index = client->request.number & UINT16_MAX;
	bool is_there;

	if (!device)
		return true;
	is_there = find_endpoint(device, index) &&
		   endpoint_number(device, index) == client->request.number;
	if (!is_there && client->cursor == 1)
		return true;
	if (!is_there)
		return control_refuse(client, -ENOENT,
				      "VM %" PRIu64 " has no connection %" PRIu32
				      "; \"vsockctl connections\" lists them",
				      client->request.cid, client->request.number);
	if (client->cursor == 0 && device_is_settled(device) &&
	    send_abort(front, device, index) == 0) {
		client->cursor = 1;
		client->since = front->now;
	}
	if (front->now < client->since + KILL_MS)
		return wait(front, client);
	if (client->cursor == 0)
		return control_refuse(client, -EBUSY,
				      "the worker of VM %" PRIu64
				      " is busy and could not be told: the connection goes on",
				      client->request.cid);
	return control_refuse(client, -ETIMEDOUT,
			      "the guest takes no packets; the connection ends as soon as it does");
}

/* Asked all at once: VMs are many, and each answers in its own time. true: all are known. */
static bool refresh(struct front *front, const struct control_client *client)
{
	bool is_known = true;

	for (size_t i = 0; i < front->n_devices; i++)
		if (is_wanted(client, &front->devices[i]) &&
		    query_counters(&front->devices[i], client->since) == QUERY_WAIT)
			is_known = false;
	return is_known;
}

static bool say_counters(struct front *front, struct control_client *client,
			 const struct device *device)
{
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Counters counters = CONTROL__COUNTERS__INIT;
	uint64_t *values[COUNTERS_PER_MESSAGE] = {
		&counters.value0, &counters.value1, &counters.value2, &counters.value3,
		&counters.value4, &counters.value5, &counters.value6,
	};

	counters.cid = device->configuration->guest_cid;
	counters.first = client->place[1];
	for (uint32_t i = 0; i < COUNTERS_PER_MESSAGE && counters.first + i < COUNTER_MAX; i++)
		*values[i] = query_counter(device, counters.first + i);
	reply.body_case = CONTROL__REPLY__BODY_COUNTERS;
	reply.counters = &counters;
	return control_send(front, client, &reply);
}

bool control_counters(struct front *front, struct control_client *client)
{
	if (!has_vm(front, client))
		return true;
	if (client->place[0] == 0 && !refresh(front, client))
		return wait(front, client);
	client->place[0] = 1;
	for (; client->cursor < front->n_devices; client->cursor++) {
		if (!is_wanted(client, &front->devices[client->cursor]))
			continue;
		for (; client->place[1] < COUNTER_MAX; client->place[1] += COUNTERS_PER_MESSAGE)
			if (!say_counters(front, client, &front->devices[client->cursor]))
				return false;
		client->place[1] = 0;
	}
	return true;
}

bool control_metrics(struct front *front, struct control_client *client)
{
	char line[METRICS_LINE_MAX];
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Text text = CONTROL__TEXT__INIT;

	_Static_assert(METRICS_LINE_MAX - 1 <= CONTROL_TEXT_MAX, "a line is a packet");
	if (client->place[0] == 0 && !refresh(front, client))
		return wait(front, client);
	client->place[0] = 1;
	text.text = line;
	reply.body_case = CONTROL__REPLY__BODY_TEXT;
	reply.text = &text;
	for (;;) {
		struct metrics_position next = client->position;

		if (!metrics_line(front, &next, line))
			return true;
		if (!control_send(front, client, &reply))
			return false;
		client->position = next;
	}
}

bool control_log_level(struct front *front, struct control_client *client)
{
	uint32_t level = client->request.number;

	if (level < LOG_ERR || level > LOG_DEBUG)
		return control_refuse(client, -EINVAL, "%" PRIu32 " is no level of the log", level);
	/* The spawner first: it cannot fail once the front has done its part. */
	if (!front_request_log_level(front, (int)level))
		return wait(front, client);
	log_set_level((int)level);
	return true;
}
