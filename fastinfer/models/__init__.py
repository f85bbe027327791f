"""Models: from files on the disk to endpoints, and from requests to batches."""
