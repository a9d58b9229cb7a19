/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A guest for scripts:
 *
 *	play-guest SOCKET CID
 *
 * connects to the vhost-user socket and does what lines on its standard input say:
 *
 *	listen PORT		answer whoever connects, and give back what comes
 *	connect CID PORT
 *	send TEXT		on the connection that was last made
 *	close			that one, and wait for its end
 *
 * What happens it prints, a line each: "ready", "listening PORT", "accepted PORT",
 * "connected", "refused", "got TEXT" and "ended". It ends with its input, with 1 if the
 * back-end broke a rule.
 */

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/frontend/guest.h"

#define LIMIT	    20000
#define PEERS_MAX   64
#define LISTENS_MAX 16

struct peer {
	struct guest_connection *connection; /* NULL: this entry is free */
	bool is_ours, is_told;
	char text[4096]; /* the begin of a line */
	size_t len;
};

static struct guest guest;
static struct peer peers[PEERS_MAX];
static struct peer *last; /* of ours that were made */
static uint32_t listens[LISTENS_MAX];
static size_t n_listens;
static char input[4096];
static size_t input_len;
static bool has_ended;

static void add_peer(struct guest_connection *connection, bool is_ours)
{
	for (size_t i = 0; i < PEERS_MAX; i++) {
		if (peers[i].connection)
			continue;
		peers[i] = (struct peer){.connection = connection, .is_ours = is_ours};
		return;
	}
}

static void obey(const char *line)
{
	unsigned long long cid;
	unsigned int port;

	if (sscanf(line, "listen %u", &port) == 1 && n_listens < LISTENS_MAX) {
		listens[n_listens++] = port;
		(void)guest_listen(&guest, port);
		printf("listening %u\n", port);
	} else if (sscanf(line, "connect %llu %u", &cid, &port) == 2) {
		add_peer(guest_connect(&guest, cid, port), /* is_ours= */ true);
	} else if (strncmp(line, "send ", 5) == 0 && last && last->connection) {
		(void)guest_send_all(last->connection, line + 5, strlen(line + 5), LIMIT);
		(void)guest_send_all(last->connection, "\n", 1, LIMIT);
	} else if (strcmp(line, "close") == 0 && last && last->connection) {
		(void)guest_finish(last->connection, LIMIT);
		last->connection = NULL;
		puts("ended");
	} else {
		printf("what is \"%s\"?\n", line);
	}
}

static void on_input(struct watch *watch, short events)
{
	ssize_t n = read(watch->fd, input + input_len, sizeof(input) - 1 - input_len);
	char *end;

	(void)events;
	if (n <= 0) {
		has_ended = true;
		watch->events = 0;
		return;
	}
	input_len += (size_t)n;
	input[input_len] = '\0';
	while ((end = strchr(input, '\n'))) {
		*end = '\0';
		obey(input);
		input_len -= (size_t)(end + 1 - input);
		memmove(input, end + 1, input_len + 1);
	}
}

static void print_lines(struct peer *peer, const char *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		bool is_end = bytes[i] == '\n' || peer->len == sizeof(peer->text) - 1;

		if (!is_end) {
			peer->text[peer->len++] = bytes[i];
			continue;
		}
		printf("got %.*s\n", (int)peer->len, peer->text);
		peer->len = 0;
	}
}

static void look_at(struct peer *peer)
{
	struct guest_connection *connection = peer->connection;
	char bytes[4096];
	ssize_t n;

	if (peer->is_ours && !peer->is_told && connection->state != GUEST_CONNECTING) {
		peer->is_told = true;
		if (connection->state == GUEST_ESTABLISHED)
			last = peer;
		puts(connection->state == GUEST_ESTABLISHED ? "connected" : "refused");
	}
	while ((n = guest_receive(connection, bytes, sizeof(bytes))) > 0) {
		print_lines(peer, bytes, (size_t)n);
		if (!peer->is_ours)
			(void)guest_send_all(connection, bytes, (size_t)n, LIMIT);
	}
	/* The end of the other half, or of all. */
	if (connection->state == GUEST_CONNECTING ||
	    (n != 0 && connection->state != GUEST_CLOSED && connection->error == 0))
		return;
	if (peer->len > 0)
		print_lines(peer, "\n", 1);
	if (connection->state == GUEST_CLOSED)
		guest_forget(connection);
	else
		(void)guest_finish(connection, LIMIT);
	peer->connection = NULL;
	puts("ended");
}

static void look(void)
{
	for (size_t i = 0; i < n_listens; i++) {
		struct guest_connection *connection = guest_accept(&guest, listens[i]);

		if (!connection)
			continue;
		printf("accepted %u\n", listens[i]);
		add_peer(connection, /* is_ours= */ false);
	}
	for (size_t i = 0; i < PEERS_MAX; i++)
		if (peers[i].connection)
			look_at(&peers[i]);
}

int main(int argc, char **argv)
{
	struct watch watch = {.fd = STDIN_FILENO, .events = POLLIN, .ready = on_input};
	struct guest_options options = {.timeout = LIMIT};
	int r;

	if (argc != 3) {
		fputs("usage: play-guest SOCKET CID\n", stderr);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	options.socket = argv[1];
	options.cid = strtoull(argv[2], NULL, 10);
	r = guest_start(&guest, &options);
	if (r < 0) {
		fprintf(stderr, "play-guest: %s: %s\n", argv[1], strerror(-r));
		return 1;
	}
	guest_watch(&guest, &watch);
	puts("ready");
	while (!has_ended && r >= 0) {
		r = guest_poll(&guest, LIMIT);
		look();
	}
	guest_unwatch(&guest, &watch);
	fputs(guest_violations(&guest), stderr);
	r = r < 0 || guest_violations(&guest)[0];
	guest_end(&guest);
	return r;
}
