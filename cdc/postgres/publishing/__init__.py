"""What the server keeps and sends for a source: slot, publications, and their tables."""
