"""SAEs that were trained elsewhere, in the place of those that an arm of the trial would train.

A trial file names them beside a recipe, `[saes.mine] given = "path"`: the trained arm's SAEs are then read,
one folder for each SAE seed, and every other arm trains its own by the recipe. `given = {arm = "path"}`
gives those of any arm whose model is not drawn.

A given SAE has usually seen many more tokens than the trial offers, of another text. So an arm with
`dictionary = "retrained"` trains the recipe on the trained model: given minus retrained is tokens, text and
recipe, retrained minus a placebo is the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.sealing import file_hash
from sae_placebo.core.store import read_json, write_json
from sae_placebo.models.hookpoints import WRITTEN, parse_hookpoint
from sae_placebo.models.specs import ModelSpec, has_rms_norms, width_at
from sae_placebo.saes.base import SAE

if TYPE_CHECKING:
    from sae_placebo.data.text import TextSpec
    from sae_placebo.saes.formats import Given, Site
    from sae_placebo.trial.spec import TrialSpec

Paths = dict[str, dict[str, tuple[str, ...]]]
"""By SAE label and arm: where each SAE seed's is."""

_FILE = "given.json"
_FREE_ROWS = ("relu", "jumprelu", "gated")
"""Kinds of which a latent's codes and row may be rescaled without another latent taking its place."""
_TRIED = 16_384
"""Held-out tokens that an SAE is tried on before anything is measured."""
_UNIT = 1e-3
"""Rows this near to unit norm are taken as they are."""


def with_given(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's table in which `given` stands apart from the recipes of `[saes.*]`.

    Where a recipe is not written out, it is the given SAE's own, as far as its file tells it.

    Raises:
        SpecError: `given` is neither a path, nor several, nor a table of them by arm; or an SAE's recipe
            cannot be told from its file.
    """
    made, saes, apart = dict(table), table.get("saes"), table.get("given") or {}
    if not isinstance(saes, Mapping) or not isinstance(apart, Mapping):
        return made
    trained = _trained_arm(table.get("arms"))
    paths = {label: _by_arm(label, value, trained) for label, value in apart.items()}
    recipes: dict[str, Any] = {}
    for label, recipe in saes.items():
        if isinstance(recipe, Mapping) and "given" in recipe:
            recipe = dict(recipe)
            paths[label] = _by_arm(label, recipe.pop("given"), trained)
            if "kind" not in recipe:
                recipe = _recipe(next(iter(paths[label].values()))[0]) | recipe
        recipes[label] = recipe
    return made | {"saes": recipes, "given": paths}


def _trained_arm(arms: Any) -> str:
    """Return the label of the arm that is the reference model itself, as far as tables tell it."""
    for arm, one in arms.items() if isinstance(arms, Mapping) else ():
        settings = one if isinstance(one, Mapping) else {}
        changed = any(settings.get(name) is not None for name in ("data", "dictionary"))
        control = settings.get("control", "trained")
        kind = control.get("control") if isinstance(control, Mapping) else control
        if not changed and kind == "trained":
            return str(arm)
    return "trained"


def _by_arm(label: str, value: Any, trained: str) -> dict[str, tuple[str, ...]]:
    given = value if isinstance(value, Mapping) else {trained: value}
    found = {}
    for arm, paths in given.items():
        several = [paths] if isinstance(paths, str | Path) else paths
        if not isinstance(several, list | tuple) or not several:
            raise SpecError(
                f"saes.{label}.given is the path of an SAE, a list of paths, one for each SAE seed, or a "
                f"table of these by arm; found {value!r:.80}"
            )
        found[str(arm)] = tuple(str(path) for path in several)
    return found


def _recipe(path: str) -> dict[str, Any]:
    """Return the settings of an SAE of the same kind and size as a given one.

    Raises:
        SpecError: it has no fixed number of active latents, and its file names none to aim at.
    """
    from sae_placebo.saes.formats import read_sae

    given = read_sae(path)
    recipe: dict[str, Any] = {"kind": given.sae.spec.kind, "d_sae": given.d_sae}
    if given.sae.spec.l0_target() is not None:
        return recipe | {"k": getattr(given.sae.spec, "k", None)}
    if given.site.l0 is None:
        raise SpecError(
            f"the SAE in {path} is of kind {recipe['kind']!r}, and its file does not say how many latents "
            f"are active on a token: write the recipe, such as kind = {recipe['kind']!r}, d_sae = "
            f"{given.d_sae}, l0 = 40; `sae-placebo examine` measures it"
        )
    return recipe | {"l0": given.site.l0}


def identity(path: str) -> dict[str, str]:
    """Return JSON facts that change when a given SAE does: a hash of each of its files.

    Raises:
        SpecError: there is no such file or folder.
        StoreError: it is a name on the hub, which cannot be reached.
    """
    from sae_placebo.saes.formats import hub

    place = Path(path)
    if place.is_file():
        return {place.name: file_hash(place)}
    if not place.exists() and hub.is_hub_id(path):
        place = hub.fetched(path, None)
    if not place.is_dir():
        raise SpecError(f"there is no SAE at {path}: give the folder that holds it, or its file")
    files = sorted(file for file in place.iterdir() if file.is_file())
    return {file.name: file_hash(file) for file in files}


def check_given(spec: TrialSpec) -> None:
    """Refuse given SAEs that do not fit the trial, before anything runs.

    Raises:
        SpecError: there is none, or see `fitting`; or it has another number of latents than the recipe.
        StoreError: it cannot be read.
    """
    from sae_placebo.saes.formats import read_sae

    for label, by_arm in spec.given.items():
        for path in (path for paths in by_arm.values() for path in paths):
            identity(path)
            given, (hookpoint,) = read_sae(path), spec.hookpoints
            fitting(given, hookpoint, width_at(spec.model, hookpoint), spec.model)
            _unit_rows(given.sae)
            if given.d_sae != spec.saes[label].d_sae:
                raise SpecError(
                    f"the SAE in {path} has {given.d_sae:,} latents, and saes.{label}.d_sae is "
                    f"{spec.saes[label].d_sae:,}: placebos are of the same width, so make them equal"
                )


def fitting(
    given: Given, hookpoint: str, width: int | None, model: ModelSpec | None = None
) -> tuple[str, ...]:
    """Return what is to be said of a given SAE at a place of a model.

    Args:
        given: The SAE, as read.
        hookpoint: The place.
        width: Of the activations there; None where it is not known.
        model: The model; None for one that is read as it is.

    Raises:
        SpecError: it reads another width, or another place or other activations of it by its own metadata; or
            it normalizes every token.
    """
    site = given.site.hookpoint
    if site is not None and site != hookpoint:
        raise SpecError(
            f"the given SAE was trained at {given.site.hook} ({site}), and the trial reads {hookpoint}: set "
            f'hookpoints = ["{site}"]'
        )
    loaded = _of_the_same_activations(given, hookpoint, model)
    if width is not None and given.d_in != width:
        raise SpecError(
            f"the given SAE reads activations of width {given.d_in}, and those at {hookpoint} have "
            f"{width}: it belongs to another model or place"
        )
    if given.normalization not in ("none", "missing_factor"):
        raise SpecError(
            f"the given SAE normalizes every token by itself ({given.normalization}), so its codes are in no "
            "unit that a trial can compare; such an SAE is read (read_sae), and not examined"
        )
    return loaded


def ready(
    given: Given, x: Any, hookpoint: str, model: ModelSpec | None = None
) -> tuple[SAE, list[str]]:
    """Return a given SAE with decoder rows of unit norm, in model units, and what to say of it.

    Args:
        given: The SAE, as read.
        x: [token, d_in] some of the activations that it is to read, for a factor that its file lacks.
        hookpoint: Where they come from.
        model: The model that they come from; None for one that is read as it is.

    Raises:
        SpecError: see `fitting`; or it is a TopK SAE whose rows have other norms.
    """
    loaded = fitting(given, hookpoint, x.shape[1], model)
    if given.normalization == "missing_factor":
        given = given.estimated(x)
    return _unit_rows(given.sae), [*given.notes, *given.warnings, *loaded]


def _of_the_same_activations(
    given: Given, hookpoint: str, model: ModelSpec | None
) -> tuple[str, ...]:
    """Return what is to be said of how the model was loaded on which a given SAE was trained.

    Raises:
        SpecError: the activations of its training are not those that the trial reads.
    """
    from sae_placebo.saes.formats.processing import processing

    found = processing(given.site.model_arguments, hookpoint)
    if parse_hookpoint(hookpoint).site not in WRITTEN:
        return found.notes
    centred = model is not None and model.centred
    if found.centred and not centred:
        if model is not None and has_rms_norms(model):
            return (
                *found.notes,
                "Its file asks for center_writing_weights, which TransformerLens does not do to RMSNorms.",
            )
        raise SpecError(
            f"the given SAE was trained on activations at {hookpoint} without each token's mean over "
            "dimensions (center_writing_weights in its model_from_pretrained_kwargs): set "
            "[model] centred = true"
        )
    if centred and not found.centred:
        return (
            *found.notes,
            "Its file does not ask for center_writing_weights, and the trial reads activations without each "
            "token's mean (model.centred).",
        )
    return found.notes


def _unit_rows(sae: SAE) -> SAE:
    """Return the same SAE with decoder rows of unit norm, whose codes have taken their lengths.

    Raises:
        SpecError: the largest codes are kept, and rows of other norms would make others the largest.
    """
    norms = torch.linalg.vector_norm(sae.params["W_dec"], dim=1)
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    if bool(((norms - 1).abs() <= _UNIT).all()):
        return sae
    alike = bool((norms / norms.mean() - 1).abs().max() <= _UNIT)
    if sae.spec.kind not in _FREE_ROWS and not alike:
        raise SpecError(
            f"the given SAE keeps the largest codes of a token ({sae.spec.kind}), and its decoder rows have "
            f"norms from {float(norms.min()):.3g} to {float(norms.max()):.3g}: which are the largest would "
            "change with rows of unit norm, which a trial needs"
        )
    params = dict(sae.params) | {"W_dec": sae.params["W_dec"] / norms[:, None]}
    if sae.spec.kind == "gated":  # the gate stays; the magnitude is what grows
        params["r_mag"] = params["r_mag"] + norms.log()
        params["b_mag"] = params["b_mag"] * norms
        return SAE(sae.spec, params)
    params["W_enc"] = (params["W_enc"].t() * norms[:, None]).t()
    for name in sae.spec.in_activation_units:
        params[name] = params[name] * norms
    return SAE(sae.spec, params)


@dataclass(frozen=True)
class GivenSAE:
    """One given SAE in the form that a trial computes with, and what is said of it.

    Attributes:
        label: Its label in the trial.
        sae_seed: The seed whose place it takes.
        path: Where it was read from.
        hookpoint: What it reads.
        sae: The SAE, with decoder rows of unit norm, in model units.
        given: It as it was read.
        notes: What was changed in reading, and what may be wrong with it.
        l0: Mean number of active latents on the activations it was tried on.
        explained_variance: The share of their variance that it explains; below 0 it is worse than the mean.
    """

    label: str
    sae_seed: int
    path: str
    hookpoint: str
    sae: SAE
    given: Given
    notes: tuple[str, ...]
    l0: float
    explained_variance: float

    @classmethod
    def read(
        cls,
        label: str,
        sae_seed: int,
        path: str,
        x: Any,
        spec: TrialSpec,
    ) -> GivenSAE:
        """Return the SAE at a path, tried on some activations [token, d_in] of a trial.

        Raises:
            SpecError: it does not fit; see `ready`.
            StoreError: it cannot be read.
        """
        from sae_placebo.saes.formats import read_sae

        given = read_sae(path)
        (hookpoint,) = spec.hookpoints
        sae, notes = ready(given, x[:_TRIED], hookpoint, spec.model)
        codes = sae.encode(x[:_TRIED])
        error = (x[:_TRIED] - sae.decode(codes)).double().square().sum()
        spread = (x[:_TRIED] - x[:_TRIED].mean(0)).double().square().sum()
        l0, explained = len(codes.values) / len(x[:_TRIED]), float(1 - error / spread)
        notes += [*_doubts(given, l0, explained), *_left_out(given.site, spec.text)]
        return cls(label, sae_seed, path, hookpoint, sae, given, tuple(notes), l0, explained)

    def record(self) -> dict[str, Any]:
        """Return what is said of it, as JSON."""
        site = self.given.site
        return {
            "sae": self.label,
            "sae_seed": self.sae_seed,
            "path": self.path,
            "format": self.given.format,
            "kind": self.sae.spec.kind,
            "d_sae": self.sae.d_sae,
            "hookpoint": self.hookpoint,
            "hook": site.hook,
            "model": site.model,
            "prepend_bos": site.prepend_bos,
            "context_tokens": site.context_tokens,
            "positions": None if site.positions is None else list(site.positions),
            "excluded_tokens": _plain(site.excluded_tokens),
            "model_arguments": dict(site.model_arguments),
            "l0_stated": site.l0,
            "l0": self.l0,
            "explained_variance": self.explained_variance,
            "notes": list(self.notes),
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _doubts(given: Given, l0: float, explained: float) -> list[str]:
    """Return why an SAE may not be where it belongs, one sentence each."""
    found, stated = [], given.site.l0
    if explained < 0:
        found.append(
            f"It explains less than the mean does ({explained:.2f} of the variance): it was probably trained "
            "at another place, on another model, or on activations of another scale."
        )
    if stated and not 0.5 <= l0 / stated <= 2:
        found.append(
            f"Its file says that {stated:g} latents are active on a token, and here {l0:.1f} are: text, "
            "place or scale may be others."
        )
    return found


def _left_out(site: Site, text: TextSpec) -> list[str]:
    """Return which positions and tokens were left out of its training that count in a trial."""
    found = []
    if site.positions is not None and text.positions is None:
        found.append(
            f"Its training used positions {list(site.positions)} of a context alone (start, stop, step), "
            "and here all count: set text.positions."
        )
    if site.excluded_tokens and not text.exclude_tokens:
        found.append(
            "Its training left some tokens out, and here they count: set text.exclude_tokens."
        )
    return found


def write_given(folder: Path, saes: Iterable[GivenSAE]) -> None:
    """Write what is said of given SAEs into a train artefact."""
    write_json(folder / _FILE, [one.record() for one in saes])


def read_given(folder: Path) -> list[dict[str, Any]]:
    """Return what is said of the given SAEs of a train artefact; nothing where none was given."""
    path = folder / _FILE
    return list(read_json(path)) if path.is_file() else []
