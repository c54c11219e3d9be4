/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of the module know of each other. Main uses all of them, heap uses pool, pool and
 * watchdog use each other, and watchdog uses netlink and eventfd.
 */
#ifndef _GREENBOOST_INTERNAL_H
#define _GREENBOOST_INTERNAL_H

#include <linux/atomic.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/sizes.h>
#include <linux/types.h>

#include "features.h"

struct attribute_group;
struct dma_buf;
struct eventfd_ctx;
struct greenboost_state;
struct page;

/* A block: what one page of a buffer is where possible. */
#define GB_BLOCK_ORDER get_order(SZ_2M)
#define GB_BLOCK_PAGES (SZ_2M >> PAGE_SHIFT)

static inline u64 gb_bytes(unsigned long pages)
{
	return (u64)pages << PAGE_SHIFT;
}

/* main.c */

/**
 * struct gb_file - an open file of the device
 * @refs: the open file has one and each of its buffers one, for buffers outlive it
 * @used: base pages in its buffers, see gb_charge()
 * @pending: those of them that are still to be allocated
 * @listeners: in the list of those that have an eventfd
 * @eventfd: is signalled for each event, or NULL
 * @t3_total: what it reported, bytes
 * @t3_used: what it reported, bytes
 */
struct gb_file {
	struct kref refs;
	atomic_long_t used;
	atomic_long_t pending;
	/* Guarded by the lock in eventfd.c. */
	struct list_head listeners;
	struct eventfd_ctx *eventfd;
	/* Guarded by the lock in watchdog.c. */
	u64 t3_total;
	u64 t3_used;
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

bool gb_charge(atomic_long_t *used, unsigned long pages, unsigned long limit);
void gb_uncharge(atomic_long_t *used, unsigned long pages);

/*
 * How often compaction may fail for a buffer. After failures, be they others', the kernel refuses
 * without looking: one that asks for 2 MiB can be refused 63 times before all of the memory is
 * looked at afresh (defer_compaction(), which counts each of these twice). Refusals cost little.
 */
#define GB_MISSES 128

struct page *gb_alloc_pages(int node, gfp_t gfp, unsigned int order);
struct gb_page *gb_page_alloc(int node, unsigned int *misses);
void gb_page_free(struct gb_page *gp);

unsigned long gb_pool_idle(void);
unsigned long gb_pool_limit(void);
unsigned long gb_pool_trim(unsigned long limit);
int gb_pool_init(void);
void gb_pool_exit(void);

/* watchdog.c */

void gb_watchdog_hint(void);
bool gb_watchdog_calm(void);
struct greenboost_state gb_watchdog_state(void);
int gb_watchdog_report_t3(struct gb_file *file, u64 total, u64 used);
int gb_watchdog_init(void);
int gb_watchdog_start(void);
void gb_watchdog_stop(void);
void gb_watchdog_exit(void);

/* eventfd.c */

int gb_eventfd_bind(struct gb_file *file, int fd);
void gb_eventfd_signal_all(void);

/* netlink.c */

void gb_netlink_send(void);
int gb_netlink_init(void);
void gb_netlink_exit(void);

/* sysfs.c */

extern const struct attribute_group *gb_attribute_groups[];

#endif /* _GREENBOOST_INTERNAL_H */
