"""Cuts the golden arrays of a research folder down to the files in `data/`.

    python tests/golden/cut.py ../shared

The same arrays give the same bytes.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from golden_values import DATA, SAMPLES, positions, summary, to_planes

U_TYPE = (
    r"\d+x\d+/logit/d\d",
    r"train96/(loss_sum|grad_norm|logit/.*|buffer/.*)",
)
CALIBRATED_WHOLE = (r"C.*\.state(_f16)?",)
PYRAMID_LOSS = (r"C64x64\.loss_.*",)
PYRAMID_LOSS_WHOLE = (r"C64x64\.d\d", r"C64x64\.gt(_reduce\d)?")


class Source(NamedTuple):
    """The tensors to take from one golden file. Patterns match whole names; the others are left out."""

    golden: str
    state_dict: str | None = None
    cut: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()  # inputs of functions, and parameters
    texts: tuple[str, ...] = ()


def csnet(variant: str) -> Source:
    return Source(
        "csnet/golden.npz",
        f"csnet/state_dict_{variant}.json",
        (rf"{variant}/(fill|real)/.*/logit", rf"{variant}/fill/96x96/feat_c4s4/.*", rf"{variant}/train96/.*"),
    )


def ras(version: int, loss: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Source:
    return Source(
        f"ras/golden_v{version}.npz",
        f"ras/state_dict_v{version}.json",
        (r"C\d+x\d+\.score\d(_s8)?", *loss),
        (*CALIBRATED_WHOLE, *whole),
        (r"override_names", r"C.*\.conv_scale"),
    )


def inspyrenet(backbone: str, cases: str, cut: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Source:
    return Source(
        f"inspyrenet_{backbone}/golden.npz",
        f"inspyrenet_{backbone}/state_dict.json",
        (rf"({cases})\.d\d(_s\d+)?", *PYRAMID_LOSS, *cut),
        (rf"({cases})\.state", *PYRAMID_LOSS_WHOLE, *whole),
        (r"override_names",),
    )


def u_type(folder: str, *cut: str) -> Source:
    names = (r"train96/grad_norm_names",)
    return Source(f"{folder}/golden.npz", f"{folder}/state_dict.json", (*U_TYPE, *cut), texts=names)


SOURCES = {
    "u2net": u_type("u2net"),
    "u2netp": u_type("u2netp"),
    "isnet_dis": u_type("isnet_dis", r"96x96/feat_c8s4/.*", r"train96/(feat_mse_each|featsync_MSE_main_total)"),
    "isnet_gt_encoder": u_type("isnet_gt_encoder", r"96x96/feat_c8s4/.*"),
    "csf_res2net": Source(
        "csf_res2net/golden.npz",
        "csf_res2net/state_dict.json",
        (r"\d+x\d+/logit", r"96x96/feat_c16s2/(base|fuse\[|ms\[).*", r"loss/(bce_logits_sum_b2|grad_norm)"),
        texts=(r"loss/grad_norm_names",),
    ),
    "csnet_x1": csnet("csnet-L-x1"),
    "csnet_x2": csnet("csnet-L-x2"),
    "ras_v1": ras(1, (r"C.*\.loss_.*",), (r"C(64x64|70x100)\.(score\d|gt)",)),
    "ras_v2": ras(2),
    "isnet_integrity": Source(
        "isnet_integrity/golden.npz",
        "isnet_integrity/state_dict.json",
        (r"C.*\.(out\d|coarse)(_s8)?", r"C64x64\.(hda_weight|hda_out\d_intended|loss_coarse)"),
        (*CALIBRATED_WHOLE, r"C64x64\.(out\d|coarse|(gt|di|er)_u8)"),
        (r"override_names", r"C.*\.conv_scale"),
    ),
    "inspyrenet_res2net50": inspyrenet(
        "res2net50",
        "C64x64|C64x128|C256x320",
        (r"C576x544\.backbone_x[45]_s", r"blend2?\.(d\d|transition\d)", r"pyr\.(reduce|expand|reconstruct)"),
        (
            r"C576x544\.state",
            r"C64x(64|128)\.[dp]\d",  # what is blended
            r"ellipse_kernel\d",
            r"pyramid_kernel",
            r"pyr\.(input16x24_seed3|deconstruct_lap)",
        ),
    ),
    "inspyrenet_swint": inspyrenet("swint", "C64x64|C64x128|C256x320|C64x96_base512"),
    "inspyrenet_swinb": inspyrenet("swinb", "C64x128"),
    "masks": Source(
        "isnet_integrity/masks_golden.npz",
        cut=(r".*\.(expanded_gt|hda_weight)",),
        whole=(r".*\.(mask|dilated|eroded|envelope)",),
    ),
    "patch_merge": Source(
        "inspyrenet_swinb/patch_merge_golden.npz", cut=(r"head_reflect_pad\..*", r"patches_sum", r"patch_last_head")
    ),
}


def main() -> None:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "networks").is_dir():
        sys.exit(f"usage: python {sys.argv[0]} RESEARCH, the folder that holds networks/")
    write(Path(sys.argv[1]) / "networks", DATA)


def write(networks: Path, folder: Path) -> None:
    """Write one file per source; `networks` holds a folder per published network."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        np.savez_compressed(folder / f"{name}.npz", **cut_down(networks, source))


def cut_down(networks: Path, source: Source) -> dict[str, Any]:
    """The members of a file: `index` (JSON) and one array per data type, packed by `to_planes`."""
    texts: dict[str, Any] = {}
    tensors: list[tuple[str, list[int], str, int]] = []
    values: dict[str, list[np.ndarray]] = {}
    with np.load(networks / source.golden) as golden:
        for pattern in (*source.cut, *source.whole, *source.texts):
            assert any(re.fullmatch(pattern, key) for key in golden), f"{source.golden} has no {pattern}"
        for key in golden:
            if _matches(key, source.texts):
                texts[key] = golden[key].tolist()
            elif _matches(key, source.whole):
                kept = golden[key].reshape(-1)
            elif _matches(key, source.cut):
                kept = samples(key, golden[key])
            if _matches(key, (*source.whole, *source.cut)):
                tensors.append((key, list(golden[key].shape), kept.dtype.name, kept.size))
                values.setdefault(kept.dtype.name, []).append(kept)
    state_dict = json.loads((networks / source.state_dict).read_text()) if source.state_dict else []
    index = {"source": source.golden, "state_dict": state_dict, "texts": texts, "tensors": tensors}
    packed = json.dumps(index, separators=(",", ":")).encode()
    arrays = {kind: to_planes(np.concatenate(parts)) for kind, parts in values.items()}
    return {"index": np.frombuffer(packed, np.uint8), **arrays}


def samples(key: str, tensor: np.ndarray) -> np.ndarray:
    """A small tensor as it is; of a large one its summary and the values at `positions`, as float32."""
    flat = tensor.reshape(-1)
    if flat.size <= SAMPLES:
        return flat
    return np.concatenate([summary(flat), flat[positions(key, flat.size)]]).astype(np.float32)


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


if __name__ == "__main__":
    main()
