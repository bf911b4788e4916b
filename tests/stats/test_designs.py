"""Designs are found from what arms are: complete, incomplete, under any name."""

from __future__ import annotations

import subprocess
import sys
import tomllib

from sae_placebo.stats.designs import ArmParts, Design, Quad, designs, quads

KEEP = ["embeddings", "unembedding"]


def parts(**arms: dict[str, object]) -> dict[str, ArmParts]:
    """Return arms from tables such as those of a trial file."""
    found = {}
    for name, given in arms.items():
        table = dict(given)
        data, dictionary = table.pop("data", None), table.pop("dictionary", None)
        kind = table.pop("control", "trained")
        found[name] = ArmParts.of({"kind": kind, **table}, data, dictionary)
    return found


def only(arms: dict[str, ArmParts], family: str) -> Design:
    (found,) = [design for design in designs(arms) if design.family == family]
    return found


FACTORIAL = parts(
    real={"control": "trained"},
    noise={"control": "redraw", "keep": []},
    half={"control": "redraw", "keep": KEEP},
    other_half={"control": "redraw_embeddings", "match": "row_norms"},
)


def test_the_factorial_is_found_under_any_name() -> None:
    found = only(FACTORIAL, "embeddings_x_blocks")
    assert found.quad == Quad("real", "other_half", "half", "noise")
    assert quads(FACTORIAL) == {"embeddings_x_blocks": found.quad}
    assert [factor.name for factor in found.factors] == ["blocks", "W_E"]
    assert found.arm("re-drawn", "real") == "half"
    assert found.arm("real", "re-drawn") == "other_half"
    assert found.lacking == ()
    assert found.note == ""
    # trained minus each is compared anyway; the new one is what a real W_E buys on random blocks
    assert found.contrasts(FACTORIAL) == [("half", "noise"), ("other_half", "noise")]


def test_an_incomplete_factorial_says_what_to_add() -> None:
    arms = {name: FACTORIAL[name] for name in ("real", "noise", "half")}
    found = only(arms, "embeddings_x_blocks")
    assert found.quad is None
    assert [cell.add for cell in found.lacking] == [
        'redraw_embeddings = {control = "redraw_embeddings"}'
    ]
    assert found.contrasts(arms) == [("half", "noise")]
    arms = {name: FACTORIAL[name] for name in ("real", "half")}
    assert len(only(arms, "embeddings_x_blocks").lacking) == 2
    assert designs({name: FACTORIAL[name] for name in ("real", "noise")}) == []
    assert designs({"real": FACTORIAL["real"]}) == []
    assert designs({}) == []


def test_the_pair_that_differs_least_is_taken() -> None:
    arms = FACTORIAL | parts(
        bare={"control": "redraw"},
        norms={"control": "redraw", "keep": [*KEEP, "norms"]},
        norms_alone={"control": "redraw", "keep": ["norms"]},
    )
    del arms["noise"], arms["half"]
    found = only(arms, "embeddings_x_blocks")
    assert found.quad == Quad("real", "other_half", "norms", "norms_alone")
    del arms["norms_alone"]
    assert only(arms, "embeddings_x_blocks").note == "norms and bare differ in norms as well"
    del arms["bare"]
    (lacking,) = only(arms, "embeddings_x_blocks").lacking
    assert lacking.add == 'redraw = {control = "redraw", keep = ["norms"]}'


def test_model_by_data() -> None:
    arms = FACTORIAL | parts(
        shuffle={"data": {"kind": "shuffle_tokens", "within": "document"}},
        half_shuffle={"control": "redraw", "keep": KEEP[::-1], "data": "shuffle_tokens"},
        markov={"data": "markov"},
    )
    complete, lacking = [d for d in designs(arms) if d.family == "model_x_data"]
    assert complete.name == "model_x_data.shuffle_tokens.half"
    assert complete.quad == Quad("real", "shuffle", "half", "half_shuffle")
    assert complete.contrasts(arms) == [("half", "half_shuffle"), ("shuffle", "half_shuffle")]
    # no placebo reads the Markov text: the one that keeps least is asked for
    assert lacking.quad is None
    (cell,) = lacking.lacking
    assert cell.add == 'noise_markov = {control = "redraw", data = "markov"}'
    # data controls change no model, so that the factorial of the models is as before
    assert only(arms, "embeddings_x_blocks").quad == quads(FACTORIAL)["embeddings_x_blocks"]


def test_data_controls_of_one_kind_with_other_settings_are_not_crossed() -> None:
    token, pair = ({"kind": "surrogate", "key": key} for key in ("token", "pair"))
    arms = FACTORIAL | parts(
        by_token={"data": token},
        by_pair={"data": pair},
        noise_by_pair={"control": "redraw", "keep": [], "data": pair},
    )
    lacking, complete = [d for d in designs(arms) if d.family == "model_x_data"]
    assert complete.name == "model_x_data.surrogate.pair.noise"
    assert complete.quad == Quad("real", "by_pair", "noise", "noise_by_pair")
    assert lacking.name == "model_x_data.surrogate.token.noise"
    (cell,) = lacking.lacking
    assert tomllib.loads(cell.add) == {"noise_surrogate": {"control": "redraw", "data": token}}
    alone = FACTORIAL | parts(by_pair={"data": pair})
    assert only(alone, "model_x_data").name == "model_x_data.surrogate.noise"


def test_a_placebo_alone_on_rewritten_text() -> None:
    arms = parts(a={}, b={"control": "permute"}, c={"control": "permute", "data": "unigram"})
    found = only(arms, "model_x_data")
    assert [cell.add for cell in found.lacking] == ['unigram = {data = "unigram"}']
    assert found.contrasts(arms) == [("b", "c")]


def test_cascades_are_ordered_by_dose() -> None:
    arms = parts(
        trained={},
        most={"control": "cascade", "last": 4},
        one={"control": "cascade", "last": 1},
        ten={"control": "cascade", "last": 10},
        single={"control": "cascade", "last": 2, "single": True},
    )
    curve, single = [d for d in designs(arms) if d.family == "cascade"]
    assert [cell.arm for cell in curve.cells] == ["trained", "one", "most", "ten"]
    assert curve.factors[0].levels == ("0", "1", "4", "10")
    assert [cell.arm for cell in single.cells] == ["trained", "single"]
    assert curve.name != single.name
    assert curve.contrasts(arms) == []
    assert curve.quad is None


def test_dictionaries_are_compared_on_their_own_model() -> None:
    arms = parts(
        trained={},
        redraw={"control": "redraw"},
        iso={"dictionary": {"kind": "frozen_decoder", "init": "iso"}},
        cov={"dictionary": {"kind": "frozen_decoder", "init": "cov"}},
        placebo_pca={"control": "redraw", "dictionary": "pca"},
        lone={"control": "init", "dictionary": "pca"},
    )
    found = [d for d in designs(arms) if d.family == "dictionary"]
    assert [[cell.arm for cell in d.cells] for d in found] == [
        ["trained", "iso", "cov"],
        ["redraw", "placebo_pca"],
    ]
    assert [d.contrasts(arms) for d in found] == [[], [("redraw", "placebo_pca")]]


def test_what_to_add_is_toml_that_makes_the_missing_arm() -> None:
    arms = FACTORIAL | parts(
        c={"control": "cascade", "last": 2, "data": "markov"}, m={"data": "markov"}
    )
    del arms["other_half"]
    asked = [cell for design in designs(arms) for cell in design.lacking]
    assert len(asked) == 2
    for cell in asked:
        ((name, table),) = tomllib.loads(cell.add).items()
        arms |= parts(**{name: table})
    assert not [cell for design in designs(arms) for cell in design.lacking]


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, sae_placebo.stats.designs; "
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cell_without_embeddings_does_not_keep_the_head_either() -> None:
    """In a tied model the head is the embedding, so an arm that keeps it keeps W_E."""
    arms = {
        "trained": ArmParts.of({"kind": "trained"}),
        "redraw": ArmParts.of({"kind": "redraw", "keep": []}),
        "keep_u": ArmParts.of({"kind": "redraw", "keep": ["unembedding"]}),
        "keep_e": ArmParts.of({"kind": "redraw", "keep": ["embeddings"]}),
        "redraw_embeddings": ArmParts.of({"kind": "redraw_embeddings"}),
    }
    assert set(quads(arms)["embeddings_x_blocks"]) == {
        "trained", "redraw_embeddings", "keep_e", "redraw",
    }  # fmt: skip
