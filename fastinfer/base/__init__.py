"""What everything else may use: errors, limits, the log, the machine, calls that may hang."""
