"""Bodies to requests, responses to text."""
