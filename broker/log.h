/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The one log call of the broker: one line an event on stderr, `vm=` first.
 * Where stderr is the journal's (JOURNAL_STREAM names it) an event goes to the journal
 * with fields, or where that is out of reach, as a line which starts with its priority
 * as "<N>". Nothing in a line comes from a guest, a front-end or a host program
 * as text; numbers only. No heap, one writev() a line, so the front may log
 * behind its filter.
 */

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <syslog.h>

#define LOG_NO_VM UINT64_C(0)

/* Events that others may wait for, by MESSAGE_ID: vsockd(8) says which they have. */
enum log_id {
	LOG_ID_NONE,
	LOG_ID_READY,
	LOG_ID_RELOADED,
	LOG_ID_RELOAD_REFUSED,
	LOG_ID_FRONTEND_CONNECTED,
	LOG_ID_FRONTEND_LEFT,
	LOG_ID_WORKER_ENDED,
	LOG_ID_WORKER_LOST,
	LOG_ID_WORKER_REPLACED,
	LOG_ID_DEVICE_FAILED,
	LOG_ID_RING_BROKEN,
	LOG_ID_RESTORED,
	LOG_ID_SUSPENDED,
	LOG_ID_LEFT_OUT,
	LOG_IDS,
};

/* To be added to the priority. */
#define LOG_AS(id) ((int)(id) << 8)

/* Where systemd-journald takes entries. */
#define LOG_JOURNAL_PATH "/run/systemd/journal/socket"

/* Once at start, before the first line. level: LOG_ERR to LOG_DEBUG. */
void log_open(int level);

/*
 * Then, if stderr is the journal's: talk to it itself, if it is at that path. Never
 * waits for it: what it does not take is counted, and told when it takes again.
 */
void log_join_journal(const char *path);

/* In the front, whose filter lets it write to stderr alone. */
void log_settle(void);

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
