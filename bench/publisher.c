/* publisher: publishes numbered events from one process, at a rate or as fast as a server takes them.
 *
 *   publisher --port=N --protocol=http|redis|lines --count=K --target=PATH [--body=TEXT] [--header=LINE]
 *             [--rate=R] [--seconds=S] [--connections=C] [--in-flight=W] [--channels=M] [--bytes=100]
 *             [--reopen]
 *
 * Event n goes to channel n mod M and is that channel's event number n / M + 1, so that each channel's numbers are
 * contiguous. "%d" in target and body becomes the channel's number, "%s" in the body the payload: "seq N t <ns> xxx...".
 *
 *   http    POST, with the target as path; each connection has at most W requests without an answer
 *           with --reopen, for servers that close after each answer, it has one and is opened again
 *   redis   PUBLISH, with the target as the name of the channel; W likewise
 *   lines   the body and a newline, for limit.c; nothing is answered
 *
 * At the end it prints one line of JSON. bench/publisher.py is its Python face.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef int64_t i64;

enum { MAX_CONNECTIONS = 256, UNSENT_BYTES = 64 * 1024, ANSWER_BYTES = 256 * 1024, MAX_EVENT = 16 * 1024, ANSWER_SECONDS = 30 };
enum protocol { HTTP, REDIS, LINES };

static enum protocol opt_protocol;
static const char *opt_target = "/", *opt_body = "%s";
static char opt_headers[8192];
static int opt_port, opt_connections = 1, opt_in_flight = 1, opt_channels = 1, opt_bytes = 100;
static i64 opt_count = INT64_MAX;
static double opt_rate, opt_seconds;
static bool opt_reopen;

static struct connection {
    int fd, waiting; /* answers that are due */
    bool closing;    /* the server closes it */
    char *out, in[ANSWER_BYTES + 1];
    size_t out_length, out_capacity, in_length;
} connections[MAX_CONNECTIONS];

static i64 sent, accepted, refused, started_ns;
static bool over; /* nothing more is sent */
static char refusal[600];

static i64 clock_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (i64)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void die(const char *text) {
    fprintf(stderr, "publisher: %s: %s\n", text, strerror(errno));
    exit(2);
}

/* ------------------------------------------------------------------------------------------ requests */

static int write_payload(char *out, i64 number) {
    int length = sprintf(out, "seq %" PRId64 " t %" PRId64 " ", number, clock_ns());
    for (; length < opt_bytes; length++) out[length] = 'x';
    return length;
}

/* Copy a template; its result has less than MAX_EVENT bytes. */
static int fill(char *out, const char *template, i64 channel, i64 number) {
    int length = 0;
    for (const char *p = template; *p; p++) {
        if (length + opt_bytes + 64 > MAX_EVENT) errno = EMSGSIZE, die("event");
        if (p[0] == '%' && p[1] == 'd') length += sprintf(out + length, "%" PRId64, channel), p++;
        else if (p[0] == '%' && p[1] == 's') length += write_payload(out + length, number), p++;
        else out[length++] = *p;
    }
    return length;
}

static void append_request(struct connection *c) {
    static char target[MAX_EVENT], body[MAX_EVENT];
    i64 channel = sent % opt_channels, number = sent / opt_channels + 1;
    int target_length = fill(target, opt_target, channel, number), body_length = fill(body, opt_body, channel, number);
    size_t room = (size_t)(target_length + body_length) + sizeof opt_headers + 256;
    if (c->out_capacity - c->out_length < room) {
        c->out_capacity = c->out_capacity * 2 + room;
        c->out = realloc(c->out, c->out_capacity);
        if (!c->out) die("memory");
    }
    char *out = c->out + c->out_length;
    if (opt_protocol == HTTP)
        out += sprintf(out, "POST %.*s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%sContent-Length: %d\r\n\r\n%.*s", target_length, target,
                       opt_port, opt_headers, body_length, body_length, body);
    else if (opt_protocol == REDIS)
        out += sprintf(out, "*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%.*s\r\n$%d\r\n%.*s\r\n", target_length, target_length, target,
                       body_length, body_length, body);
    else
        out += sprintf(out, "%.*s\n", body_length, body);
    c->out_length = (size_t)(out - c->out);
    if (opt_protocol == LINES) accepted++;
    else c->waiting++;
    sent++;
}

/* ------------------------------------------------------------------------------------------- answers */

/* The first refusal is kept; what JSON would have to escape becomes a space. */
static void take_verdict(bool good, const char *answer, size_t length) {
    if (good) {
        accepted++;
    } else if (!refused++) {
        size_t kept = length < sizeof refusal - 1 ? length : sizeof refusal - 1;
        for (size_t i = 0; i < kept; i++)
            refusal[i] = answer[i] < ' ' || answer[i] == '"' || answer[i] == '\\' || answer[i] == 127 ? ' ' : answer[i];
    }
}

/* The length of a complete chunked body; 0 if it is not complete. */
static size_t chunked_length(const char *body, const char *end) {
    const char *p = body;
    for (char *after; p < end; p = after + 2) {
        size_t size = strtoul(p, &after, 16);
        if (after == p || end - after < 2) return 0;
        if ((size_t)(end - after) < size + 4) return 0;
        after += 2 + size;
        if (!size) return (size_t)(after + 2 - body);
    }
    return 0;
}

/* Each answer's length, or 0 to wait for more. The buffer ends with a zero byte. */
static size_t take_http(char *bytes, size_t length) {
    char *end = memmem(bytes, length, "\r\n\r\n", 4);
    if (!end) return 0;
    int status = atoi(bytes + 9);
    size_t head = (size_t)(end + 4 - bytes), body = 0;
    end[2] = 0;
    char *size = strcasestr(bytes, "\r\ncontent-length:"), *coding = strcasestr(bytes, "\r\ntransfer-encoding:");
    if (size) body = strtoul(size + 17, NULL, 10);
    else if (coding) body = chunked_length(bytes + head, bytes + length);
    end[2] = '\r';
    if (length < head + body || (coding && !size && !body)) return 0;
    take_verdict(status >= 200 && status < 300, bytes, head + body);
    return head + body;
}

static size_t take_redis(char *bytes, size_t length) {
    char *end = memmem(bytes, length, "\r\n", 2);
    if (!end) return 0;
    take_verdict(*bytes == ':', bytes, (size_t)(end - bytes));
    return (size_t)(end + 2 - bytes);
}

static void take_answers(struct connection *c) {
    size_t used = 0;
    while (used < c->in_length) {
        char *at = c->in + used;
        size_t taken = opt_protocol == HTTP ? take_http(at, c->in_length - used) : take_redis(at, c->in_length - used);
        if (!taken) break;
        used += taken;
        c->waiting--;
        c->closing = opt_reopen;
    }
    memmove(c->in, c->in + used, c->in_length - used);
    c->in_length -= used;
    if (c->in_length == ANSWER_BYTES) errno = EMSGSIZE, die("answer");
}

/* --------------------------------------------------------------------------------------- connections */

static void open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt_port)};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (opt_protocol == LINES && send(c->fd, "FEED\n", 5, MSG_NOSIGNAL) != 5) die("send");
}

static void flush(struct connection *c) {
    if (!c->out_length) return;
    ssize_t wrote = send(c->fd, c->out, c->out_length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (wrote < 0 && errno != EAGAIN) die("send");
    if (wrote <= 0) return;
    c->out_length -= (size_t)wrote;
    memmove(c->out, c->out + wrote, c->out_length);
}

static void receive(struct connection *c) {
    ssize_t got = recv(c->fd, c->in + c->in_length, ANSWER_BYTES - c->in_length, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got == 0 && opt_reopen && !c->waiting) {
        close(c->fd);
        c->closing = false;
        open_connection(c);
        return;
    }
    if (got <= 0) die("the server has closed the connection");
    c->in_length += (size_t)got;
    c->in[c->in_length] = 0;
    take_answers(c);
}

static bool takes_more(const struct connection *c) {
    return opt_protocol == LINES ? c->out_length < UNSENT_BYTES : c->waiting < opt_in_flight && !c->closing;
}

/* ---------------------------------------------------------------------------------------------- main */

/* How many events may have been sent by now. */
static i64 allowed(void) {
    double seconds = (double)(clock_ns() - started_ns) / 1e9;
    over = sent >= opt_count || (opt_seconds > 0 && seconds >= opt_seconds);
    if (over) return sent;
    i64 due = opt_rate > 0 ? (i64)(seconds * opt_rate) + 1 : opt_count;
    return due < opt_count ? due : opt_count;
}

static void fill_connections(i64 upto) {
    for (bool some = true; some && sent < upto;) {
        some = false;
        for (int i = 0; i < opt_connections && sent < upto; i++) {
            if (!takes_more(&connections[i])) continue;
            append_request(&connections[i]);
            some = true;
        }
    }
}

static bool finished(void) {
    if (!over) return false;
    for (int i = 0; i < opt_connections; i++)
        if (connections[i].out_length || connections[i].waiting) return false;
    return true;
}

/* How long nothing can be sent unless something is received. */
static struct timespec pause_of_sending(void) {
    struct timespec pause = {.tv_sec = ANSWER_SECONDS};
    bool ready = false;
    for (int i = 0; i < opt_connections; i++) ready |= takes_more(&connections[i]);
    if (!ready || over) return pause;
    i64 left = opt_rate > 0 ? started_ns + (i64)((double)sent / opt_rate * 1e9) - clock_ns() : 0;
    if (left < 0) left = 0;
    return (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
}

static void wait_for_sockets(void) {
    static struct pollfd files[MAX_CONNECTIONS];
    struct timespec pause = pause_of_sending();
    for (int i = 0; i < opt_connections; i++) {
        files[i] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN};
        if (connections[i].out_length) files[i].events |= POLLOUT;
    }
    int count = ppoll(files, (nfds_t)opt_connections, &pause, NULL);
    if (count < 0 && errno != EINTR) die("poll");
    if (count == 0 && pause.tv_sec == ANSWER_SECONDS) errno = ETIMEDOUT, die("no answer");
    for (int i = 0; i < opt_connections; i++)
        if (files[i].revents & ~POLLOUT) receive(&connections[i]);
}

static void add_header(const char *line) {
    size_t used = strlen(opt_headers);
    if (used + strlen(line) + 3 > sizeof opt_headers) errno = E2BIG, die("headers");
    sprintf(opt_headers + used, "%s\r\n", line);
}

static enum protocol protocol_of(const char *name) {
    if (!strcmp(name, "http")) return HTTP;
    if (!strcmp(name, "redis")) return REDIS;
    if (!strcmp(name, "lines")) return LINES;
    exit(2);
}

static void read_options(int argc, char **argv) {
    static const struct option options[] = {
        {"port", 1, 0, 'p'},   {"protocol", 1, 0, 'P'}, {"count", 1, 0, 'n'},       {"target", 1, 0, 'u'},
        {"body", 1, 0, 'B'},   {"header", 1, 0, 'H'},   {"rate", 1, 0, 'r'},        {"seconds", 1, 0, 's'},
        {"bytes", 1, 0, 'b'},  {"channels", 1, 0, 'm'}, {"connections", 1, 0, 'c'}, {"in-flight", 1, 0, 'w'},
        {"reopen", 0, 0, 'o'}, {0, 0, 0, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'p': opt_port = atoi(optarg); break;
        case 'P': opt_protocol = protocol_of(optarg); break;
        case 'n': opt_count = atoll(optarg); break;
        case 'u': opt_target = optarg; break;
        case 'B': opt_body = optarg; break;
        case 'H': add_header(optarg); break;
        case 'r': opt_rate = atof(optarg); break;
        case 's': opt_seconds = atof(optarg); break;
        case 'c': opt_connections = atoi(optarg); break;
        case 'w': opt_in_flight = atoi(optarg); break;
        case 'm': opt_channels = atoi(optarg); break;
        case 'b': opt_bytes = atoi(optarg); break;
        case 'o': opt_reopen = true; break;
        default: exit(2);
        }
    }
    if (opt_reopen) opt_in_flight = 1;
    if (opt_connections < 1 || opt_connections > MAX_CONNECTIONS || opt_channels < 1 || opt_in_flight < 1) exit(2);
}

int main(int argc, char **argv) {
    struct rusage usage;
    read_options(argc, argv);
    for (int i = 0; i < opt_connections; i++) open_connection(&connections[i]);
    started_ns = clock_ns();
    while (!finished()) {
        fill_connections(allowed());
        for (int i = 0; i < opt_connections; i++) flush(&connections[i]);
        if (!finished()) wait_for_sockets();
    }
    i64 ended_ns = clock_ns();
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"started_ns\": %" PRId64 ", \"ended_ns\": %" PRId64 ", \"sent\": %" PRId64 ", \"accepted\": %" PRId64, started_ns,
           ended_ns, sent, accepted);
    printf(", \"refused\": %" PRId64 ", \"refusal\": \"%s\", \"cpu_seconds\": %.4f}\n", refused, refusal,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    return 0;
}
