/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/guest/machine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/guest/host.h"

#define QMP_SOCKET    "qmp.sock"
#define ARGUMENTS_MAX 64
#define POLL_MS	      5
#define WAIT_MS	      30000

extern char **environ;

/* Output goes to the end of `log`. The child dies when the calling thread does. */
static pid_t start(const char *const argv[], const char *log)
{
	pid_t parent = getpid();
	pid_t pid = fork();
	int fd;

	if (pid != 0)
		return pid < 0 ? -errno : pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(127);
	signal(SIGPIPE, SIG_DFL);
	fd = open("/dev/null", O_RDONLY);
	dup2(fd, 0);
	fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	dup2(fd, 1);
	dup2(fd, 2);
	execvp(argv[0], (char *const *)argv);
	dprintf(2, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* The kernel's list says it without a connection, which the back-end would take for a front-end. */
static bool is_listening(const char *path)
{
	FILE *list = fopen("/proc/net/unix", "re");
	char line[512];
	bool found = false;

	if (!list)
		return false;
	while (!found && fgets(line, sizeof(line), list)) {
		unsigned int flags;
		char name[256];

		found = sscanf(line, "%*s %*s %*s %x %*s %*s %*s %255s", &flags, name) == 2 &&
			(flags & 0x10000u) != 0 && !strcmp(name, path);
	}
	fclose(list);
	return found;
}

int machine_start_back_end(struct machine *machine)
{
	uint64_t end = host_now_ms() + WAIT_MS;
	const char *argv[ARGUMENTS_MAX];
	char directory[128], vms[2][512], socket_path[160], uds_path[160], control_path[160];
	size_t n = 0;

	if (!getcwd(directory, sizeof(directory)))
		return -errno;
	snprintf(vms[0], sizeof(vms[0]),
		 "guest-cid=%d,socket=%s/" MACHINE_SOCKET ",uds-path=%s/" HOST_UDS_NAME,
		 MACHINE_CID, directory, directory);
	snprintf(vms[1], sizeof(vms[1]),
		 "guest-cid=%d,socket=%s/" MACHINE_SIBLING_SOCKET ",uds-path=%s/" HOST_SIBLING_NAME,
		 MACHINE_SIBLING_CID, directory, directory);
	snprintf(socket_path, sizeof(socket_path), "%s/" MACHINE_SOCKET, directory);
	snprintf(uds_path, sizeof(uds_path), "%s/" HOST_SIBLING_NAME, directory);
	snprintf(control_path, sizeof(control_path), "%s/" MACHINE_CONTROL, directory);
	while (machine->back_end[n] && n < ARGUMENTS_MAX - 7) {
		argv[n] = machine->back_end[n];
		n++;
	}
	for (size_t i = 0; i < 2; i++) {
		argv[n++] = "--vm";
		argv[n++] = vms[i];
	}
	if (getenv("VSOCKCTL")) {
		argv[n++] = "--control";
		argv[n++] = control_path;
	}
	argv[n] = NULL;
	machine->back_end_pid = start(argv, MACHINE_BACK_END_LOG);
	if (machine->back_end_pid < 0)
		return machine->back_end_pid;
	/* The first and the last that it makes. */
	while (!is_listening(socket_path) || !is_listening(uds_path)) {
		if (machine_wait(&machine->back_end_pid, POLL_MS) != -ETIMEDOUT)
			return -ECHILD;
		if (host_now_ms() > end)
			return -ETIMEDOUT;
	}
	return 0;
}

struct qemu {
	const char *serial, *qmp, *chardev, *log;
};

static pid_t start_qemu(const struct machine *machine, const struct qemu *qemu)
{
	/* The emulated processor with the fewest features is twice as fast as the one with all. */
	const char *program = getenv("VSOCKD_GUEST_QEMU");
	const char *processor = strcmp(machine->accelerator, "kvm") ? "qemu64" : "host";
	/*
	 * no_timer_check: an emulated processor that gets no time on a busy machine makes
	 * the kernel take its timer for a broken one.
	 */
	/* clang-format off */
	const char *argv[] = {
		program ? program : "qemu-system-x86_64", "-nodefaults", "-no-user-config",
		"-machine", "q35,memory-backend=mem",
		"-object", "memory-backend-memfd,id=mem,size=256M,share=on",
		"-m", "256M",
		"-accel", machine->accelerator,
		"-cpu", processor,
		"-display", "none",
		"-serial", qemu->serial,
		"-qmp", qemu->qmp,
		"-chardev", qemu->chardev,
		"-device",
		machine->is_packed ? "vhost-user-vsock-pci,chardev=vsock,id=vsock,packed=on"
				   : "vhost-user-vsock-pci,chardev=vsock,id=vsock",
		"-kernel", machine->kernel,
		"-initrd", machine->initramfs,
		"-append", "console=ttyS0 quiet no_timer_check",
		NULL,
	};
	/* clang-format on */

	return start(argv, qemu->log);
}

int machine_start_qemu(struct machine *machine)
{
	static const struct qemu qemu = {
		"file:" MACHINE_SERIAL_LOG,
		"unix:" QMP_SOCKET ",server=on,wait=off",
		"socket,id=vsock,path=" MACHINE_SOCKET,
		MACHINE_QEMU_LOG,
	};

	machine->qemu_pid = start_qemu(machine, &qemu);
	return machine->qemu_pid < 0 ? machine->qemu_pid : 0;
}

int machine_start_sibling(struct machine *machine)
{
	static const struct qemu qemu = {
		"file:" MACHINE_SIBLING_SERIAL_LOG,
		"unix:sibling-" QMP_SOCKET ",server=on,wait=off",
		"socket,id=vsock,path=" MACHINE_SIBLING_SOCKET,
		MACHINE_SIBLING_QEMU_LOG,
	};

	machine->sibling_pid = start_qemu(machine, &qemu);
	return machine->sibling_pid < 0 ? machine->sibling_pid : 0;
}

bool machine_qemu_is_running(const struct machine *machine)
{
	return machine->qemu_pid > 0 && waitpid(machine->qemu_pid, NULL, WNOHANG) == 0;
}

int machine_wait(pid_t *pid, unsigned int limit_ms)
{
	uint64_t end = host_now_ms() + limit_ms;

	for (;;) {
		int status;
		pid_t ended = waitpid(*pid, &status, WNOHANG);

		if (ended == *pid) {
			*pid = -1;
			return status;
		}
		if (ended < 0)
			return -errno;
		if (host_now_ms() >= end)
			return -ETIMEDOUT;
		poll(NULL, 0, POLL_MS);
	}
}

/* The longest answer that is asked for, with the names of all features. */
static char answer[65536];

/* Pass over events until the command is answered; by what stands in answer. */
static int wait_for_return(int fd)
{
	size_t len = 0;

	while (recv(fd, answer + len, 1, 0) == 1) {
		if (answer[len] != '\n') {
			len += len < sizeof(answer) - 2;
			continue;
		}
		answer[len] = '\0';
		if (strstr(answer, "\"return\""))
			return 0;
		if (strstr(answer, "\"error\""))
			return -EPROTO;
		len = 0;
	}
	return -ETIMEDOUT;
}

/* One command, with its arguments as JSON. */
static int ask_qemu(const char *command, const char *arguments)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = QMP_SOCKET};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int error;

	host_set_time_limit(fd, WAIT_MS);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		error = -errno;
		close(fd);
		return error;
	}
	dprintf(fd, "{\"execute\": \"qmp_capabilities\"}\n");
	error = wait_for_return(fd);
	if (error == 0) {
		dprintf(fd, "{\"execute\": \"%s\", \"arguments\": {%s}}\n", command, arguments);
		error = wait_for_return(fd);
	}
	close(fd);
	return error;
}

bool machine_can_replace_worker(void)
{
	return getenv("VSOCKCTL") != NULL;
}

int machine_replace_worker(void)
{
	char cid[16];
	const char *const argv[] = {getenv("VSOCKCTL"), "--control", "./" MACHINE_CONTROL,
				    "replace",		cid,	     NULL};
	pid_t pid;

	snprintf(cid, sizeof(cid), "%d", MACHINE_CID);
	pid = start(argv, MACHINE_CONTROL_LOG);
	return pid < 0 ? pid : machine_wait(&pid, WAIT_MS);
}

int machine_pause(const char *command)
{
	return ask_qemu(command, "");
}

bool machine_has_feature(const char *name)
{
	const char *features, *found;

	if (ask_qemu("x-query-virtio-status",
		     "\"path\": \"/machine/peripheral/vsock/virtio-backend\"") != 0)
		return false;
	features = strstr(answer, "\"guest-features\"");
	found = features ? strstr(features, name) : NULL;
	/* What others have stands in objects of their own. */
	return found && found < strchr(features, '}');
}

struct process {
	pid_t parent;
	char name[32];
	unsigned long long ticks; /* of CPU time */
};

static bool process_read(pid_t pid, struct process *ret)
{
	struct process process = {0};
	unsigned long long user, system;
	char path[64], text[1024];
	const char *name, *rest;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return false;
	text[n] = '\0';
	name = strchr(text, '(');
	rest = strrchr(text, ')');
	if (!name || !rest)
		return false;
	snprintf(process.name, sizeof(process.name), "%.*s", (int)(rest - name - 1), name + 1);
	if (sscanf(rest + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu",
		   &process.parent, &user, &system) != 3)
		return false;
	process.ticks = user + system;
	*ret = process;
	return true;
}

static bool descends_from(pid_t pid, pid_t ancestor)
{
	struct process process;

	while (pid > 1 && process_read(pid, &process)) {
		if (process.parent == ancestor)
			return true;
		pid = process.parent;
	}
	return false;
}

/* Go through all processes below `ancestor`; how many accept() took. */
static int for_each_descendant(pid_t ancestor, bool (*accept)(pid_t, void *), void *context)
{
	DIR *directory = opendir("/proc");
	struct dirent *entry;
	int n = 0;

	if (!directory)
		return 0;
	while ((entry = readdir(directory))) {
		pid_t pid = (pid_t)atoi(entry->d_name);

		if (pid > 1 && pid != getpid() && descends_from(pid, ancestor) &&
		    accept(pid, context))
			n++;
	}
	closedir(directory);
	return n;
}

struct busiest {
	pid_t pid;
	unsigned long long ticks;
};

static bool is_busier_worker(pid_t pid, void *context)
{
	struct busiest *busiest = context;
	struct process process;

	if (!process_read(pid, &process) || strcmp(process.name, "vsockd-worker"))
		return false;
	if (busiest->pid > 0 && process.ticks <= busiest->ticks)
		return false;
	*busiest = (struct busiest){.pid = pid, .ticks = process.ticks};
	return true;
}

pid_t machine_worker(const struct machine *machine)
{
	struct busiest busiest = {.pid = -ESRCH};

	for_each_descendant(machine->back_end_pid, is_busier_worker, &busiest);
	return busiest.pid;
}

bool machine_is_confined(pid_t pid)
{
	unsigned long long value;
	char path[64], line[256];
	int n_claims = 0;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	status = fopen(path, "re");
	if (!status)
		return false;
	while (fgets(line, sizeof(line), status)) {
		if (sscanf(line, "CapPrm: %llx", &value) == 1 ||
		    sscanf(line, "CapBnd: %llx", &value) == 1)
			n_claims += value == 0;
		else if (sscanf(line, "NoNewPrivs: %llu", &value) == 1)
			n_claims += value == 1;
		else if (sscanf(line, "Seccomp: %llu", &value) == 1)
			n_claims += value == 2;
	}
	fclose(status);
	return n_claims == 4;
}

struct threads {
	pid_t ids[DAEMON_PIDS_MAX];
	size_t n;
};

static bool add_threads(pid_t pid, void *context)
{
	struct threads *threads = context;
	struct dirent *entry;
	char path[64];
	DIR *directory;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	directory = opendir(path);
	if (!directory)
		return false; /* it ended since it was listed */
	while ((entry = readdir(directory)) && threads->n < DAEMON_PIDS_MAX)
		if (entry->d_name[0] != '.')
			threads->ids[threads->n++] = (pid_t)atoi(entry->d_name);
	closedir(directory);
	return true;
}

void machine_start_watch(struct stopwatch *ret_watch)
{
	struct threads threads = {.n = 0};

	for_each_descendant(getpid(), add_threads, &threads);
	stopwatch_start(ret_watch, threads.ids, threads.n);
}

static bool is_any(pid_t pid, void *context)
{
	(void)pid;
	(void)context;
	return true;
}

int machine_wait_alone(pid_t ancestor, unsigned int limit_ms)
{
	uint64_t end = host_now_ms() + limit_ms;

	while (for_each_descendant(ancestor, is_any, NULL) > 0) {
		if (host_now_ms() > end)
			return -ETIMEDOUT;
		poll(NULL, 0, POLL_MS);
	}
	return 0;
}

static bool kill_it(pid_t pid, void *context)
{
	(void)context;
	return kill(pid, SIGKILL) == 0;
}

void machine_kill_children(void)
{
	uint64_t end = host_now_ms() + WAIT_MS;

	for_each_descendant(getpid(), kill_it, NULL);
	while (host_now_ms() < end) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid < 0)
			return;
		if (pid == 0) {
			for_each_descendant(getpid(), kill_it, NULL);
			poll(NULL, 0, POLL_MS);
		}
	}
}
