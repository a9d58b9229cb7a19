/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <syslog.h>
#include <unistd.h>

#include "broker/configuration_paths.h"
#include "policy/policy.h"

/* Listeners, channels, epoll, rings and memory regions of one VM, next to its connections. */
#define FILES_PER_VM	 64
#define FILES_OF_PROCESS 64

#define GROUP_LEN_MAX 64

enum key {
	KEY_GUEST_CID,
	KEY_SOCKET,
	KEY_UDS_PATH,
	KEY_TX_BUFFER_SIZE,
	KEY_QUEUE_SIZE,
	KEY_GROUPS,
	KEY_MAX_CONNECTIONS,
	KEY_MAX_HANDSHAKES,
	N_VM_KEYS, /* the keys of --vm end here */
	KEY_FD = N_VM_KEYS,
	N_SINGLE_VM_KEYS,
	KEY_LOG_LEVEL = N_SINGLE_VM_KEYS,
	KEY_WORKER,
	N_KEYS,
};

static const char *const key_names[N_KEYS] = {
	[KEY_GUEST_CID] = "guest-cid",
	[KEY_SOCKET] = "socket",
	[KEY_UDS_PATH] = "uds-path",
	[KEY_TX_BUFFER_SIZE] = "tx-buffer-size",
	[KEY_QUEUE_SIZE] = "queue-size",
	[KEY_GROUPS] = "groups",
	[KEY_MAX_CONNECTIONS] = "max-connections",
	[KEY_MAX_HANDSHAKES] = "max-handshakes",
	[KEY_FD] = "fd",
	[KEY_LOG_LEVEL] = "log-level",
	[KEY_WORKER] = "worker",
};

struct number_limits {
	uint64_t minimum;
	uint64_t maximum;
	uint64_t preset;
	const char *unit;
};

static const struct number_limits number_limits[N_KEYS] = {
	/* virtio 1.3, 5.10.4: 0, 1, 2 and 0xffffffff are reserved, the upper 32 bits are zero. */
	[KEY_GUEST_CID] = {3, UINT32_MAX - 1, 3, ""},
	[KEY_TX_BUFFER_SIZE] = {4096, 16u << 20, CONFIGURATION_TX_BUFFER_DEFAULT, " bytes"},
	/* virtio 1.3, 2.7: the size of a split ring is a power of two, at most 32768. */
	[KEY_QUEUE_SIZE] = {1, 32768, CONFIGURATION_QUEUE_SIZE_DEFAULT, ""},
	[KEY_MAX_CONNECTIONS] = {1, 65536, CONFIGURATION_CONNECTIONS_DEFAULT, ""},
	[KEY_MAX_HANDSHAKES] = {1, 65536, CONFIGURATION_HANDSHAKES_DEFAULT, ""},
	/* 0 to 2 are the standard streams in the conventions for vhost-user programs. */
	[KEY_FD] = {STDERR_FILENO + 1, INT_MAX, 0, ""},
};

enum {
	OPTION_KEY = 256, /* above every character that getopt_long() returns by itself */
	OPTION_VM = OPTION_KEY + N_KEYS,
	OPTION_HELP,
	OPTION_VERSION,
	OPTION_CAPABILITIES,
	OPTION_NO_NAMESPACES,
	OPTION_NO_SECCOMP,
};

static const struct option options[] = {
	{"guest-cid", required_argument, NULL, OPTION_KEY + KEY_GUEST_CID},
	{"socket", required_argument, NULL, OPTION_KEY + KEY_SOCKET},
	{"socket-path", required_argument, NULL, OPTION_KEY + KEY_SOCKET},
	{"fd", required_argument, NULL, OPTION_KEY + KEY_FD},
	{"uds-path", required_argument, NULL, OPTION_KEY + KEY_UDS_PATH},
	{"tx-buffer-size", required_argument, NULL, OPTION_KEY + KEY_TX_BUFFER_SIZE},
	{"queue-size", required_argument, NULL, OPTION_KEY + KEY_QUEUE_SIZE},
	{"groups", required_argument, NULL, OPTION_KEY + KEY_GROUPS},
	{"max-connections", required_argument, NULL, OPTION_KEY + KEY_MAX_CONNECTIONS},
	{"max-handshakes", required_argument, NULL, OPTION_KEY + KEY_MAX_HANDSHAKES},
	{"vm", required_argument, NULL, OPTION_VM},
	{"log-level", required_argument, NULL, OPTION_KEY + KEY_LOG_LEVEL},
	{"worker", required_argument, NULL, OPTION_KEY + KEY_WORKER},
	{"insecure-no-namespaces", no_argument, NULL, OPTION_NO_NAMESPACES},
	{"insecure-no-seccomp", no_argument, NULL, OPTION_NO_SECCOMP},
	{"print-capabilities", no_argument, NULL, OPTION_CAPABILITIES},
	{"help", no_argument, NULL, OPTION_HELP},
	{"version", no_argument, NULL, OPTION_VERSION},
	{NULL, 0, NULL, 0},
};

struct command_line {
	enum configuration_action action;
	const char *values[N_KEYS];
	const char *vms[CONFIGURATION_VMS_MAX];
	size_t n_vms;
	uint32_t insecure;
};

/* One VM as it was typed. */
struct vm_arguments {
	const char *values[N_KEYS];
	bool is_single;	 /* from options of their own, not from --vm */
	char where[160]; /* begin of each error line: the VM, as soon as its CID is known */
};

int configuration_fail(struct configuration_error *ret_error, int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(ret_error->text, sizeof(ret_error->text), format, arguments);
	va_end(arguments);
	/* A quoted argument must not break the line or reach the terminal as a command. */
	for (char *c = ret_error->text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	return code;
}

int configuration_fail_memory(struct configuration_error *ret_error)
{
	return configuration_fail(ret_error, EX_OSERR, "out of memory");
}

/* Strict: digits only, no sign, no blank. 0, -EINVAL or -ERANGE. */
static int parse_decimal(const char *text, uint64_t *ret)
{
	uint64_t number = 0;

	if (!*text || text[strspn(text, "0123456789")])
		return -EINVAL;
	for (; *text; text++) {
		uint64_t digit = (uint64_t)(*text - '0');

		if (number > (UINT64_MAX - digit) / 10)
			return -ERANGE;
		number = number * 10 + digit;
	}
	*ret = number;
	return 0;
}

static int read_number(const struct vm_arguments *arguments, enum key key, uint64_t *ret,
		       struct configuration_error *ret_error)
{
	const struct number_limits *limits = &number_limits[key];
	const char *text = arguments->values[key];
	const char *reason = NULL;
	uint64_t number = 0;
	int code = EX_DATAERR;
	int r;

	if (!text) {
		*ret = limits->preset;
		return 0;
	}
	r = parse_decimal(text, &number);
	if (r == -EINVAL) {
		reason = "not a decimal number";
		code = EX_USAGE;
	} else if (r < 0 || number > limits->maximum) {
		reason = "too large";
	} else if (number < limits->minimum) {
		reason = key == KEY_GUEST_CID ? "reserved, no guest may have it" : "too small";
	} else if (key == KEY_QUEUE_SIZE && (number & (number - 1))) {
		reason = "not a power of two";
	}
	if (reason)
		return configuration_fail(ret_error, code,
					  "%s%s " QUOTED ": %s; give %" PRIu64 " to %" PRIu64 "%s",
					  arguments->where, key_names[key], text, reason,
					  limits->minimum, limits->maximum, limits->unit);
	*ret = number;
	return 0;
}

static int read_path(const struct vm_arguments *arguments, enum key key, char **ret,
		     struct configuration_error *ret_error)
{
	const char *path = arguments->values[key];
	size_t len_max =
		key == KEY_UDS_PATH ? CONFIGURATION_UDS_PATH_LEN_MAX : CONFIGURATION_SOCKET_LEN_MAX;
	const char *name = key_names[key];
	char *copy;
	size_t len;

	if (!path && arguments->is_single)
		return configuration_fail(ret_error, EX_USAGE, "%sno %s was given; add --%s PATH%s",
					  arguments->where, name, name,
					  key == KEY_SOCKET ? " or --fd FDNUM" : "");
	if (!path)
		return configuration_fail(ret_error, EX_USAGE,
					  "%sno %s was given; add %s=PATH to its --vm",
					  arguments->where, name, name);
	len = strlen(path);
	if (!len || path[len - 1] == '/')
		return configuration_fail(ret_error, EX_DATAERR,
					  "%s%s " QUOTED
					  ": no file name; give the path of the socket",
					  arguments->where, name, path);
	if (len > len_max)
		return configuration_fail(
			ret_error, EX_DATAERR,
			"%s%s " QUOTED ": the path has %zu bytes, a unix socket%s allows %zu; "
			"choose a shorter one",
			arguments->where, name, path, len,
			key == KEY_UDS_PATH ? " with _PORT appended" : "", len_max);
	copy = strdup(path);
	if (!copy)
		return configuration_fail_memory(ret_error);
	*ret = copy;
	return 0;
}

static int read_groups(const struct vm_arguments *arguments, struct vm_configuration *vm,
		       struct configuration_error *ret_error)
{
	const char *given = arguments->values[KEY_GROUPS];
	const char *text = given ? given : "default";

	vm->groups = calloc(CONFIGURATION_GROUPS_MAX, sizeof(*vm->groups));
	if (!vm->groups)
		return configuration_fail_memory(ret_error);
	for (const char *name = text; name;) {
		size_t len = strcspn(name, "+");

		if (!len || len > GROUP_LEN_MAX || vm->n_groups == CONFIGURATION_GROUPS_MAX)
			return configuration_fail(ret_error, EX_DATAERR,
						  "%sgroups " QUOTED
						  ": %s; give at most %d names of 1 to %d bytes, "
						  "joined by '+'",
						  arguments->where, text,
						  !len			? "a name is empty"
						  : len > GROUP_LEN_MAX ? "a name is too long"
									: "too many names",
						  CONFIGURATION_GROUPS_MAX, GROUP_LEN_MAX);
		vm->groups[vm->n_groups] = strndup(name, len);
		if (!vm->groups[vm->n_groups])
			return configuration_fail_memory(ret_error);
		vm->n_groups++;
		name = name[len] ? name + len + 1 : NULL;
	}
	return 0;
}

/* Fills vm as far as it gets; the caller frees it on failure too. */
static int read_vm(struct vm_arguments *arguments, struct vm_configuration *vm,
		   struct configuration_error *ret_error)
{
	const struct {
		enum key key;
		uint32_t *ret;
	} numbers[] = {
		{KEY_TX_BUFFER_SIZE, &vm->tx_buffer_size},
		{KEY_QUEUE_SIZE, &vm->queue_size},
		{KEY_MAX_CONNECTIONS, &vm->max_connections},
		{KEY_MAX_HANDSHAKES, &vm->max_handshakes},
	};
	uint64_t fd;
	int r;

	r = read_number(arguments, KEY_GUEST_CID, &vm->guest_cid, ret_error);
	if (r)
		return r;
	snprintf(arguments->where, sizeof(arguments->where), "vm %" PRIu64 ": ", vm->guest_cid);

	vm->socket_fd = -1;
	if (arguments->values[KEY_FD]) {
		r = read_number(arguments, KEY_FD, &fd, ret_error);
		if (r)
			return r;
		vm->socket_fd = (int)fd;
	} else {
		r = read_path(arguments, KEY_SOCKET, &vm->socket, ret_error);
		if (r)
			return r;
	}
	r = read_path(arguments, KEY_UDS_PATH, &vm->uds_path, ret_error);
	if (r)
		return r;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		uint64_t number;

		r = read_number(arguments, numbers[i].key, &number, ret_error);
		if (r)
			return r;
		*numbers[i].ret = (uint32_t)number; /* the maxima are below 2^32 */
	}
	return read_groups(arguments, vm, ret_error);
}

/* One KEY=VALUE of --vm; item is cut in two where it stands. */
static int read_vm_item(char *item, struct vm_arguments *arguments,
			struct configuration_error *ret_error)
{
	char *value = strchr(item, '=');

	if (!value)
		return configuration_fail(ret_error, EX_USAGE,
					  "%s" QUOTED
					  " is not KEY=VALUE (a value cannot contain a comma)",
					  arguments->where, item);
	*value++ = '\0';
	for (char *c = item; *c; c++)
		if (*c == '_')
			*c = '-';
	for (size_t key = 0; key < N_VM_KEYS; key++) {
		if (strcmp(item, key_names[key]) != 0)
			continue;
		if (arguments->values[key])
			return configuration_fail(ret_error, EX_USAGE,
						  "%skey %s is given more than once",
						  arguments->where, item);
		arguments->values[key] = value;
		return 0;
	}
	return configuration_fail(
		ret_error, EX_USAGE,
		"%sunknown key " QUOTED "; known are guest-cid, socket, uds-path, "
		"tx-buffer-size, queue-size, groups, max-connections and max-handshakes",
		arguments->where, item);
}

static int read_vm_text(const char *text, struct vm_configuration *vm,
			struct configuration_error *ret_error)
{
	struct vm_arguments arguments = {.is_single = false};
	char *copy = strdup(text);
	char *rest = copy;
	int r = 0;

	if (!copy)
		return configuration_fail_memory(ret_error);
	snprintf(arguments.where, sizeof(arguments.where), "--vm " QUOTED ": ", text);
	while (!r && rest)
		r = read_vm_item(strsep(&rest, ","), &arguments, ret_error);
	if (!r)
		r = read_vm(&arguments, vm, ret_error);
	free(copy);
	return r;
}

static int keep_value(struct command_line *line, enum key key, const char *value,
		      struct configuration_error *ret_error)
{
	if (line->values[key])
		return configuration_fail(ret_error, EX_USAGE, "--%s is given more than once%s",
					  key_names[key],
					  key == KEY_SOCKET ? " (--socket-path is the same)" : "");
	line->values[key] = value;
	return 0;
}

static int take_option(struct command_line *line, int option, const char *value,
		       struct configuration_error *ret_error)
{
	switch (option) {
	case OPTION_VM:
		if (line->n_vms == CONFIGURATION_VMS_MAX)
			return configuration_fail(
				ret_error, EX_USAGE,
				"--vm is given more than %d times; start another vsockd",
				CONFIGURATION_VMS_MAX);
		line->vms[line->n_vms++] = value;
		return 0;
	case OPTION_HELP:
		line->action = CONFIGURATION_HELP;
		return 0;
	case OPTION_VERSION:
		line->action = CONFIGURATION_VERSION;
		return 0;
	case OPTION_CAPABILITIES:
		line->action = CONFIGURATION_CAPABILITIES;
		return 0;
	case OPTION_NO_NAMESPACES:
		line->insecure |= POLICY_INSECURE_NO_NAMESPACES;
		return 0;
	case OPTION_NO_SECCOMP:
		line->insecure |= POLICY_INSECURE_NO_SECCOMP;
		return 0;
	default:
		return keep_value(line, (enum key)(option - OPTION_KEY), value, ret_error);
	}
}

/* Only whole names count: an abbreviation would change its meaning with a later version. */
static bool is_whole_name(const char *argument, const struct option *option)
{
	const char *name = argument + strlen("--");
	size_t len = strcspn(name, "=");

	return strlen(option->name) == len && strncmp(option->name, name, len) == 0;
}

static int read_command_line(int argc, char **argv, struct command_line *line,
			     struct configuration_error *ret_error)
{
	opterr = 0;
	optind = 0; /* glibc and musl: start anew */
	while (line->action == CONFIGURATION_RUN) {
		int at = optind ? optind : 1;
		int index = -1;
		int option = getopt_long(argc, argv, "+:", options, &index);
		int r;

		if (option == -1)
			break;
		if (option == ':')
			return configuration_fail(ret_error, EX_USAGE,
						  QUOTED " needs a value; see vsockd --help",
						  argv[at]);
		if (option == '?' && optopt >= OPTION_KEY)
			return configuration_fail(ret_error, EX_USAGE,
						  QUOTED ": this option takes no value", argv[at]);
		if (option == '?' || !is_whole_name(argv[at], &options[index]))
			return configuration_fail(ret_error, EX_USAGE,
						  "unknown option " QUOTED "; see vsockd --help",
						  argv[at]);
		r = take_option(line, option, optarg, ret_error);
		if (r)
			return r;
	}
	if (line->action == CONFIGURATION_RUN && optind < argc)
		return configuration_fail(ret_error, EX_USAGE,
					  "unexpected argument " QUOTED "; see vsockd --help",
					  argv[optind]);
	return 0;
}

static int check_forms(const struct command_line *line, struct configuration_error *ret_error)
{
	bool has_single = false;

	for (size_t key = 0; key < N_SINGLE_VM_KEYS; key++) {
		if (!line->values[key])
			continue;
		has_single = true;
		if (line->n_vms)
			return configuration_fail(
				ret_error, EX_USAGE,
				"--%s describes a single VM and cannot be given with --vm; "
				"use one of the two forms",
				key_names[key]);
	}
	if (!has_single && !line->n_vms)
		return configuration_fail(
			ret_error, EX_USAGE,
			"no VM was given; add --socket PATH and --uds-path PATH, or --vm; "
			"see vsockd --help");
	if (line->values[KEY_SOCKET] && line->values[KEY_FD])
		return configuration_fail(ret_error, EX_USAGE,
					  "--socket and --fd exclude each other; give one of them");
	return 0;
}

static int read_log_level(const char *text, int *ret, struct configuration_error *ret_error)
{
	static const struct {
		const char *name;
		int level;
	} levels[] = {
		{"error", LOG_ERR}, {"warning", LOG_WARNING}, {"notice", LOG_NOTICE},
		{"info", LOG_INFO}, {"debug", LOG_DEBUG},
	};

	if (!text) {
		*ret = LOG_INFO;
		return 0;
	}
	for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
		if (strcmp(text, levels[i].name) == 0) {
			*ret = levels[i].level;
			return 0;
		}
	}
	return configuration_fail(
		ret_error, EX_USAGE,
		"log-level " QUOTED ": unknown; give error, warning, notice, info or debug", text);
}

/* Fills configuration as far as it gets; the caller frees it on failure too. */
static int read_configuration(const struct command_line *line, struct configuration *configuration,
			      struct configuration_error *ret_error)
{
	int r = check_forms(line, ret_error);

	if (r)
		return r;
	r = read_log_level(line->values[KEY_LOG_LEVEL], &configuration->log_level, ret_error);
	if (r)
		return r;
	configuration->insecure = line->insecure;
	if (line->values[KEY_WORKER]) {
		if (!line->values[KEY_WORKER][0])
			return configuration_fail(
				ret_error, EX_DATAERR,
				"worker \"\": the path is empty; give that of vsockd-worker");
		configuration->worker = strdup(line->values[KEY_WORKER]);
		if (!configuration->worker)
			return configuration_fail_memory(ret_error);
	}
	configuration->n_vms = line->n_vms ? line->n_vms : 1;
	configuration->vms = calloc(configuration->n_vms, sizeof(*configuration->vms));
	if (!configuration->vms)
		return configuration_fail_memory(ret_error);
	if (!line->n_vms) {
		struct vm_arguments arguments = {.is_single = true};

		memcpy(arguments.values, line->values, sizeof(arguments.values));
		r = read_vm(&arguments, &configuration->vms[0], ret_error);
		if (r)
			return r;
	}
	for (size_t i = 0; i < line->n_vms; i++) {
		r = read_vm_text(line->vms[i], &configuration->vms[i], ret_error);
		if (r)
			return r;
	}
	return configuration_check_clashes(configuration, ret_error);
}

/* The conventions for vhost-user programs want it to win over everything else that is given. */
static bool asks_for_capabilities(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "--print-capabilities") == 0)
			return true;
	return false;
}

int configuration_parse(int argc, char **argv, struct configuration *ret,
			struct configuration_error *ret_error)
{
	struct command_line line = {.action = CONFIGURATION_RUN};
	struct configuration result = {.action = CONFIGURATION_RUN};
	int r = 0;

	if (asks_for_capabilities(argc, argv))
		line.action = CONFIGURATION_CAPABILITIES;
	else
		r = read_command_line(argc, argv, &line, ret_error);
	if (r)
		return r;
	if (line.action == CONFIGURATION_RUN)
		r = read_configuration(&line, &result, ret_error);
	if (r) {
		configuration_free(&result);
		return r;
	}
	result.action = line.action;
	*ret = result;
	return 0;
}

void configuration_free(struct configuration *configuration)
{
	for (size_t i = 0; configuration->vms && i < configuration->n_vms; i++) {
		struct vm_configuration *vm = &configuration->vms[i];

		for (size_t group = 0; group < vm->n_groups; group++)
			free(vm->groups[group]);
		free(vm->groups);
		free(vm->socket);
		free(vm->uds_path);
	}
	free(configuration->vms);
	free(configuration->worker);
	*configuration = (struct configuration){.action = CONFIGURATION_RUN};
}

uint64_t configuration_n_files(const struct configuration *configuration)
{
	uint64_t n_files = FILES_OF_PROCESS;

	for (size_t i = 0; i < configuration->n_vms; i++)
		n_files += (uint64_t)configuration->vms[i].max_connections + FILES_PER_VM;
	return n_files;
}
