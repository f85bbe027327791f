"""Makes endpoints from files on the disk, in the same order in all processes."""
