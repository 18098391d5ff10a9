"""What several tests share; nothing is imported from a test file."""

from pathlib import Path

ROOT = Path(__file__).parents[2]

_STEPS = {"vae_steps": 2, "unet_steps": 2, "flow_steps": 2, "sampling_steps": 2}
RECIPE = {**_STEPS, "pairs": 30, "batch": 8, "tie_below": 0.0}
"""The embedded pipelines in a handful of steps."""
TOLD = {"flux": {"guidance": 3.5}, "z_image": {"text_tokens": 128}}
"""The keys of the model's section that a family cannot be without, or is slow without."""
