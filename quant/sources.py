"""The sources of a build's ranges, and the measurements on the network before a plan is made."""

from dataclasses import dataclass, replace
from pathlib import Path

from sodeploy import terminal
from sodeploy.artifacts import read_manifest, sha256
from sodeploy.calib_data import Dataset
from sodeploy.errors import UserError
from sodeploy.quant.calibration.methods import Method
from sodeploy.quant.calibration.observer import gather
from sodeploy.quant.calibration.statistics import Statistics, load_statistics
from sodeploy.quant.equalize import needs_equalization, write_equalized
from sodeploy.quant.graph import Network, load_network
from sodeploy.quant.planning.decide import all_ranges
from sodeploy.quant.planning.evidence import Evidence
from sodeploy.quant.planning.input_error import input_errors
from sodeploy.quant.planning.plan import read_plan
from sodeploy.quant.planning.rounding import round_to_file


@dataclass(frozen=True)
class Images:
    """Ranges are counted on images.

    Attributes:
        equalize: first bring the channels of a network with depthwise convolutions to one magnitude.
        adaptive_rounding: round the weights of a layer jointly (GPTQ), to minimize the layer's output error.
    """

    dataset: Dataset
    equalize: bool = True
    adaptive_rounding: bool = True


@dataclass(frozen=True)
class Counted:
    """Ranges were counted before, by quant/calibrate.py, on the network as it is.

    Attributes:
        statistics: the .npz file.
        images: some of the counted images, to measure the effects of rounding on; without them neither weights are
            rounded jointly nor biases corrected for quantized inputs.
    """

    statistics: Path
    images: Dataset | None = None
    adaptive_rounding: bool = True


@dataclass(frozen=True)
class Cache:
    """Ranges stand in a calib.cache of TensorRT <= 10."""

    file: Path


@dataclass(frozen=True)
class Edited:
    """A plan, perhaps edited, is followed as it stands."""

    plan: Path


Source = Images | Counted | Cache | Edited


def network_for(source: Source | None, network: Network, base: Path) -> Network:
    """The network to quantize: `network`, or an equalized one.

    Images equalize a network with depthwise convolutions; the result is written as `base`.equalized.onnx. An edited
    plan of an equalized network finds that network beside itself.
    """
    if isinstance(source, Edited):
        return _planned(network, source.plan)
    if not isinstance(source, Images) or not source.equalize or not needs_equalization(network):
        return network
    path = beside(base, ".equalized.onnx")
    write_equalized(network, source.dataset, path)
    terminal.note(f"wrote {path}: {network.path.name} with the channels of a tensor brought to one magnitude")
    return load_network(path)


def _planned(network: Network, plan_file: Path) -> Network:
    plan = read_plan(plan_file)
    candidate = plan_file.with_name(plan.onnx)
    if plan.onnx_sha256 == network.digest or not candidate.is_file() or sha256(candidate) != plan.onnx_sha256:
        return network
    inputs = read_manifest(candidate).get("inputs")
    model = inputs.get("model") if isinstance(inputs, dict) else None
    made_from = model.get("sha256") if isinstance(model, dict) else None
    return load_network(candidate) if made_from == sha256(network.path) else network


def evidence_of(source: Images | Counted, network: Network, base: Path, method: Method) -> tuple[Evidence, Path]:
    """Everything a plan is decided from, and the file of the counts.

    The counts of images are written as `base`.statistics.npz, rounded weights as `base`.rounding.npz.

    Raises:
        UserError: no image, a missing file, or images that were not counted.
    """
    if isinstance(source, Images):
        file, images = beside(base, ".statistics.npz"), source.dataset
        statistics = gather(network, images, file)
    else:
        file, statistics = source.statistics, load_statistics(source.statistics)
        if source.images is None:
            return Evidence(statistics), file
        images = source.images
        _require_counted(images, statistics)
    ranges = all_ranges(network, statistics, method)
    errors = input_errors(network, ranges, images)
    evidence = Evidence(statistics, input_errors=errors.int8, input_errors_uint8=errors.uint8, ranges={method: ranges})
    if not source.adaptive_rounding:
        return evidence, file
    path = beside(base, ".rounding.npz")
    steps, rounding = round_to_file(network, images, path)
    terminal.note(f"wrote {path}: {sum(node.name in steps for node in network.nodes)} layers")
    return replace(evidence, steps=steps, rounding=rounding), file


def _require_counted(images: Dataset, statistics: Statistics) -> None:
    """Refuse images that were not counted: nothing would keep them out of the evaluation set."""
    if strange := [sample.name for sample in images if sample.digest() not in statistics.images]:
        raise UserError(
            f"--calib has {len(strange)} images that --statistics has not, e.g. {strange[0]}; leave them out"
        )


def beside(base: Path, suffix: str) -> Path:
    """`base` with a suffix: out/net and .plan.json give out/net.plan.json."""
    return base.with_name(base.name + suffix)
