"""Examine an SAE that one already has: an ordinary trial in which the trained arm's SAE is given.

The trial is written to a file, so that it can be repeated and changed. Its arms are the trained model with
the given SAE, the trained model with the same recipe retrained, and the two fair placebos.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.core.lazy import np, pandas, torch
from sae_placebo.core.progress import Progress

if TYPE_CHECKING:
    from sae_placebo.saes.formats import Given
    from sae_placebo.trial.results import Trial

GIVEN, RETRAINED = "given", "retrained"
"""Labels of the arms of the trained model."""
CALIBRATED, SURROGATE = "redraw_calibrated", "surrogate"
"""Labels of the placebos."""
_LABEL = "mine"
_L0_TOKENS = 4_096
_IN_CSV = (
    *("arm", "sae_seed", "latent", "class", "rule", "rule_precision", "rule_recall", "rule_reason"),
    *("origin", "evidence", "has_placebo_partner", "placebo_r", "has_seed_partner", "seed_r"),
    *("density", "top_token", "top_token_mass"),
)


@dataclass(frozen=True)
class ExamineSpec:
    """The sizes of an examination.

    Attributes:
        train_tokens: Tokens that the placebos' SAEs and the retrained one are trained on.
        heldout_tokens: Tokens that all are measured on.
        latents: How many latents of the given and of the retrained SAE are asked for use and circuitry.
    """

    train_tokens: int = 120_000
    heldout_tokens: int = 50_000
    latents: int = 200


class Examined:
    """A finished examination.

    Attributes:
        trial: The trial behind it, with all tables.
    """

    def __init__(self, trial: Trial) -> None:
        """Read the examination whose trial is finished."""
        self.trial = trial

    @property
    def report(self) -> Path:
        """Return the path of the report's page."""
        return self.trial.report

    @property
    def table(self) -> Path:
        """Return the path of `latents.csv`, the table of latents for people."""
        return self.trial.folder / "latents.csv"

    def summary(self) -> str:
        """Return how many latents are no better than a placebo's, in a few lines for a terminal."""
        return summary_of(self.latents)

    @property
    def latents(self) -> Any:
        """Return one row per latent of the given and of the retrained SAE: what it is, and why not.

        `use` and `tied` hold verdicts where a latent was asked, and `use_reason` why there is none.
        """
        return latents_of(self.trial)


def latents_of(trial: Trial) -> Any:
    """Return the table of an examination; see `Examined.latents`."""
    table = trial.latents
    table = table[table["arm"].isin([GIVEN, RETRAINED])]
    found = table[[name for name in _IN_CSV if name in table]].copy()
    keys = ["arm", "sae_seed", "latent"]
    found = found.merge(trial.use[[*keys, "use", "use_reason", "tied"]], on=keys, how="left")
    not_asked = "not among the latents that were asked"
    found["use_reason"] = found["use_reason"].where(found["use"].notna(), not_asked)
    return found.reset_index(drop=True)


def summary_of(latents: Any) -> str:
    """Return, of each SAE, how many latents a placebo has too, tokens explain, are used, and are tied."""
    lines = []
    for (arm, seed), part in latents.groupby(["arm", "sae_seed"], sort=False):
        alive = part[part["class"] != "dead"]
        counts = [f"{len(part):,} latents, {len(part) - len(alive):,} of them dead"]
        for column, words in (
            ("has_placebo_partner", "have a partner in the calibrated placebo"),
            ("has_seed_partner", "have one in another seed"),
        ):
            known = alive[column].dropna()
            counts.append(
                f"{int((known == 1).sum()):,} of {len(known):,} {words}"
                if len(known)
                else f"not known how many {words}"
            )
        for verdict in ("explained", "not explained", "undetermined"):
            counts.append(f"{int((alive['origin'] == verdict).sum()):,} {verdict}")
        asked = part["use"].dropna()
        counts.append(f"{int((asked == 'used').sum())} used of {len(asked)} asked")
        lines.append(f"{arm}, seed {seed}: " + "; ".join(counts))
    return "\n".join(lines)


def examine(
    sae: Any,
    model: str,
    text: str | Path | Sequence[str | Path],
    store: str | Path = "runs",
    *,
    hookpoint: str | None = None,
    name: str | None = None,
    sizes: ExamineSpec | None = None,
    progress: Progress | None = None,
    replace: bool = False,
) -> Examined:
    """Examine an SAE: which of its latents are no better than a placebo's?

    Args:
        sae: The folder or file of an SAE, or several of other seeds; see `read_sae` for the formats.
        model: The model that it was trained on: a hub id, a folder, or a model that comes with a package.
        text: Text to train placebos on and to measure on: a file, a folder, a pattern, or several files.
        store: Folder of artefacts and results.
        hookpoint: Where the SAE reads, such as `resid_post.6`; what its file says unless given.
        name: Name of the trial; made of the SAE's unless given.
        sizes: Tokens and latents.
        progress: Where progress is shown; nowhere by default.
        replace: Whether results of other settings under that name are replaced.

    Raises:
        PlaceboError: anything that a user can mend, in one sentence.
    """
    path = write_trial(sae, model, text, store, hookpoint, name, sizes or ExamineSpec(), progress)
    return examined(path, store, progress, replace)


def examined(
    path: Path, store: str | Path, progress: Progress | None = None, replace: bool = False
) -> Examined:
    """Run the trial that `write_trial` wrote, write `latents.csv` into its results, and return them."""
    from sae_placebo.trial.run import run

    found = Examined(run(path, store, progress=progress, replace=replace))
    found.latents.to_csv(found.table, index=False)
    return found


def write_trial(
    sae: Any,
    model: str,
    text: str | Path | Sequence[str | Path],
    store: str | Path,
    hookpoint: str | None,
    name: str | None,
    sizes: ExamineSpec,
    progress: Progress | None = None,
) -> Path:
    """Write the trial of an examination to `<store>/<name>.toml` and return its path; see `examine`.

    A file of the same content is left as it is; one of another is replaced.
    """
    from sae_placebo.saes.formats import read_sae

    paths = [str(one) for one in (sae if isinstance(sae, list | tuple) else [sae])]
    read = [read_sae(path) for path in paths]
    place = _hookpoint(read[0], paths[0], hookpoint)
    table = _table(read[0], paths, model, _source(text), place, name or _name(paths[0]), sizes)
    if "l0" in table["saes"][_LABEL]:
        table["saes"][_LABEL]["l0"] = _measured_l0(read[0], table, progress or Progress())
    folder = Path(store)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{table['name']}.toml"
        path.write_text(as_toml(table), encoding="utf-8")
    except OSError as problem:
        raise StoreError(f"the trial file cannot be written to {folder}: {problem}") from problem
    return path


def _hookpoint(given: Given, path: str, asked: str | None) -> str:
    """Return where an SAE reads.

    Raises:
        SpecError: neither its file nor the caller says so, or they say different things.
    """
    known = given.site.hookpoint
    if asked is None and known is None:
        said = f"its file says {given.site.hook!r}" if given.site.hook else "its file does not say"
        raise SpecError(
            f"where the SAE in {path} reads is not known here ({said}): name the place, such as "
            "--hookpoint resid_post.6"
        )
    if asked is not None and known is not None and asked != known:
        raise SpecError(
            f"the SAE in {path} was trained at {given.site.hook} ({known}), and {asked} is asked for: leave "
            "--hookpoint out"
        )
    return str(asked or known)


def _name(path: str) -> str:
    parts = [part for part in Path(path).resolve().parts[-2:] if part not in ("/", "")]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(parts)).strip("-.")
    return ("examine-" + name)[:60].rstrip("-.")


def _source(text: str | Path | Sequence[str | Path]) -> str:
    """Return the one name of a text: a file, a folder or a pattern.

    Raises:
        SpecError: several files are given that no pattern names without others.
    """
    if isinstance(text, str | os.PathLike):
        return str(text)
    files = [Path(one) for one in text]
    if len(files) == 1:
        return str(files[0])
    folders, endings = {one.parent for one in files}, {"".join(one.suffixes) for one in files}
    if len(folders) == 1 and len(endings) == 1:
        pattern = next(iter(folders)) / f"*{next(iter(endings))}"
        if set(pattern.parent.glob(pattern.name)) == set(files):
            return str(pattern)
    raise SpecError(
        f"{len(files)} files are given as text, and no pattern names just these: put them into a folder of "
        "their own and name the folder"
    )


def _table(
    given: Given,
    paths: Sequence[str],
    model: str,
    source: str,
    hookpoint: str,
    name: str,
    sizes: ExamineSpec,
) -> dict[str, Any]:
    """Return the tables of the trial file."""
    site, spec = given.site, given.sae.spec
    text: dict[str, Any] = {
        "source": source,
        "train_tokens": sizes.train_tokens,
        "heldout_tokens": sizes.heldout_tokens,
        "context_tokens": max(8, site.context_tokens or 128),
    }
    if site.prepend_bos is False:
        text["bos"] = "none"
    recipe: dict[str, Any] = {"kind": spec.kind, "d_sae": given.d_sae}
    k = getattr(spec, "k", None)
    recipe |= {"l0": 0.0} if k is None else {"k": k}
    asked = [GIVEN, RETRAINED, CALIBRATED]
    contrasts = [[GIVEN, RETRAINED]]
    contrasts += [
        [own, placebo] for own in (RETRAINED, GIVEN) for placebo in (CALIBRATED, SURROGATE)
    ]
    return {
        "name": name,
        "hookpoints": [hookpoint],
        "sae_seeds": list(range(max(2, len(paths)))),
        "contrasts": contrasts,
        "model": {"id": model},
        "text": text,
        "arms": {
            GIVEN: {"control": "trained"},
            RETRAINED: {"dictionary": "retrained"},
            CALIBRATED: {
                "control": "redraw_calibrated",
                "of": {"control": "redraw", "keep": ["embeddings", "unembedding"]},
            },
            SURROGATE: {"data": "surrogate"},
        },
        "saes": {_LABEL: recipe | {"given": [os.path.abspath(path) for path in paths]}},
        "use": {"arms": asked, "latents": sizes.latents},
        "audit": {"arms": [GIVEN, RETRAINED]},
        "circuits": {"arms": asked},
    }


def _measured_l0(given: Given, table: Mapping[str, Any], progress: Progress) -> float:
    """Return the mean number of active latents of an SAE on a little of the text, BOS left out."""
    from sae_placebo.data.text import TextSpec, tokenize
    from sae_placebo.models.loading import ModelSpec, Reader, load_model, load_tokenizer

    model = ModelSpec.model_validate(table["model"])
    text = TextSpec.model_validate(table["text"] | {"train_tokens": 1, "heldout_tokens": _L0_TOKENS})
    with progress.track("L0 of the given SAE", 1, "text") as advance:
        rows = tokenize(text, load_tokenizer(model.id, model.revision), 0)["heldout"]
        (place,) = table["hookpoints"]
        reader = Reader(load_model(model.id, model.revision), [place])
        usable = torch.from_numpy(rows.usable())
        x = reader.read(torch.from_numpy(rows.token_ids).long())[place][usable]
        if given.normalization == "missing_factor":
            given = given.estimated(x)
        norms = torch.linalg.vector_norm(x, dim=1)
        x = x[norms <= 3 * norms.median()]
        codes = given.encode(x)
        advance(1)
    return float(np.round(len(codes.values) / len(x), 2))


def as_toml(table: Mapping[str, Any]) -> str:
    """Return tables as TOML: values first, then a heading for each table in them."""

    def lines(part: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
        values = {key: value for key, value in part.items() if not isinstance(value, Mapping)}
        found = [f"[{'.'.join(names)}]"] if names and (values or not part) else []
        found += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        for key, value in part.items():
            if isinstance(value, Mapping):
                found += ["", *lines(value, (*names, key))]
        return found

    return "\n".join(lines(table, ())) + "\n"
