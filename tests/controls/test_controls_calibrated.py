"""Calibrated re-draws: the current token explains as much as in the trained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import architectures
from sae_placebo.controls import Redraw, RedrawCalibrated, SampleText, build, parse_control
from sae_placebo.controls.model.block_streams import BlockStreams, seek
from sae_placebo.controls.model.calibrating import (
    least_majorant,
    read,
    shared_hookpoints,
    stream_profile,
)
from sae_placebo.controls.model.gains import block_gains
from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.models.components import between_component
from sae_placebo.models.loading import Reader


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


def sample(*hookpoints: str, n_ids: int = 30, n_rows: int = 24) -> SampleText:
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 3 + n_ids, (n_rows, 24), generator=source)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    mask[0, 15:] = False  # padding
    return SampleText(ids, mask, torch.arange(n_rows) // 2, hookpoints, 3.0)


KEPT = RedrawCalibrated(of=Redraw(keep=("embeddings",)))

# Gemma 2 and 3, GLM 4 and OLMo 2 have a norm between module and stream; GPT-J, Phi and Cohere run both
# at once; experts are fused, shared, or have a bias; Granite scales; BLOOM's modules return the stream
OF_EVERY_KIND = [
    *(
        "llama",
        "llama_untied",
        "gemma2",
        "gemma3",
        "olmo2",
        "glm4",
        "gpt2",
        "gptj",
        "phi",
        "cohere",
    ),
    *(
        "granite",
        "bloom",
        "mpt",
        "opt",
        "qwen3_moe",
        "qwen2_moe",
        "gpt_oss",
        "deepseek_v3",
        "jetmoe",
    ),
]


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_a_gain_multiplies_what_a_block_adds(name: str) -> None:
    model = architectures.build(name)
    places = [f"{site}.{i}" for site in ("attn_out", "mlp_out") for i in range(2)]
    before = Reader(model, places).read(architectures.token_ids())
    blocks = block_gains(model, 2)
    again = Reader(model, places).read(architectures.token_ids())
    assert all(torch.equal(before[place], again[place]) for place in places)
    blocks[0].set(0.25)
    found = Reader(model, places).read(architectures.token_ids())
    torch.testing.assert_close(found["attn_out.0"], 0.25 * before["attn_out.0"])
    blocks[0].set(0.0)
    found = Reader(model, [*places, "resid_pre.0", "resid_post.0"]).read(architectures.token_ids())
    assert torch.equal(found["resid_post.0"], found["resid_pre.0"])
    assert not bool(found["mlp_out.0"].any())
    assert bool(found["mlp_out.1"].any())


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_the_token_explains_what_it_explains_in_the_trained_model(name: str) -> None:
    reference, text = architectures.build(name), sample("resid_post.1")
    model, recipe = build(reference, KEPT, 0, 0, text=text)
    documents = text.documents[text.mask.nonzero()[:, 0]]
    shares = [
        between_component(
            read(one, text, ("resid_post.1",))["resid_post.1"], text.token_ids[text.mask], documents
        )
        for one in (reference, model)
    ]
    assert recipe.calibration is not None
    found = recipe.calibration["values"]["resid_post.1"]
    assert found["reason"] is None
    assert found["reached"] == pytest.approx(found["target"], abs=0.02)
    # by a reading of its own, and no outlier is among so few tokens of these models
    assert shares[1].value == pytest.approx(shares[0].value, abs=0.02)
    assert len(recipe.calibration["gains"]) == 2
    assert any(abs(gain - 1) > 0.01 for gain in recipe.calibration["gains"])


def test_the_same_bits_are_made_from_what_was_recorded() -> None:
    reference, text = architectures.build("gemma2"), sample("resid_post.2")
    model, recipe = build(reference, KEPT, 3, 1, text=text)
    assert recipe.calibration is not None
    none = {name: getattr(text, name)[:0] for name in ("token_ids", "mask", "documents")}
    nothing = replace(text, **none, known=recipe.calibration)
    again, same = build(reference, KEPT, 3, 1, text=nothing)
    assert same.weight_hash == recipe.weight_hash
    assert same.calibration == recipe.calibration
    assert torch.equal(*(m(architectures.token_ids()).logits for m in (model, again)))


def test_blocks_behind_the_hookpoint_and_what_is_not_written_are_as_drawn() -> None:
    reference = architectures.build("llama_untied")
    plain, _ = build(reference, Redraw(), 5, 1)
    model, recipe = build(reference, RedrawCalibrated(), 5, 1, text=sample("resid_post.0"))
    assert recipe.calibration is not None
    (gain,) = recipe.calibration["gains"]
    drawn, found = plain.state_dict(), model.state_dict()
    differ = {n for n in drawn if not torch.equal(drawn[n], found[n])}
    layer = "model.layers.0"
    assert differ == {
        *(f"{layer}.self_attn.o_proj.{part}" for part in ("weight", "bias")),
        f"{layer}.mlp.down_proj.weight",
    }
    for name in differ:
        torch.testing.assert_close(found[name], gain * drawn[name])


def test_a_block_that_is_run_alone_gives_what_a_forward_gives() -> None:
    model, text = architectures.build("gemma3"), sample("resid_post.2", n_rows=20)
    streams = BlockStreams(model, text, 3)
    stream = streams.entered
    for block in range(3):
        stream = streams.run(block, stream)
    expected = Reader(model, ["resid_post.2"]).read(text.token_ids)["resid_post.2"]
    torch.testing.assert_close(torch.cat(stream), expected)


# --- what is sought ----------------------------------------------------------------------------------


def test_the_least_majorant() -> None:
    assert least_majorant([1.0, 0.6, 0.7, 0.5]) == [1.0, 0.7, 0.7, 0.5]
    assert least_majorant([0.2, 0.3]) == [0.3, 0.3]


def test_hookpoints_share_a_model_where_its_path_passes_by_their_targets() -> None:
    profile = [1.0, 0.60, 0.70, 0.53]
    names = ("resid_post.0", "resid_post.1", "resid_post.2", "resid_pre.2", "mlp_out.1", "z.1")
    assert shared_hookpoints(names, profile, 0.02) == (
        ("resid_post.1", "resid_post.2", "resid_pre.2"),
        ("resid_post.0",),
        ("mlp_out.1",),
        ("z.1",),
    )
    assert shared_hookpoints(names[:3], [1.0, 0.7, 0.6, 0.5], 0.02) == (names[:3],)


def risen() -> torch.nn.Module:
    """Return a model whose first block dilutes the token and whose second adds it once more.

    Tokens have the first half of the stream for themselves. Attention of the first block writes to the other
    half alone. The MLP of the second copies the first half, since gelu(x) - gelu(-x) = x.
    """
    model: torch.nn.Module = architectures.build("gpt2")
    half = architectures.D_IN // 2
    with torch.no_grad():
        core = model.transformer
        core.wpe.weight.zero_()
        core.wte.weight[:, half:] = 0
        first, second = core.h[0], core.h[1]
        first.attn.c_proj.weight[:, :half] = 0
        first.attn.c_proj.bias.zero_()
        first.attn.c_proj.weight.mul_(3.0)
        for part in (first.mlp.c_proj, second.mlp.c_proj, second.mlp.c_fc, second.attn.c_proj):
            part.weight.zero_()
            part.bias.zero_()
        for i in range(half):
            for j, sign in ((i, 1.0), (half + i, -1.0)):
                second.mlp.c_fc.weight[i, j] = sign
                second.mlp.c_proj.weight[j, i] = 20.0 * sign
    return model


def test_a_target_that_rises_gives_two_models() -> None:
    reference, text = risen(), sample("resid_post.0", "resid_post.1")
    control = RedrawCalibrated(of=Redraw(keep=("embeddings", "positions")))
    groups = control.shared_models(reference, text)
    assert groups == (("resid_post.1",), ("resid_post.0",))
    gains = []
    for group in groups:
        _, recipe = build(reference, control, 0, 0, text=replace(text, hookpoints=group))
        assert recipe.calibration is not None
        (found,) = recipe.calibration["values"].values()
        assert found["reached"] == pytest.approx(found["target"], abs=0.02)
        gains.append(recipe.calibration["gains"][0])
    profile = [one.value for one in stream_profile(reference, text, 2)]
    assert profile[2] - profile[1] > 0.1
    assert gains[0] < gains[1] - 0.1


def test_the_search() -> None:
    def value(gain: float) -> float:
        return 1 / (1 + gain)

    for target in (0.9, 0.5, 0.2):
        gain, found = seek(value, 1.0, target, 1e-3, 64.0, 20)
        assert found == value(gain) == pytest.approx(target, abs=1e-3)
    assert seek(value, 1.0, 0.001, 1e-3, 64.0, 20)[0] == 64.0
    assert seek(value, 0.8, 0.9, 1e-3, 64.0, 20) == (0.0, 0.8)
    assert seek(lambda gain: 0.4, 0.4, 0.4, 1e-3, 64.0, 20)[0] == 1.0


# the heads of BLOOM's last layer have much of the token in them, those of Llama's next to nothing
@pytest.mark.parametrize(
    ("name", "place"), [("llama", "mlp_out.2"), ("llama", "mlp_in.2"), ("bloom", "z.2")]
)
def test_what_one_module_reads_or_adds_is_sought_by_a_common_factor(name: str, place: str) -> None:
    reference, text = architectures.build(name), sample(place)
    _, recipe = build(reference, KEPT, 0, 0, text=text)
    assert recipe.calibration is not None
    found = recipe.calibration["values"][place]
    assert recipe.calibration["factor"] != 1.0
    assert found["reached"] == pytest.approx(found["target"], abs=0.02)


def test_a_target_out_of_reach_is_null_with_its_reason() -> None:
    reference = architectures.build("gpt2")
    with (
        torch.no_grad()
    ):  # positions drown the token, and a re-draw of equal vectors changes nothing
        reference.transformer.wpe.weight.mul_(30.0)
    control = RedrawCalibrated(of=Redraw(keep=("embeddings", "positions")))
    with torch.no_grad():
        for layer in reference.transformer.h:
            layer.mlp.c_proj.weight.zero_()
            layer.attn.c_proj.weight.zero_()
    text = sample("resid_pre.0", "resid_post.1")
    _, recipe = build(reference, control, 0, 0, text=text)
    assert recipe.calibration is not None
    assert recipe.calibration["values"]["resid_pre.0"]["reason"] is None
    bare = RedrawCalibrated(of=Redraw(keep=("positions",)))
    with torch.no_grad():  # rows that hold few ids, so that what is drawn for these differs
        reference.transformer.wte.weight[3:40].mul_(30.0)
    _, recipe = build(reference, bare, 0, 0, text=replace(text, hookpoints=("resid_pre.0",)))
    assert recipe.calibration is not None
    found = recipe.calibration["values"]["resid_pre.0"]
    assert found["reached"] is None
    assert abs(found["nearest"] - found["target"]) > 0.02
    assert "no block lies before resid_pre.0" in found["reason"]
    assert f"{found['target']:.3f} in the trained model" in found["reason"]


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mamba",
            r"what blocks of MambaForCausalLM add cannot be told apart .*no attention module",
        ),
        ("opt_post_norm", r"blocks of OPTForCausalLM add cannot be told apart"),
        ("bert_decoder", r"blocks of BertLMHeadModel add cannot be told apart"),
        ("xlnet", r"blocks of XLNetLMHeadModel depend on more than the residual stream"),
    ],
)
def test_a_model_whose_blocks_cannot_be_scaled_is_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build(architectures.build(name), RedrawCalibrated(), 0, 0, text=sample("resid_post.1"))
    assert str(caught.value).endswith("leave out the arms that calibrate.")


def test_too_little_text_is_told() -> None:
    text = sample("resid_post.1")
    one_document = replace(text, documents=torch.zeros_like(text.documents))
    with pytest.raises(ModelError, match=r"0 keys occur in two documents.*raise text.train_tokens"):
        build(architectures.build("llama"), RedrawCalibrated(), 0, 0, text=one_document)
    with pytest.raises(SpecError, match="give `text` to build"):
        build(architectures.build("llama"), RedrawCalibrated(), 0, 0)


def test_the_control_that_draws_is_named_or_given_with_its_settings() -> None:
    named = parse_control({"control": "redraw_calibrated", "of": "permute"})
    assert named.drawn.kind == "permute"
    assert named.draws
    assert named.is_fair
    assert parse_control(named.model_dump(mode="json")) == named
    both = parse_control({"control": "ablate_attention", "of": "redraw_calibrated"})
    assert both.drawn == Redraw() or both.drawn == RedrawCalibrated()
    assert not both.is_fair
    assert both.ablates_attention


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("trained", "of: 'trained' does not draw the weights of every layer"),
        ({"control": "cascade", "last": 1}, "'cascade' does not draw the weights of every layer"),
        ("noise_embeddings", "'noise_embeddings' does not draw the weights of every layer"),
        ({"control": "redraw_calibrated"}, "of: blocks are calibrated twice"),
        ("redaw", "no control is called 'redaw'"),
    ],
)
def test_a_control_that_draws_no_weights_is_refused(of: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_control({"control": "redraw_calibrated", "of": of})


def test_attention_may_be_ablated_before_or_after() -> None:
    reference, text = architectures.build("llama"), sample("resid_post.1")
    before = parse_control(
        {"control": "redraw_calibrated", "of": {"control": "ablate_attention", "of": "redraw"}}
    )
    model, recipe = build(reference, before, 0, 0, text=text)
    assert recipe.calibration is not None
    assert not bool(Reader(model, ["attn_out.0"]).read(text.token_ids)["attn_out.0"].any())
    after = parse_control({"control": "ablate_attention", "of": "redraw_calibrated"})
    ablated, _ = build(reference, after, 0, 0, text=text)
    plain, _ = build(reference, RedrawCalibrated(), 0, 0, text=text)
    state, other = plain.state_dict(), ablated.state_dict()
    differ = {n for n in state if not torch.equal(state[n], other[n])}
    assert differ == {n for n in state if ".o_proj." in n}
