"""Manifests: a snapshot written down, and proven equal later, with its log or without (D15, I7)."""
