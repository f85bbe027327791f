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
    MAX_LINES = 128         # more than limits.MAX_HEADERS
    MAX_DIGITS = 18         # of a length; a larger one is left to head.py

assert MAX_BYTES == limits.MAX_CACHED_HEAD_BYTES

cdef Py_ssize_t max_heads = limits.MAX_CACHED_HEADS

cdef enum:
    DECIDES = 0     # about the request, framing, the connection or the form of the answer
    NEUTRAL = 1     # decides about nothing
    LENGTH = 2      # a number that is taken as it is

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
    char[MAX_BYTES] text    # of the lines, what decides


# Returns whether there is a whole head at `data`, and it has an outline.
cdef bint draw(Outline* outline, const char* data, Py_ssize_t size) noexcept nogil:
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
        line.kind = DECIDES
        line.name_size = 0
        if outline.count > 0 and line.size > 2:
            colon = <const char*>memchr(at, c":", stop - at)
            if colon == NULL:
                return False
            line.kind = kind_of(at, colon - at)
            line.name_size = colon + 1 - at
            if line.kind != DECIDES and not is_field_value(colon + 1, stop - 1):
                return False
        add(outline, at, line.size if line.kind == DECIDES else line.name_size)
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


# Compares a head with one that is known, line by line. Returns where it ends, or -1 if it does not have the same
# outline. `length`: the value of content-length, if that is another one.
cdef Py_ssize_t compare(Head known, const char* data, Py_ssize_t size, Value* length) noexcept:
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
            if (line.kind == DECIDES or line.name_size > end - at
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
cdef int64_t number(const Value* value) noexcept nogil:
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
        cdef Value length = Value(NULL, NULL)
        cdef Py_ssize_t found = -1
        if known is not None:
            found = compare(known, data, size, &length)
        if found < 0:
            if not draw(&outline, data, size):
                return None
            known = <Head>self._known.get(outline.text[:outline.size])
            if known is None:
                return None
            length.at = NULL
            found = compare(known, data, size, &length)
            if found < 0:
                return None
        head_size[0] = found
        if found == PyBytes_GET_SIZE(known.raw) and memcmp(PyBytes_AS_STRING(known.raw), data, found) == 0:
            return known
        return varied(known, data, found, &length)

    def get(self, bytes raw not None):
        cdef Py_ssize_t size = 0
        cdef Head found = self.find(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), None, &size)
        return found if size == PyBytes_GET_SIZE(raw) else None

    def remember(self, bytes raw not None, Head head not None):
        cdef Outline outline
        cdef int i
        if not draw(&outline, PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)):
            return
        if len(self._known) >= max_heads:
            self._known.clear()
        lines = raw.split(b"\r\n")
        names = [line.partition(b":")[0].lower() for line in lines[1:len(lines) - 2]]
        if len(set(names)) < len(names) or b"expect" in names:
            # Values of one name are joined, and whoever expects something is rare: known only as they are.
            for i in range(outline.count):
                outline.lines[i].kind = DECIDES
        head.raw = raw
        head.lines = (<const char*>outline.lines)[:outline.count * <Py_ssize_t>sizeof(Line)]
        self._known[outline.text[:outline.size]] = head


# A head like one that is known, with values of its own; None if it may have another meaning.
cdef Head varied(Head known, const char* data, Py_ssize_t size, const Value* length):
    cdef Head head
    cdef int64_t body_size = known.body_size
    if length.at != NULL:
        body_size = number(length)
        if body_size < 0 or body_size > <int64_t>known.max_body_bytes:
            return None
    head = Head.__new__(Head)
    head.like = known
    head.own = PyBytes_FromStringAndSize(data, size)
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
