# The classification extension: the largest elements of an output, each as "value:index" or "value:index:label".
#
# Computes the k largest elements of each row of one output, as text; the request says which outputs and how many. The
# work is a Ranking (tensor/top_k.h), which needs no GIL; the encoder runs it.
# Does not live here: JSON, and where label files are. Any thread; a Classification owns its text and borrows the
# scores.

cimport cython
from libc.string cimport memchr

from fastinfer.native.job cimport Interrupt
from fastinfer.tensor.datatype cimport BYTES, DATATYPE_COUNT, name_of
from fastinfer.tensor.tensor cimport Tensor, element_count

from fastinfer.base.errors import ApiError

cdef extern from "fastinfer/tensor/top_k.h" namespace "fastinfer::classes" nogil:
    int rank_uint8 "fastinfer::classes::rank<fastinfer::classes::Plain<uint8_t>>"(Ranking&, const Interrupt*) noexcept
    int rank_uint16 "fastinfer::classes::rank<fastinfer::classes::Plain<uint16_t>>"(Ranking&, const Interrupt*) noexcept
    int rank_uint32 "fastinfer::classes::rank<fastinfer::classes::Plain<uint32_t>>"(Ranking&, const Interrupt*) noexcept
    int rank_uint64 "fastinfer::classes::rank<fastinfer::classes::Plain<uint64_t>>"(Ranking&, const Interrupt*) noexcept
    int rank_int8 "fastinfer::classes::rank<fastinfer::classes::Plain<int8_t>>"(Ranking&, const Interrupt*) noexcept
    int rank_int16 "fastinfer::classes::rank<fastinfer::classes::Plain<int16_t>>"(Ranking&, const Interrupt*) noexcept
    int rank_int32 "fastinfer::classes::rank<fastinfer::classes::Plain<int32_t>>"(Ranking&, const Interrupt*) noexcept
    int rank_int64 "fastinfer::classes::rank<fastinfer::classes::Plain<int64_t>>"(Ranking&, const Interrupt*) noexcept
    int rank_fp16 "fastinfer::classes::rank<fastinfer::classes::Half>"(Ranking&, const Interrupt*) noexcept
    int rank_bf16 "fastinfer::classes::rank<fastinfer::classes::Brain>"(Ranking&, const Interrupt*) noexcept
    int rank_fp32 "fastinfer::classes::rank<fastinfer::classes::Plain<float>>"(Ranking&, const Interrupt*) noexcept
    int rank_fp64 "fastinfer::classes::rank<fastinfer::classes::Plain<double>>"(Ranking&, const Interrupt*) noexcept

ctypedef int (*RankFunction)(Ranking&, const Interrupt*) noexcept nogil

# The ranking function of each datatype, by its id; NULL if its elements have no order.
cdef RankFunction[DATATYPE_COUNT] RANKS = [
    NULL, rank_uint8, rank_uint16, rank_uint32, rank_uint64, rank_int8, rank_int16, rank_int32, rank_int64,
    rank_fp16, rank_bf16, rank_fp32, rank_fp64, NULL,
]

cdef enum:
    CLASS_EFFORT = 32       # the cost of a class, in bytes of elements
    MAX_LABELS = 1000000
    MAX_LABEL_BYTES = 1024  # each is repeated in an answer as often as its class is


cdef int check_rankable(str name, int datatype_id) except -1:
    if RANKS[datatype_id] == NULL:
        raise ApiError(400, f"class result not available for output '{name}' due to unsupported type "
                            f"'{name_of(datatype_id)}'")
    return 0


@cython.final
cdef class Labels:
    def __init__(self, str text not None):
        cdef const char* begin
        cdef const char* at
        cdef const char* end
        cdef const char* following
        cdef int64_t too_long = 0
        if text and not text.endswith("\n"):
            text += "\n"
        self._text = text.encode()
        begin = at = self._text
        end = begin + len(self._text)
        with nogil:
            self._starts.clear()
            self._starts.push_back(0)
            while at < end and <int64_t>self._starts.size() <= MAX_LABELS + 1:
                following = <const char*>memchr(at, c'\n', end - at) + 1
                if following - at > MAX_LABEL_BYTES + 1:
                    too_long = self._starts.size()
                    break
                at = following
                self._starts.push_back(at - begin)
        if too_long:
            raise ValueError(f"line {too_long}: is longer than {MAX_LABEL_BYTES // 1024} KiB")
        if <int64_t>self._starts.size() - 1 > MAX_LABELS:
            raise ValueError(f"line {MAX_LABELS + 1}: is one more than there may be")
        self.lines.text = begin
        self.lines.starts = self._starts.data()
        self.lines.count = <int64_t>self._starts.size() - 1

    def __len__(self):
        return self.lines.count


@cython.no_gc_clear         # the budget is needed at the end
@cython.final
cdef class Classification:
    def __dealloc__(self):
        if self.ranking.charged > 0:
            self.budget.count.release(self.ranking.charged)

    def __init__(self, Tensor scores not None, int64_t wanted, *, bint batched=False, Labels labels=None):
        cdef Ranking* ranking = &self.ranking
        cdef int first = 1 if batched else 0
        cdef int64_t width
        check_rankable(scores.name, scores.datatype_id)
        if wanted < 1 or (batched and scores.rank == 0):
            raise ValueError(f"no {wanted} classes of {scores}")
        width = element_count(scores.dims + first, scores.rank - first)
        if width < 0:
            width = wanted      # past int64, because there are no rows
        ranking.rank = RANKS[scores.datatype_id]
        ranking.data = scores.data
        ranking.rows = scores.dims[0] if batched else 1
        ranking.width = width
        ranking.wanted = min(wanted, width)
        if labels is not None:
            self._labels = labels
            ranking.labels = labels.lines
        self.rank = 2 if batched else 1
        self.dims[0] = ranking.rows
        self.dims[self.rank - 1] = ranking.wanted

    cdef int64_t effort(self) noexcept:
        return self.ranking.rows * (self.ranking.width + self.ranking.wanted * CLASS_EFFORT)

    cdef Tensor result(self, str name):
        cdef string* text = &self.ranking.text
        return Tensor.wrap(name, BYTES, self.rank, self.dims, <char*>text.data(), text.size(), self)
