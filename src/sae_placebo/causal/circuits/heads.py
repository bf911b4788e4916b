"""Induction heads and previous-token heads, by where they attend, and the latents that they write.

A previous-token head attends to the token before. An induction head attends to the token after an earlier
copy of the present one; on random tokens nothing but such a copy shows it where to attend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64
from pydantic import Field

from sae_placebo.causal.circuits.writers import Writers
from sae_placebo.core.errors import ModelError, NotEstimable
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.data.rows import Rows
from sae_placebo.latents.columns.repeats import occurrences, repeat_rows
from sae_placebo.models.forward_pass import Stopped, eager_attention, run_until_stopped
from sae_placebo.models.sites import attention_module, decoder_layers

_BATCH = 8
"""So many rows are read at once."""
_TWO_SIDED = 1.959963984540054
"""The normal quantile of a two-sided 95% interval."""


_WRITTEN = (
    *("latent", "layer", "head", "head_kind", "share", "low", "high", "null95"),
    *("above", "above_both", "n"),
)


class HeadSpec(Spec):
    """The tokens on which attention heads are measured, and when a head gets a name."""

    text_rows: int = Field(48, ge=2)
    """Previous-token attention is measured on so many random rows of text."""
    repeat_rows: int = Field(24, ge=2)
    """Induction is measured on so many rows that hold a random block twice, and on as many rows of two
    different blocks."""
    block: int = Field(48, ge=4)
    """A block has so many tokens, or fewer where two blocks do not fit in a row of the text."""
    least: float = Field(0.2, gt=0, lt=1)
    """A head gets its name if the lower end of the interval of its attention to the place is more than this
    above its null."""


@dataclass(frozen=True, eq=False)
class HeadScores:
    """The mean attention, 0 to 1, of each head to two kinds of places; arrays are by head, layer by layer.

    Attributes:
        layer: The layer of each head.
        head: Its number in the layer.
        previous: The attention to the token before, on text.
        previous_se: The standard error of this, over rows.
        previous_null: The attention that the place would get if it were spread evenly over all tokens in
            reach.
        induction: The attention from the second copy of a random token to the token after the first copy.
        induction_se: The standard error of this, over rows.
        induction_null: The attention that the place would get if it were spread evenly.
        induction_fresh: The attention between the same positions where the first block is a different one,
            which is what position alone does.
        n_previous: How many tokens of text were measured.
        n_induction: How many tokens of repeated blocks were measured.
        least: The excess over the null from which on a head gets its name.
    """

    layer: Int64[np.ndarray, " head"]
    head: Int64[np.ndarray, " head"]
    previous: Float64[np.ndarray, " head"]
    previous_se: Float64[np.ndarray, " head"]
    previous_null: Float64[np.ndarray, " head"]
    induction: Float64[np.ndarray, " head"]
    induction_se: Float64[np.ndarray, " head"]
    induction_null: Float64[np.ndarray, " head"]
    induction_fresh: Float64[np.ndarray, " head"]
    n_previous: int
    n_induction: int
    least: float

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def is_previous(self) -> Bool[np.ndarray, " head"]:
        """Which heads attend to the token before, by more than `least` beyond even attention."""
        low = self.previous - _TWO_SIDED * self.previous_se - self.previous_null
        return np.asarray(low > self.least)

    @property
    def is_induction(self) -> Bool[np.ndarray, " head"]:
        """Which heads attend to the token after the earlier copy, by more than `least` beyond their null.

        The null is even attention, or what position alone does where that is more.
        """
        null = np.maximum(self.induction_null, self.induction_fresh)
        return np.asarray(self.induction - _TWO_SIDED * self.induction_se - null > self.least)

    @property
    def kind(self) -> list[str]:
        """The name of each head: `induction`, `previous token`, both joined by ` and `, or nothing."""
        both = zip(self.is_induction, self.is_previous, strict=True)
        return [
            " and ".join(["induction"] * bool(i) + ["previous token"] * bool(p)) for i, p in both
        ]

    def table(self) -> pandas.DataFrame:
        """Return one row per head: scores, 95% intervals over rows, nulls, numbers of tokens, kind."""
        columns: dict[str, Any] = {"layer": self.layer, "head": self.head}
        for name in ("previous", "induction"):
            # attention weights sum to 1 only up to rounding, so that a mean can be larger
            value, se = np.minimum(getattr(self, name), 1), getattr(self, name + "_se")
            columns[name] = value
            columns[name + "_low"] = np.maximum(value - _TWO_SIDED * se, 0)
            columns[name + "_high"] = np.minimum(value + _TWO_SIDED * se, 1)
            columns[name + "_null"] = getattr(self, name + "_null")
            columns["n_" + name] = getattr(self, "n_" + name)
        columns["induction_fresh"] = self.induction_fresh
        return pandas.DataFrame(columns).assign(kind=self.kind)


def head_scores(
    model: torch.nn.Module, rows: Rows, seed: int, spec: HeadSpec | None = None
) -> HeadScores:
    """Return how much every head of a model attends to the token before, and after earlier copies.

    Attention weights come from the model's own attention with its "eager" setting, which is put back
    afterwards. The first position of a row counts neither as a query nor, for previous-token attention, as
    a target, since models park attention there.

    Args:
        model: A causal language model.
        rows: The rows of text. Random blocks are drawn from the token ids in them.
        seed: The seed of all draws.
        spec: The settings.

    Raises:
        ModelError: a layer's attention does not return its weights.
        NotEstimable: fewer than two rows are long enough, or a block would have fewer than four tokens.

    Source: prefix matching on repeated random tokens, Olsson et al. 2022 (arXiv 2209.11895). Differs: there
    it has no null; the different first block as a null is this package's.
    """
    spec = spec or HeadSpec()
    long = np.flatnonzero(rows.lengths > 3)
    if len(long) < 2:
        raise NotEstimable(f"{len(long)} rows have more than three tokens; two or more are needed")
    random = numpy_generator(seed, "rows for heads")
    drawn = np.sort(random.choice(long, min(spec.text_rows, len(long)), replace=False))
    previous = _previous(model, rows, drawn)
    block = min(spec.block, (rows.token_ids.shape[1] - 1) // 2)
    if block < 4:
        raise NotEstimable(f"two blocks of {block} tokens fit in a row; four or more are needed")
    induction = _repeated(model, rows, block, spec.repeat_rows, seed, repeated=True)
    fresh = _repeated(model, rows, block, spec.repeat_rows, seed, repeated=False)
    n_layers, n_heads = previous.means.shape[1:]
    layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
    return HeadScores(
        layer=layer.astype(np.int64),
        head=head.astype(np.int64),
        previous=previous.mean,
        previous_se=previous.se,
        previous_null=previous.null,
        induction=induction.mean,
        induction_se=induction.se,
        induction_null=induction.null,
        induction_fresh=fresh.mean,
        n_previous=previous.n,
        n_induction=induction.n,
        least=spec.least,
    )


@dataclass(frozen=True, eq=False)
class _Looks:
    """The mean attention of each head to the places that are measured, by row.

    Attributes:
        means: The mean over the row's queries.
        nulls: The same if attention were spread evenly over all tokens in reach.
        n: How many queries there are in all rows together.
    """

    means: Float64[np.ndarray, "row layer head"]
    nulls: Float64[np.ndarray, "row layer head"]
    n: int

    @property
    def mean(self) -> Float64[np.ndarray, " head"]:
        """The mean over rows."""
        return np.asarray(self.means.mean(0).ravel())

    @property
    def se(self) -> Float64[np.ndarray, " head"]:
        """The standard error of the mean over rows."""
        return np.asarray(self.means.std(0, ddof=1).ravel() / np.sqrt(len(self.means)))

    @property
    def null(self) -> Float64[np.ndarray, " head"]:
        """The mean of the null over rows."""
        return np.asarray(self.nulls.mean(0).ravel())


def _previous(model: torch.nn.Module, rows: Rows, which: Int64[np.ndarray, " row"]) -> _Looks:
    """Return the attention of each head to the token before, in these rows of text."""
    width = int(rows.lengths[which].max())
    queries = np.arange(2, width)
    counted = queries[None] < rows.lengths[which][:, None]
    return _looks(model, rows.token_ids[which, :width], queries, queries - 1, counted)


def _repeated(
    model: torch.nn.Module, rows: Rows, block: int, n_rows: int, seed: int, *, repeated: bool
) -> _Looks:
    """Return the attention of each head to the token after the first copy, in rows of two random blocks.

    Unless `repeated` is set the blocks differ, so that there is no copy and only the positions are those.
    """
    first_ids = rows.token_ids[:, 0]
    bos = int(first_ids[0]) if bool((first_ids == first_ids[0]).all()) else None
    usable = np.unique(rows.token_ids[rows.usable()])
    usable = usable if bos is None else usable[usable != bos]
    vocabulary = int(max(rows.token_ids.max(), usable.max())) + 1
    drawn = repeat_rows(vocabulary, usable, n_rows, block, seed, bos, repeated)
    first, second = occurrences(1, block, bos is not None)
    # the token after the first copy of the last one begins the second block, so the last one is left out
    queries, targets = second[:-1, 1], first[:-1, 1] + 1
    return _looks(model, drawn, queries, targets, np.ones((n_rows, len(queries)), dtype=bool))


def _looks(
    model: torch.nn.Module,
    token_ids: Int32[np.ndarray, "row pos"],
    queries: Int64[np.ndarray, " query"],
    targets: Int64[np.ndarray, " query"],
    counted: Bool[np.ndarray, "row query"],
) -> _Looks:
    """Return each head's mean attention from queries to targets, over the queries that count in each row."""
    n_layers = len(decoder_layers(model))
    means, nulls = [], []
    for start in range(0, len(token_ids), _BATCH):
        batch = slice(start, start + _BATCH)
        ids = torch.from_numpy(token_ids[batch].astype(np.int64))
        weight = torch.from_numpy(counted[batch] / counted[batch].sum(1, keepdims=True))[:, None]
        by_layer: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def note(
            layer: int,
            pattern: torch.Tensor,
            weight: torch.Tensor = weight,
            by_layer: dict[int, tuple[torch.Tensor, torch.Tensor]] = by_layer,
        ) -> None:
            looked = pattern[:, :, queries, targets].double().cpu()
            # a token is in reach if any head attends to it at all: so sliding windows are taken into account
            reach = (pattern[:, :, queries] > 0).any(1).sum(-1, dtype=torch.float64).cpu()
            # a place out of reach would get nothing from even attention either
            even = (looked > 0).any(1).double() / reach.clamp_min(1)
            null = (even[:, None] * weight).sum(-1).expand(-1, looked.shape[1])
            by_layer[layer] = ((looked * weight).sum(-1), null)

        with noted_patterns(model, note, range(n_layers)):
            run_until_stopped(model, ids)
        if missing := sorted(set(range(n_layers)) - set(by_layer)):
            raise ModelError(
                f"attention of layers {missing} of {type(model).__name__} does not return its weights."
            )
        means.append(torch.stack([by_layer[i][0] for i in range(n_layers)], dim=1))
        nulls.append(torch.stack([by_layer[i][1] for i in range(n_layers)], dim=1))
    return _Looks(torch.cat(means).numpy(), torch.cat(nulls).numpy(), int(counted.sum()))


@contextmanager
def noted_patterns(
    model: torch.nn.Module,
    note: Callable[[int, Float[torch.Tensor, "row head pos pos"]], None],
    layers: range,
) -> Iterator[None]:
    """Call `note` with the attention weights of some layers in every forward pass inside.

    A forward pass ends after the last of these layers, so it must be run by `run_until_stopped`. `note` is
    not called for a layer whose attention does not return its weights.

    Args:
        model: A causal language model.
        note: It is called with the index of a layer and its weights.
        layers: The layers.
    """
    blocks = decoder_layers(model)

    def record(index: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: Any) -> None:
            for part in output if isinstance(output, (tuple, list)) else ():
                if isinstance(part, torch.Tensor) and _is_pattern(part):
                    note(index, part)
                    return

        return hook

    def stop(*_: Any) -> None:
        raise Stopped

    with ExitStack() as stack:
        for index in layers:
            module = attention_module(blocks[index])
            if module is not None:
                stack.callback(module.register_forward_hook(record(index)).remove)
        stack.callback(blocks[layers[-1]].register_forward_hook(stop).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(eager_attention(model))
        yield


def _is_pattern(part: torch.Tensor) -> bool:
    """Return whether a tensor looks like causal attention weights, with nothing above the diagonal."""
    if part.ndim != 4 or part.shape[-1] != part.shape[-2]:
        return False
    return not bool(part.triu(1).any())


def written_by_heads(
    writers: Writers, scores: HeadScores, latents: pandas.DataFrame | None = None
) -> pandas.DataFrame:
    """Return the shares of induction heads and previous-token heads in latents.

    Args:
        writers: The writers of the latents of one SAE.
        scores: The scores of the same model's heads.
        latents: A table with a column `latent`, and others such as class and induction score, that is
            joined; None for none.

    Returns:
        One row for each latent that has shares and each such head, sorted by latent: latent, layer, head,
        head_kind, share, low, high, null95, above, above_both, n.
    """
    kinds = {
        (int(a), int(b)): k for a, b, k in zip(scores.layer, scores.head, scores.kind, strict=True)
    }
    records = []
    for m, part in enumerate(writers.parts):
        kind = kinds.get((part.layer, part.head)) if part.kind == "head" else None
        if not kind:
            continue
        for latent in np.flatnonzero(np.isfinite(writers.shares[:, m])):
            records.append(writers.row(int(latent), m) | {"head_kind": kind})
    table = pandas.DataFrame(records, columns=list(_WRITTEN))
    table = table.sort_values(["latent", "share"], kind="stable").reset_index(drop=True)
    return table if latents is None else table.merge(latents, on="latent", how="left")
