/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "ctl/client.h"
#include "ctl/command.h"
#include "ctl/names.h"
#include "ctl/output.h"
#include "ipc/observation.h"

#define VMS_MAX		256 /* as vsockd(8) */
#define SECONDS_DEFAULT 2
#define SECONDS_MAX	3600

/* Home, and clear from there on (ECMA-48, CUP and ED). */
#define TERMINAL_CLEAR "\033[H\033[J"

static const struct output_column columns[] = {
	{"cid", "CID", OUTPUT_NUMBER},
	{"state", "STATE", OUTPUT_TEXT},
	{"connections", "CONNECTIONS", OUTPUT_NUMBER},
	{"to_guest", "TO GUEST/s", OUTPUT_BYTES},
	{"from_guest", "FROM GUEST/s", OUTPUT_BYTES},
	{"packets_to_guest", "PACKETS/s", OUTPUT_NUMBER},
	{"packets_from_guest", "PACKETS/s", OUTPUT_NUMBER},
	{"connects", "CONNECTS/s", OUTPUT_NUMBER},
	{"credit_stalls", "STALLS/s", OUTPUT_NUMBER},
	{"cpu_percent", "CPU%", OUTPUT_NUMBER},
};

/* A VM at one moment. */
struct sample {
	uint64_t cid;
	uint32_t state, n_connections, pid;
	uint64_t counters[COUNTER_MAX];
	uint64_t cpu; /* clock ticks of its worker */
};

struct moment {
	uint64_t ms;
	size_t n_vms;
	struct sample vms[VMS_MAX];
};

static uint64_t now_ms(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* proc(5): utime and stime are fields 14 and 15; the name in field 2 may have anything in it. */
static uint64_t read_cpu(uint32_t pid)
{
	unsigned long user = 0, system = 0;
	char path[64], line[1024] = "";
	const char *rest;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%" PRIu32 "/stat", pid);
	file = fopen(path, "r");
	if (!file)
		return 0;
	rest = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
	fclose(file);
	if (!rest || sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
			    &system) != 2)
		return 0;
	return user + system;
}

static struct sample *find_vm(struct moment *moment, uint64_t cid)
{
	for (size_t i = 0; i < moment->n_vms; i++)
		if (moment->vms[i].cid == cid)
			return &moment->vms[i];
	return NULL;
}

static void take_vm(void *context, const Control__Reply *reply)
{
	struct moment *moment = context;
	const Control__Vm *vm = reply->vm;

	if (reply->body_case != CONTROL__REPLY__BODY_VM || moment->n_vms == VMS_MAX)
		return;
	moment->vms[moment->n_vms++] = (struct sample){
		.cid = vm->cid,
		.state = vm->state,
		.n_connections = vm->n_connections,
		.pid = vm->worker_pid,
		.cpu = vm->worker_pid ? read_cpu(vm->worker_pid) : 0,
	};
}

static void take_counters(void *context, const Control__Reply *reply)
{
	const Control__Counters *counters = reply->counters;
	struct sample *vm;

	if (reply->body_case != CONTROL__REPLY__BODY_COUNTERS)
		return;
	vm = find_vm(context, counters->cid);
	if (!vm)
		return;
	const uint64_t values[COUNTERS_PER_MESSAGE] = {
		counters->value0, counters->value1, counters->value2, counters->value3,
		counters->value4, counters->value5, counters->value6,
	};
	for (uint32_t i = 0; i < COUNTERS_PER_MESSAGE; i++)
		if (counters->first < COUNTER_MAX && i < COUNTER_MAX - counters->first)
			vm->counters[counters->first + i] = values[i];
}

static int look(const struct context *context, struct moment *moment)
{
	const Control__Request status = client_request(CONTROL_STATUS, 0);
	const Control__Request counters = client_request(CONTROL_COUNTERS, 0);
	int r;

	*moment = (struct moment){.n_vms = 0};
	r = client_ask(context->path, &status, take_vm, moment);
	if (r == 0)
		r = client_ask(context->path, &counters, take_counters, moment);
	moment->ms = now_ms();
	return r;
}

static uint64_t per_second(uint64_t n, uint64_t ms)
{
	return ms ? n * 1000 / ms : 0;
}

static void add_row(struct output *output, const struct sample *before, const struct sample *vm,
		    uint64_t ms)
{
	static const enum counter counters[] = {COUNTER_TO_GUEST_BYTES, COUNTER_FROM_GUEST_BYTES,
						COUNTER_TO_GUEST_PACKETS,
						COUNTER_FROM_GUEST_PACKETS};
	uint64_t connects = vm->counters[COUNTER_GUEST_CONNECTED] +
			    vm->counters[COUNTER_HOST_CONNECTED] -
			    before->counters[COUNTER_GUEST_CONNECTED] -
			    before->counters[COUNTER_HOST_CONNECTED];
	bool has_cpu = vm->pid && vm->pid == before->pid;

	output_number(output, vm->cid);
	output_text(output, names_state(vm->state));
	output_number(output, vm->n_connections);
	for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
		output_number(
			output,
			per_second(vm->counters[counters[i]] - before->counters[counters[i]], ms));
	output_number(output, per_second(connects, ms));
	output_number(output, per_second(vm->counters[COUNTER_CREDIT_STALLS] -
						 before->counters[COUNTER_CREDIT_STALLS],
					 ms));
	output_number(output, has_cpu ? per_second((vm->cpu - before->cpu) * 100 /
							   (uint64_t)sysconf(_SC_CLK_TCK),
						   ms)
				      : OUTPUT_NONE);
}

static void print(const struct context *context, struct moment *before, const struct moment *after)
{
	struct output output;

	output_begin(&output, context->is_json, columns, sizeof(columns) / sizeof(columns[0]));
	for (size_t i = 0; i < after->n_vms; i++) {
		const struct sample *vm = &after->vms[i];
		const struct sample *former = find_vm(before, vm->cid);

		add_row(&output, former ? former : vm, vm, after->ms - before->ms);
	}
	output_end(&output);
	fflush(stdout);
}

int top_run(const struct context *context)
{
	static struct moment before, after;
	bool is_live = isatty(STDOUT_FILENO) && !context->is_json;
	uint64_t seconds = SECONDS_DEFAULT;
	int r = 0;

	if (context->argc > 0)
		r = command_read_number("seconds", context->argv[0], SECONDS_MAX, &seconds);
	if (r == 0 && seconds == 0)
		r = complain(EX_DATAERR, "seconds \"0\": too small; give at least 1");
	if (r == 0)
		r = look(context, &before);
	while (r == 0) {
		(void)poll(NULL, 0, (int)seconds * 1000);
		r = look(context, &after);
		if (r != 0)
			break;
		if (is_live)
			fputs(TERMINAL_CLEAR, stdout);
		print(context, &before, &after);
		/* Into a file or a pipe: one look, as a program wants it. */
		if (!is_live)
			break;
		before = after;
	}
	return r;
}
