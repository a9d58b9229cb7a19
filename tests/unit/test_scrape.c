/* SPDX-License-Identifier: Apache-2.0 */

/* Who scrapes while the kernel is short of something. */

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/log.h"
#include "broker/scrape.h"
#include "ipc/export.h"
#include "tests/unit/failing_calls.h"
#include "tests/unit/front_rig.h"

#define SERIAL UINT64_C(77)

static struct {
	struct front_rig front;
	struct sockaddr_un address;
	socklen_t address_len;
	int listener;
	int exporter[2]; /* the front's end, and its own */
} rig;

static int set_up(void **state)
{
	struct front *front = &rig.front.front;

	(void)state;
	front_rig_init(&rig.front);
	front->epoll = epoll_create1(EPOLL_CLOEXEC);
	front->now = 1000;
	/* Nobody has to be asked for anything. */
	rig.front.device.worker = NULL;
	rig.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	rig.address = (struct sockaddr_un){.sun_family = AF_UNIX};
	rig.address_len = sizeof(rig.address);
	/* The kernel finds a name of its own. */
	if (bind(rig.listener, (struct sockaddr *)&rig.address, sizeof(sa_family_t)) < 0 ||
	    listen(rig.listener, 1) < 0 ||
	    getsockname(rig.listener, (struct sockaddr *)&rig.address, &rig.address_len) < 0 ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, rig.exporter) < 0)
		return -1;
	return scrape_init(front, rig.listener, rig.exporter[0]) ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	free(rig.front.front.scrape);
	close(rig.listener);
	close(rig.exporter[0]);
	close(rig.exporter[1]);
	close(rig.front.front.epoll);
	return 0;
}

/* A program that connects, and is accepted or not. */
static int connect_client(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	assert_int_equal(connect(fd, (struct sockaddr *)&rig.address, rig.address_len), 0);
	scrape_accept(&rig.front.front);
	return fd;
}

/* Is that text in the log of a program that connects? */
static bool is_logged_of_client(const char *text)
{
	int log = memfd_create("log", MFD_CLOEXEC), before = dup(STDERR_FILENO), client;
	char lines[1024] = "", byte;

	dup2(log, STDERR_FILENO);
	client = connect_client();
	dup2(before, STDERR_FILENO);
	assert_true(pread(log, lines, sizeof(lines) - 1, 0) >= 0);
	/* It is not left waiting. */
	assert_int_equal(read(client, &byte, 1), 0);
	close(client);
	close(before);
	close(log);
	return strstr(lines, text);
}

static void test_who_cannot_be_watched_is_sent_away_and_the_log_says_so(void **state)
{
	int client;
	char byte;

	(void)state;
	log_open(LOG_ERR);
	failing_call_plan(CALL_EPOLL_CTL, -1, 1, ENOSPC);
	assert_true(is_logged_of_client("a client is refused: it cannot be watched"));
	assert_true(failing_call_has_come());
	/* The place is free for the next one. */
	client = connect_client();
	assert_int_equal(read(client, &byte, 1), -1);
	assert_int_equal(errno, EAGAIN);
	close(client);
	scrape_event(&rig.front.front, 0, EPOLLHUP);
	scrape_run(&rig.front.front);
}

/* Does all of an answer come to the exporter? What has room for it is sent again and again. */
static bool is_answered(void)
{
	static char packet[sizeof(uint64_t) + EXPORT_TEXT_MAX + 1];
	ssize_t n;

	for (int i = 0; i < 100; i++) {
		scrape_event(&rig.front.front, SCRAPE_CLIENTS_MAX, EPOLLOUT);
		scrape_run(&rig.front.front);
		while ((n = recv(rig.exporter[1], packet, sizeof(packet) - 1, MSG_DONTWAIT)) > 0) {
			packet[n] = '\0';
			assert_memory_equal(packet, &(uint64_t){SERIAL}, sizeof(uint64_t));
			if (strstr(packet + sizeof(uint64_t), EXPORT_END))
				return true;
		}
	}
	return false;
}

static void test_the_exporter_outlives_a_shortage_of_memory(void **state)
{
	static const int errors[] = {ENOBUFS, ENOMEM, EAGAIN, EINTR};
	const uint64_t serial = SERIAL;

	(void)state;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		assert_int_equal(send(rig.exporter[1], &serial, sizeof(serial), MSG_NOSIGNAL),
				 sizeof(serial));
		scrape_event(&rig.front.front, SCRAPE_CLIENTS_MAX, EPOLLIN);
		failing_call_plan(CALL_SENDMSG, rig.exporter[0], 1, errors[i]);
		assert_true(is_answered());
		assert_true(failing_call_has_come());
	}
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_who_cannot_be_watched_is_sent_away_and_the_log_says_so),
		WITH_RIG(test_the_exporter_outlives_a_shortage_of_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
