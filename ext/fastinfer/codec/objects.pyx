# The objects of a request's JSON, outermost first: request, inputs, outputs, and their parameters. One loop reads all
# of them; a table lists the members of each. Does not live here: `data`, and the bytes after the JSON (data.pyx). Any
# thread, without the GIL; the decoder owns the lists.

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, strlen

from fastinfer.codec.data cimport decode_base64, read_binary, read_data
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
    Place,
    fail,
    fail_quoting,
    fail_syntax,
    fail_text,
    next_element,
    next_member,
    open_array,
    open_object,
    read_text,
    resolve_key,
    skip,
    take_null,
)
from fastinfer.codec.json cimport Cursor, Text, peek, skip_brackets, take, take_bool, take_string
from fastinfer.tensor.datatype cimport BYTES, from_name
from fastinfer.tensor.expected cimport cannot_fit
from fastinfer.tensor.tensor cimport MAX_RANK, element_count

cdef extern from "fastinfer/number/parse.h" namespace "fastinfer::number" nogil:
    enum Error "fastinfer::number::Error":
        RANGE "fastinfer::number::RANGE"
    const char* parse_int64 "fastinfer::number::parse_integer<int64_t>"(
        const char* at, const char* end, int64_t* out, int* error, const char** error_at) noexcept

cdef enum:
    # Bits of `seen`: the known members of the request, an input, an output, and their parameters.
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
    SEEN_INSTANCES = 1 << 18
    DESCRIBED = SEEN_NAME | SEEN_SHAPE | SEEN_DATATYPE

    MOST_MEMBERS = 6

cdef const char* CONTENT_TYPE_FIELD = ".parameters.content_type"


# --- Any object ------------------------------------------------------------------------------------------------------

# Reads the value of a member into the struct of its object: a Decoder (the request), a ParsedInput or a ParsedOutput.
ctypedef int (*Read)(Decoder* decoder, void* of, const char* field) noexcept nogil

cdef struct Member:
    const char* name
    Py_ssize_t name_size
    unsigned int bit            # in `seen`
    const char* field           # its name in sentences
    bint required               # null is a wrong value; for others it means that they are missing
    Read read

cdef struct Object:
    const char* field           # its name in sentences
    const char* shared_field    # the same if shared memory is refused; NULL: the object holds no parameters
    int depth                   # of its members' values
    int count
    Member[MOST_MEMBERS] members


cdef Member member(const char* name, unsigned int bit, const char* field, Read read, bint required=False) noexcept:
    return Member(name, <Py_ssize_t>strlen(name), bit, field, required, read)


# Reads the members after the opening brace, and the closing one. `seen`: the members that were met.
cdef int read_members(Decoder* decoder, const Object* kind, unsigned int* seen, void* of) noexcept nogil:
    cdef Text key
    cdef char[MAX_KEY_TEXT] room
    cdef bint first = True
    cdef int more
    cdef const Member* known
    while True:
        more = next_member(decoder, &key, first)
        if more <= 0:
            return more
        first = False
        resolve_key(&key, room)
        known = find(kind, &key)
        if known == NULL:
            if kind.shared_field != NULL and is_shared_memory(&key):
                if not take_null(decoder):
                    return fail(decoder, kind.shared_field, "shared memory is not supported")
            elif skip(decoder, kind.depth) < 0:
                return -1
            continue
        if seen[0] & known.bit:
            return fail(decoder, known.field, "is given twice")
        seen[0] |= known.bit
        if not known.required and take_null(decoder):
            continue
        if known.read(decoder, of, known.field) < 0:
            return -1


cdef const Member* find(const Object* kind, const Text* key) noexcept nogil:
    cdef int i
    for i in range(kind.count):
        if key.size == kind.members[i].name_size and memcmp(key.at, kind.members[i].name, key.size) == 0:
            return &kind.members[i]
    return NULL


cdef inline bint is_shared_memory(const Text* key) noexcept nogil:
    return key.size >= 14 and memcmp(key.at, "shared_memory_", 14) == 0


cdef int read_object(Decoder* decoder, const Object* kind, unsigned int* seen, void* of) noexcept nogil:
    if open_object(decoder, kind.field) < 0:
        return -1
    return read_members(decoder, kind, seen, of)


# Reads an array of objects. `read` adds one to `count`, and reads it.
cdef int read_list(Decoder* decoder, const char* field, Place place, int* count,
                   int (*read)(Decoder* decoder) noexcept nogil) noexcept nogil:
    cdef bint first = True
    cdef int more
    if open_array(decoder, field) < 0:
        return -1
    while True:
        decoder.place = IN_REQUEST
        more = next_element(decoder, first)
        if more <= 0:
            return more
        first = False
        if count[0] == MAX_INPUTS:
            return fail(decoder, field, "has more than 1024 entries")
        decoder.place = place
        decoder.index = count[0]
        if read(decoder) < 0:
            return -1


# Returns a list with room for one more: this one, or one that is four times as long. NULL: there is no memory.
cdef void* with_room(void* items, const void* few, int count, int* capacity, size_t size) noexcept nogil:
    cdef void* grown
    if count < capacity[0]:
        return items
    grown = malloc(4 * capacity[0] * size)
    if grown == NULL:
        return NULL
    memcpy(grown, items, count * size)
    if items != few:
        free(items)
    capacity[0] *= 4
    return grown


# --- Values ----------------------------------------------------------------------------------------------------------

# Reads a non-negative integer, or a positive one if `least` is 1.
cdef int read_count(Decoder* decoder, int64_t* out, const char* field, int64_t least=0) noexcept nogil:
    cdef const char* at
    cdef const char* fault_at
    cdef int error
    at = parse_int64(decoder.cursor.at, decoder.cursor.end, out, &error, &fault_at)
    if at == NULL or out[0] < least:
        if at == NULL and error == RANGE:
            return fail_quoting(decoder, field, decoder.cursor.at, "is too large")
        return fail_quoting(decoder, field, decoder.cursor.at,
                            "is not a positive integer" if least > 0 else "is not a non-negative integer")
    decoder.cursor.at = at
    return 0


# Reads true (1) or false (0); -1 after a failure.
cdef int read_flag(Decoder* decoder, const char* field) noexcept nogil:
    cdef int flag = take_bool(&decoder.cursor)
    return flag if flag >= 0 else fail_quoting(decoder, field, decoder.cursor.at, "is not true or false")


# --- The request -----------------------------------------------------------------------------------------------------

cdef int read_request(Decoder* decoder) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    if take(cursor, OPEN_OBJECT, "expected '{'") < 0:
        return fail_syntax(decoder)
    if read_members(decoder, &REQUEST, &decoder.seen, decoder) < 0:
        return -1
    if peek(cursor) != -1:
        cursor.fault = "expected nothing after the request"
        return fail_syntax(decoder)
    if not decoder.seen & SEEN_INPUTS:
        if decoder.seen & SEEN_INSTANCES:
            return fail(decoder, "'inputs'", V1_REQUEST)
        return fail(decoder, "'inputs'", "is missing")
    return read_binary(decoder)


cdef const char* V1_REQUEST = (
    "is missing: 'instances' is of the V1 protocol, and this is V2; an input has name, shape, datatype and data")


# The only unknown member that is noted: requests of the V1 protocol have it.
cdef int skip_instances(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return skip(decoder, REQUEST.depth)


cdef int read_inputs(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_list(decoder, field, IN_INPUT, &decoder.input_count, read_input)


cdef int read_outputs(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_list(decoder, field, IN_OUTPUT, &decoder.output_count, read_output)


cdef int read_id(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_text(decoder, &decoder.id, field, MAX_ID, "is longer than 1 MiB")


cdef int read_parameters(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_object(decoder, &PARAMETERS, &decoder.seen, decoder)


cdef int read_timeout(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_count(decoder, &decoder.timeout_us, field)


cdef int read_priority(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_count(decoder, &decoder.priority, field)


cdef int read_binary_output(Decoder* decoder, void* of, const char* field) noexcept nogil:
    cdef int flag = read_flag(decoder, field)
    decoder.binary_output = flag > 0
    return 0 if flag >= 0 else -1


# Accepts only 0, false, "" (or null), which mean that there is no sequence.
cdef int reject_sequence_parameter(Decoder* decoder, void* of, const char* field) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* value = cursor.at
    cdef Text text
    cdef int64_t number
    cdef int error
    cdef const char* fault_at
    cdef const char* after
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


# --- Inputs ----------------------------------------------------------------------------------------------------------

cdef int read_input(Decoder* decoder) noexcept nogil:
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* after
    cdef ParsedInput* tensor = add_input(decoder)
    if tensor == NULL:
        return fail(decoder, "", "", NO_MEMORY)
    if read_object(decoder, &INPUT, &tensor.seen, tensor) < 0 or check_members(decoder, tensor) < 0:
        return -1
    if tensor.block == NULL and is_refused(decoder, tensor):
        return 0
    if tensor.data_text != NULL:        # "data" came before name, shape or datatype: return to it
        after = cursor.at
        cursor.at = tensor.data_text
        if read_data(decoder, tensor) < 0:
            return -1
        cursor.at = after
    if tensor.content_type != NO_CONTENT_TYPE and tensor.datatype_id == BYTES:
        return apply_content_type(decoder, tensor)
    return 0


cdef ParsedInput* add_input(Decoder* decoder) noexcept nogil:
    cdef ParsedInput* added
    added = <ParsedInput*>with_room(decoder.inputs, decoder.few_inputs, decoder.input_count, &decoder.input_capacity,
                                    sizeof(ParsedInput))
    if added == NULL:
        return NULL
    decoder.inputs = added
    added += decoder.input_count
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


cdef int check_members(Decoder* decoder, const ParsedInput* tensor) noexcept nogil:
    if not tensor.seen & SEEN_NAME:
        return fail(decoder, "", "'name' is missing")
    if not tensor.seen & SEEN_SHAPE:
        return fail(decoder, "", "'shape' is missing")
    if not tensor.seen & SEEN_DATATYPE:
        return fail(decoder, "", "'datatype' is missing")
    if tensor.binary_size < 0:
        return 0 if tensor.has_data else fail(decoder, "", "'data' is missing")
    if tensor.has_data:
        return fail(decoder, "", "'data' and 'binary_data_size' are both given")
    if decoder.binary == NULL:
        return fail(decoder, "", "'binary_data_size' needs the header Inference-Header-Content-Length")
    return 0


# Whether the model cannot take the input, whatever its data. The data is then skipped; the signature's error says why.
cdef bint is_refused(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    if decoder.expected != NULL and not tensor.name.escaped:
        tensor.refused = cannot_fit(decoder.expected, decoder.index, tensor.name.at, tensor.name.size,
                                    tensor.datatype_id, tensor.rank, tensor.dims)
    return tensor.refused


# Called after all keys of the input are read, because they come in any order.
cdef int apply_content_type(Decoder* decoder, ParsedInput* tensor) noexcept nogil:
    if tensor.content_type == NOT_A_CONTENT_TYPE:
        return fail(decoder, CONTENT_TYPE_FIELD, "must be a string")
    if tensor.content_type == UNKNOWN_CONTENT_TYPE:
        return fail_text(decoder, CONTENT_TYPE_FIELD, &tensor.content_type_text, "is not a content type")
    if tensor.binary_size >= 0:
        return fail(decoder, CONTENT_TYPE_FIELD, "is base64, which binary data is not")
    return 0 if decoder.keeps_base64 else decode_base64(decoder, tensor)


cdef int read_input_name(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_text(decoder, &(<ParsedInput*>of).name, field, MAX_NAME, "is longer than 4 KiB")


cdef int read_datatype(Decoder* decoder, void* of, const char* field) noexcept nogil:
    cdef ParsedInput* tensor = <ParsedInput*>of
    cdef Text name
    cdef char[MAX_KEY_TEXT] room
    if read_text(decoder, &name, field, MAX_NAME, "is longer than 4 KiB") < 0:
        return -1
    resolve_key(&name, room)
    tensor.datatype_id = from_name(name.at, name.size)
    if tensor.datatype_id < 0:
        if name.at == room:
            return fail(decoder, field, "is not a datatype")
        return fail_text(decoder, field, &name, "is not a datatype")
    return 0


cdef int read_shape(Decoder* decoder, void* of, const char* field) noexcept nogil:
    cdef ParsedInput* tensor = <ParsedInput*>of
    cdef Cursor* cursor = &decoder.cursor
    cdef const char* after
    cdef const char* fault_at
    cdef int64_t dim
    cdef bint first = True
    cdef int more, error
    tensor.rank = 0
    if open_array(decoder, field) < 0:
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
            return fail_quoting(decoder, field, cursor.at,
                                "is out of range" if error == RANGE else "is not an integer", tensor.rank)
        if dim < 0:
            return fail_quoting(decoder, field, cursor.at, "is negative", tensor.rank)
        if tensor.rank == MAX_RANK:
            return fail(decoder, field, "has more than 16 dimensions")
        tensor.dims[tensor.rank] = dim
        tensor.rank += 1
        cursor.at = after
    tensor.count = element_count(tensor.dims, tensor.rank)
    if tensor.count < 0:
        return fail(decoder, field, "has more elements than 64 bits can count")
    return 0


# Decodes the data now if name, shape and datatype are known; else skips it, to return to it later.
cdef int read_input_data(Decoder* decoder, void* of, const char* field) noexcept nogil:
    cdef ParsedInput* tensor = <ParsedInput*>of
    cdef int c = peek(&decoder.cursor)
    if c == OPEN_OBJECT:
        return fail(decoder, field, "must be an array")
    tensor.has_data = True
    if tensor.seen & DESCRIBED == DESCRIBED and not is_refused(decoder, tensor):
        return read_data(decoder, tensor)
    tensor.data_text = decoder.cursor.at
    if c == OPEN_ARRAY:
        return fail_syntax(decoder) if skip_brackets(&decoder.cursor) < 0 else 0
    return skip(decoder, INPUT.depth)


cdef int read_input_parameters(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_object(decoder, &INPUT_PARAMETERS, &(<ParsedInput*>of).seen, of)


cdef int read_binary_size(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_count(decoder, &(<ParsedInput*>of).binary_size, field)


# MLServer's names, those of its runtimes included. All but base64 name the Python type of a tensor.
cdef const char *CONTENT_TYPES[15]
CONTENT_TYPES[:] = [
    "base64", "str", "np", "nplist", "pd", "pd_json", "datetime", "raw", "dict", "hf", "hg_str", "hg_json",
    "hg_jsonlist", "hg_conversation", "pillow_image",
]


cdef int read_content_type(Decoder* decoder, void* of, const char* field) noexcept nogil:
    cdef ParsedInput* tensor = <ParsedInput*>of
    cdef Text name
    cdef char[MAX_KEY_TEXT] room
    cdef int i
    if peek(&decoder.cursor) != QUOTE:
        tensor.content_type = NOT_A_CONTENT_TYPE
        return skip(decoder, 4)
    if take_string(&decoder.cursor, &name) < 0:
        return fail_syntax(decoder)
    tensor.content_type_text = name
    resolve_key(&name, room)
    if name.size == 0:          # MLServer treats it as missing
        return 0
    for i in range(15):
        if strlen(CONTENT_TYPES[i]) == <size_t>name.size and memcmp(name.at, CONTENT_TYPES[i], name.size) == 0:
            if i == 0:
                tensor.content_type = BASE64
            return 0
    tensor.content_type = UNKNOWN_CONTENT_TYPE
    return 0


# --- Outputs ---------------------------------------------------------------------------------------------------------

cdef int read_output(Decoder* decoder) noexcept nogil:
    cdef ParsedOutput* output = add_output(decoder)
    if output == NULL:
        return fail(decoder, "", "", NO_MEMORY)
    if read_object(decoder, &OUTPUT, &output.seen, output) < 0:
        return -1
    return 0 if output.seen & SEEN_NAME else fail(decoder, "", "'name' is missing")


cdef ParsedOutput* add_output(Decoder* decoder) noexcept nogil:
    cdef ParsedOutput* added
    added = <ParsedOutput*>with_room(decoder.outputs, decoder.few_outputs, decoder.output_count,
                                     &decoder.output_capacity, sizeof(ParsedOutput))
    if added == NULL:
        return NULL
    decoder.outputs = added
    added += decoder.output_count
    added.seen = 0
    added.binary = -1
    added.classification = 0
    decoder.output_count += 1
    return added


cdef int read_output_name(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_text(decoder, &(<ParsedOutput*>of).name, field, MAX_NAME, "is longer than 4 KiB")


cdef int read_output_parameters(Decoder* decoder, void* of, const char* field) noexcept nogil:
    return read_object(decoder, &OUTPUT_PARAMETERS, &(<ParsedOutput*>of).seen, of)


cdef int read_is_binary(Decoder* decoder, void* of, const char* field) noexcept nogil:
    cdef int flag = read_flag(decoder, field)
    (<ParsedOutput*>of).binary = flag
    return 0 if flag >= 0 else -1


cdef int read_classification(Decoder* decoder, void* of, const char* field) noexcept nogil:
    cdef ParsedOutput* output = <ParsedOutput*>of
    if read_count(decoder, &output.classification, field, 1) < 0:
        return -1
    return 0 if output.classification <= MAX_CLASSES else fail(decoder, field, "is larger than 10000")


# --- The tables ------------------------------------------------------------------------------------------------------

cdef Object REQUEST, PARAMETERS, INPUT, INPUT_PARAMETERS, OUTPUT, OUTPUT_PARAMETERS

REQUEST.depth = 1
REQUEST.count = 5
REQUEST.members[0] = member("id", SEEN_ID, "'id'", read_id)
REQUEST.members[1] = member("inputs", SEEN_INPUTS, "'inputs'", read_inputs, True)
REQUEST.members[2] = member("outputs", SEEN_OUTPUTS, "'outputs'", read_outputs)
REQUEST.members[3] = member("parameters", SEEN_PARAMETERS, "'parameters'", read_parameters)
REQUEST.members[4] = member("instances", SEEN_INSTANCES, "'instances'", skip_instances)

PARAMETERS.field = "'parameters'"
PARAMETERS.shared_field = "parameters"
PARAMETERS.depth = 2
PARAMETERS.count = 6
PARAMETERS.members[0] = member("timeout", SEEN_TIMEOUT, "parameters.timeout", read_timeout)
PARAMETERS.members[1] = member("priority", SEEN_PRIORITY, "parameters.priority", read_priority)
PARAMETERS.members[2] = member("binary_data_output", SEEN_BINARY_OUTPUT, "parameters.binary_data_output",
                               read_binary_output)
PARAMETERS.members[3] = member("sequence_id", SEEN_SEQUENCE_ID, "parameters.sequence_id", reject_sequence_parameter)
PARAMETERS.members[4] = member("sequence_start", SEEN_SEQUENCE_START, "parameters.sequence_start",
                               reject_sequence_parameter)
PARAMETERS.members[5] = member("sequence_end", SEEN_SEQUENCE_END, "parameters.sequence_end", reject_sequence_parameter)

INPUT.field = ""
INPUT.depth = 3
INPUT.count = 5
INPUT.members[0] = member("name", SEEN_NAME, ".name", read_input_name, True)
INPUT.members[1] = member("shape", SEEN_SHAPE, ".shape", read_shape, True)
INPUT.members[2] = member("datatype", SEEN_DATATYPE, ".datatype", read_datatype, True)
INPUT.members[3] = member("data", SEEN_DATA, ".data", read_input_data)
INPUT.members[4] = member("parameters", SEEN_PARAMETERS, ".parameters", read_input_parameters)

INPUT_PARAMETERS.field = INPUT_PARAMETERS.shared_field = ".parameters"
INPUT_PARAMETERS.depth = 4
INPUT_PARAMETERS.count = 2
INPUT_PARAMETERS.members[0] = member("binary_data_size", SEEN_BINARY_SIZE, ".parameters.binary_data_size",
                                     read_binary_size)
INPUT_PARAMETERS.members[1] = member("content_type", SEEN_CONTENT_TYPE, CONTENT_TYPE_FIELD, read_content_type)

OUTPUT.field = ""
OUTPUT.depth = 3
OUTPUT.count = 2
OUTPUT.members[0] = member("name", SEEN_NAME, ".name", read_output_name, True)
OUTPUT.members[1] = member("parameters", SEEN_PARAMETERS, ".parameters", read_output_parameters)

OUTPUT_PARAMETERS.field = OUTPUT_PARAMETERS.shared_field = ".parameters"
OUTPUT_PARAMETERS.depth = 4
OUTPUT_PARAMETERS.count = 2
OUTPUT_PARAMETERS.members[0] = member("binary_data", SEEN_BINARY, ".parameters.binary_data", read_is_binary)
OUTPUT_PARAMETERS.members[1] = member("classification", SEEN_CLASSIFICATION, ".parameters.classification",
                                      read_classification)
