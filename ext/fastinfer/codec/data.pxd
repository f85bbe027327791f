from fastinfer.codec.decoder cimport Decoder, ParsedInput

# Reads "data" at its opening bracket; the tensor's shape and datatype are known.
cdef int read_data(Decoder* decoder, ParsedInput* tensor) noexcept nogil
# Decodes the elements of a BYTES tensor, which are base64 text, in place.
cdef int decode_base64(Decoder* decoder, ParsedInput* tensor) noexcept nogil
# Reads all binary tensors, after the JSON.
cdef int read_binary(Decoder* decoder) noexcept nogil
