/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#define RULE_LEN_MAX 160 /* longer than any that is valid */

bool configuration_is_list(enum key key)
{
	return key == KEY_CONNECT || key == KEY_LISTEN;
}

char *configuration_join(const char *values, const char *value)
{
	char *joined;

	if (asprintf(&joined, "%s\n%s", values ? values : "", value) < 0)
		return NULL;
	return joined;
}

/* Lists of rules have one a line: repeated options, and lists of a file, are joined so. */
static const char *next_line(const char *text, char ret[static RULE_LEN_MAX + 1])
{
	size_t len;

	text += strspn(text, "\n");
	len = strcspn(text, "\n");
	if (len == 0)
		return NULL;
	(void)snprintf(ret, RULE_LEN_MAX + 1, "%.*s", (int)len, text);
	return text + len;
}

static int add_rule(struct port_rule **rules, size_t *n_rules, const struct port_rule *rule)
{
	if (!*rules)
		*rules = calloc(CONFIGURATION_RULES_MAX, sizeof(**rules));
	if (!*rules)
		return EX_OSERR;
	(*rules)[(*n_rules)++] = *rule;
	return 0;
}

static int read_rules(const struct vm_arguments *arguments, enum key key,
		      const char *(*parse)(const char *text, struct port_rule *ret),
		      struct port_rule **ret, size_t *ret_n, struct configuration_error *ret_error)
{
	const char *rest = arguments->values[key];
	char text[RULE_LEN_MAX + 1];

	while (rest && (rest = next_line(rest, text))) {
		struct port_rule rule;
		const char *reason = *ret_n == CONFIGURATION_RULES_MAX ? "there are 64 before it"
								       : parse(text, &rule);

		if (reason)
			return configuration_fail_at(
				ret_error, EX_DATAERR, arguments, key,
				"%s " QUOTED ": %s; give PORT:ADDRESS as in vsockd(8), PORTS",
				configuration_keys[key], text, reason);
		if (add_rule(ret, ret_n, &rule))
			return configuration_fail_memory(ret_error);
	}
	return 0;
}

static int read_forward_cid(const struct vm_arguments *arguments, struct vm_configuration *vm,
			    struct configuration_error *ret_error)
{
	const char *text = arguments->values[KEY_FORWARD_CID];
	uint64_t cid;

	if (!text)
		return 0;
	if (configuration_parse_number(text, 10, &cid) || cid == 0 || cid >= UINT32_MAX)
		return configuration_fail_at(ret_error, EX_DATAERR, arguments, KEY_FORWARD_CID,
					     "forward-cid " QUOTED ": give 1 to 4294967294", text);
	vm->forward_cid = (uint32_t)cid;
	return 0;
}

/* Each port is listened on for whatever CID this host has, as the same port of the guest. */
static int read_forward_listen(const struct vm_arguments *arguments, struct vm_configuration *vm,
			       struct configuration_error *ret_error)
{
	const char *text = arguments->values[KEY_FORWARD_LISTEN];

	for (const char *rest = text; rest;) {
		size_t len = strcspn(rest, "+");
		char rule_text[64];
		struct port_rule rule;

		(void)snprintf(rule_text, sizeof(rule_text), "%.*s:vsock:any:%.*s",
			       len < 12 ? (int)len : 12, rest, len < 12 ? (int)len : 12, rest);
		if (vm->n_listens == CONFIGURATION_RULES_MAX ||
		    ports_parse_listen(rule_text, &rule))
			return configuration_fail_at(
				ret_error, EX_DATAERR, arguments, KEY_FORWARD_LISTEN,
				"forward-listen " QUOTED
				": give at most 64 ports from 0 to 4294967294, joined by '+'",
				text);
		if (add_rule(&vm->listens, &vm->n_listens, &rule))
			return configuration_fail_memory(ret_error);
		rest = rest[len] ? rest + len + 1 : NULL;
	}
	return 0;
}

static int read_ok(const struct vm_arguments *arguments, struct vm_configuration *vm,
		   struct configuration_error *ret_error)
{
	const char *text = arguments->values[KEY_OK];

	vm->is_quiet = text && strcmp(text, "off") == 0;
	if (!text || vm->is_quiet || strcmp(text, "on") == 0)
		return 0;
	return configuration_fail_at(ret_error, EX_USAGE, arguments, KEY_OK,
				     "ok " QUOTED ": give on or off", text);
}

static int read_ranges(const struct vm_arguments *arguments, enum key key, struct port_range *ret,
		       uint32_t *ret_n, struct configuration_error *ret_error)
{
	const char *text = arguments->values[key];

	for (const char *rest = text; rest;) {
		size_t len = strcspn(rest, "+");

		if (*ret_n == PORT_RANGES_MAX || !ports_parse_range(rest, len, &ret[*ret_n]))
			return configuration_fail_at(
				ret_error, EX_DATAERR, arguments, key,
				"%s " QUOTED ": give at most 64 ports or ranges joined by '+', as "
				"22+8000-8080",
				configuration_keys[key], text);
		(*ret_n)++;
		rest = rest[len] ? rest + len + 1 : NULL;
	}
	return 0;
}

static int read_filters(const struct vm_arguments *arguments, struct vm_configuration *vm,
			struct configuration_error *ret_error)
{
	const struct {
		enum key key;
		struct port_range *ret;
		uint32_t *ret_n;
	} lists[] = {
		{KEY_ALLOW_OUTGOING, vm->outgoing.allowed, &vm->outgoing.n_allowed},
		{KEY_DENY_OUTGOING, vm->outgoing.denied, &vm->outgoing.n_denied},
		{KEY_ALLOW_INCOMING, vm->incoming.allowed, &vm->incoming.n_allowed},
		{KEY_DENY_INCOMING, vm->incoming.denied, &vm->incoming.n_denied},
	};
	int r = 0;

	for (size_t i = 0; !r && i < sizeof(lists) / sizeof(lists[0]); i++)
		r = read_ranges(arguments, lists[i].key, lists[i].ret, lists[i].ret_n, ret_error);
	return r;
}

/* A listener for a port that is not for host programs would refuse everybody. */
static int check_listens(const struct vm_arguments *arguments, const struct vm_configuration *vm,
			 struct configuration_error *ret_error)
{
	for (size_t i = 0; i < vm->n_listens; i++)
		if (!ports_pass(&vm->incoming, vm->listens[i].first))
			return configuration_fail_at(
				ret_error, EX_DATAERR, arguments, KEY_LISTEN,
				"listen: port %u is not one that allow-incoming and deny-incoming "
				"let in",
				vm->listens[i].first);
	return 0;
}

/* Nobody knows who connects there, so the lists would be for nothing. */
static int check_peers(const struct vm_arguments *arguments, const struct vm_configuration *vm,
		       struct configuration_error *ret_error)
{
	for (size_t i = 0; peers_are_limited(&vm->peers) && i < vm->n_listens; i++) {
		enum port_family family = vm->listens[i].address.family;

		if (family != PORT_UNIX && family != PORT_ABSTRACT)
			return configuration_fail_at(
				ret_error, EX_DATAERR, arguments,
				arguments->values[KEY_LISTEN] ? KEY_LISTEN : KEY_FORWARD_LISTEN,
				"listen: who connects to port %u by TCP or vsock has no user to "
				"allow or deny; leave that out, or allow-uid and the others",
				vm->listens[i].first);
	}
	return 0;
}

int configuration_read_ports(const struct vm_arguments *arguments, struct vm_configuration *vm,
			     struct configuration_error *ret_error)
{
	int r = read_rules(arguments, KEY_CONNECT, ports_parse_connect, &vm->connects,
			   &vm->n_connects, ret_error);

	if (!r)
		r = read_rules(arguments, KEY_LISTEN, ports_parse_listen, &vm->listens,
			       &vm->n_listens, ret_error);
	if (!r)
		r = read_forward_cid(arguments, vm, ret_error);
	if (!r)
		r = read_forward_listen(arguments, vm, ret_error);
	if (!r)
		r = read_ok(arguments, vm, ret_error);
	if (!r)
		r = read_filters(arguments, vm, ret_error);
	if (!r)
		r = check_listens(arguments, vm, ret_error);
	if (!r)
		r = check_peers(arguments, vm, ret_error);
	return r;
}
