"""HTTP: one connection, what connections share, sockets and drain."""
