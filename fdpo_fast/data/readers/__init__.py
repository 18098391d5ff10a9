"""The formats that preference pairs come in, a reader each."""
