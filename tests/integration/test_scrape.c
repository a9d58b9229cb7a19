/* SPDX-License-Identifier: Apache-2.0 */

/* The metrics over HTTP, as somebody who scrapes sees them. */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/setup.h"

#define LIMIT	    SETUP_LIMIT
#define CLIENTS_MAX 8 /* at a time */

static char answer[262144];

static int start_four(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	setup_start(*state, 4, NULL, (const char *const[]){"--metrics", "@/metrics", NULL});
	return 0;
}

static int connect_scraper(struct setup *setup)
{
	int fd = socket_connect(daemon_path(&setup->daemon, "metrics"), SOCK_STREAM, LIMIT);

	assert_true(fd >= 0);
	return fd;
}

static void say(int fd, const char *text)
{
	assert_int_equal(host_write(fd, text, strlen(text), LIMIT), 0);
}

/* To the end, into answer. */
static void read_answer(int fd)
{
	int64_t deadline = deadline_in(LIMIT);
	size_t len = 0;
	ssize_t n;

	for (;;) {
		if (socket_wait(fd, POLLIN, deadline) != 0)
			fail_msg("the answer does not end: %.200s", answer);
		n = read(fd, answer + len, sizeof(answer) - 1 - len);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0)
			break;
		len += (size_t)n;
		answer[len] = '\0';
	}
	answer[len] = '\0';
	close(fd);
}

static void ask(struct setup *setup, const char *request)
{
	int fd = connect_scraper(setup);

	say(fd, request);
	read_answer(fd);
}

static void expect_whole_answer(void)
{
	assert_int_equal(strncmp(answer, "HTTP/1.0 200 OK\r\n", 17), 0);
	assert_non_null(strstr(answer, "\r\nContent-Type: application/openmetrics-text; "));
	assert_non_null(strstr(answer, "\r\n\r\n# TYPE vsockd_vm_state stateset\n"));
	assert_non_null(
		strstr(answer, "\nvsockd_vm_state{vm=\"6\",vsockd_vm_state=\"waiting\"} 1\n"));
	assert_string_equal(answer + strlen(answer) - 6, "# EOF\n");
}

static void test_a_scrape_gets_all_metrics_and_the_end(void **state)
{
	struct setup *setup = *state;
	struct guest_connection *connection;
	struct host_stream stream;

	setup_guest(setup, 1, (struct guest_options){0});
	connection = setup_connect(setup, 1, 2000, &stream);
	ask(setup, "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
	expect_whole_answer();
	assert_non_null(strstr(answer, "\nvsockd_connections{vm=\"4\"} 1\n"));
	assert_non_null(strstr(
		answer, "\nvsockd_connects_total{vm=\"4\",from=\"guest\",result=\"ok\"} 1\n"));
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 1, &stream);
	ask(setup, "GET / HTTP/1.0\r\n\r\n");
	expect_whole_answer();
}

static void test_a_request_may_come_byte_by_byte(void **state)
{
	static const char request[] = "GET /metrics HTTP/1.0\r\n\r\n";
	int fd = connect_scraper(*state);

	for (size_t i = 0; i < sizeof(request) - 1; i++)
		assert_int_equal(host_write(fd, request + i, 1, LIMIT), 0);
	read_answer(fd);
	expect_whole_answer();
}

static void test_what_is_no_request_for_them_is_refused(void **state)
{
	static char endless[5000];

	memset(endless, 'x', sizeof(endless) - 1);
	ask(*state, "GET /secrets HTTP/1.1\r\n\r\n");
	assert_int_equal(strncmp(answer, "HTTP/1.0 404 ", 13), 0);
	ask(*state, "POST /metrics HTTP/1.1\r\n\r\n");
	assert_int_equal(strncmp(answer, "HTTP/1.0 405 ", 13), 0);
	{
		int fd = connect_scraper(*state);

		/* More than it reads: what was answered may be lost with the rest. */
		(void)send(fd, endless, sizeof(endless), MSG_NOSIGNAL);
		read_answer(fd);
		assert_null(strstr(answer, "200 OK"));
	}
	ask(*state, "GET /metrics HTTP/1.1\r\n\r\n");
	expect_whole_answer();
}

/* Each is served, one after the other, however many there are and however slow. */
static void test_a_crowd_is_served_and_the_silent_are_dropped(void **state)
{
	int silent[CLIENTS_MAX], fd;

	for (size_t i = 0; i < CLIENTS_MAX; i++) {
		silent[i] = connect_scraper(*state);
		say(silent[i], i % 2 ? "GET " : "GET /metrics HTTP/1.0\r\n\r\n");
	}
	fd = connect_scraper(*state);
	say(fd, "GET /metrics HTTP/1.0\r\n\r\n");
	read_answer(fd);
	expect_whole_answer();
	for (size_t i = 0; i < CLIENTS_MAX; i++) {
		if (i % 2)
			assert_int_equal(host_wait_end(silent[i], LIMIT), 0);
		close(silent[i]);
	}
}

static void test_a_scraper_may_leave_at_any_moment(void **state)
{
	for (int i = 0; i < 100; i++) {
		int fd = connect_scraper(*state);

		if (i % 3)
			say(fd, i % 3 == 1 ? "GET /me" : "GET /metrics HTTP/1.0\r\n\r\n");
		close(fd);
	}
	ask(*state, "GET /metrics HTTP/1.0\r\n\r\n");
	expect_whole_answer();
}

static void test_the_socket_is_its_owners_and_goes_with_vsockd(void **state)
{
	struct setup *setup = *state;
	struct stat status;
	char path[128];

	snprintf(path, sizeof(path), "%s", daemon_path(&setup->daemon, "metrics"));
	assert_int_equal(stat(path, &status), 0);
	assert_int_equal(status.st_mode, S_IFSOCK | 0600);
	setup_stop(setup);
	assert_int_equal(access(path, F_OK), -1);
	setup_start(setup, 1, NULL, NULL);
}

#define WITH_FOUR(test) cmocka_unit_test_setup_teardown(test, start_four, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_FOUR(test_a_scrape_gets_all_metrics_and_the_end),
		WITH_FOUR(test_a_request_may_come_byte_by_byte),
		WITH_FOUR(test_what_is_no_request_for_them_is_refused),
		WITH_FOUR(test_a_crowd_is_served_and_the_silent_are_dropped),
		WITH_FOUR(test_a_scraper_may_leave_at_any_moment),
		WITH_FOUR(test_the_socket_is_its_owners_and_goes_with_vsockd),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
