"""The command line, and what a serving process is made of."""
