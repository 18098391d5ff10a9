"""What a run needs in memory, before it runs: traced activations, an account of the rest, and the ladder of rungs."""
