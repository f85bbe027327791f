from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget
from fastinfer.http.exchange cimport Exchange, RequestHead
from fastinfer.http.head_cache cimport HeadCache
from fastinfer.http.poller cimport Poller
from fastinfer.http.upload cimport BodyPool, SizedUpload, Upload


cdef class Shared:
    # The state that all connections of a loop share and every request needs; http/hub.py has the rest.
    cdef readonly object limits         # HttpLimits
    cdef readonly object loop
    cdef Py_ssize_t _max_pipelined
    cdef double _keep_alive_s
    # Every connection reads into it; its contents are valid until the callback returns.
    cdef readonly bytearray buffer
    cdef readonly object view           # of the whole buffer; it also pins the memory, so that data stays valid
    cdef char* _data
    cdef bint _view_kept                # a handler kept a view of its body: the buffer must not be read into again
    cdef readonly Poller poller
    cdef readonly BodyPool bodies       # the memory of bodies that are not in the buffer
    cdef readonly HeadCache heads
    cdef public bint draining
    cdef public double now              # the loop's clock, read a few times a second
    cdef int64_t _read_ns               # CLOCK_MONOTONIC at the start of the current read callback
    cdef readonly Budget budget         # of the memory that requests hold
    cdef Py_buffer _counted             # memory that other processes may read
    cdef int64_t* _answers              # in it: answers by the status's first digit; then ...
    cdef int64_t* _connections          # ... how many were accepted so far


cdef class HttpExchange(Exchange):
    cdef readonly RequestHead head
    cdef public bint inflating          # its body is still being inflated
    cdef public tuple reply             # (status, content_type, body, fields) if the answer came before its turn


cdef class Connection:
    # Per connection.
    cdef readonly Shared _hub
    cdef public object _transport       # None: lost
    cdef public bint _closing           # no further request is read
    cdef public bint _eof               # the client has closed its side
    cdef public bint _write_paused
    cdef public object _wake            # the handle of a scheduled call of _resume, or None
    cdef public Py_ssize_t _stuck_size  # of the transport's buffer, when it was last seen to shrink; 0: it is empty
    cdef public double _since           # when the wait for the client began; closing: when it last sent
    cdef RequestHead _latest            # the head of the last request, if it is cached
    # Per message and answer.
    cdef public bint _reading           # inside _read or _written: answers are collected
    cdef public bint _more              # while draining: there are bytes after the message that is being handled
    cdef public bint _resumed           # the bytes that are read begin with a head that was started earlier
    cdef public bytes _pending          # a started head; while reading is paused, all bytes that were read
    cdef public Upload _upload          # SizedUpload, ChunkedUpload or None: a body that is not wholly in the buffer
    cdef public Py_ssize_t _skip        # bytes of a refused body, still to be discarded
    # Arrival times, for deadlines (CLOCK_MONOTONIC): a message arrives with its first byte. Of the bytes in the read
    # buffer or in _pending, the first _older came at _older_ns and the others at _newer_ns.
    cdef Py_ssize_t _older
    cdef int64_t _older_ns
    cdef int64_t _newer_ns
    cdef readonly int64_t _began_ns              # of the message that is being read or handled
    cdef public list _queue             # list[HttpExchange]: not answered yet, in order
    cdef public list _out               # list[bytes | memoryview]: outgoing bytes, and ...
    cdef public Py_ssize_t _out_size    # ... how many
    cdef Py_ssize_t _largest            # bytes of its largest answer so far; 0: there was none yet

    cdef int read(self, Py_ssize_t end) except -1
    cdef int keep(self, Py_ssize_t start, Py_ssize_t end) except -1
    cdef RequestHead known(self, const char* data, Py_ssize_t size)
    cdef Py_ssize_t begin(self, RequestHead head, Py_ssize_t start, Py_ssize_t end) except -1
    cdef Py_ssize_t take_body(self, RequestHead head, Py_ssize_t start, Py_ssize_t end) except -1
    cdef SizedUpload sized_upload(self)
    cdef Py_ssize_t begin_sized(self, RequestHead head, Py_ssize_t start, Py_ssize_t end) except -1
    cdef Py_ssize_t feed_sized(self, SizedUpload upload, Py_ssize_t start, Py_ssize_t end) except -1
    cdef int written(self, SizedUpload upload, Py_ssize_t size) except -1
    cdef int finish(self, Upload upload, object body) except -1
    cdef bint blocked(self) noexcept
    cdef int enqueue(self, HttpExchange exchange) except -1
    cdef int handle(self, HttpExchange exchange) except -1

    cdef int answer(self, HttpExchange exchange, int status, bytes content_type, object body, object fields) except -1
    cdef int emit(self, HttpExchange exchange, int status, bytes content_type, object body, object fields) except -1
    cdef bint emit_plain(self, HttpExchange exchange, int status, bytes content_type, object body,
                         object fields) except -1
    cdef int retire(self, HttpExchange exchange, int status_class) except -1
    cdef bint awaits_request(self, double since) except -1
    cdef int flush(self) except -1
    cdef int write_out(self) except -1
    cdef int wake_up(self) except -1
