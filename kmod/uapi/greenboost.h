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

/* Take memory from the NUMA node @node while that has any, and then from others. */
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
 *descriptors and mappings of it and devices attached to it; pages that are pinned live until they
 *are unpinned.
 *
 * EINVAL: the size is zero or no multiple of the page size, something that must be zero is not, or
 *the node is not online. EDQUOT: above the limit for this open file. ENOSPC: above the limit for
 *all of them together. ENOMEM: the system or the memory cgroup has no more. No process is killed
 *for it. EINTR: the caller was killed meanwhile. EMFILE: no descriptor left. EFAULT: the argument
 *cannot be read or written.
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
 * @used: the same for all open files together
 * @limit: and what may
 *
 * A buffer counts from the allocation on and until its last descriptor, mapping and attachment are
 * gone, whoever has them.
 */
struct greenboost_usage {
	__u64 file_used;
	__u64 file_limit;
	__u64 used;
	__u64 limit;
};

#define GREENBOOST_IOC_MAGIC 0xE7
#define GREENBOOST_IOC_ALLOC _IOWR(GREENBOOST_IOC_MAGIC, 0x00, struct greenboost_alloc)
#define GREENBOOST_IOC_USAGE _IOR(GREENBOOST_IOC_MAGIC, 0x01, struct greenboost_usage)

#endif /* _UAPI_GREENBOOST_H */
