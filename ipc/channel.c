/* SPDX-License-Identifier: Apache-2.0 */
#include "ipc/channel.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * The kernel delivers as many fds as fit between alignment gaps, so room for one
 * is room for two on 64-bit machines. Room for a few on purpose, and a count:
 * the surplus is seen, closed and held against the sender.
 */
#define CONTROL_FDS 4

union control {
	char bytes[CMSG_SPACE(sizeof(int) * CONTROL_FDS)];
	struct cmsghdr alignment;
};

/* The kernel is short of memory, which passes: the packet stays where it is until then. */
static bool is_passing(int error)
{
	return error == EAGAIN || error == ENOBUFS || error == ENOMEM;
}

int channel_send(int socket, const struct channel_packet *packet)
{
	struct iovec iov = {(void *)packet->bytes, packet->len};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	union control control = {.bytes = {0}};
	ssize_t n;

	if (packet->fd >= 0) {
		struct cmsghdr *cmsg;

		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int));
		cmsg = CMSG_FIRSTHDR(&message);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &packet->fd, sizeof(int));
	}

	do
		n = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return 0;
	if (is_passing(errno))
		return CHANNEL_E_AGAIN;
	if (errno == EPIPE || errno == ECONNRESET)
		return CHANNEL_E_CLOSED;
	return -errno;
}

static size_t collect_fds(struct msghdr *message, int *fds)
{
	size_t n_fds = 0;

	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(message); cmsg;
	     cmsg = CMSG_NXTHDR(message, cmsg)) {
		size_t len;

		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		len = cmsg->cmsg_len - CMSG_LEN(0);
		for (size_t i = 0; i < len / sizeof(int) && n_fds < CONTROL_FDS; i++)
			memcpy(&fds[n_fds++], CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
	}
	return n_fds;
}

int channel_receive(int socket, struct channel_packet *ret_packet)
{
	struct iovec iov = {ret_packet->bytes, sizeof(ret_packet->bytes)};
	union control control;
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	int fds[CONTROL_FDS];
	size_t n_fds;
	ssize_t n;

	do
		n = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0) {
		if (is_passing(errno))
			return CHANNEL_E_AGAIN;
		return errno == ECONNRESET ? CHANNEL_E_CLOSED : -errno;
	}

	n_fds = collect_fds(&message, fds);
	/* MSG_CTRUNC also when this process has no fd number left: the fd is gone. */
	if (n == 0 || n_fds > CHANNEL_FDS_MAX || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		for (size_t i = 0; i < n_fds; i++)
			close(fds[i]);
		/* An empty packet is not sent by us, so it reads as the end. */
		return n == 0 && n_fds == 0 ? CHANNEL_E_CLOSED : CHANNEL_E_BROKEN;
	}
	ret_packet->len = (size_t)n;
	ret_packet->fd = n_fds ? fds[0] : -1;
	return 0;
}

void channel_wait(int socket)
{
	struct msghdr message = {0};

	/* Without room for them no fds are taken out, nor copied. */
	(void)recvmsg(socket, &message, MSG_PEEK);
}
