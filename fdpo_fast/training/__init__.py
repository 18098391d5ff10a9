"""The trainer's parts: order of pairs, checkpoints, metrics, sample grids."""
