/* limit: the least that a process on this kernel must do to push events to many streams.
 *
 * A connection that sends a GET becomes an event stream; one that sends FEED gives an event's data per line from then
 * on, and every stream gets it. There is nothing else: no channels, no limits, no checks. One `send` per event and
 * stream; with --join, one `send` for all events that a stream has not had yet.
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

enum { MAX_FILES = 65536, MAX_EVENTS = 1 << 20, JOINED_BYTES = 65536, LINE_BYTES = 65536 };

/* All events ever fed, as chunks in one piece of memory: event i is log_bytes[starts[i]] to log_bytes[starts[i + 1]]. */
static char *log_bytes;
static size_t log_capacity, starts[MAX_EVENTS + 1];
static int events;

enum role { NEW, STREAM, FEED };

static struct connection {
    enum role role;
    bool blocked;   /* waits for EPOLLOUT */
    size_t sent;    /* how far in log_bytes */
    int next;       /* the event that is sent, or is to be sent next */
} connections[MAX_FILES];

static int epoll_fd, streams[MAX_FILES], stream_count;
static bool joins;

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                           "d\r\nretry: 2000\n\n\r\n";

static void watch(int fd, unsigned interest, int operation) {
    struct epoll_event event = {.events = interest, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) exit(2);
}

static void drop(int fd) {
    for (int i = 0; connections[fd].role == STREAM && i < stream_count; i++)
        if (streams[i] == fd) {
            streams[i] = streams[--stream_count];
            break;
        }
    close(fd);
}

/* Send what the stream has not had; whether it takes more. */
static void push(int fd) {
    struct connection *c = &connections[fd];
    bool blocked = false;
    while (c->next < events && !blocked) {
        size_t end = starts[c->next + 1];
        if (joins) end = starts[events] - c->sent > JOINED_BYTES ? c->sent + JOINED_BYTES : starts[events];
        ssize_t sent = send(fd, log_bytes + c->sent, end - c->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return; /* gone: EPOLLIN will say so */
        blocked = sent < (ssize_t)(end - c->sent);
        if (sent > 0) c->sent += (size_t)sent;
        while (c->next < events && starts[c->next + 1] <= c->sent) c->next++;
    }
    if (blocked != c->blocked) watch(fd, blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    c->blocked = blocked;
}

static void push_all(void) {
    for (int i = 0; i < stream_count; i++)
        if (!connections[streams[i]].blocked) push(streams[i]);
}

static void take_event(const char *line, int length) {
    if (events == MAX_EVENTS) exit(2);
    if (log_capacity - starts[events] < (size_t)length + 32) {
        log_capacity = log_capacity * 2 + 4 * LINE_BYTES;
        log_bytes = realloc(log_bytes, log_capacity);
    }
    int size = sprintf(log_bytes + starts[events], "%x\r\ndata: %.*s\n\n\r\n", length + 8, length, line);
    starts[events + 1] = starts[events] + (size_t)size;
    events++;
    if (!joins) push_all();
}

static void read_feed(int fd, char *bytes, ssize_t length) {
    static char line[LINE_BYTES];
    static size_t line_length;
    for (char *end; length > 0; length -= end - bytes, bytes = end) {
        char *newline = memchr(bytes, '\n', (size_t)length);
        end = newline ? newline + 1 : bytes + length;
        size_t part = (size_t)(end - bytes) - (newline != NULL);
        if (line_length + part > LINE_BYTES) exit(2);
        memcpy(line + line_length, bytes, part);
        line_length += part;
        if (!newline) continue;
        take_event(line, (int)line_length);
        line_length = 0;
    }
    if (joins) push_all();
    (void)fd;
}

static void read_from(int fd) {
    static char buffer[LINE_BYTES];
    struct connection *c = &connections[fd];
    ssize_t length = recv(fd, buffer, sizeof buffer, 0);
    if (length <= 0) {
        if (length == 0 || errno != EAGAIN) drop(fd);
    } else if (c->role == FEED) {
        read_feed(fd, buffer, length);
    } else if (c->role == NEW && !memcmp(buffer, "FEED\n", 5)) {
        c->role = FEED;
        read_feed(fd, buffer + 5, length - 5);
    } else if (c->role == NEW && memmem(buffer, (size_t)length, "\r\n\r\n", 4)) { /* small requests come in one piece */
        *c = (struct connection){.role = STREAM, .sent = starts[events], .next = events};
        streams[stream_count++] = fd;
        if (send(fd, HEAD, sizeof HEAD - 1, MSG_NOSIGNAL) < 0) return;
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
