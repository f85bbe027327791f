"""The supervisor: owns the listening sockets, keeps serving processes alive, and keeps them alike.

It never imports the data plane: what kills a serving process cannot kill it.
"""
