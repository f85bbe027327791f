"""Built-in workers, which compute one item at a time in Python."""
