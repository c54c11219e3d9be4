// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * usage: fuzz SEED CALLS THREADS FAMILY GROUP
 *
 * The last two are netlink's numbers of the module's family and its group.
 *
 * Throws calls at the module: ioctls, right ones and such that mean nothing, mappings, descriptors
 * that come and go in any order, children, netlink messages, parameters. What the calls answer is
 * not looked at; the kernel has to survive, and all memory has to come back once this has ended.
 *
 * A thread's calls follow from the seed and its number. What they meet does not, since threads
 * share descriptors and mappings: another run with the same seed is similar, not the same.
 */
#define _GNU_SOURCE
#include <linux/dma-buf.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "device.h"

enum { FILES = 48, MAPPINGS = 32, LARGEST_MIB = 6 };

/* Descriptors of all kinds. Threads take them from each other and close them under each other. */
static atomic_int files[FILES];
/* A mapping is one thread's while that works with it. */
static struct mapping {
	pthread_mutex_t lock;
	char *address;
	size_t size;
} mappings[MAPPINGS];
static atomic_long calls_left;
static int family, group;
static char *readable;

static _Thread_local uint64_t state;

/* xorshift64* */
static uint64_t any(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 2685821657736338717ULL;
}

static uint64_t below(uint64_t limit)
{
	return any() % limit;
}

/* Numbers that something may be made of, rather than just any. */
static uint64_t number(void)
{
	static const uint64_t edges[] = { 0,	     1,		 2,	    PAGE - 1,
					  PAGE,	     2 * MIB,	 INT32_MAX, UINT32_MAX,
					  INT64_MAX, UINT64_MAX, 1UL << 40, ~(PAGE - 1) };

	switch (below(4)) {
	case 0:
		return edges[below(sizeof(edges) / sizeof(*edges))];
	case 1:
		return below(LARGEST_MIB * MIB);
	case 2:
		return below(2 * LARGEST_MIB) * MIB / 2;
	default:
		return any() >> below(64);
	}
}

/* A small one is more often a descriptor. */
static int some_file(void)
{
	return below(16) ? files[below(FILES)] : (int)below(200) - 4;
}

/* Owned by the table from here on; what was there is closed. */
static void keep_file(int fd)
{
	if (fd >= 0) {
		fd = atomic_exchange(&files[below(FILES)], fd);
		if (fd > 2)
			close(fd);
	}
}

/* Memory for an argument: mostly good. */
static void *place(void *good)
{
	switch (below(16)) {
	case 0:
		return NULL;
	case 1:
		return readable;
	case 2:
		return readable + PAGE - 4; /* the next page is not there */
	case 3:
		return (void *)any();
	default:
		return good;
	}
}

static void fuzz_open(void)
{
	if (below(3))
		keep_file(open(DEVICE, below(4) ? O_RDWR : O_RDONLY));
	else
		keep_file(eventfd(below(2) ? 0 : 7, EFD_NONBLOCK));
}

static void fuzz_alloc(void)
{
	struct greenboost_alloc alloc = { .size = (1 + below(LARGEST_MIB * 256)) * PAGE };

	if (!below(4))
		alloc = (struct greenboost_alloc){ .size = number(),
						   .flags = below(3),
						   .node = below(3) };
	if (!below(16))
		alloc.pad = any();
	if (ioctl(some_file(), GREENBOOST_IOC_ALLOC, place(&alloc)) == 0 && alloc.fd > 2)
		keep_file(alloc.fd);
}

static void fuzz_events(void)
{
	struct greenboost_eventfd bind = { .fd = below(4) ? some_file() : -1,
					   .flags = below(16) ? 0 : any() };
	struct greenboost_t3 t3 = { .total = number(), .flags = below(16) ? 0 : any() };
	struct greenboost_usage usage;
	struct greenboost_state now;

	t3.used = below(4) ? t3.total / 2 : number();
	switch (below(4)) {
	case 0:
		ioctl(some_file(), GREENBOOST_IOC_EVENTFD, place(&bind));
		break;
	case 1:
		ioctl(some_file(), GREENBOOST_IOC_T3, place(&t3));
		break;
	case 2:
		ioctl(some_file(), GREENBOOST_IOC_STATE, place(&now));
		break;
	default:
		ioctl(some_file(), GREENBOOST_IOC_USAGE, place(&usage));
	}
}

/* Any call of the module's, of DMA-BUFs' and of nobody's. */
static void fuzz_ioctl(void)
{
	union {
		uint64_t numbers[16];
		struct greenboost_alloc alloc;
		struct dma_buf_export_sync_file sync;
	} argument;
	unsigned int command;

	for (int i = 0; i < 16; i++)
		argument.numbers[i] = number();
	switch (below(3)) {
	case 0:
		command = _IOC(below(4), GREENBOOST_IOC_MAGIC, below(8), below(128));
		break;
	case 1:
		command = _IOC(below(4), DMA_BUF_BASE, below(4), below(2) ? 8 : below(32));
		argument.numbers[0] = below(8);
		break;
	default:
		command = any();
	}
	if (ioctl(some_file(), command, place(&argument)) < 0)
		return;
	/* These return descriptors. */
	if (command == GREENBOOST_IOC_ALLOC)
		keep_file(argument.alloc.fd);
	else if (command == DMA_BUF_IOCTL_EXPORT_SYNC_FILE)
		keep_file(argument.sync.fd);
}

static void fuzz_map(void)
{
	struct mapping *mapping = &mappings[below(MAPPINGS)];
	size_t size = below(8) ? (1 + below(LARGEST_MIB * 256)) * PAGE : number();
	off_t offset =
		below(2) ? 0 : (off_t)(below(4) ? below(LARGEST_MIB * 256) * PAGE : number());
	void *address;

	if (pthread_mutex_trylock(&mapping->lock))
		return;
	if (mapping->address)
		munmap(mapping->address, mapping->size);
	address = mmap(NULL, size, below(8), below(8) ? MAP_SHARED : MAP_PRIVATE, some_file(),
		       offset);
	mapping->address = address == MAP_FAILED ? NULL : address;
	mapping->size = size;
	pthread_mutex_unlock(&mapping->lock);
}

/* Of a mapping, something; madvise and mprotect cut it in pieces, which munmap takes away together.
 */
static void fuzz_mapping(void)
{
	struct mapping *mapping = &mappings[below(MAPPINGS)];
	size_t pages, first, count;
	char *part;

	if (pthread_mutex_trylock(&mapping->lock))
		return;
	if (mapping->address) {
		pages = (mapping->size + PAGE - 1) / PAGE;
		first = below(pages);
		count = 1 + below(pages - first);
		part = mapping->address + first * PAGE;
		switch (below(8)) {
		case 0:
			munmap(mapping->address, mapping->size);
			mapping->address = NULL;
			break;
		case 1:
			madvise(part, count * PAGE, below(2) ? MADV_DONTNEED : (int)below(26));
			break;
		case 2:
			mprotect(part, count * PAGE, below(8));
			break;
		case 3:
			mlock(part, count * PAGE);
			break;
		case 4: /* shrinks it in place, or fails */
			if (mremap(mapping->address, mapping->size, (first + 1) * PAGE, 0) !=
			    MAP_FAILED)
				mapping->size = (first + 1) * PAGE;
			break;
		case 5: { /* the kernel touches it, which no signal answers */
			int pipes[2];

			if (pipe2(pipes, O_NONBLOCK) == 0) {
				if (write(pipes[1], part, PAGE) < 0 ||
				    read(pipes[0], part, PAGE) < 0)
					errno = 0;
				close(pipes[0]);
				close(pipes[1]);
			}
			break;
		}
		default:
			msync(part, count * PAGE, MS_SYNC);
		}
	}
	pthread_mutex_unlock(&mapping->lock);
}

static void fuzz_close(void)
{
	int fd = atomic_exchange(&files[below(FILES)], -1);

	if (fd > 2)
		close(fd);
}

static void fuzz_fork(void)
{
	pid_t child = fork();

	if (child == 0) {
		/* It has all descriptors and mappings, and gives them up at once. */
		for (int i = 0; i < 4; i++) {
			fuzz_events();
			fuzz_alloc();
		}
		_exit(0);
	}
	if (child > 0)
		waitpid(child, NULL, 0);
}

static void fuzz_netlink(void)
{
	static _Thread_local int netlink = -1;
	struct {
		struct nlmsghdr header;
		struct genlmsghdr generic;
		uint32_t attributes[16];
	} message = {
		.header = { .nlmsg_len = sizeof(message) - 4 * below(18),
			    .nlmsg_type = below(16) ? family : (int)below(64),
			    .nlmsg_flags = NLM_F_REQUEST | (below(2) ? 0 : any()) },
		.generic = { .cmd = below(4) ? 1 : any(), .version = below(4) ? 1 : any() },
	};
	char answer[4096];

	if (netlink < 0 || !below(64)) {
		if (netlink >= 0)
			close(netlink);
		netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_GENERIC);
	}
	if (!below(4))
		setsockopt(netlink, SOL_NETLINK,
			   below(2) ? NETLINK_ADD_MEMBERSHIP : NETLINK_DROP_MEMBERSHIP, &group,
			   sizeof(group));
	if (below(2))
		message.header.nlmsg_len = sizeof(message.header) + sizeof(message.generic);
	for (int i = 0; i < 16; i++)
		message.attributes[i] = below(2) ? below(32) << 16 | below(40) : any();
	if (send(netlink, &message, message.header.nlmsg_len, 0) > 0 && below(2))
		while (recv(netlink, answer, sizeof(answer), 0) > 0 && below(4))
			;
}

/* Makes levels change, and the pool and what may be allocated large and small. */
static void fuzz_parameters(void)
{
	static const char *const names[] = { "min_watermark", "low_watermark",	"high_watermark",
					     "pool_mib",      "file_limit_mib", "period_ms" };
	char path[100], value[32];
	FILE *file;

	snprintf(path, sizeof(path), PARAMETERS "%s", names[below(6)]);
	snprintf(value, sizeof(value), "%lu%s", below(2) ? below(3000) : number(),
		 below(2) ? "" : "%");
	file = fopen(path, "we");
	if (file) {
		fputs(value, file);
		fclose(file);
	}
}

static void fuzz_one(void)
{
	switch (below(32)) {
	case 0 ... 3:
		return fuzz_open();
	case 4 ... 8:
		return fuzz_alloc();
	case 9 ... 13:
		return fuzz_events();
	case 14 ... 16:
		return fuzz_ioctl();
	case 17 ... 19:
		return fuzz_map();
	case 20 ... 22:
		return fuzz_mapping();
	case 23 ... 26:
		return fuzz_close();
	case 27:
		return keep_file(dup(some_file()));
	case 28 ... 30:
		return fuzz_netlink();
	default:
		/* These take much longer than the others. */
		if (!below(8))
			return fuzz_fork();
		return fuzz_parameters();
	}
}

static void *fuzz_thread(void *seed)
{
	state = (uint64_t)seed;
	while (atomic_fetch_sub(&calls_left, 1) > 0)
		fuzz_one();
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned long seed, threads;

	CHECK(argc == 6);
	seed = strtoul(argv[1], NULL, 0);
	calls_left = strtol(argv[2], NULL, 0);
	threads = strtoul(argv[3], NULL, 0);
	family = atoi(argv[4]);
	group = atoi(argv[5]);
	for (int i = 0; i < FILES; i++)
		files[i] = -1;
	for (int i = 0; i < MAPPINGS; i++)
		CHECK(pthread_mutex_init(&mappings[i].lock, NULL) == 0);
	readable = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(readable != MAP_FAILED);
	CHECK(munmap(readable + PAGE, PAGE) == 0);
	/* Descriptors that a call returned and that were then taken from its argument are lost. */
	CHECK(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 1024, 1024 }) == 0);

	pthread_t started[threads];

	for (unsigned long i = 0; i < threads; i++)
		CHECK(pthread_create(&started[i], NULL, fuzz_thread,
				     (void *)((seed * threads + i) * 0x9e3779b97f4a7c15UL | 1)) ==
		      0);
	for (unsigned long i = 0; i < threads; i++)
		CHECK(pthread_join(started[i], NULL) == 0);
	return 0;
}
