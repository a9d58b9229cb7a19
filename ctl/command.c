/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/command.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sysexits.h>

#include "ctl/client.h"

const struct command commands[] = {
	{"status", "", 0, 0, true, "the VMs, and how each is", status_run},
	{"show", "CID", 1, 1, true, "all about one VM", show_run},
	{"connections", "[CID]", 0, 1, true, "connections, of one VM or of all", connections_run},
	{"kill", "ID", 1, 1, false, "end a connection at once", kill_run},
	{"top", "[SECONDS]", 0, 1, true, "what is moved, live in a terminal", top_run},
	{"connect", "CID PORT", 2, 2, false, "stdin and stdout to a port of the guest",
	 connect_run},
	{"listen", "CID PORT -- COMMAND...", 3, INT_MAX, false,
	 "run a command for each connection of the guest", listen_run},
	{"capture", "CID FILE [BYTES]", 2, 3, false, "packets into a file for Wireshark",
	 capture_run},
	{"log-level", "LEVEL", 1, 1, false, "what vsockd logs from now on", log_level_run},
	{"suspend", "CID|all", 1, 1, false, "leave the rings of a VM, or of all, alone",
	 suspend_run},
	{"resume", "CID|all", 1, 1, false, "go on with them", resume_run},
	{"metrics", "", 0, 0, false, "print OpenMetrics", metrics_run},
	{"reload", "", 0, 0, false, "read the configuration file again", reload_run},
	{"add", "CID KEY=VALUE...", 2, INT_MAX, false, "a VM, into the configuration file too",
	 add_run},
	{"remove", "CID", 1, 1, false, "a VM, out of the configuration file too", remove_run},
	{"replace", "CID|all", 1, 1, false, "a fresh worker, nothing lost", replace_run},
};
const size_t n_commands = sizeof(commands) / sizeof(commands[0]);

int command_read_number(const char *what, const char *text, uint64_t max, uint64_t *ret)
{
	uint64_t number = 0;

	if (!*text || text[strspn(text, "0123456789")])
		return complain(EX_USAGE, "%s \"%.100s\": not a decimal number", what, text);
	for (const char *c = text; *c; c++) {
		uint64_t digit = (uint64_t)(*c - '0');

		if (number > (max - digit) / 10)
			return complain(EX_DATAERR,
					"%s \"%.100s\": too large; give at most %" PRIu64, what,
					text, max);
		number = number * 10 + digit;
	}
	*ret = number;
	return 0;
}

int command_read_cid(const char *text, uint64_t *ret)
{
	return command_read_number("CID", text, UINT32_MAX, ret);
}
