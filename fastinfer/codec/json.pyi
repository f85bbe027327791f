"""Cursor and Writer, the codec's bounded access to raw text. C only: Python cannot use it."""
