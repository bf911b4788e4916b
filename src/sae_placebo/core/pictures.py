"""Pictures that stand still, drawn by matplotlib, which the extra `[plots]` brings.

They are `matplotlib.figure.Figure` objects, never figures of `pyplot`, which would be kept in its global
state. All are drawn and saved in one style, whatever a user's `matplotlibrc` says: text is shown as it is
and never read as TeX, and the same picture is saved as the same bytes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sae_placebo.core.errors import MissingExtra

INK, MUTED, GRID = "#1b1f24", "#57606a", "#dfe3e8"
"""Colors of what is read, of what explains it, and of lines behind it."""

_STYLE = {
    "text.usetex": False,
    "text.parse_math": False,
    "svg.hashsalt": "sae-placebo",
    # text stays text: files are small and can be searched, and a browser has the glyphs of every script
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.monospace": ["DejaVu Sans Mono", "Menlo", "Consolas", "monospace"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
}


@contextmanager
def plain_style() -> Iterator[None]:
    """Draw in the package's style, as a context or as the decorator of a function that draws.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib import style
    except ImportError:
        raise MissingExtra(
            "pictures as SVG need matplotlib: pip install 'sae-placebo[plots]'"
        ) from None
    with style.context(["default", _STYLE]):
        yield


@plain_style()
def svg_of(figure: Any, title: str) -> str:
    """Return a `matplotlib.figure.Figure` as SVG text, the same for the same figure.

    Args:
        figure: What to save; it is drawn in the package's style.
        title: What a screen reader says of the picture.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    written = io.StringIO()
    metadata = {"Title": title, "Date": None, "Creator": None}
    with warnings.catch_warnings():
        # a glyph that matplotlib's own font lacks is no loss: whoever shows the file brings the fonts
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(written, format="svg", metadata=metadata)
    return written.getvalue()
