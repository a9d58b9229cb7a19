/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The end of fds that a front-end sent and that are of no use. close() can wait:
 * for the answer of a file system that the sender runs, or for a TCP connection
 * that lingers. The front serves all VMs and must not wait. So what is known not
 * to wait is closed; the rest is kept open for good and counted, and a VMM that
 * goes on sending such fds loses its device.
 *
 * For the front. System calls: close, statx, fcntl.
 */

/* Until then disposal_close() is close(): tests, and programs of one VM. */
void disposal_begin(void);

void disposal_close(int fd);

/* How many were kept since the last call. */
unsigned int disposal_take_kept(void);
