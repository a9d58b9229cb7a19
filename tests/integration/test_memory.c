/* SPDX-License-Identifier: Apache-2.0 */

/* Guest memory that comes, goes and changes, mostly while bytes are on their way. */

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/replacer.h"
#include "tests/integration/setup.h"
#include "tests/integration/tool.h"
#include "tests/integration/transfer.h"

#define KIB   1024u
#define MIB   (1024u * 1024)
#define LIMIT SETUP_LIMIT
#define SLOTS 32

static const struct memory_layout first_only[] = {{.guest_address = MIB, .size = 16 * MIB}};

static void resume(struct guest *guest)
{
	assert_int_equal(guest_resume(guest), 0);
}

static int wait_err(const struct ring *ring)
{
	return socket_wait(ring->err, POLLIN, deadline_in(LIMIT));
}

static void test_buffers_across_borders_of_regions_carry_the_same_bytes(void **state)
{
	static const struct memory_layout regions[] = {
		{.guest_address = 0, .size = MIB, .offset = 12288},
		{.guest_address = MIB, .size = 16 * MIB, .is_unsealed = true},
		{.guest_address = 17 * MIB, .size = 32 * MIB, .offset = 4096},
		{.guest_address = UINT64_C(1) << 32, .size = MIB},
	};
	static const struct guest_layout layouts[] = {
		{.cuts = {44}, .n_cuts = 1},
		{.cuts = {1, 20, 44}, .n_cuts = 3},
		{.cuts = {44}, .n_cuts = 1, .piece_len = 4096},
		{.cuts = {40, 48}, .n_cuts = 2, .piece_len = 4096, .is_indirect = true},
	};
	struct setup *setup = *state;

	for (size_t i = 0; i < 4; i++) {
		setup_guest(setup, 0,
			    (struct guest_options){
				    .queue_size = (uint16_t)(64 << i),
				    .tx_layout = layouts[i],
				    .rx_layout = layouts[3 - i],
				    .rx_buffer_size = 2300,
				    .is_straddling = true,
				    .regions = regions,
				    .n_regions = 4,
			    });
		transfer_all(setup, 0, 1000, 500 * KIB);
		setup_end_guest(setup, 0);
	}
}

static void make_regions(struct memory_layout regions[static SLOTS])
{
	/* Rings and buffers find room in the first one only. */
	regions[0] = first_only[0];
	for (size_t i = 1; i < SLOTS; i++)
		regions[i] = (struct memory_layout){
			.guest_address = (16 + i) * MIB,
			.size = 64 * KIB,
		};
}

static void test_a_table_may_have_32_regions(void **state)
{
	struct setup *setup = *state;

	for (int style = GUEST_LIKE_QEMU; style <= GUEST_LIKE_CLOUD_HYPERVISOR; style++) {
		struct memory_layout regions[SLOTS];

		make_regions(regions);
		setup_guest(setup, 0,
			    (struct guest_options){
				    .style = (enum guest_style)style,
				    .regions = regions,
				    .n_regions = SLOTS,
			    });
		transfer_all(setup, 0, 1000, 500 * KIB);
		setup_end_guest(setup, 0);
	}
}

/* The same memory as one region, and as two that meet in the middle of the buffers. */
static int start_with_guest_addresses(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	assert_non_null(*state);
	setup_start(*state, 1, "offer=gpa-addresses", NULL);
	return 0;
}

static void test_rings_may_be_at_addresses_of_the_guest(void **state)
{
	struct setup *setup = *state;
	struct memory_layout regions[SLOTS];

	make_regions(regions);
	for (int style = GUEST_LIKE_QEMU; style <= GUEST_LIKE_CLOUD_HYPERVISOR; style++) {
		struct guest *guest = setup_guest(setup, 0,
						  (struct guest_options){
							  .style = (enum guest_style)style,
							  .protocol_features = UINT64_MAX,
							  .has_guest_addresses = true,
							  .regions = regions,
							  .n_regions = SLOTS,
						  });

		assert_true(guest->vhost.protocol_features & BIT64(21));
		transfer_all(setup, 0, 1000, 300 * 1024);
		setup_end_guest(setup, 0);
	}
}

/* A front-end that took the bit for something else is told so at once. */
static void test_user_addresses_are_refused_where_the_guests_were_agreed_on(void **state)
{
	struct setup *setup = *state;
	struct guest guest;
	struct guest_options options = {.socket = setup->sockets[0],
					.protocol_features = UINT64_MAX,
					.timeout = SETUP_LIMIT};

	assert_int_equal(guest_start(&guest, &options), -EREMOTEIO);
	assert_true(daemon_log_has(&setup->daemon, "with GPA_ADDRESSES both are the same"));
}

static void test_the_table_is_replaced_under_traffic(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0,
					  (struct guest_options){
						  .style = GUEST_LIKE_CROSVM,
						  .regions = first_only,
						  .n_regions = 1,
					  });
	const struct vhost_region whole = guest->memory.regions[0];
	struct vhost_region halves[2] = {whole, whole};
	int fds[2] = {guest->memory.fds[0], guest->memory.fds[0]};
	struct transfer transfer;

	halves[0].size = halves[1].mmap_offset = guest->tx_address - whole.guest_address + 68 * KIB;
	halves[1].size = whole.size - halves[0].size;
	halves[1].guest_address += halves[0].size;
	halves[1].user_address += halves[0].size;
	transfer_start(&transfer, setup, 0, 1000, 3000 * KIB);
	for (size_t n = 100; n < 2900; n += 100) {
		bool is_whole = n / 100 % 2;

		transfer_run_to(&transfer, n * KIB);
		assert_int_equal(vhost_set_memory(&guest->vhost, is_whole ? &whole : halves, fds,
						  is_whole ? 1 : 2),
				 0);
	}
	transfer_finish(&transfer);
}

static void add_region(struct guest *guest, size_t i)
{
	struct memory_layout regions[SLOTS];
	const struct memory *memory = &guest->memory;

	make_regions(regions);
	assert_int_equal(memory_add(&guest->memory, &regions[i]), 0);
	assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_ADD_MEM_REG, &memory->regions[i],
					     memory->fds[i]),
			 0);
}

static void test_32_regions_are_added_and_removed_under_traffic(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(
		setup, 0, (struct guest_options){.regions = first_only, .n_regions = 1});
	struct memory *memory = &guest->memory;
	struct vhost_region another;
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 3000 * KIB);
	for (size_t i = 1; i < SLOTS; i++) {
		transfer_run_to(&transfer, i * 40 * KIB);
		add_region(guest, i);
	}
	another = memory->regions[1];
	another.guest_address += 100 * MIB;
	another.user_address += 100 * MIB;
	assert_int_equal(
		vhost_change_memory(&guest->vhost, VHOST_ADD_MEM_REG, &another, memory->fds[1]),
		VHOST_E_NACK);
	for (size_t i = 1; i < SLOTS; i++) {
		transfer_run_to(&transfer, (40 + i) * 40 * KIB);
		assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_REM_MEM_REG,
						     &memory->regions[i], -1),
				 0);
		assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_REM_MEM_REG,
						     &memory->regions[i], -1),
				 VHOST_E_NACK);
	}
	transfer_finish(&transfer);
}

/* A table that holds all of it, behind which single regions come and go. */
static void test_a_whole_table_and_single_regions_may_be_mixed(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0,
					  (struct guest_options){
						  .style = GUEST_LIKE_CLOUD_HYPERVISOR,
						  .regions = first_only,
						  .n_regions = 1,
					  });
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 300 * KIB);
	add_region(guest, 1);
	add_region(guest, 2);
	transfer_run_to(&transfer, 600 * KIB);
	assert_int_equal(
		vhost_set_memory(&guest->vhost, guest->memory.regions, guest->memory.fds, 3), 0);
	assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_REM_MEM_REG,
					     &guest->memory.regions[1], -1),
			 0);
	transfer_finish(&transfer);
}

/* A packet that lies in that region, with a buffer of the guest's as its name. */
static void send_from(struct guest_connection *connection, size_t region, const void *bytes,
		      uint32_t len)
{
	struct guest *guest = connection->guest;
	uint64_t address = guest->memory.regions[region].guest_address;
	struct packet packet = guest_packet(connection, PACKET_RW);
	struct ring_buffer buffer = {.guest_address = address, .len = PACKET_HEADER_LEN + len};
	uint32_t slot = guest->free_slots[--guest->n_free_slots];

	packet.len = len;
	memcpy(memory_at(&guest->memory, address), &packet, PACKET_HEADER_LEN);
	memcpy(memory_at(&guest->memory, address + PACKET_HEADER_LEN), bytes, len);
	assert_int_equal(ring_add(&guest->rings[GUEST_TX], &buffer, 1, 0, slot), 0);
	ring_submit(&guest->rings[GUEST_TX]);
	connection->tx_cnt += len;
}

static void test_an_added_region_is_used_and_a_removed_one_breaks_the_ring(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(
		setup, 0, (struct guest_options){.regions = first_only, .n_regions = 1});
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, 1000, &stream);

	add_region(guest, 1);
	send_from(connection, 1, "12345", 5);
	while (stream.n_received < 5)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_memory_equal(stream.received, "12345", 5);
	assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_REM_MEM_REG,
					     &guest->memory.regions[1], -1),
			 0);
	send_from(connection, 1, "67890", 5);
	assert_int_equal(wait_err(&guest->rings[GUEST_TX]), 0);
	assert_int_equal(daemon_wait_log(&setup->daemon, "address outside guest memory", LIMIT), 0);
	/* Its memory back, and started again: nothing is lost. */
	assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_ADD_MEM_REG,
					     &guest->memory.regions[1], guest->memory.fds[1]),
			 0);
	assert_int_equal(guest_stop(guest), 0);
	resume(guest);
	while (stream.n_received < 10)
		assert_true(guest_poll(guest, LIMIT) > 0);
	assert_memory_equal(stream.received, "1234567890", 10);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

/* Plugged, used, and unplugged again: each byte lay in a slot that came and went. */
static void test_bytes_in_slots_that_come_and_go_arrive_over_replacements(void **state)
{
	static uint8_t bytes[48 * KIB];
	struct setup *setup = *state;
	struct guest_connection *connection;
	struct host_stream stream;
	struct transfer transfer;
	struct guest *guest;
	size_t n_sent = 0;

	setup_start(setup, 1, NULL, TOOL_ARGUMENTS);
	guest = setup_guest(setup, 0,
			    (struct guest_options){.regions = first_only, .n_regions = 1});
	connection = setup_connect(setup, 0, 1000, &stream);
	transfer_start(&transfer, setup, 0, 2000, 6000 * KIB);
	for (size_t round = 0; round < 3 * SLOTS; round++) {
		size_t slot = 1 + round % (SLOTS - 1);
		struct vhost_region *region = &guest->memory.regions[slot];
		const uint32_t len = 1 + (uint32_t)(round * 7919 % sizeof(bytes));

		if (round < SLOTS - 1)
			add_region(guest, slot);
		else
			assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_ADD_MEM_REG,
							     region, guest->memory.fds[slot]),
					 0);
		pattern_fill(bytes, len, 5, n_sent);
		send_from(connection, slot, bytes, len);
		n_sent += len;
		/* Somebody may be doing it already. */
		if (round % 5 == 0 && !setup->replacer)
			assert_int_equal(replace_worker(setup, guest, setup_cid(0)), 0);
		while (stream.n_received < n_sent)
			transfer_step(&transfer, LIMIT);
		assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_REM_MEM_REG, region, -1),
				 0);
	}
	transfer_finish(&transfer);
	for (size_t at = 0; at < n_sent; at += sizeof(bytes)) {
		size_t len = n_sent - at < sizeof(bytes) ? n_sent - at : sizeof(bytes);

		pattern_fill(bytes, len, 5, at);
		assert_memory_equal(stream.received + at, bytes, len);
	}
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static int make_setup(void **state)
{
	*state = calloc(1, sizeof(struct setup));
	return *state ? 0 : -1;
}

static void test_rings_whose_memory_is_taken_break_and_work_again_when_started_anew(void **state)
{
	static const struct memory_layout layout = {.guest_address = 100 * MIB, .size = MIB};
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0,
					  (struct guest_options){
						  .style = GUEST_LIKE_CLOUD_HYPERVISOR,
						  .regions = first_only,
						  .n_regions = 1,
					  });
	struct vhost *vhost = &guest->vhost;
	struct transfer transfer;

	for (uint32_t i = 0; i < guest->n_rings; i++)
		assert_int_equal(
			vhost_set_ring_fd(vhost, VHOST_SET_VRING_ERR, i, guest->rings[i].err), 0);
	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 300 * KIB);
	assert_int_equal(memory_add(&guest->memory, &layout), 0);
	assert_int_equal(
		vhost_set_memory(vhost, &guest->memory.regions[1], &guest->memory.fds[1], 1), 0);
	for (uint32_t i = 0; i < guest->n_rings; i++)
		assert_int_equal(wait_err(&guest->rings[i]), 0);
	assert_int_equal(vhost_set_memory(vhost, guest->memory.regions, guest->memory.fds, 2), 0);
	assert_int_equal(guest_stop(guest), 0);
	resume(guest);
	transfer_finish(&transfer);
}

static void test_a_ring_outside_memory_does_not_start(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct vhost_ring_address address = ring_addresses(&guest->rings[0], 0);

	assert_int_equal(guest_stop(guest), 0);
	guest->vhost.ack_requests = ~UINT64_C(0);
	address.used = guest->memory.regions[0].user_address + guest->memory.regions[0].size;
	assert_int_equal(vhost_set_ring_address(&guest->vhost, &address), 0);
	assert_int_equal(
		vhost_set_ring_fd(&guest->vhost, VHOST_SET_VRING_KICK, 0, guest->rings[0].kick),
		VHOST_E_NACK);
	assert_int_equal(daemon_wait_log(&setup->daemon, "SET_VRING_KICK", LIMIT), 0);
	resume(guest);
	transfer_all(setup, 0, 1000, 100 * KIB);
}

/* ---- regions that are refused ---- */

static int add(struct vhost *vhost, const struct vhost_region *region, int fd)
{
	int result = vhost_change_memory(vhost, VHOST_ADD_MEM_REG, region, fd);
	int again = vhost_set_memory(vhost, region, &fd, 1);

	assert_int_equal(result, again);
	if (result == 0)
		assert_int_equal(vhost_set_memory(vhost, region, &fd, 0), 0);
	return result;
}

static void open_vhost(struct setup *setup, struct vhost *ret_vhost)
{
	assert_int_equal(vhost_connect(setup->sockets[0], LIMIT, ret_vhost), 0);
	assert_int_equal(vhost_set_u64(ret_vhost, VHOST_SET_PROTOCOL_FEATURES,
				       BIT64(VHOST_PROTOCOL_REPLY_ACK) |
					       BIT64(VHOST_PROTOCOL_CONFIGURE_MEM_SLOTS)),
			 0);
}

static void test_a_region_that_is_not_in_its_file_is_refused(void **state)
{
	static const struct {
		struct vhost_region region;
		int result;
	} cases[] = {
		{{.guest_address = MIB, .size = MIB, .user_address = MIB}, 0},
		{{.guest_address = MIB, .size = 0, .user_address = MIB}, VHOST_E_NACK},
		{{.guest_address = MIB, .size = MIB + 4096, .user_address = MIB}, VHOST_E_NACK},
		{{.guest_address = MIB, .size = MIB, .user_address = MIB, .mmap_offset = 4096},
		 VHOST_E_NACK},
		{{.guest_address = MIB, .size = 4096, .user_address = MIB, .mmap_offset = -4096ull},
		 VHOST_E_NACK},
		{{.guest_address = MIB, .size = -4096ull, .user_address = MIB, .mmap_offset = 8192},
		 VHOST_E_NACK},
		{{.guest_address = -4096ull, .size = MIB, .user_address = MIB}, VHOST_E_NACK},
		{{.guest_address = MIB, .size = MIB, .user_address = -4096ull}, VHOST_E_NACK},
	};
	int file = memfd_create("guest", MFD_CLOEXEC);
	struct vhost vhost;

	assert_int_equal(ftruncate(file, MIB), 0);
	open_vhost(*state, &vhost);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_int_equal(add(&vhost, &cases[i].region, file), cases[i].result);
	vhost_close(&vhost);
	close(file);
}

static void test_regions_that_overlap_are_refused_and_the_table_stays(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = setup_guest(setup, 0, (struct guest_options){0});
	struct vhost_region region = guest->memory.regions[0];
	struct transfer transfer;

	transfer_start(&transfer, setup, 0, 1000, 900 * KIB);
	transfer_run_to(&transfer, 300 * KIB);
	region.guest_address += region.size - 1;
	region.user_address += 2 * region.size;
	assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_ADD_MEM_REG, &region,
					     guest->memory.fds[0]),
			 VHOST_E_NACK);
	region = guest->memory.regions[0];
	region.guest_address += 2 * region.size;
	region.user_address -= region.size - 1;
	assert_int_equal(vhost_change_memory(&guest->vhost, VHOST_ADD_MEM_REG, &region,
					     guest->memory.fds[0]),
			 VHOST_E_NACK);
	transfer_finish(&transfer);
}

#define ONE_VM(test) cmocka_unit_test_setup_teardown(test, setup_start_one, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ONE_VM(test_buffers_across_borders_of_regions_carry_the_same_bytes),
		ONE_VM(test_a_table_may_have_32_regions),
		cmocka_unit_test_setup_teardown(test_rings_may_be_at_addresses_of_the_guest,
						start_with_guest_addresses, setup_end),
		cmocka_unit_test_setup_teardown(
			test_user_addresses_are_refused_where_the_guests_were_agreed_on,
			start_with_guest_addresses, setup_end),
		ONE_VM(test_the_table_is_replaced_under_traffic),
		ONE_VM(test_32_regions_are_added_and_removed_under_traffic),
		ONE_VM(test_a_whole_table_and_single_regions_may_be_mixed),
		ONE_VM(test_an_added_region_is_used_and_a_removed_one_breaks_the_ring),
		cmocka_unit_test_setup_teardown(
			test_bytes_in_slots_that_come_and_go_arrive_over_replacements, make_setup,
			setup_end),
		ONE_VM(test_rings_whose_memory_is_taken_break_and_work_again_when_started_anew),
		ONE_VM(test_a_ring_outside_memory_does_not_start),
		ONE_VM(test_a_region_that_is_not_in_its_file_is_refused),
		ONE_VM(test_regions_that_overlap_are_refused_and_the_table_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
