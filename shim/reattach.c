// SPDX-License-Identifier: GPL-2.0-or-later
/* Going on with the daemon that comes after one that is gone. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "log.h"

/* Seconds to wait for another daemon, if GREENBOOST_REATTACH does not say: one that is restarted
 * first preallocates spill files that are new. */
#define PATIENCE 120

/* How often its socket is tried. A failed try is one system call. */
#define AGAIN_MS 50

/* Seconds for the new one to answer: it maps, and its rings register, one arena at a time. */
#define ANSWER_PATIENCE 60

int client_dial(const struct client *client)
{
	const struct timeval patience = { .tv_sec = ANSWER_PATIENCE };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), error;

	if (fd < 0)
		return -1;
	memcpy(address.sun_path, client->path, sizeof(address.sun_path));
	/* Of connecting, when many wait. */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		error = errno;
		close(fd);
		errno = error;
		return -1;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){ 0 }, sizeof(patience));
	return fd;
}

/* One request on a socket where nothing else is under way. Returns reply->error, EPIPE if nothing
 * comes back. */
static int ask(int socket, struct message *request, int fd, struct reply *reply)
{
	const struct timeval patience = { .tv_sec = ANSWER_PATIENCE };
	unsigned char *buffer = malloc(WIRE_MAX_PACKET);
	struct packet packet = { 0 };
	size_t length = 0;
	int got = -1;

	message_uint(request, "id", 1);
	message_end(request);
	setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (buffer && !packet_send(socket, request, fd))
		length = packet_receive(socket, buffer, &got);
	setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ 0 }, sizeof(patience));
	if (length && packet_read(&packet, buffer, length, got) && packet.re == 1) {
		*reply = packet.reply;
	} else {
		*reply = (struct reply){ .error = EPIPE, .fd = -1 };
		snprintf(reply->message, sizeof(reply->message), "it does not answer");
	}
	free(buffer);
	if (reply->fd >= 0)
		close(reply->fd);
	reply->fd = -1;
	return reply->error;
}

int client_hello(const struct client *client, int socket, struct reply *reply)
{
	struct message request;

	client_request(&request, "hello");
	message_uint(&request, "v", WIRE_VERSION);
	message_string(&request, "role", "shim");
	message_uint(&request, "pid", (uint64_t)getpid());
	message_string(&request, "name", client->name);
	message_string(&request, "key", client->key);
	return ask(socket, &request, client->state, reply);
}

static int adopt(struct client *client, int socket, uint64_t arena, struct reply *reply)
{
	struct message request;
	int fd, error;

	pthread_mutex_lock(&client->lock);
	fd = held_dup(&client->held, arena);
	error = errno;
	pthread_mutex_unlock(&client->lock);
	if (fd < 0) {
		snprintf(reply->message, sizeof(reply->message), "%s", strerror(error));
		return error == ENOENT ? 0 : error; /* given back meanwhile */
	}
	client_request(&request, "adopt");
	message_uint(&request, "arena", arena);
	client->shown = fd;
	error = ask(socket, &request, fd, reply);
	client->shown = -1;
	close(fd);
	return error;
}

static int resume(struct client *client, int socket, struct reply *reply)
{
	int counted_on = client->counted_on(client->arg), error;
	struct message request;

	if (counted_on < 0) {
		snprintf(reply->message, sizeof(reply->message), "no memory to tell it");
		return ENOMEM;
	}
	client->shown = counted_on;
	client_request(&request, "resume");
	error = ask(socket, &request, counted_on, reply);
	if (error)
		client->gone(client->arg); /* this one too */
	else
		client->settled(client->arg, counted_on);
	client->shown = -1;
	close(counted_on);
	return error;
}

/* All that the session has. Returns as ask(). */
static int tell(struct client *client, int socket, const struct held *held, struct reply *reply)
{
	int error = client_hello(client, socket, reply);
	struct message request;

	if (!error && (reply->chunk != client->chunk || reply->arena != client->arena)) {
		snprintf(reply->message, sizeof(reply->message), "its chunks or arenas differ");
		return EPROTO;
	}
	for (uint32_t i = 0; i < held->arena_count && !error; i++)
		error = adopt(client, socket, held->arenas[i].id, reply);
	for (uint32_t i = 0; i < held->allocation_count && !error; i++) {
		client_request_alloc(&request, &held->allocations[i]);
		error = ask(socket, &request, -1, reply);
	}
	return error ? error : resume(client, socket, reply);
}

/* It, or this process, may have what is missing in a moment: the daemon waits for us until then. */
static bool passes(int error)
{
	return error == EPIPE || error == ENOMEM || error == EMFILE || error == ENFILE;
}

/* Returns 0, or why not; see passes(). */
static int go_on_with(struct client *client, int socket, struct reply *reply)
{
	struct held held;
	bool whole;
	int error;

	pthread_mutex_lock(&client->lock);
	whole = held_copy(&client->held, &held);
	client->telling = whole;
	pthread_mutex_unlock(&client->lock);
	if (!whole) {
		snprintf(reply->message, sizeof(reply->message), "no memory to tell it");
		return ENOMEM;
	}
	error = tell(client, socket, &held, reply);
	held_free(&held);
	if (!error && reply->lost)
		log_warn(
			"%llu chunks of %llu bytes that were on NVMe are lost with the daemon; the "
			"use of those that are nowhere else will fail",
			(unsigned long long)reply->lost, (unsigned long long)client->chunk);
	if (!error && !client_attach(client, socket))
		error = ECANCELED;
	pthread_mutex_lock(&client->lock);
	client->telling = false;
	pthread_mutex_unlock(&client->lock);
	return error;
}

unsigned int client_patience(void)
{
	const char *text = getenv("GREENBOOST_REATTACH");
	unsigned long seconds;
	char *end;

	if (!text || !*text)
		return PATIENCE;
	seconds = strtoul(text, &end, 10);
	if (!*end && *text >= '0' && *text <= '9' && seconds <= UINT32_MAX)
		return (unsigned int)seconds;
	log_warn("GREENBOOST_REATTACH=%s is no number of seconds; using %d", text, PATIENCE);
	return PATIENCE;
}

/* Says to client_close() what to shut down. */
static void dialled(struct client *client, int fd)
{
	pthread_mutex_lock(&client->lock);
	client->dialled = fd;
	if (fd >= 0 && atomic_load(&client->closing))
		shutdown(fd, SHUT_RDWR);
	pthread_mutex_unlock(&client->lock);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

bool client_reattach(struct client *client)
{
	unsigned int most = client->patience;
	double until = now() + most;
	bool said = false;
	int error = EPIPE;

	if (atomic_load(&client->closing))
		return false;
	if (!*client->key || !most) {
		log_warn("the daemon is gone, and %s; what is not in VRAM can no longer be used",
			 most ? "no other can go on" : "GREENBOOST_REATTACH says not to wait");
		return false;
	}
	log_warn("the daemon is gone; what needs it waits up to %u s for another "
		 "(GREENBOOST_REATTACH)",
		 most);
	while (passes(error) && !atomic_load(&client->closing) && now() <= until) {
		struct reply reply = { 0 };
		int fd = client_dial(client);

		dialled(client, fd);
		error = fd < 0 ? EPIPE : go_on_with(client, fd, &reply);
		dialled(client, -1);
		if (fd >= 0)
			close(fd);
		if (error && error != EPIPE && error != ECANCELED && !(passes(error) && said)) {
			log_warn("the new daemon does not go on with this program%s: %s",
				 passes(error) ? " yet" : "", reply.message);
			said = true;
		}
		if (passes(error))
			poll(NULL, 0, AGAIN_MS);
	}
	if (!error)
		log_warn("the daemon is back; this program goes on");
	else if (passes(error) && !atomic_load(&client->closing))
		log_warn("no daemon came back within %u s", most);
	return !error;
}
