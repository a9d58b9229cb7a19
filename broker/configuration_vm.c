/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#define GROUP_LEN_MAX 64

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
	[KEY_MAX_CONNECTIONS] = {1, CONFIGURATION_CONNECTIONS_MAX,
				 CONFIGURATION_CONNECTIONS_DEFAULT, ""},
	[KEY_MAX_HANDSHAKES] = {1, CONFIGURATION_CONNECTIONS_MAX, CONFIGURATION_HANDSHAKES_DEFAULT,
				""},
	[KEY_WAIT] = {0, 3600, 0, " seconds"},
	[KEY_POLL_US] = {0, 10000, 0, " microseconds"},
	[KEY_MAX_CONNECTION_RATE] = {1, 1000000, 0, " a second"},
	[KEY_MAX_BANDWIDTH] = {65536, UINT64_C(1) << 40, 0, " bytes a second"},
	[KEY_MAX_BUFFER_MEMORY] = {1u << 20, UINT64_C(1) << 40, 0, " bytes"},
	/* 0 to 2 are the standard streams in the conventions for vhost-user programs. */
	[KEY_FD] = {STDERR_FILENO + 1, INT_MAX, 0, ""},
};

int configuration_parse_number(const char *text, unsigned int base, uint64_t *ret)
{
	uint64_t number = 0;

	if (!*text || text[strspn(text, base == 8 ? "01234567" : "0123456789")])
		return -EINVAL;
	for (; *text; text++) {
		uint64_t digit = (uint64_t)(*text - '0');

		if (number > (UINT64_MAX - digit) / base)
			return -ERANGE;
		number = number * base + digit;
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
	r = configuration_parse_number(text, 10, &number);
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
		return configuration_fail_at(ret_error, code, arguments, key,
					     "%s " QUOTED ": %s; give %" PRIu64 " to %" PRIu64 "%s",
					     configuration_keys[key], text, reason, limits->minimum,
					     limits->maximum, limits->unit);
	*ret = number;
	return 0;
}

static int fail_missing(const struct vm_arguments *arguments, enum key key,
			struct configuration_error *ret_error)
{
	const char *name = configuration_keys[key];

	switch (arguments->source) {
	case VM_FROM_OPTIONS:
		return configuration_fail_at(ret_error, EX_USAGE, arguments, key,
					     "no %s was given; add --%s PATH%s", name, name,
					     key == KEY_SOCKET ? " or --fd FDNUM" : "");
	case VM_FROM_TEXT:
		return configuration_fail_at(ret_error, EX_USAGE, arguments, key,
					     "no %s was given; add %s=PATH to its --vm", name,
					     name);
	default:
		return configuration_fail_at(ret_error, EX_USAGE, arguments, key,
					     "no %s was given; add \"%s: PATH\"", name, name);
	}
}

int configuration_read_path(const struct vm_arguments *arguments, enum key key, char **ret,
			    struct configuration_error *ret_error)
{
	const char *path = arguments->values[key];
	size_t len_max =
		key == KEY_UDS_PATH ? CONFIGURATION_UDS_PATH_LEN_MAX : CONFIGURATION_SOCKET_LEN_MAX;
	const char *name = configuration_keys[key];
	char *copy;
	size_t len;

	if (!path)
		return fail_missing(arguments, key, ret_error);
	len = strlen(path);
	if (!len || path[len - 1] == '/')
		return configuration_fail_at(
			ret_error, EX_DATAERR, arguments, key,
			"%s " QUOTED ": no file name; give the path of the socket", name, path);
	if (len > len_max)
		return configuration_fail_at(
			ret_error, EX_DATAERR, arguments, key,
			"%s " QUOTED ": the path has %zu bytes, a unix socket%s allows %zu; "
			"choose a shorter one",
			name, path, len, key == KEY_UDS_PATH ? " with _PORT appended" : "",
			len_max);
	copy = strdup(path);
	if (!copy)
		return configuration_fail_memory(ret_error);
	*ret = copy;
	return 0;
}

/* KEY_UDS_PATH leaves room for either suffix. */
static int read_uds_path(const struct vm_arguments *arguments, struct vm_configuration *vm,
			 struct configuration_error *ret_error)
{
	int r = configuration_read_path(arguments, KEY_UDS_PATH, &vm->uds_path, ret_error);

	if (!r &&
	    asprintf(&vm->message_path, "%s_" CONFIGURATION_MESSAGE_SUFFIX, vm->uds_path) < 0) {
		vm->message_path = NULL;
		return configuration_fail_memory(ret_error);
	}
	return r;
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
			return configuration_fail_at(
				ret_error, EX_DATAERR, arguments, KEY_GROUPS,
				"groups " QUOTED ": %s; give at most %d names of 1 to %d bytes, "
				"joined by '+'",
				text,
				!len		      ? "a name is empty"
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

bool configuration_shares_group(const struct vm_configuration *first,
				const struct vm_configuration *second)
{
	for (size_t i = 0; i < first->n_groups; i++)
		for (size_t k = 0; k < second->n_groups; k++)
			if (strcmp(first->groups[i], second->groups[k]) == 0)
				return true;
	return false;
}

static int read_offers(const struct vm_arguments *arguments, uint32_t *ret_offers,
		       struct configuration_error *ret_error)
{
	static const struct {
		const char *name;
		uint32_t offer;
	} offers[] = {
		{"inband-notifications", CONFIGURATION_OFFER_IN_BAND},
		{"gpa-addresses", CONFIGURATION_OFFER_GPA},
	};
	const char *text = arguments->values[KEY_OFFER];
	uint32_t result = 0;

	for (const char *name = text; name;) {
		size_t len = strcspn(name, "+"), i = 0;

		while (i < sizeof(offers) / sizeof(offers[0]) &&
		       (strlen(offers[i].name) != len || strncmp(offers[i].name, name, len) != 0))
			i++;
		if (i == sizeof(offers) / sizeof(offers[0]))
			return configuration_fail_at(
				ret_error, EX_USAGE, arguments, KEY_OFFER,
				"offer " QUOTED
				": unknown; give inband-notifications or gpa-addresses, "
				"or both joined by '+'",
				text);
		result |= offers[i].offer;
		name = name[len] ? name + len + 1 : NULL;
	}
	*ret_offers = result;
	return 0;
}

/* Does anything lead to or from the guest without a uds-path? */
static bool has_ports(const struct vm_configuration *vm)
{
	return vm->n_connects > 0 || vm->n_listens > 0 || vm->forward_cid != 0;
}

int configuration_read_vm(struct vm_arguments *arguments, struct vm_configuration *vm,
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
		{KEY_WAIT, &vm->wait_s},
		{KEY_POLL_US, &vm->poll_us},
		{KEY_MAX_CONNECTION_RATE, &vm->max_connection_rate},
	};
	uint64_t fd = 0;
	int r;

	r = read_number(arguments, KEY_GUEST_CID, &vm->guest_cid, ret_error);
	if (r)
		return r;
	snprintf(arguments->where, sizeof(arguments->where), "vm %" PRIu64 ": ", vm->guest_cid);
	configuration_set_origin(arguments, KEY_SOCKET, vm->origin);

	vm->socket_fd = -1;
	if (arguments->values[KEY_FD]) {
		r = read_number(arguments, KEY_FD, &fd, ret_error);
		if (r)
			return r;
		vm->socket_fd = (int)fd;
	} else {
		r = configuration_read_path(arguments, KEY_SOCKET, &vm->socket, ret_error);
		if (r)
			return r;
	}
	r = read_number(arguments, KEY_MAX_BANDWIDTH, &vm->max_bandwidth, ret_error);
	if (!r)
		r = read_number(arguments, KEY_MAX_BUFFER_MEMORY, &vm->max_buffer_memory,
				ret_error);
	if (!r)
		r = configuration_read_peers(arguments, &vm->peers, ret_error);
	if (!r)
		r = configuration_read_ports(arguments, vm, ret_error);
	if (!r && (arguments->values[KEY_UDS_PATH] || !has_ports(vm)))
		r = read_uds_path(arguments, vm, ret_error);
	if (!r)
		r = configuration_read_access(arguments, KEY_SOCKET_MODE, &vm->socket_access,
					      ret_error);
	if (!r)
		r = configuration_read_access(arguments, KEY_UDS_MODE, &vm->uds_access, ret_error);
	if (r)
		return r;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		uint64_t number = 0;

		r = read_number(arguments, numbers[i].key, &number, ret_error);
		if (r)
			return r;
		*numbers[i].ret = (uint32_t)number; /* the maxima are below 2^32 */
	}
	r = read_offers(arguments, &vm->offers, ret_error);
	if (r)
		return r;
	return read_groups(arguments, vm, ret_error);
}

static int add_to_list(struct vm_arguments *arguments, char **lists, size_t key, const char *value,
		       struct configuration_error *ret_error)
{
	char *joined = configuration_join(lists[key], value);

	if (!joined)
		return configuration_fail_memory(ret_error);
	free(lists[key]);
	lists[key] = joined;
	arguments->values[key] = joined;
	return 0;
}

/* One KEY=VALUE of --vm; item is cut in two where it stands. lists own what they join. */
static int read_vm_item(char *item, struct vm_arguments *arguments, char **lists,
			struct configuration_error *ret_error)
{
	char *value = strchr(item, '='), known[N_VM_KEYS * 24];
	size_t len = 0;

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
		if (strcmp(item, configuration_keys[key]) != 0)
			continue;
		if (configuration_is_list((enum key)key))
			return add_to_list(arguments, lists, key, value, ret_error);
		if (arguments->values[key])
			return configuration_fail(ret_error, EX_USAGE,
						  "%skey %s is given more than once",
						  arguments->where, item);
		arguments->values[key] = value;
		return 0;
	}
	for (size_t key = 0; key < N_VM_KEYS; key++)
		len += (size_t)snprintf(known + len, sizeof(known) - len, "%s%s", key ? ", " : "",
					configuration_keys[key]);
	return configuration_fail(ret_error, EX_USAGE, "%sunknown key " QUOTED "; known are %s",
				  arguments->where, item, known);
}

int configuration_read_vm_text(const char *text, struct vm_configuration *vm,
			       struct configuration_error *ret_error)
{
	struct vm_arguments arguments = {.source = VM_FROM_TEXT};
	char *copy = strdup(text), *lists[N_VM_KEYS] = {NULL};
	char *rest = copy;
	int r = 0;

	if (!copy)
		return configuration_fail_memory(ret_error);
	snprintf(arguments.where, sizeof(arguments.where), "--vm " QUOTED ": ", text);
	while (!r && rest)
		r = read_vm_item(strsep(&rest, ","), &arguments, lists, ret_error);
	if (!r)
		r = configuration_read_vm(&arguments, vm, ret_error);
	for (size_t key = 0; key < N_VM_KEYS; key++)
		free(lists[key]);
	free(copy);
	return r;
}
