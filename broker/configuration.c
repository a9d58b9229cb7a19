/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <syslog.h>

#include "broker/control.h"
#include "broker/scrape.h"
#include "policy/policy.h"

/* Listeners, channels, epoll, rings and memory regions of one VM, next to its connections. */
#define FILES_PER_VM	 128
#define FILES_OF_PROCESS 64
/* Each may have an fd in hand. */
#define FILES_OF_CONTROL (2 * CONTROL_CLIENTS_MAX)

const bool configuration_has_exporter = CONFIGURATION_HAS_EXPORTER;

const char *const configuration_keys[N_KEYS] = {
	[KEY_GUEST_CID] = "guest-cid",
	[KEY_SOCKET] = "socket",
	[KEY_SOCKET_MODE] = "socket-mode",
	[KEY_SOCKET_OWNER] = "socket-owner",
	[KEY_SOCKET_GROUP] = "socket-group",
	[KEY_UDS_PATH] = "uds-path",
	[KEY_UDS_MODE] = "uds-mode",
	[KEY_UDS_OWNER] = "uds-owner",
	[KEY_UDS_GROUP] = "uds-group",
	[KEY_FORWARD_CID] = "forward-cid",
	[KEY_FORWARD_LISTEN] = "forward-listen",
	[KEY_CONNECT] = "connect",
	[KEY_LISTEN] = "listen",
	[KEY_OK] = "ok",
	[KEY_WAIT] = "wait",
	[KEY_TX_BUFFER_SIZE] = "tx-buffer-size",
	[KEY_QUEUE_SIZE] = "queue-size",
	[KEY_GROUPS] = "groups",
	[KEY_POLL_US] = "poll-us",
	[KEY_MAX_CONNECTIONS] = "max-connections",
	[KEY_MAX_HANDSHAKES] = "max-handshakes",
	[KEY_MAX_CONNECTION_RATE] = "max-connection-rate",
	[KEY_MAX_BANDWIDTH] = "max-bandwidth",
	[KEY_MAX_BUFFER_MEMORY] = "max-buffer-memory",
	[KEY_ALLOW_OUTGOING] = "allow-outgoing",
	[KEY_DENY_OUTGOING] = "deny-outgoing",
	[KEY_ALLOW_INCOMING] = "allow-incoming",
	[KEY_DENY_INCOMING] = "deny-incoming",
	[KEY_ALLOW_UID] = "allow-uid",
	[KEY_DENY_UID] = "deny-uid",
	[KEY_ALLOW_GID] = "allow-gid",
	[KEY_DENY_GID] = "deny-gid",
	[KEY_OFFER] = "offer",
	[KEY_FD] = "fd",
	[KEY_USER] = "user",
	[KEY_LOG_LEVEL] = "log-level",
	[KEY_WORKER] = "worker",
	[KEY_CONTROL] = "control",
	[KEY_CONTROL_MODE] = "control-mode",
	[KEY_CONTROL_OWNER] = "control-owner",
	[KEY_CONTROL_GROUP] = "control-group",
	[KEY_METRICS] = "metrics",
	[KEY_METRICS_MODE] = "metrics-mode",
	[KEY_METRICS_OWNER] = "metrics-owner",
	[KEY_METRICS_GROUP] = "metrics-group",
	[KEY_METRICS_HTTP] = "metrics-http",
	[KEY_EXPERIMENTAL_SUSPEND] = "experimental-suspend",
	[KEY_NO_NAMESPACES] = "insecure-no-namespaces",
	[KEY_NO_SECCOMP] = "insecure-no-seccomp",
};

static int fail(struct configuration_error *ret_error, int code, const char *prefix,
		const char *format, va_list arguments) __attribute__((format(printf, 4, 0)));
static int fail(struct configuration_error *ret_error, int code, const char *prefix,
		const char *format, va_list arguments)
{
	char *text = ret_error->text;
	size_t size = sizeof(ret_error->text);
	size_t len = (size_t)snprintf(text, size, "%s", prefix); /* far shorter than the text */

	(void)vsnprintf(text + len, size - len, format, arguments);
	/* A quoted argument must not break the line or reach the terminal as a command. */
	for (char *c = text; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	return code;
}

int configuration_fail(struct configuration_error *ret_error, int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)fail(ret_error, code, "", format, arguments);
	va_end(arguments);
	return code;
}

static unsigned int line_of(const struct vm_arguments *arguments, enum key key)
{
	return arguments->lines[key] ? arguments->lines[key] : arguments->line;
}

void configuration_set_origin(const struct vm_arguments *arguments, enum key key,
			      char ret_origin[static CONFIGURATION_ORIGIN_SIZE])
{
	unsigned int line = line_of(arguments, key);

	ret_origin[0] = '\0';
	if (line)
		(void)snprintf(ret_origin, CONFIGURATION_ORIGIN_SIZE, FILE_LINE, arguments->file,
			       line);
}

int configuration_fail_at(struct configuration_error *ret_error, int code,
			  const struct vm_arguments *arguments, enum key key, const char *format,
			  ...)
{
	char origin[CONFIGURATION_ORIGIN_SIZE], prefix[sizeof(origin) + sizeof(arguments->where)];
	va_list rest;

	configuration_set_origin(arguments, key, origin);
	(void)snprintf(prefix, sizeof(prefix), "%s%s", origin, arguments->where);
	va_start(rest, format);
	(void)fail(ret_error, code, prefix, format, rest);
	va_end(rest);
	return line_of(arguments, key) ? EX_CONFIG : code;
}

int configuration_fail_memory(struct configuration_error *ret_error)
{
	return configuration_fail(ret_error, EX_OSERR, "out of memory");
}

static int check_forms(const struct command_line *line, struct configuration_error *ret_error)
{
	bool has_single = false;

	for (size_t key = 0; key < N_SINGLE_VM_KEYS; key++) {
		if (!line->values[key])
			continue;
		has_single = true;
		if (line->file)
			return configuration_fail(ret_error, EX_USAGE,
						  "--%s cannot be given with a configuration file, "
						  "which describes all VMs",
						  configuration_keys[key]);
		if (line->n_vms)
			return configuration_fail(
				ret_error, EX_USAGE,
				"--%s describes a single VM and cannot be given with --vm; "
				"use one of the two forms",
				configuration_keys[key]);
	}
	if (line->file && line->n_vms)
		return configuration_fail(ret_error, EX_USAGE,
					  "--vm cannot be given with a configuration file, which "
					  "describes all VMs");
	if (!has_single && !line->n_vms && !line->file)
		return configuration_fail(
			ret_error, EX_USAGE,
			"no VM was given; add --socket PATH and --uds-path PATH, --vm or --config; "
			"see vsockd --help");
	if (line->values[KEY_SOCKET] && line->values[KEY_FD])
		return configuration_fail(ret_error, EX_USAGE,
					  "--socket and --fd exclude each other; give one of them");
	for (size_t key = KEY_SOCKET_MODE; key <= KEY_SOCKET_GROUP; key++)
		if (line->values[KEY_FD] && line->values[key])
			return configuration_fail(
				ret_error, EX_USAGE,
				"--%s and --fd exclude each other; the socket of --fd exists "
				"already, whoever made it sets that",
				configuration_keys[key]);
	return 0;
}

static int read_log_level(const struct vm_arguments *arguments, int *ret,
			  struct configuration_error *ret_error)
{
	static const struct {
		const char *name;
		int level;
	} levels[] = {
		{"error", LOG_ERR}, {"warning", LOG_WARNING}, {"notice", LOG_NOTICE},
		{"info", LOG_INFO}, {"debug", LOG_DEBUG},
	};
	const char *text = arguments->values[KEY_LOG_LEVEL];

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
	return configuration_fail_at(
		ret_error, EX_USAGE, arguments, KEY_LOG_LEVEL,
		"log-level " QUOTED ": unknown; give error, warning, notice, info or debug", text);
}

static int read_flag(const struct vm_arguments *arguments, enum key key, uint32_t bit,
		     uint32_t *bits, struct configuration_error *ret_error)
{
	const char *text = arguments->values[key];

	if (!text || strcmp(text, "false") == 0)
		return 0;
	if (strcmp(text, "true") != 0)
		return configuration_fail_at(ret_error, EX_USAGE, arguments, key,
					     "%s " QUOTED ": give true or false",
					     configuration_keys[key], text);
	*bits |= bit;
	return 0;
}

static int read_worker(const struct vm_arguments *arguments, char **ret,
		       struct configuration_error *ret_error)
{
	const char *path = arguments->values[KEY_WORKER];

	if (!path)
		return 0;
	if (!path[0])
		return configuration_fail_at(
			ret_error, EX_DATAERR, arguments, KEY_WORKER,
			"worker \"\": the path is empty; give that of vsockd-worker");
	*ret = strdup(path);
	return *ret ? 0 : configuration_fail_memory(ret_error);
}

static int read_metrics_http(const struct vm_arguments *arguments, struct port_address *ret,
			     struct configuration_error *ret_error)
{
	const char *text = arguments->values[KEY_METRICS_HTTP], *reason;

	if (!text)
		return 0;
	if (!configuration_has_exporter)
		return configuration_fail_at(
			ret_error, EX_USAGE, arguments, KEY_METRICS_HTTP,
			"metrics-http " QUOTED
			": this vsockd was built without libmicrohttpd; metrics "
			"gives the same on a unix socket",
			text);
	reason = ports_parse_tcp(text, ret);
	return reason ? configuration_fail_at(ret_error, EX_USAGE, arguments, KEY_METRICS_HTTP,
					      "metrics-http " QUOTED ": %s", text, reason)
		      : 0;
}

/* What holds for all VMs. */
static int read_globals(const struct vm_arguments *arguments, struct configuration *configuration,
			struct configuration_error *ret_error)
{
	int r = read_log_level(arguments, &configuration->log_level, ret_error);

	if (!r)
		r = configuration_read_user(arguments, configuration, ret_error);
	if (!r)
		r = read_flag(arguments, KEY_NO_NAMESPACES, POLICY_INSECURE_NO_NAMESPACES,
			      &configuration->insecure, ret_error);
	if (!r)
		r = read_flag(arguments, KEY_NO_SECCOMP, POLICY_INSECURE_NO_SECCOMP,
			      &configuration->insecure, ret_error);
	if (!r)
		r = read_flag(arguments, KEY_EXPERIMENTAL_SUSPEND, CONFIGURATION_EXPERIMENT_SUSPEND,
			      &configuration->experiments, ret_error);
	if (!r)
		r = read_worker(arguments, &configuration->worker, ret_error);
	if (!r)
		r = configuration_read_service(arguments, KEY_CONTROL, &configuration->control,
					       ret_error);
	if (!r)
		r = configuration_read_service(arguments, KEY_METRICS, &configuration->metrics,
					       ret_error);
	if (!r)
		r = read_metrics_http(arguments, &configuration->metrics_http, ret_error);
	return r;
}

static int allocate_vms(struct configuration *configuration, size_t n_vms,
			struct configuration_error *ret_error)
{
	configuration->vms = calloc(n_vms, sizeof(*configuration->vms));
	if (!configuration->vms)
		return configuration_fail_memory(ret_error);
	configuration->n_vms = n_vms;
	return 0;
}

static int read_single(const struct vm_arguments *typed, struct configuration *configuration,
		       struct configuration_error *ret_error)
{
	struct vm_arguments arguments = *typed;
	int r = allocate_vms(configuration, 1, ret_error);

	return r ? r : configuration_read_vm(&arguments, &configuration->vms[0], ret_error);
}

static int read_texts(const struct command_line *line, struct configuration *configuration,
		      struct configuration_error *ret_error)
{
	int r = allocate_vms(configuration, line->n_vms, ret_error);

	for (size_t i = 0; !r && i < line->n_vms; i++)
		r = configuration_read_vm_text(line->vms[i], &configuration->vms[i], ret_error);
	return r;
}

static int read_file_vms(struct configuration_file *file, struct configuration *configuration,
			 struct configuration_error *ret_error)
{
	int r = allocate_vms(configuration, file->n_vms, ret_error);

	for (size_t i = 0; !r && i < file->n_vms; i++)
		r = configuration_read_vm(&file->vms[i], &configuration->vms[i], ret_error);
	return r;
}

/* What the command line says of all VMs counts more than what the file says. */
static int read_file(const struct command_line *line, const struct vm_arguments *typed,
		     struct configuration *configuration, struct configuration_error *ret_error)
{
	struct configuration_file file;
	int r = configuration_read_file(line->file, &file, ret_error);

	if (r)
		return r;
	for (size_t key = N_SINGLE_VM_KEYS; key < N_KEYS; key++) {
		if (!typed->values[key])
			continue;
		file.globals.values[key] = typed->values[key];
		file.globals.lines[key] = 0;
	}
	r = read_globals(&file.globals, configuration, ret_error);
	if (!r)
		r = read_file_vms(&file, configuration, ret_error);
	configuration_free_file(&file);
	if (r)
		return r;
	configuration->file = strdup(line->file);
	return configuration->file ? 0 : configuration_fail_memory(ret_error);
}

/* Fills configuration as far as it gets; the caller frees it on failure too. */
static int read_configuration(const struct command_line *line, struct configuration *configuration,
			      struct configuration_error *ret_error)
{
	struct vm_arguments typed = {.source = VM_FROM_OPTIONS};
	int r = check_forms(line, ret_error);

	if (r)
		return r;
	memcpy(typed.values, line->values, sizeof(typed.values));
	if (line->file) {
		r = read_file(line, &typed, configuration, ret_error);
	} else {
		r = read_globals(&typed, configuration, ret_error);
		if (!r)
			r = line->n_vms ? read_texts(line, configuration, ret_error)
					: read_single(&typed, configuration, ret_error);
	}
	if (r)
		return r;
	r = configuration_check_clashes(configuration, ret_error);
	return r == EX_DATAERR && line->file ? EX_CONFIG : r;
}

int configuration_parse(int argc, char **argv, struct configuration *ret,
			struct configuration_error *ret_error)
{
	struct command_line line;
	struct configuration result = {.action = CONFIGURATION_RUN};
	int r;

	r = configuration_read_command_line(argc, argv, &line, ret_error);
	if (!r && configuration_has_vms(line.action))
		r = read_configuration(&line, &result, ret_error);
	configuration_free_command_line(&line);
	if (r) {
		configuration_free(&result);
		return r;
	}
	result.action = line.action;
	result.policy_role = line.policy_role;
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
		free(vm->message_path);
		free(vm->connects);
		free(vm->listens);
	}
	free(configuration->vms);
	free(configuration->worker);
	free(configuration->control.path);
	free(configuration->metrics.path);
	free(configuration->file);
	*configuration = (struct configuration){.action = CONFIGURATION_RUN};
}

uint64_t configuration_n_files(const struct configuration *configuration)
{
	uint64_t n_files = FILES_OF_PROCESS;

	if (configuration->control.path)
		n_files += FILES_OF_CONTROL;
	if (configuration->metrics.path)
		n_files += SCRAPE_CLIENTS_MAX;
	/* The memory for the rings of every VM that may come, see BANK_PLACES. */
	if (configuration->file)
		n_files += 2 * CONFIGURATION_VMS_MAX;

	for (size_t i = 0; i < configuration->n_vms; i++)
		if (configuration->vms[i].guest_cid)
			n_files += (uint64_t)configuration->vms[i].max_connections +
				   configuration->vms[i].n_listens + FILES_PER_VM;
	return n_files;
}
