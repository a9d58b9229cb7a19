/* SPDX-License-Identifier: Apache-2.0 */

/* The metrics by TCP, as somebody who scrapes sees them, and somebody who means harm. */

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "policy/policy.h"
#include "tests/frontend/http.h"
#include "tests/integration/setup.h"

#define LIMIT SETUP_LIMIT
#define CROWD 400
/* Twice what the exporter gives to one client. */
#define DROPPED_MS 20000
#define GET	   "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
#define POST	   "POST /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"
#define EXPORTER   "vsockd-exporter"
#define KILLED	   "the exporter was killed by signal"

static char answer[262144];
static int port;

static void start(struct setup *setup, const char *ip)
{
	char address[64];

	port = http_free_port();
	assert_true(port > 0);
	snprintf(address, sizeof(address), "%s:%d", ip, port);
	setup_start(setup, 2, NULL, (const char *const[]){"--metrics-http", address, NULL});
}

static int start_two(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	start(*state, "127.0.0.1");
	return 0;
}

static pid_t find_exporter(const struct setup *setup)
{
	pid_t pids[DAEMON_PIDS_MAX];

	return daemon_find(&setup->daemon, EXPORTER, pids) == 1 ? pids[0] : -1;
}

static void ask(const char *request, const char *status)
{
	char line[64];

	if (http_ask(port, request, answer, sizeof(answer), LIMIT) <= 0)
		fail_msg("no answer to %s", request);
	snprintf(line, sizeof(line), "HTTP/1.1 %s\r\n", status);
	if (strncmp(answer, line, strlen(line)) != 0)
		fail_msg("%.40s in place of %s", answer, status);
}

static void expect_metrics(void)
{
	ask(GET, "200 OK");
	assert_non_null(
		strstr(answer, "\r\nContent-Type: application/openmetrics-text; version=1.0.0; "));
	assert_non_null(strstr(answer, "\r\n\r\n# TYPE vsockd_vm_state stateset\n"));
	assert_non_null(strstr(answer, "\nvsockd_vm_state{vm=\"4\",vsockd_vm_state=\""));
	assert_string_equal(answer + strlen(answer) - 6, "# EOF\n");
}

static void test_a_scrape_by_tcp_gets_all_metrics(void **state)
{
	struct setup *setup = *state;
	int64_t deadline = deadline_in(LIMIT);
	struct guest_connection *connection;
	struct host_stream stream;

	expect_metrics();
	setup_guest(setup, 1, (struct guest_options){0});
	connection = setup_connect(setup, 1, 2000, &stream);
	/* An answer is that of before for a tenth of a second. */
	do {
		assert_true(deadline_left(deadline) > 0);
		expect_metrics();
	} while (!strstr(answer, "\nvsockd_connections{vm=\"4\"} 1\n"));
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 1, &stream);
}

static void test_anything_else_is_refused_as_http_has_it(void **state)
{
	(void)state;
	ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found");
	ask("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found");
	ask("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
	    "405 Method Not Allowed");
	assert_non_null(strstr(answer, "\r\nAllow: GET, HEAD\r\n"));
	ask("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405 Method Not Allowed");
	ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK");
	assert_string_equal(strstr(answer, "\r\n\r\n"), "\r\n\r\n");
	assert_non_null(strstr(answer, "\r\nContent-Length: "));
	expect_metrics();
}

/* The rest of a request, byte by byte; 0, or what ended it. */
static int drip(int fd, const char *text, int pause)
{
	const struct timespec moment = {.tv_sec = pause / 1000, .tv_nsec = pause % 1000 * 1000000L};
	int r = 0;

	for (; *text && r == 0; text++) {
		r = host_write(fd, text, 1, LIMIT);
		nanosleep(&moment, NULL);
	}
	return r;
}

static void test_a_slow_client_is_served_and_an_endless_one_dropped(void **state)
{
	char endless[256] = "GET /metrics HTTP/1.1\r\nX: ";
	int silent = http_connect(port), fd = http_connect(port);
	int64_t deadline;

	(void)state;
	assert_true(silent >= 0 && fd >= 0);
	assert_int_equal(socket_wait(fd, POLLOUT, deadline_in(LIMIT)), 0);
	assert_int_equal(drip(fd, GET, 5), 0);
	assert_true(http_read(fd, answer, sizeof(answer), LIMIT) > 0);
	assert_int_equal(strncmp(answer, "HTTP/1.1 200 OK\r\n", 17), 0);

	/* Never silent for long, and never done. */
	memset(endless + strlen(endless), 'x', 200);
	fd = http_connect(port);
	assert_int_equal(socket_wait(fd, POLLOUT, deadline_in(LIMIT)), 0);
	deadline = deadline_in(DROPPED_MS);
	assert_int_not_equal(drip(fd, endless, 200), 0);
	assert_true(deadline_left(deadline) > 0);
	close(fd);
	assert_int_equal(http_read(silent, answer, sizeof(answer), LIMIT), 0);
	expect_metrics();
}

static void test_a_flood_costs_nobody_else_anything(void **state)
{
	static const char *const requests[] = {"", GET, "GET ", "\r\n\r\n \1\2\3\r\n\r\n", POST};
	struct setup *setup = *state;
	pid_t exporter = find_exporter(setup);
	static int crowd[CROWD];
	struct guest_connection *connection;
	struct host_stream stream;

	setup_guest(setup, 0, (struct guest_options){0});
	for (size_t i = 0; i < CROWD; i++) {
		const char *request = requests[i % (sizeof(requests) / sizeof(requests[0]))];

		crowd[i] = http_connect(port);
		assert_true(crowd[i] >= 0);
		assert_int_equal(socket_wait(crowd[i], POLLOUT, deadline_in(LIMIT)), 0);
		(void)send(crowd[i], request, strlen(request), MSG_NOSIGNAL);
	}
	connection = setup_connect(setup, 0, 2000, &stream);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	expect_metrics(); /* once those before it in the backlog had their time */
	for (size_t i = 0; i < CROWD; i++)
		close(crowd[i]);
	expect_metrics();
	assert_int_equal(find_exporter(setup), exporter);
	assert_false(daemon_log_has(&setup->daemon, KILLED));
}

static void test_an_exporter_that_dies_is_started_again_and_nothing_else_happens(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, 2000, &stream);
	pid_t worker = setup_worker(setup, 0);

	for (size_t i = 1; i <= 3; i++) {
		int fd = http_connect(port);
		pid_t exporter = find_exporter(setup);

		/* Half of a question, or all of it: what was on the way is for nobody then. */
		assert_true(exporter > 0);
		assert_int_equal(socket_wait(fd, POLLOUT, deadline_in(LIMIT)), 0);
		assert_int_equal(host_write(fd, GET, i % 2 ? 10 : strlen(GET), LIMIT), 0);
		assert_int_equal(daemon_kill(exporter, LIMIT), 0);
		assert_int_equal(daemon_wait_log_times(&setup->daemon, KILLED, i, LIMIT), 0);
		close(fd);
		expect_metrics();
	}
	/* Each time later. */
	assert_true(daemon_log_has(&setup->daemon, "again in 100 ms"));
	assert_true(daemon_log_has(&setup->daemon, "again in 400 ms"));
	assert_int_equal(guest_send_all(connection, "alive", 5, LIMIT), 0);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	assert_string_equal(guest_violations(guest), "");
	assert_int_equal(setup_worker(setup, 0), worker);
}

/* The exporter's end of its channel, for whoever may look into that process; or -1. */
static int take_channel(pid_t exporter)
{
	int pidfd = (int)syscall(SYS_pidfd_open, exporter, 0);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, POLICY_WORKER_CHANNEL_FD, 0);

	close(pidfd);
	return fd;
}

static void send_with_fd(int channel, const void *bytes, size_t len)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	struct iovec part = {(void *)(uintptr_t)bytes, len};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control.room)};

	memcpy(CMSG_DATA(&control.header), &channel, sizeof(channel));
	assert_int_equal(sendmsg(channel, &message, MSG_NOSIGNAL), len);
}

/* Questions until no more go in, and the front has answered all that it can. */
static void fill(int channel)
{
	static const char question[8];
	bool is_quiet = false;

	for (;;) {
		size_t n = 0;

		while (send(channel, question, sizeof(question), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
			n++;
		assert_int_equal(errno, EAGAIN);
		if (n == 0 && is_quiet)
			return;
		is_quiet = socket_wait(channel, POLLOUT, deadline_in(300)) == -ETIMEDOUT;
	}
}

/* Packets that are none, with fds, and then questions until no more go in. */
static void test_an_exporter_that_was_taken_over_harms_nobody(void **state)
{
	static const char bytes[4096];
	static const size_t lens[] = {0, 1, 7, 9, 16, 17, sizeof(bytes)};
	struct setup *setup = *state;
	pid_t exporter = find_exporter(setup);
	int channel = take_channel(exporter);
	struct guest_connection *connection;
	struct host_stream stream;

	if (channel < 0) {
		print_message("skipped: only root takes an exporter over\n");
		skip();
	}
	setup_guest(setup, 0, (struct guest_options){0});
	assert_int_equal(kill(exporter, SIGSTOP), 0);
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		assert_int_equal(send(channel, bytes, lens[i], MSG_NOSIGNAL), lens[i]);
		send_with_fd(channel, bytes, lens[i]);
	}
	send_with_fd(channel, bytes, 8);
	fill(channel);
	connection = setup_connect(setup, 0, 2000, &stream);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
	close(channel);
	assert_int_equal(daemon_kill(exporter, LIMIT), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, KILLED, LIMIT), 0);
	expect_metrics();
}

static void test_an_exporter_that_says_no_more_keeps_nobody_awake(void **state)
{
	struct setup *setup = *state;
	int channel = take_channel(find_exporter(setup));

	if (channel < 0) {
		print_message("skipped: only root takes an exporter over\n");
		skip();
	}
	assert_int_equal(shutdown(channel, SHUT_WR), 0);
	close(channel);
	/* All of them sleep, or this fails. */
	setup_count_fds(setup);
}

static void test_a_port_that_is_taken_is_told_at_the_start(void **state)
{
	struct daemon daemon = {0};
	char address[32], text[96];

	(void)state;
	snprintf(address, sizeof(address), "127.0.0.1:%d", port);
	assert_int_equal(
		daemon_start(&daemon,
			     (const char *const[]){"", "--socket", "@/vm", "--uds-path", "@/host",
						   "--metrics-http", address, NULL},
			     NULL, LIMIT),
		0);
	snprintf(text, sizeof(text), "metrics-http %s: Address already in use", address);
	assert_int_equal(daemon_wait_log(&daemon, text, LIMIT), 0);
	assert_int_equal(daemon_stop(&daemon, LIMIT), EX_CANTCREAT);
}

static void test_ipv6_does_as_well(void **state)
{
	struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct setup *setup;

	if (fd < 0 || bind(fd, (const struct sockaddr *)&at, sizeof(at)) != 0) {
		close(fd);
		print_message("skipped: no [::1] here\n");
		skip();
	}
	close(fd);
	setup = calloc(1, sizeof(*setup));
	*state = setup;
	start(setup, "[::1]");
	at.sin6_port = htons((uint16_t)port);
	fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (const struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(host_write(fd, GET, strlen(GET), LIMIT), 0);
	assert_true(http_read(fd, answer, sizeof(answer), LIMIT) > 0);
	assert_string_equal(answer + strlen(answer) - 6, "# EOF\n");
	setup_end(state);
}

#define WITH_TWO(test) cmocka_unit_test_setup_teardown(test, start_two, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_TWO(test_a_scrape_by_tcp_gets_all_metrics),
		WITH_TWO(test_anything_else_is_refused_as_http_has_it),
		WITH_TWO(test_a_slow_client_is_served_and_an_endless_one_dropped),
		WITH_TWO(test_a_flood_costs_nobody_else_anything),
		WITH_TWO(test_an_exporter_that_dies_is_started_again_and_nothing_else_happens),
		WITH_TWO(test_an_exporter_that_was_taken_over_harms_nobody),
		WITH_TWO(test_an_exporter_that_says_no_more_keeps_nobody_awake),
		WITH_TWO(test_a_port_that_is_taken_is_told_at_the_start),
		cmocka_unit_test(test_ipv6_does_as_well),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
