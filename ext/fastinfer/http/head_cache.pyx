# What request heads mean, by their outline: the head without the values of fields that decide about nothing. Clients
# repeat their heads but for such values: a request's id, a trace, the length of its body. Lives here: outlines, and a
# head made from one that is known. Does not: understanding a new head (head.py).
#
# Loop's thread only. What is not exactly as expected has no outline, and is left to head.py, which says what is wrong.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp, memcpy

from fastinfer.http.exchange cimport Head

from fastinfer.base import limits

cdef extern from "fastinfer/http/field_value.h" namespace "fastinfer" nogil:
    bint is_field_value(const char* at, const char* end) noexcept

cdef enum:
    MAX_BYTES = 4096        # limits.MAX_CACHED_HEAD_BYTES
    MAX_FIELDS = 64         # whose values do not count
    MAX_DIGITS = 18         # of a length; a larger one is left to head.py

assert MAX_BYTES == limits.MAX_CACHED_HEAD_BYTES

cdef Py_ssize_t max_heads = limits.MAX_CACHED_HEADS

cdef bytes CONTENT_LENGTH = b"content-length"

# A field's value as it is meant, without the white space around it; borrowed from the head.
cdef struct Value:
    const char* at
    Py_ssize_t size

cdef struct Outline:
    char[MAX_BYTES] text
    Py_ssize_t size
    Py_ssize_t head_size        # of the whole head
    int count
    Value[MAX_FIELDS] values    # of the fields that decide about nothing, in their order
    Value length                # of content-length; NULL: there is none


# Returns whether there is a whole head at `data`, and it has an outline.
cdef bint draw(Outline* outline, const char* data, Py_ssize_t size) noexcept nogil:
    cdef const char* end = data + min(size, MAX_BYTES)
    cdef const char* at = <const char*>memchr(data, c"\n", end - data)
    cdef const char* colon
    cdef const char* stop
    cdef const char* line
    cdef Value* value
    cdef int kind
    if at == NULL:
        return False
    outline.count = 0
    outline.length.at = NULL
    outline.size = 0
    at += 1
    add(outline, data, at - data)
    while True:
        line = at
        stop = <const char*>memchr(line, c"\n", end - line)
        if stop == NULL or stop == line or stop[-1] != c"\r":
            return False
        at = stop + 1
        if at - line == 2:
            outline.head_size = at - data
            return True
        colon = <const char*>memchr(line, c":", stop - line)
        if colon == NULL:
            return False
        kind = kind_of(line, colon - line)
        if kind == DECIDES:
            add(outline, line, at - line)
            continue
        add(outline, line, colon + 1 - line)
        if kind == LENGTH:
            if outline.length.at != NULL:
                return False
            value = &outline.length
        else:
            if outline.count == MAX_FIELDS:
                return False
            value = &outline.values[outline.count]
            outline.count += 1
        if not is_field_value(colon + 1, stop - 1):
            return False
        strip(value, colon + 1, stop - 1)


cdef inline void add(Outline* outline, const char* text, Py_ssize_t size) noexcept nogil:
    # There is room: an outline is no longer than its head.
    memcpy(outline.text + outline.size, text, size)
    outline.size += size


cdef inline void strip(Value* value, const char* begin, const char* end) noexcept nogil:
    while begin < end and (begin[0] == c" " or begin[0] == c"\t"):
        begin += 1
    while begin < end and (end[-1] == c" " or end[-1] == c"\t"):
        end -= 1
    value.at = begin
    value.size = end - begin


cdef enum:
    NEUTRAL = 0
    DECIDES = 1     # about framing, the connection or the form of the answer
    LENGTH = 2      # a number that is taken as it is


cdef inline int kind_of(const char* name, Py_ssize_t size) noexcept nogil:
    if size == 4:
        return DECIDES if is_name(name, "host", 4) else NEUTRAL
    if size == 6:
        return DECIDES if is_name(name, "expect", 6) else NEUTRAL
    if size == 10:
        return DECIDES if is_name(name, "connection", 10) else NEUTRAL
    if size == 14:
        return LENGTH if is_name(name, "content-length", 14) else NEUTRAL
    if size == 15:
        return DECIDES if is_name(name, "accept-encoding", 15) else NEUTRAL
    if size == 16:
        return DECIDES if is_name(name, "content-encoding", 16) else NEUTRAL
    if size == 17:
        return DECIDES if is_name(name, "transfer-encoding", 17) else NEUTRAL
    return NEUTRAL


cdef inline bint is_name(const char* name, const char* lower, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        if (name[i] | 0x20) != lower[i]:
            return False
    return True


@cython.final
cdef class HeadCache:
    def __cinit__(self):
        self._known = {}

    def __len__(self):
        return len(self._known)

    cdef Head find(self, const char* data, Py_ssize_t size, Head likely, Py_ssize_t* head_size):
        cdef Outline outline
        cdef Head known = likely
        if not draw(&outline, data, size):
            return None
        if known is None or not is_text(known.outline, outline.text, outline.size):
            known = <Head>self._known.get(outline.text[:outline.size])
            if known is None:
                return None
        head_size[0] = outline.head_size
        if is_text(known.raw, data, outline.head_size):
            return known
        return varied(known, &outline)

    def get(self, bytes raw not None):
        cdef Py_ssize_t size = 0
        cdef Head found = self.find(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), None, &size)
        return found if size == PyBytes_GET_SIZE(raw) else None

    def remember(self, bytes raw not None, Head head not None):
        cdef Outline outline
        cdef list names
        if not draw(&outline, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
            return
        if len(self._known) >= max_heads:
            self._known.clear()
        names = [line.partition(b":")[0].lower() for line in raw.split(b"\r\n")[1:-2]]
        head.raw = raw
        head.outline = outline.text[:outline.size]
        head.neutral = None
        # Values of one name are joined; and whoever expects something is rare.
        if len(set(names)) == len(names) and b"expect" not in names:
            head.neutral = tuple([name for name in names if kind_of(name, len(name)) == NEUTRAL])
            head.values = tuple([head.headers[name] for name in head.neutral])
        self._known[head.outline] = head


# A head like one that is known, with the values of its own; None if it may have another meaning.
cdef Head varied(Head known, const Outline* outline):
    cdef Head head
    cdef dict headers = None
    cdef Py_ssize_t body_size = known.body_size
    cdef int i
    if known.neutral is None:
        return None
    if outline.length.at != NULL:
        body_size = number(&outline.length)
        if body_size < 0 or body_size > <Py_ssize_t>known.max_body_bytes:
            return None
        if not is_value(<bytes>known.headers[CONTENT_LENGTH], &outline.length):
            headers = known.headers.copy()
            headers[CONTENT_LENGTH] = PyBytes_FromStringAndSize(outline.length.at, outline.length.size)
    for i in range(outline.count):
        if is_value(<bytes>known.values[i], &outline.values[i]):
            continue
        if headers is None:
            headers = known.headers.copy()
        headers[known.neutral[i]] = PyBytes_FromStringAndSize(outline.values[i].at, outline.values[i].size)
    if headers is None:
        return known
    head = Head.__new__(Head)
    head.method = known.method
    head.version_10 = known.version_10
    head.headers = headers
    head.body_size = body_size
    head.keep_alive = known.keep_alive
    head.coding = known.coding
    head.accepted = known.accepted
    head.compress_from = known.compress_from
    head.plain = known.plain
    head.handler = known.handler
    head.arguments = known.arguments
    head.max_body_bytes = known.max_body_bytes
    return head


cdef inline bint is_value(bytes held, const Value* value) noexcept:
    return is_text(held, value.at, value.size)


cdef inline bint is_text(bytes held, const char* at, Py_ssize_t size) noexcept:
    return PyBytes_GET_SIZE(held) == size and memcmp(PyBytes_AS_STRING(held), at, size) == 0


# A length, or -1.
cdef int64_t number(const Value* value) noexcept nogil:
    cdef int64_t found = 0
    cdef Py_ssize_t i
    if value.size == 0 or value.size > MAX_DIGITS:
        return -1
    for i in range(value.size):
        if not c"0" <= value.at[i] <= c"9":
            return -1
        found = 10 * found + value.at[i] - c"0"
    return found
