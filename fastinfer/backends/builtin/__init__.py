"""Workers that come with the server and compute one item at a time in Python."""
