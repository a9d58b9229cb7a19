/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/vhost.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/frontend/socket.h"

_Static_assert(sizeof(struct vhost_header) == 12, "header");
_Static_assert(sizeof(struct vhost_region) == 32, "region");
_Static_assert(sizeof(struct vhost_ring_address) == 40, "ring address");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "virtio fields are little-endian");

enum { REPLY_FLAGS = VHOST_FLAG_VERSION | VHOST_FLAG_REPLY };

/* vhost-user.c of QEMU 11.1; the ring messages are waited for since 10. */
const uint64_t vhost_ack_like_qemu =
	BIT64(VHOST_SET_MEM_TABLE) | BIT64(VHOST_ADD_MEM_REG) | BIT64(VHOST_REM_MEM_REG) |
	BIT64(VHOST_SET_VRING_KICK) | BIT64(VHOST_SET_VRING_CALL) | BIT64(VHOST_SET_VRING_ERR) |
	BIT64(VHOST_SET_VRING_ENABLE) | BIT64(VHOST_SET_CONFIG) | BIT64(VHOST_SET_BACKEND_REQ_FD);

__attribute__((format(printf, 3, 4))) static int fail(struct vhost *vhost, int error,
						      const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(vhost->error, sizeof(vhost->error), format, arguments);
	va_end(arguments);
	return error;
}

int vhost_connect(const char *path, int timeout, struct vhost *ret)
{
	int fd = socket_connect(path, SOCK_STREAM, timeout);

	if (fd < 0)
		return fd;
	signal(SIGPIPE, SIG_IGN);
	*ret = (struct vhost){.fd = fd, .timeout = timeout, .ack_requests = ~UINT64_C(0)};
	return 0;
}

void vhost_close(struct vhost *vhost)
{
	if (vhost->fd >= 0)
		close(vhost->fd);
	vhost->fd = -1;
}

const char *vhost_error(const struct vhost *vhost)
{
	return vhost->error;
}

bool vhost_has(const struct vhost *vhost, unsigned int bit)
{
	return vhost->protocol_features & BIT64(bit);
}

static int send_vector(struct vhost *vhost, struct iovec *parts, size_t n_parts, const int *fds,
		       size_t n_fds)
{
	int64_t deadline = deadline_in(vhost->timeout);
	union {
		char bytes[CMSG_SPACE(VHOST_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = n_parts};

	if (n_fds > VHOST_FDS_MAX)
		return -EINVAL;
	if (n_fds > 0) {
		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(&control.align), fds, n_fds * sizeof(int));
	}
	while (message.msg_iovlen > 0) {
		ssize_t n = sendmsg(vhost->fd, &message, MSG_NOSIGNAL);
		int error = n < 0 ? -errno : 0;

		if (error == -EAGAIN)
			error = socket_wait(vhost->fd, POLLOUT, deadline);
		if (error == -EPIPE)
			error = -ECONNRESET;
		if (error < 0 && error != -EINTR)
			return fail(vhost, error, "sendmsg: %s", strerror(-error));
		if (n <= 0)
			continue;
		message.msg_controllen = 0;
		while (message.msg_iovlen > 0 && (size_t)n >= message.msg_iov->iov_len) {
			n -= (ssize_t)message.msg_iov->iov_len;
			message.msg_iov++;
			message.msg_iovlen--;
		}
		if (message.msg_iovlen > 0) {
			message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + n;
			message.msg_iov->iov_len -= (size_t)n;
		}
	}
	return 0;
}

int vhost_send_raw(struct vhost *vhost, const void *bytes, size_t len, const int *fds, size_t n_fds)
{
	struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};

	return send_vector(vhost, &part, 1, fds, n_fds);
}

static int send_message(struct vhost *vhost, uint32_t request, uint32_t flags, const void *payload,
			size_t len, const int *fds, size_t n_fds)
{
	struct vhost_header header = {
		.request = request,
		.flags = VHOST_FLAG_VERSION | flags,
		.size = (uint32_t)len,
	};
	struct iovec parts[] = {
		{.iov_base = &header, .iov_len = sizeof(header)},
		{.iov_base = (void *)(uintptr_t)payload, .iov_len = len},
	};

	return send_vector(vhost, parts, len > 0 ? 2 : 1, fds, n_fds);
}

/* Take the fd of a received message; more than one breaks the protocol. */
static int take_fd(struct vhost *vhost, struct msghdr *message, int *ret_fd)
{
	struct cmsghdr *control;
	int fds[8];
	size_t n;

	control = CMSG_FIRSTHDR(message);
	if (!control)
		return 0;
	n = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	memcpy(fds, CMSG_DATA(control), n * sizeof(int));
	if (ret_fd && n == 1 && *ret_fd < 0) {
		*ret_fd = fds[0];
		return 0;
	}
	while (n > 0)
		close(fds[--n]);
	return fail(vhost, -EPROTO, "reply with an fd that was not asked for");
}

/* Exactly len bytes; fds may come with the first of them. */
static int receive_bytes(struct vhost *vhost, void *bytes, size_t len, int64_t deadline,
			 int *ret_fd)
{
	size_t n_received = 0;

	while (n_received < len) {
		union {
			char bytes[CMSG_SPACE(8 * sizeof(int))];
			struct cmsghdr align;
		} control;
		struct iovec part = {.iov_base = (char *)bytes + n_received,
				     .iov_len = len - n_received};
		struct msghdr message = {.msg_iov = &part,
					 .msg_iovlen = 1,
					 .msg_control = control.bytes,
					 .msg_controllen = sizeof(control)};
		ssize_t n = recvmsg(vhost->fd, &message, MSG_CMSG_CLOEXEC);
		int error = n < 0 ? -errno : 0;

		if (error == -EAGAIN)
			error = socket_wait(vhost->fd, POLLIN, deadline);
		else if (n == 0)
			error = -ECONNRESET;
		else if (n > 0)
			error = take_fd(vhost, &message, ret_fd);
		if (error == -EPROTO)
			return error;
		if (error < 0 && error != -EINTR)
			return fail(vhost, error, "waiting for a reply: %s", strerror(-error));
		if (n > 0)
			n_received += (size_t)n;
	}
	return 0;
}

static int receive_reply(struct vhost *vhost, uint32_t request, void *payload, size_t size,
			 int *ret_fd)
{
	int64_t deadline = deadline_in(vhost->timeout);
	struct vhost_header header;
	int error;

	error = receive_bytes(vhost, &header, sizeof(header), deadline, ret_fd);
	if (error < 0)
		return error;
	if (header.flags != REPLY_FLAGS)
		return fail(vhost, -EPROTO, "request %u: reply with flags 0x%x", request,
			    header.flags);
	if (header.request != request)
		return fail(vhost, -EPROTO, "request %u: reply to request %u", request,
			    header.request);
	if (header.size > size)
		return fail(vhost, -EPROTO, "request %u: reply of %u bytes, at most %zu expected",
			    request, header.size, size);
	error = receive_bytes(vhost, payload, header.size, deadline, NULL);
	return error < 0 ? error : (int)header.size;
}

int vhost_receive(struct vhost *vhost, uint32_t request, void *payload, size_t size, int *ret_fd)
{
	int fd = -1;
	int len = receive_reply(vhost, request, payload, size, ret_fd ? &fd : NULL);

	if (len < 0 && fd >= 0)
		close(fd);
	else if (len >= 0 && ret_fd)
		*ret_fd = fd;
	return len;
}

int vhost_ask(struct vhost *vhost, uint32_t request, const void *payload, size_t len,
	      const int *fds, size_t n_fds, void *reply, size_t reply_len, int *ret_fd)
{
	int fd = -1;
	int n = send_message(vhost, request, 0, payload, len, fds, n_fds);

	if (n < 0)
		return n;
	n = vhost_receive(vhost, request, reply, reply_len, ret_fd ? &fd : NULL);
	if (n >= 0 && (size_t)n == reply_len) {
		if (ret_fd)
			*ret_fd = fd;
		return 0;
	}
	if (fd >= 0)
		close(fd);
	if (n < 0)
		return n;
	return fail(vhost, -EPROTO, "request %u: reply of %d bytes, %zu expected", request, n,
		    reply_len);
}

int vhost_send(struct vhost *vhost, uint32_t request, const void *payload, size_t len,
	       const int *fds, size_t n_fds)
{
	bool needs_reply = vhost_has(vhost, VHOST_PROTOCOL_REPLY_ACK) && request < 64 &&
			   (vhost->ack_requests & BIT64(request));
	uint64_t status;
	int n;

	n = send_message(vhost, request, needs_reply ? VHOST_FLAG_NEED_REPLY : 0, payload, len, fds,
			 n_fds);
	if (n < 0 || !needs_reply)
		return n;
	n = vhost_receive(vhost, request, &status, sizeof(status), NULL);
	if (n < 0)
		return n;
	if (n != sizeof(status))
		return fail(vhost, -EPROTO, "request %u: ack of %d bytes", request, n);
	if (status)
		return fail(vhost, VHOST_E_NACK, "request %u: refused", request);
	return 0;
}

int vhost_order(struct vhost *vhost, uint32_t request)
{
	return vhost_send(vhost, request, NULL, 0, NULL, 0);
}

int vhost_get_u64(struct vhost *vhost, uint32_t request, uint64_t *ret)
{
	uint64_t value;
	int error = vhost_ask(vhost, request, NULL, 0, NULL, 0, &value, sizeof(value), NULL);

	if (error)
		return error;
	if (request == VHOST_GET_FEATURES)
		vhost->offered_features = value;
	if (request == VHOST_GET_PROTOCOL_FEATURES)
		vhost->offered_protocol_features = value;
	*ret = value;
	return 0;
}

int vhost_set_u64(struct vhost *vhost, uint32_t request, uint64_t value)
{
	int error = vhost_send(vhost, request, &value, sizeof(value), NULL, 0);

	if (error)
		return error;
	if (request == VHOST_SET_FEATURES)
		vhost->features = value;
	if (request == VHOST_SET_PROTOCOL_FEATURES)
		vhost->protocol_features = value;
	return 0;
}

int vhost_set_ring(struct vhost *vhost, uint32_t request, uint32_t index, uint32_t num)
{
	struct vhost_ring_state state = {.index = index, .num = num};

	return vhost_send(vhost, request, &state, sizeof(state), NULL, 0);
}

int vhost_get_ring_base(struct vhost *vhost, uint32_t index, uint32_t *ret_base)
{
	struct vhost_ring_state state = {.index = index}, reply;
	int error = vhost_ask(vhost, VHOST_GET_VRING_BASE, &state, sizeof(state), NULL, 0, &reply,
			      sizeof(reply), NULL);

	if (error)
		return error;
	if (reply.index != index ||
	    (reply.num > UINT16_MAX && !(vhost->features & BIT64(VIRTIO_RING_PACKED))))
		return fail(vhost, -EPROTO, "GET_VRING_BASE %u: index %u, base %u", index,
			    reply.index, reply.num);
	*ret_base = reply.num;
	return 0;
}

int vhost_set_ring_address(struct vhost *vhost, const struct vhost_ring_address *address)
{
	return vhost_send(vhost, VHOST_SET_VRING_ADDR, address, sizeof(*address), NULL, 0);
}

int vhost_set_ring_fd(struct vhost *vhost, uint32_t request, uint32_t index, int fd)
{
	uint64_t value = index | (fd < 0 ? VHOST_RING_NO_FD : 0);

	return vhost_send(vhost, request, &value, sizeof(value), &fd, fd < 0 ? 0 : 1);
}

int vhost_set_memory(struct vhost *vhost, const struct vhost_region *regions, const int *fds,
		     size_t n_regions)
{
	struct {
		uint32_t n, padding;
		struct vhost_region regions[VHOST_FDS_MAX];
	} table = {.n = (uint32_t)n_regions};

	if (n_regions > VHOST_FDS_MAX)
		return -EINVAL;
	memcpy(table.regions, regions, n_regions * sizeof(*regions));
	return vhost_send(vhost, VHOST_SET_MEM_TABLE, &table, 8 + n_regions * sizeof(*regions), fds,
			  n_regions);
}

int vhost_change_memory(struct vhost *vhost, uint32_t request, const struct vhost_region *region,
			int fd)
{
	struct {
		uint64_t padding;
		struct vhost_region region;
	} change = {.region = *region};

	return vhost_send(vhost, request, &change, sizeof(change), &fd, fd < 0 ? 0 : 1);
}

int vhost_get_config(struct vhost *vhost, uint32_t offset, uint32_t size, uint32_t flags,
		     void *ret_bytes)
{
	struct vhost_config config = {.offset = offset, .size = size, .flags = flags}, reply;
	size_t len = offsetof(struct vhost_config, bytes) + size;
	int n;

	if (size > sizeof(config.bytes))
		return -EINVAL;
	n = send_message(vhost, VHOST_GET_CONFIG, 0, &config, len, NULL, 0);
	if (n < 0)
		return n;
	n = vhost_receive(vhost, VHOST_GET_CONFIG, &reply, sizeof(reply), NULL);
	if (n < 0)
		return n;
	/* A failure is an empty payload, or a header that says size 0: both are in use. */
	if (n == 0 || (n >= 12 && reply.size == 0))
		return fail(vhost, VHOST_E_NACK, "GET_CONFIG: refused");
	if ((size_t)n != len || reply.offset != offset || reply.size != size)
		return fail(vhost, -EPROTO, "GET_CONFIG: %d bytes, %zu expected", n, len);
	memcpy(ret_bytes, reply.bytes, size);
	return 0;
}

int vhost_set_config(struct vhost *vhost, uint32_t offset, uint32_t size, uint32_t flags,
		     const void *bytes)
{
	struct vhost_config config = {.offset = offset, .size = size, .flags = flags};

	if (size > sizeof(config.bytes))
		return -EINVAL;
	memcpy(config.bytes, bytes, size);
	return vhost_send(vhost, VHOST_SET_CONFIG, &config,
			  offsetof(struct vhost_config, bytes) + size, NULL, 0);
}

int vhost_set_log(struct vhost *vhost, uint64_t size, uint64_t offset, int fd)
{
	uint64_t log[] = {size, offset};
	uint64_t reply;
	int n;

	if (!vhost_has(vhost, VHOST_PROTOCOL_LOG_SHMFD))
		return vhost_send(vhost, VHOST_SET_LOG_BASE, log, sizeof(log), &fd, 1);
	n = send_message(vhost, VHOST_SET_LOG_BASE, 0, log, sizeof(log), &fd, 1);
	if (n < 0)
		return n;
	/* Back-ends answer with nothing or with a u64; QEMU takes both. */
	n = vhost_receive(vhost, VHOST_SET_LOG_BASE, &reply, sizeof(reply), NULL);
	return n < 0 ? n : 0;
}

/*
 * SET_DEVICE_STATE_FD with one end of a pipe; the other end, or the fd that the
 * back-end prefers, is returned for our side of the transfer.
 */
static int open_state(struct vhost *vhost, bool is_load, int *ret_fd)
{
	uint32_t transfer[] = {is_load, /* phase: stopped */ 0};
	int pipe_fds[2];
	int own = -1, error;
	uint64_t reply;

	if (vhost->uses_state_sockets
		    ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pipe_fds)
		    : pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK))
		return -errno;
	error = vhost_ask(vhost, VHOST_SET_DEVICE_STATE_FD, transfer, sizeof(transfer),
			  &pipe_fds[is_load ? 0 : 1], 1, &reply, sizeof(reply), &own);
	close(pipe_fds[is_load ? 0 : 1]);
	if (!error && (reply & 0xff))
		error = fail(vhost, VHOST_E_NACK, "SET_DEVICE_STATE_FD: refused");
	else if (!error && (own < 0) != !!(reply & 0x100))
		error = fail(vhost, -EPROTO, "SET_DEVICE_STATE_FD: bit 8 and fd disagree");
	if (!error) {
		if (own >= 0)
			close(pipe_fds[is_load ? 1 : 0]);
		*ret_fd = own >= 0 ? own : pipe_fds[is_load ? 1 : 0];
		return 0;
	}
	if (own >= 0)
		close(own);
	close(pipe_fds[is_load ? 1 : 0]);
	return error;
}

static int check_state(struct vhost *vhost)
{
	uint64_t status;
	int error = vhost_get_u64(vhost, VHOST_CHECK_DEVICE_STATE, &status);

	if (error)
		return error;
	return status ? fail(vhost, VHOST_E_NACK, "CHECK_DEVICE_STATE: failed") : 0;
}

int vhost_save(struct vhost *vhost, void *state, size_t size, size_t *ret_len)
{
	int64_t deadline = deadline_in(vhost->timeout);
	size_t len = 0;
	ssize_t n = -1;
	int fd, error;

	error = open_state(vhost, false, &fd);
	if (error)
		return error;
	while (!error && n != 0) {
		char excess;

		n = len < size ? read(fd, (char *)state + len, size - len) : read(fd, &excess, 1);
		if (n < 0 && errno != EINTR)
			error = errno == EAGAIN ? socket_wait(fd, POLLIN, deadline) : -errno;
		else if (n > 0 && len == size)
			error = -E2BIG;
		else if (n > 0)
			len += (size_t)n;
	}
	close(fd);
	if (!error)
		error = check_state(vhost);
	if (!error)
		*ret_len = len;
	return error;
}

int vhost_load(struct vhost *vhost, const void *state, size_t len)
{
	int64_t deadline = deadline_in(vhost->timeout);
	size_t n_written = 0;
	int fd, error;

	error = open_state(vhost, true, &fd);
	if (error)
		return error;
	while (!error && n_written < len) {
		ssize_t n = write(fd, (const char *)state + n_written, len - n_written);

		if (n > 0)
			n_written += (size_t)n;
		else if (n < 0 && errno != EINTR)
			error = errno == EAGAIN ? socket_wait(fd, POLLOUT, deadline) : -errno;
	}
	close(fd);
	return error ? error : check_state(vhost);
}

int vhost_wait_closed(struct vhost *vhost)
{
	int64_t deadline = deadline_in(vhost->timeout);
	char bytes[512];

	for (;;) {
		ssize_t n = recv(vhost->fd, bytes, sizeof(bytes), 0);
		int error;

		if (n == 0 || (n < 0 && errno == ECONNRESET))
			return 0;
		if (n > 0 || errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		error = socket_wait(vhost->fd, POLLIN, deadline);
		if (error < 0)
			return error;
	}
}
