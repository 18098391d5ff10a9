"""Where figures can be watched: TensorBoard, and Weights & Biases where the configuration names a project."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Log
from fdpo_fast.files import digest


def check(settings: Log) -> None:
    """Raise UserError where a tracker that is asked for is not installed."""
    if settings.wandb and not find_spec("wandb"):
        raise UserError("log.wandb needs the package 'wandb': pip install wandb, or leave it out")


class Trackers:
    """The trackers of one folder; resumed, they go on at `first_step`."""

    def __init__(self, settings: Log, folder: Path, first_step: int = 0) -> None:
        check(settings)
        self.tensorboard = self.wandb = None
        if settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=first_step)
        if settings.wandb:
            import wandb

            name = str(folder.resolve())
            self.wandb = wandb.init(
                project=settings.wandb, name=folder.name, id=digest(name)[:16], dir=folder, resume="allow"
            )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers of one step."""
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def table(self, name: str, rows: list[dict], measured: Iterable[str]) -> None:
        """Write a table with one row a run: what was set, and what was `measured`."""
        measured = list(measured)
        if self.tensorboard:
            for number, row in enumerate(rows):
                # TensorBoard knows no absent value
                settings = {key: "" if row[key] is None else row[key] for key in row if key not in measured}
                figures = {f"{name}/{key}": row[key] for key in measured}
                self.tensorboard.add_hparams(settings, figures, run_name=f"{name}-{number:04d}")
        if self.wandb:
            import wandb

            columns = list(rows[0])
            self.wandb.log({name: wandb.Table(columns=columns, data=[[row[key] for key in columns] for row in rows])})

    def flush(self) -> None:
        """Let what was written be seen."""
        if self.tensorboard:
            self.tensorboard.flush()

    def close(self) -> None:
        """Write what is left, and end."""
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()
