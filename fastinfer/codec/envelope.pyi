"""The objects of a request's JSON. C only: nothing is offered to Python."""
