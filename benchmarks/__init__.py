"""Benchmarks: one program for each question, peers and limits side by side in one run."""
