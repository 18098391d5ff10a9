"""The embedded default: handwritten digits, their pipeline, and a rule that ranks them; scorers for configurations."""

from fdpo_fast.digits.dataset import features, preference, unseen

__all__ = ["features", "preference", "unseen"]
