"""How much of activations a key explains, such as the current token: the component between keys."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.precision import ROUNDING_ENERGY


@dataclass(frozen=True)
class Component:
    """A share of variance that lies between keys.

    Attributes:
        value: The share. It is 1 where the key decides everything and about 0 where it says nothing; it may
            be slightly negative.
        error: Its standard error over documents.
        n: Tokens that it is of: those whose key occurs in another document as well.
    """

    value: float
    error: float
    n: int


def between_component(
    x: Float[torch.Tensor, "token d_in"],
    keys: Int64[torch.Tensor, " token"],
    documents: Int64[torch.Tensor, " token"],
) -> Component:
    """Return the share of the activations' variance that lies between keys, such as token ids.

    It is of the tokens whose key occurs in another document as well, each of which counts once. The part
    between keys is the mean, over these tokens, of the mean product <x_i, x_j> with the tokens j of the same
    key in other documents, less the mean product of tokens of different documents whatever their keys. The
    whole is the mean of <x_i, x_i>, less the same. Both are free of bias where documents are drawn
    independently, since no token is paired with itself or with its own document, so what a document's tokens
    have in common is not taken for something that the key explains.

    The error is that of a ratio of U-statistics, linearized over documents. The set of keys is taken as
    given.

    Args:
        x: Activations in model units.
        keys: What is asked to explain them; see `with_previous` for pairs of tokens.
        documents: The document of each token.

    Raises:
        NotEstimable: fewer than two keys occur in two documents, or there is no variance.

    Source: a component of variance of the random-effects model, as in Searle, Casella and McCulloch 1992,
    "Variance Components", by the method of moments; it differs in that pairs lie in different documents.
    """
    keep, which, cells, owners = _in_other_documents(keys, documents)
    x = x[keep].double()
    whole = float(x.square().sum())
    x = x - x.mean(0)  # no estimate changes; sums lose fewer digits
    n_keys, n_documents = int(which.max()) + 1, int(owners.max()) + 1
    squares = x.square().sum(1)
    if float(squares.sum()) <= ROUNDING_ENERGY * whole:
        raise NotEstimable("the activations have no variance")
    pairs = _mean_products(x, which, cells, n_keys)
    others, n_others = _of_other_documents(x, owners, n_documents)
    square_of_mean = float((x * others).sum() / n_others.sum())
    between = float(pairs.mean()) - square_of_mean
    total = float(squares.mean()) - square_of_mean
    if not total > 0:
        raise NotEstimable("the activations have no variance between documents")
    value = between / total
    # a product belongs to two tokens, so a token moves a mean of products twice as far as it lies from it
    by_mean = 2 * ((x * others).sum(1) / n_others - square_of_mean)
    of_key = torch.zeros(n_keys, dtype=x.dtype).index_add_(0, which, pairs)
    of_key = (of_key / torch.bincount(which))[which]
    moved = 2 * (pairs - of_key) + (of_key - pairs.mean()) - by_mean
    moved = moved - value * (squares - squares.mean() - by_mean)
    of_document = torch.zeros(n_documents, dtype=x.dtype).index_add_(0, owners, moved)
    share = n_documents / (n_documents - 1)
    error = float((share * of_document.square().sum()).sqrt()) / (len(x) * total)
    return Component(value, error, len(x))


def with_previous(token_ids: Int64[torch.Tensor, "row pos"]) -> Int64[torch.Tensor, "row pos"]:
    """Return one key for each pair of the previous and the current token of a row.

    The first token of a row has no previous one; its key is that of token id 0 before it.
    """
    width = int(token_ids.max()) + 1 if token_ids.numel() else 1
    keys = token_ids.clone()
    keys[:, 1:] += token_ids[:, :-1] * width
    return keys


def _in_other_documents(
    keys: torch.Tensor, documents: torch.Tensor
) -> tuple[
    Bool[torch.Tensor, " token"],
    Int64[torch.Tensor, " kept"],
    Int64[torch.Tensor, " kept"],
    Int64[torch.Tensor, " kept"],
]:
    """Return which tokens have their key in another document as well; of these key, cell and document.

    A cell is a key in a document. All three count from 0.
    """
    _, which = torch.unique(keys, return_inverse=True)
    _, owners = torch.unique(documents, return_inverse=True)
    if len(keys) == 0:
        raise NotEstimable("no token is left by the mask")
    cell = which * (int(owners.max()) + 1) + owners
    _, cells, sizes = torch.unique(cell, return_inverse=True, return_counts=True)
    elsewhere = torch.bincount(which)[which] - sizes[cells]
    keep = elsewhere > 0
    found, which = torch.unique(which[keep], return_inverse=True)
    if len(found) < 2:
        raise NotEstimable(f"{len(found)} keys occur in two documents; two are needed")
    _, owners = torch.unique(owners[keep], return_inverse=True)
    _, cells = torch.unique(cells[keep], return_inverse=True)
    return keep, which, cells, owners


def _of_other_documents(
    x: torch.Tensor, owners: torch.Tensor, n_documents: int
) -> tuple[Float[torch.Tensor, "token d_in"], Float[torch.Tensor, " token"]]:
    """Return for each token the sum over the tokens of other documents, and how many these are."""
    sums = torch.zeros(n_documents, x.shape[1], dtype=x.dtype).index_add_(0, owners, x)
    sizes = torch.bincount(owners, minlength=n_documents).double()
    return (x.sum(0) - sums)[owners], (len(x) - sizes)[owners]


def _mean_products(
    x: torch.Tensor, which: torch.Tensor, cells: torch.Tensor, n_keys: int
) -> Float[torch.Tensor, " token"]:
    """Return each token's mean product with the tokens of its key in other documents."""
    n_cells = int(cells.max()) + 1
    of_key = torch.zeros(n_keys, x.shape[1], dtype=x.dtype).index_add_(0, which, x)
    of_cell = torch.zeros(n_cells, x.shape[1], dtype=x.dtype).index_add_(0, cells, x)
    n_others = (torch.bincount(which)[which] - torch.bincount(cells)[cells]).double()
    others = of_key[which] - of_cell[cells]
    return (x * others).sum(1) / n_others
