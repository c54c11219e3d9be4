// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log.h"
#include "thread.h"

/* How soon what could not be sent is sent again. */
#define AGAIN_MS 10

/* What a recall is called here: the daemon's id of it, and which daemon's it is. */
#define TOKEN_BITS 40

void client_request(struct message *request, const char *op)
{
	message_start(request);
	message_string(request, "op", op);
}

void client_request_alloc(struct message *request, const struct held_allocation *allocation)
{
	client_request(request, "alloc");
	message_uint(request, "first", allocation->first);
	message_uint(request, "chunks", allocation->chunks);
	message_uint(request, "bytes", allocation->bytes);
	message_uint(request, "address", allocation->address);
}

/* In the lock; NULL if it has been answered. */
static struct pending *find_pending(struct client *client, uint64_t id)
{
	for (int i = 0; i < CLIENT_MAX_PENDING; i++)
		if (client->pending[i].id == id)
			return &client->pending[i];
	return NULL;
}

/* In the lock. */
static void cannot_follow(struct client *client)
{
	if (*client->key)
		log_warn(
			"no memory or no file to remember what another daemon has to be told; this "
			"program cannot go on without this one");
	*client->key = 0;
}

/* Take the request's entry out of the table; done is called without the lock. */
static void complete(struct client *client, uint64_t id, const struct reply *reply)
{
	struct pending *found;
	client_done done = NULL;
	void *arg = NULL;

	pthread_mutex_lock(&client->lock);
	found = find_pending(client, id);
	if (found) {
		done = found->done;
		arg = found->arg;
		found->id = 0;
		pthread_cond_broadcast(&client->room);
		/* The only answer with a file and a number: the next daemon must be told of it. */
		if (reply->fd >= 0 && !reply->error && *client->key &&
		    !held_add_arena(&client->held, reply->arena, reply->fd))
			cannot_follow(client);
	}
	pthread_mutex_unlock(&client->lock);
	if (done)
		done(arg, reply);
	else if (reply->fd >= 0)
		close(reply->fd);
}

/* Returns false for a packet that breaks the protocol. */
static bool dispatch(struct client *client, const unsigned char *buffer, size_t length, int fd)
{
	struct packet packet;

	if (!packet_read(&packet, buffer, length, fd))
		return false;
	if (packet.re)
		complete(client, packet.re, &packet.reply);
	else
		/* Only this thread changes the number of daemons. */
		client->recall(client->arg, client->daemons << TOKEN_BITS | packet.id,
			       packet.reply.arena);
	return true;
}

/* Fail everything that waits, once nothing more can come. */
static void lose(struct client *client)
{
	const struct reply gone = { .error = EPIPE, .message = "the daemon is gone", .fd = -1 };
	uint64_t id;

	do {
		id = 0;
		pthread_mutex_lock(&client->lock);
		client->lost = true;
		for (int i = 0; i < CLIENT_MAX_PENDING && !id; i++)
			id = client->pending[i].id;
		pthread_cond_broadcast(&client->room);
		held_free(&client->held);
		pthread_mutex_unlock(&client->lock);
		if (id)
			complete(client, id, &gone);
	} while (id);
}

/* Until the daemon is gone. False: it said what cannot be understood. */
static bool listen_to_daemon(struct client *client, unsigned char *buffer)
{
	size_t length;
	int fd;

	while ((length = packet_receive(client->fd, buffer, &fd)) > 0) {
		if (!dispatch(client, buffer, length, fd)) {
			log_warn("the daemon sent what this shim does not understand; are both of "
				 "one version?");
			return false;
		}
	}
	return true;
}

static void *client_thread(void *arg)
{
	struct client *client = arg;
	unsigned char *buffer = malloc(WIRE_MAX_PACKET);
	bool understood = buffer;

	pthread_setname_np(pthread_self(), "greenboost-sock");
	while (understood) {
		understood = listen_to_daemon(client, buffer);
		/* First, for somebody may be sending and wait for room in the socket. */
		shutdown(client->fd, SHUT_RDWR);
		pthread_mutex_lock(&client->sending);
		client->attached = false;
		pthread_mutex_unlock(&client->sending);
		client->gone(client->arg);
		if (!understood || !client_reattach(client))
			break;
	}
	shutdown(client->fd, SHUT_RDWR);
	client->settled(client->arg, -1);
	lose(client);
	free(buffer);
	pthread_detach(pthread_self()); /* nobody waits for it */
	return NULL;
}

static bool is_gone(int error)
{
	return error == EPIPE || error == ECONNRESET || error == ENOTCONN;
}

/*
 * Send it if there is a daemon that has not had it; else it waits for one. A
 * daemon that is gone is noticed by the reading thread. Returns an errno value for
 * what will not be sent at all. In sending.
 */
static int send_pending(struct client *client, uint64_t id)
{
	struct message message;
	struct pending *found;
	bool send;
	int error;

	pthread_mutex_lock(&client->lock);
	found = find_pending(client, id);
	send = found && !found->sent && client->attached;
	if (send) {
		found->sent = true;
		message = found->message;
	}
	pthread_mutex_unlock(&client->lock);
	/* The answer may come, and the entry be gone, before sendmsg returns. */
	error = send ? packet_send(client->fd, &message, -1) : 0;
	if (!error || is_gone(error))
		return 0;
	pthread_mutex_lock(&client->lock);
	found = find_pending(client, id);
	if (found)
		found->sent = false;
	pthread_mutex_unlock(&client->lock);
	return error;
}

bool client_attach(struct client *client, int socket)
{
	uint64_t last = 0, next;
	bool attached;

	pthread_mutex_lock(&client->sending);
	attached = dup3(socket, client->fd, O_CLOEXEC) >= 0;
	/* client_close() may have shut down what was there before. */
	if (atomic_load(&client->closing)) {
		shutdown(client->fd, SHUT_RDWR);
		attached = false;
	}
	client->attached = attached;
	client->daemons += attached;
	pthread_mutex_lock(&client->lock);
	for (int i = 0; i < CLIENT_MAX_PENDING; i++)
		client->pending[i].sent = false;
	pthread_mutex_unlock(&client->lock);
	/* In the order in which they were made: a chunk that is dropped may then be spilled. */
	do {
		next = 0;
		pthread_mutex_lock(&client->lock);
		for (int i = 0; i < CLIENT_MAX_PENDING; i++) {
			uint64_t id = client->pending[i].id;

			if (id > last && (!next || id < next))
				next = id;
		}
		pthread_mutex_unlock(&client->lock);
		last = next;
		/* Nobody else would send it: what the kernel has no memory for, in a moment. */
		while (next && attached && send_pending(client, next) &&
		       !atomic_load(&client->closing))
			poll(NULL, 0, AGAIN_MS);
	} while (next);
	pthread_mutex_unlock(&client->sending);
	return attached;
}

void client_post(struct client *client, struct message *request, client_done done, void *arg)
{
	struct reply failed = { .fd = -1 };
	uint64_t id = 0;
	int error;

	pthread_mutex_lock(&client->lock);
	while (!id && !client->lost) {
		struct pending *entry = find_pending(client, 0);

		if (!entry) {
			pthread_cond_wait(&client->room, &client->lock);
			continue;
		}
		id = ++client->next_id;
		message_uint(request, "id", id);
		message_end(request);
		*entry = (struct pending){ id, done, arg, false, *request };
	}
	pthread_mutex_unlock(&client->lock);
	if (!id) {
		failed.error = EPIPE;
		snprintf(failed.message, sizeof(failed.message), "the daemon is gone");
		done(arg, &failed);
		return;
	}
	pthread_mutex_lock(&client->sending);
	error = send_pending(client, id);
	pthread_mutex_unlock(&client->sending);
	if (error) {
		failed.error = EPIPE;
		snprintf(failed.message, sizeof(failed.message), "cannot reach the daemon: %s",
			 strerror(error));
		complete(client, id, &failed);
	}
}

struct call {
	pthread_mutex_t lock;
	pthread_cond_t answered;
	bool done;
	struct reply reply;
	struct client *client; /* of an allocation */
	struct held_allocation allocation;
};

static void call_done(void *arg, const struct reply *reply)
{
	struct call *call = arg;

	pthread_mutex_lock(&call->lock);
	call->reply = *reply;
	call->done = true;
	pthread_cond_signal(&call->answered);
	pthread_mutex_unlock(&call->lock);
}

static int call_and_wait(struct client *client, struct message *request, client_done done,
			 struct call *call, struct reply *reply)
{
	client_post(client, request, done, call);
	pthread_mutex_lock(&call->lock);
	while (!call->done)
		pthread_cond_wait(&call->answered, &call->lock);
	pthread_mutex_unlock(&call->lock);
	*reply = call->reply;
	return reply->error;
}

int client_call(struct client *client, struct message *request, struct reply *reply)
{
	struct call call = { .lock = PTHREAD_MUTEX_INITIALIZER,
			     .answered = PTHREAD_COND_INITIALIZER };

	return call_and_wait(client, request, call_done, &call, reply);
}

/* On the client's thread, so before it can tell another daemon what there is. */
static void alloc_done(void *arg, const struct reply *reply)
{
	struct call *call = arg;
	struct client *client = call->client;

	if (!reply->error) {
		pthread_mutex_lock(&client->lock);
		if (!held_add_allocation(&client->held, call->allocation))
			cannot_follow(client);
		pthread_mutex_unlock(&client->lock);
	}
	call_done(arg, reply);
}

int client_alloc(struct client *client, struct held_allocation allocation, struct reply *reply)
{
	struct call call = { .lock = PTHREAD_MUTEX_INITIALIZER,
			     .answered = PTHREAD_COND_INITIALIZER,
			     .client = client,
			     .allocation = allocation };
	struct message request;

	client_request_alloc(&request, &allocation);
	return call_and_wait(client, &request, alloc_done, &call, reply);
}

static void given_back(void *arg, const struct reply *reply)
{
	(void)arg;
	(void)reply; /* at worst it counts as this session's until the end */
}

/* The allocation goes on as this, with no chunks: not at all. */
static void give_back(struct client *client, struct held_allocation rest)
{
	bool attached, told;
	struct message request;
	struct reply reply;

	pthread_mutex_lock(&client->sending);
	pthread_mutex_lock(&client->lock);
	if (rest.chunks)
		held_trim_allocation(&client->held, rest);
	else
		held_remove_allocation(&client->held, rest.first);
	attached = client->attached;
	told = attached || client->telling;
	pthread_mutex_unlock(&client->lock);
	pthread_mutex_unlock(&client->sending);
	client_request(&request, rest.chunks ? "trim" : "free");
	message_uint(&request, "first", rest.first);
	if (rest.chunks)
		message_uint(&request, "chunks", rest.chunks);
	if (attached)
		client_call(client, &request, &reply);
	else if (told)
		client_post(client, &request, given_back, NULL);
}

void client_free(struct client *client, uint64_t first)
{
	give_back(client, (struct held_allocation){ .first = first });
}

void client_trim(struct client *client, struct held_allocation trimmed)
{
	give_back(client, trimmed);
}

void client_return(struct client *client, uint64_t arena)
{
	struct message request;

	pthread_mutex_lock(&client->lock);
	held_remove_arena(&client->held, arena);
	pthread_mutex_unlock(&client->lock);
	client_request(&request, "return");
	message_uint(&request, "arena", arena);
	client_post(client, &request, given_back, NULL);
}

void client_answer_recall(struct client *client, uint64_t token, uint64_t arena, int error)
{
	struct message answer;
	bool asked;

	message_start(&answer);
	message_uint(&answer, "re", token & (((uint64_t)1 << TOKEN_BITS) - 1));
	if (error) {
		message_string(&answer, "error", packet_error_name(error));
		message_string(&answer, "message", "the arena could not be emptied");
	}
	message_end(&answer);
	pthread_mutex_lock(&client->sending);
	asked = client->attached && token >> TOKEN_BITS == client->daemons;
	if (asked) {
		if (!error) {
			pthread_mutex_lock(&client->lock);
			held_remove_arena(&client->held, arena);
			pthread_mutex_unlock(&client->lock);
		}
		packet_send(client->fd, &answer,
			    -1); /* a lost daemon is noticed by the reading thread */
	}
	pthread_mutex_unlock(&client->sending);
	/* The daemon that asked is gone, and the one of now thinks that the session has it. */
	if (!asked && !error)
		client_return(client, arena);
}

int client_connect(struct client *client, const char *path, const char *name, int state_fd,
		   struct reply *hello)
{
	int error;

	pthread_mutex_init(&client->sending, NULL);
	pthread_mutex_init(&client->lock, NULL);
	pthread_cond_init(&client->room, NULL);
	client->fd = client->state = client->dialled = client->shown = -1;
	client->patience = client_patience();
	if (strlen(path) >= sizeof(client->path))
		return ENAMETOOLONG;
	strcpy(client->path, path);
	snprintf(client->name, sizeof(client->name), "%s", name);
	client->state = fcntl(state_fd, F_DUPFD_CLOEXEC, 0);
	client->fd = client->state < 0 ? -1 : client_dial(client);
	error = client->fd < 0 ? errno : client_hello(client, client->fd, hello);
	if (!error) {
		memcpy(client->key, hello->key, sizeof(client->key));
		client->chunk = hello->chunk;
		client->arena = hello->arena;
		client->attached = true;
		error = thread_start(&client->thread, client_thread, client);
	}
	if (error)
		client_forget(client);
	return error;
}

void client_close(struct client *client)
{
	atomic_store(&client->closing, true);
	shutdown(client->fd, SHUT_RDWR);
	/* Also where the next daemon is being asked. */
	pthread_mutex_lock(&client->lock);
	if (client->dialled >= 0)
		shutdown(client->dialled, SHUT_RDWR);
	pthread_mutex_unlock(&client->lock);
}

void client_forget(struct client *client)
{
	int *others[] = { &client->fd, &client->state, &client->dialled, &client->shown };
	uint32_t arenas = 0;

	/* Another thread may have been at it when the process forked. */
	if (!pthread_mutex_trylock(&client->lock)) {
		arenas = client->held.arena_count;
		pthread_mutex_unlock(&client->lock);
	}
	for (uint32_t i = 0; i < arenas; i++)
		close(client->held.arenas[i].fd);
	client->held.arena_count = 0;
	for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++) {
		if (*others[i] >= 0)
			close(*others[i]);
		*others[i] = -1;
	}
}
