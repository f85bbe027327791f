"""HTTP: connections, their shared state, sockets, and the drain."""
