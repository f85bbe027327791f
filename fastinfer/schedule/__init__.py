"""What waits for a model, in which batches it leaves, and how long a request lives."""
