/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "ctl/client.h"
#include "ctl/command.h"
#include "ctl/names.h"
#include "ctl/output.h"

static const struct output_column vm_columns[] = {
	{"cid", "CID", OUTPUT_NUMBER},
	{"state", "state", OUTPUT_TEXT},
	{"frontend_age", "front-end connected", OUTPUT_AGE},
	{"worker_pid", "worker process", OUTPUT_NUMBER},
	{"worker_number", "worker number", OUTPUT_NUMBER},
	{"worker_age", "worker age", OUTPUT_AGE},
	{"workers_lost", "workers lost", OUTPUT_NUMBER},
	{"connections", "connections", OUTPUT_NUMBER},
	{"max_connections", "connections at most", OUTPUT_NUMBER},
	{"features", NULL, OUTPUT_HEX},
	{"feature_names", "features", OUTPUT_TEXT},
	{"protocol_features", NULL, OUTPUT_HEX},
	{"protocol_feature_names", "protocol features", OUTPUT_TEXT},
};

static const struct output_column details_columns[] = {
	{"max_handshakes", "handshakes at most", OUTPUT_NUMBER},
	{"buffer_size", "buffer of a connection", OUTPUT_BYTES},
	{"max_buffer_memory", "buffers at most", OUTPUT_BYTES},
	{"max_connection_rate", "connections a second", OUTPUT_NUMBER},
	{"max_bandwidth", "bandwidth a second", OUTPUT_BYTES},
	{"worker_deaths", "workers lost in a row", OUTPUT_NUMBER},
	{"dirty_log_size", "dirty log", OUTPUT_BYTES},
	{"restore", "restore", OUTPUT_TEXT},
};

static const struct output_column ring_columns[] = {
	{"ring", "RING", OUTPUT_TEXT},	 {"state", "STATE", OUTPUT_TEXT},
	{"size", "SIZE", OUTPUT_NUMBER}, {"base", "BASE", OUTPUT_NUMBER},
	{"kick", "KICK", OUTPUT_TEXT},	 {"call", "CALL", OUTPUT_TEXT},
	{"error", "ERROR", OUTPUT_TEXT}, {"logged", "LOGGED", OUTPUT_TEXT},
	{"desc", "DESC", OUTPUT_HEX},	 {"avail", "AVAIL", OUTPUT_HEX},
	{"used", "USED", OUTPUT_HEX},
};

static const struct output_column region_columns[] = {
	{"guest_address", "GUEST ADDRESS", OUTPUT_HEX},
	{"size", "SIZE", OUTPUT_BYTES},
	{"user_address", "USER ADDRESS", OUTPUT_HEX},
	{"offset", "OFFSET", OUTPUT_HEX},
	{"page_size", "PAGE", OUTPUT_BYTES},
	{"sealed", "SEALED", OUTPUT_TEXT},
};

struct show {
	struct output vm, details, rings, regions;
};

static const char *yes_or_no(bool is_so)
{
	return is_so ? "yes" : "no";
}

static void add_vm(struct output *output, const Control__Vm *vm)
{
	bool has_worker = vm->worker_pid != 0;
	char names[NAMES_MAX];

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
	output_text(output, names_features(vm->features, names));
	output_number(output, vm->protocol_features);
	output_text(output, names_protocol_features(vm->protocol_features, names));
}

static void add_details(struct output *output, const Control__Details *details)
{
	output_number(output, details->max_handshakes);
	output_number(output, details->buffer_size);
	output_number(output,
		      details->max_buffer_memory ? details->max_buffer_memory : OUTPUT_NONE);
	output_number(output,
		      details->max_connection_rate ? details->max_connection_rate : OUTPUT_NONE);
	output_number(output, details->max_bandwidth ? details->max_bandwidth : OUTPUT_NONE);
	output_number(output, details->n_deaths);
	output_number(output, details->log_size ? details->log_size : OUTPUT_NONE);
	output_text(output, names_restore(details->restore));
}

static void add_ring(struct output *output, const Control__Ring *ring)
{
	static const char *const names[] = {"rx", "tx", "event"};
	const char *state =
		ring->is_started ? ring->is_enabled ? "running" : "disabled" : "stopped";

	output_text(output, ring->index < 3 ? names[ring->index] : "?");
	output_text(output, state);
	output_number(output, ring->num);
	output_number(output, ring->next);
	output_text(output, yes_or_no(ring->has_kick));
	output_text(output, yes_or_no(ring->has_call));
	output_text(output, yes_or_no(ring->has_error));
	output_text(output, yes_or_no(ring->is_logged));
	output_number(output, ring->desc);
	output_number(output, ring->avail);
	output_number(output, ring->used);
}

static void add_region(struct output *output, const Control__Region *region)
{
	output_number(output, region->guest_address);
	output_number(output, region->size);
	output_number(output, region->user_address);
	output_number(output, region->offset);
	output_number(output, region->page_size);
	output_text(output, yes_or_no(region->is_sealed));
}

static void take_row(void *context, const Control__Reply *reply)
{
	struct show *show = context;

	switch (reply->body_case) {
	case CONTROL__REPLY__BODY_VM:
		add_vm(&show->vm, reply->vm);
		return;
	case CONTROL__REPLY__BODY_DETAILS:
		add_details(&show->details, reply->details);
		return;
	case CONTROL__REPLY__BODY_RING:
		add_ring(&show->rings, reply->ring);
		return;
	case CONTROL__REPLY__BODY_REGION:
		add_region(&show->regions, reply->region);
		return;
	default:
		return;
	}
}

static void print(struct show *show, bool is_json)
{
	bool has_session = output_n_rows(&show->rings) > 0;

	printf("%s", is_json ? "{\"vm\": " : "");
	output_end_list(&show->vm);
	printf("%s", is_json ? ",\n\"details\": " : "");
	output_end_list(&show->details);
	if (!is_json && !has_session)
		return;
	printf("%s", is_json ? ",\n\"rings\": " : "\n");
	output_end(&show->rings);
	printf("%s", is_json ? ",\"memory\": " : "\n");
	output_end(&show->regions);
	printf("%s", is_json ? "}\n" : "");
}

#define BEGIN(output, columns)                                                                     \
	output_begin(output, context->is_json, columns, sizeof(columns) / sizeof((columns)[0]))

int show_run(const struct context *context)
{
	Control__Request request;
	struct show show;
	uint64_t cid;
	int r = command_read_cid(context->argv[0], &cid);

	if (r != 0)
		return r;
	BEGIN(&show.vm, vm_columns);
	BEGIN(&show.details, details_columns);
	BEGIN(&show.rings, ring_columns);
	BEGIN(&show.regions, region_columns);
	request = client_request(CONTROL_SHOW, cid);
	r = client_ask(context->path, &request, take_row, &show);
	if (r == 0)
		print(&show, context->is_json);
	return r;
}
