"""The option of command lines that chooses metrics."""

from typing import Annotated

import typer

MetricsOption = Annotated[
    str | None, typer.Option("--metrics", help="metrics in the order of tables, S,MAE,...; all; nine by default")
]
