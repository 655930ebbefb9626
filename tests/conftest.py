"""Loads the fixtures, one plugin a subject."""

pytest_plugins = ["tests.fix_log", "tests.fix_postgres"]
