"""Edges from latents at one hookpoint, the sources, to latents at a later one, the targets.

The weight of an edge is what the source's decoder adds to the target's pre-activation along the residual
stream, on average over the tokens on which the target fires. Decoders align by chance, and latents fire
together for many reasons. So the alignment of a source is compared with that of other sources that fire as
often, and as much with the target, and what is left with that of pseudo-targets, which read at random. The
top edges are then tried on the model itself, by ablating the source.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from pydantic import Field

from sae_placebo.causal.circuits.edge_nulls import (
    FEWEST_SOURCES,
    Chance,
    Readouts,
    Standard,
    pseudo_targets,
    sources_of,
    unit_rows,
)
from sae_placebo.causal.circuits.streams import later_than
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import CleanRow
from sae_placebo.causal.use.null_directions import turned
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.latents.base import Encoded
from sae_placebo.models.forward_pass import Stopped
from sae_placebo.models.hookpoints import Hookpoint, parse_hookpoint
from sae_placebo.models.sites import HookedModules, resolve
from sae_placebo.stats.multiplicity import adjusted

_COLUMNS = (
    *("source", "target", "alignment", "weight", "n", "lift", "null_percentile", "z"),
    *("chance_p", "q"),
    *("effect", "null_effect", "p", "n_firings", "confirmed", "reason"),
)


class EdgeSpec(Spec):
    """Which edges are kept, what they are compared with, and which are tried on the model."""

    keep: int = Field(5, ge=1)
    """So many edges into each target are kept, those of the largest |weight|."""
    together: int = Field(10, ge=2)
    """Source and target must both be active on at least so many tokens."""
    levels: int = Field(4, ge=1)
    """A source is compared with others at its level of firing rate and of co-firing. There are so many
    levels of each, or fewer where a target has few sources."""
    level: float = Field(0.05, gt=0, lt=1)
    """An edge is a candidate for confirmation if its q is at most this, and confirmed if its p is."""
    confirm: int = Field(20, ge=0)
    """So many candidates are tried on the model, those of the largest |weight|."""
    firings: int = Field(8, ge=1)
    """Each is tried at so many tokens, in different documents where there are as many."""
    nulls: int = Field(19, ge=1)
    """Each is compared with so many null directions."""
    pseudo: int = Field(300, ge=30)
    """What chance gives is taken from so many pseudo-targets."""
    block: int = Field(512, ge=1)
    """The alignments of so many targets with all sources are held at once. This changes no result."""


def edges(
    subject: Subject,
    sources: Directions,
    target: Encoded,
    hookpoint: str,
    spec: EdgeSpec | None = None,
    seed: int = 0,
) -> pandas.DataFrame:
    """Return the top edges into each target latent.

    Let d_i be the direction of source i and a_it its amount at token t, and e_j the encoder of target j. The
    weight of the edge from i to j is

        weight_ji = V_ji mean_{t: j active} a_it,    V_ji = e_j . d_i.

    z takes most sources of a target as unconnected to it: it is V's distance from that of sources like i.
    Its null is the z of pseudo-targets (`edge_nulls`). Confirmation says that the effect is there, and is no
    evidence against chance. For a random direction that happens to align with e_j moves a_j as well, and the
    edges tried were picked by V.

    Args:
        subject: The model behind the earlier hookpoint.
        sources: The latents there, with amounts in model units.
        target: The SAE at the later hookpoint, on the same tokens.
        hookpoint: The later hookpoint.
        spec: The settings.
        seed: The seed of the tokens and of the null directions.

    Returns:
        One row per edge, those of the largest |weight| first:

        - source, target: the latents;
        - alignment: V;
        - weight: in units of the target's pre-activation;
        - n: on how many tokens both are active;
        - lift: the source's firing rate where the target fires, over its rate everywhere;
        - null_percentile: the percentage of the other sources in the stratum with a lower V. A stratum is of
          sources with about the same firing rate and mean amount where the target fires;
        - z: V's distance from the stratum's median, in standard deviations by the quartiles of these
          distances over all sources of the target, after each source's V is divided by what random mixtures
          of the encoders have with it on average;
        - chance_p: the two-sided rank of z among that of pseudo-targets' sources;
        - q: of chance_p, among all pairs of latents that fire together often enough, of all targets
          (Benjamini-Hochberg), so that of all edges with q below .05 about 5% at most are chance;
        - effect: what removing a_i d_i from the earlier activation takes from a_j at the same token,
          through the model;
        - null_effect: the mean of this over directions at the same angle to the activation;
        - p: the rank of the effect among these, in the direction of the weight's sign;
        - n_firings: at how many tokens the edge was tried;
        - confirmed: whether p is at most `spec.level`;
        - reason: why an edge was not tried. The effect and its tests are then missing.

    Raises:
        SpecError: the target was read on other tokens, or its hookpoint is not behind that of the sources.

    Source: expected residual attribution, Anthropic's circuit updates (2025). Center and spread are taken
    from the data as in Efron 2004 (JASA 99:96), but not his normal tail: center and spread of a few dozen
    values err too much for it. Strata, pseudo-targets and confirmation are this package's.
    """
    spec = spec or EdgeSpec()
    later = parse_hookpoint(hookpoint)
    if not later_than(later, subject.downstream.hookpoint):
        raise SpecError(
            f"{later.name} is not behind {subject.downstream.hookpoint.name}; edges lead from an earlier "
            "hookpoint to a later one."
        )
    if target.codes.shape[0] != sources.amounts.shape[0]:
        raise SpecError(
            f"the target was read on {target.codes.shape[0]} tokens and the sources on "
            f"{sources.amounts.shape[0]}; both must be read on the same ones."
        )
    table = _weighed(sources, target, spec, seed)
    return _confirmed(table, subject, sources, target, later, spec, seed)


# --- weights -----------------------------------------------------------------------------------------


def _weighed(sources: Directions, target: Encoded, spec: EdgeSpec, seed: int) -> pandas.DataFrame:
    """Return the edges that are kept, with their weights and tests against pseudo-targets."""
    encoders = target.sae.params["W_enc"].detach().float().cpu().numpy().T
    active = (target.by_latent > 0).astype(np.float32)
    targets, length = Readouts(unit_rows(encoders), active), np.linalg.norm(encoders, axis=1)
    standard = Standard(targets, sources, spec.levels)
    chance = _chance(targets, sources, target, standard, spec, seed)
    rate = sources.n_active / sources.amounts.shape[0]
    tables: list[pandas.DataFrame] = []
    every: list[Float64[np.ndarray, " source"]] = []
    for one in sources_of(targets, sources, spec.together, spec.block):
        z, percentile = standard(one)
        p = np.full(len(z), np.nan) if chance is None else chance.p(z)
        alignment = one.alignment * length[one.readout]
        weight = alignment * one.mean
        top = np.argsort(-np.abs(weight), kind="stable")[: spec.keep]
        lift = one.together / one.n / rate[one.source]
        columns = {
            **{"source": one.source, "alignment": alignment, "weight": weight, "n": one.together},
            **{"lift": lift, "null_percentile": percentile, "z": z, "chance_p": p},
        }
        table = pandas.DataFrame({name: values[top] for name, values in columns.items()})
        tables.append(table.assign(target=one.readout, row=sum(map(len, every)) + top))
        every.append(p)
    if not tables:
        return pandas.DataFrame({name: np.zeros(0) for name in _COLUMNS})
    table = pandas.concat(tables, ignore_index=True)
    table["q"] = adjusted(np.concatenate(every))[table.pop("row").to_numpy()]
    order = np.argsort(-np.abs(table["weight"].to_numpy()), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def _chance(
    targets: Readouts,
    sources: Directions,
    target: Encoded,
    standard: Standard,
    spec: EdgeSpec,
    seed: int,
) -> Chance | None:
    """Return what pseudo-targets have; None where too few of them have enough sources."""
    x = target.activations.detach().float().cpu().numpy()
    try:
        random = pseudo_targets(targets, x, spec.pseudo, spec.together, seed)
        found = sources_of(random, sources, spec.together, spec.block)
        return Chance([standard(one)[0] for one in found])
    except NotEstimable:
        return None


# --- confirmation ------------------------------------------------------------------------------------


def _confirmed(
    table: pandas.DataFrame,
    subject: Subject,
    sources: Directions,
    target: Encoded,
    later: Hookpoint,
    spec: EdgeSpec,
    seed: int,
) -> pandas.DataFrame:
    """Return the table of edges with the outcome for each that is tried on the model."""
    table = table.assign(effect=np.nan, null_effect=np.nan, p=np.nan, n_firings=0, confirmed=None)
    surprising = table["q"].to_numpy(dtype=np.float64) <= spec.level
    untested = f"fewer than {FEWEST_SOURCES} sources fire with its target, or with pseudo-targets"
    table["reason"] = np.select(
        [surprising, table["q"].isna()],
        ["not among the edges tried", untested],
        "its alignment is not beyond chance",
    ).astype(object)
    trial = _Trial(subject, sources, target, later, spec, seed)
    for edge in np.flatnonzero(surprising)[: spec.confirm]:
        source, latent = int(table.at[edge, "source"]), int(table.at[edge, "target"])
        sign = float(np.sign(table.at[edge, "weight"]))
        effects, n = trial.effects(source, latent)
        table.loc[edge, ["effect", "null_effect"]] = effects[0], effects[1:].mean()
        p = (1 + int((sign * effects[1:] >= sign * effects[0]).sum())) / len(effects)
        table.loc[edge, ["p", "n_firings"]] = p, n
        table.at[edge, "confirmed"] = p <= spec.level
        table.at[edge, "reason"] = ""
    return table[list(_COLUMNS)]


@dataclass(frozen=True, eq=False)
class _Trial:
    """Ablations of sources, and of null directions in their place, and what they take from targets."""

    subject: Subject
    sources: Directions
    target: Encoded
    later: Hookpoint
    spec: EdgeSpec
    seed: int

    @functools.cached_property
    def _sites(self) -> HookedModules:
        return resolve(self.subject.downstream.model, [self.later])

    def effects(self, source: int, latent: int) -> tuple[Float64[np.ndarray, " edit"], int]:
        """Return what the source's removal takes from the target, then each null's, and at how many tokens.

        These are means over the tokens at which the edge is tried, in units of the target's activation.
        """
        random = numpy_generator(self.seed, "edges", source, latent)
        tokens = self._firings(source, latent, random)
        vector = torch.from_numpy(self.sources.vectors[source])
        drawn = torch.from_numpy(
            random.standard_normal((self.spec.nulls, len(vector))).astype(np.float32)
        )
        total = np.zeros(1 + self.spec.nulls)
        for row, part in self.subject.by_row(tokens):
            clean = self.subject.clean(row)
            for token in tokens[part]:
                position = int(self.subject.tokens.places[token, 1])
                x = clean.site[position].float().cpu()
                amount = float(self.sources.amounts[token, source])
                edits = torch.cat(
                    [torch.zeros(1, len(vector)), vector[None], turned(drawn, vector, x)]
                )
                after = self._after(clean, position, -amount * edits)
                codes = self.target.sae.encode(after)
                owner, which = codes.tokens().numpy(), codes.latents.numpy()
                activity = np.zeros(len(edits))
                activity[owner[which == latent]] = codes.values.numpy()[which == latent]
                total += activity[0] - activity[1:]
        return total / max(len(tokens), 1), len(tokens)

    def _firings(
        self, source: int, latent: int, random: np.random.Generator
    ) -> Int64[np.ndarray, " firing"]:
        """Return random tokens on which both fire, those of different documents first."""
        columns = self.sources.by_direction, self.target.by_latent
        both = [
            m.indices[m.indptr[i] : m.indptr[i + 1]]
            for m, i in zip(columns, (source, latent), strict=True)
        ]
        tokens = random.permutation(np.intersect1d(*both))
        documents = self.subject.tokens.documents[tokens]
        # the first of each document, in random order, before further ones
        first = np.zeros(len(tokens), dtype=bool)
        first[np.unique(documents, return_index=True)[1]] = True
        ordered = np.concatenate([tokens[first], tokens[~first]])
        return ordered[: self.spec.firings].astype(np.int64)

    def _after(
        self, clean: CleanRow, position: int, deltas: Float[torch.Tensor, "edit d_in"]
    ) -> Float[torch.Tensor, "edit d_later"]:
        """Return the later activation of one token under each edit of its earlier one."""
        downstream = self.subject.downstream
        n = len(deltas)
        past = downstream.prefix_before(clean, position, n)
        start = position if past is not None else 0
        span = slice(start, position + 1)
        delta = torch.zeros(n, position + 1 - start, deltas.shape[1], device=downstream.device)
        delta[:, -1] = deltas.to(downstream.device)
        seen: list[torch.Tensor] = []

        def stop(x: torch.Tensor) -> None:
            seen.append(x[:, -1].clone())
            raise Stopped

        with torch.no_grad(), self._sites.hooked({self.later: stop}), contextlib.suppress(Stopped):
            downstream.logits(
                clean.token_ids[span].expand(n, -1),
                clean.entering[span].expand(n, -1, -1),
                delta,
                past,
            )
        return seen[0].float().cpu()
