/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The control socket: operators ask the front what it knows and tell it what to
 * do. Who may write to the socket may connect; there is no other right to check,
 * since the front's user namespace knows no user of the host. A client is not
 * trusted any further than a worker: packets of bounded size, decoded without the
 * heap, and whoever breaks the protocol or does not read is dropped.
 *
 * One table in control.c has a row a command. To run it the row's function is
 * called until it returns true; it says rows with control_send(), and when it
 * returns false it is called again: once the client has room if there was none,
 * and in each round of the loop otherwise. So a command may wait for whatever it
 * likes. Nothing is queued: what the client has not taken is not made. Fds go to
 * clients, none is taken from one.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/metrics.h"
#include "ipc/control_message.h"

/* At a time. Operators are few; a monitor has one each. */
#define CONTROL_CLIENTS_MAX 16

struct device;
struct front;

struct control_client {
	int socket;			   /* -1: this entry is free */
	uint32_t pid;			   /* who connected; for the log */
	const struct control_row *command; /* NULL: a request is awaited */
	uint32_t serial;		   /* no other client ever has it; not 0 */
	/* of the command that runs: */
	Control__Request request;
	uint64_t cursor;		  /* the function's own, 0 at first: how far it is */
	uint32_t place[2];		  /* the same, in greater detail */
	struct metrics_position position; /* the same, of the metrics */
	uint64_t since;			  /* ms: when the request came */
	uint64_t wait_until; /* ms: it is to be called then, whatever happens; 0: not */
	bool was_refused;    /* control_refuse() was called */
	Control__End end;
	char text[CONTROL_TEXT_MAX + 1];
	bool has_pair; /* with pair_error 0: */
	int pair_error, pair[2];
	bool awaits_handover;
	int handover_status; /* of the last one that it awaited: as handover_reason() has it */
	/* private to control.c */
	bool awaits_pair;
	uint32_t pair_number;
	bool has_finished; /* the function returned true; End is still to be sent */
	bool is_blocked, is_gone;
	uint64_t deadline; /* ms: dropped then */
	uint32_t watched;  /* epoll events */
};

struct control_row {
	enum control_command number;
	const char *name;
	bool is_logged; /* it changes something */
	bool (*run)(struct front *front, struct control_client *client);
	/* The client left, or the command is over; NULL: nothing is to be undone. */
	void (*end)(struct front *front, struct control_client *client);
};

/* ---- for the loop ---- */

/* Before the front is confined; socket and path (NULL: none) stay the caller's. false: no memory.
 */
bool control_init(struct front *front, int listener, const char *file);
void control_accept(struct front *front);
void control_event(struct front *front, size_t client, uint32_t events);
/* At the end of each round. */
void control_run(struct front *front);
uint64_t control_deadline(const struct front *front);

/* ---- for the rest of the front ---- */

/* The spawner's answer to front_request_pair(); owns the fds where error is 0. */
void control_paired(struct front *front, uint16_t client, int error, const int *fds);

/*
 * The spawner has read the file anew (0), or refused it (EINVAL), or could not hand on what it
 * asks for (EAGAIN), for whoever asked for it.
 */
void control_reloaded(struct front *front, int error);

/* The end of a handover that this client began, if it is still there: 0, or negative errno. */
void control_replaced(struct front *front, uint32_t client, int status);

/* The client that takes the guest's connections to this port of the host; 0: none. */
uint32_t control_listener(const struct device *device, uint32_t port);
/* A pair for a connection to such a port: the client gets one end, the guest's worker one. */
void control_accepted(struct device *device, uint32_t endpoint, int error, const int *fds);

/* ---- for commands ---- */

/* Say one row. false: no room, or the client is gone; then return false too. */
bool control_send(struct front *front, struct control_client *client, const Control__Reply *reply);

/* The same with an fd, which stays the caller's. */
bool control_send_fd(struct front *front, struct control_client *client,
		     const Control__Reply *reply, int fd);

/* Whoever waits has another turn, as soon as all have had theirs. */
void control_call(struct front *front);

/* The command fails: negative errno, and one line for the operator. Returns true. */
bool control_refuse(struct control_client *client, int status, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* The VM that the request names; NULL: there is none, and control_refuse() was called. */
struct device *control_device(struct front *front, struct control_client *client);

enum control_pair {
	CONTROL_PAIR_STREAM = 1,
	CONTROL_PAIR_PACKETS = 2,
};

/*
 * Ask for a pair of sockets, one end for the device and one for the client; then
 * look at has_pair and pair_error. The fds are closed with the command unless they
 * are taken.
 */
void control_request_pair(struct front *front, struct control_client *client,
			  const struct device *device, enum control_pair type);

/* Who connected to a socket, or made the listener that it is connected to; 0: unknown. */
uint32_t control_peer(int socket);

/* control_connections.c */
bool control_connections(struct front *front, struct control_client *client);
bool control_kill(struct front *front, struct control_client *client);
bool control_counters(struct front *front, struct control_client *client);
bool control_metrics(struct front *front, struct control_client *client);
void control_forget_query(struct front *front, struct control_client *client);
bool control_log_level(struct front *front, struct control_client *client);
/* control_streams.c */
bool control_connect(struct front *front, struct control_client *client);
bool control_listen(struct front *front, struct control_client *client);
bool control_capture(struct front *front, struct control_client *client);
void control_end_capture(struct front *front, struct control_client *client);
/* control_reload.c */
bool control_reload(struct front *front, struct control_client *client);
void control_end_reload(struct front *front, struct control_client *client);
bool control_reload_init(const char *file);
bool control_file(struct front *front, struct control_client *client);
/* control_replace.c */
bool control_replace(struct front *front, struct control_client *client);
/* control_status.c */
bool control_status(struct front *front, struct control_client *client);
bool control_suspend(struct front *front, struct control_client *client);
bool control_resume(struct front *front, struct control_client *client);
bool control_show(struct front *front, struct control_client *client);
enum control_vm_state control_vm_state(const struct device *device);
