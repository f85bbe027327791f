"""The command line, and the main function of a serving process."""
