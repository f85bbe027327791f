# Reads the tensors of a request, `data` in JSON and raw bytes after it, into memory of their own (or views of the
# body). Does not live here: the objects around the data (objects.pyx). Any thread, without the GIL; the decoder owns
# the blocks.

from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libc.string cimport memcpy

from fastinfer.codec.decoder cimport (
    CLOSE_ARRAY,
    CLOSE_OBJECT,
    COMMA,
    COUNT,
    EXTRA,
    IN_INPUT,
    INTERRUPTED,
    IN_REQUEST,
    MAX_QUOTE,
    MORE,
    NO_MEMORY,
    OPEN_ARRAY,
    PLAIN,
    QUOTE,
    ROW,
    SIZE,
    STRINGS,
    Decoder,
    ParsedInput,
    fail,
    fail_quoting,
    fail_syntax,
    skip,
)
from fastinfer.codec.json cimport Cursor, Text, peek, skip_brackets, take, take_string, unescape
from fastinfer.native.job cimport yield_to_loop
from fastinfer.tensor.datatype cimport BOOL, BYTES, DATATYPE_COUNT, FP16, datatype_of
from fastinfer.tensor.tensor cimport MAX_RANK, allocate_block, are_bools, put_bools

cdef extern from "fastinfer/number/simd/table.h" namespace "fastinfer::number" nogil:
    enum Error "fastinfer::number::Error":
        OK "fastinfer::number::OK"
        RANGE "fastinfer::number::RANGE"
        TOO_MANY "fastinfer::number::TOO_MANY"
    struct NumberSpan:
        const char* at
        int64_t count
        int error
    struct Reader:
        pass
    enum:
        SPANS "fastinfer::number::SPANS"
    void open_reader "fastinfer::number::open_reader"(
        Reader*, const char* begin, int datatype_id, int width, bint nullable) noexcept
    NumberSpan read_span "fastinfer::number::read_span"(
        Reader*, const char* at, const char* end, char* memory, int64_t limit, int64_t room) noexcept
    int64_t take_rows "fastinfer::number::take_rows"(
        Reader*, const char** at, int64_t size, int64_t limit) noexcept

cdef extern from "fastinfer/codec/base64.h" namespace "fastinfer::base64" nogil:
    bint decode_quanta "fastinfer::base64::decode"(const char* text, int64_t size, char* out) noexcept
    int decode_last "fastinfer::base64::decode_last"(const char* text, char* out) noexcept

cdef enum:
    YIELD_EVERY = 4096      # numbers read between two yields to the loop: some 40 KB of text, 30 us
    YIELD_EVERY_BYTES = 32768       # the same in characters of strings, of base64 text; a multiple of four
    INTERRUPTION = -2
    STRING_BYTES = 64       # limits.STRING_BYTES; of the runtime for each element, of inputs and outputs
    AMPLIFICATION = 10      # limits.AMPLIFICATION; times the body
    FREE_STRING_BYTES = 16 << 20        # limits.FREE_STRING_BYTES

assert SPANS == BYTES       # the last datatype: its elements have no fixed size, and `read_strings` reads them


# --- Memory ----------------------------------------------------------------------------------------------------------

# Reserves and allocates the block of a tensor.
cdef int take_block(Decoder* decoder, ParsedInput* tensor, Py_ssize_t size) noexcept nogil:
    if decoder.count != NULL:
        if not decoder.count.reserve(size):
            return fail(decoder, "", "", NO_MEMORY)
        tensor.charged = size
    tensor.block = allocate_block(size)
    return 0 if tensor.block != NULL else fail(decoder, "", "", NO_MEMORY)


# The runtime takes as much for an empty string as for one of 15 bytes. So a body of short strings would take many times
# its own size.
cdef bint are_too_many_strings(Decoder* decoder, int64_t count) noexcept nogil:
    return count > (AMPLIFICATION * decoder.body_size + FREE_STRING_BYTES) // STRING_BYTES


# --- data ------------------------------------------------------------------------------------------------------------

# Reads "data" at its opening bracket (flat, or nested like the shape), or at a single value. Memory is allocated for
# what the rest of the body can hold at most, never for what the shape claims.
cdef int read_data(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int first = peek(cursor)       # the text may end here
    cdef const char* opening = cursor.at
    cdef const char* end = cursor.end
    cdef Py_ssize_t itemsize = datatype_of(tensor.datatype_id).itemsize
    cdef Py_ssize_t size
    cdef int64_t room
    cdef int64_t done = 0
    cdef Reader reader
    if first != OPEN_ARRAY:
        return read_single(decoder, tensor)
    if tensor.datatype_id == BYTES:
        if skip_brackets(cursor) < 0:
            return fail_syntax(decoder)
        size = cursor.at - opening
        cursor.at = opening
        room = tensor.count if tensor.rank != 1 or tensor.count > 0 else 1      # AMD's form: see read_strings
        if are_too_many_strings(decoder, min(room, size // 3 + 1)):
            return fail(decoder, ".data", "", STRINGS, -1, min(room, size // 3 + 1))
        size += size // 3 + 8           # n bytes in quotes and a comma become 4 + n
    else:
        room = (end - opening) // 2 + 1         # an element has a byte and a comma
        if room > tensor.count:
            room = tensor.count
        size = room * itemsize
        open_reader(&reader, cursor.begin, tensor.datatype_id, decoder.width, decoder.nullable)
    if take_block(decoder, tensor, size) < 0:
        return -1
    cursor.at += 1
    if peek(cursor) == OPEN_ARRAY and tensor.rank > 0:
        if read_nested(decoder, tensor, &reader, room, &done) < 0:
            return -1
    elif read_row(decoder, tensor, &reader, room, room, &done) < 0:
        return -1
    if tensor.datatype_id != BYTES:
        tensor.nbytes = done * itemsize
    elif done == 1 and tensor.rank == 1 and tensor.dims[0] != 1 and tensor.dims[0] == tensor.nbytes - 4:
        tensor.dims[0] = tensor.count = 1       # AMD's form: one string, and its length as shape
    if done != tensor.count:
        return fail(decoder, ".data", "", COUNT, -1, done, tensor.count)
    return 0


# Reads a value that is not in an array, which only a tensor of one element may have.
cdef int read_single(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* value = cursor.at
    cdef Py_ssize_t itemsize = datatype_of(tensor.datatype_id).itemsize
    cdef Reader reader
    cdef NumberSpan span
    if skip(decoder, 0) < 0:
        return -1
    if tensor.count != 1:
        return fail(decoder, ".data", "must be an array")
    if tensor.datatype_id == BYTES:
        if take_block(decoder, tensor, cursor.at - value + 8) < 0:
            return -1
        cursor.at = value
        return append_string(decoder, tensor, -1)
    if take_block(decoder, tensor, itemsize) < 0:
        return -1
    open_reader(&reader, value, tensor.datatype_id, decoder.width, decoder.nullable)
    span = read_span(&reader, value, cursor.at, tensor.block, 1, 1)
    if span.count != 1 or span.error != OK:
        cursor.at = value
        return fail_element(decoder, tensor, span.error, -1)
    tensor.nbytes = itemsize
    return 0


# Reads the elements of one array, after its opening bracket, and the closing one. At most `limit` of them; there is
# room for `room` of this row and later ones.
cdef int read_row(Decoder* decoder, ParsedInput* tensor, Reader* reader, int64_t limit, int64_t room,
                  int64_t* done) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int64_t start = done[0]
    cdef int64_t rest = limit
    cdef NumberSpan span
    if peek(cursor) != CLOSE_ARRAY:
        if tensor.datatype_id == BYTES:
            if read_strings(decoder, tensor, limit, done) < 0:
                return -1
        else:
            while True:
                span = read_span(
                    reader, cursor.at, cursor.end, tensor.block + done[0] * datatype_of(tensor.datatype_id).itemsize,
                    min(rest, YIELD_EVERY), room - (done[0] - start))
                cursor.at = span.at
                done[0] += span.count
                rest -= span.count
                if span.error != TOO_MANY or rest == 0:
                    break
                if not yield_to_loop(decoder.interruption):
                    return fail(decoder, "", "", INTERRUPTED)
            if span.error != OK:
                return fail_element(decoder, tensor, span.error, done[0])
    return fail_syntax(decoder) if take(cursor, CLOSE_ARRAY, "expected ',' or ']'") < 0 else 0


cdef const char *OUT_OF_RANGE[DATATYPE_COUNT]
OUT_OF_RANGE[:] = [
    "", "is out of range for UINT8", "is out of range for UINT16", "is out of range for UINT32",
    "is out of range for UINT64", "is out of range for INT8", "is out of range for INT16",
    "is out of range for INT32", "is out of range for INT64", "is out of range for FP16",
    "is out of range for BF16", "is out of range for FP32", "is out of range for FP64", "",
]


# The cursor stands at an element that could not be read.
cdef int fail_element(Decoder* decoder, ParsedInput* tensor, int error, int64_t element) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int c = peek(cursor)
    cdef const char* text
    if error == TOO_MANY:
        return fail(decoder, ".data", "", MORE, -1, 0, tensor.count)
    if c == OPEN_ARRAY:
        return fail(decoder, ".data", "is not nested like the shape")
    if c == -1 or c == COMMA or c == CLOSE_ARRAY or c == CLOSE_OBJECT:
        cursor.fault = "expected a value"
        return fail_syntax(decoder)
    if error == RANGE:
        text = OUT_OF_RANGE[tensor.datatype_id]
    elif tensor.datatype_id == BYTES:
        text = "is not a string"
    elif tensor.datatype_id == BOOL:
        text = "is not true or false"
    elif tensor.datatype_id < FP16:
        text = "is not an integer"
    else:
        text = "is not a number"
    return fail_quoting(decoder, ".data", cursor.at, text, element)


# Reads arrays in arrays, one level per dimension, after the outermost opening bracket.
cdef int read_nested(Decoder* decoder, ParsedInput* tensor, Reader* reader, int64_t room,
                     int64_t* done) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int64_t[MAX_RANK] counts       # complete elements of the open array of each level
    cdef int rank = tensor.rank
    cdef int level = 0                  # of the innermost open array
    cdef int64_t before, rest, rows
    cdef int c
    counts[0] = 0
    while True:
        # After an opening bracket or a comma.
        if level == rank - 1:
            before = done[0]
            rest = room - before
            if read_row(decoder, tensor, reader, min(tensor.dims[level], rest), rest, done) < 0:
                return -1
            if done[0] - before != tensor.dims[level]:
                return fail(decoder, ".data", "", ROW, -1, done[0] - before, tensor.dims[level])
            if level == 0:
                return 0
            level -= 1
            counts[level] += 1
            if tensor.datatype_id != BYTES:
                rows = take_rows(reader, &cursor.at, tensor.dims[rank - 1], tensor.dims[level] - counts[level])
                counts[level] += rows
                done[0] += rows * tensor.dims[rank - 1]
        else:
            c = peek(cursor)
            if c == OPEN_ARRAY:
                if counts[level] == tensor.dims[level]:
                    return fail(decoder, ".data", "", MORE, -1, 0, tensor.count)
                cursor.at += 1
                level += 1
                counts[level] = 0
                continue
            if c != CLOSE_ARRAY or counts[level] != 0:
                return fail(decoder, ".data", "is not nested like the shape")
        # After an element: a comma, or the ends of arrays.
        while True:
            c = peek(cursor)
            if c == COMMA:
                cursor.at += 1
                break
            if c != CLOSE_ARRAY:
                cursor.fault = "expected ',' or ']'"
                return fail_syntax(decoder)
            if counts[level] != tensor.dims[level]:
                return fail(decoder, ".data", "", ROW, -1, counts[level], tensor.dims[level])
            cursor.at += 1
            if level == 0:
                return 0
            level -= 1
            counts[level] += 1


# Reads JSON strings up to the closing bracket. tensor.nbytes is the place of the next one.
cdef int read_strings(Decoder* decoder, ParsedInput* tensor, int64_t limit, int64_t* done) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int64_t start = done[0]
    cdef const char* piece = cursor.at
    while True:
        if done[0] - start >= limit:
            return fail_element(decoder, tensor, TOO_MANY, done[0])
        if cursor.at - piece >= YIELD_EVERY_BYTES:
            piece = cursor.at
            if not yield_to_loop(decoder.interruption):
                return fail(decoder, "", "", INTERRUPTED)
        if append_string(decoder, tensor, done[0]) < 0:
            return -1
        done[0] += 1
        if peek(cursor) != COMMA:
            return 0
        cursor.at += 1


cdef inline int append_string(Decoder* decoder, ParsedInput* tensor, int64_t element) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef Text text
    cdef Py_ssize_t written
    cdef uint32_t size
    if peek(cursor) != QUOTE:
        return fail_element(decoder, tensor, -1, element)
    if take_string(cursor, &text) < 0:
        return fail_syntax(decoder)
    written = unescape(&text, tensor.block + tensor.nbytes + 4)
    if written >> 32 != 0:
        return fail(decoder, ".data", "is longer than 4 GiB", PLAIN, element)
    size = <uint32_t>written
    memcpy(tensor.block + tensor.nbytes, &size, 4)
    tensor.nbytes += 4 + written
    return 0


# --- Base64 ----------------------------------------------------------------------------------------------------------

# Each element is moved to the end of the one before it, because bytes are fewer than their text.
cdef int decode_base64(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef char* block = tensor.block
    cdef char[MAX_QUOTE + 1] begin      # of an element's text, which its bytes overwrite
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t to = 0
    cdef Py_ssize_t since = 0           # characters decoded since the last yield to the loop
    cdef int64_t written, element
    cdef Py_ssize_t quoted
    cdef uint32_t size
    for element in range(tensor.count):
        memcpy(&size, block + at, 4)
        at += 4
        quoted = min(<Py_ssize_t>size, MAX_QUOTE + 1)
        memcpy(begin, block + at, quoted)
        written = decode_text(decoder, block + at, size, block + to + 4, &since)
        if written == INTERRUPTION:
            return fail(decoder, "", "", INTERRUPTED)
        if written < 0:
            fail(decoder, ".data", "is not base64 text", PLAIN, element)
            decoder.failure.quote = block + at - 2      # lives as long as the decoder
            decoder.failure.quote_size = quoted + 2
            block[at - 2] = QUOTE       # in the place of the element's length, which has four bytes
            memcpy(block + at - 1, begin, quoted)
            block[at - 1 + quoted] = QUOTE      # after the quoted part, if the element is longer
            return -1
        at += size
        size = <uint32_t>written
        memcpy(block + to, &size, 4)
        to += 4 + <Py_ssize_t>written
    tensor.nbytes = to
    return 0


# Returns the number of bytes, -1, or INTERRUPTION.
cdef int64_t decode_text(Decoder* decoder, const char* text, int64_t size, char* out,
                         Py_ssize_t* since) noexcept nogil:
    cdef int64_t done = 0
    cdef int64_t piece
    cdef int last
    if size == 0:
        return 0
    if size % 4 != 0:
        return -1
    while True:
        piece = min(size - 4 - done, YIELD_EVERY_BYTES)
        if not decode_quanta(text + done, piece, out + done // 4 * 3):
            return -1
        done += piece
        since[0] += piece + 4       # also of elements that are no longer than their last characters
        if since[0] >= YIELD_EVERY_BYTES:
            since[0] = 0
            if not yield_to_loop(decoder.interruption):
                return INTERRUPTION
        if done == size - 4:
            break
    last = decode_last(text + done, out + done // 4 * 3)
    return done // 4 * 3 + last if last > 0 else -1


# --- Binary tensors --------------------------------------------------------------------------------------------------

# Gives each input with a binary_data_size its bytes after the JSON, in the order of the inputs.
cdef int read_binary(Decoder* decoder) noexcept nogil:
    cdef ParsedInput* tensor
    cdef const char* at = decoder.binary
    cdef int i
    if at == NULL:
        return 0
    decoder.place = IN_INPUT
    for i in range(decoder.input_count):
        tensor = &decoder.inputs[i]
        decoder.index = i
        if tensor.binary_size < 0:
            continue
        if tensor.binary_size > decoder.binary_end - at:
            return fail(decoder, ".parameters.binary_data_size", "reaches past the end of the body")
        at += tensor.binary_size
        if tensor.refused:
            continue
        tensor.view = at - tensor.binary_size
        tensor.nbytes = tensor.binary_size
        if check_binary(decoder, tensor) < 0:
            return -1
    decoder.place = IN_REQUEST
    if at != decoder.binary_end:
        return fail(decoder, "", "", EXTRA)
    return 0


cdef int check_binary(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef int64_t itemsize = datatype_of(tensor.datatype_id).itemsize
    cdef int64_t count = 0
    cdef Py_ssize_t at = 0
    cdef uint32_t size
    # Kernels may expect aligned elements; in a body they have any address.
    cdef bint copied = not decoder.views or (itemsize > 1 and <uintptr_t>tensor.view % <uintptr_t>itemsize != 0)
    if tensor.datatype_id == BYTES:
        if are_too_many_strings(decoder, min(tensor.count, tensor.nbytes // 4)):
            return fail(decoder, "", "", STRINGS, -1, min(tensor.count, tensor.nbytes // 4))
        while at < tensor.nbytes:
            if tensor.nbytes - at < 4:
                return fail(decoder, "", "the length of a BYTES element is cut off", PLAIN, count)
            memcpy(&size, tensor.view + at, 4)
            if <int64_t>size > tensor.nbytes - at - 4:
                return fail(decoder, "", "a BYTES element reaches past the end of its tensor", PLAIN, count)
            at += 4 + <Py_ssize_t>size
            count += 1
        if count != tensor.count:
            return fail(decoder, "", "", COUNT, -1, count, tensor.count)
    elif tensor.count > tensor.nbytes or tensor.count * itemsize != tensor.nbytes:
        return fail(decoder, "", "", SIZE)
    elif tensor.datatype_id == BOOL:
        copied = copied or not are_bools(tensor.view, tensor.nbytes)
    if not copied:
        return 0
    if take_block(decoder, tensor, tensor.nbytes) < 0:
        return -1
    if tensor.datatype_id == BOOL:
        put_bools(tensor.block, tensor.view, tensor.nbytes)
    else:
        memcpy(tensor.block, tensor.view, tensor.nbytes)
    tensor.view = NULL
    return 0
