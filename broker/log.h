/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The one log call of the broker: one line an event on stderr, `vm=` first.
 * Where stderr is the journal's (JOURNAL_STREAM names it) a line starts with its
 * priority as "<N>". Nothing in a line comes from a guest, a front-end or a host program
 * as text; numbers only. No heap, one writev() a line, so the front may log
 * behind its filter.
 */

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <syslog.h>

#define LOG_NO_VM UINT64_C(0)

/* Once at start, before the first line. level: LOG_ERR to LOG_DEBUG. */
void log_open(int level);

/* From now on; the same levels. */
void log_set_level(int level);

/*
 * Lines go there as well, whatever their level: each without its priority, as many whole
 * ones as there is room for, and a zero behind them. NULL: no longer.
 */
void log_copy(char *text, size_t size);

/* cid: the guest CID that the event belongs to, or LOG_NO_VM. */
void log_event(int priority, uint64_t cid, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
