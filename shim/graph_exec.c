// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Executable graphs. What the kernels of one name is held when it is launched, as for one
 * launch. Where VRAM has no room for all of it at once, its nodes are given to the stream
 * one by one, each as a launch of its own: slower, and only where paging would otherwise
 * end.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "fault.h"
#include "fork.h"
#include "function.h"
#include "gate.h"
#include "graph_exec.h"
#include "graph_nodes.h"
#include "launch.h"
#include "log.h"

#define BUCKETS 1024

struct exec {
	CUgraphExec handle;
	struct exec *next; /* in its bucket */
	unsigned int references; /* one is the table's; guarded by table_lock */
	/*
	 * Guards what follows, and is held while the graph is launched or changed, which
	 * programs do not do at the same time.
	 */
	pthread_mutex_t lock;
	struct nodes nodes;
	bool unseen; /* the device may launch it */
	bool scanned; /* for addresses in [low, high): */
	uint64_t low, high;
	uint64_t *names; /* as nodes number them */
	uint32_t count, room;
	bool failed; /* no memory for them */
	uint64_t *distinct; /* the same without repetitions */
	uint32_t distinct_count;
	/*
	 * What the other nodes name has been fixed, but its memory may end, and other be
	 * mapped at the same addresses.
	 */
	struct extent *ranges;
	uint32_t range_count, range_room;
	struct ticket *last; /* the end of the last launch; NULL: it needs no waiting for */
	struct function *shown; /* NULL: nobody has written it down */
};

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct exec *buckets[BUCKETS];

static struct exec **bucket_of(CUgraphExec handle)
{
	return &buckets[(uintptr_t)handle * 0x9e3779b97f4a7c15u >> 54];
}

static void exec_put(struct exec *exec)
{
	bool last;

	pthread_mutex_lock(&table_lock);
	last = !--exec->references;
	pthread_mutex_unlock(&table_lock);
	if (!last)
		return;
	nodes_free(&exec->nodes);
	ticket_put(exec->last);
	pthread_mutex_destroy(&exec->lock);
	free(exec->names);
	free(exec->distinct);
	free(exec->ranges);
	free(exec);
}

static struct exec *exec_get(CUgraphExec handle)
{
	struct exec *exec;

	pthread_mutex_lock(&table_lock);
	for (exec = *bucket_of(handle); exec && exec->handle != handle; exec = exec->next)
		;
	if (exec)
		exec->references++;
	pthread_mutex_unlock(&table_lock);
	return exec;
}

static void exec_forget(CUgraphExec handle)
{
	struct exec **link, *exec;

	pthread_mutex_lock(&table_lock);
	for (link = bucket_of(handle); *link && (*link)->handle != handle; link = &(*link)->next)
		;
	exec = *link;
	if (exec)
		*link = exec->next;
	pthread_mutex_unlock(&table_lock);
	if (exec)
		exec_put(exec);
}

/* Takes over the nodes, also when there is no memory. Returns one reference, or NULL. */
static struct exec *exec_add(CUgraphExec handle, struct nodes *nodes)
{
	struct exec *exec = malloc(sizeof(*exec));

	if (!exec) {
		nodes_free(nodes);
		return NULL;
	}
	*exec = (struct exec){ .handle = handle, .references = 2, .nodes = *nodes };
	pthread_mutex_init(&exec->lock, NULL);
	exec_forget(handle); /* of a context that has ended */
	pthread_mutex_lock(&table_lock);
	exec->next = *bucket_of(handle);
	*bucket_of(handle) = exec;
	pthread_mutex_unlock(&table_lock);
	return exec;
}

/* It has no CUDA, and another thread may have been at it. */
static void in_child(void)
{
	pthread_mutex_init(&table_lock, NULL);
	memset(buckets, 0, sizeof(buckets));
}

IN_EVERY_CHILD(in_child)

/* ---- what it names ---- */

static void found(void *arg, uint64_t address)
{
	struct exec *exec = arg;

	if (exec->count == exec->room) {
		uint32_t room = exec->room ? 2 * exec->room : 256;
		uint64_t *grown = realloc(exec->names, room * sizeof(*grown));

		if (!grown) {
			exec->failed = true;
			return;
		}
		exec->names = grown;
		exec->room = room;
	}
	exec->names[exec->count++] = address;
}

static void found_range(void *arg, struct extent range)
{
	struct exec *exec = arg;

	if (range.begin == range.end)
		return;
	if (exec->range_count == exec->range_room) {
		uint32_t room = exec->range_room ? 2 * exec->range_room : 16;
		struct extent *grown = realloc(exec->ranges, room * sizeof(*grown));

		if (!grown) {
			exec->failed = true;
			return;
		}
		exec->ranges = grown;
		exec->range_room = room;
	}
	exec->ranges[exec->range_count++] = range;
}

static int by_address(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

/* Where any device's paged memory lies. */
static void bounds(uint64_t *low, uint64_t *high)
{
	*low = UINT64_MAX;
	*high = 0;
	for (CUdevice i = 0; i < MAX_DEVICES; i++) {
		struct device *device = device_connected(i);
		uint64_t from, to;

		if (!device)
			continue;
		from = __atomic_load_n(&device->map.low, __ATOMIC_RELAXED);
		to = __atomic_load_n(&device->map.high, __ATOMIC_RELAXED);
		if (to && from < *low)
			*low = from;
		if (to > *high)
			*high = to;
	}
}

/* Look through the parameters, unless that was done where memory lies now. In the exec's lock. */
static CUresult exec_scan(struct exec *exec)
{
	uint64_t low, high, *distinct;
	uint32_t kept = 0;

	bounds(&low, &high);
	if (exec->scanned && low >= exec->low && high <= exec->high)
		return CUDA_SUCCESS;
	exec->count = exec->range_count = 0;
	exec->failed = false;
	nodes_ranges(&exec->nodes, found_range, exec);
	nodes_scan(&exec->nodes, low, high, found, exec, &exec->count);
	distinct = realloc(exec->distinct, (exec->count + 1) * sizeof(*distinct));
	if (distinct)
		exec->distinct = distinct;
	exec->scanned = distinct && !exec->failed;
	if (!exec->scanned)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (exec->count)
		memcpy(distinct, exec->names, exec->count * sizeof(*distinct));
	qsort(distinct, exec->count, sizeof(*distinct), by_address);
	for (uint32_t i = 0; i < exec->count; i++)
		if (!kept || distinct[i] != distinct[kept - 1])
			distinct[kept++] = distinct[i];
	exec->distinct_count = kept;
	exec->low = low;
	exec->high = high;
	return CUDA_SUCCESS;
}

/* The device whose memory it names; NULL: none's. */
static CUresult exec_device(const struct exec *exec, struct device **device)
{
	struct device *only = NULL;
	bool several = false;

	*device = NULL;
	if (!exec->distinct_count && !exec->range_count)
		return CUDA_SUCCESS;
	for (CUdevice i = 0; i < MAX_DEVICES; i++) {
		struct device *d = device_connected(i);

		if (!d || !__atomic_load_n(&d->map.high, __ATOMIC_RELAXED))
			continue;
		several = only;
		only = d;
	}
	if (!several) {
		*device = only;
		return CUDA_SUCCESS;
	}
	for (uint32_t i = 0; i < exec->distinct_count + exec->range_count; i++) {
		struct device *d = device_of(
			i < exec->distinct_count ? exec->distinct[i]
						 : exec->ranges[i - exec->distinct_count].begin);

		if (!d || d == *device)
			continue;
		if (*device) {
			/* No program was seen to. */
			log_warn("one graph cannot name memory of two devices that both page it");
			return CUDA_ERROR_NOT_SUPPORTED;
		}
		*device = d;
	}
	return CUDA_SUCCESS;
}

/*
 * Hold all that its addresses may mean. Windows are not cut to fit, as one launch's are:
 * so many of them would be cut to next to nothing. CUDA_ERROR_OUT_OF_MEMORY: there is no
 * room for it at once. The caller calls launch_end().
 */
static CUresult begin(struct exec *exec, struct device *device, struct launch *launch,
		      CUstream stream, unsigned int variant)
{
	const struct parts parts = { exec->distinct, exec->distinct_count, exec->ranges,
				     exec->range_count };

	if (!exec->shown && (atomic_load(&record_on) || atomic_load(&trace_on)))
		exec->shown = function_named("graph");
	launch->what = (struct launched){ .graph = exec->handle, .shown = exec->shown };
	return launch_begin_whole(launch, device, &parts, stream, variant);
}

/* ---- launching ---- */

/* One is over before the next begins, in whatever stream: the driver knows only of its own. */
static CUresult wait_for_last(const struct exec *exec, CUstream stream, unsigned int variant)
{
	uint64_t key = stream_key(stream, variant);

	if (!exec->last || (key && atomic_load(&exec->last->stream) == key))
		return CUDA_SUCCESS;
	return ticket_wait_on(exec->last, stream, variant);
}

static void launched(struct exec *exec, CUstream stream, unsigned int variant)
{
	ticket_put(exec->last);
	exec->last = ticket_record(stream, variant);
	if (!exec->last)
		driver.cuStreamSynchronize[variant](stream);
}

static CUresult refuse(const struct device *device, const char *why)
{
	log_warn(
		"a graph was not launched: its kernels name more memory than fits VRAM at once, "
		"%llu MiB, and it has %s; give it more VRAM (--vram), or make several graphs of it",
		(unsigned long long)((uint64_t)residency_capacity(device) * device->chunk >> 20),
		why);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult launch_one_by_one(struct exec *exec, struct device *device, CUstream stream,
				  unsigned int variant)
{
	static atomic_flag said = ATOMIC_FLAG_INIT;
	CUcontext current = NULL;
	CUresult result;

	if (!nodes_can_fit(&exec->nodes, device, exec->names))
		return refuse(device, "a kernel that does so alone");
	/* The value may come from this thread, later. */
	if (nodes_await(&exec->nodes) && nodes_read_early(&exec->nodes))
		return refuse(device, "a wait for a value and a copy from memory that is not "
				      "pinned");
	if (!atomic_flag_test_and_set(&said))
		log_warn("a graph names more memory than fits VRAM at once: its nodes are launched "
			 "one by one");
	/* Launches of before anybody looked have left no ticket. During a capture they cannot be
	 * waited for; that has been done before it began. */
	if (!driver.cuCtxGetCurrent(&current) && current == device->context)
		residency_wait_for_the_unseen(device);
	result = wait_for_last(exec, stream, variant);
	if (!result)
		result = nodes_issue(&exec->nodes, device, exec->names, stream, variant);
	launched(exec, stream, variant);
	return result;
}

/* It names nothing that is paged. */
static CUresult launch_unheld(const struct exec *exec, CUstream stream, unsigned int variant)
{
	CUresult result = driver.cuGraphLaunch[variant](exec->handle, stream);
	struct device *device = !result && nodes_await(&exec->nodes) ? device_paging() : NULL;

	if (device)
		residency_await(device, stream, variant);
	return result;
}

/* In the exec's lock. */
static CUresult launch_exec(struct exec *exec, CUstream stream, unsigned int variant)
{
	struct launch launch = { .captured = false };
	struct device *device;
	const char *bound;
	CUresult result = exec_scan(exec);

	if (!result)
		result = exec_device(exec, &device);
	if (result || !device)
		return result ? result : launch_unheld(exec, stream, variant);
	bound = nodes_bound(&exec->nodes);
	result = begin(exec, device, &launch, stream, variant);
	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		return bound ? refuse(device, bound)
			     : launch_one_by_one(exec, device, stream, variant);
	if (result)
		return result;
	device_count(device, COUNTER_LAUNCHES, 1);
	result = wait_for_last(exec, stream, variant);
	if (!result)
		result = driver.cuGraphLaunch[variant](exec->handle, stream);
	if (!result && nodes_await(&exec->nodes))
		residency_await(device, stream, variant);
	launch_end(&launch);
	if (!bound)
		launched(exec, stream, variant);
	return result;
}

CUresult hook_cuGraphLaunch(unsigned int variant, CUgraphExec handle, CUstream stream)
{
	struct exec *exec;
	CUresult result;

	if (gate_enter()) {
		result = driver.cuGraphLaunch[variant](handle, stream);
		gate_leave();
		return fault_check(result);
	}
	exec = launch_captured(stream, variant) ? NULL : exec_get(handle);
	if (!exec)
		return driver.cuGraphLaunch[variant](handle, stream);
	pthread_mutex_lock(&exec->lock);
	result = launch_exec(exec, stream, variant);
	pthread_mutex_unlock(&exec->lock);
	exec_put(exec);
	return fault_check(result);
}

/* ---- instantiating ---- */

/* What may run without the host's knowing stays in VRAM for good. */
static CUresult fix_unseen(struct exec *exec)
{
	struct launch launch = { .captured = true };
	struct device *device;
	CUresult result;

	if (!exec->unseen && !nodes_unseen(&exec->nodes))
		return CUDA_SUCCESS;
	result = exec_scan(exec);
	if (!result)
		result = exec_device(exec, &device);
	if (result || !device)
		return result;
	result = begin(exec, device, &launch, NULL, 0);
	if (!result)
		launch_end(&launch);
	if (result == CUDA_ERROR_OUT_OF_MEMORY)
		log_warn("what a graph names that the device itself may launch or change must stay "
			 "in VRAM, and has no room beside what has to stay already; give it more "
			 "VRAM (--vram)");
	return result;
}

static CUresult note(CUgraphExec handle, CUgraph graph, uint64_t flags)
{
	struct nodes nodes;
	struct exec *exec;
	CUresult result;

	/* Also while nothing is paged: addresses may be named before there is memory at them. */
	if (!device_wanted())
		return CUDA_SUCCESS;
	result = nodes_read(&nodes, graph);
	exec = result ? NULL : exec_add(handle, &nodes);
	if (!exec)
		return CUDA_ERROR_OUT_OF_MEMORY;
	pthread_mutex_lock(&exec->lock);
	exec->unseen = flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
	result = fix_unseen(exec);
	pthread_mutex_unlock(&exec->lock);
	exec_put(exec);
	return result;
}

/* The driver has made it. */
static CUresult instantiated(CUgraphExec *exec, CUgraph graph, uint64_t flags)
{
	CUresult result = note(*exec, graph, flags);

	if (!result)
		return CUDA_SUCCESS;
	exec_forget(*exec);
	driver.cuGraphExecDestroy(*exec);
	*exec = NULL;
	return result;
}

CUresult hook_cuGraphInstantiate(unsigned int variant, CUgraphExec *exec, CUgraph graph,
				 CUgraphNode *error_node, char *log, size_t size)
{
	CUresult result = driver.cuGraphInstantiate[variant](exec, graph, error_node, log, size);

	return result ? result : instantiated(exec, graph, 0);
}

CUresult hook_cuGraphInstantiateWithFlags(unsigned int variant, CUgraphExec *exec, CUgraph graph,
					  unsigned long long flags)
{
	CUresult result = driver.cuGraphInstantiateWithFlags(exec, graph, flags);

	(void)variant;
	return result ? result : instantiated(exec, graph, flags);
}

CUresult hook_cuGraphInstantiateWithParams(unsigned int variant, CUgraphExec *exec, CUgraph graph,
					   CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
	CUresult result = driver.cuGraphInstantiateWithParams[variant](exec, graph, params);

	return result ? result : instantiated(exec, graph, params->flags);
}

CUresult hook_cuGraphExecDestroy(unsigned int variant, CUgraphExec exec)
{
	(void)variant;
	exec_forget(exec); /* first: the handle may be another's as soon as it is not this one's */
	return driver.cuGraphExecDestroy(exec);
}

/* ---- changing ---- */

/* Also for one that was not seen to be made. NULL and success: there is no daemon. */
static CUresult exec_obtain(CUgraphExec handle, struct exec **exec)
{
	struct nodes nodes = { .bound = "nodes that are not known" };

	*exec = exec_get(handle);
	if (*exec || !device_wanted())
		return CUDA_SUCCESS;
	*exec = exec_add(handle, &nodes);
	return *exec ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult exec_changed(CUgraphExec handle, CUgraphNode node, int type, const void *params)
{
	struct exec *exec;
	struct node *known;
	CUresult result = exec_obtain(handle, &exec);

	if (!exec)
		return result;
	pthread_mutex_lock(&exec->lock);
	known = nodes_find(&exec->nodes, node);
	if (!known || known->type != type) {
		/* What it had may still be held: too much is harmless, too little is not. */
		exec->nodes.bound = "nodes that are not known";
		known = nodes_add(&exec->nodes, node, type);
	}
	result = known ? node_set(known, params) : CUDA_ERROR_OUT_OF_MEMORY;
	exec->scanned = false;
	if (!result)
		result = fix_unseen(exec);
	pthread_mutex_unlock(&exec->lock);
	exec_put(exec);
	return result;
}

static CUresult updated(CUgraphExec handle, CUgraph graph)
{
	struct nodes nodes;
	struct exec *exec;
	CUresult result = exec_obtain(handle, &exec);

	if (!exec)
		return result;
	result = nodes_read(&nodes, graph);
	pthread_mutex_lock(&exec->lock);
	if (!result)
		nodes_replace(&exec->nodes, &nodes);
	exec->scanned = false;
	if (!result)
		result = fix_unseen(exec);
	pthread_mutex_unlock(&exec->lock);
	exec_put(exec);
	return result;
}

CUresult hook_cuGraphExecUpdate(unsigned int variant, CUgraphExec exec, CUgraph graph,
				CUgraphNode *error_node, int *update)
{
	CUresult result = driver.cuGraphExecUpdate(exec, graph, error_node, update);

	(void)variant;
	return result ? result : updated(exec, graph);
}

CUresult hook_cuGraphExecUpdate_v2(unsigned int variant, CUgraphExec exec, CUgraph graph,
				   CUgraphExecUpdateResultInfo *info)
{
	CUresult result = driver.cuGraphExecUpdate_v2(exec, graph, info);

	(void)variant;
	return result ? result : updated(exec, graph);
}

CUresult hook_cuGraphNodeSetEnabled(unsigned int variant, CUgraphExec handle, CUgraphNode node,
				    unsigned int enabled)
{
	CUresult result = driver.cuGraphNodeSetEnabled(handle, node, enabled);
	struct exec *exec = result ? NULL : exec_get(handle);
	struct node *known;

	(void)variant;
	if (!exec)
		return result;
	pthread_mutex_lock(&exec->lock);
	known = nodes_find(&exec->nodes, node);
	if (known)
		known->disabled = !enabled;
	exec->scanned = false;
	pthread_mutex_unlock(&exec->lock);
	exec_put(exec);
	return result;
}
