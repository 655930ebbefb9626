"""Time-travel SQL: queries over tables as they stood at their cuts."""
