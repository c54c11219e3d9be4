// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fork.h"
#include "gate.h"
#include "log.h"
#include "record.h"
#include "trace.h"

/* Uses that are remembered: some passes, or one of a large model in small chunks. 12 MiB. */
#define MAX_USES (1u << 19)
/* VRAM left to the driver and to others when no limit is given: kernels, libraries' workspaces,
 * stacks. */
#define RESERVE_SHARE 16
#define RESERVE_MOST ((uint64_t)1 << 30)

static struct device *_Atomic devices[MAX_DEVICES];
static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool refused; /* connecting failed: it is not tried again */

static void *map_table(size_t bytes)
{
	void *table = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return table == MAP_FAILED ? NULL : table;
}

/* The state memfd, sealed so that the daemon may rely on its size. Returns the fd or -1. */
static int make_state(struct device *device)
{
	const size_t bytes = STATE_HEADER_BYTES + MAX_CHUNKS;
	int fd = memfd_create("greenboost-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *page;

	if (fd < 0)
		return -1;
	if (ftruncate(fd, (off_t)bytes) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		close(fd);
		return -1;
	}
	page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED) {
		close(fd);
		return -1;
	}
	device->state = page;
	device->state_map = (unsigned char *)page + STATE_HEADER_BYTES;
	device->state->magic = STATE_MAGIC;
	device->state->version = STATE_VERSION;
	device->state->chunks = MAX_CHUNKS;
	return fd;
}

/* GREENBOOST_PAGING: what is done with what VRAM has no room for. */
static enum { PAGING_AUTO, PAGING_MAPPED, PAGING_OFF } paging_wanted(void)
{
	const char *text = getenv("GREENBOOST_PAGING");

	if (!text || !*text || !strcmp(text, "auto"))
		return PAGING_AUTO;
	if (!strcmp(text, "mapped"))
		return PAGING_MAPPED;
	if (!strcmp(text, "off"))
		return PAGING_OFF;
	log_warn("GREENBOOST_PAGING=%s is none of auto, mapped, off; using auto", text);
	return PAGING_AUTO;
}

static int connect_daemon(struct device *device)
{
	const char *path = getenv("GREENBOOST_SOCKET");
	char name[64];
	int state, error;

	if (!path || !*path || paging_wanted() == PAGING_OFF)
		return -1; /* not asked for: silently the driver alone */
	state = make_state(device);
	if (state < 0) {
		log_warn("cannot make the state page: %s", strerror(errno));
		return -1;
	}
	snprintf(name, sizeof(name), "%.50s:%d", program_invocation_short_name, device->ordinal);
	/* A file's name need not be UTF-8, nor its beginning, and the daemon takes nothing else. */
	for (char *c = name; *c; c++)
		if (*c & 0x80)
			*c = '?';
	device->client.recall = pager_on_recall;
	device->client.gone = residency_daemon_gone;
	device->client.counted_on = residency_counted_on;
	device->client.settled = residency_settled;
	device->client.arg = device;
	error = client_connect(&device->client, path, name, state, &device->terms);
	close(state);
	if (error) {
		log_warn("no memory beyond VRAM: the daemon at %s %s", path,
			 error == EPROTO || error == EPERM ? device->terms.message
							   : strerror(error));
		return -1;
	}
	device->chunk = device->terms.chunk;
	return 0;
}

static struct device *device_new(CUdevice ordinal)
{
	struct device *device = calloc(1, sizeof(*device));
	struct history *history;
	struct past *log;

	if (!device)
		return NULL;
	device->ordinal = ordinal;
	device->chunk_limit = MAX_CHUNKS;
	device->chunks = map_table(MAX_CHUNKS * sizeof(*device->chunks));
	history = map_table(MAX_CHUNKS * sizeof(*history));
	log = map_table(MAX_USES * sizeof(*log));
	device->map.low = UINT64_MAX;
	predict_init(&device->predictor, history, log, MAX_USES);
	pthread_mutex_init(&device->allocate, NULL);
	pthread_mutex_init(&device->lock, NULL);
	pthread_cond_init(&device->changed, NULL);
	pthread_cond_init(&device->work, NULL);
	pthread_cond_init(&device->to_open, NULL);
	pthread_cond_init(&device->to_close, NULL);
	timing_init(&device->mover.timing);
	if (!device->chunks || !history || !log || connect_daemon(device)) {
		free(device); /* its tables, at most a few pages, stay: this happens once */
		return NULL;
	}
	return device;
}

struct device *device_connect(CUdevice ordinal)
{
	struct device *device;

	if (ordinal < 0 || ordinal >= MAX_DEVICES || atomic_load(&refused))
		return NULL;
	device = atomic_load(&devices[ordinal]);
	if (device)
		return device;
	pthread_mutex_lock(&making);
	device = atomic_load(&devices[ordinal]);
	if (!device && !atomic_load(&refused)) {
		device = device_new(ordinal);
		atomic_store(&refused, !device);
		atomic_store(&devices[ordinal], device);
	}
	pthread_mutex_unlock(&making);
	return device;
}

/* What allocations may take: GREENBOOST_VRAM, bytes or a share in percent, else nearly all that is
 * free. why: in a word of the protocol. */
static uint64_t vram_limit(const char **why)
{
	const char *text = getenv("GREENBOOST_VRAM");
	size_t available = 0, total = 0;
	uint64_t limit, reserve;
	char *end;

	driver.cuMemGetInfo_v2(&available, &total);
	reserve = total / RESERVE_SHARE < RESERVE_MOST ? total / RESERVE_SHARE : RESERVE_MOST;
	limit = available > reserve ? available - reserve : 0;
	*why = "free";
	if (!text || !*text)
		return limit;
	limit = strtoull(text, &end, 10);
	if (strchr(text, '%'))
		limit = (uint64_t)((double)total / 100 * strtod(text, NULL));
	else if (*end)
		log_warn("GREENBOOST_VRAM=%s is neither bytes nor a percentage; using %llu bytes",
			 text, (unsigned long long)limit);
	*why = limit <= available ? "asked" : "available";
	return limit < available ? limit : available;
}

/* Only to be shown: what comes of it does not matter. */
static void decided_done(void *arg, const struct reply *reply)
{
	(void)arg;
	(void)reply;
}

static void tell_decisions(struct device *device, const char *vram_source)
{
	struct message request;

	client_request(&request, "decided");
	message_string(&request, "paging", device->maps ? "mapped" : "auto");
	message_string(&request, "vram_source", vram_source);
	client_post(&device->client, &request, decided_done, NULL);
}

/* How fast the device can read its memory at most. */
static void know_speed(struct device *device)
{
	int khz = 0, bits = 0, cache = 0;

	driver.cuDeviceGetAttribute(&khz, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, device->ordinal);
	driver.cuDeviceGetAttribute(&bits, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH,
				    device->ordinal);
	driver.cuDeviceGetAttribute(&cache, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, device->ordinal);
	/* Twice a clock. */
	device->sparse.speed = 2e3 * khz * bits / 8 / (double)device->chunk;
	device->sparse.cache = cache / (double)device->chunk;
}

/* With the context current. */
static bool activate(struct device *device)
{
	struct message request;
	struct reply reply;
	CUresult result;
	const char *vram_source;
	int supported = 0;
	uint32_t slots;

	if (driver.cuCtxGetCurrent(&device->context))
		return false;
	driver.cuDeviceGetAttribute(&supported,
				    CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
				    device->ordinal);
	if (!supported) {
		log_warn("no memory beyond VRAM: the device has no virtual memory management");
		return false;
	}
	device->limit = vram_limit(&vram_source);
	slots = (uint32_t)(device->limit / device->chunk);
	if (slots < LEAST_SLOTS) {
		log_warn("no memory beyond VRAM: %llu bytes of VRAM are fewer than %d chunks of "
			 "%zu; choose a smaller --chunk",
			 (unsigned long long)device->limit, LEAST_SLOTS, device->chunk);
		return false;
	}
	device->maps = paging_wanted() == PAGING_MAPPED;
	know_speed(device);
	result = mover_init(&device->mover, device->ordinal, device->context, device->chunk, slots);
	if (result) {
		log_warn("no memory beyond VRAM: %s", driver_error(result));
		return false;
	}
	client_request(&request, "vram");
	message_uint(&request, "slots", slots);
	message_uint(&request, "bytes", device->limit);
	if (client_call(&device->client, &request, &reply)) {
		log_warn("no memory beyond VRAM: %s", reply.message);
		return false;
	}
	tell_decisions(device, vram_source);
	device->slots_allowed = slots;
	atomic_store(&device->slots_announced, slots);
	device_gauge(device, COUNTER_VRAM_SLOTS, slots);
	if (!device->maps && !pins_parse(&device->pins, getenv("GREENBOOST_PIN")))
		log_warn("GREENBOOST_PIN=%s: write size=LOW..HIGH in bytes, or 0xLOW-0xHIGH, with "
			 "commas "
			 "between; what comes before the mistake holds",
			 getenv("GREENBOOST_PIN"));
	if (pager_start(device))
		return false;
	trace_open(device);
	/* Copies must be cut where VRAM and RAM meet. */
	if (record_open(device) || device->maps)
		residency_begin_paging(device);
	return true;
}

struct device *device_obtain(void)
{
	struct device *device;
	CUdevice ordinal;
	bool ready;

	if (driver.cuCtxGetDevice(&ordinal))
		return NULL;
	device = device_connect(ordinal);
	if (!device)
		return NULL;
	if (atomic_load_explicit(&device->ready, memory_order_acquire))
		return device;
	pthread_mutex_lock(&making);
	ready = atomic_load(&device->ready);
	if (!ready && !device->unusable) {
		ready = activate(device);
		device->unusable = !ready;
		atomic_store_explicit(&device->ready, ready, memory_order_release);
	}
	pthread_mutex_unlock(&making);
	return ready ? device : NULL;
}

struct device *device_connected(CUdevice ordinal)
{
	if (ordinal < 0 || ordinal >= MAX_DEVICES)
		return NULL;
	return atomic_load_explicit(&devices[ordinal], memory_order_acquire);
}

struct device *device_ready(CUdevice ordinal)
{
	struct device *device = device_connected(ordinal);

	return device && atomic_load_explicit(&device->ready, memory_order_acquire) ? device : NULL;
}

bool device_several(void)
{
	static atomic_int devices_seen;
	int count = atomic_load_explicit(&devices_seen, memory_order_relaxed);

	if (!count && !driver.cuDeviceGetCount(&count))
		atomic_store_explicit(&devices_seen, count, memory_order_relaxed);
	return count > 1;
}

bool device_wanted(void)
{
	const char *path = getenv("GREENBOOST_SOCKET");

	return path && *path && !atomic_load(&refused);
}

struct device *device_of(CUdeviceptr address)
{
	for (int i = 0; i < MAX_DEVICES; i++) {
		struct device *device = atomic_load_explicit(&devices[i], memory_order_acquire);

		/* Bounds only widen around addresses that this thread may know. */
		if (device && address >= __atomic_load_n(&device->map.low, __ATOMIC_RELAXED) &&
		    address < __atomic_load_n(&device->map.high, __ATOMIC_RELAXED)) {
			struct allocation *a;
			bool paged;

			pthread_mutex_lock(&device->lock);
			a = alloc_map_find(&device->map, address);
			paged = a && a->chunks;
			pthread_mutex_unlock(&device->lock);
			if (paged)
				return device;
		}
	}
	return NULL;
}

struct device *device_owning(CUdeviceptr base)
{
	for (int i = 0; i < MAX_DEVICES; i++) {
		struct device *device = atomic_load_explicit(&devices[i], memory_order_acquire);
		struct allocation *a;
		bool owns;

		if (!device)
			continue;
		pthread_mutex_lock(&device->lock);
		a = alloc_map_find(&device->map, base);
		owns = a && a->base == base;
		pthread_mutex_unlock(&device->lock);
		if (owns)
			return device;
	}
	return NULL;
}

struct device *device_paging(void)
{
	struct device *device;
	CUdevice ordinal;

	if (driver.cuCtxGetDevice(&ordinal) || ordinal < 0 || ordinal >= MAX_DEVICES)
		return NULL;
	device = atomic_load_explicit(&devices[ordinal], memory_order_acquire);
	return device && __atomic_load_n(&device->map.high, __ATOMIC_RELAXED) ? device : NULL;
}

void device_abandon(CUdevice ordinal)
{
	struct device *device;

	if (ordinal < 0 || ordinal >= MAX_DEVICES)
		return;
	device = atomic_exchange(&devices[ordinal], NULL);
	if (!device)
		return;
	record_close(device);
	trace_close(device);
	pthread_mutex_lock(&device->lock);
	device->stop_error = CUDA_ERROR_DEINITIALIZED;
	device->stopped = true;
	pthread_cond_broadcast(&device->changed);
	pthread_mutex_unlock(&device->lock);
	tickets_forget_context(device->context);
	client_close(&device->client); /* threads may still look at the rest */
}

void device_abandon_context(CUcontext context)
{
	for (int i = 0; i < MAX_DEVICES; i++) {
		struct device *device = atomic_load(&devices[i]);

		if (device && device->context == context)
			device_abandon(i);
	}
}

/*
 * A child of fork() has no CUDA and none of our threads, but the socket: were it
 * left open, the session would outlive its application as long as the child.
 */
static void in_child(void)
{
	pthread_mutex_init(&making, NULL);
	for (int i = 0; i < MAX_DEVICES; i++) {
		struct device *device = atomic_load(&devices[i]);

		if (!device)
			continue;
		client_forget(&device->client);
		mover_forget(&device->mover);
		atomic_store(&devices[i], NULL);
		atomic_store(&refused, true); /* CUDA was in use: it is not usable here */
	}
	record_forget();
	trace_forget();
}

IN_EVERY_CHILD(in_child)
