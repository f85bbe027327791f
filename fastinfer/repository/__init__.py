"""From files on the disk to endpoints, in step across processes."""
