"""Rows as they were seen, and what was known then: training sets without the future (D17)."""
