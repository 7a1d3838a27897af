"""Options of command lines that name data sets."""

from pathlib import Path
from typing import Annotated

import typer

RootOption = Annotated[
    Path | None,
    typer.Option("--root", help="folder of the data sets named (DUTS-TE,ECSSD), to which lists are relative too"),
]
LimitOption = Annotated[int | None, typer.Option("--limit", help="use only the first N images", metavar="N", min=1)]
