"""The report is one page, made from a trial's tables, that opens from disk and loads nothing.

Templates escape text from the data; the plots' numbers are JSON in which no character can end its
element; and a content security policy names the page's scripts by hash, so that nothing else on the
page can run.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import StoreError
from sae_placebo.core.escaping import without_controls
from sae_placebo.core.file_names import name_fault, shown_name
from sae_placebo.report.sections import SECTIONS, Content, Section, View
from sae_placebo.report.sections.matching import unmatched
from sae_placebo.report.tables import Tables, read_tables
from sae_placebo.stats.failed_fits import failed_fits

_HERE = Path(__file__).parent
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def build_report(trial_folder: str | Path, out: str | Path | None = None) -> Path:
    """Write a trial's report, and return the path of its page: `index.html` in the report folder.

    The page needs no other file. The same tables give the same bytes.

    Args:
        trial_folder: Folder with `trial.json` and the tables; the page says which of them are missing.
        out: Report folder; `report` in the trial folder where none is given.

    Raises:
        StoreError: a folder's name is none, the trial's folder does not exist, a file in it cannot be read,
            or the page cannot be written.
    """
    for name in (trial_folder, trial_folder if out is None else out):
        if (fault := name_fault(name)) is not None:
            raise StoreError(f"the folder {shown_name(name)} {fault}")
    page = render(read_tables(Path(trial_folder)))
    folder = Path(trial_folder) / "report" if out is None else Path(out)
    index, partial = folder / "index.html", folder / "index.html.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8", newline="\n")
        partial.replace(index)
    except OSError as error:
        raise StoreError(_refusal(folder, error)) from error
    return index


def _refusal(folder: Path, error: OSError) -> str:
    """Return why the page could not be written, and what to do, in one sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk that holds the report folder {str(folder)!r} is full; free some space or "
            "choose another folder, then write the report again"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"the report folder {str(folder)!r} is not a folder; choose another one"
    return (
        f"the report cannot be written to {str(folder)!r} ({error.strerror or error}); choose "
        "another folder or change its permissions"
    )


def render(tables: Tables) -> str:
    """Return a trial's whole report as the text of one HTML page."""
    view = View.of(tables)
    parts = [(section, section.build(view)) for section in SECTIONS.entries.values()]
    figures = {key: figure for _, part in parts for key, figure in part.figures.items()}
    scripts = page_scripts(bool(figures))
    environment = _environment()
    page = environment.get_template("page.html").render(
        view=view,
        name=tables.name,
        failed=failed_fits(tables.measurements).sentences,
        unmatched=[{"arm": arm, "index": view.index(arm)} for arm in unmatched(tables)],
        style=(_HERE / "assets" / "report.css").read_text(encoding="utf-8"),
        sections=[
            {
                "name": section.name,
                "title": section.title,
                "html": _render(environment, section, part, view),
            }
            for section, part in parts
        ],
        figures=embed_json(figures) if figures else "",
        scripts=scripts,
        policy=page_policy(scripts),
    )
    return str(page)


def render_section(section: Section, view: View) -> str:
    """Return one section's HTML, without its figures' data."""
    return str(_render(_environment(), section, section.build(view), view))


def embed_json(value: Any) -> str:
    """Return `value` as JSON without any character that could end the script element around it.

    JSON has neither infinity nor "not a number": both become null, which figures draw as a gap.
    """
    text = json.dumps(_with_gaps(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escaped in _ESCAPES.items():
        text = text.replace(character, escaped)
    return text


def _with_gaps(value: Any) -> Any:
    """Return `value` with None in place of every number, at any depth, that is not finite."""
    if isinstance(value, Mapping):
        return {key: _with_gaps(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_gaps(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        finalize=_finalized,
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["sentence"] = _sentence
    return environment


def _breakable(text: Any) -> Any:
    """Return `text` escaped, with leave to break lines after its underscores."""
    from markupsafe import Markup, escape

    return escape(without_controls(str(text))).replace("_", Markup("_<wbr>"))


def _finalized(value: Any) -> Any:
    """Return what a template is about to write, without control characters.

    Markup is left as it is: its texts have been through this function when it was rendered.
    """
    plain = isinstance(value, str) and not hasattr(value, "__html__")
    return without_controls(value) if plain else value


def _sentence(text: str) -> str:
    """Return `text` with its first letter a capital."""
    return text[:1].upper() + text[1:]


def _render(environment: Any, section: Section, part: Content, view: View) -> Any:
    from markupsafe import Markup

    html = environment.get_template(f"{section.name}.html").render(
        **part.values, view=view, level=view.level, absent=absent(section, view.tables)
    )
    # the template has escaped its values; the page's template must not escape them again
    return Markup(html)


def absent(section: Section, tables: Tables) -> list[str]:
    """Return a sentence for each of a section's tables that is missing or empty."""
    sentences = []
    for name in section.reads:
        table = getattr(tables, name)
        file = "trial.json" if name == "trial" else f"{name}.parquet"
        if file in tables.missing:
            sentences.append(f"{file} is not in the trial folder.")
        elif not len(table):
            sentences.append(f"{file} is empty.")
    return sentences


def page_scripts(with_plots: bool) -> list[str]:
    """Return the scripts of a page: plotly where it has plots, and what draws those `embed_json` holds."""
    script = (_HERE / "assets" / "report.js").read_text(encoding="utf-8")
    if not with_plots:
        return [script]
    from plotly.offline import get_plotlyjs

    return [get_plotlyjs(), script]


def page_policy(scripts: list[str]) -> str:
    """Return the content security policy: these scripts, inline styles, embedded pictures."""
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    rules: Mapping[str, str] = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests),
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())
