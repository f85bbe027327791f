"""Native threads and the work that they do."""
