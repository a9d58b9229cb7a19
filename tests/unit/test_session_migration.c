/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/session_rig.h"

/* ---- migration ---- */

static int handle_log(uint64_t size, uint64_t mmap_offset, int fd)
{
	struct vhost_user_log log = {size, mmap_offset};

	return rig_handle_fds(VHOST_USER_SET_LOG_BASE, 0, &log, sizeof(log), &fd, 1);
}

static int handle_transfer(uint32_t direction, uint32_t phase, int fd)
{
	struct vhost_user_device_state wire = {direction, phase};

	return rig_handle_fds(VHOST_USER_SET_DEVICE_STATE_FD, 0, &wire, sizeof(wire), &fd, 1);
}

/* One end of a pipe or a socket pair; the other is of no interest. */
static int new_channel(bool is_socket)
{
	int fds[2];

	if (is_socket)
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	else
		assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	close(fds[1]);
	return fds[0];
}

static void test_a_log_is_kept_and_answered_with_an_empty_reply(void **state)
{
	int before, event;

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_int_equal(handle_log(0x1000, 24, rig_new_memory()), 0);
	assert_reply(VHOST_USER_SET_LOG_BASE, 0);
	assert_calls("log ");
	assert_int_equal(rig.session.log.size, 0x1000);
	assert_int_equal(rig.session.log.mmap_offset, 24);
	assert_int_equal(rig.session.log.alignment, 4096);
	before = rig.session.log.fd;

	event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_done(rig_handle_fds(VHOST_USER_SET_LOG_FD, 0, NULL, 0, &event, 1));
	assert_calls("log-fd ");

	/* The next one takes its place and leaves the event fd alone. */
	event = rig.session.log.event_fd;
	assert_int_equal(handle_log(FILE_SIZE, 0, rig_new_memory()), 0);
	assert_reply(VHOST_USER_SET_LOG_BASE, 0);
	assert_int_not_equal(rig.session.log.fd, before);
	assert_int_equal(fcntl(before, F_GETFD), -1);
	assert_int_equal(rig.session.log.event_fd, event);
	assert_true(fcntl(event, F_GETFD) >= 0);
}

static void test_a_log_that_the_worker_takes_later_is_answered_all_the_same(void **state)
{
	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(handle_log(0x1000, 0, rig_new_memory()), SESSION_E_PENDING);
	assert_int_equal(rig.session.reply_len, 0);
	assert_int_equal(session_complete(&rig.session, 0, 0), 0);
	assert_reply(VHOST_USER_SET_LOG_BASE, 0);
}

static void test_a_log_that_the_worker_cannot_map_ends_the_session(void **state)
{
	int before;

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_int_equal(handle_log(0x1000, 0, rig_new_memory()), 0);
	before = rig.session.log.fd;
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(handle_log(0x2000, 0, rig_new_memory()), SESSION_E_PENDING);
	assert_closed(session_complete(&rig.session, -ENOMEM, 0), "SET_LOG_BASE");
	assert_int_equal(rig.session.log.fd, before);
	assert_int_equal(rig.session.log.size, 0x1000);
}

static void test_a_log_lies_within_a_file_in_ram(void **state)
{
	static const struct {
		uint64_t size, offset;
		const char *word;
	} cases[] = {
		{0, 0, "a log of 0x0 bytes"},
		{(UINT64_C(1) << 37) + 1, 0, "a log of 0x2000000001 bytes"},
		{UINT64_MAX, 0, "a log of 0xffffffffffffffff bytes"},
		{0x1000, UINT64_MAX - 0xfff, "a log of 0x1000 bytes"},
		{FILE_SIZE + 1, 0, "ends at 0x100001 of a file of 0x100000 bytes"},
		{0x1000, FILE_SIZE - 0xfff, "ends at 0x100001 of a file of 0x100000 bytes"},
		{UINT64_C(1) << 37, 0, "ends at 0x2000000000 of a file of 0x100000 bytes"},
	};
	int others[] = {eventfd(0, EFD_CLOEXEC), new_channel(false), new_channel(true),
			open("/proc/self/status", O_RDONLY | O_CLOEXEC)};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		rig_negotiate(SESSION_PROTOCOL_FEATURES);
		assert_closed(handle_log(cases[i].size, cases[i].offset, rig_new_memory()),
			      cases[i].word);
		assert_int_equal(rig.session.log.fd, -1);
		assert_calls("");
		session_end(&rig.session);
		rig_begin();
	}
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		rig_negotiate(SESSION_PROTOCOL_FEATURES);
		assert_closed(handle_log(1, 0, others[i]), "not backed by a file in RAM");
		assert_int_equal(fcntl(others[i], F_GETFD), -1);
		session_end(&rig.session);
		rig_begin();
	}
}

static void test_a_log_is_signalled_through_an_eventfd_only(void **state)
{
	int others[] = {rig_new_memory(), new_channel(false), new_channel(true)};

	(void)state;
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		rig_negotiate(ACK);
		assert_int_equal(rig_handle_fds(VHOST_USER_SET_LOG_FD, VHOST_USER_NEED_REPLY, NULL,
						0, &others[i], 1),
				 0);
		assert_reply_u64(VHOST_USER_SET_LOG_FD, 1);
		assert_int_equal(rig.session.log.event_fd, -1);
		rig.calls[0] = '\0';
	}
}

static void test_the_log_flag_of_a_ring_may_change_while_it_is_started(void **state)
{
	struct vhost_user_vring_addr addr = rig_addr_of(1);

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	rig_start_ring(1, 0);
	addr.flags = VHOST_USER_VRING_F_LOG;
	addr.log_guest_addr = 0x1234;
	assert_done(rig_handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)));
	assert_calls("log:1:1 ");
	assert_int_equal(rig.session.rings[1].log_address, 0x1234);
	addr.flags = 0;
	assert_done(rig_handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)));
	assert_calls("log:1:0 ");

	/* Of a stopped one it is told with the start. */
	addr = rig_addr_of(2);
	addr.flags = VHOST_USER_VRING_F_LOG;
	assert_done(rig_handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)));
	assert_calls("");
	assert_true(rig.session.rings[2].is_logged);
	addr.flags = 2;
	assert_closed(rig_handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)),
		      "unknown flags 0x2");
}

static void test_a_state_goes_through_a_pipe_or_a_socket(void **state)
{
	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(handle_transfer(i & 1, 0, new_channel(i & 2)), 0);
		assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x100);
		assert_calls(i & 1 ? "load " : "save ");
		/* Somebody else has it now. */
		assert_int_equal(rig.session.state_fd, -1);
	}
}

static void test_a_state_goes_through_nothing_else(void **state)
{
	int others[] = {eventfd(0, EFD_CLOEXEC), rig_new_memory(), epoll_create1(EPOLL_CLOEXEC),
			open("/dev/null", O_RDWR | O_CLOEXEC),
			socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		assert_true(others[i] >= 0);
		assert_int_equal(handle_transfer(VHOST_USER_STATE_LOAD, 0, others[i]), 0);
		assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
		assert_non_null(
			strstr(session_reason(&rig.session), "neither a pipe nor a unix socket"));
		assert_int_equal(fcntl(others[i], F_GETFD), -1);
		assert_calls("");
	}
}

static void test_a_state_moves_in_two_directions_and_one_phase(void **state)
{
	static const uint32_t cases[][2] = {
		{2, 0}, {UINT32_MAX, 0}, {0, 1}, {1, 1}, {1, UINT32_MAX}};

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(handle_transfer(cases[i][0], cases[i][1], new_channel(false)), 0);
		assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
		assert_non_null(
			strstr(session_reason(&rig.session), "SET_DEVICE_STATE_FD: direction"));
	}
	assert_calls("");
}

static void test_a_state_does_not_move_while_a_ring_is_started(void **state)
{
	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	for (uint32_t ring = 0; ring < SESSION_RINGS; ring++) {
		rig_start_ring(ring, 0);
		for (uint32_t direction = 0; direction < 2; direction++) {
			assert_int_equal(handle_transfer(direction, 0, new_channel(false)), 0);
			assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
			assert_non_null(strstr(session_reason(&rig.session), "a ring is started"));
		}
		assert_calls("");
		assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, ring, 0), 0);
		rig.calls[0] = '\0';
	}
	/* Enabled ones that are stopped are no hindrance, nor is a missing memory table. */
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1));
	assert_int_equal(handle_transfer(VHOST_USER_STATE_LOAD, 0, new_channel(false)), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x100);
}

static void test_a_transfer_that_did_not_begin_is_answered_with_the_error_bit(void **state)
{
	int fd = new_channel(false);

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(handle_transfer(VHOST_USER_STATE_SAVE, 0, fd), SESSION_E_PENDING);
	assert_int_equal(rig.session.reply_len, 0);
	assert_true(fcntl(fd, F_GETFD) >= 0);
	assert_int_equal(session_complete(&rig.session, -EBUSY, 0), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
	assert_int_equal(fcntl(fd, F_GETFD), -1);

	fd = new_channel(false);
	assert_int_equal(handle_transfer(VHOST_USER_STATE_SAVE, 0, fd), SESSION_E_PENDING);
	assert_int_equal(session_complete(&rig.session, 0, 0), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x100);
	assert_int_equal(fcntl(fd, F_GETFD), -1);

	/* A session that ends meanwhile keeps nothing. */
	fd = new_channel(false);
	assert_int_equal(handle_transfer(VHOST_USER_STATE_LOAD, 0, fd), SESSION_E_PENDING);
	session_end(&rig.session);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	rig_begin();
}

static void test_check_answers_with_0_or_1_and_never_ends_the_session(void **state)
{
	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_int_equal(rig_handle(VHOST_USER_CHECK_DEVICE_STATE, NULL, 0), 0);
	assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, 0);
	rig.answer = -EBADMSG;
	assert_int_equal(rig_handle(VHOST_USER_CHECK_DEVICE_STATE, NULL, 0), 0);
	assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, 1);
	rig.answer = SESSION_E_PENDING;
	for (int status = 0; status >= -1; status--) {
		assert_int_equal(rig_handle(VHOST_USER_CHECK_DEVICE_STATE, NULL, 0),
				 SESSION_E_PENDING);
		assert_int_equal(rig.session.reply_len, 0);
		assert_int_equal(session_complete(&rig.session, status, 0), 0);
		assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, status == 0 ? 0 : 1);
	}
	assert_calls("check check check check ");
	/* One answer, not one more for whoever asks for acks. */
	rig.answer = 0;
	assert_int_equal(rig_handle_fds(VHOST_USER_CHECK_DEVICE_STATE, VHOST_USER_NEED_REPLY, NULL,
					0, NULL, 0),
			 0);
	assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, 0);
}

/* ---- suspending ---- */

static int hand_over_state(uint32_t direction)
{
	struct vhost_user_device_state wire = {.direction = direction};
	int fds[2], status;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	status = rig_handle_fds(VHOST_USER_SET_DEVICE_STATE_FD, 0, &wire, sizeof(wire), &fds[1], 1);
	close(fds[0]);
	return status;
}

static void test_suspend_and_resume_are_said_once(void **state)
{
	(void)state;
	rig_begin_with(VHOST_USER_PROTOCOL_F_SUSPEND);
	assert_done(rig_handle(VHOST_USER_RESUME, NULL, 0));
	assert_calls("");
	assert_done(rig_handle(VHOST_USER_SUSPEND, NULL, 0));
	assert_done(rig_handle(VHOST_USER_SUSPEND, NULL, 0));
	assert_calls("suspended ");
	assert_done(rig_handle(VHOST_USER_RESUME, NULL, 0));
	assert_calls("resumed ");
	assert_false(rig.session.is_suspended);
}

static void test_a_device_reset_resumes(void **state)
{
	(void)state;
	rig_begin_with(VHOST_USER_PROTOCOL_F_SUSPEND);
	assert_done(rig_handle(VHOST_USER_SUSPEND, NULL, 0));
	assert_done(rig_handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_calls("suspended reset ");
	assert_false(rig.session.is_suspended);
}

static void test_a_suspension_that_failed_is_none(void **state)
{
	(void)state;
	rig_begin_with(VHOST_USER_PROTOCOL_F_SUSPEND);
	rig.answer = -EIO;
	assert_closed(rig_handle(VHOST_USER_SUSPEND, NULL, 0), "error");
	assert_false(rig.session.is_suspended);
}

static void test_a_suspended_device_is_saved_with_rings_started_and_not_loaded(void **state)
{
	(void)state;
	rig_begin_with(VHOST_USER_PROTOCOL_F_SUSPEND);
	rig_start_ring(0, 0);
	assert_int_equal(hand_over_state(VHOST_USER_STATE_SAVE), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
	assert_done(rig_handle(VHOST_USER_SUSPEND, NULL, 0));
	rig.calls[0] = '\0';
	assert_int_equal(hand_over_state(VHOST_USER_STATE_SAVE), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x100);
	assert_calls("save ");
	assert_int_equal(hand_over_state(VHOST_USER_STATE_LOAD), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_set_up, rig_tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_suspend_and_resume_are_said_once),
		TEST(test_a_device_reset_resumes),
		TEST(test_a_suspension_that_failed_is_none),
		TEST(test_a_suspended_device_is_saved_with_rings_started_and_not_loaded),
		TEST(test_a_log_is_kept_and_answered_with_an_empty_reply),
		TEST(test_a_log_that_the_worker_takes_later_is_answered_all_the_same),
		TEST(test_a_log_that_the_worker_cannot_map_ends_the_session),
		TEST(test_a_log_lies_within_a_file_in_ram),
		TEST(test_a_log_is_signalled_through_an_eventfd_only),
		TEST(test_the_log_flag_of_a_ring_may_change_while_it_is_started),
		TEST(test_a_state_goes_through_a_pipe_or_a_socket),
		TEST(test_a_state_goes_through_nothing_else),
		TEST(test_a_state_moves_in_two_directions_and_one_phase),
		TEST(test_a_state_does_not_move_while_a_ring_is_started),
		TEST(test_a_transfer_that_did_not_begin_is_answered_with_the_error_bit),
		TEST(test_check_answers_with_0_or_1_and_never_ends_the_session),
	};

	return cmocka_run_group_tests_name("session migration", tests, NULL, NULL);
}
