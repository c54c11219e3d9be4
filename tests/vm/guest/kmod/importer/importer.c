// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for a driver that a DMA-BUF is given to, for tests of the exporter.
 *
 * Each open file of /dev/importer can have one DMA-BUF, which it lets go of when it is closed. What
 * it is given by a write is text: "attach FD", "map", "unmap", "vmap", "vunmap", "fill BYTE"
 * (through the kernel's mapping). Reading says, in one line: entries of the scatterlist, their
 * bytes, the largest of them, how many are mapped for the device, the sum of all bytes as the
 * scatterlist's pages have them, the same as the kernel's mapping has them (0 without one).
 */

#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/iosys-map.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/platform_device.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

static struct platform_device *device;

struct import {
	struct mutex lock; /* all of it */
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attachment;
	struct sg_table *table;
	struct iosys_map map;
};

static int import_attach(struct import *import, int fd)
{
	struct dma_buf_attachment *attachment;
	struct dma_buf *dmabuf;

	if (import->dmabuf)
		return -EBUSY;
	dmabuf = dma_buf_get(fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	attachment = dma_buf_attach(dmabuf, &device->dev);
	if (IS_ERR(attachment)) {
		dma_buf_put(dmabuf);
		return PTR_ERR(attachment);
	}
	import->dmabuf = dmabuf;
	import->attachment = attachment;
	return 0;
}

/* The functions with "unlocked" in their names, which take this lock, came with 6.2. */
static int import_map(struct import *import)
{
	struct sg_table *table;

	if (!import->dmabuf || import->table)
		return -EINVAL;
	dma_resv_lock(import->dmabuf->resv, NULL);
	table = dma_buf_map_attachment(import->attachment, DMA_BIDIRECTIONAL);
	dma_resv_unlock(import->dmabuf->resv);
	if (IS_ERR(table))
		return PTR_ERR(table);
	import->table = table;
	return 0;
}

static int import_unmap(struct import *import)
{
	if (!import->table)
		return -EINVAL;
	dma_resv_lock(import->dmabuf->resv, NULL);
	dma_buf_unmap_attachment(import->attachment, import->table, DMA_BIDIRECTIONAL);
	dma_resv_unlock(import->dmabuf->resv);
	import->table = NULL;
	return 0;
}

static int import_vmap(struct import *import)
{
	int ret;

	if (!import->dmabuf || import->map.vaddr)
		return -EINVAL;
	dma_resv_lock(import->dmabuf->resv, NULL);
	ret = dma_buf_vmap(import->dmabuf, &import->map);
	dma_resv_unlock(import->dmabuf->resv);
	return ret;
}

static int import_vunmap(struct import *import)
{
	if (!import->map.vaddr)
		return -EINVAL;
	dma_resv_lock(import->dmabuf->resv, NULL);
	dma_buf_vunmap(import->dmabuf, &import->map);
	dma_resv_unlock(import->dmabuf->resv);
	iosys_map_clear(&import->map);
	return 0;
}

static int import_fill(struct import *import, unsigned char byte)
{
	int ret;

	if (!import->map.vaddr)
		return -EINVAL;
	ret = dma_buf_begin_cpu_access(import->dmabuf, DMA_BIDIRECTIONAL);
	if (ret)
		return ret;
	memset(import->map.vaddr, byte, import->dmabuf->size);
	return dma_buf_end_cpu_access(import->dmabuf, DMA_BIDIRECTIONAL);
}

static u64 sum(const unsigned char *bytes, size_t count)
{
	u64 total = 0;

	while (count--)
		total += *bytes++;
	return total;
}

static u64 sum_of_pages(struct sg_table *table)
{
	struct sg_page_iter iter;
	u64 total = 0;

	for_each_sgtable_page(table, &iter, 0) {
		void *page = kmap_local_page(sg_page_iter_page(&iter));

		total += sum(page, PAGE_SIZE);
		kunmap_local(page);
	}
	return total;
}

static ssize_t import_read(struct file *filp, char __user *buf, size_t count, loff_t *pos)
{
	struct import *import = filp->private_data;
	u64 bytes = 0, largest = 0, mapped = 0, pages = 0, vmap = 0;
	struct scatterlist *sg;
	char text[160];
	int i, length;

	mutex_lock(&import->lock);
	if (import->table) {
		for_each_sgtable_sg(import->table, sg, i) {
			bytes += sg->length;
			largest = max_t(u64, largest, sg->length);
		}
		for_each_sgtable_dma_sg(import->table, sg, i)
			mapped += sg_dma_len(sg);
		pages = sum_of_pages(import->table);
	}
	if (import->map.vaddr)
		vmap = sum(import->map.vaddr, import->dmabuf->size);
	length = scnprintf(text, sizeof(text), "%u %llu %llu %llu %llu %llu\n",
			   import->table ? import->table->orig_nents : 0, bytes, largest, mapped,
			   pages, vmap);
	mutex_unlock(&import->lock);
	return simple_read_from_buffer(buf, count, pos, text, length);
}

static int import_command(struct import *import, const char *text)
{
	unsigned int number;

	if (sscanf(text, "attach %u", &number) == 1)
		return import_attach(import, number);
	if (sscanf(text, "fill %u", &number) == 1)
		return import_fill(import, number);
	if (!strcmp(text, "map"))
		return import_map(import);
	if (!strcmp(text, "unmap"))
		return import_unmap(import);
	if (!strcmp(text, "vmap"))
		return import_vmap(import);
	if (!strcmp(text, "vunmap"))
		return import_vunmap(import);
	return -EINVAL;
}

static ssize_t import_write(struct file *filp, const char __user *buf, size_t count, loff_t *pos)
{
	struct import *import = filp->private_data;
	char text[32];
	int ret;

	if (count >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, buf, count))
		return -EFAULT;
	text[count] = 0;
	mutex_lock(&import->lock);
	ret = import_command(import, text);
	mutex_unlock(&import->lock);
	return ret ?: count;
}

static int import_open(struct inode *inode, struct file *filp)
{
	struct import *import = kzalloc(sizeof(*import), GFP_KERNEL);

	if (!import)
		return -ENOMEM;
	mutex_init(&import->lock);
	filp->private_data = import;
	return 0;
}

static int import_release(struct inode *inode, struct file *filp)
{
	struct import *import = filp->private_data;

	import_vunmap(import);
	import_unmap(import);
	if (import->dmabuf) {
		dma_buf_detach(import->dmabuf, import->attachment);
		dma_buf_put(import->dmabuf);
	}
	kfree(import);
	return 0;
}

static const struct file_operations import_fops = {
	.owner = THIS_MODULE,
	.open = import_open,
	.release = import_release,
	.read = import_read,
	.write = import_write,
};

static struct miscdevice importer = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "importer",
	.fops = &import_fops,
};

static int __init importer_init(void)
{
	int ret;

	device = platform_device_register_simple("importer", -1, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	ret = dma_coerce_mask_and_coherent(&device->dev, DMA_BIT_MASK(64));
	if (!ret)
		ret = misc_register(&importer);
	if (ret)
		platform_device_unregister(device);
	return ret;
}

static void __exit importer_exit(void)
{
	misc_deregister(&importer);
	platform_device_unregister(device);
}

module_init(importer_init);
module_exit(importer_exit);
MODULE_DESCRIPTION("Importer of DMA-BUFs, for tests");
MODULE_LICENSE("GPL");
/* MODULE_IMPORT_NS() as it is everywhere: its argument became a string in 6.13. */
MODULE_INFO(import_ns, "DMA_BUF");
