/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/chaos/vm.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/frontend/host.h"

#define MIB (UINT64_C(1) << 20)

/* ---- the guest's life ---- */

static void remove_end(struct vm *vm, size_t i)
{
	struct end *end = vm->ends[i];

	if (end->watch.fd >= 0)
		guest_unwatch(&vm->guest, &end->watch);
	end_free(end, vm->has_guest);
	free(end);
	vm->ends[i] = vm->ends[--vm->n_ends];
	shared->vms[vm->number].n_ends = vm->n_ends;
}

/* Host programs are still there, and have to see the end of their connections. */
void vm_lose_guest(struct vm *vm)
{
	if (!vm->has_guest)
		return;
	for (size_t i = 0; i < vm->n_ends;) {
		if (!vm->ends[i]->connection) {
			i++;
			continue;
		}
		shared->n_reset += vm->ends[i]->state != END_OVER;
		remove_end(vm, i);
	}
	vm->has_guest = false;
	if (vm->number != BYSTANDER)
		fault_begin(vm->number);
	shared->vms[vm->number].n_kills = 0;
	guest_end(&vm->guest);
}

static bool is_shaken(const struct vm *vm)
{
	const struct shared_vm *place = &shared->vms[vm->number];

	return place->is_down || place->last_fault > now_ms() - AFTERMATH;
}

bool vm_succeeds(struct vm *vm, int result, const char *what)
{
	if (result >= 0)
		return true;
	if (!is_shaken(vm))
		vm_fail(vm->number, "%s: %s: %s %s", what, strerror(-result),
			vhost_error(&vm->guest.vhost), guest_violations(&vm->guest));
	/* For whatever else it was about to say. */
	if (vm->has_guest && guest_violations(&vm->guest)[0])
		vm_fail(vm->number, "%s", guest_violations(&vm->guest));
	vm_lose_guest(vm);
	return false;
}

static struct guest_layout draw_layout(struct dice *dice)
{
	struct guest_layout layout = {.is_indirect = draw(dice, 2)};

	if (draw(dice, 2))
		layout.cuts[layout.n_cuts++] = 1 + draw(dice, 60);
	if (draw(dice, 4) == 0)
		layout.piece_len = 1500 + draw(dice, 3000);
	return layout;
}

/* Each session is another kind of guest; with event rings where it can be restored. */
static struct guest_options draw_options(struct vm *vm)
{
	static const unsigned int bits[] = {VIRTIO_IN_ORDER, VIRTIO_INDIRECT, VIRTIO_EVENT_IDX};
	static const struct memory_layout region = {.guest_address = MIB, .size = 24 * MIB};
	struct dice *dice = &vm->dice;
	struct guest_options options = {
		.socket = vm->socket,
		.style = (enum guest_style)draw(dice, 3),
		.cid = vm_cid(vm->number),
		.features = BIT64(VIRTIO_VERSION_1) | BIT64(VIRTIO_SEQPACKET),
		.injects_kicks = draw(dice, 2),
		.queue_size = (uint16_t)(64 << draw(dice, 3)),
		.rx_buffer_size = draw(dice, 2) ? 4096 : 200 + draw(dice, 6000),
		.buf_alloc = draw(dice, 2) ? 0 : 20000 + draw(dice, 100000),
		.n_tx_buffers = 10 + draw(dice, 54),
		.rx_layout = draw_layout(dice),
		.tx_layout = draw_layout(dice),
		.regions = &region,
		.n_regions = 1,
		.timeout = LIMIT,
	};

	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++)
		options.features |= draw(dice, 2) ? BIT64(bits[i]) : 0;
	/* Two VMs of either layout at any time. */
	if ((vm->number + draw(dice, 4) / 3) % 2)
		options.features |= BIT64(VIRTIO_RING_PACKED);
	options.is_prefilled = options.style != GUEST_LIKE_CLOUD_HYPERVISOR && draw(dice, 2);
	return options;
}

static void start_guest(struct vm *vm)
{
	struct guest_options options = draw_options(vm);
	int result = guest_start(&vm->guest, &options);

	/* guest_start() has ended it. */
	vm->has_guest = result >= 0;
	if (!vm_succeeds(vm, result, "no guest starts"))
		return;
	/* Where no acks are asked for, this answer says that the rings run. */
	if (!vm_succeeds(vm, guest_read_cid(&vm->guest), "the CID is read"))
		return;
	vm->n_resets_seen = 0;
	for (size_t i = 0; i < vm->n_ends; i++)
		guest_watch(&vm->guest, &vm->ends[i]->watch);
	guest_listen(&vm->guest, PORT_STREAM);
	guest_listen_messages(&vm->guest, PORT_MESSAGES);
	guest_listen(&vm->guest, PORT_ONE_WAY);
	if (vm->number != BYSTANDER)
		fault_end(vm->number);
}

/* ---- connections ---- */

static struct end *new_end(struct vm *vm, size_t peer_vm, enum end_kind kind)
{
	struct end *end = calloc(1, sizeof(*end));

	if (!end)
		vm_fail(vm->number, "no memory");
	end_init(end, vm->number, peer_vm, &vm->dice, kind);
	vm->ends[vm->n_ends++] = end;
	shared->vms[vm->number].n_ends = vm->n_ends;
	return end;
}

static void add_guest_end(struct vm *vm, struct guest_connection *connection, bool is_initiator)
{
	size_t peer = connection->peer_cid == PACKET_HOST_CID
			      ? vm->number
			      : (size_t)(connection->peer_cid - vm_cid(0));
	const struct guest_layout *layout = &connection->layout;
	uint32_t port = is_initiator ? connection->peer_port : connection->port;
	struct end *end = new_end(vm, peer, (enum end_kind)(port - PORT_STREAM));

	/* A packet in pieces has to fit the smallest ring. */
	if (layout->piece_len)
		connection->packet_size = layout->piece_len * (1 + draw(&vm->dice, 4));
	else if (draw(&vm->dice, 4) == 0)
		/* A message has to fit those that may be in flight. */
		connection->packet_size = (end->has_messages ? 1500 : 1) + draw(&vm->dice, 3000);
	if (end->is_one_way)
		connection->buf_alloc = 4096u << draw(&vm->dice, 6);
	end_be_guest(end, connection, is_initiator);
}

static void add_host_end(struct vm *vm, int fd, enum end_kind kind, bool is_initiator)
{
	struct end *end = new_end(vm, vm->number, kind);

	end_be_host(end, fd, is_initiator);
	guest_watch(&vm->guest, &end->watch);
}

/* Whom this guest calls, beside the host: the VMs of its group but the bystander. */
static uint64_t draw_peer(struct vm *vm)
{
	size_t other = 1 + draw(&vm->dice, VMS - 1);

	if (vm->number == BYSTANDER || other == vm->number || draw(&vm->dice, 3))
		return PACKET_HOST_CID;
	return vm_cid(other);
}

static void open_connection(struct vm *vm)
{
	enum end_kind kind = (enum end_kind)draw(&vm->dice, END_KINDS);
	bool has_messages = kind == END_MESSAGES;
	uint32_t port = PORT_STREAM + kind;
	struct guest_connection *connection;
	int fd;

	if (draw(&vm->dice, 2)) {
		fd = has_messages ? host_connect_messages(vm->uds_path, port, LIMIT)
				  : host_connect(vm->uds_path, port, LIMIT);
		if (fd < 0 && !is_shaken(vm))
			vm_fail(vm->number, "a host program cannot connect: %s", strerror(-fd));
		if (fd < 0)
			return;
		add_host_end(vm, fd, kind, true);
		return;
	}
	connection = has_messages ? guest_connect_messages(&vm->guest, draw_peer(vm), port)
				  : guest_connect(&vm->guest, draw_peer(vm), port);
	if (!connection)
		vm_fail(vm->number, "no memory");
	add_guest_end(vm, connection, true);
}

static void accept_all(struct vm *vm)
{
	struct guest_connection *connection;

	for (uint32_t i = 0; i < END_KINDS; i++) {
		while (vm->n_ends < ENDS_MAX &&
		       (connection = guest_accept(&vm->guest, PORT_STREAM + i)))
			add_guest_end(vm, connection, false);
		while (vm->n_ends < ENDS_MAX) {
			int fd =
				accept4(vm->listeners[i], NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

			if (fd < 0)
				break;
			add_host_end(vm, fd, (enum end_kind)i, false);
		}
	}
}

/* Host programs that wait in a backlog for a VM that is gone. */
static void refuse_all(struct vm *vm)
{
	int fd;

	for (size_t i = 0; i < PORTS; i++)
		while ((fd = accept4(vm->listeners[i], NULL, NULL, SOCK_CLOEXEC)) >= 0)
			close(fd);
}

/* With all of its ends, as the other one may be among them. */
static _Noreturn void fail_stuck(struct vm *vm, const struct end *stuck)
{
	char text[6000];
	size_t len;

	end_describe(stuck, text, sizeof(text));
	for (size_t i = 0; i < vm->n_ends; i++) {
		len = strlen(text);
		if (sizeof(text) - len < 700)
			break;
		strcpy(text + len, "\n      ");
		end_describe(vm->ends[i], text + len + 7, sizeof(text) - len - 7);
	}
	vm_fail(vm->number, "stuck: %s", text);
}

static void step_ends(struct vm *vm)
{
	for (size_t i = 0; i < vm->n_ends; i++) {
		end_step(vm->ends[i]);
		if (end_is_stuck(vm->ends[i]))
			fail_stuck(vm, vm->ends[i]);
	}
	for (size_t i = 0; i < vm->n_ends;) {
		if (vm->ends[i]->state == END_OVER)
			remove_end(vm, i);
		else
			i++;
	}
}

/* ---- the process ---- */

static void check_guest(struct vm *vm)
{
	if (guest_violations(&vm->guest)[0])
		vm_fail(vm->number, "%s", guest_violations(&vm->guest));
	/* A driver that was told of a restore has dropped what it had opened since, too. */
	if (vm->guest.n_transport_resets != vm->n_resets_seen) {
		vm->n_resets_seen = vm->guest.n_transport_resets;
		fault_end(vm->number);
	}
}

static void serve(struct vm *vm)
{
	/* Room for those who come from the other side. */
	if (!shared->vms[vm->number].is_to_rest && vm->n_ends < ENDS_MAX / 3 &&
	    draw(&vm->dice, 8) == 0)
		open_connection(vm);
	accept_all(vm);
	step_ends(vm);
	if (vm->number == BYSTANDER)
		bystander_step(vm);
	if (!vm_succeeds(vm, guest_poll(&vm->guest, 2), "the guest"))
		return;
	check_guest(vm);
	operations_step(vm);
}

static void leave(struct vm *vm)
{
	if (vm->number == BYSTANDER)
		bystander_rest(vm);
	operations_finish(vm);
	if (!vm->has_guest)
		return;
	check_guest(vm);
	vm_lose_guest(vm);
}

static void step(struct vm *vm)
{
	struct shared_vm *place = &shared->vms[vm->number];

	if (place->is_down || place->is_to_leave) {
		/* Somebody may still have come in. */
		if (place->is_down || vm->n_ends == 0) {
			leave(vm);
			place->is_gone = true;
		}
	} else {
		place->is_gone = false;
	}
	if (place->is_gone) {
		refuse_all(vm);
		poll(NULL, 0, 2);
		return;
	}
	if (!vm->has_guest)
		start_guest(vm);
	if (vm->has_guest)
		serve(vm);
}

static void listen_at(struct vm *vm)
{
	for (uint32_t i = 0; i < PORTS; i++) {
		uint32_t port = PORT_STREAM + i;

		vm->listeners[i] = port == PORT_MESSAGES ? host_listen_messages(vm->uds_path, port)
							 : host_listen(vm->uds_path, port);
		if (vm->listeners[i] < 0)
			vm_fail(vm->number, "cannot listen: %s", strerror(-vm->listeners[i]));
	}
}

_Noreturn void vm_run(size_t number)
{
	static struct vm vm;

	vm.number = number;
	vm.dice = dice_of(shared->seed, number);
	snprintf(vm.socket, sizeof(vm.socket), "%s/vm%zu", shared->directory, number);
	snprintf(vm.uds_path, sizeof(vm.uds_path), "%s/host%zu", shared->directory, number);
	snprintf(vm.control, sizeof(vm.control), "%s/" TOOL_CONTROL, shared->directory);
	snprintf(vm.cid, sizeof(vm.cid), "%zu", (size_t)vm_cid(number));
	vm.echo.fd = -1;
	signal(SIGPIPE, SIG_IGN);
	listen_at(&vm);
	vm.next_operation = vm.next_fault = now_ms() + 1000;
	while (!shared->is_over && !shared->has_failed && kill(shared->main, 0) == 0) {
		int64_t began_at = now_ms();

		step(&vm);
		note_wait(began_at);
	}
	if (shared->has_failed)
		vm_fail(number, "somebody else has failed");
	operations_finish(&vm);
	_exit(0);
}
