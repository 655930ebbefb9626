"""The commands that capturing adds to `eventlog`, one module each."""
