"""Codecs that belong to the log itself: application events, and its own control records."""
