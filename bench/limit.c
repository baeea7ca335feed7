/* limit: the least that a process on this kernel must do to push events to many streams.
 *
 * A connection that sends "GET /7" becomes an event stream of channel 7. "POST /7" gives that channel an event's data in
 * its body and is answered. One that sends FEED gives a channel's number, a space and an event's data per line from then
 * on. There is nothing else: no names, no limits, no checks, no history. One `send` per event and stream; with --join,
 * one `send` for all events that a stream has not had yet.
 *
 *   limit PORT [--join]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FILES = 65536, MAX_CHANNELS = 4096, JOINED_BYTES = 65536, READ_BYTES = 65536 };

enum role { NEW, STREAM, FEED, POSTER };

static struct connection {
    enum role role;
    bool blocked; /* waits for EPOLLOUT */
    int channel;
    size_t sent;  /* how far in the channel's bytes */
    int next;     /* the chunk that is sent, or is to be sent next */
    char *in;     /* what a publisher has sent of the next line or request */
    size_t in_length;
} connections[MAX_FILES];

/* All events ever given to a channel, in one piece of memory: chunk i is bytes[starts[i]] to bytes[starts[i + 1]]. */
static struct channel {
    char *bytes, *taken; /* taken: events that are in no chunk yet */
    size_t capacity, *starts, taken_length, taken_capacity;
    int chunks, chunks_capacity;
    int *streams, stream_count, streams_capacity;
    bool touched;
} channels[MAX_CHANNELS];

static int epoll_fd, touched[MAX_CHANNELS], touched_count;
static bool joins;

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                           "d\r\nretry: 2000\n\n\r\n";
static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

static void *resized(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (!memory) exit(2);
    return memory;
}

static void watch(int fd, unsigned interest, int operation) {
    struct epoll_event event = {.events = interest, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) exit(2);
}

/* ------------------------------------------------------------------------------------------- sending */

/* Send what the stream has not had. */
static void push(int fd) {
    struct connection *c = &connections[fd];
    struct channel *channel = &channels[c->channel];
    bool blocked = false;
    while (c->next < channel->chunks && !blocked) {
        size_t end = channel->starts[c->next + 1], all = channel->starts[channel->chunks];
        if (joins) end = all - c->sent > JOINED_BYTES ? c->sent + JOINED_BYTES : all;
        ssize_t sent = send(fd, channel->bytes + c->sent, end - c->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return; /* gone: EPOLLIN will say so */
        blocked = sent < (ssize_t)(end - c->sent);
        if (sent > 0) c->sent += (size_t)sent;
        while (c->next < channel->chunks && channel->starts[c->next + 1] <= c->sent) c->next++;
    }
    if (blocked != c->blocked) watch(fd, blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    c->blocked = blocked;
}

static void push_channel(struct channel *channel) {
    for (int i = 0; i < channel->stream_count; i++)
        if (!connections[channel->streams[i]].blocked) push(channel->streams[i]);
}

/* Make what was taken a chunk, which streams get whole or, from a full socket, in parts. */
static void seal(struct channel *channel) {
    if (channel->chunks + 2 > channel->chunks_capacity) {
        channel->chunks_capacity = channel->chunks_capacity * 2 + 64;
        channel->starts = resized(channel->starts, (size_t)channel->chunks_capacity * sizeof *channel->starts);
        if (!channel->chunks) channel->starts[0] = 0;
    }
    size_t start = channel->starts[channel->chunks];
    if (channel->capacity - start < channel->taken_length + 32) {
        channel->capacity = channel->capacity * 2 + channel->taken_length + 1024;
        channel->bytes = resized(channel->bytes, channel->capacity);
    }
    int size = sprintf(channel->bytes + start, "%zx\r\n%.*s\r\n", channel->taken_length, (int)channel->taken_length, channel->taken);
    channel->starts[++channel->chunks] = start + (size_t)size;
    channel->taken_length = 0;
}

/* Seal and send what was taken since the last time. */
static void push_touched(void) {
    for (int i = 0; i < touched_count; i++) {
        channels[touched[i]].touched = false;
        seal(&channels[touched[i]]);
        push_channel(&channels[touched[i]]);
    }
    touched_count = 0;
}

static void take_event(int number, const char *data, size_t length) {
    if (number < 0 || number >= MAX_CHANNELS) exit(2);
    struct channel *channel = &channels[number];
    if (channel->taken_capacity - channel->taken_length < length + 16) {
        channel->taken_capacity = channel->taken_capacity * 2 + length + 256;
        channel->taken = resized(channel->taken, channel->taken_capacity);
    }
    channel->taken_length += (size_t)sprintf(channel->taken + channel->taken_length, "data: %.*s\n\n", (int)length, data);
    if (!channel->touched) touched[touched_count++] = number;
    channel->touched = true;
    if (!joins) push_touched();
}

/* -------------------------------------------------------------------------------------------- taking */

static void open_stream(int fd, const char *request) {
    struct connection *c = &connections[fd];
    int number = atoi(request + 5);
    if (number < 0 || number >= MAX_CHANNELS) exit(2);
    struct channel *channel = &channels[number];
    c->role = STREAM;
    c->channel = number;
    c->next = channel->chunks;
    c->sent = channel->starts ? channel->starts[channel->chunks] : 0;
    if (channel->stream_count == channel->streams_capacity) {
        channel->streams_capacity = channel->streams_capacity * 2 + 1;
        channel->streams = resized(channel->streams, (size_t)channel->streams_capacity * sizeof(int));
    }
    channel->streams[channel->stream_count++] = fd;
    if (send(fd, HEAD, sizeof HEAD - 1, MSG_NOSIGNAL) < 0) return;
}

static size_t take_line(const char *bytes, size_t length) {
    const char *end = memchr(bytes, '\n', length), *space = memchr(bytes, ' ', length);
    if (!end) return 0;
    if (!space || space > end) exit(2);
    take_event(atoi(bytes), space + 1, (size_t)(end - space - 1));
    return (size_t)(end + 1 - bytes);
}

static size_t take_post(int fd, const char *bytes, size_t length) {
    char *end = memmem(bytes, length, "\r\n\r\n", 4), *size = memmem(bytes, length, "Content-Length:", 15);
    if (!end || !size) return 0;
    size_t head = (size_t)(end + 4 - bytes), body = strtoul(size + 15, NULL, 10);
    if (length < head + body) return 0;
    take_event(atoi(bytes + 6), bytes + head, body);
    if (send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL) < 0) return head + body;
    return head + body;
}

static void drop(int fd) {
    struct connection *c = &connections[fd];
    struct channel *channel = &channels[c->channel];
    for (int i = 0; c->role == STREAM && i < channel->stream_count; i++)
        if (channel->streams[i] == fd) {
            channel->streams[i] = channel->streams[--channel->stream_count];
            break;
        }
    free(c->in);
    close(fd);
}

/* What the first bytes of a connection make of it; a request's head comes in one piece. */
static void begin(int fd) {
    struct connection *c = &connections[fd];
    if (!strncmp(c->in, "GET /", 5)) {
        open_stream(fd, c->in);
        free(c->in);
        c->in = NULL;
    } else if (!strncmp(c->in, "POST /", 6)) {
        c->role = POSTER;
    } else if (!strncmp(c->in, "FEED\n", 5)) {
        c->role = FEED;
        memmove(c->in, c->in + 5, c->in_length -= 5);
    } else {
        exit(2);
    }
}

static void take_input(int fd) {
    struct connection *c = &connections[fd];
    size_t used = 0, taken;
    if (c->role == NEW) begin(fd);
    if (c->role == STREAM) return;
    do {
        char *at = c->in + used;
        size_t left = c->in_length - used;
        taken = !left ? 0 : c->role == FEED ? take_line(at, left) : take_post(fd, at, left);
        used += taken;
    } while (taken);
    memmove(c->in, c->in + used, c->in_length - used);
    c->in_length -= used;
    if (c->in_length == READ_BYTES) exit(2);
    push_touched();
}

static void read_from(int fd) {
    static char nothing[64];
    struct connection *c = &connections[fd];
    if (c->role != STREAM && !c->in) c->in = resized(NULL, READ_BYTES + 1);
    ssize_t length = c->role == STREAM ? recv(fd, nothing, sizeof nothing, 0)
                                       : recv(fd, c->in + c->in_length, READ_BYTES - c->in_length, 0);
    if (length <= 0) {
        if (length == 0 || errno != EAGAIN) drop(fd);
    } else if (c->role != STREAM) {
        c->in_length += (size_t)length;
        c->in[c->in_length] = 0;
        take_input(fd);
    }
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FILES) exit(2);
        connections[fd] = (struct connection){.role = NEW};
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

int main(int argc, char **argv) {
    static struct epoll_event found[512];
    struct rlimit limit;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (argc < 2) return 2;
    joins = argc > 2 && !strcmp(argv[2], "--join");
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    address.sin_port = htons((unsigned short)atoi(argv[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return 2;
    epoll_fd = epoll_create1(0);
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    for (;;) {
        int count = epoll_wait(epoll_fd, found, 512, -1);
        for (int i = 0; i < count; i++) {
            int fd = found[i].data.fd;
            if (fd == listener) accept_all(fd);
            else if (found[i].events & EPOLLOUT) push(fd);
            else read_from(fd);
        }
    }
}
