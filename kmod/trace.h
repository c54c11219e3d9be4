/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracepoints: /sys/kernel/tracing/events/greenboost. Sizes are in bytes.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM greenboost

#if !defined(_GREENBOOST_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _GREENBOOST_TRACE_H

#include <linux/mm.h>
#include <linux/tracepoint.h>

/* clang-format off */

/* An allocation that is under way: @done of @size have pages. */
TRACE_EVENT(greenboost_alloc_progress,
	TP_PROTO(const void *buffer, unsigned long done, unsigned long pages),
	TP_ARGS(buffer, done, pages),
	TP_STRUCT__entry(
		__field(const void *, buffer)
		__field(u64, done)
		__field(u64, size)
	),
	TP_fast_assign(
		__entry->buffer = buffer;
		__entry->done = (u64)done << PAGE_SHIFT;
		__entry->size = (u64)pages << PAGE_SHIFT;
	),
	TP_printk("buffer=%p done=%llu size=%llu", __entry->buffer, __entry->done, __entry->size)
);

/* An allocation has ended; @buffer is NULL if it got none. */
TRACE_EVENT(greenboost_alloc,
	TP_PROTO(const void *buffer, size_t size, u64 huge, int node, int ret),
	TP_ARGS(buffer, size, huge, node, ret),
	TP_STRUCT__entry(
		__field(const void *, buffer)
		__field(u64, size)
		__field(u64, huge)
		__field(int, node)
		__field(int, ret)
	),
	TP_fast_assign(
		__entry->buffer = buffer;
		__entry->size = size;
		__entry->huge = huge;
		__entry->node = node;
		__entry->ret = ret;
	),
	TP_printk("buffer=%p size=%llu huge=%llu node=%d ret=%d", __entry->buffer, __entry->size,
		  __entry->huge, __entry->node, __entry->ret)
);

/* A buffer goes. Pages of it that are pinned do not. */
TRACE_EVENT(greenboost_free,
	TP_PROTO(const void *buffer, unsigned long pages),
	TP_ARGS(buffer, pages),
	TP_STRUCT__entry(
		__field(const void *, buffer)
		__field(u64, size)
	),
	TP_fast_assign(
		__entry->buffer = buffer;
		__entry->size = (u64)pages << PAGE_SHIFT;
	),
	TP_printk("buffer=%p size=%llu", __entry->buffer, __entry->size)
);

/* Pages came into the pool or left it; @idle is what it has now. */
DECLARE_EVENT_CLASS(greenboost_pool,
	TP_PROTO(unsigned long pages, unsigned long idle),
	TP_ARGS(pages, idle),
	TP_STRUCT__entry(
		__field(u64, size)
		__field(u64, idle)
	),
	TP_fast_assign(
		__entry->size = (u64)pages << PAGE_SHIFT;
		__entry->idle = (u64)idle << PAGE_SHIFT;
	),
	TP_printk("size=%llu idle=%llu", __entry->size, __entry->idle)
);

/* A buffer gave a page up. */
DEFINE_EVENT(greenboost_pool, greenboost_pool_keep,
	TP_PROTO(unsigned long pages, unsigned long idle),
	TP_ARGS(pages, idle)
);

/* A buffer gets it. */
DEFINE_EVENT(greenboost_pool, greenboost_pool_take,
	TP_PROTO(unsigned long pages, unsigned long idle),
	TP_ARGS(pages, idle)
);

/* The system gets them. */
DEFINE_EVENT(greenboost_pool, greenboost_pool_shrink,
	TP_PROTO(unsigned long pages, unsigned long idle),
	TP_ARGS(pages, idle)
);

/* The level has changed: enum greenboost_level and greenboost_cause. */
TRACE_EVENT(greenboost_level,
	TP_PROTO(u32 old, u32 level, u32 cause, u64 seq, unsigned long available,
		 unsigned long wanted),
	TP_ARGS(old, level, cause, seq, available, wanted),
	TP_STRUCT__entry(
		__field(u32, old)
		__field(u32, level)
		__field(u32, cause)
		__field(u64, seq)
		__field(u64, available)
		__field(u64, wanted)
	),
	TP_fast_assign(
		__entry->old = old;
		__entry->level = level;
		__entry->cause = cause;
		__entry->seq = seq;
		__entry->available = (u64)available << PAGE_SHIFT;
		__entry->wanted = (u64)wanted << PAGE_SHIFT;
	),
	TP_printk("old=%u level=%u cause=%u seq=%llu available=%llu wanted=%llu", __entry->old,
		  __entry->level, __entry->cause, __entry->seq, __entry->available, __entry->wanted)
);

/* The system is about to kill something; the pool gave @freed. */
TRACE_EVENT(greenboost_oom,
	TP_PROTO(unsigned long pages),
	TP_ARGS(pages),
	TP_STRUCT__entry(
		__field(u64, freed)
	),
	TP_fast_assign(
		__entry->freed = (u64)pages << PAGE_SHIFT;
	),
	TP_printk("freed=%llu", __entry->freed)
);

/* clang-format on */

#endif /* _GREENBOOST_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
