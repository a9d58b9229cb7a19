/* SPDX-License-Identifier: Apache-2.0 */

/* What a VM of a chaos run has done to it. */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/chaos/vm.h"

#define PLUGGED_MAX 6
#define MIB	    (UINT64_C(1) << 20)

/* ---- errands: vsockctl, while all goes on ---- */

static void run_tool(struct vm *vm, struct errand *errand, const char *command, const char *which)
{
	tool_start(&errand->tool, vm->control, (const char *const[]){command, which, NULL});
	errand->is_running = true;
	errand->sent_at = now_ms();
	errand->stage++;
}

static void begin_errand(struct vm *vm, struct errand *errand, enum operation operation,
			 const char *command, const char *which)
{
	note(vm->number, operation);
	errand->operation = operation;
	errand->stage = 0;
	run_tool(vm, errand, command, which);
}

static void end_errand(struct vm *vm, struct errand *errand)
{
	note_end(vm->number, errand->operation);
	errand->stage = 0;
}

/* Has it ended? Its text and complaint are there then. */
static bool is_back(struct errand *errand, int *ret_code)
{
	siginfo_t info = {0};

	if (!errand->is_running ||
	    waitid(P_PID, (id_t)errand->tool.pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 ||
	    info.si_pid == 0)
		return false;
	*ret_code = tool_end(&errand->tool);
	errand->is_running = false;
	return true;
}

/* The number behind a name in one line of JSON. */
static bool find_number(const char *line, const char *name, uint64_t *ret)
{
	const char *at = strstr(line, name);

	return at && sscanf(at + strlen(name), "%" SCNu64, ret) == 1;
}

static void kill_worker(struct vm *vm, char *text)
{
	uint64_t pid, cid;

	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		if (!find_number(line, "\"cid\": ", &cid) || cid != vm_cid(vm->number) ||
		    !find_number(line, "\"worker_pid\": ", &pid))
			continue;
		fault_begin(vm->number);
		shared->n_kills += kill((pid_t)pid, SIGKILL) == 0;
		shared->vms[vm->number].n_kills++;
		fault_end(vm->number);
	}
}

/* The guest's end of that line. */
static struct end *find_end(const struct vm *vm, const char *line)
{
	uint64_t cid, peer, port, peer_port;

	if (!find_number(line, "\"cid\": ", &cid) || cid != vm_cid(vm->number) ||
	    !find_number(line, "\"peer\": ", &peer) ||
	    !find_number(line, "\"guest_port\": ", &port) ||
	    !find_number(line, "\"peer_port\": ", &peer_port))
		return NULL;
	for (size_t i = 0; i < vm->n_ends; i++) {
		const struct guest_connection *c = vm->ends[i]->connection;

		if (c && c->peer_cid == peer && c->port == port && c->peer_port == peer_port)
			return vm->ends[i];
	}
	return NULL;
}

/* One of those that are listed. */
static bool choose_connection(struct vm *vm, char *text, char ret_id[static 32])
{
	struct end *chosen = NULL;
	uint32_t n = 0;

	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		const char *id = strstr(line, "\"id\": \"");
		struct end *end = find_end(vm, line);

		if (!end || !id || id[7] == '-' || draw(&vm->dice, ++n) > 0)
			continue;
		chosen = end;
		snprintf(ret_id, 32, "%.*s", (int)strcspn(id + 7, "\""), id + 7);
	}
	if (chosen)
		end_condemn(chosen);
	return chosen != NULL;
}

static bool is_shaken(const struct vm *vm, int64_t since)
{
	return shared->vms[vm->number].last_fault >= since - AFTERMATH;
}

/* The first stage is over; is there a second one? */
static void go_on(struct vm *vm, struct errand *errand)
{
	char id[32];

	switch (errand->operation) {
	case OP_KILL_WORKER:
		kill_worker(vm, errand->tool.text);
		end_errand(vm, errand);
		return;
	case OP_KILL_CONNECTION:
		if (errand->stage == 1 && choose_connection(vm, errand->tool.text, id))
			run_tool(vm, errand, "kill", id);
		else
			end_errand(vm, errand);
		return;
	case OP_SUSPEND:
		errand->until = now_ms() + draw(&vm->dice, 500);
		if (errand->stage == 2)
			end_errand(vm, errand);
		return;
	default:
		end_errand(vm, errand);
	}
}

static bool is_forgivable(const struct errand *errand, int code)
{
	enum { DATAERR = 65, TEMPFAIL = 75 };

	if (errand->operation == OP_REPLACE)
		return strstr(errand->tool.complaint, "being replaced already");
	if (errand->operation != OP_KILL_CONNECTION)
		return false;
	/* It has ended by itself, or somebody else had to wait as well, be it for its rings. */
	return code == DATAERR || (code == TEMPFAIL && shared->last_slow >= errand->sent_at);
}

static void check_errand(struct vm *vm, struct errand *errand)
{
	bool is_forgiven;
	int code;

	if (!is_back(errand, &code))
		return;
	/* Before its own wait is one of those that forgive. */
	is_forgiven = code == 0 || is_forgivable(errand, code);
	note_wait(errand->sent_at);
	if (!is_forgiven && !is_shaken(vm, errand->began_at))
		vm_fail(vm->number, "%s: vsockctl ends with %d: %s",
			operation_names[errand->operation], code, errand->tool.complaint);
	if (code == 0)
		go_on(vm, errand);
	else if (errand->operation == OP_SUSPEND && errand->stage == 2)
		errand->stage = 1; /* once more */
	else
		end_errand(vm, errand);
}

static void step_errand(struct vm *vm)
{
	struct errand *errand = &vm->errand;

	check_errand(vm, errand);
	if (errand->operation == OP_SUSPEND && errand->stage == 1 && !errand->is_running &&
	    now_ms() >= errand->until)
		run_tool(vm, errand, "resume", vm->cid);
}

static bool is_busy(const struct errand *errand)
{
	return errand->stage > 0;
}

static void begin(struct vm *vm, enum operation operation, const char *command, const char *which)
{
	if (is_busy(&vm->errand))
		return;
	vm->errand.began_at = now_ms();
	begin_errand(vm, &vm->errand, operation, command, which);
}

/* ---- a capture, beside all that ---- */

static void begin_capture(struct vm *vm)
{
	struct errand *capture = &vm->capture;
	char path[160];

	if (is_busy(capture))
		return;
	note(vm->number, OP_CAPTURE);
	snprintf(path, sizeof(path), "%s/captured%zu", shared->directory, vm->number);
	capture->operation = OP_CAPTURE;
	capture->stage = 1;
	capture->is_running = true;
	capture->until = now_ms() + draw(&vm->dice, 2000);
	tool_start(&capture->tool, vm->control,
		   (const char *const[]){"capture", vm->cid, path, "100", NULL});
}

static void step_capture(struct vm *vm)
{
	struct errand *capture = &vm->capture;
	int code;

	if (capture->is_running && now_ms() >= capture->until)
		kill(capture->tool.pid, SIGINT);
	if (is_back(capture, &code))
		end_errand(vm, capture);
}

void operations_finish(struct vm *vm)
{
	int64_t deadline = now_ms() + LIMIT;

	vm->capture.until = 0;
	vm->errand.until = 0;
	while (is_busy(&vm->errand) || is_busy(&vm->capture)) {
		/* Orders wait at the socket for the next vsockd: what it suspends it has to resume.
		 */
		step_errand(vm);
		step_capture(vm);
		if (now_ms() > deadline)
			vm_fail(vm->number, "vsockctl does not come back: %s",
				operation_names[vm->errand.operation]);
		if (vm->has_guest && guest_poll(&vm->guest, 2) < 0)
			vm_lose_guest(vm);
		else if (!vm->has_guest)
			poll(NULL, 0, 2);
	}
}

/* ---- the VMM ---- */

static void stop_rings(struct vm *vm)
{
	if (!vm_succeeds(vm, guest_stop(&vm->guest), "rings stop"))
		return;
	poll(NULL, 0, (int)draw(&vm->dice, 60));
	vm_succeeds(vm, guest_resume(&vm->guest), "rings start");
}

static void disable_rings(struct vm *vm)
{
	if (!vm_succeeds(vm, guest_enable(&vm->guest, false), "rings are disabled"))
		return;
	poll(NULL, 0, (int)draw(&vm->dice, 60));
	vm_succeeds(vm, guest_enable(&vm->guest, true), "rings are enabled");
}

static int change_memory(struct vm *vm, uint32_t request)
{
	struct memory *memory = &vm->guest.memory;
	size_t last = memory->n_regions - 1;
	int result = vhost_change_memory(&vm->guest.vhost, request, &memory->regions[last],
					 request == VHOST_ADD_MEM_REG ? memory->fds[last] : -1);

	return result > 0 ? -EREMOTEIO : result;
}

static void plug(struct vm *vm)
{
	struct memory *memory = &vm->guest.memory;
	struct memory_layout region = {
		.guest_address = (64 + 2 * memory->n_regions) * MIB,
		.size = MIB,
	};

	if (!vhost_has(&vm->guest.vhost, VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS) ||
	    memory->n_regions > PLUGGED_MAX)
		return;
	note(vm->number, OP_PLUG);
	if (memory_add(memory, &region) < 0)
		vm_fail(vm->number, "no memory");
	vm_succeeds(vm, change_memory(vm, VHOST_ADD_MEM_REG), "memory is plugged");
}

static void unplug(struct vm *vm)
{
	if (vm->guest.memory.n_regions == 1)
		return;
	note(vm->number, OP_UNPLUG);
	if (vm_succeeds(vm, change_memory(vm, VHOST_REM_MEM_REG), "memory is unplugged"))
		memory_remove_last(&vm->guest.memory);
}

static void kill_frontend(struct vm *vm)
{
	vm_lose_guest(vm);
}

static void connect_again(struct vm *vm)
{
	struct guest *guest = &vm->guest;

	if (!vm_succeeds(vm, guest_reset(guest), "the device is reset"))
		return;
	guest_detach(guest);
	if (vm_succeeds(vm, guest_attach(guest, vm->socket, NULL, 0), "the front-end connects"))
		vm_succeeds(vm, guest_resume(guest), "rings start");
}

static void reboot(struct vm *vm)
{
	if (vm_succeeds(vm, guest_reset(&vm->guest), "the device is reset"))
		vm_succeeds(vm, guest_resume(&vm->guest), "rings start");
}

static void restore(struct vm *vm)
{
	static uint8_t state[64 * 1024];
	struct guest *guest = &vm->guest;
	size_t len;

	if (!vm_succeeds(vm, guest_stop(guest), "rings stop") ||
	    !vm_succeeds(vm, vhost_save(&guest->vhost, state, sizeof(state), &len), "it is saved"))
		return;
	guest_detach(guest);
	if (vm_succeeds(vm, guest_attach(guest, vm->socket, state, len), "it is restored"))
		vm_succeeds(vm, guest_resume(guest), "rings start");
}

/* ---- the VMM's socket in another process ---- */

/* This process goes on as its own child; main.c adopts that. */
static void pass_on(struct vm *vm)
{
	int pair[2];
	pid_t pid;

	if (is_busy(&vm->errand) || is_busy(&vm->capture))
		return;
	note(vm->number, OP_PASS_ON);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		vm_fail(vm->number, "no sockets");
	pid = fork();
	if (pid < 0)
		vm_fail(vm->number, "no process");
	if (pid > 0) {
		shared->vms[vm->number].pid = pid;
		if (!socket_pass_fd(pair[0], vm->guest.vhost.fd))
			_exit(1);
		_exit(0);
	}
	close(pair[0]);
	close(vm->guest.vhost.fd);
	vm->guest.vhost.fd = socket_take_fd(pair[1]);
	close(pair[1]);
	if (vm->guest.vhost.fd < 0)
		vm_fail(vm->number, "the socket did not come along");
}

/* ---- guest and host programs ---- */

static void abort_one(struct vm *vm, enum operation operation)
{
	bool is_guest = operation == OP_GUEST_RESETS;

	for (uint32_t i = 0; i < vm->n_ends; i++) {
		struct end *end = vm->ends[draw(&vm->dice, (uint32_t)vm->n_ends)];

		if (end->state == END_OVER || (end->connection != NULL) != is_guest)
			continue;
		note(vm->number, operation);
		end_abort(end);
		return;
	}
}

/* ---- which, and when ---- */

/* May it be done to this guest now? */
static bool can_be_faulted(const struct vm *vm, enum operation operation)
{
	const struct vhost *vhost = &vm->guest.vhost;

	switch (operation) {
	case OP_REBOOT:
		/* Without that message the device may have answered the driver before. */
		return vhost_has(vhost, VHOST_PROTOCOL_RESET_DEVICE);
	case OP_RESTORE:
		return vhost_has(vhost, VHOST_PROTOCOL_DEVICE_STATE) && vm->guest.n_rings > 2;
	default:
		return true;
	}
}

static void do_fault(struct vm *vm)
{
	static const enum operation choices[] = {OP_KILL_WORKER, OP_KILL_WORKER, OP_KILL_FRONTEND,
						 OP_RECONNECT,	 OP_REBOOT,	 OP_RESTORE,
						 OP_RESTORE};
	static void (*const functions[OPERATIONS])(struct vm *) = {
		[OP_KILL_FRONTEND] = kill_frontend,
		[OP_RECONNECT] = connect_again,
		[OP_REBOOT] = reboot,
		[OP_RESTORE] = restore,
	};
	enum operation operation = choices[draw(&vm->dice, 7)];

	if (operation == OP_KILL_WORKER && shared->vms[vm->number].n_kills >= KILLS_MAX)
		operation = OP_KILL_FRONTEND;
	if (!can_be_faulted(vm, operation))
		return;
	vm->next_fault = now_ms() + 2 * AFTERMATH + draw(&vm->dice, 4000);
	if (operation == OP_KILL_WORKER) {
		begin(vm, operation, "--json", "status");
		return;
	}
	note(vm->number, operation);
	fault_begin(vm->number);
	functions[operation](vm);
	/* Whoever has no guest is in a fault until it has one. */
	if (vm->has_guest)
		fault_end(vm->number);
	note_end(vm->number, operation);
}

static void starve(struct vm *vm)
{
	poll(NULL, 0, (int)draw(&vm->dice, 600));
}

static void do_something(struct vm *vm)
{
	static const enum operation choices[] = {
		OP_STOP_RINGS, OP_DISABLE_RINGS, OP_REPLACE,	     OP_REPLACE,   OP_SUSPEND,
		OP_STARVE,     OP_PLUG,		 OP_UNPLUG,	     OP_PASS_ON,   OP_CAPTURE,
		OP_HOST_DIES,  OP_GUEST_RESETS,	 OP_KILL_CONNECTION, OP_STOP_RINGS};
	enum operation operation = choices[draw(&vm->dice, sizeof(choices) / sizeof(choices[0]))];

	switch (operation) {
	case OP_REPLACE:
		begin(vm, operation, "replace", vm->cid);
		return;
	case OP_SUSPEND:
		begin(vm, operation, "suspend", vm->cid);
		return;
	case OP_KILL_CONNECTION:
		begin(vm, operation, "--json", "connections");
		return;
	case OP_CAPTURE:
		begin_capture(vm);
		return;
	case OP_PASS_ON:
		pass_on(vm);
		return;
	case OP_PLUG:
		plug(vm);
		return;
	case OP_UNPLUG:
		unplug(vm);
		return;
	case OP_HOST_DIES:
	case OP_GUEST_RESETS:
		abort_one(vm, operation);
		return;
	default:
		break;
	}
	note(vm->number, operation);
	if (operation == OP_STOP_RINGS)
		stop_rings(vm);
	else if (operation == OP_DISABLE_RINGS)
		disable_rings(vm);
	else
		starve(vm);
	note_end(vm->number, operation);
}

void operations_step(struct vm *vm)
{
	if (vm->number == BYSTANDER)
		return;
	step_errand(vm);
	step_capture(vm);
	if (!vm->has_guest || shared->vms[vm->number].is_to_rest || now_ms() < vm->next_operation)
		return;
	vm->next_operation = now_ms() + draw(&vm->dice, 150);
	if (now_ms() >= vm->next_fault)
		do_fault(vm);
	else
		do_something(vm);
}
