/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "broker/log.h"
#include "broker/service.h"

/* ---- one socket ---- */

bool sockets_has(const struct vm_configuration *vm, size_t number)
{
	switch (number) {
	case SOCKET_FRONTEND:
		return vm->socket != NULL;
	case SOCKET_HOST:
	case SOCKET_MESSAGES:
		return vm->uds_path != NULL;
	default:
		return number - SOCKET_RULES < vm->n_listens;
	}
}

static const struct port_rule *rule_of(const struct vm_configuration *vm, size_t number)
{
	return &vm->listens[number - SOCKET_RULES];
}

const char *sockets_path(const struct vm_configuration *vm, size_t number)
{
	switch (number) {
	case SOCKET_FRONTEND:
		return vm->socket;
	case SOCKET_HOST:
		return vm->uds_path;
	case SOCKET_MESSAGES:
		return vm->message_path;
	default:
		return rule_of(vm, number)->address.family == PORT_UNIX
			       ? rule_of(vm, number)->address.name
			       : NULL;
	}
}

/* Where it is; *ret_port stands for a port that is left out. */
static struct port_address address_of(const struct vm_configuration *vm, size_t number,
				      uint32_t *ret_port)
{
	struct port_address address = {.family = PORT_UNIX};

	*ret_port = 0;
	if (number >= SOCKET_RULES) {
		*ret_port = rule_of(vm, number)->first;
		return rule_of(vm, number)->address;
	}
	(void)snprintf(address.name, sizeof(address.name), "%s", sockets_path(vm, number));
	return address;
}

void sockets_print(const struct vm_configuration *vm, size_t number,
		   char ret[static PORT_TEXT_SIZE])
{
	uint32_t port;
	struct port_address address = address_of(vm, number, &port);

	ports_print_address(&address, port, ret);
	/* Of another type than any that may have been at this path. */
	if (number == SOCKET_MESSAGES)
		(void)snprintf(ret + strlen(ret), PORT_TEXT_SIZE - strlen(ret), " for messages");
}

const struct listener_access *sockets_access(const struct vm_configuration *vm, size_t number)
{
	return number == SOCKET_FRONTEND ? &vm->socket_access : &vm->uds_access;
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

int sockets_check_connects(const struct vm_configuration *vm)
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

/* The owner of a socket from the store is as it was; the file may say another one by now. */
static int take(const struct port_address *address, uint32_t port, int type, const char *path,
		const struct listener_access *access, struct listener *ret_listener)
{
	struct listener_failure failure;

	if (!service_take(address, port, type, path, ret_listener))
		return -ENOENT;
	if (path && !ret_listener->is_foreign &&
	    listener_change_access(ret_listener, access, &failure) < 0)
		log_event(LOG_WARNING, LOG_NO_VM, "%s", failure.text);
	return 0;
}

int sockets_open(const struct vm_configuration *vm, size_t number, struct listener *ret_listener)
{
	const char *path = sockets_path(vm, number);
	struct listener_failure failure;
	uint32_t port;
	struct port_address address = address_of(vm, number, &port);
	int type = number == SOCKET_MESSAGES ? SOCK_SEQPACKET : SOCK_STREAM;
	int r = take(&address, port, type, path, sockets_access(vm, number), ret_listener);

	if (r == 0)
		return 0;
	if (!path) {
		r = ports_listen(&address, port, &ret_listener->fd);
		return r < 0 ? fail_rule(vm, "listen", rule_of(vm, number), -r) : 0;
	}
	r = number == SOCKET_MESSAGES
		    ? listener_open_packets(path, sockets_access(vm, number), ret_listener,
					    &failure)
		    : listener_open(path, sockets_access(vm, number), ret_listener, &failure);
	if (r < 0)
		log_event(LOG_ERR, vm->guest_cid, "%s", failure.text);
	return r;
}

void sockets_remove(struct listener *listener)
{
	int r = listener->path && !listener->is_foreign ? listener_unlink(listener) : 0;

	if (r < 0)
		log_event(LOG_WARNING, LOG_NO_VM, "%s: is not removed: %s", listener->path,
			  strerror(-r));
	listener_close(listener);
	*listener = (struct listener){.fd = -1};
}

void sockets_store(const struct vm_configuration *vm, size_t number, struct listener *listener)
{
	uint32_t port;
	struct port_address address = address_of(vm, number, &port);

	service_store(listener, &address, port);
}

void sockets_forget(const struct vm_configuration *vm, size_t number, struct listener *listener)
{
	uint32_t port;
	struct port_address address = address_of(vm, number, &port);

	service_forget(listener, &address, port);
}

/* ---- all of them ---- */

/* A socket given by --fd is one that listens, or is the session itself. */
static bool is_listening(int fd)
{
	int value = 0;
	socklen_t len = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &len) == 0 && value != 0;
}

static int take_fd(const struct vm_configuration *vm, struct vm_sockets *sockets)
{
	service_leave(vm->socket_fd);
	sockets->all[SOCKET_FRONTEND].fd = vm->socket_fd;
	sockets->is_connected = !is_listening(vm->socket_fd);
	if (fcntl(vm->socket_fd, F_SETFD, FD_CLOEXEC) < 0 ||
	    fcntl(vm->socket_fd, F_SETFL, O_NONBLOCK) < 0)
		return -errno;
	return 0;
}

static int open_vm(const struct vm_configuration *vm, struct vm_sockets *sockets)
{
	int r = vm->socket ? 0 : take_fd(vm, sockets);

	for (size_t i = 0; i < SOCKETS_MAX && r == 0; i++)
		if (sockets_has(vm, i))
			r = sockets_open(vm, i, &sockets->all[i]);
	return r == 0 ? sockets_check_connects(vm) : r;
}

static struct port_address service_address(const struct service_socket *service)
{
	struct port_address address = {.family = PORT_UNIX};

	(void)snprintf(address.name, sizeof(address.name), "%s", service->path);
	return address;
}

static int open_service(const struct service_socket *service, int type,
			struct listener *ret_listener,
			int (*open_listener)(const char *path, const struct listener_access *access,
					     struct listener *ret_listener,
					     struct listener_failure *ret_failure))
{
	struct port_address address;
	struct listener_failure failure;
	int r;

	if (!service->path)
		return 0;
	address = service_address(service);
	if (take(&address, 0, type, service->path, &service->access, ret_listener) == 0)
		return 0;
	r = open_listener(service->path, &service->access, ret_listener, &failure);
	if (r < 0)
		log_event(LOG_ERR, LOG_NO_VM, "%s", failure.text);
	return r;
}

static int open_http(const struct port_address *address, struct listener *ret_listener)
{
	char text[PORT_TEXT_SIZE];
	int r;

	if (address->family != PORT_TCP ||
	    service_take(address, 0, SOCK_STREAM, NULL, ret_listener))
		return 0;
	r = ports_listen(address, 0, &ret_listener->fd);
	if (r < 0) {
		ports_print_address(address, 0, text);
		log_event(LOG_ERR, LOG_NO_VM, "metrics-http %s: %s: choose another address",
			  text + strlen("tcp:"), strerror(-r));
	}
	return r;
}

int sockets_init(struct sockets *sockets, const struct configuration *configuration,
		 size_t n_places)
{
	int r = 0;

	*sockets = (struct sockets){
		.vms = calloc(n_places, sizeof(*sockets->vms)),
		.control.fd = -1,
		.metrics.fd = -1,
		.http.fd = -1,
	};
	if (!sockets->vms)
		return -ENOMEM;
	sockets->n_vms = n_places;
	for (size_t i = 0; i < n_places; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			sockets->vms[i].all[number].fd = -1;
	for (size_t i = 0; r == 0 && i < configuration->n_vms; i++)
		r = open_vm(&configuration->vms[i], &sockets->vms[i]);
	if (r == 0)
		r = open_service(&configuration->control, SOCK_SEQPACKET, &sockets->control,
				 listener_open_packets);
	if (r == 0)
		r = open_service(&configuration->metrics, SOCK_STREAM, &sockets->metrics,
				 listener_open);
	return r == 0 ? open_http(&configuration->metrics_http, &sockets->http) : r;
}

static void store_service(const struct service_socket *service, struct listener *listener)
{
	struct port_address address;

	if (!service->path)
		return;
	address = service_address(service);
	service_store(listener, &address, 0);
}

void sockets_store_all(struct sockets *sockets, const struct configuration *configuration)
{
	for (size_t i = 0; i < configuration->n_vms; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			if (sockets_has(&configuration->vms[i], number))
				sockets_store(&configuration->vms[i], number,
					      &sockets->vms[i].all[number]);
	store_service(&configuration->control, &sockets->control);
	store_service(&configuration->metrics, &sockets->metrics);
	if (configuration->metrics_http.family == PORT_TCP)
		service_store(&sockets->http, &configuration->metrics_http, 0);
}

void sockets_close(struct sockets *sockets)
{
	for (size_t i = 0; i < sockets->n_vms; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			listener_close(&sockets->vms[i].all[number]);
	listener_close(&sockets->control);
	listener_close(&sockets->metrics);
}

static void end(struct listener *listener)
{
	/* A successor finds it in the store, and the file where it is. */
	if (listener->is_stored)
		listener_close(listener);
	else
		sockets_remove(listener);
}

void sockets_end(struct sockets *sockets)
{
	for (size_t i = 0; i < sockets->n_vms; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			end(&sockets->vms[i].all[number]);
	end(&sockets->control);
	end(&sockets->metrics);
	end(&sockets->http);
	free(sockets->vms);
	*sockets = (struct sockets){.n_vms = 0};
}
