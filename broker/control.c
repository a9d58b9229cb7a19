/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/disposal.h"
#include "broker/front.h"
#include "broker/log.h"

/* Between two requests, for whom the entry is kept: a monitor asks more often. */
#define IDLE_MS 60000
/* A client that takes nothing of an answer for so long does not want it. */
#define STUCK_MS 5000

/* The kernel had no room for another socket; nobody tells when there is again. */
#define ACCEPT_AGAIN_MS 100

/* So many fds that can't be closed, and nobody is accepted any more. */
#define KEPT_MAX 16

struct control {
	int listener;
	bool is_listening;
	uint64_t accept_at; /* ms: not before */
	uint32_t last_serial;
	uint32_t n_pairs_asked, n_pairs_made;
	uint32_t n_kept; /* fds of clients that could not be closed, see disposal.h */
	struct control_client clients[CONTROL_CLIENTS_MAX];
};

static const struct control_row rows[] = {
	{.number = CONTROL_STATUS, .name = "status", .run = control_status},
	{.number = CONTROL_SHOW, .name = "show", .run = control_show},
	{.number = CONTROL_CONNECTIONS,
	 .name = "connections",
	 .run = control_connections,
	 .end = control_forget_query},
	{.number = CONTROL_KILL, .name = "kill", .is_logged = true, .run = control_kill},
	{.number = CONTROL_COUNTERS, .name = "counters", .run = control_counters},
	{.number = CONTROL_METRICS, .name = "metrics", .run = control_metrics},
	{.number = CONTROL_LOG_LEVEL,
	 .name = "log-level",
	 .is_logged = true,
	 .run = control_log_level},
	{.number = CONTROL_CONNECT, .name = "connect", .is_logged = true, .run = control_connect},
	{.number = CONTROL_CAPTURE,
	 .name = "capture",
	 .is_logged = true,
	 .run = control_capture,
	 .end = control_end_capture},
	{.number = CONTROL_SUSPEND, .name = "suspend", .is_logged = true, .run = control_suspend},
	{.number = CONTROL_RESUME, .name = "resume", .is_logged = true, .run = control_resume},
	{.number = CONTROL_LISTEN, .name = "listen", .is_logged = true, .run = control_listen},
	{.number = CONTROL_RELOAD,
	 .name = "reload",
	 .is_logged = true,
	 .run = control_reload,
	 .end = control_end_reload},
	{.number = CONTROL_FILE, .name = "file", .run = control_file},
	{.number = CONTROL_REPLACE, .name = "replace", .is_logged = true, .run = control_replace},
};

static const struct control_row *find_row(uint32_t number)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if ((uint32_t)rows[i].number == number)
			return &rows[i];
	return NULL;
}

/* NULL: it has left. */
static struct control_client *find_client(struct control *control, uint32_t serial)
{
	for (size_t i = 0; i < CONTROL_CLIENTS_MAX; i++)
		if (control->clients[i].socket >= 0 && control->clients[i].serial == serial)
			return &control->clients[i];
	return NULL;
}

/* ---- for commands ---- */

bool control_send_fd(struct front *front, struct control_client *client,
		     const Control__Reply *reply, int fd)
{
	struct channel_packet packet;
	int r;

	if (client->is_gone)
		return false;
	control_encode_reply(reply, fd, &packet);
	r = channel_send(client->socket, &packet);
	if (r == 0) {
		client->deadline = front->now + STUCK_MS;
		return true;
	}
	/* -ETOOMANYREFS: of fds in flight; it is asked again when there is room for bytes. */
	if (r != CHANNEL_E_AGAIN && r != -ETOOMANYREFS)
		client->is_gone = true;
	else if (!client->is_blocked)
		client->deadline = front->now + STUCK_MS;
	client->is_blocked = true;
	return false;
}

bool control_send(struct front *front, struct control_client *client, const Control__Reply *reply)
{
	return control_send_fd(front, client, reply, -1);
}

bool control_refuse(struct control_client *client, int status, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(client->text, sizeof(client->text), format, arguments);
	va_end(arguments);
	client->was_refused = true;
	client->end.status = status;
	client->end.text = client->text;
	return true;
}

struct device *control_device(struct front *front, struct control_client *client)
{
	for (size_t i = 0; i < front->n_devices; i++)
		if (device_is_present(&front->devices[i]) &&
		    front->devices[i].configuration->guest_cid == client->request.cid)
			return &front->devices[i];
	control_refuse(client, -ENOENT,
		       "there is no VM with CID %" PRIu64 "; \"vsockctl status\" lists them",
		       client->request.cid);
	return NULL;
}

/* ---- pairs of sockets ---- */

void control_request_pair(struct front *front, struct control_client *client,
			  const struct device *device, enum control_pair type)
{
	if (client->awaits_pair || client->has_pair)
		return;
	client->awaits_pair = front_request_pair(
		front, device, (uint16_t)(client - front->control->clients), (uint32_t)type);
	client->pair_number = client->awaits_pair ? ++front->control->n_pairs_asked : 0;
}

/*
 * Pairs come in the order in which they were asked for: one that a client asked for
 * which has left since is nobody's.
 */
void control_paired(struct front *front, uint16_t index, int error, const int *fds)
{
	struct control_client *client = &front->control->clients[index];
	uint32_t number = ++front->control->n_pairs_made;

	if (client->socket >= 0 && client->awaits_pair && client->pair_number == number) {
		client->awaits_pair = false;
		client->has_pair = true;
		client->pair_error = error;
		client->pair[0] = fds[0];
		client->pair[1] = fds[1];
	} else if (error == 0) {
		close(fds[0]);
		close(fds[1]);
	}
}

/* ---- handovers ---- */

void control_replaced(struct front *front, uint32_t serial, int status)
{
	struct control_client *client = find_client(front->control, serial);

	if (!client)
		return;
	client->awaits_handover = false;
	client->handover_status = status;
}

/* ---- ports of the host ---- */

static bool listens(const struct control_client *client)
{
	return client->socket >= 0 && !client->is_gone && client->command &&
	       client->command->number == CONTROL_LISTEN && client->cursor != 0;
}

uint32_t control_listener(const struct device *device, uint32_t port)
{
	const struct control *control = device->front->control;

	for (size_t i = 0; control && i < CONTROL_CLIENTS_MAX; i++) {
		const struct control_client *client = &control->clients[i];

		if (listens(client) && client->request.port == port &&
		    client->request.cid == device->configuration->guest_cid)
			return client->serial;
	}
	return 0;
}

static struct control_client *find_listener(struct control *control, uint32_t serial)
{
	struct control_client *client = find_client(control, serial);

	return client && listens(client) ? client : NULL;
}

static bool give_stream(struct device *device, struct endpoint *endpoint, int fd)
{
	struct control_client *client = find_listener(device->front->control, endpoint->client);
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Stream stream = CONTROL__STREAM__INIT;

	stream.guest_port = endpoint->guest_port;
	reply.body_case = CONTROL__REPLY__BODY_STREAM;
	reply.stream = &stream;
	if (!client || !control_send_fd(device->front, client, &reply, fd))
		return false;
	endpoint->pid = client->pid;
	return true;
}

void control_accepted(struct device *device, uint32_t index, int error, const int *fds)
{
	struct endpoint *endpoint = &device->endpoints.all[index];

	if (error == 0 && !give_stream(device, endpoint, fds[1])) {
		close(fds[0]);
		error = ECONNREFUSED;
	}
	if (fds[1] >= 0)
		close(fds[1]);
	device_connected(device, index, error, error == 0 ? fds[0] : -1);
}

/* ---- clients ---- */

static void watch(struct front *front, struct control_client *client, int operation,
		  uint32_t events)
{
	if (operation == EPOLL_CTL_MOD && events == client->watched)
		return;
	client->watched = events;
	if (front_watch(front, operation, client->socket, events, FRONT_EVENT_CONTROL,
			(size_t)(client - front->control->clients)) < 0)
		client->is_gone = true;
}

static void close_pair(struct control_client *client)
{
	for (int i = 0; i < 2 && client->has_pair; i++)
		if (client->pair[i] >= 0)
			close(client->pair[i]);
	client->has_pair = false;
}

static void end_command(struct front *front, struct control_client *client)
{
	if (client->command && client->command->end)
		client->command->end(front, client);
	close_pair(client);
	client->awaits_pair = false;
	client->awaits_handover = false;
	client->command = NULL;
	client->has_finished = false;
	client->wait_until = 0;
}

static void drop(struct front *front, struct control_client *client)
{
	end_command(front, client);
	close(client->socket);
	client->socket = -1;
}

static void listen_again(struct front *front)
{
	struct control *control = front->control;
	bool listens = front->now >= control->accept_at && control->n_kept <= KEPT_MAX;

	if (listens == control->is_listening)
		return;
	control->is_listening = listens;
	front_watch(front, EPOLL_CTL_MOD, control->listener, listens ? EPOLLIN : 0,
		    FRONT_EVENT_CONTROL_LISTENER, 0);
}

uint32_t control_peer(int socket)
{
	struct ucred peer = {0};
	socklen_t len = sizeof(peer);

	/* Its user and group are of no use: they show as nobody in here. */
	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return 0;
	return (uint32_t)peer.pid;
}

/* One packet, to whom nothing is kept for; it may not even have room for that. */
static void turn_away(int socket, const char *reason)
{
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__End end = CONTROL__END__INIT;
	struct channel_packet packet;
	char text[CONTROL_TEXT_MAX + 1];

	snprintf(text, sizeof(text), "%s", reason);
	end.status = -EBUSY;
	end.text = text;
	reply.body_case = CONTROL__REPLY__BODY_END;
	reply.end = &end;
	control_encode_reply(&reply, -1, &packet);
	(void)channel_send(socket, &packet);
	close(socket);
}

static void take(struct front *front, int socket)
{
	for (size_t i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		struct control_client *client = &front->control->clients[i];

		if (client->socket >= 0)
			continue;
		*client = (struct control_client){
			.socket = socket,
			.pid = control_peer(socket),
			.serial = ++front->control->last_serial,
			.deadline = front->now + IDLE_MS,
		};
		watch(front, client, EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP);
		if (!client->is_gone)
			return;
		log_event(LOG_ERR, LOG_NO_VM,
			  "control: process %" PRIu32 " refused: it cannot be watched",
			  client->pid);
		client->socket = -1;
		turn_away(socket, "vsockd has no memory to hear of you; try again");
		return;
	}
	turn_away(socket, "too many control connections; end one, or try again");
}

void control_accept(struct front *front)
{
	struct control *control = front->control;
	int socket = accept4(control->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (socket >= 0) {
		take(front, socket);
		return;
	}
	if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
		control->accept_at = front->now + ACCEPT_AGAIN_MS;
}

/* ---- requests ---- */

static bool is_refused(struct control_client *client, const struct control_row *row)
{
	if (client->request.version != CONTROL_VERSION)
		return control_refuse(client, -EPROTONOSUPPORT,
				      "this vsockd speaks version %d of the control protocol, not "
				      "%" PRIu32 "; use the vsockctl that was installed with it",
				      CONTROL_VERSION, client->request.version);
	if (!row)
		return control_refuse(client, -ENOSYS, "this vsockd does not know command %" PRIu32,
				      client->request.command);
	return false;
}

static void begin(struct front *front, struct control_client *client, struct channel_packet *packet)
{
	static const Control__End good = CONTROL__END__INIT;
	static const struct control_row refusal = {.name = "refusal"};
	const Control__Request *request = control_decode_request(packet);
	const struct control_row *row;

	if (packet->fd >= 0) {
		/* Nobody was asked for one; and what it is, to close it may take long. */
		disposal_close(packet->fd);
		front->control->n_kept += disposal_take_kept();
	}
	if (!request || packet->fd >= 0) {
		client->is_gone = true;
		return;
	}
	row = find_row(request->command);
	client->request = *request;
	client->cursor = 0;
	client->place[0] = 0;
	client->place[1] = 0;
	client->position = (struct metrics_position){0};
	client->since = front->now;
	client->was_refused = false;
	client->end = good;
	client->deadline = front->now + STUCK_MS;
	client->has_finished = is_refused(client, row);
	client->command = client->has_finished ? &refusal : row;
	if (client->command->is_logged)
		log_event(LOG_NOTICE, request->cid, "control: process %" PRIu32 ": %s", client->pid,
			  row->name);
}

static void receive(struct front *front, struct control_client *client)
{
	struct channel_packet packet;
	int r = channel_receive(client->socket, &packet);

	if (r == CHANNEL_E_AGAIN)
		return;
	if (r == 0)
		begin(front, client, &packet);
	else
		client->is_gone = true;
}

void control_event(struct front *front, size_t index, uint32_t events)
{
	struct control_client *client = &front->control->clients[index];

	if (client->socket < 0)
		return;
	if (events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR))
		client->is_gone = true;
	if (events & EPOLLOUT)
		client->is_blocked = false;
	if (events & EPOLLIN && !client->command && !client->is_gone)
		receive(front, client);
}

static bool send_end(struct front *front, struct control_client *client)
{
	Control__Reply reply = CONTROL__REPLY__INIT;

	reply.body_case = CONTROL__REPLY__BODY_END;
	reply.end = &client->end;
	return control_send(front, client, &reply);
}

static void go_on(struct front *front, struct control_client *client)
{
	if (!client->command || client->is_blocked || client->is_gone)
		return;
	if (client->wait_until <= front->now)
		client->wait_until = 0;
	if (!client->has_finished)
		client->has_finished = client->command->run(front, client);
	if (client->has_finished && send_end(front, client)) {
		end_command(front, client);
		client->deadline = front->now + IDLE_MS;
	}
}

/* What waits for something else than the client has all the time that takes. */
static bool is_late(const struct front *front, const struct control_client *client)
{
	return (!client->command || client->is_blocked) && client->deadline <= front->now;
}

void control_run(struct front *front)
{
	if (!front->control)
		return;
	for (size_t i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		struct control_client *client = &front->control->clients[i];

		if (client->socket < 0)
			continue;
		go_on(front, client);
		if (client->is_gone || is_late(front, client)) {
			drop(front, client);
			continue;
		}
		/* While it is being answered its next request waits in the socket. */
		watch(front, client, EPOLL_CTL_MOD,
		      EPOLLRDHUP | (client->is_blocked ? (uint32_t)EPOLLOUT : 0) |
			      (client->command ? 0 : (uint32_t)EPOLLIN));
	}
	listen_again(front);
}

void control_call(struct front *front)
{
	for (size_t i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		struct control_client *client = &front->control->clients[i];

		if (client->socket >= 0 && client->command)
			client->wait_until = front->now;
	}
}

uint64_t control_deadline(const struct front *front)
{
	uint64_t deadline = UINT64_MAX;

	if (!front->control)
		return deadline;
	if (front->control->accept_at > front->now)
		deadline = front->control->accept_at;
	for (size_t i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		const struct control_client *client = &front->control->clients[i];

		if (client->socket < 0)
			continue;
		if ((!client->command || client->is_blocked) && client->deadline < deadline)
			deadline = client->deadline;
		/* Who is to read first is not called until then, however late it is. */
		if (client->command && !client->is_blocked && client->wait_until &&
		    client->wait_until < deadline)
			deadline = client->wait_until;
	}
	return deadline;
}

bool control_init(struct front *front, int listener, const char *file)
{
	struct control *control = calloc(1, sizeof(*control));

	front->control = control;
	if (!control)
		return false;
	control->listener = listener;
	control->is_listening = true;
	for (size_t i = 0; i < CONTROL_CLIENTS_MAX; i++)
		control->clients[i].socket = -1;
	if (!control_reload_init(file))
		return false;
	return front_watch(front, EPOLL_CTL_ADD, listener, EPOLLIN, FRONT_EVENT_CONTROL_LISTENER,
			   0) >= 0;
}
