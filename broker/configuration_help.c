/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/configuration.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "policy/rules.h"

/* At most 80 columns. man/vsockd.8 has the same options; tests/integration/check_documents.sh. */
const char *const configuration_help[] = {
	"Usage: vsockd [--guest-cid N] --socket PATH --uds-path PATH [OPTION]...\n"
	"       vsockd --vm KEY=VALUE[,KEY=VALUE]... [--vm ...]... [OPTION]...\n"
	"       vsockd --config FILE [OPTION]...\n"
	"\n"
	"A vhost-user back-end for virtio-vsock. Programs on the host reach a guest\n"
	"through unix sockets: connect to the uds-path and send \"CONNECT PORT\\n\";\n"
	"listen on the uds-path with \"_PORT\" appended to be reached by the guest.\n"
	"Messages (SOCK_SEQPACKET): connect to the uds-path with \"_seqpacket\" appended.\n"
	"\n"
	"One VM:\n"
	"  --guest-cid N         CID of the guest, 3 to 4294967294 (default 3)\n"
	"  --socket PATH         listen here for the VMM's vhost-user connection\n"
	"  --socket-path PATH    the same as --socket\n"
	"  --socket-mode OCTAL   permissions of that socket, up to 777 (default 600)\n"
	"  --socket-owner USER   its owner, --socket-group GROUP its group, as names or\n"
	"  --socket-group GROUP  numbers (default: those vsockd runs as)\n"
	"  --fd FDNUM            use this open unix socket instead of --socket\n"
	"  --uds-path PATH       listen here for programs on the host, at most 96 bytes\n"
	"  --uds-mode OCTAL      the same three for the socket at the uds-path\n"
	"  --uds-owner USER\n"
	"  --uds-group GROUP\n"
	"  --forward-cid N       where nobody listens at \"_PORT\", the guest reaches the\n"
	"                        same port of this AF_VSOCK CID (1: the host itself)\n"
	"  --forward-listen PORT[+PORT]...\n"
	"                        listen on these AF_VSOCK ports; each leads to the same\n"
	"                        port of the guest\n"
	"  --connect PORT[-PORT]:ADDRESS\n"
	"                        where the guest's connections to these ports lead,\n"
	"                        before all else: unix:PATH, abstract:NAME,\n"
	"                        tcp[:IP][:PORT], vsock:CID[:PORT] or deny; repeatable\n"
	"  --listen PORT:ADDRESS\n"
	"                        listen there, without a \"CONNECT\" line, for that port of\n"
	"                        the guest; may be repeated\n"
	"  --ok on|off           answer \"CONNECT PORT\" by a line (default on)\n"
	"  --wait SECONDS        ask a guest that refuses a host program again, 0 to 3600\n"
	"                        seconds long (default 0)\n",
	"  --poll-us N           look on for N microseconds before sleeping, 0 to 10000\n"
	"                        (default 0): faster answers for more processor time\n"
	"  --tx-buffer-size N    bytes that the host may leave unread on a connection,\n"
	"                        4096 to 16777216 (default 262144)\n"
	"  --queue-size N        a power of two up to 32768 (default 1024); accepted for\n"
	"                        compatibility, rings of any size up to 32768 work\n"
	"  --groups NAME[+NAME]...\n"
	"                        groups of the VM (default \"default\"); guests of a\n"
	"                        common group reach each other by CID\n"
	"  --max-connections N   connections at a time, 1 to 65536 (default 4096)\n"
	"  --max-handshakes N    connections from the host at a time which have not\n"
	"                        finished their handshake, 1 to 65536 (default 512)\n"
	"  --max-connection-rate N\n"
	"                        connections that may begin in a second (default: any)\n"
	"  --max-bandwidth N     bytes that may pass in a second, both ways together,\n"
	"                        at least 65536 (default: any)\n"
	"  --max-buffer-memory N bytes that the buffers of all connections may take,\n"
	"                        at least 1048576 (default: as many as they may hold)\n"
	"  --allow-outgoing PORT[-PORT][+...]\n"
	"  --deny-outgoing PORT[-PORT][+...]\n"
	"                        ports of the host and of other guests to which the guest\n"
	"                        may connect, or may not (default: all)\n"
	"  --allow-incoming PORT[-PORT][+...]\n"
	"  --deny-incoming PORT[-PORT][+...]\n"
	"                        the same for ports of the guest\n"
	"  --allow-uid USER[+USER]...\n"
	"  --deny-uid USER[+USER]...\n"
	"  --allow-gid GROUP[+GROUP]...\n"
	"  --deny-gid GROUP[+GROUP]...\n"
	"                        programs on the host that may talk with the guest, or\n"
	"                        may not, by name or number (default: all may)\n"
	"  --offer NAME[+NAME]...\n"
	"                        offer the VMM what it may not know how to use:\n"
	"                        inband-notifications, gpa-addresses; see\n"
	"                        vsockd-migration(7)\n"
	"\n"
	"Several VMs:\n"
	"  --vm KEY=VALUE[,KEY=VALUE]...\n"
	"                        one VM, once for each; the keys are the options above\n"
	"                        without \"--\", except fd and socket-path\n"
	"  --config FILE         VMs, and what else is to hold, from a YAML file as\n"
	"                        vsockd.yaml(5) describes it\n"
	"\n"
	"All VMs:\n"
	"  --user NAME           as root: become that user first; of root's capabilities\n"
	"                        only those to give workers user ids of their own stay\n"
	"  --log-level LEVEL     error, warning, notice, info or debug (default info)\n"
	"  --control PATH        listen here for vsockctl (default: nowhere)\n"
	"  --control-mode OCTAL  permissions, owner and group of that socket (default:\n"
	"  --control-owner USER  600, and those vsockd runs as)\n"
	"  --control-group GROUP\n"
	"  --metrics PATH        answer HTTP with metrics here (default: nowhere)\n"
	"  --metrics-mode OCTAL  the same three for that socket\n"
	"  --metrics-owner USER\n"
	"  --metrics-group GROUP\n"
	"  --metrics-http IP:PORT\n"
	"                        the same by TCP, on an address of loopback\n"
	"  --worker PATH         the vsockd-worker program (default: the one installed\n"
	"                        with vsockd)\n"
	"  --experimental-suspend\n"
	"                        offer SUSPEND and RESUME, messages of our own\n"
	"  --insecure-no-namespaces\n"
	"                        go on without namespaces where the host forbids them\n"
	"  --insecure-no-seccomp\n"
	"                        go on without system-call filters\n"
	"\n"
	"Information:\n"
	"  --check-config FILE   check that file, print what would be served, and exit\n"
	"  --print-capabilities  print what this back-end is, as JSON, and exit\n"
	"  --print-policy ROLE   print the system calls that the front, the worker or\n"
	"                        the exporter may make, with reasons, and exit\n"
	"  --help                print this text and exit\n"
	"  --version             print the version and exit\n"
	"\n"
	"The manual page vsockd(8) has the details and examples.\n",
	NULL,
};

/* QEMU's vhost-user document, "Back-end program conventions"; no optional feature applies. */
const char configuration_capabilities[] = "{\"type\": \"vsock\"}\n";

/* A path comes from a file: nothing of it may reach the terminal as a command. */
static void print_path(FILE *stream, const char *path)
{
	for (; *path; path++)
		fputc((unsigned char)*path < ' ' || *path == 0x7f ? '?' : *path, stream);
}

static void print_socket(FILE *stream, const char *name, const char *path,
			 const struct listener_access *access, const char *end)
{
	fprintf(stream, "%s ", name);
	print_path(stream, path);
	fprintf(stream, " (mode %03o", (unsigned int)access->mode);
	if (access->owner != (uid_t)-1)
		fprintf(stream, ", user %u", (unsigned int)access->owner);
	if (access->group != (gid_t)-1)
		fprintf(stream, ", group %u", (unsigned int)access->group);
	fprintf(stream, ")%s", end);
}

static void print_rules(FILE *stream, const char *name, const struct port_rule *rules,
			size_t n_rules)
{
	char text[PORT_TEXT_SIZE];

	for (size_t i = 0; i < n_rules; i++) {
		ports_print(&rules[i], text);
		fprintf(stream, "%s ", name);
		print_path(stream, text);
		fprintf(stream, ", ");
	}
}

static void print_ranges(FILE *stream, const char *name, const struct port_range *ranges,
			 uint32_t n_ranges)
{
	for (uint32_t i = 0; i < n_ranges; i++) {
		fprintf(stream, "%s%" PRIu32, i ? "+" : name, ranges[i].first);
		if (ranges[i].last != ranges[i].first)
			fprintf(stream, "-%" PRIu32, ranges[i].last);
	}
}

static void print_ids(FILE *stream, const char *name, const struct peer_ids *ids)
{
	for (uint32_t i = 0; i < ids->n; i++)
		fprintf(stream, "%s%" PRIu32, i ? "+" : name, ids->ids[i]);
}

/* What has no limit is not worth a word. */
static void print_limits(FILE *stream, const struct vm_configuration *vm)
{
	const struct port_filter *out = &vm->outgoing, *in = &vm->incoming;

	if (vm->max_connection_rate)
		fprintf(stream, ", max-connection-rate %" PRIu32, vm->max_connection_rate);
	if (vm->max_bandwidth)
		fprintf(stream, ", max-bandwidth %" PRIu64, vm->max_bandwidth);
	if (vm->max_buffer_memory)
		fprintf(stream, ", max-buffer-memory %" PRIu64, vm->max_buffer_memory);
	print_ranges(stream, ", allow-outgoing ", out->allowed, out->n_allowed);
	print_ranges(stream, ", deny-outgoing ", out->denied, out->n_denied);
	print_ranges(stream, ", allow-incoming ", in->allowed, in->n_allowed);
	print_ranges(stream, ", deny-incoming ", in->denied, in->n_denied);
	print_ids(stream, ", allow-uid ", &vm->peers.allowed_users);
	print_ids(stream, ", deny-uid ", &vm->peers.denied_users);
	print_ids(stream, ", allow-gid ", &vm->peers.allowed_groups);
	print_ids(stream, ", deny-gid ", &vm->peers.denied_groups);
	fputc('\n', stream);
}

static void print_http(FILE *stream, const struct port_address *address)
{
	char text[PORT_TEXT_SIZE];

	if (address->family != PORT_TCP)
		return;
	ports_print_address(address, 0, text);
	fprintf(stream, "metrics-http %s\n", text + strlen("tcp:"));
}

void configuration_print(FILE *stream, const struct configuration *configuration)
{
	if (configuration->control.path)
		print_socket(stream, "control", configuration->control.path,
			     &configuration->control.access, "\n");
	if (configuration->metrics.path)
		print_socket(stream, "metrics", configuration->metrics.path,
			     &configuration->metrics.access, "\n");
	print_http(stream, &configuration->metrics_http);
	for (size_t i = 0; i < configuration->n_vms; i++) {
		const struct vm_configuration *vm = &configuration->vms[i];

		fprintf(stream, "vm %" PRIu64 ": ", vm->guest_cid);
		if (vm->socket)
			print_socket(stream, "socket", vm->socket, &vm->socket_access, ", ");
		if (vm->uds_path)
			print_socket(stream, "uds-path", vm->uds_path, &vm->uds_access, ", ");
		print_rules(stream, "connect", vm->connects, vm->n_connects);
		print_rules(stream, "listen", vm->listens, vm->n_listens);
		if (vm->forward_cid)
			fprintf(stream, "forward-cid %" PRIu32 ", ", vm->forward_cid);
		fprintf(stream, "groups ");
		for (size_t group = 0; group < vm->n_groups; group++) {
			fputs(group ? "+" : "", stream);
			print_path(stream, vm->groups[group]);
		}
		fprintf(stream,
			", tx-buffer-size %" PRIu32 ", max-connections %" PRIu32
			", max-handshakes %" PRIu32,
			vm->tx_buffer_size, vm->max_connections, vm->max_handshakes);
		print_limits(stream, vm);
	}
}

const char *const configuration_roles[POLICY_ROLE_MAX] = {
	[POLICY_FRONT] = "front",
	[POLICY_WORKER] = "worker",
	[POLICY_EXPORTER] = "exporter",
};

static void describe(const struct policy_comparison *comparison, char *ret, size_t size)
{
	if (comparison->kind == POLICY_ANY)
		(void)snprintf(ret, size, "any");
	else
		(void)snprintf(ret, size, "%u %s %s", comparison->argument,
			       comparison->kind == POLICY_EQUAL ? "=" : "<=", comparison->text);
}

static void print_rule(FILE *stream, const struct policy_rule *rule, int call_width,
		       int argument_width)
{
	const struct policy_comparison *comparisons = rule->comparisons;
	char text[128];

	describe(&comparisons[0], text, sizeof(text));
	fprintf(stream, "%-*s  %-*s  %s\n", call_width, rule->call, argument_width, text,
		rule->reason);
	for (size_t i = 1; i < POLICY_COMPARISONS_MAX && comparisons[i].kind != POLICY_ANY; i++) {
		describe(&comparisons[i], text, sizeof(text));
		fprintf(stream, "%-*s  %s\n", call_width, "", text);
	}
}

void configuration_print_policy(FILE *stream, enum policy_role role)
{
	size_t n_rules, n_calls = 0;
	const struct policy_rule *rules = policy_rules(&n_rules);
	int call_width = 0, argument_width = 0;
	char text[128];

	for (size_t i = 0; i < n_rules; i++) {
		if (rules[i].role != role)
			continue;
		/* The rules of one call follow each other. */
		n_calls += i == 0 || rules[i - 1].role != role ||
			   strcmp(rules[i - 1].call, rules[i].call) != 0;
		if ((int)strlen(rules[i].call) > call_width)
			call_width = (int)strlen(rules[i].call);
		for (size_t j = 0; j < POLICY_COMPARISONS_MAX; j++) {
			describe(&rules[i].comparisons[j], text, sizeof(text));
			if ((int)strlen(text) > argument_width)
				argument_width = (int)strlen(text);
		}
	}
	for (size_t i = 0; i < n_rules; i++)
		if (rules[i].role == role)
			print_rule(stream, &rules[i], call_width, argument_width);
	fprintf(stream, "%zu system calls\n", n_calls);
}
