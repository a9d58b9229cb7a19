/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The spawner: the one process that keeps privileges. It starts and confines
 * workers, stops them, and connects host sockets and guests with each other, on
 * requests of fixed size from the front. A request names a configured device and a number, never a
 * path or an address; anything else ends the spawner, and with it vsockd.
 *
 * Front and spawner talk over one SOCK_SEQPACKET pair. Each message is one of
 * the two structs below and nothing else, but for one fd of JUDGE; replies carry at
 * most two fds.
 */

#include <errno.h>
#include <stdint.h>

struct configuration;
struct exporter_setup;
struct reload;

enum spawner_request_kind {
	SPAWNER_SPAWN = 1,   /* start a worker; token comes back in the reply, see below */
	SPAWNER_STOP = 2,    /* kill worker `number`; EXITED follows, or is on its way already */
	SPAWNER_CONNECT = 3, /* connect device `device` to host port `number` */
	/*
	 * A pair for devices `device` and `number`, which share a group, or are the same
	 * where there is a control socket: then one end is for a client of that.
	 */
	SPAWNER_PAIR = 4,
	SPAWNER_LOG_LEVEL = 5,	/* log lines up to level `number`; no reply */
	SPAWNER_RELOAD_NOW = 6, /* as SIGHUP; not again before the reply, and only with a file */
	SPAWNER_JUDGE = 7,	/* may who is at the other end of this unix socket talk with device
				   `device`? One fd, a duplicate */
	SPAWNER_READY = 14,	/* a worker is ready, for the first time */
	SPAWNER_ALIVE = 15,	/* once for each PING */
	SPAWNER_RELOADED = 16,	/* the front goes by bank `number` now; once for each RELOAD */
};

/*
 * A request has 24 bytes, a reply 40, no padding; fields that a kind does not use must be 0, but
 * token, which the spawner never looks at.
 */
struct spawner_request {
	uint32_t kind;
	uint32_t device; /* index of the VM in the configuration */
	/* STOP: worker number; CONNECT: port; PAIR: index of the other VM; SPAWN: below */
	uint32_t number;
	uint32_t type;	/* CONNECT, PAIR, JUDGE: VIRTIO_VSOCK_TYPE_STREAM (1) or _SEQPACKET (2) */
	uint64_t token; /* chosen by the front, repeated in the reply */
};

enum spawner_reply_kind {
	SPAWNER_SPAWNED = 1,	 /* error 0: number = worker number; two fds, see below */
	SPAWNER_CONNECTED = 2,	 /* error 0: fd is the connected, non-blocking socket;
				    EINPROGRESS: the same, but not connected yet */
	SPAWNER_EXITED = 3,	 /* worker `number` is gone; error = its wait status */
	SPAWNER_PAIRED = 4,	 /* error 0: two fds, both ends of a non-blocking socket pair */
	SPAWNER_RELOAD_DONE = 6, /* behind all that a reload says; error: nothing has changed; what
				    was logged is in the banks' text */
	SPAWNER_JUDGED = 7,	 /* error 0, or SPAWNER_E_PEER: number = its user, program = its
				    group */
	SPAWNER_PING = 15,	 /* unasked: is the front's loop alive? */
	/*
	 * Unasked: a changed configuration. LISTENER and MOVE say what to listen on from
	 * RELOAD on; number is that of the socket, see sockets.h.
	 */
	SPAWNER_LISTENER = 16, /* a new socket of device `device`: the fd. They come before all
				  others; ETOOMANYREFS: there will be no RELOAD, those that were
				  sent are to be closed */
	SPAWNER_MOVE = 17,     /* device `device` gets one that is another's: device << 32 | number
				  in the token */
	SPAWNER_RELOAD = 18,   /* go by bank `number`; error 1: workers of before are too small */
};

/* CONNECTED, JUDGED: allow-uid and the others do not let that one in. connect(2) has none such. */
#define SPAWNER_E_PEER EKEYREJECTED

struct spawner_reply {
	uint32_t kind;
	int32_t error; /* 0 or a positive errno; EXITED: wait status as of waitpid(2) */
	uint32_t
		device; /* CONNECTED, JUDGED: as in the request; SPAWNED: the worker's process id */
	uint32_t number;
	uint64_t token;
	uint64_t buffer_size; /* SPAWNED: bytes of the buffer's file */
	uint32_t program;     /* SPAWNED: which, by number: 0 is that of the start */
	uint32_t unused;
};

/*
 * The fds of SPAWNED are the front's end of the channel, and a duplicate of the
 * sealed file of the worker's connection buffers: whoever goes on in its place gets
 * that too.
 *
 * A worker is started from the file that stands now where one was found at the
 * start of vsockd, so an upgrade takes effect; or from the file of then, which is kept
 * open, where the other one can't be run, or where number is 1.
 *
 * At most n_vms * PER_VM + SPARE workers live at a time; a SPAWN beyond is
 * answered with EAGAIN. Worker numbers go up from 0 and are not used again, so
 * a STOP that crosses an EXITED meets nobody else. A SPAWNED with
 * ETOOMANYREFS, no room for its fd in flight, is followed by the EXITED of that
 * worker, which ends as its channel has closed.
 */
#define SPAWNER_WORKERS_PER_VM 2
#define SPAWNER_WORKERS_SPARE  2

/* Fds of a worker besides its connections: fixed ones, rings, memory, handshakes in passing. */
#define SPAWNER_WORKER_FILES 96

/*
 * Room of a connection's buffer beyond the guest's tx_buffer_size, and for what a successor
 * is told of it.
 */
#define SPAWNER_BUFFER_EXTRA (48u * 1024)

/* Room for one message to a guest, besides those buffers; and for what there is once. */
#define SPAWNER_MESSAGE_EXTRA ((4u * 1024 + 32) * 1024)

struct spawner_setup {
	const struct configuration *configuration;
	int front_channel;		       /* the spawner's end of the pair */
	int front_pidfd;		       /* end of the front ends the spawner */
	int worker_program;		       /* O_PATH fd of vsockd-worker */
	const char *worker_path;	       /* where to look for it anew; NULL: nowhere */
	struct reload *reload;		       /* NULL: there is no file to read again */
	const struct exporter_setup *exporter; /* NULL: there is to be none */
};

/*
 * The size of the memfd for connection buffers that each worker gets, so that
 * any worker can serve any VM: room for all connections of the hungriest VM.
 * 0, or -EOVERFLOW for a configuration that no file could hold.
 */
int spawner_buffer_size(const struct configuration *configuration, uint64_t *ret_size);

/* Connections and open files that a worker must be able to hold, whichever VM it gets. */
uint32_t spawner_connections(const struct configuration *configuration);
uint64_t spawner_files(const struct configuration *configuration);

/*
 * Drop the privileges that are not needed any more (policy_reduce_spawner()),
 * then run until SIGTERM or SIGINT (returns 0; SIGHUP too where there is nothing to
 * read again), until the front ends (returns
 * its exit code, or EX_SOFTWARE when it was killed) or breaks the protocol, or
 * until something fails that cannot be mended; the exit code of vsockd is
 * returned, a log line was written. All workers and the front are killed and
 * reaped before the return. The caller blocked SIGTERM, SIGINT, SIGHUP and SIGCHLD
 * before the front was forked, and keeps the fds of setup. Ignores SIGPIPE.
 * Logs.
 */
int spawner_run(const struct spawner_setup *setup);
