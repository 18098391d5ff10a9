"""`fdpo verify`: the checksums of a run's export and checkpoints."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast import checksums
from fdpo_fast.commands.common import Commands, imports
from fdpo_fast.config.errors import UserError

OLDER, WHOLE = "no checksums, as of older versions", "as it was written"


def add(commands: Commands) -> None:
    """Add the parser of `fdpo verify`."""
    parser = commands.add_parser(
        "verify",
        help="checksums of a run's export and checkpoints",
        description="Check that no file of an export or a checkpoint has changed since it was written.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="train.output_dir of the run, or a folder in it")
    parser.set_defaults(run=run, left="nothing was changed")


def run(folder: Path) -> None:
    """Say of each export and checkpoint whether it is as it was written; UserError where one is not."""
    folder = folder.expanduser()
    alone = (folder / checksums.NAME).is_file()
    found = [folder] if alone else [folder / "export", *sorted(folder.glob("**/step-*[0-9]"))]
    found = [path for path in found if path.exists() and not path.is_symlink()]
    if not found:
        raise UserError(f"{folder} has neither an export nor checkpoints, and no {checksums.NAME}")
    with imports():
        from fdpo_fast.data.reading import printable
        from fdpo_fast.training.resumption import LATEST, pointed
    damaged: list[str] = []
    for path in found:
        if words := checksums.damage(path):
            damaged.append(printable(str(path)))
        unchecked = not (path / checksums.NAME).exists()
        print(f"{printable(str(path))}: {printable(words) if words else OLDER if unchecked else WHOLE}")
    for parent in sorted({path.parent for path in found if path.name.startswith("step-")} if not alone else ()):
        if pointed(parent) is None:
            damaged.append(printable(str(parent / LATEST)))
            print(f"{damaged[-1]}: it names no checkpoint that is there")
    if damaged:
        raise UserError(f"damaged: {', '.join(damaged)}")
