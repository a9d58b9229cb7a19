/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "ctl/client.h"
#include "ctl/command.h"

static void take_text(void *context, const Control__Reply *reply)
{
	(void)context;
	if (reply->body_case == CONTROL__REPLY__BODY_TEXT)
		fputs(reply->text->text, stdout);
}

int metrics_run(const struct context *context)
{
	const Control__Request request = client_request(CONTROL_METRICS, 0);

	return client_ask(context->path, &request, take_text, NULL);
}
