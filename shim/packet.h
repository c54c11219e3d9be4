/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One packet of the protocol, sent or received, and what a received one says. */
#ifndef GREENBOOST_PACKET_H
#define GREENBOOST_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

/* An answer. error is 0 or an errno value; fd is -1 unless one came, and is then the receiver's. */
struct reply {
	int error;
	char message[200];
	uint64_t session, chunk, arena, ram, spill, total, free, kept, lost;
	char key[WIRE_KEY + 1];
	int fd;
};

/* A packet that came: the answer to request re, or (re is 0) the daemon's request id, a recall. */
struct packet {
	uint64_t re, id;
	struct reply reply;
};

/* Send the message, with fd unless it is -1. Returns 0 or an errno value. */
int packet_send(int socket, const struct message *m, int fd);

/* A packet of WIRE_MAX_PACKET bytes at most, and the fd that came with it (-1: none). Returns its
 * length, 0 at the end. */
size_t packet_receive(int socket, unsigned char *buffer, int *fd);

/* What it says; fd goes into the reply. False for what breaks the protocol; fd is closed then. */
bool packet_read(struct packet *packet, const unsigned char *buffer, size_t length, int fd);

/* The protocol's name of an errno value, and back. */
const char *packet_error_name(int error);

#endif
