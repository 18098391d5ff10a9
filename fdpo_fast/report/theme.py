"""The colours of pages and pictures, once for light and once for dark."""

from __future__ import annotations

LIGHT = {
    "text": "#1c1c1e",
    "back": "#fdfdfc",
    "faint": "#5f5f66",
    "rule": "#d9d9d6",
    "up": "#b3261e",
    "down": "#0a4fc4",
    "low": "#3b93ad",
    "high": "#0b2149",
}
DARK = {
    "text": "#e8e8ea",
    "back": "#18181b",
    "faint": "#a6a6ae",
    "rule": "#3a3a40",
    "up": "#ff8a75",
    "down": "#7fb4ff",
    "low": "#5d83ba",
    "high": "#def2ff",
}
"""Colours by what they are for; low and high are the ends of a scale, up and down the sides of a difference."""

SERIES = (
    ("#005fac", "#3b99df"),
    ("#9e3700", "#ca5116"),
    ("#829b00", "#2ebb89"),
    ("#b95490", "#c481af"),
    ("#b4814d", "#f3ac64"),
    ("#4796da", "#93d3fa"),
    ("#5d1f00", "#fcef4c"),
    ("#262326", "#d6a011"),
)
"""Colours of lines, light and dark: those of Okabe and Ito, moved until each pair is told apart without red, green or
neither, and each line from the page."""

MARKERS = "os^DvPX*"
"""Of the lines, beside their colours."""

_BOTH = {key: (LIGHT[key], DARK[key]) for key in LIGHT} | {f"series-{n}": pair for n, pair in enumerate(SERIES)}
VARIABLES = {light: f"var(--{name})" for name, (light, _) in _BOTH.items()}
"""The variable of the page by the colour that stands for it in a picture."""


def series(number: int) -> dict[str, str]:
    """Return colour and marker of a line by its number; where colours come again, it is with other markers."""
    return {"color": SERIES[number % len(SERIES)][0], "marker": MARKERS[(number + number // 8) % len(MARKERS)]}


def shade(share: float) -> str:
    """Return the colour at a place between the ends of the scale, as a picture on paper has it."""
    ends = (bytes.fromhex(LIGHT[key][1:]) for key in ("low", "high"))
    return "#" + bytes(round(a + share * (b - a)) for a, b in zip(*ends, strict=True)).hex()


def mixed(share: float) -> str:
    """Return the same colour as a page has it, in either theme."""
    return f"color-mix(in srgb, var(--high) {100 * share:g}%, var(--low))"


def css() -> str:
    """Return the rules that give the variables their values."""
    light, dark = (" ".join(f"--{name}: {pair[n]};" for name, pair in _BOTH.items()) for n in (0, 1))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
