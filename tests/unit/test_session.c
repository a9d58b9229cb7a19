/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/session.h"

#define CID	  UINT64_C(0x0000000012345678)
#define ACK	  VHOST_USER_PROTOCOL_F_REPLY_ACK
#define BIT30	  VHOST_USER_F_PROTOCOL_FEATURES
#define NOFD	  VHOST_USER_VRING_NOFD
#define FILE_SIZE UINT64_C(0x100000)
#define USER_BASE UINT64_C(0x7f0000000000)

static struct {
	struct session session;
	char calls[256]; /* the operations that were called */
	int answer;	 /* what they answer */
	size_t n_open;
} f;

__attribute__((format(printf, 1, 2))) static int called(const char *format, ...)
{
	size_t len = strlen(f.calls);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(f.calls + len, sizeof(f.calls) - len, format, arguments);
	va_end(arguments);
	return f.answer;
}

static int features_set(void *context)
{
	(void)context;
	return called("features ");
}

static int memory_replaced(void *context)
{
	(void)context;
	return called("memory ");
}

static int region_added(void *context, const struct session_region *region)
{
	(void)context;
	return called("added:%" PRIx64 " ", region->guest_address);
}

static int region_removed(void *context, const struct session_region *region)
{
	(void)context;
	assert_true(fcntl(region->fd, F_GETFD) >= 0);
	return called("removed:%" PRIx64 " ", region->guest_address);
}

static int ring_started(void *context, uint32_t ring)
{
	(void)context;
	assert_true(f.session.rings[ring].is_started);
	return called("started:%" PRIu32 " ", ring);
}

static int ring_stopped(void *context, uint32_t ring)
{
	(void)context;
	assert_false(f.session.rings[ring].is_started);
	return called("stopped:%" PRIu32 " ", ring);
}

static int suspended(void *context)
{
	(void)context;
	return called("%s ", f.session.is_suspended ? "suspended" : "resumed");
}

static int ring_kicked(void *context, uint32_t ring)
{
	(void)context;
	assert_true(f.session.rings[ring].is_started);
	return called("kicked:%" PRIu32 " ", ring);
}

static void backend_fd_set(void *context, int fd)
{
	(void)context;
	assert_true(fcntl(fd, F_GETFD) >= 0);
	close(fd);
	called("channel ");
}

static int ring_enabled(void *context, uint32_t ring)
{
	(void)context;
	return called("%s:%" PRIu32 " ", f.session.rings[ring].is_enabled ? "on" : "off", ring);
}

static int ring_fd_set(void *context, uint32_t ring, enum session_ring_fd which)
{
	(void)context;
	return called("%s:%" PRIu32 " ", which == SESSION_CALL ? "call" : "err", ring);
}

static int ring_log_set(void *context, uint32_t ring)
{
	(void)context;
	return called("log:%" PRIu32 ":%d ", ring, f.session.rings[ring].is_logged);
}

static int log_set(void *context)
{
	(void)context;
	assert_true(fcntl(f.session.log.fd, F_GETFD) >= 0);
	return called("log ");
}

static int log_fd_set(void *context)
{
	(void)context;
	assert_true(fcntl(f.session.log.event_fd, F_GETFD) >= 0);
	return called("log-fd ");
}

static int state_transfer(void *context, bool is_load)
{
	(void)context;
	assert_true(fcntl(f.session.state_fd, F_GETFD) >= 0);
	return called("%s ", is_load ? "load" : "save");
}

static int state_check(void *context)
{
	(void)context;
	return called("check ");
}

static int device_reset(void *context)
{
	(void)context;
	return called("reset ");
}

static void config_read(void *context)
{
	(void)context;
	called("config ");
}

static const struct session_operations operations = {
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

static size_t count_open_files(void)
{
	DIR *directory = opendir("/proc/self/fd");
	size_t n = 0;

	assert_non_null(directory);
	while (readdir(directory))
		n++;
	closedir(directory);
	return n;
}

static void begin(void)
{
	session_init(&f.session, CID, SESSION_FEATURES, SESSION_PROTOCOL_FEATURES, &operations,
		     NULL);
	f.calls[0] = '\0';
	f.answer = 0;
}

static int set_up(void **state)
{
	(void)state;
	f.n_open = count_open_files();
	begin();
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	session_end(&f.session);
	assert_int_equal(count_open_files(), f.n_open);
	session_end(&f.session);
	return 0;
}

static void start_over(void)
{
	session_end(&f.session);
	assert_int_equal(count_open_files(), f.n_open);
	begin();
}

static void assert_calls(const char *calls)
{
	assert_string_equal(f.calls, calls);
	f.calls[0] = '\0';
}

static int handle_fds(uint32_t request, uint32_t flags, const void *payload, size_t len, int *fds,
		      size_t n_fds)
{
	static struct vhost_user_message message;

	memset(&message, 0xa5, sizeof(message));
	message.header =
		(struct vhost_user_header){request, VHOST_USER_VERSION | flags, (uint32_t)len};
	if (len > 0)
		memcpy(message.payload, payload, len);
	return session_handle(&f.session, &message, fds, n_fds);
}

static int handle(uint32_t request, const void *payload, size_t len)
{
	return handle_fds(request, 0, payload, len, NULL, 0);
}

static int handle_u64(uint32_t request, uint64_t value)
{
	return handle(request, &value, sizeof(value));
}

static int handle_state(uint32_t request, uint32_t index, uint32_t num)
{
	struct vhost_user_vring_state vring = {index, num};

	return handle(request, &vring, sizeof(vring));
}

static struct vhost_user_vring_addr addr_of(uint32_t index)
{
	return (struct vhost_user_vring_addr){
		.index = index,
		.desc = USER_BASE + 0x1000 * index,
		.avail = USER_BASE + 0x1000 * index + 0x800,
		.used = USER_BASE + 0x1000 * index + 0xa00,
	};
}

static int handle_addr(uint32_t index)
{
	struct vhost_user_vring_addr addr = addr_of(index);

	return handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr));
}

/* With a new eventfd, or without where the bit says so. */
static int handle_ring_fd(uint32_t request, uint64_t value)
{
	int fd = value & NOFD ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	return handle_fds(request, 0, &value, sizeof(value), &fd, fd < 0 ? 0 : 1);
}

static int new_memory(void)
{
	int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)FILE_SIZE), 0);
	return fd;
}

/* Region i of as many as one likes: no two overlap. */
static struct vhost_user_region region_of(uint64_t i)
{
	return (struct vhost_user_region){
		.guest_address = 0x40000000 + i * FILE_SIZE,
		.size = FILE_SIZE / 2,
		.user_address = USER_BASE + i * FILE_SIZE,
		.mmap_offset = FILE_SIZE / 2,
	};
}

static int handle_table(const struct vhost_user_region *regions, uint32_t n, uint32_t flags)
{
	struct {
		struct vhost_user_memory memory;
		struct vhost_user_region regions[VHOST_USER_REGIONS_MAX];
	} payload = {.memory = {.n_regions = n}};
	int fds[VHOST_USER_REGIONS_MAX];

	for (uint32_t i = 0; i < n; i++) {
		payload.regions[i] = regions[i];
		fds[i] = new_memory();
	}
	return handle_fds(VHOST_USER_SET_MEM_TABLE, flags, &payload,
			  sizeof(payload.memory) + n * sizeof(regions[0]), fds, n);
}

static int handle_regions(uint32_t n)
{
	struct vhost_user_region regions[VHOST_USER_REGIONS_MAX];

	for (uint32_t i = 0; i < n; i++)
		regions[i] = region_of(i);
	return handle_table(regions, n, 0);
}

static int handle_single(uint32_t request, const struct vhost_user_region *region, int fd)
{
	struct vhost_user_single_region single = {.region = *region};

	return handle_fds(request, 0, &single, sizeof(single), &fd, fd < 0 ? 0 : 1);
}

/* What waits to be sent is one reply of this many bytes to this request. */
static void assert_reply(uint32_t request, size_t len)
{
	struct vhost_user_header header;

	assert_int_equal(f.session.reply_len, sizeof(header) + len);
	memcpy(&header, f.session.reply, sizeof(header));
	assert_int_equal(header.request, request);
	assert_int_equal(header.flags, 0x5);
	assert_int_equal(header.size, len);
}

static void assert_reply_u64(uint32_t request, uint64_t value)
{
	uint64_t got;

	assert_reply(request, sizeof(got));
	memcpy(&got, f.session.reply + sizeof(struct vhost_user_header), sizeof(got));
	assert_int_equal(got, value);
}

static void assert_reply_state(uint32_t index, uint32_t num)
{
	struct vhost_user_vring_state vring;

	assert_reply(VHOST_USER_GET_VRING_BASE, sizeof(vring));
	memcpy(&vring, f.session.reply + sizeof(struct vhost_user_header), sizeof(vring));
	assert_int_equal(vring.index, index);
	assert_int_equal(vring.num, num);
}

static void assert_done(int status)
{
	assert_int_equal(status, 0);
	assert_int_equal(f.session.reply_len, 0);
	assert_string_equal(session_reason(&f.session), "");
}

static void assert_closed(int status, const char *word)
{
	assert_int_equal(status, SESSION_E_CLOSE);
	assert_int_equal(f.session.reply_len, 0);
	assert_non_null(strstr(session_reason(&f.session), word));
}

static void negotiate(uint64_t protocol_features)
{
	assert_done(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, protocol_features));
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1 | BIT30));
	assert_calls("features ");
}

static void prepare_ring(uint32_t index, uint32_t base)
{
	f.calls[0] = '\0';
	assert_done(handle_state(VHOST_USER_SET_VRING_NUM, index, 128));
	assert_done(handle_addr(index));
	assert_done(handle_state(VHOST_USER_SET_VRING_BASE, index, base));
	assert_calls("");
}

static void start_ring(uint32_t index, uint32_t base)
{
	prepare_ring(index, base);
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, index));
	f.calls[0] = '\0';
}

static void test_rings_begin_stopped_and_disabled(void **state)
{
	(void)state;
	for (size_t i = 0; i < SESSION_RINGS; i++) {
		assert_false(f.session.rings[i].is_started);
		assert_false(f.session.rings[i].is_enabled);
		for (size_t j = 0; j < SESSION_RING_FDS; j++)
			assert_int_equal(f.session.rings[i].fds[j], -1);
	}
	assert_int_equal(f.session.n_regions, 0);
}

static void test_questions_are_answered_with_exact_flags(void **state)
{
	static const struct {
		uint32_t request;
		uint64_t answer;
	} cases[] = {
		{VHOST_USER_GET_FEATURES, 0x4d74000007},
		{VHOST_USER_GET_PROTOCOL_FEATURES, 0x8a20b},
		{VHOST_USER_GET_QUEUE_NUM, 3},
		{VHOST_USER_GET_MAX_MEM_SLOTS, 32},
	};

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (uint32_t flags = 0; flags <= VHOST_USER_NEED_REPLY;
		     flags += VHOST_USER_NEED_REPLY) {
			assert_int_equal(handle_fds(cases[i].request, flags, NULL, 0, NULL, 0), 0);
			assert_reply_u64(cases[i].request, cases[i].answer);
		}
	}
	assert_calls("");
}

static void test_what_was_not_offered_is_refused(void **state)
{
	(void)state;
	assert_closed(handle_u64(VHOST_USER_SET_FEATURES, BIT30 | UINT64_C(1) << 33),
		      "SET_FEATURES: features 0x200000000 ");
	assert_false(f.session.has_features);
	assert_int_equal(f.session.features, 0);
	start_over();
	assert_closed(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, UINT64_C(1) << 20),
		      "SET_PROTOCOL_FEATURES: protocol features 0x100000 ");
	assert_int_equal(f.session.protocol_features, 0);
}

static void test_the_protocol_feature_bit_is_taken_though_the_device_did_not_name_it(void **state)
{
	(void)state;
	session_init(&f.session, CID, VIRTIO_F_VERSION_1, 0, &operations, NULL);
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1 | BIT30));
	assert_closed(handle(VHOST_USER_GET_PROTOCOL_FEATURES, NULL, 0), "not offered");
}

static void test_protocol_features_are_settled_before_features(void **state)
{
	(void)state;
	assert_int_equal(handle(VHOST_USER_GET_PROTOCOL_FEATURES, NULL, 0), 0);
	assert_done(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, VHOST_USER_PROTOCOL_F_MQ));
	assert_int_equal(handle(VHOST_USER_GET_QUEUE_NUM, NULL, 0), 0);
}

static void test_rings_are_enabled_at_once_without_the_protocol_feature_bit(void **state)
{
	(void)state;
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1));
	assert_calls("features on:0 on:1 on:2 ");
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1));
	assert_calls("features ");
	assert_closed(handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 0), "SET_VRING_ENABLE");
}

static void test_only_the_rings_that_were_off_are_switched_on(void **state)
{
	(void)state;
	negotiate(0);
	assert_done(handle_state(VHOST_USER_SET_VRING_ENABLE, 1, 1));
	assert_calls("on:1 ");
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, 0));
	assert_calls("features on:0 on:2 ");
}

static void test_enabled_rings_stay_with_the_protocol_feature_bit(void **state)
{
	(void)state;
	negotiate(0);
	assert_done(handle_state(VHOST_USER_SET_VRING_ENABLE, 1, 1));
	assert_calls("on:1 ");
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, BIT30));
	assert_calls("features ");
	assert_true(f.session.rings[1].is_enabled);
	assert_false(f.session.rings[0].is_enabled);
}

static void test_need_reply_is_answered_once_acks_are_negotiated(void **state)
{
	uint64_t features = VHOST_USER_PROTOCOL_F_REPLY_ACK;

	(void)state;
	assert_done(handle_fds(VHOST_USER_SET_OWNER, VHOST_USER_NEED_REPLY, NULL, 0, NULL, 0));
	assert_int_equal(handle_fds(VHOST_USER_SET_PROTOCOL_FEATURES, VHOST_USER_NEED_REPLY,
				    &features, 8, NULL, 0),
			 0);
	assert_reply_u64(VHOST_USER_SET_PROTOCOL_FEATURES, 0);
	assert_int_equal(handle_fds(VHOST_USER_SET_OWNER, VHOST_USER_NEED_REPLY, NULL, 0, NULL, 0),
			 0);
	assert_reply_u64(VHOST_USER_SET_OWNER, 0);
	assert_done(handle(VHOST_USER_SET_OWNER, NULL, 0));
}

static void test_a_failed_message_that_needs_a_reply_does_not_end_the_session(void **state)
{
	struct vhost_user_vring_state bad = {0, 3};

	(void)state;
	negotiate(ACK);
	assert_int_equal(handle_fds(VHOST_USER_SET_VRING_NUM, VHOST_USER_NEED_REPLY, &bad,
				    sizeof(bad), NULL, 0),
			 0);
	assert_reply_u64(VHOST_USER_SET_VRING_NUM, 1);
	assert_non_null(strstr(session_reason(&f.session), "SET_VRING_NUM: ring 0: size 3 "));
	assert_done(handle_state(VHOST_USER_SET_VRING_NUM, 0, 4));
}

static void test_a_failed_message_without_need_reply_ends_the_session(void **state)
{
	(void)state;
	negotiate(ACK);
	assert_closed(handle_state(VHOST_USER_SET_VRING_NUM, 0, 3), "ring 0: size 3 ");
}

static void test_a_failed_message_with_a_reply_of_its_own_ends_the_session(void **state)
{
	struct vhost_user_vring_state bad = {7, 0};

	(void)state;
	negotiate(ACK);
	assert_closed(handle_fds(VHOST_USER_GET_VRING_BASE, VHOST_USER_NEED_REPLY, &bad,
				 sizeof(bad), NULL, 0),
		      "no ring 7");
}

static int handle_shape(uint32_t request, uint32_t flags, uint32_t len, size_t n_fds)
{
	static const uint8_t zeros[VHOST_USER_PAYLOAD_MAX];
	int fds[VHOST_USER_FDS_MAX + 1];

	for (size_t i = 0; i < n_fds; i++)
		fds[i] = new_memory();
	return handle_fds(request, flags, zeros, len, fds, n_fds);
}

/* Those of the device state say so in their own reply, and the session goes on. */
static void assert_refused(int status, uint32_t request)
{
	if (request != VHOST_USER_SET_DEVICE_STATE_FD && request != VHOST_USER_CHECK_DEVICE_STATE) {
		assert_closed(status, "");
		return;
	}
	assert_int_equal(status, 0);
	assert_reply_u64(request, request == VHOST_USER_SET_DEVICE_STATE_FD ? 0x101 : 1);
}

static void assert_shape_is_refused(uint32_t request, uint32_t len, size_t n_fds, bool has_reply)
{
	negotiate(SESSION_PROTOCOL_FEATURES);
	if (!has_reply) {
		assert_int_equal(handle_shape(request, VHOST_USER_NEED_REPLY, len, n_fds), 0);
		assert_reply_u64(request, 1);
	}
	assert_refused(handle_shape(request, 0, len, n_fds), request);
	assert_string_not_equal(session_reason(&f.session), "");
	assert_calls("");
	start_over();
}

static void test_each_message_of_the_wrong_shape_is_refused(void **state)
{
	(void)state;
	for (uint32_t request = 0; request < 64; request++) {
		const struct vhost_user_rule *rule = vhost_user_rule(request);

		if (!rule) {
			assert_shape_is_refused(request, 0, 0, false);
			assert_shape_is_refused(request, 8, 1, false);
			continue;
		}
		assert_shape_is_refused(request, rule->payload_max + 1, rule->fds_min,
					rule->has_reply);
		if (rule->payload_min > 0)
			assert_shape_is_refused(request, rule->payload_min - 1, rule->fds_min,
						rule->has_reply);
		assert_shape_is_refused(request, rule->payload_min, rule->fds_max + 1,
					rule->has_reply);
	}
}

static void test_each_message_of_the_table_is_handled(void **state)
{
	(void)state;
	for (uint32_t request = 0; request < 4096; request++) {
		const struct vhost_user_rule *rule = vhost_user_rule(request);

		if (!rule)
			continue;
		negotiate(SESSION_PROTOCOL_FEATURES);
		assert_true(handle_shape(request, 0, rule->payload_min, rule->fds_min) >= 0);
		start_over();
	}
}

static void test_each_message_that_was_not_negotiated_is_refused(void **state)
{
	(void)state;
	for (uint32_t request = 0; request < 64; request++) {
		const struct vhost_user_rule *rule = vhost_user_rule(request);

		if (!rule || !rule->requires)
			continue;
		negotiate(SESSION_PROTOCOL_FEATURES & ~rule->requires);
		assert_refused(handle_shape(request, 0, rule->payload_min, rule->fds_min), request);
		assert_non_null(strstr(session_reason(&f.session), "not negotiated"));
		start_over();
	}
}

static void test_an_owner_may_be_set_twice(void **state)
{
	(void)state;
	assert_done(handle(VHOST_USER_SET_OWNER, NULL, 0));
	assert_done(handle(VHOST_USER_SET_OWNER, NULL, 0));
	assert_calls("");
}

static void test_reset_owner_disables_rings_and_nothing_else(void **state)
{
	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(handle_regions(2));
	start_ring(1, 5);
	assert_done(handle_state(VHOST_USER_SET_VRING_ENABLE, 1, 1));
	f.calls[0] = '\0';

	assert_done(handle(VHOST_USER_RESET_OWNER, NULL, 0));
	assert_calls("off:1 ");
	assert_true(f.session.rings[1].is_started);
	assert_int_equal(f.session.n_regions, 2);
	assert_int_equal(f.session.features, VIRTIO_F_VERSION_1 | BIT30);
}

static void test_a_device_reset_comes_after_its_rings_are_disabled(void **state)
{
	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(handle_regions(1));
	assert_done(handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1));
	assert_done(handle_state(VHOST_USER_SET_VRING_ENABLE, 2, 1));
	f.calls[0] = '\0';

	assert_done(handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_calls("off:0 off:2 reset ");
	assert_int_equal(f.session.n_regions, 1);
	assert_int_equal(f.session.protocol_features, SESSION_PROTOCOL_FEATURES);
	assert_done(handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_calls("reset ");
}

static int get_config(uint32_t offset, uint32_t size)
{
	uint8_t payload[sizeof(struct vhost_user_config) + VHOST_USER_CONFIG_MAX] = {0};
	/* crosvm's flags */
	struct vhost_user_config config = {offset, size, 1};

	memcpy(payload, &config, sizeof(config));
	return handle(VHOST_USER_GET_CONFIG, payload, sizeof(config) + size);
}

static void assert_config(uint32_t offset, uint32_t size, uint32_t said, const uint8_t *bytes)
{
	struct vhost_user_config config;
	const uint8_t *payload = f.session.reply + sizeof(struct vhost_user_header);

	assert_reply(VHOST_USER_GET_CONFIG, sizeof(config) + size);
	memcpy(&config, payload, sizeof(config));
	assert_int_equal(config.offset, offset);
	assert_int_equal(config.size, said);
	assert_int_equal(config.flags, 1);
	assert_memory_equal(payload + sizeof(config), bytes, size);
}

static void test_every_part_of_the_configuration_space_can_be_read(void **state)
{
	static const uint8_t space[8] = {0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0};

	(void)state;
	negotiate(VHOST_USER_PROTOCOL_F_CONFIG);
	for (uint32_t offset = 0; offset <= 8; offset++) {
		for (uint32_t size = 0; offset + size <= 8; size++) {
			assert_int_equal(get_config(offset, size), 0);
			assert_config(offset, size, size, space + offset);
			assert_calls(size > 0 && offset + size == 8 ? "config " : "");
		}
	}
}

static void test_a_read_outside_of_the_configuration_space_fails_and_that_is_all(void **state)
{
	static const struct {
		uint32_t offset, size;
	} cases[] = {{0, 9}, {8, 1}, {7, 2}, {4, 8}, {0, 256}, {UINT32_MAX, 1}, {UINT32_MAX, 256}};
	static const uint8_t zeros[256];

	(void)state;
	negotiate(VHOST_USER_PROTOCOL_F_CONFIG);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(get_config(cases[i].offset, cases[i].size), 0);
		assert_config(cases[i].offset, cases[i].size, 0, zeros);
		assert_calls("");
	}
}

static void test_the_configuration_space_cannot_be_written(void **state)
{
	uint8_t payload[20] = {0};
	struct vhost_user_config config = {0, 8, 0};

	(void)state;
	memcpy(payload, &config, sizeof(config));
	negotiate(VHOST_USER_PROTOCOL_F_CONFIG | ACK);
	assert_int_equal(
		handle_fds(VHOST_USER_SET_CONFIG, VHOST_USER_NEED_REPLY, payload, 20, NULL, 0), 0);
	assert_reply_u64(VHOST_USER_SET_CONFIG, 1);
	assert_closed(handle(VHOST_USER_SET_CONFIG, payload, 20), "SET_CONFIG");
}

/* ---- migration ---- */

static int handle_log(uint64_t size, uint64_t mmap_offset, int fd)
{
	struct vhost_user_log log = {size, mmap_offset};

	return handle_fds(VHOST_USER_SET_LOG_BASE, 0, &log, sizeof(log), &fd, 1);
}

static int handle_transfer(uint32_t direction, uint32_t phase, int fd)
{
	struct vhost_user_device_state wire = {direction, phase};

	return handle_fds(VHOST_USER_SET_DEVICE_STATE_FD, 0, &wire, sizeof(wire), &fd, 1);
}

/* One end of a pipe or a socket pair; the other is of no interest. */
static int new_channel(bool is_socket)
{
	int fds[2];

	if (is_socket)
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	else
		assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	close(fds[1]);
	return fds[0];
}

static void test_a_log_is_kept_and_answered_with_an_empty_reply(void **state)
{
	int before, event;

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_int_equal(handle_log(0x1000, 24, new_memory()), 0);
	assert_reply(VHOST_USER_SET_LOG_BASE, 0);
	assert_calls("log ");
	assert_int_equal(f.session.log.size, 0x1000);
	assert_int_equal(f.session.log.mmap_offset, 24);
	assert_int_equal(f.session.log.alignment, 4096);
	before = f.session.log.fd;

	event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	assert_done(handle_fds(VHOST_USER_SET_LOG_FD, 0, NULL, 0, &event, 1));
	assert_calls("log-fd ");

	/* The next one takes its place and leaves the event fd alone. */
	event = f.session.log.event_fd;
	assert_int_equal(handle_log(FILE_SIZE, 0, new_memory()), 0);
	assert_reply(VHOST_USER_SET_LOG_BASE, 0);
	assert_int_not_equal(f.session.log.fd, before);
	assert_int_equal(fcntl(before, F_GETFD), -1);
	assert_int_equal(f.session.log.event_fd, event);
	assert_true(fcntl(event, F_GETFD) >= 0);
}

static void test_a_log_that_the_worker_takes_later_is_answered_all_the_same(void **state)
{
	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_log(0x1000, 0, new_memory()), SESSION_E_PENDING);
	assert_int_equal(f.session.reply_len, 0);
	assert_int_equal(session_complete(&f.session, 0, 0), 0);
	assert_reply(VHOST_USER_SET_LOG_BASE, 0);
}

static void test_a_log_that_the_worker_cannot_map_ends_the_session(void **state)
{
	int before;

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_int_equal(handle_log(0x1000, 0, new_memory()), 0);
	before = f.session.log.fd;
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_log(0x2000, 0, new_memory()), SESSION_E_PENDING);
	assert_closed(session_complete(&f.session, -ENOMEM, 0), "SET_LOG_BASE");
	assert_int_equal(f.session.log.fd, before);
	assert_int_equal(f.session.log.size, 0x1000);
}

static void test_a_log_lies_within_a_file_in_ram(void **state)
{
	static const struct {
		uint64_t size, offset;
		const char *word;
	} cases[] = {
		{0, 0, "a log of 0x0 bytes"},
		{(UINT64_C(1) << 37) + 1, 0, "a log of 0x2000000001 bytes"},
		{UINT64_MAX, 0, "a log of 0xffffffffffffffff bytes"},
		{0x1000, UINT64_MAX - 0xfff, "a log of 0x1000 bytes"},
		{FILE_SIZE + 1, 0, "ends at 0x100001 of a file of 0x100000 bytes"},
		{0x1000, FILE_SIZE - 0xfff, "ends at 0x100001 of a file of 0x100000 bytes"},
		{UINT64_C(1) << 37, 0, "ends at 0x2000000000 of a file of 0x100000 bytes"},
	};
	int others[] = {eventfd(0, EFD_CLOEXEC), new_channel(false), new_channel(true),
			open("/proc/self/status", O_RDONLY | O_CLOEXEC)};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		negotiate(SESSION_PROTOCOL_FEATURES);
		assert_closed(handle_log(cases[i].size, cases[i].offset, new_memory()),
			      cases[i].word);
		assert_int_equal(f.session.log.fd, -1);
		assert_calls("");
		session_end(&f.session);
		begin();
	}
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		negotiate(SESSION_PROTOCOL_FEATURES);
		assert_closed(handle_log(1, 0, others[i]), "not backed by a file in RAM");
		assert_int_equal(fcntl(others[i], F_GETFD), -1);
		session_end(&f.session);
		begin();
	}
}

static void test_a_log_is_signalled_through_an_eventfd_only(void **state)
{
	int others[] = {new_memory(), new_channel(false), new_channel(true)};

	(void)state;
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		negotiate(ACK);
		assert_int_equal(handle_fds(VHOST_USER_SET_LOG_FD, VHOST_USER_NEED_REPLY, NULL, 0,
					    &others[i], 1),
				 0);
		assert_reply_u64(VHOST_USER_SET_LOG_FD, 1);
		assert_int_equal(f.session.log.event_fd, -1);
		f.calls[0] = '\0';
	}
}

static void test_the_log_flag_of_a_ring_may_change_while_it_is_started(void **state)
{
	struct vhost_user_vring_addr addr = addr_of(1);

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	start_ring(1, 0);
	addr.flags = VHOST_USER_VRING_F_LOG;
	addr.log_guest_addr = 0x1234;
	assert_done(handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)));
	assert_calls("log:1:1 ");
	assert_int_equal(f.session.rings[1].log_address, 0x1234);
	addr.flags = 0;
	assert_done(handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)));
	assert_calls("log:1:0 ");

	/* Of a stopped one it is told with the start. */
	addr = addr_of(2);
	addr.flags = VHOST_USER_VRING_F_LOG;
	assert_done(handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)));
	assert_calls("");
	assert_true(f.session.rings[2].is_logged);
	addr.flags = 2;
	assert_closed(handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)), "unknown flags 0x2");
}

static void test_a_state_goes_through_a_pipe_or_a_socket(void **state)
{
	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(handle_transfer(i & 1, 0, new_channel(i & 2)), 0);
		assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x100);
		assert_calls(i & 1 ? "load " : "save ");
		/* Somebody else has it now. */
		assert_int_equal(f.session.state_fd, -1);
	}
}

static void test_a_state_goes_through_nothing_else(void **state)
{
	int others[] = {eventfd(0, EFD_CLOEXEC), new_memory(), epoll_create1(EPOLL_CLOEXEC),
			open("/dev/null", O_RDWR | O_CLOEXEC)};

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		assert_int_equal(handle_transfer(VHOST_USER_STATE_LOAD, 0, others[i]), 0);
		assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
		assert_non_null(
			strstr(session_reason(&f.session), "neither a pipe nor a unix socket"));
		assert_int_equal(fcntl(others[i], F_GETFD), -1);
		assert_calls("");
	}
}

static void test_a_state_moves_in_two_directions_and_one_phase(void **state)
{
	static const uint32_t cases[][2] = {
		{2, 0}, {UINT32_MAX, 0}, {0, 1}, {1, 1}, {1, UINT32_MAX}};

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(handle_transfer(cases[i][0], cases[i][1], new_channel(false)), 0);
		assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
		assert_non_null(
			strstr(session_reason(&f.session), "SET_DEVICE_STATE_FD: direction"));
	}
	assert_calls("");
}

static void test_a_state_does_not_move_while_a_ring_is_started(void **state)
{
	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	for (uint32_t ring = 0; ring < SESSION_RINGS; ring++) {
		start_ring(ring, 0);
		for (uint32_t direction = 0; direction < 2; direction++) {
			assert_int_equal(handle_transfer(direction, 0, new_channel(false)), 0);
			assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
			assert_non_null(strstr(session_reason(&f.session), "a ring is started"));
		}
		assert_calls("");
		assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, ring, 0), 0);
		f.calls[0] = '\0';
	}
	/* Enabled ones that are stopped are no hindrance, nor is a missing memory table. */
	assert_done(handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1));
	assert_int_equal(handle_transfer(VHOST_USER_STATE_LOAD, 0, new_channel(false)), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x100);
}

static void test_a_transfer_that_did_not_begin_is_answered_with_the_error_bit(void **state)
{
	int fd = new_channel(false);

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_transfer(VHOST_USER_STATE_SAVE, 0, fd), SESSION_E_PENDING);
	assert_int_equal(f.session.reply_len, 0);
	assert_true(fcntl(fd, F_GETFD) >= 0);
	assert_int_equal(session_complete(&f.session, -EBUSY, 0), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
	assert_int_equal(fcntl(fd, F_GETFD), -1);

	fd = new_channel(false);
	assert_int_equal(handle_transfer(VHOST_USER_STATE_SAVE, 0, fd), SESSION_E_PENDING);
	assert_int_equal(session_complete(&f.session, 0, 0), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x100);
	assert_int_equal(fcntl(fd, F_GETFD), -1);

	/* A session that ends meanwhile keeps nothing. */
	fd = new_channel(false);
	assert_int_equal(handle_transfer(VHOST_USER_STATE_LOAD, 0, fd), SESSION_E_PENDING);
	session_end(&f.session);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	begin();
}

static void test_check_answers_with_0_or_1_and_never_ends_the_session(void **state)
{
	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_int_equal(handle(VHOST_USER_CHECK_DEVICE_STATE, NULL, 0), 0);
	assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, 0);
	f.answer = -EBADMSG;
	assert_int_equal(handle(VHOST_USER_CHECK_DEVICE_STATE, NULL, 0), 0);
	assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, 1);
	f.answer = SESSION_E_PENDING;
	for (int status = 0; status >= -1; status--) {
		assert_int_equal(handle(VHOST_USER_CHECK_DEVICE_STATE, NULL, 0), SESSION_E_PENDING);
		assert_int_equal(f.session.reply_len, 0);
		assert_int_equal(session_complete(&f.session, status, 0), 0);
		assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, status == 0 ? 0 : 1);
	}
	assert_calls("check check check check ");
	/* One answer, not one more for whoever asks for acks. */
	f.answer = 0;
	assert_int_equal(
		handle_fds(VHOST_USER_CHECK_DEVICE_STATE, VHOST_USER_NEED_REPLY, NULL, 0, NULL, 0),
		0);
	assert_reply_u64(VHOST_USER_CHECK_DEVICE_STATE, 0);
}

static void test_a_memory_table_is_kept_in_the_order_of_guest_addresses(void **state)
{
	struct vhost_user_region regions[4] = {region_of(2), region_of(0), region_of(3),
					       region_of(1)};

	(void)state;
	assert_done(handle_table(regions, 4, 0));
	assert_calls("memory ");
	assert_int_equal(f.session.n_regions, 4);
	for (size_t i = 0; i < 4; i++) {
		struct vhost_user_region region = region_of(i);

		assert_int_equal(f.session.regions[i].guest_address, region.guest_address);
		assert_int_equal(f.session.regions[i].user_address, region.user_address);
		assert_int_equal(f.session.regions[i].size, region.size);
		assert_int_equal(f.session.regions[i].mmap_offset, region.mmap_offset);
		assert_true(fcntl(f.session.regions[i].fd, F_GETFD) >= 0);
	}
}

static void test_regions_keep_their_own_fd(void **state)
{
	struct {
		struct vhost_user_memory memory;
		struct vhost_user_region regions[2];
	} payload = {{.n_regions = 2}, {region_of(1), region_of(0)}};
	int fds[2] = {new_memory(), new_memory()};
	int first = fds[0], second = fds[1];

	(void)state;
	assert_done(handle_fds(VHOST_USER_SET_MEM_TABLE, 0, &payload, sizeof(payload), fds, 2));
	assert_int_equal(f.session.regions[0].fd, second);
	assert_int_equal(f.session.regions[1].fd, first);
}

static void test_as_many_regions_as_there_are_slots_are_taken(void **state)
{
	(void)state;
	assert_done(handle_regions(SESSION_REGIONS_MAX));
	assert_int_equal(f.session.n_regions, SESSION_REGIONS_MAX);
	assert_done(handle_regions(0));
	assert_int_equal(f.session.n_regions, 0);
}

static void test_a_bad_region_leaves_the_old_table_in_place(void **state)
{
	const struct vhost_user_region good = region_of(0);
	const struct {
		struct vhost_user_region other;
		const char *word;
	} cases[] = {
		{{0, 0, 0, 0}, "empty"},
		{{good.guest_address, 0x1000, 0, 0}, "overlap"},
		{{good.guest_address + good.size - 1, 0x1000, 0, 0}, "overlap"},
		{{good.guest_address - 0x1000, 0x1001, 0, 0}, "overlap"},
		{{0, 0x1000, good.user_address, 0}, "overlap"},
		{{0, 0x1000, good.user_address + good.size - 1, 0}, "overlap"},
		{{0, 0x1000, good.user_address - 0x1000 + 1, 0}, "overlap"},
		{{UINT64_MAX - 0xfff, 0x1000, 0, 0}, "wraps"},
		{{0, 0x1000, UINT64_MAX - 0xfff, 0}, "wraps"},
		{{0, 0x1000, 0, UINT64_MAX - 0xfff}, "wraps"},
		{{0, UINT64_MAX, 0, 0}, "0xffffffffffffffff"},
		{{0, FILE_SIZE + 1, 0, 0}, "ends at 0x100001 "},
		{{0, 0x1000, 0, FILE_SIZE - 0xfff}, "ends at 0x100001 "},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (size_t place = 0; place < 2; place++) {
			struct vhost_user_region regions[2];

			negotiate(ACK);
			assert_done(handle_regions(3));
			f.calls[0] = '\0';
			regions[place] = cases[i].other;
			regions[1 - place] = good;
			assert_int_equal(handle_table(regions, 2, VHOST_USER_NEED_REPLY), 0);
			assert_reply_u64(VHOST_USER_SET_MEM_TABLE, 1);
			assert_non_null(strstr(session_reason(&f.session), cases[i].word));
			assert_calls("");
			assert_int_equal(f.session.n_regions, 3);
			for (size_t j = 0; j < 3; j++)
				assert_true(fcntl(f.session.regions[j].fd, F_GETFD) >= 0);
			start_over();
		}
	}
}

static void test_neighbouring_regions_do_not_overlap(void **state)
{
	struct vhost_user_region regions[3] = {
		{0x2000, 0x1000, 0x12000, 0},
		{0x1000, 0x1000, 0x13000, 0},
		{0x3000, 0x1000, 0x11000, 0},
	};

	(void)state;
	assert_done(handle_table(regions, 3, 0));
}

/* Every kind of file that is none of the two that are taken. */
static size_t open_kinds(int fds[static 8])
{
	int pair[2];
	size_t n = 0;

	assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
	fds[n++] = pair[0];
	fds[n++] = pair[1];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	fds[n++] = pair[0];
	fds[n++] = pair[1];
	fds[n++] = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fds[n++] = open("/dev/null", O_RDWR | O_CLOEXEC);
	return n;
}

static void test_memory_is_a_regular_file(void **state)
{
	struct vhost_user_region region = {0x1000, 1, 0x1000, 0};
	int fds[8];
	size_t n = open_kinds(fds);

	(void)state;
	fds[n++] = eventfd(0, EFD_CLOEXEC);
	for (size_t i = 0; i < n; i++) {
		negotiate(SESSION_PROTOCOL_FEATURES);
		assert_closed(handle_single(VHOST_USER_ADD_MEM_REG, &region, fds[i]),
			      "not backed by a file");
		assert_int_equal(fcntl(fds[i], F_GETFD), -1);
		session_end(&f.session);
		begin();
	}
}

/* A file system would have to be asked about any other, and could be the front-end's own. */
static void test_memory_that_is_not_in_ram_is_refused(void **state)
{
	struct vhost_user_region region = {0x1000, 1, 0x1000, 0};
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC); /* regular, as a file on a disk */

	(void)state;
	assert_true(fd >= 0);
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_closed(handle_single(VHOST_USER_ADD_MEM_REG, &region, fd),
		      "not backed by a file in RAM (memfd, tmpfs, hugetlbfs)");
	assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void test_kick_call_and_err_are_eventfds(void **state)
{
	static const uint32_t requests[] = {VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_CALL,
					    VHOST_USER_SET_VRING_ERR};
	uint64_t index = 1;
	int fds[8];

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		size_t n = open_kinds(fds);

		fds[n++] = new_memory();
		for (size_t j = 0; j < n; j++) {
			prepare_ring(1, 0);
			assert_closed(handle_fds(requests[i], 0, &index, sizeof(index), &fds[j], 1),
				      "no eventfd");
			assert_false(f.session.rings[1].is_started);
			session_end(&f.session);
			begin();
		}
	}
}

static void test_seals_and_page_sizes_are_noticed(void **state)
{
	struct vhost_user_region region = region_of(0), other = region_of(1);
	int sealed = new_memory();

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_int_equal(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_done(handle_single(VHOST_USER_ADD_MEM_REG, &region, sealed));
	assert_done(handle_single(VHOST_USER_ADD_MEM_REG, &other, new_memory()));
	assert_true(f.session.regions[0].is_sealed);
	assert_false(f.session.regions[1].is_sealed);
	for (size_t i = 0; i < 2; i++) {
		uint64_t alignment = f.session.regions[i].alignment;

		assert_true(alignment >= 4096 && alignment <= UINT64_C(1) << 30);
		assert_int_equal(alignment & (alignment - 1), 0);
	}
}

static void test_regions_are_added_and_removed(void **state)
{
	struct vhost_user_region regions[3] = {region_of(0), region_of(1), region_of(2)};

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(handle_table(&regions[1], 1, 0)); /* cloud-hypervisor mixes the two ways */
	assert_done(handle_single(VHOST_USER_ADD_MEM_REG, &regions[2], new_memory()));
	assert_done(handle_single(VHOST_USER_ADD_MEM_REG, &regions[0], new_memory()));
	assert_calls("memory added:40200000 added:40000000 ");
	assert_int_equal(f.session.n_regions, 3);
	assert_int_equal(f.session.regions[0].guest_address, regions[0].guest_address);
	assert_int_equal(f.session.regions[2].guest_address, regions[2].guest_address);

	regions[1].mmap_offset = 0; /* QEMU */
	assert_done(handle_single(VHOST_USER_REM_MEM_REG, &regions[1], -1));
	assert_done(handle_single(VHOST_USER_REM_MEM_REG, &regions[0], new_memory()));
	assert_calls("removed:40100000 removed:40000000 ");
	assert_int_equal(f.session.n_regions, 1);
	assert_int_equal(f.session.regions[0].guest_address, regions[2].guest_address);
	assert_done(handle_single(VHOST_USER_ADD_MEM_REG, &regions[1], new_memory()));
}

static void test_only_a_region_that_is_there_can_be_removed(void **state)
{
	struct vhost_user_region region;

	(void)state;
	for (int i = 0; i < 4; i++) {
		region = region_of(0);
		region.guest_address += i == 0 ? 0x1000 : 0;
		region.size += i == 1 ? 0x1000 : 0;
		region.user_address += i == 2 ? 0x1000 : 0;
		negotiate(SESSION_PROTOCOL_FEATURES);
		if (i < 3)
			assert_done(handle_regions(1));
		assert_closed(handle_single(VHOST_USER_REM_MEM_REG, &region, -1), "no region");
		start_over();
	}
}

static void test_a_region_more_than_there_are_slots_is_refused(void **state)
{
	struct vhost_user_region region = region_of(SESSION_REGIONS_MAX);

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(handle_regions(SESSION_REGIONS_MAX));
	assert_closed(handle_single(VHOST_USER_ADD_MEM_REG, &region, new_memory()), "32 regions");
	assert_int_equal(f.session.n_regions, SESSION_REGIONS_MAX);
}

static void test_an_added_region_may_not_overlap(void **state)
{
	struct vhost_user_region region = region_of(1);

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(handle_regions(2));
	assert_closed(handle_single(VHOST_USER_ADD_MEM_REG, &region, new_memory()), "overlap");
}

static void test_there_are_three_rings(void **state)
{
	static const uint32_t with_state[] = {VHOST_USER_SET_VRING_NUM, VHOST_USER_SET_VRING_BASE,
					      VHOST_USER_GET_VRING_BASE,
					      VHOST_USER_SET_VRING_ENABLE};
	static const uint32_t with_fd[] = {VHOST_USER_SET_VRING_KICK, VHOST_USER_SET_VRING_CALL,
					   VHOST_USER_SET_VRING_ERR};
	static const uint32_t indices[] = {3, 4, 255, 256, UINT32_MAX};

	(void)state;
	for (size_t i = 0; i < 5; i++) {
		for (size_t j = 0; j < 4; j++) {
			negotiate(0);
			assert_closed(handle_state(with_state[j], indices[i], 1), "no ring");
			start_over();
		}
		assert_closed(handle_addr(indices[i]), "no ring");
		start_over();
		if (indices[i] > 255)
			continue;
		for (size_t j = 0; j < 6; j++) {
			assert_closed(
				handle_ring_fd(with_fd[j / 2], indices[i] | (j % 2 ? NOFD : 0)),
				"no ring");
			start_over();
		}
	}
}

static void test_bits_beyond_index_and_nofd_are_refused(void **state)
{
	(void)state;
	prepare_ring(0, 0);
	assert_closed(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0x200), "bits");
	assert_closed(handle_ring_fd(VHOST_USER_SET_VRING_CALL, UINT64_C(1) << 63 | NOFD), "bits");
}

static void test_a_ring_size_is_a_power_of_two(void **state)
{
	(void)state;
	for (uint32_t num = 1; num <= 32768; num *= 2)
		assert_done(handle_state(VHOST_USER_SET_VRING_NUM, 2, num));
	assert_int_equal(f.session.rings[2].num, 32768);
	assert_closed(handle_state(VHOST_USER_SET_VRING_NUM, 2, 0), "size 0");
	assert_closed(handle_state(VHOST_USER_SET_VRING_NUM, 2, 96), "size 96");
	assert_closed(handle_state(VHOST_USER_SET_VRING_NUM, 2, 65536), "size 65536");
	assert_closed(handle_state(VHOST_USER_SET_VRING_NUM, 2, UINT32_C(1) << 31), "size");
	assert_int_equal(f.session.rings[2].num, 32768);
}

static void test_ring_addresses_are_aligned(void **state)
{
	static const struct {
		uint64_t desc, avail, used;
		uint32_t flags;
		bool is_good;
	} cases[] = {
		{16, 2, 4, 0, true},  {16, 2, 4, 1, true},  {8, 2, 4, 0, false},
		{16, 1, 4, 0, false}, {16, 2, 2, 0, false}, {16, 2, 4, 2, false},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct vhost_user_vring_addr addr = {
			.index = 1,
			.flags = cases[i].flags,
			.desc = cases[i].desc,
			.avail = cases[i].avail,
			.used = cases[i].used,
		};

		assert_int_equal(handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)),
				 cases[i].is_good ? 0 : SESSION_E_CLOSE);
		assert_int_equal(f.session.rings[1].has_addresses, cases[i].is_good);
		start_over();
	}
}

static void test_a_base_is_sixteen_bits(void **state)
{
	(void)state;
	assert_done(handle_state(VHOST_USER_SET_VRING_BASE, 0, 0xabcd1234));
	assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, 0, 0), 0);
	assert_reply_state(0, 0x1234);
	assert_calls("");
}

static void negotiate_packed(void)
{
	assert_done(handle_u64(VHOST_USER_SET_FEATURES,
			       VIRTIO_F_VERSION_1 | VIRTIO_F_RING_PACKED | BIT30));
	f.calls[0] = '\0';
}

static void test_a_packed_ring_may_have_any_size(void **state)
{
	static const uint32_t sizes[] = {1, 3, 96, 32767, 32768};

	(void)state;
	negotiate_packed();
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		assert_done(handle_state(VHOST_USER_SET_VRING_NUM, 2, sizes[i]));
	assert_closed(handle_state(VHOST_USER_SET_VRING_NUM, 2, 0), "size 0");
	assert_closed(handle_state(VHOST_USER_SET_VRING_NUM, 2, 32769), "from 1 to 32768");
	assert_int_equal(f.session.rings[2].num, 32768);
}

static void test_a_size_is_looked_at_again_when_the_layout_is_known(void **state)
{
	(void)state;
	negotiate_packed();
	assert_done(handle_state(VHOST_USER_SET_VRING_NUM, 0, 96));
	assert_done(handle_addr(0));
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1 | BIT30));
	assert_closed(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0), "no size");
}

static void test_the_event_areas_of_a_packed_ring_are_aligned(void **state)
{
	struct vhost_user_vring_addr addr = {.desc = 16, .used = 4};

	(void)state;
	negotiate_packed();
	for (addr.avail = 4; addr.avail < 9; addr.avail++)
		assert_int_equal(handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)),
				 addr.avail % 4 ? SESSION_E_CLOSE : 0);
}

static void test_a_packed_base_has_both_positions(void **state)
{
	(void)state;
	negotiate_packed();
	start_ring(1, 0x80078009);
	assert_int_equal(f.session.rings[1].base, 0x80078009);
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, 1, 0), SESSION_E_PENDING);
	assert_int_equal(session_complete(&f.session, 0, 0x00058003), 0);
	assert_reply_state(1, 0x00058003);
}

static void test_a_packed_ring_does_not_start_outside_itself(void **state)
{
	static const struct {
		uint32_t base;
		bool is_good;
	} cases[] = {
		{0x80008000, true},  {0x00000000, true},  {0x807f807f, true},  {0x00008000, true},
		{0x8000007f, false}, {0x80808000, false}, {0x80008080, false}, {0xffffffff, false},
		{0x00010000, false}, {0x80018000, false}, {0x80010001, true},  {0x80010002, false},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		negotiate_packed();
		prepare_ring(0, cases[i].base); /* of 128 */
		assert_int_equal(session_is_base(&f.session, 0, cases[i].base), cases[i].is_good);
		if (cases[i].is_good)
			assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
		else
			assert_closed(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0),
				      "cannot start at");
		start_over();
	}
}

static void test_the_layout_cannot_change_under_a_started_ring(void **state)
{
	const uint64_t split = VIRTIO_F_VERSION_1 | BIT30, packed = split | VIRTIO_F_RING_PACKED;

	(void)state;
	negotiate_packed();
	start_ring(2, 0x80008000);
	assert_closed(handle_u64(VHOST_USER_SET_FEATURES, split), "another layout");
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, packed | VHOST_F_LOG_ALL));
	assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, 2, 0), 0);
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, split));
	start_ring(2, 0);
	assert_closed(handle_u64(VHOST_USER_SET_FEATURES, packed), "another layout");
	assert_int_equal(f.session.features, split);
}

static void test_a_ring_starts_at_set_vring_kick(void **state)
{
	(void)state;
	prepare_ring(0, 0);
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
	assert_calls("started:0 ");
	assert_true(f.session.rings[0].is_started);
	assert_true(f.session.rings[0].fds[SESSION_KICK] >= 0);

	prepare_ring(1, 0);
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 1 | NOFD));
	assert_calls("started:1 ");
	assert_true(f.session.rings[1].is_started);
	assert_int_equal(f.session.rings[1].fds[SESSION_KICK], -1);
}

static void test_a_ring_without_size_or_addresses_cannot_start(void **state)
{
	(void)state;
	assert_done(handle_addr(0));
	assert_closed(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0), "no size or no addresses");
	start_over();
	assert_done(handle_state(VHOST_USER_SET_VRING_NUM, 0, 8));
	assert_closed(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0), "no size or no addresses");
	assert_int_equal(f.session.rings[0].fds[SESSION_KICK], -1);
	assert_calls("");
}

static void test_a_second_kick_fd_replaces_the_first(void **state)
{
	size_t n_open;

	(void)state;
	start_ring(0, 0);
	n_open = count_open_files();
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
	assert_calls("started:0 ");
	assert_int_equal(count_open_files(), n_open);
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0 | NOFD));
	assert_calls("started:0 ");
	assert_int_equal(count_open_files(), n_open - 1);
}

static void test_call_and_err_fds_are_kept_and_replaced(void **state)
{
	size_t n_open = count_open_files();

	(void)state;
	for (int i = 0; i < 2; i++) {
		assert_done(handle_ring_fd(VHOST_USER_SET_VRING_CALL, 2));
		assert_done(handle_ring_fd(VHOST_USER_SET_VRING_ERR, 2));
		assert_calls("call:2 err:2 ");
		assert_int_equal(count_open_files(), n_open + 2);
	}
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_CALL, 2 | NOFD));
	assert_int_equal(f.session.rings[2].fds[SESSION_CALL], -1);
	assert_true(f.session.rings[2].fds[SESSION_ERR] >= 0);
	assert_int_equal(count_open_files(), n_open + 1);
}

static void test_get_vring_base_stops_a_ring_and_keeps_its_call_fd(void **state)
{
	(void)state;
	start_ring(1, 7);
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_CALL, 1));
	f.calls[0] = '\0';

	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, 1, 0), SESSION_E_PENDING);
	assert_calls("stopped:1 ");
	assert_int_equal(f.session.reply_len, 0);
	assert_int_equal(session_complete(&f.session, 0, 0xfffe), 0);
	assert_reply_state(1, 0xfffe);
	assert_int_equal(f.session.rings[1].fds[SESSION_KICK], -1);
	assert_true(f.session.rings[1].fds[SESSION_CALL] >= 0);

	f.answer = 0;
	assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, 1, 0), 0);
	assert_reply_state(1, 0xfffe);
	assert_calls("");

	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 1));
	assert_calls("started:1 ");
	assert_int_equal(f.session.rings[1].base, 0xfffe);
}

/* One ring, each of its four states, each message that concerns it. */
static void test_every_message_in_every_ring_state(void **state)
{
	enum message {
		KICK,
		KICK_NOFD,
		GET_BASE,
		SET_BASE,
		ENABLE,
		DISABLE,
		SAME_NUM,
		OTHER_NUM,
		SAME_ADDR,
		OTHER_ADDR,
		CALL,
		N_MESSAGES,
	};
	/* A refused message is "!". Then the ring: S started, E enabled. */
	static const char *const expected[4][N_MESSAGES] = {
		/* stopped, disabled */
		{"started:0 S", "started:0 S", "", "", "on:0 E", "", "", "", "", "", "call:0 "},
		/* stopped, enabled */
		{"started:0 SE", "started:0 SE", "E", "E", "E", "off:0 ", "E", "E", "E", "E",
		 "call:0 E"},
		/* started, disabled */
		{"started:0 S", "started:0 S", "stopped:0 ", "!S", "on:0 SE", "S", "S", "!S",
		 "log:0:1 S", "!S", "call:0 S"},
		/* started, enabled */
		{"started:0 SE", "started:0 SE", "stopped:0 E", "!SE", "SE", "off:0 S", "SE", "!SE",
		 "log:0:1 SE", "!SE", "call:0 SE"},
	};

	(void)state;
	for (uint32_t i = 0; i < 4; i++) {
		for (int message = 0; message < N_MESSAGES; message++) {
			struct session_ring *ring = &f.session.rings[0];
			struct vhost_user_vring_addr addr = addr_of(0);
			int status = -1;

			negotiate(0);
			prepare_ring(0, 3);
			if (i & 1)
				assert_done(handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1));
			if (i & 2)
				assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
			f.calls[0] = '\0';

			switch ((enum message)message) {
			case KICK:
				status = handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0);
				break;
			case KICK_NOFD:
				status = handle_ring_fd(VHOST_USER_SET_VRING_KICK, NOFD);
				break;
			case GET_BASE:
				status = handle_state(VHOST_USER_GET_VRING_BASE, 0, 0);
				assert_reply_state(0, 3);
				break;
			case SET_BASE:
				status = handle_state(VHOST_USER_SET_VRING_BASE, 0, 3);
				break;
			case ENABLE:
			case DISABLE:
				status = handle_state(VHOST_USER_SET_VRING_ENABLE, 0,
						      message == ENABLE);
				break;
			case SAME_NUM:
				status = handle_state(VHOST_USER_SET_VRING_NUM, 0, 128);
				break;
			case OTHER_NUM:
				status = handle_state(VHOST_USER_SET_VRING_NUM, 0, 256);
				break;
			case OTHER_ADDR:
				addr.used += 4;
				/* fall through */
			case SAME_ADDR:
				addr.flags = VHOST_USER_VRING_F_LOG;
				status = handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr));
				break;
			case CALL:
				status = handle_ring_fd(VHOST_USER_SET_VRING_CALL, 0);
				break;
			case N_MESSAGES:
				break;
			}
			called("%s%s%s", status == SESSION_E_CLOSE ? "!" : "",
			       ring->is_started ? "S" : "", ring->is_enabled ? "E" : "");
			assert_true(status == 0 || status == SESSION_E_CLOSE);
			assert_calls(expected[i][message]);
			start_over();
		}
	}
}

/* ---- in-band notifications ---- */

#define IN_BAND	       VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS
#define BACKEND_REQ    VHOST_USER_PROTOCOL_F_BACKEND_REQ
#define IN_BAND_OFFERS (SESSION_PROTOCOL_FEATURES | SESSION_PROTOCOL_FEATURES_IN_BAND)

static void begin_in_band(uint64_t protocol_features)
{
	session_end(&f.session);
	session_init(&f.session, CID, SESSION_FEATURES, IN_BAND_OFFERS, &operations, NULL);
	assert_done(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, protocol_features));
}

static void test_in_band_notifications_need_a_channel_and_acks(void **state)
{
	static const uint64_t lacking[] = {IN_BAND, IN_BAND | ACK, IN_BAND | BACKEND_REQ};

	(void)state;
	for (size_t i = 0; i < sizeof(lacking) / sizeof(lacking[0]); i++) {
		begin_in_band(0);
		assert_closed(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, lacking[i]),
			      "BACKEND_REQ and REPLY_ACK");
		assert_int_equal(f.session.protocol_features, 0);
	}
	begin_in_band(IN_BAND | BACKEND_REQ | ACK);
}

static void test_in_band_notifications_are_settled_before_a_ring_starts(void **state)
{
	(void)state;
	begin_in_band(IN_BAND | BACKEND_REQ | ACK);
	start_ring(0, 0);
	assert_done(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, IN_BAND | BACKEND_REQ | ACK));
	assert_closed(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, ACK), "started");
}

/*
 * Ring 0 in each state, with each way of kicking it, and each message that starts,
 * kicks or stops it; afterwards: S started, E enabled, and how it is kicked: f by
 * eventfd, p polled, b in band.
 */
static void test_every_start_in_every_way_of_negotiating(void **state)
{
	enum message { KICK_FD, KICK_NOFD, KICK_IN_BAND, GET_BASE, N_MESSAGES };
	static const struct {
		bool has_bit30, is_in_band;
		const char *before; /* as said above */
		const char *after[N_MESSAGES];
	} cases[] = {
		/* without bit 30 a ring is enabled as soon as features are set */
		{false, false, "Ep", {"started:0 SEf", "started:0 SEp", "!Ep", "Ep"}},
		{false, false, "SEf", {"started:0 SEf", "started:0 SEp", "!SEf", "stopped:0 Ep"}},
		{false, false, "SEp", {"started:0 SEf", "started:0 SEp", "!SEp", "stopped:0 Ep"}},
		{false, true, "Eb", {"started:0 SEf", "started:0 SEp", "started:0 SEb", "Eb"}},
		{false,
		 true,
		 "SEf",
		 {"started:0 SEf", "started:0 SEp", "kicked:0 SEf", "stopped:0 Eb"}},
		{false,
		 true,
		 "SEp",
		 {"started:0 SEf", "started:0 SEp", "kicked:0 SEp", "stopped:0 Eb"}},
		{false,
		 true,
		 "SEb",
		 {"started:0 SEf", "started:0 SEp", "kicked:0 SEb", "stopped:0 Eb"}},
		{true, false, "p", {"started:0 Sf", "started:0 Sp", "!p", "p"}},
		{true, false, "Ep", {"started:0 SEf", "started:0 SEp", "!Ep", "Ep"}},
		{true, false, "Sf", {"started:0 Sf", "started:0 Sp", "!Sf", "stopped:0 p"}},
		{true, false, "SEf", {"started:0 SEf", "started:0 SEp", "!SEf", "stopped:0 Ep"}},
		{true, false, "SEp", {"started:0 SEf", "started:0 SEp", "!SEp", "stopped:0 Ep"}},
		{true, true, "b", {"started:0 Sf", "started:0 Sp", "started:0 Sb", "b"}},
		{true, true, "Eb", {"started:0 SEf", "started:0 SEp", "started:0 SEb", "Eb"}},
		{true, true, "Sb", {"started:0 Sf", "started:0 Sp", "kicked:0 Sb", "stopped:0 b"}},
		{true,
		 true,
		 "SEf",
		 {"started:0 SEf", "started:0 SEp", "kicked:0 SEf", "stopped:0 Eb"}},
		{true,
		 true,
		 "SEp",
		 {"started:0 SEf", "started:0 SEp", "kicked:0 SEp", "stopped:0 Eb"}},
		{true,
		 true,
		 "SEb",
		 {"started:0 SEf", "started:0 SEp", "kicked:0 SEb", "stopped:0 Eb"}},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (int message = 0; message < N_MESSAGES; message++) {
			const struct session_ring *ring = &f.session.rings[0];
			const char *before = cases[i].before;
			int status = -1;

			begin_in_band(cases[i].is_in_band ? IN_BAND | BACKEND_REQ | ACK : 0);
			f.calls[0] = '\0';
			assert_done(
				handle_u64(VHOST_USER_SET_FEATURES,
					   VIRTIO_F_VERSION_1 | (cases[i].has_bit30 ? BIT30 : 0)));
			prepare_ring(0, 3);
			if (cases[i].has_bit30 && strchr(before, 'E'))
				assert_done(handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1));
			if (strchr(before, 'f'))
				assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
			else if (strchr(before, 'S') && strchr(before, 'p'))
				assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, NOFD));
			else if (strchr(before, 'S'))
				assert_done(handle_state(VHOST_USER_VRING_KICK, 0, 0));
			f.calls[0] = '\0';

			switch ((enum message)message) {
			case KICK_FD:
				status = handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0);
				break;
			case KICK_NOFD:
				status = handle_ring_fd(VHOST_USER_SET_VRING_KICK, NOFD);
				break;
			case KICK_IN_BAND:
				status = handle_state(VHOST_USER_VRING_KICK, 0, 0);
				break;
			case GET_BASE:
				status = handle_state(VHOST_USER_GET_VRING_BASE, 0, 0);
				assert_reply_state(0, 3);
				break;
			case N_MESSAGES:
				break;
			}
			called("%s%s%s%s", status == SESSION_E_CLOSE ? "!" : "",
			       ring->is_started ? "S" : "", ring->is_enabled ? "E" : "",
			       ring->fds[SESSION_KICK] >= 0			 ? "f"
			       : session_is_in_band(&f.session, 0, SESSION_KICK) ? "b"
										 : "p");
			assert_true(status == 0 || status == SESSION_E_CLOSE);
			assert_calls(cases[i].after[message]);
		}
	}
}

/* RESET_DEVICE disables rings; without bit 30 nothing but the start could enable them. */
static void test_a_ring_starts_enabled_without_the_protocol_feature_bit(void **state)
{
	(void)state;
	assert_done(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, SESSION_PROTOCOL_FEATURES));
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1));
	assert_done(handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_false(f.session.rings[0].is_enabled);
	prepare_ring(0, 0);
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
	assert_calls("started:0 on:0 ");
	assert_true(f.session.rings[0].is_enabled);
}

static void test_an_in_band_kick_has_to_name_a_ring_that_is_set_up(void **state)
{
	(void)state;
	begin_in_band(IN_BAND | BACKEND_REQ | ACK);
	assert_closed(handle_state(VHOST_USER_VRING_KICK, 3, 0), "no ring 3");
	assert_closed(handle_state(VHOST_USER_VRING_KICK, 0, 0), "no size or no addresses");
	prepare_ring(0, 0);
	assert_closed(handle_state(VHOST_USER_VRING_KICK, 0, 1), "reserved");
	assert_false(f.session.rings[0].is_started);
}

static void test_calls_and_errors_go_in_band_until_an_fd_or_polling_is_named(void **state)
{
	static const struct {
		uint32_t request;
		enum session_ring_fd which;
	} cases[] = {{VHOST_USER_SET_VRING_CALL, SESSION_CALL},
		     {VHOST_USER_SET_VRING_ERR, SESSION_ERR}};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		begin_in_band(IN_BAND | BACKEND_REQ | ACK);
		assert_true(session_is_in_band(&f.session, 1, cases[i].which));
		assert_done(handle_ring_fd(cases[i].request, 1));
		assert_false(session_is_in_band(&f.session, 1, cases[i].which));
		assert_true(session_is_in_band(&f.session, 0, cases[i].which));
		assert_done(handle_ring_fd(cases[i].request, 0 | NOFD));
		assert_false(session_is_in_band(&f.session, 0, cases[i].which));
		begin_in_band(BACKEND_REQ | ACK);
		assert_false(session_is_in_band(&f.session, 1, cases[i].which));
	}
}

static void test_the_back_end_channel_is_a_unix_socket(void **state)
{
	int fds[2], fd = eventfd(0, EFD_CLOEXEC);

	(void)state;
	begin_in_band(BACKEND_REQ);
	f.calls[0] = '\0';
	assert_closed(handle_fds(VHOST_USER_SET_BACKEND_REQ_FD, 0, NULL, 0, &fd, 1),
		      "no unix socket");
	assert_closed(handle(VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0), "fds");
	for (int i = 0; i < 2; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		assert_done(handle_fds(VHOST_USER_SET_BACKEND_REQ_FD, 0, NULL, 0, &fds[1], 1));
		assert_calls("channel ");
		close(fds[0]);
	}
}

/* ---- suspending ---- */

static void begin_with(uint64_t protocol_features)
{
	session_end(&f.session);
	session_init(&f.session, CID, SESSION_FEATURES,
		     SESSION_PROTOCOL_FEATURES | protocol_features, &operations, NULL);
	negotiate(SESSION_PROTOCOL_FEATURES | protocol_features);
}

static int hand_over_state(uint32_t direction)
{
	struct vhost_user_device_state wire = {.direction = direction};
	int fds[2], status;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	status = handle_fds(VHOST_USER_SET_DEVICE_STATE_FD, 0, &wire, sizeof(wire), &fds[1], 1);
	close(fds[0]);
	return status;
}

static void test_suspend_and_resume_are_said_once(void **state)
{
	(void)state;
	begin_with(VHOST_USER_PROTOCOL_F_SUSPEND);
	assert_done(handle(VHOST_USER_RESUME, NULL, 0));
	assert_calls("");
	assert_done(handle(VHOST_USER_SUSPEND, NULL, 0));
	assert_done(handle(VHOST_USER_SUSPEND, NULL, 0));
	assert_calls("suspended ");
	assert_done(handle(VHOST_USER_RESUME, NULL, 0));
	assert_calls("resumed ");
	assert_false(f.session.is_suspended);
}

static void test_a_device_reset_resumes(void **state)
{
	(void)state;
	begin_with(VHOST_USER_PROTOCOL_F_SUSPEND);
	assert_done(handle(VHOST_USER_SUSPEND, NULL, 0));
	assert_done(handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_calls("suspended reset ");
	assert_false(f.session.is_suspended);
}

static void test_a_suspension_that_failed_is_none(void **state)
{
	(void)state;
	begin_with(VHOST_USER_PROTOCOL_F_SUSPEND);
	f.answer = -EIO;
	assert_closed(handle(VHOST_USER_SUSPEND, NULL, 0), "error");
	assert_false(f.session.is_suspended);
}

static void test_a_suspended_device_is_saved_with_rings_started_and_not_loaded(void **state)
{
	(void)state;
	begin_with(VHOST_USER_PROTOCOL_F_SUSPEND);
	start_ring(0, 0);
	assert_int_equal(hand_over_state(VHOST_USER_STATE_SAVE), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
	assert_done(handle(VHOST_USER_SUSPEND, NULL, 0));
	f.calls[0] = '\0';
	assert_int_equal(hand_over_state(VHOST_USER_STATE_SAVE), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x100);
	assert_calls("save ");
	assert_int_equal(hand_over_state(VHOST_USER_STATE_LOAD), 0);
	assert_reply_u64(VHOST_USER_SET_DEVICE_STATE_FD, 0x101);
}

/* ---- guest physical addresses ---- */

static void test_with_guest_addresses_a_region_has_one_address(void **state)
{
	struct vhost_user_region region = region_of(0);

	(void)state;
	begin_with(VHOST_USER_PROTOCOL_F_GPA_ADDRESSES);
	assert_closed(handle_table(&region, 1, 0), "both are the same");
	region.user_address = region.guest_address;
	assert_done(handle_table(&region, 1, 0));
	region = region_of(1);
	assert_closed(handle_single(VHOST_USER_ADD_MEM_REG, &region, new_memory()),
		      "both are the same");
	assert_int_equal(f.session.n_regions, 1);
	/* And so it stays. */
	assert_closed(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, 0), "memory");
	assert_done(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES,
			       SESSION_PROTOCOL_FEATURES | VHOST_USER_PROTOCOL_F_GPA_ADDRESSES));
}

static void test_enable_takes_nothing_but_zero_and_one(void **state)
{
	(void)state;
	negotiate(0);
	assert_closed(handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 2), "neither");
	start_over();
	assert_closed(handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1), "bit 30");
}

static void test_nothing_is_answered_before_the_operation_is_done(void **state)
{
	uint64_t features = BIT30;

	(void)state;
	negotiate(ACK);
	f.answer = SESSION_E_PENDING;
	assert_int_equal(
		handle_fds(VHOST_USER_SET_FEATURES, VHOST_USER_NEED_REPLY, &features, 8, NULL, 0),
		SESSION_E_PENDING);
	assert_int_equal(f.session.reply_len, 0);
	assert_int_equal(session_complete(&f.session, 0, 0), 0);
	assert_reply_u64(VHOST_USER_SET_FEATURES, 0);
	assert_done(session_complete(&f.session, 0, 0));
}

static void test_operations_of_one_message_follow_each_other(void **state)
{
	(void)state;
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_u64(VHOST_USER_SET_FEATURES, 0), SESSION_E_PENDING);
	assert_calls("features ");
	assert_int_equal(session_complete(&f.session, 0, 0), SESSION_E_PENDING);
	assert_calls("on:0 ");
	assert_int_equal(session_complete(&f.session, 0, 0), SESSION_E_PENDING);
	assert_calls("on:1 ");
	assert_int_equal(session_complete(&f.session, 0, 0), SESSION_E_PENDING);
	assert_calls("on:2 ");
	assert_done(session_complete(&f.session, 0, 0));
	assert_calls("");
}

static void test_a_message_while_another_is_under_way_ends_the_session(void **state)
{
	(void)state;
	start_ring(0, 0);
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, 0, 0), SESSION_E_PENDING);
	assert_closed(handle_ring_fd(VHOST_USER_SET_VRING_CALL, 0), "GET_VRING_BASE");
}

static void test_the_old_memory_stays_open_until_the_new_is_in_use(void **state)
{
	size_t n_open;
	int old;

	(void)state;
	assert_done(handle_regions(2));
	old = f.session.regions[0].fd;
	n_open = count_open_files();

	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_regions(3), SESSION_E_PENDING);
	assert_int_equal(f.session.n_regions, 3);
	assert_int_equal(count_open_files(), n_open + 3);
	assert_true(fcntl(old, F_GETFD) >= 0);
	assert_done(session_complete(&f.session, 0, 0));
	assert_int_equal(count_open_files(), n_open + 1);
	assert_int_equal(fcntl(old, F_GETFD), -1);
}

static void test_a_failed_operation_brings_the_old_state_back(void **state)
{
	struct vhost_user_region added = region_of(5), removed = region_of(0);
	struct session_region before;
	size_t n_open;

	(void)state;
	for (int is_late = 0; is_late < 2; is_late++) {
		for (int i = 0; i < 6; i++) {
			int status = -1;

			negotiate(SESSION_PROTOCOL_FEATURES);
			assert_done(handle_regions(2));
			start_ring(0, 9);
			prepare_ring(1, 9);
			before = f.session.regions[0];
			n_open = count_open_files();
			f.answer = is_late ? SESSION_E_PENDING : -ENOMEM;

			if (i == 0)
				status = handle_regions(3);
			else if (i == 1)
				status =
					handle_single(VHOST_USER_ADD_MEM_REG, &added, new_memory());
			else if (i == 2)
				status = handle_single(VHOST_USER_REM_MEM_REG, &removed, -1);
			else if (i == 3)
				status = handle_ring_fd(VHOST_USER_SET_VRING_KICK, 1);
			else if (i == 4)
				status = handle_state(VHOST_USER_GET_VRING_BASE, 0, 0);
			else
				status = handle(VHOST_USER_RESET_DEVICE, NULL, 0);
			if (is_late) {
				assert_int_equal(status, SESSION_E_PENDING);
				status = session_complete(&f.session, -ENOMEM, 0);
			}
			assert_closed(status, "error 12");

			assert_int_equal(count_open_files(), n_open);
			assert_int_equal(f.session.n_regions, 2);
			assert_int_equal(f.session.regions[0].fd, before.fd);
			assert_int_equal(f.session.regions[0].guest_address, before.guest_address);
			assert_true(f.session.rings[0].is_started);
			assert_true(f.session.rings[0].fds[SESSION_KICK] >= 0);
			assert_false(f.session.rings[1].is_started);
			assert_int_equal(f.session.rings[0].base, 9);
			start_over();
		}
	}
}

static void test_a_failed_operation_is_nacked_when_a_reply_is_needed(void **state)
{
	struct vhost_user_region region = region_of(0);

	(void)state;
	negotiate(ACK);
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_table(&region, 1, VHOST_USER_NEED_REPLY), SESSION_E_PENDING);
	assert_int_equal(session_complete(&f.session, -ENOMEM, 0), 0);
	assert_reply_u64(VHOST_USER_SET_MEM_TABLE, 1);
	assert_int_equal(f.session.n_regions, 0);
}

static void test_a_session_may_end_with_an_operation_under_way(void **state)
{
	struct vhost_user_region region = region_of(1);

	(void)state;
	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(handle_regions(2));
	start_ring(0, 0);
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_regions(3), SESSION_E_PENDING);
	start_over();

	negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(handle_regions(2));
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_single(VHOST_USER_REM_MEM_REG, &region, -1), SESSION_E_PENDING);
	start_over();

	start_ring(0, 0);
	f.answer = SESSION_E_PENDING;
	assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, 0, 0), SESSION_E_PENDING);
	session_end(&f.session);
	assert_done(session_complete(&f.session, 0, 1));
}

static void test_a_session_works_without_a_device(void **state)
{
	static const struct session_operations none;

	(void)state;
	session_init(&f.session, CID, SESSION_FEATURES, SESSION_PROTOCOL_FEATURES, &none, NULL);
	assert_done(handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, SESSION_PROTOCOL_FEATURES));
	assert_done(handle_u64(VHOST_USER_SET_FEATURES, 0));
	assert_done(handle_regions(2));
	start_ring(0, 4);
	assert_done(handle_ring_fd(VHOST_USER_SET_VRING_CALL, 0));
	assert_int_equal(get_config(0, 8), 0);
	assert_int_equal(handle_state(VHOST_USER_GET_VRING_BASE, 0, 0), 0);
	assert_reply_state(0, 4);
	assert_done(handle(VHOST_USER_RESET_DEVICE, NULL, 0));
}

struct line {
	uint32_t request;
	uint64_t first, second;
	uint32_t flags;
};

/* Say one line; every one is accepted, and answered exactly when it has to be. */
static void say(const struct line *line)
{
	const struct vhost_user_rule *rule = vhost_user_rule(line->request);
	uint8_t payload[1100] = {0};
	struct vhost_user_memory memory = {.n_regions = (uint32_t)line->first};
	struct vhost_user_single_region single = {.region = region_of(line->first)};
	struct vhost_user_vring_addr addr = addr_of((uint32_t)line->first);
	struct vhost_user_config config = {(uint32_t)line->first, (uint32_t)line->second, 0};
	struct vhost_user_vring_state vring = {(uint32_t)line->first, (uint32_t)line->second};
	int fds[VHOST_USER_FDS_MAX];
	size_t len = rule->payload_min, n_fds = 0;
	bool is_answered = rule->has_reply || (line->flags & VHOST_USER_NEED_REPLY &&
					       f.session.protocol_features & ACK);

	switch (line->request) {
	case VHOST_USER_SET_MEM_TABLE:
		memcpy(payload, &memory, sizeof(memory));
		for (; n_fds < line->first; n_fds++) {
			struct vhost_user_region region = region_of(n_fds);

			memcpy(payload + len, &region, sizeof(region));
			len += sizeof(region);
			fds[n_fds] = new_memory();
		}
		break;
	case VHOST_USER_ADD_MEM_REG:
		fds[n_fds++] = new_memory();
		/* fall through */
	case VHOST_USER_REM_MEM_REG:
		memcpy(payload, &single, sizeof(single));
		break;
	case VHOST_USER_SET_VRING_ADDR:
		memcpy(payload, &addr, sizeof(addr));
		break;
	case VHOST_USER_GET_CONFIG:
		memcpy(payload, &config, sizeof(config));
		len += config.size;
		break;
	case VHOST_USER_SET_VRING_KICK:
	case VHOST_USER_SET_VRING_CALL:
	case VHOST_USER_SET_VRING_ERR:
		if (!(line->first & NOFD))
			fds[n_fds++] = eventfd(0, EFD_CLOEXEC);
		/* fall through */
	case VHOST_USER_SET_FEATURES:
	case VHOST_USER_SET_PROTOCOL_FEATURES:
		memcpy(payload, &line->first, sizeof(line->first));
		break;
	default:
		if (len == sizeof(vring))
			memcpy(payload, &vring, sizeof(vring));
		break;
	}
	assert_int_equal(handle_fds(line->request, line->flags, payload, len, fds, n_fds), 0);
	assert_int_equal(f.session.reply_len > 0, is_answered);
	if (line->request == VHOST_USER_GET_VRING_BASE)
		assert_reply_state((uint32_t)line->first, (uint32_t)line->second);
	else if (is_answered && !rule->has_reply)
		assert_reply_u64(line->request, 0);
}

#define SAY(script)                                                                                \
	do {                                                                                       \
		for (size_t line_ = 0; line_ < sizeof(script) / sizeof((script)[0]); line_++)      \
			say(&(script)[line_]);                                                     \
	} while (0)

#define M(name) VHOST_USER_##name
#define NEED	VHOST_USER_NEED_REPLY

static void assert_rings(const char *shape)
{
	char got[SESSION_RINGS * 2 + 1] = "";

	for (size_t i = 0; i < SESSION_RINGS; i++) {
		got[i * 2] = f.session.rings[i].is_started ? 'S' : '-';
		got[i * 2 + 1] = f.session.rings[i].is_enabled ? 'E' : '-';
	}
	assert_string_equal(got, shape);
}

static void test_qemu_realizes_starts_stops_continues_and_resets(void **state)
{
	static const struct line realize[] = {
		{M(GET_FEATURES), 0, 0, 0},
		{M(GET_PROTOCOL_FEATURES), 0, 0, 0},
		{M(SET_PROTOCOL_FEATURES), SESSION_PROTOCOL_FEATURES, 0, 0},
		{M(GET_QUEUE_NUM), 0, 0, 0},
		{M(GET_MAX_MEM_SLOTS), 0, 0, 0},
		{M(SET_OWNER), 0, 0, 0},
		{M(GET_FEATURES), 0, 0, 0},
		{M(SET_VRING_CALL), 0, 0, NEED},
		{M(SET_VRING_ERR), 0, 0, NEED},
		{M(SET_VRING_CALL), 1, 0, NEED},
		{M(SET_VRING_ERR), 1, 0, NEED},
		{M(GET_CONFIG), 0, 8, 0},
	};
	static const struct line memory[] = {
		{M(ADD_MEM_REG), 0, 0, NEED},
		{M(ADD_MEM_REG), 1, 0, NEED},
	};
	static const struct line start[] = {
		{M(SET_FEATURES), SESSION_FEATURES & ~VIRTIO_F_RING_PACKED, 0, 0},
		{M(SET_VRING_NUM), 0, 128, 0},
		{M(SET_VRING_BASE), 0, 21, 0},
		{M(SET_VRING_ADDR), 0, 0, 0},
		{M(SET_VRING_KICK), 0, 0, NEED},
		{M(SET_VRING_NUM), 1, 128, 0},
		{M(SET_VRING_BASE), 1, 22, 0},
		{M(SET_VRING_ADDR), 1, 0, 0},
		{M(SET_VRING_KICK), 1, 0, NEED},
		{M(SET_VRING_ENABLE), 0, 1, NEED},
		{M(SET_VRING_ENABLE), 1, 1, NEED},
		{M(SET_VRING_CALL), 0, 0, NEED},
		{M(SET_VRING_CALL), 1, 0, NEED},
	};
	static const struct line hotplug[] = {
		{M(ADD_MEM_REG), 2, 0, NEED},
		{M(REM_MEM_REG), 2, 0, NEED},
	};
	static const struct line stop[] = {
		{M(SET_VRING_ENABLE), 0, 0, NEED},
		{M(SET_VRING_ENABLE), 1, 0, NEED},
		{M(GET_VRING_BASE), 0, 21, 0},
		{M(GET_VRING_BASE), 1, 22, 0},
	};
	static const struct line reset[] = {{M(RESET_DEVICE), 0, 0, 0}};

	(void)state;
	SAY(realize);
	assert_calls("call:0 err:0 call:1 err:1 config ");
	SAY(memory);
	for (int i = 0; i < 2; i++) {
		f.calls[0] = '\0';
		SAY(start);
		assert_calls("features started:0 started:1 on:0 on:1 call:0 call:1 ");
		assert_rings("SESE--");
		SAY(hotplug);
		assert_int_equal(f.session.n_regions, 2);
		f.calls[0] = '\0';
		SAY(stop);
		assert_calls("off:0 off:1 stopped:0 stopped:1 ");
		assert_rings("------");
	}
	SAY(reset);
	assert_calls("reset ");
}

static void test_crosvm_activates_sleeps_and_wakes(void **state)
{
	static const struct line connect[] = {
		{M(SET_OWNER), 0, 0, 0},
		{M(GET_FEATURES), 0, 0, 0},
		{M(GET_PROTOCOL_FEATURES), 0, 0, 0},
		{M(SET_PROTOCOL_FEATURES), 0x209, 0, 0}, /* MQ, REPLY_ACK, CONFIG */
		{M(GET_QUEUE_NUM), 0, 0, 0},
		{M(GET_CONFIG), 0, 4, 0},
		{M(GET_CONFIG), 4, 4, 0},
		{M(SET_FEATURES), SESSION_FEATURES & ~VIRTIO_F_RING_PACKED, 0, 0},
	};
	static const struct line activate[] = {
		{M(SET_MEM_TABLE), 12, 0, 0},	{M(SET_VRING_NUM), 0, 256, 0},
		{M(SET_VRING_ADDR), 0, 0, 0},	{M(SET_VRING_BASE), 0, 1, 0},
		{M(SET_VRING_CALL), 0, 0, 0},	{M(SET_VRING_KICK), 0, 0, 0},
		{M(SET_VRING_ENABLE), 0, 1, 0}, {M(SET_VRING_NUM), 1, 256, 0},
		{M(SET_VRING_ADDR), 1, 0, 0},	{M(SET_VRING_BASE), 1, 2, 0},
		{M(SET_VRING_CALL), 1, 0, 0},	{M(SET_VRING_KICK), 1, 0, 0},
		{M(SET_VRING_ENABLE), 1, 1, 0}, {M(SET_VRING_NUM), 2, 256, 0},
		{M(SET_VRING_ADDR), 2, 0, 0},	{M(SET_VRING_BASE), 2, 3, 0},
		{M(SET_VRING_CALL), 2, 0, 0},	{M(SET_VRING_KICK), 2, 0, 0},
		{M(SET_VRING_ENABLE), 2, 1, 0},
	};
	static const struct line sleep[] = {
		{M(SET_VRING_ENABLE), 0, 0, 0}, {M(GET_VRING_BASE), 0, 1, 0},
		{M(SET_VRING_ENABLE), 1, 0, 0}, {M(GET_VRING_BASE), 1, 2, 0},
		{M(SET_VRING_ENABLE), 2, 0, 0}, {M(GET_VRING_BASE), 2, 3, 0},
	};

	(void)state;
	SAY(connect);
	assert_calls("config features ");
	for (int i = 0; i < 2; i++) {
		SAY(activate);
		assert_calls("memory call:0 started:0 on:0 call:1 started:1 on:1 "
			     "call:2 started:2 on:2 ");
		assert_rings("SESESE");
		assert_int_equal(f.session.n_regions, 12);
		SAY(sleep);
		assert_calls("off:0 stopped:0 off:1 stopped:1 off:2 stopped:2 ");
		assert_rings("------");
	}
}

static void test_cloud_hypervisor_starts_pauses_snapshots_and_resets(void **state)
{
	static const struct line start[] = {
		{M(SET_FEATURES), SESSION_FEATURES & ~VIRTIO_F_RING_PACKED, 0, NEED},
		{M(SET_MEM_TABLE), 2, 0, NEED},
		{M(SET_VRING_NUM), 0, 1024, NEED},
		{M(SET_VRING_NUM), 1, 1024, NEED},
		{M(SET_VRING_NUM), 2, 1024, NEED},
		{M(SET_VRING_ADDR), 0, 0, NEED},
		{M(SET_VRING_BASE), 0, 5, NEED},
		{M(SET_VRING_CALL), 0, 0, NEED},
		{M(SET_VRING_KICK), 0, 0, NEED},
		{M(SET_VRING_ADDR), 1, 0, NEED},
		{M(SET_VRING_BASE), 1, 6, NEED},
		{M(SET_VRING_CALL), 1, 0, NEED},
		{M(SET_VRING_KICK), 1, 0, NEED},
		{M(SET_VRING_ADDR), 2, 0, NEED},
		{M(SET_VRING_BASE), 2, 7, NEED},
		{M(SET_VRING_CALL), 2, 0, NEED},
		{M(SET_VRING_KICK), 2, 0, NEED},
		{M(SET_VRING_ENABLE), 0, 1, NEED},
		{M(SET_VRING_ENABLE), 1, 1, NEED},
		{M(SET_VRING_ENABLE), 2, 1, NEED},
	};
	static const struct line connect[] = {
		{M(SET_OWNER), 0, 0, 0},
		{M(GET_FEATURES), 0, 0, 0},
		{M(GET_PROTOCOL_FEATURES), 0, 0, 0},
		{M(SET_PROTOCOL_FEATURES), SESSION_PROTOCOL_FEATURES, 0, 0},
		{M(GET_QUEUE_NUM), 0, 0, NEED},
		{M(GET_CONFIG), 0, 8, NEED},
	};
	static const struct line pause[] = {
		{M(SET_VRING_ENABLE), 0, 0, NEED},
		{M(SET_VRING_ENABLE), 1, 0, NEED},
		{M(SET_VRING_ENABLE), 2, 0, NEED},
	};
	static const struct line resume[] = {
		{M(SET_VRING_ENABLE), 0, 1, NEED},
		{M(SET_VRING_ENABLE), 1, 1, NEED},
		{M(SET_VRING_ENABLE), 2, 1, NEED},
	};
	static const struct line stop[] = {
		{M(GET_VRING_BASE), 0, 5, NEED},
		{M(GET_VRING_BASE), 1, 6, NEED},
		{M(GET_VRING_BASE), 2, 7, NEED},
	};
	static const struct line hotplug[] = {{M(ADD_MEM_REG), 2, 0, NEED}};

	(void)state;
	SAY(connect);
	SAY(start);
	f.calls[0] = '\0';
	SAY(hotplug);
	assert_calls("added:40200000 ");
	SAY(pause);
	assert_calls("off:0 off:1 off:2 ");
	assert_rings("S-S-S-");
	SAY(resume);
	assert_calls("on:0 on:1 on:2 ");
	assert_rings("SESESE");
	SAY(pause);
	SAY(stop);
	assert_rings("------");
	f.calls[0] = '\0';
	SAY(start);
	assert_rings("SESESE");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_rings_begin_stopped_and_disabled),
		TEST(test_questions_are_answered_with_exact_flags),
		TEST(test_what_was_not_offered_is_refused),
		TEST(test_the_protocol_feature_bit_is_taken_though_the_device_did_not_name_it),
		TEST(test_protocol_features_are_settled_before_features),
		TEST(test_rings_are_enabled_at_once_without_the_protocol_feature_bit),
		TEST(test_only_the_rings_that_were_off_are_switched_on),
		TEST(test_enabled_rings_stay_with_the_protocol_feature_bit),
		TEST(test_need_reply_is_answered_once_acks_are_negotiated),
		TEST(test_a_failed_message_that_needs_a_reply_does_not_end_the_session),
		TEST(test_a_failed_message_without_need_reply_ends_the_session),
		TEST(test_a_failed_message_with_a_reply_of_its_own_ends_the_session),
		TEST(test_each_message_of_the_wrong_shape_is_refused),
		TEST(test_each_message_of_the_table_is_handled),
		TEST(test_each_message_that_was_not_negotiated_is_refused),
		TEST(test_an_owner_may_be_set_twice),
		TEST(test_reset_owner_disables_rings_and_nothing_else),
		TEST(test_a_device_reset_comes_after_its_rings_are_disabled),
		TEST(test_every_part_of_the_configuration_space_can_be_read),
		TEST(test_a_read_outside_of_the_configuration_space_fails_and_that_is_all),
		TEST(test_the_configuration_space_cannot_be_written),
		TEST(test_a_memory_table_is_kept_in_the_order_of_guest_addresses),
		TEST(test_regions_keep_their_own_fd),
		TEST(test_as_many_regions_as_there_are_slots_are_taken),
		TEST(test_a_bad_region_leaves_the_old_table_in_place),
		TEST(test_neighbouring_regions_do_not_overlap),
		TEST(test_memory_is_a_regular_file),
		TEST(test_memory_that_is_not_in_ram_is_refused),
		TEST(test_kick_call_and_err_are_eventfds),
		TEST(test_seals_and_page_sizes_are_noticed),
		TEST(test_regions_are_added_and_removed),
		TEST(test_only_a_region_that_is_there_can_be_removed),
		TEST(test_a_region_more_than_there_are_slots_is_refused),
		TEST(test_an_added_region_may_not_overlap),
		TEST(test_there_are_three_rings),
		TEST(test_bits_beyond_index_and_nofd_are_refused),
		TEST(test_a_ring_size_is_a_power_of_two),
		TEST(test_ring_addresses_are_aligned),
		TEST(test_a_base_is_sixteen_bits),
		TEST(test_a_packed_ring_may_have_any_size),
		TEST(test_a_size_is_looked_at_again_when_the_layout_is_known),
		TEST(test_the_event_areas_of_a_packed_ring_are_aligned),
		TEST(test_a_packed_base_has_both_positions),
		TEST(test_a_packed_ring_does_not_start_outside_itself),
		TEST(test_the_layout_cannot_change_under_a_started_ring),
		TEST(test_a_ring_starts_at_set_vring_kick),
		TEST(test_a_ring_without_size_or_addresses_cannot_start),
		TEST(test_a_second_kick_fd_replaces_the_first),
		TEST(test_call_and_err_fds_are_kept_and_replaced),
		TEST(test_get_vring_base_stops_a_ring_and_keeps_its_call_fd),
		TEST(test_every_message_in_every_ring_state),
		TEST(test_in_band_notifications_need_a_channel_and_acks),
		TEST(test_in_band_notifications_are_settled_before_a_ring_starts),
		TEST(test_every_start_in_every_way_of_negotiating),
		TEST(test_a_ring_starts_enabled_without_the_protocol_feature_bit),
		TEST(test_an_in_band_kick_has_to_name_a_ring_that_is_set_up),
		TEST(test_calls_and_errors_go_in_band_until_an_fd_or_polling_is_named),
		TEST(test_the_back_end_channel_is_a_unix_socket),
		TEST(test_suspend_and_resume_are_said_once),
		TEST(test_a_device_reset_resumes),
		TEST(test_a_suspension_that_failed_is_none),
		TEST(test_a_suspended_device_is_saved_with_rings_started_and_not_loaded),
		TEST(test_with_guest_addresses_a_region_has_one_address),
		TEST(test_enable_takes_nothing_but_zero_and_one),
		TEST(test_nothing_is_answered_before_the_operation_is_done),
		TEST(test_operations_of_one_message_follow_each_other),
		TEST(test_a_message_while_another_is_under_way_ends_the_session),
		TEST(test_the_old_memory_stays_open_until_the_new_is_in_use),
		TEST(test_a_failed_operation_brings_the_old_state_back),
		TEST(test_a_failed_operation_is_nacked_when_a_reply_is_needed),
		TEST(test_a_session_may_end_with_an_operation_under_way),
		TEST(test_a_session_works_without_a_device),
		TEST(test_qemu_realizes_starts_stops_continues_and_resets),
		TEST(test_crosvm_activates_sleeps_and_wakes),
		TEST(test_a_log_is_kept_and_answered_with_an_empty_reply),
		TEST(test_a_log_that_the_worker_takes_later_is_answered_all_the_same),
		TEST(test_a_log_that_the_worker_cannot_map_ends_the_session),
		TEST(test_a_log_lies_within_a_file_in_ram),
		TEST(test_a_log_is_signalled_through_an_eventfd_only),
		TEST(test_the_log_flag_of_a_ring_may_change_while_it_is_started),
		TEST(test_a_state_goes_through_a_pipe_or_a_socket),
		TEST(test_a_state_goes_through_nothing_else),
		TEST(test_a_state_moves_in_two_directions_and_one_phase),
		TEST(test_a_state_does_not_move_while_a_ring_is_started),
		TEST(test_a_transfer_that_did_not_begin_is_answered_with_the_error_bit),
		TEST(test_check_answers_with_0_or_1_and_never_ends_the_session),
		TEST(test_cloud_hypervisor_starts_pauses_snapshots_and_resets),
	};

	return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
