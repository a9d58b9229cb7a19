/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/channel.h"
#include "tests/unit/failing_calls.h"

#define FDS_MAX 256 /* more than this test ever has open */

static int near_end, far_end; /* ours, and that of a peer who may do anything */
static size_t n_open_before;

static size_t n_open(void)
{
	size_t n = 0;

	for (int fd = 0; fd < FDS_MAX; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static int set_up(void **state)
{
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	near_end = pair[0];
	far_end = pair[1];
	n_open_before = n_open();
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	close(near_end);
	if (far_end >= 0)
		close(far_end);
	return 0;
}

static void send_raw(const void *bytes, size_t len, int fd, size_t n_fds)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * 64)];
		struct cmsghdr alignment;
	} control = {.bytes = {0}};
	struct iovec iov = {(void *)bytes, len};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (n_fds > 0) {
		struct cmsghdr *cmsg;

		message.msg_control = control.bytes;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		cmsg = CMSG_FIRSTHDR(&message);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		for (size_t i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &fd, sizeof(int));
	}
	assert_int_equal(sendmsg(far_end, &message, 0), (ssize_t)len);
}

static int receive(struct channel_packet *packet)
{
	memset(packet, 0xee, sizeof(*packet));
	packet->fd = -1;
	return channel_receive(near_end, packet);
}

static void expect_packet(const char *text)
{
	struct channel_packet packet;

	assert_int_equal(receive(&packet), 0);
	assert_int_equal(packet.len, strlen(text));
	assert_memory_equal(packet.bytes, text, strlen(text));
	assert_int_equal(packet.fd, -1);
}

/* Nothing of it was kept, and the next packet comes whole. */
static void expect_broken(void)
{
	struct channel_packet packet;

	assert_int_equal(receive(&packet), CHANNEL_E_BROKEN);
	assert_int_equal(n_open(), n_open_before);
	send_raw("next", 4, -1, 0);
	expect_packet("next");
}

static void test_packets_arrive_whole_and_in_order(void **state)
{
	struct channel_packet packet = {.fd = -1};

	(void)state;
	for (size_t len = 1; len <= CHANNEL_MESSAGE_MAX; len++) {
		memset(packet.bytes, (int)len, len);
		packet.len = len;
		packet.fd = -1;
		assert_int_equal(channel_send(far_end, &packet), 0);
		assert_int_equal(channel_send(far_end, &packet), 0);
		for (int i = 0; i < 2; i++) {
			assert_int_equal(receive(&packet), 0);
			assert_int_equal(packet.len, len);
			assert_int_equal(packet.fd, -1);
			for (size_t k = 0; k < len; k++)
				assert_int_equal(packet.bytes[k], (uint8_t)len);
		}
	}
}

static void test_an_fd_comes_along_close_on_exec_and_stays_the_senders(void **state)
{
	struct channel_packet packet = {.bytes = "fd", .len = 2};
	int fd = eventfd(0, 0);
	uint64_t n = 7;

	(void)state;
	packet.fd = fd;
	assert_int_equal(channel_send(far_end, &packet), 0);
	assert_true(fcntl(fd, F_GETFD) >= 0);
	assert_int_equal(receive(&packet), 0);
	assert_true(packet.fd >= 0);
	assert_int_not_equal(packet.fd, fd);
	assert_int_equal(fcntl(packet.fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(write(packet.fd, &n, sizeof(n)), sizeof(n));
	n = 0;
	assert_int_equal(read(fd, &n, sizeof(n)), sizeof(n));
	assert_int_equal(n, 7);
	close(packet.fd);
	close(fd);
}

static void test_an_empty_channel_says_again(void **state)
{
	struct channel_packet packet;

	(void)state;
	/* The socket itself is a blocking one. */
	assert_int_equal(receive(&packet), CHANNEL_E_AGAIN);
	send_raw("x", 1, -1, 0);
	expect_packet("x");
	assert_int_equal(receive(&packet), CHANNEL_E_AGAIN);
}

static void test_a_full_channel_says_again(void **state)
{
	struct channel_packet packet = {.bytes = "x", .len = 1, .fd = -1};
	size_t n = 0;
	int r;

	(void)state;
	while ((r = channel_send(far_end, &packet)) == 0)
		assert_true(++n < 1000000);
	assert_int_equal(r, CHANNEL_E_AGAIN);
	for (size_t i = 0; i < n; i++)
		expect_packet("x");
	assert_int_equal(channel_send(far_end, &packet), 0);
}

static void test_a_closed_channel_is_read_to_its_end(void **state)
{
	struct channel_packet packet = {.bytes = "x", .len = 1, .fd = -1};

	(void)state;
	send_raw("last", 4, -1, 0);
	close(far_end);
	far_end = -1;
	expect_packet("last");
	assert_int_equal(receive(&packet), CHANNEL_E_CLOSED);
	assert_int_equal(receive(&packet), CHANNEL_E_CLOSED);
	/* Without a signal that ends the process. */
	packet.len = 1;
	packet.fd = -1;
	assert_int_equal(channel_send(near_end, &packet), CHANNEL_E_CLOSED);
}

static void test_what_is_no_socket_is_an_error(void **state)
{
	struct channel_packet packet = {.bytes = "x", .len = 1, .fd = -1};

	(void)state;
	assert_int_equal(channel_send(-1, &packet), -EBADF);
	assert_int_equal(channel_receive(-1, &packet), -EBADF);
	packet.fd = 1000000; /* no such fd to pass on */
	assert_int_equal(channel_send(far_end, &packet), -EBADF);
}

static void test_a_packet_that_is_too_long_is_broken(void **state)
{
	static const size_t lens[] = {CHANNEL_MESSAGE_MAX + 1, CHANNEL_MESSAGE_MAX + 2, 4096,
				      60000};
	static char bytes[60000];

	(void)state;
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		send_raw(bytes, lens[i], -1, 0);
		expect_broken();
		send_raw(bytes, lens[i], STDIN_FILENO, 1);
		expect_broken();
	}
}

static void test_more_fds_than_one_are_closed_and_held_against_the_sender(void **state)
{
	(void)state;
	for (size_t n_fds = 2; n_fds <= 64; n_fds++) {
		send_raw("fds", 3, STDIN_FILENO, n_fds);
		expect_broken();
	}
}

static void test_an_empty_packet_is_the_end_and_with_an_fd_an_offence(void **state)
{
	struct channel_packet packet;

	(void)state;
	send_raw("", 0, -1, 0);
	assert_int_equal(receive(&packet), CHANNEL_E_CLOSED);
	send_raw("", 0, STDIN_FILENO, 1);
	expect_broken();
	send_raw("", 0, STDIN_FILENO, 2);
	expect_broken();
}

static void test_an_fd_that_finds_no_number_is_not_overlooked(void **state)
{
	const char *preload = getenv("LD_PRELOAD");
	struct rlimit before, none;
	struct channel_packet packet;
	int r[2];

	(void)state;
	if (preload && strstr(preload, "vgpreload")) {
		print_message("skipped: valgrind emulates the limit on open files\n");
		skip();
	}
	send_raw("fd", 2, STDIN_FILENO, 1);
	send_raw("fds", 3, STDIN_FILENO, 2);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = before;
	none.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	r[0] = receive(&packet);
	r[1] = receive(&packet);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	/* A message that names an fd must not be handed out without it. */
	assert_int_equal(r[0], CHANNEL_E_BROKEN);
	assert_int_equal(r[1], CHANNEL_E_BROKEN);
	assert_int_equal(n_open(), n_open_before);
}

static void test_one_free_number_for_two_fds_leaks_none(void **state)
{
	struct rlimit before, one;
	struct channel_packet packet;
	int r, lowest = dup(STDIN_FILENO);

	(void)state;
	close(lowest);
	send_raw("fds", 3, STDIN_FILENO, 2);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	one = before;
	one.rlim_cur = (rlim_t)lowest + 1;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &one), 0);
	r = receive(&packet);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(r, CHANNEL_E_BROKEN);
	assert_int_equal(n_open(), n_open_before);
}

/* The packet is still there, or still to be sent, when the kernel has memory again. */
static void test_a_shortage_of_the_kernel_says_again_and_loses_nothing(void **state)
{
	static const int errors[] = {ENOBUFS, ENOMEM};
	struct channel_packet packet = {.bytes = "x", .len = 1, .fd = -1};

	(void)state;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		failing_call_plan(CALL_SENDMSG, -1, 1, errors[i]);
		assert_int_equal(channel_send(far_end, &packet), CHANNEL_E_AGAIN);
		assert_int_equal(channel_send(far_end, &packet), 0);
		failing_call_plan(CALL_RECVMSG, -1, 1, errors[i]);
		assert_int_equal(receive(&packet), CHANNEL_E_AGAIN);
		expect_packet("x");
		packet = (struct channel_packet){.bytes = "x", .len = 1, .fd = -1};
	}
}

static void test_an_interrupted_call_is_made_again(void **state)
{
	struct channel_packet packet = {.bytes = "x", .len = 1, .fd = -1};

	(void)state;
	failing_call_plan(CALL_SENDMSG, -1, 1, EINTR);
	assert_int_equal(channel_send(far_end, &packet), 0);
	failing_call_plan(CALL_RECVMSG, -1, 1, EINTR);
	expect_packet("x");
	assert_int_equal(receive(&packet), CHANNEL_E_AGAIN);
}

/* As a socket says it whose other end had something unread, or is of another kind. */
static void test_a_channel_that_was_reset_is_closed(void **state)
{
	struct channel_packet packet = {.bytes = "x", .len = 1, .fd = -1};

	(void)state;
	send_raw("unread", 6, -1, 0);
	failing_call_plan(CALL_SENDMSG, -1, 1, ECONNRESET);
	assert_int_equal(channel_send(near_end, &packet), CHANNEL_E_CLOSED);
	close(near_end);
	near_end = far_end;
	far_end = -1;
	assert_int_equal(receive(&packet), CHANNEL_E_CLOSED);
}

/* An option of the socket that its other end cannot set: what it adds is no fd. */
static void test_what_comes_along_and_is_no_fd_is_none(void **state)
{
	int is_on = 1;

	(void)state;
	assert_int_equal(setsockopt(near_end, SOL_SOCKET, SO_PASSCRED, &is_on, sizeof(is_on)), 0);
	send_raw("x", 1, -1, 0);
	expect_packet("x");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

/* A look takes nothing: neither the packet nor, by copying them, the fds. */
static void test_waiting_ends_with_a_packet_or_the_end_and_takes_nothing(void **state)
{
	struct channel_packet packet;
	int event = eventfd(0, EFD_CLOEXEC);
	size_t n_before = n_open();

	(void)state;
	send_raw("one", 3, event, 1);
	channel_wait(near_end);
	channel_wait(near_end);
	assert_int_equal(n_open(), n_before);
	assert_int_equal(receive(&packet), 0);
	assert_int_equal(packet.len, 3);
	assert_true(packet.fd >= 0);
	close(packet.fd);
	close(event);
	close(far_end);
	far_end = -1;
	channel_wait(near_end);
	assert_int_equal(receive(&packet), CHANNEL_E_CLOSED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_packets_arrive_whole_and_in_order),
		TEST(test_an_fd_comes_along_close_on_exec_and_stays_the_senders),
		TEST(test_an_empty_channel_says_again),
		TEST(test_a_full_channel_says_again),
		TEST(test_a_closed_channel_is_read_to_its_end),
		TEST(test_what_is_no_socket_is_an_error),
		TEST(test_a_packet_that_is_too_long_is_broken),
		TEST(test_more_fds_than_one_are_closed_and_held_against_the_sender),
		TEST(test_an_empty_packet_is_the_end_and_with_an_fd_an_offence),
		TEST(test_an_fd_that_finds_no_number_is_not_overlooked),
		TEST(test_one_free_number_for_two_fds_leaks_none),
		TEST(test_a_shortage_of_the_kernel_says_again_and_loses_nothing),
		TEST(test_an_interrupted_call_is_made_again),
		TEST(test_a_channel_that_was_reset_is_closed),
		TEST(test_what_comes_along_and_is_no_fd_is_none),
		TEST(test_waiting_ends_with_a_packet_or_the_end_and_takes_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
