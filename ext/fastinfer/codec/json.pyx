# Lives here: Cursor (bounded reads of JSON text) and Writer (reserve, then write). Does not: the members of a request.
# Invariant: only this file (and `number/*.h`) advances raw pointers into text, and it checks the bound before each
# step.
#
# A cursor reads strict RFC 8259. After an error `fault` says what was expected, and `at` is at the wrong byte. No
# Python objects; any thread, without the GIL; the text belongs to the caller.

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "fastinfer/number/parse.h" namespace "fastinfer::number" nogil:
    struct Decimal:
        pass
    const char* scan_number(const char* at, const char* end, Decimal* number, const char** error_at) noexcept

cdef enum:
    QUOTE = 0x22            # "
    BACKSLASH = 0x5C
    OPEN_ARRAY = 0x5B       # [
    CLOSE_ARRAY = 0x5D
    OPEN_OBJECT = 0x7B      # {
    CLOSE_OBJECT = 0x7D
    COMMA = 0x2C
    COLON = 0x3A

cdef extern from *:
    int trailing_zeros "__builtin_ctzll"(uint64_t word) noexcept nogil

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGHS = 0x8080808080808080


# --- Strings ---------------------------------------------------------------------------------------------------------

# Bytes (as high bits) that are not plain in a string: quote, backslash, control, or not ASCII. May mark too much above
# the first marked byte, never too little.
cdef inline uint64_t special_bytes(uint64_t word) noexcept nogil:
    cdef uint64_t quote = word ^ (ONES * QUOTE)
    cdef uint64_t backslash = word ^ (ONES * BACKSLASH)
    return ((word - ONES * 0x20) | (quote - ONES) | (backslash - ONES) | word) & HIGHS


cdef inline const uint8_t* skip_plain(const uint8_t* at, const uint8_t* end) noexcept nogil:
    cdef uint64_t word, special
    while end - at >= 8:
        memcpy(&word, at, 8)
        special = special_bytes(word)
        if special != 0:
            return at + (trailing_zeros(special) >> 3)
        at += 8
    while at < end and 0x20 <= at[0] < 0x80 and at[0] != QUOTE and at[0] != BACKSLASH:
        at += 1
    return at


cdef int utf8_size(const uint8_t* at, const uint8_t* end) noexcept nogil:
    cdef uint8_t lead = at[0]
    cdef uint8_t low = 0x80     # bounds of the second byte: they rule out overlong forms, surrogates, > U+10FFFF
    cdef uint8_t high = 0xBF
    cdef int size, i
    if lead < 0x80:
        return 1
    if 0xC2 <= lead <= 0xDF:
        size = 2
    elif 0xE0 <= lead <= 0xEF:
        size = 3
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
    elif 0xF0 <= lead <= 0xF4:
        size = 4
        if lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
    else:
        return -1
    for i in range(1, size):
        if at + i >= end or not (low <= at[i] <= high):
            return -i
        low = 0x80
        high = 0xBF
    return size


# Four hexadecimal digits, or -1.
cdef inline int hex4(const uint8_t* at, const uint8_t* end) noexcept nogil:
    cdef int value = 0
    cdef int i
    cdef uint8_t c
    if end - at < 4:
        return -1
    for i in range(4):
        c = at[i]
        if 0x30 <= c <= 0x39:
            value = value * 16 + c - 0x30
        elif 0x61 <= (c | 0x20) <= 0x66:
            value = value * 16 + (c | 0x20) - 0x57
        else:
            return -1
    return value


# The size of the escape sequence at a backslash (with both halves of a surrogate pair), or -1.
cdef int escape_size(const uint8_t* at, const uint8_t* end) noexcept nogil:
    cdef int unit
    if end - at < 2:
        return -1
    if at[1] != c'u':
        if at[1] in (c'"', c'\\', c'/', c'b', c'f', c'n', c'r', c't'):
            return 2
        return -1
    unit = hex4(at + 2, end)
    if unit < 0 or 0xDC00 <= unit <= 0xDFFF:
        return -1
    if unit < 0xD800 or unit > 0xDBFF:
        return 6
    if end - at < 12 or at[6] != BACKSLASH or at[7] != c'u':
        return -1
    return 12 if 0xDC00 <= hex4(at + 8, end) <= 0xDFFF else -1


cdef int take_string(Cursor* cursor, Text* text) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*>cursor.at
    cdef const uint8_t* end = <const uint8_t*>cursor.end
    cdef const uint8_t* first
    cdef int size
    text.escaped = False
    if at >= end or at[0] != QUOTE:
        cursor.fault = "expected a string"
        return -1
    at += 1
    first = at
    while True:
        at = skip_plain(at, end)
        cursor.at = <const char*>at
        if at >= end:
            cursor.fault = "the string has no end"
            return -1
        if at[0] == QUOTE:
            text.at = <const char*>first
            text.size = at - first
            cursor.at += 1
            return 0
        if at[0] == BACKSLASH:
            text.escaped = True
            size = escape_size(at, end)
            if size < 0:
                cursor.fault = "the escape sequence is not valid, or half of a surrogate pair"
                return -1
        elif at[0] < 0x20:
            cursor.fault = "a control character in a string must be escaped"
            return -1
        else:
            size = utf8_size(at, end)
            if size < 0:
                cursor.fault = "the string is not valid UTF-8"
                return -1
        at += size


cdef inline int put_utf8(uint8_t* out, int code) noexcept nogil:
    if code < 0x80:
        out[0] = <uint8_t>code
        return 1
    if code < 0x800:
        out[0] = <uint8_t>(0xC0 | code >> 6)
        out[1] = <uint8_t>(0x80 | code & 0x3F)
        return 2
    if code < 0x10000:
        out[0] = <uint8_t>(0xE0 | code >> 12)
        out[1] = <uint8_t>(0x80 | code >> 6 & 0x3F)
        out[2] = <uint8_t>(0x80 | code & 0x3F)
        return 3
    out[0] = <uint8_t>(0xF0 | code >> 18)
    out[1] = <uint8_t>(0x80 | code >> 12 & 0x3F)
    out[2] = <uint8_t>(0x80 | code >> 6 & 0x3F)
    out[3] = <uint8_t>(0x80 | code & 0x3F)
    return 4


cdef Py_ssize_t unescape(const Text* text, char* out) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*>text.at
    cdef const uint8_t* end = at + text.size
    cdef uint8_t* to = <uint8_t*>out
    cdef uint8_t c
    cdef int code
    if not text.escaped:
        memcpy(out, text.at, text.size)
        return text.size
    while at < end:
        if at[0] != BACKSLASH:
            to[0] = at[0]
            to += 1
            at += 1
            continue
        c = at[1]
        at += 2
        if c == c'u':
            code = hex4(at, end)
            at += 4
            if 0xD800 <= code <= 0xDBFF:
                code = 0x10000 + ((code - 0xD800) << 10) + hex4(at + 2, end) - 0xDC00
                at += 6
            to += put_utf8(to, code)
            continue
        if c == c'n':
            c = 0x0A
        elif c == c't':
            c = 0x09
        elif c == c'r':
            c = 0x0D
        elif c == c'b':
            c = 0x08
        elif c == c'f':
            c = 0x0C
        to[0] = c
        to += 1
    return to - <uint8_t*>out


# --- Values ----------------------------------------------------------------------------------------------------------

cdef int take_bool(Cursor* cursor) noexcept nogil:
    if take_literal(cursor, "true", 4):
        return 1
    if take_literal(cursor, "false", 5):
        return 0
    return -1


cdef int skip_scalar(Cursor* cursor, int first) noexcept nogil:
    cdef Text text
    cdef Decimal number
    cdef const char* fault_at
    cdef const char* after
    if first == QUOTE:
        return take_string(cursor, &text)
    if first == c'-' or 0x30 <= first <= 0x39:
        after = scan_number(cursor.at, cursor.end, &number, &fault_at)
        if after != NULL:
            cursor.at = after
            return 0
        cursor.at = fault_at
        cursor.fault = "the number is not valid"
        return -1
    if take_bool(cursor) >= 0 or take_literal(cursor, "null", 4):
        return 0
    cursor.fault = "expected a value"
    return -1


# A member's key and colon.
cdef inline int skip_key(Cursor* cursor) noexcept nogil:
    cdef Text text
    if peek(cursor) != QUOTE:
        cursor.fault = "expected a string as key"
        return -1
    if take_string(cursor, &text) < 0:
        return -1
    return take(cursor, COLON, "expected ':'")


cdef int skip_value(Cursor* cursor, int depth) noexcept nogil:
    cdef bint[MAX_JSON_DEPTH + 1] is_object     # by depth: what the open containers are
    cdef int outside = depth
    cdef int c
    while True:
        # A value begins here.
        c = peek(cursor)
        if c == OPEN_OBJECT or c == OPEN_ARRAY:
            if depth >= MAX_JSON_DEPTH:
                cursor.fault = "nested deeper than 100 levels"
                return -1
            depth += 1
            is_object[depth] = c == OPEN_OBJECT
            cursor.at += 1
            c = peek(cursor)
            if c == (CLOSE_OBJECT if is_object[depth] else CLOSE_ARRAY):
                cursor.at += 1
                depth -= 1
            else:
                if is_object[depth] and skip_key(cursor) < 0:
                    return -1
                continue
        elif skip_scalar(cursor, c) < 0:
            return -1
        # A value has ended: close the containers that end with it.
        while True:
            if depth == outside:
                return 0
            c = peek(cursor)
            if c == COMMA:
                cursor.at += 1
                if is_object[depth] and skip_key(cursor) < 0:
                    return -1
                break
            if c != (CLOSE_OBJECT if is_object[depth] else CLOSE_ARRAY):
                cursor.fault = "expected ',' or '}'" if is_object[depth] else "expected ',' or ']'"
                return -1
            cursor.at += 1
            depth -= 1


cdef inline uint64_t equal_bytes(uint64_t word, int byte) noexcept nogil:
    cdef uint64_t difference = word ^ (ONES * <uint64_t>byte)
    return (difference - ONES) & ~difference & HIGHS


cdef int skip_brackets(Cursor* cursor) noexcept nogil:
    cdef const char* at = cursor.at
    cdef const char* end = cursor.end
    cdef Py_ssize_t depth = 0
    cdef uint64_t word, folded
    while at < end:
        if end - at >= 8:       # numbers and commas, eight bytes at a time
            memcpy(&word, at, 8)
            folded = word | (ONES * 0x20)       # '[' and '{', ']' and '}' become one
            if (equal_bytes(folded, 0x7B) | equal_bytes(folded, 0x7D) | equal_bytes(word, QUOTE)) == 0:
                at += 8
                continue
        if at[0] == OPEN_ARRAY or at[0] == OPEN_OBJECT:
            depth += 1
        elif at[0] == CLOSE_ARRAY or at[0] == CLOSE_OBJECT:
            depth -= 1
            if depth == 0:
                cursor.at = at + 1
                return 0
        elif at[0] == QUOTE:
            at += 1
            while at < end and at[0] != QUOTE:
                at = <const char*>skip_plain(<const uint8_t*>at, <const uint8_t*>end)
                if at < end and at[0] != QUOTE:
                    at += 2 if at[0] == BACKSLASH else 1
        at += 1
    cursor.at = end
    cursor.fault = "the array has no end"
    return -1


# --- Writer ----------------------------------------------------------------------------------------------------------

cdef inline char short_escape(uint8_t c) noexcept nogil:
    if c == QUOTE or c == BACKSLASH:
        return <char>c
    if c == 0x08:
        return c'b'
    if c == 0x09:
        return c't'
    if c == 0x0A:
        return c'n'
    if c == 0x0C:
        return c'f'
    if c == 0x0D:
        return c'r'
    return 0


cdef Py_ssize_t escaped_size(const char* bytes, Py_ssize_t size) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*>bytes
    cdef const uint8_t* end = at + size
    cdef const uint8_t* plain
    cdef Py_ssize_t total = 0
    cdef int step
    while True:
        plain = skip_plain(at, end)
        total += plain - at
        at = plain
        if at >= end:
            return total
        if at[0] < 0x80:
            total += 2 if short_escape(at[0]) != 0 else 6
            at += 1
            continue
        step = utf8_size(at, end)
        total += step if step > 0 else 3
        at += step if step > 0 else -step


cdef const char* HEX = "0123456789abcdef"


cdef void put_escaped(Writer* writer, const char* bytes, Py_ssize_t size) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*>bytes
    cdef const uint8_t* end = at + size
    cdef const uint8_t* plain
    cdef int step
    cdef char escape
    while True:
        plain = skip_plain(at, end)
        put(writer, <const char*>at, plain - at)
        at = plain
        if at >= end:
            return
        if at[0] < 0x80:
            escape = short_escape(at[0])
            put(writer, "\\", 1)
            if escape != 0:
                put(writer, &escape, 1)
            else:
                put(writer, "u00", 3)
                put(writer, HEX + (at[0] >> 4), 1)
                put(writer, HEX + (at[0] & 15), 1)
            at += 1
            continue
        step = utf8_size(at, end)
        if step > 0:
            put(writer, <const char*>at, step)
            at += step
        else:
            put(writer, "\xef\xbf\xbd", 3)
            at -= step
