/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the tests of snapshot, restore and migration have in common: the transfer of
 * a device state, a guest as crosvm runs it, and host programs that call it.
 * All of it fails the cmocka test by an assertion when something is wrong.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/integration/setup.h"

#define LIMIT SETUP_LIMIT
#define PORT  1234u
#define KIB   1024u
#define PAGE  4096u

/* Long enough for whatever is on its way, short enough to be had often. */
#define QUIET 60

/* What a state says of its source, and where: written down a second time. */
enum { HAD_DRIVER = 1, HAD_EVENT_RING = 2 };
enum {
	AT_VERSION = 8,
	AT_LENGTH = 12,
	AT_CID = 16,
	AT_FEATURES = 24,
	AT_FLAGS = 32,
	AT_COUNT = 36
};
#define EMPTY_LEN 44 /* of a state without connections */

#define SAVE 0
#define LOAD 1
#define GOOD 0
#define BAD  1

/* The state that was saved last. */
extern uint8_t migration_state[64 * KIB];

#define RESTORABLE                                                                                 \
	(BIT64(VHOST_PROTOCOL_MQ) | BIT64(VHOST_PROTOCOL_REPLY_ACK) |                              \
	 BIT64(VHOST_PROTOCOL_CONFIG) | BIT64(VHOST_PROTOCOL_RESET_DEVICE) |                       \
	 BIT64(VHOST_PROTOCOL_LOG_SHMFD) | BIT64(VHOST_PROTOCOL_DEVICE_STATE))

/* As setup_end(); no worker was lost and none disbelieved. */
int migration_end(void **state);

/* ---- the transfer of a state ---- */

/* Our end of the channel and the answer, which is to be one of the two that there are. */
int migration_open(struct vhost *vhost, uint32_t direction, bool is_socket, uint64_t *ret_answer);
/* The same; the answer is that it begins. */
int migration_begin(struct vhost *vhost, uint32_t direction, bool is_socket);
uint64_t migration_check(struct vhost *vhost);
/* Into migration_state, to the end; closes. Its length. */
size_t migration_read(int fd);
size_t migration_save(struct vhost *vhost, bool is_socket);
/* Write, close, CHECK: its answer. */
uint64_t migration_load_through(struct vhost *vhost, const uint8_t *bytes, size_t len,
				bool is_socket);
uint64_t migration_load(struct vhost *vhost, const uint8_t *bytes, size_t len);

void migration_put32(uint8_t *place, uint32_t value);
uint32_t migration_get32(const uint8_t *place);
uint64_t migration_get64(const uint8_t *place);
/* The checksum over all but the last 4 bytes, into these. */
void migration_seal(uint8_t *bytes, size_t len);

/* ---- guests ---- */

/* As crosvm; with RESET_DEVICE and the dirty log, which crosvm itself does not know. */
struct guest *migration_start_guest(struct setup *setup);
void migration_wait_reset(struct guest *guest);
void migration_assert_no_more_resets(struct guest *guest, uint64_t n);
/* Rings run on return. */
void migration_resume(struct guest *guest);
/* Stopped, saved, and the VMM gone; the length of the state. */
size_t migration_snapshot(struct guest *guest);
/* A VMM that loads this state; its rings are still to be started. */
void migration_restore(struct setup *setup, struct guest *guest, const uint8_t *bytes, size_t len);
/* As a driver that handles the reset: its connections go, then the buffer comes back. */
void migration_answer_reset(struct guest *guest);
/* A guest that lived, was saved, restored, and has got its reset but did not handle it. */
struct guest *migration_start_quarantined(struct setup *setup);
/* The driver takes its event buffers back: the ring is empty. */
void migration_take_back_event_buffers(struct guest *guest);

/* ---- host programs that call the guest ---- */

#define EARLY_LEN 3000

struct program {
	struct host_stream stream;
	uint32_t port;
	uint8_t early[EARLY_LEN]; /* sent behind CONNECT, without waiting for the answer */
};

void program_call(struct setup *setup, struct guest *guest, struct program *program, uint32_t port);
void program_end(struct guest *guest, struct program *program);
void program_assert_held(struct guest *guest, const struct program *program);
bool program_has_answer(void *context);
bool program_has_ended(void *context);
/* The guest's end, once all that was sent early is there. */
void program_assert_served(struct guest *guest, struct program *program);
/* A program calls, and is served at once. */
void program_assert_serves(struct setup *setup, struct guest *guest);

/* ---- guest programs that call the host ---- */

/* Some bytes each way over a connection that stands. */
void migration_exchange(struct guest_connection *connection, struct host_stream *stream,
			size_t len);
/* A new connection from guest to host works from beginning to end. */
void migration_assert_connects(struct setup *setup, size_t vm);
/* No process of vsockd uses the processor while nothing happens. */
