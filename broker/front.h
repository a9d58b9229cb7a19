/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The front: the process that sees the front-ends and host programs and keeps no
 * privilege. One epoll loop over the devices, the workers and the spawner. It
 * allocates what it will ever need, confines itself, and then opens nothing:
 * what has to be connected or started it asks of the spawner.
 *
 *   front.c    the loop, time
 *   front_requests.c what is asked of the spawner, and its answers
 *   workers.c  the workers: starting, spare, messages, the end
 *   device.c   one VM: its place, its worker, when its sockets are listened to
 *   device_frontend.c its front-end and the session with it (device_frontend.h)
 *   device_programs.c its connections: of host programs, and those that the guest asks for
 *   device_messages.c what its worker says
 *   sync.c     what a device tells its worker, step by step
 *   commands.c the messages that these steps are
 *   restore.c  device states, the transport reset, the quarantine after a load
 *   query.c    what workers are asked (query.h)
 *   handover.c the replacement of a worker that loses nothing
 *   control.c  the control socket (control.h)
 *   scrape.c   the metrics socket and the exporter (scrape.h)
 *   siblings.c connections between guests
 *   admission.c how many connections may begin in a second
 *   notify.c   in-band notifications to a front-end
 *   changes.c  VMs that come, go and change while it runs
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/banks.h"
#include "broker/configuration.h"
#include "broker/endpoints.h"
#include "broker/frontend.h"
#include "broker/query.h"
#include "broker/session.h"
#include "broker/sockets.h"
#include "broker/spawner.h"
#include "ipc/message.h"

/* ---- workers ---- */

enum worker_state {
	WORKER_NONE,
	WORKER_STARTING, /* Ready is awaited */
	WORKER_SPARE,
	WORKER_SUCCESSOR, /* Ready, or more, to go on in place of another one */
	WORKER_ASSIGNED,
	WORKER_LEAVING, /* nothing is heard of it any more; EXITED is awaited */
};

struct worker {
	enum worker_state state;
	uint32_t number; /* the spawner's */
	uint32_t pid;
	uint64_t started;      /* ms */
	int channel;	       /* -1 once it leaves */
	struct device *device; /* ASSIGNED: whose; so SUCCESSOR, and STARTING for one; LEAVING:
				  whose it was; else NULL */
	uint32_t program;      /* the spawner's number of it */
	int buffer;	       /* a duplicate of the file of its connection buffers; -1: none */
	uint64_t buffer_size;
	uint64_t cid; /* the device's, for the log: the device may have gone */
	bool wants_write;
	uint64_t unread_at; /* ms: wants_write, and has read nothing by then */
	bool is_paused;	    /* its messages wait */
	bool has_failed;    /* it left against our will: its end is worth a line */
	bool is_stopped;    /* STOP was asked for */
	bool was_assigned;
	uint32_t place;	   /* was_assigned: index of the device */
	bool is_outdated;  /* for VMs as they are now: to be dismissed once it is ready */
	uint64_t deadline; /* ms: STARTING and LEAVING workers are stopped then */
};

/* ---- devices ---- */

/* One step of telling a worker what the session holds; each is answered by Done. */
enum step_kind {
	STEP_ASSIGN,
	STEP_LIMITS,
	STEP_PORT_RANGE, /* number: of the incoming ports' ranges, denied ones first */
	STEP_RING_JOURNAL,
	STEP_FEATURES,
	STEP_MEMORY_STAGE, /* number: region */
	STEP_MEMORY_COMMIT,
	STEP_MEMORY_ADD, /* number: region */
	STEP_MEMORY_REMOVE,
	STEP_RING_CALL, /* number: ring; so the rest */
	STEP_RING_ERROR,
	STEP_RING_ENABLE,
	STEP_RING_START,
	STEP_RING_STOP,
	STEP_RING_KICK,
	STEP_SUSPEND,
	STEP_RING_LOG,
	STEP_LOG_SET,
	STEP_LOG_FD,
	STEP_QUARANTINE,
	STEP_CAPTURE,
	STEP_STATE, /* number: 1 to load, 0 to save */
	STEP_RESET,
	STEP_FAIL,
	STEP_HANDOVER,
	STEP_HANDOVER_RESUME,
	STEP_HANDOVER_POOL,
	STEP_HANDOVER_SOCKETS,
	STEP_HANDOVER_CHECK,
	STEP_HANDOVER_COMMIT,
	STEP_NONE, /* of an operation that no step answers */
};

struct step {
	enum step_kind kind;
	uint32_t number;
};

/*
 * Assign, limits, port ranges, features, log, journal, quarantine or pool, suspension, capture,
 * regions, commit, four a ring, sockets, and what is pending.
 */
#define STEPS_MAX (10 + 2 * PORT_RANGES_MAX + SESSION_REGIONS_MAX + 1 + 4 * SESSION_RINGS + 4)

struct sync {
	bool is_of_successor; /* who is told; else the worker */
	struct step steps[STEPS_MAX];
	uint32_t n_steps, next_step;
	bool is_sent;		       /* Done of steps[next_step] is awaited */
	uint32_t sequence;	       /* of the last command */
	uint64_t deadline;	       /* ms: a worker that has not answered by then is of no use */
	bool has_operation;	       /* the session waits for the end of the steps */
	struct step operation;	       /* what it waits for */
	struct session_region removed; /* of a pending STEP_MEMORY_REMOVE */
	int status;		       /* the first failure */
	bool has_value;		       /* some ring was stopped: */
	uint32_t value;
};

/* A restored device, until its driver has handled the transport reset. */
enum restore_phase {
	RESTORE_NONE,
	RESTORE_WAITING, /* for the rings, or for a buffer in ring 2 */
	RESTORE_SENT,	 /* for the proof that the driver has handled it */
};

enum restore_owner {
	OWNER_UNKNOWN,
	OWNER_BACKEND,
	OWNER_FRONTEND, /* ring 2 is never set up; the front-end sends the reset itself */
};

struct restore {
	enum restore_phase phase;
	enum restore_owner owner;
	bool sends_reset;   /* owed, and not sent yet: once a load */
	bool was_announced; /* it is about to be, behind so much of ring 2: */
	uint32_t announced_used;
	bool was_sent;	    /* and the worker has not said that it was handled */
	uint64_t decide_at; /* ms: no ring 2 by then, no wait; 0: rings 0 and 1 don't run yet */
	/* the transfer of a state */
	bool is_transferring, is_load, awaits_check;
	bool is_dropped; /* cancelled: what the worker still says of it is not looked at */
	int result;	 /* of the last one; what CHECK_DEVICE_STATE answers */
	bool has_info;
	uint64_t guest_cid, features;
	uint32_t flags; /* STATE_FLAG_... */
};

/* In-band notifications of the session, see notify.c. */
struct notify {
	int fd;			/* of SET_BACKEND_REQ_FD, owned; -1: none */
	uint32_t calls, errors; /* that are due, a bit for each ring */
};

/* Where host programs come from. */
struct host_listener {
	int fd;
	bool is_listening; /* epoll says when somebody comes */
	uint8_t type;	   /* ENDPOINT_STREAM, ENDPOINT_MESSAGES */
	bool has_port;	   /* all lead to one port of the guest; else they say CONNECT */
	uint32_t guest_port;
};

/* By the number of the socket (sockets.h), without the first: that is the front-end's. */
#define HOST_LISTENERS_MAX (SOCKETS_MAX - SOCKET_HOST)

/* All listeners of a device have its index and theirs in one number. */
#define HOST_LISTENER_BITS 8
_Static_assert(HOST_LISTENERS_MAX <= 1 << HOST_LISTENER_BITS, "one for each, and uds-path");

/* What a session's worker is told; a changed configuration holds for the next session, */
struct device_limits {
	uint32_t tx_buffer_size, max_connections, max_handshakes, wait_s, poll_us;
	bool is_quiet;
	/* but for these, of which it is told as soon as that can be done. */
	uint64_t max_bandwidth, max_buffer_memory;
	struct port_filter incoming;
};

/* What a rule or a limit refused, by the key that did. */
enum device_refusal {
	REFUSAL_OUTGOING_PORT,
	REFUSAL_INCOMING_PORT,
	REFUSAL_CONNECTION_RATE,
	REFUSAL_PEER,
	REFUSAL_MAX,
};

/* Another worker goes on where the worker stops, see handover.c. */
enum handover_phase {
	HANDOVER_NONE,
	HANDOVER_WANTED,     /* a worker is to be started */
	HANDOVER_STARTING,   /* it is */
	HANDOVER_WAITING,    /* it is ready; until nothing else goes on */
	HANDOVER_PREPARING,  /* it is told what the session holds */
	HANDOVER_MOVING,     /* the worker stops, and tells what it holds */
	HANDOVER_CHECKING,   /* the successor looks at it */
	HANDOVER_COMMITTING, /* it was told to serve */
	HANDOVER_RESUMING,   /* the worker was told to go on */
};

struct handover {
	enum handover_phase phase;
	uint32_t client;	  /* of the control socket, whom control_replaced() tells */
	struct worker *successor; /* NULL before it was started, and once it serves */
	uint64_t deadline;	  /* ms: of WANTED, WAITING and PREPARING */
	uint32_t next_socket;	  /* endpoint: those before were given to it */
	bool is_frozen;		  /* the worker has begun to tell */
	bool told_suspended;	  /* what the successor has confirmed */
	uint32_t sequence;	  /* of Handover, once its answer is none any more */
	bool has_pending;	  /* the successor had no room for: */
	struct channel_packet pending;
	uint32_t former;   /* number of the worker that was replaced */
	uint64_t began_us; /* monotonic: the worker was told to stop */
	uint64_t pause_us; /* from then until the successor said that it serves */
	int status;	   /* how it ends */
};

/* How long the guest waited for a successor: how often up to each bound, and longer. */
#define PAUSES_US                                                                                  \
	{                                                                                          \
		500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 500000                         \
	}
#define PAUSES_BUCKETS 10

struct pauses {
	uint64_t n[PAUSES_BUCKETS];
	uint64_t us; /* all together */
};

/* Who looks at the packets; a worker is told, and each that comes after it. */
struct device_capture {
	uint32_t number; /* the client's serial; 0: nobody */
	int fd;		 /* the client's, as the rest */
	uint32_t payload_max;
};

struct device {
	struct front *front;
	const struct vm_configuration *configuration; /* guest_cid 0: there is no such VM */
	struct device_limits limits;
	bool owes_limits; /* those of the configuration are others by now */
	uint32_t index;
	int listener; /* vhost-user; -1: the session came as an fd */
	struct host_listener host_listeners[HOST_LISTENERS_MAX]; /* fd -1: none */
	int next_listeners[SOCKETS_MAX];  /* by number, from the next RELOAD on; -1: as before */
	bool gives_listener[SOCKETS_MAX]; /* to another one, from then on */
	int ring_journal; /* memory: where workers note how far the rings are, for successors */
	bool has_frontend;
	uint64_t frontend_since; /* ms */
	bool has_more;		 /* the front-end's messages wait for the next round */
	bool has_driver;	 /* rings 0 and 1 ran in this session, since the last reset */
	bool listens_to_frontend;
	uint64_t hold_until; /* ms: after a restart, for the front-end to come again */
	uint64_t accept_at;  /* ms: the kernel had no room for another socket; not before */
	bool has_failed;     /* workers died too often; until the session ends */
	bool owes_error;     /* the error fds are still to be signalled, by a fresh worker */
	bool has_hung_up;    /* the front-end's socket is closed at its end */
	struct frontend frontend;
	struct session session;
	struct worker *worker;
	struct sync sync;
	struct endpoints endpoints;
	struct restore restore;
	struct notify notify;
	int discarded; /* a former notify.fd that waits for a worker; -1: none */
	struct handover handover;
	bool is_suspended;    /* by the operator; outlives the session */
	bool will_suspend;    /* what it was told last */
	bool told_suspended;  /* what it has confirmed */
	bool told_quarantine; /* the same */
	struct device_capture capture;
	uint32_t will_capture, told_capture; /* as with suspension; the number */
	bool had_event_ring;		     /* ring 2 was started in this session */
	bool was_running[SESSION_RINGS];     /* a worker has started the ring */
	bool was_stopped[SESSION_RINGS];     /* GET_VRING_BASE gave: */
	uint32_t stopped_at[SESSION_RINGS];
	uint32_t n_deaths; /* in a row */
	uint32_t n_lost;   /* workers, since the start; some of them by their filter: */
	uint32_t n_sandbox_kills;
	struct pauses pauses; /* of replacements that lost nothing */
	struct query query;
	uint64_t last_death; /* ms */
	uint64_t assign_at;  /* ms: no worker before */
	uint32_t log_tokens;
	uint64_t log_refill;		       /* ms */
	uint64_t n_unlogged, tell_unlogged_at; /* ms: at the latest */
	uint64_t admission_tokens;	       /* thousandths of a connection, see admission.c */
	uint64_t admission_filled;	       /* ms */
	uint64_t n_refusals[REFUSAL_MAX];
	/* Other guests' requests: held until this one can be asked, and asked of it. */
	uint64_t first_held, last_held;
	uint32_t n_unanswered;
	uint32_t n_kept; /* fds of its front-ends that could not be closed, see disposal.h */
};

/* ---- the front ---- */

struct front_setup {
	const struct configuration *configuration;
	const struct sockets *sockets; /* the front's own copies of the fds */
	const struct banks *banks;     /* NULL: the configuration does not change */
	uint64_t n_files;	       /* fds that the front may have */
	int spawner;		       /* the front's end of the pair */
	int exporter;		       /* the same; -1: there is none */
};

struct front {
	const struct configuration *configuration;
	const struct banks *banks;
	int epoll;
	int spawner;
	uint64_t now;		/* ms, monotonic; as of this wake-up */
	struct device *devices; /* by place in the configuration; some may be no VM's */
	size_t n_devices;
	struct worker *workers;
	size_t n_workers, n_workers_max; /* in use so far; that there is room for */
	struct control *control;	 /* NULL: no control socket */
	struct scrape *scrape;		 /* NULL: nobody scrapes */
	uint64_t seed;			 /* for the start of host-side ports */
	uint32_t message_size;		 /* the longest that a unix socket of this host takes */
	bool has_served;		 /* some worker was Ready once */
	bool is_spawning;		 /* SPAWN is out */
	uint64_t spawn_at;		 /* ms: not before, after a failure */
	bool is_full;			 /* no further worker may live before one ends */
	bool keeps_program; /* the one that is installed now does not know this front */
	int exit_code;	    /* -1: go on */
	/* Sockets to connect, as tokens, in order; and those to try again, in order of time. */
	uint64_t *connects;
	size_t first_connect, n_connects, n_connects_max;
	size_t n_connects_sent;
	uint64_t *retries;
	uint64_t *retry_times;
	size_t first_retry, n_retries;
	/* What the spawner has to know and the kernel had no memory for, in order. */
	struct spawner_request *owed;
	size_t n_owed, n_owed_max;
	uint64_t send_at; /* ms: when to try that again, and connects; 0: nothing waits */
};

/* Run until the spawner ends it; returns an exit code. Logs. */
int front_run(const struct front_setup *setup);

/* What an epoll event stands for. */
enum front_event {
	FRONT_EVENT_SPAWNER,
	FRONT_EVENT_LISTENER,	   /* device */
	FRONT_EVENT_HOST_LISTENER, /* device and listener */
	FRONT_EVENT_FRONTEND,	   /* device */
	FRONT_EVENT_WORKER,	   /* worker */
	FRONT_EVENT_CONTROL_LISTENER,
	FRONT_EVENT_CONTROL, /* client */
	FRONT_EVENT_NOTIFY,  /* device: the back-end channel has room */
	FRONT_EVENT_SCRAPE_LISTENER,
	FRONT_EVENT_SCRAPE, /* client */
};

int front_watch(struct front *front, int operation, int fd, uint32_t events, enum front_event event,
		size_t index);

/* front_requests.c: ask the spawner; connects are queued, so this can't fail. */
bool front_request_spawn(struct front *front, bool is_first_program, uint64_t token);
void front_request_stop(struct front *front, uint32_t number);
void front_request_connect(struct front *front, struct device *device, uint32_t endpoint);
/* Its endpoints are all gone. */
void front_forget_connects(struct front *front, const struct device *device);
void front_request_ready(struct front *front);
void front_request_reloaded(struct front *front, unsigned int bank);
/* control_reloaded() is the answer, behind the reload itself. false: not now. */
bool front_request_reload(struct front *front);
/* The spawner's log has a level of its own. false: not now. */
bool front_request_log_level(struct front *front, int level);
/*
 * A pair of sockets for a device and a client of the control socket, control_paired()
 * is the answer. false: not now.
 */
bool front_request_pair(struct front *front, const struct device *device, uint16_t client,
			uint32_t type);
/* The spawner has said something; without it vsockd ends. */
void front_hear_spawner(struct front *front);
/* What could not be sent, or has to be asked again, when its time has come. */
void front_run_requests(struct front *front);
uint64_t front_requests_deadline(const struct front *front); /* ms; UINT64_MAX: none */

/* workers.c */
struct worker *workers_take_spare(struct front *front);
/* Start workers until there is a spare and one for each device that waits. */
void workers_replenish(struct front *front);
/* What the spawner says of a new worker; owns the fds. */
struct workers_spawned {
	uint32_t number, pid, program;
	int channel, buffer;
	uint64_t buffer_size;
	uint64_t token; /* of a successor: its device's index and 1; else 0 */
};
void workers_spawned(struct front *front, const struct workers_spawned *spawned);
void workers_not_spawned(struct front *front, int error, uint64_t token);
void workers_exited(struct front *front, uint32_t number, int status);
void workers_event(struct front *front, struct worker *worker, uint32_t events);
void workers_run_timers(struct front *front);
uint64_t workers_deadline(const struct front *front);
/* Close the channel: it delivers what it has, and leaves. */
void worker_dismiss(struct worker *worker, struct front *front);
/* It broke the rules, or can't be used: end it now. */
void worker_kill(struct worker *worker, struct front *front);
/*
 * Another one serves in its place: it is not heard any more, and touches nothing until
 * workers_stop() ends it without a word.
 */
void worker_retire(struct worker *worker, struct front *front);
/* By its number: it may have ended before. */
void workers_stop(struct front *front, uint32_t number);
/* It is of no use for that device any more, but may be for another one. */
void worker_release(struct worker *worker, struct front *front);
/* Spares of another program than this one are replaced. */
void workers_renew_program(struct front *front, uint32_t program);
/* Hear no more of it for now, or hear it again. */
void worker_pause(struct front *front, struct worker *worker, bool is_paused);
/*
 * A command has a sequence, what is not answered has 0; the fd, or -1, stays the caller's.
 * 0, CHANNEL_E_AGAIN (told when there is room), or the worker is of no more use.
 */
int worker_send(struct front *front, struct worker *worker, uint32_t sequence,
		ProtobufCMessage *body, int fd);
int worker_send_packet(struct front *front, struct worker *worker,
		       const struct channel_packet *packet);

/* Those that were started for smaller VMs serve nobody any more. */
void workers_renew(struct front *front);
/* Another VM takes the place: end who still delivers for the one before. */
void workers_clear_place(struct front *front, uint32_t place);
/* The device is going: its workers that still leave are nobody's. */
void workers_forget(struct front *front, const struct device *device);

/* changes.c */
void changes_listener(struct front *front, const struct spawner_reply *reply, int fd);
void changes_move(struct front *front, const struct spawner_reply *reply);
void changes_reload(struct front *front, const struct spawner_reply *reply);

/* device.c */
/* A place without a VM; its endpoints and its memory for rings are as they were. */
void device_clear(struct device *device, struct front *front, uint32_t index);
/* It is that VM's from now on; the same VM's as before, if there was one. */
void device_configure(struct device *device, const struct vm_configuration *configuration);
/* For a session that begins: all limits are those of the configuration. */
void device_take_limits(struct device *device);
/* The limits that hold at once are those of the configuration: its worker is told next. */
void device_renew_limits(struct device *device);
/* A predecessor served it a moment ago: host programs wait for a front-end for a while. */
void device_resume(struct device *device);
/* The session ends and the listeners are closed, but those that another device gets. */
void device_end(struct device *device);
bool device_is_present(const struct device *device);
/* Its socket of that number; -1: none. */
int *device_listener(struct device *device, size_t number);
/* Listen there; false when the socket can't be watched. */
bool device_listen(struct device *device, size_t number, int listener);
/* Rings 0 and 1 are started and enabled. */
bool device_rings_run(const struct device *device);
void device_accept_host(struct device *device, size_t listener);
/* -1 when there is none, or no room for it: that was logged. */
int device_accept_socket(struct device *device, int listener);
/* As device_message(). */
const char *device_guest_connects(struct device *device, const Vsockd__Connect *connect);
/* Does it need a worker that it does not have? */
bool device_wants_worker(const struct device *device);
void device_assign(struct device *device, struct worker *worker);
/* A message of its worker or successor; the reason when it is not believed, or NULL. */
const char *device_message(struct device *device, const struct worker *worker,
			   const Vsockd__Envelope *envelope);
/* Its worker has room for messages again. */
void device_worker_writable(struct device *device);
void device_worker_died(struct device *device);
void device_connected(struct device *device, uint32_t endpoint, int error, int fd);
/* May who connected talk with the guest? peer: on error 0 and SPAWNER_E_PEER. */
void device_judged(struct device *device, uint32_t endpoint, int error, const struct peer *peer);
/* The deadline of the device's own timers; UINT64_MAX when there is none. */
uint64_t device_deadline(const struct device *device);
void device_update(struct device *device);
/*
 * The operator's: rings are left alone, as if they were stopped, until it is taken
 * back. The VMM may say the same of its own accord, and both have to take it back.
 */
void device_suspend(struct device *device, bool is_suspended);
/* Is it to be suspended, by anybody? */
bool device_is_suspended(const struct device *device);
/* Does its worker, if there is one, know and obey? */
bool device_has_settled(const struct device *device);
void device_run_timers(struct device *device);
/* A line for the log, at most so many a second for one VM. */
void device_log(struct device *device, int priority, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Why nobody on the host can connect to its guest, however long it waits; or NULL. */
const char *device_refuses_host(const struct device *device, uint8_t type);
/* Would a host program be accepted right now? */
bool device_listens_to_host(const struct device *device);
/*
 * A connection from the host; NULL when there are as many as there may be. Owns the fd then.
 * listener NULL: it says CONNECT, and is an operator's.
 */
struct endpoint *device_take_host(struct device *device, const struct host_listener *listener,
				  int fd);

/* Dismiss the worker; another one is told everything. */
void device_replace_worker(struct device *device);

/* Its worker knows all that the session holds, and will not be another one soon. */
bool device_is_settled(const struct device *device);
/* The end of a handover: 0, or negative errno and the former worker serves on. */
void device_handover_done(struct device *device, int status);

/* Can the guest be asked now? */
bool device_is_running(const struct device *device);
/* Tell its worker of its endpoints, as far as that can be done now. */
void device_tell_endpoints(struct device *device);

/* admission.c */
/*
 * May one more connection of the guest to that port begin, or, where there is no port
 * or it is the guest's own, one to the guest? One that may counts, one that may not as
 * well, and the reason is returned, for the log.
 */
const char *admission_refuses_guest(struct device *device, uint32_t port);
const char *admission_refuses_port(struct device *device, uint32_t guest_port);
const char *admission_refuses(struct device *device);

/* siblings.c */
void siblings_init(struct device *device);
/* The guest's worker asks for a port of another guest: a CONNECTING endpoint. */
void siblings_connect(struct device *device, uint32_t endpoint);
/* Owns the fds; error 0: there are two. */
void siblings_paired(struct device *device, uint32_t endpoint, int error, const int *fds);
/* Messages of the worker; the reason when they are not believed, or NULL. */
const char *siblings_answered(struct device *device, uint32_t endpoint);
const char *siblings_cancel(struct device *device, uint32_t request);
/* Before the endpoint is released: its worker has closed it. */
void siblings_closed(struct device *device, uint32_t endpoint, bool is_reset);
/* Before its endpoints are lost or cleared: the other ends are reset. */
void siblings_lose(struct device *device);
/* What was held for this device goes on, or is refused. */
void siblings_update(struct device *device);

/* restore.c */
bool restore_is_transferring(const struct device *device);
/* New connections wait. */
bool restore_holds(const struct device *device);
void restore_begin_transfer(struct device *device, bool is_load);
void restore_end_transfer(struct device *device, int result);
void restore_cancel(struct device *device);
void restore_worker_died(struct device *device);
/* Messages of the worker; the reason when they are not believed, or NULL. */
const char *restore_state_connection(struct device *device,
				     const Vsockd__StateConnection *connection);
const char *restore_state_info(struct device *device, const Vsockd__StateInfo *info);
const char *restore_state_done(struct device *device, const Vsockd__StateDone *done);
const char *restore_reset_announced(struct device *device, const Vsockd__ResetAnnounced *announced);
const char *restore_reset_sent(struct device *device);
const char *restore_reset_handled(struct device *device);
void restore_config_read(struct device *device);
void restore_message_seen(struct device *device);
void restore_update(struct device *device, bool rings_run);
uint64_t restore_deadline(const struct device *device);

/* notify.c */
void notify_begin(struct device *device);
/* Before the worker is dismissed: it closes the socket. */
void notify_end(struct device *device);
/* Takes over the fd, a unix socket. */
void notify_set_socket(struct device *device, int fd);
/* What is due concerns a driver that is no more. */
void notify_forget(struct device *device);
/* A worker is there: it closes what nobody else may. */
void notify_discard(struct device *device);
/* Send what is due, as far as there is room. */
void notify_flush(struct device *device);
/* Of the worker; the reason when it is not believed, or NULL. */
const char *notify_message(struct device *device, const Vsockd__Notify *notify);
/* The device has failed: VRING_ERR for all rings that have no error fd. */
void notify_failed(struct device *device);
/* RING_..._IN_BAND of a ring. */
uint32_t notify_in_band(const struct device *device, uint32_t ring);
/* handover.c */
/*
 * Replace the worker by one that goes on where it stops, for that client of the control
 * socket. 0: it has begun, and control_replaced() will be called. Negative errno: -ENOTCONN
 * without a front-end, -EIO when the device has failed, -EAGAIN without a worker at the
 * moment, -EALREADY, -EBUSY while a device state is on its way.
 */
int handover_begin(struct device *device, uint32_t client);
/* Nothing but the handover is to be told to either of the two. */
bool handover_is_busy(const struct device *device);
bool handover_wants_worker(const struct device *device);
/* For message_decode(): what the worker may say now. */
enum message_state handover_states(const struct device *device);
/* How it is with the successor. */
void handover_started(struct device *device, struct worker *worker);
void handover_not_started(struct device *device, int error);
void handover_ready(struct device *device);
void handover_successor_writable(struct device *device);
void handover_successor_died(struct device *device, int error);
/* Before anything is done about that. */
void handover_worker_died(struct device *device);
void handover_cancel(struct device *device);
/* What the worker says of its device; the reason when it is not believed, or NULL. */
const char *handover_message(struct device *device, const Vsockd__Envelope *envelope);
/* The same for its end, and for an answer that comes too late. */
const char *handover_done(struct device *device, const Vsockd__Done *done, bool *ret_is_stale);
/* The steps that were to be told are done; 0 or the first failure. */
void handover_steps_done(struct device *device, int status);
void handover_update(struct device *device);
uint64_t handover_deadline(const struct device *device);
/* Why it failed, in words. */
const char *handover_reason(int status);
/* Give the successor all sockets, as far as there is room; as worker_send(). */
int handover_give_sockets(struct device *device);
/* Who is to blame when the answer to a step does not come in time. */
struct worker *handover_late(const struct device *device);

/* commands.c */
/* Of how many STEP_PORT_RANGE the worker is to be told. */
uint32_t command_port_ranges(const struct device *device);
/* Send the next step to a worker of this device; as worker_send(). */
int command_send(struct device *device, struct worker *worker, const struct step *step);

/* sync.c */
/* Tell the successor all that the session holds. */
void sync_prepare_successor(struct device *device);
/* One step of a handover. false: it could not be sent yet, or never will. */
bool sync_tell(struct device *device, enum step_kind kind, bool is_of_successor);
/* Forget what was to be told. */
void sync_forget(struct device *device);
/* An operation that no step answers (CHECK_DEVICE_STATE) is done. */
void sync_complete(struct device *device, int status);
/* The worker is to know of a quarantine that began or ended. */
void sync_quarantine(struct device *device);
/* The same of a suspension. */
void sync_suspension(struct device *device);
/* Of a capture. */
void sync_capture(struct device *device);
/* And of limits that hold at once. */
void sync_limits(struct device *device);
extern const struct session_operations sync_operations;
/* A new worker: everything that the session holds. */
void sync_begin(struct device *device);
/* Without a worker, for good: what is pending is done as far as it can be. */
void sync_fail(struct device *device);
void sync_run(struct device *device);
/* The reason when Done of that worker is not believed, or NULL. */
const char *sync_done(struct device *device, const struct worker *worker, const Vsockd__Done *done);
bool sync_is_idle(const struct device *device);
