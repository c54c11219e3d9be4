// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/greenboost: open files and their calls.
 */

#include <linux/cdev.h>
#include <linux/compat.h>
#include <linux/device.h>
#include <linux/device/class.h>
#include <linux/dma-buf.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/nodemask.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"
#include "uapi/greenboost.h"

static unsigned long gb_limit_mib;
module_param_named(limit_mib, gb_limit_mib, ulong, 0644);
MODULE_PARM_DESC(limit_mib,
		 "MiB in all buffers together at most; 0 (default): seven eighths of RAM");

static unsigned long gb_file_limit_mib;
module_param_named(file_limit_mib, gb_file_limit_mib, ulong, 0644);
MODULE_PARM_DESC(file_limit_mib,
		 "MiB in the buffers of one open file at most; 0 (default): no such limit");

static dev_t gb_devt;
static struct cdev gb_cdev;

static unsigned long gb_mib_to_pages(unsigned long mib)
{
	return min(mib, ULONG_MAX >> 20) << (20 - PAGE_SHIFT);
}

unsigned long gb_limit(void)
{
	unsigned long mib = READ_ONCE(gb_limit_mib);

	return mib ? gb_mib_to_pages(mib) : totalram_pages() / 8 * 7;
}

unsigned long gb_file_limit(void)
{
	unsigned long mib = READ_ONCE(gb_file_limit_mib);

	return mib ? gb_mib_to_pages(mib) : ULONG_MAX;
}

static void gb_file_free(struct kref *refs)
{
	kfree(container_of(refs, struct gb_file, refs));
}

void gb_file_put(struct gb_file *file)
{
	kref_put(&file->refs, gb_file_free);
}

static int gb_open(struct inode *inode, struct file *filp)
{
	struct gb_file *file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);

	if (!file)
		return -ENOMEM;
	kref_init(&file->refs);
	filp->private_data = file;
	return nonseekable_open(inode, filp);
}

static int gb_close(struct inode *inode, struct file *filp)
{
	struct gb_file *file = filp->private_data;

	/* Buffers may keep the struct, but what is said to a file and by it ends here. */
	gb_eventfd_bind(file, -1);
	gb_watchdog_report_t3(file, 0, 0);
	gb_file_put(file);
	return 0;
}

static int gb_ioctl_alloc(struct gb_file *file, struct greenboost_alloc __user *argument)
{
	struct greenboost_alloc alloc;
	int node = NUMA_NO_NODE;
	struct dma_buf *dmabuf;
	int fd, ret;

	if (copy_from_user(&alloc, argument, sizeof(alloc)))
		return -EFAULT;
	if (alloc.flags & ~GREENBOOST_ALLOC_NODE || alloc.huge_size || alloc.fd || alloc.pad)
		return -EINVAL;
	if (!alloc.size || alloc.size & ~PAGE_MASK || alloc.size != (size_t)alloc.size)
		return -EINVAL;
	if (alloc.flags & GREENBOOST_ALLOC_NODE) {
		if (alloc.node >= MAX_NUMNODES || !node_online(alloc.node))
			return -EINVAL;
		node = alloc.node;
	} else if (alloc.node) {
		return -EINVAL;
	}

	/* Before the buffer, which may take a while. */
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	dmabuf = gb_heap_alloc(file, alloc.size, node, &alloc.huge_size);
	if (IS_ERR(dmabuf)) {
		ret = PTR_ERR(dmabuf);
		goto put_fd;
	}
	alloc.fd = fd;
	if (copy_to_user(argument, &alloc, sizeof(alloc))) {
		ret = -EFAULT;
		goto put_dmabuf;
	}
	/* Last: from here on other threads can use and close it. It takes over our reference. */
	fd_install(fd, dmabuf->file);
	return 0;

put_dmabuf:
	dma_buf_put(dmabuf);
put_fd:
	put_unused_fd(fd);
	return ret;
}

static int gb_ioctl_usage(struct gb_file *file, struct greenboost_usage __user *answer)
{
	/* These first: what is pending was counted as used before. */
	long file_pending = atomic_long_read(&file->pending);
	long pending = atomic_long_read(&gb_pending);
	long file_used = atomic_long_read(&file->used);
	long used = atomic_long_read(&gb_used);
	struct greenboost_usage usage = {
		.file_used = gb_bytes(file_used),
		.file_limit = gb_bytes(min(gb_file_limit(), gb_limit())),
		.file_pending = gb_bytes(min(file_pending, file_used)),
		.used = gb_bytes(used),
		.limit = gb_bytes(gb_limit()),
		.pending = gb_bytes(min(pending, used)),
	};

	return copy_to_user(answer, &usage, sizeof(usage)) ? -EFAULT : 0;
}

static int gb_ioctl_eventfd(struct gb_file *file, const struct greenboost_eventfd __user *argument)
{
	struct greenboost_eventfd eventfd;

	if (copy_from_user(&eventfd, argument, sizeof(eventfd)))
		return -EFAULT;
	if (eventfd.flags)
		return -EINVAL;
	return gb_eventfd_bind(file, eventfd.fd);
}

static int gb_ioctl_state(struct greenboost_state __user *answer)
{
	struct greenboost_state state = gb_watchdog_state();

	return copy_to_user(answer, &state, sizeof(state)) ? -EFAULT : 0;
}

static int gb_ioctl_t3(struct gb_file *file, const struct greenboost_t3 __user *argument)
{
	struct greenboost_t3 t3;

	if (copy_from_user(&t3, argument, sizeof(t3)))
		return -EFAULT;
	if (t3.flags || t3.pad || t3.used > t3.total)
		return -EINVAL;
	return gb_watchdog_report_t3(file, t3.total, t3.used);
}

static long gb_ioctl(struct file *filp, unsigned int command, unsigned long argument)
{
	void __user *pointer = (void __user *)argument;

	switch (command) {
	case GREENBOOST_IOC_ALLOC:
		return gb_ioctl_alloc(filp->private_data, pointer);
	case GREENBOOST_IOC_USAGE:
		return gb_ioctl_usage(filp->private_data, pointer);
	case GREENBOOST_IOC_EVENTFD:
		return gb_ioctl_eventfd(filp->private_data, pointer);
	case GREENBOOST_IOC_STATE:
		return gb_ioctl_state(pointer);
	case GREENBOOST_IOC_T3:
		return gb_ioctl_t3(filp->private_data, pointer);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations gb_fops = {
	.owner = THIS_MODULE,
	.open = gb_open,
	.release = gb_close,
	.unlocked_ioctl = gb_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

#ifdef GB_HAVE_CONST_DEVNODE
static char *gb_devnode(const struct device *dev, umode_t *mode)
#else
static char *gb_devnode(struct device *dev, umode_t *mode)
#endif
{
	if (mode)
		*mode = 0660;
	return NULL;
}

static struct class gb_class = {
	.name = "greenboost",
	.devnode = gb_devnode,
	.dev_groups = gb_attribute_groups,
};

static int __init gb_init(void)
{
	struct device *dev;
	int ret;

	/* First, since the pool's shrinker gives it hints. */
	ret = gb_watchdog_init();
	if (ret)
		return ret;
	ret = gb_pool_init();
	if (ret)
		goto exit_watchdog;
	ret = class_register(&gb_class);
	if (ret)
		goto exit_pool;
	ret = alloc_chrdev_region(&gb_devt, 0, 1, "greenboost");
	if (ret)
		goto unregister_class;
	cdev_init(&gb_cdev, &gb_fops);
	gb_cdev.owner = THIS_MODULE;
	ret = cdev_add(&gb_cdev, gb_devt, 1);
	if (ret)
		goto unregister_region;
	dev = device_create(&gb_class, NULL, gb_devt, NULL, "greenboost");
	if (IS_ERR(dev)) {
		ret = PTR_ERR(dev);
		goto del_cdev;
	}
	ret = gb_watchdog_start();
	if (ret)
		goto destroy_device;
	return 0;

destroy_device:
	device_destroy(&gb_class, gb_devt);
del_cdev:
	cdev_del(&gb_cdev);
unregister_region:
	unregister_chrdev_region(gb_devt, 1);
unregister_class:
	class_unregister(&gb_class);
exit_pool:
	gb_pool_exit();
exit_watchdog:
	gb_watchdog_exit();
	return ret;
}

/* Open files and buffers each hold a reference to the module: there are none any more. */
static void __exit gb_exit(void)
{
	gb_watchdog_stop();
	device_destroy(&gb_class, gb_devt);
	cdev_del(&gb_cdev);
	unregister_chrdev_region(gb_devt, 1);
	class_unregister(&gb_class);
	gb_pool_exit();
	gb_watchdog_exit();
}

module_init(gb_init);
module_exit(gb_exit);
MODULE_DESCRIPTION("RAM tier of GreenBoost: pages of 2 MiB as DMA-BUFs");
MODULE_AUTHOR("The GreenBoost project");
MODULE_LICENSE("GPL");
