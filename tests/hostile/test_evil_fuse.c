/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A VMM hands over a file of a file system of its own that answers no more. No
 * call of the front may wait for that: all VMs would wait with it. The file
 * system is served by a child of this process; it ends with the test, and then
 * every call that waits for it fails.
 *
 * Exit code 77 where it cannot be mounted: not root, or no /dev/fuse.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/frontend/vhost.h"
#include "tests/hostile/rig.h"

#define FILE_NODE 2
#define FILE_SIZE 65536

/* Shared with the child. */
struct file_system {
	_Atomic uint32_t stalled_opcode; /* not answered any more */
	_Atomic uint32_t stalled_pid;	 /* who waits for it, 0: nobody yet */
	uint64_t attributes_seconds;	 /* the kernel does not ask again as long */
};

static struct rig rig;
static struct file_system *file_system;
static pid_t server = -1;
static char mount_point[108];

/* ---- the file system ---- */

static void answer(int device, uint64_t unique, int error, const void *body, size_t len)
{
	uint8_t bytes[512];
	struct fuse_out_header header = {(uint32_t)(sizeof(header) + len), error, unique};

	memcpy(bytes, &header, sizeof(header));
	if (len > 0)
		memcpy(bytes + sizeof(header), body, len);
	if (write(device, bytes, sizeof(header) + len) < 0)
		_exit(1);
}

static struct fuse_attr attributes_of(uint64_t node)
{
	return (struct fuse_attr){
		.ino = node,
		.size = node == FILE_NODE ? FILE_SIZE : 0,
		.mode = node == FILE_NODE ? S_IFREG | 0666 : S_IFDIR | 0777,
		.nlink = 1,
		.blksize = 4096,
	};
}

static void serve_request(int device, const struct fuse_in_header *in)
{
	struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION,
				     .minor = FUSE_KERNEL_MINOR_VERSION,
				     .max_write = 4096};
	struct fuse_entry_out entry = {.nodeid = FILE_NODE,
				       .attr_valid = file_system->attributes_seconds,
				       .entry_valid = 1000};
	struct fuse_attr_out attributes = {.attr_valid = file_system->attributes_seconds};
	struct fuse_open_out opened = {.fh = 1};

	if (in->opcode == file_system->stalled_opcode && in->nodeid == FILE_NODE) {
		file_system->stalled_pid = in->pid;
		return;
	}
	switch (in->opcode) {
	case FUSE_INIT:
		answer(device, in->unique, 0, &init, sizeof(init));
		return;
	case FUSE_LOOKUP:
		entry.attr = attributes_of(FILE_NODE);
		answer(device, in->unique, 0, &entry, sizeof(entry));
		return;
	case FUSE_GETATTR:
		attributes.attr = attributes_of(in->nodeid);
		answer(device, in->unique, 0, &attributes, sizeof(attributes));
		return;
	case FUSE_OPEN:
		answer(device, in->unique, 0, &opened, sizeof(opened));
		return;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		answer(device, in->unique, 0, NULL, 0);
		return;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	default:
		answer(device, in->unique, -ENOSYS, NULL, 0);
	}
}

static _Noreturn void serve(int device)
{
	static _Alignas(8) uint8_t bytes[FUSE_MIN_READ_BUFFER + 4096];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		ssize_t n = read(device, bytes, sizeof(bytes));

		if (n < 0 && errno != EINTR && errno != EAGAIN && errno != ENOENT)
			_exit(0);
		if (n >= (ssize_t)sizeof(struct fuse_in_header))
			serve_request(device, (const struct fuse_in_header *)(const void *)bytes);
	}
}

/* false: not here. */
static bool mount_file_system(bool is_for_all)
{
	char options[128];
	int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (device < 0) {
		print_message("skipped: /dev/fuse can't be opened\n");
		return false;
	}
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0%s", device,
		 is_for_all ? ",allow_other" : "");
	if (mkdir(mount_point, 0777) < 0 ||
	    mount("hostile", mount_point, "fuse", MS_NOSUID | MS_NODEV, options) < 0) {
		print_message("skipped: this user may not mount a FUSE file system\n");
		close(device);
		return false;
	}
	fflush(NULL);
	server = fork();
	assert_true(server >= 0);
	if (server == 0)
		serve(device);
	close(device);
	return true;
}

static void unmount_file_system(void)
{
	if (server > 0) {
		kill(server, SIGKILL);
		waitpid(server, NULL, 0);
	}
	server = -1;
	umount2(mount_point, MNT_DETACH);
	rmdir(mount_point);
}

/* ---- the tests ---- */

static int set_up(void **state)
{
	(void)state;
	file_system = mmap(NULL, sizeof(*file_system), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(file_system != MAP_FAILED);
	rig_start(&rig, "max-connections=16");
	snprintf(mount_point, sizeof(mount_point), "%s/fuse", rig.daemon.directory);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	unmount_file_system();
	rig_stop(&rig);
	munmap(file_system, sizeof(*file_system));
	return 0;
}

static int open_file(void)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/file", mount_point);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static void send_region(struct vhost *vhost, int fd)
{
	const struct {
		struct vhost_header header;
		uint32_t n_regions, padding;
		struct vhost_region region;
	} __attribute__((packed)) message = {
		.header = {VHOST_SET_MEM_TABLE, VHOST_FLAG_VERSION, 40},
		.n_regions = 1,
		.region = {0, FILE_SIZE, 1 << 30, 0},
	};

	assert_int_equal(vhost_send_raw(vhost, &message, sizeof(message), &fd, 1), 0);
}

static void send_kick(struct vhost *vhost, int fd)
{
	const struct {
		struct vhost_header header;
		uint64_t ring;
	} __attribute__((packed)) message = {
		.header = {VHOST_SET_VRING_KICK, VHOST_FLAG_VERSION, 8},
	};

	assert_int_equal(vhost_send_raw(vhost, &message, sizeof(message), &fd, 1), 0);
}

/* What the front does in the kernel, for whoever has to find the call. */
static void print_call(void)
{
	char path[64], call[128] = "?";
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/syscall", rig.front);
	file = fopen(path, "re");
	if (file && !fgets(call, sizeof(call), file))
		call[0] = '\0';
	if (file)
		fclose(file);
	print_message("the front is in system call %s", call);
}

static void hand_over(void (*send)(struct vhost *vhost, int fd), uint32_t opcode, const char *what)
{
	struct vhost vhost;
	int fd = open_file();

	rig_connect_frontend(&rig, &vhost);
	file_system->stalled_opcode = opcode;
	rig.n_kept_max = 1;
	send(&vhost, fd);
	/* Refused and closed at once; anything else is not known to a session that began so. */
	vhost.timeout = 500;
	(void)vhost_wait_closed(&vhost);
	if (file_system->stalled_pid == (uint32_t)rig.front) {
		print_call();
		fail_msg("%s: the front waits for the file system", what);
	}
	vhost_close(&vhost);
	rig_check_neighbour(&rig, 100, what);
	if (file_system->stalled_pid == (uint32_t)rig.front)
		fail_msg("%s: the front waits for the file system after the session", what);
	unmount_file_system();
	close(fd);
	rig_check(&rig, what);
}

/* An administrator's mount, or one by fusermount with user_allow_other. */
static void test_attributes_that_never_come_do_not_stop_the_front(void **state)
{
	(void)state;
	if (!mount_file_system(true))
		skip();
	hand_over(send_region, FUSE_GETATTR, "memory whose GETATTR is not answered");
}

static void test_attributes_of_a_kick_that_never_come_do_not_stop_the_front(void **state)
{
	(void)state;
	if (!mount_file_system(true))
		skip();
	hand_over(send_kick, FUSE_GETATTR, "kick whose GETATTR is not answered");
}

/* Closing asks the file system, whoever mounted it: any user may do that. */
static void test_a_close_that_is_never_answered_does_not_stop_the_front(void **state)
{
	(void)state;
	file_system->attributes_seconds = 1000;
	if (!mount_file_system(false))
		skip();
	hand_over(send_region, FUSE_FLUSH, "memory whose FLUSH at close is not answered");
}

static bool can_mount(void)
{
	return geteuid() == 0 && access("/dev/fuse", R_OK | W_OK) == 0 &&
	       unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL) == 0;
}

#define WITH_RIG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_RIG(test_attributes_that_never_come_do_not_stop_the_front),
		WITH_RIG(test_attributes_of_a_kick_that_never_come_do_not_stop_the_front),
		WITH_RIG(test_a_close_that_is_never_answered_does_not_stop_the_front),
	};

	/* In a mount namespace of its own, so that nothing stays behind. */
	if (!can_mount()) {
		printf("skipped: only root with /dev/fuse and mount namespaces can do this\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
