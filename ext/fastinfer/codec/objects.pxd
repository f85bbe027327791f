from fastinfer.codec.decoder cimport Decoder

# Reads the whole body; the decoder has been opened.
cdef int read_request(Decoder* decoder) noexcept nogil
