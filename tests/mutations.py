"""Valid files of every kind, spoiled: what a reader makes of them is a result or one line for the user."""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from sodeploy import artifacts
from sodeploy.calib_data import open_dataset
from sodeploy.calib_data.images import read_image
from sodeploy.calib_data.mask_reading import read_map, read_mask
from sodeploy.errors import UserError
from sodeploy.quant.arrays import read_arrays
from sodeploy.quant.calib_cache import read_cache
from sodeploy.quant.calibration.histogram import MagnitudeHistogram
from sodeploy.quant.calibration.statistics import Statistics, load_statistics
from sodeploy.quant.planning.plan import read_plan
from sodeploy.training.checkpoint import read_weights
from sodeploy.training.recipe import RECIPES, load_recipe

Reader = Callable[[Path], Any]
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


def make_seeds(folder: Path) -> list[tuple[Path, Reader]]:
    """A valid file of each kind and its reader."""
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    mask = np.zeros((24, 32), np.uint8)
    mask[5:15, 8:20] = 255
    seeds: list[tuple[Path, Reader]] = []
    for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp"):
        name = f"{suffix[1:]}-image{suffix}"
        cv2.imwrite(str(folder / name), picture)
        seeds.append((folder / name, read_image))
    cv2.imwrite(str(folder / "deep.png"), picture.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "cutout.png"), np.dstack([picture, mask]))
    (folder / "palette.png").write_bytes(palette_png(mask // 255))
    cv2.imwrite(str(folder / "labels.png"), (mask // 255) * 2)
    seeds += [(folder / "deep.png", read_image), (folder / "cutout.png", read_map)]
    seeds += [(folder / "palette.png", read_mask), (folder / "labels.png", read_mask)]
    (folder / "list.txt").write_text("# images\npng-image.png\njpg-image.jpg\n")
    seeds.append((folder / "list.txt", lambda path: open_dataset(path, masks=False)))
    (folder / "recipe.yaml").write_text((RECIPES / "demo.yaml").read_text())
    seeds.append((folder / "recipe.yaml", load_recipe))
    weights = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3)}
    torch.save({"state_dict": weights, "epoch": 3}, folder / "zip.pth")
    torch.save(weights, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "w.safetensors")
    seeds += [(folder / name, read_weights) for name in ("zip.pth", "old.pth", "w.safetensors")]
    statistics = Statistics("0" * 64, images={"ab" * 32: "a"})
    statistics.histograms["x"] = MagnitudeHistogram()
    statistics.histograms["x"].add(np.linspace(-1, 2, 50, dtype=np.float32))
    statistics.channel_sums["x"] = np.arange(3, dtype=np.int64)
    statistics.save(folder / "statistics.npz")
    seeds.append((folder / "statistics.npz", load_statistics))
    np.savez_compressed(folder / "rounding.npz", conv=np.zeros((3, 2), np.int8))
    seeds.append((folder / "rounding.npz", lambda path: read_arrays(path, "rounded weights", "make the plan anew")))
    plan = {
        "network": "n",
        "onnx": "n.onnx",
        "onnx_sha256": "0",
        "calibration": None,
        "ranges": [{"tensors": ["x"], "amax": 1.0, "signed": True}],
        "layers": {"conv": {"op": "Conv", "precision": "fp16", "reason": "r"}},
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    seeds.append((folder / "plan.json", read_plan))
    (folder / "calib.cache").write_text("TRT-8601-EntropyCalibration2\ninput: 3c008912\nx: 3c008912\n")
    seeds.append((folder / "calib.cache", read_cache))
    (folder / "m.onnx.json").write_text(json.dumps({"artifact": "m.onnx", "inputs": {}, "sha256": "0"}))
    seeds.append((folder / "m.onnx.json", lambda path: artifacts.read_json(path, "make it again")))
    return seeds


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
    return bytes(spoiled)


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
