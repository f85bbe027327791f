"""Parts that every other layer may use: errors, limits, the log, the machine, calls that may hang."""
