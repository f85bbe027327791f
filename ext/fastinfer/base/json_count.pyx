# Counts the values and the depth of a JSON text before a parser makes Python objects of it.
#
# Lives here: one pass over strings, commas and brackets, without the GIL. Does not: validation, which is the parser's.
# Any thread; the text belongs to the caller and must not change meanwhile.

cdef Count count(const unsigned char* at, const unsigned char* end) noexcept nogil:
    cdef Count found
    cdef Py_ssize_t depth = 0
    found.values = 1 if at < end else 0
    found.depth = 0
    while at < end:
        if at[0] == c'"':
            at += 1
            while at < end and at[0] != c'"':
                at += 2 if at[0] == c'\\' else 1
        elif at[0] == c',':
            found.values += 1
        elif at[0] == c'[' or at[0] == c'{':
            found.values += 1
            depth += 1
            found.depth = max(found.depth, depth)
        elif at[0] == c']' or at[0] == c'}':
            depth -= 1
        at += 1
    return found


def values_and_depth(const unsigned char[::1] text not None):
    cdef Count found
    if text.shape[0] == 0:
        return 0, 0
    with nogil:
        found = count(&text[0], &text[0] + text.shape[0])
    return found.values, found.depth
