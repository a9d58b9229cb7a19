/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What exporter and front say to each other, over a SOCK_SEQPACKET pair without fds:
 * the exporter asks by sending a serial, eight bytes; the front answers with packets
 * that begin with that serial and go on with whole lines of OpenMetrics, the last of
 * which is EXPORT_END. One question is answered at a time, and the next one is read
 * when all of it was sent. The pair outlives an exporter: what is still in it for
 * a former one has another serial.
 */

#include <stdint.h>

#define EXPORT_TEXT_MAX 8192 /* bytes of a packet behind its serial */
#define EXPORT_END	"# EOF\n"

/* More than 256 VMs with 150 lines of at most 191 bytes each. */
#define EXPORT_ANSWER_MAX (8u << 20)
