/* The load of long streams: HTTP/2 in plaintext with prior knowledge, one thread, closed loop.
 *
 * Each stream sends a gRPC message to /echo, waits until it is back whole, compares it, and sends the next: in
 * lock step, so what is counted is a message with its echo. A stream lives as long as the run. At the end each is
 * finished properly: END_STREAM, and the trailers of the answer are waited for.
 *
 * With `slow`, the run has two halves of SECONDS each. Before the second, one more stream on the first connection
 * asks for /endless and never gives its window back; the connection's own window is given back, so only that stream
 * may stand still (RFC 9113, section 5.2.2).
 *
 * Prints one line: JSON and an object. Errors are counted in it, the exit code is 0 if it could measure at all.
 *
 * usage: stream_load PORT AUTHORITY CONNECTIONS STREAMS SECONDS MESSAGE [slow]    to 127.0.0.1
 */
#include "stream.h"
#include <time.h>

enum {
    MICROSECONDS = 1000000,
    SLOWEST = 2 * MICROSECONDS, /* the histogram's end: what took longer counts as this */
    CONNECT_US = 10 * MICROSECONDS,
    SETTLE_US = MICROSECONDS / 2, /* for the slow stream to fill what there is to be filled */
    FINISH_US = 5 * MICROSECONDS,
    CONNECTION_WINDOW = 16 << 20,
};

enum phase { ALONE, PAUSE, BESIDE, FINISHING };

struct stream {
    int32_t id;
    bool slow, answered, trailed;
    size_t sent, got; /* of the message under way */
    uint64_t began;   /* when its sending began, microseconds */
};

static enum phase phase;
static long streams, message;
static const char *authority;
static uint8_t *sample; /* head and message: what every stream sends */
static size_t size;
static uint32_t *histogram;
static uint64_t counted[FINISHING]; /* messages by phase */
static uint64_t slow_bytes;
static long open_streams;
static long failed_connections, failed_streams, bad_status, bad_bytes;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * MICROSECONDS + (uint64_t)time.tv_nsec / 1000;
}

static ssize_t read_message(nghttp2_session *session, int32_t id, uint8_t *out, size_t room, uint32_t *flags,
                            nghttp2_data_source *source, void *user) {
    (void)session;
    (void)id;
    (void)user;
    struct stream *stream = source->ptr;
    size_t part = size - stream->sent < room ? size - stream->sent : room;
    if (!part && phase != FINISHING)
        return NGHTTP2_ERR_DEFERRED;
    if (!part) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        return 0;
    }
    if (!stream->sent)
        stream->began = now();
    memcpy(out, sample + stream->sent, part);
    stream->sent += part;
    return (ssize_t)part;
}

static void request(struct link *link, struct stream *stream) {
    nghttp2_nv head[] = {
        FIELD(":method", stream->slow ? "GET" : "POST"),
        FIELD(":scheme", "http"),
        FIELD(":authority", authority),
        FIELD(":path", stream->slow ? "/endless" : "/echo"),
        FIELD("content-type", "application/grpc"),
        FIELD("te", "trailers"),
    };
    nghttp2_data_provider body = {.source.ptr = stream, .read_callback = read_message};
    size_t count = COUNT(head) - (stream->slow ? 2 : 0);
    stream->id = nghttp2_submit_request(link->session, NULL, head, count, stream->slow ? NULL : &body, stream);
    must(stream->id, "submit_request");
    if (!stream->slow)
        open_streams++;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t value_length, uint8_t flags, void *user) {
    (void)flags;
    (void)user;
    struct stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!stream)
        return 0;
    if (name_length == 11 && !memcmp(name, "grpc-status", 11))
        stream->trailed = value_length == 1 && *value == '0';
    if (name_length != 7 || memcmp(name, ":status", 7))
        return 0;
    stream->answered = value_length == 3 && !memcmp(value, "200", 3);
    if (!stream->answered)
        bad_status++;
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t length,
                   void *user) {
    (void)flags;
    (void)user;
    struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
    if (!stream || stream->slow) {
        slow_bytes += length;
        must(nghttp2_session_consume_connection(session, length), "consume_connection");
        return 0;
    }
    must(nghttp2_session_consume(session, id, length), "consume");
    if (length > stream->sent - stream->got || memcmp(sample + stream->got, bytes, length)) {
        bad_bytes++;
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    stream->got += length;
    if (stream->got < size)
        return 0;
    if (phase != FINISHING) {
        uint64_t took = now() - stream->began;
        counted[phase]++;
        if (phase == ALONE)
            histogram[took < SLOWEST ? took : SLOWEST]++;
        stream->sent = 0;
        stream->got = 0;
    } /* else all of it is sent, so the body ends */
    nghttp2_session_resume_data(session, id);
    return 0;
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t code, void *user) {
    (void)user;
    struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
    if (!stream || stream->slow)
        return 0;
    open_streams--;
    if (code || phase != FINISHING || !stream->answered || !stream->trailed)
        failed_streams++;
    stream->id = 0;
    return 0;
}

static void fail_link(struct link *link) {
    failed_connections++;
    for (long i = 0; i < streams; i++)
        if (link->streams[i].id) {
            link->streams[i].id = 0;
            open_streams--;
        }
    close(link->fd);
    link->fd = -1;
}

static void connect_link(struct link *link, const struct sockaddr_in *address, nghttp2_session_callbacks *callbacks,
                         nghttp2_option *option) {
    link->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (link->fd < 0 || connect(link->fd, (const struct sockaddr *)address, sizeof *address))
        die("connect");
    if (fcntl(link->fd, F_SETFL, O_NONBLOCK))
        die("fcntl");
    no_delay(link->fd);
    must(nghttp2_session_client_new2(&link->session, callbacks, link, option), "client_new");
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                         {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 65535}};
    must(nghttp2_submit_settings(link->session, NGHTTP2_FLAG_NONE, settings, COUNT(settings)), "settings");
    must(nghttp2_session_set_local_window_size(link->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW), "window");
    watch(EPOLL_CTL_ADD, link->fd, EPOLLIN, link);
}

/* Moves bytes until `end`, or, when the streams are being finished, until all are. */
static void run(uint64_t end) {
    static struct epoll_event events[BATCH];
    for (uint64_t time = now(); time < end && open_streams; time = now()) {
        int count = epoll_wait(epoll_fd, events, BATCH, (int)((end - time) / 1000) + 1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct link *link = events[i].data.ptr;
            if (!link_read(link) || !link_flush(link))
                fail_link(link);
        }
    }
}

/* Runs one phase; returns how long it took, microseconds. */
static uint64_t run_phase(enum phase which, uint64_t length) {
    phase = which;
    uint64_t began = now();
    run(began + length);
    return now() - began;
}

static unsigned percentile(double share) {
    uint64_t before = 0;
    for (unsigned i = 0; i <= SLOWEST; i++)
        if ((before += histogram[i]) > (uint64_t)((double)counted[ALONE] * share))
            return i;
    return 0;
}

static void make_sample(void) {
    size = GRPC_HEAD + (size_t)message;
    sample = allocate(size);
    sample[1] = (uint8_t)(message >> 24);
    sample[2] = (uint8_t)(message >> 16);
    sample[3] = (uint8_t)(message >> 8);
    sample[4] = (uint8_t)message;
    for (size_t i = GRPC_HEAD; i < size; i++)
        sample[i] = (uint8_t)(i * 31 + (i >> 8));
}

static nghttp2_session_callbacks *make_callbacks(void) {
    nghttp2_session_callbacks *callbacks;
    must(nghttp2_session_callbacks_new(&callbacks), "callbacks_new");
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    return callbacks;
}

int main(int argc, char **argv) {
    bool with_slow = argc == 8 && !strcmp(argv[7], "slow");
    if (argc != 7 && !with_slow) {
        fprintf(stderr, "usage: stream_load PORT AUTHORITY CONNECTIONS STREAMS SECONDS MESSAGE [slow]\n");
        return 2;
    }
    struct sockaddr_in address = loopback(argv[1]);
    authority = argv[2];
    long connections = number(argv[3], "connections", 1, 10000);
    streams = number(argv[4], "streams", 1, 10000);
    uint64_t length = (uint64_t)number(argv[5], "seconds", 1, 3600) * MICROSECONDS;
    message = number(argv[6], "message", 1, LONGEST_MESSAGE);
    make_sample();
    histogram = allocate((SLOWEST + 1) * sizeof *histogram);
    start_epoll();

    nghttp2_session_callbacks *callbacks = make_callbacks();
    nghttp2_option *option = manual_windows();
    struct link *links = allocate((size_t)connections * sizeof *links);
    for (long i = 0; i < connections; i++) {
        struct link *link = &links[i];
        connect_link(link, &address, callbacks, option);
        link->streams = allocate((size_t)streams * sizeof *link->streams);
        for (long j = 0; j < streams; j++)
            request(link, &link->streams[j]);
        if (!link_flush(link))
            fail_link(link);
    }

    uint64_t alone = run_phase(ALONE, length), beside = 0;
    struct stream slow = {.slow = true};
    if (with_slow && links->fd >= 0) {
        request(links, &slow);
        if (!link_flush(links))
            fail_link(links);
        run_phase(PAUSE, SETTLE_US);
        beside = run_phase(BESIDE, length);
    }
    long lost = connections * streams - open_streams; /* before their end was asked for */
    phase = FINISHING;
    for (long i = 0; i < connections; i++) {
        if (links[i].fd < 0)
            continue;
        for (long j = 0; j < streams; j++)
            nghttp2_session_resume_data(links[i].session, links[i].streams[j].id);
        if (slow.id && i == 0)
            must(nghttp2_submit_rst_stream(links[i].session, NGHTTP2_FLAG_NONE, slow.id, NGHTTP2_CANCEL), "reset");
        if (!link_flush(&links[i]))
            fail_link(&links[i]);
    }
    run_phase(FINISHING, FINISH_US);
    printf("JSON {\"requests\":%llu,\"microseconds\":%llu,\"bytes\":%llu,\"p50\":%u,\"p99\":%u,"
           "\"beside\":%llu,\"beside_microseconds\":%llu,\"slow_bytes\":%llu,"
           "\"connection\":%ld,\"stream\":%ld,\"status\":%ld,\"body\":%ld,\"lost\":%ld,\"timeout\":%ld}\n",
           (unsigned long long)counted[ALONE], (unsigned long long)alone,
           (unsigned long long)(counted[ALONE] * (uint64_t)message), percentile(0.5), percentile(0.99),
           (unsigned long long)counted[BESIDE], (unsigned long long)beside, (unsigned long long)slow_bytes,
           failed_connections, failed_streams, bad_status, bad_bytes, lost, open_streams);
    return 0;
}
