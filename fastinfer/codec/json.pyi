"""Cursor and Writer, the codec's bounded access to raw text. C only: nothing is offered to Python."""
