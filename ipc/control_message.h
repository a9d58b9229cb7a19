/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The messages of the control socket: packing and bounded decoding, for the
 * front and for vsockctl. Decoding takes no heap (arena.h); what was decoded
 * lives until the next decoding in this process.
 */

#include <stdint.h>

#include "ipc/channel.h"
#include "ipc/control.pb-c.h"

#define CONTROL_VERSION 1

/* Where vsockctl looks for the socket unless it is told. */
#define CONTROL_PATH_DEFAULT "/run/vsockd/control"

/* Bytes of a text without its 0: with the rest it must fit into a packet. */
#define CONTROL_TEXT_MAX 200

enum control_command {
	CONTROL_STATUS = 1,   /* Vm, for each */
	CONTROL_SHOW,	      /* of a VM: Vm, Details, Ring for each, Region for each */
	CONTROL_CONNECTIONS,  /* Connection for each, of a VM or of all */
	CONTROL_KILL,	      /* end a connection */
	CONTROL_COUNTERS,     /* Counters, of a VM or of all, some for each */
	CONTROL_METRICS,      /* Text: OpenMetrics */
	CONTROL_LOG_LEVEL,    /* number: as in syslog(3), LOG_ERR to LOG_DEBUG */
	CONTROL_CONNECT,      /* Stream */
	CONTROL_LISTEN,	      /* Stream for each; no End before the client leaves */
	CONTROL_REPLACE = 16, /* the worker of a VM, or of all */
	CONTROL_SUSPEND = 20, /* a VM, or all: nothing; ends when it is done */
	CONTROL_RESUME,
	CONTROL_CAPTURE,     /* Stream, of records; number: bytes of payload; as LISTEN no End */
	CONTROL_RELOAD = 24, /* Text: what was logged of it; then End, without a text if refused */
	CONTROL_FILE,	     /* Text: the path of the configuration file */
};

enum control_vm_state {
	CONTROL_VM_WAITING = 1, /* no front-end is connected */
	CONTROL_VM_STOPPED,	/* rings 0 and 1 do not both run */
	CONTROL_VM_STARTING,	/* no worker yet, or it is still being told what the VM is */
	CONTROL_VM_RUNNING,
	CONTROL_VM_QUARANTINE, /* restored; the driver has not handled the reset yet */
	CONTROL_VM_FAILED,     /* its workers died too often */
	CONTROL_VM_SUSPENDED,  /* by the operator, or with SUSPEND */
	CONTROL_VM_STATE_MAX,
};

/* What is left to do of a device state that was loaded. */
enum control_restore {
	CONTROL_RESTORE_NONE,
	CONTROL_RESTORE_LOADING,
	CONTROL_RESTORE_RESET_DUE,  /* the driver is to be told, once ring 2 runs */
	CONTROL_RESTORE_RESET_SENT, /* it has not handled it yet */
	CONTROL_RESTORE_MAX,
};

/* NULL when it is malformed. The packet's fd stays in it. */
const Control__Request *control_decode_request(const struct channel_packet *packet);

/* NULL when it is malformed, or has no body that is known here. */
const Control__Reply *control_decode_reply(const struct channel_packet *packet);

/* Texts must not be longer than CONTROL_TEXT_MAX. fd -1 for none, stays the caller's. */
void control_encode_request(const Control__Request *request, int fd,
			    struct channel_packet *ret_packet);
void control_encode_reply(const Control__Reply *reply, int fd, struct channel_packet *ret_packet);
