"""The commands of `sae-placebo toy`, which train SAEs on activations whose features are known."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sae_placebo.core.errors import MissingExtra
from sae_placebo.core.progress import for_terminal


def named_folder(name: str | Path) -> Path:
    """Return the folder that an option names.

    Raises:
        StoreError: the name is empty.
    """
    from sae_placebo.trial.result_folders import store_folder

    return store_folder(name)


toy = typer.Typer(
    help="The ground-truth laboratory: SAEs on activations whose features are known.",
    no_args_is_help=True,
)

GeneratorSettings = Annotated[
    list[str] | None,
    typer.Option("--generator-set", help="name=value; a setting of the generator."),
]

Generator = Annotated[str, typer.Argument(help="Kind of generator; see `generators`.")]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder of the table, and of trained SAEs, from which a stopped run goes on.",
        parser=named_folder,
    ),
]
_OF_BIAS = (
    "b_dec: none, so that the truth is within reach; held at the activations' mean; or trained."
)


class Bias(StrEnum):
    """The ways to treat `b_dec`; `LabTraining` says what each does."""

    none = "none"
    mean = "mean"
    trained = "trained"


SAESettings = Annotated[
    list[str] | None,
    typer.Option(
        "--sae-set",
        help="name=value; a setting of the SAE. Else it has as many latents as there are features, "
        "and as many active ones as are true.",
    ),
]


@toy.command()
def compose(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of cells, table and page.", parser=named_folder)
    ],
    sweep: Annotated[
        str,
        typer.Option(
            help="Up to three of lambda, correlation, width, solo, items or another number of the "
            "generator, each with values of its own or without: lambda=0.1:0.2,width. One value fixes a "
            "setting: lambda=0.1."
        ),
    ] = "lambda,correlation,width",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--generator-set",
            help="name=value; a setting of the generator, or its kind; else composed_sets.",
        ),
    ] = None,
    items: Annotated[int | None, typer.Option(help="Items of each set.")] = None,
    sae: Annotated[str, typer.Option(help="Kind of SAE, one with a penalty.")] = "relu",
    seeds: Annotated[int, typer.Option(help="SAEs of each cell.")] = 5,
    steps: Annotated[int, typer.Option(help="Training steps of each SAE.")] = 3_000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of one thread; else one per core.")
    ] = None,
) -> None:
    """Draw where SAEs learn combinations of features and where features; a stopped run is continued."""
    from sae_placebo.lab.experiments.phase import phase_spec, run_phase
    from sae_placebo.lab.experiments.phase_drawing import draw_phase
    from sae_placebo.lab.experiments.sweeps import parse_axes, parse_settings

    fixed = parse_settings(settings or []) | ({} if items is None else {"items": items})
    kind, of_set = str(fixed.pop("kind", "composed_sets")), fixed.get("items")
    axes = parse_axes(sweep, kind, of_set if isinstance(of_set, int) else 4)
    spec = phase_spec(axes, fixed, generator=kind, sae=sae, seeds=seeds, steps=steps)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    phase = run_phase(spec, out, workers or cores or 1, for_terminal())
    try:
        draw_phase(phase, out)
    except MissingExtra as lack:
        typer.echo(f"phase.svg is left out: {lack}")
    seconds = sum(phase.seconds())
    typer.echo(f"{len(phase.done)} cells, {seconds / max(len(phase.done), 1):.1f} s each")
    typer.echo(f"page: {out / 'phase.html'}")


@toy.command()
def generators() -> None:
    """List the kinds of generator, with a line on each."""
    from sae_placebo.lab import GENERATORS

    width = max(map(len, GENERATORS))
    for kind, made in sorted(GENERATORS.entries.items()):
        line = (made.__doc__ or "").strip().split("\n")[0]
        typer.echo(f"{kind:{width}}  {line}")


@toy.command()
def train(
    generator: Generator,
    sae: Annotated[str, typer.Option(help="Kind of SAE.")] = "relu",
    settings: GeneratorSettings = None,
    sae_settings: SAESettings = None,
    seeds: Annotated[int, typer.Option(min=1, help="SAEs that are trained.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 3_000,
    bias: Annotated[Bias, typer.Option(help=_OF_BIAS)] = Bias.mean,
    scores: Annotated[
        str | None,
        typer.Option(
            help="More sets of scores: all, or names separated by commas; see `toy scores`."
        ),
    ] = None,
    out: OutFolder = None,
) -> None:
    """Train SAEs on a generator and print their scores, what chance gives, and what is possible."""
    from sae_placebo.lab.experiments.base import LabTraining
    from sae_placebo.lab.experiments.score_sets import in_lines as sets_in_lines
    from sae_placebo.lab.experiments.scoreboard import in_lines, sae_for
    from sae_placebo.lab.experiments.scored_training import sets_of, train_and_score
    from sae_placebo.lab.experiments.sweeps import generator_of, parse_settings

    made = generator_of(generator, parse_settings(settings or []))
    spec = sae_for(made, sae, parse_settings(sae_settings or []))
    sets = [] if scores is None else sets_of(scores)
    lab = LabTraining(steps=steps, bias=bias.value)
    board, more = train_and_score(
        made, spec, lab, range(seeds), sets, folder=out, progress=for_terminal()
    )
    typer.echo(in_lines(board))
    if more:
        typer.echo(f"\n{sets_in_lines(more)}")
    if out is not None:
        typer.echo(f"table: {out / 'scores.parquet'}")


@toy.command()
def scores() -> None:
    """List the sets of scores that `toy train --scores` takes, with what each says and its null."""
    from sae_placebo.lab.experiments.scored_training import sets_of

    sets = sets_of("all")
    width = max(len(one.name) for one in sets)
    for one in sets:
        typer.echo(f"{one.name:{width}}  {one.about}")


@toy.command()
def chance(
    d_in: Annotated[int | None, typer.Argument(help="Dimensions.")] = None,
    features: Annotated[int | None, typer.Argument(help="Features, as random directions.")] = None,
    latents: Annotated[int | None, typer.Argument(help="Rows of the random dictionary.")] = None,
    seed: Annotated[int, typer.Option(help="Names the draws.")] = 0,
) -> None:
    """Print what random dictionaries reach on random features, at one size or at several."""
    from sae_placebo.lab.experiments.chance import in_lines, null_table, sizes_of

    sizes = sizes_of(d_in, features, latents)
    typer.echo(in_lines(null_table(sizes, seed, for_terminal().track)))


@toy.command()
def explain(
    generator: Generator,
    sae: Annotated[
        str, typer.Option(help="Kind of SAE; one with a penalty needs `--sae-set coefficient=...`.")
    ] = "topk",
    settings: GeneratorSettings = None,
    sae_settings: SAESettings = None,
    seeds: Annotated[int, typer.Option(min=1, help="SAEs of ordinary training.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of every SAE.")] = 3_000,
    tokens: Annotated[int, typer.Option(min=64, help="Held-out tokens.")] = 16_384,
    bias: Annotated[Bias, typer.Option(help=_OF_BIAS)] = Bias.none,
    out: OutFolder = None,
) -> None:
    """Say why SAEs miss a generator's truth: identifiability, the objective, the encoder or optimization."""
    from sae_placebo.lab.experiments.base import LabTraining
    from sae_placebo.lab.experiments.explanation import explain as explained
    from sae_placebo.lab.experiments.explanation import in_lines
    from sae_placebo.lab.experiments.objectives import SplitSpec
    from sae_placebo.lab.experiments.scoreboard import sae_for
    from sae_placebo.lab.experiments.sweeps import generator_of, parse_settings

    made = generator_of(generator, parse_settings(settings or []))
    spec = sae_for(made, sae, parse_settings(sae_settings or []))
    found = explained(
        made,
        spec,
        LabTraining(steps=steps, bias=bias.value),
        range(seeds),
        SplitSpec(tokens=tokens),
        folder=out,
        progress=for_terminal(),
    )
    typer.echo(in_lines(found))
    if out is not None:
        typer.echo(f"table: {out / 'explanation.parquet'}")
