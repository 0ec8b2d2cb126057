"""Session: clocks, wake, sleep, sampling, state files. Imports no torch."""
