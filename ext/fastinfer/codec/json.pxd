from libc.string cimport memcmp, memcpy

from fastinfer.base.debug cimport invariant

cdef extern from "fastinfer/number/span.h" namespace "fastinfer::number" nogil:
    const char* skip_space "fastinfer::number::skip_space"(const char* at, const char* end) noexcept

cdef enum:
    MAX_JSON_DEPTH = 100    # fastinfer.base.limits.MAX_JSON_DEPTH
    MAX_ESCAPED = 6         # \u001f

cdef struct Cursor:
    const char* begin       # borrowed from the body, which outlives the cursor
    const char* at
    const char* end
    const char* fault       # a static text; set if a function returns -1

# A string's text between its quotes, still escaped; borrowed from the body.
cdef struct Text:
    const char* at
    Py_ssize_t size
    bint escaped            # has a backslash

cdef inline void open_cursor(Cursor* cursor, const char* begin, Py_ssize_t size) noexcept nogil:
    cursor.begin = cursor.at = begin
    cursor.end = begin + size
    cursor.fault = NULL

# The next byte that is not white space, not taken; -1 at the end.
cdef inline int peek(Cursor* cursor) noexcept nogil:
    invariant(cursor.begin <= cursor.at <= cursor.end, "a cursor is inside its text")
    if cursor.at < cursor.end and cursor.at[0] > 0x20:      # the common case; bytes above 0x7F are negative
        return cursor.at[0]
    cursor.at = skip_space(cursor.at, cursor.end)
    return <unsigned char>cursor.at[0] if cursor.at < cursor.end else -1

# Takes a literal that stands at the cursor, and nothing else.
cdef inline bint take_literal(Cursor* cursor, const char* literal, Py_ssize_t size) noexcept nogil:
    if cursor.end - cursor.at < size or memcmp(cursor.at, literal, size) != 0:
        return False
    cursor.at += size
    return True

# Takes one byte after white space, which must be `wanted`.
cdef inline int take(Cursor* cursor, int wanted, const char* fault) noexcept nogil:
    if peek(cursor) != wanted:
        cursor.fault = fault
        return -1
    cursor.at += 1
    return 0

# Takes `true` (1), `false` (0), or nothing (-1).
cdef int take_bool(Cursor* cursor) noexcept nogil
# Takes a string at its opening quote; validates escapes, surrogates and UTF-8.
cdef int take_string(Cursor* cursor, Text* text) noexcept nogil
# Skips any value, and validates it; `depth` containers are open around it.
cdef int skip_value(Cursor* cursor, int depth) noexcept nogil
# Skips an array by its strings and brackets alone; the caller that returns to it validates it.
cdef int skip_brackets(Cursor* cursor) noexcept nogil

# Writes a validated string's bytes, at most text.size of them; returns how many.
cdef Py_ssize_t unescape(const Text* text, char* out) noexcept nogil
# The bytes of the character (1..4) at `at` if it is well-formed UTF-8; else minus the size of its maximal subpart.
cdef int utf8_size(const unsigned char* at, const unsigned char* end) noexcept nogil


cdef struct Writer:
    char* begin             # a block of tensor.allocate_block; the writer's owner frees it
    char* at
    char* end

# All writes of a writer are within one reservation, which does not grow.
cdef inline Py_ssize_t room(const Writer* writer) noexcept nogil:
    return writer.end - writer.at

# Inlined, so that a literal of known size is a few moves.
cdef inline void put(Writer* writer, const char* bytes, Py_ssize_t size) noexcept nogil:
    invariant(0 <= size <= room(writer), "what is written fits the reservation")
    memcpy(writer.at, bytes, size)
    writer.at += size

# Writes a string's content with the escapes that JSON needs; ill-formed UTF-8 becomes U+FFFD, one per maximal subpart.
cdef void put_escaped(Writer* writer, const char* bytes, Py_ssize_t size) noexcept nogil
# The number of bytes that put_escaped writes; at most MAX_ESCAPED for each byte of the content.
cdef Py_ssize_t escaped_size(const char* bytes, Py_ssize_t size) noexcept nogil
