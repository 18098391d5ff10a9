"""Pairs without people: images that policies draw, and pairs that are there, judged by scorers."""
