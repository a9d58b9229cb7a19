/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/ports.h"

#define NAME_107                                                                                   \
	"/23456789012345678901234567890123456789012345678901234567890"                             \
	"12345678901234567890123456789012345678901234567"

static struct port_rule good(const char *text, bool is_listener)
{
	const char *reason;
	struct port_rule rule;

	reason = is_listener ? ports_parse_listen(text, &rule) : ports_parse_connect(text, &rule);
	if (reason)
		fail_msg("%s: %s", text, reason);
	return rule;
}

static void test_a_rule_is_read_and_printed(void **state)
{
	static const struct {
		const char *text, *printed; /* NULL: as it was typed */
	} rows[] = {
		{"80:unix:/run/web", NULL},
		{"0-4294967295:deny", NULL},
		{"7-7:abstract:a,b:c", "7:abstract:a,b:c"},
		{"1:unix:" NAME_107, NULL},
		{"80:tcp", "80:tcp:127.0.0.1"},
		{"1-65535:tcp", "1-65535:tcp:127.0.0.1"},
		{"80:tcp:8080", "80:tcp:127.0.0.1:8080"},
		{"80-90:tcp:127.9.8.7", NULL},
		{"80:tcp:127.9.8.7:1", NULL},
		{"80:tcp:[::1]", NULL},
		{"4294967295:tcp:[::1]:65535", NULL},
		{"80:vsock:1", NULL},
		{"80:vsock:4294967294:4294967294", NULL},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct port_rule rule = good(rows[i].text, false);
		char text[PORT_TEXT_SIZE];

		ports_print(&rule, text);
		assert_string_equal(text, rows[i].printed ? rows[i].printed : rows[i].text);
	}
}

static void test_a_listener_is_read_and_printed(void **state)
{
	static const char *const texts[] = {"22:unix:/run/ssh",	     "22:abstract:ssh",
					    "22:tcp:127.0.0.1:2222", "22:vsock:any",
					    "22:vsock:any:2222",     "22:vsock:1:2222"};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		struct port_rule rule = good(texts[i], true);
		char text[PORT_TEXT_SIZE];

		ports_print(&rule, text);
		assert_string_equal(text, texts[i]);
	}
	assert_int_equal(good("22:vsock:any", true).address.cid, VMADDR_CID_ANY);
}

static void test_what_is_no_rule_is_refused_with_the_reason(void **state)
{
	static const struct {
		const char *text, *reason;
		bool is_listener;
	} rows[] = {
		{"", "it does not begin with PORT", false},
		{"80", "it does not begin with PORT", false},
		{"unix:/a", "it does not begin with PORT", false},
		{"-1:deny", "it does not begin with PORT", false},
		{"1-:deny", "it does not begin with PORT", false},
		{"+1:deny", "it does not begin with PORT", false},
		{" 1:deny", "it does not begin with PORT", false},
		{"4294967296:deny", "it does not begin with PORT", false},
		{"18446744073709551616:deny", "it does not begin with PORT", false},
		{"1-4294967296:deny", "it does not begin with PORT", false},
		{"2-1:deny", "the range ends before it begins", false},
		{"1:", "an address begins with", false},
		{"1:allow", "an address begins with", false},
		{"1:denying", "an address begins with", false},
		{"1:tcpx", "an address begins with", false},
		{"1:unix:", "the name is empty", false},
		{"1:unix:relative", "the path has to begin with a slash", false},
		{"1:unix:" NAME_107 "x", "a unix socket allows", false},
		{"1:abstract:", "the name is empty", false},
		{"1:tcp:0", "a TCP port is", false},
		{"1:tcp:65536", "a TCP port is", false},
		{"1:tcp:127.0.0.1:", "a TCP port is", false},
		{"1:tcp:127.0.0.1:x", "a TCP port is", false},
		{"1:tcp:", "tcp is followed by", false},
		{"1:tcp:localhost", "tcp is followed by", false},
		{"1:tcp:127.0.0.1.1", "tcp is followed by", false},
		{"1:tcp:[::1", "tcp is followed by", false},
		{"1:tcp:[::1]x", "tcp is followed by", false},
		{"1:tcp:::1", "tcp is followed by", false},
		{"1:tcp:0.0.0.0", "the address is not one of loopback", false},
		{"1:tcp:192.168.0.1:80", "the address is not one of loopback", false},
		{"1:tcp:[::]:80", "the address is not one of loopback", false},
		{"1:tcp:[::ffff:10.0.0.1]:80", "the address is not one of loopback", false},
		{"0-10:tcp", "TCP has no such port", false},
		{"65536:tcp:127.0.0.1", "TCP has no such port", false},
		{"1:vsock:", "vsock is followed by", false},
		{"1:vsock:any", "vsock is followed by", false},
		{"1:vsock:4294967295", "vsock is followed by", false},
		{"1:vsock:1:", "a vsock port is", false},
		{"1:vsock:1:4294967295", "a vsock port is", false},
		{"1:deny", "an address begins with", true},
		{"1-2:tcp", "a listener has one port", true},
		{"1:vsock:anything", "vsock is followed by a CID, or any", true},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct port_rule rule = {.first = 77};
		const char *reason = rows[i].is_listener ? ports_parse_listen(rows[i].text, &rule)
							 : ports_parse_connect(rows[i].text, &rule);

		if (!reason || strncmp(reason, rows[i].reason, strlen(rows[i].reason)) != 0)
			fail_msg("%s: %s", rows[i].text, reason ? reason : "is taken");
		assert_int_equal(rule.first, 77);
	}
}

static void test_the_first_rule_that_has_the_port_counts(void **state)
{
	struct port_rule rules[] = {
		good("80:tcp:1", false),
		good("70-90:tcp:2", false),
		good("0-4294967295:deny", false),
	};

	(void)state;
	assert_ptr_equal(ports_find(rules, 3, 80), &rules[0]);
	assert_ptr_equal(ports_find(rules, 3, 70), &rules[1]);
	assert_ptr_equal(ports_find(rules, 3, 90), &rules[1]);
	assert_ptr_equal(ports_find(rules, 3, 91), &rules[2]);
	assert_ptr_equal(ports_find(rules, 3, UINT32_MAX), &rules[2]);
	assert_null(ports_find(rules, 2, 91));
	assert_null(ports_find(NULL, 0, 80));
}

static void test_a_filter_denies_first_and_allows_nothing_else(void **state)
{
	struct port_filter filter = {
		.allowed = {{10, 20}, {UINT32_MAX, UINT32_MAX}},
		.denied = {{15, 30}},
	};

	(void)state;
	assert_true(ports_pass(&filter, 0));
	filter.n_denied = 1;
	assert_true(ports_pass(&filter, 14));
	assert_false(ports_pass(&filter, 15));
	assert_false(ports_pass(&filter, 30));
	assert_true(ports_pass(&filter, 31));
	filter.n_allowed = 2;
	assert_true(ports_pass(&filter, 10));
	assert_false(ports_pass(&filter, 9));
	assert_false(ports_pass(&filter, 15));
	assert_false(ports_pass(&filter, 31));
	assert_true(ports_pass(&filter, UINT32_MAX));
}

static void test_ranges_are_read_strictly(void **state)
{
	static const char *const bad[] = {"",	  " 1",	 "1 ",	       "-1",	       "1-",
					  "1--2", "2-1", "4294967296", "1-4294967296", "0x1"};
	struct port_range range = {7, 7};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (ports_parse_range(bad[i], strlen(bad[i]), &range) || range.first != 7)
			fail_msg("\"%s\" is taken", bad[i]);
	assert_true(ports_parse_range("80+", 2, &range)); /* of the text, so much */
	assert_true(range.first == 80 && range.last == 80);
	assert_true(ports_parse_range("0-4294967295", 12, &range));
	assert_true(range.first == 0 && range.last == UINT32_MAX);
}

static uint16_t port_of(int listener)
{
	struct sockaddr_in address = {0};
	socklen_t len = sizeof(address);

	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
	return ntohs(address.sin_port);
}

static void connect_and_talk(const struct port_address *address, uint32_t port, int listener)
{
	int fd = -1, peer, status;
	char byte = 0;

	status = ports_connect(address, port, SOCK_STREAM, &fd);
	assert_true(status == 0 || status == -EINPROGRESS);
	peer = accept(listener, NULL, NULL);
	assert_true(peer >= 0);
	assert_int_equal(send(peer, "x", 1, 0), 1);
	while (recv(fd, &byte, 1, 0) < 0)
		assert_int_equal(errno, EAGAIN);
	assert_int_equal(byte, 'x');
	close(peer);
	close(fd);
}

static void test_tcp_is_reached_at_the_port_of_the_rule_or_of_the_guest(void **state)
{
	struct port_rule any = good("1:tcp", true), rule;
	int listener = -1, fd = -1;
	char text[64];
	uint16_t port;

	(void)state;
	any.address.has_port = true; /* 0: the kernel chooses */
	assert_int_equal(ports_listen(&any.address, 1, &listener), 0);
	port = port_of(listener);
	rule = good("1-65535:tcp", false);
	connect_and_talk(&rule.address, port, listener);
	snprintf(text, sizeof(text), "7:tcp:127.0.0.1:%u", port);
	rule = good(text, false);
	connect_and_talk(&rule.address, 7, listener);
	close(listener);
	/* Nobody is there any more: known at once, or soon. */
	if (ports_connect(&rule.address, 7, SOCK_STREAM, &fd) == -EINPROGRESS) {
		struct pollfd wait = {.fd = fd, .events = POLLOUT};

		assert_int_equal(poll(&wait, 1, 30000), 1);
		assert_true(wait.revents & POLLERR);
		close(fd);
	} else {
		assert_int_equal(fd, -1);
	}
}

static void test_an_abstract_name_is_reached(void **state)
{
	char text[64];
	struct port_rule rule;
	int listener = -1;

	(void)state;
	snprintf(text, sizeof(text), "7:abstract:vsockd-test-%d", (int)getpid());
	rule = good(text, true);
	assert_int_equal(ports_listen(&rule.address, 7, &listener), 0);
	connect_and_talk(&rule.address, 99, listener);
	assert_int_equal(ports_listen(&rule.address, 7, &(int){-1}), -EADDRINUSE);
	close(listener);
}

static void test_only_unix_sockets_carry_messages(void **state)
{
	static const char *const others[] = {"7:tcp:1", "7:tcp:[::1]:1", "7:vsock:1:1"};
	char text[64];
	struct port_rule rule;
	int listener = -1, fd = -1;

	(void)state;
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		rule = good(others[i], false);
		assert_int_equal(ports_connect(&rule.address, 7, SOCK_SEQPACKET, &fd),
				 -EPROTONOSUPPORT);
		assert_int_equal(fd, -1);
	}
	snprintf(text, sizeof(text), "7:abstract:vsockd-test-%d", (int)getpid());
	rule = good(text, true);
	assert_int_equal(ports_listen(&rule.address, 7, &listener), 0);
	/* Abstract names are another one for each type. */
	assert_int_equal(ports_connect(&rule.address, 7, SOCK_SEQPACKET, &fd), -ECONNREFUSED);
	close(listener);
}

static void test_what_is_denied_is_not_connected(void **state)
{
	struct port_rule rule = good("7:deny", false);
	int fd = -1;

	(void)state;
	assert_int_equal(ports_connect(&rule.address, 7, SOCK_STREAM, &fd), -EACCES);
	assert_int_equal(fd, -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_rule_is_read_and_printed),
		cmocka_unit_test(test_a_listener_is_read_and_printed),
		cmocka_unit_test(test_what_is_no_rule_is_refused_with_the_reason),
		cmocka_unit_test(test_a_filter_denies_first_and_allows_nothing_else),
		cmocka_unit_test(test_ranges_are_read_strictly),
		cmocka_unit_test(test_the_first_rule_that_has_the_port_counts),
		cmocka_unit_test(test_tcp_is_reached_at_the_port_of_the_rule_or_of_the_guest),
		cmocka_unit_test(test_an_abstract_name_is_reached),
		cmocka_unit_test(test_only_unix_sockets_carry_messages),
		cmocka_unit_test(test_what_is_denied_is_not_connected),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
