"""The meaning of stored text: Postgres types as Python, JSON and Arrow values."""
