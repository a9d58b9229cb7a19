/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A session in this process, with a front-end that says what it is told to and a
 * device that notes what it is asked for. One at a time; every helper ends the test
 * when something is not as it has to be, and no fd may be left behind.
 */

#include <stddef.h>
#include <stdint.h>

#include "broker/session.h"

#define CID	  UINT64_C(0x0000000012345678)
#define ACK	  VHOST_USER_PROTOCOL_F_REPLY_ACK
#define BIT30	  VHOST_USER_F_PROTOCOL_FEATURES
#define NOFD	  VHOST_USER_VRING_NOFD
#define FILE_SIZE UINT64_C(0x100000)
#define USER_BASE UINT64_C(0x7f0000000000)

struct session_rig {
	struct session session;
	char calls[256]; /* the operations that were called */
	int answer;	 /* what they answer */
	size_t n_open;	 /* fds before the test */
};

extern struct session_rig rig;
extern const struct session_operations rig_operations;

int rig_set_up(void **state);
int rig_tear_down(void **state);
/* A new session, after the end of the one before. */
void rig_begin(void);
/* Both; the end has to have closed every fd. */
void rig_start_over(void);
/* End and begin, with more features of the protocol, all of them negotiated. */
void rig_begin_with(uint64_t protocol_features);

/* ---- the front-end: each returns what session_handle() does; fds go to the session ---- */

int rig_handle_fds(uint32_t request, uint32_t flags, const void *payload, size_t len, int *fds,
		   size_t n_fds);
int rig_handle(uint32_t request, const void *payload, size_t len);
int rig_handle_u64(uint32_t request, uint64_t value);
int rig_handle_state(uint32_t request, uint32_t index, uint32_t num);
/* Each ring has an area of its own from USER_BASE on. */
struct vhost_user_vring_addr rig_addr_of(uint32_t index);
int rig_handle_addr(uint32_t index);
/* With a new eventfd, or without where the bit says so. */
int rig_handle_ring_fd(uint32_t request, uint64_t value);
/* FILE_SIZE bytes of RAM. */
int rig_new_memory(void);
/* Region i of as many as one likes: no two overlap. */
struct vhost_user_region rig_region_of(uint64_t i);
int rig_handle_table(const struct vhost_user_region *regions, uint32_t n, uint32_t flags);
int rig_handle_regions(uint32_t n);
int rig_handle_single(uint32_t request, const struct vhost_user_region *region, int fd);
void rig_negotiate(uint64_t protocol_features);
void rig_prepare_ring(uint32_t index, uint32_t base);
void rig_start_ring(uint32_t index, uint32_t base);

/* ---- what has to have come of it ---- */

/* An operation, with a space behind it; returns rig.answer. */
__attribute__((format(printf, 1, 2))) int rig_note_call(const char *format, ...);
/* These operations, each with a space behind it, since the last time. */
void assert_calls(const char *calls);
/* What waits to be sent is one reply of this many bytes to this request. */
void assert_reply(uint32_t request, size_t len);
void assert_reply_u64(uint32_t request, uint64_t value);
void assert_reply_state(uint32_t index, uint32_t num);
void assert_done(int status);
/* The session is over, for a reason that has this word. */
void assert_closed(int status, const char *word);
