"""Options of command lines that name data sets; every stage that takes data has them."""

from pathlib import Path
from typing import Annotated

import typer

RootOption = Annotated[
    Path | None,
    typer.Option("--root", help="folder of the data sets named (DUTS-TE,ECSSD), to which lists are relative too"),
]
