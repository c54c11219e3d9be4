/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the shim and tierd agree on (docs/protocol.md): limits, the shared state
 * page, and the part of msgpack that the messages use. tierd/wire.py is the
 * other side; tests/shim/test_wire.py compares the two.
 */
#ifndef GREENBOOST_WIRE_H
#define GREENBOOST_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WIRE_VERSION 1
#define WIRE_MAX_PACKET 65536
#define WIRE_KEY 32 /* characters of a session's key */

/* The state memfd: a header, then one byte a chunk. */
#define STATE_MAGIC 0x54534247u
#define STATE_VERSION 1
#define STATE_HEADER_BYTES 4096

struct state_header {
	uint32_t magic;
	uint32_t version;
	uint64_t chunks;
	uint64_t counters[];
};

/* In the order of wire.COUNTERS. */
enum counter {
	COUNTER_LAUNCHES, /* looked at: while everything is resident, none is */
	COUNTER_LAUNCHES_PAGED, /* that named a paged chunk */
	COUNTER_CHUNK_HITS, /* named and resident */
	COUNTER_CHUNK_STALLS, /* named and waited for */
	COUNTER_STALL_NS, /* waited on the host for chunks */
	COUNTER_PREFETCHED,
	COUNTER_PREFETCH_HITS,
	COUNTER_EVICTIONS,
	COUNTER_H2D_BYTES, /* T2 to T1 */
	COUNTER_D2H_BYTES, /* T1 to T2 */
	COUNTER_SPILL_BYTES, /* T2 to T3 */
	COUNTER_FETCH_BYTES, /* T3 to T2 */
	COUNTER_DIRECT_BYTES, /* held by direct allocations now */
	COUNTER_VRAM_SLOTS,
	COUNTER_VRAM_SLOTS_USED,
	COUNTER_ARENA_SLOTS,
	COUNTER_ARENA_SLOTS_USED,
	COUNTER_VRAM_SLOTS_MOST, /* used at a time so far */
	COUNTER_ARENA_SLOTS_MOST,
	COUNTER_EVICTIONS_CLEAN, /* that copied nothing */
	COUNTER_SPILLS_CLEAN, /* that wrote nothing, as T3 had it already */
	COUNTER_CHUNKS_IN_PLACE, /* named and used in RAM, where they are */
	COUNTER_MAPPED_SLOTS, /* RAM slots at the application's addresses */
	COUNTER_PINNED_CHUNKS, /* that stay in VRAM because they are to */
	COUNTER_PINS_REFUSED, /* chunks that were to, and there was no room */
	COUNTER_LAUNCHES_EXCEEDING, /* that named more than VRAM holds */
	COUNTER_EVICTIONS_UNPLANNED, /* of chunks that were to stay until their next use */
	COUNTER_COUNT
};

/* Letters of the state map: model.ChunkState. */
enum {
	STATE_FREE = 0,
	STATE_EMPTY = '.',
	STATE_T1 = '1',
	STATE_T2 = '2',
	STATE_T3 = '3',
	STATE_RISING = '^',
	STATE_SINKING = 'v',
	STATE_MAPPED = 'm',
	STATE_PINNED = 'p',
};

/* A message being written: a msgpack map whose size is patched in at the end. */
struct message {
	unsigned char bytes[512];
	size_t length;
	unsigned int fields;
};

static inline void message_put(struct message *m, unsigned char tag, uint64_t value, int width)
{
	m->bytes[m->length++] = tag;
	while (width--)
		m->bytes[m->length++] = (unsigned char)(value >> (8 * width));
}

static inline void message_text(struct message *m, const char *text)
{
	size_t n = strlen(text);

	if (n > 64)
		n = 64; /* only names of programs are as long, and a part of one will do */
	message_put(m, 0xd9, n, 1);
	memcpy(m->bytes + m->length, text, n);
	m->length += n;
}

static inline void message_start(struct message *m)
{
	m->length = 3; /* map 16: its count is written by message_end */
	m->fields = 0;
}

static inline void message_uint(struct message *m, const char *key, uint64_t value)
{
	message_text(m, key);
	message_put(m, 0xcf, value, 8);
	m->fields++;
}

static inline void message_string(struct message *m, const char *key, const char *value)
{
	message_text(m, key);
	message_text(m, value);
	m->fields++;
}

static inline void message_end(struct message *m)
{
	m->bytes[0] = 0xde;
	m->bytes[1] = (unsigned char)(m->fields >> 8);
	m->bytes[2] = (unsigned char)m->fields;
}

/* A message being read. Every read checks the end: a torn packet is refused. */
struct cursor {
	const unsigned char *at, *end;
	bool bad;
};

static inline uint64_t cursor_big_endian(struct cursor *c, size_t width)
{
	uint64_t value = 0;

	if (c->bad || (size_t)(c->end - c->at) < width) {
		c->bad = true;
		return 0;
	}
	while (width--)
		value = value << 8 | *c->at++;
	return value;
}

struct field {
	const char *text; /* not terminated; NULL: a number or nil */
	size_t length;
	uint64_t number;
};

/* One string, unsigned integer, boolean or nil; anything else is refused. */
static inline struct field cursor_field(struct cursor *c)
{
	unsigned char tag = (unsigned char)cursor_big_endian(c, 1);
	struct field f = { NULL, 0, 0 };
	size_t text;

	if (tag <= 0x7f) {
		f.number = tag;
		return f;
	}
	if ((tag & 0xe0) == 0xa0)
		text = tag & 0x1f;
	else if (tag >= 0xd9 && tag <= 0xdb)
		text = (size_t)cursor_big_endian(c, (size_t)1 << (tag - 0xd9));
	else if (tag >= 0xcc && tag <= 0xcf) {
		f.number = cursor_big_endian(c, (size_t)1 << (tag - 0xcc));
		return f;
	} else if (tag == 0xc2 || tag == 0xc3 || tag == 0xc0) {
		f.number = tag == 0xc3;
		return f;
	} else {
		c->bad = true;
		return f;
	}
	if (c->bad || (size_t)(c->end - c->at) < text) {
		c->bad = true;
		return f;
	}
	f.text = (const char *)c->at;
	f.length = text;
	c->at += text;
	return f;
}

static inline size_t cursor_map(struct cursor *c)
{
	unsigned char tag = (unsigned char)cursor_big_endian(c, 1);

	if ((tag & 0xf0) == 0x80)
		return tag & 0x0f;
	if (tag == 0xde)
		return (size_t)cursor_big_endian(c, 2);
	c->bad = true;
	return 0;
}

static inline bool field_is(struct field f, const char *text)
{
	return f.text && f.length == strlen(text) && !memcmp(f.text, text, f.length);
}

#endif
