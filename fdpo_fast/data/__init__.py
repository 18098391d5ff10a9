"""Preference pairs: readers of the formats in use, and the caches that training runs from."""
