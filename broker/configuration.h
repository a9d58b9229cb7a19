/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the operator asked for: the command line and the file that it names, checked
 * as far as they can be without touching the paths in them, and then the paths. Used by the spawner
 * before anything else exists; the front gets numbers out of it, never a path.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "broker/listener.h"
#include "broker/peers.h"
#include "broker/ports.h"
#include "policy/policy.h"

#define CONFIGURATION_VMS_MAX		  256
#define CONFIGURATION_GROUPS_MAX	  32
#define CONFIGURATION_RULES_MAX		  64 /* connect, and listen with forward-listen */
#define CONFIGURATION_TX_BUFFER_DEFAULT	  (256u * 1024)
#define CONFIGURATION_QUEUE_SIZE_DEFAULT  1024
#define CONFIGURATION_CONNECTIONS_DEFAULT 4096
#define CONFIGURATION_HANDSHAKES_DEFAULT  512
#define CONFIGURATION_CONNECTIONS_MAX	  65536

/* Above all that configuration_n_files() can be. */
#define CONFIGURATION_FILES_MAX                                                                    \
	((uint64_t)CONFIGURATION_VMS_MAX * CONFIGURATION_CONNECTIONS_MAX * 2)

/* Of "FILE:LINE: ", which complaints begin with; empty for what no file said. */
#define CONFIGURATION_ORIGIN_SIZE 128

/* --offer: protocol features that no VMM gets unless it is known to keep to them. */
enum {
	CONFIGURATION_OFFER_IN_BAND = 1 << 0, /* inband-notifications */
	CONFIGURATION_OFFER_GPA = 1 << 1,     /* gpa-addresses */
};

/* What is no part of any document, and may change. */
enum {
	CONFIGURATION_EXPERIMENT_SUSPEND = 1 << 0, /* --experimental-suspend */
};

enum configuration_action {
	CONFIGURATION_RUN,
	CONFIGURATION_HELP,
	CONFIGURATION_VERSION,
	CONFIGURATION_CAPABILITIES, /* --print-capabilities */
	CONFIGURATION_POLICY,	    /* --print-policy */
	CONFIGURATION_CHECK,	    /* --check-config: VMs are in it, as for RUN */
};

struct vm_configuration {
	char origin[CONFIGURATION_ORIGIN_SIZE];
	uint64_t guest_cid;
	char *socket;	    /* vhost-user socket to listen on; NULL with socket_fd */
	int socket_fd;	    /* --fd: connected or listening socket, the caller's; -1 otherwise */
	char *uds_path;	    /* hybrid vsock: listen here, connect to uds_path_PORT; or NULL */
	char *message_path; /* the same with SOCK_SEQPACKET; NULL without uds_path */
	struct port_rule *connects, *listens;
	size_t n_connects, n_listens;
	uint32_t forward_cid; /* where nobody listens at uds_path_PORT; 0: none */
	bool is_quiet;	      /* no OK line for who sent CONNECT */
	uint32_t wait_s;      /* how long the guest is asked again that refuses a host program */
	uint32_t poll_us;     /* how long its worker looks on before it sleeps */
	struct listener_access socket_access, uds_access;
	char **groups; /* at least "default"; guests of a common one reach each other */
	size_t n_groups;
	uint32_t tx_buffer_size; /* bytes a guest may have unread on one connection: buf_alloc */
	uint32_t queue_size;	 /* accepted for compatibility; any ring up to 32768 works */
	uint32_t max_connections;
	uint32_t max_handshakes;
	struct port_filter outgoing, incoming; /* by the port that is connected to */
	struct peer_filter peers;	       /* programs on the host */
	uint32_t max_connection_rate;	       /* new ones a second; 0: no limit */
	uint64_t max_buffer_memory;	       /* bytes; 0: no limit */
	uint64_t max_bandwidth;		       /* stream bytes a second; 0: no limit */
	uint32_t offers;		       /* CONFIGURATION_OFFER_... */
};

/* A unix socket of vsockd itself, not of a VM. */
struct service_socket {
	char origin[CONFIGURATION_ORIGIN_SIZE];
	char *path; /* NULL: none */
	struct listener_access access;
};

struct configuration {
	enum configuration_action action;
	enum policy_role policy_role; /* of CONFIGURATION_POLICY */
	struct vm_configuration *vms;
	size_t n_vms;
	bool has_user; /* --user: become user and group before anything is opened */
	uid_t user;
	gid_t group;
	int log_level;	      /* as in syslog(3): LOG_ERR ... LOG_DEBUG */
	uint32_t insecure;    /* POLICY_INSECURE_... */
	uint32_t experiments; /* CONFIGURATION_EXPERIMENT_... */
	char *worker;	      /* --worker PATH, NULL: found beside vsockd */
	char *file;	      /* --config PATH, NULL: everything was on the command line */
	struct service_socket control, metrics;
	struct port_address metrics_http; /* PORT_DENY: none, else PORT_TCP */
};

/* Is there an exporter in this build? */
extern const bool configuration_has_exporter;

struct configuration_error {
	char text[1400]; /* one line: what was asked, what was found, what to do */
};

/*
 * Parse and check the command line. 0, or a sysexits code with ret_error
 * filled; *ret is set only on 0 and is to be freed by configuration_free().
 * There are VMs in it for CONFIGURATION_RUN and CONFIGURATION_CHECK only.
 * What is wrong with a file's content is EX_CONFIG.
 */
int configuration_parse(int argc, char **argv, struct configuration *ret,
			struct configuration_error *ret_error);

/*
 * Check what the paths and the fd point at; same returns, nothing is changed.
 * Call as the user who will bind.
 */
int configuration_check_paths(const struct configuration *configuration,
			      struct configuration_error *ret_error);

/* What would be served: a line for each VM, as --check-config prints it. */
void configuration_print(FILE *stream, const struct configuration *configuration);

void configuration_free(struct configuration *configuration);

/* May guests of the two VMs reach each other? */
bool configuration_shares_group(const struct vm_configuration *first,
				const struct vm_configuration *second);

/* The fds that the front needs at most: what RLIMIT_NOFILE has to allow. */
uint64_t configuration_n_files(const struct configuration *configuration);

/* The texts of --help and of --print-capabilities, each with its last newline. */
extern const char *const configuration_help[]; /* in parts; NULL behind the last */
extern const char configuration_capabilities[];

/* The names of the roles in --print-policy, and what that prints. */
extern const char *const configuration_roles[POLICY_ROLE_MAX];
void configuration_print_policy(FILE *stream, enum policy_role role);
