"""What is best under an L1 penalty, in closed form, and by exact minimization to check it.

The objective throughout is `|x - x_hat|^2 + lambda * sum_j f_j` per token, with codes f >= 0, unit rows and
no bias. Codes are chosen freely for each token: there is no encoder.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable, SpecError

_MOST_ATOMS = 10
_ALONE = 1e-8


def soft_threshold(r: float, lam: float) -> float:
    """Return the best code of a token that is `r` times a unit row: `max(r - lambda / 2, 0)`."""
    return max(r - lam / 2, 0.0)


def shrinkage(r: float, lam: float) -> float:
    """Return the share of its amplitude `r` that a feature's best code keeps.

    Raises:
        NotEstimable: the amplitude is not above zero.
    """
    if r <= 0:
        raise NotEstimable(f"a feature of amplitude {r:g} has nothing that could shrink")
    return soft_threshold(r, lam) / r


def lasso_costs(
    x: Float[np.ndarray, "token d_in"], atoms: Float[np.ndarray, "atom d_in"], lam: float
) -> Float[np.ndarray, " token"]:
    """Return each token's smallest `|x - f A|^2 + lambda sum f` over codes f >= 0, exactly.

    Every set of atoms is tried: on the best one the codes solve a linear system. Linearly dependent sets
    are left out, since a smaller set without the dependence is as good.

    Raises:
        SpecError: more than 10 atoms, or a penalty below zero.
    """
    if len(atoms) > _MOST_ATOMS:
        raise SpecError(
            f"all sets of {len(atoms)} atoms are too many to try: the most is {_MOST_ATOMS}; use an "
            "iterative lasso"
        )
    if lam < 0:
        raise SpecError(f"the penalty {lam:g} is below zero: give 0 or more")
    energy = np.square(x).sum(axis=1)
    best: np.ndarray = energy.copy()
    products = x @ atoms.T - lam / 2
    for size in range(1, len(atoms) + 1):
        for chosen in combinations(range(len(atoms)), size):
            index = list(chosen)
            gram = atoms[index] @ atoms[index].T
            if np.linalg.cond(gram) > 1e12:
                continue
            codes = np.linalg.solve(gram, products[:, index].T).T
            # where the codes solve the system the cost is |x|^2 - f . (A x - lambda / 2)
            cost = energy - (codes * products[:, index]).sum(axis=1)
            allowed = (codes >= 0).all(axis=1)
            best = np.where(allowed, np.minimum(best, cost), best)
    return best


def epsilon_star(lam: float, q: float) -> float:
    """Return how often a child must come alone for {parent, child} to beat {parent, composite}.

        epsilon* = lambda q (8 - 4 sqrt 2 - lambda) / (2 (1 - (2 - sqrt 2) lambda))

    which is about 1.17 lambda q. Parent and child occur together on a share q of tokens, and the composite is
    their normalized sum; at epsilon* both dictionaries cost the same. How often the parent occurs alone does
    not matter.

    Source: "A solvable model of feature absorption in L1 sparse autoencoders" (public draft, not
    reviewed). It is derived again from `lasso_costs`: the composite costs q (sqrt 2 lambda - lambda^2 / 4) +
    epsilon (1/2 + lambda / sqrt 2 - lambda^2 / 4), the child q (2 lambda - lambda^2 / 2) + epsilon (lambda -
    lambda^2 / 4).

    Raises:
        SpecError: q is not in (0, 1], or lambda is not between 0 and sqrt 2, where all codes are above 0.
    """
    _check(lam, q)
    above = lam * q * (8 - 4 * math.sqrt(2) - lam)
    return above / (2 * (1 - (2 - math.sqrt(2)) * lam))


def expected_cost(angle: float, lam: float, q: float, epsilon: float, p0: float = 0.0) -> float:
    """Return the expected cost of tokens of G5 where the child's row is `angle` degrees from the parent's.

    The parent's row is the parent itself. At 90 degrees the child's row is the child, at 45 the composite.
    q, epsilon and p0 weight the three events (both, child alone, parent alone) and may exceed 1 in sum, so
    that a crossover can be looked for.
    """
    turned = math.radians(angle)
    atoms = np.array([[1.0, 0.0], [math.cos(turned), math.sin(turned)]])
    x = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    return float(lasso_costs(x, atoms, lam) @ np.array([q, p0, epsilon]))


def optimum_angle(lam: float, q: float, epsilon: float) -> float:
    """Return the angle, in degrees from the parent, at which the child's row costs least in G5.

    45 is the composite (full absorption), 90 the child itself. The cost is exact; its minimum is looked for
    on a grid of half degrees from 0 to 180 and then refined to about 1e-6 degrees. The parent's row stays
    at the parent. If it were free, it would turn by 1 to 1.5 degrees (at p0 = .3), and the child's by less
    than a degree from what is returned.

    Source: the same as that of `epsilon_star`, which compares the two ends between which the best row turns
    smoothly.

    Raises:
        SpecError: as in `epsilon_star`, or epsilon is below zero.
    """
    from scipy.optimize import minimize_scalar

    _check(lam, q)
    if epsilon < 0:
        raise SpecError(f"epsilon is a probability: {epsilon:g} is below zero")

    def cost(angle: float) -> float:
        return expected_cost(angle, lam, q, epsilon)

    # at 0 and 180 both rows lie on one line
    grid = np.arange(0.5, 180.0, 0.5)
    start = float(grid[np.argmin([cost(angle) for angle in grid])])
    refined = minimize_scalar(
        cost, bounds=(start - 0.5, start + 0.5), method="bounded", options={"xatol": 1e-8}
    )
    return float(refined.x)


def composition_boundary(f: float) -> float:
    """Return lambda*, above which a row for each pair is cheaper in G3 than a row for each item.

    Two items at right angles have amplitudes a and b = (1 - f) b' + f a, with a and b' uniform on (0, 1]. One
    row for the pair leaves (a - b)^2 / 2 and has the code s = (a + b) / sqrt 2; a row for each item has the
    codes a and b. With t = lambda / 2, a code of amplitude r costs lambda r - lambda^2 / 4 + max(t - r, 0)^2,
    so

        composed - atomic = (1 - f)^2 / 12 - lambda (1 - 1 / sqrt 2) + lambda^2 / 4
                            + R(s) - R(a) - R(b),     R(r) = E max(t - r, 0)^2

    where R of a sum of two uniforms is a difference of fourth powers (`_below`). lambda* is its root:
    0.409, 0.190, 0.0760, 0.0181, 0.00285, 0 for f = 0, .25, .5, .75, .9, 1, and for small lambda about
    (1 - f)^2 / (12 - 6 sqrt 2) = 0.285 (1 - f)^2. Rows of pairs are used alone here, so this is the boundary
    for an SAE that has a row for every pair; below it, rows of pairs pay only next to rows of items.

    Raises:
        SpecError: f is not between 0 and 1.
    """
    from scipy.optimize import brentq

    if not 0 <= f <= 1:
        raise SpecError(f"the shared part of the amplitude is between 0 and 1, not {f:g}")
    if f == 1:
        return 0.0
    return float(brentq(_composed_minus_atomic, 0.0, 1.0, args=(f,), xtol=1e-15, rtol=1e-14))


def _composed_minus_atomic(lam: float, f: float) -> float:
    t, half = lam / 2, math.sqrt(0.5)
    left = (1 - f) ** 2 / 12 - lam * (1 - half) + lam**2 / 4
    composed = _below(t, half * (1 + f), half * (1 - f))
    return left + composed - _below(t, 1.0, 0.0) - _below(t, f, 1 - f)


def _below(t: float, first: float, second: float) -> float:
    """Return E max(t - r, 0)^2 for r = first u + second v, u and v uniform on (0, 1)."""
    large, small = max(first, second), min(first, second)

    def power(value: float, n: int) -> float:
        return max(value, 0.0) ** n

    if small < _ALONE:
        return (power(t, 3) - power(t - large, 3)) / (3 * large)
    whole = power(t, 4) - power(t - large, 4) - power(t - small, 4) + power(t - large - small, 4)
    return whole / (12 * large * small)


def _check(lam: float, q: float) -> None:
    if not 0 < lam < math.sqrt(2):
        raise SpecError(
            f"the penalty is {lam:g}: the formula holds between 0 and sqrt 2, where no code is zero"
        )
    if not 0 < q <= 1:
        raise SpecError(
            f"q is the probability of parent and child together, not {q:g}: give (0, 1]"
        )
