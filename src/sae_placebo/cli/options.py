"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sae_placebo.cli.toy import named_folder

TrialFile = Annotated[Path, typer.Argument(help="The trial file (TOML).")]
StoreFolder = Annotated[
    Path, typer.Option("--store", help="Folder of artefacts and results.", parser=named_folder)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="dotted.key=value; replaces a setting of the file."),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where models run: cpu, cuda or cuda:<number>; replaces the file's."),
]
Wait = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for another process to free the store.")
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Replace results of other settings under the trial's name; they are moved aside.",
    ),
]
