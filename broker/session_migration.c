/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/session.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "broker/session_internal.h"

/* Of the reply to SET_DEVICE_STATE_FD: no fd comes back, and bits for an error. */
#define STATE_REPLY_NO_FD UINT64_C(0x100)
#define STATE_REPLY_ERROR UINT64_C(0x1)

/* A bit for each page of 4 KiB: so much covers 2^52 bytes of guest memory. */
#define LOG_SIZE_MAX (UINT64_C(1) << 37)

int session_on_set_log_base(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_log wire;
	struct statx stat;
	uint64_t end;

	memcpy(&wire, incoming->message->payload, sizeof(wire));
	if (wire.size == 0 || wire.size > LOG_SIZE_MAX ||
	    __builtin_add_overflow(wire.mmap_offset, wire.size, &end))
		return session_refuse(session, "a log of 0x%" PRIx64 " bytes", wire.size);
	if (fcntl(incoming->fds[0], F_GET_SEALS) < 0 ||
	    session_stat_fd(incoming->fds[0], &stat) < 0 || !S_ISREG(stat.stx_mode))
		return session_refuse(session, "the log is not backed by a file in RAM");
	if (end > stat.stx_size)
		return session_refuse(
			session, "the log ends at 0x%" PRIx64 " of a file of 0x%" PRIx64 " bytes",
			end, (uint64_t)stat.stx_size);

	session->log = (struct session_log){
		.size = wire.size,
		.mmap_offset = wire.mmap_offset,
		.alignment = session_file_alignment(stat.stx_blksize),
		.fd = session_take_fd(&incoming->fds[0]),
		.event_fd = session->log.event_fd,
	};
	return session_call(session, session->operations->log_set);
}

int session_on_set_log_fd(struct session *session, const struct session_incoming *incoming)
{
	struct statx stat;

	if (session_stat_fd(incoming->fds[0], &stat) < 0 || stat.stx_mode & S_IFMT)
		return session_refuse(session, "the fd is no eventfd");
	session->log.event_fd = session_take_fd(&incoming->fds[0]);
	return session_call(session, session->operations->log_fd_set);
}

int session_on_set_device_state_fd(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_device_state wire;
	struct statx stat;

	memcpy(&wire, incoming->message->payload, sizeof(wire));
	if (wire.direction > VHOST_USER_STATE_LOAD || wire.phase != VHOST_USER_STATE_STOPPED)
		return session_refuse(session, "direction %" PRIu32 ", phase %" PRIu32,
				      wire.direction, wire.phase);
	/* What is loaded decides how rings start; what is saved has only to stand still. */
	if (session_is_any_ring_started(session) &&
	    !(session->is_suspended && wire.direction == VHOST_USER_STATE_SAVE))
		return session_refuse(session, "a ring is started");
	/* QEMU and crosvm send a pipe, cloud-hypervisor a unix socket. */
	if (session_stat_fd(incoming->fds[0], &stat) < 0 ||
	    (!S_ISFIFO(stat.stx_mode) && !session_is_unix_socket(incoming->fds[0])))
		return session_refuse(session, "the fd is neither a pipe nor a unix socket");
	if (!session->operations->state_transfer)
		return session_refuse(session, "there is no state");
	session->state_fd = session_take_fd(&incoming->fds[0]);
	return session->operations->state_transfer(session->context,
						   wire.direction == VHOST_USER_STATE_LOAD);
}

int session_on_check_device_state(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	if (!session->operations->state_check)
		return session_refuse(session, "there was no transfer");
	return session->operations->state_check(session->context);
}

/* Those of the state answer in good and in bad; the log with nothing, for which QEMU waits. */
bool session_answers_itself(struct session *session, int status)
{
	switch (session->current.request) {
	case VHOST_USER_SET_DEVICE_STATE_FD:
		session_reply_u64(session,
				  STATE_REPLY_NO_FD | (status == 0 ? 0 : STATE_REPLY_ERROR));
		return true;
	case VHOST_USER_CHECK_DEVICE_STATE:
		session_reply_u64(session, status == 0 ? 0 : 1);
		return true;
	case VHOST_USER_SET_LOG_BASE:
		if (status == 0)
			session_reply(session, NULL, 0);
		return status == 0;
	default:
		return false;
	}
}
