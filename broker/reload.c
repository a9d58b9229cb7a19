/* SPDX-License-Identifier: Apache-2.0 */
#include "broker/reload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broker/log.h"

#define NO_PLACE SIZE_MAX

/* Where vsockd listens now, and for whom. */
struct address {
	char text[PORT_TEXT_SIZE];
	size_t place, number;
	bool is_kept;
};

/* What is to run, while it is being made. */
struct plan {
	struct reload *reload;
	struct configuration next; /* by place */
	struct sockets sockets;	   /* by place; those that were made for it have an fd */
	struct address *addresses; /* of what runs, in the order of their texts */
	size_t n_addresses;
	size_t n_added, n_changed, n_removed;
	char refusal[sizeof(((struct configuration_error *)NULL)->text)];
};

int reload_init(struct reload *reload, int argc, char **argv, struct configuration *configuration,
		struct sockets *sockets, uint64_t n_files)
{
	*reload = (struct reload){
		.argc = argc,
		.argv = argv,
		.configuration = configuration,
		.sockets = sockets,
		.n_files = n_files,
	};
	return banks_init(&reload->banks);
}

/* ---- reading ---- */

/* It is said when nothing is left of what was made until then. */
static bool refuse(struct plan *plan, const char *reason)
{
	snprintf(plan->refusal, sizeof(plan->refusal), "%s", reason);
	return false;
}

static bool is_same_text(const char *one, const char *other)
{
	return one && other ? strcmp(one, other) == 0 : one == other;
}

static bool is_same_access(const struct listener_access *one, const struct listener_access *other)
{
	return one->mode == other->mode && one->owner == other->owner && one->group == other->group;
}

static bool is_same_service(const struct service_socket *one, const struct service_socket *other)
{
	return is_same_text(one->path, other->path) &&
	       (!one->path || is_same_access(&one->access, &other->access));
}

static bool is_same_address(const struct port_address *one, const struct port_address *other)
{
	char text[PORT_TEXT_SIZE], other_text[PORT_TEXT_SIZE];

	ports_print_address(one, 0, text);
	ports_print_address(other, 0, other_text);
	return strcmp(text, other_text) == 0;
}

static void say_unchangeable(bool is_same, const char *what)
{
	if (!is_same)
		log_event(LOG_WARNING, LOG_NO_VM, "reload: %s takes effect at the next start",
			  what);
}

static void say_globals(const struct configuration *running, const struct configuration *next)
{
	say_unchangeable(running->has_user == next->has_user && running->user == next->user,
			 "user");
	say_unchangeable(is_same_text(running->worker, next->worker), "worker");
	say_unchangeable(running->insecure == next->insecure, "insecure-...");
	say_unchangeable(is_same_service(&running->control, &next->control), "control");
	say_unchangeable(is_same_service(&running->metrics, &next->metrics), "metrics");
	say_unchangeable(is_same_address(&running->metrics_http, &next->metrics_http),
			 "metrics-http");
}

/* What was opened, or given up, at the start stays as it is. */
static void keep_globals(struct configuration *running, struct configuration *next)
{
	struct service_socket control = next->control, metrics = next->metrics;
	char *worker = next->worker;

	next->control = running->control;
	running->control = control;
	next->metrics = running->metrics;
	running->metrics = metrics;
	next->metrics_http = running->metrics_http;
	next->worker = running->worker;
	running->worker = worker;
	next->has_user = running->has_user;
	next->user = running->user;
	next->group = running->group;
	next->insecure = running->insecure;
}

/* Can the file be served, as far as can be told without the VMs that run? */
static bool read_file(struct plan *plan, struct configuration *ret)
{
	const struct reload *reload = plan->reload;
	struct configuration_error error;
	struct configuration read;

	if (configuration_parse(reload->argc, reload->argv, &read, &error))
		return refuse(plan, error.text);
	if (configuration_check_paths(&read, &error)) {
		configuration_free(&read);
		return refuse(plan, error.text);
	}
	*ret = read;
	return true;
}

/* ---- who stays, who comes ---- */

static size_t find_place(const struct configuration *running, uint64_t guest_cid)
{
	for (size_t i = 0; i < running->n_vms; i++)
		if (running->vms[i].guest_cid == guest_cid)
			return i;
	return NO_PLACE;
}

/* A place that is free now: one that is being left may still be named by the front. */
static size_t find_free_place(const struct configuration *running, const struct configuration *next)
{
	for (size_t i = 0; i < BANK_PLACES; i++)
		if ((i >= running->n_vms || !running->vms[i].guest_cid) && !next->vms[i].guest_cid)
			return i;
	return NO_PLACE; /* there are places for twice as many as may run */
}

/* The VMs of `read` move to their places in plan->next. */
static bool place_vms(struct plan *plan, struct configuration *read)
{
	const struct configuration *running = plan->reload->configuration;
	struct vm_configuration *vms = read->vms;
	size_t n_vms = read->n_vms;

	plan->next = *read;
	plan->next.n_vms = running->n_vms;
	plan->next.vms = calloc(BANK_PLACES, sizeof(*vms));
	if (!plan->next.vms)
		return false;
	for (size_t i = 0; i < n_vms; i++) {
		size_t place = find_place(running, vms[i].guest_cid);

		if (place == NO_PLACE) {
			place = find_free_place(running, &plan->next);
			plan->n_added++;
		}
		plan->next.vms[place] = vms[i];
		if (place >= plan->next.n_vms)
			plan->next.n_vms = place + 1;
	}
	free(vms);
	return true;
}

static bool fits(struct plan *plan)
{
	uint64_t n_files = configuration_n_files(&plan->next), size;
	char text[200];

	if (n_files > plan->reload->n_files) {
		snprintf(text, sizeof(text),
			 "%" PRIu64 " open files would be needed, the front has %" PRIu64
			 ": raise the limit (LimitNOFILE=) and restart, or configure fewer "
			 "connections",
			 n_files, plan->reload->n_files);
		return refuse(plan, text);
	}
	if (spawner_buffer_size(&plan->next, &size) < 0)
		return refuse(plan, "max-connections times tx-buffer-size is too large");
	return true;
}

/* ---- sockets ---- */

static int compare_addresses(const void *one, const void *other)
{
	return strcmp(((const struct address *)one)->text, ((const struct address *)other)->text);
}

/* What listens now; the fds are the front's. */
static bool list_addresses(struct plan *plan)
{
	const struct configuration *running = plan->reload->configuration;
	size_t n = 0;

	plan->addresses = calloc(running->n_vms * SOCKETS_MAX + 1, sizeof(*plan->addresses));
	if (!plan->addresses)
		return refuse(plan, "out of memory");
	for (size_t place = 0; place < running->n_vms; place++)
		for (size_t number = 0; number < SOCKETS_MAX; number++) {
			struct address *address = &plan->addresses[n];

			if (!sockets_has(&running->vms[place], number))
				continue;
			sockets_print(&running->vms[place], number, address->text);
			address->place = place;
			address->number = number;
			n++;
		}
	qsort(plan->addresses, n, sizeof(*plan->addresses), compare_addresses);
	plan->n_addresses = n;
	return true;
}

static struct address *find_address(const struct plan *plan, size_t place, size_t number)
{
	struct address key = {.place = place};

	sockets_print(&plan->next.vms[place], number, key.text);
	return bsearch(&key, plan->addresses, plan->n_addresses, sizeof(key), compare_addresses);
}

static void add_message(struct reload_messages *messages, struct spawner_reply reply, int fd)
{
	messages->all[messages->n].reply = reply;
	messages->all[messages->n].fd = fd;
	messages->n++;
}

/* What listens there already stays, or goes to another VM or number; else it is made. */
static bool plan_socket(struct plan *plan, size_t place, size_t number,
			struct reload_messages *messages)
{
	const struct vm_configuration *vm = &plan->next.vms[place];
	struct listener *listener = &plan->sockets.vms[place].all[number];
	struct address *from = find_address(plan, place, number);
	struct spawner_reply reply = {
		.kind = SPAWNER_LISTENER,
		.device = (uint32_t)place,
		.number = (uint32_t)number,
	};

	if (!from) {
		if (sockets_open(vm, number, listener) < 0)
			return refuse(plan, "a socket cannot be made");
		add_message(messages, reply, listener->fd);
		return true;
	}
	from->is_kept = true;
	*listener = plan->reload->sockets->vms[from->place].all[from->number];
	listener->path = sockets_path(vm, number);
	reply.kind = SPAWNER_MOVE;
	reply.token = (uint64_t)from->place << 32 | from->number;
	if (from->place != place || from->number != number)
		add_message(messages, reply, -1);
	return true;
}

static void remove_made(struct plan *plan)
{
	for (size_t i = 0; i < plan->sockets.n_vms; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			if (plan->sockets.vms[i].all[number].fd >= 0)
				sockets_remove(&plan->sockets.vms[i].all[number]);
	free(plan->sockets.vms);
}

static bool plan_vm(struct plan *plan, size_t place, struct reload_messages *messages)
{
	const struct vm_configuration *vm = &plan->next.vms[place];

	for (size_t number = 0; number < SOCKETS_MAX; number++)
		if (sockets_has(vm, number) && !plan_socket(plan, place, number, messages))
			return false;
	return sockets_check_connects(vm) == 0 || refuse(plan, "a rule leads nowhere");
}

static bool plan_sockets(struct plan *plan, struct reload_messages *messages)
{
	plan->sockets.vms = calloc(BANK_PLACES, sizeof(*plan->sockets.vms));
	if (!plan->sockets.vms)
		return refuse(plan, "out of memory");
	plan->sockets.n_vms = BANK_PLACES;
	for (size_t i = 0; i < BANK_PLACES; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			plan->sockets.vms[i].all[number].fd = -1;
	if (!list_addresses(plan))
		return false;
	for (size_t i = 0; i < plan->next.n_vms; i++)
		if (plan->next.vms[i].guest_cid && !plan_vm(plan, i, messages))
			return false;
	return true;
}

/* ---- nothing fails from here on ---- */

static bool has_same_groups(const struct vm_configuration *one,
			    const struct vm_configuration *other)
{
	if (one->n_groups != other->n_groups)
		return false;
	for (size_t i = 0; i < one->n_groups; i++)
		if (strcmp(one->groups[i], other->groups[i]) != 0)
			return false;
	return true;
}

static void change_access(const struct plan *plan, size_t place, size_t number)
{
	const struct vm_configuration *vm = &plan->next.vms[place];
	const struct listener *listener = &plan->sockets.vms[place].all[number];
	const struct address *from = find_address(plan, place, number);
	const struct vm_configuration *vms = plan->reload->configuration->vms;
	struct listener_failure failure;

	if (!from || !listener->path ||
	    is_same_access(sockets_access(&vms[from->place], from->number),
			   sockets_access(vm, number)))
		return;
	if (listener_change_access(listener, sockets_access(vm, number), &failure) < 0)
		log_event(LOG_WARNING, vm->guest_cid, "reload: %s", failure.text);
}

static bool has_same_rules(const struct port_rule *one, size_t n_one, const struct port_rule *other,
			   size_t n_other)
{
	char text[PORT_TEXT_SIZE], other_text[PORT_TEXT_SIZE];

	if (n_one != n_other)
		return false;
	for (size_t i = 0; i < n_one; i++) {
		ports_print(&one[i], text);
		ports_print(&other[i], other_text);
		if (strcmp(text, other_text) != 0)
			return false;
	}
	return true;
}

static bool has_same_ports(const struct vm_configuration *one, const struct vm_configuration *other)
{
	return one->forward_cid == other->forward_cid &&
	       ports_is_same_filter(&one->outgoing, &other->outgoing) &&
	       ports_is_same_filter(&one->incoming, &other->incoming) &&
	       has_same_rules(one->connects, one->n_connects, other->connects, other->n_connects) &&
	       has_same_rules(one->listens, one->n_listens, other->listens, other->n_listens);
}

static bool has_same_numbers(const struct vm_configuration *one,
			     const struct vm_configuration *other)
{
	return one->tx_buffer_size == other->tx_buffer_size &&
	       one->max_connections == other->max_connections &&
	       one->max_handshakes == other->max_handshakes && one->offers == other->offers &&
	       one->is_quiet == other->is_quiet && one->wait_s == other->wait_s &&
	       one->poll_us == other->poll_us;
}

static bool has_same_admission(const struct vm_configuration *one,
			       const struct vm_configuration *other)
{
	return memcmp(&one->peers, &other->peers, sizeof(one->peers)) == 0 &&
	       one->max_connection_rate == other->max_connection_rate &&
	       one->max_bandwidth == other->max_bandwidth &&
	       one->max_buffer_memory == other->max_buffer_memory;
}

static bool has_same_sockets(const struct vm_configuration *one,
			     const struct vm_configuration *other)
{
	return is_same_text(one->socket, other->socket) &&
	       is_same_text(one->uds_path, other->uds_path) &&
	       is_same_access(&one->socket_access, &other->socket_access) &&
	       is_same_access(&one->uds_access, &other->uds_access);
}

/* false: it is as before. */
static bool say_changed(const struct vm_configuration *old, const struct vm_configuration *vm)
{
	bool has_numbers = !has_same_numbers(old, vm);
	bool has_rest = !has_same_groups(old, vm) || !has_same_sockets(old, vm) ||
			!has_same_ports(old, vm) || !has_same_admission(old, vm);

	if (has_rest)
		log_event(LOG_NOTICE, vm->guest_cid, "reload: changed");
	if (has_numbers)
		log_event(LOG_NOTICE, vm->guest_cid,
			  "reload: changed max-connections, max-handshakes, tx-buffer-size, "
			  "offer, ok or wait hold from the next front-end on");
	return has_rest || has_numbers;
}

static void say_vm(struct plan *plan, size_t place)
{
	const struct configuration *running = plan->reload->configuration;
	const struct vm_configuration *vm = &plan->next.vms[place], *old;

	for (size_t number = 0; number < SOCKETS_MAX; number++)
		if (sockets_has(vm, number))
			change_access(plan, place, number);
	if (place >= running->n_vms || !running->vms[place].guest_cid) {
		if (vm->guest_cid)
			log_event(LOG_NOTICE, vm->guest_cid, "reload: added");
		return;
	}
	old = &running->vms[place];
	if (!vm->guest_cid) {
		log_event(LOG_NOTICE, old->guest_cid, "reload: removed");
		plan->n_removed++;
		return;
	}
	plan->n_changed += say_changed(old, vm);
}

static void remove_unused(const struct plan *plan)
{
	for (size_t i = 0; i < plan->n_addresses; i++) {
		const struct address *address = &plan->addresses[i];
		struct listener *listener =
			&plan->reload->sockets->vms[address->place].all[address->number];

		if (address->is_kept)
			continue;
		sockets_forget(&plan->reload->configuration->vms[address->place], address->number,
			       listener);
		sockets_remove(listener);
	}
}

static void store_made(struct plan *plan)
{
	for (size_t i = 0; i < plan->next.n_vms; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			if (plan->sockets.vms[i].all[number].fd >= 0)
				sockets_store(&plan->next.vms[i], number,
					      &plan->sockets.vms[i].all[number]);
}

/* The fds belong to the messages now, as later to the front. */
static void take_up(struct plan *plan, struct reload_messages *messages)
{
	struct reload *reload = plan->reload;
	uint32_t connections = spawner_connections(reload->configuration);
	uint64_t size = 0, next_size = 0;

	(void)spawner_buffer_size(reload->configuration, &size);
	(void)spawner_buffer_size(&plan->next, &next_size);
	remove_unused(plan);
	store_made(plan);
	for (size_t i = 0; i < BANK_PLACES; i++)
		for (size_t number = 0; number < SOCKETS_MAX; number++)
			plan->sockets.vms[i].all[number].fd = -1;
	free(reload->sockets->vms);
	reload->sockets->vms = plan->sockets.vms;
	reload->sockets->n_vms = BANK_PLACES;
	reload->previous = *reload->configuration;
	*reload->configuration = plan->next;
	keep_globals(&reload->previous, reload->configuration);
	reload->bank = (reload->bank + 1) % BANKS;
	reload->is_pending = true;
	add_message(messages,
		    (struct spawner_reply){
			    .kind = SPAWNER_RELOAD,
			    .number = reload->bank,
			    /* Workers that were started before could not serve any VM. */
			    .error = next_size > size ||
				     spawner_connections(reload->configuration) > connections,
		    },
		    -1);
	if (reload->configuration->log_level != reload->previous.log_level)
		log_set_level(reload->configuration->log_level);
}

static bool make_plan(struct plan *plan, struct reload_messages *messages)
{
	struct reload *reload = plan->reload;

	if (!fits(plan) || !plan_sockets(plan, messages))
		return false;
	if (banks_fill(&reload->banks, (reload->bank + 1) % BANKS, &plan->next) < 0)
		return refuse(plan, "there is no room for so many names");
	return true;
}

/* false: plan->refusal says why. */
static bool prepare(struct plan *plan, struct reload_messages *messages)
{
	struct configuration read;

	if (!read_file(plan, &read))
		return false;
	if (!place_vms(plan, &read)) {
		configuration_free(&read);
		return refuse(plan, "out of memory");
	}
	return make_plan(plan, messages);
}

/* From reload_prepare() on, until it is decided. */
static struct plan plan;

static void drop_plan(struct reload_messages *messages)
{
	free(plan.addresses);
	remove_made(&plan);
	messages->n = 0;
	/* Else nothing was read, or it was freed. */
	if (plan.next.vms)
		configuration_free(&plan.next);
}

void reload_refuse(struct reload_messages *messages, const char *reason)
{
	drop_plan(messages);
	log_event(LOG_ERR | LOG_AS(LOG_ID_RELOAD_REFUSED), LOG_NO_VM,
		  "reload: %s; nothing has changed", reason);
}

bool reload_prepare(struct reload *reload, struct reload_messages *ret_messages)
{
	plan = (struct plan){.reload = reload};
	ret_messages->n = 0;
	if (prepare(&plan, ret_messages))
		return true;
	reload_refuse(ret_messages, plan.refusal);
	return false;
}

void reload_take_up(struct reload *reload, struct reload_messages *messages)
{
	say_globals(reload->configuration, &plan.next);
	for (size_t i = 0; i < plan.next.n_vms; i++)
		say_vm(&plan, i);
	reload->n_added = plan.n_added;
	reload->n_removed = plan.n_removed;
	reload->n_changed = plan.n_changed;
	take_up(&plan, messages);
	free(plan.addresses);
}

void reload_say(const struct reload *reload)
{
	log_event(LOG_NOTICE | LOG_AS(LOG_ID_RELOADED), LOG_NO_VM,
		  "reload: %zu added, %zu removed, %zu changed", reload->n_added, reload->n_removed,
		  reload->n_changed);
}

void reload_forget(struct reload_messages *messages)
{
	for (size_t i = 0; i < messages->n; i++)
		if (messages->all[i].fd >= 0)
			close(messages->all[i].fd);
	messages->n = 0;
}

void reload_finish(struct reload *reload)
{
	configuration_free(&reload->previous);
	reload->is_pending = false;
}
