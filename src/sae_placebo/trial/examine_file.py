"""The file of an examination's trial: what is written for an SAE, a model and some text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress
from sae_placebo.models.hookpoints import WRITTEN, parse_hookpoint
from sae_placebo.models.specs import ModelSpec, has_rms_norms
from sae_placebo.saes.formats import Given, Site, read_sae
from sae_placebo.saes.formats.objects import is_object, save_object
from sae_placebo.saes.formats.processing import processing
from sae_placebo.trial.given import check_given
from sae_placebo.trial.overriding import parse_overrides, set_value
from sae_placebo.trial.spec import TrialSpec, load_trial

GIVEN, RETRAINED = "given", "retrained"
"""Labels of the arms of the trained model."""
CALIBRATED, SURROGATE = "redraw_calibrated", "surrogate"
"""Labels of the placebos."""
_LABEL = "mine"
_TRIED_TOKENS = 4_096
"""Held-out tokens on which an SAE's L0 is measured, and an object is compared with what was saved of it."""
_UNKNOWN = 1.0
"""In the place of an L0 that has yet to be measured."""
_CONTEXT = 128
"""Tokens of a context where the SAE's file does not say how many."""
_L0_TOLERANCE = 0.03
"""Largest difference of L0, relative to the given SAE's, at which an arm is called matched."""


@dataclass(frozen=True)
class ExamineSpec:
    """The settings of an examination.

    Attributes:
        train_tokens: Tokens that the placebos' SAEs and the retrained one are trained on.
        heldout_tokens: Tokens that all are measured on.
        latents: How many latents of the given and of the retrained SAE are asked for use and circuitry.
        name: Name of the trial; made of the SAE's where it is None.
        overrides: `dotted.key=value` settings of the trial that replace what would be written.
    """

    train_tokens: int = 120_000
    heldout_tokens: int = 50_000
    latents: int = 200
    name: str | None = None
    overrides: tuple[str, ...] = ()


def write_trial(
    sae: Any,
    model: str,
    text: str | Path | Sequence[str | Path],
    store: str | Path,
    hookpoint: str | None,
    settings: ExamineSpec,
    progress: Progress | None = None,
) -> Path:
    """Write the trial of an examination to `<store>/<name>.toml` and return its path; see `examine`.

    A file of the same content is left as it is; one of another is replaced.
    """
    progress, folder = progress or Progress(), Path(store)
    given = list(sae) if isinstance(sae, list | tuple) else [sae]
    if not given:
        raise SpecError("no SAE is given to examine: give its folder, or several of other seeds")
    name = settings.name or _name(given[0])
    first = _changed({"model": {"id": model}, "text": _text(text, settings)}, settings.overrides)
    paths = _written(
        given, folder / "given" / name, lambda: _tried(_bare(first, hookpoint), progress)
    )
    read = read_sae(paths[0])
    table = _table(read, paths, first, _hookpoint(read, paths[0], hookpoint), settings)
    table = _changed({"name": name} | table, settings.overrides)
    spec, recipe = load_trial(table), table["saes"][_LABEL]
    check_given(spec)
    if recipe.get("l0") == _UNKNOWN:
        recipe["l0"] = _measured_l0(read, _tried(spec, progress))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{table['name']}.toml"
        path.write_text(as_toml(table), encoding="utf-8")
    except OSError as problem:
        raise StoreError(f"the trial file cannot be written to {folder}: {problem}") from problem
    return path


def _changed(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return tables in which some settings are replaced."""
    for place, value in parse_overrides(list(overrides)):
        set_value(table, place, value)
    return table


def _written(
    given: Sequence[Any], folder: Path, activations: Callable[[], torch.Tensor]
) -> list[str]:
    """Return where each SAE lies; those that are objects are written below `folder` first.

    Raises:
        SpecError: an SAE is neither a path nor an object with `encode` and `decode`.
    """
    paths = []
    for i, one in enumerate(given):
        if isinstance(one, str | os.PathLike):
            paths.append(str(one))
            continue
        if not is_object(one):
            raise SpecError(
                "an SAE is the path of its folder, or an object with encode, decode and W_dec; found "
                f"{type(one).__name__}"
            )
        save_object(one, folder / f"sae-{i}", activations)
        paths.append(str(folder / f"sae-{i}"))
    return paths


def _bare(first: Mapping[str, Any], hookpoint: str | None) -> TrialSpec:
    """Return a trial of a model, a text and a place, before anything is known of its SAE.

    Raises:
        SpecError: no hookpoint is known, or a setting is wrong.
    """
    if hookpoint is None:
        raise SpecError(
            'where an SAE object reads is not known: name the place, such as hookpoint="resid_post.6"'
        )
    sae = {"kind": "topk", "d_sae": 1, "k": 1}
    arms = {GIVEN: {"control": "trained"}, SURROGATE: {"data": "surrogate"}}
    return load_trial(
        {"name": "bare", "hookpoints": [hookpoint], "arms": arms, "saes": {_LABEL: sae}, **first}
    )


def _tried(spec: TrialSpec, progress: Progress) -> torch.Tensor:
    """Return some of a trial's held-out activations [token, d_in], BOS and outliers left out."""
    from sae_placebo.data.text import cut
    from sae_placebo.models.centring import centre
    from sae_placebo.models.loading import Reader, load_model
    from sae_placebo.trial.stages.materials import tokenizer_of

    with progress.track("try the given SAE", 1, "text") as advance:
        tokenizer, n_ids = tokenizer_of(spec, spec.model.id)
        # the whole text, so that too little of it is said now
        rows = cut(spec.text, tokenizer, spec.seed, n_ids=n_ids).splits["heldout"]
        n = -(-_TRIED_TOKENS // rows.token_ids.shape[1])
        model = load_model(spec.model.id, spec.model.revision)
        if spec.model.centred:
            centre(model)
        reader = Reader(model, list(spec.hookpoints))
        (found,) = reader.read(torch.from_numpy(rows.token_ids[:n]).long()).values()
        x = found[torch.from_numpy(rows.usable()[:n])]
        norms = torch.linalg.vector_norm(x, dim=1)
        advance(1)
    return x[norms <= spec.harvest.outlier_ratio * norms.median()]


def _place(path: str) -> str:
    """Return the whole path of an SAE that lies here; a name on the hub stays as it is."""
    return str(Path(path).absolute()) if Path(path).exists() else path


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


def _name(sae: Any) -> str:
    """Return the name of a trial, made of its SAE's."""
    path = sae if isinstance(sae, str | os.PathLike) else type(sae).__name__
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


def _text(text: str | Path | Sequence[str | Path], settings: ExamineSpec) -> dict[str, Any]:
    """Return the table of the text."""
    return {
        "source": _source(text),
        "train_tokens": settings.train_tokens,
        "heldout_tokens": settings.heldout_tokens,
    }


def _table(
    given: Given,
    paths: Sequence[str],
    first: Mapping[str, Any],
    hookpoint: str,
    settings: ExamineSpec,
) -> dict[str, Any]:
    """Return the tables of the trial file; `first` are those of the model and the text."""
    site, spec = given.site, given.sae.spec
    text = {"context_tokens": max(8, site.context_tokens or _CONTEXT)} | first["text"]
    text = _read_alike(site) | text
    if site.prepend_bos is False:
        text = {"bos": "none"} | text
    recipe: dict[str, Any] = {"kind": spec.kind, "d_sae": given.d_sae}
    k = getattr(spec, "k", None)
    recipe |= {"l0": _UNKNOWN} if k is None else {"k": k}
    asked = [GIVEN, RETRAINED, CALIBRATED]
    contrasts = [[GIVEN, RETRAINED]]
    contrasts += [
        [own, placebo] for own in (RETRAINED, GIVEN) for placebo in (CALIBRATED, SURROGATE)
    ]
    return {
        "hookpoints": [hookpoint],
        "sae_seeds": list(range(max(2, len(paths)))),
        "contrasts": contrasts,
        "model": _centred(given, hookpoint, first["model"]) | first["model"],
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
        "saes": {_LABEL: recipe | {"given": [_place(path) for path in paths]}},
        "use": {"arms": asked, "latents": settings.latents},
        "measurement": {"l0_tolerance": _L0_TOLERANCE},
        "audit": {"arms": [GIVEN, RETRAINED]},
        "circuits": {"arms": asked},
    }


def _read_alike(site: Site) -> dict[str, Any]:
    """Return the settings of the text by which positions and tokens count that counted in training."""
    found: dict[str, Any] = {}
    if site.positions is not None:
        start, stop, step = (*site.positions, None, None, None)[:3]
        most = site.context_tokens or _CONTEXT
        slices = [start or 0] + ([] if stop is step is None else [most if stop is None else stop])
        found["positions"] = slices + ([] if step is None else [step])
    if site.excluded_tokens is True:
        found["exclude_tokens"] = True
    elif site.excluded_tokens:
        found["exclude_tokens"] = list(site.excluded_tokens)
    return found


def _centred(given: Given, hookpoint: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the setting by which the model is read as it was in the SAE's training; none where as it is.

    Raises:
        SpecError: the model was loaded there in a way that reading it does not follow.
    """
    asked = processing(given.site.model_arguments, hookpoint).centred
    written = parse_hookpoint(hookpoint).site in WRITTEN
    if not (asked and written) or has_rms_norms(ModelSpec.model_validate(model)):
        return {}
    return {"centred": True}


def _measured_l0(given: Given, x: torch.Tensor) -> float:
    """Return the mean number of active latents of an SAE on some activations."""
    if given.normalization == "missing_factor":
        given = given.estimated(x)
    codes = given.encode(x)
    return round(len(codes.values) / len(x), 2)


def as_toml(table: Mapping[str, Any]) -> str:
    """Return tables as TOML: values first, then a heading for each table in them."""

    def lines(part: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
        values = {key: value for key, value in part.items() if not isinstance(value, Mapping)}
        found = [f"[{'.'.join(names)}]"] if names and (values or not part) else []
        found += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
        ]
        for key, value in part.items():
            if isinstance(value, Mapping):
                found += ["", *lines(value, (*names, key))]
        return found

    return "\n".join(lines(table, ())) + "\n"
