/* SPDX-License-Identifier: Apache-2.0 */
#include "ctl/names.h"

#include <stddef.h>
#include <stdio.h>

#include "ipc/control_message.h"
#include "ipc/observation.h"

/* virtio 1.3, 5.10.3 and 6; vhost-user for 26 and 30. */
static const char *const features_by_bit[64] = {
	[0] = "stream",
	[1] = "seqpacket",
	[2] = "no-implied-stream",
	[26] = "log-all",
	[28] = "indirect",
	[29] = "event-idx",
	[30] = "protocol",
	[32] = "version-1",
	[33] = "access-platform",
	[34] = "packed",
	[35] = "in-order",
	[36] = "order-platform",
	[38] = "notification-data",
	[40] = "ring-reset",
};

/* QEMU's vhost-user document, "Protocol features". */
static const char *const protocol_features_by_bit[64] = {
	[0] = "mq",
	[1] = "log-shmfd",
	[2] = "rarp",
	[3] = "reply-ack",
	[4] = "mtu",
	[5] = "backend-req",
	[6] = "cross-endian",
	[7] = "crypto-session",
	[8] = "pagefault",
	[9] = "config",
	[10] = "backend-send-fd",
	[11] = "host-notifier",
	[12] = "inflight-shmfd",
	[13] = "reset-device",
	[14] = "inband-notifications",
	[15] = "configure-mem-slots",
	[16] = "status",
	[17] = "xen-mmap",
	[18] = "shared-object",
	[19] = "device-state",
	[20] = "get-vring-base-inflight",
	[21] = "gpa-addresses",
	[56] = "experimental-suspend",
};

const char *names_state(uint32_t state)
{
	static const char *const names[CONTROL_VM_STATE_MAX] = {
		[CONTROL_VM_WAITING] = "waiting",	[CONTROL_VM_STOPPED] = "stopped",
		[CONTROL_VM_STARTING] = "starting",	[CONTROL_VM_RUNNING] = "running",
		[CONTROL_VM_QUARANTINE] = "quarantine", [CONTROL_VM_FAILED] = "failed",
		[CONTROL_VM_SUSPENDED] = "suspended",
	};

	return state < CONTROL_VM_STATE_MAX && names[state] ? names[state] : "?";
}

const char *names_connection(uint32_t state)
{
	static const char *const names[CONNECTION_REPORT_MAX] = {
		[CONNECTION_REPORT_HANDSHAKE] = "handshake",
		[CONNECTION_REPORT_ASKING_GUEST] = "asking guest",
		[CONNECTION_REPORT_ASKING_HOST] = "asking host",
		[CONNECTION_REPORT_OPEN] = "open",
		[CONNECTION_REPORT_CLOSING] = "closing",
		[CONNECTION_REPORT_DRAINING] = "draining",
	};

	return state < CONNECTION_REPORT_MAX && names[state] ? names[state] : "?";
}

const char *names_restore(uint32_t restore)
{
	static const char *const names[CONTROL_RESTORE_MAX] = {
		[CONTROL_RESTORE_NONE] = "-",
		[CONTROL_RESTORE_LOADING] = "loading",
		[CONTROL_RESTORE_RESET_DUE] = "reset is due",
		[CONTROL_RESTORE_RESET_SENT] = "reset was sent",
	};

	return restore < CONTROL_RESTORE_MAX ? names[restore] : "?";
}

static const char *list_bits(uint64_t bits, const char *const by_bit[64],
			     char text[static NAMES_MAX])
{
	size_t len = 0;

	snprintf(text, NAMES_MAX, "-");
	for (size_t bit = 0; bit < 64 && len < NAMES_MAX; bit++) {
		const char *separator = len ? "," : "";

		if (!(bits >> bit & 1))
			continue;
		if (by_bit[bit])
			len += (size_t)snprintf(text + len, NAMES_MAX - len, "%s%s", separator,
						by_bit[bit]);
		else
			len += (size_t)snprintf(text + len, NAMES_MAX - len, "%sbit-%zu", separator,
						bit);
	}
	return text;
}

const char *names_features(uint64_t features, char text[static NAMES_MAX])
{
	return list_bits(features, features_by_bit, text);
}

const char *names_protocol_features(uint64_t features, char text[static NAMES_MAX])
{
	return list_bits(features, protocol_features_by_bit, text);
}
