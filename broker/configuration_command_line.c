/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration_internal.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

enum {
	OPTION_KEY = 256, /* above every character that getopt_long() returns by itself */
	OPTION_VM = OPTION_KEY + N_KEYS,
	OPTION_CONFIG,
	OPTION_CHECK,
	OPTION_HELP,
	OPTION_VERSION,
	OPTION_CAPABILITIES,
	OPTION_POLICY,
};

/* Those that are no keys; socket-path is a second name of one. */
static const struct option others[] = {
	{"socket-path", required_argument, NULL, OPTION_KEY + KEY_SOCKET},
	{"vm", required_argument, NULL, OPTION_VM},
	{"config", required_argument, NULL, OPTION_CONFIG},
	{"check-config", required_argument, NULL, OPTION_CHECK},
	{"print-capabilities", no_argument, NULL, OPTION_CAPABILITIES},
	{"print-policy", required_argument, NULL, OPTION_POLICY},
	{"help", no_argument, NULL, OPTION_HELP},
	{"version", no_argument, NULL, OPTION_VERSION},
	{NULL, 0, NULL, 0},
};

#define N_OTHERS  (sizeof(others) / sizeof(others[0]))
#define N_OPTIONS (N_KEYS + N_OTHERS)

/* Each key is an option of the same name. */
static void list_options(struct option ret[static N_OPTIONS])
{
	for (int key = 0; key < N_KEYS; key++)
		ret[key] = (struct option){
			.name = configuration_keys[key],
			.has_arg = key < KEY_EXPERIMENTAL_SUSPEND ? required_argument : no_argument,
			.val = OPTION_KEY + key,
		};
	memcpy(ret + N_KEYS, others, sizeof(others));
}

static int keep_list(struct command_line *line, enum key key, const char *value,
		     struct configuration_error *ret_error)
{
	char *joined = configuration_join(line->values[key], value);

	if (!joined)
		return configuration_fail_memory(ret_error);
	free(line->lists[key]);
	line->lists[key] = joined;
	line->values[key] = joined;
	return 0;
}

static int keep_value(struct command_line *line, enum key key, const char *value,
		      struct configuration_error *ret_error)
{
	if (configuration_is_list(key))
		return keep_list(line, key, value, ret_error);
	if (line->values[key])
		return configuration_fail(ret_error, EX_USAGE, "--%s is given more than once%s",
					  configuration_keys[key],
					  key == KEY_SOCKET ? " (--socket-path is the same)" : "");
	line->values[key] = value;
	return 0;
}

static int keep_file(struct command_line *line, const char *path,
		     struct configuration_error *ret_error)
{
	if (line->file)
		return configuration_fail(ret_error, EX_USAGE,
					  "--config and --check-config: give one of them, once");
	line->file = path;
	return 0;
}

static int take_role(struct command_line *line, const char *name,
		     struct configuration_error *ret_error)
{
	for (int role = 0; role < POLICY_ROLE_MAX; role++) {
		if (strcmp(name, configuration_roles[role]) != 0)
			continue;
		line->action = CONFIGURATION_POLICY;
		line->policy_role = (enum policy_role)role;
		return 0;
	}
	return configuration_fail(
		ret_error, EX_USAGE,
		"print-policy " QUOTED ": unknown role; give front, worker or exporter", name);
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
	case OPTION_CHECK:
		line->action = CONFIGURATION_CHECK;
		return keep_file(line, value, ret_error);
	case OPTION_CONFIG:
		return keep_file(line, value, ret_error);
	case OPTION_HELP:
		line->action = CONFIGURATION_HELP;
		return 0;
	case OPTION_VERSION:
		line->action = CONFIGURATION_VERSION;
		return 0;
	case OPTION_CAPABILITIES:
		line->action = CONFIGURATION_CAPABILITIES;
		return 0;
	case OPTION_POLICY:
		return take_role(line, value, ret_error);
	default:
		if (value)
			return keep_value(line, (enum key)(option - OPTION_KEY), value, ret_error);
		line->values[option - OPTION_KEY] = "true";
		return 0;
	}
}

/* The others are done with what the option itself says. */
bool configuration_has_vms(enum configuration_action action)
{
	return action == CONFIGURATION_RUN || action == CONFIGURATION_CHECK;
}

/* Only whole names count: an abbreviation would change its meaning with a later version. */
static bool is_whole_name(const char *argument, const struct option *option)
{
	const char *name = argument + strlen("--");
	size_t len = strcspn(name, "=");

	return strlen(option->name) == len && strncmp(option->name, name, len) == 0;
}

static int read_options(int argc, char **argv, struct command_line *line,
			struct configuration_error *ret_error)
{
	struct option options[N_OPTIONS];

	list_options(options);
	opterr = 0;
	optind = 0; /* glibc and musl: start anew */
	while (configuration_has_vms(line->action)) {
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
	if (configuration_has_vms(line->action) && optind < argc)
		return configuration_fail(ret_error, EX_USAGE,
					  "unexpected argument " QUOTED "; see vsockd --help",
					  argv[optind]);
	return 0;
}

/* The conventions for vhost-user programs want it to win over everything else that is given. */
static bool asks_for_capabilities(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (strcmp(argv[i], "--print-capabilities") == 0)
			return true;
	return false;
}

int configuration_read_command_line(int argc, char **argv, struct command_line *ret,
				    struct configuration_error *ret_error)
{
	*ret = (struct command_line){.action = CONFIGURATION_RUN};
	if (!asks_for_capabilities(argc, argv))
		return read_options(argc, argv, ret, ret_error);
	ret->action = CONFIGURATION_CAPABILITIES;
	return 0;
}

void configuration_free_command_line(struct command_line *line)
{
	for (size_t key = 0; key < N_KEYS; key++)
		free(line->lists[key]);
}
