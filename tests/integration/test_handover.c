/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A worker that is replaced on request, through the built programs: whatever the
 * guest and its programs are in the middle of goes on, and every byte arrives once
 * and in order. With SETUP_REPLACES the other tests say so, too. What lies and
 * what dies in between is in hostile/test_evil_handover.c.
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
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/replacer.h"
#include "tests/integration/setup.h"
#include "tests/integration/tool.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define LIMIT SETUP_LIMIT

static int start(void **state, size_t n_vms)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, n_vms, NULL, TOOL_ARGUMENTS);
	return 0;
}

static int start_one(void **state)
{
	return start(state, 1);
}

static int start_two(void **state)
{
	return start(state, 2);
}

static int end(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "worker lost"));
	assert_false(daemon_log_has(&setup->daemon, "not believed"));
	return setup_end(state);
}

static void replace(struct setup *setup, size_t vm)
{
	if (replace_worker(setup, &setup->guests[vm], setup_cid(vm)) != 0)
		fail_msg("%s", replacer_failure);
}

static void replace_often(struct setup *setup, size_t vm)
{
	for (int i = 0; i < 3; i++)
		replace(setup, vm);
}

/* The one before may take a moment to be gone. */
static void wait_other_worker(struct setup *setup, size_t vm, pid_t before)
{
	int64_t deadline = deadline_in(LIMIT);

	while (setup_worker(setup, vm) == before) {
		if (deadline_left(deadline) == 0)
			fail_msg("the worker of VM %zu is still the same", vm);
		assert_int_equal(guest_poll_for(&setup->guests[vm], 2), 0);
	}
}

/* A host program that asks for a port of the guest. */
static void ask_guest(struct setup *setup, uint32_t port, struct host_stream *ret_stream)
{
	int fd = host_connect(setup->uds_paths[0], port, LIMIT);

	assert_true(fd >= 0);
	host_stream_init(ret_stream, fd);
	guest_watch(&setup->guests[0], &ret_stream->watch);
}

static void wait_answer(struct guest *guest, struct host_stream *stream)
{
	int64_t deadline = deadline_in(LIMIT);
	uint32_t port;

	while (host_stream_take_ok(stream, &port) == 0) {
		if (deadline_left(deadline) == 0)
			fail_msg("no answer to CONNECT");
		assert_true(guest_poll(guest, deadline_left(deadline)) >= 0);
	}
}

static bool has_ended(void *context)
{
	const struct host_stream *stream = context;

	return stream->is_ended || stream->error;
}

/* A thousand connections and more, most of them idle. */
static void test_a_large_table_goes_along(void **state)
{
	enum { N = 1000 };
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection **connections = calloc(N, sizeof(*connections));
	int *fds = calloc(N, sizeof(*fds));
	int listener = host_listen(setup->uds_paths[0], 2000);

	assert_true(listener >= 0 && connections && fds);
	for (uint32_t i = 0; i < N; i++) {
		connections[i] = guest_connect_wait(guest, PACKET_HOST_CID, 2000, LIMIT);
		assert_non_null(connections[i]);
		fds[i] = host_accept(listener, LIMIT);
		assert_true(fds[i] >= 0);
	}
	replace_often(setup, 0);
	for (uint32_t i = 0; i < N; i++) {
		char bytes[8] = {0};

		assert_int_equal(guest_send_all(connections[i], &i, sizeof(i), LIMIT), 0);
		assert_int_equal(host_read(fds[i], bytes, sizeof(i), LIMIT), 0);
		assert_memory_equal(bytes, &i, sizeof(i));
		assert_int_equal(host_write(fds[i], &i, sizeof(i), LIMIT), 0);
		assert_int_equal(guest_receive_all(connections[i], bytes, sizeof(i), LIMIT),
				 sizeof(i));
		assert_memory_equal(bytes, &i, sizeof(i));
		assert_int_equal(guest_abort(connections[i]), 0);
		guest_forget(connections[i]);
		close(fds[i]);
	}
	close(listener);
	free(connections);
	free(fds);
}

/* ---- connections of every kind ---- */

static void test_a_handshake_goes_on_where_it_was(void **state)
{
	static const char line[] = "CONNECT 77\nearly";
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	int fd = socket_connect(setup->uds_paths[0], SOCK_STREAM, LIMIT);
	struct guest_connection *connection;
	struct host_stream stream;
	char bytes[8] = {0};

	assert_true(fd >= 0);
	assert_int_equal(guest_listen(guest, 77), 0);
	for (size_t i = 0; i < sizeof(line) - 1; i += 5) {
		size_t n = sizeof(line) - 1 - i < 5 ? sizeof(line) - 1 - i : 5;

		assert_int_equal(host_write(fd, line + i, n, LIMIT), 0);
		replace(setup, 0);
	}
	host_stream_init(&stream, fd);
	guest_watch(guest, &stream.watch);
	wait_answer(guest, &stream);
	connection = guest_accept(guest, 77);
	assert_non_null(connection);
	assert_int_equal(guest_receive_all(connection, bytes, 5, LIMIT), 5);
	assert_memory_equal(bytes, "early", 5);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static bool keep_request(void *context, const struct packet *packet, const struct iovec *payload,
			 size_t n_payload)
{
	(void)payload;
	(void)n_payload;
	if (packet->op != PACKET_REQUEST)
		return false;
	*(struct packet *)context = *packet;
	return true;
}

static bool has_request(void *context)
{
	return ((struct packet *)context)->op == PACKET_REQUEST;
}

static void test_a_guest_may_answer_another_worker_than_asked_it(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct packet request = {0}, answer;
	struct host_stream stream;
	uint32_t port;

	guest->on_packet = keep_request;
	guest->on_packet_context = &request;
	ask_guest(setup, 77, &stream);
	assert_int_equal(guest_wait_until(guest, has_request, &request, LIMIT), 0);
	replace_often(setup, 0);
	answer = (struct packet){
		.src_cid = request.dst_cid,
		.dst_cid = request.src_cid,
		.src_port = request.dst_port,
		.dst_port = request.src_port,
		.type = PACKET_STREAM,
		.op = PACKET_RST,
	};
	assert_int_equal(guest_send_packet(guest, &answer, NULL, 0, NULL), 0);
	assert_int_equal(guest_wait_until(guest, has_ended, &stream, LIMIT), 0);
	assert_int_equal(host_stream_take_ok(&stream, &port), -ECONNRESET);
	setup_end_stream(setup, 0, &stream);
	guest->on_packet = NULL;
}

/* A host program whose backlog is full: what asks for it waits, at the front. */
static void test_a_connect_that_waits_at_the_front_is_answered(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	int listener, waiting, fd;
	char path[128];

	snprintf(path, sizeof(path), "%s_1000", setup->uds_paths[0]);
	listener = socket_listen(path, SOCK_STREAM);
	assert_int_equal(listen(listener, 0), 0);
	waiting = socket_connect(path, SOCK_STREAM, LIMIT);
	connection = guest_connect(guest, PACKET_HOST_CID, 1000);
	assert_int_equal(guest_poll_for(guest, 50), 0);
	assert_int_equal(connection->state, GUEST_CONNECTING);
	replace(setup, 0);
	close(host_accept(listener, LIMIT));
	assert_int_equal(guest_wait_state(connection, GUEST_ESTABLISHED, LIMIT), 0);
	replace(setup, 0);
	fd = host_accept(listener, LIMIT);
	assert_int_equal(guest_send_all(connection, "x", 1, LIMIT), 0);
	assert_int_equal(host_wait_end(fd, LIMIT), -EPROTO);
	close(fd);
	close(waiting);
	close(listener);
	unlink(path);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
}

static bool is_peer_shut(void *context)
{
	return ((struct guest_connection *)context)->peer_shutdown != 0;
}

static void test_half_of_a_stream_stays_open(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	struct host_stream stream;
	char bytes[8];

	/* The host program has said its last word. */
	connection = setup_connect(setup, 0, 2000, &stream);
	host_stream_send(&stream, "last", 4, true);
	assert_int_equal(guest_receive_all(connection, bytes, 4, LIMIT), 4);
	assert_int_equal(guest_wait_until(guest, is_peer_shut, connection, LIMIT), 0);
	replace(setup, 0);
	assert_int_equal(guest_send_all(connection, "answer", 6, LIMIT), 0);
	assert_int_equal(guest_shutdown(connection, PACKET_SHUTDOWN_SEND), 0);
	replace(setup, 0);
	assert_int_equal(guest_wait_until(guest, has_ended, &stream, LIMIT), 0);
	assert_int_equal(stream.n_received, 6);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	guest_forget(connection);
	setup_end_stream(setup, 0, &stream);
}

/* The guest has left; its bytes have not arrived yet. */
static void test_what_a_guest_left_behind_is_delivered(void **state)
{
	static uint8_t bytes[400 * KIB];
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	struct host_stream stream;
	bool has_slept = false;
	size_t n = 0;
	ssize_t sent;

	connection = setup_connect(setup, 0, 2000, &stream);
	host_stream_pause(&stream, true);
	pattern_fill(bytes, sizeof(bytes), 7, 0);
	/* Until vsockd takes no more: it sleeps, and still there is no room. */
	do {
		sent = guest_send(connection, bytes + n, sizeof(bytes) - n);
		n += sent > 0 ? (size_t)sent : 0;
		if (sent <= 0 && has_slept)
			break;
		has_slept = daemon_is_asleep(&setup->daemon);
		assert_true(guest_poll(guest, 1) >= 0);
	} while (n < sizeof(bytes));
	assert_true(n > 200 * KIB);
	replace(setup, 0);
	assert_int_equal(guest_close(connection), 0);
	replace_often(setup, 0);
	host_stream_pause(&stream, false);
	assert_int_equal(guest_wait_until(guest, has_ended, &stream, LIMIT), 0);
	assert_int_equal(stream.n_received, n);
	assert_true(pattern_is(stream.received, n, 7, 0));
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, LIMIT), 0);
	guest_forget(connection);
	setup_end_stream(setup, 0, &stream);
}

/* ---- the device ---- */

static void test_a_stopped_guest_goes_on_with_another_worker(void **state)
{
	struct setup *setup = *state;

	for (int style = GUEST_LIKE_QEMU; style <= GUEST_LIKE_CLOUD_HYPERVISOR; style++) {
		struct guest *guest = setup_guest(
			setup, 0, (struct guest_options){.style = (enum guest_style)style});
		struct transfer transfer;

		transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
		transfer_run_to(&transfer, 100 * KIB);
		assert_int_equal(guest_stop(guest), 0);
		replace_often(setup, 0);
		assert_int_equal(guest_resume(guest), 0);
		transfer_run_to(&transfer, 300 * KIB);
		assert_int_equal(guest_enable(guest, false), 0);
		replace(setup, 0);
		assert_int_equal(guest_enable(guest, true), 0);
		transfer_finish(&transfer);
		setup_end_guest(setup, 0);
	}
}

static void test_a_guest_without_a_driver_yet_has_its_worker_replaced(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	assert_int_equal(guest_reset(guest), 0);
	replace_often(setup, 0);
	assert_int_equal(guest_resume(guest), 0);
	transfer_all(setup, 0, 1000, 100 * KIB);
}

static void test_messages_that_come_meanwhile_are_answered_behind_it(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct replacer replacer;
	struct transfer transfer;
	uint32_t n = 0;

	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	replacer_start(&replacer, setup, guest, setup_cid(0), 20);
	while (!replacer_is_done(&replacer)) {
		uint64_t features;

		transfer_step(&transfer, 1);
		assert_int_equal(vhost_get_u64(&guest->vhost, VHOST_GET_FEATURES, &features), 0);
		if (n++ % 8 == 0) {
			assert_int_equal(guest_stop(guest), 0);
			assert_int_equal(guest_resume(guest), 0);
		}
	}
	replacer_end(&replacer, guest);
	assert_int_equal(replacer.n_good, 20);
	transfer_finish(&transfer);
}

static void test_a_front_end_that_leaves_meanwhile_is_followed_by_the_next(void **state)
{
	struct setup *setup = *state;

	for (int i = 0; i < 30; i++) {
		struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
		struct replacer replacer;
		int64_t deadline = deadline_in(LIMIT);

		replacer_start(&replacer, setup, guest, setup_cid(0), 1);
		/* At any moment of it. */
		assert_int_equal(guest_poll_for(guest, i), 0);
		guest_unwatch(guest, &replacer.watch);
		setup_end_guest(setup, 0);
		while (replacer.is_asking) {
			assert_int_equal(socket_wait(replacer.watch.fd, POLLIN, deadline), 0);
			replacer.watch.ready(&replacer.watch, POLLIN);
		}
		close(replacer.watch.fd);
	}
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_all(setup, 0, 1000, 100 * KIB);
}

/* ---- the operator ---- */

static struct tool tool;

static int run_tool(struct setup *setup, const char *what)
{
	return tool_run(&tool, setup, (const char *const[]){"replace", what, NULL});
}

static void test_all_workers_are_replaced_at_one_command(void **state)
{
	struct setup *setup = *state;
	pid_t before[2];

	for (size_t i = 0; i < 2; i++) {
		setup_guest(setup, i, (struct guest_options){0});
		before[i] = setup_worker(setup, i);
	}
	assert_int_equal(run_tool(setup, "all"), 0);
	assert_string_equal(tool.text, "");
	for (size_t i = 0; i < 2; i++) {
		wait_other_worker(setup, i, before[i]);
		before[i] = setup_worker(setup, i);
	}
	assert_int_equal(run_tool(setup, "4"), 0);
	assert_int_equal(setup_worker(setup, 0), before[0]);
	wait_other_worker(setup, 1, before[1]);
	setup_end_guest(setup, 0);
	/* One that has none is no failure of all. */
	assert_int_equal(run_tool(setup, "all"), 0);
}

static void expect_complaint(struct setup *setup, const char *what, int code, const char *text)
{
	assert_int_equal(run_tool(setup, what), code);
	if (!strstr(tool.complaint, text))
		fail_msg("\"%s\" is not in: %s", text, tool.complaint);
}

static void test_what_cannot_be_replaced_is_said(void **state)
{
	struct setup *setup = *state;

	expect_complaint(setup, "3", 69, "no VMM is connected");
	expect_complaint(setup, "17", 65, "there is no VM with CID 17");
	expect_complaint(setup, "0", 65, "all");
	expect_complaint(setup, "everything", 64, "not a decimal number");
}

/* ---- another program ---- */

static char copy_directory[] = "/tmp/vsockd-test-XXXXXX";
static char copy[sizeof(copy_directory) + 16];

static void install(const char *from, const char *to)
{
	char fresh[160];
	struct stat stat;
	int source = open(from, O_RDONLY | O_CLOEXEC), target;

	snprintf(fresh, sizeof(fresh), "%s.new", to);
	target = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	assert_true(source >= 0 && target >= 0);
	assert_int_equal(fstat(source, &stat), 0);
	assert_int_equal(sendfile(target, source, NULL, (size_t)stat.st_size), stat.st_size);
	assert_int_equal(fchmod(target, 0755), 0);
	close(source);
	close(target);
	assert_int_equal(rename(fresh, to), 0);
}

/* The file that a process runs; 0 where this user may not look. */
static ino_t program_of(pid_t pid)
{
	char path[64];
	struct stat program;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	return stat(path, &program) == 0 ? program.st_ino : 0;
}

static void test_an_upgrade_takes_effect(void **state)
{
	struct setup *setup = *state;
	pid_t workers[DAEMON_PIDS_MAX], before;
	struct stat first, second;
	struct transfer transfer;
	int64_t deadline = deadline_in(LIMIT);
	int fd;

	if (geteuid() != 0) {
		print_message("skipped: only root may see what a confined process runs\n");
		skip();
	}
	setup_guest(setup, 0, (struct guest_options){0});
	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 100 * KIB);
	assert_int_equal(stat(copy, &first), 0);
	assert_int_equal(program_of(setup_worker(setup, 0)), first.st_ino);
	fd = open(copy, O_PATH | O_CLOEXEC); /* so that its number is not given again */
	install(copy, copy);
	assert_int_equal(stat(copy, &second), 0);
	before = setup_worker(setup, 0);
	assert_int_equal(program_of(before), first.st_ino);
	replace(setup, 0);
	wait_other_worker(setup, 0, before);
	assert_int_equal(program_of(setup_worker(setup, 0)), second.st_ino);
	transfer_run_to(&transfer, 300 * KIB);
	/* And the spare after it. */
	while (daemon_find(&setup->daemon, "vsockd-worker", workers) != 2 ||
	       program_of(workers[0]) != second.st_ino || program_of(workers[1]) != second.st_ino) {
		if (deadline_left(deadline) == 0)
			fail_msg("the spare is an old one");
		assert_int_equal(guest_poll_for(&setup->guests[0], 5), 0);
	}

	/* One that can't be run: what was there at the start can. */
	assert_int_equal(unlink(copy), 0);
	before = setup_worker(setup, 0);
	replace(setup, 0);
	wait_other_worker(setup, 0, before);
	assert_int_equal(
		daemon_wait_log(&setup->daemon, "the program that vsockd found there", LIMIT), 0);
	assert_int_equal(program_of(setup_worker(setup, 0)), first.st_ino);
	transfer_finish(&transfer);
	close(fd);
}

/* vsockd with a worker that the test may replace by another one. */
static int start_with_copy(void **state)
{
	const char *built = getenv("VSOCKD_WORKER");

	assert_non_null(built);
	assert_non_null(mkdtemp(copy_directory));
	assert_int_equal(chmod(copy_directory, 0755), 0);
	snprintf(copy, sizeof(copy), "%s/vsockd-worker", copy_directory);
	install(built, copy);
	setenv("VSOCKD_WORKER", copy, 1);
	start(state, 1);
	setenv("VSOCKD_WORKER", built, 1);
	return 0;
}

static int end_with_copy(void **state)
{
	unlink(copy);
	rmdir(copy_directory);
	return end(state);
}

#define ONE(name) cmocka_unit_test_setup_teardown(name, start_one, end)
#define TWO(name) cmocka_unit_test_setup_teardown(name, start_two, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ONE(test_a_large_table_goes_along),
		ONE(test_a_handshake_goes_on_where_it_was),
		ONE(test_a_guest_may_answer_another_worker_than_asked_it),
		ONE(test_a_connect_that_waits_at_the_front_is_answered),
		ONE(test_half_of_a_stream_stays_open),
		ONE(test_what_a_guest_left_behind_is_delivered),
		ONE(test_a_stopped_guest_goes_on_with_another_worker),
		ONE(test_a_guest_without_a_driver_yet_has_its_worker_replaced),
		ONE(test_messages_that_come_meanwhile_are_answered_behind_it),
		ONE(test_a_front_end_that_leaves_meanwhile_is_followed_by_the_next),
		TWO(test_all_workers_are_replaced_at_one_command),
		ONE(test_what_cannot_be_replaced_is_said),
		cmocka_unit_test_setup_teardown(test_an_upgrade_takes_effect, start_with_copy,
						end_with_copy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
