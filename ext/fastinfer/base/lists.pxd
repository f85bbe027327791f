# Lists whose used part is shorter than they are, so that one which is emptied and filled again keeps its memory.


# Puts an item behind the used part, which is of this size.
cdef inline int append(list items, Py_ssize_t size, object item) except -1:
    if size < len(items):
        items[size] = item
    else:
        items.append(item)
    return 0
