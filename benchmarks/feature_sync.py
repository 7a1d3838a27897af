"""IS-Net in two stages, with and without feature synchronisation, on the built-in synthetic set.

    python benchmarks/feature_sync.py [--output-dir out/feature_sync] [--eval synthetic:eval:200:64]

A segmentation network is trained by its masks alone; then an encoder of masks and, from the same seed on the same
batches, a segmentation network that learns the encoder's features too. The table scores both on images that neither
saw. The recipes in feature_sync/ are small and show that the way works end to end; the paper's are those in
training/configs/. An interrupted run goes on where it stood.
"""

from pathlib import Path
from typing import Annotated

import typer

from sodeploy import command_line, terminal
from sodeploy.export.to_onnx import export
from sodeploy.runtime.bench import bench, publish
from sodeploy.training.recipe import load_recipe
from sodeploy.training.train import train

RECIPE = Path(__file__).resolve().parent / "feature_sync" / "isnet_dis.yaml"
WITHOUT = ("teacher=null", "loss={bce: 1}")


def compare(recipe: Path, folder: Path, data: str) -> Path:
    """Train, export and measure both networks.

    Args:
        recipe: of the network with its teacher.
        folder: for runs, models and the table.
        data: what they are scored on, as `calib_data.open_dataset` takes it.

    Returns:
        The Markdown file with the table; the network without synchronisation is the baseline.
    """
    size = load_recipe(recipe).size
    models = []
    for name, overrides in (("without", WITHOUT), ("with", ())):
        weights = train(recipe, output=folder / name, resume=True, overrides=overrides)
        models.append(export("isnet_dis", weights, folder / f"{name}.onnx", size=(size, size)))
    table = folder / "feature_sync.md"
    publish(bench(models, data, threads=1, workers=1), markdown=table)
    return table


def main(
    output_dir: Annotated[Path, typer.Option(help="folder for runs, models and the table")] = Path("out/feature_sync"),
    evaluate: Annotated[str, typer.Option("--eval", help="images and masks to score on")] = "synthetic:eval:200:64",
    config: Annotated[Path, typer.Option(help="recipe of the network with its teacher")] = RECIPE,
) -> None:
    """Train IS-Net with and without feature synchronisation and compare."""
    terminal.note(f"wrote {compare(config, output_dir, evaluate)}")


if __name__ == "__main__":
    command_line.run(main)
