/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Calls of the C library that fail when a test says so, as they can for reasons beyond
 * this process: a program that is linked with this has the linker's --wrap for each of them.
 */

#include <stdbool.h>
#include <stdint.h>

enum failing_call {
	CALL_EPOLL_CTL,
	CALL_FCNTL,
	CALL_FTRUNCATE,
	CALL_MEMFD_CREATE,
	CALL_READV,
	CALL_RECVFROM,
	CALL_RECVMSG,
	CALL_SENDMSG,
	CALL_WRITEV,
};

/*
 * The nth call from now on fails, and no other one. Of those on that fd only, which is
 * the one to be watched for CALL_EPOLL_CTL; -1: on any. An error of 0: it returns 0.
 */
void failing_call_plan(enum failing_call call, int fd, uint32_t nth, int error);

/* Did it come to that? From here on nothing fails. */
bool failing_call_has_come(void);
