"""An ONNX model as bytes, in the memory that the bytes take.

protobuf writes a message into a buffer, keeps each one that was too small until the end, and copies the last: at the
end of a network of 400 MB that is 1400 MB. Here constants are written one after the other.
"""

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_LARGEST = 2**31 - 1  # bytes that a reader takes


def model_bytes(model: "onnx.ModelProto", constants: Iterable["onnx.TensorProto"] = ()) -> bytes:
    """`model.SerializeToString()`.

    Args:
        constants: more initializers.

    Raises:
        ValueError: the model has 2 GiB or more.
    """
    buffer = BytesIO()
    _write(model, buffer, list(constants))
    return buffer.getvalue()


def save_model(model: "onnx.ModelProto", path: Path) -> None:
    """Write the bytes of `model_bytes` to a file.

    Raises:
        ValueError: the model has 2 GiB or more.
    """
    with open(path, "wb") as file:
        _write(model, file, [])


def _write(model: "onnx.ModelProto", file: IO[bytes], constants: Sequence["onnx.TensorProto"]) -> None:
    for field, value in model.ListFields():
        if field.name == "graph":
            size = sum(map(len, _of_graph(value, constants)))
            if size > _LARGEST:
                raise ValueError(f"an ONNX file ends at 2 GiB, and this graph has {size} bytes")
            file.write(_head(field.number, size))
            file.writelines(_of_graph(value, constants))
        else:
            file.write(_alone(model, field.name))


def _of_graph(graph: "onnx.GraphProto", constants: Sequence["onnx.TensorProto"]) -> Iterator[bytes]:
    initializer = graph.DESCRIPTOR.fields_by_name["initializer"]
    for field, values in graph.ListFields():
        if field.number != initializer.number:
            yield _alone(graph, field.name)
        else:
            yield from _repeated(field.number, values)
    yield from _repeated(initializer.number, constants)


def _repeated(number: int, messages: Iterable[Any]) -> Iterator[bytes]:
    for message in messages:
        data = message.SerializeToString()
        yield _head(number, len(data))
        yield data


def _alone(message: Any, name: str) -> bytes:
    """A message's bytes of one field."""
    value = getattr(message, name)
    return bytes(type(message)(**{name: value}).SerializeToString())


def _head(number: int, size: int) -> bytes:
    """The bytes before a message in a field: number and wire type 2 (LEN), then the length (protobuf's encoding)."""
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
