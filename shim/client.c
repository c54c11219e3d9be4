// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "log.h"
#include "thread.h"

static const struct {
	const char *name;
	int value;
} errors[] = {
	{ "ENOMEM", ENOMEM }, { "ENOSPC", ENOSPC }, { "EIO", EIO },	{ "EINVAL", EINVAL },
	{ "ENOENT", ENOENT }, { "EPERM", EPERM },   { "EBUSY", EBUSY }, { "EPROTO", EPROTO },
};

static int error_value(struct field f)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++)
		if (field_is(f, errors[i].name))
			return errors[i].value;
	return EPROTO;
}

void client_request(struct message *request, const char *op)
{
	message_start(request);
	message_string(request, "op", op);
}

static int send_packet(struct client *client, struct message *m, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { m->bytes, m->length };
	struct msghdr header = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (fd >= 0) {
		struct cmsghdr *cmsg;

		header.msg_control = control;
		header.msg_controllen = sizeof(control);
		cmsg = CMSG_FIRSTHDR(&header);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	}
	do {
		n = sendmsg(client->fd, &header, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? errno : 0;
}

/* A packet and the fd that came with it (-1: none). Returns its length, 0 at the end. */
static size_t receive_packet(struct client *client, unsigned char *buffer, int *fd)
{
	char control[CMSG_SPACE(8 * sizeof(int))];
	struct iovec iov = { buffer, WIRE_MAX_PACKET };
	struct msghdr header = { .msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control) };
	ssize_t n;

	*fd = -1;
	do {
		n = recvmsg(client->fd, &header, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n <= 0)
		return 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
		size_t count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int got;

			memcpy(&got, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (*fd < 0)
				*fd = got;
			else
				close(got);
		}
	}
	return header.msg_flags & MSG_TRUNC ? 0 : (size_t)n;
}

/* Every number an answer may carry; other fields are for other roles. */
static void reply_number(struct reply *reply, struct field key, uint64_t number)
{
	const struct {
		const char *name;
		uint64_t *to;
	} numbers[] = {
		{ "session", &reply->session }, { "chunk", &reply->chunk },
		{ "arena", &reply->arena },	{ "ram", &reply->ram },
		{ "spill", &reply->spill },	{ "total", &reply->total },
		{ "free", &reply->free },	{ "kept", &reply->kept },
	};

	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
		if (field_is(key, numbers[i].name))
			*numbers[i].to = number;
}

/* Take the request's entry out of the table; done is called without the lock. */
static void complete(struct client *client, uint64_t id, const struct reply *reply)
{
	struct pending entry = { 0 };

	pthread_mutex_lock(&client->lock);
	for (int i = 0; i < CLIENT_MAX_PENDING; i++) {
		if (client->pending[i].id == id) {
			entry = client->pending[i];
			client->pending[i].id = 0;
			pthread_cond_broadcast(&client->room);
			break;
		}
	}
	pthread_mutex_unlock(&client->lock);
	if (entry.id)
		entry.done(entry.arg, reply);
	else if (reply->fd >= 0)
		close(reply->fd);
}

/* Returns false for a packet that breaks the protocol. */
static bool dispatch(struct client *client, const unsigned char *buffer, size_t length, int fd)
{
	struct cursor cursor = { buffer, buffer + length, false };
	struct reply reply = { .fd = fd };
	uint64_t re = 0, id = 0;
	bool recall = false;
	size_t fields = cursor_map(&cursor);

	while (fields-- && !cursor.bad) {
		struct field key = cursor_field(&cursor);
		struct field value = cursor_field(&cursor);

		if (field_is(key, "re"))
			re = value.number;
		else if (field_is(key, "id"))
			id = value.number;
		else if (field_is(key, "op"))
			recall = field_is(value, "recall");
		else if (field_is(key, "error"))
			reply.error = error_value(value);
		else if (field_is(key, "message") && value.text)
			snprintf(reply.message, sizeof(reply.message), "%.*s", (int)value.length,
				 value.text);
		else
			reply_number(&reply, key, value.number);
	}
	if (cursor.bad || cursor.at != cursor.end || (re == 0 && !(recall && id))) {
		if (fd >= 0)
			close(fd);
		return false;
	}
	if (re)
		complete(client, re, &reply);
	else
		client->recall(client->recall_arg, id, reply.arena);
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
		pthread_mutex_unlock(&client->lock);
		if (id)
			complete(client, id, &gone);
	} while (id);
}

static void *client_thread(void *arg)
{
	struct client *client = arg;
	unsigned char *buffer = malloc(WIRE_MAX_PACKET);
	size_t length;
	int fd;

	pthread_setname_np(pthread_self(), "greenboost-sock");
	while (buffer && (length = receive_packet(client, buffer, &fd)) > 0) {
		if (!dispatch(client, buffer, length, fd)) {
			log_warn("the daemon sent what this shim does not understand; are both of "
				 "one version?");
			break;
		}
	}
	shutdown(client->fd, SHUT_RDWR);
	lose(client);
	free(buffer);
	return NULL;
}

static void post_with_fd(struct client *client, struct message *request, int fd, client_done done,
			 void *arg)
{
	struct reply failed = { .fd = -1 };
	uint64_t id = 0;
	int error;

	pthread_mutex_lock(&client->lock);
	while (!id && !client->lost) {
		for (int i = 0; i < CLIENT_MAX_PENDING && !id; i++) {
			if (client->pending[i].id == 0) {
				id = ++client->next_id;
				client->pending[i] = (struct pending){ id, done, arg };
			}
		}
		if (!id)
			pthread_cond_wait(&client->room, &client->lock);
	}
	pthread_mutex_unlock(&client->lock);
	if (!id) {
		failed.error = EPIPE;
		snprintf(failed.message, sizeof(failed.message), "the daemon is gone");
		done(arg, &failed);
		return;
	}
	message_uint(request, "id", id);
	message_end(request);
	/* The answer may come, and the entry be gone, before sendmsg returns. */
	error = send_packet(client, request, fd);
	if (error) {
		failed.error = EPIPE;
		snprintf(failed.message, sizeof(failed.message), "cannot reach the daemon: %s",
			 strerror(error));
		complete(client, id, &failed);
	}
}

void client_post(struct client *client, struct message *request, client_done done, void *arg)
{
	post_with_fd(client, request, -1, done, arg);
}

struct call {
	pthread_mutex_t lock;
	pthread_cond_t answered;
	bool done;
	struct reply reply;
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

static int call_with_fd(struct client *client, struct message *request, int fd, struct reply *reply)
{
	struct call call = { .lock = PTHREAD_MUTEX_INITIALIZER,
			     .answered = PTHREAD_COND_INITIALIZER };

	post_with_fd(client, request, fd, call_done, &call);
	pthread_mutex_lock(&call.lock);
	while (!call.done)
		pthread_cond_wait(&call.answered, &call.lock);
	pthread_mutex_unlock(&call.lock);
	*reply = call.reply;
	return reply->error;
}

int client_call(struct client *client, struct message *request, struct reply *reply)
{
	return call_with_fd(client, request, -1, reply);
}

void client_answer_recall(struct client *client, uint64_t id, int error)
{
	struct message answer;

	message_start(&answer);
	message_uint(&answer, "re", id);
	if (error) {
		const char *name = "EIO";

		for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++)
			if (errors[i].value == error)
				name = errors[i].name;
		message_string(&answer, "error", name);
		message_string(&answer, "message", "the arena could not be emptied");
	}
	message_end(&answer);
	send_packet(client, &answer, -1); /* a lost daemon is noticed by the reading thread */
}

int client_connect(struct client *client, const char *path, const char *name, int state_fd,
		   struct reply *hello)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct message request;
	int error;

	pthread_mutex_init(&client->lock, NULL);
	pthread_cond_init(&client->room, NULL);
	client->fd = -1;
	if (strlen(path) >= sizeof(address.sun_path))
		return ENAMETOOLONG;
	strcpy(address.sun_path, path);
	client->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (client->fd < 0)
		return errno;
	if (connect(client->fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    (errno = thread_start(&client->thread, client_thread, client))) {
		error = errno;
		close(client->fd);
		client->fd = -1;
		return error;
	}
	client_request(&request, "hello");
	message_uint(&request, "v", WIRE_VERSION);
	message_string(&request, "role", "shim");
	message_uint(&request, "pid", (uint64_t)getpid());
	message_string(&request, "name", name);
	error = call_with_fd(client, &request, state_fd, hello);
	if (error) {
		shutdown(client->fd, SHUT_RDWR);
		pthread_join(client->thread, NULL);
		close(client->fd);
		client->fd = -1;
	}
	return error;
}
