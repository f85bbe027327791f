# Body -> InferRequest: see decode.pxd.
#
# From top to bottom: failures; the objects of the envelope, outermost first; shapes and parameters; `data`; binary
# tensors; and, with the GIL again, the Python records.

cimport cython
from cpython.bytes cimport PyBytes_CheckExact
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from fastinfer._ext.buffer cimport (
    Cursor,
    Text,
    open_cursor,
    peek,
    skip_brackets,
    skip_value,
    take,
    take_bool,
    take_string,
    unescape,
)
from fastinfer._ext.datatype cimport BOOL, BYTES, DATATYPE_COUNT, FP16, UINT8, from_name, row
from fastinfer._ext.message cimport InferRequest, RequestedOutput
from fastinfer._ext.tensor cimport Memory, Tensor, allocate_block, element_count, free_block

from fastinfer.errors import ApiError

cdef extern from "number_run.h" namespace "fastinfer::number" nogil:
    enum Error "fastinfer::number::Error":
        OK "fastinfer::number::OK"
        RANGE "fastinfer::number::RANGE"
        NOT_INTEGER "fastinfer::number::NOT_INTEGER"
        TOO_MANY "fastinfer::number::TOO_MANY"
    struct Run:
        const char* at
        int64_t count
        int error
    Run run_bool "fastinfer::number::parse_run<fastinfer::number::BoolElement>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_uint8 "fastinfer::number::parse_run<fastinfer::number::IntegerElement<uint8_t>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_uint16 "fastinfer::number::parse_run<fastinfer::number::IntegerElement<uint16_t>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_uint32 "fastinfer::number::parse_run<fastinfer::number::IntegerElement<uint32_t>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_uint64 "fastinfer::number::parse_run<fastinfer::number::IntegerElement<uint64_t>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_int8 "fastinfer::number::parse_run<fastinfer::number::IntegerElement<int8_t>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_int16 "fastinfer::number::parse_run<fastinfer::number::IntegerElement<int16_t>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_int32 "fastinfer::number::parse_run<fastinfer::number::IntegerElement<int32_t>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_int64 "fastinfer::number::parse_run<fastinfer::number::IntegerElement<int64_t>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_fp16 "fastinfer::number::parse_run<fastinfer::number::BinaryElement<fastinfer::number::Binary16>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_bf16 "fastinfer::number::parse_run<fastinfer::number::BinaryElement<fastinfer::number::BFloat16>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_fp32 "fastinfer::number::parse_run<fastinfer::number::BinaryElement<fastinfer::number::Binary32>>"(
        const char*, const char*, char*, int64_t) noexcept
    Run run_fp64 "fastinfer::number::parse_run<fastinfer::number::BinaryElement<fastinfer::number::Binary64>>"(
        const char*, const char*, char*, int64_t) noexcept
    const char* parse_int64 "fastinfer::number::parse_integer<int64_t>"(
        const char* at, const char* end, int64_t* out, int* error, const char** error_at) noexcept

ctypedef Run (*RunFunction)(const char*, const char*, char*, int64_t) noexcept nogil

# How the elements of each datatype are read, by its id; BYTES has no fixed size and is read by `read_strings`.
cdef RunFunction[DATATYPE_COUNT] RUNS = [
    run_bool, run_uint8, run_uint16, run_uint32, run_uint64, run_int8, run_int16, run_int32, run_int64,
    run_fp16, run_bf16, run_fp32, run_fp64, NULL,
]

cdef enum:
    # Characters.
    QUOTE = 0x22
    COMMA = 0x2C
    COLON = 0x3A
    OPEN_ARRAY = 0x5B
    CLOSE_ARRAY = 0x5D
    OPEN_OBJECT = 0x7B
    CLOSE_OBJECT = 0x7D
    # Bits of `seen`: the known keys of the request, an input, an output, and their parameters.
    SEEN_ID = 1 << 0
    SEEN_PARAMETERS = 1 << 1
    SEEN_INPUTS = 1 << 2
    SEEN_OUTPUTS = 1 << 3
    SEEN_NAME = 1 << 4
    SEEN_SHAPE = 1 << 5
    SEEN_DATATYPE = 1 << 6
    SEEN_DATA = 1 << 7
    SEEN_TIMEOUT = 1 << 8
    SEEN_PRIORITY = 1 << 9
    SEEN_BINARY_OUTPUT = 1 << 10
    SEEN_SEQUENCE_ID = 1 << 11
    SEEN_SEQUENCE_START = 1 << 12
    SEEN_SEQUENCE_END = 1 << 13
    SEEN_BINARY_SIZE = 1 << 14
    SEEN_BINARY = 1 << 15
    SEEN_CLASSIFICATION = 1 << 16

    MAX_KEY = 32                # no known key is longer
    MAX_KEY_TEXT = 6 * MAX_KEY  # the same with every character as \uXXXX
    MAX_QUOTE = 40              # bytes of a client's text in an error's sentence
    SMALL_BODY = 16 * 1024      # decoded without giving up the GIL: that costs more than such a body


# --- Failures: each returns -1 -----------------------------------------------------------------------------------------

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


cdef int fail_text(Decoder* decoder, const char* field, const Text* quoted, const char* text) noexcept nogil:
    fail(decoder, field, text)
    decoder.failure.quote = quoted.at
    decoder.failure.quote_size = quoted.size
    return -1


# --- Objects -----------------------------------------------------------------------------------------------------------

# The next member of an object: 1 with the cursor at its value, 0 behind the closing brace.
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


# The next element of an array: 1 with the cursor at it, 0 behind the closing bracket.
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


cdef inline int skip(Decoder* decoder, int depth) noexcept nogil:
    return fail_syntax(decoder) if skip_value(&decoder.cursor, depth) < 0 else 0


# A key as it is meant, in `room` where it was written with escapes.
cdef inline void resolve_key(Text* key, char* room) noexcept nogil:
    if key.escaped and key.size <= MAX_KEY_TEXT:
        key.size = unescape(key, room)
        key.at = room


cdef inline bint is_key(const Text* key, const char* name, Py_ssize_t size) noexcept nogil:
    return key.size == size and memcmp(key.at, name, size) == 0


# Marks a known key as met.
cdef inline int see(Decoder* decoder, unsigned int* seen, unsigned int bit, const char* field) noexcept nogil:
    if seen[0] & bit:
        return fail(decoder, field, "is given twice")
    seen[0] |= bit
    return 0


# --- The request -------------------------------------------------------------------------------------------------------

cdef int read_request(Decoder* decoder) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef Text key
    cdef char[MAX_KEY_TEXT] room
    cdef bint first = True
    cdef int more
    if take(cursor, OPEN_OBJECT, "expected '{'") < 0:
        return fail_syntax(decoder)
    while True:
        more = next_member(decoder, &key, first)
        if more < 0:
            return -1
        if more == 0:
            break
        first = False
        resolve_key(&key, room)
        if is_key(&key, "inputs", 6):
            if see(decoder, &decoder.seen, SEEN_INPUTS, "'inputs'") < 0 or read_inputs(decoder) < 0:
                return -1
        elif is_key(&key, "outputs", 7):
            if see(decoder, &decoder.seen, SEEN_OUTPUTS, "'outputs'") < 0 or read_outputs(decoder) < 0:
                return -1
        elif is_key(&key, "id", 2):
            if see(decoder, &decoder.seen, SEEN_ID, "'id'") < 0:
                return -1
            if peek(cursor) != QUOTE:
                return fail(decoder, "'id'", "must be a string")
            if take_string(cursor, &decoder.id) < 0:
                return fail_syntax(decoder)
        elif is_key(&key, "parameters", 10):
            if see(decoder, &decoder.seen, SEEN_PARAMETERS, "'parameters'") < 0 or read_parameters(decoder) < 0:
                return -1
        elif skip(decoder, 1) < 0:
            return -1
    if peek(cursor) != -1:
        cursor.fault = "expected nothing behind the request"
        return fail_syntax(decoder)
    if not decoder.seen & SEEN_INPUTS:
        return fail(decoder, "'inputs'", "is missing")
    return read_binary(decoder)


cdef int read_parameters(Decoder* decoder) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef Text key
    cdef char[MAX_KEY_TEXT] room
    cdef bint first = True
    cdef int more
    cdef int64_t flag = 0
    if open_object(decoder, "'parameters'") < 0:
        return -1
    while True:
        more = next_member(decoder, &key, first)
        if more <= 0:
            return more
        first = False
        resolve_key(&key, room)
        if is_key(&key, "timeout", 7):
            if (see(decoder, &decoder.seen, SEEN_TIMEOUT, "parameters.timeout") < 0
                    or read_count(decoder, &decoder.timeout_us, "parameters.timeout") < 0):
                return -1
        elif is_key(&key, "priority", 8):
            if (see(decoder, &decoder.seen, SEEN_PRIORITY, "parameters.priority") < 0
                    or read_count(decoder, &decoder.priority, "parameters.priority") < 0):
                return -1
        elif is_key(&key, "binary_data_output", 18):
            if (see(decoder, &decoder.seen, SEEN_BINARY_OUTPUT, "parameters.binary_data_output") < 0
                    or read_flag(decoder, &flag, "parameters.binary_data_output") < 0):
                return -1
            decoder.binary_output = flag != 0
        elif is_key(&key, "sequence_id", 11):
            if (see(decoder, &decoder.seen, SEEN_SEQUENCE_ID, "parameters.sequence_id") < 0
                    or read_nothing(decoder, "parameters.sequence_id") < 0):
                return -1
        elif is_key(&key, "sequence_start", 14):
            if (see(decoder, &decoder.seen, SEEN_SEQUENCE_START, "parameters.sequence_start") < 0
                    or read_nothing(decoder, "parameters.sequence_start") < 0):
                return -1
        elif is_key(&key, "sequence_end", 12):
            if (see(decoder, &decoder.seen, SEEN_SEQUENCE_END, "parameters.sequence_end") < 0
                    or read_nothing(decoder, "parameters.sequence_end") < 0):
                return -1
        elif skip(decoder, 2) < 0:
            return -1


# A non-negative integer.
cdef int read_count(Decoder* decoder, int64_t* out, const char* field) noexcept nogil:
    cdef const char* at
    cdef const char* fault_at
    cdef int error
    peek(&decoder.cursor)
    at = parse_int64(decoder.cursor.at, decoder.cursor.end, out, &error, &fault_at)
    if at == NULL or out[0] < 0:
        if at == NULL and error == RANGE:
            return fail_quoting(decoder, field, decoder.cursor.at, "is too large")
        return fail_quoting(decoder, field, decoder.cursor.at, "is not a non-negative integer")
    decoder.cursor.at = at
    return 0


cdef int read_flag(Decoder* decoder, int64_t* out, const char* field) noexcept nogil:
    cdef int flag
    peek(&decoder.cursor)
    flag = take_bool(&decoder.cursor)
    if flag < 0:
        return fail_quoting(decoder, field, decoder.cursor.at, "is not true or false")
    out[0] = flag
    return 0


# A sequence parameter: 0, false or "".
cdef int read_nothing(Decoder* decoder, const char* field) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* value
    cdef Text text
    cdef int64_t number
    cdef int error
    cdef const char* fault_at
    cdef const char* after
    peek(cursor)
    value = cursor.at
    if value < cursor.end and value[0] == QUOTE:
        if take_string(cursor, &text) < 0:
            return fail_syntax(decoder)
        if text.size == 0:
            return 0
    elif take_bool(cursor) == 0:
        return 0
    else:
        after = parse_int64(value, cursor.end, &number, &error, &fault_at)
        if after != NULL and number == 0:
            cursor.at = after
            return 0
    return fail_quoting(decoder, field, value, "is refused: sequences are not supported")


# --- Inputs ------------------------------------------------------------------------------------------------------------

cdef ParsedInput* add_input(Decoder* decoder) noexcept nogil:
    cdef ParsedInput* grown
    cdef ParsedInput* added
    cdef int capacity
    if decoder.input_count == decoder.input_capacity:
        capacity = decoder.input_capacity * 4
        grown = <ParsedInput*>malloc(capacity * sizeof(ParsedInput))
        if grown == NULL:
            return NULL
        memcpy(grown, decoder.inputs, decoder.input_count * sizeof(ParsedInput))
        if decoder.inputs != decoder.few_inputs:
            free(decoder.inputs)
        decoder.inputs = grown
        decoder.input_capacity = capacity
    added = &decoder.inputs[decoder.input_count]
    added.seen = 0
    added.data_text = NULL
    added.binary_size = -1
    added.block = NULL
    added.view = NULL
    added.nbytes = 0
    decoder.input_count += 1
    return added


cdef int read_inputs(Decoder* decoder) noexcept nogil:
    cdef ParsedInput* tensor
    cdef bint first = True
    cdef int more
    if open_array(decoder, "'inputs'") < 0:
        return -1
    while True:
        decoder.place = IN_REQUEST
        more = next_element(decoder, first)
        if more <= 0:
            return more
        first = False
        if decoder.input_count == MAX_INPUTS:
            return fail(decoder, "'inputs'", "has more than 1024 entries")
        tensor = add_input(decoder)
        if tensor == NULL:
            return fail(decoder, "", "", NO_MEMORY)
        decoder.place = IN_INPUT
        decoder.index = decoder.input_count - 1
        if read_input(decoder, tensor) < 0:
            return -1


cdef int read_input(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* after
    cdef Text key
    cdef char[MAX_KEY_TEXT] room
    cdef bint first = True
    cdef int more
    if open_object(decoder, "") < 0:
        return -1
    while True:
        more = next_member(decoder, &key, first)
        if more < 0:
            return -1
        if more == 0:
            break
        first = False
        resolve_key(&key, room)
        if is_key(&key, "name", 4):
            if see(decoder, &tensor.seen, SEEN_NAME, ".name") < 0 or read_name(decoder, &tensor.name) < 0:
                return -1
        elif is_key(&key, "shape", 5):
            if see(decoder, &tensor.seen, SEEN_SHAPE, ".shape") < 0 or read_shape(decoder, tensor) < 0:
                return -1
        elif is_key(&key, "datatype", 8):
            if see(decoder, &tensor.seen, SEEN_DATATYPE, ".datatype") < 0 or read_datatype(decoder, tensor) < 0:
                return -1
        elif is_key(&key, "data", 4):
            if see(decoder, &tensor.seen, SEEN_DATA, ".data") < 0:
                return -1
            if peek(cursor) != OPEN_ARRAY:
                return fail(decoder, ".data", "must be an array")
            if tensor.seen & SEEN_SHAPE and tensor.seen & SEEN_DATATYPE:
                if read_data(decoder, tensor) < 0:
                    return -1
            else:
                tensor.data_text = cursor.at
                if skip_brackets(cursor) < 0:
                    return fail_syntax(decoder)
        elif is_key(&key, "parameters", 10):
            if (see(decoder, &tensor.seen, SEEN_PARAMETERS, ".parameters") < 0
                    or read_input_parameters(decoder, tensor) < 0):
                return -1
        elif skip(decoder, 3) < 0:
            return -1
    if not tensor.seen & SEEN_NAME:
        return fail(decoder, "", "'name' is missing")
    if not tensor.seen & SEEN_SHAPE:
        return fail(decoder, "", "'shape' is missing")
    if not tensor.seen & SEEN_DATATYPE:
        return fail(decoder, "", "'datatype' is missing")
    if tensor.binary_size < 0:
        if not tensor.seen & SEEN_DATA:
            return fail(decoder, "", "'data' is missing")
    elif tensor.seen & SEEN_DATA:
        return fail(decoder, "", "'data' and 'binary_data_size' are both given")
    elif decoder.binary == NULL:
        return fail(decoder, "", "'binary_data_size' needs the header Inference-Header-Content-Length")
    if tensor.data_text != NULL:        # it came before shape and datatype: back to it
        after = cursor.at
        cursor.at = tensor.data_text
        if read_data(decoder, tensor) < 0:
            return -1
        cursor.at = after
    return 0


cdef int read_name(Decoder* decoder, Text* name) noexcept nogil:
    if peek(&decoder.cursor) != QUOTE:
        return fail(decoder, ".name", "must be a string")
    return fail_syntax(decoder) if take_string(&decoder.cursor, name) < 0 else 0


cdef int read_datatype(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Text name
    cdef char[MAX_KEY_TEXT] room
    if peek(&decoder.cursor) != QUOTE:
        return fail(decoder, ".datatype", "must be a string")
    if take_string(&decoder.cursor, &name) < 0:
        return fail_syntax(decoder)
    resolve_key(&name, room)
    tensor.datatype_id = from_name(name.at, name.size)
    if tensor.datatype_id < 0:
        if name.at == room:
            return fail(decoder, ".datatype", "is not a datatype")
        return fail_text(decoder, ".datatype", &name, "is not a datatype")
    return 0


cdef int read_shape(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* after
    cdef const char* fault_at
    cdef int64_t dim
    cdef bint first = True
    cdef int more, error
    tensor.rank = 0
    if open_array(decoder, ".shape") < 0:
        return -1
    while True:
        more = next_element(decoder, first)
        if more < 0:
            return -1
        if more == 0:
            break
        first = False
        after = parse_int64(cursor.at, cursor.end, &dim, &error, &fault_at)
        if after == NULL:
            return fail_quoting(decoder, ".shape", cursor.at,
                                "is out of range" if error == RANGE else "is not an integer", tensor.rank)
        if dim < 0:
            return fail_quoting(decoder, ".shape", cursor.at, "is negative", tensor.rank)
        if tensor.rank == MAX_RANK:
            return fail(decoder, ".shape", "has more than 16 dimensions")
        tensor.dims[tensor.rank] = dim
        tensor.rank += 1
        cursor.at = after
    tensor.count = element_count(tensor.dims, tensor.rank)
    if tensor.count < 0:
        return fail(decoder, ".shape", "has more elements than 64 bits can count")
    return 0


cdef inline bint is_shared_memory(const Text* key) noexcept nogil:
    return key.size >= 14 and memcmp(key.at, "shared_memory_", 14) == 0


cdef int read_input_parameters(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Text key
    cdef char[MAX_KEY_TEXT] room
    cdef bint first = True
    cdef int more
    if open_object(decoder, ".parameters") < 0:
        return -1
    while True:
        more = next_member(decoder, &key, first)
        if more <= 0:
            return more
        first = False
        resolve_key(&key, room)
        if is_key(&key, "binary_data_size", 16):
            if (see(decoder, &tensor.seen, SEEN_BINARY_SIZE, ".parameters.binary_data_size") < 0
                    or read_count(decoder, &tensor.binary_size, ".parameters.binary_data_size") < 0):
                return -1
        elif is_shared_memory(&key):
            return fail(decoder, ".parameters", "shared memory is not supported")
        elif skip(decoder, 4) < 0:
            return -1


# --- Outputs -----------------------------------------------------------------------------------------------------------

cdef ParsedOutput* add_output(Decoder* decoder) noexcept nogil:
    cdef ParsedOutput* grown
    cdef ParsedOutput* added
    cdef int capacity
    if decoder.output_count == decoder.output_capacity:
        capacity = decoder.output_capacity * 4
        grown = <ParsedOutput*>malloc(capacity * sizeof(ParsedOutput))
        if grown == NULL:
            return NULL
        memcpy(grown, decoder.outputs, decoder.output_count * sizeof(ParsedOutput))
        if decoder.outputs != decoder.few_outputs:
            free(decoder.outputs)
        decoder.outputs = grown
        decoder.output_capacity = capacity
    added = &decoder.outputs[decoder.output_count]
    added.seen = 0
    added.binary = -1
    added.classification = 0
    decoder.output_count += 1
    return added


cdef int read_outputs(Decoder* decoder) noexcept nogil:
    cdef ParsedOutput* output
    cdef bint first = True
    cdef int more
    if open_array(decoder, "'outputs'") < 0:
        return -1
    while True:
        decoder.place = IN_REQUEST
        more = next_element(decoder, first)
        if more <= 0:
            return more
        first = False
        if decoder.output_count == MAX_INPUTS:
            return fail(decoder, "'outputs'", "has more than 1024 entries")
        output = add_output(decoder)
        if output == NULL:
            return fail(decoder, "", "", NO_MEMORY)
        decoder.place = IN_OUTPUT
        decoder.index = decoder.output_count - 1
        if read_output(decoder, output) < 0:
            return -1


cdef int read_output(Decoder* decoder, ParsedOutput* output) noexcept nogil:
    cdef Text key
    cdef char[MAX_KEY_TEXT] room
    cdef bint first = True
    cdef int more
    if open_object(decoder, "") < 0:
        return -1
    while True:
        more = next_member(decoder, &key, first)
        if more < 0:
            return -1
        if more == 0:
            break
        first = False
        resolve_key(&key, room)
        if is_key(&key, "name", 4):
            if see(decoder, &output.seen, SEEN_NAME, ".name") < 0 or read_name(decoder, &output.name) < 0:
                return -1
        elif is_key(&key, "parameters", 10):
            if (see(decoder, &output.seen, SEEN_PARAMETERS, ".parameters") < 0
                    or read_output_parameters(decoder, output) < 0):
                return -1
        elif skip(decoder, 3) < 0:
            return -1
    if not output.seen & SEEN_NAME:
        return fail(decoder, "", "'name' is missing")
    return 0


cdef int read_output_parameters(Decoder* decoder, ParsedOutput* output) noexcept nogil:
    cdef Text key
    cdef char[MAX_KEY_TEXT] room
    cdef bint first = True
    cdef int more
    cdef int64_t flag = 0
    if open_object(decoder, ".parameters") < 0:
        return -1
    while True:
        more = next_member(decoder, &key, first)
        if more <= 0:
            return more
        first = False
        resolve_key(&key, room)
        if is_key(&key, "binary_data", 11):
            if (see(decoder, &output.seen, SEEN_BINARY, ".parameters.binary_data") < 0
                    or read_flag(decoder, &flag, ".parameters.binary_data") < 0):
                return -1
            output.binary = <int>flag
        elif is_key(&key, "classification", 14):
            if (see(decoder, &output.seen, SEEN_CLASSIFICATION, ".parameters.classification") < 0
                    or read_count(decoder, &output.classification, ".parameters.classification") < 0):
                return -1
        elif is_shared_memory(&key):
            return fail(decoder, ".parameters", "shared memory is not supported")
        elif skip(decoder, 4) < 0:
            return -1


# --- data --------------------------------------------------------------------------------------------------------------

# Reads "data" at its opening bracket: flat, or nested like the shape. Memory is taken for what the rest of the body can
# hold at most, never for what the shape claims.
cdef int read_data(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* opening = cursor.at
    cdef const char* end = cursor.end
    cdef Py_ssize_t itemsize = row(tensor.datatype_id).itemsize
    cdef Py_ssize_t size
    cdef int64_t room
    cdef int64_t done = 0
    if tensor.datatype_id == BYTES:
        if skip_brackets(cursor) < 0:
            return fail_syntax(decoder)
        size = cursor.at - opening
        cursor.at = opening
        room = tensor.count if tensor.rank != 1 or tensor.count > 0 else 1      # AMD's form: see read_strings
        size += size // 3 + 8           # n bytes between quotes and a comma become 4 + n
    else:
        room = (end - opening) // 2 + 1         # an element has a byte and a comma
        if room > tensor.count:
            room = tensor.count
        size = room * itemsize
    tensor.block = allocate_block(size)
    if tensor.block == NULL:
        return fail(decoder, "", "", NO_MEMORY)
    cursor.at += 1
    if peek(cursor) == OPEN_ARRAY and tensor.rank > 0:
        if read_nested(decoder, tensor, room, &done) < 0:
            return -1
    elif read_row(decoder, tensor, room, &done) < 0:
        return -1
    if tensor.datatype_id != BYTES:
        tensor.nbytes = done * itemsize
    elif done == 1 and tensor.rank == 1 and tensor.dims[0] != 1 and tensor.dims[0] == tensor.nbytes - 4:
        tensor.dims[0] = tensor.count = 1       # AMD's form: one string, and its length as shape
    if done != tensor.count:
        return fail(decoder, ".data", "", COUNT, -1, done, tensor.count)
    return 0


# The elements of one array, behind its opening bracket; takes the closing one.
cdef int read_row(Decoder* decoder, ParsedInput* tensor, int64_t limit, int64_t* done) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int64_t start = done[0]
    cdef const char* first
    cdef Run run
    if peek(cursor) != CLOSE_ARRAY:
        if tensor.datatype_id == BYTES:
            if read_strings(decoder, tensor, limit, done) < 0:
                return -1
        else:
            run = RUNS[tensor.datatype_id](
                cursor.at, cursor.end, tensor.block + start * row(tensor.datatype_id).itemsize, limit)
            cursor.at = run.at
            done[0] = start + run.count
            if run.error != OK:
                return fail_element(decoder, tensor, run.error, done[0])
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


# Arrays in arrays, one level per dimension; behind the outermost opening bracket.
cdef int read_nested(Decoder* decoder, ParsedInput* tensor, int64_t room, int64_t* done) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int64_t[MAX_RANK] counts       # complete elements of the open array of each level
    cdef int rank = tensor.rank
    cdef int level = 0                  # of the innermost open array
    cdef int64_t before
    cdef int c
    counts[0] = 0
    while True:
        # Behind an opening bracket or a comma.
        if level == rank - 1:
            before = done[0]
            if read_row(decoder, tensor, min(tensor.dims[level], room - before), done) < 0:
                return -1
            if done[0] - before != tensor.dims[level]:
                return fail(decoder, ".data", "", ROW, -1, done[0] - before, tensor.dims[level])
            if level == 0:
                return 0
            level -= 1
            counts[level] += 1
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
        # Behind an element: a comma, or the ends of arrays.
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


# JSON strings, up to the closing bracket. tensor.nbytes is where the next one goes.
cdef int read_strings(Decoder* decoder, ParsedInput* tensor, int64_t limit, int64_t* done) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef int64_t start = done[0]
    cdef Text text
    cdef Py_ssize_t written
    cdef uint32_t size
    while True:
        if done[0] - start >= limit:
            return fail_element(decoder, tensor, TOO_MANY, done[0])
        if peek(cursor) != QUOTE:
            return fail_element(decoder, tensor, -1, done[0])
        if take_string(cursor, &text) < 0:
            return fail_syntax(decoder)
        written = unescape(&text, tensor.block + tensor.nbytes + 4)
        if written >> 32 != 0:
            return fail(decoder, ".data", "is longer than 4 GiB", PLAIN, done[0])
        size = <uint32_t>written
        memcpy(tensor.block + tensor.nbytes, &size, 4)
        tensor.nbytes += 4 + written
        done[0] += 1
        if peek(cursor) != COMMA:
            return 0
        cursor.at += 1


# --- Binary tensors ----------------------------------------------------------------------------------------------------

# Gives each input with a binary_data_size its bytes from behind the JSON, in the order of the inputs.
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
        tensor.view = at
        tensor.nbytes = tensor.binary_size
        at += tensor.nbytes
        if check_binary(decoder, tensor) < 0:
            return -1
    decoder.place = IN_REQUEST
    if at != decoder.binary_end:
        return fail(decoder, "", "", EXTRA)
    return 0


cdef int check_binary(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef int64_t itemsize = row(tensor.datatype_id).itemsize
    cdef int64_t count = 0
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t i
    cdef uint32_t size
    cdef bint copied = not decoder.views
    if tensor.datatype_id == BYTES:
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
        for i in range(tensor.nbytes):      # anything but 0 is true, and 1 in memory: then not in place
            if <unsigned char>tensor.view[i] > 1:
                copied = True
                break
    if not copied:
        return 0
    tensor.block = allocate_block(tensor.nbytes)
    if tensor.block == NULL:
        return fail(decoder, "", "", NO_MEMORY)
    if tensor.datatype_id == BOOL:
        for i in range(tensor.nbytes):
            tensor.block[i] = tensor.view[i] != 0
    else:
        memcpy(tensor.block, tensor.view, tensor.nbytes)
    tensor.view = NULL
    return 0


# --- A decoder's life --------------------------------------------------------------------------------------------------

# json_size < 0: the whole body is JSON. `views`: the body outlives the request.
cdef void open_decoder(Decoder* decoder, const char* body, Py_ssize_t size, Py_ssize_t json_size,
                       bint views) noexcept nogil:
    open_cursor(&decoder.cursor, body, size if json_size < 0 else json_size)
    decoder.binary = NULL
    if json_size >= 0:
        decoder.binary = body + json_size
    decoder.binary_end = body + size
    decoder.views = views
    decoder.failure.is_set = False
    decoder.place = IN_REQUEST
    decoder.index = 0
    decoder.seen = 0
    decoder.id.size = 0
    decoder.binary_output = False
    decoder.timeout_us = 0
    decoder.priority = 0
    decoder.input_count = 0
    decoder.input_capacity = FEW
    decoder.inputs = decoder.few_inputs
    decoder.output_count = 0
    decoder.output_capacity = FEW
    decoder.outputs = decoder.few_outputs


# Frees what `build` has not handed over.
cdef void close_decoder(Decoder* decoder) noexcept nogil:
    cdef int i
    for i in range(decoder.input_count):
        if decoder.inputs[i].block != NULL:
            free_block(decoder.inputs[i].block)
    decoder.input_count = 0
    if decoder.inputs != decoder.few_inputs:
        free(decoder.inputs)
        decoder.inputs = decoder.few_inputs
    if decoder.outputs != decoder.few_outputs:
        free(decoder.outputs)
        decoder.outputs = decoder.few_outputs
    decoder.output_count = 0


cdef str name_of_text(const Text* text):
    cdef char* room
    cdef Py_ssize_t size
    if not text.escaped:
        return PyUnicode_DecodeUTF8(text.at, text.size, NULL)
    room = allocate_block(text.size)
    if room == NULL:
        raise MemoryError
    try:
        size = unescape(text, room)
        return PyUnicode_DecodeUTF8(room, size, NULL)
    finally:
        free_block(room)


# The records of a request that was read without failure. `owner` keeps the body where views of it are used.
cdef InferRequest build(Decoder* decoder, owner):
    cdef ParsedInput* tensor
    cdef ParsedOutput* output
    cdef list inputs = []
    cdef list outputs = []
    cdef char* data
    cdef str name
    cdef int i
    for i in range(decoder.input_count):
        tensor = &decoder.inputs[i]
        name = name_of_text(&tensor.name)
        if tensor.view != NULL:
            inputs.append(Tensor.wrap(name, tensor.datatype_id, tensor.rank, tensor.dims, <char*>tensor.view,
                                      tensor.nbytes, owner))
        else:
            data = tensor.block
            memory = Memory.adopt(data, tensor.nbytes)
            tensor.block = NULL
            inputs.append(Tensor.wrap(name, tensor.datatype_id, tensor.rank, tensor.dims, data, tensor.nbytes, memory))
    for i in range(decoder.output_count):
        output = &decoder.outputs[i]
        outputs.append(RequestedOutput(name_of_text(&output.name), output.binary, output.classification))
    if len(inputs) > 1:
        refuse_repeated(inputs, "input")
    if len(outputs) > 1:
        refuse_repeated(outputs, "output")
    return InferRequest(inputs, outputs, decoder.id.at[:decoder.id.size] if decoder.id.size > 0 else b"",
                        decoder.binary_output, False, decoder.timeout_us, decoder.priority)


# A set, so that many names are no more work each than few: str hashes are keyed.
cdef int refuse_repeated(list tensors, str kind) except -1:
    cdef set names = {tensor.name for tensor in tensors}
    if len(names) == len(tensors):
        return 0
    for tensor in tensors:
        if tensor.name not in names:
            raise ApiError(400, f"{kind} '{printable(tensor.name.encode())}' is given twice")
        names.remove(tensor.name)
    return 0


# --- Failures, worded ----------------------------------------------------------------------------------------------------

# A client's text as one line that may stand in a sentence.
cdef str printable(bytes text):
    cut = text[:MAX_QUOTE].decode("utf-8", "ignore" if len(text) > MAX_QUOTE else "replace")
    return "".join([c if c.isprintable() else "?" for c in cut]) + ("..." if len(text) > MAX_QUOTE else "")


cdef str shape_text(const ParsedInput* tensor):
    return "[" + ",".join([str(tensor.dims[i]) for i in range(tensor.rank)]) + "]"


cdef object worded(const Decoder* decoder, str model):
    cdef const Failure* failure = &decoder.failure
    cdef const ParsedInput* tensor = NULL
    if failure.kind == NO_MEMORY:
        return ApiError(503, "out of memory for the request's tensors", retry_after_s=1)
    if failure.kind == SYNTAX:
        return ApiError(400, f"byte {failure.at}: {failure.text.decode()}")
    if failure.kind == EXTRA:
        return ApiError(400, f"unexpected additional input data for model '{model}'")
    if failure.place == IN_INPUT:
        tensor = &decoder.inputs[failure.index]
    if failure.kind == SIZE:
        name = printable(name_of_text(&tensor.name).encode())
        expected = int(tensor.count) * int(row(tensor.datatype_id).itemsize)
        return ApiError(400, f"input byte size mismatch for input '{name}' for model '{model}'. "
                             f"Expected {expected}, got {tensor.nbytes}")
    place = ""
    if failure.place != IN_REQUEST:
        place = f"{'inputs' if failure.place == IN_INPUT else 'outputs'}[{failure.index}]"
    place += failure.field.decode()
    if failure.element >= 0:
        place += f"[{failure.element}]"
    if failure.kind == COUNT:
        return ApiError(400, f"{place}: {plural(failure.got)}, but the shape {shape_text(tensor)} "
                             f"holds {failure.wanted}")
    if failure.kind == MORE:
        return ApiError(400, f"{place}: more elements than the {failure.wanted} of the shape {shape_text(tensor)}")
    if failure.kind == ROW:
        return ApiError(400, f"{place}: an array of {plural(failure.got)} where the shape {shape_text(tensor)} "
                             f"asks for {failure.wanted}")
    text = failure.text.decode()
    if failure.quote != NULL:
        text = f"{printable(failure.quote[:failure.quote_size])} {text}"
    if place.endswith("'") or (failure.quote == NULL and place and _is_verb(text)):
        return ApiError(400, f"{place} {text}")
    return ApiError(400, f"{place}: {text}")


cdef bint _is_verb(str text):
    return text.startswith(("is ", "must ", "has ", "reaches "))


cdef str plural(int64_t count):
    return "1 element" if count == 1 else f"{count} elements"


# --- Python's entrances ------------------------------------------------------------------------------------------------

cdef object owner_of(body):
    # bytes cannot change or move; a memoryview keeps anything else from doing so.
    return body if PyBytes_CheckExact(body) else PyMemoryView_FromObject(body)


# N = 0: the whole body is the only input's bytes. Which input, only the model's signature knows: so the one tensor has
# no name, and its datatype and shape are those of bytes.
cdef InferRequest build_raw(const Py_buffer* view, body, bint stable):
    cdef int64_t size = view.len
    cdef Memory memory
    if stable:
        return InferRequest([Tensor.wrap("", UINT8, 1, &size, <char*>view.buf, size, owner_of(body))], raw=True)
    memory = Memory.allocate(size)
    memcpy(memory.data, view.buf, size)
    return InferRequest([Tensor.wrap("", UINT8, 1, &size, memory.data, size, memory)], raw=True)


cdef int check_json_size(Py_ssize_t json_size, Py_ssize_t size) except -1:
    if json_size > size:
        raise ApiError(400, f"the JSON's length {json_size} is larger than the body's {size} bytes")
    return 0


def decode(body, Py_ssize_t json_size=-1, bint stable=False, str model not None=""):
    cdef Py_buffer view
    cdef Decoder decoder
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        check_json_size(json_size, view.len)
        if json_size == 0:
            return build_raw(&view, body, stable)
        open_decoder(&decoder, <const char*>view.buf, view.len, json_size, stable)
        try:
            if view.len <= SMALL_BODY:
                read_request(&decoder)
            else:
                with nogil:
                    read_request(&decoder)
            if decoder.failure.is_set:
                raise worded(&decoder, model)
            return build(&decoder, owner_of(body) if stable else None)
        finally:
            close_decoder(&decoder)
    except MemoryError:
        raise ApiError(503, "out of memory for the request's tensors", retry_after_s=1) from None
    finally:
        PyBuffer_Release(&view)


cdef void run_decoder(void* state) noexcept nogil:
    read_request(<Decoder*>state)


cdef void run_nothing(void* state) noexcept nogil:
    pass


@cython.final
cdef class DecodeJob(Job):
    def __cinit__(self, body, Py_ssize_t json_size=-1, str model not None=""):
        PyObject_GetBuffer(body, &self.body, PyBUF_SIMPLE)
        self.has_body = True
        check_json_size(json_size, self.body.len)
        self.model = model
        self.raw = json_size == 0
        open_decoder(&self.decoder, <const char*>self.body.buf, self.body.len, json_size, True)
        self.work = run_nothing if self.raw else run_decoder
        self.state = &self.decoder

    def __dealloc__(self):
        if self.has_body:
            if self.decoder.inputs != NULL:
                close_decoder(&self.decoder)
            PyBuffer_Release(&self.body)

    def result(self):
        body = <object>self.body.obj
        if self.raw:
            return build_raw(&self.body, body, True)
        if self.decoder.failure.is_set:
            raise worded(&self.decoder, self.model)
        try:
            return build(&self.decoder, owner_of(body))
        except MemoryError:
            raise ApiError(503, "out of memory for the request's tensors", retry_after_s=1) from None
        finally:
            close_decoder(&self.decoder)
