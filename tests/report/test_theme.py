"""The colours of lines: told apart by all eyes, and from the page, in both themes."""

from itertools import combinations

import numpy as np
import pytest

from fdpo_fast.report.theme import DARK, LIGHT, MARKERS, SERIES, series, shade
from tests.helpers.colours import SEEN, contrast, lab


def rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize(("theme", "colours"), [(0, LIGHT), (1, DARK)])
def test_lines_are_told_apart(theme, colours, eyes):
    lines = [rgb(pair[theme]) for pair in SERIES]
    nearest = min(np.linalg.norm(lab(a, eyes) - lab(b, eyes)) for a, b in combinations(lines, 2))
    assert nearest > 20  # matplotlib's ten have pairs that are 4 apart with deuteranopia
    assert min(contrast(line, rgb(colours["back"])) for line in lines) > 3


def test_the_measure_knows_what_is_hard_to_tell():
    """matplotlib's green and red, which deuteranopes confuse, and its cyan, which is faint on white."""
    green, red, cyan = rgb("#2ca02c"), rgb("#d62728"), rgb("#17becf")
    assert np.linalg.norm(lab(green) - lab(red)) > 3 * np.linalg.norm(
        lab(green, "deuteranopia") - lab(red, "deuteranopia")
    )
    assert contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21)
    assert contrast(cyan, (255, 255, 255)) < 3


def test_markers_differ_where_colours_come_again():
    styles = [tuple(series(number).values()) for number in range(len(SERIES) * len(MARKERS))]
    assert len(set(styles)) == len(styles)
    assert len({marker for _, marker in styles[: len(SERIES)]}) == len(SERIES)


def test_the_scale_of_timesteps_goes_one_way():
    light = [lab(rgb(shade(share)))[0] for share in np.linspace(0, 1, 5)]
    assert light == sorted(light, reverse=True)
    assert all(
        contrast(rgb(colours[end]), rgb(colours["back"])) > 3 for colours in (LIGHT, DARK) for end in ("low", "high")
    )
