// The functions that read a span of elements of each datatype, on this CPU or on any.
#pragma once

#include "fastinfer/number/simd/wide.h"

namespace fastinfer::number {

struct Reader;
typedef NumberSpan (*SpanFunction)(Reader* reader, const char* at, const char* end, char* memory, int64_t limit,
                                   int64_t room);

// Reads the rows of one array, from the first to the last.
struct Reader {
    SpanFunction read;
    const char* begin;  // of the text: nothing before it is read
#if defined(FASTINFER_WIDE)
    WideReader wide;
#endif
};

template <class Element>
static NumberSpan read_span_portable(Reader*, const char* at, const char* end, char* memory, int64_t limit, int64_t) {
    return parse_span<Element>(at, end, memory, limit);
}

template <class Element>
static NumberSpan read_span_wide(Reader* reader, const char* at, const char* end, char* memory, int64_t limit,
                                 int64_t room) {
#if defined(FASTINFER_WIDE)
    return parse_span_wide<Element>(&reader->wide, reader->begin, at, end, memory, limit, room);
#else
    return read_span_portable<Element>(reader, at, end, memory, limit, room);
#endif
}

constexpr int SPANS = 13;

// By datatype id (tensor/datatype.pxd): BOOL, UINT8 .. UINT64, INT8 .. INT64, FP16, BF16, FP32, FP64.
static constexpr SpanFunction PORTABLE_SPANS[SPANS] = {
    read_span_portable<BoolElement>,
    read_span_portable<IntegerElement<uint8_t>>,
    read_span_portable<IntegerElement<uint16_t>>,
    read_span_portable<IntegerElement<uint32_t>>,
    read_span_portable<IntegerElement<uint64_t>>,
    read_span_portable<IntegerElement<int8_t>>,
    read_span_portable<IntegerElement<int16_t>>,
    read_span_portable<IntegerElement<int32_t>>,
    read_span_portable<IntegerElement<int64_t>>,
    read_span_portable<BinaryElement<Binary16>>,
    read_span_portable<BinaryElement<BFloat16>>,
    read_span_portable<BinaryElement<Binary32>>,
    read_span_portable<BinaryElement<Binary64>>,
};
static constexpr SpanFunction WIDE_SPANS[SPANS] = {
    read_span_portable<BoolElement>,          read_span_wide<IntegerElement<uint8_t>>,
    read_span_wide<IntegerElement<uint16_t>>, read_span_wide<IntegerElement<uint32_t>>,
    read_span_wide<IntegerElement<uint64_t>>, read_span_wide<IntegerElement<int8_t>>,
    read_span_wide<IntegerElement<int16_t>>,  read_span_wide<IntegerElement<int32_t>>,
    read_span_wide<IntegerElement<int64_t>>,  read_span_wide<BinaryElement<Binary16>>,
    read_span_wide<BinaryElement<BFloat16>>,  read_span_wide<BinaryElement<Binary32>>,
    read_span_wide<BinaryElement<Binary64>>,
};

// The same for the floating-point types, from FP16 on, with null for NaN.
constexpr int FIRST_FLOAT = 9;
static constexpr SpanFunction NULLABLE_PORTABLE_SPANS[SPANS - FIRST_FLOAT] = {
    read_span_portable<NullableElement<Binary16>>,
    read_span_portable<NullableElement<BFloat16>>,
    read_span_portable<NullableElement<Binary32>>,
    read_span_portable<NullableElement<Binary64>>,
};
static constexpr SpanFunction NULLABLE_WIDE_SPANS[SPANS - FIRST_FLOAT] = {
    read_span_wide<NullableElement<Binary16>>,
    read_span_wide<NullableElement<BFloat16>>,
    read_span_wide<NullableElement<Binary32>>,
    read_span_wide<NullableElement<Binary64>>,
};

// The widest registers of this CPU that are of use here, in bits; 0: what any CPU has.
static inline int find_width() {
#if defined(FASTINFER_EMULATED)
    return 512;
#elif defined(FASTINFER_WIDE)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2") ||
        !__builtin_cpu_supports("lzcnt") || !__builtin_cpu_supports("popcnt"))
        return 0;
    const bool wider = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512vbmi2");
    return wider ? 512 : 256;
#else
    return 0;
#endif
}

// `width`: no wider registers than these are used. `nullable`: null is a floating-point number, NaN.
static inline void open_reader(Reader* reader, const char* begin, int datatype_id, int width, bool nullable) {
    static const int widest = find_width();
    if (width > widest)
        width = widest;
    reader->begin = begin;
    if (nullable && datatype_id >= FIRST_FLOAT)
        reader->read = (width >= 256 ? NULLABLE_WIDE_SPANS : NULLABLE_PORTABLE_SPANS)[datatype_id - FIRST_FLOAT];
    else
        reader->read = (width >= 256 ? WIDE_SPANS : PORTABLE_SPANS)[datatype_id];
#if defined(FASTINFER_WIDE)
    open_wide(&reader->wide, width >= 512 ? &VECTORS_512 : &VECTORS_256, begin);
#endif
}

// Reads elements from `at` (not at a closing bracket) until one is not followed by a comma, at most `limit` of them.
// Elements of later rows may be written after them; `room` is the room for all rows together.
static inline NumberSpan read_span(Reader* reader, const char* at, const char* end, char* memory, int64_t limit,
                                   int64_t room) {
    return reader->read(reader, at, end, memory, limit, room);
}

// After a row that `read_span` has read, and its closing bracket: takes later rows of `size` elements that it has read
// ahead, at most `limit` of them. Returns how many; `*at` is then after the last one's closing bracket.
static inline int64_t take_rows(Reader* reader, const char** at, int64_t size, int64_t limit) {
#if defined(FASTINFER_WIDE)
    return take_rows_wide(&reader->wide, at, size, limit);
#else
    return 0;
#endif
}

}  // namespace fastinfer::number
