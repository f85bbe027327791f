# Body -> InferRequest: JSON and binary tensors, in one pass, without a document tree.
#
# Lives here: opening and closing a decoder, and, with the GIL, the records of a request or the ApiError of a failure.
# Does not: reading the text (objects, data), the inputs that a model takes (tensor/signature), HTTP.
#
# The core (objects, data, decoder.pxd) works on C structs and needs no GIL: it runs on the loop's thread for small
# bodies, as a DecodeJob on a native thread for large ones. A decoder owns the tensors' blocks and its two lists;
# `build` hands the blocks over to Tensors, `close_decoder` frees the rest. The body must not change or be freed
# meanwhile.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_CheckExact
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from fastinfer.base.budget cimport Budget, Count, count_of
from fastinfer.codec.decoder cimport (
    COUNT,
    EXTRA,
    FEW,
    IN_INPUT,
    INTERRUPTED,
    IN_REQUEST,
    MAX_QUOTE,
    MORE,
    NO_MEMORY,
    ROW,
    SIZE,
    STRINGS,
    SYNTAX,
    Decoder,
    DecodeError,
    ParsedInput,
    ParsedOutput,
)
from fastinfer.codec.json cimport Text, open_cursor, unescape
from fastinfer.codec.objects cimport read_request
from fastinfer.native.job cimport Interrupt, is_interrupted
from fastinfer.tensor.datatype cimport UINT8, datatype_of
from fastinfer.tensor.expected cimport Expectation, Expected
from fastinfer.tensor.message cimport InferRequest, RequestedOutput
from fastinfer.tensor.tensor cimport Memory, Tensor, allocate_block, free_block

from fastinfer.base.errors import ApiError
from fastinfer.codec import hints

cdef extern from *:
    int64_t load_word "__atomic_load_n" (int64_t* word, int order) noexcept nogil
    enum: RELAXED "__ATOMIC_RELAXED"

cdef enum:
    WIDEST = 512                # bits of a register: no limit
    SMALL_BODY = 16 * 1024      # decoded without releasing the GIL: that costs more than such a body


cdef bytes DATATYPE_FIELD = b".datatype"

# The data pointer of a refused input.
cdef char nothing = 0


# --- A decoder's life ------------------------------------------------------------------------------------------------

# json_size < 0: the whole body is JSON. `views`: the body outlives the request.
cdef void open_decoder(Decoder* decoder, const char* body, Py_ssize_t size, Py_ssize_t json_size, bint views,
                       bint nullable, bint keeps_base64, const Expected* expected, Count* count,
                       const Interrupt* interruption) noexcept nogil:
    open_cursor(&decoder.cursor, body, size if json_size < 0 else json_size)
    decoder.binary = NULL
    if json_size >= 0:
        decoder.binary = body + json_size
    decoder.binary_end = body + size
    decoder.views = views
    decoder.nullable = nullable
    decoder.keeps_base64 = keeps_base64
    decoder.width = WIDEST
    decoder.interruption = interruption
    decoder.count = count
    decoder.expected = expected
    decoder.body_size = size
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
        if decoder.inputs[i].charged > 0:
            decoder.count.release(decoder.inputs[i].charged)
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


# The records of a request that was read without failure. `owner` keeps the body alive if views of it are used; the
# blocks still count in `budget`, whose count the decoder has.
cdef InferRequest build(Decoder* decoder, owner, Budget budget):
    cdef ParsedInput* tensor
    cdef ParsedOutput* output
    cdef list inputs = [None] * decoder.input_count
    cdef list outputs = []
    cdef char* data
    cdef str name
    cdef bint undecoded = False
    cdef InferRequest request
    cdef int i
    for i in range(decoder.input_count):
        tensor = &decoder.inputs[i]
        name = name_of_text(&tensor.name)
        if tensor.refused:
            undecoded = True
            inputs[i] = Tensor.wrap(name, tensor.datatype_id, tensor.rank, tensor.dims, &nothing, 0, None)
        elif tensor.view != NULL:
            inputs[i] = Tensor.wrap(name, tensor.datatype_id, tensor.rank, tensor.dims, <char*>tensor.view,
                                    tensor.nbytes, owner)
        else:
            data = tensor.block
            memory = Memory.adopt(data, tensor.nbytes, budget, tensor.charged)
            tensor.block = NULL
            tensor.charged = 0
            inputs[i] = Tensor.wrap(name, tensor.datatype_id, tensor.rank, tensor.dims, data, tensor.nbytes, memory)
    for i in range(decoder.output_count):
        output = &decoder.outputs[i]
        outputs.append(RequestedOutput(name_of_text(&output.name), output.binary, output.classification))
    if len(outputs) > 1:
        refuse_repeated(outputs)
    request = InferRequest.make(inputs, outputs, decoder.id.at[:decoder.id.size] if decoder.id.size > 0 else b"",
                                decoder.binary_output, decoder.timeout_us, decoder.priority)
    request.undecoded = undecoded
    return request


# For outputs only: whether inputs may share a name depends on the model. A set, so that the work per name does not grow
# with their number: str hashes are keyed.
cdef int refuse_repeated(list outputs) except -1:
    if len(outputs) == 2 and outputs[0].name != outputs[1].name:    # common, and quicker
        return 0
    cdef set names = {output.name for output in outputs}
    if len(names) == len(outputs):
        return 0
    for output in outputs:
        if output.name not in names:
            raise ApiError(400, f"output '{printable(output.name.encode())}' is given twice")
        names.remove(output.name)
    return 0


# --- Failures as errors ----------------------------------------------------------------------------------------------

# A client's text as one line that may stand in a sentence.
cdef str printable(bytes text):
    cut = text[:MAX_QUOTE].decode("utf-8", "ignore" if len(text) > MAX_QUOTE else "replace")
    return "".join([c if c.isprintable() else "?" for c in cut]) + ("..." if len(text) > MAX_QUOTE else "")


cdef str shape_text(const ParsedInput* tensor):
    return "[" + ",".join([str(tensor.dims[i]) for i in range(tensor.rank)]) + "]"


cdef object to_api_error(const Decoder* decoder, str model):
    cdef const DecodeError* failure = &decoder.failure
    cdef const ParsedInput* tensor = NULL
    if failure.kind == NO_MEMORY:
        return no_memory()
    if failure.kind == INTERRUPTED:
        return ApiError(503, "the request was given up", retry_after_s=1)
    if failure.kind == SYNTAX:
        return ApiError(400, f"byte {failure.at}: {failure.text.decode()}{hint_of_start(decoder)}")
    if failure.kind == EXTRA:
        return ApiError(400, f"unexpected additional input data for model '{model}'")
    if failure.place == IN_INPUT:
        tensor = &decoder.inputs[failure.index]
    if failure.kind == SIZE:
        name = printable(name_of_text(&tensor.name).encode())
        expected = int(tensor.count) * int(datatype_of(tensor.datatype_id).itemsize)
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
    if failure.kind == STRINGS:
        return ApiError(413, f"{place}: {failure.got} strings in a body of {decoder.body_size} bytes, too many short "
                             "ones")
    if failure.kind == MORE:
        return ApiError(400, f"{place}: more elements than the {failure.wanted} of the shape {shape_text(tensor)}")
    if failure.kind == ROW:
        return ApiError(400, f"{place}: an array of {plural(failure.got)} where the shape {shape_text(tensor)} "
                             f"asks for {failure.wanted}")
    text = failure.text.decode()
    if failure.quote != NULL:
        quote = printable(failure.quote[:failure.quote_size])
        text = f"{quote} {text}{hints.for_datatype(quote) if failure.field == DATATYPE_FIELD else ''}"
    if place.endswith("'") or (failure.quote == NULL and place and _is_verb(text)):
        return ApiError(400, f"{place} {text}")
    return ApiError(400, f"{place}: {text}")


# For a body that does not begin as JSON does.
cdef str hint_of_start(const Decoder* decoder):
    cdef const char* body = decoder.cursor.begin
    cdef Py_ssize_t size = decoder.cursor.end - body
    begin = body[:min(size, MAX_QUOTE)]
    return hints.for_no_json(begin) if not begin[:decoder.failure.at].strip() else ""


cdef bint _is_verb(str text):
    return text.startswith(("is ", "must ", "has ", "reaches "))


cdef str plural(int64_t count):
    return "1 element" if count == 1 else f"{count} elements"


# --- Entry points for Python ------------------------------------------------------------------------------------------

cdef object owner_of(body):
    # bytes cannot change or move; a memoryview keeps anything else from doing so.
    return body if PyBytes_CheckExact(body) else PyMemoryView_FromObject(body)


# A JSON length of 0: the whole body is the only input's bytes. Only the model's signature knows that input, so the
# tensor has no name, and its datatype and shape are those of bytes.
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


cdef object no_memory():
    return ApiError(503, "out of memory for the request's tensors", retry_after_s=1)


cdef const Expected* expected_of(Expectation expectation) noexcept:
    if expectation is None:
        return NULL
    return &expectation.expected


cdef InferRequest decode_view(const Py_buffer* view, object body, Py_ssize_t json_size, bint stable, str model,
                              bint nullable, bint keeps_base64, Expectation expectation, Budget budget,
                              int width=WIDEST):
    cdef Decoder decoder
    check_json_size(json_size, view.len)
    try:
        if json_size == 0:
            return build_raw(view, body, stable)
        open_decoder(&decoder, <const char*>view.buf, view.len, json_size, stable, nullable, keeps_base64,
                     expected_of(expectation), count_of(budget), NULL)
        decoder.width = width
        try:
            if view.len <= SMALL_BODY:
                read_request(&decoder)
            else:
                with nogil:
                    read_request(&decoder)
            if decoder.failure.is_set:
                raise to_api_error(&decoder, model)
            return build(&decoder, owner_of(body) if stable else None, budget)
        finally:
            close_decoder(&decoder)
    except MemoryError:
        raise no_memory() from None


def decode(body, Py_ssize_t json_size=-1, bint stable=False, str model not None="", bint nullable=False,
           bint keeps_base64=False, int width=WIDEST, Expectation expectation=None, Budget budget=None):
    cdef Py_buffer view
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        return decode_view(&view, body, json_size, stable, model, nullable, keeps_base64, expectation, budget, width)
    finally:
        PyBuffer_Release(&view)


cdef void run_decoder(void* state) noexcept nogil:
    cdef Decoder* decoder = <Decoder*>state
    if not is_interrupted(decoder.interruption):
        read_request(decoder)


cdef void do_nothing(void* state) noexcept nogil:
    pass


# The collector would drop the buffer's owner without releasing the buffer.
@cython.no_gc_clear
@cython.final
cdef class DecodeJob(Job):
    def __cinit__(self, body, Py_ssize_t json_size=-1, str model not None="", bint nullable=False,
                  bint keeps_base64=False, Expectation expectation=None, Budget budget=None):
        self.expectation = expectation
        self.budget = budget
        PyObject_GetBuffer(body, &self.body, PyBUF_SIMPLE)
        self.has_body = True
        check_json_size(json_size, self.body.len)
        self.model = model
        self.raw = json_size == 0
        open_decoder(&self.decoder, <const char*>self.body.buf, self.body.len, json_size, True, nullable,
                     keeps_base64, expected_of(expectation), count_of(budget), &self.interruption)
        self.task.work = do_nothing if self.raw else run_decoder
        self.task.state = &self.decoder

    def __dealloc__(self):
        if self.has_body:
            if self.decoder.inputs != NULL:
                close_decoder(&self.decoder)
            PyBuffer_Release(&self.body)

    cdef int64_t timeout_us(self) noexcept:
        # An aligned word, written once by the native thread.
        return max(0, load_word(&self.decoder.timeout_us, RELAXED))

    def result(self):
        self.take_result()
        body = <object>self.body.obj
        if self.raw:
            return build_raw(&self.body, body, True)
        try:
            if self.decoder.failure.is_set:
                raise to_api_error(&self.decoder, self.model)
            return build(&self.decoder, owner_of(body), self.budget)
        except MemoryError:
            raise no_memory() from None
        finally:
            close_decoder(&self.decoder)
            self.has_body = False
            PyBuffer_Release(&self.body)    # now, because the job may outlive the answer's encoding
