/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/session.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "broker/disposal.h"
#include "broker/session_internal.h"
#include "policy/policy.h"

/* Regions, rings, and the two of the log. */
#define FDS_MAX (SESSION_REGIONS_MAX + SESSION_RINGS * SESSION_RING_FDS + 2)

int session_take_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

int session_stat_fd(int fd, struct statx *ret_stat)
{
	return syscall(SYS_statx, fd, policy_empty_path, AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
		       STATX_TYPE | STATX_SIZE, ret_stat) < 0
		       ? -errno
		       : 0;
}

bool session_is_unix_socket(int fd)
{
	int domain = 0;
	socklen_t len = sizeof(domain);

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX;
}

static const char *message_name(const struct session *session)
{
	const struct vhost_user_rule *rule = vhost_user_rule(session->current.request);

	return rule ? rule->name : "message";
}

int session_refuse(struct session *session, const char *format, ...)
{
	int len = snprintf(session->reason, sizeof(session->reason), "%s: ", message_name(session));
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(session->reason + len, sizeof(session->reason) - (size_t)len, format, arguments);
	va_end(arguments);
	return -EINVAL;
}

void session_reply(struct session *session, const void *payload, size_t len)
{
	struct vhost_user_header header = {
		.request = session->current.request,
		.flags = VHOST_USER_REPLY_FLAGS,
		.size = (uint32_t)len,
	};

	memcpy(session->reply, &header, sizeof(header));
	if (len > 0)
		memcpy(session->reply + sizeof(header), payload, len);
	session->reply_len = sizeof(header) + len;
}

void session_reply_u64(struct session *session, uint64_t value)
{
	session_reply(session, &value, sizeof(value));
}

int session_call(struct session *session, int (*operation)(void *context))
{
	return operation ? operation(session->context) : 0;
}

int session_call_ring(struct session *session, int (*operation)(void *context, uint32_t ring),
		      uint32_t ring)
{
	return operation ? operation(session->context, ring) : 0;
}

uint64_t session_payload_u64(const struct session_incoming *incoming)
{
	uint64_t value;

	memcpy(&value, incoming->message->payload, sizeof(value));
	return value;
}

static void switch_all_rings(struct session *session, bool is_enabled)
{
	for (uint32_t i = 0; i < SESSION_RINGS; i++) {
		if (session->rings[i].is_enabled == is_enabled)
			continue;
		session->rings[i].is_enabled = is_enabled;
		session->current.switched_rings |= UINT32_C(1) << i;
	}
}

static int on_get_features(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	session_reply_u64(session, session->offered_features);
	return 0;
}

static int on_set_features(struct session *session, const struct session_incoming *incoming)
{
	uint64_t features = session_payload_u64(incoming);
	/* QEMU and crosvm add their own bit to the guest's choice. */
	uint64_t unknown = features & ~(session->offered_features | VHOST_USER_F_PROTOCOL_FEATURES);

	if (unknown)
		return session_refuse(session, "features 0x%" PRIx64 " were not offered", unknown);
	if ((features ^ session->features) & VIRTIO_F_RING_PACKED &&
	    session_is_any_ring_started(session))
		return session_refuse(session, "a ring is started, and is to be of another layout");

	session->features = features;
	session->has_features = true;
	/* Without that bit there is no SET_VRING_ENABLE: "Ring states". */
	if (!(features & VHOST_USER_F_PROTOCOL_FEATURES))
		switch_all_rings(session, true);
	return session_call(session, session->operations->features_set);
}

static int on_get_protocol_features(struct session *session,
				    const struct session_incoming *incoming)
{
	(void)incoming;
	/* Legal as soon as the bit is offered, before SET_FEATURES. */
	if (!(session->offered_features & VHOST_USER_F_PROTOCOL_FEATURES))
		return session_refuse(session, "protocol features were not offered");
	session_reply_u64(session, session->offered_protocol_features);
	return 0;
}

static int on_set_protocol_features(struct session *session,
				    const struct session_incoming *incoming)
{
	uint64_t features = session_payload_u64(incoming);
	uint64_t unknown = features & ~session->offered_protocol_features;
	uint64_t in_band = features & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS;
	uint64_t changed;
	const uint64_t needed = VHOST_USER_PROTOCOL_F_BACKEND_REQ | VHOST_USER_PROTOCOL_F_REPLY_ACK;

	if (!(session->offered_features & VHOST_USER_F_PROTOCOL_FEATURES))
		return session_refuse(session, "protocol features were not offered");
	if (unknown)
		return session_refuse(session, "protocol features 0x%" PRIx64 " were not offered",
				      unknown);
	/* "In-band notifications": an error, for which the connection is to be closed. */
	if (in_band && (features & needed) != needed)
		return session_refuse(session,
				      "INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK");
	changed = features ^ session->protocol_features;
	if (changed & VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS &&
	    session_is_any_ring_started(session))
		return session_refuse(session, "a ring is started");
	if (changed & VHOST_USER_PROTOCOL_F_GPA_ADDRESSES && session->n_regions > 0)
		return session_refuse(session, "there is memory already");
	session->protocol_features = features;
	return 0;
}

static int on_get_queue_num(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	session_reply_u64(session, SESSION_RINGS);
	return 0;
}

/* There is one owner, the connection; some front-ends say so twice. */
static int on_set_owner(struct session *session, const struct session_incoming *incoming)
{
	(void)session;
	(void)incoming;
	return 0;
}

/* Deprecated, and must not cost a connection: the document has it disable the rings. */
static int on_reset_owner(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	switch_all_rings(session, false);
	return 0;
}

/* Memory table, ownership and what was negotiated outlive the reset. */
static int on_reset_device(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	switch_all_rings(session, false);
	session->current.has_reset = true;
	/* Told with the reset: all rings are disabled by now. */
	session->is_suspended = false;
	return 0;
}

static int set_suspended(struct session *session, bool is_suspended)
{
	if (session->is_suspended == is_suspended)
		return 0;
	session->is_suspended = is_suspended;
	return session_call(session, session->operations->suspended);
}

static int on_suspend(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	return set_suspended(session, true);
}

static int on_resume(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	return set_suspended(session, false);
}

static int on_get_config(struct session *session, const struct session_incoming *incoming)
{
	struct {
		struct vhost_user_config config;
		uint8_t bytes[VHOST_USER_CONFIG_MAX];
	} answer = {0};
	uint64_t guest_cid = htole64(session->guest_cid);
	uint64_t end;
	size_t len;

	memcpy(&answer.config, incoming->message->payload, sizeof(answer.config));
	/* flags are not looked at: crosvm sets 1 in every read. */
	end = (uint64_t)answer.config.offset + answer.config.size;
	len = sizeof(answer.config) + answer.config.size;
	if (end > SESSION_CONFIG_SIZE) {
		/*
		 * The failure answer has a size of 0 in its body. It is as long as the request
		 * all the same: rust-vmm's front-ends wait for that many bytes.
		 */
		answer.config.size = 0;
		session_reply(session, &answer, len);
		return 0;
	}

	memcpy(answer.bytes, (uint8_t *)&guest_cid + answer.config.offset, answer.config.size);
	session_reply(session, &answer, len);
	/* Drivers read the CID in parts, in order: the last byte ends it. */
	if (answer.config.size > 0 && end == SESSION_CONFIG_SIZE &&
	    session->operations->config_read)
		session->operations->config_read(session->context);
	return 0;
}

static int on_set_config(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	return session_refuse(session, "the configuration space has no writable field");
}

static int (*const handlers[])(struct session *session, const struct session_incoming *incoming) = {
	[VHOST_USER_GET_FEATURES] = on_get_features,
	[VHOST_USER_SET_FEATURES] = on_set_features,
	[VHOST_USER_SET_OWNER] = on_set_owner,
	[VHOST_USER_RESET_OWNER] = on_reset_owner,
	[VHOST_USER_SET_MEM_TABLE] = session_on_set_mem_table,
	[VHOST_USER_SET_LOG_BASE] = session_on_set_log_base,
	[VHOST_USER_SET_LOG_FD] = session_on_set_log_fd,
	[VHOST_USER_SET_VRING_NUM] = session_on_set_vring_num,
	[VHOST_USER_SET_VRING_ADDR] = session_on_set_vring_addr,
	[VHOST_USER_SET_VRING_BASE] = session_on_set_vring_base,
	[VHOST_USER_GET_VRING_BASE] = session_on_get_vring_base,
	[VHOST_USER_SET_VRING_KICK] = session_on_set_vring_kick,
	[VHOST_USER_SET_VRING_CALL] = session_on_set_vring_call,
	[VHOST_USER_SET_VRING_ERR] = session_on_set_vring_err,
	[VHOST_USER_GET_PROTOCOL_FEATURES] = on_get_protocol_features,
	[VHOST_USER_SET_PROTOCOL_FEATURES] = on_set_protocol_features,
	[VHOST_USER_GET_QUEUE_NUM] = on_get_queue_num,
	[VHOST_USER_SET_VRING_ENABLE] = session_on_set_vring_enable,
	[VHOST_USER_SET_BACKEND_REQ_FD] = session_on_set_backend_req_fd,
	[VHOST_USER_GET_CONFIG] = on_get_config,
	[VHOST_USER_SET_CONFIG] = on_set_config,
	[VHOST_USER_RESET_DEVICE] = on_reset_device,
	[VHOST_USER_VRING_KICK] = session_on_vring_kick,
	[VHOST_USER_GET_MAX_MEM_SLOTS] = session_on_get_max_mem_slots,
	[VHOST_USER_ADD_MEM_REG] = session_on_add_mem_reg,
	[VHOST_USER_REM_MEM_REG] = session_on_rem_mem_reg,
	[VHOST_USER_SET_DEVICE_STATE_FD] = session_on_set_device_state_fd,
	[VHOST_USER_CHECK_DEVICE_STATE] = session_on_check_device_state,
	[VHOST_USER_SUSPEND] = on_suspend,
	[VHOST_USER_RESUME] = on_resume,
};

static void save(struct session *session)
{
	struct session_undo *undo = &session->undo;

	undo->features = session->features;
	undo->protocol_features = session->protocol_features;
	undo->has_features = session->has_features;
	undo->is_suspended = session->is_suspended;
	memcpy(undo->regions, session->regions, session->n_regions * sizeof(undo->regions[0]));
	undo->n_regions = session->n_regions;
	memcpy(undo->rings, session->rings, sizeof(undo->rings));
	undo->log = session->log;
}

static void restore(struct session *session)
{
	const struct session_undo *undo = &session->undo;

	session->features = undo->features;
	session->protocol_features = undo->protocol_features;
	session->has_features = undo->has_features;
	session->is_suspended = undo->is_suspended;
	memcpy(session->regions, undo->regions, undo->n_regions * sizeof(undo->regions[0]));
	session->n_regions = undo->n_regions;
	memcpy(session->rings, undo->rings, sizeof(undo->rings));
	session->log = undo->log;
}

static size_t collect_fds(const struct session_region *regions, size_t n_regions,
			  const struct session_ring *rings, const struct session_log *log,
			  int ret_fds[static FDS_MAX])
{
	size_t n = 0;

	if (log->fd >= 0)
		ret_fds[n++] = log->fd;
	if (log->event_fd >= 0)
		ret_fds[n++] = log->event_fd;

	for (size_t i = 0; i < n_regions; i++)
		ret_fds[n++] = regions[i].fd;
	for (size_t i = 0; i < SESSION_RINGS; i++) {
		for (size_t j = 0; j < SESSION_RING_FDS; j++) {
			if (rings[i].fds[j] >= 0)
				ret_fds[n++] = rings[i].fds[j];
		}
	}
	return n;
}

static void close_all_but(const int *fds, size_t n_fds, const int *kept, size_t n_kept)
{
	for (size_t i = 0; i < n_fds; i++) {
		size_t j = 0;

		while (j < n_kept && kept[j] != fds[i])
			j++;
		if (j == n_kept)
			close(fds[i]);
	}
}

/*
 * No fd of the session is closed while a message is under way, so a number stands for
 * one file in both states, and comparing numbers finds those that only one has.
 */
static void settle(struct session *session, bool is_kept)
{
	int before[FDS_MAX], after[FDS_MAX];
	size_t n_before = collect_fds(session->undo.regions, session->undo.n_regions,
				      session->undo.rings, &session->undo.log, before);
	size_t n_after = collect_fds(session->regions, session->n_regions, session->rings,
				     &session->log, after);

	/* A pipe, or a unix socket that a worker has, too: this close() waits for nobody. */
	if (session->state_fd >= 0)
		close(session->state_fd);
	session->state_fd = -1;

	if (is_kept) {
		close_all_but(before, n_before, after, n_after);
		return;
	}
	close_all_but(after, n_after, before, n_before);
	restore(session);
}

static int finish(struct session *session, int status)
{
	const struct vhost_user_rule *rule = vhost_user_rule(session->current.request);
	bool has_reply = rule && rule->has_reply;
	bool needs_ack;

	settle(session, status == 0);
	/* As negotiated now: SET_PROTOCOL_FEATURES is the first message that may need it. */
	needs_ack = session->current.needs_reply && !has_reply &&
		    session->protocol_features & VHOST_USER_PROTOCOL_F_REPLY_ACK;
	if (status == 0 && session->current.request == VHOST_USER_GET_VRING_BASE)
		session_reply_vring_base(session, session->current.ring);
	if (needs_ack)
		session_reply_u64(session, status == 0 ? 0 : 1);
	if (session_answers_itself(session, status) || status == 0)
		return 0;

	if (session->reason[0] == '\0')
		session_refuse(session, "the device failed with error %d", -status);
	return needs_ack ? 0 : SESSION_E_CLOSE;
}

/* Call what is left to call; then the message is done, unless something waits. */
static int advance(struct session *session, int status)
{
	while (status == 0 && session->current.switched_rings) {
		uint32_t ring = (uint32_t)__builtin_ctz(session->current.switched_rings);

		session->current.switched_rings &= session->current.switched_rings - 1;
		status = session_call_ring(session, session->operations->ring_enabled, ring);
	}
	if (status == 0 && session->current.has_reset) {
		session->current.has_reset = false;
		status = session_call(session, session->operations->device_reset);
	}

	session->current.is_pending = status == SESSION_E_PENDING;
	return session->current.is_pending ? SESSION_E_PENDING : finish(session, status);
}

static int dispatch(struct session *session, const struct session_incoming *incoming)
{
	int status = vhost_user_check(incoming->message, incoming->n_fds,
				      session->protocol_features, session->reason);

	/* A handler for each row of the table; a test holds the two together. */
	if (status == 0)
		status = handlers[session->current.request](session, incoming);
	return status;
}

int session_handle(struct session *session, const struct vhost_user_message *message, int *fds,
		   size_t n_fds)
{
	struct session_incoming incoming = {.message = message, .fds = fds, .n_fds = n_fds};
	int status = SESSION_E_CLOSE;

	session->reply_len = 0;
	session->reason[0] = '\0';
	if (!session->current.is_pending) {
		save(session);
		session->current = (struct session_current){
			.needs_reply = message->header.flags & VHOST_USER_NEED_REPLY,
			.request = message->header.request,
		};
		status = advance(session, dispatch(session, &incoming));
	} else {
		session_refuse(session, "not done, and another message came");
	}

	for (size_t i = 0; i < n_fds; i++) {
		if (fds[i] >= 0)
			disposal_close(fds[i]);
	}
	return status;
}

int session_complete(struct session *session, int status, uint64_t value)
{
	session->reply_len = 0;
	session->reason[0] = '\0';
	if (!session->current.is_pending)
		return 0;

	if (status == 0 && session->current.request == VHOST_USER_GET_VRING_BASE)
		session->rings[session->current.ring].base = (uint32_t)value;
	return advance(session, status);
}

const char *session_reason(const struct session *session)
{
	return session->reason;
}

void session_init(struct session *session, uint64_t guest_cid, uint64_t offered_features,
		  uint64_t offered_protocol_features, const struct session_operations *operations,
		  void *context)
{
	memset(session, 0, sizeof(*session));
	session->guest_cid = guest_cid;
	session->offered_features = offered_features;
	session->offered_protocol_features = offered_protocol_features;
	session->operations = operations;
	session->context = context;
	session->log.fd = -1;
	session->log.event_fd = -1;
	session->state_fd = -1;
	for (size_t i = 0; i < SESSION_RINGS; i++) {
		for (size_t j = 0; j < SESSION_RING_FDS; j++)
			session->rings[i].fds[j] = -1;
	}
}

void session_end(struct session *session)
{
	int fds[FDS_MAX];
	size_t n;

	if (session->current.is_pending)
		settle(session, true);
	n = collect_fds(session->regions, session->n_regions, session->rings, &session->log, fds);
	close_all_but(fds, n, NULL, 0);
	session_init(session, session->guest_cid, session->offered_features,
		     session->offered_protocol_features, session->operations, session->context);
}
