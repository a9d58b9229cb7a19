/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/frontend/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Far from what a guest or this process uses, and apart by more than MEMORY_SPAN. */
#define USER_ADDRESS_FIRST UINT64_C(0x510000000000)
#define USER_ADDRESS_STEP  (4 * MEMORY_SPAN)

int memory_init(struct memory *memory)
{
	void *window = mmap(NULL, MEMORY_SPAN, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (window == MAP_FAILED)
		return -errno;
	*memory = (struct memory){.window = window};
	return 0;
}

void memory_end(struct memory *memory)
{
	for (size_t i = 0; i < memory->n_regions; i++)
		close(memory->fds[i]);
	if (memory->window)
		munmap(memory->window, MEMORY_SPAN);
	*memory = (struct memory){0};
}

static bool is_free(const struct memory *memory, const struct memory_layout *layout)
{
	if (layout->size == 0 || layout->size > MEMORY_SPAN ||
	    layout->guest_address > MEMORY_SPAN - layout->size)
		return false;
	for (size_t i = 0; i < memory->n_regions; i++) {
		const struct vhost_region *region = &memory->regions[i];

		if (layout->guest_address < region->guest_address + region->size &&
		    region->guest_address < layout->guest_address + layout->size)
			return false;
	}
	return true;
}

static int make_file(const struct memory_layout *layout)
{
	int fd = memfd_create("guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int error;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)(layout->offset + layout->size)) == 0 &&
	    (layout->is_unsealed ||
	     fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0))
		return fd;
	error = -errno;
	close(fd);
	return error;
}

int memory_add(struct memory *memory, const struct memory_layout *layout)
{
	size_t i = memory->n_regions;
	int fd;

	if (i == MEMORY_REGIONS_MAX || !is_free(memory, layout))
		return -EINVAL;
	fd = make_file(layout);
	if (fd < 0)
		return fd;
	if (mmap(memory->window + layout->guest_address, layout->size, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED, fd, (off_t)layout->offset) == MAP_FAILED) {
		int error = -errno;

		close(fd);
		return error;
	}
	memory->fds[i] = fd;
	/* Guest address 0 stays unused: it is what "no room" looks like. */
	memory->n_used[i] = layout->guest_address == 0 ? 4096 : 0;
	memory->regions[i] = (struct vhost_region){
		.guest_address = layout->guest_address,
		.size = layout->size,
		.user_address = memory->has_guest_addresses
					? layout->guest_address
					: USER_ADDRESS_FIRST + i * USER_ADDRESS_STEP,
		.mmap_offset = layout->offset,
	};
	memory->n_regions++;
	return 0;
}

int memory_remove_last(struct memory *memory)
{
	const struct vhost_region *region = &memory->regions[memory->n_regions - 1];

	if (memory->n_used[memory->n_regions - 1] > 0)
		return -EBUSY;
	if (mmap(memory->window + region->guest_address, region->size, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	close(memory->fds[--memory->n_regions]);
	return 0;
}

uint64_t memory_allocate(struct memory *memory, uint64_t size, uint64_t alignment)
{
	for (size_t i = 0; i < memory->n_regions; i++) {
		const struct vhost_region *region = &memory->regions[i];
		uint64_t start = (memory->n_used[i] + alignment - 1) & ~(alignment - 1);

		if (start > region->size || size > region->size - start)
			continue;
		memory->n_used[i] = start + size;
		return region->guest_address + start;
	}
	return 0;
}

uint64_t memory_allocate_across(struct memory *memory, uint64_t size, uint64_t before)
{
	for (size_t i = 0; i < memory->n_regions; i++) {
		struct vhost_region *low = &memory->regions[i];

		for (size_t j = 0; j < memory->n_regions; j++) {
			const struct vhost_region *high = &memory->regions[j];

			if (high->guest_address != low->guest_address + low->size ||
			    memory->n_used[j] > 0 || size - before > high->size ||
			    before > low->size - memory->n_used[i])
				continue;
			memory->n_used[j] = size - before;
			/* The rest of the lower region is given up: it ends in this block. */
			memory->n_used[i] = low->size;
			return high->guest_address - before;
		}
	}
	return 0;
}

uint64_t memory_user_address(const struct memory *memory, uint64_t guest_address)
{
	for (size_t i = 0; i < memory->n_regions; i++) {
		const struct vhost_region *region = &memory->regions[i];

		if (guest_address >= region->guest_address &&
		    guest_address - region->guest_address < region->size)
			return region->user_address + (guest_address - region->guest_address);
	}
	return 0;
}
