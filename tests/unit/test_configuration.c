/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sysexits.h>
#include <syslog.h>
#include <unistd.h>

#include "broker/configuration.h"
#include "policy/rules.h"

#define ARGUMENTS_MAX 600
#define ONE_VM	      "--socket s --uds-path u "
#define LEN_96_BYTES                                                                               \
	"/aaaaaaaaaaaaaaaaaaa/aaaaaaaaaaaaaaaaaaa/aaaaaaaaaaaaaaaaaaa/aaaaaaaaaaaaaaaaaaa/"        \
	"aaaaaaaaaaaaaaa"
#define LEN_107_BYTES LEN_96_BYTES "bbbbbbbbbbb"

/* text is split at blanks; "''" stands for an empty argument. */
static int parse(const char *text, struct configuration *ret, struct configuration_error *ret_error)
{
	static char program[] = "vsockd";
	char *argv[ARGUMENTS_MAX] = {program};
	char *copy = strdup(text);
	char *rest = copy;
	int argc = 1;
	int r;

	assert_non_null(copy);
	while (rest && *rest) {
		char *argument = strsep(&rest, " ");

		if (strcmp(argument, "''") == 0)
			*argument = '\0';
		assert_true(argc < ARGUMENTS_MAX - 1);
		argv[argc++] = argument;
	}
	r = configuration_parse(argc, argv, ret, ret_error);
	free(copy);
	return r;
}

static struct configuration parse_good(const char *text)
{
	struct configuration configuration;
	struct configuration_error error = {"untouched"};
	int r = parse(text, &configuration, &error);

	if (r)
		fail_msg("\"%s\" was refused: %s", text, error.text);
	assert_string_equal(error.text, "untouched");
	return configuration;
}

#define KNOWN_KEYS                                                                                 \
	"guest-cid, socket, socket-mode, socket-owner, socket-group, uds-path, uds-mode, "         \
	"uds-owner, uds-group, forward-cid, forward-listen, connect, listen, ok, wait, "           \
	"tx-buffer-size, queue-size, groups, poll-us, max-connections, max-handshakes, "           \
	"max-connection-rate, max-bandwidth, max-buffer-memory, allow-outgoing, deny-outgoing, "   \
	"allow-incoming, "                                                                         \
	"deny-incoming, allow-uid, deny-uid, allow-gid, deny-gid, offer"

struct refusal {
	const char *arguments;
	int code;
	const char *message;
};

static void check_refusals(const struct refusal *refusals, size_t n_refusals)
{
	for (size_t i = 0; i < n_refusals; i++) {
		const struct refusal *refusal = &refusals[i];
		struct configuration configuration = {.n_vms = 77};
		struct configuration_error error = {""};
		int r = parse(refusal->arguments, &configuration, &error);

		if (r != refusal->code)
			fail_msg("\"%s\": %d instead of %d: %s", refusal->arguments, r,
				 refusal->code, error.text);
		assert_string_equal(error.text, refusal->message);
		assert_int_equal(configuration.n_vms, 77);
	}
}

#define CHECK_REFUSALS(refusals) check_refusals(refusals, sizeof(refusals) / sizeof(refusals[0]))

static void assert_vm(const struct vm_configuration *vm, uint64_t guest_cid, const char *socket,
		      const char *uds_path)
{
	assert_int_equal(vm->guest_cid, guest_cid);
	assert_string_equal(vm->socket, socket);
	assert_int_equal(vm->socket_fd, -1);
	if (!uds_path)
		assert_null(vm->uds_path);
	else
		assert_string_equal(vm->uds_path, uds_path);
}

static void test_one_vm_with_the_least_options_gets_the_defaults(void **state)
{
	struct configuration c = parse_good("--socket /tmp/vhost.socket --uds-path /tmp/vm.vsock");

	(void)state;
	assert_int_equal(c.action, CONFIGURATION_RUN);
	assert_int_equal(c.n_vms, 1);
	assert_vm(&c.vms[0], 3, "/tmp/vhost.socket", "/tmp/vm.vsock");
	assert_int_equal(c.vms[0].tx_buffer_size, 262144);
	assert_int_equal(c.vms[0].queue_size, 1024);
	assert_int_equal(c.vms[0].max_connections, 4096);
	assert_int_equal(c.vms[0].max_handshakes, 512);
	assert_int_equal(c.vms[0].offers, 0);
	assert_int_equal(c.vms[0].n_groups, 1);
	assert_string_equal(c.vms[0].groups[0], "default");
	assert_int_equal(c.log_level, LOG_INFO);
	assert_int_equal(c.insecure, 0);
	assert_null(c.worker);
	assert_null(c.control.path);
	configuration_free(&c);
}

static void test_every_option_of_one_vm_is_taken(void **state)
{
	struct configuration c = parse_good(
		"--guest-cid=4294967294 --socket=s --uds-path=u --tx-buffer-size=4096 "
		"--queue-size=32768 --groups=a+b+c --max-connections=65536 --max-handshakes=1 "
		"--offer=inband-notifications+gpa-addresses --experimental-suspend --poll-us=50 "
		"--log-level=debug --worker=/opt/worker --insecure-no-namespaces "
		"--insecure-no-seccomp --control=/run/c --control-mode=660 --control-owner=1 "
		"--control-group=2");

	(void)state;
	assert_vm(&c.vms[0], 4294967294, "s", "u");
	assert_int_equal(c.vms[0].tx_buffer_size, 4096);
	assert_int_equal(c.vms[0].queue_size, 32768);
	assert_int_equal(c.vms[0].max_connections, 65536);
	assert_int_equal(c.vms[0].max_handshakes, 1);
	assert_int_equal(c.vms[0].poll_us, 50);
	assert_int_equal(c.vms[0].offers, CONFIGURATION_OFFER_IN_BAND | CONFIGURATION_OFFER_GPA);
	assert_int_equal(c.experiments, CONFIGURATION_EXPERIMENT_SUSPEND);
	assert_int_equal(c.vms[0].n_groups, 3);
	assert_string_equal(c.vms[0].groups[0], "a");
	assert_string_equal(c.vms[0].groups[2], "c");
	assert_int_equal(c.log_level, LOG_DEBUG);
	assert_string_equal(c.worker, "/opt/worker");
	assert_string_equal(c.control.path, "/run/c");
	assert_int_equal(c.control.access.mode, 0660);
	assert_int_equal(c.control.access.owner, 1);
	assert_int_equal(c.control.access.group, 2);
	assert_int_equal(c.insecure, POLICY_INSECURE_NO_NAMESPACES | POLICY_INSECURE_NO_SECCOMP);
	configuration_free(&c);
}

static void test_every_key_of_vm_is_taken_in_both_spellings(void **state)
{
	struct configuration c = parse_good(
		"--vm guest_cid=4,socket=s4,uds_path=u4,tx_buffer_size=16777216,queue_size=1,"
		"groups=a,max_connections=1,max_handshakes=65536 "
		"--vm groups=b+c,max-handshakes=2,max-connections=3,queue-size=256,"
		"tx-buffer-size=8192,uds-path=u=5,socket=s5,guest-cid=5");

	(void)state;
	assert_int_equal(c.n_vms, 2);
	assert_vm(&c.vms[0], 4, "s4", "u4");
	assert_int_equal(c.vms[0].tx_buffer_size, 16777216);
	assert_int_equal(c.vms[0].queue_size, 1);
	assert_int_equal(c.vms[0].max_connections, 1);
	assert_int_equal(c.vms[0].max_handshakes, 65536);
	assert_vm(&c.vms[1], 5, "s5", "u=5");
	assert_int_equal(c.vms[1].tx_buffer_size, 8192);
	assert_int_equal(c.vms[1].queue_size, 256);
	assert_int_equal(c.vms[1].max_connections, 3);
	assert_int_equal(c.vms[1].max_handshakes, 2);
	assert_int_equal(c.vms[1].n_groups, 2);
	assert_string_equal(c.vms[1].groups[1], "c");
	configuration_free(&c);
}

static void assert_ports_9001_and_9002(const struct vm_configuration *vm)
{
	assert_int_equal(vm->forward_cid, 1);
	assert_int_equal(vm->n_listens, 2);
	assert_int_equal(vm->listens[0].first, 9001);
	assert_int_equal(vm->listens[1].first, 9002);
	assert_int_equal(vm->listens[1].address.family, PORT_VSOCK);
}

/* The uses that vhost-device-vsock's README shows, for unix sockets and for vsock. */
static void test_the_documented_uses_of_vhost_device_vsock_work(void **state)
{
	static const struct {
		const char *arguments;
		size_t n_vms;
		uint64_t last_cid;
		const char *last_socket;
		const char *last_uds_path;
		uint32_t last_tx_buffer_size;
		const char *last_groups[2];
	} uses[] = {
		{"--guest-cid=4 --socket=/tmp/vhost4.socket --uds-path=/tmp/vm4.vsock",
		 1,
		 4,
		 "/tmp/vhost4.socket",
		 "/tmp/vm4.vsock",
		 262144,
		 {"default"}},
		{"--guest-cid 4 --socket /tmp/vhost4.socket --uds-path /tmp/vm4.vsock "
		 "--tx-buffer-size 65536 --queue-size 1024 --groups group1+groupA",
		 1,
		 4,
		 "/tmp/vhost4.socket",
		 "/tmp/vm4.vsock",
		 65536,
		 {"group1", "groupA"}},
		{"--vm guest-cid=3,socket=/tmp/vhost3.socket,uds-path=/tmp/vm3.vsock,"
		 "groups=group1+groupA "
		 "--vm guest-cid=4,socket=/tmp/vhost4.socket,uds-path=/tmp/vm4.vsock,"
		 "tx-buffer-size=32768,queue-size=256",
		 2,
		 4,
		 "/tmp/vhost4.socket",
		 "/tmp/vm4.vsock",
		 32768,
		 {"default"}},
		{"--vm guest-cid=3,socket=/tmp/vhost3.socket,uds-path=/tmp/vm3.vsock,"
		 "groups=group1+groupA "
		 "--vm guest-cid=4,socket=/tmp/vhost4.socket,uds-path=/tmp/vm4.vsock,"
		 "tx-buffer-size=32768,queue-size=256 "
		 "--vm guest-cid=5,socket=/tmp/vhost5.socket,forward-cid=1,"
		 "forward-listen=9001+9002,tx-buffer-size=32768,queue-size=1024",
		 3,
		 5,
		 "/tmp/vhost5.socket",
		 NULL,
		 32768,
		 {"default"}},
		{"--vm guest-cid=4,forward-cid=1,forward-listen=9001+9002,"
		 "socket=/tmp/vhost4.socket",
		 1,
		 4,
		 "/tmp/vhost4.socket",
		 NULL,
		 262144,
		 {"default"}},
		{"--guest-cid=4 --socket=/tmp/vhost4.socket --forward-cid=1 "
		 "--forward-listen=9001+9002 --tx-buffer-size=65536 --queue-size=1024",
		 1,
		 4,
		 "/tmp/vhost4.socket",
		 NULL,
		 65536,
		 {"default"}},
		{"--vm guest-cid=4,uds-path=/tmp/vm4.vsock,socket=/tmp/vhost4.socket",
		 1,
		 4,
		 "/tmp/vhost4.socket",
		 "/tmp/vm4.vsock",
		 262144,
		 {"default"}},
		{"--vm guest-cid=4,uds-path=/tmp/vm4.vsock,socket=/tmp/vhost4.socket,"
		 "tx-buffer-size=65536,queue-size=1024",
		 1,
		 4,
		 "/tmp/vhost4.socket",
		 "/tmp/vm4.vsock",
		 65536,
		 {"default"}},
		{"--vm guest-cid=3,uds-path=/tmp/vm3.vsock,socket=/tmp/vhost3.socket,"
		 "groups=group1+group2 "
		 "--vm guest-cid=4,uds-path=/tmp/vm4.vsock,socket=/tmp/vhost4.socket,groups=group1",
		 2,
		 4,
		 "/tmp/vhost4.socket",
		 "/tmp/vm4.vsock",
		 262144,
		 {"group1"}},
		{"--vm socket=/tmp/vhost3.socket,uds_path=/tmp/vm3.vsock "
		 "--vm socket=/tmp/vhost4.socket,uds-path=/tmp/vm4.vsock,guest-cid=4,"
		 "tx_buffer_size=65536,queue_size=1024,groups=group1 "
		 "--vm groups=group2+group3,guest-cid=5,socket=/tmp/vhost5.socket,"
		 "uds_path=/tmp/vm5.vsock,tx-buffer-size=32768,queue_size=256",
		 3,
		 5,
		 "/tmp/vhost5.socket",
		 "/tmp/vm5.vsock",
		 32768,
		 {"group2", "group3"}},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(uses) / sizeof(uses[0]); i++) {
		struct configuration c = parse_good(uses[i].arguments);
		const struct vm_configuration *last = &c.vms[c.n_vms - 1];

		assert_int_equal(c.n_vms, uses[i].n_vms);
		assert_vm(last, uses[i].last_cid, uses[i].last_socket, uses[i].last_uds_path);
		assert_int_equal(last->tx_buffer_size, uses[i].last_tx_buffer_size);
		assert_int_equal(last->n_groups, uses[i].last_groups[1] ? 2 : 1);
		for (size_t group = 0; group < last->n_groups; group++)
			assert_string_equal(last->groups[group], uses[i].last_groups[group]);
		/* Where it is shown without a uds-path it has the other back-end. */
		if (!uses[i].last_uds_path)
			assert_ports_9001_and_9002(last);
		configuration_free(&c);
	}
}

static void test_socket_path_is_another_name_of_socket(void **state)
{
	struct configuration c = parse_good("--socket-path=/run/a --uds-path=/run/b");

	(void)state;
	assert_vm(&c.vms[0], 3, "/run/a", "/run/b");
	configuration_free(&c);
}

static void test_fd_stands_in_for_the_socket(void **state)
{
	struct configuration c = parse_good("--fd=7 --uds-path=/run/b");

	(void)state;
	assert_int_equal(c.vms[0].socket_fd, 7);
	assert_null(c.vms[0].socket);
	configuration_free(&c);
}

static void assert_access(const struct listener_access *found, mode_t mode, uid_t owner,
			  gid_t group)
{
	assert_int_equal(found->mode, mode);
	assert_int_equal(found->owner, owner);
	assert_int_equal(found->group, group);
}

static void test_sockets_are_for_their_owner_unless_said_otherwise(void **state)
{
	struct configuration c = parse_good(ONE_VM);

	(void)state;
	assert_access(&c.vms[0].socket_access, 0600, (uid_t)-1, (gid_t)-1);
	assert_access(&c.vms[0].uds_access, 0600, (uid_t)-1, (gid_t)-1);
	configuration_free(&c);
}

static void test_access_is_taken_as_names_and_numbers_in_both_forms(void **state)
{
	struct configuration c = parse_good(
		ONE_VM "--socket-mode 0660 --socket-owner root --socket-group 4294967294 "
		       "--uds-mode=777 --uds-owner=12 --uds-group=root");

	(void)state;
	assert_access(&c.vms[0].socket_access, 0660, 0, 4294967294);
	assert_access(&c.vms[0].uds_access, 0777, 12, 0);
	configuration_free(&c);

	c = parse_good("--vm socket=s,uds-path=u,socket-mode=0,uds_group=root "
		       "--vm guest-cid=4,socket=t,uds-path=v,uds-owner=0,uds-mode=620,"
		       "socket_owner=13,socket-group=14");
	assert_access(&c.vms[0].socket_access, 0, (uid_t)-1, (gid_t)-1);
	assert_access(&c.vms[0].uds_access, 0600, (uid_t)-1, 0);
	assert_access(&c.vms[1].socket_access, 0600, 13, 14);
	assert_access(&c.vms[1].uds_access, 0620, 0, (gid_t)-1);
	configuration_free(&c);
}

static void test_access_that_cannot_be_is_refused(void **state)
{
	static const struct refusal refusals[] = {
		{ONE_VM "--socket-mode rw", EX_USAGE,
		 "vm 3: socket-mode \"rw\": not an octal number; give 0 to 777, as 660"},
		{ONE_VM "--uds-mode 680", EX_USAGE,
		 "vm 3: uds-mode \"680\": not an octal number; give 0 to 777, as 660"},
		{ONE_VM "--uds-mode ''", EX_USAGE,
		 "vm 3: uds-mode \"\": not an octal number; give 0 to 777, as 660"},
		{ONE_VM "--socket-mode 1777", EX_DATAERR,
		 "vm 3: socket-mode \"1777\": too large; give 0 to 777, as 660"},
		{ONE_VM "--socket-mode 7777777777777777777777777", EX_DATAERR,
		 "vm 3: socket-mode \"7777777777777777777777777\": too large; "
		 "give 0 to 777, as 660"},
		{"--vm guest-cid=9,socket=s,uds-path=u,socket-owner=no.such.user", EX_NOUSER,
		 "vm 9: socket-owner \"no.such.user\": there is no such user; "
		 "give a name or a number"},
		{ONE_VM "--uds-group no.such.group", EX_NOUSER,
		 "vm 3: uds-group \"no.such.group\": there is no such group; "
		 "give a name or a number"},
		{ONE_VM "--uds-owner 4294967295", EX_NOUSER,
		 "vm 3: uds-owner \"4294967295\": there is no such user; "
		 "give a name or a number"},
		{ONE_VM "--uds-owner ''", EX_NOUSER,
		 "vm 3: uds-owner \"\": there is no such user; give a name or a number"},
		{ONE_VM "--uds-owner 1 --uds-owner 1", EX_USAGE,
		 "--uds-owner is given more than once"},
		{"--fd 3 --uds-path u --socket-group root", EX_USAGE,
		 "--socket-group and --fd exclude each other; the socket of --fd exists "
		 "already, whoever made it sets that"},
		{"--vm socket=s,uds-path=u --uds-mode 600", EX_USAGE,
		 "--uds-mode describes a single VM and cannot be given with --vm; "
		 "use one of the two forms"},
	};

	(void)state;
	CHECK_REFUSALS(refusals);
}

static void test_user_is_one_that_exists(void **state)
{
	static const struct refusal refusals[] = {
		{ONE_VM "--user no.such.user", EX_NOUSER,
		 "user \"no.such.user\": there is no such user; create it, or name another"},
		{ONE_VM "--user 4294967294", EX_NOUSER,
		 "user \"4294967294\": there is no such user; create it, or name another"},
		{ONE_VM "--user ''", EX_NOUSER,
		 "user \"\": there is no such user; create it, or name another"},
		{"--vm socket=s,uds-path=u,user=root", EX_USAGE,
		 "--vm \"socket=s,uds-path=u,user=root\": unknown key \"user\"; known "
		 "are " KNOWN_KEYS},
	};
	struct configuration c = parse_good(ONE_VM);

	(void)state;
	assert_false(c.has_user);
	configuration_free(&c);
	c = parse_good("--vm socket=s,uds-path=u --user root");
	assert_true(c.has_user);
	assert_int_equal(c.user, 0);
	assert_int_equal(c.group, 0);
	configuration_free(&c);
	CHECK_REFUSALS(refusals);
}

/* The text as it is printed; to be freed. */
static char *print_policy(enum policy_role role)
{
	char *text = NULL;
	size_t len;
	FILE *stream = open_memstream(&text, &len);

	assert_non_null(stream);
	configuration_print_policy(stream, role);
	assert_int_equal(fclose(stream), 0);
	return text;
}

static void test_the_printed_policy_has_each_call_and_comparison_of_the_table(void **state)
{
	size_t n_rules;
	const struct policy_rule *rules = policy_rules(&n_rules);

	(void)state;
	for (int role = 0; role < POLICY_ROLE_MAX; role++) {
		char *text = print_policy((enum policy_role)role), *again;
		char last[64];
		size_t n_calls = 0;

		for (size_t i = 0; i < n_rules; i++) {
			if (rules[i].role != (enum policy_role)role)
				continue;
			/* The rules of one call stand together. */
			n_calls += i == 0 || rules[i].number != rules[i - 1].number;
			assert_non_null(strstr(text, rules[i].call));
			assert_non_null(strstr(text, rules[i].reason));
			for (size_t j = 0; j < POLICY_COMPARISONS_MAX; j++)
				if (rules[i].comparisons[j].kind != POLICY_ANY)
					assert_non_null(strstr(text, rules[i].comparisons[j].text));
		}
		snprintf(last, sizeof(last), "\n%zu system calls\n", n_calls);
		assert_string_equal(text + strlen(text) - strlen(last), last);
		again = print_policy((enum policy_role)role);
		assert_string_equal(again, text);
		free(again);
		free(text);
	}
}

static void test_print_policy_takes_the_name_of_a_role(void **state)
{
	static const struct refusal refusals[] = {
		{"--print-policy spawner", EX_USAGE,
		 "print-policy \"spawner\": unknown role; give front, worker or exporter"},
		{"--print-policy", EX_USAGE, "\"--print-policy\" needs a value; see vsockd --help"},
	};
	struct configuration c = parse_good("--print-policy worker --nonsense");

	(void)state;
	assert_int_equal(c.action, CONFIGURATION_POLICY);
	assert_int_equal(c.policy_role, POLICY_WORKER);
	configuration_free(&c);
	c = parse_good("--print-policy=front");
	assert_int_equal(c.policy_role, POLICY_FRONT);
	configuration_free(&c);
	c = parse_good("--print-policy=exporter");
	assert_int_equal(c.policy_role, POLICY_EXPORTER);
	configuration_free(&c);
	CHECK_REFUSALS(refusals);
}

static void test_metrics_by_tcp_are_for_this_host_alone(void **state)
{
	static const struct refusal refusals[] = {
		{ONE_VM "--metrics-http 10.0.0.1:9100", EX_USAGE,
		 "metrics-http \"10.0.0.1:9100\": the address is not one of loopback; others are "
		 "reached by any host"},
		{ONE_VM "--metrics-http [::]:9100", EX_USAGE,
		 "metrics-http \"[::]:9100\": the address is not one of loopback; others are "
		 "reached "
		 "by any host"},
		{ONE_VM "--metrics-http 9100", EX_USAGE,
		 "metrics-http \"9100\": give an address and a port, as 127.0.0.1:9100 or "
		 "[::1]:9100"},
		{ONE_VM "--metrics-http localhost:9100", EX_USAGE,
		 "metrics-http \"localhost:9100\": give an address and a port, as 127.0.0.1:9100 "
		 "or "
		 "[::1]:9100"},
		{ONE_VM "--metrics-http 127.0.0.1:0", EX_USAGE,
		 "metrics-http \"127.0.0.1:0\": a TCP port is a number from 1 to 65535"},
		{ONE_VM "--metrics-http [::1]:65536", EX_USAGE,
		 "metrics-http \"[::1]:65536\": a TCP port is a number from 1 to 65535"},
	};
	static const struct refusal without[] = {
		{ONE_VM "--metrics-http 127.0.0.1:9100", EX_USAGE,
		 "metrics-http \"127.0.0.1:9100\": this vsockd was built without libmicrohttpd; "
		 "metrics gives the same on a unix socket"},
	};
	struct configuration c = parse_good("--socket s --uds-path u");

	(void)state;
	assert_int_equal(c.metrics_http.family, PORT_DENY);
	configuration_free(&c);
	if (!configuration_has_exporter) {
		CHECK_REFUSALS(without);
		return;
	}
	c = parse_good("--socket s --uds-path u --metrics-http=127.1.2.3:9100");
	assert_int_equal(c.metrics_http.family, PORT_TCP);
	assert_int_equal(c.metrics_http.port, 9100);
	configuration_free(&c);
	c = parse_good("--socket s --uds-path u --metrics-http [::1]:1");
	assert_true(IN6_IS_ADDR_LOOPBACK(&c.metrics_http.ip));
	configuration_free(&c);
	CHECK_REFUSALS(refusals);
}

static void test_print_capabilities_wins_over_everything_else(void **state)
{
	struct configuration c = parse_good("--nonsense --vm x --print-capabilities more");

	(void)state;
	assert_int_equal(c.action, CONFIGURATION_CAPABILITIES);
	assert_int_equal(c.n_vms, 0);
	configuration_free(&c);
	assert_string_equal(configuration_capabilities, "{\"type\": \"vsock\"}\n");
}

static void test_help_and_version_end_the_command_line(void **state)
{
	struct configuration c = parse_good("--socket a --help --nonsense");

	(void)state;
	assert_int_equal(c.action, CONFIGURATION_HELP);
	assert_int_equal(c.n_vms, 0);
	configuration_free(&c);
	c = parse_good("--version --nonsense");
	assert_int_equal(c.action, CONFIGURATION_VERSION);
	configuration_free(&c);
}

static void test_no_line_of_the_help_is_wider_than_80_columns(void **state)
{
	size_t column = 0;

	(void)state;
	for (size_t i = 0; configuration_help[i]; i++) {
		for (const char *c = configuration_help[i]; *c; c++) {
			column = *c == '\n' ? 0 : column + 1;
			assert_true(column <= 80);
		}
	}
	assert_int_equal(column, 0);
}

static void test_a_malformed_command_line_is_refused_with_usage(void **state)
{
	static const struct refusal refusals[] = {
		{"", EX_USAGE,
		 "no VM was given; add --socket PATH and --uds-path PATH, --vm or --config; "
		 "see vsockd --help"},
		{"--log-level debug", EX_USAGE,
		 "no VM was given; add --socket PATH and --uds-path PATH, --vm or --config; "
		 "see vsockd --help"},
		{"--forward 1", EX_USAGE, "unknown option \"--forward\"; see vsockd --help"},
		{"--guest 3", EX_USAGE, "unknown option \"--guest\"; see vsockd --help"},
		{"--guest=3", EX_USAGE, "unknown option \"--guest=3\"; see vsockd --help"},
		{"--insecure-no-seccom", EX_USAGE,
		 "unknown option \"--insecure-no-seccom\"; see vsockd --help"},
		{"--insecure", EX_USAGE, "unknown option \"--insecure\"; see vsockd --help"},
		{"-s /tmp/s", EX_USAGE, "unknown option \"-s\"; see vsockd --help"},
		{"--socket", EX_USAGE, "\"--socket\" needs a value; see vsockd --help"},
		{"--insecure-no-seccomp=1", EX_USAGE,
		 "\"--insecure-no-seccomp=1\": this option takes no value"},
		{"--socket s extra", EX_USAGE, "unexpected argument \"extra\"; see vsockd --help"},
		{"--socket s -- extra", EX_USAGE,
		 "unexpected argument \"extra\"; see vsockd --help"},
		{"--socket s - --uds-path u", EX_USAGE,
		 "unexpected argument \"-\"; see vsockd --help"},
		{"''", EX_USAGE, "unexpected argument \"\"; see vsockd --help"},
		{"--socket s --socket-path s", EX_USAGE,
		 "--socket is given more than once (--socket-path is the same)"},
		{"--guest-cid 3 --guest-cid 3", EX_USAGE, "--guest-cid is given more than once"},
		{"--socket s --fd 3 --uds-path u", EX_USAGE,
		 "--socket and --fd exclude each other; give one of them"},
		{"--vm socket=s,uds-path=u --guest-cid 4", EX_USAGE,
		 "--guest-cid describes a single VM and cannot be given with --vm; "
		 "use one of the two forms"},
		{"--fd 4 --vm socket=s,uds-path=u", EX_USAGE,
		 "--fd describes a single VM and cannot be given with --vm; "
		 "use one of the two forms"},
		{"--uds-path u", EX_USAGE,
		 "vm 3: no socket was given; add --socket PATH or --fd FDNUM"},
		{"--guest-cid 9 --socket s", EX_USAGE,
		 "vm 9: no uds-path was given; add --uds-path PATH"},
		{"--vm guest-cid=9,uds-path=u", EX_USAGE,
		 "vm 9: no socket was given; add socket=PATH to its --vm"},
		{"--vm socket=s", EX_USAGE,
		 "vm 3: no uds-path was given; add uds-path=PATH to its --vm"},
		{"--vm socket", EX_USAGE,
		 "--vm \"socket\": \"socket\" is not KEY=VALUE (a value cannot contain a comma)"},
		{"--vm socket=s,", EX_USAGE,
		 "--vm \"socket=s,\": \"\" is not KEY=VALUE (a value cannot contain a comma)"},
		{"--vm ''", EX_USAGE,
		 "--vm \"\": \"\" is not KEY=VALUE (a value cannot contain a comma)"},
		{"--vm socket=s,socket=t,uds-path=u", EX_USAGE,
		 "--vm \"socket=s,socket=t,uds-path=u\": key socket is given more than once"},
		{"--vm forward_cids=1,socket=s", EX_USAGE,
		 "--vm \"forward_cids=1,socket=s\": unknown key \"forward-cids\"; known "
		 "are " KNOWN_KEYS},
		{"--vm fd=3,uds-path=u", EX_USAGE,
		 "--vm \"fd=3,uds-path=u\": unknown key \"fd\"; known are " KNOWN_KEYS},
		{ONE_VM "--offer inband-notifications+", EX_USAGE,
		 "vm 3: offer \"inband-notifications+\": unknown; give inband-notifications or "
		 "gpa-addresses, or both joined by '+'"},
		{ONE_VM "--offer inband", EX_USAGE,
		 "vm 3: offer \"inband\": unknown; give inband-notifications or gpa-addresses, or "
		 "both joined by '+'"},
		{"--socket s --uds-path u --log-level loud", EX_USAGE,
		 "log-level \"loud\": unknown; give error, warning, notice, info or debug"},
		{ONE_VM "--control-group 0", EX_USAGE,
		 "--control-group is given without --control; add --control PATH"},
		{ONE_VM "--control=", EX_DATAERR,
		 "control \"\": no file name; give the path of the socket"},
		{ONE_VM "--control c --control-mode 999", EX_USAGE,
		 "control-mode \"999\": not an octal number; give 0 to 777, as 660"},
		{ONE_VM "--control s", EX_DATAERR,
		 "control \"s\": it is also the socket of vm 3; choose another path"},
		{ONE_VM "--control u_7", EX_DATAERR,
		 "control \"u_7\": it is port 7 of uds-path \"u\" of vm 3; choose another path"},
		{ONE_VM "--control " LEN_107_BYTES "x", EX_DATAERR,
		 "control \"/aaaaaaaaaaaaaaaaaaa/aaaaaaaaaaaaaaaaaaa/aaaaaaaaaaaaaaaaaaa/aaaaaaa"
		 "aaaaaaaaaaaa/aaaaaaaaaaaaaaabbbb\": the path has 108 bytes, a unix socket allows "
		 "107; choose a shorter one"},
		{"--socket s --uds-path u --worker=", EX_DATAERR,
		 "worker \"\": the path is empty; give that of vsockd-worker"},
	};

	(void)state;
	CHECK_REFUSALS(refusals);
}

static void test_a_number_out_of_its_limits_is_refused(void **state)
{
	static const struct refusal refusals[] = {
		{ONE_VM "--guest-cid 0", EX_DATAERR,
		 "guest-cid \"0\": reserved, no guest may have it; give 3 to 4294967294"},
		{ONE_VM "--guest-cid 1", EX_DATAERR,
		 "guest-cid \"1\": reserved, no guest may have it; give 3 to 4294967294"},
		{ONE_VM "--guest-cid 2", EX_DATAERR,
		 "guest-cid \"2\": reserved, no guest may have it; give 3 to 4294967294"},
		{ONE_VM "--guest-cid 4294967295", EX_DATAERR,
		 "guest-cid \"4294967295\": too large; give 3 to 4294967294"},
		{ONE_VM "--guest-cid 4294967299", EX_DATAERR,
		 "guest-cid \"4294967299\": too large; give 3 to 4294967294"},
		{ONE_VM "--guest-cid 18446744073709551619", EX_DATAERR,
		 "guest-cid \"18446744073709551619\": too large; give 3 to 4294967294"},
		{"--vm guest-cid=2,socket=s", EX_DATAERR,
		 "--vm \"guest-cid=2,socket=s\": guest-cid \"2\": reserved, no guest may have it; "
		 "give 3 to 4294967294"},
		{ONE_VM "--guest-cid ''", EX_USAGE,
		 "guest-cid \"\": not a decimal number; give 3 to 4294967294"},
		{ONE_VM "--guest-cid 0x4", EX_USAGE,
		 "guest-cid \"0x4\": not a decimal number; give 3 to 4294967294"},
		{ONE_VM "--guest-cid -4", EX_USAGE,
		 "guest-cid \"-4\": not a decimal number; give 3 to 4294967294"},
		{ONE_VM "--guest-cid +4", EX_USAGE,
		 "guest-cid \"+4\": not a decimal number; give 3 to 4294967294"},
		{ONE_VM "--tx-buffer-size 64k", EX_USAGE,
		 "vm 3: tx-buffer-size \"64k\": not a decimal number; "
		 "give 4096 to 16777216 bytes"},
		{ONE_VM "--tx-buffer-size 4095", EX_DATAERR,
		 "vm 3: tx-buffer-size \"4095\": too small; give 4096 to 16777216 bytes"},
		{ONE_VM "--tx-buffer-size 16777217", EX_DATAERR,
		 "vm 3: tx-buffer-size \"16777217\": too large; give 4096 to 16777216 bytes"},
		{ONE_VM "--queue-size 0", EX_DATAERR,
		 "vm 3: queue-size \"0\": too small; give 1 to 32768"},
		{ONE_VM "--queue-size 100", EX_DATAERR,
		 "vm 3: queue-size \"100\": not a power of two; give 1 to 32768"},
		{ONE_VM "--queue-size 65536", EX_DATAERR,
		 "vm 3: queue-size \"65536\": too large; give 1 to 32768"},
		{ONE_VM "--max-connections 0", EX_DATAERR,
		 "vm 3: max-connections \"0\": too small; give 1 to 65536"},
		{ONE_VM "--max-connections 65537", EX_DATAERR,
		 "vm 3: max-connections \"65537\": too large; give 1 to 65536"},
		{ONE_VM "--max-handshakes 4294967297", EX_DATAERR,
		 "vm 3: max-handshakes \"4294967297\": too large; give 1 to 65536"},
		{"--vm guest-cid=8,socket=s,uds-path=u,max-handshakes=many", EX_USAGE,
		 "vm 8: max-handshakes \"many\": not a decimal number; give 1 to 65536"},
		{"--fd 2 --uds-path u", EX_DATAERR,
		 "vm 3: fd \"2\": too small; give 3 to 2147483647"},
		{"--fd 2147483648 --uds-path u", EX_DATAERR,
		 "vm 3: fd \"2147483648\": too large; give 3 to 2147483647"},
	};

	(void)state;
	CHECK_REFUSALS(refusals);
}

#define GROUPS_8	   "a+a+a+a+a+a+a+a"
#define GROUPS_32	   GROUPS_8 "+" GROUPS_8 "+" GROUPS_8 "+" GROUPS_8
#define NAME_64		   "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define WHAT_GROUPS_CAN_BE "; give at most 32 names of 1 to 64 bytes, joined by '+'"

static void test_groups_are_checked(void **state)
{
	static const struct refusal refusals[] = {
		{ONE_VM "--groups ''", EX_DATAERR,
		 "vm 3: groups \"\": a name is empty" WHAT_GROUPS_CAN_BE},
		{ONE_VM "--groups a+", EX_DATAERR,
		 "vm 3: groups \"a+\": a name is empty" WHAT_GROUPS_CAN_BE},
		{ONE_VM "--groups a++b", EX_DATAERR,
		 "vm 3: groups \"a++b\": a name is empty" WHAT_GROUPS_CAN_BE},
		{ONE_VM "--groups b+" NAME_64 "a", EX_DATAERR,
		 "vm 3: groups \"b+" NAME_64 "a\": a name is too long" WHAT_GROUPS_CAN_BE},
		{ONE_VM "--groups " GROUPS_32 "+a", EX_DATAERR,
		 "vm 3: groups \"" GROUPS_32 "+a\": too many names" WHAT_GROUPS_CAN_BE},
	};
	struct configuration c;

	(void)state;
	CHECK_REFUSALS(refusals);
	c = parse_good(ONE_VM "--groups " GROUPS_32);
	assert_int_equal(c.vms[0].n_groups, CONFIGURATION_GROUPS_MAX);
	configuration_free(&c);
	c = parse_good(ONE_VM "--groups " NAME_64);
	assert_string_equal(c.vms[0].groups[0], NAME_64);
	configuration_free(&c);
}

static void check_rules(const struct port_rule *rules, size_t n_rules, const char *const *texts,
			size_t n_texts)
{
	assert_int_equal(n_rules, n_texts);
	for (size_t i = 0; i < n_texts; i++) {
		char text[PORT_TEXT_SIZE];

		ports_print(&rules[i], text);
		assert_string_equal(text, texts[i]);
	}
}

static void test_rules_for_ports_are_kept_in_their_order(void **state)
{
	static const char *const connects[] = {"80:unix:/w", "1-9:deny"};
	static const char *const listens[] = {"22:abstract:s", "9001:vsock:any:9001",
					      "9002:vsock:any:9002"};
	static const char *const forms[] = {
		ONE_VM "--connect 80:unix:/w --forward-listen 9001+9002 --listen 22:abstract:s "
		       "--connect=1-9:deny --forward-cid 1 --ok off --wait 7",
		"--vm socket=s,uds-path=u,connect=80:unix:/w,wait=7,forward_listen=9001+9002,"
		"connect=1-9:deny,listen=22:abstract:s,forward-cid=1,ok=off",
	};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		struct configuration c = parse_good(forms[i]);
		const struct vm_configuration *vm = &c.vms[0];

		check_rules(vm->connects, vm->n_connects, connects, 2);
		check_rules(vm->listens, vm->n_listens, listens, 3);
		assert_int_equal(vm->forward_cid, 1);
		assert_true(vm->is_quiet);
		assert_int_equal(vm->wait_s, 7);
		configuration_free(&c);
	}
}

static void test_a_vm_with_rules_needs_no_uds_path(void **state)
{
	static const char *const enough[] = {"--connect 1:deny", "--listen 1:tcp",
					     "--forward-cid 3", "--forward-listen 5"};

	(void)state;
	for (size_t i = 0; i < sizeof(enough) / sizeof(enough[0]); i++) {
		struct configuration c;
		char text[64];

		snprintf(text, sizeof(text), "--socket s %s", enough[i]);
		c = parse_good(text);
		assert_null(c.vms[0].uds_path);
		configuration_free(&c);
	}
}

#define AS_IN_VSOCKD "; give PORT:ADDRESS as in vsockd(8), PORTS"

#define RANGES "give at most 64 ports or ranges joined by '+', as 22+8000-8080"

static void test_lists_of_ports_are_read_and_checked(void **state)
{
	static const struct refusal refusals[] = {
		{ONE_VM "--allow-outgoing ''", EX_DATAERR, "vm 3: allow-outgoing \"\": " RANGES},
		{ONE_VM "--deny-incoming 1+", EX_DATAERR, "vm 3: deny-incoming \"1+\": " RANGES},
		{ONE_VM "--deny-outgoing 2-1", EX_DATAERR, "vm 3: deny-outgoing \"2-1\": " RANGES},
		{ONE_VM "--allow-incoming 4294967296", EX_DATAERR,
		 "vm 3: allow-incoming \"4294967296\": " RANGES},
		{ONE_VM "--allow-incoming 22 --listen 23:tcp", EX_DATAERR,
		 "vm 3: listen: port 23 is not one that allow-incoming and deny-incoming let in"},
		{ONE_VM "--max-bandwidth 65535", EX_DATAERR,
		 "vm 3: max-bandwidth \"65535\": too small; give 65536 to 1099511627776 bytes a "
		 "second"},
		{ONE_VM "--max-connection-rate 0", EX_DATAERR,
		 "vm 3: max-connection-rate \"0\": too small; give 1 to 1000000 a second"},
	};
	struct configuration c;

	(void)state;
	CHECK_REFUSALS(refusals);
	c = parse_good(ONE_VM "--allow-outgoing 22+8000-8080 --deny-outgoing 8001 --deny-incoming "
			      "0-1023 --max-bandwidth 1000000 --max-connection-rate 5");
	assert_int_equal(c.vms[0].outgoing.n_allowed, 2);
	assert_true(ports_pass(&c.vms[0].outgoing, 8000));
	assert_false(ports_pass(&c.vms[0].outgoing, 8001));
	assert_false(ports_pass(&c.vms[0].outgoing, 23));
	assert_false(ports_pass(&c.vms[0].incoming, 1023));
	assert_true(ports_pass(&c.vms[0].incoming, 1024));
	assert_int_equal(c.vms[0].max_bandwidth, 1000000);
	assert_int_equal(c.vms[0].max_connection_rate, 5);
	configuration_free(&c);
}

static void test_lists_of_users_are_read_and_checked(void **state)
{
	static const struct refusal refusals[] = {
		{ONE_VM "--allow-uid nobody-of-this-name", EX_NOUSER,
		 "vm 3: allow-uid \"nobody-of-this-name\": there is no such one; give names or "
		 "numbers, joined by '+'"},
		{ONE_VM "--deny-uid 1000+", EX_NOUSER,
		 "vm 3: deny-uid \"\": there is no such one; give names or numbers, joined by '+'"},
		{ONE_VM "--allow-gid 4294967295", EX_NOUSER,
		 "vm 3: allow-gid \"4294967295\": there is no such one; give names or numbers, "
		 "joined by '+'"},
		{ONE_VM "--deny-gid "
			"1+2+3+4+5+6+7+8+9+10+11+12+13+14+15+16+17+18+19+20+21+22+23+24+25+26+27+28"
			"+29+30+31+32+33",
		 EX_DATAERR,
		 "vm 3: deny-gid \"1+2+3+4+5+6+7+8+9+10+11+12+13+14+15+16+17+18+19+20+21+22+23+24+"
		 "25+26+27+28+29+30+31+32+33\": give at most 32, joined by '+'"},
		{ONE_VM "--deny-uid 0 --listen 23:tcp", EX_DATAERR,
		 "vm 3: listen: who connects to port 23 by TCP or vsock has no user to allow or "
		 "deny; leave that out, or allow-uid and the others"},
		{ONE_VM "--allow-gid 0 --forward-listen 24", EX_DATAERR,
		 "vm 3: listen: who connects to port 24 by TCP or vsock has no user to allow or "
		 "deny; leave that out, or allow-uid and the others"},
	};
	struct configuration c;

	(void)state;
	CHECK_REFUSALS(refusals);
	c = parse_good(ONE_VM "--allow-uid root+1000 --deny-uid 7 --allow-gid 8 --deny-gid root "
			      "--connect 80:tcp --listen 81:abstract:a");
	assert_int_equal(c.vms[0].peers.allowed_users.n, 2);
	assert_int_equal(c.vms[0].peers.allowed_users.ids[0], 0);
	assert_int_equal(c.vms[0].peers.allowed_users.ids[1], 1000);
	assert_int_equal(c.vms[0].peers.denied_users.n, 1);
	assert_int_equal(c.vms[0].peers.denied_users.ids[0], 7);
	assert_int_equal(c.vms[0].peers.allowed_groups.ids[0], 8);
	assert_int_equal(c.vms[0].peers.denied_groups.n, 1);
	assert_int_equal(c.vms[0].peers.denied_groups.ids[0], 0);
	configuration_free(&c);
}

static void test_rules_for_ports_are_checked(void **state)
{
	static const struct refusal refusals[] = {
		{ONE_VM "--connect 80", EX_DATAERR,
		 "vm 3: connect \"80\": it does not begin with PORT: or PORT-PORT:" AS_IN_VSOCKD},
		{ONE_VM "--connect 1:deny --connect 2:tcp:10.0.0.1", EX_DATAERR,
		 "vm 3: connect \"2:tcp:10.0.0.1\": the address is not one of loopback; others "
		 "are reached by any host" AS_IN_VSOCKD},
		{ONE_VM "--listen 1:deny", EX_DATAERR,
		 "vm 3: listen \"1:deny\": an address begins with unix:, abstract:, tcp or "
		 "vsock:" AS_IN_VSOCKD},
		{ONE_VM "--forward-cid 0", EX_DATAERR,
		 "vm 3: forward-cid \"0\": give 1 to 4294967294"},
		{ONE_VM "--forward-cid 4294967295", EX_DATAERR,
		 "vm 3: forward-cid \"4294967295\": give 1 to 4294967294"},
		{ONE_VM "--forward-listen 1+", EX_DATAERR,
		 "vm 3: forward-listen \"1+\": give at most 64 ports from 0 to 4294967294, joined "
		 "by '+'"},
		{ONE_VM "--forward-listen 4294967295", EX_DATAERR,
		 "vm 3: forward-listen \"4294967295\": give at most 64 ports from 0 to 4294967294, "
		 "joined by '+'"},
		{ONE_VM "--ok maybe", EX_USAGE, "vm 3: ok \"maybe\": give on or off"},
		{ONE_VM "--wait 3601", EX_DATAERR,
		 "vm 3: wait \"3601\": too large; give 0 to 3600 seconds"},
		{"--socket /x/a --listen 1:unix:/x/a", EX_DATAERR,
		 "vm 3: listen \"/x/a\": it is also the socket of vm 3; choose another path"},
		{"--socket s --uds-path /x/u --listen 1:unix:/x/u_5", EX_DATAERR,
		 "vm 3: listen \"/x/u_5\": it is port 5 of uds-path \"/x/u\" of vm 3; choose "
		 "another path"},
	};
	char many[70 * 20] = "";
	struct configuration_error error;
	struct configuration c;

	(void)state;
	CHECK_REFUSALS(refusals);
	strcpy(many, "--socket s");
	for (int i = 0; i < 65; i++)
		strcat(many, " --connect 1:deny");
	assert_int_equal(parse(many, &c, &error), EX_DATAERR);
}

static void test_a_path_must_fit_with_its_longest_port(void **state)
{
	static const struct refusal refusals[] = {
		{"--socket s --uds-path " LEN_96_BYTES "b", EX_DATAERR,
		 "vm 3: uds-path \"" LEN_96_BYTES "b\": the path has 97 bytes, a unix socket "
		 "with _PORT appended allows 96; choose a shorter one"},
		{"--uds-path u --socket " LEN_107_BYTES "b", EX_DATAERR,
		 "vm 3: socket \"" LEN_96_BYTES "bbbb\": the path has 108 bytes, a unix socket "
		 "allows 107; choose a shorter one"},
		{"--socket '' --uds-path u", EX_DATAERR,
		 "vm 3: socket \"\": no file name; give the path of the socket"},
		{"--socket s --uds-path /tmp/", EX_DATAERR,
		 "vm 3: uds-path \"/tmp/\": no file name; give the path of the socket"},
	};
	struct configuration c;

	(void)state;
	CHECK_REFUSALS(refusals);
	c = parse_good("--socket " LEN_107_BYTES " --uds-path " LEN_96_BYTES);
	assert_vm(&c.vms[0], 3, LEN_107_BYTES, LEN_96_BYTES);
	configuration_free(&c);
}

static void test_vms_that_share_a_cid_or_a_path_are_refused(void **state)
{
	static const struct refusal refusals[] = {
		{"--vm guest-cid=4,socket=a,uds-path=b --vm guest-cid=4,socket=c,uds-path=d",
		 EX_DATAERR, "vm 4: guest-cid 4 is given to two VMs; each needs its own"},
		{"--vm socket=a,uds-path=b --vm socket=c,uds-path=d", EX_DATAERR,
		 "vm 3: guest-cid 3 is given to two VMs; each needs its own"},
		{"--socket /x/a --uds-path /x/a", EX_DATAERR,
		 "vm 3: uds-path \"/x/a\": it is also the socket of vm 3; choose another path"},
		{"--vm guest-cid=4,socket=a,uds-path=b --vm guest-cid=5,socket=a,uds-path=d",
		 EX_DATAERR,
		 "vm 5: socket \"a\": it is also the socket of vm 4; choose another path"},
		{"--vm guest-cid=4,socket=a,uds-path=b --vm guest-cid=5,socket=b,uds-path=d",
		 EX_DATAERR,
		 "vm 5: socket \"b\": it is also the uds-path of vm 4; choose another path"},
		{"--vm guest-cid=4,socket=a,uds-path=b --vm guest-cid=5,socket=c,uds-path=b",
		 EX_DATAERR,
		 "vm 5: uds-path \"b\": it is also the uds-path of vm 4; choose another path"},
		{"--socket /x/a_5 --uds-path /x/a", EX_DATAERR,
		 "vm 3: socket \"/x/a_5\": it is port 5 of uds-path \"/x/a\" of vm 3; "
		 "choose another path"},
		{"--vm guest-cid=4,socket=s4,uds-path=a "
		 "--vm guest-cid=5,socket=s5,uds-path=a_4294967295",
		 EX_DATAERR,
		 "vm 5: uds-path \"a_4294967295\": it is port 4294967295 of uds-path \"a\" of vm "
		 "4; "
		 "choose another path"},
		{"--vm guest-cid=4,socket=a_0,uds-path=b --vm guest-cid=5,socket=c,uds-path=a",
		 EX_DATAERR,
		 "vm 4: socket \"a_0\": it is port 0 of uds-path \"a\" of vm 5; "
		 "choose another path"},
	};
	struct configuration c;

	(void)state;
	CHECK_REFUSALS(refusals);
	/* None of these is the path of a port. */
	c = parse_good("--vm guest-cid=4,socket=a_05,uds-path=a "
		       "--vm guest-cid=5,socket=a_4294967296,uds-path=a_x "
		       "--vm guest-cid=6,socket=a_,uds-path=a5 "
		       "--vm guest-cid=7,socket=a_99999999999,uds-path=a_5a");
	assert_int_equal(c.n_vms, 4);
	configuration_free(&c);
}

static void test_only_256_vms_fit(void **state)
{
	char text[32768];
	size_t len = 0;
	struct configuration c;
	struct configuration_error error;

	(void)state;
	for (unsigned int i = 0; i < CONFIGURATION_VMS_MAX; i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len,
					"--vm guest-cid=%u,socket=s%u,uds-path=u%u ", i + 3, i, i);
	c = parse_good(text);
	assert_int_equal(c.n_vms, CONFIGURATION_VMS_MAX);
	assert_int_equal(configuration_n_files(&c), 256 * (4096 + 128) + 64);
	configuration_free(&c);

	snprintf(text + len, sizeof(text) - len, "--vm guest-cid=999,socket=s,uds-path=u");
	assert_int_equal(parse(text, &c, &error), EX_USAGE);
	assert_string_equal(error.text, "--vm is given more than 256 times; start another vsockd");
}

static void test_the_files_needed_are_the_sum_over_the_vms(void **state)
{
	struct configuration c = parse_good("--vm socket=a,uds-path=b,max-connections=100 "
					    "--vm guest-cid=4,socket=c,uds-path=d");

	(void)state;
	assert_int_equal(configuration_n_files(&c), 64 + (100 + 128) + (4096 + 128));
	configuration_free(&c);
	c = parse_good("--socket a --uds-path b --max-connections=100 --control c");
	assert_int_equal(configuration_n_files(&c), 64 + 32 + (100 + 128));
	configuration_free(&c);
}

static void test_an_error_is_one_printable_line(void **state)
{
	struct configuration c;
	struct configuration_error error;

	(void)state;
	assert_int_equal(parse("--no\n\x1b[31m\x7fsuch", &c, &error), EX_USAGE);
	assert_string_equal(error.text, "unknown option \"--no??[31m?such\"; see vsockd --help");
}

static void test_a_long_argument_is_cut_in_the_error(void **state)
{
	char text[4096];
	struct configuration c;
	struct configuration_error error;

	(void)state;
	memset(text, 'x', sizeof(text));
	memcpy(text, "--vm ", 5);
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(parse(text, &c, &error), EX_USAGE);
	assert_non_null(strstr(error.text, "is not KEY=VALUE (a value cannot contain a comma)"));
	assert_true(strlen(error.text) < 320);
}

/* What follows needs directories: a fresh one for each test, entered. */

struct room {
	char path[64];
	int old_directory;
};

static int enter_room(void **state)
{
	struct room *room = calloc(1, sizeof(*room));

	if (!room)
		return -1;
	strcpy(room->path, "/tmp/test_configuration.XXXXXX");
	room->old_directory = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (room->old_directory < 0 || !mkdtemp(room->path) || chdir(room->path) < 0) {
		free(room);
		return -1;
	}
	*state = room;
	return 0;
}

static int leave_room(void **state)
{
	static const char *const names[] = {"file", "link", "pipe", "socket"};
	static const char *const directories[] = {"alias", "one", "closed", "occupied"};
	struct room *room = *state;
	int r;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unlink(names[i]);
	for (size_t i = 0; i < sizeof(directories) / sizeof(directories[0]); i++)
		if (unlink(directories[i]) < 0)
			rmdir(directories[i]);
	r = fchdir(room->old_directory);
	close(room->old_directory);
	if (rmdir(room->path) < 0)
		r = -1;
	free(room);
	return r;
}

static void assert_paths(const char *arguments, int code, const char *message)
{
	struct configuration c = parse_good(arguments);
	struct configuration_error error = {""};
	int r = configuration_check_paths(&c, &error);

	configuration_free(&c);
	assert_string_equal(error.text, message);
	assert_int_equal(r, code);
}

static int bind_socket(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	strcpy(address.sun_path, path);
	assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void test_good_paths_pass_and_stay_as_they_are(void **state)
{
	int fd = bind_socket("socket");
	struct stat before, after;

	(void)state;
	assert_int_equal(mkdir("one", 0700), 0);
	assert_int_equal(lstat("socket", &before), 0);
	assert_paths("--socket socket --uds-path one/uds", 0, "");
	assert_int_equal(lstat("socket", &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	assert_int_equal(access("one/uds", F_OK), -1);
	close(fd);
}

static void test_a_directory_that_is_missing_is_named(void **state)
{
	int fd = open("file", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	assert_paths("--socket none/s --uds-path u", EX_NOINPUT,
		     "vm 3: socket \"none/s\": directory \"none\": No such file or directory; "
		     "create it, or choose another path");
	assert_paths("--socket s --uds-path /nowhere-at-all/u", EX_NOINPUT,
		     "vm 3: uds-path \"/nowhere-at-all/u\": directory \"/nowhere-at-all\": "
		     "No such file or directory; create it, or choose another path");
	assert_paths("--socket file/s --uds-path u", EX_NOINPUT,
		     "vm 3: socket \"file/s\": directory \"file\": Not a directory; "
		     "create it, or choose another path");
}

static void test_what_is_in_the_way_is_named(void **state)
{
	int fd = open("file", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(symlink("socket", "link"), 0);
	assert_int_equal(mkdir("occupied", 0700), 0);
	assert_paths("--socket file --uds-path u", EX_CANTCREAT,
		     "vm 3: socket \"file\": a regular file is in the way, not a socket; "
		     "remove it, or choose another path");
	assert_paths("--socket s --uds-path link", EX_CANTCREAT,
		     "vm 3: uds-path \"link\": a symbolic link is in the way, not a socket; "
		     "remove it, or choose another path");
	assert_paths("--socket occupied --uds-path u", EX_CANTCREAT,
		     "vm 3: socket \"occupied\": a directory is in the way, not a socket; "
		     "remove it, or choose another path");
	assert_int_equal(mkfifo("pipe", 0600), 0);
	assert_paths("--socket pipe --uds-path u", EX_CANTCREAT,
		     "vm 3: socket \"pipe\": a device or pipe is in the way, not a socket; "
		     "remove it, or choose another path");
}

/* The rights of the effective user count: root gives them up for a moment. */
static void test_a_directory_that_is_not_writable_is_named_with_mode_and_owner(void **state)
{
	bool is_root = geteuid() == 0;
	struct configuration c = parse_good("--guest-cid 4 --socket closed/s --uds-path u");
	struct configuration_error error = {""};
	int r;

	(void)state;
	assert_int_equal(mkdir("closed", 0755), 0);
	assert_int_equal(chmod("closed", is_root ? 0755 : 0555), 0);
	if (is_root) {
		assert_int_equal(chmod(".", 0777), 0);
		assert_int_equal(seteuid(65534), 0);
	}
	r = configuration_check_paths(&c, &error);
	if (is_root)
		assert_int_equal(seteuid(0), 0);
	configuration_free(&c);
	assert_int_equal(r, EX_NOPERM);
	if (is_root)
		assert_string_equal(
			error.text,
			"vm 4: socket \"closed/s\": directory is not writable by vsockd "
			"(mode 0755, owner root); change that, or choose another path");
	else
		assert_non_null(strstr(error.text, "is not writable by vsockd (mode 0555, owner "));
}

static void test_two_spellings_of_one_path_clash(void **state)
{
	(void)state;
	assert_int_equal(mkdir("one", 0700), 0);
	assert_int_equal(symlink("one", "alias"), 0);
	assert_paths("--socket one/a --uds-path alias/a", EX_DATAERR,
		     "vm 3: uds-path \"alias/a\": it is also the socket of vm 3; "
		     "choose another path");
	assert_paths("--socket ./one//a_7 --uds-path one/a", EX_DATAERR,
		     "vm 3: socket \"./one//a_7\": it is port 7 of uds-path \"one/a\" of vm 3; "
		     "choose another path");
	assert_paths("--socket one/a --uds-path ./a", 0, "");
}

static void assert_fd(int fd, int code, const char *format)
{
	char arguments[64];
	char message[256] = "";

	snprintf(arguments, sizeof(arguments), "--fd %d --uds-path u", fd);
	if (format)
		snprintf(message, sizeof(message), "vm 3: fd %d %s", fd, format);
	assert_paths(arguments, code, message);
}

static void test_the_fd_must_be_a_unix_stream_socket(void **state)
{
	int pair[2], pipes[2], datagrams[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, datagrams), 0);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_fd(pair[0], 0, NULL);
	assert_fd(pipes[0], EX_DATAERR,
		  "is not a unix stream socket; pass on a listening or connected one");
	assert_fd(datagrams[0], EX_DATAERR,
		  "is not a unix stream socket; pass on a listening or connected one");
	for (size_t i = 0; i < 2; i++) {
		close(pair[i]);
		close(pipes[i]);
		close(datagrams[i]);
	}
	assert_fd(pair[0], EX_NOINPUT, "is not open; pass it on to vsockd");
}

#define IN_ROOM(test) cmocka_unit_test_setup_teardown(test, enter_room, leave_room)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_vm_with_the_least_options_gets_the_defaults),
		cmocka_unit_test(test_every_option_of_one_vm_is_taken),
		cmocka_unit_test(test_every_key_of_vm_is_taken_in_both_spellings),
		cmocka_unit_test(test_the_documented_uses_of_vhost_device_vsock_work),
		cmocka_unit_test(test_socket_path_is_another_name_of_socket),
		cmocka_unit_test(test_fd_stands_in_for_the_socket),
		cmocka_unit_test(test_sockets_are_for_their_owner_unless_said_otherwise),
		cmocka_unit_test(test_access_is_taken_as_names_and_numbers_in_both_forms),
		cmocka_unit_test(test_access_that_cannot_be_is_refused),
		cmocka_unit_test(test_user_is_one_that_exists),
		cmocka_unit_test(test_the_printed_policy_has_each_call_and_comparison_of_the_table),
		cmocka_unit_test(test_print_policy_takes_the_name_of_a_role),
		cmocka_unit_test(test_metrics_by_tcp_are_for_this_host_alone),
		cmocka_unit_test(test_print_capabilities_wins_over_everything_else),
		cmocka_unit_test(test_help_and_version_end_the_command_line),
		cmocka_unit_test(test_no_line_of_the_help_is_wider_than_80_columns),
		cmocka_unit_test(test_a_malformed_command_line_is_refused_with_usage),
		cmocka_unit_test(test_a_number_out_of_its_limits_is_refused),
		cmocka_unit_test(test_groups_are_checked),
		cmocka_unit_test(test_rules_for_ports_are_kept_in_their_order),
		cmocka_unit_test(test_a_vm_with_rules_needs_no_uds_path),
		cmocka_unit_test(test_rules_for_ports_are_checked),
		cmocka_unit_test(test_lists_of_ports_are_read_and_checked),
		cmocka_unit_test(test_lists_of_users_are_read_and_checked),
		cmocka_unit_test(test_a_path_must_fit_with_its_longest_port),
		cmocka_unit_test(test_vms_that_share_a_cid_or_a_path_are_refused),
		cmocka_unit_test(test_only_256_vms_fit),
		cmocka_unit_test(test_the_files_needed_are_the_sum_over_the_vms),
		cmocka_unit_test(test_an_error_is_one_printable_line),
		cmocka_unit_test(test_a_long_argument_is_cut_in_the_error),
		IN_ROOM(test_good_paths_pass_and_stay_as_they_are),
		IN_ROOM(test_a_directory_that_is_missing_is_named),
		IN_ROOM(test_what_is_in_the_way_is_named),
		IN_ROOM(test_a_directory_that_is_not_writable_is_named_with_mode_and_owner),
		IN_ROOM(test_two_spellings_of_one_path_clash),
		IN_ROOM(test_the_fd_must_be_a_unix_stream_socket),
	};

	return cmocka_run_group_tests_name("configuration", tests, NULL, NULL);
}
