// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "gate.h"
#include "log.h"
#include "pager.h"
#include "thread.h"

/* How long the pager sleeps while launches or copies are under way: AGAIN_NS of pager.h. */
#define AGAIN 100e-6
/* Of what moving a chunk costs: cuMemUnmap 74, cuMemMap 4, cuMemSetAccess 57 us on an H100. */
#define UNMAP (74.0 / 135)
#define MAP (4.0 / 135)
#define SET_ACCESS (57.0 / 135)
/* A session has no more arenas than MAX_ARENAS, and none larger than this. */
#define ARENA_SLOTS 64

struct CUstream_st {
	double end; /* of what it was given */
};

struct CUevent_st {
	double at;
};

/* An answer of the daemon's that is still to come. */
struct answer {
	double at;
	client_done done;
	void *arg;
	struct reply reply;
	struct answer *next;
};

static struct {
	const struct machine *m;
	struct device *device;
	double program, pager; /* each thread's time */
	bool paging; /* it is the pager's turn */
	bool blocked; /* the program waits for it */
	double reads, writes; /* the disk is busy until */
	double opens; /* and whoever makes and opens arenas */
	struct answer *answers; /* the earliest first */
	const char *op; /* of the request that is being made */
	uint32_t arenas, arenas_most; /* granted */
	uint64_t *content; /* of each chunk: changes when it is changed */
	struct CUstream_st stream; /* the program's */
} now;

struct driver driver;

static double *time_here(void)
{
	return now.paging ? &now.pager : &now.program;
}

static double later(double a, double b)
{
	return a > b ? a : b;
}

/* ---- the driver ---- */

static CUresult stream_create(CUstream *stream, unsigned int flags)
{
	(void)flags;
	*stream = calloc(1, sizeof(**stream));
	return *stream ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult stream_synchronize(CUstream stream)
{
	*time_here() = later(*time_here(), stream->end);
	return CUDA_SUCCESS;
}

static CUresult context_synchronize(void)
{
	return stream_synchronize(&now.stream);
}

static CUresult event_create(CUevent *event, unsigned int flags)
{
	(void)flags;
	*event = calloc(1, sizeof(**event));
	return *event ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult event_record(CUevent event, CUstream stream)
{
	event->at = later(*time_here(), stream->end);
	return CUDA_SUCCESS;
}

static CUresult event_query(CUevent event)
{
	return event->at <= *time_here() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

static CUresult event_synchronize(CUevent event)
{
	*time_here() = later(*time_here(), event->at);
	return CUDA_SUCCESS;
}

static CUresult stream_wait(CUstream stream, CUevent event, unsigned int flags)
{
	(void)flags;
	stream->end = later(stream->end, event->at);
	return CUDA_SUCCESS;
}

static CUresult copy_up(CUdeviceptr to, const void *from, size_t bytes, CUstream stream)
{
	(void)to;
	(void)from;
	stream->end = later(*time_here(), stream->end) + (double)bytes / now.m->up;
	return CUDA_SUCCESS;
}

static CUresult copy_down(void *to, CUdeviceptr from, size_t bytes, CUstream stream)
{
	(void)to;
	(void)from;
	stream->end = later(*time_here(), stream->end) + (double)bytes / now.m->down;
	return CUDA_SUCCESS;
}

static CUresult reserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
			unsigned long long flags)
{
	(void)bytes;
	(void)alignment;
	(void)hint;
	(void)flags;
	*address = 1ull << 46; /* above what allocations are given */
	return CUDA_SUCCESS;
}

static CUresult address_free(CUdeviceptr address, size_t bytes)
{
	(void)address;
	(void)bytes;
	return CUDA_SUCCESS;
}

static CUresult create(CUmemGenericAllocationHandle *handle, size_t bytes,
		       const CUmemAllocationProp *prop, unsigned long long flags)
{
	(void)bytes;
	(void)prop;
	(void)flags;
	*handle = 1;
	return CUDA_SUCCESS;
}

static CUresult release(CUmemGenericAllocationHandle handle)
{
	(void)handle;
	return CUDA_SUCCESS;
}

static CUresult map(CUdeviceptr address, size_t bytes, size_t offset,
		    CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	(void)address;
	(void)bytes;
	(void)offset;
	(void)handle;
	(void)flags;
	*time_here() += MAP * now.m->move;
	return CUDA_SUCCESS;
}

static CUresult set_access(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
			   size_t count)
{
	(void)address;
	(void)bytes;
	(void)access;
	(void)count;
	*time_here() += SET_ACCESS * now.m->move;
	return CUDA_SUCCESS;
}

static CUresult unmap(CUdeviceptr address, size_t bytes)
{
	(void)address;
	(void)bytes;
	*time_here() += UNMAP * now.m->move;
	return CUDA_SUCCESS;
}

static CUresult host_register(void *base, size_t bytes, unsigned int flags)
{
	(void)base;
	(void)flags;
	(void)bytes; /* see client_post(): another thread does it */
	return CUDA_SUCCESS;
}

static CUresult host_unregister(void *base)
{
	(void)base;
	return CUDA_SUCCESS;
}

static CUresult context_current(CUcontext *context)
{
	*context = (CUcontext)&now;
	return CUDA_SUCCESS;
}

const char *driver_error(CUresult error)
{
	return error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "an error";
}

static const struct driver numbers = {
	.cuCtxGetCurrent = context_current,
	.cuCtxSynchronize = context_synchronize,
	.cuEventCreate = event_create,
	.cuEventQuery = event_query,
	.cuEventRecord = event_record,
	.cuEventSynchronize = event_synchronize,
	.cuMemAddressFree = address_free,
	.cuMemAddressReserve = reserve,
	.cuMemCreate = create,
	.cuMemHostRegister_v2 = host_register,
	.cuMemHostUnregister = host_unregister,
	.cuMemMap = map,
	.cuMemRelease = release,
	.cuMemSetAccess = set_access,
	.cuMemUnmap = unmap,
	.cuMemcpyDtoHAsync_v2 = { copy_down },
	.cuMemcpyHtoDAsync_v2 = { copy_up },
	.cuStreamCreate = stream_create,
	.cuStreamSynchronize = { stream_synchronize },
	.cuStreamWaitEvent = stream_wait,
};

/* ---- what else the pager calls ---- */

/* As the kernel would find it: equal if and only if the bytes are. */
void summer_init(struct summer *summer)
{
	summer->kernel = (CUfunction)&now;
}

CUresult summer_take(struct summer *summer, CUdeviceptr data, size_t bytes, struct checksum *sum)
{
	const struct mover *mover = &now.device->mover;
	uint32_t chunk = mover->vram[(data - mover->alias) / mover->chunk].chunk;

	(void)summer;
	*time_here() += now.m->sum + (double)bytes / now.m->sum_speed;
	*sum = (struct checksum){ { now.content[chunk], chunk } };
	return CUDA_SUCCESS;
}

bool gate_forbid_captures(void)
{
	return true;
}

void gate_allow_captures(void)
{
}

void gate_close(void)
{
}

void log_warn(const char *format, ...)
{
	(void)format; /* what fails is told by what comes of it */
}

int thread_start(pthread_t *thread, void *(*run)(void *), void *arg)
{
	(void)thread;
	(void)run;
	(void)arg;
	return ENOSYS;
}

/* ---- the daemon ---- */

void client_request(struct message *request, const char *op)
{
	message_start(request);
	now.op = op;
}

static double disk(double *busy, double speed)
{
	*busy = later(*busy, *time_here()) + (double)now.device->chunk / speed;
	return *busy + now.m->disk_latency;
}

void client_post(struct client *client, struct message *request, client_done done, void *arg)
{
	struct answer *answer = calloc(1, sizeof(*answer)), **at = &now.answers;

	(void)client;
	*answer = (struct answer){ *time_here(), done, arg, { .fd = -1 }, NULL };
	if (!strcmp(now.op, "fetch")) {
		answer->at = disk(&now.reads, now.m->disk_read);
		answer->reply.kept = request->bytes[request->length - 1]; /* as it was asked for */
	} else if (!strcmp(now.op, "spill")) {
		answer->at = disk(&now.writes, now.m->disk_write);
	} else if (!strcmp(now.op, "arena")) {
		now.opens = later(now.opens, *time_here()) +
			    (double)now.device->terms.arena / now.m->pin;
		answer->at = now.opens;
		answer->reply.arena = ++now.arenas;
		answer->reply.error = now.arenas > now.arenas_most ? ENOMEM : 0;
		if (!answer->reply.error)
			answer->reply.fd = memfd_create("greenboost-replay", MFD_CLOEXEC);
	}
	while (*at && (*at)->at <= answer->at)
		at = &(*at)->next;
	answer->next = *at;
	*at = answer;
}

int client_call(struct client *client, struct message *request, struct reply *reply)
{
	(void)client;
	(void)request;
	*reply = (struct reply){ .fd = -1 };
	return 0;
}

void client_return(struct client *client, uint64_t arena)
{
	(void)client, (void)arena; /* none is of no use here */
}

void client_answer_recall(struct client *client, uint64_t id, uint64_t arena, int error)
{
	(void)arena;
	(void)client;
	(void)id;
	(void)error;
}

/* ---- the two threads ---- */

/*
 * Let the pager's time go on to the next thing that happens, but not past `end`. False:
 * nothing will.
 */
static bool let_time_pass(double end)
{
	struct answer *answer = now.answers;

	if (answer && (answer->at <= end || now.pager >= end)) {
		now.answers = answer->next;
		now.pager = later(now.pager, answer->at);
		answer->done(answer->arg, &answer->reply);
		free(answer);
		if (now.device->arena_answered) {
			take_back(now.device);
			lower_open(now.device);
			let_go(now.device);
		}
		return true;
	}
	if (now.pager >= end)
		return false;
	now.pager = end;
	return true;
}

static void pager_does(void)
{
	now.paging = true;
	if (!now.m->look_ahead)
		now.device->prefetch = false;
	pager_turn(now.device);
	now.paging = false;
}

/* Whatever waits for another thread comes here (see core.py). */
int replay_cond_wait(pthread_cond_t *condition, pthread_mutex_t *lock)
{
	(void)condition;
	if (!now.paging) {
		now.blocked = true;
		now.pager = later(now.pager, now.program);
		pager_does();
		now.program = later(now.program, now.pager);
		now.blocked = false;
		return 0;
	}
	pthread_mutex_unlock(lock);
	if (!let_time_pass(now.blocked ? now.pager : now.program))
		now.device->stopped = true; /* both wait for each other */
	pthread_mutex_lock(lock);
	return 0;
}

int replay_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *lock,
			  const struct timespec *until)
{
	double end = now.pager + AGAIN;

	(void)condition;
	(void)until;
	if (!now.blocked && end > now.program)
		end = now.program;
	pthread_mutex_unlock(lock);
	let_time_pass(end);
	pthread_mutex_lock(lock);
	return ETIMEDOUT;
}

double machine_time(void)
{
	return now.program;
}

void machine_pass_time(double seconds)
{
	struct device *device = now.device;

	now.program += seconds;
	take_back(device);
	while (now.pager < now.program)
		pager_does();
	let_go(device);
}

CUstream machine_stream(void)
{
	return &now.stream;
}

double machine_stream_end(void)
{
	return now.stream.end;
}

double machine_compute(double seconds)
{
	double start = later(now.program, now.stream.end);

	now.stream.end = start + seconds;
	return start;
}

void machine_synchronize(void)
{
	machine_pass_time(later(now.stream.end - now.program, 0));
}

void machine_end(struct allocation *allocation)
{
	struct ending ending = { allocation, allocation->first, allocation->chunks, true };
	struct device *device = now.device;

	machine_synchronize();
	take_back(device);
	device->ending = &ending;
	while (device->ending)
		replay_cond_wait(&device->changed, &device->lock);
	let_go(device);
}

void machine_change(uint32_t chunk)
{
	now.content[chunk]++;
}

struct device *machine_new(const struct machine *machine, uint32_t chunks)
{
	struct device *device = calloc(1, sizeof(*device));
	uint32_t arena = machine->ram / (MAX_ARENAS / 2) + 1;

	driver = numbers;
	memset(&now, 0, sizeof(now));
	now.m = machine;
	now.device = device;
	now.content = calloc(chunks + 1, sizeof(*now.content));
	if (arena > ARENA_SLOTS)
		arena = ARENA_SLOTS;
	now.arenas_most = machine->ram / arena;
	device->chunk = (size_t)machine->chunk;
	device->terms.arena = arena * device->chunk;
	device->chunk_limit = chunks;
	device->chunks = calloc(chunks + 1, sizeof(*device->chunks));
	device->map.low = UINT64_MAX;
	device->state = calloc(1, STATE_HEADER_BYTES);
	device->state_map = calloc(1, chunks + 1);
	device->slots_allowed = machine->slots;
	predict_init(&device->predictor, calloc(chunks + 1, sizeof(struct history)),
		     calloc(REPLAY_USES, sizeof(struct past)), REPLAY_USES);
	pthread_mutex_init(&device->lock, NULL);
	mover_init(&device->mover, 0, (CUcontext)&now, device->chunk, machine->slots);
	return device;
}

static void free_tickets(struct ticket **tickets, int count)
{
	for (int i = 0; i < count; i++)
		ticket_put(tickets[i]);
}

void machine_free(struct device *device)
{
	struct mover *mover = &device->mover;

	while (device->map.count)
		alloc_map_remove(&device->map, device->map.sorted[0]);
	for (uint32_t i = 0; i < device->chunk_limit; i++) {
		ticket_put(device->chunks[i].arrival);
		free_tickets(device->chunks[i].uses, CHUNK_USES);
	}
	for (; device->recent_count; device->recent_count--)
		ticket_put(device->recent[device->recent_first++ % RECENT_MOST]);
	free_tickets(device->rising, RISING_MOST);
	for (uint32_t i = 0; i < mover->slots; i++)
		ticket_put(mover->vram[i].busy);
	for (uint32_t i = 0; i < mover->arena_count; i++)
		mover_close_arena(mover, &mover->arenas[i]);
	free(mover->up);
	free(mover->down);
	free(mover->join);
	free(mover->vram);
	free(mover->arenas);
	free(device->map.sorted);
	free(device->predictor.chunks);
	free(device->predictor.log);
	free(device->chunks);
	free(device->state);
	free(device->state_map);
	free(now.content);
	free(device);
}
