/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockctl connect and listen: a stream to a port of a guest, or from a guest,
 * over sockets that vsockd hands out.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/command.h"

#define BUFFER_LEN 65536

/* "OK 4294967295\n" */
#define ANSWER_MAX 16

/* One direction: what was read from one fd and not yet written to the other. */
struct pipe_end {
	int from, to; /* -1: closed, or read to its end */
	size_t len, skip;
	char bytes[BUFFER_LEN];
};

/* ---- moving bytes ---- */

/* Room in a pipe is at least PIPE_BUF when there is any, so this never waits in the middle. */
static ssize_t write_some(int fd, const char *bytes, size_t len)
{
	ssize_t n = send(fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && errno == ENOTSOCK)
		n = write(fd, bytes, len < PIPE_BUF ? len : PIPE_BUF);
	return n;
}

/* Nothing more comes from there, or nothing more is wanted: the other side learns of it. */
static void end_output(struct pipe_end *end, int socket)
{
	if (end->to < 0)
		return;
	(void)shutdown(socket, end->to == socket ? SHUT_WR : SHUT_RD);
	if (end->to != socket)
		close(end->to);
	end->to = -1;
	end->from = -1;
	end->len = 0;
}

static void read_into(struct pipe_end *end, int socket)
{
	ssize_t n = read(end->from, end->bytes, sizeof(end->bytes));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		end_output(end, socket);
		return;
	}
	end->skip = 0;
	end->len = (size_t)n;
}

static void write_from(struct pipe_end *end, int socket)
{
	ssize_t n = write_some(end->to, end->bytes + end->skip, end->len);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		end_output(end, socket);
		return;
	}
	end->skip += (size_t)n;
	end->len -= (size_t)n;
}

static bool is_open(const struct pipe_end *end)
{
	return end->from >= 0;
}

/* Until both directions have ended, or the guest is gone and has sent all. */
static int relay(int socket)
{
	static struct pipe_end out, in;

	in = (struct pipe_end){.from = STDIN_FILENO, .to = socket};
	out = (struct pipe_end){.from = socket, .to = STDOUT_FILENO};
	while (is_open(&in) || is_open(&out)) {
		struct pollfd fds[] = {
			{.fd = in.len == 0 ? in.from : -1, .events = POLLIN},
			{.fd = in.len > 0 ? in.to : -1, .events = POLLOUT},
			{.fd = out.len == 0 ? out.from : -1, .events = POLLIN},
			{.fd = out.len > 0 ? out.to : -1, .events = POLLOUT},
			/* Both directions closed by the guest, also while nothing is written to it.
			 */
			{.fd = is_open(&out) ? -1 : socket, .events = 0},
		};

		if (poll(fds, sizeof(fds) / sizeof(fds[0]), -1) < 0) {
			if (errno == EINTR)
				continue;
			return complain(EX_OSERR, "poll: %s", strerror(errno));
		}
		if (fds[0].revents)
			read_into(&in, socket);
		if (fds[1].revents)
			write_from(&in, socket);
		if (fds[2].revents)
			read_into(&out, socket);
		if (fds[3].revents)
			write_from(&out, socket);
		if (fds[4].revents & (POLLHUP | POLLERR))
			break;
	}
	return EX_OK;
}

/* ---- connect ---- */

/* Byte by byte: what is behind the line is the stream. 0 or an exit code. */
static int read_answer(int socket, uint64_t cid, uint64_t port)
{
	struct pollfd readable = {.fd = socket, .events = POLLIN};
	char answer[ANSWER_MAX] = "";
	size_t len = 0;

	while (len < sizeof(answer) - 1 && !strchr(answer, '\n')) {
		ssize_t n;

		(void)poll(&readable, 1, -1);
		n = read(socket, answer + len, 1);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			return complain(EX_UNAVAILABLE,
					"VM %" PRIu64 " refused port %" PRIu64
					", or did not answer; does a program listen there?",
					cid, port);
		answer[++len] = '\0';
	}
	if (strncmp(answer, "OK ", 3) != 0)
		return complain(EX_PROTOCOL, "no answer of vsockd");
	return 0;
}

static int speak(int socket, uint64_t cid, uint64_t port)
{
	char line[32];
	int len = snprintf(line, sizeof(line), "CONNECT %" PRIu64 "\n", port), r;

	if (send(socket, line, (size_t)len, MSG_NOSIGNAL) != len)
		return complain(EX_UNAVAILABLE, "VM %" PRIu64 ": %s", cid, strerror(errno));
	r = read_answer(socket, cid, port);
	return r ? r : relay(socket);
}

static int read_target(const struct context *context, uint64_t *ret_cid, uint64_t *ret_port)
{
	int r = command_read_cid(context->argv[0], ret_cid);

	return r ? r : command_read_number("port", context->argv[1], UINT32_MAX, ret_port);
}

int connect_run(const struct context *context)
{
	Control__Request request;
	struct client client;
	uint64_t cid, port;
	int r = read_target(context, &cid, &port), socket;

	if (r == 0)
		r = client_open(context->path, &client);
	if (r != 0)
		return r;
	request = client_request(CONTROL_CONNECT, cid);
	r = client_send(&client, &request);
	socket = r == 0 ? client_receive_socket(&client, "the connection") : -r;
	client_close(&client);
	return socket < 0 ? -socket : speak(socket, cid, port);
}

/* ---- listen ---- */

static void run_command(char **argv, int socket)
{
	pid_t pid = fork();

	if (pid == 0) {
		/* As programs expect it; the worker's end is its own. */
		(void)fcntl(socket, F_SETFL, 0);
		if (dup2(socket, STDIN_FILENO) < 0 || dup2(socket, STDOUT_FILENO) < 0)
			_exit(EX_OSERR);
		(void)signal(SIGCHLD, SIG_DFL);
		execvp(argv[0], argv);
		_exit(complain(EX_UNAVAILABLE, "%.100s: %s", argv[0], strerror(errno)));
	}
	if (pid < 0)
		complain(EX_OSERR, "cannot start \"%.100s\": %s", argv[0], strerror(errno));
	close(socket);
}

int listen_run(const struct context *context)
{
	char **argv = context->argv + 2;
	Control__Request request;
	struct client client;
	uint64_t cid, port;
	int r = read_target(context, &cid, &port);

	if (r != 0)
		return r;
	if (argv[0] && strcmp(argv[0], "--") == 0)
		argv++;
	if (!argv[0])
		return complain(EX_USAGE, "no command was given; usage: vsockctl listen CID PORT "
					  "-- COMMAND [ARGUMENT]...");
	r = client_open(context->path, &client);
	if (r != 0)
		return r;
	/* Nobody waits for the commands, which end with their connections. */
	(void)signal(SIGCHLD, SIG_IGN);
	request = client_request(CONTROL_LISTEN, cid);
	request.port = (uint32_t)port;
	r = client_send(&client, &request);
	while (r == 0) {
		int socket = client_receive_socket(&client, "a connection of the guest");

		if (socket < 0)
			r = -socket;
		else
			run_command(argv, socket);
	}
	client_close(&client);
	return r;
}
