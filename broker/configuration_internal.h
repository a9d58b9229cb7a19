/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Between the files of the configuration: configuration_command_line.c takes the
 * command line apart, configuration_file.c a file, and configuration_marks.c knows the lines of
 * that file; configuration_vm.c reads what was said of one VM, configuration_access.c
 * knows users, groups and modes, configuration_ports.c ports, configuration_paths.c which paths can
 * stand beside each other and what the file system says about them.
 */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/un.h>

#include "broker/configuration.h"

/* A guest may connect to any port, and the host path of the highest one must still fit. */
#define CONFIGURATION_SOCKET_LEN_MAX   (sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1)
#define CONFIGURATION_MESSAGE_SUFFIX   "seqpacket"
#define CONFIGURATION_UDS_PATH_LEN_MAX (CONFIGURATION_SOCKET_LEN_MAX - strlen("_4294967295"))

/* How a complaint about a file begins. */
#define FILE_LINE "%.100s:%u: "

/* What the operator typed, cut so that two of them leave room for the explanation. */
#define QUOTED "\"%.100s\""

/* What takes a value: an option, and up to N_VM_KEYS a key of --vm. */
enum key {
	KEY_GUEST_CID,
	KEY_SOCKET,
	KEY_SOCKET_MODE, /* mode, owner and group follow each other, here and below */
	KEY_SOCKET_OWNER,
	KEY_SOCKET_GROUP,
	KEY_UDS_PATH,
	KEY_UDS_MODE,
	KEY_UDS_OWNER,
	KEY_UDS_GROUP,
	KEY_FORWARD_CID,
	KEY_FORWARD_LISTEN,
	KEY_CONNECT, /* this and the next may be given more than once */
	KEY_LISTEN,
	KEY_OK,
	KEY_WAIT,
	KEY_TX_BUFFER_SIZE,
	KEY_QUEUE_SIZE,
	KEY_GROUPS,
	KEY_POLL_US,
	KEY_MAX_CONNECTIONS,
	KEY_MAX_HANDSHAKES,
	KEY_MAX_CONNECTION_RATE,
	KEY_MAX_BANDWIDTH,
	KEY_MAX_BUFFER_MEMORY,
	KEY_ALLOW_OUTGOING,
	KEY_DENY_OUTGOING,
	KEY_ALLOW_INCOMING,
	KEY_DENY_INCOMING,
	KEY_ALLOW_UID,
	KEY_DENY_UID,
	KEY_ALLOW_GID,
	KEY_DENY_GID,
	KEY_OFFER,
	N_VM_KEYS, /* the keys of --vm end here */
	KEY_FD = N_VM_KEYS,
	N_SINGLE_VM_KEYS,
	KEY_USER = N_SINGLE_VM_KEYS,
	KEY_LOG_LEVEL,
	KEY_WORKER,
	KEY_CONTROL,
	KEY_CONTROL_MODE,
	KEY_CONTROL_OWNER,
	KEY_CONTROL_GROUP,
	KEY_METRICS,
	KEY_METRICS_MODE,
	KEY_METRICS_OWNER,
	KEY_METRICS_GROUP,
	KEY_METRICS_HTTP,
	KEY_EXPERIMENTAL_SUSPEND, /* from here on they are "true" or "false" in a file */
	KEY_NO_NAMESPACES,
	KEY_NO_SECCOMP,
	N_KEYS,
};

extern const char *const configuration_keys[N_KEYS];

enum vm_source {
	VM_FROM_OPTIONS, /* of their own */
	VM_FROM_TEXT,	 /* of --vm */
	VM_FROM_FILE,
};

/* One VM as it was typed; or what was said of all. */
struct vm_arguments {
	const char *values[N_KEYS];
	char *lists[N_KEYS]; /* of VM_FROM_FILE: own the values of keys that are lists */
	enum vm_source source;
	const char *file;	    /* of VM_FROM_FILE, with: */
	unsigned int line;	    /* where the VM begins; 0 for what is said of all */
	unsigned int lines[N_KEYS]; /* by key; 0 for what the file does not say */
	char where[160]; /* begin of each error line: the VM, as soon as its CID is known */
};

struct command_line {
	enum configuration_action action;
	enum policy_role policy_role;
	const char *values[N_KEYS];
	char *lists[N_KEYS]; /* own the values of keys that are lists */
	const char *vms[CONFIGURATION_VMS_MAX];
	size_t n_vms;
	const char *file; /* of --config or --check-config */
};

/* What a file says. */
struct configuration_file {
	struct vm_arguments globals;
	struct vm_arguments *vms;
	size_t n_vms;
	void *loaded; /* owns the values */
};

/* *ret refers to argv, is filled on failure too, and is freed by the function below. */
int configuration_read_command_line(int argc, char **argv, struct command_line *ret,
				    struct configuration_error *ret_error);
void configuration_free_command_line(struct command_line *line);
/* Is there more to do than what the option itself says? */
bool configuration_has_vms(enum configuration_action action);

/*
 * Each returns 0, or a sysexits code with ret_error filled. A VM is filled as far
 * as it gets; the caller frees it on failure too. text is what --vm was given.
 */
int configuration_read_vm(struct vm_arguments *arguments, struct vm_configuration *vm,
			  struct configuration_error *ret_error);
int configuration_read_vm_text(const char *text, struct vm_configuration *vm,
			       struct configuration_error *ret_error);

/* What leads to and from the guest's ports besides the uds-path. */
int configuration_read_ports(const struct vm_arguments *arguments, struct vm_configuration *vm,
			     struct configuration_error *ret_error);

/* Is it a list to which each occurrence of the key adds? */
bool configuration_is_list(enum key key);
/* The values so far, if any, and another one, in memory of the caller's; NULL: none left. */
char *configuration_join(const char *values, const char *value);

/* Of the keys mode, owner and group; mode is the first of the three. */
int configuration_read_access(const struct vm_arguments *arguments, enum key mode,
			      struct listener_access *ret, struct configuration_error *ret_error);

/* Users and groups of programs on the host. */
int configuration_read_peers(const struct vm_arguments *arguments, struct peer_filter *ret,
			     struct configuration_error *ret_error);

/* A socket that may be left out; mode, owner and group follow its key. */
int configuration_read_service(const struct vm_arguments *arguments, enum key path,
			       struct service_socket *ret, struct configuration_error *ret_error);

/* The path of a socket, checked by itself; a copy of it in *ret. */
int configuration_read_path(const struct vm_arguments *arguments, enum key key, char **ret,
			    struct configuration_error *ret_error);

/* The value of --user, if it is given; the group is the user's first one. */
int configuration_read_user(const struct vm_arguments *arguments,
			    struct configuration *configuration,
			    struct configuration_error *ret_error);

/* Strict: digits of base 8 or 10 only, no sign, no blank. 0, -EINVAL or -ERANGE. */
int configuration_parse_number(const char *text, unsigned int base, uint64_t *ret);

/* Fill ret_error with one printable line; the code is returned. */
int configuration_fail(struct configuration_error *ret_error, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* The same, after the file and the line of the key, and the VM, as far as there are any. */
int configuration_fail_at(struct configuration_error *ret_error, int code,
			  const struct vm_arguments *arguments, enum key key, const char *format,
			  ...) __attribute__((format(printf, 5, 6)));
/* What complaints about the paths begin with, later. */
void configuration_set_origin(const struct vm_arguments *arguments, enum key key,
			      char ret_origin[static CONFIGURATION_ORIGIN_SIZE]);
int configuration_fail_memory(struct configuration_error *ret_error);

/* No CID twice, no path twice, no path that is a port of some uds-path; by spelling only. */
int configuration_check_clashes(const struct configuration *configuration,
				struct configuration_error *ret_error);

/*
 * Read a YAML file: its form is checked, its values are not. 0, or a sysexits code
 * with ret_error filled. The result refers to path and is freed by
 * configuration_free_file().
 */
int configuration_read_file(const char *path, struct configuration_file *ret,
			    struct configuration_error *ret_error);
void configuration_free_file(struct configuration_file *file);
