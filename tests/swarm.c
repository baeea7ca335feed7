/* swarm: opens many event streams from one process and checks what each of them receives.
 *
 * It speaks HTTP/1.x to one address, undoes chunked framing strictly, parses text/event-stream, and checks per stream
 * that ids grow and that the publisher's numbers are contiguous. It takes commands on standard input, one a line, and
 * answers each with one line of JSON on standard output. tests/swarm.py is its Python face and explains every figure.
 *
 *   report            all counters               vanish N fin|rst  leave with the first N open streams
 *   streams           one row per stream         stop N            stop reading on the last N open streams
 *   clear             counters back to zero      resume            read on
 *   expect N          say "complete" when every open stream has had N events
 *   quit
 *
 * Unasked it says {"what": "open"} once every stream is open or has failed for good, {"what": "complete"} as
 * above, and {"what": "ended"} when no stream is left.
 *
 * What makes it cheap: many streams receive the same chunk, and a chunk seen before is compared, not parsed again.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;
typedef int64_t i64;
typedef uint32_t u32;
typedef uint8_t u8;

enum {
    READ_BYTES = 256 * 1024,         /* one read, so that one stream can't starve the others */
    MAX_HEAD = 64 * 1024,
    MAX_PATHS = 1024,
    MAX_CHUNK = 4 * 1024 * 1024,
    MAX_CACHED_CHUNK = 128 * 1024,
    SMALL_CHUNK = 2048,
    SMALL_SLOTS = 4096,
    LARGE_SLOTS = 64,
    EPOLL_BATCH = 512,
    TICK_MS = 10,
};

/* ------------------------------------------------------------------------------------------------ options */

static const char *opt_host = "127.0.0.1";
static const char *opt_paths[MAX_PATHS] = {"/stream?channel=swarm"}; /* the streams take them in turn */
static char opt_headers[8192];
static int opt_port = 8000, opt_streams = 100, opt_in_flight = 64, opt_rate, opt_sources = 1, opt_receive_buffer;
static int opt_path_count, opt_retry_cap_ms = 1000;
static u32 opt_expect;
static double opt_duration;
static bool opt_http10, opt_no_cache, opt_reopen_refused, opt_reopen_ended;

/* ------------------------------------------------------------------------------------------------- state */

enum state { WAITING, CONNECTING, AWAITING_HEAD, OPEN, OVER };
enum framing { ENDLESS, LENGTH, CHUNKED };
enum ending { TERMINATED, LENGTH_REACHED, FIN, RST, FAILED, BAD_FRAMING, REJECTED, REFUSED, UNANSWERED, VANISHED, ENDINGS };

static const char *const STATES[] = {"waiting", "connecting", "awaiting head", "open", "ended"};
static const char *const ENDING_NAMES[ENDINGS] = {
    "terminated", "length", "fin", "rst", "failed", "framing", "rejected", "refused", "unanswered", "vanished",
};

/* What a piece of an event stream does to a stream, once parsed. */
enum item_kind { ITEM_EVENT, ITEM_SPECIAL, ITEM_RESET, ITEM_POSITION, ITEM_QUIET, ITEM_RETRY, ITEM_COMMENT, ITEM_STRAY_BLANK };
enum { HAS_ID = 1, HAS_ODD_ID = 2, HAS_NUMBER = 4, HAS_TIME = 8, HAS_DATA = 16, HAS_FIELD = 32, IS_SPECIAL = 64, IS_RESET = 128 };

struct item {
    u64 id_ms, id_seq;
    u64 number;   /* N of "seq N ", or the milliseconds of a retry */
    i64 sent_ns;  /* T of "seq N t T" */
    u8 kind, has;
};

struct stream {
    int fd;
    u8 state, framing, how;
    bool stopped, numbered, saw_id, saw_retry, started, after_cr; /* started: this connection had an id or event */
    u32 events, comments, lost, retry;
    u64 id_ms, id_seq;                      /* the highest id so far */
    u64 first_number, number, window;       /* bit i of window: number - i has come */
    u64 left;                               /* of a body with a length */
    struct item block;                      /* the block being parsed */
    char *in, *line;                        /* bytes of an incomplete chunk; of an incomplete line */
    u32 in_len, in_capacity, line_len, line_capacity;
    i64 opened_ns, ended_ns, due_ns;
};

static struct stream *streams;
static int epoll_fd, in_flight, open_count, over_count, reached;
static u32 *ready, ready_head, ready_count; /* streams to open now, a ring */
static int sleeping;                        /* streams that wait for their retry time */
static i64 start_ns, now_ns, first_connect_ns, last_open_ns, realtime_offset_ns;
static char *shared_in;                     /* where streams without a rest are read into */
static bool said_open, said_complete, said_ended, quitting;

struct histogram {
    u64 counts[64 * 32];
    u64 count;
    i64 max;
    double sum;
};

static struct histogram latency, opening;

static struct {
    u64 events, specials, resets, positions, comments, stray_blanks, unnumbered, without_id, bytes, cached_chunks, chunks;
    u64 id_duplicates, id_inversions, odd_ids, duplicates, inversions, cut_chunks, cut_events, stopped_over;
    i64 lost;
    u64 endings[ENDINGS];
    u64 statuses[1000];
    i64 first_event_ns, last_event_ns, first_end_ns, last_end_ns;
} total;

static i64 clock_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (i64)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void die(const char *text) {
    fprintf(stderr, "swarm: %s: %s\n", text, strerror(errno));
    exit(2);
}

static void *resized(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (!memory) die("memory");
    return memory;
}

/* -------------------------------------------------------------------------------------------- histograms */

/* 32 steps per power of two: a figure is at most 3 % too high. */
static int bucket_of(u64 value) {
    if (value < 32) return (int)value;
    int shift = 58 - __builtin_clzll(value);
    return (shift + 1) * 32 + (int)((value >> shift) & 31);
}

static u64 bucket_top(int bucket) {
    if (bucket < 32) return (u64)bucket;
    int shift = bucket / 32 - 1;
    return ((u64)(32 + bucket % 32 + 1) << shift) - 1;
}

static void record(struct histogram *histogram, i64 value) {
    if (value < 0) value = 0;
    histogram->counts[bucket_of((u64)value)]++;
    histogram->count++;
    histogram->sum += (double)value;
    if (value > histogram->max) histogram->max = value;
}

static double quantile_ms(const struct histogram *histogram, double quantile) {
    u64 wanted = (u64)(quantile * (double)histogram->count + 0.999999), seen = 0;
    for (int bucket = 0; bucket < 64 * 32; bucket++) {
        seen += histogram->counts[bucket];
        if (seen >= wanted && seen) {
            i64 top = (i64)bucket_top(bucket);
            return (double)(top < histogram->max ? top : histogram->max) / 1e6;
        }
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------- what is checked */

static void check_id(struct stream *s, const struct item *item) {
    bool below = item->id_ms < s->id_ms || (item->id_ms == s->id_ms && item->id_seq < s->id_seq);
    bool same = item->id_ms == s->id_ms && item->id_seq == s->id_seq;
    if (s->saw_id && below) total.id_inversions++;
    else if (s->saw_id && same && item->kind == ITEM_EVENT) total.id_duplicates++;
    else {
        s->id_ms = item->id_ms;
        s->id_seq = item->id_seq;
    }
    s->saw_id = true;
}

/* A number below the highest one is a duplicate if the window knows it; otherwise it comes late. */
static void check_number(struct stream *s, u64 number) {
    if (!s->numbered) {
        s->numbered = true;
        s->first_number = s->number = number;
        s->window = 1;
    } else if (number > s->number) {
        u64 step = number - s->number;
        total.lost += (i64)(step - 1);
        s->lost += (u32)(step - 1);
        s->window = step < 64 ? s->window << step | 1 : 1;
        s->number = number;
    } else {
        u64 back = s->number - number;
        if (back < 64 && s->window >> back & 1) {
            total.duplicates++;
        } else {
            total.inversions++;
            if (back < 64) s->window |= (u64)1 << back;
            if (back < 64 && number > s->first_number) {
                total.lost--;
                s->lost--;
            }
        }
    }
}

static void record_age(i64 sent_ns) {
    bool realtime = sent_ns > 1000000000000000000; /* no machine runs for 31 years */
    record(&latency, now_ns + (realtime ? realtime_offset_ns : 0) - sent_ns);
}

static void take_event(struct stream *s, const struct item *item) {
    total.events++;
    if (!(item->has & HAS_ID)) total.without_id++;
    if (item->has & HAS_NUMBER) check_number(s, item->number);
    else total.unnumbered++;
    if (item->has & HAS_TIME) record_age(item->sent_ns);
    if (!total.first_event_ns) total.first_event_ns = now_ns;
    total.last_event_ns = now_ns;
    if (++s->events == opt_expect) reached++;
}

static void apply(struct stream *s, const struct item *item) {
    if (item->has & HAS_ID) check_id(s, item);
    if (item->has & HAS_ID || item->kind == ITEM_EVENT) s->started = true;
    if (item->has & HAS_ODD_ID) total.odd_ids++;
    switch (item->kind) {
    case ITEM_EVENT: take_event(s, item); break;
    case ITEM_SPECIAL: total.specials++; break;
    case ITEM_RESET: total.specials++; total.resets++; break;
    case ITEM_POSITION: total.positions++; break;
    case ITEM_RETRY: s->retry = (u32)item->number; s->saw_retry = true; break;
    case ITEM_COMMENT: total.comments++; s->comments++; break;
    case ITEM_STRAY_BLANK: total.stray_blanks++; break;
    }
}

/* ------------------------------------------------------------------------------------- text/event-stream */

struct cached {
    char *bytes;
    u32 length, capacity, items_count, items_capacity;
    struct item *items;
    bool is_run; /* nothing but events with times, contiguous numbers, and growing ids or none */
};

static struct cached cache[SMALL_SLOTS];
static struct cached *recording; /* the entry that notes what the running parse does */

static void emit(struct stream *s, const struct item *item) {
    apply(s, item);
    if (!recording) return;
    if (recording->items_count == recording->items_capacity) {
        recording->items_capacity = recording->items_capacity * 2 + 1;
        recording->items = resized(recording->items, recording->items_capacity * sizeof(struct item));
    }
    recording->items[recording->items_count++] = *item;
}

/* Digits at *p, which moves behind them; false if there is none. */
static bool digits(const char **p, const char *end, u64 *value) {
    const char *at = *p;
    for (*value = 0; at < end && *at >= '0' && *at <= '9'; at++) *value = *value * 10 + (u64)(*at - '0');
    bool some = at > *p;
    *p = at;
    return some;
}

/* Data that begins with "seq N t T ", or is JSON with a string that does. */
static void take_data(struct item *block, const char *p, const char *end) {
    bool first = !(block->has & HAS_DATA);
    block->has |= HAS_DATA;
    if (first && p < end && *p == '{') p = memmem(p, (size_t)(end - p), "\"seq ", 5), p = p ? p + 1 : end;
    if (!first || end - p < 5 || memcmp(p, "seq ", 4)) return;
    p += 4;
    if (!digits(&p, end, &block->number)) return;
    block->has |= HAS_NUMBER;
    u64 sent;
    if (end - p < 4 || memcmp(p, " t ", 3)) return;
    p += 3;
    if (digits(&p, end, &sent)) block->has |= HAS_TIME, block->sent_ns = (i64)sent;
}

static void take_id(struct item *block, const char *p, const char *end) {
    bool good = digits(&p, end, &block->id_ms) && p < end && *p++ == '-' && digits(&p, end, &block->id_seq) && p == end;
    block->has &= (u8) ~(HAS_ID | HAS_ODD_ID);
    block->has |= good ? HAS_ID : HAS_ODD_ID;
}

static void take_retry(struct stream *s, const char *p, const char *end) {
    struct item item = {.kind = ITEM_RETRY};
    if (digits(&p, end, &item.number) && p == end) emit(s, &item);
}

static void end_block(struct stream *s) {
    struct item *block = &s->block;
    if (!(block->has & HAS_FIELD)) block->kind = ITEM_STRAY_BLANK;
    else if (!(block->has & HAS_DATA)) block->kind = block->has & (HAS_ID | HAS_ODD_ID) ? ITEM_POSITION : ITEM_QUIET;
    else if (block->has & IS_RESET) block->kind = ITEM_RESET;
    else block->kind = block->has & IS_SPECIAL ? ITEM_SPECIAL : ITEM_EVENT;
    emit(s, block);
    block->has = 0;
}

static bool named(const char *line, const char *colon, const char *name, size_t length) {
    return (size_t)(colon - line) == length && !memcmp(line, name, length);
}

static void take_line(struct stream *s, const char *line, const char *end) {
    if (line == end) {
        end_block(s);
        return;
    }
    if (*line == ':') {
        emit(s, &(struct item){.kind = ITEM_COMMENT});
        return;
    }
    size_t name_room = (size_t)(end - line) < 6 ? (size_t)(end - line) : 6; /* no known name is longer than 5 */
    const char *colon = memchr(line, ':', name_room);
    const char *value = colon ? colon + 1 : end;
    if (!colon) colon = line + name_room;
    if (value < end && *value == ' ') value++;
    s->block.has |= HAS_FIELD;
    if (named(line, colon, "data", 4)) take_data(&s->block, value, end);
    else if (named(line, colon, "id", 2)) take_id(&s->block, value, end);
    else if (named(line, colon, "retry", 5)) take_retry(s, value, end);
    else if (named(line, colon, "event", 5)) {
        s->block.has &= (u8) ~(IS_SPECIAL | IS_RESET);
        if (value < end && *value == '$') s->block.has |= IS_SPECIAL;
        if (end - value == 6 && !memcmp(value, "$reset", 6)) s->block.has |= IS_RESET;
    }
}

static void keep_line(struct stream *s, const char *bytes, size_t length) {
    if (s->line_len + length > s->line_capacity) {
        s->line_capacity = (u32)((s->line_len + length) * 2);
        s->line = resized(s->line, s->line_capacity);
    }
    memcpy(s->line + s->line_len, bytes, length);
    s->line_len += (u32)length;
}

static const char *line_end(const char *p, const char *end, bool has_cr) {
    if (!has_cr) return memchr(p, '\n', (size_t)(end - p));
    while (p < end && *p != '\n' && *p != '\r') p++;
    return p < end ? p : NULL;
}

static void take_body(struct stream *s, const char *p, size_t length) {
    const char *end = p + length;
    bool has_cr = memchr(p, '\r', length) != NULL;
    while (p < end) {
        if (s->after_cr) {
            s->after_cr = false;
            if (*p == '\n') p++;
            if (p == end) return;
        }
        const char *eol = line_end(p, end, has_cr);
        if (!eol) {
            keep_line(s, p, (size_t)(end - p));
            return;
        }
        if (s->line_len) {
            keep_line(s, p, (size_t)(eol - p));
            u32 whole = s->line_len;
            s->line_len = 0;
            take_line(s, s->line, s->line + whole);
        } else {
            take_line(s, p, eol);
        }
        s->after_cr = *eol == '\r';
        p = eol + 1;
    }
}

static bool between_blocks(const struct stream *s) {
    return !s->line_len && !s->block.has && !s->after_cr;
}

static struct cached *slot_of(const char *p, size_t length) {
    u64 hash = length, word;
    for (size_t at = 0; at + 8 <= length && at < 96; at += 8) {
        memcpy(&word, p + at, 8);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
    }
    return &cache[hash % (length > SMALL_CHUNK ? LARGE_SLOTS : SMALL_SLOTS)];
}

static bool is_run(const struct cached *slot) {
    const struct item *items = slot->items;
    for (u32 i = 0; i < slot->items_count; i++) {
        const struct item *item = &items[i], *before = i ? item - 1 : item;
        if (item->kind != ITEM_EVENT || (item->has | HAS_ID) != (HAS_DATA | HAS_FIELD | HAS_NUMBER | HAS_TIME | HAS_ID)) return false;
        if (item->has != items[0].has || item->number != items[0].number + i) return false;
        bool grows = before->id_ms < item->id_ms || (before->id_ms == item->id_ms && before->id_seq < item->id_seq);
        if (i && item->has & HAS_ID && !grows) return false;
    }
    return slot->items_count > 1;
}

/* Apply the rest of a run, whose first event was applied like any other, at once; the same as one after the other. */
static void apply_rest(struct stream *s, const struct cached *slot) {
    u32 rest = slot->items_count - 1;
    const struct item *last = &slot->items[rest];
    bool short_of = s->events < opt_expect;
    s->number = last->number;
    s->window = rest < 64 ? s->window << rest | (((u64)1 << rest) - 1) : ~(u64)0;
    s->events += rest;
    reached += short_of && s->events >= opt_expect;
    total.events += rest;
    total.last_event_ns = now_ns;
    if (last->has & HAS_ID) s->id_ms = last->id_ms, s->id_seq = last->id_seq;
    else total.without_id += rest;
    for (const struct item *item = slot->items + 1; item <= last; item++) record_age(item->sent_ns);
}

/* Apply what a chunk does, once more. */
static void apply_cached(struct stream *s, const struct cached *slot) {
    const struct item *first = slot->items;
    bool next = slot->is_run && s->numbered && first->number == s->number + 1;
    bool newer = next && (!(first->has & HAS_ID) || first->id_ms > s->id_ms || (first->id_ms == s->id_ms && first->id_seq > s->id_seq));
    for (u32 i = 0; i < (newer ? 1 : slot->items_count); i++) apply(s, &slot->items[i]);
    if (newer) apply_rest(s, slot);
}

static void take_chunk(struct stream *s, const char *p, size_t length) {
    total.chunks++;
    if (opt_no_cache || length > MAX_CACHED_CHUNK || !between_blocks(s)) {
        take_body(s, p, length);
        return;
    }
    struct cached *slot = slot_of(p, length);
    if (slot->length == length && !memcmp(slot->bytes, p, length)) {
        total.cached_chunks++;
        apply_cached(s, slot);
        return;
    }
    slot->length = 0;
    slot->items_count = 0;
    recording = slot;
    take_body(s, p, length);
    recording = NULL;
    if (!between_blocks(s)) return;
    if (slot->capacity < length) {
        slot->capacity = (u32)length;
        slot->bytes = resized(slot->bytes, length);
    }
    memcpy(slot->bytes, p, length);
    slot->length = (u32)length;
    slot->is_run = is_run(slot);
}

/* ------------------------------------------------------------------------------------ opening and ending */

static void watch(const struct stream *s, u32 events, int operation) {
    struct epoll_event event = {.events = events, .data.u32 = (u32)(s - streams)};
    if (epoll_ctl(epoll_fd, operation, s->fd, &event)) die("epoll_ctl");
}

static void queue_opening(u32 index) {
    ready[(ready_head + ready_count++) % (u32)opt_streams] = index;
}

static bool reopens(const struct stream *s) {
    if (s->how == VANISHED || quitting) return false;
    return opt_reopen_ended || (opt_reopen_refused && s->how == REFUSED);
}

static void end_stream(struct stream *s, enum ending how) {
    bool clean = how == TERMINATED || how == LENGTH_REACHED || how == FIN;
    if (s->state == OPEN) open_count--;
    else in_flight--;
    if (s->state == OPEN && clean && s->saw_retry && !s->started) how = REFUSED;
    if (s->state == OPEN && s->stopped) total.stopped_over++;
    if (s->state == OPEN && how != VANISHED && (s->line_len || s->block.has)) total.cut_events++;
    if (s->state == OPEN && s->framing == CHUNKED && s->in_len && (how == FIN || how == RST || how == FAILED)) total.cut_chunks++;
    if (s->fd >= 0) close(s->fd);
    free(s->in);
    free(s->line);
    s->in = s->line = NULL;
    s->in_len = s->in_capacity = s->line_len = s->line_capacity = 0;
    s->fd = -1;
    s->how = (u8)how;
    s->ended_ns = now_ns;
    total.endings[how]++;
    if (how != VANISHED) {
        if (!total.first_end_ns) total.first_end_ns = now_ns;
        total.last_end_ns = now_ns;
    }
    if (reopens(s)) {
        i64 wait_ms = s->saw_retry && (int)s->retry < opt_retry_cap_ms ? (i64)s->retry : opt_retry_cap_ms;
        s->state = WAITING;
        s->due_ns = now_ns + wait_ms * 1000000;
        sleeping++;
    } else {
        s->state = OVER;
        over_count++;
    }
}

static void bind_source(struct stream *s) {
    int one = 1;
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (u32)(s - streams) % (u32)opt_sources);
    setsockopt(s->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(s->fd, (struct sockaddr *)&source, sizeof source)) die("bind");
}

static void open_stream(struct stream *s) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt_port)};
    int one = 1;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0) die("socket");
    if (opt_receive_buffer) setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &opt_receive_buffer, sizeof(int));
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (opt_sources > 1) bind_source(s);
    inet_pton(AF_INET, opt_host, &address.sin_addr);
    s->state = CONNECTING;
    s->stopped = s->saw_retry = s->started = s->after_cr = false;
    s->block.has = 0;
    s->opened_ns = now_ns;
    in_flight++;
    if (!first_connect_ns) first_connect_ns = now_ns;
    if (connect(s->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) end_stream(s, UNANSWERED);
    else watch(s, EPOLLOUT, EPOLL_CTL_ADD);
}

/* Each "%d" of the path becomes the stream's number. */
static int write_path(char *out, size_t room, u32 index) {
    size_t length = 0;
    for (const char *p = opt_paths[opt_path_count ? index % (u32)opt_path_count : 0]; *p && length + 12 < room; p++) {
        if (p[0] == '%' && p[1] == 'd') length += (size_t)sprintf(out + length, "%u", index), p++;
        else out[length++] = *p;
    }
    return (int)length;
}

static void send_request(struct stream *s) {
    static char request[24 * 1024], path[8 * 1024];
    int error = 0, path_length = write_path(path, sizeof path, (u32)(s - streams));
    socklen_t size = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        end_stream(s, UNANSWERED);
        return;
    }
    int length = snprintf(request, sizeof request, "GET %.*s HTTP/1.%d\r\nHost: %s:%d\r\nAccept: text/event-stream\r\n%s",
                          path_length, path, !opt_http10, opt_host, opt_port, opt_headers);
    if (opt_reopen_ended && s->id_ms)
        length += sprintf(request + length, "Last-Event-ID: %" PRIu64 "-%" PRIu64 "\r\n", s->id_ms, s->id_seq);
    length += sprintf(request + length, "\r\n");
    if (send(s->fd, request, (size_t)length, MSG_NOSIGNAL) != length) {
        end_stream(s, UNANSWERED);
        return;
    }
    s->state = AWAITING_HEAD;
    watch(s, EPOLLIN, EPOLL_CTL_MOD);
}

static const char *header(const char *head, const char *name) {
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, name, length) && line[length] == ':') {
            line += length + 1;
            return line + strspn(line, " \t");
        }
    }
    return NULL;
}

/* Take the response head; the number of bytes it has, or 0 to wait for more, or -1 when the stream is over. */
static int take_head(struct stream *s, char *bytes, size_t length) {
    char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end) {
        if (length <= MAX_HEAD) return 0;
        end_stream(s, BAD_FRAMING);
        return -1;
    }
    end[2] = 0; /* of the blank line, which nobody needs any more */
    int status = 0;
    if (strncmp(bytes, "HTTP/1.", 7) || sscanf(bytes + 7, "%*1[01] %3d", &status) != 1 || status < 100) {
        end_stream(s, BAD_FRAMING);
        return -1;
    }
    total.statuses[status]++;
    const char *type = header(bytes, "content-type"), *coding = header(bytes, "transfer-encoding");
    const char *size = header(bytes, "content-length");
    if (status != 200 || !type || strncasecmp(type, "text/event-stream", 17)) {
        end_stream(s, REJECTED);
        return -1;
    }
    s->framing = coding && !strncasecmp(coding, "chunked", 7) ? CHUNKED : size ? LENGTH : ENDLESS;
    s->left = size ? strtoull(size, NULL, 10) : 0;
    s->state = OPEN;
    in_flight--;
    open_count++;
    last_open_ns = now_ns;
    record(&opening, now_ns - s->opened_ns);
    return (int)(end + 4 - bytes);
}

/* -------------------------------------------------------------------------------------------- framing */

/* Take complete chunks; the number of bytes used, or -1 when the stream is over. */
static i64 take_chunks(struct stream *s, const char *bytes, size_t length) {
    const char *p = bytes, *end = bytes + length;
    while (p < end) {
        u64 size = 0;
        const char *at = p;
        for (; at < end && at - p < 9; at++) {
            int digit = *at >= '0' && *at <= '9' ? *at - '0' : (*at | 32) >= 'a' && (*at | 32) <= 'f' ? (*at | 32) - 'a' + 10 : -1;
            if (digit < 0) break;
            size = size << 4 | (u64)digit;
        }
        if (at == end && at - p < 9) break;
        if (at == p || at - p > 8 || *at != '\r' || (at + 1 < end && at[1] != '\n') || size > MAX_CHUNK) goto broken;
        const char *data = at + 2;
        if (data > end || (size_t)(end - data) < size + 2) {
            if (data + size < end && data[size] != '\r') goto broken;
            break;
        }
        if (data[size] != '\r' || data[size + 1] != '\n') goto broken;
        p = data + size + 2;
        if (!size) {
            end_stream(s, p == end ? TERMINATED : BAD_FRAMING);
            return -1;
        }
        take_chunk(s, data, size);
    }
    return p - bytes;
broken:
    end_stream(s, BAD_FRAMING);
    return -1;
}

static i64 take_plain(struct stream *s, const char *bytes, size_t length) {
    if (s->framing == LENGTH && length > s->left) {
        end_stream(s, BAD_FRAMING);
        return -1;
    }
    take_body(s, bytes, length);
    if (s->framing == ENDLESS) return (i64)length;
    s->left -= length;
    if (s->left) return (i64)length;
    end_stream(s, LENGTH_REACHED);
    return -1;
}

/* Take what can be taken of a stream's bytes; the number used, or -1 when the stream is over. */
static i64 take_bytes(struct stream *s, char *bytes, size_t length) {
    i64 head = 0;
    if (s->state == AWAITING_HEAD) {
        head = take_head(s, bytes, length);
        if (head <= 0) return head;
    }
    char *body = bytes + head;
    size_t rest = length - (size_t)head;
    i64 used = s->framing == CHUNKED ? take_chunks(s, body, rest) : take_plain(s, body, rest);
    return used < 0 ? -1 : head + used;
}

static void keep_rest(struct stream *s, const char *rest, size_t length) {
    if (!length) {
        free(s->in);
        s->in = NULL;
        s->in_capacity = 0;
    } else if (!s->in) {
        s->in_capacity = (u32)length;
        s->in = resized(NULL, length);
        memcpy(s->in, rest, length);
    } else {
        memmove(s->in, rest, length);
    }
    s->in_len = (u32)length;
}

static void read_stream(struct stream *s) {
    char *into = shared_in;
    if (s->in_len) { /* behind the rest, so that a chunk in many pieces is not copied for each */
        if (s->in_capacity < s->in_len + READ_BYTES) {
            s->in_capacity = s->in_len + READ_BYTES;
            s->in = resized(s->in, s->in_capacity);
        }
        into = s->in;
    }
    ssize_t got = recv(s->fd, into + s->in_len, READ_BYTES, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    now_ns = clock_ns(CLOCK_MONOTONIC);
    if (got <= 0) {
        if (s->state != OPEN) end_stream(s, UNANSWERED);
        else end_stream(s, got == 0 ? FIN : errno == ECONNRESET ? RST : FAILED);
        return;
    }
    total.bytes += (u64)got;
    size_t length = s->in_len + (size_t)got;
    i64 used = take_bytes(s, into, length);
    if (used >= 0) keep_rest(s, into + used, length - (size_t)used);
}

static void serve(struct stream *s, u32 events) {
    if (s->fd < 0) return;
    if (s->state == CONNECTING) send_request(s);
    else if (!s->stopped) read_stream(s);
    else if (events & (EPOLLERR | EPOLLHUP)) end_stream(s, RST); /* what a stopped reader has not read is gone with it */
    else if (events & EPOLLRDHUP) watch(s, 0, EPOLL_CTL_MOD);    /* the end is known once it is read */
}

/* --------------------------------------------------------------------------------------------- reports */

static char *out;
static size_t out_length, out_capacity;

__attribute__((format(printf, 1, 2))) static void put(const char *format, ...) {
    va_list arguments;
    if (out_capacity - out_length < 512) {
        out_capacity = out_capacity * 2 + 65536;
        out = resized(out, out_capacity);
    }
    va_start(arguments, format);
    out_length += (size_t)vsnprintf(out + out_length, out_capacity - out_length, format, arguments);
    va_end(arguments);
}

static void flush_line(void) {
    put("}\n");
    for (size_t done = 0; done < out_length;) {
        ssize_t wrote = write(STDOUT_FILENO, out + done, out_length - done);
        if (wrote < 0 && errno != EINTR) exit(1); /* nobody listens any more */
        if (wrote > 0) done += (size_t)wrote;
    }
    out_length = 0;
}

static double since_start_ms(i64 time_ns) {
    return time_ns ? (double)(time_ns - start_ns) / 1e6 : -1;
}

static void put_histogram(const char *name, const struct histogram *h) {
    put(", \"%s\": {\"count\": %" PRIu64 ", \"mean\": %.4f, \"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"max\": %.4f}", name,
        h->count, h->count ? h->sum / (double)h->count / 1e6 : 0, quantile_ms(h, .5), quantile_ms(h, .9), quantile_ms(h, .99),
        (double)h->max / 1e6);
}

static void put_streams_summary(void) {
    u32 least = UINT32_MAX, most = 0, comments = UINT32_MAX, short_of = 0, stopped = 0, retry_least = UINT32_MAX, retry_most = 0;
    for (struct stream *s = streams; s < streams + opt_streams; s++) {
        if (s->state == OVER && s->how == VANISHED) continue;
        if (s->events < least) least = s->events;
        if (s->events > most) most = s->events;
        if (s->comments < comments) comments = s->comments;
        if (s->events < opt_expect) short_of++;
        if (s->state == OPEN && s->stopped) stopped++;
        if (s->saw_retry && s->retry < retry_least) retry_least = s->retry;
        if (s->saw_retry && s->retry > retry_most) retry_most = s->retry;
    }
    put(", \"events_least\": %u, \"events_most\": %u, \"comments_least\": %u, \"short_of_expected\": %u, \"stopped\": %u",
        least == UINT32_MAX ? 0 : least, most, comments == UINT32_MAX ? 0 : comments, short_of, stopped);
    put(", \"retry_least\": %d, \"retry_most\": %d", retry_least == UINT32_MAX ? -1 : (int)retry_least,
        retry_least == UINT32_MAX ? -1 : (int)retry_most);
}

static void put_endings(void) {
    put(", \"endings\": {");
    for (int how = 0; how < ENDINGS; how++) put("%s\"%s\": %" PRIu64, how ? ", " : "", ENDING_NAMES[how], total.endings[how]);
    put("}, \"statuses\": {");
    const char *comma = "";
    for (int status = 0; status < 1000; status++) {
        if (!total.statuses[status]) continue;
        put("%s\"%d\": %" PRIu64, comma, status, total.statuses[status]);
        comma = ", ";
    }
    put("}");
}

static void say_report(const char *what) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    put("{\"what\": \"%s\", \"started_ns\": %" PRId64 ", \"ms\": %.3f, \"streams\": %d, \"waiting\": %d", what, start_ns,
        since_start_ms(now_ns), opt_streams, (int)ready_count + sleeping);
    put(", \"connecting\": %d, \"open\": %d, \"over\": %d, \"stopped_over\": %" PRIu64, in_flight, open_count, over_count,
        total.stopped_over);
    put(", \"first_connect_ms\": %.3f, \"last_open_ms\": %.3f", since_start_ms(first_connect_ns), since_start_ms(last_open_ns));
    put_streams_summary();
    put(", \"events\": %" PRIu64 ", \"specials\": %" PRIu64 ", \"resets\": %" PRIu64 ", \"positions\": %" PRIu64, total.events,
        total.specials, total.resets, total.positions);
    put(", \"comments\": %" PRIu64 ", \"stray_blanks\": %" PRIu64 ", \"unnumbered\": %" PRIu64 ", \"without_id\": %" PRIu64,
        total.comments, total.stray_blanks, total.unnumbered, total.without_id);
    put(", \"lost\": %" PRId64 ", \"duplicates\": %" PRIu64 ", \"inversions\": %" PRIu64, total.lost, total.duplicates,
        total.inversions);
    put(", \"id_duplicates\": %" PRIu64 ", \"id_inversions\": %" PRIu64 ", \"odd_ids\": %" PRIu64, total.id_duplicates,
        total.id_inversions, total.odd_ids);
    put(", \"cut_chunks\": %" PRIu64 ", \"cut_events\": %" PRIu64 ", \"bytes\": %" PRIu64, total.cut_chunks, total.cut_events,
        total.bytes);
    put(", \"chunks\": %" PRIu64 ", \"cached_chunks\": %" PRIu64, total.chunks, total.cached_chunks);
    put(", \"first_event_ms\": %.3f, \"last_event_ms\": %.3f", since_start_ms(total.first_event_ns),
        since_start_ms(total.last_event_ns));
    put(", \"first_end_ms\": %.3f, \"last_end_ms\": %.3f", since_start_ms(total.first_end_ns), since_start_ms(total.last_end_ns));
    put(", \"cpu_seconds\": %.4f",
        (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    put_endings();
    put_histogram("latency_ms", &latency);
    put_histogram("opening_ms", &opening);
    flush_line();
}

static void say_streams(void) {
    put("{\"what\": \"streams\", \"rows\": [");
    for (struct stream *s = streams; s < streams + opt_streams; s++) {
        put("%s[\"%s\", \"%s\", %u, %u, %u, %d", s == streams ? "" : ", ", STATES[s->state], s->ended_ns ? ENDING_NAMES[s->how] : "",
            s->events, s->lost, s->comments, s->saw_retry ? (int)s->retry : -1);
        put(", \"%" PRIu64 "-%" PRIu64 "\", %.3f]", s->id_ms, s->id_seq, since_start_ms(s->ended_ns));
    }
    put("]");
    flush_line();
}

static void say_count(const char *what, int count) {
    put("{\"what\": \"%s\", \"count\": %d", what, count);
    flush_line();
}

/* -------------------------------------------------------------------------------------------- commands */

static void vanish(int count, bool reset) {
    int done = 0;
    struct linger abort = {.l_onoff = 1, .l_linger = 0};
    for (struct stream *s = streams; s < streams + opt_streams && done < count; s++) {
        if (s->state != OPEN || s->stopped) continue;
        if (reset) setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &abort, sizeof abort);
        else while (recv(s->fd, shared_in, READ_BYTES, MSG_DONTWAIT) > 0) {} /* unread bytes would make it a RST */
        end_stream(s, VANISHED);
        done++;
    }
    say_count("vanish", done);
}

static void stop_reading(int count) {
    int done = 0;
    for (struct stream *s = streams + opt_streams - 1; s >= streams && done < count; s--) {
        if (s->state != OPEN || s->stopped) continue;
        s->stopped = true;
        watch(s, EPOLLRDHUP, EPOLL_CTL_MOD);
        done++;
    }
    say_count("stop", done);
}

static void resume_reading(void) {
    int done = 0;
    for (struct stream *s = streams; s < streams + opt_streams; s++) {
        if (s->state != OPEN || !s->stopped) continue;
        s->stopped = false;
        watch(s, EPOLLIN, EPOLL_CTL_MOD);
        done++;
    }
    say_count("resume", done);
}

static void clear(void) {
    memset(&total, 0, sizeof total);
    memset(&latency, 0, sizeof latency);
    memset(&opening, 0, sizeof opening);
    reached = 0;
    said_complete = false;
    for (struct stream *s = streams; s < streams + opt_streams; s++) {
        s->events = s->comments = s->lost = 0;
        s->numbered = false;
    }
    say_count("clear", opt_streams);
}

static void expect(u32 count) {
    opt_expect = count;
    reached = 0;
    said_complete = false;
    for (struct stream *s = streams; s < streams + opt_streams; s++) reached += s->events >= opt_expect;
    say_count("expect", (int)count);
}

static void obey(const char *command) {
    int count = 0;
    char kind[8] = "";
    if (!strcmp(command, "report")) say_report("report");
    else if (!strcmp(command, "streams")) say_streams();
    else if (sscanf(command, "vanish %d %7s", &count, kind) == 2) vanish(count, !strcmp(kind, "rst"));
    else if (sscanf(command, "stop %d", &count) == 1) stop_reading(count);
    else if (sscanf(command, "expect %d", &count) == 1) expect((u32)count);
    else if (!strcmp(command, "resume")) resume_reading();
    else if (!strcmp(command, "clear")) clear();
    else if (!strcmp(command, "quit")) quitting = true;
    else say_count("unknown command", 0);
}

static void read_commands(void) {
    static char line[4096];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, line + length, sizeof line - 1 - length);
    if (got <= 0) {
        if (got == 0 && opt_duration > 0) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
        else if (got == 0 || (errno != EINTR && errno != EAGAIN)) quitting = true;
        return;
    }
    length += (size_t)got;
    line[length] = 0;
    char *start = line;
    for (char *end; (end = strchr(start, '\n')); start = end + 1) {
        *end = 0;
        obey(start);
    }
    length = strlen(start);
    memmove(line, start, length + 1);
}

/* ------------------------------------------------------------------------------------------------ main */

static void wake_sleepers(void) {
    if (!sleeping) return;
    for (struct stream *s = streams; s < streams + opt_streams; s++) {
        if (s->state != WAITING || !s->due_ns || s->due_ns > now_ns) continue;
        s->due_ns = 0;
        sleeping--;
        queue_opening((u32)(s - streams));
    }
}

static void launch(void) {
    static double allowance;
    static i64 last_ns;
    if (opt_rate) {
        allowance += (double)(now_ns - (last_ns ? last_ns : start_ns)) * opt_rate / 1e9;
        if (allowance > opt_rate * 0.1 + 1) allowance = opt_rate * 0.1 + 1;
        last_ns = now_ns;
    }
    while (ready_count && in_flight < opt_in_flight && (!opt_rate || allowance >= 1)) {
        struct stream *s = &streams[ready[ready_head]];
        ready_head = (ready_head + 1) % (u32)opt_streams;
        ready_count--;
        allowance -= 1;
        open_stream(s);
    }
}

static void announce(void) {
    if (!said_open && open_count + over_count == opt_streams) {
        said_open = true;
        say_report("open");
    }
    if (opt_expect && !said_complete && open_count && open_count + over_count == opt_streams && reached >= open_count) {
        int missing = 0;
        for (struct stream *s = streams; s < streams + opt_streams; s++) missing += s->state == OPEN && s->events < opt_expect;
        if (!missing) {
            said_complete = true;
            say_report("complete");
        }
    }
    if (!said_ended && over_count == opt_streams) {
        said_ended = true;
        say_report("ended");
    }
}

static void add_header(const char *line) {
    size_t used = strlen(opt_headers);
    if (used + strlen(line) + 3 > sizeof opt_headers) errno = E2BIG, die("headers");
    sprintf(opt_headers + used, "%s\r\n", line);
}

static void add_path(const char *path) {
    if (opt_path_count == MAX_PATHS) errno = E2BIG, die("paths");
    opt_paths[opt_path_count++] = path;
}

static void read_options(int argc, char **argv) {
    static const struct option options[] = {
        {"host", 1, 0, 'h'},       {"port", 1, 0, 'p'},      {"streams", 1, 0, 'n'},        {"path", 1, 0, 'u'},
        {"header", 1, 0, 'H'},     {"in-flight", 1, 0, 'f'}, {"rate", 1, 0, 'r'},           {"sources", 1, 0, 's'},
        {"expect", 1, 0, 'e'},     {"duration", 1, 0, 'd'},  {"receive-buffer", 1, 0, 'b'}, {"http10", 0, 0, '0'},
        {"reopen", 1, 0, 'o'},     {"retry-cap", 1, 0, 'c'}, {"no-cache", 0, 0, 'N'},       {0, 0, 0, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'h': opt_host = optarg; break;
        case 'p': opt_port = atoi(optarg); break;
        case 'n': opt_streams = atoi(optarg); break;
        case 'u': add_path(optarg); break;
        case 'H': add_header(optarg); break;
        case 'f': opt_in_flight = atoi(optarg); break;
        case 'r': opt_rate = atoi(optarg); break;
        case 's': opt_sources = atoi(optarg); break;
        case 'e': opt_expect = (u32)atoi(optarg); break;
        case 'd': opt_duration = atof(optarg); break;
        case 'b': opt_receive_buffer = atoi(optarg); break;
        case '0': opt_http10 = true; break;
        case 'o': opt_reopen_refused = true; opt_reopen_ended = !strcmp(optarg, "ended"); break;
        case 'c': opt_retry_cap_ms = atoi(optarg); break;
        case 'N': opt_no_cache = true; break;
        default: exit(2);
        }
    }
}

static void set_up(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < (rlim_t)opt_streams + 20) errno = EMFILE, die("more streams than files allowed");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event); /* a plain file or /dev/null can't be watched: no commands */
    streams = calloc((size_t)opt_streams, sizeof *streams);
    ready = calloc((size_t)opt_streams, sizeof *ready);
    shared_in = malloc(READ_BYTES);
    if (opt_streams < 1 || !streams || !ready || !shared_in) errno = ENOMEM, die("set-up");
    start_ns = now_ns = clock_ns(CLOCK_MONOTONIC);
    realtime_offset_ns = clock_ns(CLOCK_REALTIME) - start_ns;
    for (u32 index = 0; index < (u32)opt_streams; index++) {
        streams[index].fd = -1;
        queue_opening(index);
    }
}

int main(int argc, char **argv) {
    static struct epoll_event events[EPOLL_BATCH];
    read_options(argc, argv);
    set_up();
    while (!quitting) {
        launch();
        int count = epoll_wait(epoll_fd, events, EPOLL_BATCH, TICK_MS);
        now_ns = clock_ns(CLOCK_MONOTONIC);
        for (int i = 0; i < count; i++) {
            if (events[i].data.u32 == UINT32_MAX) read_commands();
            else serve(&streams[events[i].data.u32], events[i].events);
        }
        wake_sleepers();
        announce();
        if (opt_duration > 0 && (double)(now_ns - start_ns) > opt_duration * 1e9) quitting = true;
    }
    say_report("quit");
    return 0;
}
