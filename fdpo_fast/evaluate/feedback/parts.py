"""Work that is kept part by part, so that a kill costs one of them, and that the ranks of a launcher share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fdpo_fast.distributed import Rank
from fdpo_fast.files import clear_partial, digest, make_folder, read_json, replacing
from fdpo_fast.progress import progress


def in_parts(
    root: Path, of: dict[str, Any], sizes: list[int], make: Callable[[int], dict[str, Any]], about: str, rank: Rank
) -> Iterator[dict[str, Any]]:
    """Return what `make` gives for each part, as JSON; what is kept already is read, and not made again. Collective.

    The parts are all made at the return, and read one by one.

    of: all that the parts depend on, by which their folder in `root` is named. sizes: the items of each part, for the
    bar, whose words are `about`.
    """
    folder = root / f"scores-{digest(of)[:16]}"
    files = [folder / f"{number:06d}.json" for number in range(len(sizes))]
    if rank.index == 0:
        make_folder(folder)
        clear_partial(folder)
        if not (folder / "manifest.json").is_file():
            with replacing(folder / "manifest.json") as partial:
                partial.write_text(json.dumps(of, indent=2) + "\n")
    rank.barrier()
    mine = range(rank.index, len(sizes), rank.count)
    missing = [number for number in mine if not files[number].is_file()]
    done, total = (sum(sizes[number] for number in numbers) for numbers in (set(mine) - set(missing), mine))
    with progress(total=total, initial=done, desc=about, unit=" images", show=rank.index == 0 and bool(missing)) as bar:
        for number in missing:
            content = make(number)
            with replacing(files[number]) as partial:
                partial.write_text(json.dumps(content))
            bar.update(sizes[number])
    rank.barrier()
    return (read_json(file) for file in files)
