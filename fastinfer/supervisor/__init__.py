"""The supervisor: owns the listening sockets, keeps serving processes running, and keeps their models equal.

It imports no part of the data plane except the crash record, so that a crash of a serving process cannot affect it.
"""
