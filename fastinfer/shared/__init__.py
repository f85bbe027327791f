"""Memory that several processes see: counters, their reports, the crash record."""
