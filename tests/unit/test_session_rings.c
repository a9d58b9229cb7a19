/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/open_files.h"
#include "tests/unit/session_rig.h"

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
			rig_negotiate(0);
			assert_closed(rig_handle_state(with_state[j], indices[i], 1), "no ring");
			rig_start_over();
		}
		assert_closed(rig_handle_addr(indices[i]), "no ring");
		rig_start_over();
		if (indices[i] > 255)
			continue;
		for (size_t j = 0; j < 6; j++) {
			assert_closed(
				rig_handle_ring_fd(with_fd[j / 2], indices[i] | (j % 2 ? NOFD : 0)),
				"no ring");
			rig_start_over();
		}
	}
}

static void test_bits_beyond_index_and_nofd_are_refused(void **state)
{
	(void)state;
	rig_prepare_ring(0, 0);
	assert_closed(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0x200), "bits");
	assert_closed(rig_handle_ring_fd(VHOST_USER_SET_VRING_CALL, UINT64_C(1) << 63 | NOFD),
		      "bits");
}

static void test_a_ring_size_is_a_power_of_two(void **state)
{
	(void)state;
	for (uint32_t num = 1; num <= 32768; num *= 2)
		assert_done(rig_handle_state(VHOST_USER_SET_VRING_NUM, 2, num));
	assert_int_equal(rig.session.rings[2].num, 32768);
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_NUM, 2, 0), "size 0");
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_NUM, 2, 96), "size 96");
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_NUM, 2, 65536), "size 65536");
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_NUM, 2, UINT32_C(1) << 31), "size");
	assert_int_equal(rig.session.rings[2].num, 32768);
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

		assert_int_equal(rig_handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)),
				 cases[i].is_good ? 0 : SESSION_E_CLOSE);
		assert_int_equal(rig.session.rings[1].has_addresses, cases[i].is_good);
		rig_start_over();
	}
}

static void test_a_base_is_sixteen_bits(void **state)
{
	(void)state;
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_BASE, 0, 0xabcd1234));
	assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, 0, 0), 0);
	assert_reply_state(0, 0x1234);
	assert_calls("");
}

static void negotiate_packed(void)
{
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES,
				   VIRTIO_F_VERSION_1 | VIRTIO_F_RING_PACKED | BIT30));
	rig.calls[0] = '\0';
}

static void test_a_packed_ring_may_have_any_size(void **state)
{
	static const uint32_t sizes[] = {1, 3, 96, 32767, 32768};

	(void)state;
	negotiate_packed();
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		assert_done(rig_handle_state(VHOST_USER_SET_VRING_NUM, 2, sizes[i]));
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_NUM, 2, 0), "size 0");
	assert_closed(rig_handle_state(VHOST_USER_SET_VRING_NUM, 2, 32769), "from 1 to 32768");
	assert_int_equal(rig.session.rings[2].num, 32768);
}

static void test_a_size_is_looked_at_again_when_the_layout_is_known(void **state)
{
	(void)state;
	negotiate_packed();
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_NUM, 0, 96));
	assert_done(rig_handle_addr(0));
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1 | BIT30));
	assert_closed(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0), "no size");
}

static void test_the_event_areas_of_a_packed_ring_are_aligned(void **state)
{
	struct vhost_user_vring_addr addr = {.desc = 16, .used = 4};

	(void)state;
	negotiate_packed();
	for (addr.avail = 4; addr.avail < 9; addr.avail++)
		assert_int_equal(rig_handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr)),
				 addr.avail % 4 ? SESSION_E_CLOSE : 0);
}

static void test_a_packed_base_has_both_positions(void **state)
{
	(void)state;
	negotiate_packed();
	rig_start_ring(1, 0x80078009);
	assert_int_equal(rig.session.rings[1].base, 0x80078009);
	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, 1, 0), SESSION_E_PENDING);
	assert_int_equal(session_complete(&rig.session, 0, 0x00058003), 0);
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
		rig_prepare_ring(0, cases[i].base); /* of 128 */
		assert_int_equal(session_is_base(&rig.session, 0, cases[i].base), cases[i].is_good);
		if (cases[i].is_good)
			assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
		else
			assert_closed(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0),
				      "cannot start at");
		rig_start_over();
	}
}

static void test_the_layout_cannot_change_under_a_started_ring(void **state)
{
	const uint64_t split = VIRTIO_F_VERSION_1 | BIT30, packed = split | VIRTIO_F_RING_PACKED;

	(void)state;
	negotiate_packed();
	rig_start_ring(2, 0x80008000);
	assert_closed(rig_handle_u64(VHOST_USER_SET_FEATURES, split), "another layout");
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, packed | VHOST_F_LOG_ALL));
	assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, 2, 0), 0);
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, split));
	rig_start_ring(2, 0);
	assert_closed(rig_handle_u64(VHOST_USER_SET_FEATURES, packed), "another layout");
	assert_int_equal(rig.session.features, split);
}

static void test_a_ring_starts_at_set_vring_kick(void **state)
{
	(void)state;
	rig_prepare_ring(0, 0);
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
	assert_calls("started:0 ");
	assert_true(rig.session.rings[0].is_started);
	assert_true(rig.session.rings[0].fds[SESSION_KICK] >= 0);

	rig_prepare_ring(1, 0);
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 1 | NOFD));
	assert_calls("started:1 ");
	assert_true(rig.session.rings[1].is_started);
	assert_int_equal(rig.session.rings[1].fds[SESSION_KICK], -1);
}

static void test_a_ring_without_size_or_addresses_cannot_start(void **state)
{
	(void)state;
	assert_done(rig_handle_addr(0));
	assert_closed(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0), "no size or no addresses");
	rig_start_over();
	assert_done(rig_handle_state(VHOST_USER_SET_VRING_NUM, 0, 8));
	assert_closed(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0), "no size or no addresses");
	assert_int_equal(rig.session.rings[0].fds[SESSION_KICK], -1);
	assert_calls("");
}

static void test_a_second_kick_fd_replaces_the_first(void **state)
{
	size_t n_open;

	(void)state;
	rig_start_ring(0, 0);
	n_open = open_files_count();
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
	assert_calls("started:0 ");
	assert_int_equal(open_files_count(), n_open);
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0 | NOFD));
	assert_calls("started:0 ");
	assert_int_equal(open_files_count(), n_open - 1);
}

static void test_call_and_err_fds_are_kept_and_replaced(void **state)
{
	size_t n_open = open_files_count();

	(void)state;
	for (int i = 0; i < 2; i++) {
		assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_CALL, 2));
		assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_ERR, 2));
		assert_calls("call:2 err:2 ");
		assert_int_equal(open_files_count(), n_open + 2);
	}
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_CALL, 2 | NOFD));
	assert_int_equal(rig.session.rings[2].fds[SESSION_CALL], -1);
	assert_true(rig.session.rings[2].fds[SESSION_ERR] >= 0);
	assert_int_equal(open_files_count(), n_open + 1);
}

static void test_get_vring_base_stops_a_ring_and_keeps_its_call_fd(void **state)
{
	(void)state;
	rig_start_ring(1, 7);
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_CALL, 1));
	rig.calls[0] = '\0';

	rig.answer = SESSION_E_PENDING;
	assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, 1, 0), SESSION_E_PENDING);
	assert_calls("stopped:1 ");
	assert_int_equal(rig.session.reply_len, 0);
	assert_int_equal(session_complete(&rig.session, 0, 0xfffe), 0);
	assert_reply_state(1, 0xfffe);
	assert_int_equal(rig.session.rings[1].fds[SESSION_KICK], -1);
	assert_true(rig.session.rings[1].fds[SESSION_CALL] >= 0);

	rig.answer = 0;
	assert_int_equal(rig_handle_state(VHOST_USER_GET_VRING_BASE, 1, 0), 0);
	assert_reply_state(1, 0xfffe);
	assert_calls("");

	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 1));
	assert_calls("started:1 ");
	assert_int_equal(rig.session.rings[1].base, 0xfffe);
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
			struct session_ring *ring = &rig.session.rings[0];
			struct vhost_user_vring_addr addr = rig_addr_of(0);
			int status = -1;

			rig_negotiate(0);
			rig_prepare_ring(0, 3);
			if (i & 1)
				assert_done(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1));
			if (i & 2)
				assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
			rig.calls[0] = '\0';

			switch ((enum message)message) {
			case KICK:
				status = rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0);
				break;
			case KICK_NOFD:
				status = rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, NOFD);
				break;
			case GET_BASE:
				status = rig_handle_state(VHOST_USER_GET_VRING_BASE, 0, 0);
				assert_reply_state(0, 3);
				break;
			case SET_BASE:
				status = rig_handle_state(VHOST_USER_SET_VRING_BASE, 0, 3);
				break;
			case ENABLE:
			case DISABLE:
				status = rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 0,
							  message == ENABLE);
				break;
			case SAME_NUM:
				status = rig_handle_state(VHOST_USER_SET_VRING_NUM, 0, 128);
				break;
			case OTHER_NUM:
				status = rig_handle_state(VHOST_USER_SET_VRING_NUM, 0, 256);
				break;
			case OTHER_ADDR:
				addr.used += 4;
				/* fall through */
			case SAME_ADDR:
				addr.flags = VHOST_USER_VRING_F_LOG;
				status = rig_handle(VHOST_USER_SET_VRING_ADDR, &addr, sizeof(addr));
				break;
			case CALL:
				status = rig_handle_ring_fd(VHOST_USER_SET_VRING_CALL, 0);
				break;
			case N_MESSAGES:
				break;
			}
			rig_note_call("%s%s%s", status == SESSION_E_CLOSE ? "!" : "",
				      ring->is_started ? "S" : "", ring->is_enabled ? "E" : "");
			assert_true(status == 0 || status == SESSION_E_CLOSE);
			assert_calls(expected[i][message]);
			rig_start_over();
		}
	}
}

/* ---- in-band notifications ---- */

#define IN_BAND	       VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS
#define BACKEND_REQ    VHOST_USER_PROTOCOL_F_BACKEND_REQ
#define IN_BAND_OFFERS (SESSION_PROTOCOL_FEATURES | SESSION_PROTOCOL_FEATURES_IN_BAND)

static void begin_in_band(uint64_t protocol_features)
{
	session_end(&rig.session);
	session_init(&rig.session, CID, SESSION_FEATURES, IN_BAND_OFFERS, &rig_operations, NULL);
	assert_done(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, protocol_features));
}

static void test_in_band_notifications_need_a_channel_and_acks(void **state)
{
	static const uint64_t lacking[] = {IN_BAND, IN_BAND | ACK, IN_BAND | BACKEND_REQ};

	(void)state;
	for (size_t i = 0; i < sizeof(lacking) / sizeof(lacking[0]); i++) {
		begin_in_band(0);
		assert_closed(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, lacking[i]),
			      "BACKEND_REQ and REPLY_ACK");
		assert_int_equal(rig.session.protocol_features, 0);
	}
	begin_in_band(IN_BAND | BACKEND_REQ | ACK);
}

static void test_in_band_notifications_are_settled_before_a_ring_starts(void **state)
{
	(void)state;
	begin_in_band(IN_BAND | BACKEND_REQ | ACK);
	rig_start_ring(0, 0);
	assert_done(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, IN_BAND | BACKEND_REQ | ACK));
	assert_closed(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, ACK), "started");
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
			const struct session_ring *ring = &rig.session.rings[0];
			const char *before = cases[i].before;
			int status = -1;

			begin_in_band(cases[i].is_in_band ? IN_BAND | BACKEND_REQ | ACK : 0);
			rig.calls[0] = '\0';
			assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES,
						   VIRTIO_F_VERSION_1 |
							   (cases[i].has_bit30 ? BIT30 : 0)));
			rig_prepare_ring(0, 3);
			if (cases[i].has_bit30 && strchr(before, 'E'))
				assert_done(rig_handle_state(VHOST_USER_SET_VRING_ENABLE, 0, 1));
			if (strchr(before, 'f'))
				assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
			else if (strchr(before, 'S') && strchr(before, 'p'))
				assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, NOFD));
			else if (strchr(before, 'S'))
				assert_done(rig_handle_state(VHOST_USER_VRING_KICK, 0, 0));
			rig.calls[0] = '\0';

			switch ((enum message)message) {
			case KICK_FD:
				status = rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0);
				break;
			case KICK_NOFD:
				status = rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, NOFD);
				break;
			case KICK_IN_BAND:
				status = rig_handle_state(VHOST_USER_VRING_KICK, 0, 0);
				break;
			case GET_BASE:
				status = rig_handle_state(VHOST_USER_GET_VRING_BASE, 0, 0);
				assert_reply_state(0, 3);
				break;
			case N_MESSAGES:
				break;
			}
			rig_note_call("%s%s%s%s", status == SESSION_E_CLOSE ? "!" : "",
				      ring->is_started ? "S" : "", ring->is_enabled ? "E" : "",
				      ring->fds[SESSION_KICK] >= 0			  ? "f"
				      : session_is_in_band(&rig.session, 0, SESSION_KICK) ? "b"
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
	assert_done(rig_handle_u64(VHOST_USER_SET_PROTOCOL_FEATURES, SESSION_PROTOCOL_FEATURES));
	assert_done(rig_handle_u64(VHOST_USER_SET_FEATURES, VIRTIO_F_VERSION_1));
	assert_done(rig_handle(VHOST_USER_RESET_DEVICE, NULL, 0));
	assert_false(rig.session.rings[0].is_enabled);
	rig_prepare_ring(0, 0);
	assert_done(rig_handle_ring_fd(VHOST_USER_SET_VRING_KICK, 0));
	assert_calls("started:0 on:0 ");
	assert_true(rig.session.rings[0].is_enabled);
}

static void test_an_in_band_kick_has_to_name_a_ring_that_is_set_up(void **state)
{
	(void)state;
	begin_in_band(IN_BAND | BACKEND_REQ | ACK);
	assert_closed(rig_handle_state(VHOST_USER_VRING_KICK, 3, 0), "no ring 3");
	assert_closed(rig_handle_state(VHOST_USER_VRING_KICK, 0, 0), "no size or no addresses");
	rig_prepare_ring(0, 0);
	assert_closed(rig_handle_state(VHOST_USER_VRING_KICK, 0, 1), "reserved");
	assert_false(rig.session.rings[0].is_started);
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
		assert_true(session_is_in_band(&rig.session, 1, cases[i].which));
		assert_done(rig_handle_ring_fd(cases[i].request, 1));
		assert_false(session_is_in_band(&rig.session, 1, cases[i].which));
		assert_true(session_is_in_band(&rig.session, 0, cases[i].which));
		assert_done(rig_handle_ring_fd(cases[i].request, 0 | NOFD));
		assert_false(session_is_in_band(&rig.session, 0, cases[i].which));
		begin_in_band(BACKEND_REQ | ACK);
		assert_false(session_is_in_band(&rig.session, 1, cases[i].which));
	}
}

static void test_the_back_end_channel_is_a_unix_socket(void **state)
{
	int fds[2], others[] = {eventfd(0, EFD_CLOEXEC),
				socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};

	(void)state;
	begin_in_band(BACKEND_REQ);
	rig.calls[0] = '\0';
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		assert_true(others[i] >= 0);
		assert_closed(
			rig_handle_fds(VHOST_USER_SET_BACKEND_REQ_FD, 0, NULL, 0, &others[i], 1),
			"no unix socket");
	}
	assert_closed(rig_handle(VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0), "fds");
	for (int i = 0; i < 2; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		assert_done(rig_handle_fds(VHOST_USER_SET_BACKEND_REQ_FD, 0, NULL, 0, &fds[1], 1));
		assert_calls("channel ");
		close(fds[0]);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_set_up, rig_tear_down)
	const struct CMUnitTest tests[] = {
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
	};

	return cmocka_run_group_tests_name("session rings", tests, NULL, NULL);
}
