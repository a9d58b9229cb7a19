/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "broker/session_internal.h"
#include "tests/unit/session_rig.h"

static void test_a_memory_table_is_kept_in_the_order_of_guest_addresses(void **state)
{
	struct vhost_user_region regions[4] = {rig_region_of(2), rig_region_of(0), rig_region_of(3),
					       rig_region_of(1)};

	(void)state;
	assert_done(rig_handle_table(regions, 4, 0));
	assert_calls("memory ");
	assert_int_equal(rig.session.n_regions, 4);
	for (size_t i = 0; i < 4; i++) {
		struct vhost_user_region region = rig_region_of(i);

		assert_int_equal(rig.session.regions[i].guest_address, region.guest_address);
		assert_int_equal(rig.session.regions[i].user_address, region.user_address);
		assert_int_equal(rig.session.regions[i].size, region.size);
		assert_int_equal(rig.session.regions[i].mmap_offset, region.mmap_offset);
		assert_true(fcntl(rig.session.regions[i].fd, F_GETFD) >= 0);
	}
}

static void test_regions_keep_their_own_fd(void **state)
{
	struct {
		struct vhost_user_memory memory;
		struct vhost_user_region regions[2];
	} payload = {{.n_regions = 2}, {rig_region_of(1), rig_region_of(0)}};
	int fds[2] = {rig_new_memory(), rig_new_memory()};
	int first = fds[0], second = fds[1];

	(void)state;
	assert_done(rig_handle_fds(VHOST_USER_SET_MEM_TABLE, 0, &payload, sizeof(payload), fds, 2));
	assert_int_equal(rig.session.regions[0].fd, second);
	assert_int_equal(rig.session.regions[1].fd, first);
}

static void test_as_many_regions_as_there_are_slots_are_taken(void **state)
{
	(void)state;
	assert_done(rig_handle_regions(SESSION_REGIONS_MAX));
	assert_int_equal(rig.session.n_regions, SESSION_REGIONS_MAX);
	assert_done(rig_handle_regions(0));
	assert_int_equal(rig.session.n_regions, 0);
}

static void test_a_bad_region_leaves_the_old_table_in_place(void **state)
{
	const struct vhost_user_region good = rig_region_of(0);
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

			rig_negotiate(ACK);
			assert_done(rig_handle_regions(3));
			rig.calls[0] = '\0';
			regions[place] = cases[i].other;
			regions[1 - place] = good;
			assert_int_equal(rig_handle_table(regions, 2, VHOST_USER_NEED_REPLY), 0);
			assert_reply_u64(VHOST_USER_SET_MEM_TABLE, 1);
			assert_non_null(strstr(session_reason(&rig.session), cases[i].word));
			assert_calls("");
			assert_int_equal(rig.session.n_regions, 3);
			for (size_t j = 0; j < 3; j++)
				assert_true(fcntl(rig.session.regions[j].fd, F_GETFD) >= 0);
			rig_start_over();
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
	assert_done(rig_handle_table(regions, 3, 0));
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
		rig_negotiate(SESSION_PROTOCOL_FEATURES);
		assert_closed(rig_handle_single(VHOST_USER_ADD_MEM_REG, &region, fds[i]),
			      "not backed by a file");
		assert_int_equal(fcntl(fds[i], F_GETFD), -1);
		session_end(&rig.session);
		rig_begin();
	}
}

/* A file system would have to be asked about any other, and could be the front-end's own. */
static void test_memory_that_is_not_in_ram_is_refused(void **state)
{
	struct vhost_user_region region = {0x1000, 1, 0x1000, 0};
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC); /* regular, as a file on a disk */

	(void)state;
	assert_true(fd >= 0);
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_closed(rig_handle_single(VHOST_USER_ADD_MEM_REG, &region, fd),
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

		fds[n++] = rig_new_memory();
		for (size_t j = 0; j < n; j++) {
			rig_prepare_ring(1, 0);
			assert_closed(
				rig_handle_fds(requests[i], 0, &index, sizeof(index), &fds[j], 1),
				"no eventfd");
			assert_false(rig.session.rings[1].is_started);
			session_end(&rig.session);
			rig_begin();
		}
	}
}

static void test_seals_and_page_sizes_are_noticed(void **state)
{
	struct vhost_user_region region = rig_region_of(0), other = rig_region_of(1);
	int sealed = rig_new_memory();

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_int_equal(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_done(rig_handle_single(VHOST_USER_ADD_MEM_REG, &region, sealed));
	assert_done(rig_handle_single(VHOST_USER_ADD_MEM_REG, &other, rig_new_memory()));
	assert_true(rig.session.regions[0].is_sealed);
	assert_false(rig.session.regions[1].is_sealed);
	for (size_t i = 0; i < 2; i++) {
		uint64_t alignment = rig.session.regions[i].alignment;

		assert_true(alignment >= 4096 && alignment <= UINT64_C(1) << 30);
		assert_int_equal(alignment & (alignment - 1), 0);
	}
}

/* What a file system calls its blocks is no reason to map more than is asked for. */
static void test_page_sizes_are_those_that_can_be(void **state)
{
	static const struct {
		uint64_t block_size, alignment;
	} rows[] = {
		{0, 4096},
		{512, 4096},
		{4096, 4096},
		{12345, 8192},
		{UINT64_C(1) << 21, UINT64_C(1) << 21},
		{UINT64_C(1) << 30, UINT64_C(1) << 30},
		{UINT64_C(1) << 31, UINT64_C(1) << 30},
		{UINT64_MAX, UINT64_C(1) << 30},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		assert_int_equal(session_file_alignment(rows[i].block_size), rows[i].alignment);
}

static void test_regions_are_added_and_removed(void **state)
{
	struct vhost_user_region regions[3] = {rig_region_of(0), rig_region_of(1),
					       rig_region_of(2)};

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(rig_handle_table(&regions[1], 1, 0)); /* cloud-hypervisor mixes the two ways */
	assert_done(rig_handle_single(VHOST_USER_ADD_MEM_REG, &regions[2], rig_new_memory()));
	assert_done(rig_handle_single(VHOST_USER_ADD_MEM_REG, &regions[0], rig_new_memory()));
	assert_calls("memory added:40200000 added:40000000 ");
	assert_int_equal(rig.session.n_regions, 3);
	assert_int_equal(rig.session.regions[0].guest_address, regions[0].guest_address);
	assert_int_equal(rig.session.regions[2].guest_address, regions[2].guest_address);

	regions[1].mmap_offset = 0; /* QEMU */
	assert_done(rig_handle_single(VHOST_USER_REM_MEM_REG, &regions[1], -1));
	assert_done(rig_handle_single(VHOST_USER_REM_MEM_REG, &regions[0], rig_new_memory()));
	assert_calls("removed:40100000 removed:40000000 ");
	assert_int_equal(rig.session.n_regions, 1);
	assert_int_equal(rig.session.regions[0].guest_address, regions[2].guest_address);
	assert_done(rig_handle_single(VHOST_USER_ADD_MEM_REG, &regions[1], rig_new_memory()));
}

static void test_only_a_region_that_is_there_can_be_removed(void **state)
{
	struct vhost_user_region region;

	(void)state;
	for (int i = 0; i < 4; i++) {
		region = rig_region_of(0);
		region.guest_address += i == 0 ? 0x1000 : 0;
		region.size += i == 1 ? 0x1000 : 0;
		region.user_address += i == 2 ? 0x1000 : 0;
		rig_negotiate(SESSION_PROTOCOL_FEATURES);
		if (i < 3)
			assert_done(rig_handle_regions(1));
		assert_closed(rig_handle_single(VHOST_USER_REM_MEM_REG, &region, -1), "no region");
		rig_start_over();
	}
}

static void test_a_region_more_than_there_are_slots_is_refused(void **state)
{
	struct vhost_user_region region = rig_region_of(SESSION_REGIONS_MAX);

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(rig_handle_regions(SESSION_REGIONS_MAX));
	assert_closed(rig_handle_single(VHOST_USER_ADD_MEM_REG, &region, rig_new_memory()),
		      "32 regions");
	assert_int_equal(rig.session.n_regions, SESSION_REGIONS_MAX);
}

static void test_an_added_region_may_not_overlap(void **state)
{
	struct vhost_user_region region = rig_region_of(1);

	(void)state;
	rig_negotiate(SESSION_PROTOCOL_FEATURES);
	assert_done(rig_handle_regions(2));
	assert_closed(rig_handle_single(VHOST_USER_ADD_MEM_REG, &region, rig_new_memory()),
		      "overlap");
}

/* ---- guest physical addresses ---- */

static void test_with_guest_addresses_a_region_has_one_address(void **state)
{
	struct vhost_user_region region = rig_region_of(0);

	(void)state;
	rig_begin_with(VHOST_USER_PROTOCOL_F_GPA_ADDRESSES);
	assert_closed(rig_handle_table(&region, 1, 0), "both are the same");
	region.user_address = region.guest_address;
	assert_done(rig_handle_table(&region, 1, 0));
	region = rig_region_of(1);
	assert_closed(rig_handle_single(VHOST_USER_ADD_MEM_REG, &region, rig_new_memory()),
		      "both are the same");
	assert_int_equal(rig.session.n_regions, 1);
	/* And so it stays. */
	assert_closed(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, 0), "memory");
	assert_done(
		rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES,
			       SESSION_PROTOCOL_FEATURES | VHOST_USER_PROTOCOL_F_GPA_ADDRESSES));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_set_up, rig_tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_a_memory_table_is_kept_in_the_order_of_guest_addresses),
		TEST(test_regions_keep_their_own_fd),
		TEST(test_as_many_regions_as_there_are_slots_are_taken),
		TEST(test_a_bad_region_leaves_the_old_table_in_place),
		TEST(test_neighbouring_regions_do_not_overlap),
		TEST(test_memory_is_a_regular_file),
		TEST(test_memory_that_is_not_in_ram_is_refused),
		TEST(test_kick_call_and_err_are_eventfds),
		TEST(test_seals_and_page_sizes_are_noticed),
		TEST(test_page_sizes_are_those_that_can_be),
		TEST(test_regions_are_added_and_removed),
		TEST(test_only_a_region_that_is_there_can_be_removed),
		TEST(test_a_region_more_than_there_are_slots_is_refused),
		TEST(test_an_added_region_may_not_overlap),
		TEST(test_with_guest_addresses_a_region_has_one_address),
	};

	return cmocka_run_group_tests_name("session memory", tests, NULL, NULL);
}
