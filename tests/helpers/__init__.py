"""What several tests share; nothing is imported from a test file."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

RECIPE = {"vae_steps": 2, "unet_steps": 2, "pairs": 30, "sampling_steps": 2, "batch": 8, "tie_below": 0.0}
"""The embedded pipeline in a handful of steps."""
