"""The command `sae-placebo examine`; each of its parameters is an option."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_placebo.cli.options import Overrides, Replace, StoreFolder
from sae_placebo.core.progress import for_terminal


def examine(
    sae: Annotated[
        list[str], typer.Argument(help="Folder or file of an SAE, or several of other seeds.")
    ],
    model: Annotated[str, typer.Option(help="The model that it was trained on.")],
    text: Annotated[list[str], typer.Option(help="A file, a folder or a pattern.")],
    hookpoint: Annotated[
        str | None,
        typer.Option(help="Where it reads, such as resid_post.6; else what its file says."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the trial; else made of the SAE's.")
    ] = None,
    train_tokens: Annotated[int, typer.Option(help="Tokens to train placebos on.")] = 120_000,
    heldout_tokens: Annotated[int, typer.Option(help="Tokens to measure on.")] = 50_000,
    latents: Annotated[int, typer.Option(help="Latents asked for use and circuitry.")] = 200,
    store: StoreFolder = Path("runs"),
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Write the trial file and print the plan, and stop.")
    ] = False,
    replace: Replace = False,
    overrides: Overrides = None,
) -> None:
    """Examine an SAE that you have: which of its latents are no better than a placebo's?"""
    from sae_placebo.data.documents import suffix
    from sae_placebo.trial.costs import plan_table
    from sae_placebo.trial.examine import ExamineSpec, examined, write_trial

    # an unquoted pattern leaves all files but the first among the SAEs
    more = [one for one in sae if suffix(Path(one))]
    sae, text = [one for one in sae if one not in more], [*text, *more]
    changed = tuple(overrides or ())
    settings = ExamineSpec(train_tokens, heldout_tokens, latents, name, changed)
    path = write_trial(sae, model, text, store, hookpoint, settings, for_terminal())
    typer.echo(f"the trial: {path}")
    typer.echo(plan_table(path, store, overrides=[], probe=plan_only, progress=for_terminal()))
    if plan_only:
        return
    found = examined(path, store, for_terminal(), replace)
    typer.echo(found.summary())
    typer.echo(f"latents: {found.table}")
    typer.echo(f"report: {found.report}")
