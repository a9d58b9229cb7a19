/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/sequence.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/frontend/guest_internal.h"

#define TEXT_MAX  65536
#define WORDS_MAX 4
#define PAGE	  4096

/* Above what guests have; room for a region that comes and goes. */
#define PLUGGED_ADDRESS (UINT64_C(1) << 32)
#define PLUGGED_SIZE	(UINT64_C(2) << 20)

struct step {
	char *words[WORDS_MAX];
	size_t n_words;
};

struct player {
	struct sequence *sequence;
	struct guest *guest;
	const char *socket;
	int (*turn)(void *context, const char *name);
	void *context;
};

static bool says(const struct step *step, size_t at, const char *word)
{
	return at < step->n_words && strcmp(step->words[at], word) == 0;
}

/* UINT32_MAX: no number. */
static uint32_t number(const struct step *step, size_t at)
{
	char *end;
	unsigned long value;

	if (at >= step->n_words)
		return UINT32_MAX;
	value = strtoul(step->words[at], &end, 10);
	return *end == '\0' && end != step->words[at] ? (uint32_t)value : UINT32_MAX;
}

/* ---- the file ---- */

static int read_text(const char *path, char **ret)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *text = calloc(1, TEXT_MAX + 1);
	ssize_t n = fd >= 0 && text ? read(fd, text, TEXT_MAX) : -1;

	if (fd >= 0)
		close(fd);
	if (n <= 0) {
		free(text);
		return -ENOENT;
	}
	*ret = text;
	return 0;
}

static int read_style(const char *text, enum guest_style *ret)
{
	static const struct {
		const char *line;
		enum guest_style style;
	} styles[] = {
		{"\nstyle qemu\n", GUEST_LIKE_QEMU},
		{"\nstyle crosvm\n", GUEST_LIKE_CROSVM},
		{"\nstyle cloud-hypervisor\n", GUEST_LIKE_CLOUD_HYPERVISOR},
	};

	for (size_t i = 0; i < sizeof(styles) / sizeof(styles[0]); i++) {
		if (!strstr(text, styles[i].line))
			continue;
		*ret = styles[i].style;
		return 0;
	}
	return -EINVAL;
}

int sequence_open(const char *path, struct sequence *ret)
{
	int error;

	memset(ret, 0, sizeof(*ret));
	snprintf(ret->where, sizeof(ret->where), "%s", path);
	error = read_text(path, &ret->text);
	return error ? error : read_style(ret->text, &ret->style);
}

static void drop_log(struct sequence *sequence)
{
	if (sequence->log)
		munmap(sequence->log, sequence->log_len);
	sequence->log = NULL;
}

void sequence_close(struct sequence *sequence)
{
	drop_log(sequence);
	free(sequence->text);
	sequence->text = NULL;
}

/* ---- steps ---- */

static int on_style(struct player *player, const struct step *step)
{
	(void)player;
	return step->n_words == 2 ? 0 : -EINVAL;
}

static int on_connect(struct player *player, const struct step *step)
{
	(void)step;
	return guest_dial(player->guest, player->socket);
}

static int on_close(struct player *player, const struct step *step)
{
	(void)step;
	guest_detach(player->guest);
	return 0;
}

static int on_owner(struct player *player, const struct step *step)
{
	(void)step;
	return vhost_order(&player->guest->vhost, VHOST_SET_OWNER);
}

static int on_reset_device(struct player *player, const struct step *step)
{
	(void)step;
	return vhost_order(&player->guest->vhost, VHOST_RESET_DEVICE);
}

static int on_get(struct player *player, const struct step *step)
{
	static const struct {
		const char *name;
		uint32_t request;
	} questions[] = {
		{"features", VHOST_GET_FEATURES},
		{"protocol-features", VHOST_GET_PROTOCOL_FEATURES},
		{"queue-num", VHOST_GET_QUEUE_NUM},
		{"mem-slots", VHOST_GET_MAX_MEM_SLOTS},
	};
	uint64_t value;

	for (size_t i = 0; i < sizeof(questions) / sizeof(questions[0]); i++)
		if (says(step, 1, questions[i].name))
			return vhost_get_u64(&player->guest->vhost, questions[i].request, &value);
	return -EINVAL;
}

static int set_features(struct guest *guest, bool is_logged)
{
	struct vhost *vhost = &guest->vhost;

	return is_logged ? vhost_set_u64(vhost, VHOST_SET_FEATURES,
					 vhost->features | BIT64(VIRTIO_LOG_ALL))
			 : guest_set_features(guest, true);
}

static int on_set(struct player *player, const struct step *step)
{
	struct vhost *vhost = &player->guest->vhost;

	if (says(step, 1, "protocol-features"))
		return vhost_set_u64(vhost, VHOST_SET_PROTOCOL_FEATURES,
				     vhost->offered_protocol_features &
					     player->guest->options.protocol_features);
	if (!says(step, 1, "features"))
		return -EINVAL;
	return set_features(player->guest, says(step, 2, "logged"));
}

static int on_config(struct player *player, const struct step *step)
{
	uint32_t offset = number(step, 1), size = number(step, 2);
	uint32_t flags = player->sequence->style == GUEST_LIKE_QEMU ? 0 : 1; /* as they say */
	uint8_t bytes[256];

	if (size > sizeof(bytes))
		return -EINVAL;
	return vhost_get_config(&player->guest->vhost, offset, size, flags, bytes);
}

static int plug_memory(struct guest *guest)
{
	const struct memory_layout layout = {.guest_address = PLUGGED_ADDRESS,
					     .size = PLUGGED_SIZE};
	struct memory *memory = &guest->memory;
	int error = memory_add(memory, &layout);

	if (error)
		return error;
	return vhost_change_memory(&guest->vhost, VHOST_ADD_MEM_REG,
				   &memory->regions[memory->n_regions - 1],
				   memory->fds[memory->n_regions - 1]);
}

static int unplug_memory(struct guest *guest)
{
	struct memory *memory = &guest->memory;
	int error;

	if (memory->n_regions < 2)
		return -EINVAL;
	error = vhost_change_memory(&guest->vhost, VHOST_REM_MEM_REG,
				    &memory->regions[memory->n_regions - 1], -1);
	return error ? error : memory_remove_last(memory);
}

static int on_memory(struct player *player, const struct step *step)
{
	struct guest *guest = player->guest;
	const struct memory *memory = &guest->memory;

	if (says(step, 1, "table"))
		return vhost_set_memory(&guest->vhost, memory->regions, memory->fds,
					memory->n_regions);
	if (says(step, 1, "slots"))
		return guest_tell_memory(guest);
	if (says(step, 1, "plug"))
		return plug_memory(guest);
	return says(step, 1, "unplug") ? unplug_memory(guest) : -EINVAL;
}

/* As long as the memory is high. */
static size_t log_len(const struct memory *memory)
{
	uint64_t end = 0;

	for (size_t i = 0; i < memory->n_regions; i++) {
		const struct vhost_region *region = &memory->regions[i];

		if (end < region->guest_address + region->size)
			end = region->guest_address + region->size;
	}
	return (size_t)(end / PAGE / 8 + 1);
}

static int on_log(struct player *player, const struct step *step)
{
	struct sequence *sequence = player->sequence;
	int fd = memfd_create("log", MFD_CLOEXEC);
	int error;

	(void)step;
	drop_log(sequence);
	sequence->log_len = log_len(&player->guest->memory);
	if (fd < 0 || ftruncate(fd, (off_t)sequence->log_len) < 0)
		return -errno;
	sequence->log = mmap(NULL, sequence->log_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (sequence->log == MAP_FAILED) {
		sequence->log = NULL;
		close(fd);
		return -ENOMEM;
	}
	error = vhost_set_log(&player->guest->vhost, sequence->log_len, 0, fd);
	close(fd);
	return error;
}

static int ring_address(struct guest *guest, uint32_t index, bool is_logged)
{
	struct vhost_ring_address address = ring_addresses(&guest->rings[index], index);

	address.flags = is_logged;
	address.log = is_logged ? guest->rings[index].used_address : 0;
	return vhost_set_ring_address(&guest->vhost, &address);
}

static int ring_base(struct guest *guest, uint32_t index, bool is_available)
{
	const struct ring *ring = &guest->rings[index];
	uint32_t base = guest->has_base ? guest->base[index] : ring_first_base(ring);

	if (guest->has_base && ring_used_idx(ring) != guest->stopped_idx[index])
		guest_violate(guest, "ring %u was used while it was stopped", index);
	return vhost_set_ring(&guest->vhost, VHOST_SET_VRING_BASE, index,
			      is_available ? ring_last_base(ring) : base);
}

static int ring_fd(struct guest *guest, uint32_t index, const struct step *step)
{
	const struct ring *ring = &guest->rings[index];
	struct vhost *vhost = &guest->vhost;

	if (says(step, 2, "kick"))
		return vhost_set_ring_fd(vhost, VHOST_SET_VRING_KICK, index, ring->kick);
	if (says(step, 2, "err"))
		return vhost_set_ring_fd(vhost, VHOST_SET_VRING_ERR, index, ring->err);
	if (!says(step, 2, "call"))
		return -EINVAL;
	return vhost_set_ring_fd(vhost, VHOST_SET_VRING_CALL, index,
				 says(step, 3, "masked") ? guest->masked_call[index] : ring->call);
}

static int on_ring(struct player *player, const struct step *step)
{
	struct guest *guest = player->guest;
	uint32_t index = number(step, 1);

	if (index >= guest->n_rings)
		return -EINVAL;
	if (says(step, 2, "num"))
		return vhost_set_ring(&guest->vhost, VHOST_SET_VRING_NUM, index,
				      guest->rings[index].size);
	if (says(step, 2, "addr"))
		return ring_address(guest, index, says(step, 3, "logged"));
	if (says(step, 2, "base"))
		return ring_base(guest, index, says(step, 3, "available"));
	if (says(step, 2, "enable") || says(step, 2, "disable"))
		return vhost_set_ring(&guest->vhost, VHOST_SET_VRING_ENABLE, index,
				      says(step, 2, "enable"));
	return says(step, 2, "stop") ? guest_stop_ring(guest, index) : ring_fd(guest, index, step);
}

static int on_doorbell(struct player *player, const struct step *step)
{
	uint32_t index = number(step, 1);

	if (index >= player->guest->n_rings)
		return -EINVAL;
	ring_kick(&player->guest->rings[index]);
	return 0;
}

static int on_save(struct player *player, const struct step *step)
{
	struct sequence *sequence = player->sequence;

	player->guest->vhost.uses_state_sockets = says(step, 1, "socket");
	return vhost_save(&player->guest->vhost, sequence->state, sizeof(sequence->state),
			  &sequence->state_len);
}

static int on_load(struct player *player, const struct step *step)
{
	const struct sequence *sequence = player->sequence;

	player->guest->vhost.uses_state_sockets = says(step, 1, "socket");
	return vhost_load(&player->guest->vhost, sequence->state, sequence->state_len);
}

static int on_driver(struct player *player, const struct step *step)
{
	struct guest *guest = player->guest;

	if (says(step, 1, "runs")) {
		guest->is_started = true;
		guest_packets_fill(guest);
	} else if (says(step, 1, "halts")) {
		guest->is_started = false;
	} else if (says(step, 1, "resets")) {
		guest_forget_driver(guest);
	} else {
		return -EINVAL;
	}
	return 0;
}

static int on_do(struct player *player, const struct step *step)
{
	return step->n_words == 2 ? player->turn(player->context, step->words[1]) : -EINVAL;
}

static int take(struct player *player, const struct step *step)
{
	static const struct {
		const char *word;
		int (*take)(struct player *player, const struct step *step);
	} words[] = {
		{"style", on_style},   {"connect", on_connect}, {"close", on_close},
		{"owner", on_owner},   {"get", on_get},		{"reset-device", on_reset_device},
		{"set", on_set},       {"config", on_config},	{"log", on_log},
		{"memory", on_memory}, {"ring", on_ring},	{"doorbell", on_doorbell},
		{"save", on_save},     {"load", on_load},	{"driver", on_driver},
		{"do", on_do},
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (says(step, 0, words[i].word))
			return words[i].take(player, step);
	return -EINVAL;
}

/* The words of a line, which is cut where it stands. false: there are too many. */
static bool split(char *line, struct step *ret)
{
	char *rest = NULL;

	*ret = (struct step){.n_words = 0};
	line[strcspn(line, "#")] = '\0';
	for (char *word = strtok_r(line, " \t", &rest); word; word = strtok_r(NULL, " \t", &rest)) {
		if (ret->n_words == WORDS_MAX)
			return false;
		ret->words[ret->n_words++] = word;
	}
	return true;
}

int sequence_play(struct sequence *sequence, struct guest *guest, const char *socket,
		  int (*turn)(void *context, const char *name), void *context)
{
	struct player player = {sequence, guest, socket, turn, context};
	char *text = strdup(sequence->text), *rest = text, *line;
	unsigned int n_line = 0;
	int error = text ? 0 : -ENOMEM;

	while (!error && (line = strsep(&rest, "\n"))) {
		struct step step;

		snprintf(sequence->where, sizeof(sequence->where), "line %u: %s", ++n_line, line);
		if (!split(line, &step))
			error = -EINVAL;
		if (error || step.n_words == 0)
			continue;
		if (sequence->before)
			sequence->before(context);
		error = take(&player, &step);
	}
	free(text);
	return error;
}
