# The objects of a request's JSON: see envelope.pxd.

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, strlen

from fastinfer.codec.decoder cimport (
    BASE64,
    IN_INPUT,
    IN_OUTPUT,
    IN_REQUEST,
    MAX_CLASSES,
    MAX_ID,
    MAX_INPUTS,
    MAX_KEY_TEXT,
    MAX_NAME,
    NOT_A_CONTENT_TYPE,
    NO_CONTENT_TYPE,
    NO_MEMORY,
    OPEN_ARRAY,
    OPEN_OBJECT,
    QUOTE,
    UNKNOWN_CONTENT_TYPE,
    Decoder,
    ParsedInput,
    ParsedOutput,
    fail,
    fail_quoting,
    fail_syntax,
    fail_text,
    is_key,
    next_element,
    next_member,
    open_array,
    open_object,
    read_text,
    resolve_key,
    see,
    skip,
    take_null,
)
from fastinfer.codec.json cimport Cursor, Text, peek, skip_brackets, take, take_bool, take_string
from fastinfer.codec.payload cimport decode_base64, read_binary, read_data
from fastinfer.tensor.datatype cimport BYTES, from_name
from fastinfer.tensor.expected cimport cannot_fit
from fastinfer.tensor.tensor cimport MAX_RANK, element_count

cdef extern from "fastinfer/number/parse.h" namespace "fastinfer::number" nogil:
    enum Error "fastinfer::number::Error":
        RANGE "fastinfer::number::RANGE"
    const char* parse_int64 "fastinfer::number::parse_integer<int64_t>"(
        const char* at, const char* end, int64_t* out, int* error, const char** error_at) noexcept

cdef enum:
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
    SEEN_CONTENT_TYPE = 1 << 17
    DESCRIBED = SEEN_NAME | SEEN_SHAPE | SEEN_DATATYPE

cdef const char* CONTENT_TYPE_FIELD = ".parameters.content_type"


# --- The request -----------------------------------------------------------------------------------------------------

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
            if see(decoder, &decoder.seen, SEEN_OUTPUTS, "'outputs'") < 0:
                return -1
            if not take_null(decoder) and read_outputs(decoder) < 0:
                return -1
        elif is_key(&key, "id", 2):
            if see(decoder, &decoder.seen, SEEN_ID, "'id'") < 0:
                return -1
            if (not take_null(decoder)
                    and read_text(decoder, &decoder.id, "'id'", MAX_ID, "is longer than 1 MiB") < 0):
                return -1
        elif is_key(&key, "parameters", 10):
            if see(decoder, &decoder.seen, SEEN_PARAMETERS, "'parameters'") < 0:
                return -1
            if not take_null(decoder) and read_parameters(decoder) < 0:
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
            if read_nothing(decoder, SEEN_SEQUENCE_ID, "parameters.sequence_id") < 0:
                return -1
        elif is_key(&key, "sequence_start", 14):
            if read_nothing(decoder, SEEN_SEQUENCE_START, "parameters.sequence_start") < 0:
                return -1
        elif is_key(&key, "sequence_end", 12):
            if read_nothing(decoder, SEEN_SEQUENCE_END, "parameters.sequence_end") < 0:
                return -1
        elif is_shared_memory(&key):
            if not take_null(decoder):
                return fail(decoder, "parameters", "shared memory is not supported")
        elif skip(decoder, 2) < 0:
            return -1


# A non-negative integer, or a positive one where `least` is 1; null leaves what was there.
cdef int read_count(Decoder* decoder, int64_t* out, const char* field, int64_t least=0) noexcept nogil:
    cdef const char* at
    cdef const char* fault_at
    cdef int error
    if take_null(decoder):
        return 0
    at = parse_int64(decoder.cursor.at, decoder.cursor.end, out, &error, &fault_at)
    if at == NULL or out[0] < least:
        if at == NULL and error == RANGE:
            return fail_quoting(decoder, field, decoder.cursor.at, "is too large")
        return fail_quoting(decoder, field, decoder.cursor.at,
                            "is not a positive integer" if least > 0 else "is not a non-negative integer")
    decoder.cursor.at = at
    return 0


# true or false; null leaves what was there.
cdef int read_flag(Decoder* decoder, int64_t* out, const char* field) noexcept nogil:
    cdef int flag
    if take_null(decoder):
        return 0
    flag = take_bool(&decoder.cursor)
    if flag < 0:
        return fail_quoting(decoder, field, decoder.cursor.at, "is not true or false")
    out[0] = flag
    return 0


# A sequence parameter: 0, false, "" or null.
cdef int read_nothing(Decoder* decoder, int bit, const char* field) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* value
    cdef Text text
    cdef int64_t number
    cdef int error
    cdef const char* fault_at
    cdef const char* after
    if see(decoder, &decoder.seen, bit, field) < 0:
        return -1
    value = cursor.at
    if value < cursor.end and value[0] == QUOTE:
        if take_string(cursor, &text) < 0:
            return fail_syntax(decoder)
        if text.size == 0:
            return 0
    elif take_bool(cursor) == 0 or take_null(decoder):
        return 0
    else:
        after = parse_int64(value, cursor.end, &number, &error, &fault_at)
        if after != NULL and number == 0:
            cursor.at = after
            return 0
    return fail_quoting(decoder, field, value, "is refused: sequences are not supported")


# --- Inputs ----------------------------------------------------------------------------------------------------------

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
    added.has_data = False
    added.data_text = NULL
    added.binary_size = -1
    added.content_type = NO_CONTENT_TYPE
    added.block = NULL
    added.charged = 0
    added.refused = False
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
                if take_null(decoder):
                    continue
                return fail(decoder, ".data", "must be an array")
            tensor.has_data = True
            if tensor.seen & DESCRIBED == DESCRIBED and not is_refused(decoder, tensor):
                if read_data(decoder, tensor) < 0:
                    return -1
            else:
                tensor.data_text = cursor.at
                if skip_brackets(cursor) < 0:
                    return fail_syntax(decoder)
        elif is_key(&key, "parameters", 10):
            if see(decoder, &tensor.seen, SEEN_PARAMETERS, ".parameters") < 0:
                return -1
            if not take_null(decoder) and read_input_parameters(decoder, tensor) < 0:
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
        if not tensor.has_data:
            return fail(decoder, "", "'data' is missing")
    elif tensor.has_data:
        return fail(decoder, "", "'data' and 'binary_data_size' are both given")
    elif decoder.binary == NULL:
        return fail(decoder, "", "'binary_data_size' needs the header Inference-Header-Content-Length")
    if tensor.block == NULL and is_refused(decoder, tensor):
        return 0
    if tensor.data_text != NULL:        # it came before name, shape or datatype: back to it
        after = cursor.at
        cursor.at = tensor.data_text
        if read_data(decoder, tensor) < 0:
            return -1
        cursor.at = after
    if tensor.content_type != NO_CONTENT_TYPE and tensor.datatype_id == BYTES:
        return apply_content_type(decoder, tensor)
    return 0


# Whether the model cannot take the input, whatever its data: that is then skipped, and the signature says why.
cdef bint is_refused(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    if decoder.expected != NULL and not tensor.name.escaped:
        tensor.refused = cannot_fit(decoder.expected, decoder.index, tensor.name.at, tensor.name.size,
                                    tensor.datatype_id, tensor.rank, tensor.dims)
    return tensor.refused


# Once all of the input has been read: its keys come in any order.
cdef int apply_content_type(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    if tensor.content_type == NOT_A_CONTENT_TYPE:
        return fail(decoder, CONTENT_TYPE_FIELD, "must be a string")
    if tensor.content_type == UNKNOWN_CONTENT_TYPE:
        return fail_text(decoder, CONTENT_TYPE_FIELD, &tensor.content_type_text, "is not a content type")
    if tensor.binary_size >= 0:
        return fail(decoder, CONTENT_TYPE_FIELD, "is base64, which binary data is not")
    return 0 if decoder.keeps_base64 else decode_base64(decoder, tensor)


cdef int read_name(Decoder* decoder, Text* name) noexcept nogil:
    return read_text(decoder, name, ".name", MAX_NAME, "is longer than 4 KiB")


cdef int read_datatype(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Text name
    cdef char[MAX_KEY_TEXT] room
    if read_text(decoder, &name, ".datatype", MAX_NAME, "is longer than 4 KiB") < 0:
        return -1
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
        elif is_key(&key, "content_type", 12):
            if (see(decoder, &tensor.seen, SEEN_CONTENT_TYPE, CONTENT_TYPE_FIELD) < 0
                    or read_content_type(decoder, tensor) < 0):
                return -1
        elif is_shared_memory(&key):
            if not take_null(decoder):
                return fail(decoder, ".parameters", "shared memory is not supported")
        elif skip(decoder, 4) < 0:
            return -1


# MLServer's names, those of its runtimes included. All but base64 say what a tensor becomes in Python.
cdef const char *CONTENT_TYPES[15]
CONTENT_TYPES[:] = [
    "base64", "str", "np", "nplist", "pd", "pd_json", "datetime", "raw", "dict", "hf", "hg_str", "hg_json",
    "hg_jsonlist", "hg_conversation", "pillow_image",
]


cdef int read_content_type(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef Text name
    cdef char[MAX_KEY_TEXT] room
    cdef int i
    if take_null(decoder):
        return 0
    if peek(cursor) != QUOTE:
        tensor.content_type = NOT_A_CONTENT_TYPE
        return skip(decoder, 4)
    if take_string(cursor, &name) < 0:
        return fail_syntax(decoder)
    tensor.content_type_text = name
    resolve_key(&name, room)
    if name.size == 0:          # MLServer takes it for none
        return 0
    if is_key(&name, CONTENT_TYPES[0], 6):
        tensor.content_type = BASE64
        return 0
    for i in range(1, 15):
        if is_key(&name, CONTENT_TYPES[i], <Py_ssize_t>strlen(CONTENT_TYPES[i])):
            return 0
    tensor.content_type = UNKNOWN_CONTENT_TYPE
    return 0


# --- Outputs ---------------------------------------------------------------------------------------------------------

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
            if see(decoder, &output.seen, SEEN_PARAMETERS, ".parameters") < 0:
                return -1
            if not take_null(decoder) and read_output_parameters(decoder, output) < 0:
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
    cdef int64_t flag = -1
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
                    or read_count(decoder, &output.classification, ".parameters.classification", 1) < 0):
                return -1
            if output.classification > MAX_CLASSES:
                return fail(decoder, ".parameters.classification", "is larger than 10000")
        elif is_shared_memory(&key):
            if not take_null(decoder):
                return fail(decoder, ".parameters", "shared memory is not supported")
        elif skip(decoder, 4) < 0:
            return -1
