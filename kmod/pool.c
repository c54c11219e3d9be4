// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages of 2 MiB, and the pool of those that are idle.
 *
 * A page that a buffer no longer needs stays here for the next buffer, as long as the pool is below
 * its limit and nobody needs the memory: free pages of this size get rare while a system runs, and
 * are expensive to make.
 *
 * A page is charged to the memory cgroup of the task that allocated it, and no module can charge it
 * to another one. So an idle page is given only to tasks of the cgroup that pays for it, and the
 * pool is a list_lru that knows cgroups: memory pressure in one of them takes its own idle pages.
 * The items of such a list must come from kmem_cache_alloc_lru(), which is why pages have a struct
 * gb_page.
 *
 * Idle pages hold what their last user wrote until they are taken; nobody can map them before that.
 */

#include <linux/compiler.h>
#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/list_lru.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/page-flags.h>
#include <linux/sched.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/vmstat.h>

#include "internal.h"
#include "trace.h"

static struct kmem_cache *gb_page_cache;
static struct list_lru gb_idle;
static atomic_long_t gb_idle_pages; /* base pages, as all counts here */

static unsigned long gb_pool_mib = 512;

/**
 * gb_charge - count pages unless that would be too many
 * @used: the counter
 * @pages: how many
 * @limit: what @used may become at most
 *
 * The count comes before the pages, so that no two tasks can both have the last ones.
 */
bool gb_charge(atomic_long_t *used, unsigned long pages, unsigned long limit)
{
	long old = atomic_long_read(used);

	do {
		/* In this order: limits can be lowered below what is in use. */
		if (pages > limit || (unsigned long)old > limit - pages)
			return false;
	} while (!atomic_long_try_cmpxchg(used, &old, old + pages));
	return true;
}

void gb_uncharge(atomic_long_t *used, unsigned long pages)
{
	atomic_long_sub(pages, used);
}

struct page *gb_alloc_pages(int node, gfp_t gfp, unsigned int order)
{
	/* The task's memory policy counts only where the caller named no node. */
	if (node == NUMA_NO_NODE)
		return alloc_pages(gfp, order);
	return alloc_pages_node(node, gfp, order);
}

unsigned long gb_pool_idle(void)
{
	return atomic_long_read(&gb_idle_pages);
}

unsigned long gb_pool_limit(void)
{
	return min(READ_ONCE(gb_pool_mib), ULONG_MAX >> 20) << (20 - PAGE_SHIFT);
}

/* Idle pages are part of what the system calls available. */
static void gb_pool_count(struct page *page, long blocks)
{
	mod_node_page_state(page_pgdat(page), NR_KERNEL_MISC_RECLAIMABLE, blocks * GB_BLOCK_PAGES);
}

static void gb_pool_left(struct gb_page *gp)
{
	gb_pool_count(gp->page, -1);
	gb_uncharge(&gb_idle_pages, GB_BLOCK_PAGES);
}

static void gb_page_drop(struct gb_page *gp)
{
	put_page(gp->page);
	kmem_cache_free(gb_page_cache, gp);
}

static unsigned long gb_pool_drop(struct list_head *pages)
{
	struct gb_page *gp, *next;
	unsigned long count = 0;

	list_for_each_entry_safe(gp, next, pages, idle) {
		list_del_init(&gp->idle);
		gb_pool_left(gp);
		gb_page_drop(gp);
		count += GB_BLOCK_PAGES;
	}
	if (count)
		trace_greenboost_pool_shrink(count, gb_pool_idle());
	return count;
}

struct gb_search {
	int node; /* where the pages must be, or NUMA_NO_NODE */
	unsigned long wanted; /* pages */
	unsigned long left; /* pages to look at, as list_lru counts them */
	struct list_head found;
};

#ifdef GB_HAVE_LIST_LRU_WALK_LOCK
static enum lru_status gb_isolate(struct list_head *item, struct list_lru_one *list,
				  spinlock_t *lock, void *arg)
#else
static enum lru_status gb_isolate(struct list_head *item, struct list_lru_one *list, void *arg)
#endif
{
	struct gb_page *gp = list_entry(item, struct gb_page, idle);
	struct gb_search *search = arg;

	if (search->node != NUMA_NO_NODE && page_to_nid(gp->page) != search->node)
		return LRU_SKIP;
	list_lru_isolate_move(list, item, &search->found);
	if (!--search->wanted)
		search->left = 0;
	return LRU_REMOVED;
}

/* Moves up to @search->wanted pages of a cgroup's list of one node. */
static void gb_pool_search(struct gb_search *search, int nid, struct mem_cgroup *memcg)
{
	search->left = ULONG_MAX;
	list_lru_walk_one(&gb_idle, nid, memcg, gb_isolate, search, &search->left);
}

/* A page of the pool that the caller's cgroup pays for, zeroed; NULL if there is none. */
static struct gb_page *gb_pool_take(int node)
{
	struct gb_search search = { .node = node, .wanted = 1 };
	struct mem_cgroup *memcg;
	struct gb_page *gp;
	unsigned int i;
	int nid;

	if (!gb_pool_idle())
		return NULL;
	INIT_LIST_HEAD(&search.found);
	memcg = get_mem_cgroup_from_mm(current->mm);
	/* The list's node is the one of struct gb_page, which need not be the page's. */
	for_each_online_node(nid) {
		gb_pool_search(&search, nid, memcg);
		if (!search.wanted)
			break;
	}
	mem_cgroup_put(memcg);
	gp = list_first_entry_or_null(&search.found, struct gb_page, idle);
	if (!gp)
		return NULL;

	list_del_init(&gp->idle);
	gb_pool_left(gp);
	trace_greenboost_pool_take(GB_BLOCK_PAGES, gb_pool_idle());
	for (i = 0; i < GB_BLOCK_PAGES; i++)
		clear_highpage(gp->page + i);
	return gp;
}

/* Memory errors are found while a page is in use; the page allocator would sort these out. */
static bool gb_page_poisoned(struct page *page)
{
	unsigned int i;

	for (i = 0; i < GB_BLOCK_PAGES; i++)
		if (PageHWPoison(page + i))
			return true;
	return false;
}

static bool gb_pool_keep(struct gb_page *gp)
{
	if (!gb_watchdog_calm())
		return false;
	/*
	 * Whoever has it pinned may write to it for as long as that takes. No new reference can
	 * come up: without a descriptor, a mapping or an attachment, only a reference leads to the
	 * page.
	 */
	if (page_count(gp->page) != 1 || gb_page_poisoned(gp->page))
		return false;
	if (!gb_charge(&gb_idle_pages, GB_BLOCK_PAGES, gb_pool_limit()))
		return false;
	gb_pool_count(gp->page, 1);
	trace_greenboost_pool_keep(GB_BLOCK_PAGES, gb_pool_idle());
#ifdef GB_HAVE_LIST_LRU_ADD_OBJ
	list_lru_add_obj(&gb_idle, &gp->idle);
#else
	list_lru_add(&gb_idle, &gp->idle);
#endif
	return true;
}

/*
 * By reclaim and compaction, if need be. Tries again for the same block: the next one would not
 * fare better, and this one would be on another node, or small, for nothing but a refusal.
 */
static struct page *gb_page_make(int node, gfp_t gfp, unsigned int *misses)
{
	struct page *page;

	/* Left to itself, the allocator takes another node's free page before it compacts. */
	if (node != NUMA_NO_NODE)
		gfp |= __GFP_THISNODE;
	/* With __GFP_NORETRY, compaction would leave all that is movable where it is. */
	gfp |= __GFP_RETRY_MAYFAIL;
	while (*misses < GB_MISSES && !fatal_signal_pending(current)) {
		page = gb_alloc_pages(node, gfp, GB_BLOCK_ORDER);
		if (page)
			return page;
		++*misses;
	}
	return NULL;
}

/**
 * gb_page_alloc - a page of 2 MiB, zeroed
 * @node: where it should be, or NUMA_NO_NODE
 * @misses: how often compaction has failed for the buffer; from GB_MISSES on, only what is free is
 *	    taken, on any node
 *
 * Return: NULL if there is none.
 */
struct gb_page *gb_page_alloc(int node, unsigned int *misses)
{
	const gfp_t gfp = GFP_HIGHUSER | __GFP_ACCOUNT | __GFP_ZERO | __GFP_COMP |
			  __GFP_NOMEMALLOC | __GFP_NOWARN;
	struct gb_page *gp = gb_pool_take(node);
	struct page *page;

	if (gp)
		return gp;
	gp = kmem_cache_alloc_lru(gb_page_cache, &gb_idle,
				  GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN);
	if (!gp)
		return NULL;
	page = gb_page_make(node, gfp, misses);
	if (!page)
		page = gb_alloc_pages(node, gfp & ~__GFP_DIRECT_RECLAIM, GB_BLOCK_ORDER);
	if (!page) {
		kmem_cache_free(gb_page_cache, gp);
		return NULL;
	}
	gp->page = page;
	return gp;
}

/**
 * gb_page_free - give up a buffer's reference to a page
 * @gp: is not the caller's any more
 *
 * If others still have the page pinned, it becomes free when they let go of it.
 */
void gb_page_free(struct gb_page *gp)
{
	if (!gb_pool_keep(gp))
		gb_page_drop(gp);
}

static unsigned long gb_shrink_count(struct shrinker *shrinker, struct shrink_control *sc)
{
	unsigned long blocks;

	/* A cgroup that has reached its limit says nothing about the system. */
	if (!sc->memcg || !parent_mem_cgroup(sc->memcg))
		gb_watchdog_hint();
	/* Asked first: until there are idle pages, the list need not even be initialised. */
	if (!gb_pool_idle())
		return SHRINK_EMPTY;
	blocks = list_lru_shrink_count(&gb_idle, sc);
	return blocks ? blocks * GB_BLOCK_PAGES : SHRINK_EMPTY;
}

static unsigned long gb_shrink_scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct gb_search search = {
		.node = NUMA_NO_NODE,
		.wanted = DIV_ROUND_UP(sc->nr_to_scan, GB_BLOCK_PAGES),
	};

	INIT_LIST_HEAD(&search.found);
	sc->nr_scanned = search.wanted * GB_BLOCK_PAGES;
	gb_pool_search(&search, sc->nid, sc->memcg);
	return gb_pool_drop(&search.found) ?: SHRINK_STOP;
}

/* Nothing has to be read again for it: the pool is to go before anything else does. */
static void gb_shrinker_describe(struct shrinker *shrinker)
{
	shrinker->count_objects = gb_shrink_count;
	shrinker->scan_objects = gb_shrink_scan;
	shrinker->seeks = 0;
}

/*
 * The list needs the shrinker's number, so the shrinker comes first. Where it cannot be had without
 * being registered, it is called before the list is there: see gb_shrink_count().
 */
#ifdef GB_HAVE_SHRINKER_ALLOC
static struct shrinker *gb_shrinker;

static int gb_shrinker_init(void)
{
	gb_shrinker = shrinker_alloc(SHRINKER_NUMA_AWARE | SHRINKER_MEMCG_AWARE, "greenboost-pool");
	return gb_shrinker ? 0 : -ENOMEM;
}

static void gb_shrinker_start(void)
{
	gb_shrinker_describe(gb_shrinker);
	shrinker_register(gb_shrinker);
}

static void gb_shrinker_exit(void)
{
	shrinker_free(gb_shrinker);
}
#else
static struct shrinker gb_old_shrinker;
static struct shrinker *gb_shrinker = &gb_old_shrinker;

static int gb_shrinker_init(void)
{
	gb_shrinker_describe(gb_shrinker);
	gb_shrinker->flags = SHRINKER_NUMA_AWARE | SHRINKER_MEMCG_AWARE;
	return register_shrinker(gb_shrinker, "greenboost-pool");
}

static void gb_shrinker_start(void)
{
}

static void gb_shrinker_exit(void)
{
	unregister_shrinker(gb_shrinker);
}
#endif

/**
 * gb_pool_trim - give what is above @limit back
 * @limit: pages
 *
 * Neither sleeps nor allocates.
 *
 * Return: the pages given back.
 */
unsigned long gb_pool_trim(unsigned long limit)
{
	struct gb_search search = { .node = NUMA_NO_NODE };
	unsigned long idle = gb_pool_idle();

	if (idle <= limit)
		return 0;
	INIT_LIST_HEAD(&search.found);
	search.wanted = DIV_ROUND_UP(idle - limit, GB_BLOCK_PAGES);
	list_lru_walk(&gb_idle, gb_isolate, &search, search.wanted);
	return gb_pool_drop(&search.found);
}

static int gb_pool_mib_set(const char *value, const struct kernel_param *param)
{
	int ret = param_set_ulong(value, param);

	if (!ret)
		gb_pool_trim(gb_pool_limit());
	return ret;
}

static const struct kernel_param_ops gb_pool_mib_ops = {
	.set = gb_pool_mib_set,
	.get = param_get_ulong,
};

module_param_cb(pool_mib, &gb_pool_mib_ops, &gb_pool_mib, 0644);
MODULE_PARM_DESC(pool_mib,
		 "MiB of idle pages to keep at most; what is above a new limit is freed at once");

/* A constructor also keeps the cache from being merged with others: a leak then shows at rmmod. */
static void gb_page_construct(void *object)
{
	struct gb_page *gp = object;

	INIT_LIST_HEAD(&gp->idle);
}

int gb_pool_init(void)
{
	int ret;

	gb_page_cache = kmem_cache_create("greenboost_page", sizeof(struct gb_page), 0,
					  SLAB_ACCOUNT, gb_page_construct);
	if (!gb_page_cache)
		return -ENOMEM;
	ret = gb_shrinker_init();
	if (ret)
		goto destroy_cache;
	ret = list_lru_init_memcg(&gb_idle, gb_shrinker);
	if (ret)
		goto exit_shrinker;
	gb_shrinker_start();
	return 0;

exit_shrinker:
	gb_shrinker_exit();
destroy_cache:
	kmem_cache_destroy(gb_page_cache);
	return ret;
}

/* No buffers any more: each holds a reference to the module. */
void gb_pool_exit(void)
{
	gb_shrinker_exit();
	gb_pool_trim(0);
	list_lru_destroy(&gb_idle);
	kmem_cache_destroy(gb_page_cache);
}
