# The state of one decode, its first failure, and the inlined steps through JSON's objects.
#
# decode.pyx (entry points) -> objects (the JSON's objects) -> data (tensors) -> this. No Python objects here;
# everything runs without the GIL. A function that fails has filled `failure` in and returns -1.

from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Count
from fastinfer.codec.json cimport Cursor, Text, peek, skip_value, take, take_literal, take_string, unescape
from fastinfer.native.job cimport Interrupt
from fastinfer.tensor.expected cimport Expected
from fastinfer.tensor.tensor cimport MAX_RANK

cdef enum:
    # Characters.
    QUOTE = 0x22
    COMMA = 0x2C
    COLON = 0x3A
    OPEN_ARRAY = 0x5B
    CLOSE_ARRAY = 0x5D
    OPEN_OBJECT = 0x7B
    CLOSE_OBJECT = 0x7D

    MAX_KEY = 32                # no known key is longer
    MAX_KEY_TEXT = 6 * MAX_KEY  # the same with every character as \uXXXX
    MAX_QUOTE = 40              # bytes of a client's text in an error's sentence

cdef enum:
    # See fastinfer.base.limits for the reasons.
    MAX_INPUTS = 1024       # MAX_INPUTS; inputs or outputs of one request
    MAX_NAME = 4 * 1024     # MAX_NAME_BYTES, as they are written
    MAX_ID = 1024 * 1024    # MAX_ID_BYTES, as they are written
    MAX_CLASSES = 10_000    # MAX_CLASSES; of an output's row
    FEW = 4                 # more inputs or outputs than these get a list of their own

cdef enum Place:
    IN_REQUEST
    IN_INPUT
    IN_OUTPUT

# The parameter content_type of an input; it has an effect on BYTES only.
cdef enum ContentType:
    NO_CONTENT_TYPE         # not given, or one without effect
    BASE64                  # each element is base64 text
    UNKNOWN_CONTENT_TYPE    # a string that is the name of none
    NOT_A_CONTENT_TYPE      # not a string

cdef enum DecodeErrorKind:
    PLAIN                   # "<place><field>[<element>]: <quoted> <text>"
    SYNTAX                  # "byte <at>: <text>"
    COUNT                   # too few elements
    MORE                    # too many elements
    ROW                     # a nested row of the wrong length
    SIZE                    # a binary tensor's size does not fit its shape
    EXTRA                   # bytes after the last binary tensor
    STRINGS                 # too many short strings for so small a body
    INTERRUPTED             # the job was cancelled
    NO_MEMORY

# The first failure of a decode; `to_api_error` makes the error of it, with the GIL.
cdef struct DecodeError:
    bint is_set
    DecodeErrorKind kind
    Place place
    int index               # of the input or output
    const char* field       # static, such as ".shape"
    int64_t element         # -1: none
    const char* quote       # the client's own text, in the body; NULL: none
    Py_ssize_t quote_size
    const char* text        # static
    int64_t at              # byte of the body
    int64_t got
    int64_t wanted

cdef struct ParsedInput:
    unsigned int seen       # known keys met
    bint has_data           # "data" is there, and is not null
    Text name
    int datatype_id
    int rank
    int64_t[MAX_RANK] dims
    int64_t count           # elements: the product of dims
    const char* data_text   # where "data" begins, if it came before shape and datatype
    int64_t binary_size     # parameters.binary_data_size; -1: none
    ContentType content_type
    Text content_type_text  # as it is written, if it is unknown
    char* block             # owned, or NULL if `view` is used in place
    Py_ssize_t charged      # bytes of it in the decoder's count
    bint refused            # the model certainly does not take it: its data is skipped, and there is no memory
    const char* view        # the bytes in the body
    Py_ssize_t nbytes

cdef struct ParsedOutput:
    unsigned int seen
    Text name
    int binary
    int64_t classification

cdef struct Decoder:
    Cursor cursor           # over the JSON
    const char* binary      # the rest of the body; NULL: the request came without a header length
    const char* binary_end
    int width               # of the widest registers to read numbers with, in bits
    const Interrupt* interruption       # of the job; NULL on the loop's thread
    Count* count            # of bytes, in which tensors are reserved; NULL: none
    const Expected* expected            # the inputs that the model takes; NULL: unknown
    Py_ssize_t body_size
    bint views              # binary tensors may be used in place
    bint nullable           # null among floating-point data is NaN
    bint keeps_base64       # the model takes base64 text itself: it is not decoded here
    DecodeError failure
    Place place             # the part that is being read, for failures
    int index
    unsigned int seen
    Text id
    bint binary_output
    int64_t timeout_us
    int64_t priority
    int input_count
    int input_capacity
    ParsedInput* inputs     # `few_inputs`, or a list of its own
    ParsedInput[FEW] few_inputs
    int output_count
    int output_capacity
    ParsedOutput* outputs
    ParsedOutput[FEW] few_outputs


# --- Failures: each returns -1 ---------------------------------------------------------------------------------------

cdef inline int fail(Decoder* decoder, const char* field, const char* text, DecodeErrorKind kind=PLAIN,
                     int64_t element=-1, int64_t got=0, int64_t wanted=0) noexcept nogil:
    cdef DecodeError* failure = &decoder.failure
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


# The cursor is at the fault, and its `fault` is the sentence.
cdef inline int fail_syntax(Decoder* decoder) noexcept nogil:
    fail(decoder, "", decoder.cursor.fault, SYNTAX)
    decoder.failure.at = decoder.cursor.at - decoder.cursor.begin
    return -1


# The fault is a value, which begins the sentence.
cdef inline int fail_quoting(Decoder* decoder, const char* field, const char* value, const char* text,
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
cdef inline int fail_text(Decoder* decoder, const char* field, const Text* quoted, const char* text) noexcept nogil:
    fail(decoder, field, text)
    decoder.failure.quote = quoted.at - 1
    decoder.failure.quote_size = quoted.size + 2
    return -1


# --- Objects ---------------------------------------------------------------------------------------------------------

# The next member of an object: 1 with the cursor at its value, 0 after the closing brace.
cdef inline int next_member(Decoder* decoder, Text* key, bint first) noexcept nogil:
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


# The next element of an array: 1 with the cursor at it, 0 after the closing bracket.
cdef inline int next_element(Decoder* decoder, bint first) noexcept nogil:
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


cdef inline int open_object(Decoder* decoder, const char* field) noexcept nogil:
    if peek(&decoder.cursor) != OPEN_OBJECT:
        return fail(decoder, field, "must be an object")
    decoder.cursor.at += 1
    return 0


cdef inline int open_array(Decoder* decoder, const char* field) noexcept nogil:
    if peek(&decoder.cursor) != OPEN_ARRAY:
        return fail(decoder, field, "must be an array")
    decoder.cursor.at += 1
    return 0


# A string of at most `limit` bytes, as it is written.
cdef inline int read_text(Decoder* decoder, Text* text, const char* field, Py_ssize_t limit,
                          const char* too_long) noexcept nogil:
    if peek(&decoder.cursor) != QUOTE:
        return fail(decoder, field, "must be a string")
    if take_string(&decoder.cursor, text) < 0:
        return fail_syntax(decoder)
    return fail(decoder, field, too_long) if text.size > limit else 0


# Takes a null, which for most keys means that they are missing; returns whether there was one.
cdef inline bint take_null(Decoder* decoder) noexcept nogil:
    return take_literal(&decoder.cursor, "null", 4)


# Any value, validated.
cdef inline int skip(Decoder* decoder, int depth) noexcept nogil:
    return fail_syntax(decoder) if skip_value(&decoder.cursor, depth) < 0 else 0


# Resolves a key's escapes, in `room`.
cdef inline void resolve_key(Text* key, char* room) noexcept nogil:
    if key.escaped and key.size <= MAX_KEY_TEXT:
        key.size = unescape(key, room)
        key.at = room
