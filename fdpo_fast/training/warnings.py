"""What a run warns of, by its own records; each once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fdpo_fast.config.run import Config
from fdpo_fast.training.states import STATES, State, Window, skipping, split, window


class Watch:
    """The states of a run, each told when it shows for the first time; skipped steps whenever there are more.

    records: of the steps that are done, where the run is gone on with.
    """

    def __init__(self, config: Config, records: Sequence[dict]) -> None:
        self._config, self._closed, self._open = config, list[Window](), list(records)
        self._told = set[State]()
        self._skipped = 0

    def __call__(self, records: Sequence[dict]) -> Iterator[str]:
        """Take note of records that are about to be written, and yield what there is to warn of."""
        self._open += records
        *closed, self._open = split(self._open)
        self._closed += map(window, closed)
        seen = [*self._closed, window(self._open)]
        skipped = records[-1].get("skipped", 0)
        if skipped != self._skipped:
            self._skipped = skipped
            self._told.discard(skipping)
        for state in STATES:
            if state not in self._told and (words := state(seen, self._config)):
                self._told.add(state)
                yield f"step {records[-1]['step']}: {words}"
