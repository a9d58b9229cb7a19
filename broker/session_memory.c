/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/session.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "broker/session_internal.h"

/* Huge pages go up to 1 GiB; a file system may call anything its block size. */
#define FILE_ALIGNMENT_MIN UINT64_C(4096)
#define FILE_ALIGNMENT_MAX (UINT64_C(1) << 30)

static int call_region(struct session *session,
		       int (*operation)(void *context, const struct session_region *region),
		       const struct session_region *region)
{
	return operation ? operation(session->context, region) : 0;
}

static bool overlaps(uint64_t start, uint64_t size, uint64_t other_start, uint64_t other_size)
{
	/* No end overflows: read_region() refused those. */
	return start < other_start + other_size && other_start < start + size;
}

uint64_t session_file_alignment(uint64_t block_size)
{
	uint64_t alignment = FILE_ALIGNMENT_MIN;

	while (alignment < FILE_ALIGNMENT_MAX && alignment * 2 <= block_size)
		alignment *= 2;
	return alignment;
}

/* Check one region and its fd, which stays the caller's. */
static int read_region(struct session *session, const struct vhost_user_region *wire, int fd,
		       struct session_region *ret_region)
{
	uint64_t end, file_end;
	struct statx stat;
	int seals;

	if (wire->size == 0)
		return session_refuse(session, "region at 0x%" PRIx64 " is empty",
				      wire->guest_address);
	if (__builtin_add_overflow(wire->guest_address, wire->size, &end) ||
	    __builtin_add_overflow(wire->user_address, wire->size, &end) ||
	    __builtin_add_overflow(wire->mmap_offset, wire->size, &file_end))
		return session_refuse(session,
				      "region at 0x%" PRIx64 " of 0x%" PRIx64 " bytes wraps",
				      wire->guest_address, wire->size);
	/* "GPA_ADDRESSES": with it the one address repeats the other, and rings use it. */
	if (session->protocol_features & VHOST_USER_PROTOCOL_F_GPA_ADDRESSES &&
	    wire->user_address != wire->guest_address)
		return session_refuse(session,
				      "region at 0x%" PRIx64 " has user address 0x%" PRIx64
				      ", with GPA_ADDRESSES both are the same",
				      wire->guest_address, wire->user_address);
	/* First of all: who answers to this is in RAM, and no file system has to be asked. */
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return session_refuse(session,
				      "region at 0x%" PRIx64 " is not backed by a file in RAM "
				      "(memfd, tmpfs, hugetlbfs)",
				      wire->guest_address);
	if (session_stat_fd(fd, &stat) < 0 || !S_ISREG(stat.stx_mode))
		return session_refuse(session, "region at 0x%" PRIx64 " is not backed by a file",
				      wire->guest_address);
	if (file_end > stat.stx_size)
		return session_refuse(session,
				      "region at 0x%" PRIx64 " ends at 0x%" PRIx64
				      " of a file of 0x%" PRIx64 " bytes",
				      wire->guest_address, file_end, (uint64_t)stat.stx_size);

	*ret_region = (struct session_region){
		.guest_address = wire->guest_address,
		.size = wire->size,
		.user_address = wire->user_address,
		.mmap_offset = wire->mmap_offset,
		.alignment = session_file_alignment(stat.stx_blksize),
		.is_sealed = seals & F_SEAL_SHRINK,
		.fd = fd,
	};
	return 0;
}

/* Keep the table in the order of guest addresses. *ret_index: where it went. */
static int insert_region(struct session *session, struct session_region *table, size_t *n_table,
			 const struct session_region *region, size_t *ret_index)
{
	size_t index = 0;

	if (*n_table == SESSION_REGIONS_MAX)
		return session_refuse(session, "more than %d regions", SESSION_REGIONS_MAX);
	for (size_t i = 0; i < *n_table; i++) {
		if (overlaps(table[i].guest_address, table[i].size, region->guest_address,
			     region->size) ||
		    overlaps(table[i].user_address, table[i].size, region->user_address,
			     region->size))
			return session_refuse(session,
					      "regions at 0x%" PRIx64 " and 0x%" PRIx64 " overlap",
					      table[i].guest_address, region->guest_address);
		if (table[i].guest_address < region->guest_address)
			index = i + 1;
	}

	memmove(&table[index + 1], &table[index], (*n_table - index) * sizeof(*table));
	table[index] = *region;
	(*n_table)++;
	*ret_index = index;
	return 0;
}

/* The number of regions and of fds, and the size, were checked with the message. */
int session_on_set_mem_table(struct session *session, const struct session_incoming *incoming)
{
	const uint8_t *at = incoming->message->payload + sizeof(struct vhost_user_memory);
	struct session_region table[SESSION_REGIONS_MAX] = {0}, region = {0};
	struct vhost_user_region wire;
	size_t n_table = 0, index;
	int status;

	for (size_t i = 0; i < incoming->n_fds; i++) {
		memcpy(&wire, at + i * sizeof(wire), sizeof(wire));
		status = read_region(session, &wire, incoming->fds[i], &region);
		if (status == 0)
			status = insert_region(session, table, &n_table, &region, &index);
		if (status < 0)
			return status;
	}

	for (size_t i = 0; i < incoming->n_fds; i++)
		session_take_fd(&incoming->fds[i]);
	memcpy(session->regions, table, n_table * sizeof(table[0]));
	session->n_regions = n_table;
	return session_call(session, session->operations->memory_replaced);
}

int session_on_get_max_mem_slots(struct session *session, const struct session_incoming *incoming)
{
	(void)incoming;
	session_reply_u64(session, SESSION_REGIONS_MAX);
	return 0;
}

int session_on_add_mem_reg(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_single_region single;
	struct session_region region = {0};
	size_t index = 0;
	int status;

	memcpy(&single, incoming->message->payload, sizeof(single));
	status = read_region(session, &single.region, incoming->fds[0], &region);
	if (status == 0)
		status = insert_region(session, session->regions, &session->n_regions, &region,
				       &index);
	if (status < 0)
		return status;

	session_take_fd(&incoming->fds[0]);
	return call_region(session, session->operations->region_added, &session->regions[index]);
}

/* The offset is not compared: QEMU sends 0. */
static bool is_region(const struct session_region *region, const struct vhost_user_region *wire)
{
	return region->guest_address == wire->guest_address && region->size == wire->size &&
	       region->user_address == wire->user_address;
}

int session_on_rem_mem_reg(struct session *session, const struct session_incoming *incoming)
{
	struct vhost_user_single_region single;
	size_t index = 0;

	memcpy(&single, incoming->message->payload, sizeof(single));
	while (index < session->n_regions && !is_region(&session->regions[index], &single.region))
		index++;
	if (index == session->n_regions)
		return session_refuse(session, "no region at 0x%" PRIx64 " of 0x%" PRIx64 " bytes",
				      single.region.guest_address, single.region.size);

	session->n_regions--;
	memmove(&session->regions[index], &session->regions[index + 1],
		(session->n_regions - index) * sizeof(session->regions[0]));
	return call_region(session, session->operations->region_removed,
			   &session->undo.regions[index]);
}
