/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/scrape.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/front.h"
#include "broker/log.h"
#include "broker/metrics.h"
#include "ipc/export.h"

/* For the request, and then for each part of the answer. */
#define CLIENT_MS 5000
/* How often workers that do not answer are looked at. */
#define LOOK_AGAIN_MS 250
/* The kernel had no room for another socket; nobody tells when there is again. */
#define ACCEPT_AGAIN_MS 100

#define REQUEST_MAX 4096
#define OUTPUT_MAX  EXPORT_TEXT_MAX

/* Its place behind those of the clients. */
#define EXPORTER SCRAPE_CLIENTS_MAX
#define PLACES	 (SCRAPE_CLIENTS_MAX + 1)

enum phase {
	PHASE_REQUEST, /* is being read */
	PHASE_WAITING, /* for the workers' counters */
	PHASE_ANSWER,
};

struct scrape_client {
	int socket; /* -1: this entry is free */
	enum phase phase;
	bool is_exporter; /* asks again and again, in packets, and has no time limit */
	uint64_t serial;  /* of its question */
	bool is_blocked, is_gone;
	uint64_t since;	   /* ms: when the request was complete */
	uint64_t deadline; /* ms: dropped then */
	uint32_t watched;  /* epoll events */
	size_t request_len;
	char request[REQUEST_MAX];
	struct metrics_position position;
	bool has_all; /* nothing comes behind what is in output */
	size_t output_len, output_sent;
	char output[OUTPUT_MAX];
};

struct scrape {
	int listener; /* -1: none */
	bool is_listening;
	uint64_t accept_at; /* ms: not before */
	struct scrape_client clients[PLACES];
};

static struct scrape_client *find_free(struct scrape *scrape)
{
	for (size_t i = 0; i < SCRAPE_CLIENTS_MAX; i++)
		if (scrape->clients[i].socket < 0)
			return &scrape->clients[i];
	return NULL;
}

static void give_time(const struct front *front, struct scrape_client *client)
{
	client->deadline = client->is_exporter ? UINT64_MAX : front->now + CLIENT_MS;
}

/*
 * A program may shut down what it writes and wait for its answer. The exporter, whose
 * questions never end, has nothing more to ask then, and would be heard of for ever:
 * an empty packet of its own is no end, so a read does not tell.
 */
static uint32_t events_of_request(const struct scrape_client *client)
{
	return client->is_exporter ? EPOLLIN | EPOLLRDHUP : EPOLLIN;
}

static void watch(struct front *front, struct scrape_client *client, int operation, uint32_t events)
{
	if (operation == EPOLL_CTL_MOD && events == client->watched)
		return;
	client->watched = events;
	if (front_watch(front, operation, client->socket, events, FRONT_EVENT_SCRAPE,
			(size_t)(client - front->scrape->clients)) < 0)
		client->is_gone = true;
}

void scrape_accept(struct front *front)
{
	struct scrape *scrape = front->scrape;
	struct scrape_client *client = find_free(scrape);
	int socket;

	if (!client)
		return;
	socket = accept4(scrape->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (socket < 0) {
		if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
			scrape->accept_at = front->now + ACCEPT_AGAIN_MS;
		return;
	}
	*client = (struct scrape_client){.socket = socket, .deadline = front->now + CLIENT_MS};
	watch(front, client, EPOLL_CTL_ADD, events_of_request(client));
	if (!client->is_gone)
		return;
	log_event(LOG_ERR, LOG_NO_VM, "metrics: a client is refused: it cannot be watched");
	close(socket);
	client->socket = -1;
}

/* ---- the request ---- */

static void answer(struct scrape_client *client, const char *status, const char *type,
		   const char *body)
{
	client->phase = PHASE_ANSWER;
	client->output_len =
		(size_t)snprintf(client->output, sizeof(client->output),
				 "HTTP/1.0 %s\r\nContent-Type: %s\r\nConnection: close\r\n\r\n%s",
				 status, type, body);
	client->has_all = body[0] != '\0';
}

static bool begins_with(const char *text, const char *with)
{
	return strncmp(text, with, strlen(with)) == 0;
}

static void await_counters(const struct front *front, struct scrape_client *client)
{
	client->phase = PHASE_WAITING;
	client->since = front->now;
}

static void on_request(struct front *front, struct scrape_client *client)
{
	if (!begins_with(client->request, "GET ")) {
		answer(client, "405 Method Not Allowed", "text/plain", "only GET\n");
		return;
	}
	if (!begins_with(client->request + 4, "/metrics ") &&
	    !begins_with(client->request + 4, "/ ")) {
		answer(client, "404 Not Found", "text/plain", "only /metrics\n");
		return;
	}
	await_counters(front, client);
}

/* What is no question is not answered. */
static void receive_question(struct front *front, struct scrape_client *client)
{
	uint64_t serial[2];
	struct iovec part = {serial, sizeof(serial)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (recvmsg(client->socket, &message, MSG_DONTWAIT) != sizeof(serial[0]))
		return;
	client->serial = serial[0];
	await_counters(front, client);
}

static void receive(struct front *front, struct scrape_client *client)
{
	struct iovec part = {client->request + client->request_len,
			     sizeof(client->request) - 1 - client->request_len};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t n = recvmsg(client->socket, &message, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		client->is_gone = true;
		return;
	}
	client->request_len += (size_t)n;
	client->request[client->request_len] = '\0';
	if (strstr(client->request, "\r\n\r\n") || strstr(client->request, "\n\n"))
		on_request(front, client);
	else if (client->request_len == sizeof(client->request) - 1 ||
		 strlen(client->request) < client->request_len)
		answer(client, "400 Bad Request", "text/plain", "no request\n");
}

/* ---- the answer ---- */

static void refresh(struct front *front, struct scrape_client *client)
{
	for (size_t i = 0; i < front->n_devices; i++)
		if (query_counters(&front->devices[i], client->since) == QUERY_WAIT)
			return;
	if (client->is_exporter)
		client->phase = PHASE_ANSWER;
	else
		answer(client, "200 OK",
		       "application/openmetrics-text; version=1.0.0; charset=utf-8", "");
	give_time(front, client);
}

static void fill(struct front *front, struct scrape_client *client)
{
	client->output_len = 0;
	client->output_sent = 0;
	while (!client->has_all &&
	       sizeof(client->output) - client->output_len >= METRICS_LINE_MAX) {
		char line[METRICS_LINE_MAX];

		if (!metrics_line(front, &client->position, line)) {
			client->has_all = true;
			return;
		}
		memcpy(client->output + client->output_len, line, strlen(line));
		client->output_len += strlen(line);
	}
}

/* All was sent, and what was sent is delivered in any case. */
static void finish(struct scrape_client *client)
{
	if (!client->is_exporter) {
		client->is_gone = true;
		return;
	}
	client->phase = PHASE_REQUEST;
	client->position = (struct metrics_position){0};
	client->has_all = false;
}

static ssize_t send_part(struct scrape_client *client)
{
	struct iovec parts[] = {
		{&client->serial, sizeof(client->serial)},
		{client->output + client->output_sent, client->output_len - client->output_sent}};
	bool has_serial = client->is_exporter;
	struct msghdr message = {.msg_iov = has_serial ? parts : parts + 1,
				 .msg_iovlen = has_serial ? 2 : 1};
	ssize_t n = sendmsg(client->socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);

	/* A packet is sent whole. */
	return n < 0 || !has_serial ? n : (ssize_t)parts[1].iov_len;
}

/* No room, or no memory in the kernel: both pass, and the exporter has no other channel. */
static bool is_passing(int error)
{
	return error == EAGAIN || error == ENOBUFS || error == ENOMEM;
}

static void send_output(struct front *front, struct scrape_client *client)
{
	while (!client->is_gone && client->phase == PHASE_ANSWER) {
		bool is_sent = client->output_sent == client->output_len;
		ssize_t n;

		if (is_sent && client->has_all) {
			finish(client);
			return;
		}
		if (is_sent) {
			fill(front, client);
			continue;
		}
		n = send_part(client);
		if (n < 0 && is_passing(errno)) {
			client->is_blocked = true;
			return;
		}
		if (n < 0 && errno != EINTR)
			client->is_gone = true;
		if (n > 0) {
			client->output_sent += (size_t)n;
			give_time(front, client);
		}
	}
}

void scrape_event(struct front *front, size_t index, uint32_t events)
{
	struct scrape_client *client = &front->scrape->clients[index];

	if (client->socket < 0)
		return;
	if (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP))
		client->is_gone = true;
	if (events & EPOLLOUT)
		client->is_blocked = false;
	if (!(events & EPOLLIN) || client->phase != PHASE_REQUEST)
		return;
	if (client->is_exporter)
		receive_question(front, client);
	else
		receive(front, client);
}

static void go_on(struct front *front, struct scrape_client *client)
{
	if (client->phase == PHASE_WAITING)
		refresh(front, client);
	if (client->phase == PHASE_ANSWER && !client->is_blocked)
		send_output(front, client);
	if (client->phase != PHASE_WAITING && client->deadline <= front->now)
		client->is_gone = true;
	if (client->is_gone) {
		close(client->socket);
		client->socket = -1;
		return;
	}
	watch(front, client, EPOLL_CTL_MOD,
	      client->phase == PHASE_REQUEST ? events_of_request(client)
	      : client->is_blocked	     ? EPOLLOUT
					     : 0);
}

void scrape_run(struct front *front)
{
	struct scrape *scrape = front->scrape;
	bool listens;

	if (!scrape)
		return;
	for (size_t i = 0; i < PLACES; i++)
		if (scrape->clients[i].socket >= 0)
			go_on(front, &scrape->clients[i]);
	if (scrape->listener < 0)
		return;
	listens = find_free(scrape) && front->now >= scrape->accept_at;
	if (listens == scrape->is_listening)
		return;
	scrape->is_listening = listens;
	front_watch(front, EPOLL_CTL_MOD, scrape->listener, listens ? EPOLLIN : 0,
		    FRONT_EVENT_SCRAPE_LISTENER, 0);
}

uint64_t scrape_deadline(const struct front *front)
{
	const struct scrape *scrape = front->scrape;
	uint64_t deadline = UINT64_MAX;

	if (!scrape)
		return deadline;
	if (scrape->accept_at > front->now)
		deadline = scrape->accept_at;
	for (size_t i = 0; i < PLACES; i++) {
		const struct scrape_client *client = &scrape->clients[i];
		uint64_t of_client = client->phase == PHASE_WAITING ? front->now + LOOK_AGAIN_MS
								    : client->deadline;

		if (client->socket >= 0 && of_client < deadline)
			deadline = of_client;
	}
	return deadline;
}

bool scrape_init(struct front *front, int listener, int exporter)
{
	struct scrape *scrape = calloc(1, sizeof(*scrape));
	struct scrape_client *client;

	front->scrape = scrape;
	if (!scrape)
		return false;
	scrape->listener = listener;
	scrape->is_listening = listener >= 0;
	for (size_t i = 0; i < PLACES; i++)
		scrape->clients[i].socket = -1;
	if (exporter >= 0) {
		client = &scrape->clients[EXPORTER];
		client->socket = exporter;
		client->is_exporter = true;
		give_time(front, client);
		watch(front, client, EPOLL_CTL_ADD, events_of_request(client));
		if (client->is_gone)
			return false;
	}
	return listener < 0 || front_watch(front, EPOLL_CTL_ADD, listener, EPOLLIN,
					   FRONT_EVENT_SCRAPE_LISTENER, 0) >= 0;
}
