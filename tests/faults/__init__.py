"""Whatever can happen to a run's files, tried out: `python -m tests.faults`."""
