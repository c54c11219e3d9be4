// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "packet.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

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

const char *packet_error_name(int error)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++)
		if (errors[i].value == error)
			return errors[i].name;
	return "EIO";
}

int packet_send(int socket, const struct message *m, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { (void *)m->bytes, m->length };
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
		n = sendmsg(socket, &header, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? errno : 0;
}

size_t packet_receive(int socket, unsigned char *buffer, int *fd)
{
	char control[CMSG_SPACE(8 * sizeof(int))];
	struct iovec iov = { buffer, WIRE_MAX_PACKET };
	struct msghdr header = { .msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control) };
	ssize_t n;

	*fd = -1;
	/* A daemon that died with a request unread: that is said once, before what it had answered.
	 */
	do {
		n = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
	} while (n < 0 && (errno == EINTR || errno == ECONNRESET));
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
		{ "lost", &reply->lost },
	};

	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
		if (field_is(key, numbers[i].name))
			*numbers[i].to = number;
}

static void copy_text(char *to, size_t room, struct field value)
{
	snprintf(to, room, "%.*s", (int)value.length, value.text ? value.text : "");
}

bool packet_read(struct packet *packet, const unsigned char *buffer, size_t length, int fd)
{
	struct cursor cursor = { buffer, buffer + length, false };
	struct reply *reply = &packet->reply;
	bool recall = false;
	size_t fields = cursor_map(&cursor);

	*packet = (struct packet){ .reply.fd = fd };
	while (fields-- && !cursor.bad) {
		struct field key = cursor_field(&cursor);
		struct field value = cursor_field(&cursor);

		if (field_is(key, "re"))
			packet->re = value.number;
		else if (field_is(key, "id"))
			packet->id = value.number;
		else if (field_is(key, "op"))
			recall = field_is(value, "recall");
		else if (field_is(key, "error"))
			reply->error = error_value(value);
		else if (field_is(key, "message"))
			copy_text(reply->message, sizeof(reply->message), value);
		else if (field_is(key, "key"))
			copy_text(reply->key, sizeof(reply->key), value);
		else
			reply_number(reply, key, value.number);
	}
	if (!cursor.bad && cursor.at == cursor.end && (packet->re || (recall && packet->id)))
		return true;
	if (fd >= 0)
		close(fd);
	return false;
}
