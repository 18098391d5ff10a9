"""Strengths of the preference loss in the conventions of other trainers."""
