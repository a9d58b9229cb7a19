/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/banks.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Room for the names and rules of 256 VMs, as many as each may have. Pages that nobody
 * has written cost nothing.
 */
#define BANK_SIZE ((size_t)16 << 20)

struct bank {
	struct configuration configuration;
	struct vm_configuration vms[BANK_PLACES];
	size_t used; /* bytes of: */
	_Alignas(max_align_t) char room[];
};

static void *share(size_t size)
{
	void *start = mmap(NULL, size, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return start == MAP_FAILED ? NULL : start;
}

int banks_init(struct banks *banks)
{
	for (size_t i = 0; i < BANKS; i++) {
		banks->all[i] = share(BANK_SIZE);
		if (!banks->all[i])
			return -errno;
	}
	banks->text = share(BANKS_TEXT_SIZE);
	return banks->text ? 0 : -errno;
}

int banks_protect(const struct banks *banks)
{
	for (size_t i = 0; i < BANKS; i++)
		if (mprotect(banks->all[i], BANK_SIZE, PROT_READ))
			return -errno;
	return mprotect(banks->text, BANKS_TEXT_SIZE, PROT_READ) ? -errno : 0;
}

static void *take(struct bank *bank, size_t len)
{
	size_t aligned =
		(len + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
	void *start = bank->room + bank->used;

	if (aligned > BANK_SIZE - sizeof(*bank) - bank->used)
		return NULL;
	bank->used += aligned;
	return start;
}

static char *take_text(struct bank *bank, const char *text)
{
	size_t size = strlen(text) + 1;
	char *copy = take(bank, size);

	return copy ? memcpy(copy, text, size) : NULL;
}

/* What has a pointer in it is copied as well; false when there is no room. */
static bool copy_vm(struct bank *bank, const struct vm_configuration *from,
		    struct vm_configuration *to)
{
	size_t listens_len = from->n_listens * sizeof(*from->listens);

	*to = *from;
	to->groups = take(bank, from->n_groups * sizeof(*to->groups));
	to->listens = take(bank, listens_len);
	if (!to->groups || !to->listens)
		return false;
	if (listens_len > 0)
		memcpy(to->listens, from->listens, listens_len);
	for (size_t i = 0; i < from->n_groups; i++) {
		to->groups[i] = take_text(bank, from->groups[i]);
		if (!to->groups[i])
			return false;
	}
	/* Where connections lead, and where sockets are made, is the spawner's. */
	to->message_path = NULL;
	to->connects = NULL;
	to->n_connects = 0;
	to->socket = from->socket ? take_text(bank, from->socket) : NULL;
	to->uds_path = from->uds_path ? take_text(bank, from->uds_path) : NULL;
	return (to->socket || !from->socket) && (to->uds_path || !from->uds_path);
}

int banks_fill(const struct banks *banks, unsigned int index,
	       const struct configuration *configuration)
{
	struct bank *bank = banks->all[index];

	bank->used = 0;
	bank->configuration = *configuration;
	bank->configuration.vms = bank->vms;
	bank->configuration.worker = NULL;
	bank->configuration.control.path = NULL;
	bank->configuration.metrics.path = NULL;
	bank->configuration.file = NULL;
	if (configuration->n_vms > BANK_PLACES)
		return -ENOSPC;
	for (size_t i = 0; i < configuration->n_vms; i++)
		if (!copy_vm(bank, &configuration->vms[i], &bank->vms[i]))
			return -ENOSPC;
	return 0;
}

const struct configuration *banks_get(const struct banks *banks, unsigned int bank)
{
	return &banks->all[bank]->configuration;
}
