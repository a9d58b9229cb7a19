/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The host gives a process of vsockd no more files or no more memory, or takes its
 * directory away: what is new is refused in words, what runs goes on, and when there is
 * enough again all is as before. Which call fails in which process is the matter of
 * tests/faults.
 */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/tool.h"
#include "tests/integration/transfer.h"

#define KIB	  1024u
#define OUT_PORT  1000u
#define IN_PORT	  1001u
#define LONG_PORT 1002u

struct squeeze {
	pid_t pid;
	int resource;
	struct rlimit before;
};

/* Not a byte, not a file more than it has: limits are looked at when something is added. */
static void squeeze(struct squeeze *squeeze, pid_t pid, int resource)
{
	struct rlimit none;

	*squeeze = (struct squeeze){.pid = pid, .resource = resource};
	if (prlimit(pid, (__rlimit_resource_t)resource, NULL, &squeeze->before) < 0) {
		print_message("skipped: limits of other processes: %s\n", strerror(errno));
		skip();
	}
	none = squeeze->before;
	none.rlim_cur = 1;
	assert_int_equal(prlimit(pid, (__rlimit_resource_t)resource, &none, NULL), 0);
}

static void relax(const struct squeeze *squeeze)
{
	assert_int_equal(prlimit(squeeze->pid, (__rlimit_resource_t)squeeze->resource,
				 &squeeze->before, NULL),
			 0);
}

static pid_t front_of(const struct setup *setup)
{
	pid_t pids[DAEMON_PIDS_MAX];

	assert_true(daemon_pids(&setup->daemon, pids) >= 2);
	return pids[1];
}

/* A guest with a stream that is half way, and its listener. */
static struct guest *start_stream(struct setup *setup, struct transfer *transfer)
{
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	assert_int_equal(guest_listen(guest, IN_PORT), 0);
	transfer_start(transfer, setup, 0, LONG_PORT, 400 * KIB);
	transfer_run_to(transfer, 100 * KIB);
	return guest;
}

/* The guest asks the host, where somebody listens, and is refused. */
static void assert_guest_is_refused(struct setup *setup, struct guest *guest)
{
	int listener = host_listen(setup->uds_paths[0], OUT_PORT);
	struct guest_connection *connection = guest_connect(guest, PACKET_HOST_CID, OUT_PORT);
	char path[128];

	assert_true(listener >= 0);
	assert_int_equal(guest_wait_state(connection, GUEST_CLOSED, SETUP_LIMIT), 0);
	assert_int_equal(connection->error, ECONNRESET);
	guest_forget(connection);
	close(listener);
	snprintf(path, sizeof(path), "%s_%u", setup->uds_paths[0], OUT_PORT);
	assert_int_equal(unlink(path), 0);
}

/* Both ways, from the first packet to the last. */
static void assert_all_works(struct setup *setup, struct guest *guest)
{
	int fd = host_connect(setup->uds_paths[0], IN_PORT, SETUP_LIMIT);
	struct guest_connection *connection;

	assert_true(fd >= 0);
	connection = guest_accept_wait(guest, IN_PORT, SETUP_LIMIT);
	assert_non_null(connection);
	close(fd);
	assert_int_equal(guest_finish(connection, SETUP_LIMIT), 0);
	transfer_all(setup, 0, OUT_PORT, 50 * KIB);
}

static void test_a_front_without_files_refuses_and_goes_on(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	struct guest *guest = start_stream(setup, &transfer);
	struct guest_connection *waiting;
	struct squeeze files;
	int caller;

	squeeze(&files, front_of(setup), RLIMIT_NOFILE);
	assert_guest_is_refused(setup, guest);
	caller = host_connect(setup->uds_paths[0], IN_PORT, SETUP_LIMIT);
	assert_true(caller >= 0);
	assert_int_equal(
		daemon_wait_log(&setup->daemon, "cannot accept: Too many open files", SETUP_LIMIT),
		0);
	transfer_run_to(&transfer, 200 * KIB);

	/* Who came meanwhile has waited, and is served. */
	relax(&files);
	waiting = guest_accept_wait(guest, IN_PORT, SETUP_LIMIT);
	assert_non_null(waiting);
	close(caller);
	assert_int_equal(guest_finish(waiting, SETUP_LIMIT), 0);
	assert_all_works(setup, guest);
	transfer_finish(&transfer);
}

static void test_a_spawner_without_files_refuses_and_goes_on(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	struct guest *guest = start_stream(setup, &transfer);
	struct squeeze files;

	squeeze(&files, setup->daemon.pid, RLIMIT_NOFILE);
	assert_guest_is_refused(setup, guest);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), SETUP_LIMIT), 0);
	transfer_expect_loss(&transfer, SETUP_LIMIT);
	/* The spare serves; that there is none behind it is said. */
	assert_int_equal(daemon_wait_log(&setup->daemon,
					 "cannot start a worker: Too many open files", SETUP_LIMIT),
			 0);
	relax(&files);
	assert_all_works(setup, guest);
}

static void test_a_spawner_without_memory_starts_no_worker_and_goes_on(void **state)
{
	struct setup *setup = *state;
	struct transfer transfer;
	struct guest *guest = start_stream(setup, &transfer);
	struct squeeze memory;

#if defined(__SANITIZE_ADDRESS__)
	transfer_finish(&transfer);
	print_message("skipped: no sanitizer works without memory\n");
	skip();
#endif
	squeeze(&memory, setup->daemon.pid, RLIMIT_AS);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), SETUP_LIMIT), 0);
	transfer_expect_loss(&transfer, SETUP_LIMIT);
	assert_int_equal(daemon_wait_log(&setup->daemon, "worker 3 ended", SETUP_LIMIT), 0);
	transfer_all(setup, 0, OUT_PORT, 50 * KIB);
	relax(&memory);
	assert_all_works(setup, guest);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), SETUP_LIMIT), 0);
	assert_all_works(setup, guest);
}

static void test_a_directory_that_is_removed_takes_nothing_that_runs(void **state)
{
	struct daemon daemon = {.pidfd = -1};
	struct guest_options options = {.timeout = SETUP_LIMIT};
	struct guest_connection *connection;
	struct guest guest;
	char socket[128], listener_path[160], uds_path[128], bytes[64];
	int listener, fd;

	(void)state;
	assert_int_equal(daemon_prepare(&daemon), 0);
	assert_int_equal(mkdir(daemon_path(&daemon, "gone"), 0700), 0);
	snprintf(socket, sizeof(socket), "%s/gone/vm", daemon.directory);
	snprintf(uds_path, sizeof(uds_path), "%s/gone/host", daemon.directory);
	snprintf(listener_path, sizeof(listener_path), "%s_%u", uds_path, OUT_PORT);
	assert_int_equal(daemon_start(&daemon,
				      (const char *const[]){
					      "", "--vm",
					      "guest-cid=3,socket=@/gone/vm,uds-path=@/gone/host",
					      "--worker", getenv("VSOCKD_WORKER"), NULL},
				      "gone/vm", SETUP_LIMIT),
			 0);
	options.socket = socket;
	assert_int_equal(guest_start(&guest, &options), 0);
	listener = host_listen(uds_path, OUT_PORT);
	connection = guest_connect_wait(&guest, PACKET_HOST_CID, OUT_PORT, SETUP_LIMIT);
	assert_non_null(connection);
	fd = host_accept(listener, SETUP_LIMIT);

	assert_int_equal(unlink(listener_path), 0);
	snprintf(listener_path, sizeof(listener_path), "%s_seqpacket", uds_path);
	assert_int_equal(unlink(listener_path), 0);
	assert_int_equal(unlink(socket), 0);
	assert_int_equal(unlink(uds_path), 0);
	assert_int_equal(rmdir(daemon_path(&daemon, "gone")), 0);
	assert_int_equal(guest_send_all(connection, "still here", 10, SETUP_LIMIT), 0);
	assert_int_equal(host_read(fd, bytes, 10, SETUP_LIMIT), 0);
	assert_memory_equal(bytes, "still here", 10);
	assert_null(guest_connect_wait(&guest, PACKET_HOST_CID, OUT_PORT, SETUP_LIMIT));
	assert_string_equal(guest_violations(&guest), "");
	guest_end(&guest);
	close(listener);
	close(fd);
	assert_int_equal(daemon_stop(&daemon, SETUP_LIMIT), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_a_front_without_files_refuses_and_goes_on,
						setup_start_one, setup_end),
		cmocka_unit_test_setup_teardown(test_a_spawner_without_files_refuses_and_goes_on,
						setup_start_one, setup_end),
		cmocka_unit_test_setup_teardown(
			test_a_spawner_without_memory_starts_no_worker_and_goes_on, setup_start_one,
			setup_end),
		cmocka_unit_test(test_a_directory_that_is_removed_takes_nothing_that_runs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
