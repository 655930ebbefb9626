"""The demo's data: a year of flights out of New York, and how an application would store them."""
