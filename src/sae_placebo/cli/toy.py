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
    typer.Option("--generator-set", help="name=value; a setting of the generator, or its kind."),
]

Generator = Annotated[str, typer.Argument(help="Kind of generator; see `generators`.")]


class Bias(StrEnum):
    """What becomes of `b_dec`, as in `LabTraining`."""

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
    settings: GeneratorSettings = None,
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
) -> None:
    """Train SAEs on a generator and print their scores, what chance gives, and what is possible."""
    from sae_placebo.lab.experiments.base import LabTraining
    from sae_placebo.lab.experiments.scoreboard import in_lines, sae_for, scoreboard
    from sae_placebo.lab.experiments.sweeps import generator_of, parse_settings

    made = generator_of(generator, parse_settings(settings or []))
    spec = sae_for(made, sae, parse_settings(sae_settings or []))
    lab = LabTraining(steps=steps)
    with for_terminal().track(f"{sae} on {generator}", lab.n_tokens * seeds) as advance:
        lines = scoreboard(made, spec, lab, range(seeds), advance=advance)
    typer.echo(in_lines(lines))


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
    bias: Annotated[
        Bias,
        typer.Option(
            help="b_dec: none, with which the truth is within reach; held at the activations' mean; or "
            "trained from there."
        ),
    ] = Bias.none,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the table and of trained SAEs, from which a stopped run goes on.",
            parser=named_folder,
        ),
    ] = None,
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
