"""The queue of a model, the forming of batches, and the lifetime of a request."""
