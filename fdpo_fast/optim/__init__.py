"""AdamW with blockwise 8-bit states; `build` makes any optimizer that a configuration names."""

from fdpo_fast.optim.adamw8bit import AdamW8bit

__all__ = ["AdamW8bit"]
