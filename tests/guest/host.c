/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/guest/host.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

uint64_t host_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void host_set_time_limit(int fd, unsigned int limit_ms)
{
	struct timeval limit = {
		.tv_sec = limit_ms / 1000,
		.tv_usec = (suseconds_t)(limit_ms % 1000) * 1000,
	};

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

static int close_with(int fd, int error)
{
	close(fd);
	return error;
}

static int listen_at(const char *uds_name, uint32_t port, int type)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s_%" PRIu32, uds_name, port);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 64) < 0)
		return close_with(fd, -errno);
	return fd;
}

int host_listen(uint32_t port)
{
	return listen_at(HOST_UDS_NAME, port, SOCK_STREAM);
}

int host_listen_messages(uint32_t port)
{
	return listen_at(HOST_UDS_NAME, port, SOCK_SEQPACKET);
}

void host_unlisten(uint32_t port, int listener)
{
	char path[64];

	snprintf(path, sizeof(path), HOST_UDS_NAME "_%" PRIu32, port);
	unlink(path);
	close(listener);
}

int host_accept(int listener, unsigned int limit_ms)
{
	struct pollfd wait = {.fd = listener, .events = POLLIN};
	int fd;

	if (poll(&wait, 1, (int)limit_ms) == 0)
		return -ETIMEDOUT;
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return -errno;
	host_set_time_limit(fd, HOST_TRANSFER_MS);
	return fd;
}

/* The answer to CONNECT: a line, or a message that is one. */
static int read_answer(int fd, int type, char ret_line[STREAM_LINE_MAX])
{
	ssize_t n;

	if (type == SOCK_STREAM)
		return stream_read_line(fd, ret_line);
	n = recv(fd, ret_line, STREAM_LINE_MAX - 1, 0);
	if (n <= 0)
		return n < 0 ? -errno : -ECONNRESET;
	ret_line[n] = '\0';
	return (int)n;
}

static int connect_to(const char *path, int type, uint32_t port, unsigned int limit_ms)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	char line[STREAM_LINE_MAX];
	int len;

	if (fd < 0)
		return -errno;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	host_set_time_limit(fd, limit_ms);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return close_with(fd, -errno);
	len = snprintf(line, sizeof(line), "CONNECT %" PRIu32 "\n", port);
	if (send(fd, line, (size_t)len, MSG_NOSIGNAL) != len)
		return close_with(fd, -ECONNREFUSED);
	len = read_answer(fd, type, line);
	if (len == -ECONNRESET)
		return close_with(fd, -ECONNREFUSED);
	if (len < 0)
		return close_with(fd, len == -EAGAIN ? -ETIMEDOUT : len);
	if (strncmp(line, "OK ", 3))
		return close_with(fd, -EPROTO);
	host_set_time_limit(fd, HOST_TRANSFER_MS);
	return fd;
}

int host_connect(uint32_t port, unsigned int limit_ms)
{
	return connect_to(HOST_UDS_NAME, SOCK_STREAM, port, limit_ms);
}

int host_connect_messages(uint32_t port, unsigned int limit_ms)
{
	return connect_to(HOST_UDS_NAME "_seqpacket", SOCK_SEQPACKET, port, limit_ms);
}

int host_wait_for_end(int fd, unsigned int limit_ms)
{
	uint64_t end = host_now_ms() + limit_ms;
	char bytes[65536];

	for (;;) {
		uint64_t now = host_now_ms();
		struct pollfd wait = {.fd = fd, .events = POLLIN};
		ssize_t n;

		if (now > end || poll(&wait, 1, (int)(end - now)) == 0)
			return -ETIMEDOUT;
		n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno == ECONNRESET))
			return 0;
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
	}
}

int agent_listen(struct agent *agent, const char *uds_name)
{
	int listener = listen_at(uds_name, HOST_CONTROL_PORT, SOCK_STREAM);

	if (listener < 0)
		return listener;
	*agent = (struct agent){.listener = listener, .control = -1};
	return 0;
}

/* "done BYTES CHECKSUM" or "error ERRNO STEP" */
static int parse_reply(const char *line, struct agent_reply *ret_reply)
{
	struct agent_reply reply = {0};

	snprintf(reply.text, sizeof(reply.text), "%s", line);
	if (sscanf(line, "done %" SCNu64 " %" SCNx64, &reply.n_bytes, &reply.sum) != 2 &&
	    sscanf(line, "error %d", &reply.error) != 1)
		return -EPROTO;
	*ret_reply = reply;
	return 0;
}

int agent_wait(struct agent *agent, unsigned int limit_ms, struct agent_reply *ret_last)
{
	char line[STREAM_LINE_MAX];
	int fd, len;

	if (agent->control >= 0)
		close(agent->control);
	agent->control = -1;
	fd = host_accept(agent->listener, limit_ms);
	if (fd < 0)
		return fd;
	len = stream_read_line(fd, line);
	if (len < 0)
		return close_with(fd, len);
	if (strncmp(line, "ready ", 6))
		return close_with(fd, -EPROTO);
	if (ret_last && parse_reply(line + 6, ret_last) < 0)
		*ret_last = (struct agent_reply){.error = EPROTO};
	agent->control = fd;
	return 0;
}

int agent_tell(struct agent *agent, const char *format, ...)
{
	char line[STREAM_LINE_MAX];
	va_list arguments;
	int len;

	if (agent->control < 0)
		return -ENOTCONN;
	va_start(arguments, format);
	len = vsnprintf(line, sizeof(line) - 1, format, arguments);
	va_end(arguments);
	if (len < 0 || (size_t)len >= sizeof(line) - 1)
		return -EMSGSIZE;
	line[len++] = '\n';
	return send(agent->control, line, (size_t)len, MSG_NOSIGNAL) == len ? 0 : -EPIPE;
}

int agent_wait_listening(struct agent *agent)
{
	char line[STREAM_LINE_MAX];
	int len = stream_read_line(agent->control, line);

	if (len < 0)
		return len;
	return strcmp(line, "listening") ? -EPROTO : 0;
}

int agent_wait_reply(struct agent *agent, struct agent_reply *ret_reply)
{
	char line[STREAM_LINE_MAX];
	int len = stream_read_line(agent->control, line);

	if (len < 0)
		return len;
	return parse_reply(line, ret_reply);
}

static void *send_sequence(void *context)
{
	struct exchange *exchange = context;
	int error = stream_send(exchange->fd, exchange->seed, exchange->n_bytes);

	shutdown(exchange->fd, SHUT_WR);
	return (void *)(intptr_t)error;
}

static void *receive_sequence(void *context)
{
	struct exchange *exchange = context;

	return (void *)(intptr_t)stream_receive(exchange->fd, UINT64_MAX, &exchange->received);
}

int exchange_start(struct exchange *exchange)
{
	int error = pthread_create(&exchange->receiver, NULL, receive_sequence, exchange);

	if (error == 0 && exchange->sends)
		error = pthread_create(&exchange->sender, NULL, send_sequence, exchange);
	return -error;
}

bool exchange_finish(struct exchange *exchange)
{
	void *sent = NULL, *received = NULL;

	if (exchange->sends)
		pthread_join(exchange->sender, &sent);
	pthread_join(exchange->receiver, &received);
	close(exchange->fd);
	exchange->error = (int)(intptr_t)(sent ? sent : received);
	return exchange->error == 0 && exchange->received.n_bytes == exchange->n_bytes &&
	       checksum_value(&exchange->received) ==
		       stream_checksum(exchange->seed, exchange->n_bytes);
}
