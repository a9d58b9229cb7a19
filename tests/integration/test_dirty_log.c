/* SPDX-License-Identifier: Apache-2.0 */

/* Every page that the device writes is marked, and no other. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/integration/migration.h"

/* ---- the dirty log ---- */

#define MEMORY_START (UINT64_C(1) << 20)
#define MEMORY_SIZE  (UINT64_C(64) << 20)
#define MEMORY_PAGES ((MEMORY_START + MEMORY_SIZE) / PAGE)
/* One page more than the memory has: for a used ring that is logged elsewhere. */
#define LOG_LEN ((MEMORY_PAGES + 8) / 8)

struct log {
	uint8_t *bits;
	int fd, event;
	uint64_t size;
};

static struct log new_log(uint64_t size)
{
	struct log log = {
		.fd = memfd_create("log", MFD_CLOEXEC),
		.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
		.size = size,
	};

	assert_true(log.fd >= 0 && log.event >= 0);
	assert_int_equal(ftruncate(log.fd, (off_t)size), 0);
	log.bits = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, log.fd, 0);
	assert_ptr_not_equal(log.bits, MAP_FAILED);
	return log;
}

static void end_log(struct log *log)
{
	munmap(log->bits, log->size);
	close(log->fd);
	close(log->event);
}

static bool is_marked(const struct log *log, uint64_t page)
{
	return log->bits[page / 8] >> page % 8 & 1;
}

static size_t count_marked(const struct log *log)
{
	size_t n = 0;

	for (uint64_t page = 0; page < 8 * log->size; page++)
		n += is_marked(log, page);
	return n;
}

static void set_log_flag(struct guest *guest, uint32_t ring, bool is_logged, uint64_t log_address)
{
	struct vhost_ring_address address = ring_addresses(&guest->rings[ring], ring);

	address.flags = is_logged;
	address.log = log_address;
	assert_int_equal(vhost_set_ring_address(&guest->vhost, &address), 0);
}

static void set_log_features(struct guest *guest, bool is_on)
{
	uint64_t features = guest->vhost.features & ~BIT64(VIRTIO_LOG_ALL);

	assert_int_equal(vhost_set_u64(&guest->vhost, VHOST_SET_FEATURES,
				       features | (is_on ? BIT64(VIRTIO_LOG_ALL) : 0)),
			 0);
}

/* As QEMU does it on a device that runs: the log, the feature, the flag of each ring. */
static void start_logging(struct guest *guest, const struct log *log)
{
	assert_int_equal(vhost_set_log(&guest->vhost, log->size, 0, log->fd), 0);
	assert_int_equal(vhost_send(&guest->vhost, VHOST_SET_LOG_FD, NULL, 0, &log->event, 1), 0);
	set_log_features(guest, true);
	for (uint32_t i = 0; i < guest->n_rings; i++)
		set_log_flag(guest, i, true, guest->rings[i].used_address);
	/* Without acks: an answer says that all before it was done. */
	assert_int_equal(guest_enable(guest, true), 0);
}

static bool overlaps_page(uint64_t page, uint64_t address, uint64_t len)
{
	return page * PAGE < address + len && address < (page + 1) * PAGE;
}

static uint64_t used_len(const struct ring *ring)
{
	return ring->is_packed ? 4 : 6 + 8 * (uint64_t)ring->size;
}

/* What a device may write to; all but the rx buffers in pages of their own, or nearly. */
static bool is_for_device(const struct guest *guest, uint64_t page)
{
	bool is_any = overlaps_page(page, guest->rx_address,
				    (uint64_t)guest->rx_stride * guest->options.n_rx_buffers) ||
		      overlaps_page(page, guest->event_address, 4 * GUEST_EVENT_BUFFERS);

	for (size_t i = 0; i < guest->n_rings; i++)
		is_any |= overlaps_page(page, guest->rings[i].used_address,
					used_len(&guest->rings[i])) ||
			  (guest->rings[i].is_packed &&
			   overlaps_page(page, guest->rings[i].descriptors_address,
					 16 * (uint64_t)guest->rings[i].size));
	return is_any;
}

static void forget(const struct guest *guest, uint8_t *copy, uint64_t address, uint64_t len)
{
	memcpy(copy + (address - MEMORY_START), memory_at(&guest->memory, address), len);
}

/* Byte ranges that the driver writes itself are of no interest: they are its own. */
static void forget_drivers_bytes(const struct guest *guest, uint8_t *copy)
{
	for (size_t i = 0; i < guest->n_rings; i++) {
		const struct ring *ring = &guest->rings[i];

		forget(guest, copy, ring->avail_address, 6 + 2 * (uint64_t)ring->size);
		/* In a packed ring those that were used last are the device's. */
		for (uint16_t k = 0; k < ring->size; k++)
			if (!ring->is_packed || !ring_is_used_descriptor(ring, k))
				forget(guest, copy, ring->descriptors_address + 16 * (uint64_t)k,
				       16);
	}
	memcpy(copy + (guest->tx_address - MEMORY_START),
	       memory_at(&guest->memory, guest->tx_address),
	       guest->event_address - guest->tx_address);
}

/* Every page that differs from the copy is marked; what is marked is the device's. */
static void assert_log_complete(const struct guest *guest, const struct log *log, uint8_t *copy)
{
	size_t n_changed = 0;

	forget_drivers_bytes(guest, copy);
	for (uint64_t page = MEMORY_START / PAGE; page < MEMORY_PAGES; page++) {
		const uint8_t *now = memory_at(&guest->memory, page * PAGE);
		bool is_changed = memcmp(now, copy + (page * PAGE - MEMORY_START), PAGE) != 0;

		n_changed += is_changed;
		if (is_changed && !is_marked(log, page))
			fail_msg("page 0x%lx was written and not marked", (unsigned long)page);
		if (is_marked(log, page) && !is_for_device(guest, page))
			fail_msg("page 0x%lx is marked and was not written", (unsigned long)page);
	}
	assert_true(n_changed >= 3);
}

static uint8_t *copy_memory(const struct guest *guest)
{
	uint8_t *copy = malloc(MEMORY_SIZE);

	assert_non_null(copy);
	memcpy(copy, memory_at(&guest->memory, MEMORY_START), MEMORY_SIZE);
	return copy;
}

static struct guest *start_logged(struct setup *setup, uint64_t features,
				  struct guest_layout layout, uint32_t rx_buffer_size)
{
	struct guest *guest = setup_guest(
		setup, 0,
		(struct guest_options){
			.style = GUEST_LIKE_CROSVM,
			.protocol_features = RESTORABLE,
			.features = BIT64(VIRTIO_VERSION_1) | features,
			/* used index, its elements and avail_event in pages of their own */
			.queue_size = 1024,
			.rx_buffer_size = rx_buffer_size,
			.n_rx_buffers = 128,
			.rx_layout = layout,
			.is_prefilled = true,
			.holds_events = true,
		});

	/* What the device writes once at the start is not what is looked for. */
	setup_settle(setup);
	return guest;
}

/* More packets than used elements lie in one page, and long ones. */
static void move_small_packets(struct setup *setup)
{
	struct host_stream stream;
	struct guest_connection *connection = setup_connect(setup, 0, PORT, &stream);

	connection->packet_size = 20;
	for (size_t i = 0; i < 4; i++)
		migration_exchange(connection, &stream, 20000);
	assert_int_equal(guest_finish(connection, LIMIT), 0);
	setup_end_stream(setup, 0, &stream);
}

static void test_every_page_that_is_written_is_marked(void **state)
{
	static const struct guest_layout layouts[] = {{.n_cuts = 0},
						      {.cuts = {20, 44}, .n_cuts = 2}};
	struct setup *setup = *state;

	for (size_t i = 0; i < 8; i++) {
		uint64_t features = (i & 1 ? BIT64(VIRTIO_EVENT_IDX) : 0) |
				    (i & 2 ? BIT64(VIRTIO_INDIRECT) : 0);
		struct guest_layout layout = layouts[i / 4];
		struct log log = new_log(LOG_LEN);
		struct guest *guest;
		uint64_t count;
		uint8_t *copy;

		/* An indirect table would be the driver's, in the middle of the device's. */
		guest = start_logged(setup, features, layout, i & 1 ? 4096 : 65580);
		copy = copy_memory(guest);
		start_logging(guest, &log);
		move_small_packets(setup);
		program_assert_serves(setup, guest);
		assert_int_equal(guest_stop(guest), 0);
		assert_log_complete(guest, &log, copy);
		assert_int_equal(read(log.event, &count, sizeof(count)), sizeof(count));
		free(copy);
		setup_end_guest(setup, 0);
		end_log(&log);
	}
}

static void test_bits_that_were_cleared_are_set_again(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);

	start_logging(guest, &log);
	for (size_t i = 0; i < 4; i++) {
		uint8_t *copy = copy_memory(guest);

		memset(log.bits, 0, log.size);
		migration_assert_connects(setup, 0);
		/* At rest, nothing is written behind the back of a front-end. */
		assert_int_equal(guest_poll_for(guest, QUIET), 0);
		assert_log_complete(guest, &log, copy);
		free(copy);
	}
	assert_int_equal(guest_stop(guest), 0);
	memset(log.bits, 0, log.size);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(count_marked(&log), 0);
	end_log(&log);
}

static void test_nothing_is_marked_while_logging_is_off(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);
	uint64_t count;

	start_logging(guest, &log);
	set_log_features(guest, false);
	assert_int_equal(guest_enable(guest, true), 0);
	memset(log.bits, 0, log.size);
	while (read(log.event, &count, sizeof(count)) > 0)
		;
	migration_assert_connects(setup, 0);
	program_assert_serves(setup, guest);
	assert_int_equal(guest_poll_for(guest, QUIET), 0);
	assert_int_equal(count_marked(&log), 0);
	assert_int_equal(read(log.event, &count, sizeof(count)), -1);
	set_log_features(guest, true);
	migration_assert_connects(setup, 0);
	assert_true(count_marked(&log) > 0);
	end_log(&log);
}

static void test_a_used_ring_is_logged_where_the_front_end_wants_it(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);

	start_logging(guest, &log);
	/* Ring 1 at a page that is no memory, ring 0 not at all. */
	set_log_flag(guest, GUEST_TX, true, MEMORY_START + MEMORY_SIZE);
	set_log_flag(guest, GUEST_RX, false, guest->rings[GUEST_RX].used_address);
	assert_int_equal(guest_enable(guest, true), 0);
	memset(log.bits, 0, log.size);
	migration_assert_connects(setup, 0);
	assert_true(is_marked(&log, MEMORY_PAGES));
	assert_false(is_marked(&log, guest->rings[GUEST_RX].used_address / PAGE));
	assert_false(is_marked(&log, guest->rings[GUEST_TX].used_address / PAGE));
	assert_true(is_marked(&log, guest->rx_address / PAGE));
	/* Descriptors are where they are. */
	assert_false(is_marked(&log, guest->rings[GUEST_RX].descriptors_address / PAGE));
	assert_int_equal(is_marked(&log, guest->rings[GUEST_TX].descriptors_address / PAGE),
			 guest->rings[GUEST_TX].is_packed);
	/* An address far beyond any log. */
	set_log_flag(guest, GUEST_RX, true, UINT64_MAX - 7);
	set_log_flag(guest, GUEST_TX, true, UINT64_MAX);
	migration_assert_connects(setup, 0);
	end_log(&log);
}

static void test_a_log_may_be_replaced_while_it_is_in_use(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);

	start_logging(guest, &log);
	for (size_t i = 0; i < 3; i++) {
		struct log next = new_log(LOG_LEN + i);
		uint8_t *copy;

		assert_int_equal(vhost_set_log(&guest->vhost, next.size, 0, next.fd), 0);
		memset(log.bits, 0, log.size);
		copy = copy_memory(guest);
		migration_assert_connects(setup, 0);
		assert_log_complete(guest, &next, copy);
		assert_int_equal(count_marked(&log), 0);
		free(copy);
		end_log(&log);
		log = next;
	}
	end_log(&log);
}

static void test_a_log_that_is_too_small_is_not_left(void **state)
{
	static const struct {
		uint64_t size, offset;
	} cases[] = {
		{1, 0},
		{1, PAGE - 1},
		{7, 24},
		/* The first rx buffers still fit, and the rest does not. */
		{MEMORY_START / PAGE / 8 + 8, PAGE - 13},
	};
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct log log = new_log(4 * PAGE);

		assert_int_equal(
			vhost_set_log(&guest->vhost, cases[i].size, cases[i].offset, log.fd), 0);
		start_logging(guest, &log);
		assert_int_equal(
			vhost_set_log(&guest->vhost, cases[i].size, cases[i].offset, log.fd), 0);
		memset(log.bits, 0, log.size);
		migration_assert_connects(setup, 0);
		program_assert_serves(setup, guest);
		for (uint64_t k = 0; k < log.size; k++)
			if (k < cases[i].offset || k >= cases[i].offset + cases[i].size)
				assert_int_equal(log.bits[k], 0);
		if (i == 3)
			assert_true(count_marked(&log) > 0);
		end_log(&log);
	}
}

static void test_the_event_buffer_is_logged(void **state)
{
	struct setup *setup = *state;
	struct guest *guest = migration_start_guest(setup);
	struct log log = new_log(LOG_LEN);
	size_t len = migration_snapshot(guest);
	uint8_t *copy;

	/* So that the event, a zero, is a change. */
	memset(memory_at(&guest->memory, guest->event_address), 0xee, 4 * GUEST_EVENT_BUFFERS);
	guest->options.features |= BIT64(VIRTIO_LOG_ALL);
	migration_restore(setup, guest, migration_state, len);
	assert_int_equal(vhost_set_log(&guest->vhost, log.size, 0, log.fd), 0);
	copy = copy_memory(guest);
	migration_resume(guest);
	migration_wait_reset(guest);
	assert_memory_not_equal(memory_at(&guest->memory, guest->event_address),
				copy + (guest->event_address - MEMORY_START),
				4 * GUEST_EVENT_BUFFERS);
	assert_true(is_marked(&log, guest->event_address / PAGE));
	free(copy);
	end_log(&log);
}

static void test_a_successor_of_a_dead_worker_goes_on_logging(void **state)
{
	struct setup *setup = *state;
	struct guest *guest =
		start_logged(setup, BIT64(VIRTIO_EVENT_IDX), (struct guest_layout){0}, 4096);
	struct log log = new_log(LOG_LEN);
	uint8_t *copy;

	start_logging(guest, &log);
	copy = copy_memory(guest);
	assert_int_equal(daemon_kill(setup_worker(setup, 0), LIMIT), 0);
	migration_assert_connects(setup, 0);
	assert_log_complete(guest, &log, copy);
	free(copy);
	end_log(&log);
}

#define ONE(f)	  cmocka_unit_test_setup_teardown(f, setup_start_one, migration_end)
#define KILLED(f) cmocka_unit_test_setup_teardown(f, setup_start_one, setup_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ONE(test_every_page_that_is_written_is_marked),
		ONE(test_bits_that_were_cleared_are_set_again),
		ONE(test_nothing_is_marked_while_logging_is_off),
		ONE(test_a_used_ring_is_logged_where_the_front_end_wants_it),
		ONE(test_a_log_may_be_replaced_while_it_is_in_use),
		ONE(test_a_log_that_is_too_small_is_not_left),
		ONE(test_the_event_buffer_is_logged),
		KILLED(test_a_successor_of_a_dead_worker_goes_on_logging),
	};

	return cmocka_run_group_tests_name("dirty_log", tests, NULL, NULL);
}
