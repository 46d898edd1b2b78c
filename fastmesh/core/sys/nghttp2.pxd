# libnghttp2: the part of its interface that the HTTP/2 codec uses, as of 1.43 and later.
#
# Two of nghttp2's own limits came with later versions and as security updates of older ones; where they are
# there they are lifted, because the codec counts itself, the same with every version (wire/http2_pace.pxd).

from libc.stdint cimport int32_t, uint8_t, uint32_t

cdef extern from * nogil:
    """
    #include <nghttp2/nghttp2.h>

    extern void nghttp2_option_set_stream_reset_rate_limit(
        nghttp2_option *option, uint64_t burst, uint64_t rate) __attribute__((weak));
    extern void nghttp2_option_set_max_continuations(
        nghttp2_option *option, size_t val) __attribute__((weak));
    extern void nghttp2_option_set_glitch_rate_limit(
        nghttp2_option *option, uint64_t burst, uint64_t rate) __attribute__((weak));

    static inline void fm_h2_no_own_limits(nghttp2_option *option) {
        if (nghttp2_option_set_stream_reset_rate_limit)
            nghttp2_option_set_stream_reset_rate_limit(option, 1 << 30, 1 << 30);
        if (nghttp2_option_set_max_continuations)
            nghttp2_option_set_max_continuations(option, 1 << 20);
        if (nghttp2_option_set_glitch_rate_limit)
            nghttp2_option_set_glitch_rate_limit(option, 1 << 30, 1 << 30);
    }
    """
    ctypedef struct nghttp2_option:
        pass
    void fm_h2_no_own_limits(nghttp2_option *option)

cdef extern from "<nghttp2/nghttp2.h>" nogil:
    enum:
        NGHTTP2_INITIAL_WINDOW_SIZE
        # errors
        NGHTTP2_ERR_DEFERRED
        NGHTTP2_ERR_PAUSE
        NGHTTP2_ERR_NOMEM
        NGHTTP2_ERR_CALLBACK_FAILURE
        NGHTTP2_ERR_BAD_CLIENT_MAGIC
        NGHTTP2_ERR_FLOODED
        # frame types
        NGHTTP2_DATA
        NGHTTP2_HEADERS
        NGHTTP2_PRIORITY
        NGHTTP2_RST_STREAM
        NGHTTP2_SETTINGS
        NGHTTP2_PUSH_PROMISE
        NGHTTP2_PING
        NGHTTP2_GOAWAY
        NGHTTP2_WINDOW_UPDATE
        NGHTTP2_CONTINUATION
        # frame flags
        NGHTTP2_FLAG_NONE
        NGHTTP2_FLAG_END_STREAM
        NGHTTP2_FLAG_ACK
        NGHTTP2_FLAG_END_HEADERS
        NGHTTP2_FLAG_PADDED
        NGHTTP2_FLAG_PRIORITY
        # data source
        NGHTTP2_DATA_FLAG_EOF
        NGHTTP2_DATA_FLAG_NO_END_STREAM
        NGHTTP2_DATA_FLAG_NO_COPY
        # settings
        NGHTTP2_SETTINGS_ENABLE_PUSH
        NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL
        # error codes
        NGHTTP2_NO_ERROR
        NGHTTP2_PROTOCOL_ERROR
        NGHTTP2_INTERNAL_ERROR
        NGHTTP2_FLOW_CONTROL_ERROR
        NGHTTP2_SETTINGS_TIMEOUT
        NGHTTP2_FRAME_SIZE_ERROR
        NGHTTP2_REFUSED_STREAM
        NGHTTP2_COMPRESSION_ERROR
        NGHTTP2_ENHANCE_YOUR_CALM
        # header categories
        NGHTTP2_HCAT_REQUEST

    ctypedef enum nghttp2_settings_id:
        pass
    ctypedef struct nghttp2_session:
        pass
    ctypedef struct nghttp2_session_callbacks:
        pass
    ctypedef struct nghttp2_priority_spec:
        pass

    ctypedef struct nghttp2_mem:
        void *mem_user_data
        void *(*malloc)(size_t size, void *user) noexcept nogil
        void (*free)(void *p, void *user) noexcept nogil
        void *(*calloc)(size_t n, size_t size, void *user) noexcept nogil
        void *(*realloc)(void *p, size_t size, void *user) noexcept nogil

    ctypedef struct nghttp2_nv:
        uint8_t *name
        uint8_t *value
        size_t namelen
        size_t valuelen
        uint8_t flags

    ctypedef struct nghttp2_settings_entry:
        int32_t settings_id
        uint32_t value

    ctypedef struct nghttp2_frame_hd:
        size_t length
        int32_t stream_id
        uint8_t type
        uint8_t flags
    ctypedef struct nghttp2_data:
        size_t padlen
    ctypedef struct nghttp2_headers:
        int cat
    ctypedef struct nghttp2_rst_stream:
        uint32_t error_code
    ctypedef struct nghttp2_ping:
        uint8_t opaque_data[8]
    ctypedef struct nghttp2_goaway:
        int32_t last_stream_id
        uint32_t error_code
    ctypedef union nghttp2_frame:
        nghttp2_frame_hd hd
        nghttp2_data data
        nghttp2_headers headers
        nghttp2_rst_stream rst_stream
        nghttp2_ping ping
        nghttp2_goaway goaway

    ctypedef union nghttp2_data_source:
        int fd
        void *ptr
    ctypedef ssize_t (*nghttp2_data_source_read_callback)(
        nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length, uint32_t *data_flags,
        nghttp2_data_source *source, void *user) noexcept nogil
    ctypedef struct nghttp2_data_provider:
        nghttp2_data_source source
        nghttp2_data_source_read_callback read_callback

    # callbacks
    ctypedef int (*nghttp2_send_data_callback)(
        nghttp2_session *session, nghttp2_frame *frame, const uint8_t *framehd, size_t length,
        nghttp2_data_source *source, void *user) noexcept nogil
    ctypedef int (*nghttp2_on_frame_recv_callback)(
        nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil
    ctypedef int (*nghttp2_on_invalid_frame_recv_callback)(
        nghttp2_session *session, const nghttp2_frame *frame, int error, void *user) noexcept nogil
    ctypedef int (*nghttp2_on_data_chunk_recv_callback)(
        nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t len,
        void *user) noexcept nogil
    ctypedef int (*nghttp2_on_frame_send_callback)(
        nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil
    ctypedef int (*nghttp2_on_frame_not_send_callback)(
        nghttp2_session *session, const nghttp2_frame *frame, int error, void *user) noexcept nogil
    ctypedef int (*nghttp2_on_stream_close_callback)(
        nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *user) noexcept nogil
    ctypedef int (*nghttp2_on_begin_headers_callback)(
        nghttp2_session *session, const nghttp2_frame *frame, void *user) noexcept nogil
    ctypedef int (*nghttp2_on_header_callback)(
        nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t namelen,
        const uint8_t *value, size_t valuelen, uint8_t flags, void *user) noexcept nogil

    int nghttp2_session_callbacks_new(nghttp2_session_callbacks **out)
    void nghttp2_session_callbacks_del(nghttp2_session_callbacks *callbacks)
    void nghttp2_session_callbacks_set_send_data_callback(
        nghttp2_session_callbacks *c, nghttp2_send_data_callback f)
    void nghttp2_session_callbacks_set_on_frame_recv_callback(
        nghttp2_session_callbacks *c, nghttp2_on_frame_recv_callback f)
    void nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(
        nghttp2_session_callbacks *c, nghttp2_on_invalid_frame_recv_callback f)
    void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        nghttp2_session_callbacks *c, nghttp2_on_data_chunk_recv_callback f)
    void nghttp2_session_callbacks_set_on_frame_send_callback(
        nghttp2_session_callbacks *c, nghttp2_on_frame_send_callback f)
    void nghttp2_session_callbacks_set_on_frame_not_send_callback(
        nghttp2_session_callbacks *c, nghttp2_on_frame_not_send_callback f)
    void nghttp2_session_callbacks_set_on_stream_close_callback(
        nghttp2_session_callbacks *c, nghttp2_on_stream_close_callback f)
    void nghttp2_session_callbacks_set_on_begin_headers_callback(
        nghttp2_session_callbacks *c, nghttp2_on_begin_headers_callback f)
    void nghttp2_session_callbacks_set_on_header_callback(
        nghttp2_session_callbacks *c, nghttp2_on_header_callback f)

    int nghttp2_option_new(nghttp2_option **out)
    void nghttp2_option_del(nghttp2_option *o)
    void nghttp2_option_set_no_auto_window_update(nghttp2_option *o, int val)
    void nghttp2_option_set_no_http_messaging(nghttp2_option *o, int val)
    void nghttp2_option_set_no_closed_streams(nghttp2_option *o, int val)
    void nghttp2_option_set_max_send_header_block_length(nghttp2_option *o, size_t val)
    void nghttp2_option_set_max_outbound_ack(nghttp2_option *o, size_t val)
    void nghttp2_option_set_max_reserved_remote_streams(nghttp2_option *o, uint32_t val)

    int nghttp2_session_client_new3(nghttp2_session **out, const nghttp2_session_callbacks *callbacks,
                                    void *user, const nghttp2_option *option, nghttp2_mem *mem)
    int nghttp2_session_server_new3(nghttp2_session **out, const nghttp2_session_callbacks *callbacks,
                                    void *user, const nghttp2_option *option, nghttp2_mem *mem)
    void nghttp2_session_del(nghttp2_session *session)
    ssize_t nghttp2_session_mem_recv(nghttp2_session *session, const uint8_t *data, size_t len)
    ssize_t nghttp2_session_mem_send(nghttp2_session *session, const uint8_t **data)
    int nghttp2_session_want_write(nghttp2_session *session)
    void *nghttp2_session_get_stream_user_data(nghttp2_session *session, int32_t stream_id)
    int nghttp2_session_set_stream_user_data(nghttp2_session *session, int32_t stream_id, void *data)
    int nghttp2_session_resume_data(nghttp2_session *session, int32_t stream_id)
    int nghttp2_session_consume_connection(nghttp2_session *session, size_t size)
    int nghttp2_session_consume_stream(nghttp2_session *session, int32_t stream_id, size_t size)
    int nghttp2_session_set_local_window_size(nghttp2_session *session, uint8_t flags, int32_t stream_id,
                                              int32_t size)
    uint32_t nghttp2_session_get_remote_settings(nghttp2_session *session, nghttp2_settings_id id)
    int32_t nghttp2_session_get_last_proc_stream_id(nghttp2_session *session)
    int nghttp2_session_check_request_allowed(nghttp2_session *session)
    int nghttp2_session_terminate_session(nghttp2_session *session, uint32_t error_code)

    int32_t nghttp2_submit_request(nghttp2_session *session, const nghttp2_priority_spec *priority,
                                   const nghttp2_nv *nva, size_t n, const nghttp2_data_provider *data,
                                   void *user)
    int nghttp2_submit_response(nghttp2_session *session, int32_t stream_id, const nghttp2_nv *nva, size_t n,
                                const nghttp2_data_provider *data)
    int nghttp2_submit_trailer(nghttp2_session *session, int32_t stream_id, const nghttp2_nv *nva, size_t n)
    int32_t nghttp2_submit_headers(nghttp2_session *session, uint8_t flags, int32_t stream_id,
                                   const nghttp2_priority_spec *priority, const nghttp2_nv *nva, size_t n,
                                   void *user)
    int nghttp2_submit_rst_stream(nghttp2_session *session, uint8_t flags, int32_t stream_id, uint32_t code)
    int nghttp2_submit_settings(nghttp2_session *session, uint8_t flags, const nghttp2_settings_entry *iv,
                                size_t n)
    int nghttp2_submit_ping(nghttp2_session *session, uint8_t flags, const uint8_t *opaque)
    int nghttp2_submit_shutdown_notice(nghttp2_session *session)
    int nghttp2_submit_goaway(nghttp2_session *session, uint8_t flags, int32_t last_stream_id, uint32_t code,
                              const uint8_t *opaque, size_t n)
