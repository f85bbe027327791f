"""The decoder's structs and its steps through JSON. C only: nothing is offered to Python."""
