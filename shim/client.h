/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The shim's end of the daemon's socket: requests, answers in any order, and
 * the daemon's own requests. Knows nothing of CUDA.
 */
#ifndef GREENBOOST_CLIENT_H
#define GREENBOOST_CLIENT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

/* An answer. error is 0 or an errno value; fd is -1 unless one came, and is then the receiver's. */
struct reply {
	int error;
	char message[200];
	uint64_t session, chunk, arena, ram, spill, total, free, kept;
	int fd;
};

typedef void (*client_done)(void *arg, const struct reply *reply);

#define CLIENT_MAX_PENDING 64

struct pending {
	uint64_t id; /* 0: free */
	client_done done;
	void *arg;
};

struct client {
	int fd; /* -1: not connected */
	pthread_t thread;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t room; /* a pending entry became free */
	struct pending pending[CLIENT_MAX_PENDING];
	uint64_t next_id;
	bool lost; /* the daemon is gone; every request fails with EPIPE */
	/* Set before client_connect, called on the client's thread: */
	void (*recall)(void *arg, uint64_t id, uint64_t arena);
	void *recall_arg;
};

/*
 * Connect, say hello and hand over the state memfd (which stays the caller's).
 * Fills in the daemon's answer. Returns 0 or an errno value.
 */
int client_connect(struct client *client, const char *path, const char *name, int state_fd,
		   struct reply *hello);

/* Start a request; done is called once, on the client's thread or, if sending fails, on this one.
 */
void client_post(struct client *client, struct message *request, client_done done, void *arg);

/* Send a request and wait for its answer. Returns reply->error. */
int client_call(struct client *client, struct message *request, struct reply *reply);

/* Answer a recall. error is 0 or an errno value. */
void client_answer_recall(struct client *client, uint64_t id, int error);

/* Begin a request. */
void client_request(struct message *request, const char *op);

#endif
