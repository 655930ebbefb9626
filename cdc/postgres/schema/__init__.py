"""Tables as the catalog has them, as the stream tells of them, and which column is which."""
