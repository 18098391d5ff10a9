"""Pictures of panels, written as PNG for files, and as SVG that takes a page's colours, letters and width."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fdpo_fast.report.theme import LIGHT, VARIABLES

PANEL, DESK, PHONE = (3.5, 2.1), (7.4, 4.8), (3.5, 3.9)
"""Sizes in inches: of one panel among others, and of one that stands alone, on a screen and on a phone."""

LETTER, LINE = 4.8, 50
"""Points that a letter of a key takes on average, and a line with the space around it."""

RULES = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are users'
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "text.color": LIGHT["text"],
    "axes.labelcolor": LIGHT["faint"],
    "axes.edgecolor": LIGHT["faint"],
    "xtick.color": LIGHT["faint"],
    "ytick.color": LIGHT["faint"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Panel:
    """What draws into axes, with a title and a word of explanation."""

    draw: Callable[[Axes], None]
    title: str
    about: str = ""


@dataclass(frozen=True)
class Picture:
    """Panels beside one another that share a key of lines: names with the style of each."""

    panels: tuple[Panel, ...]
    key: tuple[tuple[str, dict[str, Any]], ...] = ()
    colours: tuple[tuple[str, str], ...] = ()
    """Colours beside those of the theme, each with what stands for it on a page."""
    shape: tuple[float, float] = PANEL
    phone: tuple[float, float] | None = None
    """The size on a phone where it is another than `shape`."""

    def png(self) -> bytes:
        """Write all panels as one PNG on white."""
        columns = min(4, len(self.panels))
        rows = -(-len(self.panels) // columns)
        with mpl.rc_context({**mpl.rcParamsDefault, "backend": "agg", **RULES}):
            size = (self.shape[0] * columns, self.shape[1] * rows + 0.4 * bool(self.key))
            figure = Figure(figsize=size, dpi=130, layout="constrained")
            grid = figure.subplots(rows, columns, squeeze=False)
            for axes in grid.flat[len(self.panels) :]:
                axes.set_axis_off()
            for axes, panel in zip(grid.flat, self.panels, strict=False):
                if len(self.panels) > 1:
                    axes.set_title(panel.title, fontsize=9)
                panel.draw(axes)
            if self.key:
                lines = [Line2D([], [], label=name, **style) for name, style in self.key]
                longest = max(len(name) for name, _ in self.key)
                room = int(72 * size[0] / (LETTER * longest + LINE))
                columns = max(1, min(5, len(lines), room))
                figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=8)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", facecolor="white")
        return buffer.getvalue()

    def svgs(self, panel: Panel) -> dict[str, Markup]:
        """Return the SVG of a panel by the class of the page that shows it: one for all screens, or one for each."""
        shapes = {"desk": self.shape, "phone": self.phone} if self.phone else {"any": self.shape}
        return {name: self._svg(panel.draw, shape, panel.title) for name, shape in shapes.items()}

    def legend(self) -> list[tuple[str, Markup]]:
        """Return the names of the lines, each with an SVG of a piece of it."""

        def piece(style: dict[str, Any]) -> Callable[[Axes], None]:
            def draw(axes: Axes) -> None:
                axes.set_axis_off()
                axes.plot([0, 0.5, 1], [0, 0, 0], **{**style, "markevery": [1]})

            return draw

        return [(name, self._svg(piece(style), (0.36, 0.16), "")) for name, style in self.key]

    def _svg(self, draw: Callable[[Axes], None], size: tuple[float, float], label: str) -> Markup:
        # names within an SVG are made of its content, so that equal ones in a page mean the same
        with mpl.rc_context({**mpl.rcParamsDefault, "backend": "agg", **RULES, "svg.hashsalt": f"{label} {size}"}):
            figure = Figure(figsize=size, dpi=72, layout="constrained")
            draw(figure.subplots())
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return themed(buffer.getvalue(), label, dict(self.colours))


def themed(text: str, label: str, colours: dict[str, str]) -> Markup:
    """Make matplotlib's SVG one of a page: no colour, letter or size of its own, and no name that another one has."""
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # what others refer to are paths and images
    body = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "var(--letters)", body)
    for colour, variable in {**VARIABLES, **colours}.items():
        body = body.replace(colour, variable)
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return Markup(f'<svg {box[0] if box else ""} {role} xmlns:xlink="http://www.w3.org/1999/xlink">{body}')  # noqa: S704
