"""The supervisor: owns the listening sockets, keeps serving processes alive, and keeps them alike.

It never imports the data plane but for the memory in which serving processes note what they run: what kills one of them
cannot kill it.
"""
