"""The history of one row: an index of keys beside the log, and what it finds put in order."""
