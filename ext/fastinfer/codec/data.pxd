from fastinfer.codec.decoder cimport Decoder, ParsedInput

# "data" at its opening bracket; the tensor's shape and datatype are known.
cdef int read_data(Decoder* decoder, ParsedInput* tensor) noexcept nogil
# The elements of BYTES that were read are base64 text: decodes them where they lie.
cdef int decode_base64(Decoder* decoder, ParsedInput* tensor) noexcept nogil
# All binary tensors, once the JSON has been read.
cdef int read_binary(Decoder* decoder) noexcept nogil
