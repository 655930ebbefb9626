"""Snapshots: tables as of a cut, and what is made of them. No kind of source."""
