"""Preference pairs: their labels, images and readers."""
