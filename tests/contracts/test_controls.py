"""Every control on every kind of model: what it declares is what it does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import architectures
from sae_placebo.controls import (
    CONTROLS,
    GROUPS,
    INVARIANTS,
    Cascade,
    Control,
    Recipe,
    SampleText,
    build,
    parse_control,
    weight_hash,
)
from sae_placebo.controls.model.redraw import moments
from sae_placebo.controls.model.tensors import Tensor, tensors
from sae_placebo.models.loading import Reader, decoder_layers, truncate

# tied and untied; rotary, learned and ALiBi positions; norms with and without bias; parallel blocks;
# fused and transposed matrices; experts; an embedding that scales its output
ARCHITECTURES = [
    "llama",
    "llama_untied",
    "qwen3_moe",
    "gemma2",
    "gemma3",
    "olmo2",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "mpt",
    "falcon_alibi",
]
BEHIND_NORMS = ("gemma2", "gemma3", "olmo2")
"""Those with a norm between a module and the stream, in which a block's gain is set."""
SETTINGS: list[dict[str, Any]] = [
    {"control": "trained"},
    {"control": "redraw"},
    {"control": "redraw", "keep": ["embeddings"]},
    {"control": "redraw", "keep": ["unembedding", "positions"]},
    {"control": "redraw", "keep": ["norms", "biases"]},
    {"control": "redraw", "keep": list(GROUPS)},
    {"control": "init"},
    {"control": "revision", "source": "another checkpoint"},
    {"control": "redraw_embeddings"},
    {"control": "permute"},
    {"control": "permute", "keep": ["embeddings", "unembedding", "norms"]},
    {"control": "spectrum"},
    {"control": "spectrum", "keep": ["embeddings", "positions", "biases"]},
    {"control": "cascade", "last": 1},
    {"control": "cascade", "last": architectures.N_LAYERS},
    {"control": "cascade", "only": 1},
    {"control": "noise_embeddings", "per": "occurrence"},
    {"control": "noise_embeddings", "per": "type"},
    {"control": "ablate_attention"},
    {"control": "ablate_attention", "of": "redraw"},
    {"control": "ablate_attention", "of": {"control": "redraw", "keep": ["embeddings", "biases"]}},
    {"control": "ablate_attention", "of": {"control": "noise_embeddings", "per": "occurrence"}},
    {"control": "redraw_calibrated"},
    {"control": "redraw_calibrated", "of": {"control": "redraw", "keep": ["embeddings", "norms"]}},
    {"control": "ablate_attention", "of": "redraw_calibrated"},
]


def _name(table: dict[str, Any]) -> str:
    parts = [
        _name(v) if isinstance(v, dict) else v for v in table.values() if v != table.get("keep")
    ]
    return "-".join(map(str, [*parts, *table.get("keep", [])]))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


def structured(name: str, seed: int = 0) -> Any:
    """Return a tiny model far from any random law, so that a control that keeps something shows.

    Entries have a mean and heavy tails, and rows differ in length.
    """
    model = architectures.build(name, seed)
    source = torch.Generator().manual_seed(seed + 7)
    with torch.no_grad():
        for tensor in tensors(model):
            weight = tensor.parameter
            if weight.ndim == 1:
                continue
            std = float(weight.std())
            rows = torch.randn(*weight.shape[:-1], 1, generator=source).mul(0.5).exp()
            weight.mul_(rows).mul_(weight.abs() / std).add_((1.0 + seed) * std)
    return model


def sample_text() -> SampleText:
    """Return the text that controls are measured on: a few tokens recur in many documents."""
    ids = torch.randint(3, 20, (16, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    return SampleText(ids, mask, torch.arange(16) // 2, ("resid_post.2",))


TEXT = sample_text()


class Case:
    """One architecture: its reference, another checkpoint of it, and what was built of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.reference = name, structured(name)
        self.before = {n: v.clone() for n, v in self.reference.state_dict().items()}
        self.hash = weight_hash(self.reference)
        structured(name, 1).save_pretrained(folder)
        self.folder = str(folder)
        self._built: dict[str, tuple[Any, Recipe]] = {}

    def build(self, control: Control, seed: int = 0, model_seed: int = 0) -> tuple[Any, Recipe]:
        key = f"{control.model_dump_json()}|{seed}|{model_seed}"
        if key not in self._built:
            self._built[key] = build(self.reference, control, seed, model_seed, text=TEXT)
        return self._built[key]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=SETTINGS, ids=_name)
def control(request: pytest.FixtureRequest, case: Case) -> Control:
    table = dict(request.param)
    if "source" in table:
        table["source"] = case.folder
    return parse_control(table)


def test_every_registered_control_is_under_contract() -> None:
    assert {table["control"] for table in SETTINGS} == set(CONTROLS)
    for cls in CONTROLS.entries.values():
        assert cls.preserves | cls.destroys <= set(INVARIANTS)
        assert not cls.preserves & cls.destroys


def test_shapes_dtypes_and_ties_are_as_before(case: Case, control: Control) -> None:
    model, _ = case.build(control)
    assert {n: (v.shape, v.dtype) for n, v in case.before.items()} == {
        n: (v.shape, v.dtype) for n, v in model.state_dict().items()
    }
    assert [t.also for t in tensors(model)] == [t.also for t in tensors(case.reference)]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    buffers = dict(case.reference.named_buffers())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def test_the_reference_and_the_global_generator_are_untouched(case: Case, control: Control) -> None:
    state = torch.random.get_rng_state()
    model, _ = build(case.reference, control, 0, 0, text=TEXT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, case.before[n]) for n, v in case.reference.state_dict().items())
    assert weight_hash(case.reference) == case.hash


def test_same_seeds_same_bits_other_seeds_other_bits(case: Case, control: Control) -> None:
    model, recipe = case.build(control, 3, 1)
    again, same = build(case.reference, control, 3, 1, text=TEXT)
    assert recipe == same
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(*(m(architectures.token_ids()).logits for m in (model, again)))
    for seeds in ((3, 2), (4, 1)):
        _, other = case.build(control, *seeds)
        assert (other.weight_hash != recipe.weight_hash) == control.draws
        assert (other.read_hash != recipe.read_hash) == control.draws
    assert (recipe.weight_hash != case.hash) == (control.kind != "trained")


def test_outputs_are_finite(case: Case, control: Control) -> None:
    model, _ = case.build(control)
    assert torch.isfinite(model(architectures.token_ids()).logits).all()


def test_the_recipe_accounts_for_every_tensor(case: Case, control: Control) -> None:
    model, recipe = case.build(control, 0, 5)
    names = [tensor.name for tensor in tensors(case.reference)]
    assert sorted([*recipe.touched, *recipe.kept]) == sorted(names)
    after = model.state_dict()
    for name in recipe.touched:
        assert not torch.equal(case.before[name], after[name]), name
    for name in recipe.kept:
        assert torch.equal(case.before[name], after[name]), name
    assert recipe.weight_hash == weight_hash(model)
    assert parse_control(recipe.control) == control
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_invariant_is_preserved_or_destroyed(control: Control) -> None:
    assert control.preserved() | control.destroyed() == set(INVARIANTS)
    assert not control.preserved() & control.destroyed()


# --- each word of INVARIANTS that is about single bits ---------------------------------------------

# why a tensor of a destroyed group may keep its bits; the recipe gives one of these
REASONS = (*GROUPS, "outside of layer", "not tied to the embeddings", "one entry", "no variance")
OF_ABLATION = ("trained", "zero already")
"""The same where attention is ablated on a model in which nothing else is changed."""


def members(model: Any, group: str) -> list[Tensor]:
    return [tensor for tensor in tensors(model) if group in tensor.groups]


def test_groups_of_tensors(case: Case, control: Control) -> None:
    model, recipe = case.build(control)
    after = model.state_dict()
    for group in (*GROUPS, "block_weights"):
        found = members(case.reference, group)
        changed = [t for t in found if not torch.equal(case.before[t.name], after[t.name])]
        if group in control.preserved():
            assert not changed
            continue
        for tensor in found:
            if tensor not in changed:
                allowed = (*REASONS, *(OF_ABLATION if control.ablates_attention else ()))
                assert recipe.kept[tensor.name].startswith(allowed), tensor.name
        if found and not changed:  # tied to what is kept, or untied from what is changed
            reasons = {recipe.kept[t.name] for t in found}
            assert reasons <= {*GROUPS, "not tied to the embeddings"}
            # a norm is scaled where it stands between a module and the stream
            scaled_elsewhere = group == "norms" and control.text_tokens > 0
            assert group in ("embeddings", "unembedding") or scaled_elsewhere


def test_layers_that_the_settings_do_not_name(case: Case, control: Control) -> None:
    model, _ = case.build(control)
    before, after = decoder_layers(case.reference), decoder_layers(model)
    named = control.layers(len(before)) if isinstance(control, Cascade) else range(0)
    same = [
        all(torch.equal(a, b) for a, b in zip(x.parameters(), y.parameters(), strict=True))
        for i, (x, y) in enumerate(zip(before, after, strict=True))
        if i not in named
    ]
    assert all(same) if "other_layers" in control.preserved() else not any(same)
    for i in named:
        assert not torch.equal(*(next(m[i].parameters()) for m in (before, after)))


# --- each word that is about numbers: (holds, clearly does not hold) of a controlled model ---------


def _moments_differ(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return by how many standard errors the mean or the standard deviation is off."""
    (mean, std), (new_mean, new_std), n = moments(before), moments(after), before.numel()
    off = abs(new_mean - mean) / (std / n**0.5 + 1e-12)
    return max(off, abs(new_std / std - 1) * (2 * n) ** 0.5)


def _singular_values(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(weight.reshape(-1, *weight.shape[-2:]).double())


def _entering(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the vectors [row pos d_in] with which token ids enter."""
    vectors = model.get_input_embeddings()(ids)
    assert isinstance(vectors, torch.Tensor)
    return vectors.double()


def _relative(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max())


def distance(word: str, case: Case, model: Any) -> float:
    """Return how far the word is from holding: below 1 it holds, above 2 it clearly does not."""
    after = model.state_dict()
    pairs = [(case.before[t.name], after[t.name]) for t in tensors(case.reference)]
    if word == "tensor_mean_and_variance":
        return max(_moments_differ(a, b) for a, b in pairs if a.numel() >= 1000) / 5
    if word == "tensor_marginals":
        return max(_relative(a.flatten().sort()[0], b.flatten().sort()[0]) for a, b in pairs) / 1e-6
    if word == "spectra":
        matrices = [(_singular_values(a), _singular_values(b)) for a, b in pairs if a.ndim >= 2]
        return max(_relative(a, b) for a, b in matrices) / 1e-5
    every = torch.arange(3, architectures.VOCABULARY)[None]
    x, y = _entering(case.reference, every)[0], _entering(model, every)[0]
    if word == "embedding_row_norms":
        return _relative(x.norm(dim=1), y.norm(dim=1)) / 1e-5
    if word == "lexical_geometry":
        cosines = [torch.nn.functional.normalize(z, dim=1) for z in (x, y)]
        return _relative(*(z @ z.T for z in cosines)) / 1e-5
    assert word == "token_identity"
    rows = _entering(model, torch.tensor([[5, 7, 5, 9], [3, 5, 7, 9]]))
    first = rows[0, 0]
    others = torch.stack([rows[0, 2], rows[1, 1]])
    return _relative(first.expand_as(others), others) / 1e-6


NUMERIC = [
    "tensor_mean_and_variance",
    "tensor_marginals",
    "spectra",
    "embedding_row_norms",
    "lexical_geometry",
    "token_identity",
]


def test_what_is_declared_of_numbers(case: Case, control: Control) -> None:
    model, recipe = case.build(control)
    (embedding,) = members(case.reference, "embeddings")
    tied_to_kept = recipe.kept.get(embedding.name) == "unembedding"
    if tied_to_kept:
        assert any("keeping one kept both" in note for note in recipe.notes)
    in_norms = control.text_tokens > 0 and case.name in BEHIND_NORMS
    for word in NUMERIC:
        if in_norms and word in ("tensor_mean_and_variance", "spectra"):
            continue  # of matrices, which only the other control has changed
        off = distance(word, case, model)
        of_embedding = word in ("embedding_row_norms", "lexical_geometry")
        if word in control.preserved() or (tied_to_kept and of_embedding):
            assert off < 1, word
        else:
            assert off > 2, word


def test_every_word_is_tested() -> None:
    tested = {*NUMERIC, *GROUPS, "block_weights", "other_layers", "shapes"}
    assert tested == set(INVARIANTS)


# --- what hookpoints can see -----------------------------------------------------------------------


def test_controls_that_look_alike_at_hookpoints_read_alike(case: Case, control: Control) -> None:
    head = case.reference.get_output_embeddings()
    tied = head.weight is case.reference.get_input_embeddings().weight
    for said in {tied, True}:  # where it is not known, tied is said
        seen = control.seen_at_hookpoints(said)
        assert type(seen) is type(control)
        assert seen.seen_at_hookpoints(said) == seen
        if seen == control:
            continue
        (model, recipe), (other, its) = (
            case.build(control),
            build(case.reference, seen, 0, 0, text=TEXT),
        )
        assert recipe.read_hash == its.read_hash
        found = []
        for one in (model, other):
            one = build(one, parse_control({"control": "trained"}), 0, 0)[0]
            truncate(one, ["resid_post.1"])
            reader = Reader(one, ["resid_pre.0", "resid_post.1"])
            found.append(reader.read(architectures.token_ids()))
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_keeping_w_u_of_an_untied_model_is_not_seen() -> None:
    for kind in ("redraw", "permute", "spectrum"):
        both, head, embedding, none = (
            parse_control({"control": kind, "keep": keep})
            for keep in (["embeddings", "unembedding"], ["unembedding"], ["embeddings"], [])
        )
        assert both.seen_at_hookpoints(False) == embedding
        assert head.seen_at_hookpoints(False) == none
        assert both.seen_at_hookpoints(True) == embedding
        assert head.seen_at_hookpoints(True) == head
