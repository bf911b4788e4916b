"""Edits of activations: the tokens that are edited, the directions of the edits, and what the model loses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.audits.base import Case, Finding, over_documents
from sae_placebo.causal.use.base import Subject
from sae_placebo.causal.use.downstream import kl
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator, numpy_generator
from sae_placebo.models.gaussian import SecondMoments, gaussian_draws

KINDS = ("isotropic", "covariance", "mixture", "same_cosine")
"""Kinds of random pushes, each as long as the error."""
OUTLIER = 3.0
"""Tokens whose norm is above this many times the median count as outliers, as in training."""
FLOOR = 1e-9
"""Nats per token below which a cost is nothing but rounding."""
ROW_SHARE = 16
"""Whole rows are edited at once in this share, one in so many, of the tokens that are edited alone."""
_IN_ROW = (8, 16)
"""The fewest and the most edited tokens that share a row."""


def runnable(case: Case) -> Subject:
    """Return the model behind the hookpoint.

    Raises:
        NotEstimable: the model cannot be run.
    """
    if case.subject is None:
        raise NotEstimable(case.no_subject)
    return case.subject


def ordinary(case: Case) -> Bool[np.ndarray, " token"]:
    """Return which tokens have no outlying norm. The first position of a row is never held out."""
    norms = case.reading.activations.float().norm(dim=1).cpu().numpy()
    return np.asarray(norms <= OUTLIER * np.median(norms))


def chosen(case: Case, n: int, among: Bool[np.ndarray, " token"]) -> Int64[np.ndarray, " chosen"]:
    """Return the tokens at which the model is run, ascending.

    From 8 to 16 tokens share a row, since reading a row costs as much as many edits. Rows are taken evenly
    from all documents: a document gives its next row when all others that have one left have given theirs.

    Args:
        case: The SAE under audit.
        n: How many tokens are wanted; fewer are returned where there are fewer.
        among: Which tokens may be taken.

    Raises:
        NotEstimable: no token may be taken.
    """
    if not among.any():
        raise NotEstimable("no token is left to run the model at: hold out more documents")
    random = numpy_generator(case.seed, "audit", "tokens")
    order = random.permutation(np.flatnonzero(among))
    rows, first, owner = np.unique(
        case.reading.tokens.places[order, 0], return_index=True, return_inverse=True
    )
    documents = case.documents[order[first]]
    shuffled = random.permutation(len(rows))
    turn = np.empty(len(rows), dtype=np.int64)
    given: dict[int, int] = {}
    for row in shuffled:
        turn[row] = given.get(int(documents[row]), 0)
        given[int(documents[row])] = int(turn[row]) + 1
    place = np.empty(len(rows), dtype=np.int64)
    place[shuffled[np.argsort(turn[shuffled], kind="stable")]] = np.arange(len(rows))
    n_rows = np.clip(len(given), max(n // _IN_ROW[1], 1), max(n // _IN_ROW[0], 1))
    per_row = max(n / n_rows, n / len(rows))
    # the first tokens of each row in random order, row by row, up to n
    by_row = np.argsort(place[owner], kind="stable")
    starts = np.searchsorted(place[owner][by_row], place[owner][by_row], side="left")
    turn_in_row = np.arange(len(order)) - starts
    kept = order[by_row[turn_in_row < math.ceil(per_row)]]
    return np.sort(kept[:n]).astype(np.int64)


def costs(
    case: Case, tokens: Int64[np.ndarray, " token"], deltas: Float[torch.Tensor, "token edit d_in"]
) -> Float64[np.ndarray, "token edit"]:
    """Return what edits of single tokens cost the model: KL(unedited || edited), in nats.

    The divergence is summed over the predictions at the token and at those that follow it, up to
    `spec.window`. All edits of a token share a forward pass.

    Args:
        case: The SAE under audit.
        tokens: The tokens that are edited, one at a time.
        deltas: What each edit adds to a token's activation, in model units.

    Raises:
        NotEstimable: the model cannot be run.
    """
    subject = runnable(case)
    nats = np.empty(deltas.shape[:2])
    for row, part in subject.by_row(tokens):
        clean = subject.clean(row)
        for i in part:
            position = int(subject.tokens.places[tokens[i], 1])
            cost = subject.downstream.kl_of_edits(clean, position, deltas[i], case.spec.window)
            nats[i] = cost.double().cpu().numpy()
    return nats


def row_costs(
    case: Case, rows: Int64[np.ndarray, " row"], kinds: tuple[str, ...]
) -> Iterator[tuple[int, Float64[np.ndarray, " edit"], int]]:
    """Yield what it costs the model when all held-out tokens of a row are edited at once.

    The first edit puts reconstructions in place, the others make one push of each kind. Tokens of outlying
    norm are left as they are.

    Yields:
        The row, the KL of each edit in nats, and the number of predictions that it is summed over.

    Raises:
        NotEstimable: the model cannot be run.
    """
    subject, pushes = runnable(case), Pushes(case)
    places = subject.tokens.places
    for row in rows:
        tokens = np.flatnonzero((places[:, 0] == row) & pushes.ordinary)
        positions = torch.from_numpy(places[tokens, 1])
        clean = subject.clean(int(row))
        start = int(positions.min())
        nats = []
        for kind in ("error", *kinds):
            delta = torch.zeros_like(clean.site, dtype=torch.float32)
            delta[positions] = pushes.draw(kind, tokens, f"row {row}").to(delta.device)
            with torch.no_grad():
                logits = subject.downstream.logits(
                    clean.token_ids[None], clean.entering[None], delta[None]
                )
                cost = kl(clean.log_probs[start:], logits[:, start:]).sum()
            nats.append(float(cost))
        yield int(row), np.array(nats), len(clean.token_ids) - start


def covariance_pushes(
    covariance: Float[torch.Tensor, "d_in d_in"], n: int, random: torch.Generator
) -> Float[torch.Tensor, "push d_in"]:
    """Return differences z1 - z2 of independent draws z ~ N(0, covariance), without scaling their length.

    Their mean is 0 and their covariance twice the given one.
    """
    draw = gaussian_draws(torch.zeros(len(covariance)), covariance)
    return draw(n, random) - draw(n, random)


class Pushes:
    """Draws pushes: what is added to each token's activation, as long as the token's error.

    Args:
        case: The SAE under audit. The covariance of pushes is that of its tokens without outlying norm.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.x = case.x
        self.ordinary = ordinary(case)
        self._pool = np.flatnonzero(self.ordinary)
        moments = SecondMoments(self.x[torch.from_numpy(self._pool)].mean(0))
        for part in np.array_split(self._pool, max(len(self._pool) // 65_536, 1)):
            moments.add(self.x[torch.from_numpy(part)])
        self.covariance = moments.mean_and_covariance()[1]

    def draw(
        self, kind: str, tokens: Int64[np.ndarray, " token"], name: str
    ) -> Float[torch.Tensor, "token d_in"]:
        """Return what a push adds to each token's activation, in model units.

        Args:
            kind: "error" for the reconstruction less the activation. Of `KINDS`, "isotropic" is a direction
                drawn evenly from the sphere; "covariance" lies along a difference of two Gaussian draws with
                the activations' covariance; "mixture" lies along the difference of two other activations;
                "same_cosine" changes length and cosine to x as the error does, and is random across x.
            tokens: The tokens that are pushed.
            name: Distinguishes several draws of one kind.
        """
        at = torch.from_numpy(tokens)
        error, x = -self.case.error[at], self.x[at]
        if kind == "error":
            return error
        random = generator(self.case.seed, "audit", "push", kind, name)
        if kind == "same_cosine":
            # what the error does along x is kept; across x it gets another direction
            unit = _unit(x)
            along = (error * unit).sum(1, keepdim=True) * unit
            free = torch.randn(error.shape, generator=random)
            across = _unit(free - (free * unit).sum(1, keepdim=True) * unit)
            turned: torch.Tensor = along + across * (error - along).norm(dim=1, keepdim=True)
            return turned
        if kind == "isotropic":
            free = torch.randn(error.shape, generator=random)
        elif kind == "covariance":
            free = covariance_pushes(self.covariance, len(tokens), random)
        else:
            pairs = torch.randint(len(self._pool), (2, len(tokens)), generator=random)
            # no activation less itself
            pairs[1] = torch.where(pairs[0] == pairs[1], (pairs[1] + 1) % len(self._pool), pairs[1])
            # an array of one index, not a tensor of one, which NumPy would take for a number
            first, second = (self.x[self._pool[each]] for each in pairs.numpy())
            free = first - second
        scaled: torch.Tensor = _unit(free) * error.norm(dim=1, keepdim=True)
        return scaled

    def rescaled(
        self, tokens: Int64[np.ndarray, " token"]
    ) -> tuple[Float[torch.Tensor, "token d_in"], Float[torch.Tensor, "token d_in"]]:
        """Return the pushes from x to x at the length of x_hat, and to x_hat at the length of x."""
        x, x_hat = self.x[tokens], self.case.reconstruction[tokens]
        length, length_hat = x.norm(dim=1, keepdim=True), x_hat.norm(dim=1, keepdim=True)
        at_length_of_other = x * (length_hat / length.clamp_min(1e-30) - 1)
        return at_length_of_other, x_hat * (length / length_hat.clamp_min(1e-30)) - x


def _unit(rows: Float[torch.Tensor, "row d_in"]) -> Float[torch.Tensor, "row d_in"]:
    unit: torch.Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return unit


def ratio_of(
    audit: str,
    name: str,
    top: Float[np.ndarray, " token"],
    bottom: Float[np.ndarray, " token"],
    documents: Int64[np.ndarray, " token"],
    seed: int,
) -> Finding:
    """Return a ratio of two means over tokens as a finding whose null is 1.

    Args:
        audit: Name of the audit.
        name: Name of the number.
        top: The numerator's value at each token.
        bottom: The denominator's value at each token; where it adds up to 0, the finding has no value.
        documents: The document of each token, over which the interval is.
        seed: The seed that the bootstrap is named by.
    """
    n = len(top)
    if n == 0 or bottom.sum() <= 0:
        reason = "no tokens" if n == 0 else "the pushes cost the model nothing"
        return Finding(audit, name, math.nan, n=n, null=1.0, reason=reason)
    value, low, high = over_documents(
        lambda s: s[0] / s[1], np.stack([top, bottom]), documents, seed
    )
    return Finding(audit, name, value, low, high, n, null=1.0)


def mean_of(
    audit: str,
    name: str,
    values: Float[np.ndarray, " token"],
    documents: Int64[np.ndarray, " token"],
    seed: int,
) -> Finding:
    """Return a mean over tokens as a finding without a null; see `ratio_of`."""
    ratio = ratio_of(audit, name, values, np.ones(len(values)), documents, seed)
    return replace(ratio, null=math.nan)
