# InferResponse -> text, straight from the outputs' memory.
#
# Lives here: the plan of an answer (plain C structs, borrowed from the response's tensors), and writing it. Does not:
# the choice of outputs (tensor/signature), HTTP.
#
# A plan is made with the GIL; writing it needs none: on the loop's thread for small answers, as an EncodeJob on a
# native thread for large ones. The plan owns one block, of the most that the text can take, so that the loops over
# elements need no checks; it becomes the memory of the answer.

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastinfer.base.budget cimport Budget, count_of
from fastinfer.base.debug cimport invariant
from fastinfer.codec.json cimport MAX_ESCAPED, Writer, escaped_size, put, put_escaped
from fastinfer.native.job cimport Interrupt, yield_to_loop, is_interrupted
from fastinfer.tensor.datatype cimport BYTES, DATATYPE_COUNT, datatype_of
from fastinfer.tensor.message cimport InferResponse
from fastinfer.tensor.tensor cimport Memory, Tensor, allocate_block, free_block
from fastinfer.tensor.top_k cimport GIVEN_UP, MAX_CLASSES_TEXT, RANKED, TOO_LONG, Classification, Ranking

from fastinfer.base.errors import ApiError

cdef extern from "fastinfer/number/format.h" namespace "fastinfer::number" nogil:
    enum Nonfinite "fastinfer::number::Nonfinite":
        NONFINITE_LITERAL "fastinfer::number::NONFINITE_LITERAL"
        NONFINITE_NULL "fastinfer::number::NONFINITE_NULL"
        NONFINITE_ERROR "fastinfer::number::NONFINITE_ERROR"
    int MAX_BINARY_TEXT "fastinfer::number::MAX_BINARY_TEXT"
    int MAX_INTEGER_TEXT "fastinfer::number::MAX_INTEGER_TEXT"
    char* format_signed(int64_t number, char* out) noexcept
    char* write_bool "fastinfer::number::format_bool_span"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_uint8 "fastinfer::number::format_integer_span<uint8_t>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_uint16 "fastinfer::number::format_integer_span<uint16_t>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_uint32 "fastinfer::number::format_integer_span<uint32_t>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_uint64 "fastinfer::number::format_integer_span<uint64_t>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_int8 "fastinfer::number::format_integer_span<int8_t>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_int16 "fastinfer::number::format_integer_span<int16_t>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_int32 "fastinfer::number::format_integer_span<int32_t>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_int64 "fastinfer::number::format_integer_span<int64_t>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_fp16 "fastinfer::number::format_binary_span<fastinfer::number::Binary16>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_bf16 "fastinfer::number::format_binary_span<fastinfer::number::BFloat16>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_fp32 "fastinfer::number::format_binary_span<fastinfer::number::Binary32>"(
        const char*, int64_t, int, char*, int64_t*) noexcept
    char* write_fp64 "fastinfer::number::format_binary_span<fastinfer::number::Binary64>"(
        const char*, int64_t, int, char*, int64_t*) noexcept

ctypedef char* (*SpanFunction)(const char*, int64_t, int, char*, int64_t*) noexcept nogil

# The functions that write the elements of each datatype, by its id; `put_strings` writes BYTES.
cdef SpanFunction[DATATYPE_COUNT] SPAN_WRITERS = [
    write_bool, write_uint8, write_uint16, write_uint32, write_uint64, write_int8, write_int16, write_int32,
    write_int64, write_fp16, write_bf16, write_fp32, write_fp64, NULL,
]
# The longest text of an element and its comma: false / 255 / 65535 / 4294967295 / 18446744073709551615 /
# -128 / -32768 / -2147483648 / -9223372036854775808 / -0.00012344 / -1234000000000000.0 (twice) /
# -2.2250738585072014e-308
cdef int[DATATYPE_COUNT] MAX_TEXT = [6, 4, 6, 11, 21, 5, 7, 12, 21, 14, 21, 21, 25, 0]

cdef enum:
    SLACK = 64              # bytes that a loop may touch after its last element (number/format.h's MAX_*)
    SMALL_ANSWER = 16 * 1024    # bytes of tensors encoded without releasing the GIL
    YIELD_EVERY = 4096      # numbers written between two yields to the loop: some 40 us
    YIELD_EVERY_BYTES = 32 * 1024   # the same in bytes of strings
    RESERVED_AHEAD = 64 * 1024      # bytes; a text of fewer is reserved at once

    DONE = 0
    NO_MEMORY = 1
    NOT_FINITE = 2
    BROKEN_BYTES = 3        # a BYTES tensor whose lengths do not add up
    LONG_CLASSES = 4        # more text of classes than an answer may have
    INTERRUPTED = 5         # the job was cancelled

LITERAL = NONFINITE_LITERAL
globals()["NULL"] = NONFINITE_NULL      # in Cython itself NULL is the null pointer
ERROR = NONFINITE_ERROR


# --- Sizes -----------------------------------------------------------------------------------------------------------

# The upper bound of the size of a tensor's "data"; -1 if a BYTES tensor is broken.
cdef Py_ssize_t data_size(const PlannedOutput* output) noexcept nogil:
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t total = SLACK
    cdef uint32_t size
    if output.datatype_id != BYTES:
        return output.count * MAX_TEXT[output.datatype_id] + SLACK
    for _ in range(output.count):
        if output.nbytes - at < 4:
            return -1
        memcpy(&size, output.data + at, 4)
        if <int64_t>size > output.nbytes - at - 4:
            return -1
        total += escaped_size(output.data + at + 4, size) + 3
        at += 4 + <Py_ssize_t>size
    return total if at == output.nbytes else -1


# The upper bound of the whole text's size; -1 with plan.failure set.
cdef Py_ssize_t text_size(Plan* plan) noexcept nogil:
    cdef Py_ssize_t total = 128 + plan.id_size
    cdef Py_ssize_t data = 0
    cdef Py_ssize_t size
    cdef Py_ssize_t i
    cdef const PlannedOutput* output
    total += MAX_ESCAPED * (plan.model_name_size + plan.model_version_size)
    for i in range(plan.output_count):
        output = &plan.outputs[i]
        # Keys and punctuation are 92 bytes; a dimension or a size has 19 digits and a comma.
        total += 128 + MAX_ESCAPED * output.name_size + (output.rank + 1) * 20 + SLACK
        if not output.binary:
            size = data_size(output)
            if size < 0:
                plan.failure = BROKEN_BYTES
                plan.failed_output = i
                return -1
            data += size
    plan.around_data = total
    plan.most_text = total + data
    return total + data


# Reserves memory for the text so far and `ahead` bytes of elements. Text is reserved as it grows, because the bound of
# numbers is several times their usual size, and pages without text do not exist.
cdef bint reserve_text(Plan* plan, int64_t ahead) noexcept nogil:
    cdef int64_t needed = plan.writer.at - plan.writer.begin + plan.around_data + ahead
    if plan.count == NULL or min(needed, plan.most_text) <= plan.charged:
        return True
    needed = min(needed + RESERVED_AHEAD, plan.most_text)
    if not plan.count.reserve(needed - plan.charged):
        plan.failure = NO_MEMORY
        return False
    plan.charged = needed
    return True


# --- Text ------------------------------------------------------------------------------------------------------------

cdef void put_quoted(Writer* writer, const char* text, Py_ssize_t size) noexcept nogil:
    put(writer, '"', 1)
    put_escaped(writer, text, size)
    put(writer, '"', 1)


cdef int put_strings(Plan* plan, const PlannedOutput* output) noexcept nogil:
    cdef Writer* writer = &plan.writer
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t piece = 0       # where it began
    cdef uint32_t size
    cdef int64_t i
    for i in range(output.count):
        memcpy(&size, output.data + at, 4)
        if i > 0:
            put(writer, ",", 1)
        if not reserve_text(plan, MAX_ESCAPED * <int64_t>size + 3):
            return -1
        put_quoted(writer, output.data + at + 4, size)
        at += 4 + <Py_ssize_t>size
        if at - piece >= YIELD_EVERY_BYTES:
            piece = at
            if not yield_to_loop(plan.interruption):
                plan.failure = INTERRUPTED
                return -1
    return 0


cdef int put_numbers(Plan* plan, Py_ssize_t index) noexcept nogil:
    cdef const PlannedOutput* output = &plan.outputs[index]
    cdef Writer* writer = &plan.writer
    cdef Py_ssize_t itemsize = datatype_of(output.datatype_id).itemsize
    cdef int64_t done = 0
    cdef int64_t count, fault
    while True:
        count = min(output.count - done, <int64_t>YIELD_EVERY)
        if not reserve_text(plan, count * MAX_TEXT[output.datatype_id] + SLACK):
            return -1
        writer.at = SPAN_WRITERS[output.datatype_id](output.data + done * itemsize, count, plan.nonfinite, writer.at,
                                                     &fault)
        if fault >= 0:
            plan.failure = NOT_FINITE
            plan.failed_output = index
            plan.failed_element = done + fault
            return -1
        done += count
        if done == output.count:
            return 0
        put(writer, ",", 1)
        if not yield_to_loop(plan.interruption):
            plan.failure = INTERRUPTED
            return -1


cdef int put_output(Plan* plan, Py_ssize_t index) noexcept nogil:
    cdef const PlannedOutput* output = &plan.outputs[index]
    cdef Writer* writer = &plan.writer
    cdef int i
    put(writer, '{"name":', 8)
    put_quoted(writer, output.name, output.name_size)
    put(writer, ',"datatype":"', 13)
    put(writer, datatype_of(output.datatype_id).name, datatype_of(output.datatype_id).name_size)
    put(writer, '","shape":[', 11)
    for i in range(output.rank):
        if i > 0:
            put(writer, ",", 1)
        writer.at = format_signed(output.dims[i], writer.at)
    if output.binary:
        put(writer, '],"parameters":{"binary_data_size":', 35)
        writer.at = format_signed(output.nbytes, writer.at)
        put(writer, "}}", 2)
        return 0
    put(writer, '],"data":[', 10)
    if output.datatype_id == BYTES:
        if put_strings(plan, output) < 0:
            return -1
    elif put_numbers(plan, index) < 0:
        return -1
    put(writer, "]}", 2)
    return 0


cdef int rank_output(Plan* plan, Ranking* ranking) noexcept nogil:
    cdef int64_t most = ranking.most_text()
    cdef int64_t before = ranking.text.size()       # of an earlier plan
    cdef int64_t made
    cdef int outcome
    if plan.count != NULL:
        if not plan.count.reserve(most):
            return NO_MEMORY
    outcome = ranking.run(plan.interruption)
    if plan.count != NULL:
        made = <int64_t>ranking.text.size() - before
        ranking.charged += made         # its Classification releases them
        plan.count.release(most - made)
    if outcome == RANKED:
        return DONE
    return LONG_CLASSES if outcome == TOO_LONG else INTERRUPTED if outcome == GIVEN_UP else NO_MEMORY


# Computes the classes of outputs for which they are requested; those are written as BYTES.
cdef int rank_outputs(Plan* plan) noexcept nogil:
    cdef PlannedOutput* output
    cdef Py_ssize_t i
    for i in range(plan.output_count):
        output = &plan.outputs[i]
        if output.ranking != NULL:
            plan.failure = rank_output(plan, output.ranking)
            if plan.failure != DONE:
                plan.failed_output = i
                return -1
            output.data = output.ranking.text.data()
            output.nbytes = output.ranking.text.size()
    return 0


cdef void run_plan(void* state) noexcept nogil:
    cdef Plan* plan = <Plan*>state
    cdef Writer* writer = &plan.writer
    cdef Py_ssize_t size
    cdef Py_ssize_t i
    if is_interrupted(plan.interruption):
        plan.failure = INTERRUPTED
        return
    if plan.ranked and rank_outputs(plan) < 0:
        return
    size = text_size(plan)
    if size < 0:
        return
    writer.at = writer.begin        # NULL
    if not reserve_text(plan, 0):
        return
    writer.begin = allocate_block(size)
    if writer.begin == NULL:
        plan.failure = NO_MEMORY
        return
    writer.end = writer.begin + size
    writer.at = writer.begin
    put(writer, '{"model_name":', 14)
    put_quoted(writer, plan.model_name, plan.model_name_size)
    put(writer, ',"model_version":', 17)
    put_quoted(writer, plan.model_version, plan.model_version_size)
    if plan.id_size > 0:
        put(writer, ',"id":"', 7)
        put(writer, plan.id, plan.id_size)      # still escaped, as it was sent
        put(writer, '"', 1)
    put(writer, ',"outputs":[', 12)
    for i in range(plan.output_count):
        if i > 0:
            put(writer, ",", 1)
        if put_output(plan, i) < 0:
            return
    put(writer, "]}", 2)


# --- Plans: with the GIL ---------------------------------------------------------------------------------------------

cdef int open_plan(Plan* plan, InferResponse response, int nonfinite, Budget budget,
                   const Interrupt* interruption) except -1:
    cdef PlannedOutput* planned
    cdef Tensor tensor
    cdef Py_ssize_t i
    plan.writer.begin = NULL
    plan.outputs = NULL
    plan.failure = DONE
    plan.interruption = interruption
    plan.count = count_of(budget)
    plan.charged = 0
    plan.nonfinite = nonfinite
    plan.model_name = PyUnicode_AsUTF8AndSize(response.model_name, &plan.model_name_size)
    plan.model_version = PyUnicode_AsUTF8AndSize(response.model_version, &plan.model_version_size)
    plan.id = PyBytes_AS_STRING(response.id)
    plan.id_size = PyBytes_GET_SIZE(response.id)
    plan.output_count = len(response.outputs)
    plan.outputs = plan.few_outputs
    if plan.output_count > FEW_OUTPUTS:
        plan.outputs = <PlannedOutput*>calloc(plan.output_count, sizeof(PlannedOutput))
        if plan.outputs == NULL:
            raise MemoryError
    for i in range(plan.output_count):
        tensor = <Tensor?>response.outputs[i]
        planned = &plan.outputs[i]
        planned.name = PyUnicode_AsUTF8AndSize(tensor.name, &planned.name_size)
        planned.datatype_id = tensor.datatype_id
        planned.rank = tensor.rank
        planned.dims = tensor.dims
        planned.count = tensor.count
        planned.data = tensor.data
        planned.nbytes = tensor.nbytes
        planned.binary = bool(response.binary[i]) if response.binary else False
    plan.ranked = response.classes is not None
    if plan.ranked:
        plan_classes(plan, response.classes, budget)
    return 0


cdef int plan_classes(Plan* plan, tuple classes, Budget budget) except -1:
    cdef PlannedOutput* planned
    cdef Classification wanted
    cdef Py_ssize_t i
    for i in range(plan.output_count):
        planned = &plan.outputs[i]
        planned.ranking = NULL
        wanted = classes[i]
        if wanted is not None:
            wanted.budget = budget
            planned.ranking = &wanted.ranking
            planned.datatype_id = BYTES
            planned.rank = wanted.rank
            planned.dims = wanted.dims
            planned.count = wanted.ranking.rows * wanted.ranking.wanted
    return 0


cdef void close_plan(Plan* plan) noexcept:
    if plan.writer.begin != NULL:
        free_block(plan.writer.begin)
        plan.writer.begin = NULL
    if plan.charged > 0:
        plan.count.release(plan.charged)
        plan.charged = 0
    if plan.outputs != plan.few_outputs:
        free(plan.outputs)
    plan.outputs = NULL


# Takes the text over from the plan.
cdef Encoded finish_plan(Plan* plan, InferResponse response, Budget budget):
    cdef Encoded encoded
    cdef Py_ssize_t i
    if plan.failure == NO_MEMORY:
        raise ApiError(503, "out of memory for the answer", retry_after_s=1)
    if plan.failure == INTERRUPTED:
        raise ApiError(503, "the request was given up", retry_after_s=1)
    if plan.failure == LONG_CLASSES:
        raise ApiError(400, f"outputs[{plan.failed_output}]: its classes have more than {MAX_CLASSES_TEXT} bytes of "
                            "text")
    if plan.failure == NOT_FINITE:
        raise ApiError(500, f"outputs[{plan.failed_output}].data[{plan.failed_element}]: the model answered with a "
                            "value that is not finite, which JSON cannot hold")
    if plan.failure == BROKEN_BYTES:
        raise ApiError(500, f"outputs[{plan.failed_output}]: the model answered with a broken BYTES tensor")
    encoded = Encoded.__new__(Encoded)
    encoded.json_size = plan.writer.at - plan.writer.begin
    encoded.size = encoded.json_size
    if plan.charged > 0:
        invariant(plan.charged >= encoded.json_size, "the text of an answer is reserved")
        plan.count.release(plan.charged - encoded.json_size)
        plan.charged = encoded.json_size
    encoded._memory = Memory.adopt(plan.writer.begin, encoded.json_size, budget, plan.charged)
    plan.writer.begin = NULL
    plan.charged = 0
    for i in range(plan.output_count):
        if plan.outputs[i].binary:
            if encoded._tensors is None:
                encoded._tensors = []
            encoded._tensors.append(sent_tensor(response, i))
            encoded.size += plan.outputs[i].nbytes
    encoded.binary = encoded._tensors is not None
    return encoded


cdef Tensor sent_tensor(InferResponse response, Py_ssize_t i):
    cdef Tensor tensor = response.outputs[i]
    cdef Classification wanted = response.classes[i] if response.classes is not None else None
    return tensor if wanted is None else wanted.result(tensor.name)


cdef int64_t classes_effort(InferResponse response) except -1:
    cdef Classification wanted
    cdef int64_t effort = 0
    for wanted in response.classes:
        if wanted is not None:
            effort += wanted.effort()
    return effort


@cython.no_gc
@cython.freelist(8)
@cython.final
cdef class Encoded:
    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self._memory.data, self.json_size, 1, flags)

    def parts(self):
        return [memoryview(self), *(self._tensors or ())]


def encode(InferResponse response not None, int nonfinite=NONFINITE_LITERAL, Budget budget=None):
    return encode_response(response, nonfinite, budget)


cdef Encoded encode_response(InferResponse response, int nonfinite, Budget budget):
    cdef Plan plan
    cdef Py_ssize_t nbytes = 0
    cdef Tensor tensor
    try:
        open_plan(&plan, response, nonfinite, budget, NULL)
        for tensor in response.outputs:
            nbytes += tensor.nbytes
        if plan.ranked:
            nbytes += classes_effort(response)
        if nbytes <= SMALL_ANSWER:
            run_plan(&plan)
        else:
            with nogil:
                run_plan(&plan)
        return finish_plan(&plan, response, budget)
    finally:
        close_plan(&plan)


@cython.final
cdef class EncodeJob(Job):
    def __cinit__(self, InferResponse response not None, int nonfinite=NONFINITE_LITERAL, Budget budget=None):
        self.response = response
        self.budget = budget
        open_plan(&self.plan, response, nonfinite, budget, &self.interruption)
        self.task.work = run_plan
        self.task.state = &self.plan

    def __dealloc__(self):
        close_plan(&self.plan)

    def result(self):
        self.take_result()
        return finish_plan(&self.plan, self.response, self.budget)
