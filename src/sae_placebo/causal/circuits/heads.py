"""Induction heads and previous-token heads, by where they look; and the latents that they write.

A previous-token head looks one token back. An induction head looks at the token behind an earlier copy of
the present one; on random tokens nothing but such a copy tells it where to look.
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
_TWO_SIDED = 1.959963984540054


class HeadSpec(Spec):
    """What heads are judged on."""

    text_rows: int = Field(48, ge=2)
    """Rows of text for previous-token attention, drawn at random."""
    repeat_rows: int = Field(24, ge=2)
    """Rows of a random block, twice in a row, for induction; as many again that do not repeat."""
    block: int = Field(48, ge=4)
    """Tokens of a block; fewer where two of them do not fit in a row of the text."""
    least: float = Field(0.2, gt=0, lt=1)
    """Attention that a head must give to the place beyond its null, at the lower end of the interval, to
    be called by its name."""


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Where each head looks: mean attention, 0 to 1, on one kind of place. Arrays are by head, in order.

    Attributes:
        layer: Of each head.
        head: Its number in the layer.
        previous: Attention to the token before, on text.
        previous_se: Standard error of it, over rows.
        previous_null: Of attention spread evenly over all tokens in reach.
        induction: Attention from the second copy of a random token to the token behind the first copy.
        induction_se: Standard error of it, over rows.
        induction_null: Of attention spread evenly.
        induction_fresh: Attention between the same positions where the first block is another one: what
            position alone does.
        n_previous: Tokens of text.
        n_induction: Tokens of repeated blocks.
        least: Of the settings.
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
        """Which heads look one token back, beyond what even attention would."""
        low = self.previous - _TWO_SIDED * self.previous_se - self.previous_null
        return np.asarray(low > self.least)

    @property
    def is_induction(self) -> Bool[np.ndarray, " head"]:
        """Which heads look behind the earlier copy, beyond what position and even attention would."""
        null = np.maximum(self.induction_null, self.induction_fresh)
        return np.asarray(self.induction - _TWO_SIDED * self.induction_se - null > self.least)

    @property
    def kind(self) -> list[str]:
        """`induction`, `previous token`, both joined by ` and `, or nothing, of each head."""
        both = zip(self.is_induction, self.is_previous, strict=True)
        return [
            " and ".join(["induction"] * bool(i) + ["previous token"] * bool(p)) for i, p in both
        ]

    def table(self) -> pandas.DataFrame:
        """Return one row per head: scores, 95% intervals over rows, nulls, numbers of tokens, kind."""
        columns: dict[str, Any] = {"layer": self.layer, "head": self.head}
        for name in ("previous", "induction"):
            # weights that sum to 1 up to rounding can have a mean beyond it
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
    """Return how much every head of a model looks one token back, and behind earlier copies.

    Attention weights come from the model's own attention, computed one by one ("eager"); the setting is
    put back. The first position of a row is asked nothing and counts as no target of previous-token
    attention, since models park attention there.

    Args:
        model: A causal language model.
        rows: Text; their ids are also what random blocks are drawn from.
        seed: Names the draws.
        spec: Settings.

    Raises:
        ModelError: a layer's attention does not return its weights.
        NotEstimable: fewer than two rows are long enough, or a block would have fewer than four tokens.

    Source: prefix matching on repeated random tokens, Olsson et al. 2022 (arXiv 2209.11895), there
    against no null; the fresh first block as one is ours.
    """
    spec = spec or HeadSpec()
    long = np.flatnonzero(rows.lengths > 3)
    if len(long) < 2:
        raise NotEstimable(f"{len(long)} rows have more than three tokens; two or more are needed")
    random = numpy_generator(seed, "rows for heads")
    some = np.sort(random.choice(long, min(spec.text_rows, len(long)), replace=False))
    previous = _previous(model, rows, some)
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
    """Mean attention on the asked places, by row."""

    means: Float64[np.ndarray, "row layer head"]
    nulls: Float64[np.ndarray, "row layer head"]
    n: int

    @property
    def mean(self) -> Float64[np.ndarray, " head"]:
        return np.asarray(self.means.mean(0).ravel())

    @property
    def se(self) -> Float64[np.ndarray, " head"]:
        return np.asarray(self.means.std(0, ddof=1).ravel() / np.sqrt(len(self.means)))

    @property
    def null(self) -> Float64[np.ndarray, " head"]:
        return np.asarray(self.nulls.mean(0).ravel())


def _previous(model: torch.nn.Module, rows: Rows, some: Int64[np.ndarray, " row"]) -> _Looks:
    width = int(rows.lengths[some].max())
    queries = np.arange(2, width)
    asked = queries[None] < rows.lengths[some][:, None]
    return _looks(model, rows.token_ids[some, :width], queries, queries - 1, asked)


def _repeated(
    model: torch.nn.Module, rows: Rows, block: int, n_rows: int, seed: int, *, repeated: bool
) -> _Looks:
    first_ids = rows.token_ids[:, 0]
    bos = int(first_ids[0]) if bool((first_ids == first_ids[0]).all()) else None
    usable = np.unique(rows.token_ids[rows.usable()])
    usable = usable if bos is None else usable[usable != bos]
    vocabulary = int(max(rows.token_ids.max(), usable.max())) + 1
    drawn = repeat_rows(vocabulary, usable, n_rows, block, seed, bos, repeated)
    first, second = occurrences(1, block, bos is not None)
    # the token behind the last one's first copy begins the second block: it is left out
    queries, targets = second[:-1, 1], first[:-1, 1] + 1
    return _looks(model, drawn, queries, targets, np.ones((n_rows, len(queries)), dtype=bool))


def _looks(
    model: torch.nn.Module,
    token_ids: Int32[np.ndarray, "row pos"],
    queries: Int64[np.ndarray, " query"],
    targets: Int64[np.ndarray, " query"],
    asked: Bool[np.ndarray, "row query"],
) -> _Looks:
    """Return each head's mean attention from queries to targets, over the queries asked of each row."""
    n_layers = len(decoder_layers(model))
    means, nulls = [], []
    for start in range(0, len(token_ids), _BATCH):
        here = slice(start, start + _BATCH)
        ids = torch.from_numpy(token_ids[here].astype(np.int64))
        weight = torch.from_numpy(asked[here] / asked[here].sum(1, keepdims=True))[:, None]
        found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def note(
            layer: int,
            pattern: torch.Tensor,
            weight: torch.Tensor = weight,
            found: dict[int, tuple[torch.Tensor, torch.Tensor]] = found,
        ) -> None:
            looked = pattern[:, :, queries, targets].double().cpu()
            # in reach is what any head looks at: sliding windows show up as such
            reach = (pattern[:, :, queries] > 0).any(1).sum(-1, dtype=torch.float64).cpu()
            # a place out of reach would get nothing from even attention either
            even = (looked > 0).any(1).double() / reach.clamp_min(1)
            null = (even[:, None] * weight).sum(-1).expand(-1, looked.shape[1])
            found[layer] = ((looked * weight).sum(-1), null)

        with noted_patterns(model, note, range(n_layers)):
            run_until_stopped(model, ids)
        if missing := sorted(set(range(n_layers)) - set(found)):
            raise ModelError(
                f"attention of layers {missing} of {type(model).__name__} does not return its weights."
            )
        means.append(torch.stack([found[i][0] for i in range(n_layers)], dim=1))
        nulls.append(torch.stack([found[i][1] for i in range(n_layers)], dim=1))
    return _Looks(torch.cat(means).numpy(), torch.cat(nulls).numpy(), int(asked.sum()))


@contextmanager
def noted_patterns(
    model: torch.nn.Module,
    note: Callable[[int, Float[torch.Tensor, "row head pos pos"]], None],
    layers: range,
) -> Iterator[None]:
    """Give `note` the attention weights of some layers in every forward inside, which ends behind them.

    To be run by `run_until_stopped`. Nothing is given for a layer whose attention does not return them.
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
    if part.ndim != 4 or part.shape[-1] != part.shape[-2]:
        return False
    return not bool(part.triu(1).any())  # else some other tensor, or a mask was lost on the way


def written_by_heads(
    writers: Writers, scores: HeadScores, latents: pandas.DataFrame | None = None
) -> pandas.DataFrame:
    """Return the latents that induction and previous-token heads write, with their shares.

    Args:
        writers: Of the latents of one SAE.
        scores: Of the same model's heads.
        latents: Table with a column `latent`, such as class and induction score, that is joined; None for
            none.

    Returns:
        latent, layer, head, head_kind, share, low, high, null95, above, above_both, n; by latent.
    """
    kinds = {
        (int(a), int(b)): k for a, b, k in zip(scores.layer, scores.head, scores.kind, strict=True)
    }
    found = []
    for m, part in enumerate(writers.parts):
        kind = kinds.get((part.layer, part.head)) if part.kind == "head" else None
        if not kind:
            continue
        for latent in np.flatnonzero(np.isfinite(writers.shares[:, m])):
            found.append(writers.row(int(latent), m) | {"head_kind": kind})
    names = [
        "latent",
        "layer",
        "head",
        "head_kind",
        "share",
        "low",
        "high",
        "null95",
        "above",
        "above_both",
        "n",
    ]
    table = pandas.DataFrame(found, columns=names).sort_values(["latent", "share"], kind="stable")
    table = table.reset_index(drop=True)
    return table if latents is None else table.merge(latents, on="latent", how="left")
