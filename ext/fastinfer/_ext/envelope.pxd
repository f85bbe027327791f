# The objects of a request's JSON, outermost first: request, inputs, outputs, and their parameters.

from fastinfer._ext.decoder cimport Decoder

# Reads the whole body; the decoder has been opened.
cdef int read_request(Decoder* decoder) noexcept nogil
