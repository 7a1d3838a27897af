"""Options of command lines that score maps."""

from typing import Annotated

import typer

MetricsOption = Annotated[
    str | None, typer.Option("--metrics", help="metrics in the order of tables, S,MAE,...; all; nine by default")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="processes that score; one per core by default", min=1)
]
