/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/spawner_channel.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

_Static_assert(sizeof(struct spawner_request) == 24, "a request has no padding");
_Static_assert(sizeof(struct spawner_reply) == 40, "a reply has no padding");

/* An error of a socket that says nothing about it: the same call is good in a moment. */
static bool is_passing(int error)
{
	return error == EAGAIN || error == EINTR || error == ENOBUFS || error == ENOMEM;
}

/* 0, or the errno of one attempt to send. */
static int try_send(int channel, const struct spawner_reply *reply, const int *fds, size_t n_fds)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(SPAWNER_CHANNEL_FDS_MAX * sizeof(int))];
	} control = {0};
	struct iovec part = {(void *)(uintptr_t)reply, sizeof(*reply)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (n_fds > 0) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
	}
	if (sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return errno;
	return 0;
}

int spawner_channel_send(int channel, const struct spawner_reply *reply, const int *fds,
			 size_t n_fds)
{
	int error = try_send(channel, reply, fds, n_fds);
	bool is_bare = false;

	if (error == ETOOMANYREFS && n_fds > 0) {
		/* More fds of this user are in flight than RLIMIT_NOFILE allows. */
		struct spawner_reply bare = *reply;

		bare.error = error;
		error = try_send(channel, &bare, NULL, 0);
		is_bare = true;
	}
	if (error == EPIPE || error == ECONNRESET)
		return SPAWNER_CHANNEL_E_CLOSED;
	if (error == 0 && is_bare)
		return SPAWNER_CHANNEL_E_BARE;
	return is_passing(error) ? SPAWNER_CHANNEL_E_AGAIN : -error;
}

static void close_received(struct msghdr *message)
{
	struct cmsghdr *header;

	for (header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
		size_t n_fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n_fds; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(header) + i * sizeof(fd), sizeof(fd));
			close(fd);
		}
	}
}

/* One fd with JUDGE, for which there may have been no number left here; else none. */
static bool has_right_fds(struct msghdr *message, uint32_t kind)
{
	const struct cmsghdr *header = CMSG_FIRSTHDR(message);

	if (kind != SPAWNER_JUDGE)
		return !header && !(message->msg_flags & MSG_CTRUNC);
	if (!header)
		return message->msg_flags & MSG_CTRUNC;
	return header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
	       header->cmsg_len == CMSG_LEN(sizeof(int)) && !(message->msg_flags & MSG_CTRUNC);
}

int spawner_channel_receive(int channel, struct spawner_request *ret_request, int *ret_fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(4 * sizeof(int))];
	} control;
	char surplus; /* shows that a packet is too long */
	struct spawner_request request;
	struct iovec parts[] = {{&request, sizeof(request)}, {&surplus, sizeof(surplus)}};
	struct msghdr message = {
		.msg_iov = parts,
		.msg_iovlen = 2,
		.msg_control = &control,
		.msg_controllen = sizeof(control.room),
	};
	ssize_t len = recvmsg(channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *received;

	if (len < 0 && is_passing(errno))
		return SPAWNER_CHANNEL_E_AGAIN;
	if (len <= 0)
		return SPAWNER_CHANNEL_E_CLOSED;
	if (len != sizeof(request) || !has_right_fds(&message, request.kind)) {
		close_received(&message);
		return SPAWNER_CHANNEL_E_BROKEN;
	}
	*ret_request = request;
	*ret_fd = -1;
	received = CMSG_FIRSTHDR(&message);
	if (received)
		memcpy(ret_fd, CMSG_DATA(received), sizeof(*ret_fd));
	return 0;
}
