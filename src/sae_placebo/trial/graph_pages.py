"""Pictures of attribution graphs as files: a page that opens offline, or a picture to print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.core.escaping import escaped
from sae_placebo.core.file_names import name_fault, shown_name
from sae_placebo.core.pictures import plain_style, svg_of

_ENDINGS = (".html", ".svg", ".png")
_DOTS_PER_INCH = 200
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 14px/1.5 system-ui, sans-serif; color: #1b1f24; margin: 1.5em; }}
p {{ margin: 0; color: #57606a; }}</style></head>
<body>
<h1 style="font-size: 1.2em">Attribution graph: {title}</h1>
{lines}
{figure}
<p>Linear and local: one prompt, gradients at the activations as they are. An edge is an attribution and no
ablation. Blue raises its target, red lowers it.</p>
</body>
</html>
"""


def check_name(path: Path) -> None:
    """Refuse a name that says no format, or at which no file can be made.

    Raises:
        SpecError: it ends in none of `.html`, `.svg` and `.png`.
        StoreError: it is a folder, its folder does not exist, or no file system takes it.
    """
    if (fault := name_fault(path)) is not None:
        raise StoreError(f"the picture's name {shown_name(path)} {fault}")
    if path.suffix.lower() not in _ENDINGS:
        raise SpecError(
            f"{str(path)!r} names no kind of picture: end it in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}"
        )
    if path.is_dir():
        raise StoreError(f"{str(path)!r} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise StoreError(
            f"{str(path)!r} cannot be written, since {str(path.parent)!r} is no folder; make it or name "
            "another"
        )


def write_picture(
    path: Path,
    interactive: Callable[[], Any],
    static: Callable[[], Any],
    title: str,
    lines: Sequence[str],
) -> Path:
    """Write one picture to `path` and return it.

    Args:
        path: Its ending says the format.
        interactive: It makes the plotly figure of a page.
        static: It makes the matplotlib figure of an SVG or PNG.
        title: What the page, or a screen reader, calls it.
        lines: Sentences above the figure of a page.

    Raises:
        SpecError: the ending says no format.
        StoreError: the file cannot be written.
        MissingExtra: matplotlib is needed and not installed.
    """
    check_name(path)
    kind = path.suffix.lower()
    if kind == ".html":
        content = _page(interactive(), title, lines).encode()
    elif kind == ".svg":
        content = svg_of(static(), f"Attribution graph: {title}").encode()
    else:
        content = _png(static())
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written ({error.strerror})") from None
    return path


def _page(figure: Any, title: str, lines: Sequence[str]) -> str:
    """Return a page that holds plotly itself and loads nothing."""
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        div_id="graph",  # a random one unless given
        config={"displaylogo": False, "responsive": True},
    )
    told = "\n".join(f"<p>{escaped(line)}</p>" for line in lines)
    return _PAGE.format(title=escaped(title), lines=told, figure=drawn)


@plain_style()
def _png(figure: Any) -> bytes:
    import io
    import warnings

    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(written, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return written.getvalue()
