"""Every row of docs/from_other_tools.md runs: the commands of ours, on small data, with a small network."""

import io
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import onnx
import pytest

from sodeploy import terminal
from sodeploy.__main__ import group
from sodeploy.export.to_onnx import export
from sodeploy.runtime.video import live, webcam
from sodeploy.training import networks
from sodeploy.training.recipe import recipe_names
from sodeploy.training.train import train

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "from_other_tools.md"
SETS = (
    "DUTS-TR", "DUTS-TE", "DUT-OMRON", "ECSSD", "HKU-IS", "PASCAL-S", "SOD", "DIS-TR", "DIS-TE1", "DIS-TE2", "AIM-500"
)  # fmt: skip
RECIPE = """
network: u2net_tiny
train: synthetic:train:4:40
validation: {data: "synthetic:val:2:40", every: 2, best: mae}
size: 32
augment: [{name: resize, size: 32}]
loss: {bce: 1}
optimizer: {name: adam, lr: 0.001}
batch: 2
steps: 1
workers: 0
"""
FILES = {  # of the page, beside images and models
    "tiny.yaml": RECIPE,
    "eval.yaml": """
Eval: {gt_root: data, pred_root: maps/SwinB, datasets: [ECSSD, HKU-IS], metrics: [Sm, mae], result_path: scored}
""",
    "mine.yaml": """
{output: out/mine, root: data, train: {config: tiny.yaml}, test: {data: [ECSSD], models: [fp32]}, eval: {curves: false}}
""",
    "more.yaml": """
{output: out/more, root: data, model: out/u2netp.onnx, test: {data: [SOD], models: [fp32]}, eval: {curves: false}}
""",
    "pairs.lst": "".join(f"maps/CSF/ECSSD/{index}.png data/ECSSD/masks/{index}.png\n" for index in range(4)),
}


class Row(NamedTuple):
    """A row: the tool, its command, and the commands of ours."""

    tool: str
    theirs: str
    ours: list[str]


def rows() -> list[Row]:
    found = []
    for section in PAGE.read_text().split("\n## ")[1:]:
        tool = section.splitlines()[0]
        for line in section.splitlines():
            if line.startswith("| ") and not line.startswith("| :--") and "`sodeploy " in line:
                theirs, ours = line.strip("| ").rsplit(" | ", 1)
                found.append(Row(tool, theirs, re.findall(r"`(sodeploy [^`]+)`", ours)))
    return found


TOOLS = list(dict.fromkeys(row.tool for row in rows()))


def write_image(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 90, (40, 56, 3)).astype(np.uint8)
    pixels[10:30, 12:40] = 220
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def write_mask(path: Path) -> None:
    mask = np.zeros((40, 56), np.uint8)
    mask[10:30, 12:40] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)


def write_video(path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 60 * value, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data sets, photographs, models and checkpoints that the page speaks of."""
    folder = tmp_path_factory.mktemp("tools")
    for number, name in enumerate(SETS):
        images, masks = ("original", "mask") if name == "AIM-500" else ("images", "masks")
        for index in range(4):
            write_image(folder / "data" / name / images / f"{index}.jpg", 10 * number + index)
            write_mask(folder / "data" / name / masks / f"{index}.png")
    pairs = "".join(f"images/{index}.jpg masks/{index}.png\n" for index in range(4))
    (folder / "data" / "DUTS-TR" / "train_pair.lst").write_text(pairs)
    for index in range(2):
        write_image(folder / "photos" / f"{index}.png", 200 + index)
    write_image(folder / "in.png", 300)
    write_image(folder / "back.png", 301)
    write_video(folder / "clip.mp4")
    (folder / "videos").mkdir()
    shutil.copy(folder / "clip.mp4", folder / "videos")
    for name in recipe_names():  # a file of this name goes before the recipe of the product
        (folder / name).write_text(RECIPE)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    best = train(folder / "tiny.yaml", output=folder / "runs" / "tiny")
    shutil.copy(best, folder / "latest.pth")
    export("u2net_tiny", best, folder / "u2netp.onnx", size=(320, 320))
    foreign = onnx.load(folder / "u2netp.onnx")
    del foreign.metadata_props[:]  # as a file from elsewhere, without a contract
    onnx.save(foreign, folder / "u2netp.onnx")
    export("u2net_tiny", best, folder / "out" / "u2netp.onnx", size=(32, 32))
    for name in ("inspyrenet", "isnet"):
        shutil.copy(folder / "out" / "u2netp.onnx", folder / "out" / f"{name}.onnx")
    return folder


class Camera:
    """A webcam of one picture."""

    def __init__(self, number: int) -> None:
        self.pictures = [np.full((40, 56, 3), 90, np.uint8)]

    def read(self) -> np.ndarray | None:
        return self.pictures.pop() if self.pictures else None

    def close(self) -> None:
        pass


class Screen:
    """The window of a webcam, without a display."""

    shown: ClassVar[list[np.ndarray]] = []

    def __init__(self, title: str) -> None:
        pass

    def show(self, picture: np.ndarray) -> bool:
        self.shown.append(picture)
        return True

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def _outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands of the page set signal handlers and a watcher of their own. A webcam and a display are imitated."""
    monkeypatch.setitem(webcam.OPENERS, "opencv", Camera)
    monkeypatch.setattr(live, "Window", Screen)
    monkeypatch.setattr(networks, "NETWORKS", ("u2netp", "u2net_tiny"))  # counting all takes ten seconds
    before, watcher = signal.getsignal(signal.SIGTERM), terminal.on_progress(None)
    yield
    terminal.on_progress(watcher)
    signal.signal(signal.SIGTERM, before)


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the page in this process, with its redirections."""
    words = shlex.split(command)[1:]
    target = Path(words[words.index(">") + 1]) if ">" in words else None
    source = Path(words[words.index("<") + 1]) if "<" in words else None
    words = words[: min([words.index(sign) for sign in "<>" if sign in words], default=len(words))]
    if words[0] in ("bench", "evaluate", "masks", "run") and "--workers" not in words:
        words += ["--workers", "1"]  # no processes of its own, which take seconds to start
    monkeypatch.setattr(sys, "argv", ["sodeploy", *words])
    if source:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    written = io.TextIOWrapper(io.BytesIO())
    if target:
        monkeypatch.setattr(sys, "stdout", written)
    result: Any = group()(words, standalone_mode=False)
    assert not result, command
    if target:
        written.flush()
        target.write_bytes(written.buffer.getvalue())  # type: ignore[attr-defined]


def outputs(command: str) -> list[Path]:
    """The files and folders that a command names as outputs."""
    words = shlex.split(command)
    named = ("--output", "--output-dir", "--csv", "--curves", ">")
    return [Path(words[index + 1]) for index, word in enumerate(words) if word in named]


def test_the_page_has_a_table_for_each_tool() -> None:
    assert len(TOOLS) == 8
    assert all(row.ours for row in rows())
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]
    assert len(lines) == len(rows())  # none is passed over


@pytest.mark.usefixtures("_outside")
@pytest.mark.parametrize("tool", TOOLS)
def test_every_row_runs(tool: str, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    for row in rows():
        if row.tool != tool:
            continue
        for command in row.ours:
            with monkeypatch.context() as patch:
                run(command, patch)
            assert all(path.exists() for path in outputs(command)), command
            assert not command.startswith("sodeploy infer 0 ") or Screen.shown.pop().shape == (40, 56)
