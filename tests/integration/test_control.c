/* SPDX-License-Identifier: Apache-2.0 */

/* What an operator sees and does with vsockctl. */

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"
#include "tests/integration/tool.h"

#define LIMIT SETUP_LIMIT

/* sysexits.h */
enum { USAGE = 64, DATAERR = 65, UNAVAILABLE = 69, NOPERM = 77 };

static struct tool tool;

static int start_one(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 1, NULL, TOOL_ARGUMENTS);
	return 0;
}

static int start_two(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 2, NULL, TOOL_ARGUMENTS);
	return 0;
}

static int run(struct setup *setup, const char *first, const char *second)
{
	return tool_run(&tool, setup, (const char *const[]){first, second, NULL});
}

static void expect_text(const char *text)
{
	if (!strstr(tool.text, text))
		fail_msg("\"%s\" is not in: %s%s", text, tool.text, tool.complaint);
}

static void expect_complaint(const char *text)
{
	if (!strstr(tool.complaint, text))
		fail_msg("\"%s\" is not in: %s", text, tool.complaint);
	/* One line, always. */
	assert_ptr_equal(strchr(tool.complaint, '\n'), tool.complaint + strlen(tool.complaint) - 1);
}

/* Any command, beside the one that runs: vsockd has heard of what was before. */
static int run_other(struct setup *setup)
{
	static struct tool other;

	return tool_run(&other, setup, (const char *const[]){"status", NULL});
}

/* ---- status ---- */

static void test_status_has_a_line_for_each_vm(void **state)
{
	struct setup *setup = *state;
	char worker[32];

	setup_guest(setup, 1, (struct guest_options){0});
	assert_int_equal(run(setup, "status", NULL), 0);
	expect_text("CID  STATE");
	expect_text("\n  3  waiting");
	expect_text("\n  4  running");
	snprintf(worker, sizeof(worker), "%d", setup_worker(setup, 1));
	expect_text(worker);
	expect_text("event-idx");
}

static void test_status_counts_connections_and_lost_workers(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection;
	struct host_stream stream;

	setup_guest(setup, 0, (struct guest_options){0});
	connection = setup_connect(setup, 0, 2000, &stream);
	assert_int_equal(run(setup, "--json", "status"), 0);
	expect_text("\"cid\": 3, \"state\": \"running\"");
	expect_text("\"workers_lost\": 0, \"connections\": 1, \"max_connections\": 4096");
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	/* The worker answers behind its word of that end, and the guest needs to wait for neither.
	 */
	assert_int_equal(run(setup, "connections", NULL), 0);

	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, "worker lost", LIMIT), 0);
	setup_worker(setup, 0);
	assert_int_equal(run(setup, "--json", "status"), 0);
	expect_text("\"workers_lost\": 1, \"connections\": 0");
}

static void test_status_tells_a_stopped_guest_from_a_running_one(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});

	assert_int_equal(guest_stop(guest), 0);
	assert_int_equal(run(setup, "status", NULL), 0);
	expect_text("\n  3  stopped");
	assert_int_equal(guest_resume(guest), 0);
	assert_int_equal(run(setup, "status", NULL), 0);
	expect_text("\n  3  running");
}

/* ---- show ---- */

static void test_show_has_the_rings_the_memory_and_the_features_by_name(void **state)
{
	struct setup *setup = *state;

	/* Like crosvm it waits for no answers; this one comes behind all the others. */
	assert_int_equal(guest_read_cid(setup_guest(
				 setup, 0, (struct guest_options){.style = GUEST_LIKE_CROSVM})),
			 0);
	assert_int_equal(run(setup, "show", "3"), 0);
	expect_text("indirect,event-idx,");
	expect_text("reply-ack");
	expect_text("\nrx     running   128");
	expect_text("\nevent  running   128");
	expect_text("64.0M");

	assert_int_equal(tool_run(&tool, setup, (const char *const[]){"--json", "show", "3", NULL}),
			 0);
	expect_text("{\"vm\": {\"cid\": 3, \"state\": \"running\"");
	expect_text("\"max_handshakes\": 512, \"buffer_size\": 262144");
	expect_text("{\"ring\": \"tx\", \"state\": \"running\", \"size\": 128");
	expect_text("{\"guest_address\": \"0x100000\", \"size\": 67108864");
}

static void test_show_of_a_vm_without_a_session_is_short(void **state)
{
	struct setup *setup = *state;

	assert_int_equal(run(setup, "show", "3"), 0);
	expect_text("waiting");
	assert_null(strstr(tool.text, "RING"));
	assert_int_equal(tool_run(&tool, setup, (const char *const[]){"--json", "show", "3", NULL}),
			 0);
	expect_text("\"rings\": [\n]");
}

static void test_a_vm_that_does_not_exist_is_told_so(void **state)
{
	assert_int_equal(run(*state, "show", "77"), DATAERR);
	expect_complaint("there is no VM with CID 77");
	assert_int_equal(run(*state, "show", "x"), USAGE);
	expect_complaint("CID \"x\": not a decimal number");
	assert_int_equal(run(*state, "show", "4294967296"), DATAERR);
	expect_complaint("too large");
}

/* ---- connections, kill ---- */

static void test_connections_are_listed_with_what_they_carried(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection;
	struct host_stream stream;
	char own[32];

	setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(run(setup, "--json", "connections"), 0);
	assert_string_equal(tool.text, "[\n]\n");
	connection = setup_connect(setup, 0, 2000, &stream);
	assert_int_equal(guest_send_all(connection, "hello", 5, LIMIT), 0);
	while (stream.n_received < 5)
		assert_true(guest_poll(&setup->guests[0], LIMIT) > 0);
	assert_int_equal(host_write(stream.watch.fd, "answer", 6, LIMIT), 0);
	while (connection->n_received < 6)
		assert_true(guest_poll(&setup->guests[0], LIMIT) > 0);

	assert_int_equal(run(setup, "--json", "connections"), 0);
	expect_text("\"cid\": 3, \"from\": \"guest\", \"peer\": 2");
	expect_text("\"peer_port\": 2000, \"type\": \"stream\", \"state\": \"open\", "
		    "\"to_guest\": 6, \"from_guest\": 5");
	/* Who listens there is this test. */
	snprintf(own, sizeof(own), "\"peer_pid\": %d", getpid());
	expect_text(own);
	expect_text("\"peer_program\": \"test_control\"");
	assert_int_equal(run(setup, "connections", "3"), 0);
	expect_text("GUEST PORT");
	assert_int_equal(run(setup, "connections", "9"), DATAERR);

	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

#define MANY 100

/* More than a worker tells at a time. */
static void test_all_of_many_connections_are_listed(void **state)
{
	struct setup *setup = *state;
	int fds[MANY];
	size_t n = 0;

	setup_guest(setup, 0, (struct guest_options){0});
	for (size_t i = 0; i < MANY; i++) {
		fds[i] = socket_connect(setup->uds_paths[0], SOCK_STREAM, LIMIT);
		assert_true(fds[i] >= 0);
	}
	/* Handed over one after the other, so the last answers for all. */
	do {
		assert_int_equal(run(setup, "connections", NULL), 0);
		n = 0;
		for (const char *at = tool.text; (at = strstr(at, "handshake")); at++)
			n++;
	} while (n < MANY);
	assert_int_equal(n, MANY);
	for (size_t i = 0; i < MANY; i++)
		close(fds[i]);
}

static void test_a_connection_is_ended_by_its_id_and_no_other(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connections[2];
	struct host_stream streams[2];
	char id[32], port[32], *line;

	setup_guest(setup, 0, (struct guest_options){0});
	for (uint32_t i = 0; i < 2; i++)
		connections[i] = setup_connect(setup, 0, 2000 + i, &streams[i]);
	assert_int_equal(run(setup, "connections", NULL), 0);
	line = strstr(tool.text, "\n3:");
	assert_non_null(line);
	snprintf(port, sizeof(port), " %u ", connections[1]->port);
	if (!strstr(line, port) || strstr(line, port) > strchr(line + 1, '\n'))
		line = strstr(line + 1, "\n3:");
	assert_int_equal(sscanf(line, "\n%31s", id), 1);

	tool_start(&tool, daemon_path(&setup->daemon, TOOL_CONTROL),
		   (const char *const[]){"kill", id, NULL});
	assert_int_equal(guest_wait_state(connections[1], GUEST_CLOSED, LIMIT), 0);
	assert_int_equal(tool_end(&tool), 0);
	assert_int_equal(connections[1]->error, ECONNRESET);
	while (!streams[1].is_ended)
		assert_true(guest_poll(&setup->guests[0], LIMIT) > 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, "control: process ", LIMIT), 0);
	/* That id is no other one's. */
	assert_int_equal(run(setup, "kill", id), DATAERR);
	expect_complaint("has no connection");
	assert_int_equal(run(setup, "kill", "3"), USAGE);
	assert_int_equal(guest_send_all(connections[0], "on", 2, LIMIT), 0);
	guest_forget(connections[1]);
	assert_int_equal(guest_finish(connections[0], LIMIT), 0);
	setup_end_stream(setup, 0, &streams[0]);
	setup_end_stream(setup, 0, &streams[1]);
}

/* ---- connect, listen ---- */

static void start(struct setup *setup, const char *const *arguments)
{
	tool_start(&tool, daemon_path(&setup->daemon, TOOL_CONTROL), arguments);
}

static void wait_guest_bytes(struct guest_connection *connection, uint64_t n)
{
	while (connection->n_received < n)
		assert_true(guest_poll(connection->guest, LIMIT) > 0);
}

static void test_connect_is_a_stream_and_each_half_ends_by_itself(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;
	char own[48];

	assert_int_equal(guest_listen(guest, 22), 0);
	start(setup, (const char *const[]){"connect", "3", "22", NULL});
	connection = guest_accept_wait(guest, 22, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_send_all(connection, "welcome\n", 8, LIMIT), 0);
	tool_wait_text(&tool, "welcome\n");
	assert_int_equal(write(tool.input, "hello\n", 6), 6);
	wait_guest_bytes(connection, 6);
	close(tool.input);
	tool.input = -1;
	while (!(connection->peer_shutdown & PACKET_SHUTDOWN_SEND))
		assert_true(guest_poll(guest, LIMIT) > 0);
	/* The way back is still open. */
	assert_int_equal(guest_send_all(connection, "bye\n", 4, LIMIT), 0);
	tool_wait_text(&tool, "bye\n");
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	assert_int_equal(tool_end(&tool), 0);
	assert_string_equal(tool.text, "welcome\nbye\n");

	/* And it is listed as whose it is. */
	start(setup, (const char *const[]){"connect", "3", "22", NULL});
	connection = guest_accept_wait(guest, 22, LIMIT);
	snprintf(own, sizeof(own), "\"peer_pid\": %d", tool.pid);
	{
		static struct tool other;

		assert_int_equal(tool_run(&other, setup,
					  (const char *const[]){"--json", "connections", NULL}),
				 0);
		assert_non_null(strstr(other.text, own));
	}
	assert_int_equal(guest_shutdown(connection, PACKET_SHUTDOWN_SEND), 0);
	/* The guest's half alone does not end it either. */
	assert_int_equal(write(tool.input, "on", 2), 2);
	wait_guest_bytes(connection, 2);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	assert_int_equal(tool_end(&tool), 0);
}

static void test_connect_says_why_it_cannot(void **state)
{
	struct setup *setup = *state;
	const char *const arguments[] = {"connect", "3", "23", NULL};
	struct guest *guest;

	assert_int_equal(tool_run(&tool, setup, arguments), UNAVAILABLE);
	expect_complaint("VM 3: the guest has no driver for vsock (yet)");
	guest = setup_guest(setup, 0, (struct guest_options){0});
	start(setup, arguments);
	while (!daemon_log_has(&setup->daemon, "handshake failed"))
		assert_true(guest_poll(guest, 100) >= 0);
	assert_int_equal(tool_end(&tool), UNAVAILABLE);
	expect_complaint("VM 3 refused port 23");
	assert_int_equal(run(setup, "connect", "3"), USAGE);
	assert_int_equal(
		tool_run(&tool, setup, (const char *const[]){"connect", "3", "4294967296", NULL}),
		DATAERR);
}

static void test_connect_waits_while_the_guest_is_stopped(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connection;

	assert_int_equal(guest_listen(guest, 22), 0);
	assert_int_equal(guest_stop(guest), 0);
	start(setup, (const char *const[]){"connect", "3", "22", NULL});
	assert_int_equal(daemon_wait_log(&setup->daemon, ": connect", LIMIT), 0);
	assert_int_equal(run_other(setup), 0);
	assert_int_equal(guest_resume(guest), 0);
	connection = guest_accept_wait(guest, 22, LIMIT);
	assert_non_null(connection);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	assert_int_equal(tool_end(&tool), 0);
}

static void test_listen_runs_a_command_for_each_connection(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct guest_connection *connections[2];
	static struct tool second;
	char text[16] = "";

	start(setup, (const char *const[]){"listen", "3", "700", "--", "sh", "-c",
					   "read line; echo got $line", NULL});
	assert_int_equal(daemon_wait_log(&setup->daemon, ": listen", LIMIT), 0);
	assert_int_equal(
		tool_run(&second, setup, (const char *const[]){"listen", "3", "700", "true", NULL}),
		UNAVAILABLE);
	assert_non_null(strstr(second.complaint, "somebody else listens to port 700"));
	for (size_t i = 0; i < 2; i++) {
		connections[i] = guest_connect_wait(guest, PACKET_HOST_CID, 700, LIMIT);
		assert_non_null(connections[i]);
	}
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(guest_send_all(connections[i], i ? "b\n" : "a\n", 2, LIMIT), 0);
		assert_int_equal(guest_receive_all(connections[i], text, sizeof(text), LIMIT), 6);
		assert_memory_equal(text, i ? "got b\n" : "got a\n", 6);
		assert_int_equal(guest_finish(connections[i], LIMIT), 0);
	}
	/* Nobody listens any more once it has gone. */
	kill(tool.pid, SIGTERM);
	assert_int_equal(tool_end(&tool), 128 + SIGTERM);
	while (run_other(setup) != 0)
		;
	assert_null(guest_connect_wait(guest, PACKET_HOST_CID, 700, LIMIT));
}

/* ---- counters ---- */

static void test_metrics_count_what_went_through_over_the_lives_of_workers(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection;
	struct host_stream stream;

	setup_guest(setup, 1, (struct guest_options){0});
	connection = setup_connect(setup, 1, 2000, &stream);
	assert_int_equal(guest_send_all(connection, "hello", 5, LIMIT), 0);
	while (stream.n_received < 5)
		assert_true(guest_poll(&setup->guests[1], LIMIT) > 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 1, &stream);
	assert_null(guest_connect_wait(&setup->guests[1], PACKET_HOST_CID, 77, LIMIT));

	assert_int_equal(run(setup, "metrics", NULL), 0);
	expect_text("\nvsockd_bytes_total{vm=\"4\",direction=\"from_guest\"} 5\n");
	expect_text("\nvsockd_connects_total{vm=\"4\",from=\"guest\",result=\"ok\"} 1\n");
	expect_text("\nvsockd_connects_total{vm=\"4\",from=\"guest\",result=\"refused\"} 1\n");
	expect_text("\nvsockd_vm_state{vm=\"4\",vsockd_vm_state=\"running\"} 1\n");
	expect_text("\nvsockd_vm_state{vm=\"3\",vsockd_vm_state=\"waiting\"} 1\n");
	expect_text("\nvsockd_connect_duration_seconds_count{vm=\"4\",from=\"guest\"} 1\n");
	assert_string_equal(tool.text + tool.len - 6, "# EOF\n");

	assert_int_equal(daemon_kill(setup_worker(setup, 1), LIMIT), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, "worker lost", LIMIT), 0);
	setup_worker(setup, 1);
	assert_int_equal(run(setup, "metrics", NULL), 0);
	expect_text("\nvsockd_bytes_total{vm=\"4\",direction=\"from_guest\"} 5\n");
	expect_text("\nvsockd_workers_lost_total{vm=\"4\"} 1\n");
}

static void test_top_prints_once_into_a_pipe(void **state)
{
	struct setup *setup = *state;

	setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(run(setup, "top", "1"), 0);
	expect_text("CID  STATE    CONNECTIONS");
	expect_text("\n  3  running");
	assert_null(strchr(tool.text, '\033'));
	assert_int_equal(run(setup, "top", "0"), DATAERR);
}

/* ---- the log ---- */

static void test_the_level_of_the_log_changes_for_all_processes(void **state)
{
	struct setup *setup = *state;

	assert_false(daemon_log_has(&setup->daemon, "debug: worker"));
	assert_int_equal(run(setup, "log-level", "debug"), 0);
	/* Another spare is started, by the spawner, which says so. */
	setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(daemon_wait_log(&setup->daemon, "debug: worker 1 is process", LIMIT), 0);
	assert_int_equal(run(setup, "log-level", "error"), 0);
	setup_end_guest(setup, 0);
	setup_wait_idle(setup);
	assert_false(daemon_log_has(&setup->daemon, "front-end left"));
	assert_int_equal(run(setup, "log-level", "loud"), USAGE);
	expect_complaint("level \"loud\": unknown");
}

/* ---- who may ask, and where ---- */

static void test_who_may_not_write_to_the_socket_is_told_who_may(void **state)
{
	struct setup *setup = *state;
	const char *path = daemon_path(&setup->daemon, TOOL_CONTROL);
	struct stat status;
	pid_t child;
	int wait_status;

	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_mode, S_IFSOCK | 0600);
	if (geteuid() != 0) {
		assert_int_equal(chmod(path, 0400), 0);
		assert_int_equal(run(setup, "status", NULL), NOPERM);
		expect_complaint("permission denied (mode 0400");
		return;
	}
	assert_int_equal(chmod(setup->daemon.directory, 0755), 0);
	fflush(NULL);
	child = fork();
	if (child == 0) {
		if (setgid(65534) != 0 || setuid(65534) != 0)
			_exit(1);
		if (run(setup, "status", NULL) != NOPERM ||
		    !strstr(tool.complaint, "permission denied (mode 0600, user 0, group 0)"))
			_exit(2);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &wait_status, 0), child);
	assert_int_equal(wait_status, 0);
}

static void test_a_socket_that_is_not_there_is_named(void **state)
{
	static const char *const arguments[] = {"status", NULL};
	struct setup *setup = *state;

	tool_start(&tool, daemon_path(&setup->daemon, "nothing"), arguments);
	assert_int_equal(tool_end(&tool), UNAVAILABLE);
	expect_complaint("/nothing\": No such file or directory; start vsockd with --control");

	tool_start(&tool, setup->sockets[0], arguments);
	assert_int_equal(tool_end(&tool), DATAERR);
	expect_complaint("a socket of another kind");

	tool_start(&tool, NULL, (const char *const[]){"--control", "", "status", NULL});
	assert_int_not_equal(tool_end(&tool), 0);
	expect_complaint("/run/vsockd/control");
}

static void test_a_command_line_that_is_wrong_is_told_in_one_line(void **state)
{
	static const struct {
		const char *first, *second, *complaint;
		int code;
	} wrong[] = {
		{NULL, NULL, "no command was given", USAGE},
		{"nonsense", NULL, "unknown command \"nonsense\"", USAGE},
		{"--nonsense", NULL, "unknown option \"--nonsense\"", USAGE},
		{"--control", NULL, "\"--control\" needs a value", USAGE},
		{"status", "x", "too many arguments; usage: vsockctl status", USAGE},
	};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(run(*state, wrong[i].first, wrong[i].second), wrong[i].code);
		expect_complaint(wrong[i].complaint);
		assert_int_equal(tool.len, 0);
	}
}

/* The socket goes with vsockd; a second vsockd cannot take it. */
static void test_the_control_socket_lives_as_long_as_vsockd(void **state)
{
	struct daemon second = {.pid = 0};
	struct setup *setup = *state;
	char control[128];
	int r;

	(void)state;
	snprintf(control, sizeof(control), "%s", daemon_path(&setup->daemon, TOOL_CONTROL));
	assert_int_equal(daemon_prepare(&second), 0);
	r = daemon_start(&second,
			 (const char *const[]){"", "--socket", "@/s", "--uds-path", "@/u",
					       "--control", control, NULL},
			 "s-that-never-comes", LIMIT);
	assert_int_equal(r, -ECHILD);
	assert_int_equal(run(setup, "status", NULL), 0);
	setup_stop(setup);
	assert_int_equal(access(control, F_OK), -1);
	setup_start(setup, 1, NULL, NULL);
}

#define WITH_ONE(test) cmocka_unit_test_setup_teardown(test, start_one, setup_end)
#define WITH_TWO(test) cmocka_unit_test_setup_teardown(test, start_two, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_TWO(test_status_has_a_line_for_each_vm),
		WITH_ONE(test_status_counts_connections_and_lost_workers),
		WITH_ONE(test_status_tells_a_stopped_guest_from_a_running_one),
		WITH_ONE(test_show_has_the_rings_the_memory_and_the_features_by_name),
		WITH_ONE(test_show_of_a_vm_without_a_session_is_short),
		WITH_ONE(test_a_vm_that_does_not_exist_is_told_so),
		WITH_ONE(test_connections_are_listed_with_what_they_carried),
		WITH_ONE(test_all_of_many_connections_are_listed),
		WITH_ONE(test_a_connection_is_ended_by_its_id_and_no_other),
		WITH_ONE(test_connect_is_a_stream_and_each_half_ends_by_itself),
		WITH_ONE(test_connect_says_why_it_cannot),
		WITH_ONE(test_connect_waits_while_the_guest_is_stopped),
		WITH_ONE(test_listen_runs_a_command_for_each_connection),
		WITH_TWO(test_metrics_count_what_went_through_over_the_lives_of_workers),
		WITH_ONE(test_top_prints_once_into_a_pipe),
		WITH_ONE(test_the_level_of_the_log_changes_for_all_processes),
		WITH_ONE(test_who_may_not_write_to_the_socket_is_told_who_may),
		WITH_ONE(test_a_socket_that_is_not_there_is_named),
		WITH_ONE(test_a_command_line_that_is_wrong_is_told_in_one_line),
		WITH_ONE(test_the_control_socket_lives_as_long_as_vsockd),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
