// The fields of a protobuf message (the page "Encoding" of protobuf's documentation), without what they mean.
//
// Bounded by the message; what is malformed ends it.
#pragma once

#include <cstdint>

namespace fastinfer::proto {

struct Fields {
    const unsigned char* at = nullptr;
    const unsigned char* end = nullptr;
    uint64_t number = 0;                        // of the field that next_field has found
    const unsigned char* content = nullptr;     // its bytes, where it has a length; else nothing
    const unsigned char* content_end = nullptr;
};

static inline Fields open_fields(const unsigned char* begin, const unsigned char* end) {
    Fields fields;
    fields.at = begin;
    fields.end = end;
    return fields;
}

static inline bool read_varint(Fields* fields, uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && fields->at < fields->end; shift += 7) {
        const unsigned char byte = *fields->at++;
        *value |= uint64_t(byte & 0x7F) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

// Goes to the next field; false where there is none.
static inline bool next_field(Fields* fields) {
    uint64_t tag, size;
    if (!read_varint(fields, &tag))
        return false;
    fields->number = tag >> 3;
    fields->content = fields->content_end = fields->at;
    switch (tag & 7) {
        case 0:
            return read_varint(fields, &size);
        case 1:
            size = 8;
            break;
        case 2:
            if (!read_varint(fields, &size))
                return false;
            fields->content = fields->at;
            break;
        case 5:
            size = 4;
            break;
        default:
            return false;
    }
    if (size > uint64_t(fields->end - fields->at))
        return false;
    fields->at += size;
    fields->content_end = (tag & 7) == 2 ? fields->at : fields->content;
    return true;
}

}  // namespace fastinfer::proto
