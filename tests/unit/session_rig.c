/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/open_files.h"
#include "tests/unit/session_rig.h"

struct session_rig rig;

int rig_note_call(const char *format, ...)
{
	size_t len = strlen(rig.calls);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(rig.calls + len, sizeof(rig.calls) - len, format, arguments);
	va_end(arguments);
	return rig.answer;
}

static int features_set(void *context)
{
	(void)context;
	return rig_note_call("features ");
}

static int memory_replaced(void *context)
{
	(void)context;
	return rig_note_call("memory ");
}

static int region_added(void *context, const struct session_region *region)
{
	(void)context;
	return rig_note_call("added:%" PRIx64 " ", region->guest_address);
}

static int region_removed(void *context, const struct session_region *region)
{
	(void)context;
	assert_true(fcntl(region->fd, F_GETFD) >= 0);
	return rig_note_call("removed:%" PRIx64 " ", region->guest_address);
}

static int ring_started(void *context, uint32_t ring)
{
	(void)context;
	assert_true(rig.session.rings[ring].is_started);
	return rig_note_call("started:%" PRIu32 " ", ring);
}

static int ring_stopped(void *context, uint32_t ring)
{
	(void)context;
	assert_false(rig.session.rings[ring].is_started);
	return rig_note_call("stopped:%" PRIu32 " ", ring);
}

static int suspended(void *context)
{
	(void)context;
	return rig_note_call("%s ", rig.session.is_suspended ? "suspended" : "resumed");
}

static int ring_kicked(void *context, uint32_t ring)
{
	(void)context;
	assert_true(rig.session.rings[ring].is_started);
	return rig_note_call("kicked:%" PRIu32 " ", ring);
}

static void backend_fd_set(void *context, int fd)
{
	(void)context;
	assert_true(fcntl(fd, F_GETFD) >= 0);
	close(fd);
	rig_note_call("channel ");
}

static int ring_enabled(void *context, uint32_t ring)
{
	(void)context;
	return rig_note_call("%s:%" PRIu32 " ", rig.session.rings[ring].is_enabled ? "on" : "off",
			     ring);
}

static int ring_fd_set(void *context, uint32_t ring, enum session_ring_fd which)
{
	(void)context;
	return rig_note_call("%s:%" PRIu32 " ", which == SESSION_CALL ? "call" : "err", ring);
}

static int ring_log_set(void *context, uint32_t ring)
{
	(void)context;
	return rig_note_call("log:%" PRIu32 ":%d ", ring, rig.session.rings[ring].is_logged);
}

static int log_set(void *context)
{
	(void)context;
	assert_true(fcntl(rig.session.log.fd, F_GETFD) >= 0);
	return rig_note_call("log ");
}

static int log_fd_set(void *context)
{
	(void)context;
	assert_true(fcntl(rig.session.log.event_fd, F_GETFD) >= 0);
	return rig_note_call("log-fd ");
}

static int state_transfer(void *context, bool is_load)
{
	(void)context;
	assert_true(fcntl(rig.session.state_fd, F_GETFD) >= 0);
	return rig_note_call("%s ", is_load ? "load" : "save");
}

static int state_check(void *context)
{
	(void)context;
	return rig_note_call("check ");
}

static int device_reset(void *context)
{
	(void)context;
	return rig_note_call("reset ");
}

static void config_read(void *context)
{
	(void)context;
	rig_note_call("config ");
}

const struct session_operations rig_operations = {
	.features_set = features_set,
	.memory_replaced = memory_replaced,
	.region_added = region_added,
	.region_removed = region_removed,
	.ring_started = ring_started,
	.ring_stopped = ring_stopped,
	.suspended = suspended,
	.ring_kicked = ring_kicked,
	.backend_fd_set = backend_fd_set,
	.ring_enabled = ring_enabled,
	.ring_fd_set = ring_fd_set,
	.device_reset = device_reset,
	.ring_log_set = ring_log_set,
	.log_set = log_set,
	.log_fd_set = log_fd_set,
	.state_transfer = state_transfer,
	.state_check = state_check,
	.config_read = config_read,
};

void rig_begin(void)
{
	session_init(&rig.session, CID, SESSION_FEATURES, SESSION_PROTOCOL_FEATURES,
		     &rig_operations, NULL);
	rig.calls[0] = '\0';
	rig.answer = 0;
}

int rig_set_up(void **state)
{
	(void)state;
	rig.n_open = open_files_count();
	rig_begin();
	return 0;
}

int rig_tear_down(void **state)
{
	(void)state;
	session_end(&rig.session);
	assert_int_equal(open_files_count(), rig.n_open);
	session_end(&rig.session);
	return 0;
}

void rig_start_over(void)
{
	session_end(&rig.session);
	assert_int_equal(open_files_count(), rig.n_open);
	rig_begin();
}

void rig_begin_with(uint64_t protocol_features)
{
	session_end(&rig.session);
	session_init(&rig.session, CID, SESSION_FEATURES,
		     SESSION_PROTOCOL_FEATURES | protocol_features, &rig_operations, NULL);
	rig_negotiate(SESSION_PROTOCOL_FEATURES | protocol_features);
}

void assert_calls(const char *calls)
{
	assert_string_equal(rig.calls, calls);
	rig.calls[0] = '\0';
}

int rig_handle_fds(uint32_t request, uint32_t flags, const void *payload, size_t len, int *fds,
		   size_t n_fds)
{
	static struct vhost_user_message message;

	memset(&message, 0xa5, sizeof(message));
	message.header =
		(struct vhost_user_header){request, VHOST_USER_VERSION | flags, (uint32_t)len};
	if (len > 0)
		memcpy(message.payload, payload, len);
	return session_handle(&rig.session, &message, fds, n_fds);
}

int rig_handle(uint32_t request, const void *payload, size_t len)
{
	return rig_handle_fds(request, 0, payload, len, NULL, 0);
}

int rig_handle_u64(uint32_t request, uint64_t value)
{
	return rig_handle(request, &value, sizeof(value));
}

int rig_handle_state(uint32_t request, uint32_t index, uint32_t num)
{
	struct vhost_user_vring_state vring = {index, num};

	return rig_handle(request, &vring, sizeof(vring));
}

struct vhost_user_vring_addr rig_addr_of(uint32_t index)
{
	return (struct vhost_user_vring_addr){
		.index = index,
		.desc = USER_BASE + 0x1000 * index,
		.avail = USER_BASE + 0x1000 * index + 0x800,
		.used = USER_BASE + 0x1000 * index + 0xa00,
	};
}

int rig_handle_addr(uint32_t index)
{
	struct vhost_user_vring_addr addr = rig_addr_of(index);

	return rig_handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr));
}

int rig_handle_ring_fd(uint32_t request, uint64_t value)
{
	int fd = value & NOFD ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	return rig_handle_fds(request, 0, &value, sizeof(value), &fd, fd < 0 ? 0 : 1);
}

int rig_new_memory(void)
{
	int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)FILE_SIZE), 0);
	return fd;
}

struct vhost_user_region rig_region_of(uint64_t i)
{
	return (struct vhost_user_region){
		.guest_address = 0x40000000 + i * FILE_SIZE,
		.size = FILE_SIZE / 2,
		.user_address = USER_BASE + i * FILE_SIZE,
		.mmap_offset = FILE_SIZE / 2,
	};
}

int rig_handle_table(const struct vhost_user_region *regions, uint32_t n, uint32_t flags)
{
	struct {
		struct vhost_user_memory memory;
		struct vhost_user_region regions[VHOST_USER_REGIONS_MAX];
	} payload = {.memory = {.n_regions = n}};
	int fds[VHOST_USER_REGIONS_MAX];

	for (uint32_t i = 0; i < n; i++) {
		payload.regions[i] = regions[i];
		fds[i] = rig_new_memory();
	}
	return rig_handle_fds(VHOST_USER_SET_MEM_TABLE, flags, &payload,
			      sizeof(payload.memory) + n * sizeof(regions[0]), fds, n);
}

int rig_handle_regions(uint32_t n)
{
	struct vhost_user_region regions[VHOST_USER_REGIONS_MAX];

	for (uint32_t i = 0; i < n; i++)
		regions[i] = rig_region_of(i);
	return rig_handle_table(regions, n, 0);
}

int rig_handle_single(uint32_t request, const struct vhost_user_region *region, int fd)
{
	struct vhost_user_single_region single = {.region = *region};

	return rig_handle_fds(request, 0, &single, sizeof(single), &fd, fd < 0 ? 0 : 1);
}

void assert_reply(uint32_t request, size_t len)
{
	struct vhost_user_header header;

	assert_int_equal(rig.session.reply_len, sizeof(header) + len);
	memcpy(&header, rig.session.reply, sizeof(header));
	assert_int_equal(header.request, request);
	assert_int_equal(header.flags, 0x5);
	assert_int_equal(header.size, len);
}

void assert_reply_u64(uint32_t request, uint64_t value)
{
	uint64_t got;

	assert_reply(request, sizeof(got));
	memcpy(&got, rig.session.reply + sizeof(struct vhost_user_header), sizeof(got));
	assert_int_equal(got, value);
}

void assert_reply_state(uint32_t index, uint32_t num)
{
	struct vhost_user_vring_state vring;

	assert_reply(VHOST_USER_GET_VRING_BASE, sizeof(vring));
	memcpy(&vring, rig.session.reply + sizeof(struct vhost_user_header), sizeof(vring));
	assert_int_equal(vring.index, index);
	assert_int_equal(vring.num, num);
}

void assert_done(int status)
{
	assert_int_equal(status, 0);
	assert_int_equal(rig.session.reply_len, 0);
	assert_string_equal(session_reason(&rig.session), "");
}

void assert_closed(int status, const char *word)
{
	assert_int_equal(status, SESSION_E_CLOSE);
	assert_int_equal(rig.session.reply_len, 0);
	assert_non_null(strstr(session_reason(&rig.session), word));
}

void rig_negotiate(uint64_t protocol_features)
{
	assert_done(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, protocol_features));
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1 | BIT30));
	assert_calls("features ");
}

void rig_prepare_ring(uint32_t index, uint32_t base)
{
	rig.calls[0] = '\0';
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_NUM, index, 128));
	assert_done(rig_handle_addr(index));
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_BASE, index, base));
	assert_calls("");
}

void rig_start_ring(uint32_t index, uint32_t base)
{
	rig_prepare_ring(index, base);
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, index));
	rig.calls[0] = '\0';
}
