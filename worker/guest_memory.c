/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/guest_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static bool overlaps(uint64_t a, uint64_t b, uint64_t a_size, uint64_t b_size)
{
	return a < b ? b - a < a_size : a - b < b_size;
}

/* The front checked all this already; a worker that trusts nobody checks again. */
static int check_region(const struct guest_table *table, const struct guest_region *region)
{
	if (region->size == 0 ||
	    region->guest_address + (region->size - 1) < region->guest_address ||
	    region->user_address + (region->size - 1) < region->user_address)
		return -EINVAL;
	if (table->n_regions == GUEST_MEMORY_REGIONS_MAX)
		return -ENOSPC;
	for (size_t i = 0; i < table->n_regions; i++) {
		const struct guest_region *other = &table->regions[i];

		if (overlaps(region->guest_address, other->guest_address, region->size,
			     other->size) ||
		    overlaps(region->user_address, other->user_address, region->size, other->size))
			return -EEXIST;
	}
	return 0;
}

static void insert_region(struct guest_table *table, const struct guest_region *region)
{
	size_t at = table->n_regions;

	while (at > 0 && table->regions[at - 1].guest_address > region->guest_address)
		at--;
	memmove(&table->regions[at + 1], &table->regions[at],
		(table->n_regions - at) * sizeof(table->regions[0]));
	table->regions[at] = *region;
	table->n_regions++;
}

/*
 * Offset and length of a mapping must be multiples of the file's page size,
 * which is more than 4096 on hugetlbfs.
 */
int guest_memory_map(int fd, uint64_t len, uint64_t mmap_offset, uint64_t alignment,
		     struct guest_mapping *ret_mapping)
{
	struct guest_mapping mapping;
	uint64_t lead, whole;

	if (alignment < 4096 || (alignment & (alignment - 1)) || len == 0)
		return -EINVAL;
	lead = mmap_offset & (alignment - 1);
	if (__builtin_add_overflow(len, lead, &whole) ||
	    __builtin_add_overflow(whole, alignment - 1, &whole) || whole > INT64_MAX ||
	    mmap_offset > INT64_MAX)
		return -EINVAL;
	mapping.len = whole & ~(alignment - 1);
	mapping.place = mmap(NULL, mapping.len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
			     fd, (off_t)(mmap_offset - lead));
	if (mapping.place == MAP_FAILED)
		return -errno;
	mapping.start = (uint8_t *)mapping.place + lead;
	*ret_mapping = mapping;
	return 0;
}

int guest_memory_add(struct guest_memory *memory, const struct guest_region *region,
		     uint64_t mmap_offset, uint64_t alignment, int fd, bool is_staged)
{
	struct guest_table *table = is_staged ? &memory->staged : &memory->table;
	struct guest_region added = *region;
	struct guest_mapping mapping = {0};
	int r;

	r = check_region(table, region);
	if (r == 0)
		r = guest_memory_map(fd, region->size, mmap_offset, alignment, &mapping);
	close(fd);
	if (r < 0)
		return r;
	added.start = mapping.start;
	added.mapping = mapping.place;
	added.mapping_len = mapping.len;
	insert_region(table, &added);
	return 0;
}

int guest_memory_remove(struct guest_memory *memory, uint64_t guest_address, uint64_t size,
			uint64_t user_address)
{
	struct guest_table *table = &memory->table;

	for (size_t i = 0; i < table->n_regions; i++) {
		struct guest_region *region = &table->regions[i];

		if (region->guest_address != guest_address || region->size != size ||
		    region->user_address != user_address)
			continue;
		munmap(region->mapping, region->mapping_len);
		table->n_regions--;
		memmove(region, region + 1, (table->n_regions - i) * sizeof(*region));
		memory->last_hit = 0;
		return 0;
	}
	return -ENOENT;
}

static void unmap_table(struct guest_table *table)
{
	for (size_t i = 0; i < table->n_regions; i++)
		munmap(table->regions[i].mapping, table->regions[i].mapping_len);
	table->n_regions = 0;
}

void guest_memory_commit(struct guest_memory *memory)
{
	unmap_table(&memory->table);
	memory->table = memory->staged;
	memory->staged.n_regions = 0;
	memory->last_hit = 0;
}

void guest_memory_clear(struct guest_memory *memory)
{
	unmap_table(&memory->table);
	unmap_table(&memory->staged);
}

const struct guest_region *guest_memory_find(struct guest_memory *memory, uint64_t guest_address)
{
	const struct guest_table *table = &memory->table;
	size_t low = 0, high = table->n_regions;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const struct guest_region *region = &table->regions[middle];

		if (guest_address < region->guest_address) {
			high = middle;
		} else if (guest_address - region->guest_address >= region->size) {
			low = middle + 1;
		} else {
			memory->last_hit = middle;
			return region;
		}
	}
	return NULL;
}

void *guest_memory_at_user_address(const struct guest_memory *memory, uint64_t user_address,
				   uint64_t len)
{
	for (size_t i = 0; i < memory->table.n_regions; i++) {
		const struct guest_region *region = &memory->table.regions[i];
		uint64_t offset = user_address - region->user_address;

		if (offset < region->size && region->size - offset >= len)
			return region->start + offset;
	}
	return NULL;
}

bool guest_memory_address_of(const struct guest_memory *memory, const void *place,
			     uint64_t *ret_guest_address)
{
	for (size_t i = 0; i < memory->table.n_regions; i++) {
		const struct guest_region *region = &memory->table.regions[i];
		size_t offset = (size_t)((uintptr_t)place - (uintptr_t)region->start);

		if (offset < region->size) {
			*ret_guest_address = region->guest_address + offset;
			return true;
		}
	}
	return false;
}
