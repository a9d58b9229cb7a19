/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Sequences of vhost-user messages as a VMM sends them, written down in
 * tests/frontend/sequences/, one step a line, and played by a guest against a
 * back-end. The words:
 *
 *	style NAME			whose acks are asked for, and how many rings; first of all
 *	connect, close			the session
 *	owner, reset-device		messages without a payload
 *	get WHAT			features, protocol-features, queue-num, mem-slots
 *	set WHAT			features, features logged, protocol-features
 *	config OFFSET SIZE		GET_CONFIG
 *	memory table | slots		SET_MEM_TABLE, or ADD_MEM_REG of what is not told yet
 *	memory plug | unplug		another region, by ADD_MEM_REG, and REM_MEM_REG of it
 *	log				SET_LOG_BASE, of a log without a mark
 *	ring N num | addr | addr logged | base | base available | kick | call |
 *		call masked | err | enable | disable | stop
 *	doorbell N			a kick into the eventfd, unasked
 *	save pipe | socket		a device state, kept for
 *	load pipe | socket
 *	driver runs | halts | resets	what the guest does
 *	do NAME				the test's turn
 *
 * and "#" begins a comment. Every answer that is due is waited for.
 */

#include <stddef.h>

#include "tests/frontend/guest.h"

struct sequence {
	char *text;
	enum guest_style style;
	uint8_t state[65536];
	size_t state_len;
	uint8_t *log; /* of the dirty log that was told last; NULL: none */
	size_t log_len;
	char where[160]; /* the step under way, for a complaint */
	void (*before)(void *context); /* writable: called before each step, if not NULL */
};

/* 0 or negative errno: -EINVAL when it names no style. */
int sequence_open(const char *path, struct sequence *ret);
void sequence_close(struct sequence *sequence);

/*
 * Play it with a guest that guest_create() made with the sequence's style. The context
 * is turn()'s and before()'s. 0, what turn() returned if that is not 0, or what the
 * message failed with; sequence->where says at which step.
 */
int sequence_play(struct sequence *sequence, struct guest *guest, const char *socket,
		  int (*turn)(void *context, const char *name), void *context);
