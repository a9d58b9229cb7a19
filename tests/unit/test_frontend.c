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
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/frontend.h"
#include "tests/unit/failing_calls.h"
#include "tests/unit/open_files.h"

static struct {
	struct frontend frontend;
	int peer;
	int event; /* what gets attached */
	size_t n_open;
	const struct vhost_user_message *message;
	int fds[VHOST_USER_FDS_MAX];
	size_t n_fds;
} f;

static int set_up(void **state)
{
	int pair[2];

	(void)state;
	memset(&f, 0, sizeof(f));
	f.n_open = open_files_count();
	/* Blocking on purpose: the front-end's reader may not depend on the flag. */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	frontend_init(&f.frontend, pair[0]);
	f.peer = pair[1];
	f.event = eventfd(0, EFD_CLOEXEC);
	return 0;
}

static void close_fds(void)
{
	for (size_t i = 0; i < f.n_fds; i++)
		close(f.fds[i]);
	f.n_fds = 0;
}

static int tear_down(void **state)
{
	(void)state;
	close_fds();
	frontend_end(&f.frontend);
	if (f.peer >= 0)
		close(f.peer);
	close(f.event);
	assert_int_equal(open_files_count(), f.n_open);
	return 0;
}

static int receive(void)
{
	return frontend_receive(&f.frontend, &f.message, f.fds, &f.n_fds);
}

static void send_bytes(const void *bytes, size_t len, size_t n_fds)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * 64)];
		struct cmsghdr alignment;
	} control;
	struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	memset(&control, 0, sizeof(control));
	if (n_fds > 0) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		for (size_t i = 0; i < n_fds; i++)
			memcpy(control.bytes + CMSG_LEN(0) + i * sizeof(int), &f.event,
			       sizeof(int));
	}
	assert_int_equal(sendmsg(f.peer, &msg, 0), len);
}

/* A message on the wire; returns its length. */
static size_t compose(uint8_t *wire, uint32_t request, uint32_t flags, uint32_t size)
{
	struct vhost_user_header header = {request, flags, size};

	memcpy(wire, &header, sizeof(header));
	for (uint32_t i = 0; i < size; i++)
		wire[sizeof(header) + i] = (uint8_t)(i * 7 + request);
	return sizeof(header) + size;
}

static void assert_received(const uint8_t *wire, size_t len)
{
	assert_memory_equal(&f.message->header, wire, sizeof(f.message->header));
	assert_int_equal(f.message->header.size, len - sizeof(f.message->header));
	assert_memory_equal(f.message->payload, wire + sizeof(f.message->header),
			    f.message->header.size);
}

static int unread(void)
{
	int n = -1;

	assert_int_equal(ioctl(f.frontend.socket, FIONREAD, &n), 0);
	return n;
}

static void test_a_message_arrives_as_it_was_sent(void **state)
{
	uint8_t wire[12 + VHOST_USER_PAYLOAD_MAX];
	static const uint32_t sizes[] = {0, 1, 8, 40, 1032, VHOST_USER_PAYLOAD_MAX};

	(void)state;
	assert_int_equal(receive(), 0);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		size_t len = compose(wire, 9, 0x9, sizes[i]);

		send_bytes(wire, len, 0);
		assert_int_equal(receive(), 1);
		assert_received(wire, len);
		assert_int_equal(f.n_fds, 0);
		assert_int_equal(receive(), 0);
	}
}

static void test_a_message_may_come_byte_by_byte(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 12, 0x1, 8);

	(void)state;
	for (size_t round = 0; round < 2; round++) {
		for (size_t i = 0; i + 1 < len; i++) {
			send_bytes(wire + i, 1, i == 0);
			assert_int_equal(receive(), 0);
		}
		send_bytes(wire + len - 1, 1, 0);
		assert_int_equal(receive(), 1);
		assert_received(wire, len);
		assert_int_equal(f.n_fds, 1);
		close_fds();
	}
}

static void test_a_message_may_be_split_anywhere(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 9, 0x1, 40);

	(void)state;
	for (size_t cut = 1; cut < len; cut++) {
		send_bytes(wire, cut, 0);
		assert_int_equal(receive(), 0);
		send_bytes(wire + cut, len - cut, 0);
		assert_int_equal(receive(), 1);
		assert_received(wire, len);
	}
}

static void test_nothing_beyond_one_message_is_read(void **state)
{
	uint8_t wire[64];
	size_t first = compose(wire, 8, 0x1, 8);
	size_t second = compose(wire + first, 13, 0x1, 8);

	(void)state;
	send_bytes(wire, first, 0);
	send_bytes(wire + first, second, 1);
	assert_int_equal(receive(), 1);
	assert_received(wire, first);
	assert_int_equal(f.n_fds, 0);
	assert_int_equal(unread(), second);

	assert_int_equal(receive(), 1);
	assert_received(wire + first, second);
	assert_int_equal(f.n_fds, 1);
}

static void test_fds_come_with_the_message_and_are_close_on_exec(void **state)
{
	uint8_t wire[12 + 1032];
	size_t len = compose(wire, 5, 0x1, 1032);

	(void)state;
	for (size_t n = 1; n <= VHOST_USER_FDS_MAX; n += VHOST_USER_FDS_MAX - 1) {
		send_bytes(wire, len, n);
		assert_int_equal(receive(), 1);
		assert_int_equal(f.n_fds, n);
		for (size_t i = 0; i < n; i++)
			assert_true(fcntl(f.fds[i], F_GETFD) & FD_CLOEXEC);
		close_fds();
	}
}

static void test_more_fds_than_any_message_has_end_the_connection(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 12, 0x1, 8);

	(void)state;
	send_bytes(wire, len, VHOST_USER_FDS_MAX + 1);
	assert_int_equal(receive(), FRONTEND_E_BROKEN);
	assert_non_null(strstr(frontend_reason(&f.frontend), "fds"));
}

static void test_fds_that_this_process_has_no_room_for_end_the_connection(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 12, 0x1, 8);
	const char *preload = getenv("LD_PRELOAD");
	struct rlimit before, none;
	int status;

	(void)state;
	/* Valgrind plays the limit to the program and does not tell the kernel. */
	if (preload && strstr(preload, "vgpreload")) {
		print_message("skipped: valgrind emulates the limit on open files\n");
		skip();
	}
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = (struct rlimit){.rlim_cur = 0, .rlim_max = before.rlim_max};
	send_bytes(wire, len, 1);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	status = receive();
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(status, FRONTEND_E_BROKEN);
}

static void test_fds_with_a_later_byte_end_the_connection(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 12, 0x1, 8);

	for (size_t cut = 1; cut < len; cut++) {
		/* Both with and without a pause between the two parts. */
		for (int has_pause = 0; has_pause < 2; has_pause++) {
			send_bytes(wire, cut, 0);
			if (has_pause)
				assert_int_equal(receive(), 0);
			send_bytes(wire + cut, len - cut, 1);
			assert_int_equal(receive(), FRONTEND_E_BROKEN);
			assert_non_null(strstr(frontend_reason(&f.frontend), "byte"));
			assert_int_equal(tear_down(state), 0);
			assert_int_equal(set_up(state), 0);
		}
	}
}

static void test_an_oversized_payload_is_refused_before_it_is_read(void **state)
{
	uint8_t wire[12 + VHOST_USER_PAYLOAD_MAX + 1];
	size_t len = compose(wire, 5, 0x1, VHOST_USER_PAYLOAD_MAX + 1);

	(void)state;
	send_bytes(wire, len, 2);
	assert_int_equal(receive(), FRONTEND_E_BROKEN);
	assert_int_equal(unread(), VHOST_USER_PAYLOAD_MAX + 1);
	assert_non_null(strstr(frontend_reason(&f.frontend), "4097"));
}

static void test_only_flags_of_a_request_are_taken(void **state)
{
	static const struct {
		uint32_t flags;
		int status;
	} cases[] = {
		{0x1, 1},
		{0x9, 1},
		{0x0, FRONTEND_E_BROKEN},
		{0x2, FRONTEND_E_BROKEN},
		{0x3, FRONTEND_E_BROKEN},
		{0x5, FRONTEND_E_BROKEN},
		{0xd, FRONTEND_E_BROKEN},
		{0x11, FRONTEND_E_BROKEN},
		{0x80000001, FRONTEND_E_BROKEN},
	};
	uint8_t wire[12];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		send_bytes(wire, compose(wire, 1, cases[i].flags, 0), 0);
		assert_int_equal(receive(), cases[i].status);
		assert_int_equal(tear_down(state), 0);
		assert_int_equal(set_up(state), 0);
	}
}

static void test_an_end_between_messages_is_a_close(void **state)
{
	uint8_t wire[12];

	(void)state;
	send_bytes(wire, compose(wire, 3, 0x1, 0), 0);
	close(f.peer);
	f.peer = -1;
	assert_int_equal(receive(), 1);
	assert_int_equal(receive(), FRONTEND_E_CLOSED);
}

static void test_an_end_within_a_message_is_a_breach(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 12, 0x1, 8);

	for (size_t cut = 1; cut < len; cut++) {
		send_bytes(wire, cut, 1);
		close(f.peer);
		f.peer = -1;
		assert_int_equal(receive(), FRONTEND_E_BROKEN);
		assert_int_equal(tear_down(state), 0);
		assert_int_equal(set_up(state), 0);
	}
}

static void test_the_fds_of_an_unfinished_message_are_closed(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 5, 0x1, 40);

	(void)state;
	send_bytes(wire, len - 1, 3);
	assert_int_equal(receive(), 0);
	/* tear_down() counts. */
}

static void fill_socket(size_t *ret_len)
{
	uint8_t zeros[1024] = {0};
	ssize_t n;

	*ret_len = 0;
	while ((n = send(f.frontend.socket, zeros, sizeof(zeros), MSG_DONTWAIT)) > 0)
		*ret_len += (size_t)n;
	/* And with single bytes, until there is no room for any. */
	while ((n = send(f.frontend.socket, zeros, 1, MSG_DONTWAIT)) > 0)
		*ret_len += (size_t)n;
}

static void drain_peer(size_t len)
{
	uint8_t bytes[4096];

	while (len > 0) {
		ssize_t n = recv(f.peer, bytes, len < sizeof(bytes) ? len : sizeof(bytes),
				 MSG_DONTWAIT);

		assert_true(n > 0);
		len -= (size_t)n;
	}
}

static void test_a_reply_is_sent_whole(void **state)
{
	uint8_t reply[VHOST_USER_REPLY_MAX], got[VHOST_USER_REPLY_MAX + 1];

	(void)state;
	for (size_t i = 0; i < sizeof(reply); i++)
		reply[i] = (uint8_t)i;
	assert_int_equal(frontend_send(&f.frontend, reply, sizeof(reply)), 0);
	assert_false(frontend_wants_write(&f.frontend));
	assert_int_equal(recv(f.peer, got, sizeof(got), MSG_DONTWAIT), sizeof(reply));
	assert_memory_equal(got, reply, sizeof(reply));
	assert_int_equal(frontend_send(&f.frontend, reply, sizeof(reply) + 1), -EMSGSIZE);
}

static void test_nothing_is_read_while_a_reply_waits(void **state)
{
	uint8_t wire[64], reply[20], got[20];
	size_t filled, len = compose(wire, 8, 0x1, 8);

	(void)state;
	compose(reply, 1, VHOST_USER_REPLY_FLAGS, 8);
	fill_socket(&filled);
	assert_int_equal(frontend_send(&f.frontend, reply, sizeof(reply)), 0);
	assert_true(frontend_wants_write(&f.frontend));
	assert_int_equal(frontend_send(&f.frontend, reply, sizeof(reply)), -EBUSY);

	send_bytes(wire, len, 0);
	assert_int_equal(receive(), 0);
	assert_int_equal(unread(), len);
	assert_int_equal(frontend_flush(&f.frontend), 0);
	assert_true(frontend_wants_write(&f.frontend));

	drain_peer(filled);
	assert_int_equal(frontend_flush(&f.frontend), 0);
	assert_false(frontend_wants_write(&f.frontend));
	assert_int_equal(recv(f.peer, got, sizeof(got), MSG_DONTWAIT), sizeof(got));
	assert_memory_equal(got, reply, sizeof(reply));
	assert_int_equal(receive(), 1);
	assert_received(wire, len);
}

static void test_a_reply_to_a_front_end_that_left_is_a_close(void **state)
{
	uint8_t reply[20] = {0};

	(void)state;
	close(f.peer);
	f.peer = -1;
	assert_int_equal(frontend_send(&f.frontend, reply, sizeof(reply)), FRONTEND_E_CLOSED);
}

static void test_an_interrupted_call_is_made_again(void **state)
{
	uint8_t wire[64], reply[20] = {1, 2, 3}, got[20];
	size_t len = compose(wire, 12, 0x1, 8);

	(void)state;
	/* The first byte, the rest of the header, the payload. */
	for (uint32_t nth = 1; nth <= 3; nth++) {
		send_bytes(wire, len, 1);
		failing_call_plan(CALL_RECVMSG, -1, nth, EINTR);
		assert_int_equal(receive(), 1);
		assert_true(failing_call_has_come());
		assert_received(wire, len);
		assert_int_equal(f.n_fds, 1);
		close_fds();
	}
	failing_call_plan(CALL_SENDMSG, -1, 1, EINTR);
	assert_int_equal(frontend_send(&f.frontend, reply, sizeof(reply)), 0);
	assert_true(failing_call_has_come());
	assert_false(frontend_wants_write(&f.frontend));
	assert_int_equal(recv(f.peer, got, sizeof(got), MSG_DONTWAIT), sizeof(got));
	assert_memory_equal(got, reply, sizeof(got));
}

static void test_a_connection_that_breaks_has_ended_or_says_why(void **state)
{
	static const struct {
		int error, result;
	} rows[] = {
		{ECONNRESET, FRONTEND_E_CLOSED},
		{ENOMEM, -ENOMEM},
	};
	uint8_t wire[64], reply[20] = {0};
	size_t len = compose(wire, 12, 0x1, 8);

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		send_bytes(wire, len, 1); /* of whose fd tear_down() finds none */
		failing_call_plan(CALL_RECVMSG, -1, 2, rows[i].error);
		assert_int_equal(receive(), rows[i].result);
		failing_call_plan(CALL_SENDMSG, -1, 1, rows[i].error);
		assert_int_equal(frontend_send(&f.frontend, reply, sizeof(reply)), rows[i].result);
		assert_int_equal(tear_down(state), 0);
		assert_int_equal(set_up(state), 0);
	}
}

/* The listener that systemd passes may be set to that, and each connection is like it. */
static void test_credentials_that_come_along_are_no_fds(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 12, 0x1, 8);
	int is_on = 1;

	(void)state;
	assert_int_equal(
		setsockopt(f.frontend.socket, SOL_SOCKET, SO_PASSCRED, &is_on, sizeof(is_on)), 0);
	for (size_t n_fds = 0; n_fds <= VHOST_USER_FDS_MAX; n_fds++) {
		send_bytes(wire, len, n_fds);
		assert_int_equal(receive(), 1);
		assert_received(wire, len);
		assert_int_equal(f.n_fds, n_fds);
		close_fds();
	}
	send_bytes(wire, len, 2); /* in the queue at the end */
}

/* Nothing keeps the fds of what was never read: not even a signal. */
static void test_the_queue_is_emptied_at_the_end(void **state)
{
	uint8_t wire[64];
	size_t len = compose(wire, 12, 0x1, 8);
	char byte;

	(void)state;
	send_bytes(wire, len, 3);
	send_bytes(wire, len, 3);
	failing_call_plan(CALL_RECVMSG, -1, 2, EINTR);
	frontend_end(&f.frontend);
	assert_true(failing_call_has_come());
	assert_int_equal(recv(f.peer, &byte, 1, MSG_DONTWAIT), 0);
	frontend_end(&f.frontend); /* of nothing */
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_a_message_arrives_as_it_was_sent),
		TEST(test_a_message_may_come_byte_by_byte),
		TEST(test_a_message_may_be_split_anywhere),
		TEST(test_nothing_beyond_one_message_is_read),
		TEST(test_fds_come_with_the_message_and_are_close_on_exec),
		TEST(test_more_fds_than_any_message_has_end_the_connection),
		TEST(test_fds_that_this_process_has_no_room_for_end_the_connection),
		TEST(test_fds_with_a_later_byte_end_the_connection),
		TEST(test_an_oversized_payload_is_refused_before_it_is_read),
		TEST(test_only_flags_of_a_request_are_taken),
		TEST(test_an_end_between_messages_is_a_close),
		TEST(test_an_end_within_a_message_is_a_breach),
		TEST(test_the_fds_of_an_unfinished_message_are_closed),
		TEST(test_a_reply_is_sent_whole),
		TEST(test_nothing_is_read_while_a_reply_waits),
		TEST(test_a_reply_to_a_front_end_that_left_is_a_close),
		TEST(test_an_interrupted_call_is_made_again),
		TEST(test_a_connection_that_breaks_has_ended_or_says_why),
		TEST(test_credentials_that_come_along_are_no_fds),
		TEST(test_the_queue_is_emptied_at_the_end),
	};

	return cmocka_run_group_tests_name("frontend", tests, NULL, NULL);
}
