// SPDX-License-Identifier: GPL-2.0-only
/*
 * The exporter: buffers of ordinary RAM as DMA-BUFs.
 *
 * Pages are mapped with vm_insert_pages(), not by their numbers: io_uring and GPU drivers can then
 * pin them through the mapping as they would any other memory. It also means that a page can
 * outlive its buffer, so nothing in here may assume to be the last who holds one.
 */

#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/highmem.h>
#include <linux/iosys-map.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "internal.h"
#include "trace.h"

/* Saves most of the entries that single pages would need, and is found in torn memory, too. */
#define GB_MIDDLE_ORDER 4

/* Tries hard, but has nobody killed: who asks for a buffer can do with less. */
#define GB_GFP_PATIENT (__GFP_RETRY_MAYFAIL | __GFP_NOWARN)
#define GB_GFP_META (GFP_KERNEL_ACCOUNT | GB_GFP_PATIENT)

atomic_long_t gb_used; /* base pages in all buffers, see gb_charge() */
atomic_long_t gb_pending; /* those of them that are still to be allocated */
atomic_long_t gb_huge; /* those of them that are in pages of 2 MiB */
atomic_long_t gb_buffers;

/**
 * struct gb_block - 2 MiB of a buffer; less, and never huge, at its end
 * @huge: its page, or NULL
 * @small: else its base pages, some of which are parts of compound ones
 */
struct gb_block {
	struct gb_page *huge;
	struct page **small;
};

/**
 * struct gb_buffer - what a DMA-BUF is made of
 * @file: pays for it
 * @lock: guards what it says; the rest does not change
 * @attachments: struct gb_attachment
 * @vmap_count: how many have @vaddr
 * @vaddr: all of it in the kernel's address space, or NULL
 * @pages: base pages
 * @pending: base pages that are still to be allocated
 * @huge_pages: base pages that are in pages of 2 MiB
 * @runs: pages, compound ones counted once
 * @nr_blocks: of @blocks
 * @blocks: what it consists of
 */
struct gb_buffer {
	struct gb_file *file;
	struct mutex lock; /* attachments, vmap_count, vaddr */
	struct list_head attachments;
	unsigned int vmap_count;
	void *vaddr;
	unsigned long pages;
	unsigned long pending;
	unsigned long huge_pages;
	unsigned int runs;
	unsigned long nr_blocks;
	struct gb_block blocks[];
};

/**
 * struct gb_attachment - a device that uses a buffer
 * @list: in the buffer's list
 * @dev: the device
 * @table: the buffer's pages, for this device alone
 * @mapped: the device may access it now
 */
struct gb_attachment {
	struct list_head list;
	struct device *dev;
	struct sg_table table;
	bool mapped;
};

/* Base pages in a block. */
static unsigned int gb_block_pages(struct gb_buffer *buffer, unsigned long index)
{
	return min(buffer->pages - index * GB_BLOCK_PAGES, (unsigned long)GB_BLOCK_PAGES);
}

static struct page *gb_buffer_page(struct gb_buffer *buffer, unsigned long index)
{
	struct gb_block *block = &buffer->blocks[index / GB_BLOCK_PAGES];
	unsigned int in_block = index % GB_BLOCK_PAGES;

	return block->huge ? block->huge->page + in_block : block->small[in_block];
}

/* How many base pages from @page on are one with it; @page is the first of its compound page. */
static unsigned int gb_run(struct page *page)
{
	return 1U << compound_order(page);
}

static int gb_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	struct gb_buffer *buffer = dmabuf->priv;
	struct gb_attachment *a;
	struct scatterlist *sg;
	unsigned long index = 0;
	int i, ret;

	a = kzalloc(sizeof(*a), GFP_KERNEL);
	if (!a)
		return -ENOMEM;
	ret = sg_alloc_table(&a->table, buffer->runs, GFP_KERNEL);
	if (ret) {
		kfree(a);
		return ret;
	}
	for_each_sgtable_sg(&a->table, sg, i) {
		struct page *page = gb_buffer_page(buffer, index);

		sg_set_page(sg, page, gb_run(page) << PAGE_SHIFT, 0);
		index += gb_run(page);
	}
	a->dev = attachment->dev;
	attachment->priv = a;

	mutex_lock(&buffer->lock);
	list_add(&a->list, &buffer->attachments);
	mutex_unlock(&buffer->lock);
	return 0;
}

static void gb_detach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	struct gb_buffer *buffer = dmabuf->priv;
	struct gb_attachment *a = attachment->priv;

	mutex_lock(&buffer->lock);
	list_del(&a->list);
	mutex_unlock(&buffer->lock);
	sg_free_table(&a->table);
	kfree(a);
}

static struct sg_table *gb_map_dma_buf(struct dma_buf_attachment *attachment,
				       enum dma_data_direction direction)
{
	struct gb_buffer *buffer = attachment->dmabuf->priv;
	struct gb_attachment *a = attachment->priv;
	int ret;

	mutex_lock(&buffer->lock);
	ret = dma_map_sgtable(a->dev, &a->table, direction, 0);
	if (!ret)
		a->mapped = true;
	mutex_unlock(&buffer->lock);
	return ret ? ERR_PTR(ret) : &a->table;
}

static void gb_unmap_dma_buf(struct dma_buf_attachment *attachment, struct sg_table *table,
			     enum dma_data_direction direction)
{
	struct gb_buffer *buffer = attachment->dmabuf->priv;
	struct gb_attachment *a = attachment->priv;

	mutex_lock(&buffer->lock);
	a->mapped = false;
	dma_unmap_sgtable(a->dev, table, direction, 0);
	mutex_unlock(&buffer->lock);
}

static int gb_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction direction)
{
	struct gb_buffer *buffer = dmabuf->priv;
	struct gb_attachment *a;

	mutex_lock(&buffer->lock);
	if (buffer->vmap_count)
		invalidate_kernel_vmap_range(buffer->vaddr, dmabuf->size);
	list_for_each_entry(a, &buffer->attachments, list)
		if (a->mapped)
			dma_sync_sgtable_for_cpu(a->dev, &a->table, direction);
	mutex_unlock(&buffer->lock);
	return 0;
}

static int gb_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction direction)
{
	struct gb_buffer *buffer = dmabuf->priv;
	struct gb_attachment *a;

	mutex_lock(&buffer->lock);
	if (buffer->vmap_count)
		flush_kernel_vmap_range(buffer->vaddr, dmabuf->size);
	list_for_each_entry(a, &buffer->attachments, list)
		if (a->mapped)
			dma_sync_sgtable_for_device(a->dev, &a->table, direction);
	mutex_unlock(&buffer->lock);
	return 0;
}

/* For what is not mapped any more: after madvise(MADV_DONTNEED), for example. */
static vm_fault_t gb_fault(struct vm_fault *vmf)
{
	struct gb_buffer *buffer = vmf->vma->vm_private_data;
	int ret;

	if (vmf->pgoff >= buffer->pages)
		return VM_FAULT_SIGBUS;
	ret = vm_insert_page(vmf->vma, vmf->address, gb_buffer_page(buffer, vmf->pgoff));
	/* Busy: another thread was here first. */
	if (ret && ret != -EBUSY)
		return vmf_error(ret);
	return VM_FAULT_NOPAGE;
}

static void gb_vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
#ifdef GB_HAVE_VM_FLAGS_SET
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
}

static const struct vm_operations_struct gb_vm_ops = {
	.fault = gb_fault,
};

/* All at once and not on faults, of which there would be one for every 4 KiB. */
static int gb_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct gb_buffer *buffer = dmabuf->priv;
	unsigned long address = vma->vm_start;
	unsigned long index = vma->vm_pgoff;
	struct page **pages;
	unsigned long i;
	int ret = 0;

	/* A private mapping would be of other pages as soon as it is written to. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (index > buffer->pages || vma_pages(vma) > buffer->pages - index)
		return -EINVAL;

	pages = kmalloc_array(GB_BLOCK_PAGES, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	gb_vm_flags_set(vma, VM_MIXEDMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = buffer;
	vma->vm_ops = &gb_vm_ops;
	while (address < vma->vm_end) {
		unsigned long count = min(GB_BLOCK_PAGES - index % GB_BLOCK_PAGES,
					  (vma->vm_end - address) >> PAGE_SHIFT);
		unsigned long not_mapped = count;

		if (fatal_signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		for (i = 0; i < count; i++)
			pages[i] = gb_buffer_page(buffer, index + i);
		/* What is mapped already, the caller takes away when this fails. */
		ret = vm_insert_pages(vma, address, pages, &not_mapped);
		if (ret)
			break;
		index += count;
		address += count << PAGE_SHIFT;
		cond_resched();
	}
	kfree(pages);
	return ret;
}

static void *gb_map_all(struct gb_buffer *buffer)
{
	struct page **pages = kvmalloc_array(buffer->pages, sizeof(*pages), GFP_KERNEL);
	unsigned long i;
	void *vaddr;

	if (!pages)
		return NULL;
	for (i = 0; i < buffer->pages; i++)
		pages[i] = gb_buffer_page(buffer, i);
	vaddr = vmap(pages, buffer->pages, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	return vaddr;
}

static int gb_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct gb_buffer *buffer = dmabuf->priv;
	int ret = 0;

	mutex_lock(&buffer->lock);
	if (!buffer->vmap_count)
		buffer->vaddr = gb_map_all(buffer);
	if (buffer->vaddr) {
		buffer->vmap_count++;
		iosys_map_set_vaddr(map, buffer->vaddr);
	} else {
		ret = -ENOMEM;
	}
	mutex_unlock(&buffer->lock);
	return ret;
}

static void gb_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct gb_buffer *buffer = dmabuf->priv;

	mutex_lock(&buffer->lock);
	if (!--buffer->vmap_count) {
		vunmap(buffer->vaddr);
		buffer->vaddr = NULL;
	}
	mutex_unlock(&buffer->lock);
	iosys_map_clear(map);
}

static void gb_block_free(struct gb_block *block, unsigned int count)
{
	unsigned int i, run;

	if (block->huge)
		gb_page_free(block->huge);
	for (i = 0; block->small && i < count; i += run) {
		run = gb_run(block->small[i]);
		put_page(block->small[i]);
	}
	kfree(block->small);
}

/* So many of its pages are there, or will not come. */
static void gb_buffer_settle(struct gb_buffer *buffer, unsigned long pages)
{
	buffer->pending -= pages;
	atomic_long_sub(pages, &buffer->file->pending);
	atomic_long_sub(pages, &gb_pending);
}

/* Frees what there is of it, and no more than that: it need not be complete. */
static void gb_buffer_free(struct gb_buffer *buffer)
{
	unsigned long i;

	for (i = 0; i < buffer->nr_blocks; i++) {
		gb_block_free(&buffer->blocks[i], gb_block_pages(buffer, i));
		cond_resched();
	}
	gb_buffer_settle(buffer, buffer->pending);
	gb_uncharge(&gb_used, buffer->pages);
	gb_uncharge(&buffer->file->used, buffer->pages);
	gb_file_put(buffer->file);
	kvfree(buffer);
}

static void gb_release(struct dma_buf *dmabuf)
{
	struct gb_buffer *buffer = dmabuf->priv;

	atomic_long_sub(buffer->huge_pages, &gb_huge);
	atomic_long_dec(&gb_buffers);
	trace_greenboost_free(buffer, buffer->pages);
	gb_buffer_free(buffer);
}

static const struct dma_buf_ops gb_dma_buf_ops = {
	.attach = gb_attach,
	.detach = gb_detach,
	.map_dma_buf = gb_map_dma_buf,
	.unmap_dma_buf = gb_unmap_dma_buf,
	.begin_cpu_access = gb_begin_cpu_access,
	.end_cpu_access = gb_end_cpu_access,
	.mmap = gb_mmap,
	.vmap = gb_vmap,
	.vunmap = gb_vunmap,
	.release = gb_release,
};

/* Fills a block with what is smaller than 2 MiB. */
static int gb_block_fill_small(struct gb_buffer *buffer, struct gb_block *block, unsigned int count,
			       int node)
{
	const gfp_t gfp = GFP_HIGHUSER | __GFP_ACCOUNT | __GFP_ZERO | __GFP_COMP | __GFP_NOWARN;
	unsigned int order = GB_MIDDLE_ORDER;
	unsigned int done = 0, i;

	block->small = kcalloc(count, sizeof(*block->small), GB_GFP_META);
	if (!block->small)
		return -ENOMEM;
	while (done < count) {
		struct page *page = NULL;

		if (order && done + (1U << order) <= count)
			page = gb_alloc_pages(node, gfp & ~__GFP_DIRECT_RECLAIM, order);
		if (!page) {
			order = 0;
			page = gb_alloc_pages(node, gfp | GB_GFP_PATIENT, 0);
		}
		if (!page)
			goto free_pages;
		for (i = 0; i < 1U << order; i++)
			block->small[done++] = page + i;
		buffer->runs++;
	}
	return 0;

free_pages:
	gb_block_free(block, done);
	block->small = NULL;
	return -ENOMEM;
}

static int gb_buffer_fill(struct gb_buffer *buffer, int node)
{
	unsigned int misses = 0;
	unsigned long i;
	int ret;

	for (i = 0; i < buffer->nr_blocks; i++) {
		struct gb_block *block = &buffer->blocks[i];
		unsigned int count = gb_block_pages(buffer, i);

		if (fatal_signal_pending(current))
			return -EINTR;
		if (count == GB_BLOCK_PAGES)
			block->huge = gb_page_alloc(node, &misses);
		if (block->huge) {
			buffer->huge_pages += GB_BLOCK_PAGES;
			buffer->runs++;
		} else {
			/* The next one is to be huge again, if a page turns up. */
			ret = gb_block_fill_small(buffer, block, count, node);
			if (ret)
				return ret;
		}
		gb_buffer_settle(buffer, count);
		trace_greenboost_alloc_progress(buffer, buffer->pages - buffer->pending,
						buffer->pages);
		cond_resched();
	}
	return 0;
}

/* Charges first, see gb_charge(). */
static struct gb_buffer *gb_buffer_alloc(struct gb_file *file, unsigned long pages)
{
	unsigned long nr_blocks = DIV_ROUND_UP(pages, GB_BLOCK_PAGES);
	struct gb_buffer *buffer;
	int ret;

	if (!gb_charge(&file->used, pages, gb_file_limit()))
		return ERR_PTR(-EDQUOT);
	if (!gb_charge(&gb_used, pages, gb_limit())) {
		ret = -ENOSPC;
		goto uncharge_file;
	}
	/* A block is at least one entry of a scatterlist, and at most one for each base page. */
	if (pages > UINT_MAX) {
		ret = -ENOMEM;
		goto uncharge_all;
	}
	buffer = kvzalloc(struct_size(buffer, blocks, nr_blocks), GB_GFP_META);
	if (!buffer) {
		ret = -ENOMEM;
		goto uncharge_all;
	}
	kref_get(&file->refs);
	buffer->file = file;
	buffer->pages = pages;
	buffer->pending = pages;
	atomic_long_add(pages, &file->pending);
	atomic_long_add(pages, &gb_pending);
	buffer->nr_blocks = nr_blocks;
	mutex_init(&buffer->lock);
	INIT_LIST_HEAD(&buffer->attachments);
	return buffer;

uncharge_all:
	gb_uncharge(&gb_used, pages);
uncharge_file:
	gb_uncharge(&file->used, pages);
	return ERR_PTR(ret);
}

/**
 * gb_heap_alloc - make a buffer
 * @file: whose limit counts
 * @size: a multiple of the page size, not zero
 * @node: where its pages should be, or NUMA_NO_NODE
 * @huge_size: out: bytes that are in pages of 2 MiB
 *
 * Return: its DMA-BUF, or an error as <uapi/greenboost.h> has it.
 */
struct dma_buf *gb_heap_alloc(struct gb_file *file, size_t size, int node, u64 *huge_size)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct gb_buffer *buffer;
	struct dma_buf *dmabuf;
	int ret;

	buffer = gb_buffer_alloc(file, size >> PAGE_SHIFT);
	if (IS_ERR(buffer)) {
		ret = PTR_ERR(buffer);
		goto trace_failure;
	}
	ret = gb_buffer_fill(buffer, node);
	if (ret)
		goto free_buffer;

	exp_info.ops = &gb_dma_buf_ops;
	exp_info.size = size;
	exp_info.flags = O_RDWR | O_CLOEXEC;
	exp_info.priv = buffer;
	dmabuf = dma_buf_export(&exp_info);
	if (IS_ERR(dmabuf)) {
		ret = PTR_ERR(dmabuf);
		goto free_buffer;
	}
	/* From here on the buffer is the DMA-BUF's. */
	*huge_size = gb_bytes(buffer->huge_pages);
	atomic_long_add(buffer->huge_pages, &gb_huge);
	atomic_long_inc(&gb_buffers);
	trace_greenboost_alloc(buffer, size, *huge_size, node, 0);
	return dmabuf;

free_buffer:
	gb_buffer_free(buffer);
trace_failure:
	trace_greenboost_alloc(NULL, size, 0, node, ret);
	return ERR_PTR(ret);
}

/* MODULE_IMPORT_NS() as it is everywhere: its argument became a string in 6.13. */
MODULE_INFO(import_ns, "DMA_BUF");
