/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/client.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

int complain(int code, const char *format, ...)
{
	char text[600];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	/* What was typed, or comes from the other end, is not to reach the terminal as a command.
	 */
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	fprintf(stderr, "vsockctl: %s\n", text);
	return code;
}

static int fail_connect(const char *path, int error)
{
	struct stat status;

	switch (error) {
	case ENOENT:
	case ENOTDIR:
		return complain(
			EX_UNAVAILABLE,
			"control socket \"%.100s\": %s; start vsockd with --control %.100s, or "
			"say with --control PATH or VSOCKD_CONTROL where it is",
			path, strerror(error), path);
	case ECONNREFUSED:
		return complain(EX_UNAVAILABLE,
				"control socket \"%.100s\": nobody listens there; start vsockd",
				path);
	case EACCES:
		if (stat(path, &status) == 0)
			return complain(
				EX_NOPERM,
				"control socket \"%.100s\": permission denied (mode %04o, user "
				"%u, group %u); become one who may write to it",
				path, (unsigned int)(status.st_mode & 07777), status.st_uid,
				status.st_gid);
		return complain(
			EX_NOPERM,
			"control socket \"%.100s\": permission denied; its directory lets you "
			"not in",
			path);
	case EPROTOTYPE:
		return complain(
			EX_DATAERR,
			"control socket \"%.100s\": it is a socket of another kind; give the "
			"--control of vsockd",
			path);
	default:
		return complain(EX_OSERR, "control socket \"%.100s\": %s", path, strerror(error));
	}
}

int client_open(const char *path, struct client *ret_client)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd, error;

	if (!*path || strlen(path) >= sizeof(address.sun_path))
		return complain(EX_DATAERR,
				"control socket \"%.100s\": a path of 1 to %zu bytes is wanted",
				path, sizeof(address.sun_path) - 1);
	memcpy(address.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return complain(EX_OSERR, "socket: %s", strerror(errno));
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
		error = errno;
		close(fd);
		return fail_connect(path, error);
	}
	*ret_client = (struct client){.socket = fd, .path = path};
	return 0;
}

void client_close(struct client *client)
{
	close(client->socket);
	client->socket = -1;
}

Control__Request client_request(enum control_command command, uint64_t cid)
{
	Control__Request request = CONTROL__REQUEST__INIT;

	request.version = CONTROL_VERSION;
	request.command = command;
	request.cid = cid;
	return request;
}

static int fail_lost(const struct client *client)
{
	return complain(EX_UNAVAILABLE, "control socket \"%.100s\": vsockd closed the connection",
			client->path);
}

int client_send(const struct client *client, const Control__Request *request)
{
	struct pollfd poll_fd = {.fd = client->socket, .events = POLLOUT};
	struct channel_packet packet;
	int r;

	control_encode_request(request, -1, &packet);
	while ((r = channel_send(client->socket, &packet)) == CHANNEL_E_AGAIN)
		(void)poll(&poll_fd, 1, -1);
	/* It may have said why before it closed: that is read. */
	if (r == 0 || r == CHANNEL_E_CLOSED)
		return 0;
	return complain(EX_OSERR, "control socket \"%.100s\": %s", client->path, strerror(-r));
}

static int exit_code(int32_t status)
{
	switch (-status) {
	case ENOENT:
		return EX_DATAERR;
	case EADDRINUSE:
	case ENOTCONN:
		return EX_UNAVAILABLE;
	case EPROTONOSUPPORT:
	case ENOSYS:
		return EX_PROTOCOL;
	case EBUSY:
	case EAGAIN:
	case ETIMEDOUT:
		return EX_TEMPFAIL;
	case EINVAL:
		return EX_DATAERR;
	default:
		return EX_UNAVAILABLE;
	}
}

int client_receive_fd(const struct client *client, const Control__Reply **ret_reply, int *ret_fd)
{
	struct pollfd poll_fd = {.fd = client->socket, .events = POLLIN};
	struct channel_packet packet;
	const Control__Reply *reply;
	int r;

	while ((r = channel_receive(client->socket, &packet)) == CHANNEL_E_AGAIN)
		(void)poll(&poll_fd, 1, -1);
	if (r != 0)
		return -fail_lost(client);
	reply = control_decode_reply(&packet);
	if (packet.fd >= 0 && (!reply || reply->body_case == CONTROL__REPLY__BODY_END))
		close(packet.fd);
	if (!reply)
		return -complain(EX_PROTOCOL,
				 "control socket \"%.100s\": an answer that this vsockctl does not "
				 "know; use the one that was installed with vsockd",
				 client->path);
	if (reply->body_case != CONTROL__REPLY__BODY_END) {
		*ret_reply = reply;
		*ret_fd = packet.fd;
		return 1;
	}
	if (reply->end->status == 0)
		return 0;
	/* Where there is no text the rows before have said why. */
	if (!reply->end->text[0])
		return -exit_code(reply->end->status);
	return -complain(exit_code(reply->end->status), "%s", reply->end->text);
}

int client_receive(const struct client *client, const Control__Reply **ret_reply)
{
	int fd = -1, r = client_receive_fd(client, ret_reply, &fd);

	if (r == 1 && fd >= 0)
		close(fd);
	return r;
}

int client_receive_socket(const struct client *client, const char *what)
{
	const Control__Reply *reply;
	int fd = -1, r = client_receive_fd(client, &reply, &fd);

	if (r < 0)
		return r;
	if (r == 1 && reply->body_case == CONTROL__REPLY__BODY_STREAM && fd >= 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -complain(EX_PROTOCOL, "vsockd gave no socket for %s", what);
}

int client_ask(const char *path, const Control__Request *request,
	       void (*take)(void *context, const Control__Reply *reply), void *context)
{
	const Control__Reply *reply = NULL;
	struct client client = {.socket = -1};
	int r = client_open(path, &client);

	if (r != 0)
		return r;
	r = client_send(&client, request);
	if (r == 0)
		while ((r = client_receive(&client, &reply)) == 1)
			if (take)
				take(context, reply);
	client_close(&client);
	return r < 0 ? -r : r;
}
