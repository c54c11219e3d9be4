/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * What /dev/greenboost can be asked for.
 *
 * All sizes are in bytes. Fields have the same place and width for 32-bit and 64-bit programs. What
 * is marked "out", and every bit and field that has no meaning yet, must be zero: it may become an
 * argument some day.
 */
#ifndef _UAPI_GREENBOOST_H
#define _UAPI_GREENBOOST_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * Take memory from the NUMA node @node while that has pages of 2 MiB or can be compacted into some,
 * and then from others.
 */
#define GREENBOOST_ALLOC_NODE 0x1U

/**
 * struct greenboost_alloc - argument of GREENBOOST_IOC_ALLOC
 * @size: in: a multiple of the page size
 * @flags: in: GREENBOOST_ALLOC_*
 * @node: in: an online NUMA node, with GREENBOOST_ALLOC_NODE alone
 * @huge_size: out: how much of it is in pages of 2 MiB
 * @fd: out: the DMA-BUF, open for reading and writing, closed by execve()
 * @pad: must be zero
 *
 * The memory is zero, charged to the caller's memory cgroup, and not swapped. Every 2 MiB of it are
 * one page where there is one, and smaller pages otherwise. It lives as long as there are
 * descriptors and mappings of it and devices attached to it; pages that are pinned live until they
 * are unpinned.
 *
 * EINVAL: the size is zero or no multiple of the page size, something that must be zero is not, or
 * the node is not online. EDQUOT: above the limit for this open file. ENOSPC: above the limit for
 * all of them together. ENOMEM: the system or the memory cgroup has no more. No process is killed
 * for it. EINTR: the caller was killed meanwhile. EMFILE: no descriptor left. EFAULT: the argument
 * cannot be read or written.
 */
struct greenboost_alloc {
	__u64 size;
	__u32 flags;
	__u32 node;
	__u64 huge_size;
	__s32 fd;
	__u32 pad;
};

/**
 * struct greenboost_usage - answer of GREENBOOST_IOC_USAGE
 * @file_used: what exists of the memory that was allocated through this open file
 * @file_limit: and what may
 * @file_pending: what of @file_used has no pages yet: allocations that are under way
 * @used: the same for all open files together
 * @limit: and what may
 * @pending: what of @used has no pages yet
 *
 * A buffer counts from the beginning of the allocation on and until its last descriptor, mapping
 * and attachment are gone, whoever has them. How far a long allocation is, another thread can see
 * in @file_pending.
 */
struct greenboost_usage {
	__u64 file_used;
	__u64 file_limit;
	__u64 file_pending;
	__u64 used;
	__u64 limit;
	__u64 pending;
};

/**
 * struct greenboost_eventfd - argument of GREENBOOST_IOC_EVENTFD
 * @fd: in: an eventfd, or -1 for none
 * @flags: must be zero
 *
 * One is added to the eventfd for each event, as the netlink group "events" has them: see
 * greenboost.yaml. Each open file has at most one: it takes the place of the one before. The module
 * holds the eventfd, not its descriptor, which may be closed, and lets go of it when the open file
 * is closed.
 *
 * Bind first and ask for the state then, or what happens in between is missed.
 *
 * EINVAL: the flags are not zero, or the descriptor is not an eventfd's. EBADF: there is no such
 * descriptor. EFAULT: the argument cannot be read.
 */
struct greenboost_eventfd {
	__s32 fd;
	__u32 flags;
};

/**
 * struct greenboost_state - answer of GREENBOOST_IOC_STATE
 * @seq: how often the level has changed
 * @ooms: how often the system was about to kill something for want of memory
 * @wanted: to be given back
 * @available: RAM that can be had
 * @min_watermark: of @available, for level critical
 * @low_watermark: for level low
 * @high_watermark: for level calm
 * @used: size of all buffers
 * @idle: what the pool has
 * @t3_total: size of T3, as reported by all
 * @t3_used: what of that is in use
 * @level: enum greenboost_level, of greenboost_netlink.h
 * @cause: enum greenboost_cause
 * @deadline_ms: a guess at when the min watermark will be reached; UINT32_MAX: never
 * @pad: zero
 *
 * The same as netlink has; greenboost.yaml says more of each.
 */
struct greenboost_state {
	__u64 seq;
	__u64 ooms;
	__u64 wanted;
	__u64 available;
	__u64 min_watermark;
	__u64 low_watermark;
	__u64 high_watermark;
	__u64 used;
	__u64 idle;
	__u64 t3_total;
	__u64 t3_used;
	__u32 level;
	__u32 cause;
	__u32 deadline_ms;
	__u32 pad;
};

/**
 * struct greenboost_t3 - argument of GREENBOOST_IOC_T3
 * @total: size of the caller's T3; 0 for none
 * @used: what of that is in use; no more than @total
 * @flags: must be zero
 * @pad: must be zero
 *
 * Reports of all open files are added up. One replaces the one before of the same open file, and is
 * void once that is closed. Who may open the device may report.
 *
 * EINVAL: more is in use than there is, or what must be zero is not. EOVERFLOW: the sum of all is
 * above 2^64. EFAULT: the argument cannot be read.
 */
struct greenboost_t3 {
	__u64 total;
	__u64 used;
	__u32 flags;
	__u32 pad;
};

#define GREENBOOST_IOC_MAGIC 0xE7
#define GREENBOOST_IOC_ALLOC _IOWR(GREENBOOST_IOC_MAGIC, 0x00, struct greenboost_alloc)
#define GREENBOOST_IOC_USAGE _IOR(GREENBOOST_IOC_MAGIC, 0x01, struct greenboost_usage)
#define GREENBOOST_IOC_EVENTFD _IOW(GREENBOOST_IOC_MAGIC, 0x02, struct greenboost_eventfd)
#define GREENBOOST_IOC_STATE _IOR(GREENBOOST_IOC_MAGIC, 0x03, struct greenboost_state)
#define GREENBOOST_IOC_T3 _IOW(GREENBOOST_IOC_MAGIC, 0x04, struct greenboost_t3)

#endif /* _UAPI_GREENBOOST_H */
