/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sysexits.h>

#include "ctl/client.h"
#include "ctl/command.h"

int replace_run(const struct context *context)
{
	Control__Request request;
	uint64_t cid = 0;
	int r = 0;

	if (strcmp(context->argv[0], "all") != 0) {
		r = command_read_cid(context->argv[0], &cid);
		if (r == 0 && cid == 0)
			r = complain(EX_DATAERR,
				     "no VM has CID 0; \"all\" replaces the workers of all VMs");
	}
	if (r != 0)
		return r;
	request = client_request(CONTROL_REPLACE, cid);
	return client_ask(context->path, &request, NULL, NULL);
}
