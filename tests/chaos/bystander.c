/* SPDX-License-Identifier: Apache-2.0 */

/* Round trips between the bystander's guest and an echo on the host, one after the other. */

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tests/chaos/vm.h"
#include "tests/frontend/host.h"

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void send_back(struct watch *watch, short events)
{
	uint8_t bytes[64];
	ssize_t n = recv(watch->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

	(void)events;
	if (n <= 0 || send(watch->fd, bytes, (size_t)n, MSG_NOSIGNAL) != n)
		vm_fail(BYSTANDER, "the echo of the bystander is reset");
}

static void connect_echo(struct vm *vm)
{
	int fd;

	vm->ping = guest_connect_wait(&vm->guest, PACKET_HOST_CID, PORT_ECHO, LIMIT);
	fd = vm->ping ? host_accept(vm->listeners[PORT_ECHO - PORT_STREAM], LIMIT) : -1;
	if (fd < 0)
		vm_fail(BYSTANDER, "the bystander is not connected");
	vm->echo = (struct watch){.fd = fd, .events = POLLIN, .ready = send_back};
	guest_watch(&vm->guest, &vm->echo);
	vm->pinged_ns = 0;
}

static void keep_worst(_Atomic uint64_t *worst, uint64_t ns)
{
	if (ns > *worst)
		*worst = ns;
}

static void take_answer(struct vm *vm)
{
	uint8_t bytes[64];
	ssize_t n = guest_receive(vm->ping, bytes, sizeof(bytes) - vm->n_pinged);
	uint64_t ns = now_ns() - vm->pinged_ns;

	if (n == -EAGAIN) {
		if (ns / 1000000 > LIMIT)
			vm_fail(BYSTANDER, "the bystander gets no answer");
		return;
	}
	if (n <= 0 || memcmp(bytes, vm->ping_bytes + vm->n_pinged, (size_t)n) != 0)
		vm_fail(BYSTANDER, "the bystander's echo is wrong: %zd", n);
	vm->n_pinged += (size_t)n;
	if (vm->n_pinged < sizeof(vm->ping_bytes))
		return;
	keep_worst(&shared->worst_ns, ns);
	keep_worst(&shared->worst_since_ns, ns);
	shared->n_round_trips++;
	vm->pinged_ns = 0;
}

static void ask(struct vm *vm)
{
	pattern_fill(vm->ping_bytes, sizeof(vm->ping_bytes), 3, shared->n_round_trips * 64);
	/* Whole, or not at all: it is less than any window, of which nothing is in use. */
	if (guest_send(vm->ping, vm->ping_bytes, sizeof(vm->ping_bytes)) > 0) {
		vm->n_pinged = 0;
		vm->pinged_ns = now_ns();
	}
}

void bystander_step(struct vm *vm)
{
	if (!vm->ping && shared->vms[BYSTANDER].is_to_rest)
		return;
	if (!vm->ping)
		connect_echo(vm);
	if (vm->pinged_ns)
		take_answer(vm);
	else
		ask(vm);
}

void bystander_rest(struct vm *vm)
{
	if (!vm->ping)
		return;
	guest_unwatch(&vm->guest, &vm->echo);
	if (guest_finish(vm->ping, LIMIT) < 0)
		vm_fail(BYSTANDER, "the bystander's connection does not end");
	close(vm->echo.fd);
	vm->echo.fd = -1;
	vm->ping = NULL;
}
