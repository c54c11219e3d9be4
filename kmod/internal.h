/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module know of each other: main uses heap and pool, heap uses pool.
 */
#ifndef _GREENBOOST_INTERNAL_H
#define _GREENBOOST_INTERNAL_H

#include <linux/atomic.h>
#include <linux/kref.h>
#include <linux/sizes.h>
#include <linux/types.h>

#include "features.h"

struct dma_buf;
struct page;

/* A block: what one page of a buffer is where possible. */
#define GB_BLOCK_ORDER get_order(SZ_2M)
#define GB_BLOCK_PAGES (SZ_2M >> PAGE_SHIFT)

/* main.c */

/**
 * struct gb_file - an open file of the device
 * @refs: the open file has one and each of its buffers one, for buffers outlive it
 * @used: base pages in its buffers, see gb_charge()
 * @pending: those of them that are still to be allocated
 */
struct gb_file {
	struct kref refs;
	atomic_long_t used;
	atomic_long_t pending;
};

void gb_file_put(struct gb_file *file);
unsigned long gb_limit(void);
unsigned long gb_file_limit(void);

/* heap.c */

extern atomic_long_t gb_used;
extern atomic_long_t gb_pending;
extern atomic_long_t gb_huge;
extern atomic_long_t gb_buffers;

struct dma_buf *gb_heap_alloc(struct gb_file *file, size_t size, int node, u64 *huge_size);

/* pool.c */

/**
 * struct gb_page - a page of 2 MiB, in a buffer or idle in the pool
 * @idle: in the pool's list of its NUMA node and memory cgroup
 * @page: compound, and charged to the memory cgroup that this struct is charged to
 */
struct gb_page {
	struct list_head idle;
	struct page *page;
};

/* How hard to look for a page of 2 MiB. */
enum gb_effort {
	GB_TAKE, /* what is free as it is */
	GB_COMPACT, /* and what reclaim and compaction make */
};

bool gb_charge(atomic_long_t *used, unsigned long pages, unsigned long limit);
void gb_uncharge(atomic_long_t *used, unsigned long pages);

struct page *gb_alloc_pages(int node, gfp_t gfp, unsigned int order);
struct gb_page *gb_page_alloc(int node, enum gb_effort effort);
void gb_page_free(struct gb_page *gp);

unsigned long gb_pool_idle(void);
unsigned long gb_pool_limit(void);
int gb_pool_init(void);
void gb_pool_exit(void);

#endif /* _GREENBOOST_INTERNAL_H */
