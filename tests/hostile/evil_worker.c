/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockd-worker in the hands of an attacker: the real one, linked with other
 * functions in place of policy_enter(), channel_send() and channel_receive().
 * It serves its guest well until an order (orders.h) comes into force; so one
 * program is the worker of the guest that is attacked and of its neighbour.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ipc/channel.h"
#include "ipc/message.h"
#include "policy/policy.h"
#include "tests/hostile/orders.h"

static struct orders *orders;
static bool has_said_ready, is_evil;
static uint32_t n_commands;
static bool has_stopped; /* for a successor: what it says from here on is counted */
static uint32_t n_told;
static uint8_t padded[ORDERS_PADDED_MAX];

int __real_policy_enter(enum policy_role role, const struct policy_limits *limits,
			struct policy_failure *ret_failure);
int __wrap_policy_enter(enum policy_role role, const struct policy_limits *limits,
			struct policy_failure *ret_failure);
int __real_channel_send(int socket, const struct channel_packet *packet);
int __wrap_channel_send(int socket, const struct channel_packet *packet);
int __real_channel_receive(int socket, struct channel_packet *ret_packet);
int __wrap_channel_receive(int socket, struct channel_packet *ret_packet);

static void map_orders(void)
{
	char path[256];
	ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - sizeof("orders"));
	int fd;

	if (len <= 0)
		return;
	path[len] = '\0';
	strcpy(strrchr(path, '/') + 1, "orders");
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		perror("evil worker: orders");
		return;
	}
	orders = mmap(NULL, sizeof(*orders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (orders == MAP_FAILED)
		orders = NULL;
	close(fd);
}

/* One of those that are to do it? */
static bool takes_order(void)
{
	int32_t n_left = atomic_load(&orders->n_left);

	while (n_left > 0) {
		if (atomic_compare_exchange_weak(&orders->n_left, &n_left, n_left - 1)) {
			atomic_fetch_add(&orders->n_taken, 1);
			return true;
		}
	}
	return false;
}

/* Until there is room, or the channel has ended. */
static bool send_packet(const void *bytes, size_t len, size_t n_fds)
{
	union {
		char room[CMSG_SPACE(255 * sizeof(int))];
		struct cmsghdr header;
	} control = {.room = {0}};
	struct iovec part = {(void *)(uintptr_t)bytes, len};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (n_fds > 0) {
		message.msg_control = control.room;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(n_fds * sizeof(int)); /* all of them fd 0 */
	}
	while (sendmsg(POLICY_WORKER_CHANNEL_FD, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		if (errno != EAGAIN && errno != ETOOMANYREFS)
			return false;
	return true;
}

static void send_done(uint32_t sequence)
{
	Vsockd__Done done = VSOCKD__DONE__INIT;
	Vsockd__Envelope envelope = VSOCKD__ENVELOPE__INIT;
	struct channel_packet packet;

	done.sequence = sequence + orders->done_added;
	done.status = orders->done_status;
	done.value = orders->done_value;
	envelope.body_case = VSOCKD__ENVELOPE__BODY_DONE;
	envelope.done = &done;
	message_encode(&envelope, -1, &packet);
	for (uint32_t i = 0; i < orders->n_done; i++)
		send_packet(packet.bytes, packet.len, 0);
}

static void send_packets(void)
{
	for (uint32_t i = 0; i < orders->n_packets; i++) {
		const struct orders_packet *packet = &orders->packets[i];

		memcpy(padded, packet->bytes, sizeof(packet->bytes));
		if (!send_packet(padded, packet->len, packet->n_fds))
			return;
	}
}

/* false: the command is to be swallowed. */
static bool carry_out(uint32_t sequence)
{
	uint32_t n_repeat = orders->n_repeat, then = orders->then;
	struct epoll_event event;

	send_done(sequence);
	for (uint32_t i = 0; i < n_repeat; i++)
		send_packets();
	switch (then) {
	case ORDERS_EXIT:
		_exit(7);
	case ORDERS_TRAP:
		__builtin_trap();
	case ORDERS_FORBIDDEN:
		(void)syscall(SYS_getppid);
		return true;
	case ORDERS_SLEEP:
		/* Nothing in it is edge-triggered but kicks: events come once. */
		epoll_ctl(POLICY_WORKER_EPOLL_FD, EPOLL_CTL_DEL, POLICY_WORKER_CHANNEL_FD, NULL);
		for (;;)
			epoll_wait(POLICY_WORKER_EPOLL_FD, &event, 1, -1);
	case ORDERS_SPIN:
		for (;;)
			__asm__ volatile("" ::: "memory");
	default:
		return then != ORDERS_SWALLOW;
	}
}

static void obey(enum orders_when when)
{
	if (orders && orders->when == when && takes_order())
		carry_out(0);
}

int __wrap_policy_enter(enum policy_role role, const struct policy_limits *limits,
			struct policy_failure *ret_failure)
{
	map_orders();
	obey(ORDERS_AT_START);
	return __real_policy_enter(role, limits, ret_failure);
}

int __wrap_channel_send(int socket, const struct channel_packet *packet)
{
	int r;

	if (has_said_ready && has_stopped && orders && orders->when == ORDERS_AT_TOLD &&
	    n_told++ == orders->command && takes_order() && !carry_out(0))
		return 0;
	if (has_said_ready)
		return __real_channel_send(socket, packet);
	has_said_ready = true;
	obey(ORDERS_BEFORE_READY);
	r = __real_channel_send(socket, packet);
	obey(ORDERS_AS_SPARE);
	return r;
}

/* What comes is the front's and well-formed; the worker proper decodes it again. */
static bool look_at(const struct channel_packet *packet)
{
	/* In all of which it may be, once it has a device. */
	const uint32_t states = MESSAGE_ASSIGNED | MESSAGE_FROZEN | MESSAGE_TAKING;
	enum message_state state = n_commands > 0 ? (enum message_state)states : MESSAGE_SPARE;
	const Vsockd__Envelope *envelope;
	const char *reason;

	envelope = message_decode(packet, MESSAGE_TO_WORKER, state, &reason);
	if (!envelope)
		return true;
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_ASSIGN)
		is_evil = envelope->assign->guest_cid >= ORDERS_FIRST_CID;
	if (!is_evil)
		return true;
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_ACCEPTED)
		return orders->when != ORDERS_AT_ACCEPTED || !takes_order() || carry_out(0);
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER) {
		has_stopped = true;
		n_told = 0;
	}
	if (envelope->body_case == VSOCKD__ENVELOPE__BODY_HANDOVER &&
	    orders->when == ORDERS_AT_HANDOVER && takes_order())
		return carry_out(envelope->sequence);
	if (!message_rule(envelope->body_case)->is_command || n_commands++ != orders->command ||
	    orders->when != ORDERS_AT_COMMAND || !takes_order())
		return true;
	return carry_out(envelope->sequence);
}

int __wrap_channel_receive(int socket, struct channel_packet *ret_packet)
{
	int r = __real_channel_receive(socket, ret_packet);

	if (r != 0 || !orders || look_at(ret_packet))
		return r;
	if (ret_packet->fd >= 0)
		close(ret_packet->fd);
	return CHANNEL_E_AGAIN;
}
