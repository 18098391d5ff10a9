"""The trainer as a program, with kernels that give the same bits on every run; a warning where there are none."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from fdpo_fast.train import main

if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    main()
