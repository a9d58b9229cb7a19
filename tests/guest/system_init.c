/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Process 1 of a guest until its disk is there: loads the modules, mounts /dev/vda
 * and becomes the init of what is on it. Linked statically, alone with them.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/guest/boot.h"

#define DISK	"/dev/vda"
#define ROOT	"/root"
#define DISK_MS 30000
#define STEP_MS 20

static int mount_root(void)
{
	for (int ms = 0; ms < DISK_MS; ms += STEP_MS) {
		if (mount(DISK, ROOT, "ext4", 0, NULL) == 0)
			return 0;
		if (errno != ENOENT && errno != ENXIO)
			return -errno;
		poll(NULL, 0, STEP_MS);
	}
	return -ETIMEDOUT;
}

int main(void)
{
	int error;

	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	boot_modules();
	mkdir(ROOT, 0755);
	error = mount_root();
	if (error == 0 && chdir(ROOT) == 0 && mount("/dev", "dev", NULL, MS_MOVE, NULL) == 0 &&
	    mount(".", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0)
		execl("/sbin/init", "/sbin/init", NULL);
	printf("init: no system on %s: %s\n", DISK, strerror(error < 0 ? -error : errno));
	reboot(RB_POWER_OFF);
	return 1;
}
