"""Rows that are there already: under the slot's snapshot, or beside the stream."""
