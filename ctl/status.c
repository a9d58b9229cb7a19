/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "ctl/client.h"
#include "ctl/command.h"
#include "ctl/names.h"
#include "ctl/output.h"

static const struct output_column columns[] = {
	{"cid", "CID", OUTPUT_NUMBER},
	{"state", "STATE", OUTPUT_TEXT},
	{"frontend_age", "UP", OUTPUT_AGE},
	{"worker_pid", "WORKER", OUTPUT_NUMBER},
	{"worker_number", NULL, OUTPUT_NUMBER},
	{"worker_age", "AGE", OUTPUT_AGE},
	{"workers_lost", "LOST", OUTPUT_NUMBER},
	{"connections", "CONNECTIONS", OUTPUT_NUMBER},
	{"max_connections", "LIMIT", OUTPUT_NUMBER},
	{"features", NULL, OUTPUT_HEX},
	{"protocol_features", NULL, OUTPUT_HEX},
	{NULL, "FEATURES", OUTPUT_TEXT},
};

static void take_row(void *context, const Control__Reply *reply)
{
	struct output *output = context;
	const Control__Vm *vm = reply->vm;
	bool has_worker;
	char features[NAMES_MAX];

	if (reply->body_case != CONTROL__REPLY__BODY_VM)
		return;
	has_worker = vm->worker_pid != 0;
	output_number(output, vm->cid);
	output_text(output, names_state(vm->state));
	output_number(output, vm->state == CONTROL_VM_WAITING ? OUTPUT_NONE : vm->frontend_age);
	output_number(output, has_worker ? vm->worker_pid : OUTPUT_NONE);
	output_number(output, has_worker ? vm->worker_number : OUTPUT_NONE);
	output_number(output, has_worker ? vm->worker_age : OUTPUT_NONE);
	output_number(output, vm->n_workers_lost);
	output_number(output, vm->n_connections);
	output_number(output, vm->max_connections);
	output_number(output, vm->features);
	output_number(output, vm->protocol_features);
	output_text(output, names_features(vm->features, features));
}

int status_run(const struct context *context)
{
	const Control__Request request = client_request(CONTROL_STATUS, 0);
	struct output output;
	int r;

	output_begin(&output, context->is_json, columns, sizeof(columns) / sizeof(columns[0]));
	r = client_ask(context->path, &request, take_row, &output);
	if (r == 0)
		output_end(&output);
	return r;
}
