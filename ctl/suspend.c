/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sysexits.h>

#include "ctl/client.h"
#include "ctl/command.h"

static int ask(const struct context *context, enum control_command command)
{
	Control__Request request;
	uint64_t cid = 0; /* all */
	int r = 0;

	if (strcmp(context->argv[0], "all") != 0) {
		r = command_read_cid(context->argv[0], &cid);
		if (r == 0 && cid == 0)
			r = complain(EX_DATAERR, "CID \"0\": no VM has it; give a CID, or all");
	}
	if (r != 0)
		return r;
	request = client_request(command, cid);
	return client_ask(context->path, &request, NULL, NULL);
}

int suspend_run(const struct context *context)
{
	return ask(context, CONTROL_SUSPEND);
}

int resume_run(const struct context *context)
{
	return ask(context, CONTROL_RESUME);
}
