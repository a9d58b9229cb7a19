/* SPDX-License-Identifier: Apache-2.0 */

/*
 * vsockd: reads the command line, opens what is named there, forks the front
 * and becomes the spawner. Order matters: --user comes before the VMs' paths are
 * looked at, sockets are bound while this process may still do so, and the front is
 * forked before anything from outside is read.
 */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <unistd.h>

#include "broker/configuration.h"
#include "broker/front.h"
#include "broker/listener.h"
#include "broker/log.h"
#include "broker/spawner.h"
#include "policy/start.h"

struct opened {
	size_t n_vms;
	struct listener *sockets;      /* by VM; fd -1 where the session came as an fd */
	struct listener *host_sockets; /* by VM */
	struct listener **listens;     /* by VM and rule; fd -1: not open, path NULL: no file */
	int *fds, *host_fds;	       /* the same, as the front wants them */
	bool *is_connected;
	struct listener control, metrics; /* fd -1: none */
};

/*
 * Sanitizer builds only: an answer to the run-time's question. Leaks cannot be
 * looked for from behind the walls; the front allocates before it goes there.
 */
__attribute__((visibility("default"))) const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

static int open_worker_at(const char *directory, const char *below)
{
	char path[4096];

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", directory, below) >= sizeof(path))
		return -1;
	return open(path, O_PATH | O_CLOEXEC);
}

/* Installed: in libexecdir. Not installed: where meson builds it. */
static int open_worker(const struct configuration *configuration)
{
	char program[4096];
	ssize_t len;
	int fd;

	if (configuration->worker) {
		fd = open(configuration->worker, O_PATH | O_CLOEXEC);
		if (fd < 0)
			log_event(LOG_ERR, LOG_NO_VM, "--worker %s: %s", configuration->worker,
				  strerror(errno));
		return fd;
	}
	len = readlink("/proc/self/exe", program, sizeof(program) - 1);
	if (len <= 0) {
		log_event(LOG_ERR, LOG_NO_VM, "/proc/self/exe: %s: is /proc mounted?",
			  strerror(errno));
		return -1;
	}
	program[len] = '\0';
	*strrchr(program, '/') = '\0';
	if (strcmp(program, VSOCKD_SBINDIR) == 0)
		fd = open_worker_at(VSOCKD_LIBEXECDIR, "vsockd-worker");
	else
		fd = open_worker_at(program, "../worker/vsockd-worker");
	if (fd < 0)
		fd = open_worker_at(program, "../libexec/vsockd-worker");
	if (fd < 0)
		log_event(LOG_ERR, LOG_NO_VM,
			  "vsockd-worker not found beside %s: install it, or name it with --worker",
			  program);
	return fd;
}

/* A socket given by --fd is one that listens, or is the session itself. */
static bool is_listening(int fd)
{
	int value = 0;
	socklen_t len = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &len) == 0 && value != 0;
}

static const char *advice(enum port_family family, int error)
{
	if (family != PORT_VSOCK)
		return "choose another address";
	if (error == EAFNOSUPPORT)
		return "the kernel has no AF_VSOCK; load the module vsock, or leave this out";
	if (error == EADDRNOTAVAIL)
		return "this host has no such CID; for 1, loopback, load the module vsock_loopback";
	return "choose another address";
}

static int fail_address(const struct vm_configuration *vm, const char *what,
			const struct port_address *address, int error)
{
	log_event(LOG_ERR, vm->guest_cid, "%s: %s: %s", what, strerror(error),
		  advice(address->family, error));
	return -error;
}

static int fail_rule(const struct vm_configuration *vm, const char *key,
		     const struct port_rule *rule, int error)
{
	char text[PORT_TEXT_SIZE], what[PORT_TEXT_SIZE + 16];

	ports_print(rule, text);
	(void)snprintf(what, sizeof(what), "%s %s", key, text);
	return fail_address(vm, what, &rule->address, error);
}

/* What a guest would find out else, one connection after the other. */
static int check_connects(const struct vm_configuration *vm)
{
	const struct port_address forward = {.family = PORT_VSOCK, .cid = vm->forward_cid};
	int r;

	for (size_t i = 0; i < vm->n_connects; i++) {
		r = ports_check(&vm->connects[i].address);
		if (r < 0)
			return fail_rule(vm, "connect", &vm->connects[i], -r);
	}
	r = vm->forward_cid ? ports_check(&forward) : 0;
	return r < 0 ? fail_address(vm, "forward-cid", &forward, -r) : 0;
}

static int open_listen(const struct vm_configuration *vm, const struct port_rule *rule,
		       struct listener *ret)
{
	struct listener_failure failure;
	int r;

	if (rule->address.family == PORT_UNIX) {
		r = listener_open(rule->address.name, &vm->uds_access, ret, &failure);
		if (r < 0)
			log_event(LOG_ERR, vm->guest_cid, "%s", failure.text);
		return r;
	}
	r = ports_listen(&rule->address, rule->first, &ret->fd);
	return r < 0 ? fail_rule(vm, "listen", rule, -r) : 0;
}

static int open_listens(const struct vm_configuration *vm, struct listener **ret)
{
	struct listener *listens = calloc(vm->n_listens + 1, sizeof(*listens));

	if (!listens)
		return -ENOMEM;
	*ret = listens;
	for (size_t i = 0; i < vm->n_listens; i++)
		listens[i].fd = -1;
	for (size_t i = 0; i < vm->n_listens; i++) {
		int r = open_listen(vm, &vm->listens[i], &listens[i]);

		if (r < 0)
			return r;
	}
	return check_connects(vm);
}

static int open_vm(const struct vm_configuration *vm, struct opened *opened, size_t i)
{
	struct listener_failure failure;
	int r = 0;

	opened->sockets[i].fd = -1;
	opened->host_sockets[i].fd = -1;
	opened->n_vms = i + 1;
	if (vm->socket)
		r = listener_open(vm->socket, &vm->socket_access, &opened->sockets[i], &failure);
	if (r == 0 && vm->uds_path)
		r = listener_open(vm->uds_path, &vm->uds_access, &opened->host_sockets[i],
				  &failure);
	if (r < 0) {
		log_event(LOG_ERR, vm->guest_cid, "%s", failure.text);
		return r;
	}
	r = open_listens(vm, &opened->listens[i]);
	if (r < 0)
		return r;
	if (!vm->socket) {
		opened->is_connected[i] = !is_listening(vm->socket_fd);
		if (fcntl(vm->socket_fd, F_SETFD, FD_CLOEXEC) < 0 ||
		    fcntl(vm->socket_fd, F_SETFL, O_NONBLOCK) < 0)
			return -errno;
	}
	opened->fds[i] = vm->socket ? opened->sockets[i].fd : vm->socket_fd;
	opened->host_fds[i] = opened->host_sockets[i].fd;
	return 0;
}

static int open_service(const struct service_socket *service, struct listener *ret_listener,
			int (*open_listener)(const char *path, const struct listener_access *access,
					     struct listener *ret_listener,
					     struct listener_failure *ret_failure))
{
	struct listener_failure failure;
	int r;

	if (!service->path)
		return 0;
	r = open_listener(service->path, &service->access, ret_listener, &failure);
	if (r < 0)
		log_event(LOG_ERR, LOG_NO_VM, "%s", failure.text);
	return r;
}

static int open_all(const struct configuration *configuration, struct opened *opened)
{
	size_t n = configuration->n_vms;
	int r = 0;

	*opened = (struct opened){
		.sockets = calloc(n, sizeof(struct listener)),
		.host_sockets = calloc(n, sizeof(struct listener)),
		.fds = calloc(n, sizeof(int)),
		.host_fds = calloc(n, sizeof(int)),
		.is_connected = calloc(n, sizeof(bool)),
		.listens = calloc(n, sizeof(struct listener *)),
		.control.fd = -1,
		.metrics.fd = -1,
	};
	if (!opened->sockets || !opened->host_sockets || !opened->fds || !opened->host_fds ||
	    !opened->is_connected || !opened->listens)
		return -ENOMEM;
	for (size_t i = 0; i < n && r == 0; i++)
		r = open_vm(&configuration->vms[i], opened, i);
	if (r == 0)
		r = open_service(&configuration->control, &opened->control, listener_open_packets);
	return r ? r : open_service(&configuration->metrics, &opened->metrics, listener_open);
}

static void unlink_all(const struct configuration *configuration, const struct opened *opened)
{
	for (size_t i = 0; i < opened->n_vms; i++) {
		for (size_t k = 0; opened->listens[i] && k < configuration->vms[i].n_listens; k++)
			if (opened->listens[i][k].fd >= 0 && opened->listens[i][k].path)
				listener_unlink(&opened->listens[i][k]);
		if (opened->sockets[i].fd >= 0)
			listener_unlink(&opened->sockets[i]);
		if (opened->host_sockets[i].fd >= 0)
			listener_unlink(&opened->host_sockets[i]);
	}
	if (opened->control.fd >= 0)
		listener_unlink(&opened->control);
	if (opened->metrics.fd >= 0)
		listener_unlink(&opened->metrics);
}

static void free_all(const struct opened *opened)
{
	for (size_t i = 0; i < opened->n_vms; i++)
		free(opened->listens[i]);
	free(opened->listens);
	free(opened->sockets);
	free(opened->host_sockets);
	free(opened->fds);
	free(opened->host_fds);
	free(opened->is_connected);
}

/* The front has its copies; an open listener here would outlive it. */
static void close_all(const struct configuration *configuration, const struct opened *opened)
{
	for (size_t i = 0; i < opened->n_vms; i++) {
		for (size_t k = 0; k < configuration->vms[i].n_listens; k++)
			close(opened->listens[i][k].fd);
		if (opened->fds[i] >= 0)
			close(opened->fds[i]);
		if (opened->host_fds[i] >= 0)
			close(opened->host_fds[i]);
	}
	if (opened->control.fd >= 0)
		close(opened->control.fd);
	if (opened->metrics.fd >= 0)
		close(opened->metrics.fd);
}

/*
 * The front keeps a socket for each connection and the worker another one. A
 * hard limit below that is told by whoever needs the files.
 */
static void raise_file_limit(const struct configuration *configuration)
{
	uint64_t wanted = configuration_n_files(configuration);
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted)
		return;
	limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

static void log_missing_walls(const struct configuration *configuration)
{
	if (configuration->insecure & POLICY_INSECURE_NO_NAMESPACES)
		log_event(LOG_WARNING, LOG_NO_VM,
			  "--insecure-no-namespaces: workers and front see files and network");
	if (configuration->insecure & POLICY_INSECURE_NO_SECCOMP)
		log_event(LOG_WARNING, LOG_NO_VM,
			  "--insecure-no-seccomp: workers and front may make any system call");
	if (!policy_has_filter)
		log_event(LOG_WARNING, LOG_NO_VM,
			  "built with sanitizers, for tests: without system-call filter");
}

static int run_front(const struct configuration *configuration, const struct opened *opened,
		     int spawner)
{
	struct front_setup setup = {
		.configuration = configuration,
		.listeners = opened->fds,
		.is_connected = opened->is_connected,
		.host_listeners = opened->host_fds,
		.port_listeners = opened->listens,
		.control = opened->control.fd,
		.metrics = opened->metrics.fd,
		.spawner = spawner,
	};

	return front_run(&setup);
}

static int run_processes(const struct configuration *configuration, const struct opened *opened,
			 int worker_program)
{
	struct spawner_setup setup = {
		.configuration = configuration,
		.worker_program = worker_program,
	};
	struct policy_failure failure;
	struct policy_process front;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
		log_event(LOG_ERR, LOG_NO_VM, "socketpair: %s", strerror(errno));
		return EX_OSERR;
	}
	r = policy_fork_front(configuration->insecure, &front, &failure);
	if (r < 0) {
		log_event(LOG_ERR, LOG_NO_VM, "%s", failure.text);
		return EX_OSERR;
	}
	if (r == POLICY_IS_FRONT) {
		close(pair[0]);
		close(worker_program);
		_exit(run_front(configuration, opened, pair[1]));
	}
	close(pair[1]);
	close_all(configuration, opened);
	setup.front_channel = pair[0];
	setup.front_pidfd = front.pidfd;
	return spawner_run(&setup);
}

/* Before any path of a VM is looked at or made: that other user is to do it. */
static int become_user(const struct configuration *configuration)
{
	struct policy_failure failure;

	if (!configuration->has_user || configuration->user == geteuid())
		return 0;
	if (policy_become_user(configuration->user, configuration->group, &failure)) {
		fprintf(stderr, "vsockd: --user: %s\n", failure.text);
		return EX_NOPERM;
	}
	return 0;
}

/*
 * Everything that can be looked at without making anything. Who may not become
 * the user of the file cannot tell what that user may do.
 */
static int check(const struct configuration *configuration)
{
	bool is_that_user = !configuration->has_user || configuration->user == geteuid();
	struct configuration_error error;
	uint64_t buffer_size;
	int worker_program, r;

	log_open(configuration->log_level);
	worker_program = open_worker(configuration);
	if (worker_program < 0)
		return EX_CONFIG;
	close(worker_program);
	if (spawner_buffer_size(configuration, &buffer_size) < 0) {
		fprintf(stderr, "vsockd: max-connections times tx-buffer-size is too large\n");
		return EX_CONFIG;
	}
	if (is_that_user || geteuid() == 0) {
		r = become_user(configuration);
		if (r != 0)
			return r;
		if (configuration_check_paths(configuration, &error) != 0) {
			fprintf(stderr, "vsockd: %s\n", error.text);
			return EX_CONFIG;
		}
	}
	configuration_print(stdout, configuration);
	if (!is_that_user && geteuid() != configuration->user)
		printf("paths: not looked at, only root and user %u can tell\n",
		       (unsigned int)configuration->user);
	return EX_OK;
}

static int run(const struct configuration *configuration)
{
	struct configuration_error error;
	struct opened opened;
	sigset_t signals;
	int worker_program, r;

	log_open(configuration->log_level);
	/* Run by its fd, so only the file itself has to be executable for the user. */
	worker_program = open_worker(configuration);
	if (worker_program < 0)
		return EX_UNAVAILABLE;
	r = become_user(configuration);
	if (r != 0)
		return r;
	r = configuration_check_paths(configuration, &error);
	if (r != 0) {
		fprintf(stderr, "vsockd: %s\n", error.text);
		return r;
	}

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);

	raise_file_limit(configuration);
	log_missing_walls(configuration);
	if (open_all(configuration, &opened) < 0)
		r = EX_CANTCREAT;
	else
		r = run_processes(configuration, &opened, worker_program);
	unlink_all(configuration, &opened);
	free_all(&opened);
	return r;
}

int main(int argc, char **argv)
{
	struct configuration configuration;
	struct configuration_error error;
	int r = configuration_parse(argc, argv, &configuration, &error);

	if (r != 0) {
		fprintf(stderr, "vsockd: %s\n", error.text);
		return r;
	}
	switch (configuration.action) {
	case CONFIGURATION_HELP:
		for (size_t i = 0; configuration_help[i]; i++)
			fputs(configuration_help[i], stdout);
		break;
	case CONFIGURATION_VERSION:
		puts("vsockd " VSOCKD_VERSION);
		break;
	case CONFIGURATION_CAPABILITIES:
		fputs(configuration_capabilities, stdout);
		break;
	case CONFIGURATION_POLICY:
		configuration_print_policy(stdout, configuration.policy_role);
		break;
	case CONFIGURATION_CHECK:
		r = check(&configuration);
		break;
	case CONFIGURATION_RUN:
		r = run(&configuration);
	}
	configuration_free(&configuration);
	return r;
}
