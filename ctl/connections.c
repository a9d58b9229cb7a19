/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>

#include "ctl/client.h"
#include "ctl/command.h"
#include "ctl/names.h"
#include "ctl/output.h"
#include "ipc/observation.h"

static const struct output_column columns[] = {
	{"id", "ID", OUTPUT_TEXT},
	{"cid", NULL, OUTPUT_NUMBER},
	{"from", "FROM", OUTPUT_TEXT},
	{"peer", "PEER", OUTPUT_NUMBER},
	{"guest_port", "GUEST PORT", OUTPUT_NUMBER},
	{"peer_port", "PEER PORT", OUTPUT_NUMBER},
	{"type", NULL, OUTPUT_TEXT},
	{"state", "STATE", OUTPUT_TEXT},
	{"to_guest", "TO GUEST", OUTPUT_BYTES},
	{"from_guest", "FROM GUEST", OUTPUT_BYTES},
	{"guest_room", "GUEST ROOM", OUTPUT_BYTES},
	{"host_room", "HOST ROOM", OUTPUT_BYTES},
	{"buffered", "BUFFERED", OUTPUT_BYTES},
	{"age", "AGE", OUTPUT_AGE},
	{"peer_pid", "PID", OUTPUT_NUMBER},
	{"peer_user", "USER", OUTPUT_TEXT},
	{"peer_program", "PROGRAM", OUTPUT_TEXT},
};

/*
 * Who that process is: its user and its program. vsockd cannot know, it sees no users
 * and no files. A process that has ended is "-"; its id may be another one's by now.
 */
static void add_program(struct output *output, uint32_t pid)
{
	char path[64], comm[32] = "", user[32];
	const struct passwd *entry;
	struct stat status;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%" PRIu32, pid);
	if (pid == 0 || stat(path, &status) < 0) {
		output_text(output, "-");
		output_text(output, "-");
		return;
	}
	entry = getpwuid(status.st_uid);
	snprintf(user, sizeof(user), "%u", status.st_uid);
	output_text(output, entry ? entry->pw_name : user);
	snprintf(path, sizeof(path), "/proc/%" PRIu32 "/comm", pid);
	file = fopen(path, "r");
	if (file && fgets(comm, sizeof(comm), file))
		comm[strcspn(comm, "\n")] = '\0';
	if (file)
		fclose(file);
	for (char *c = comm; *c; c++)
		if ((unsigned char)*c < ' ' || (unsigned char)*c > '~')
			*c = '?';
	output_text(output, comm[0] ? comm : "-");
}

static void take_row(void *context, const Control__Reply *reply)
{
	const Control__Connection *connection = reply->connection;
	struct output *output = context;
	char id[48];

	if (reply->body_case != CONTROL__REPLY__BODY_CONNECTION)
		return;
	snprintf(id, sizeof(id), "%" PRIu64 ":%" PRIu32, connection->cid, connection->number);
	output_text(output, connection->number ? id : "-");
	output_number(output, connection->cid);
	output_text(output, connection->is_from_host ? "peer" : "guest");
	output_number(output, connection->peer_cid ? connection->peer_cid : OUTPUT_NONE);
	output_number(output, connection->state == CONNECTION_REPORT_HANDSHAKE
				      ? OUTPUT_NONE
				      : connection->guest_port);
	output_number(output, connection->state == CONNECTION_REPORT_HANDSHAKE
				      ? OUTPUT_NONE
				      : connection->host_port);
	output_text(output, connection->type == 2 ? "seqpacket" : "stream");
	output_text(output, names_connection(connection->state));
	output_number(output, connection->to_guest);
	output_number(output, connection->from_guest);
	output_number(output, connection->guest_room);
	output_number(output, connection->host_room);
	output_number(output, connection->n_buffered);
	output_number(output, connection->age);
	output_number(output, connection->pid ? connection->pid : OUTPUT_NONE);
	add_program(output, connection->pid);
}

int connections_run(const struct context *context)
{
	Control__Request request;
	struct output output;
	uint64_t cid = 0;
	int r = 0;

	if (context->argc > 0)
		r = command_read_cid(context->argv[0], &cid);
	if (r != 0)
		return r;
	output_begin(&output, context->is_json, columns, sizeof(columns) / sizeof(columns[0]));
	request = client_request(CONTROL_CONNECTIONS, cid);
	r = client_ask(context->path, &request, take_row, &output);
	if (r == 0)
		output_end(&output);
	return r;
}

int kill_run(const struct context *context)
{
	char *number_text = strchr(context->argv[0], ':');
	Control__Request request;
	uint64_t cid, number;
	int r;

	if (!number_text)
		return complain(
			EX_USAGE,
			"\"%.100s\" is no connection; give an ID of \"vsockctl connections\"",
			context->argv[0]);
	*number_text++ = '\0';
	r = command_read_cid(context->argv[0], &cid);
	if (r == 0)
		r = command_read_number("connection", number_text, UINT32_MAX, &number);
	if (r != 0)
		return r;
	request = client_request(CONTROL_KILL, cid);
	request.number = (uint32_t)number;
	return client_ask(context->path, &request, NULL, NULL);
}
