/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/chaos/shared.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct shared *shared;

const char *const operation_names[OPERATIONS] = {
	[OP_KILL_WORKER] = "worker killed",
	[OP_KILL_ANY_WORKER] = "any worker killed",
	[OP_KILL_FRONTEND] = "front-end killed",
	[OP_RECONNECT] = "front-end reconnected",
	[OP_REBOOT] = "guest rebooted",
	[OP_RESTORE] = "guest restored",
	[OP_STOP_RINGS] = "rings stopped",
	[OP_DISABLE_RINGS] = "rings disabled",
	[OP_REPLACE] = "worker replaced",
	[OP_REPLACE_ALL] = "all workers replaced",
	[OP_SUSPEND] = "suspended",
	[OP_STARVE] = "guest stood still",
	[OP_PLUG] = "memory plugged",
	[OP_UNPLUG] = "memory unplugged",
	[OP_PASS_ON] = "front-end passed on",
	[OP_CAPTURE] = "captured",
	[OP_KILL_CONNECTION] = "connection killed",
	[OP_HOST_DIES] = "host program died",
	[OP_GUEST_RESETS] = "guest reset a connection",
	[OP_LOG_LEVEL] = "log level changed",
	[OP_LOOK] = "operator looked",
	[OP_RELOAD] = "reloaded without change",
	[OP_REMOVE_AND_ADD] = "VM removed and added",
	[OP_REST] = "brought to rest",
	[OP_RESTART] = "restarted",
};

int shared_init(uint64_t seed)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		return -errno;
	shared->seed = seed;
	shared->main = getpid();
	shared->began_at = now_ms();
	return 0;
}

int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

struct dice dice_of(uint64_t seed, uint64_t process)
{
	struct dice dice = {.state = (seed * 64 + process) * UINT64_C(0x9e3779b97f4a7c15)};

	draw(&dice, 1);
	return dice;
}

uint32_t draw(struct dice *dice, uint32_t n)
{
	dice->state = dice->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(dice->state >> 33) % n;
}

static void remember(size_t vm, int operation)
{
	struct shared_vm *place = &shared->vms[vm];
	struct done *done = &place->done[place->n_done++ % REMEMBERED];

	done->operation = operation;
	done->at = now_ms() - shared->began_at;
}

void note(size_t vm, enum operation operation)
{
	shared->n_operations[operation]++;
	remember(vm, (int)operation);
}

void note_end(size_t vm, enum operation operation)
{
	remember(vm, -1 - (int)operation);
}

void note_wait(int64_t began_at)
{
	int64_t now = now_ms();

	if (now - began_at <= SLOW)
		return;
	shared->n_slow += now - shared->last_slow > RECOVERY;
	shared->last_slow = now;
}

void fault_begin(size_t vm)
{
	if (vm == BYSTANDER)
		vm_fail(vm, "this is a mistake of the test: the bystander gets no fault");
	shared->vms[vm].last_fault = FAULT_LASTS;
}

void fault_end(size_t vm)
{
	shared->vms[vm].last_fault = now_ms();
}

__attribute__((format(printf, 1, 0))) static void tell(const char *format, va_list arguments)
{
	if (atomic_exchange(&shared->has_failed, true))
		return;
	vsnprintf(shared->failure, sizeof(shared->failure), format, arguments);
	shared->failed_at = now_ms() - shared->began_at;
	shared->is_told = true;
}

void tell_failure(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	tell(format, arguments);
	va_end(arguments);
}

_Noreturn void vm_fail(size_t vm, const char *format, ...)
{
	char text[sizeof(shared->failure) - 16];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	tell_failure("VM %zu: %s", vm, text);
	/* Whoever looks for the cause finds the front-end as it was. */
	while (kill(shared->main, 0) == 0)
		poll(NULL, 0, 20);
	_exit(1);
}
