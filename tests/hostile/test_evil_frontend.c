/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A VMM in an attacker's hands says what it likes on its vhost-user socket and
 * hands over what it likes. Its own session may end for it; the other VM feels
 * nothing, and the front keeps nothing.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/guest.h"
#include "tests/frontend/host.h"
#include "tests/hostile/rig.h"

#define ALL_PROTOCOL_FEATURES                                                                      \
	(BIT64(VHOST_PROTOCOL_MQ) | BIT64(VHOST_PROTOCOL_REPLY_ACK) |                              \
	 BIT64(VHOST_PROTOCOL_CONFIG) | BIT64(VHOST_PROTOCOL_RESET_DEVICE) |                       \
	 BIT64(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS))
#define REQUESTS 50
#define PAGE	 4096

static struct rig rig;

static int set_up(void **state)
{
	(void)state;
	rig_start(&rig, "max-connections=16");
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_stop(&rig);
	return 0;
}

static void open_session(struct vhost *vhost)
{
	rig_connect_frontend(&rig, vhost);
	assert_int_equal(vhost_set_u64(vhost, VHOST_SET_PROTOCOL_FEATURES, ALL_PROTOCOL_FEATURES),
			 0);
}

/* A message as it should not be; n_bytes: how many of it are sent. */
static int send_message(const struct vhost *vhost, uint32_t request, uint32_t flags, uint32_t size,
			size_t n_bytes, const int *fds, size_t n_fds)
{
	static uint8_t bytes[3 * PAGE];
	struct vhost_header header = {request, flags, size};
	union {
		char room[CMSG_SPACE(253 * sizeof(int))];
		struct cmsghdr header;
	} control = {.room = {0}};
	struct iovec part = {bytes, n_bytes};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	memcpy(bytes, &header, sizeof(header));
	if (n_fds > 0) {
		message.msg_control = control.room;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
	}
	return sendmsg(vhost->fd, &message, MSG_NOSIGNAL) == (ssize_t)n_bytes ? 0 : -errno;
}

/* Does the session still answer? Whatever other answers come are passed over. */
static bool is_open(const struct vhost *vhost)
{
	int64_t deadline = deadline_in(RIG_LIMIT);
	struct pollfd socket = {.fd = vhost->fd, .events = POLLIN};
	uint8_t bytes[PAGE];
	ssize_t n;

	if (send_message(vhost, VHOST_GET_QUEUE_NUM, VHOST_FLAG_VERSION, 0, 12, NULL, 0) != 0)
		return false;
	for (;;) {
		uint32_t request;

		if (poll(&socket, 1, deadline_left(deadline)) != 1)
			fail_msg("the session neither answers nor ends");
		n = recv(vhost->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
		if (n <= 0)
			return false;
		/* The last answer is the one to the last question: 12 bytes and 8. */
		if (n < 20)
			continue;
		memcpy(&request, bytes + n - 20, sizeof(request));
		if (request == VHOST_GET_QUEUE_NUM)
			return true;
	}
}

static void fill(int fd, int *fds, size_t n_fds)
{
	for (size_t i = 0; i < n_fds; i++)
		fds[i] = fd;
}

/* ---- messages ---- */

static void test_no_size_and_no_number_of_fds_of_any_message_does_harm(void **state)
{
	static const uint32_t sizes[] = {0, 1, 8, 12, 40, 44, 4096};
	static const size_t counts[] = {0, 1, 32};
	struct vhost vhost;
	bool has_session = false;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), fds[32];
	size_t i = 0;

	(void)state;
	fill(null, fds, 32);
	for (uint32_t request = 0; request < REQUESTS; request++) {
		for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]) * 3; k++) {
			uint32_t size = sizes[k / 3];
#ifdef RIG_IS_SANITIZED
			if (i++ % 5)
				continue;
#endif
			(void)i;
			if (!has_session)
				open_session(&vhost);
			send_message(&vhost, request, VHOST_FLAG_VERSION | VHOST_FLAG_NEED_REPLY,
				     size, 12 + size, fds, counts[k % 3]);
			has_session = is_open(&vhost);
			if (!has_session)
				vhost_close(&vhost);
		}
		rig_check_neighbour(&rig, 1, "sizes and counts");
	}
	if (has_session)
		vhost_close(&vhost);
	close(null);
	rig_check_service(&rig, "sizes and counts");
	rig_check(&rig, "sizes and counts");
}

static void test_headers_that_lie_end_the_session_at_once(void **state)
{
	static const struct vhost_header headers[] = {
		{VHOST_GET_FEATURES, 0, 0},
		{VHOST_GET_FEATURES, 2, 0},
		{VHOST_GET_FEATURES, 0x5, 0},
		{VHOST_GET_FEATURES, 0xfffffff1, 0},
		{VHOST_SET_FEATURES, 1, 4097},
		{VHOST_SET_FEATURES, 1, 0x7fffffff},
		{VHOST_SET_FEATURES, 1, 0x80000000},
		{VHOST_SET_FEATURES, 1, 0xffffffff},
		{VHOST_SET_FEATURES, 1, 0xfffffff4},
		{0xffffffff, 1, 0},
		{0x80000000, 1, 8},
	};
	struct vhost vhost;

	(void)state;
	for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
		size_t n = headers[i].size <= 8 ? headers[i].size : 0;

		open_session(&vhost);
		assert_int_equal(send_message(&vhost, headers[i].request, headers[i].flags,
					      headers[i].size, 12 + n, NULL, 0),
				 0);
		assert_int_equal(vhost_wait_closed(&vhost), 0);
		vhost_close(&vhost);
	}
	rig_check_service(&rig, "headers");
	rig_check(&rig, "headers");
}

static void test_half_a_message_keeps_nobody_waiting(void **state)
{
	static const size_t lengths[] = {1, 4, 11, 12, 13, 19};
	struct vhost vhost;

	(void)state;
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		int null = open("/dev/null", O_RDWR | O_CLOEXEC), fds[32];

		fill(null, fds, 32);
		open_session(&vhost);
		assert_int_equal(send_message(&vhost, VHOST_SET_FEATURES, VHOST_FLAG_VERSION, 8,
					      lengths[i], fds, 32),
				 0);
		rig_check_neighbour(&rig, 20, "half a message");
		vhost_close(&vhost);
		close(null);
		rig_check_rest(&rig, "half a message");
	}
	rig_check_service(&rig, "half a message");
	rig_check(&rig, "half a message");
}

/* The front may take as many as its own answers find room for, and no more. */
static void test_answers_that_nobody_reads_stop_only_the_session(void **state)
{
	int64_t deadline = deadline_in(RIG_LIMIT);
	struct pollfd socket;
	struct vhost vhost;
	size_t n = 0;

	(void)state;
	open_session(&vhost);
	socket = (struct pollfd){.fd = vhost.fd, .events = POLLOUT};
	/* Full for a while: then it will stay so. */
	while (poll(&socket, 1, 200) == 1 && deadline_left(deadline) > 0)
		n += send_message(&vhost, VHOST_GET_FEATURES, VHOST_FLAG_VERSION, 0, 12, NULL, 0) ==
		     0;
	assert_true(deadline_left(deadline) > 0);
	assert_in_range(n, 100, 1000000);
	rig_check_neighbour(&rig, 100, "answers");
	vhost_close(&vhost);
	rig_check_service(&rig, "answers");
	rig_check(&rig, "answers");
}

static void test_a_silent_session_costs_nothing(void **state)
{
	struct vhost vhost;

	(void)state;
	rig_connect_frontend(&rig, &vhost);
	rig_check_neighbour(&rig, 200, "silence");
	vhost_close(&vhost);
	rig_check_service(&rig, "silence");
	rig_check(&rig, "silence");
}

static void test_a_second_session_waits_for_the_end_of_the_first(void **state)
{
	const struct guest_options options = {.socket = rig.socket, .timeout = RIG_LIMIT};
	struct guest guest;
	struct vhost second;
	uint64_t features;

	(void)state;
	assert_int_equal(guest_start(&guest, &options), 0);
	rig_connect_frontend(&rig, &second);
	second.timeout = 50;
	assert_int_equal(vhost_get_u64(&second, VHOST_GET_FEATURES, &features), -ETIMEDOUT);
	assert_null(guest_connect_wait(&guest, PACKET_HOST_CID, 9, RIG_LIMIT));
	assert_string_equal(guest_violations(&guest), "");
	guest_end(&guest);
	second.timeout = RIG_LIMIT;
	/* The answer to the question above. */
	assert_int_equal(
		vhost_receive(&second, VHOST_GET_FEATURES, &features, sizeof(features), NULL),
		sizeof(features));
	vhost_close(&second);
	rig_check(&rig, "second session");
}

static void test_a_storm_of_sessions_takes_nothing_from_the_neighbour(void **state)
{
#ifdef RIG_IS_SANITIZED
	const int n = 40;
#else
	const int n = 300;
#endif
	struct vhost vhost;

	(void)state;
	for (int i = 0; i < n; i++) {
		rig_connect_frontend(&rig, &vhost);
		if (i % 3 == 1)
			send_message(&vhost, VHOST_GET_FEATURES, VHOST_FLAG_VERSION, 0, 12, NULL,
				     0);
		if (i % 3 == 2)
			send_message(&vhost, VHOST_SET_FEATURES, VHOST_FLAG_VERSION, 8, 15, NULL,
				     0);
		vhost_close(&vhost);
	}
	rig_check_service(&rig, "session storm");
	rig_check(&rig, "session storm");
}

/* ---- fds ---- */

enum kind {
	KIND_EVENTFD,
	KIND_STREAM,
	KIND_DATAGRAM,
	KIND_LISTENER,
	KIND_PIPE_READ,
	KIND_PIPE_WRITE,
	KIND_DIRECTORY,
	KIND_DISK_FILE,
	KIND_PATH,
	KIND_NULL,
	KIND_EPOLL,
	KIND_TIMER,
	KIND_MEMFD,
	KIND_EMPTY_MEMFD,
	KIND_READ_ONLY,
	KINDS,
};

/*
 * Whether the front closes these depends on what they are and on which file system
 * the tests run; it may keep each, and gives a VM up that sends too many.
 */
static bool may_be_kept(enum kind kind)
{
	switch (kind) {
	case KIND_STREAM:
	case KIND_DATAGRAM:
	case KIND_LISTENER:
	case KIND_DIRECTORY:
	case KIND_DISK_FILE:
	case KIND_PATH:
	case KIND_READ_ONLY:
		return true;
	default:
		return false;
	}
}

static int open_half(int pair[2], int half)
{
	close(pair[!half]);
	return pair[half];
}

static int make_file(const char *name, int flags)
{
	const char *path = daemon_path(&rig.daemon, name);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 16 * PAGE), 0);
	close(fd);
	return open(path, flags | O_CLOEXEC);
}

static int make_fd(enum kind kind)
{
	int pair[2], fd;

	switch (kind) {
	case KIND_EVENTFD:
		return eventfd(0, EFD_CLOEXEC);
	case KIND_STREAM:
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		return open_half(pair, 0);
	case KIND_DATAGRAM:
		assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), 0);
		return open_half(pair, 0);
	case KIND_LISTENER:
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert_int_equal(bind(fd, (struct sockaddr *)&(struct sockaddr_un){AF_UNIX, ""},
				      sizeof(sa_family_t)),
				 0);
		assert_int_equal(listen(fd, 1), 0);
		return fd;
	case KIND_PIPE_READ:
	case KIND_PIPE_WRITE:
		assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
		return open_half(pair, kind == KIND_PIPE_WRITE);
	case KIND_DIRECTORY:
		return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case KIND_DISK_FILE:
		return make_file("file", O_RDWR);
	case KIND_PATH:
		return make_file("file", O_PATH);
	case KIND_READ_ONLY:
		return make_file("file", O_RDONLY);
	case KIND_NULL:
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case KIND_EPOLL:
		return epoll_create1(EPOLL_CLOEXEC);
	case KIND_TIMER:
		return timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	case KIND_MEMFD:
		fd = memfd_create("hostile", MFD_CLOEXEC);
		assert_int_equal(ftruncate(fd, 16 * PAGE), 0);
		return fd;
	case KIND_EMPTY_MEMFD:
		return memfd_create("hostile", MFD_CLOEXEC);
	default:
		return -1;
	}
}

/* 0, VHOST_E_NACK or negative errno, as of the message with the fd. */
static int hand_over(struct vhost *vhost, uint32_t request, int fd)
{
	const struct vhost_region region = {0, 16 * PAGE, 1 << 30, 0};
	const struct vhost_ring_address address = {
		0, 0, 1 << 30, (1 << 30) + PAGE, (1 << 30) + 2 * PAGE, 0};
	int memory, r;

	switch (request) {
	case VHOST_SET_MEM_TABLE:
		return vhost_set_memory(vhost, &region, &fd, 1);
	case VHOST_ADD_MEM_REG:
		return vhost_change_memory(vhost, request, &region, fd);
	default:
		memory = make_fd(KIND_MEMFD);
		assert_int_equal(vhost_set_memory(vhost, &region, &memory, 1), 0);
		assert_int_equal(vhost_set_ring(vhost, VHOST_SET_VRING_NUM, 0, 16), 0);
		assert_int_equal(vhost_set_ring_address(vhost, &address), 0);
		r = vhost_set_ring_fd(vhost, request, 0, fd);
		close(memory);
		return r;
	}
}

/* Whether a file on a disk will do is a matter of where the directory is. */
static bool is_right(uint32_t request, enum kind kind, int result)
{
	bool is_memory = request == VHOST_SET_MEM_TABLE || request == VHOST_ADD_MEM_REG;

	if (is_memory && (kind == KIND_DISK_FILE || kind == KIND_MEMFD))
		return result == 0 || (result == VHOST_E_NACK && kind == KIND_DISK_FILE);
	/* What has no type may be an eventfd; no more can be known of it. */
	if (!is_memory && (kind == KIND_EPOLL || kind == KIND_TIMER))
		return result == 0 || result == VHOST_E_NACK;
	return result == (!is_memory && kind == KIND_EVENTFD ? 0 : VHOST_E_NACK);
}

static void test_every_kind_of_fd_is_refused_where_it_does_not_belong(void **state)
{
	static const uint32_t requests[] = {VHOST_SET_MEM_TABLE, VHOST_ADD_MEM_REG,
					    VHOST_SET_VRING_KICK, VHOST_SET_VRING_CALL,
					    VHOST_SET_VRING_ERR};

	(void)state;
	for (size_t i = 0; i < 5 * KINDS; i++) {
		uint32_t request = requests[i % 5];
		enum kind kind = (enum kind)(i / 5);
		struct vhost vhost;
		char what[64];
		int fd, r;

		if (may_be_kept(kind) && i % 5 != (size_t)kind % 5)
			continue;
		rig.n_kept_max += may_be_kept(kind);
		snprintf(what, sizeof(what), "fd of kind %d in request %u", (int)kind, request);
		open_session(&vhost);
		fd = make_fd(kind);
		assert_true(fd >= 0);
		r = hand_over(&vhost, request, fd);
		if (!is_right(request, kind, r))
			fail_msg("%s: result %d", what, r);
		assert_true(is_open(&vhost));
		vhost_close(&vhost);
		close(fd);
		rig_check_neighbour(&rig, 1, what);
	}
	rig_check_service(&rig, "kinds");
	rig_check(&rig, "kinds");
}

/*
 * As many fds as the front may have open at all, several times over: one that is
 * kept is one too few in the end, even where nobody may count them.
 */
static void test_thousands_of_fds_leave_none_behind(void **state)
{
	static const size_t counts[] = {1, 2, 31, 32, 33, 34, 64, 253};
	int fds[253], fd = eventfd(0, EFD_CLOEXEC);
	struct vhost vhost;

	(void)state;
	fill(fd, fds, 253);
	for (size_t i = 0; i < 8 * sizeof(counts) / sizeof(counts[0]); i++) {
		size_t n = counts[i % 8];

		/* With the header, with its end, and with the payload. */
		open_session(&vhost);
		if (i / 8 % 3 == 0) {
			send_message(&vhost, VHOST_SET_FEATURES, VHOST_FLAG_VERSION, 8, 20, fds, n);
		} else {
			size_t at = i / 8 % 3 == 1 ? 5 : 14;

			send_message(&vhost, VHOST_SET_FEATURES, VHOST_FLAG_VERSION, 8, at, NULL,
				     0);
			send_message(&vhost, 0, 0, 0, 20 - at, fds, n);
		}
		assert_int_equal(vhost_wait_closed(&vhost), 0);
		vhost_close(&vhost);
	}
	/* In one session: each replaces the one before. */
	open_session(&vhost);
	for (size_t i = 0; i < 2000; i++)
		assert_int_equal(vhost_set_ring_fd(
					 &vhost, i % 2 ? VHOST_SET_VRING_CALL : VHOST_SET_VRING_ERR,
					 (uint32_t)(i % 3), fd),
				 0);
	vhost_close(&vhost);
	close(fd);
	rig_check_service(&rig, "thousands");
	rig_check(&rig, "thousands of fds");
}

static void test_memory_tables_come_and_go_without_end(void **state)
{
	struct vhost_region regions[32];
	int fds[32], fd = memfd_create("hostile", MFD_CLOEXEC);
	struct vhost vhost;

	(void)state;
	assert_int_equal(ftruncate(fd, 16 * PAGE), 0);
	fill(fd, fds, 32);
	for (uint64_t i = 0; i < 32; i++)
		regions[i] = (struct vhost_region){i << 20, 16 * PAGE, (i + 1) << 30, 0};
	open_session(&vhost);
	for (size_t i = 0; i < 100; i++)
		assert_int_equal(vhost_set_memory(&vhost, regions, fds, 1 + i * 7 % 32), 0);
	assert_int_equal(vhost_set_memory(&vhost, regions, fds, 32), 0);
	for (size_t i = 0; i < 32; i++)
		assert_int_equal(vhost_change_memory(&vhost, VHOST_REM_MEM_REG, &regions[i], -1),
				 0);
	assert_int_equal(vhost_change_memory(&vhost, VHOST_REM_MEM_REG, &regions[0], -1),
			 VHOST_E_NACK);
	/* Overlapping, beyond the file, beyond all addresses. */
	assert_int_equal(vhost_change_memory(&vhost, VHOST_ADD_MEM_REG, &regions[0], fd), 0);
	assert_int_equal(vhost_change_memory(&vhost, VHOST_ADD_MEM_REG, &regions[0], fd),
			 VHOST_E_NACK);
	regions[1].size = 17 * PAGE;
	assert_int_equal(vhost_change_memory(&vhost, VHOST_ADD_MEM_REG, &regions[1], fd),
			 VHOST_E_NACK);
	regions[1].size = UINT64_MAX;
	assert_int_equal(vhost_change_memory(&vhost, VHOST_ADD_MEM_REG, &regions[1], fd),
			 VHOST_E_NACK);
	regions[1] = (struct vhost_region){UINT64_MAX - PAGE + 1, 2 * PAGE, 1 << 30, 0};
	assert_int_equal(vhost_change_memory(&vhost, VHOST_ADD_MEM_REG, &regions[1], fd),
			 VHOST_E_NACK);
	regions[1] = (struct vhost_region){1 << 24, PAGE, 1 << 24, UINT64_MAX - PAGE + 1};
	assert_int_equal(vhost_change_memory(&vhost, VHOST_ADD_MEM_REG, &regions[1], fd),
			 VHOST_E_NACK);
	vhost_close(&vhost);
	close(fd);
	rig_check_service(&rig, "tables");
	rig_check(&rig, "tables");
}

/* ---- while rings run ---- */

static void start_guest(struct guest *guest, const struct memory_layout *regions, size_t n_regions)
{
	const struct guest_options options = {.socket = rig.socket,
					      .timeout = RIG_LIMIT,
					      .regions = regions,
					      .n_regions = n_regions};

	assert_int_equal(guest_start(guest, &options), 0);
}

/*
 * The worker dies of it, and so do those that follow, ever more slowly, since
 * the memory stays away. Here is no touching it either.
 */
static void test_a_truncated_memory_file_ends_only_its_own_worker(void **state)
{
	static const struct memory_layout region = {
		.guest_address = 1 << 20, .size = 1 << 24, .is_unsealed = true};
	struct guest guest;

	(void)state;
#ifdef RIG_IS_SANITIZED
	print_message("skipped: a sanitizer reports SIGBUS in its own way\n");
	skip();
#endif
	start_guest(&guest, &region, 1);
	assert_int_equal(ftruncate(guest.memory.fds[0], 0), 0);
	assert_int_equal(eventfd_write(guest.rings[GUEST_TX].kick, 1), 0);
	rig_wait_log(&rig, "ended by signal 7", "truncated memory");
	rig_check_neighbour(&rig, 200, "truncated memory");
	guest_end(&guest);
	rig_check_service(&rig, "truncated memory");
	rig_check(&rig, "truncated memory");
}

static void test_memory_that_goes_while_rings_run_breaks_only_them(void **state)
{
	static const struct memory_layout region = {.guest_address = 1 << 20, .size = 1 << 24};
	static uint8_t bytes[100000];

	(void)state;
	for (int i = 0; i < 10; i++) {
		char path[sizeof(rig.uds_path)];
		struct host_stream stream;
		struct guest_connection *connection;
		struct guest guest;
		int listener = host_listen(rig.uds_path, 77);

		assert_true(listener >= 0);
		start_guest(&guest, &region, 1);
		connection = guest_connect_wait(&guest, PACKET_HOST_CID, 77, RIG_LIMIT);
		assert_non_null(connection);
		host_stream_init(&stream, host_accept(listener, RIG_LIMIT));
		/* In one go; the worker is busy with it when the region goes. */
		assert_true(guest_send(connection, bytes, sizeof(bytes)) > 0);
		assert_int_equal(vhost_change_memory(&guest.vhost, VHOST_REM_MEM_REG,
						     &guest.memory.regions[0], -1),
				 0);
		assert_int_equal(eventfd_write(guest.rings[GUEST_TX].kick, 1), 0);
		if (i % 2)
			assert_int_equal(vhost_change_memory(&guest.vhost, VHOST_ADD_MEM_REG,
							     &guest.memory.regions[0],
							     guest.memory.fds[0]),
					 0);
		assert_true(is_open(&guest.vhost));
		rig_check_neighbour(&rig, 10, "removed memory");
		host_stream_end(&stream);
		guest_end(&guest);
		close(listener);
		snprintf(path, sizeof(path), "%.90s_77", rig.uds_path);
		unlink(path);
	}
	assert_int_equal(rig_count_log(&rig, "ended by signal"), 0);
	rig_check_service(&rig, "removed memory");
	rig_check(&rig, "removed memory");
}

/* An eventfd that is full blocks whoever writes to it: the worker, and nobody else. */
static void test_a_call_fd_that_blocks_stops_only_its_own_worker(void **state)
{
	int fd = eventfd(0, EFD_CLOEXEC);
	struct guest guest;

	(void)state;
	assert_int_equal(eventfd_write(fd, UINT64_MAX - 1), 0);
	start_guest(&guest, NULL, 0);
	guest.vhost.timeout = 100;
	vhost_set_ring_fd(&guest.vhost, VHOST_SET_VRING_CALL, GUEST_RX, fd);
	rig_check_neighbour(&rig, 200, "full eventfd");
	guest_end(&guest);
	rig_check_service(&rig, "full eventfd");
	rig_check_service(&rig, "full eventfd, after the worker that it stopped was ended");
	rig_check(&rig, "full eventfd");
	close(fd);
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_no_size_and_no_number_of_fds_of_any_message_does_harm),
		WITH_RIG(test_headers_that_lie_end_the_session_at_once),
		WITH_RIG(test_half_a_message_keeps_nobody_waiting),
		WITH_RIG(test_answers_that_nobody_reads_stop_only_the_session),
		WITH_RIG(test_a_silent_session_costs_nothing),
		WITH_RIG(test_a_second_session_waits_for_the_end_of_the_first),
		WITH_RIG(test_a_storm_of_sessions_takes_nothing_from_the_neighbour),
		WITH_RIG(test_every_kind_of_fd_is_refused_where_it_does_not_belong),
		WITH_RIG(test_thousands_of_fds_leave_none_behind),
		WITH_RIG(test_memory_tables_come_and_go_without_end),
		WITH_RIG(test_a_truncated_memory_file_ends_only_its_own_worker),
		WITH_RIG(test_memory_that_goes_while_rings_run_breaks_only_them),
		WITH_RIG(test_a_call_fd_that_blocks_stops_only_its_own_worker),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
