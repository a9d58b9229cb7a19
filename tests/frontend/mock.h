/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A back-end for the library's own test: slow, simple, correct where it is meant
 * to be, in a forked child. It has no host side; the port that the guest
 * connects to says what it does. Not a model for anything.
 */

#include <sys/types.h>

enum mock_port {
	MOCK_ECHO = 7000,     /* sends back what comes, half-closes in turn */
	MOCK_CONNECT_BACK,    /* echo, and connects to the guest's port of that number: echo too */
	MOCK_RESET_TRANSPORT, /* answers nothing but a TRANSPORT_RESET event */
	MOCK_RESPOND_TWICE,   /* from here on: what a back-end must not do */
	MOCK_OVERRUN,	      /* sends beyond the guest's credit */
	MOCK_WRONG_USED_LENGTH, /* gives a chain back with a length that is not the packet's */
	MOCK_SILENT,		/* writes RESPONSE but never calls */
	MOCK_WRONG_CID,		/* answers from another CID */
};

#define MOCK_CID 42

/* Serve front-ends at path, one after the other, until killed. The child's pid or -1. */
pid_t mock_start(const char *path);
