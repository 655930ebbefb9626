"""What must not be stored, and what is stored instead."""
