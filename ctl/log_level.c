/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sysexits.h>
#include <syslog.h>

#include "ctl/client.h"
#include "ctl/command.h"

int log_level_run(const struct context *context)
{
	static const struct {
		const char *name;
		uint32_t level;
	} levels[] = {
		{"error", LOG_ERR}, {"warning", LOG_WARNING}, {"notice", LOG_NOTICE},
		{"info", LOG_INFO}, {"debug", LOG_DEBUG},
	};
	Control__Request request = client_request(CONTROL_LOG_LEVEL, 0);

	for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
		if (strcmp(context->argv[0], levels[i].name) == 0)
			request.number = levels[i].level;
	if (request.number == 0)
		return complain(
			EX_USAGE,
			"level \"%.100s\": unknown; give error, warning, notice, info or debug",
			context->argv[0]);
	return client_ask(context->path, &request, NULL, NULL);
}
