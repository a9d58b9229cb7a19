/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/frontend.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/disposal.h"

#define HEADER_SIZE sizeof(struct vhost_user_header)

/* SCM_MAX_FD: more fds no message of a unix socket has. */
#define FDS_SENT_MAX 253

/*
 * Room for every fd, also where none may come: what finds no room the kernel closes
 * here and now, and a close can wait, see disposal.h.
 */
union control {
	char bytes[CMSG_SPACE(sizeof(int) * FDS_SENT_MAX)];
	struct cmsghdr alignment;
};

void frontend_init(struct frontend *frontend, int socket)
{
	memset(frontend, 0, sizeof(*frontend));
	frontend->socket = socket;
}

static void drop_fds(struct frontend *frontend)
{
	for (size_t i = 0; i < frontend->n_fds; i++)
		disposal_close(frontend->fds[i]);
	frontend->n_fds = 0;
}

__attribute__((format(printf, 2, 3))) static int broken(struct frontend *frontend,
							const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(frontend->reason, sizeof(frontend->reason), format, arguments);
	va_end(arguments);
	return FRONTEND_E_BROKEN;
}

/* Those that a message may have; returns how many others there were. */
static size_t take_fds(struct frontend *frontend, struct msghdr *msg, size_t n_max)
{
	struct cmsghdr *cmsg;
	size_t n, n_others = 0;
	int fd;

	for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(fd);
		for (size_t i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(fd), sizeof(fd));
			if (frontend->n_fds < n_max) {
				frontend->fds[frontend->n_fds++] = fd;
				continue;
			}
			disposal_close(fd);
			n_others++;
		}
	}
	return n_others;
}

/* How many bytes to ask for next; 0: the message is complete. */
static size_t wanted(const struct frontend *frontend)
{
	/*
	 * The kernel joins what was sent in pieces, up to and including a piece with fds.
	 * The first byte alone shows whether they came with it.
	 */
	if (frontend->received == 0)
		return 1;
	if (frontend->received < HEADER_SIZE)
		return HEADER_SIZE - frontend->received;
	return HEADER_SIZE + frontend->message.header.size - frontend->received;
}

static int receive_failed(int error)
{
	if (error == EAGAIN)
		return 0;
	if (error == ECONNRESET)
		return FRONTEND_E_CLOSED;
	return -error;
}

/* 1: some bytes came; 0: none yet; otherwise as frontend_receive(). */
static int receive_part(struct frontend *frontend, size_t len)
{
	bool is_first = frontend->received == 0;
	uint8_t *part = frontend->received < HEADER_SIZE
				? (uint8_t *)&frontend->message.header + frontend->received
				: frontend->message.payload + frontend->received - HEADER_SIZE;
	union control control;
	struct iovec iov = {.iov_base = part, .iov_len = len};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	size_t n_others;
	ssize_t n;

	do
		n = recvmsg(frontend->socket, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return receive_failed(errno);

	n_others = take_fds(frontend, &msg, is_first ? VHOST_USER_FDS_MAX : frontend->n_fds);
	if ((n_others > 0 || msg.msg_flags & MSG_CTRUNC) && is_first)
		return broken(frontend, "more than %d fds, or no room for them in this process",
			      VHOST_USER_FDS_MAX);
	if (n_others > 0 || msg.msg_flags & MSG_CTRUNC)
		return broken(frontend, "fds came with byte %zu or later of a message",
			      frontend->received);
	if (n == 0 && is_first)
		return FRONTEND_E_CLOSED;
	if (n == 0)
		return broken(frontend, "the connection ended at byte %zu of a message",
			      frontend->received);

	frontend->received += (size_t)n;
	return 1;
}

static int check_header(struct frontend *frontend)
{
	const struct vhost_user_header *header = &frontend->message.header;

	if ((header->flags & VHOST_USER_VERSION_MASK) != VHOST_USER_VERSION ||
	    header->flags & VHOST_USER_REPLY || header->flags & ~VHOST_USER_FLAGS_KNOWN)
		return broken(frontend,
			      "message %" PRIu32 ": flags 0x%" PRIx32 " are not those of a request",
			      header->request, header->flags);
	if (header->size > VHOST_USER_PAYLOAD_MAX)
		return broken(frontend,
			      "message %" PRIu32 ": payload of %" PRIu32 " bytes, at most %d taken",
			      header->request, header->size, VHOST_USER_PAYLOAD_MAX);
	return 1;
}

/* Go on with the message in hand until it is complete (1) or cannot go on now. */
static int assemble(struct frontend *frontend)
{
	size_t len;
	int status;

	while ((len = wanted(frontend)) > 0) {
		status = receive_part(frontend, len);
		if (status != 1)
			return status;
		/* Before a byte of the payload is asked for: len ended with the header. */
		if (frontend->received == HEADER_SIZE && check_header(frontend) != 1)
			return FRONTEND_E_BROKEN;
	}
	return 1;
}

int frontend_receive(struct frontend *frontend, const struct vhost_user_message **ret_message,
		     int ret_fds[static VHOST_USER_FDS_MAX], size_t *ret_n_fds)
{
	int status;

	if (frontend_wants_write(frontend))
		return 0;

	status = assemble(frontend);
	if (status == 0)
		return 0;
	if (status != 1) {
		drop_fds(frontend);
		return status;
	}

	memcpy(ret_fds, frontend->fds, frontend->n_fds * sizeof(frontend->fds[0]));
	*ret_n_fds = frontend->n_fds;
	*ret_message = &frontend->message;
	frontend->n_fds = 0;
	frontend->received = 0;
	return 1;
}

int frontend_send(struct frontend *frontend, const void *bytes, size_t len)
{
	if (len > sizeof(frontend->output))
		return -EMSGSIZE;
	if (frontend_wants_write(frontend))
		return -EBUSY;

	memcpy(frontend->output, bytes, len);
	frontend->output_len = len;
	frontend->output_sent = 0;
	return frontend_flush(frontend);
}

int frontend_flush(struct frontend *frontend)
{
	while (frontend_wants_write(frontend)) {
		struct iovec iov = {
			.iov_base = frontend->output + frontend->output_sent,
			.iov_len = frontend->output_len - frontend->output_sent,
		};
		struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
		ssize_t n = sendmsg(frontend->socket, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0)
			frontend->output_sent += (size_t)n;
		else if (errno == EAGAIN)
			return 0;
		else if (errno == EPIPE || errno == ECONNRESET)
			return FRONTEND_E_CLOSED;
		else if (errno != EINTR)
			return -errno;
	}
	return 0;
}

bool frontend_wants_write(const struct frontend *frontend)
{
	return frontend->output_sent < frontend->output_len;
}

const char *frontend_reason(const struct frontend *frontend)
{
	return frontend->reason;
}

/*
 * A socket that is closed takes with it what lies in its queue, and waits for that to
 * be closed. So first nothing more is let in, and then it is emptied.
 */
static void close_socket(struct frontend *frontend)
{
	ssize_t n;

	shutdown(frontend->socket, SHUT_RDWR);
	do {
		union control control;
		struct iovec iov = {frontend->message.payload, sizeof(frontend->message.payload)};
		struct msghdr msg = {
			.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = control.bytes,
			.msg_controllen = sizeof(control.bytes),
		};

		n = recvmsg(frontend->socket, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
		if (n > 0)
			take_fds(frontend, &msg, 0);
	} while (n > 0 || (n < 0 && errno == EINTR));
	close(frontend->socket);
}

void frontend_end(struct frontend *frontend)
{
	drop_fds(frontend);
	if (frontend->socket >= 0)
		close_socket(frontend);
	frontend_init(frontend, -1);
}
