/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The front: the process that sees the front-ends and host programs and keeps no
 * privilege. One epoll loop over the devices, the workers and the spawner. It
 * allocates what it will ever need, confines itself, and then opens nothing:
 * what has to be connected or started it asks of the spawner.
 *
 *   front.c    the loop, the spawner's answers, time
 *   workers.c  the workers: starting, spare, messages, the end
 *   device.c   one VM: front-end, session, host programs
 *   sync.c     what a device tells its worker, step by step
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/configuration.h"
#include "broker/endpoints.h"
#include "broker/frontend.h"
#include "broker/session.h"
#include "ipc/message.h"

/* ---- workers ---- */

enum worker_state {
	WORKER_NONE,
	WORKER_STARTING, /* Ready is awaited */
	WORKER_SPARE,
	WORKER_ASSIGNED,
	WORKER_LEAVING,  /* channel closed; EXITED is awaited */
};

struct worker {
	enum worker_state state;
	uint32_t number;       /* the spawner's */
	int channel;           /* -1 once it leaves */
	struct device *device; /* ASSIGNED: whose; LEAVING: whose it was; else NULL */
	bool wants_write;
	bool has_failed;       /* it left against our will: its end is worth a line */
	bool is_stopped;       /* STOP was asked for */
	uint64_t deadline;     /* ms: STARTING and LEAVING workers are stopped then */
};

/* ---- devices ---- */

/* One step of telling a worker what the session holds; each is answered by Done. */
enum step_kind {
	STEP_ASSIGN,
	STEP_FEATURES,
	STEP_MEMORY_STAGE, /* number: region */
	STEP_MEMORY_COMMIT,
	STEP_MEMORY_ADD,   /* number: region */
	STEP_MEMORY_REMOVE,
	STEP_RING_CALL,    /* number: ring; so the rest */
	STEP_RING_ERROR,
	STEP_RING_ENABLE,
	STEP_RING_START,
	STEP_RING_STOP,
	STEP_RESET,
	STEP_FAIL,
};

struct step {
	enum step_kind kind;
	uint32_t number;
};

/* Assign, features, regions and commit, four steps a ring, and what is pending. */
#define STEPS_MAX (2 + SESSION_REGIONS_MAX + 1 + 4 * SESSION_RINGS + 4)

struct sync {
	struct step steps[STEPS_MAX];
	uint32_t n_steps, next_step;
	bool is_sent;       /* Done of steps[next_step] is awaited */
	uint32_t sequence;  /* of the last command */
	bool has_operation; /* the session waits for the end of the steps */
	struct step operation; /* what it waits for */
	struct session_region removed; /* of a pending STEP_MEMORY_REMOVE */
	int status;         /* the first failure */
	bool has_value;     /* some ring was stopped: */
	uint32_t value;
};

struct device {
	struct front *front;
	const struct vm_configuration *configuration;
	uint32_t index;
	int listener;      /* vhost-user; -1: the session came as an fd */
	int host_listener; /* uds-path */
	bool has_frontend;
	bool has_more;     /* the front-end's messages wait for the next round */
	bool has_driver;   /* rings 0 and 1 ran in this session, since the last reset */
	bool listens_to_host;
	bool has_failed;   /* workers died too often; until the session ends */
	struct frontend frontend;
	struct session session;
	struct worker *worker;
	struct sync sync;
	struct endpoints endpoints;
	bool was_running[SESSION_RINGS]; /* a worker has started the ring */
	bool was_stopped[SESSION_RINGS]; /* GET_VRING_BASE gave: */
	uint16_t stopped_at[SESSION_RINGS];
	uint32_t n_deaths;    /* in a row */
	uint64_t last_death;  /* ms */
	uint64_t assign_at;   /* ms: no worker before */
	uint32_t log_tokens;
	uint64_t log_refill;  /* ms */
	uint64_t n_unlogged;
};

/* ---- the front ---- */

struct front_setup {
	const struct configuration *configuration;
	const int *listeners;      /* by VM: vhost-user, listening; or connected, see is_connected */
	const bool *is_connected;  /* by VM: the session came as an fd of its own */
	const int *host_listeners; /* by VM */
	int spawner;               /* the front's end of the pair */
};

struct front {
	const struct configuration *configuration;
	int epoll;
	int spawner;
	uint64_t now; /* ms, monotonic; as of this wake-up */
	struct device *devices;
	size_t n_devices;
	struct worker *workers;
	size_t n_workers;
	uint64_t seed;     /* for the start of host-side ports */
	bool has_served;   /* some worker was Ready once */
	bool is_spawning;  /* SPAWN is out */
	uint64_t spawn_at; /* ms: not before, after a failure */
	int exit_code;     /* -1: go on */
	/* Sockets to connect, as tokens, in order; and those to try again, in order of time. */
	uint64_t *connects;
	size_t first_connect, n_connects, n_connects_max;
	size_t n_connects_sent;
	uint64_t *retries;
	uint64_t *retry_times;
	size_t first_retry, n_retries;
};

/* Run until the spawner ends it; returns an exit code. Logs. */
int front_run(const struct front_setup *setup);

/* What an epoll event stands for. */
enum front_event {
	FRONT_EVENT_SPAWNER,
	FRONT_EVENT_LISTENER,      /* device */
	FRONT_EVENT_HOST_LISTENER, /* device */
	FRONT_EVENT_FRONTEND,      /* device */
	FRONT_EVENT_WORKER,        /* worker */
};

int front_watch(struct front *front, int operation, int fd, uint32_t events,
		enum front_event event, size_t index);

/* front.c: ask the spawner; connects are queued, so this can't fail. */
bool front_request_spawn(struct front *front);
void front_request_stop(struct front *front, uint32_t number);
void front_request_connect(struct front *front, const struct device *device, uint32_t endpoint);

/* workers.c */
struct worker *workers_take_spare(struct front *front);
/* Start workers until there is a spare and one for each device that waits. */
void workers_replenish(struct front *front);
void workers_spawned(struct front *front, uint32_t number, int channel);
void workers_not_spawned(struct front *front, int error);
void workers_exited(struct front *front, uint32_t number, int status);
void workers_event(struct front *front, struct worker *worker, uint32_t events);
void workers_run_timers(struct front *front);
uint64_t workers_deadline(const struct front *front);
/* Close the channel: it delivers what it has, and leaves. */
void worker_dismiss(struct worker *worker, struct front *front);
/* It broke the rules, or can't be used: end it now. */
void worker_kill(struct worker *worker, struct front *front);
/* 0, CHANNEL_E_AGAIN (told when there is room), or the worker is of no more use. */
int worker_send(struct front *front, struct worker *worker, const Vsockd__Envelope *envelope,
		int fd);

/* device.c */
bool device_init(struct device *device, struct front *front, uint32_t index,
		 const struct front_setup *setup);
void device_accept_frontend(struct device *device);
void device_frontend_event(struct device *device);
void device_accept_host(struct device *device);
/* Does it need a worker that it does not have? */
bool device_wants_worker(const struct device *device);
void device_assign(struct device *device, struct worker *worker);
/* A message of its worker; the reason when it is not believed, or NULL. */
const char *device_message(struct device *device, const Vsockd__Envelope *envelope);
/* Its worker has room for messages again. */
void device_worker_writable(struct device *device);
void device_worker_died(struct device *device);
void device_connected(struct device *device, uint32_t endpoint, int error, int fd);
/* The deadline of the device's own timers; UINT64_MAX when there is none. */
uint64_t device_deadline(const struct device *device);
void device_update(struct device *device);
/* A line for the log, at most so many a second for one VM. */
void device_log(struct device *device, int priority, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* sync.c */
extern const struct session_operations sync_operations;
/* A new worker: everything that the session holds. */
void sync_begin(struct device *device);
/* Without a worker, for good: what is pending is done as far as it can be. */
void sync_fail(struct device *device);
void sync_run(struct device *device);
/* The reason when Done is not believed, or NULL. */
const char *sync_done(struct device *device, const Vsockd__Done *done);
bool sync_is_idle(const struct device *device);
/* The operation that the session waited for is done. */
void device_complete(struct device *device, int status, uint32_t value);
