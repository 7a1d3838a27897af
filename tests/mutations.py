"""Valid files of every kind, spoiled: what a reader makes of them is a result or one line for the user."""

import hashlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from sodeploy import artifacts
from sodeploy.calib_data import open_dataset
from sodeploy.calib_data.images import read_image
from sodeploy.calib_data.mask_reading import read_map, read_mask
from sodeploy.errors import UserError
from sodeploy.quant.arrays import read_arrays
from sodeploy.quant.budget.record import read_results, read_scores
from sodeploy.quant.calib_cache import read_cache
from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.calibration.statistics import Statistics, load_statistics
from sodeploy.quant.graph import load_network
from sodeploy.quant.planning.plan import read_plan
from sodeploy.runtime.contract import (
    CALIBRATION_KEY,
    METADATA_KEY,
    PRECISION_KEY,
    Contract,
    annotate,
    calibration_of,
)
from sodeploy.runtime.gpu import engine_record
from sodeploy.runtime.gpu.engine_record import EngineRecord, read_record
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.onnx_file import read_model
from sodeploy.runtime.session import open_session
from sodeploy.training.checkpoint import load_checkpoint, read_weights
from sodeploy.training.models import build as build_network
from sodeploy.training.recipe import RECIPES, load_recipe

Reader = Callable[[Path], Any]
Files = list[tuple[str, Reader]]
_INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"-1",
    b"1e999",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xff\xff\xff",
    b"..",
    b"/",
)


class Seed(NamedTuple):
    """A valid file and its reader.

    Attributes:
        kind: an entry of `KINDS`.
        path: the valid file.
        read: the reader that users' commands have for such files.
    """

    kind: str
    path: Path
    read: Reader


def make_seeds(folder: Path, kinds: Iterable[str] | None = None) -> list[Seed]:
    """Valid files of each kind, all kinds by default, each kind in a folder of its own below `folder`."""
    seeds = []
    for kind in KINDS if kinds is None else kinds:
        place = folder / kind.replace(" ", "-") / "files"  # a list takes a folder "mask" beside its own for masks
        place.mkdir(parents=True)
        seeds += [Seed(kind, place / name, read) for name, read in KINDS[kind](place)]
    return seeds


def _picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def _mask() -> np.ndarray:
    mask = np.zeros((24, 32), np.uint8)
    mask[5:15, 8:20] = 255
    return mask


def _images(folder: Path) -> Files:
    names = [f"{suffix}-image.{suffix}" for suffix in ("png", "jpg", "bmp", "tif", "webp")]
    for name in names:
        cv2.imwrite(str(folder / name), _picture())
    cv2.imwrite(str(folder / "deep.png"), _picture().astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "progressive.jpg"), _picture(), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    return [(name, read_image) for name in (*names, "deep.png", "progressive.jpg")]


def _masks(folder: Path) -> Files:
    mask = _mask()
    cv2.imwrite(str(folder / "cutout.png"), np.dstack([_picture(), mask]))
    (folder / "palette.png").write_bytes(palette_png(mask // 255))
    names = ("mask.png", "mask.bmp", "mask.jpg", "mask.tif", "mask.webp")
    for name in names:
        cv2.imwrite(str(folder / name), mask)
    cv2.imwrite(str(folder / "labels.png"), (mask // 255) * 2)
    cv2.imwrite(str(folder / "deep.png"), mask.astype(np.uint16) * 16)
    cv2.imwrite(str(folder / "colours.png"), np.dstack([mask, mask // 2, mask * 0]))
    read: list[tuple[str, Reader]] = [("cutout.png", read_map), ("palette.png", read_mask), ("labels.png", read_mask)]
    return read + [(name, read_mask) for name in ("deep.png", "colours.png", *names)]


def _lists(folder: Path) -> Files:
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(str(folder / name), _picture())
    (folder / "list.txt").write_text("# images\na.png\nb.jpg\n")
    return [("list.txt", lambda path: open_dataset(path, masks=False))]


def _recipes(folder: Path) -> Files:
    names = [path.name for path in sorted(RECIPES.glob("*.yaml"))]
    for name in names:
        (folder / name).write_text((RECIPES / name).read_text())
    return [(name, load_recipe) for name in names]


def _checkpoints(folder: Path) -> Files:
    network = build_network("u2net_tiny")
    few = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3)}
    torch.save({"state_dict": few, "epoch": 3}, folder / "zip.pth")
    torch.save(few, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(few, folder / "w.safetensors")
    torch.save(network.state_dict(), folder / "network.pth")
    with (
        zipfile.ZipFile(folder / "zip.pth") as stored,
        zipfile.ZipFile(folder / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    load = partial(load_checkpoint, network=network)
    names = ("zip.pth", "packed.pth", "old.pth", "w.safetensors")
    return [*((name, read_weights) for name in names), ("network.pth", load)]


def _onnx_model() -> onnx.ModelProto:
    """A network of two convolutions, a resize and a concatenation, 16 x 16, with all our metadata."""
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b1": np.zeros(4, np.float32),
        "w2": rng.standard_normal((1, 8, 1, 1)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["p1", "", "scales"], ["u1"], "up", mode="nearest"),
        helper.make_node("Concat", ["r1", "u1"], ["k1"], "cat", axis=1),
        helper.make_node("Conv", ["k1", "w2"], ["c2"], "last"),
        helper.make_node("Sigmoid", ["c2"], ["saliency"], "sigmoid"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("saliency", TensorProto.FLOAT, [1, 1, 16, 16])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    contract = Contract(network="tiny", height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    calibration = {"method": "kl", "digests_sha256": ["0" * 64]}
    annotate(model, {METADATA_KEY: contract.to_json(), PRECISION_KEY: "fp32", CALIBRATION_KEY: json.dumps(calibration)})
    return model


def _run_onnx(path: Path) -> None:
    """As bench does: the model's metadata is read, and it runs once."""
    read_model(path)
    with open_session(path, threads=1) as session:
        contract = session.contract
        calibration_of(session.metadata, path)
        if contract.height * contract.width * (contract.batch or 1) <= 1 << 20:
            session.infer(np.zeros((1, 3, contract.height, contract.width), np.float32))


def _onnx_files(folder: Path) -> Files:
    onnx.save(_onnx_model(), folder / "tiny.onnx")
    return [("tiny.onnx", _run_onnx), ("tiny.onnx", load_network)]


def _in_metadata(key: str) -> Callable[[Path], Files]:
    """Files with the value of one key of the metadata; the reader puts it into a model."""

    def files(folder: Path) -> Files:
        model = _onnx_model()
        onnx.save(model, folder / "tiny.onnx")
        name = f"{key}.txt"
        (folder / name).write_text(next(entry.value for entry in model.metadata_props if entry.key == key))

        def read(path: Path) -> None:
            data = path.read_bytes()
            entry = next(entry for entry in model.metadata_props if entry.key == key)
            entry.value = "\0" * len(data)  # protobuf takes no bytes that are not UTF-8, and files have them
            target = path.with_suffix(".onnx")
            target.write_bytes(model.SerializeToString().replace(b"\0" * len(data), data, 1) if data else b"")
            if data:
                _run_onnx(target)

        return [(name, read)]

    return files


def _plans(folder: Path) -> Files:
    plan = {
        "network": "n",
        "onnx": "n.onnx",
        "onnx_sha256": "0",
        "calibration": None,
        "ranges": [{"tensors": ["x"], "amax": 1.0, "signed": True}],
        "layers": {"conv": {"op": "Conv", "precision": "fp16", "reason": "r"}},
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return [("plan.json", read_plan)]


def _statistics(folder: Path) -> Files:
    statistics = Statistics("0" * 64, images={"ab" * 32: "a"})
    statistics.histograms["x"] = MagnitudeHistogram()
    statistics.histograms["x"].add(np.linspace(-1, 2, 50, dtype=np.float32))
    statistics.channel_sums["x"] = np.arange(3, dtype=np.int64)
    statistics.save(folder / "statistics.npz")
    return [("statistics.npz", load_statistics)]


def _rounding(folder: Path) -> Files:
    np.savez_compressed(folder / "rounding.npz", conv=np.zeros((3, 2), np.int8))
    return [("rounding.npz", lambda path: read_arrays(path, "rounded weights", "make the plan anew"))]


def _calib_caches(folder: Path) -> Files:
    (folder / "calib.cache").write_text("TRT-8601-EntropyCalibration2\ninput: 3c008912\nx: 3c008912\n")
    return [("calib.cache", read_cache)]


def _manifests(folder: Path) -> Files:
    (folder / "m.onnx.json").write_text(json.dumps({"artifact": "m.onnx", "inputs": {}, "sha256": "0", "size": 64}))
    return [("m.onnx.json", lambda path: artifacts.read_json(path, "make it again"))]


def _sidecars(folder: Path) -> Files:
    """The record beside an engine; what reads it before TensorRT is asked for."""
    engine = b"engine"
    contract = Contract(network="tiny", height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    record = EngineRecord(
        sha256=hashlib.sha256(engine).hexdigest(),
        contract=contract,
        precision="int8",
        builder="tensorrt",
        builder_version="10.9.0",
        targets=("sm80",),
        gpu="A100",
        any_newer_gpu=False,
        any_newer_version=True,
        rebuild="sodeploy engine tiny.onnx",
        calibration={"method": "kl", "digests_sha256": ["0" * 64]},
    )
    (folder / "tiny.engine.json").write_text(record.model_dump_json())

    def read(path: Path) -> None:
        path.with_suffix("").write_bytes(engine)
        engine_record._version_fits(read_record(path.with_suffix("")), "10.9.1")

    return [("tiny.engine.json", read)]


def _search_records(folder: Path) -> Files:
    key = {"format": 1, "network": "0" * 64, "images": "1" * 64}
    verdict = {"candidate": "all int8", "deltas": {"s": [0.0, -0.1, 0.1]}, "seconds": 1.5}
    record = {**key, "verdicts": {"2" * 64: verdict}, "map_errors": {"2" * 64: 0.01}}
    (folder / "tiny.search.json").write_text(json.dumps(record))
    scores: dict[str, Any] = {name: np.zeros(8) for name in metrics.per_image_values()}
    np.savez_compressed(folder / "tiny.search.npz", key=json.dumps(key), **scores)
    return [("tiny.search.json", read_results), ("tiny.search.npz", lambda path: read_scores(path, key, 8))]


KINDS: dict[str, Callable[[Path], Files]] = {
    "image": _images,
    "mask": _masks,
    "list": _lists,
    "recipe": _recipes,
    "checkpoint": _checkpoints,
    "onnx": _onnx_files,
    "contract": _in_metadata(METADATA_KEY),
    "calibration key": _in_metadata(CALIBRATION_KEY),
    "precision key": _in_metadata(PRECISION_KEY),
    "plan": _plans,
    "statistics": _statistics,
    "rounding": _rounding,
    "calib.cache": _calib_caches,
    "manifest": _manifests,
    "engine sidecar": _sidecars,
    "search record": _search_records,
}


def palette_png(indices: np.ndarray) -> bytes:
    height, width = indices.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in indices))
    palette = chunk(b"PLTE", bytes([0, 0, 0, 128, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def mutate(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes, runs or parts changed; sometimes inside an archive, which is packed anew."""
    if data.startswith(b"PK") and chance.random() < 0.5:
        return _mutate_inside(data, chance)
    spoiled = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(spoiled) + 1)
        kind = chance.randrange(7)
        if kind == 0 and spoiled:
            spoiled[at % len(spoiled)] ^= 1 << chance.randrange(8)
        elif kind == 1 and spoiled:
            spoiled[at % len(spoiled)] = chance.randrange(256)
        elif kind == 2:
            spoiled[at:at] = chance.choice(_INTERESTING)
        elif kind == 3:
            del spoiled[at : at + chance.randrange(1, 16)]
        elif kind == 4:
            spoiled[at : at + 4] = struct.pack(chance.choice(("<I", ">I")), chance.choice((0, 1, 2**31 - 1, 2**32 - 1)))
        elif kind == 5:
            begin = chance.randrange(len(spoiled) + 1)
            spoiled[at:at] = spoiled[begin : begin + chance.randrange(1, 64)]
        elif chance.random() < 0.3:
            del spoiled[at:]
    return _with_check_sums(bytes(spoiled)) if chance.random() < 0.5 else bytes(spoiled)


def _with_check_sums(data: bytes) -> bytes:
    """A PNG whose parts have the check sums that belong to their bytes, so that more than the sums are tried."""
    mended, position = bytearray(data), 8
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(mended)


def _mutate_inside(data: bytes, chance: random.Random) -> bytes:
    packed = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
            names = old.namelist()
            victim = chance.choice(names)
            for name in names:
                content = old.read(name)
                new.writestr(name, mutate(content, chance) if name == victim else content)
    except zipfile.BadZipFile:
        return data[: len(data) // 2]
    return packed.getvalue()


def is_one_line(error: UserError) -> bool:
    """Whether a message is what a user may see: printable, on one line."""
    return str(error).isprintable()
