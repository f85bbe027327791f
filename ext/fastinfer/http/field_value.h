// The bytes that the value of a header field may have (RFC 9110): no control characters but the tabulator.
#pragma once

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace fastinfer {

inline bool is_field_value(const char* at, const char* end) {
#ifdef __SSE2__
    const __m128i tab = _mm_set1_epi8('\t'), del = _mm_set1_epi8(0x7f), last_control = _mm_set1_epi8(0x1f);
    for (; end - at >= 16; at += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, last_control), bytes);  // unsigned: bytes <= 0x1f
        const __m128i wrong =
            _mm_or_si128(_mm_andnot_si128(_mm_cmpeq_epi8(bytes, tab), control), _mm_cmpeq_epi8(bytes, del));
        if (_mm_movemask_epi8(wrong) != 0)
            return false;
    }
#endif
    for (; at < end; at++) {
        const auto byte = static_cast<unsigned char>(*at);
        if ((byte < 0x20 && byte != '\t') || byte == 0x7f)
            return false;
    }
    return true;
}

}  // namespace fastinfer
