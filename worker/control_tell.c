/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/epoll.h>

#include "worker/device.h"

static bool set_wants_write(struct device *device, bool wants_write)
{
	struct epoll_event event = {
		.events = EPOLLIN | (wants_write ? (uint32_t)EPOLLOUT : 0),
		.data.u64 = device_event(DEVICE_EVENT_CHANNEL, 0, 0),
	};

	return epoll_ctl(device->epoll, EPOLL_CTL_MOD, device->channel, &event) == 0;
}

int control_send(struct device *device, ProtobufCMessage *body)
{
	struct channel_packet packet;
	Vsockd__Envelope envelope;

	message_wrap(body, &envelope);
	message_encode(&envelope, -1, &packet);
	return channel_send(device->channel, &packet);
}

/* A line for the log that finds no room is not worth waiting for. */
void control_report(struct device *device, enum report_event event, uint64_t first, uint64_t second,
		    uint64_t third)
{
	Vsockd__Report report = VSOCKD__REPORT__INIT;

	report.event = (uint32_t)event;
	report.first = first;
	report.second = second;
	report.third = third;
	(void)control_send(device, &report.base);
}

static int send_connect(struct device *device, const struct connection *connection)
{
	Vsockd__Connect connect = VSOCKD__CONNECT__INIT;

	connect.request = connection_index(&device->connections, connection);
	connect.port = connection->host_port;
	connect.type = connection->type;
	connect.guest_port = connection->guest_port;
	connect.cid = connection->peer_cid;
	return control_send(device, &connect.base);
}

static int send_cancel(struct device *device, const struct connection *connection)
{
	Vsockd__Cancel cancel = VSOCKD__CANCEL__INIT;

	cancel.request = connection_index(&device->connections, connection);
	return control_send(device, &cancel.base);
}

static int send_answered(struct device *device, const struct connection *connection)
{
	Vsockd__Answered answered = VSOCKD__ANSWERED__INIT;

	answered.endpoint = connection->endpoint;
	return control_send(device, &answered.base);
}

static int send_opened(struct device *device, const struct connection *connection)
{
	Vsockd__Opened opened = VSOCKD__OPENED__INIT;

	opened.endpoint = connection->endpoint;
	opened.guest_port = connection->guest_port;
	opened.host_port = connection->host_port;
	return control_send(device, &opened.base);
}

static int send_closed(struct device *device, const struct connection *connection)
{
	Vsockd__Closed closed = VSOCKD__CLOSED__INIT;

	closed.endpoint = connection->endpoint;
	closed.is_reset = connection->is_reset;
	return control_send(device, &closed.base);
}

/* In the order in which things happened to the connection. */
static int tell_front(struct device *device, struct connection *connection)
{
	static const struct {
		uint8_t what;
		int (*send)(struct device *device, const struct connection *connection);
	} messages[] = {
		{CONNECTION_TELL_CONNECT, send_connect}, {CONNECTION_TELL_CANCEL, send_cancel},
		{CONNECTION_TELL_OPENED, send_opened},	 {CONNECTION_TELL_ANSWERED, send_answered},
		{CONNECTION_TELL_CLOSED, send_closed},
	};

	for (size_t i = 0; i < sizeof(messages) / sizeof(messages[0]); i++) {
		int r;

		/* The end is told when the last packet is out, see host_free_when_done(). */
		if (!(connection->tell & messages[i].what) ||
		    (messages[i].what == CONNECTION_TELL_CLOSED && connection->due != 0))
			continue;
		r = messages[i].send(device, connection);
		if (r != 0)
			return r;
		connection->tell &= (uint8_t)~messages[i].what;
	}
	return 0;
}

static int tell_reset(struct device *device)
{
	Vsockd__ResetSent sent = VSOCKD__RESET_SENT__INIT;
	Vsockd__ResetHandled handled = VSOCKD__RESET_HANDLED__INIT;
	int r = 0;

	if (device->tells_reset_sent) {
		r = control_send(device, &sent.base);
		device->tells_reset_sent = r != 0;
	}
	if (r == 0 && device->tells_reset_handled) {
		r = control_send(device, &handled.base);
		device->tells_reset_handled = r != 0;
	}
	return r;
}

bool control_announce_reset(struct device *device, uint32_t used)
{
	Vsockd__ResetAnnounced announced = VSOCKD__RESET_ANNOUNCED__INIT;

	announced.used = used;
	device->waits_to_announce = control_send(device, &announced.base) != 0;
	return !device->waits_to_announce;
}

static int send_notify(struct device *device, uint32_t ring, bool is_error)
{
	Vsockd__Notify notify = VSOCKD__NOTIFY__INIT;

	notify.ring = ring;
	notify.is_error = is_error;
	return control_send(device, &notify.base);
}

/* One message a ring, for however much was used since the last one. */
static int tell_notifications(struct device *device)
{
	int r = 0;

	for (uint32_t i = 0; i < RINGS && r == 0; i++) {
		struct ring *ring = &device->rings[i];

		if (ring->owes_call && ring_calls_in_band(ring)) {
			r = send_notify(device, i, false);
			ring->owes_call = r != 0;
		}
		if (r == 0 && ring->owes_error) {
			r = send_notify(device, i, true);
			ring->owes_error = r != 0;
		}
	}
	return r;
}

static int send_state_connection(struct device *device, uint32_t index)
{
	Vsockd__StateConnection connection = VSOCKD__STATE_CONNECTION__INIT;
	struct transfer_connection saved;

	transfer_get_connection(device->state.bytes, index, &saved);
	connection.guest_port = saved.guest_port;
	connection.host_port = saved.host_port;
	connection.type = saved.type;
	connection.cid = saved.peer_cid;
	return control_send(device, &connection.base);
}

static int send_state_info(struct device *device)
{
	Vsockd__StateInfo info = VSOCKD__STATE_INFO__INIT;

	info.guest_cid = device->state.header.guest_cid;
	info.features = device->state.header.features;
	info.flags = device->state.header.flags;
	return control_send(device, &info.base);
}

static int send_state_done(struct device *device)
{
	Vsockd__StateDone done = VSOCKD__STATE_DONE__INIT;

	done.is_good = device->state.reason == STATE_GOOD;
	done.reason = (uint32_t)device->state.reason;
	return control_send(device, &done.base);
}

/* Connections, then what else was read, then the end; goes on where there was no room. */
static int tell_state(struct device *device)
{
	struct state *state = &device->state;
	int r = 0;

	if (state->was_loaded && state->reason == STATE_GOOD) {
		while (r == 0 && state->n_told < state->header.n_connections) {
			r = send_state_connection(device, state->n_told);
			state->n_told += r == 0;
		}
		if (r == 0 && state->n_told == state->header.n_connections) {
			r = send_state_info(device);
			state->n_told += r == 0;
		}
	}
	if (r == 0)
		r = send_state_done(device);
	if (r == 0)
		state->phase = STATE_IDLE;
	return r;
}

void control_done(struct device *device, uint32_t sequence, int status, uint32_t value)
{
	device->done = (Vsockd__Done)VSOCKD__DONE__INIT;
	device->done.sequence = sequence;
	device->done.status = status;
	device->done.value = value;
	device->has_done = true;
}

static int flush_done(struct device *device)
{
	int r = tell_notifications(device);

	/* Behind what was used: a front-end knows of all of it when its message is answered. */
	if (r == 0 && device->has_done) {
		ring_pay_call(&device->rings[RING_TX]);
		r = control_send(device, &device->done.base);
		device->has_done = r == CHANNEL_E_AGAIN;
	}
	return r;
}

/* A device at rest says what its successor has to know, and nothing else. */
static int flush_at_rest(struct device *device)
{
	int r = flush_done(device);

	if (r != 0 || device->handover.phase != HANDOVER_TELLING)
		return r;
	r = handover_tell(device);
	if (r != 0)
		return r;
	control_done(device, device->handover.sequence, 0, 0);
	return flush_done(device);
}

static void report_kicks(struct device *device)
{
	for (uint32_t i = 0; i < RINGS; i++) {
		struct ring *ring = &device->rings[i];

		if (ring->kick_error != 0)
			control_report(device, REPORT_RING_POLLED, i, (uint64_t)ring->kick_error,
				       0);
		ring->kick_error = 0;
	}
}

static int flush(struct device *device)
{
	struct link *list = &device->connections.tell;
	int r = flush_done(device);

	report_kicks(device);
	if (r == 0)
		r = tell_reset(device);
	if (r == 0 && device->waits_to_announce)
		r = CHANNEL_E_AGAIN; /* it is the pump that says it */
	if (r == 0 && device->state.phase == STATE_TELLING)
		r = tell_state(device);
	while (r == 0 && !link_is_empty(list)) {
		struct connection *connection = CONNECTION_OF(tell_link, list->next);

		r = tell_front(device, connection);
		if (r != 0)
			break;
		link_remove(&connection->tell_link);
		host_free_when_done(device, connection);
	}
	return r == 0 ? statistics_answer(device) : r;
}

bool control_flush(struct device *device)
{
	bool had_to_wait = device->waits_to_write;
	int r;

	host_release(device);
	r = device_is_at_rest(device) ? flush_at_rest(device) : flush(device);
	/* Whom the front is to reach for the guest is on the way before the guest wakes up. */
	ring_pay_call(&device->rings[RING_TX]);
	if (r != 0 && r != CHANNEL_E_AGAIN)
		return false;
	device->waits_to_write = r == CHANNEL_E_AGAIN;
	return device->waits_to_write == had_to_wait ||
	       set_wants_write(device, device->waits_to_write);
}
