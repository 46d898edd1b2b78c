/* The backend of long streams: HTTP/2 in plaintext with prior knowledge, one thread.
 *
 *   /echo      sends back what it gets, as it gets it, and ends with the trailer `grpc-status: 0`
 *   /endless   a body without end, as fast as the reader's window allows
 *   other      "hello, mesh\n"
 *
 * Answers begin with the request's head. A stream's window is given back when its bytes have gone back, so what
 * is kept of one is bounded by the window.
 *
 * usage: stream_serve PORT    on 127.0.0.1
 */
#include "stream.h"

enum kind { HELLO, ECHO, ENDLESS };
enum { WINDOW = 2 * (GRPC_HEAD + LONGEST_MESSAGE), CONNECTION_WINDOW = 16 << 20, MOST_STREAMS = 1000 };

static const char hello[] = "hello, mesh\n";

struct stream {
    struct stream *next, **place; /* in the list of its connection */
    enum kind kind;
    bool ended;          /* the client's END_STREAM is in */
    size_t read, length; /* kept[read..length): not gone back yet; of HELLO, `read` alone counts */
    uint8_t *kept;
};

static ssize_t read_body(nghttp2_session *session, int32_t id, uint8_t *out, size_t room, uint32_t *flags,
                         nghttp2_data_source *source, void *user) {
    (void)user;
    struct stream *stream = source->ptr;
    if (stream->kind == ENDLESS) {
        memset(out, 'x', room);
        return (ssize_t)room;
    }
    const uint8_t *from = stream->kind == HELLO ? (const uint8_t *)hello : stream->kept;
    size_t length = stream->kind == HELLO ? sizeof hello - 1 : stream->length;
    size_t part = length - stream->read < room ? length - stream->read : room;
    if (part) /* `kept` is NULL until the first byte is in */
        memcpy(out, from + stream->read, part);
    stream->read += part;
    if (stream->kind == HELLO) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        return (ssize_t)part;
    }
    if (stream->read == stream->length)
        stream->read = stream->length = 0;
    must(nghttp2_session_consume(session, id, part), "consume");
    if (stream->ended && !stream->length) {
        nghttp2_nv trailers[] = {FIELD("grpc-status", "0")};
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        must(nghttp2_submit_trailer(session, id, trailers, COUNT(trailers)), "submit_trailer");
    } else if (!part) {
        return NGHTTP2_ERR_DEFERRED;
    }
    return (ssize_t)part;
}

static int on_begin(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    struct link *link = user;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    struct stream *stream = allocate(sizeof *stream);
    stream->place = &link->streams;
    stream->next = link->streams;
    if (stream->next)
        stream->next->place = &stream->next;
    link->streams = stream;
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, stream);
    return 0;
}

static void forget(struct stream *stream) {
    *stream->place = stream->next;
    if (stream->next)
        stream->next->place = stream->place;
    free(stream->kept);
    free(stream);
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t value_length, uint8_t flags, void *user) {
    (void)flags;
    (void)user;
    struct stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (stream && name_length == 5 && !memcmp(name, ":path", 5)) {
        if (value_length == 5 && !memcmp(value, "/echo", 5))
            stream->kind = ECHO;
        else if (value_length == 8 && !memcmp(value, "/endless", 8))
            stream->kind = ENDLESS;
    }
    return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    (void)user;
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
        return 0;
    int32_t id = frame->hd.stream_id;
    struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
    if (!stream)
        return 0;
    stream->ended = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        const char *type = stream->kind == ECHO ? "application/grpc" : "text/plain";
        nghttp2_nv head[] = {FIELD(":status", "200"), FIELD("content-type", type)};
        nghttp2_data_provider body = {.source.ptr = stream, .read_callback = read_body};
        must(nghttp2_submit_response(session, id, head, COUNT(head), &body), "submit_response");
    } else if (stream->ended && stream->kind == ECHO) {
        nghttp2_session_resume_data(session, id); /* fails when the body is not deferred: it will be read anyway */
    }
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t length,
                   void *user) {
    (void)flags;
    (void)user;
    struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
    if (!stream || stream->kind != ECHO) {
        must(nghttp2_session_consume(session, id, length), "consume");
        return 0;
    }
    if (!stream->kept)
        stream->kept = allocate(WINDOW);
    if (length > WINDOW - stream->length) {
        memmove(stream->kept, stream->kept + stream->read, stream->length - stream->read);
        stream->length -= stream->read;
        stream->read = 0;
    }
    if (length > WINDOW - stream->length) /* nghttp2 holds the client to its window */
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    memcpy(stream->kept + stream->length, bytes, length);
    stream->length += length;
    nghttp2_session_resume_data(session, id);
    return 0;
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t code, void *user) {
    (void)code;
    (void)user;
    struct stream *stream = nghttp2_session_get_stream_user_data(session, id);
    if (stream) {
        must(nghttp2_session_consume_connection(session, stream->kind == ECHO ? stream->length - stream->read : 0), "consume_connection");
        forget(stream);
    }
    return 0;
}

static void accept_all(int listener, nghttp2_session_callbacks *callbacks, nghttp2_option *option) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == ECONNABORTED || errno == EINTR))
            continue;
        if (fd < 0 && errno == EAGAIN)
            return;
        if (fd < 0)
            die("accept");
        no_delay(fd);
        struct link *link = allocate(sizeof *link);
        link->fd = fd;
        must(nghttp2_session_server_new2(&link->session, callbacks, link, option), "server_new");
        nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, MOST_STREAMS},
                                             {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW}};
        must(nghttp2_submit_settings(link->session, NGHTTP2_FLAG_NONE, settings, COUNT(settings)), "settings");
        must(nghttp2_session_set_local_window_size(link->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW), "window");
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, link);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: stream_serve PORT\n");
        return 2;
    }
    struct sockaddr_in address = loopback(argv[1]);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die("listen");
    start_epoll();
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, NULL);

    nghttp2_session_callbacks *callbacks;
    must(nghttp2_session_callbacks_new(&callbacks), "callbacks_new");
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_option *option = manual_windows();

    static struct epoll_event events[BATCH];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, BATCH, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct link *link = events[i].data.ptr;
            if (!link) {
                accept_all(listener, callbacks, option);
            } else if (!link_read(link) || !link_flush(link)) {
                close(link->fd); /* one event a descriptor and batch: nothing names it any more */
                nghttp2_session_del(link->session);
                while (link->streams) /* nghttp2 forgets the open ones without a word */
                    forget(link->streams);
                free(link);
            }
        }
    }
}
