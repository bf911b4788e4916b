"""The commands of `sae-placebo world`: models whose truth is known, and statistics of use tried on them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sae_placebo.cli.toy import named_folder
from sae_placebo.core.errors import SpecError
from sae_placebo.core.progress import for_terminal


class _BuildsByDefault(TyperGroup):
    """Takes `world factored --out X` as `world build factored --out X`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `build` in front where no command is named."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["build", *args]
        return super().parse_args(ctx, args)


class Units(StrEnum):
    """What is judged at a site: latents of an SAE, or values of variables."""

    latents = "latents"
    values = "values"


world = typer.Typer(
    cls=_BuildsByDefault,
    help="Worlds: models whose truth is known, to try statistics of use on.",
    no_args_is_help=True,
)

Preset = Annotated[str | None, typer.Option(help="Settings of a factored world or of twins.")]
Program = Annotated[str | None, typer.Option(help="What a compiled world computes.")]


@world.command()
def build(
    kind: Annotated[str, typer.Argument(help="factored, twins or compiled.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder to write; twins are two in it.", parser=named_folder),
    ],
    seed: Annotated[int, typer.Option(help="Names everything that is drawn.")] = 0,
    preset: Preset = None,
    program: Program = None,
) -> None:
    """Build a model whose truth is known, with its rows and variables, and write it to a folder."""
    from sae_placebo.lab.worlds.saving import write_worlds

    folders = write_worlds(kind, out, seed, preset=preset, program=program, progress=for_terminal())
    for folder in folders:
        typer.echo(f"world: {folder}")


@world.command()
def score(
    statistics: Annotated[
        list[str],
        typer.Argument(
            help="Functions, as package.module:function, importable from this folder. Each takes the subject "
            "and the directions and returns one number per direction; higher says more use."
        ),
    ],
    folders: Annotated[
        list[Path] | None,
        typer.Option(
            "--world",
            help="Folder that `world build` wrote, or one of several.",
            parser=named_folder,
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Kind of world to build: factored, twins or compiled.")
    ] = None,
    preset: Preset = None,
    program: Program = None,
    seeds: Annotated[int, typer.Option(min=1, help="Worlds that are built.")] = 1,
    first: Annotated[
        int, typer.Option(help="Seed of the first one, and of all draws on worlds from folders.")
    ] = 0,
    hookpoints: Annotated[
        list[str] | None, typer.Option("--hookpoint", help="A site; all, if none is named.")
    ] = None,
    units: Annotated[Units, typer.Option(help="What is judged.")] = Units.latents,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--use-set", help="dotted.name=value; a setting of our verdicts, as in `use`."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the tables, and of our part, from which a stopped run goes on.",
            parser=named_folder,
        ),
    ] = None,
) -> None:
    """Score your own statistic of use on worlds, beside ours and simpler ones: AUROC by site."""
    from sae_placebo.lab.worlds.statistic_scores import (
        built,
        score_statistics,
        stored,
        use_settings,
    )
    from sae_placebo.lab.worlds.statistic_tables import in_lines
    from sae_placebo.lab.worlds.user_statistics import find_statistics

    if kind is None and not folders:
        raise SpecError("no world is named: give --world FOLDER, or --kind factored to build one")
    if kind is None and (preset is not None or program is not None):
        raise SpecError("--preset and --program are of worlds that are built: give --kind as well")
    found = find_statistics(statistics)
    spec = use_settings(settings or [])
    sources = [stored(folder, first) for folder in folders or []]
    if kind is not None:
        sources += built(kind, range(first, first + seeds), preset, program)
    scores = score_statistics(
        found,
        sources,
        spec,
        units.value,
        hookpoints=hookpoints or [],
        folder=out,
        progress=for_terminal(),
    )
    typer.echo(in_lines(scores))
    if out is not None:
        typer.echo(f"tables: {out / 'scores.parquet'} and {out / 'units.parquet'}")
