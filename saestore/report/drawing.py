"""Plots as SVG that stands inside a page and as PNG files: the same numbers give the same bytes, text stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import DependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, FAINT, BLUE, ORANGE, GREEN = "#1c2430", "#8a94a1", "#1f5fa8", "#d65414", "#12703c"
SKY, VIOLET, OLIVE, SAND = "#5a9bd4", "#7a5fa8", "#9a8a1c", "#e39a66"

_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": "#e7ebf0",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is one
    "xtick.color": INK,
    "ytick.color": INK,
}
_WIDE_DECADES = 3
_DOTS_PER_INCH = 200


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing that stands inside a page, and is a file too.

    name : unlike that of any other on the page
    size : (width, height) in inches
    label : what is drawn, in plain words without markup
    draw : draws into an empty figure
    """

    name: str
    size: tuple[float, float]
    label: str
    draw: Callable[[Figure], None]

    def svg(self) -> str:
        """Return the drawing as an `svg` element."""
        return svg(self.name, self.size, self.label, self.draw)

    def png(self) -> bytes:
        """Return the drawing as a PNG file on white."""
        out = io.BytesIO()
        with _drawn(self.name, self.size, self.draw) as figure:
            figure.savefig(out, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
        return out.getvalue()


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib (DependencyError)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DependencyError("a report draws with matplotlib; install it with: pip install 'saestore[plot]'") from None


def svg(name: str, size: tuple[float, float], label: str, draw: Callable[[Figure], None]) -> str:
    """Return a drawing as an `svg` element.

    Parameters
    ----------
    name : str
        Of the drawing; unlike that of any other on the page, for the ids inside it are made of it.
    size : (width, height)
        In inches.
    label : str
        What is drawn, for those who do not see it; plain words without markup.
    draw : callable
        Draws into an empty figure.
    """
    out = io.StringIO()
    with _drawn(name, size, draw) as figure:
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inside_a_page(out.getvalue(), name, label)


@contextmanager
def _drawn(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Iterator[Figure]:
    """Draw in the project's own style, which holds while the figure is saved."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the bytes
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        yield figure


def log_ticks(axis: Axis, values: NDArray[Any]) -> None:
    """Label a logarithmic axis with plain numbers, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    decades = float(np.log10(values.max() / values.min())) if len(values) else 1.0
    if decades < 0.7:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1.0,) if decades > _WIDE_DECADES else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_above(axes: Axes, columns: int) -> None:
    """Put the legend above the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=1.6)


def _inside_a_page(document: str, name: str, label: str) -> str:
    """Return the drawing of an SVG document, without what only documents have and with ids of its own."""
    # Its style sheet would be the page's, and has in style.css what is needed of it.
    body = document[document.index("<svg") :]
    for unneeded in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r"<defs>\s*</defs>"):
        body = re.sub(unneeded, "", body, flags=re.DOTALL)
    body = re.sub(r"\s*\n\s*", "\n", body).replace("xlink:href", "href")
    opening, inner = body.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', opening)
    assert box is not None
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', inner))
    prefix = re.sub(r"[^A-Za-z0-9_-]", "_", name)

    def renamed(found: re.Match[str]) -> str:
        return f' id="{prefix}-{found[1]}"' if found[1] in used else ""

    inner = re.sub(r' id="([^"]*)"', renamed, inner)
    inner = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", inner)
    inner = re.sub(r' (?:d|x|y|transform)="[^"]*"', _rounded, inner)
    inner = re.sub(r'(<g clip-path="[^"]*")>\n((?:<use [^>]*/>\n)+)</g>', _styled_once, inner)
    inner = inner.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return f'<svg role="img" aria-label="{label}" viewBox="{box[1]}">{inner.rstrip()}'


def _rounded(attribute: re.Match[str]) -> str:
    """Return an attribute with its numbers to a hundredth of a point."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attribute[0])


def _styled_once(group: re.Match[str]) -> str:
    """Return a group of marks with their style in one place, where it is the same for all."""
    styles = set(re.findall(r' style="[^"]*"', group[2]))
    if len(styles) != 1 or group[2].count(" style=") != group[2].count("<use "):
        return group[0]
    (style,) = styles
    return f"{group[1]}{style}>\n{group[2].replace(style, '')}</g>"
