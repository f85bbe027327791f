# Caches parsed request heads by their outline: the head without the values of fields that have no effect on the server.
# Clients repeat their heads except for such values: a request's id, a trace, the length of its body. Lives here:
# outlines, and a head made from a cached one. Does not: parsing a new head (head.py).
#
# Loop's thread only. A head that is not exactly as expected has no outline, and is left to head.py, which reports the
# error.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp, memcpy

from fastinfer.http.exchange cimport RequestHead

from fastinfer.base import limits

cdef extern from "fastinfer/http/field_value.h" namespace "fastinfer" nogil:
    bint is_field_value(const char* at, const char* end) noexcept

cdef enum:
    MAX_BYTES = 4096        # limits.MAX_CACHED_HEAD_BYTES
    MAX_LINES = 128         # more than limits.MAX_HEADERS
    MAX_DIGITS = 18         # of a length; a larger one is left to head.py

assert MAX_BYTES == limits.MAX_CACHED_HEAD_BYTES

cdef Py_ssize_t max_heads = limits.MAX_CACHED_HEADS

cdef enum:
    SIGNIFICANT = 0     # affects the request, framing, the connection or the form of the answer
    NEUTRAL = 1         # has no effect
    LENGTH = 2          # a number that is copied to the new head

# A line of a head, with the bytes that end it; the request line and the empty line, too.
cdef struct Line:
    int kind
    Py_ssize_t start
    Py_ssize_t size
    Py_ssize_t name_size    # with the colon; 0: it has no name

cdef struct Outline:
    int count
    Line[MAX_LINES] lines
    Py_ssize_t head_size
    Py_ssize_t size
    char[MAX_BYTES] text    # the significant parts of the lines


# Makes the outline of the head at `data`; False if it is not whole or has none.
cdef bint make_outline(Outline* outline, const char* data, Py_ssize_t size) noexcept nogil:
    cdef const char* end = data + min(size, MAX_BYTES)
    cdef const char* at = data
    cdef const char* colon
    cdef const char* stop
    cdef Line* line
    outline.count = 0
    outline.size = 0
    while outline.count < MAX_LINES:
        stop = <const char*>memchr(at, c"\n", end - at)
        if stop == NULL or stop == at or (stop - 1)[0] != c"\r":
            return False
        line = &outline.lines[outline.count]
        line.start = at - data
        line.size = stop + 1 - at
        line.kind = SIGNIFICANT
        line.name_size = 0
        if outline.count > 0 and line.size > 2:
            colon = <const char*>memchr(at, c":", stop - at)
            if colon == NULL:
                return False
            line.kind = kind_of(at, colon - at)
            line.name_size = colon + 1 - at
            if line.kind != SIGNIFICANT and not is_field_value(colon + 1, stop - 1):
                return False
        add(outline, at, line.size if line.kind == SIGNIFICANT else line.name_size)
        outline.count += 1
        at = stop + 1
        if outline.count > 1 and line.size == 2:
            outline.head_size = at - data
            return True
    return False


cdef inline void add(Outline* outline, const char* text, Py_ssize_t size) noexcept nogil:
    # There is room: an outline is no longer than its head.
    memcpy(outline.text + outline.size, text, size)
    outline.size += size


# A field's value, with the white space around it; borrowed from the head. NULL: none.
cdef struct Value:
    const char* at
    const char* end


# Compares a head with a cached one, line by line. Returns where it ends, or -1 if it does not have the same
# outline. `length`: the value of content-length, if that differs.
cdef Py_ssize_t compare(RequestHead known, const char* data, Py_ssize_t size, Value* length) noexcept:
    cdef const Line* line = <const Line*>PyBytes_AS_STRING(known.lines)
    cdef const Line* last = line + PyBytes_GET_SIZE(known.lines) // <Py_ssize_t>sizeof(Line)
    cdef const char* raw = PyBytes_AS_STRING(known.raw)
    cdef const char* at = data
    cdef const char* end = data + min(size, MAX_BYTES)
    cdef const char* stop
    while line < last:
        if line.size <= end - at and memcmp(raw + line.start, at, line.size) == 0:
            at += line.size
        else:
            if (line.kind == SIGNIFICANT or line.name_size > end - at
                    or memcmp(raw + line.start, at, line.name_size) != 0):
                return -1
            stop = <const char*>memchr(at + line.name_size, c"\n", end - at - line.name_size)
            if stop == NULL or (stop - 1)[0] != c"\r" or not is_field_value(at + line.name_size, stop - 1):
                return -1
            if line.kind == LENGTH:
                length.at = at + line.name_size
                length.end = stop - 1
            at = stop + 1
        line += 1
    return at - data


# A length, or -1.
cdef int64_t parse_length(const Value* value) noexcept nogil:
    cdef const char* at = value.at
    cdef const char* end = value.end
    cdef int64_t found = 0
    while at < end and (at[0] == c" " or at[0] == c"\t"):
        at += 1
    while at < end and ((end - 1)[0] == c" " or (end - 1)[0] == c"\t"):
        end -= 1
    if not 0 < end - at <= MAX_DIGITS:
        return -1
    while at < end:
        if not c"0" <= at[0] <= c"9":
            return -1
        found = 10 * found + at[0] - c"0"
        at += 1
    return found


cdef inline int kind_of(const char* name, Py_ssize_t size) noexcept nogil:
    if size == 4:
        return SIGNIFICANT if equals_ignoring_case(name, "host", 4) else NEUTRAL
    if size == 6:
        return SIGNIFICANT if equals_ignoring_case(name, "expect", 6) else NEUTRAL
    if size == 10:
        return SIGNIFICANT if equals_ignoring_case(name, "connection", 10) else NEUTRAL
    if size == 14:
        return LENGTH if equals_ignoring_case(name, "content-length", 14) else NEUTRAL
    if size == 15:
        return SIGNIFICANT if equals_ignoring_case(name, "accept-encoding", 15) else NEUTRAL
    if size == 16:
        return SIGNIFICANT if equals_ignoring_case(name, "content-encoding", 16) else NEUTRAL
    if size == 17:
        return SIGNIFICANT if equals_ignoring_case(name, "transfer-encoding", 17) else NEUTRAL
    return NEUTRAL


cdef inline bint equals_ignoring_case(const char* name, const char* lower, Py_ssize_t size) noexcept nogil:
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

    cdef RequestHead find(self, const char* data, Py_ssize_t size, RequestHead likely, Py_ssize_t* head_size):
        cdef Outline outline
        cdef RequestHead known = likely
        cdef Value length = Value(NULL, NULL)
        cdef Py_ssize_t found = -1
        if known is not None:
            found = compare(known, data, size, &length)
        if found < 0:
            if not make_outline(&outline, data, size):
                return None
            known = <RequestHead>self._known.get(outline.text[:outline.size])
            if known is None:
                return None
            length.at = NULL
            found = compare(known, data, size, &length)
            if found < 0:
                return None
        head_size[0] = found
        if found == PyBytes_GET_SIZE(known.raw) and memcmp(PyBytes_AS_STRING(known.raw), data, found) == 0:
            return known
        return with_values(known, data, found, &length)

    def get(self, bytes raw not None):
        cdef Py_ssize_t size = 0
        cdef RequestHead found = self.find(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), None, &size)
        return found if size == PyBytes_GET_SIZE(raw) else None

    def remember(self, bytes raw not None, RequestHead head not None):
        cdef Outline outline
        cdef int i
        if not make_outline(&outline, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
            return
        if len(self._known) >= max_heads:
            self._known.clear()
        lines = raw.split(b"\r\n")
        names = [line.partition(b":")[0].lower() for line in lines[1:len(lines) - 2]]
        if len(set(names)) < len(names) or b"expect" in names:
            # Values of one name are joined, and an `Expect` is rare: such heads match only exactly.
            for i in range(outline.count):
                outline.lines[i].kind = SIGNIFICANT
        head.raw = raw
        head.lines = (<const char*>outline.lines)[:outline.count * <Py_ssize_t>sizeof(Line)]
        self._known[outline.text[:outline.size]] = head


# A copy of a cached head with other values; None if it may have another meaning.
cdef RequestHead with_values(RequestHead known, const char* data, Py_ssize_t size, const Value* length):
    cdef RequestHead head
    cdef int64_t body_size = known.body_size
    if length.at != NULL:
        body_size = parse_length(length)
        if body_size < 0 or body_size > <int64_t>known.max_body_bytes:
            return None
    head = RequestHead.__new__(RequestHead)
    head.cached_head = known
    head.own_bytes = PyBytes_FromStringAndSize(data, size)
    head.method = known.method
    head.version_10 = known.version_10
    head.body_size = <Py_ssize_t>body_size
    head.keep_alive = known.keep_alive
    head.coding = known.coding
    head.accepted = known.accepted
    head.compress_from = known.compress_from
    head.plain = known.plain
    head.handler = known.handler
    head.arguments = known.arguments
    head.max_body_bytes = known.max_body_bytes
    return head
