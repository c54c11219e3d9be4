// SPDX-License-Identifier: GPL-2.0-only
/* Since 6.2 a class's devnode() may not change the device. */
#include <linux/device.h>
#include <linux/device/class.h>

static char *devnode(const struct device *dev, umode_t *mode)
{
	return NULL;
}

struct class probe = {
	.devnode = devnode,
};
