"""The best code of a token on a given dictionary, found for each token by itself.

An encoder is one pass and has to be right for all tokens at once, while inference may take as long as it
likes. The difference between the two is what the encoder costs. Everything is in double precision and in
batches, unless said otherwise.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from sae_placebo.baselines import pursuit
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.lab.generators.sparse_draws import packed
from sae_placebo.saes import Codes

TOLERANCE = 1e-7
"""Largest distance from the optimum that is allowed, as a share of the token's squared norm."""
_CHUNK_NUMBERS = 1 << 22
_MOST_POLISHED = 128
"""A token's linear system is solved if it uses no more atoms than this."""
_CHECK_EVERY = 25
_MOST_STEPS = 400
"""After so many steps of FISTA the tokens that are left are solved one by one."""
_SWEEPS = 60
_EXHAUSTIVE = 512
"""All supports are tried if there are no more than this; otherwise pursuit chooses one."""


def nonnegative_lasso(
    x: Float[torch.Tensor, "token d_in"],
    dictionary: Float[torch.Tensor, "atom d_in"],
    lam: float,
    tolerance: float = TOLERANCE,
) -> Codes:
    """Return, per token, the codes a >= 0 that minimize |x - a D|^2 + lam * sum a.

    Rows need not have length 1. The optimum is certified: `duality_gap` of what is returned, before it
    is rounded to single precision, is at most `tolerance * |x|^2`.

    Source: Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm" (2009), with the
    momentum restarted token by token (O'Donoghue and Candes 2015, gradient scheme). Differs: every 25
    steps the linear system of the atoms in use is solved, and its solution, with negative values set to 0,
    is kept where it is better, so that the end is exact once the support is right; tokens that are done
    leave the batch. Those that are not done after 400 steps are solved one by one with an active set, as in
    Lawson and Hanson, "Solving least squares problems" (1974), chapter 23.

    Raises:
        SpecError: `lam` is not above zero; with 0, use `nnls`.
        NotEstimable: some token cannot be brought within the tolerance.
    """
    if not (lam > 0 and math.isfinite(lam)):
        raise SpecError(f"the weight of the penalty is {lam}: give a number above 0, or use nnls")
    return packed(_solved(x, dictionary, lam, tolerance).float())


def nnls(
    x: Float[torch.Tensor, "token d_in"],
    dictionary: Float[torch.Tensor, "atom d_in"],
    tolerance: float = TOLERANCE,
) -> Codes:
    """Return, per token, codes a >= 0 that minimize |x - a D|^2; others may be as good.

    It is solved as `nonnegative_lasso` is, until the conditions of Karush, Kuhn and Tucker hold: with the
    gradient g = 2 D (x - a D), no g is above `tolerance * |x| * max |d|`, and |sum a g| is at most
    `tolerance * |x|^2`.

    Raises:
        NotEstimable: some token cannot be brought within the tolerance.
    """
    return packed(_solved(x, dictionary, 0.0, tolerance).float())


def duality_gap(
    x: Float[torch.Tensor, "token d_in"],
    dictionary: Float[torch.Tensor, "atom d_in"],
    codes: Float[torch.Tensor, "token atom"],
    lam: float,
) -> Float64[torch.Tensor, " token"]:
    """Return how far each token's objective is from the optimum at most, in the objective's units.

    The dual of min |x - a D|^2 + lam sum a over a >= 0 is max 2 x.t - |t|^2 over t with
    2 D t <= lam. Here t is the residual, made shorter until that holds. Only at the optimum is the gap 0.
    """
    x, rows, codes = x.double(), dictionary.double(), codes.double()
    left = x - codes @ rows
    return _gap(x, left, left @ rows.t(), codes, lam)


def _gap(
    x: Float64[torch.Tensor, "token d_in"],
    left: Float64[torch.Tensor, "token d_in"],
    products: Float64[torch.Tensor, "token atom"],
    codes: Float64[torch.Tensor, "token atom"],
    lam: float,
) -> Float64[torch.Tensor, " token"]:
    energy = left.square().sum(dim=1)
    highest = 2 * products.amax(dim=1)
    allowed = torch.where(highest > 0, lam / highest.clamp_min(1e-300), torch.inf)
    best = (left * x).sum(dim=1) / energy.clamp_min(1e-300)
    share = torch.minimum(best.clamp_min(0), allowed)
    dual = 2 * share * (left * x).sum(dim=1) - share.square() * energy
    gap: torch.Tensor = energy + lam * codes.sum(dim=1) - dual
    return gap


def _solved(
    x: Float[torch.Tensor, "token d_in"],
    dictionary: Float[torch.Tensor, "atom d_in"],
    lam: float,
    tolerance: float,
) -> Float64[torch.Tensor, "token atom"]:
    rows = dictionary.detach().double()
    if not len(rows):
        return torch.zeros(len(x), 0, dtype=torch.float64)
    size = max(1, _CHUNK_NUMBERS // max(len(rows), rows.shape[1] * _most_polished(rows)))
    with torch.no_grad():
        parts = [_fista(part.double(), rows, lam, tolerance) for part in torch.split(x, size)]
    return torch.cat(parts)


def _fista(
    x: Float64[torch.Tensor, "token d_in"],
    rows: Float64[torch.Tensor, "atom d_in"],
    lam: float,
    tolerance: float,
) -> Float64[torch.Tensor, "token atom"]:
    solved = x.new_zeros(len(x), len(rows))
    step = 1 / (2 * float(torch.linalg.matrix_norm(rows, ord=2)) ** 2 + 1e-300)
    todo = torch.arange(len(x))
    codes = point = solved.clone()
    momentum = x.new_ones(len(x))
    for count in range(_MOST_STEPS + 1):
        if count % _CHECK_EVERY == 0:
            codes, done = _polished(x[todo], rows, codes, lam, tolerance)
            solved[todo[done]] = codes[done]
            left = ~done
            if not bool(left.any()):
                return solved
            todo, codes, point, momentum = todo[left], codes[left], point[left], momentum[left]
        slope = 2 * (point @ rows - x[todo]) @ rows.t() + lam
        following = (point - step * slope).clamp_min(0)
        moved = following - codes
        # momentum that points uphill is forgotten
        uphill = ((point - following) * moved).sum(dim=1) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        faster = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        point = following + ((momentum - 1) / faster)[:, None] * moved
        codes, momentum = following, faster
    exact = [_active_set(token, rows, lam) for token in x[todo]]
    codes, done = _polished(x[todo], rows, torch.stack(exact), lam, tolerance)
    if not bool(done.all()):
        raise NotEstimable(
            f"{int((~done).sum())} of {len(x)} tokens cannot be brought within {tolerance:g} of the best "
            "code in double precision: allow a larger tolerance"
        )
    solved[todo] = codes
    return solved


def _active_set(
    x: Float64[torch.Tensor, " d_in"], rows: Float64[torch.Tensor, "atom d_in"], lam: float
) -> Float64[torch.Tensor, " atom"]:
    """Return one token's best code, whose atoms enter one at a time and leave before they turn negative."""
    code, active = x.new_zeros(len(rows)), torch.zeros(len(rows), dtype=torch.bool)
    least = 1e-12 * (1 + float(x.square().sum()))
    for _ in range(4 * (len(x) + 1)):
        pull = rows @ (x - code[active] @ rows[active]) - lam / 2
        pull[active] = -torch.inf
        entering = int(pull.argmax())
        if not float(pull[entering]) > least:
            break
        active[entering] = True
        while bool(active.any()):
            index = active.nonzero()[:, 0]
            chosen = rows[index]
            used = torch.ones(1, len(index), dtype=torch.bool)
            wanted = _least_squares(x[None], chosen[None], used, lam)[0]
            if bool((wanted > 0).all()):
                code[index] = wanted
                break
            # go towards the solution as long as every code stays above zero
            falling, now = wanted <= 0, code[index]
            share = float((now[falling] / (now[falling] - wanted[falling]).clamp_min(1e-300)).min())
            code[index] = (now + share * (wanted - now)).clamp_min(0)
            code[index[falling & (code[index] <= 1e-15)]] = 0
            active &= code > 0
    return code


def _polished(
    x: Float64[torch.Tensor, "token d_in"],
    rows: Float64[torch.Tensor, "atom d_in"],
    codes: Float64[torch.Tensor, "token atom"],
    lam: float,
    tolerance: float,
) -> tuple[Float64[torch.Tensor, "token atom"], Bool[torch.Tensor, " token"]]:
    """Return the codes, solved exactly on their own support where that helps, and which are optimal."""
    widths = (codes > 0).sum(dim=1)
    few = (widths > 0) & (widths <= _most_polished(rows))
    if bool(few.any()):
        part, before = x[few], codes[few]
        values, atoms = before.topk(int(widths[few].amax()), dim=1)
        exact = _least_squares(part, rows[atoms], values > 0, lam).clamp_min(0)
        tried = torch.zeros_like(before).scatter(1, atoms, exact)
        better = _objective(part, rows, tried, lam) < _objective(part, rows, before, lam)
        codes = codes.clone()
        codes[few] = torch.where(better[:, None], tried, before)
    left = x - codes @ rows
    products = left @ rows.t()
    energy = x.square().sum(dim=1)
    if lam > 0:
        return codes, _gap(x, left, products, codes, lam) <= tolerance * energy
    longest = float(rows.norm(dim=1).max())
    upward = 2 * products.amax(dim=1) <= tolerance * energy.sqrt() * longest
    level = 2 * (products * codes).sum(dim=1).abs() <= tolerance * energy
    return codes, upward & level


def _most_polished(rows: Float64[torch.Tensor, "atom d_in"]) -> int:
    return min(rows.shape[1], len(rows), _MOST_POLISHED)


def _objective(
    x: Float64[torch.Tensor, "token d_in"],
    rows: Float64[torch.Tensor, "atom d_in"],
    codes: Float64[torch.Tensor, "token atom"],
    lam: float,
) -> Float64[torch.Tensor, " token"]:
    total: torch.Tensor = (x - codes @ rows).square().sum(dim=1) + lam * codes.sum(dim=1)
    return total


def _least_squares(
    x: Float64[torch.Tensor, "token d_in"],
    chosen: Float64[torch.Tensor, "token slot d_in"],
    used: Bool[torch.Tensor, "token slot"],
    lam: float,
) -> Float64[torch.Tensor, "token slot"]:
    """Return the values, of either sign, at which the objective is stationary; slots not in use have 0."""
    chosen = chosen * used[:, :, None]
    gram = torch.bmm(chosen, chosen.transpose(1, 2))
    # the ridge makes atoms that point the same way share; slots that are not in use keep 0
    ridge = torch.where(used, 1e-12 * gram.diagonal(dim1=1, dim2=2).amax(dim=1, keepdim=True), 1.0)
    right = torch.bmm(chosen, x[:, :, None])[:, :, 0] - lam / 2 * used
    values: torch.Tensor = torch.linalg.solve(gram + torch.diag_embed(ridge + 1e-300), right)
    return values


@dataclass(frozen=True)
class NonnegativePath:
    """Atoms in the order in which non-negative pursuit took them, with their codes at every length.

    Attributes:
        atoms: Atoms in the order taken, each once.
        values: Non-negative least-squares values; those of the first s + 1 atoms are at [:, s, :s + 1].
        errors: Squared error with none, one, two, ... atoms.
        n_atoms: Number of atoms in the dictionary.
    """

    atoms: Int64[torch.Tensor, "token step"]
    values: Float64[torch.Tensor, "token step step"]
    errors: Float64[torch.Tensor, "token lengths"]
    n_atoms: int

    def at(self, lengths: Int64[torch.Tensor, " token"]) -> Codes:
        """Return the codes that have, for each token, as many atoms as `lengths` says, or all on the path."""
        dense = torch.zeros(len(self.atoms), self.n_atoms, dtype=torch.float64)
        used = lengths > 0
        last = (lengths[used] - 1).clamp_max(self.atoms.shape[1] - 1)
        values = self.values[used][torch.arange(len(last)), last]
        dense[used] = dense[used].scatter(1, self.atoms[used], values)
        return packed(dense.float())


def nonnegative_pursuit(
    x: Float[torch.Tensor, "token d_in"], dictionary: Float[torch.Tensor, "atom d_in"], k: int
) -> NonnegativePath:
    """Return k steps of orthogonal matching pursuit with codes >= 0; rows must have length 1.

    Each step takes the atom with the largest product with what is left, among those not taken, and
    fits the values of all atoms taken to the token, at or above zero.

    Source: Bruckstein, Elad and Zibulevsky, "On the uniqueness of nonnegative sparse solutions" (2008).
    The non-negative fit is that of least squares where it has no negative value, and 60 sweeps of
    coordinate descent elsewhere. `baselines.pursuit.pursue_nonnegative` is cheaper, and fits only at
    the end.
    """
    rows = dictionary.detach().double()
    k = min(k, len(rows))
    size = max(1, _CHUNK_NUMBERS // max(len(rows), k * max(k, rows.shape[1])))
    with torch.no_grad():
        parts = [_pursued(part.double(), rows, k) for part in torch.split(x, size)]
    atoms, values, errors = (torch.cat(part) for part in zip(*parts, strict=True))
    return NonnegativePath(atoms, values, errors, len(rows))


def _pursued(
    x: Float64[torch.Tensor, "token d_in"], rows: Float64[torch.Tensor, "atom d_in"], k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, taken = x, torch.empty(len(x), 0, dtype=torch.int64)
    values, errors = x.new_zeros(len(x), k, k), x.new_empty(len(x), k + 1)
    errors[:, 0] = x.square().sum(dim=1)
    for step in range(k):
        products = (left @ rows.t()).scatter_(1, taken, -torch.inf)
        taken = torch.cat([taken, products.argmax(dim=1, keepdim=True)], dim=1)
        chosen = rows[taken]
        fitted = _nonnegative_fit(x, chosen)
        left = x - torch.bmm(fitted[:, None], chosen)[:, 0]
        values[:, step, : step + 1] = fitted
        errors[:, step + 1] = left.square().sum(dim=1)
    return taken, values, errors


def _nonnegative_fit(
    x: Float64[torch.Tensor, "token d_in"], chosen: Float64[torch.Tensor, "token slot d_in"]
) -> Float64[torch.Tensor, "token slot"]:
    """Return the non-negative values of few atoms that come nearest to each token."""
    used = torch.ones(chosen.shape[:2], dtype=torch.bool)
    values = _least_squares(x, chosen, used, 0.0)
    wrong = (values < 0).any(dim=1)
    if not bool(wrong.any()):
        return values
    part = chosen[wrong]
    gram = torch.bmm(part, part.transpose(1, 2))
    right = torch.bmm(part, x[wrong][:, :, None])[:, :, 0]
    norms = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-300)
    code = values[wrong].clamp_min(0)
    for _ in range(_SWEEPS):
        before = code.clone()
        for slot in range(code.shape[1]):
            pull = right[:, slot] - (gram[:, slot] * code).sum(dim=1)
            code[:, slot] = (code[:, slot] + pull / norms[:, slot]).clamp_min(0)
        if float((code - before).abs().amax()) < 1e-12:
            break
    values[wrong] = code
    return values


def omp(
    x: Float[torch.Tensor, "token d_in"],
    dictionary: Float[torch.Tensor, "atom d_in"],
    k: int,
    *,
    nonnegative: bool = False,
) -> pursuit.AtomCodes:
    """Return codes of at most k atoms by orthogonal matching pursuit, of either sign unless `nonnegative`.

    Rows must have length 1. The codes are `AtomCodes`, since they may be negative. Those of either sign are
    found by `baselines.pursuit.pursue`, in single precision.
    """
    if nonnegative:
        path = nonnegative_pursuit(x, dictionary, k)
        last = path.values[:, -1].numpy().astype(np.float32)
        return pursuit.AtomCodes(path.atoms.numpy().astype(np.int32), last, path.n_atoms)
    return pursuit.pursue(_numbers(x), _numbers(dictionary), k).at(k)


def _numbers(x: Float[torch.Tensor, "row d_in"]) -> Float32[np.ndarray, "row d_in"]:
    return np.ascontiguousarray(x.detach().cpu().float().numpy())


def best_of_k(
    x: Float[torch.Tensor, "token d_in"], dictionary: Float[torch.Tensor, "atom d_in"], k: int
) -> tuple[Codes, bool]:
    """Return codes >= 0 with at most k atoms and a small error, and whether they are surely the best.

    Where there are at most 512 supports of k atoms, all of them are tried, which is exact; otherwise
    non-negative pursuit chooses one, and better codes may exist. Rows must have length 1.
    """
    rows = dictionary.detach().double()
    k = min(k, len(rows))
    if math.comb(len(rows), k) > _EXHAUSTIVE:
        path = nonnegative_pursuit(x, rows, k)
        return path.at(torch.full((len(x),), k)), False
    x = x.double()
    best, best_codes = x.square().sum(dim=1), x.new_zeros(len(x), len(rows))
    for support in itertools.combinations(range(len(rows)), k):
        atoms = torch.tensor(support)
        fitted = _nonnegative_fit(x, rows[atoms].expand(len(x), -1, -1))
        errors = (x - fitted @ rows[atoms]).square().sum(dim=1)
        better = errors < best
        best = torch.where(better, errors, best)
        tried = torch.zeros_like(best_codes)
        tried[:, atoms] = fitted
        best_codes = torch.where(better[:, None], tried, best_codes)
    return packed(best_codes.float()), True
