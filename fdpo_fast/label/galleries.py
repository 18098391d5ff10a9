"""What a person is asked to compare two models blindly: their images of the same captions and seeds."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Data
from fdpo_fast.data.reading import read_file
from fdpo_fast.evaluate.gallery import Gallery, gallery
from fdpo_fast.files import read_json
from fdpo_fast.label.order import number_of
from fdpo_fast.label.questions import LABELS, Asked


class OfGalleries:
    """Two folders that `fdpo sample` has drawn, image 0 being of the first. Each caption is asked once.

    So answers are independent, as `evaluate.sequential` needs them, where the captions are; which of a caption's images
    it is, is drawn by `seed`. Raises UserError where the folders have other captions or other seeds.
    """

    refused = 0
    models: tuple[str, str] | None
    megapixels = Data(source="").max_megapixels

    def __init__(self, first: Path, second: Path, seed: int) -> None:
        models = [gallery(folder) for folder in (first, second)]
        one, other = models
        if one.prompts != other.prompts or one.seeds != other.seeds:
            what = "captions" if one.prompts != other.prompts else "seeds"
            raise UserError(f"{first} and {second} are of other {what}: draw both by one `fdpo sample`")
        if first.resolve() == second.resolve():
            raise UserError(f"{first} is given twice: name two folders to compare")
        names = [_named(model) for model in models]
        self.models = one.model, other.model
        self.name = f"{one.model} and {other.model}"
        self.every: list[Asked] = []
        self._files: dict[int, list[Path]] = {}
        for number, caption in enumerate(one.prompts):
            image = number_of(seed, "image", number) % one.images_per_prompt
            place = f"caption {number}, image {image}: {' and '.join(names)}"
            # even, of 56 bits, as those of pairs; of other weights another, so that a file may hold several comparisons
            id = number_of(0, place, number) >> 9 << 1
            self.every.append(Asked(id, place, caption))
            self._files[id] = [model.files[number][image] for model in models]

    def scores(self) -> dict[int, dict[str, tuple[float, float]]]:
        """Return no scores: a comparison asks captions at random."""
        return {}

    def picture(self, id: int, image: int) -> bytes:
        """Return the bytes of the image of the first model, 0, or of the second, 1.

        Raises UnusableError for what is no file, UnreachableError where it cannot be read now.
        """
        path = self._files[id][image]
        return read_file(path, path.name)


def beside_galleries(first: Path, second: Path) -> Path:
    """Return where the answers of a comparison go unless another file is named: beside the two folders."""
    return first.parent / f"{first.name}-{second.name}{LABELS}"


def _named(model: Gallery) -> str:
    """Name a model with what tells its weights: answers are about these, not about what is put there later."""
    weights = read_json(model.folder / "model.json").get("weights")
    return f"{model.model} ({str(weights)[:8]})"
