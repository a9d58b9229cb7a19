/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <syslog.h>
#include <unistd.h>

#include "broker/configuration.h"

#define ARGUMENTS_MAX 64
#define PATH	      "vsockd.yaml"
#define VM	      "vms: [{socket: s, uds-path: u}]\n"

/* Each test runs in a directory of its own, which has nothing but the file. */
static int enter_room(void **state)
{
	static char directory[] = "/tmp/vsockd-unit-XXXXXX";

	memcpy(directory + strlen(directory) - 6, "XXXXXX", 6);
	*state = mkdtemp(directory);
	return *state && chdir(directory) == 0 ? 0 : -1;
}

static int leave_room(void **state)
{
	(void)unlink(PATH);
	return chdir("/") == 0 && rmdir(*state) == 0 ? 0 : -1;
}

static void write_file(const char *text, size_t len)
{
	FILE *file = fopen(PATH, "w");

	assert_non_null(file);
	assert_int_equal(fwrite(text, 1, len, file), len);
	assert_int_equal(fclose(file), 0);
}

/* line is split at blanks. */
static int parse_line(const char *line, struct configuration *ret,
		      struct configuration_error *ret_error)
{
	static char program[] = "vsockd";
	char *argv[ARGUMENTS_MAX] = {program};
	char *copy = strdup(line), *rest = copy;
	int argc = 1, r;

	assert_non_null(copy);
	while (rest && *rest) {
		assert_true(argc < ARGUMENTS_MAX - 1);
		argv[argc++] = strsep(&rest, " ");
	}
	r = configuration_parse(argc, argv, ret, ret_error);
	free(copy);
	return r;
}

static struct configuration parse_good(const char *text, const char *line)
{
	struct configuration configuration;
	struct configuration_error error;

	if (text)
		write_file(text, strlen(text));
	if (parse_line(line, &configuration, &error))
		fail_msg("%s was refused: %s", text ? text : line, error.text);
	return configuration;
}

/* Everything that --check-config shows of it. */
static char *printed(const struct configuration *configuration)
{
	char *text = NULL;
	size_t len;
	FILE *stream = open_memstream(&text, &len);

	assert_non_null(stream);
	configuration_print(stream, configuration);
	assert_int_equal(fclose(stream), 0);
	return text;
}

static void assert_same(const char *text, const char *line)
{
	struct configuration file = parse_good(text, "--config " PATH);
	struct configuration typed = parse_good(NULL, line);
	char *of_file = printed(&file), *of_line = printed(&typed);

	assert_string_equal(of_file, of_line);
	for (size_t i = 0; i < file.n_vms; i++)
		assert_int_equal(file.vms[i].queue_size, typed.vms[i].queue_size);
	assert_int_equal(file.log_level, typed.log_level);
	assert_int_equal(file.insecure, typed.insecure);
	assert_int_equal(file.experiments, typed.experiments);
	assert_int_equal(file.has_user, typed.has_user);
	assert_int_equal(file.user, typed.user);
	assert_int_equal(file.group, typed.group);
	free(of_file);
	free(of_line);
	configuration_free(&file);
	configuration_free(&typed);
}

static void assert_refused(const char *text, const char *message)
{
	struct configuration configuration = {.n_vms = 77};
	struct configuration_error error = {""};
	int r;

	write_file(text, strlen(text));
	r = parse_line("--config " PATH, &configuration, &error);
	if (r != EX_CONFIG)
		fail_msg("%.200s: exit code %d: %s", text, r, error.text);
	if (strcmp(error.text, message) != 0)
		fail_msg("%.200s: \"%s\" instead of \"%s\"", text, error.text, message);
	assert_int_equal(configuration.n_vms, 77);
}

/* The file of vhost-device-vsock's README. */
static void test_the_documented_file_of_vhost_device_vsock_is_taken_as_it_is(void **state)
{
	(void)state;
	assert_same("vms:\n"
		    "    - guest_cid: 3\n"
		    "      socket: /tmp/vhost3.socket\n"
		    "      uds_path: /tmp/vm3.vsock\n"
		    "      tx_buffer_size: 65536\n"
		    "      queue_size: 1024\n"
		    "      groups: group1+groupA\n"
		    "    - guest_cid: 4\n"
		    "      socket: /tmp/vhost4.socket\n"
		    "      uds_path: /tmp/vm4.vsock\n"
		    "      tx_buffer_size: 32768\n"
		    "      queue_size: 256\n"
		    "      groups: group2+groupB\n"
		    "    - guest_cid: 5\n"
		    "      socket: /tmp/vhost5.socket\n"
		    "      forward-cid: 1\n"
		    "      forward-listen: 9001+9002\n"
		    "      tx_buffer_size: 32768\n"
		    "      queue_size: 1024\n",
		    "--vm guest-cid=3,socket=/tmp/vhost3.socket,uds-path=/tmp/vm3.vsock,"
		    "tx-buffer-size=65536,queue-size=1024,groups=group1+groupA "
		    "--vm guest-cid=4,socket=/tmp/vhost4.socket,uds-path=/tmp/vm4.vsock,"
		    "tx-buffer-size=32768,queue-size=256,groups=group2+groupB "
		    "--vm guest-cid=5,socket=/tmp/vhost5.socket,forward-cid=1,"
		    "forward-listen=9001+9002,tx-buffer-size=32768,queue-size=1024");
}

static void test_every_key_is_taken_in_both_spellings(void **state)
{
	(void)state;
	assert_same("vms:\n"
		    "- {guest-cid: 4, socket: s, socket-mode: 0660, socket-owner: 1,\n"
		    "   socket-group: 2, uds-path: u, uds-mode: 777, uds-owner: root,\n"
		    "   uds-group: 3, tx-buffer-size: 4096, queue-size: 1, groups: a+b,\n"
		    "   max-connections: 5, max-handshakes: 6, offer: "
		    "inband-notifications+gpa-addresses}\n"
		    "- {guest_cid: 5, socket: t, socket_mode: 0660, socket_owner: 1,\n"
		    "   socket_group: 2, uds_path: v, uds_mode: 777, uds_owner: root,\n"
		    "   uds_group: 3, tx_buffer_size: 4096, queue_size: 1, groups: a+b,\n"
		    "   max_connections: 5, max_handshakes: 6, offer: "
		    "inband-notifications+gpa-addresses}\n"
		    "log_level: debug\n"
		    "user: root\n"
		    "control: c\n"
		    "control-mode: 660\n"
		    "experimental_suspend: true\n"
		    "insecure-no-namespaces: true\n"
		    "insecure_no_seccomp: false\n",
		    "--log-level debug --user root --control c --control-mode 660 "
		    "--insecure-no-namespaces --experimental-suspend "
		    "--vm guest-cid=4,socket=s,socket-mode=0660,socket-owner=1,socket-group=2,"
		    "uds-path=u,uds-mode=777,uds-owner=0,uds-group=3,tx-buffer-size=4096,"
		    "queue-size=1,groups=a+b,max-connections=5,max-handshakes=6,"
		    "offer=inband-notifications+gpa-addresses "
		    "--vm guest-cid=5,socket=t,socket-mode=0660,socket-owner=1,socket-group=2,"
		    "uds-path=v,uds-mode=777,uds-owner=0,uds-group=3,tx-buffer-size=4096,"
		    "queue-size=1,groups=a+b,max-connections=5,max-handshakes=6,"
		    "offer=inband-notifications+gpa-addresses");
}

static void test_a_vm_with_the_least_keys_gets_the_defaults(void **state)
{
	(void)state;
	assert_same(VM, "--socket s --uds-path u");
}

static void test_values_may_be_quoted_and_repeated_as_yaml_allows(void **state)
{
	(void)state;
	assert_same("# all of them in one group\n"
		    "vms:\n"
		    "  - {guest-cid: \"3\", socket: 's3', uds-path: u3, groups: &all one+two}\n"
		    "  - guest-cid: 4 # the second\n"
		    "    socket: s4\n"
		    "    uds-path: u4\n"
		    "    groups: *all\n",
		    "--vm guest-cid=3,socket=s3,uds-path=u3,groups=one+two "
		    "--vm guest-cid=4,socket=s4,uds-path=u4,groups=one+two");
}

static void test_rules_are_lists(void **state)
{
	(void)state;
	assert_same("vms:\n"
		    "  - socket: s\n"
		    "    uds-path: u\n"
		    "    connect:\n"
		    "      - 22:unix:/x\n"
		    "      - 23-25:deny\n"
		    "    listen: [7:tcp:8000]\n",
		    "--socket s --uds-path u --connect 22:unix:/x --connect 23-25:deny "
		    "--listen 7:tcp:8000");
	assert_same("vms: [{socket: s, uds-path: u, connect: []}]", "--socket s --uds-path u");
	assert_refused("vms:\n- socket: s\n  connect: 22:deny\n",
		       PATH ":3: connect: a single value where a list is expected, whose entries "
			    "begin with \"-\"");
	assert_refused("vms:\n- socket: s\n  uds-path: u\n  connect:\n    - [1]\n",
		       PATH ":5: connect: a list where a single value is expected");
	assert_refused("vms:\n- socket: s\n  uds-path: u\n  listen:\n    - 7:deny\n",
		       PATH ":5: vm 3: listen \"7:deny\": an address begins with unix:, abstract:, "
			    "tcp or vsock:; give PORT:ADDRESS as in vsockd(8), PORTS");
}

static void test_a_path_may_have_a_comma(void **state)
{
	struct configuration c =
		parse_good("vms: [{socket: \"a, b\", uds-path: u}]", "--config " PATH);

	(void)state;
	assert_string_equal(c.vms[0].socket, "a, b");
	configuration_free(&c);
}

static void test_the_command_line_counts_more_than_the_file(void **state)
{
	struct configuration c = parse_good(VM "log-level: error\nworker: /file\n",
					    "--config " PATH " --log-level debug");

	(void)state;
	assert_int_equal(c.log_level, LOG_DEBUG);
	assert_string_equal(c.worker, "/file");
	assert_string_equal(c.file, PATH);
	configuration_free(&c);
}

static void test_check_config_reads_the_same_file(void **state)
{
	struct configuration c = parse_good(VM, "--check-config " PATH);

	(void)state;
	assert_int_equal(c.action, CONFIGURATION_CHECK);
	assert_int_equal(c.n_vms, 1);
	configuration_free(&c);
}

static void test_a_form_that_is_wrong_is_told_with_its_line(void **state)
{
	(void)state;
	assert_refused("", PATH ":1: nothing in it; see vsockd.yaml(5)");
	assert_refused("vms: [{\n", PATH ":2: not YAML: did not find expected node content, while "
					 "parsing a flow node");
	assert_refused("[1]", PATH ":1: the file: a list where keys with values are expected, as "
				   "\"vms: ...\"");
	assert_refused("user: root\n", PATH ":1: the file: key vms is missing");
	assert_refused("vms: 1", PATH ":1: vms: a single value where a list is expected, whose "
				      "entries begin with \"-\"");
	assert_refused("vms:\n  - 1", PATH ":2: vms: a single value where keys with values are "
					   "expected, as \"guest-cid: ...\"");
	assert_refused("vms: []", PATH ":1: vms: 0 entries; give 1 to 256");
	assert_refused("vms:\n  - socket: [a]\n",
		       PATH ":2: socket: a list where a single value is expected");
	assert_refused("vms:\n  - ? [a]\n    : b\n", PATH ":2: a list in the place of a key");
	assert_refused(VM "---\nuser: root\n", PATH ":3: a second document; one file has one");
	assert_refused("vms:\n  - socket: \"a\\0b\"\n", PATH ":2: socket: a byte 0 in the value");
	assert_refused("vms: &all\n  - *all\n", PATH ":1: vms: a list where keys with values are "
						     "expected, as \"guest-cid: ...\"");
}

static void test_an_unknown_key_is_told_with_the_nearest_one(void **state)
{
	(void)state;
	assert_refused("vms:\n  - guest-cid: 3\n    sockt: s\n",
		       PATH ":3: unknown key \"sockt\"; did you mean \"socket\"?");
	assert_refused("vms:\n  - tx_bufer_size: 3\n",
		       PATH ":2: unknown key \"tx_bufer_size\"; did you mean \"tx_buffer_size\"?");
	assert_refused("vm:\n  - guest-cid: 3\n",
		       PATH ":1: unknown key \"vm\"; did you mean \"vms\"?");
	assert_refused(VM "zebra: 3\n",
		       PATH ":2: unknown key \"zebra\"; known are vms, user, log-level, worker, "
			    "control, control-mode, control-owner, control-group, metrics, "
			    "metrics-mode, metrics-owner, metrics-group, metrics-http, "
			    "experimental-suspend, insecure-no-namespaces, insecure-no-seccomp");
	/* One of a VM's, in the wrong place. */
	assert_refused(VM "uds-path: s\n",
		       PATH ":2: unknown key \"uds-path\"; known are vms, user, log-level, worker, "
			    "control, control-mode, control-owner, control-group, metrics, "
			    "metrics-mode, metrics-owner, metrics-group, metrics-http, "
			    "experimental-suspend, insecure-no-namespaces, insecure-no-seccomp");
}

static void test_a_key_that_is_given_twice_is_told(void **state)
{
	(void)state;
	assert_refused("vms:\n  - socket: s\n    uds-path: u\n    socket: s\n",
		       PATH ":4: key socket is given more than once, first in line 2");
	assert_refused("vms:\n  - uds-path: s\n    uds_path: u\n",
		       PATH ":3: uds-path and uds_path are the same key; give one of them");
}

static void test_a_wrong_value_is_told_with_its_line(void **state)
{
	(void)state;
	assert_refused("vms:\n  - socket: s\n    guest-cid: 2\n",
		       PATH ":3: guest-cid \"2\": reserved, no guest may have it; "
			    "give 3 to 4294967294");
	assert_refused("vms:\n  - socket: s\n\n    uds-path: u\n    queue_size: 100\n",
		       PATH ":5: vm 3: queue-size \"100\": not a power of two; give 1 to 32768");
	assert_refused("vms:\n  - socket: s\n    guest_cid: 4\n",
		       PATH ":2: vm 4: no uds-path was given; add \"uds-path: PATH\"");
	assert_refused("vms:\n  - {socket: s, uds-path: u, socket-mode: 888}\n",
		       PATH ":2: vm 3: socket-mode \"888\": not an octal number; give 0 to 777, "
			    "as 660");
	assert_refused("vms:\n  - {socket: s, uds-path: u}\n"
		       "  - {guest-cid: 4, socket: s, uds-path: v}\n",
		       PATH ":3: vm 4: socket \"s\": it is also the socket of vm 3; "
			    "choose another path");
	assert_refused(VM "control: u\n",
		       PATH ":2: control \"u\": it is also the uds-path of vm 3; "
			    "choose another path");
	assert_refused(VM "control-mode: 600\n",
		       PATH ":2: control-mode is given without control; add \"control: PATH\"");
	assert_refused(VM "user:\n",
		       PATH ":2: user \"\": there is no such user; create it, or name another");
	assert_refused(VM "log-level: loud\n",
		       PATH ":2: log-level \"loud\": unknown; give error, warning, notice, info "
			    "or debug");
	assert_refused(VM "insecure-no-seccomp: 1\n",
		       PATH ":2: insecure-no-seccomp \"1\": give true or false");
}

static void test_size_depth_and_counts_are_bounded(void **state)
{
	static char text[(1 << 20) + 2];
	size_t len = 0;
	struct configuration c;

	(void)state;
	memset(text, '[', sizeof(text) - 2);
	assert_refused(text, PATH ":1: lists in lists beyond all need");
	memset(text, '#', sizeof(text) - 1);
	assert_refused(text, "config \"" PATH "\": the file is larger than 1048576 bytes");
	for (int i = 0; i < 257; i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len, "- &a%d\n", i);
	assert_refused(text, PATH ":258: more than 256 anchors");
	memset(text, 'a', 5000);
	memcpy(text, "user: ", 6);
	text[5000] = '\0';
	assert_refused(text, PATH ":1: user: 4994 bytes; give at most 4096");

	len = (size_t)snprintf(text, sizeof(text), "vms:\n");
	for (int i = 3; i < 259; i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len,
					"- {guest-cid: %d, socket: s%d, uds-path: u%d}\n", i, i, i);
	c = parse_good(text, "--config " PATH);
	assert_int_equal(c.n_vms, 256);
	configuration_free(&c);
	snprintf(text + len, sizeof(text) - len, "- {guest-cid: 999, socket: s, uds-path: u}\n");
	assert_refused(text, PATH ":2: vms: 257 entries; give 1 to 256");
}

/* Every begin of a good file, and every byte of it changed. */
static void test_any_text_is_taken_or_refused_with_a_reason(void **state)
{
	static const char good[] = "vms:\n- {guest-cid: 4, socket: &a s, uds_path: 'u'}\n"
				   "- socket: *a\n  groups: \"a+b\"\nuser: root\n";
	static const char bytes[] = "[]{}:-&*!|>'\"%@#,? \n\t\\\x80";
	char text[sizeof(good)];

	(void)state;
	for (size_t i = 0; i < sizeof(good); i++) {
		for (size_t byte = 0; byte < sizeof(bytes); byte++) {
			struct configuration_error error = {""};
			struct configuration c;

			memcpy(text, good, sizeof(good));
			text[i] = bytes[byte];
			write_file(text, bytes[byte] ? sizeof(good) - 1 : i);
			if (parse_line("--config " PATH, &c, &error) == 0)
				configuration_free(&c);
			else
				assert_string_not_equal(error.text, "");
		}
	}
}

static void test_only_a_regular_file_is_read(void **state)
{
	struct configuration_error error;
	struct configuration c;

	(void)state;
	assert_int_equal(parse_line("--config none", &c, &error), EX_NOINPUT);
	assert_string_equal(error.text, "config \"none\": No such file or directory");
	assert_int_equal(parse_line("--config /tmp", &c, &error), EX_NOINPUT);
	assert_string_equal(error.text, "config \"/tmp\": not a regular file");
	assert_int_equal(mkfifo(PATH, 0600), 0);
	assert_int_equal(parse_line("--config " PATH, &c, &error), EX_NOINPUT);
	assert_string_equal(error.text, "config \"" PATH "\": not a regular file");
}

static void test_a_file_excludes_what_describes_vms(void **state)
{
	static const struct {
		const char *line;
		const char *message;
	} refusals[] = {
		{"--config " PATH " --vm socket=s,uds-path=u",
		 "--vm cannot be given with a configuration file, which describes all VMs"},
		{"--guest-cid 4 --config " PATH,
		 "--guest-cid cannot be given with a configuration file, which describes all VMs"},
		{"--config " PATH " --check-config " PATH,
		 "--config and --check-config: give one of them, once"},
		{"--config", "\"--config\" needs a value; see vsockd --help"},
	};

	(void)state;
	write_file(VM, strlen(VM));
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		struct configuration_error error;
		struct configuration c;

		assert_int_equal(parse_line(refusals[i].line, &c, &error), EX_USAGE);
		assert_string_equal(error.text, refusals[i].message);
	}
}

#define IN_ROOM(test) cmocka_unit_test_setup_teardown(test, enter_room, leave_room)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		IN_ROOM(test_the_documented_file_of_vhost_device_vsock_is_taken_as_it_is),
		IN_ROOM(test_every_key_is_taken_in_both_spellings),
		IN_ROOM(test_a_vm_with_the_least_keys_gets_the_defaults),
		IN_ROOM(test_values_may_be_quoted_and_repeated_as_yaml_allows),
		IN_ROOM(test_rules_are_lists),
		IN_ROOM(test_a_path_may_have_a_comma),
		IN_ROOM(test_the_command_line_counts_more_than_the_file),
		IN_ROOM(test_check_config_reads_the_same_file),
		IN_ROOM(test_a_form_that_is_wrong_is_told_with_its_line),
		IN_ROOM(test_an_unknown_key_is_told_with_the_nearest_one),
		IN_ROOM(test_a_key_that_is_given_twice_is_told),
		IN_ROOM(test_a_wrong_value_is_told_with_its_line),
		IN_ROOM(test_size_depth_and_counts_are_bounded),
		IN_ROOM(test_any_text_is_taken_or_refused_with_a_reason),
		IN_ROOM(test_only_a_regular_file_is_read),
		IN_ROOM(test_a_file_excludes_what_describes_vms),
	};

	return cmocka_run_group_tests_name("configuration file", tests, NULL, NULL);
}
