/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The shim's end of the daemon's socket: requests, answers in any order, and
 * the daemon's own requests. Knows nothing of CUDA.
 *
 * A daemon may be followed by another on the same socket. Requests then wait for
 * that one, which is told what the session has, and those that have no answer are
 * sent again (docs/protocol.md). Their callers do not notice.
 */
#ifndef GREENBOOST_CLIENT_H
#define GREENBOOST_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "held.h"
#include "packet.h"
#include "wire.h"

typedef void (*client_done)(void *arg, const struct reply *reply);

#define CLIENT_MAX_PENDING 64

/* A request that has no answer yet. */
struct pending {
	uint64_t id; /* 0: free */
	client_done done;
	void *arg;
	bool sent; /* to the daemon of the moment */
	struct message message;
};

struct client {
	int fd; /* -1: not connected; the same number for every daemon */
	int state; /* the state memfd */
	char path[108], name[64], key[WIRE_KEY + 1];
	uint64_t chunk, arena; /* bytes, as the first daemon said */
	unsigned int patience; /* seconds to wait for another daemon */
	pthread_t thread;
	atomic_bool closing; /* the session is over, and no other daemon is wanted */

	pthread_mutex_t sending; /* guards what follows, and sending itself; taken before lock */
	bool attached; /* there is a daemon, and it knows what the session has */
	uint64_t daemons; /* so many before the one of the moment */

	pthread_mutex_t lock; /* guards what follows; not held over sending */
	pthread_cond_t room; /* a pending entry became free */
	struct pending pending[CLIENT_MAX_PENDING];
	uint64_t next_id;
	int dialled, shown; /* what reattach.c has open for a moment; -1: nothing */
	bool telling; /* what is in held is being told to the next daemon */
	bool lost; /* the daemon is gone for good; every request fails with EPIPE */
	struct held held;

	/* Set before client_connect, called on the client's thread: */
	void (*recall)(void *arg, uint64_t token, uint64_t arena);
	/* The daemon is gone: what T3 has is not known until settled() says so. */
	void (*gone)(void *arg);
	/* A memfd, one byte a chunk, not 0 where T3's copy is counted on; -1: there is none. */
	int (*counted_on)(void *arg);
	/* The same, with 0 where T3 has nothing; -1: it has nothing at all, for good. */
	void (*settled)(void *arg, int counted_on);
	void *arg;
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

/* The requests that change what the session has. */
int client_alloc(struct client *client, struct held_allocation allocation, struct reply *reply);
/* While there is no daemon it is not waited for. */
void client_free(struct client *client, uint64_t first);
/* The allocation goes on as this: with fewer chunks. */
void client_trim(struct client *client, struct held_allocation trimmed);
void client_return(struct client *client, uint64_t arena);

/* Answer a recall of the arena. error is 0 or an errno value. */
void client_answer_recall(struct client *client, uint64_t token, uint64_t arena, int error);

/* Begin a request. */
void client_request(struct message *request, const char *op);
void client_request_alloc(struct message *request, const struct held_allocation *allocation);

/* The session ends. Threads may still wait for answers, and get errors. */
void client_close(struct client *client);

/* In a child of fork(), which has no session: close what it has of the parent's. */
void client_forget(struct client *client);

/* reattach.c */

/* Connect to the daemon. Returns a socket, or -1 and errno. */
int client_dial(const struct client *client);

/* Say hello on it. Returns reply->error, EPIPE if the daemon is gone. */
int client_hello(const struct client *client, int socket, struct reply *reply);

/* How many seconds to wait for another daemon; 0: not at all. */
unsigned int client_patience(void);

/* The daemon is gone: wait for the next one and go on with it. False: there is none. */
bool client_reattach(struct client *client);

/* The socket is one of a daemon that knows all: use it from now on. False: the session is over. */
bool client_attach(struct client *client, int socket);

#endif
