"""A traced graph -> the graph that is deployed: constants folded, sizes fixed where they are known, names to read."""

import importlib.util
import re

import numpy as np
import onnx
from onnx import numpy_helper

from sodeploy.errors import UserError
from sodeploy.export.batch_norm import absorb_batch_norms
from sodeploy.export.deform import rewrite_deformable

if importlib.util.find_spec("onnxsim") is None:  # said before any work, although it is imported late
    raise ModuleNotFoundError("No module named 'onnxsim'", name="onnxsim")

_MASKED = -30_000.0
IR_VERSION = 10  # onnxruntime 1.20 reads no newer


def simplify(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """`model` with constants folded, batch norm merged into convolutions and what nothing reads dropped.

    Deformable convolutions become operators that engines have. Written in the IR version that all our engines read.

    Raises:
        UserError: the simplifier cannot read the graph; `source` is named.
    """
    model = _simplified(model, source)
    _constants_to_initializers(model)
    _bound_masks(model)
    absorb_batch_norms(model)
    if _fix_resize_sizes(model):
        model = _simplified(model, source)  # drops what computed those sizes
    _drop_pools_of_one_pixel(model)
    _constants_to_initializers(model)
    _name_nodes(model)
    rewrite_deformable(model)
    _name_initializers(model)
    for node in model.graph.node:
        node.ClearField("doc_string")
    for entry in [entry for entry in model.metadata_props if entry.key.startswith("onnxsim.")]:
        model.metadata_props.remove(entry)  # its log; of a large graph it is long
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def strip_module_prefix(model: onnx.ModelProto, wrapper: str) -> None:
    """Drop the name of the module that a network was wrapped in for tracing from all names."""
    prefixes = re.compile(rf"^(/{wrapper}(?=/)|{wrapper}\.)")
    for node in model.graph.node:
        node.name = prefixes.sub("", node.name)
        for names in (node.input, node.output):
            names[:] = [prefixes.sub("", name) for name in names]
    for named in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        named.name = prefixes.sub("", named.name)


def _simplified(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    import onnxsim  # here, because that takes a second, and most refusals come before it

    try:
        simple, same = onnxsim.simplify(model)
    except Exception as error:  # of several libraries, undocumented
        raise UserError(f"{source} cannot be simplified ({' '.join(str(error).split())}); is it valid ONNX?") from None
    if not same:
        raise UserError(f"{source}: simplification changed what the graph computes; report this with the file")
    return simple


def _fix_resize_sizes(model: onnx.ModelProto) -> bool:
    """Give Resize nodes constant scales where shape inference knows height and width; True if any changed.

    In a graph of dynamic batch the target (N, C, H, W) is computed from another tensor's shape, although only N is
    unknown; scales leave N alone, and engines then see no shape arithmetic. (The `axes` of opset 18 would do the same,
    but TensorRT-RTX 1.7 refuses them where the batch is dynamic.) Only scales that float32 holds exactly are used:
    another could miss the size by one.
    """
    shapes = _shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    changed = False
    for node in model.graph.node:
        if node.op_type != "Resize" or len(node.input) < 4 or node.input[3] in constants:
            continue
        before, after = (shapes.get(name, [])[2:] for name in (node.input[0], node.output[0]))
        if len(before) != 2 or len(after) != 2 or not all(before + after):
            continue
        scales = [np.float32(new / old) for new, old in zip(after, before, strict=True)]
        if any(float(scale) * old != new for scale, old, new in zip(scales, before, after, strict=True)):
            continue
        name = f"{node.name or node.output[0]}.scales"
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, *scales], np.float32), name))
        node.input[2:] = [name]
        changed = True
    return changed


def _drop_pools_of_one_pixel(model: onnx.ModelProto) -> None:
    """Drop each MaxPool from one pixel to one pixel.

    It changes nothing, and OpenVINO refuses a kernel that is larger than its input. Such pools are at the bottom of a
    U-Net of small size whose pools round sizes up.
    """
    shapes, graph = _shapes(model), model.graph
    results = {output.name for output in graph.output}
    for node in [node for node in graph.node if node.op_type == "MaxPool" and len(node.output) == 1]:
        before, after = (shapes.get(name, [])[2:] for name in (node.input[0], node.output[0]))
        if before and before == after and set(before) == {1} and node.output[0] not in results:
            for reader in graph.node:
                reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
            graph.node.remove(node)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Tensor -> its shape, 0 for an open dimension."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*inferred.value_info, *inferred.input, *inferred.output)
    }


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        if node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            model.graph.initializer.append(tensor)
            model.graph.node.remove(node)


def _bound_masks(model: onnx.ModelProto) -> None:
    """Replace minus infinity in constants, as in masks of attention, by a number that every float type holds.

    Softmax makes 0 of both. Infinite scores could not be counted in calibration.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if (masked := np.isneginf(values)).any():
            tensor.CopyFrom(numpy_helper.from_array(np.where(masked, np.float32(_MASKED), values), tensor.name))


def _name_nodes(model: onnx.ModelProto) -> None:
    """Plans and reports speak of nodes by name: every node gets one, and its own."""
    taken: set[str] = set()
    for node in model.graph.node:
        base = name = node.name or f"{node.op_type}_{node.output[0]}"
        number = 1
        while name in taken:
            name = f"{base}_{number}"
            number += 1
        taken.add(name)
        node.name = name


_ROLES = {
    "Conv": ("input", "weight", "bias"),
    "ConvTranspose": ("input", "weight", "bias"),
    "Gemm": ("input", "weight", "bias"),
    "MatMul": ("input", "weight"),
    "PRelu": ("input", "slope"),
    "Resize": ("input", "roi", "scales", "sizes"),
}
_NUMBERED = re.compile(r"^(onnx::.*|_v_\d+|\d+)$")


def _name_initializers(model: onnx.ModelProto) -> None:
    """Constants that tracing and folding made have numbers for names: call them after the node that reads them."""
    initializers = model.graph.initializer
    taken = {tensor.name for tensor in initializers}
    numbered = {name for name in taken if _NUMBERED.match(name)}
    new_names: dict[str, str] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name not in numbered:
                continue
            if name not in new_names:
                role = dict(enumerate(_ROLES.get(node.op_type, ()))).get(index, f"input_{index}")
                new_name = f"{node.name}.{role}"
                if new_name in taken:
                    continue
                new_names[name] = new_name
            node.input[index] = new_names[name]
    for tensor in initializers:
        tensor.name = new_names.get(tensor.name, tensor.name)
