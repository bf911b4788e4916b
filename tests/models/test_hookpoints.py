from __future__ import annotations

import pytest

from sae_placebo.core.errors import SpecError
from sae_placebo.models.hookpoints import SITES, Hookpoint, check_layer, lens_name, parse_hookpoint


@pytest.mark.parametrize("site", SITES)
def test_canonical_names_round_trip(site: str) -> None:
    for layer in (0, 7, 31):
        hookpoint = parse_hookpoint(f"{site}.{layer}")
        assert (hookpoint.site, hookpoint.layer) == (site, layer)
        assert parse_hookpoint(hookpoint.name) == hookpoint


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("blocks.5.hook_resid_post", "resid_post.5"),
        ("blocks.5.hook_resid_pre", "resid_pre.5"),
        ("blocks.12.hook_mlp_out", "mlp_out.12"),
        ("blocks.0.hook_attn_out", "attn_out.0"),
        ("blocks.3.attn.hook_z", "z.3"),
        ("blocks.3.ln2.hook_normalized", "mlp_in.3"),
        ("blocks.3.mlp.hook_in", "mlp_in.3"),
        ("model.layers.5", "resid_post.5"),
        ("model.layers.5.mlp", "mlp_out.5"),
        ("model.layers.5.self_attn", "attn_out.5"),
        ("model.decoder.layers.3", "resid_post.3"),
        ("gpt_neox.layers.2.attention", "attn_out.2"),
        ("transformer.h.5.mlp", "mlp_out.5"),
        ("transformer.h.5.attn", "attn_out.5"),
        ("transformer.h.5.self_attention", "attn_out.5"),
        ("transformer.blocks.1.ffn", "mlp_out.1"),
        ("layers.5", "resid_post.5"),
        ("h.4.mlp", "mlp_out.4"),
        ("  resid_post.4 ", "resid_post.4"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert parse_hookpoint(alias).name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resid_post",
        "resid_post.-1",
        "resid_post.x",
        "resid_mid.3",
        "blocks.5.hook_resid_mid",
        "blocks.5.hook_z",
        "blocks.5.ln1.hook_normalized",
        "model.layers.5.self_attn.o_proj",
        "model.layers.5.input_layernorm",
        "model.layers.5.mlp.down_proj",
        "5",
        "resid_post.3\nresid_post.4",
    ],
)
def test_unknown_names_say_what_is_allowed(text: str) -> None:
    with pytest.raises(SpecError, match=r"resid_post\.N.*TransformerLens"):
        parse_hookpoint(text)


def test_transformer_lens_names_are_those_of_saelens() -> None:
    for site in SITES:
        assert parse_hookpoint(lens_name(Hookpoint(site, 3))) == Hookpoint(site, 3)
    assert lens_name(Hookpoint("resid_post", 2)) == "blocks.2.hook_resid_post"
    assert lens_name(Hookpoint("z", 2)) == "blocks.2.attn.hook_z"
    assert lens_name(Hookpoint("mlp_in", 2)) == "blocks.2.mlp.hook_in"


def test_what_transformer_lens_reads_before_the_norm_is_no_mlp_in() -> None:
    with pytest.raises(SpecError, match=r"before the norm.*mlp_in\.5 is the MLP's own input"):
        parse_hookpoint("blocks.5.hook_mlp_in")


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(SpecError, match=r"Did you mean 'resid_post\.3'"):
        parse_hookpoint("residpost.3")
    with pytest.raises(SpecError, match=r"Did you mean 'mlp_out\.7'"):
        parse_hookpoint("blocks.7.hook_mlp_outs")


def test_a_layer_past_the_last_is_refused_with_the_range() -> None:
    check_layer(Hookpoint("resid_post", 29), 30)
    with pytest.raises(SpecError, match=r"30 layers, so N goes from 0 to 29"):
        check_layer(Hookpoint("resid_post", 30), 30)
