/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * An operator who has workers replaced and connections killed. Speaks the control
 * protocol by hand, so that it can go on beside a guest in one thread.
 */

#include <stddef.h>
#include <stdint.h>

/* To the control socket. The fd or negative errno. */
int operator_connect(const char *path, int timeout);

/* The worker of that VM; 0: all. 0 or negative errno. */
int operator_ask_replace(int fd, uint64_t cid);

/* To end that connection of that VM, as "vsockctl connections" numbers it. The same. */
int operator_ask_kill(int fd, uint64_t cid, uint32_t number);

/*
 * The answer, which is there or is waited for as the fd waits: 0, or 1 and the reason
 * that was given, or negative errno.
 */
int operator_take_answer(int fd, char *ret_reason, size_t size);
