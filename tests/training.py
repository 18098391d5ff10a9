"""The trainer in this process, where only what comes of it counts."""

import os
import signal
from pathlib import Path
from unittest.mock import patch

from fdpo_fast import train as trainer
from fdpo_fast.config.run import Config
from fdpo_fast.training.metrics import read_records


def run(raw):
    """Train in this process; returns the records."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    config = Config.model_validate(raw)
    try:
        with patch.dict(os.environ):
            trainer.check_output(Path(config.train.output_dir), resume=False)
            trainer.train(config, resume=False)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return read_records(Path(config.train.output_dir))
