# The decoder's failure and its steps through JSON's objects: see decoder.pxd.

from libc.stdint cimport int64_t

from fastinfer.codec.json cimport Cursor, Text, peek, skip_value, take, take_string, unescape


# --- Failures: each returns -1 ---------------------------------------------------------------------------------------

cdef int fail(Decoder* decoder, const char* field, const char* text, FailureKind kind=PLAIN, int64_t element=-1,
              int64_t got=0, int64_t wanted=0) noexcept nogil:
    cdef Failure* failure = &decoder.failure
    failure.is_set = True
    failure.kind = kind
    failure.place = decoder.place
    failure.index = decoder.index
    failure.field = field
    failure.element = element
    failure.quote = NULL
    failure.text = text
    failure.got = got
    failure.wanted = wanted
    return -1


# The cursor stands at the fault, and says what it expected.
cdef int fail_syntax(Decoder* decoder) noexcept nogil:
    fail(decoder, "", decoder.cursor.fault, SYNTAX)
    decoder.failure.at = decoder.cursor.at - decoder.cursor.begin
    return -1


# The fault is a value; the sentence begins with it.
cdef int fail_quoting(Decoder* decoder, const char* field, const char* value, const char* text,
                      int64_t element=-1) noexcept nogil:
    cdef const char* end = value
    cdef const char* last = decoder.cursor.end
    fail(decoder, field, text, PLAIN, element)
    if end < last and end[0] == QUOTE:
        end += 1
        while end < last and end[0] != QUOTE and end - value <= MAX_QUOTE:
            end += 1
        if end < last:
            end += 1
    else:
        while end < last and end - value <= MAX_QUOTE and end[0] > 0x20 and end[0] not in (c',', c']', c'}'):
            end += 1
    decoder.failure.quote = value
    decoder.failure.quote_size = end - value
    return -1


# The same of a string of the body, with the quotes around it, which show spaces at its ends.
cdef int fail_text(Decoder* decoder, const char* field, const Text* quoted, const char* text) noexcept nogil:
    fail(decoder, field, text)
    decoder.failure.quote = quoted.at - 1
    decoder.failure.quote_size = quoted.size + 2
    return -1


# --- Objects ---------------------------------------------------------------------------------------------------------

# The next member of an object: 1 with the cursor at its value, 0 behind the closing brace.
cdef int next_member(Decoder* decoder, Text* key, bint first) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int c = peek(cursor)
    if c == CLOSE_OBJECT:
        cursor.at += 1
        return 0
    if not first:
        if c != COMMA:
            cursor.fault = "expected ',' or '}'"
            return fail_syntax(decoder)
        cursor.at += 1
        c = peek(cursor)
    if c != QUOTE:
        cursor.fault = "expected a string as key"
        return fail_syntax(decoder)
    if take_string(cursor, key) < 0 or take(cursor, COLON, "expected ':'") < 0:
        return fail_syntax(decoder)
    peek(cursor)
    return 1


# The next element of an array: 1 with the cursor at it, 0 behind the closing bracket.
cdef int next_element(Decoder* decoder, bint first) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int c = peek(cursor)
    if c == CLOSE_ARRAY:
        cursor.at += 1
        return 0
    if first:
        return 1
    if c != COMMA:
        cursor.fault = "expected ',' or ']'"
        return fail_syntax(decoder)
    cursor.at += 1
    if peek(cursor) == CLOSE_ARRAY:
        cursor.fault = "expected a value"
        return fail_syntax(decoder)
    return 1


cdef int open_object(Decoder* decoder, const char* field) noexcept nogil:
    if peek(&decoder.cursor) != OPEN_OBJECT:
        return fail(decoder, field, "must be an object")
    decoder.cursor.at += 1
    return 0


cdef int open_array(Decoder* decoder, const char* field) noexcept nogil:
    if peek(&decoder.cursor) != OPEN_ARRAY:
        return fail(decoder, field, "must be an array")
    decoder.cursor.at += 1
    return 0


cdef int read_text(Decoder* decoder, Text* text, const char* field, Py_ssize_t limit,
                   const char* too_long) noexcept nogil:
    if peek(&decoder.cursor) != QUOTE:
        return fail(decoder, field, "must be a string")
    if take_string(&decoder.cursor, text) < 0:
        return fail_syntax(decoder)
    return fail(decoder, field, too_long) if text.size > limit else 0


cdef int skip(Decoder* decoder, int depth) noexcept nogil:
    return fail_syntax(decoder) if skip_value(&decoder.cursor, depth) < 0 else 0


# A key as it is meant, in `room` where it was written with escapes.
cdef void resolve_key(Text* key, char* room) noexcept nogil:
    if key.escaped and key.size <= MAX_KEY_TEXT:
        key.size = unescape(key, room)
        key.at = room


# Marks a known key as met.
cdef int see(Decoder* decoder, unsigned int* seen, unsigned int bit, const char* field) noexcept nogil:
    if seen[0] & bit:
        return fail(decoder, field, "is given twice")
    seen[0] |= bit
    return 0
