/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/spawner_sockets.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/peers.h"
#include "broker/ports.h"

#define TYPE_STREAM    1u
#define TYPE_SEQPACKET 2u

/* spawner_sockets_is_permitted(): one of the two. */
static int socket_type(uint32_t type)
{
	return type == TYPE_SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM;
}

/*
 * A unix socket connects at once or not at all: EAGAIN is a full backlog, EPROTOTYPE
 * a listener of the other type.
 */
static int connect_uds_path(const struct vm_configuration *vm, uint32_t port, int type, int *ret_fd)
{
	struct port_address address = {.family = PORT_UNIX};
	int len;

	if (!vm->uds_path)
		return -ENOENT;
	len = snprintf(address.name, sizeof(address.name), "%s_%" PRIu32, vm->uds_path, port);
	if (len < 0 || (size_t)len >= sizeof(address.name))
		return -ENAMETOOLONG;
	return ports_connect(&address, port, type, ret_fd);
}

/*
 * What host port `port` is to the VM: what a rule says, else who listens at the
 * uds-path, else the same port of forward-cid. As ports_connect().
 */
static int connect_host(const struct vm_configuration *vm, uint32_t port, int type, int *ret_fd)
{
	const struct port_rule *rule = ports_find(vm->connects, vm->n_connects, port);
	struct port_address forward = {.family = PORT_VSOCK, .cid = vm->forward_cid};
	int status;

	if (!ports_pass(&vm->outgoing, port))
		return -EACCES;
	if (rule)
		return ports_connect(&rule->address, port, type, ret_fd);
	status = connect_uds_path(vm, port, type, ret_fd);
	if (vm->forward_cid && type == SOCK_STREAM &&
	    (status == -ENOENT || status == -ECONNREFUSED))
		return ports_connect(&forward, port, SOCK_STREAM, ret_fd);
	return status;
}

/* Whoever made a unix socket listen there; others have no user. */
static int judge_listener(const struct vm_configuration *vm, int fd)
{
	struct peer peer;
	int status;

	if (!peers_are_limited(&vm->peers))
		return 0;
	status = peers_judge(&vm->peers, fd, &peer);
	if (status == PEERS_E_DENIED)
		return -SPAWNER_E_PEER;
	return status == PEERS_E_UNKNOWN ? 0 : status;
}

static size_t connect_guest(const struct vm_configuration *vm,
			    const struct spawner_request *request, struct spawner_reply *reply,
			    int *ret_fd)
{
	int fd = -1;
	int status = connect_host(vm, request->number, socket_type(request->type), &fd);

	if (!status)
		status = judge_listener(vm, fd);
	reply->error = -status;
	if (status == 0 || status == -EINPROGRESS) {
		*ret_fd = fd;
		return 1;
	}
	if (fd >= 0)
		close(fd);
	return 0;
}

/* The socket is only asked, and it may be anything: a front in an attacker's hands sent it. */
static int judge_program(const struct vm_configuration *vm, int fd, struct spawner_reply *reply)
{
	struct peer peer = {0};
	int status;

	if (fd < 0)
		return EMFILE;
	/* A reload took it away, with its lists, and the front does not know yet. */
	if (!vm->guest_cid)
		return ENOENT;
	status = peers_judge(&vm->peers, fd, &peer);
	reply->number = peer.user;
	reply->program = peer.group;
	return status < 0 ? -status : status ? SPAWNER_E_PEER : 0;
}

static bool may_pair(const struct configuration *configuration, uint32_t one, uint32_t other)
{
	if (one == other)
		return configuration->control.path != NULL;
	return configuration_shares_group(&configuration->vms[one], &configuration->vms[other]);
}

static size_t pair_guests(const struct configuration *configuration,
			  const struct spawner_request *request, struct spawner_reply *reply,
			  int ret_fds[static SPAWNER_SOCKETS_MAX])
{
	int type = socket_type(request->type) | SOCK_CLOEXEC | SOCK_NONBLOCK;

	/* They might when the front asked, before it knew of a reload. */
	if (!may_pair(configuration, request->device, request->number))
		reply->error = EACCES;
	else if (socketpair(AF_UNIX, type, 0, ret_fds))
		reply->error = errno;
	return reply->error ? 0 : 2;
}

bool spawner_sockets_is_permitted(const struct configuration *configuration,
				  const struct spawner_request *request)
{
	if (request->device >= configuration->n_vms ||
	    (request->type != TYPE_STREAM && request->type != TYPE_SEQPACKET))
		return false;
	if (request->kind == SPAWNER_CONNECT)
		return true;
	if (request->kind == SPAWNER_JUDGE)
		return !request->number;
	return request->number < configuration->n_vms &&
	       may_pair(configuration, request->device, request->number);
}

size_t spawner_sockets_answer(const struct configuration *configuration,
			      const struct spawner_request *request, int fd,
			      struct spawner_reply *ret_reply,
			      int ret_fds[static SPAWNER_SOCKETS_MAX])
{
	const struct vm_configuration *vm = &configuration->vms[request->device];

	*ret_reply = (struct spawner_reply){
		.device = request->device,
		.number = request->number,
		.token = request->token,
	};
	switch (request->kind) {
	case SPAWNER_PAIR:
		ret_reply->kind = SPAWNER_PAIRED;
		return pair_guests(configuration, request, ret_reply, ret_fds);
	case SPAWNER_JUDGE:
		ret_reply->kind = SPAWNER_JUDGED;
		ret_reply->error = judge_program(vm, fd, ret_reply);
		return 0;
	default:
		ret_reply->kind = SPAWNER_CONNECTED;
		return connect_guest(vm, request, ret_reply, ret_fds);
	}
}
