"""An ONNX model as bytes, in the memory that the bytes take.

protobuf writes a message into a buffer, keeps each one that was too small until the end, and copies the last: at the
end of a network of 400 MB that is 1400 MB. Here constants are written one after the other.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_LARGEST = 2**31 - 1  # bytes that a reader takes


def model_bytes(model: "onnx.ModelProto") -> bytes:
    """`model.SerializeToString()`.

    Raises:
        ValueError: the model has 2 GiB or more.
    """
    buffer = BytesIO()
    _write(model, buffer)
    return buffer.getvalue()


def save_model(model: "onnx.ModelProto", path: Path) -> None:
    """Write the bytes of `model_bytes` to a file.

    Raises:
        ValueError: the model has 2 GiB or more.
    """
    with open(path, "wb") as file:
        _write(model, file)


def _write(model: "onnx.ModelProto", file: IO[bytes]) -> None:
    for field, value in model.ListFields():
        if field.name == "graph":
            size = sum(map(len, _of_graph(value)))
            if size > _LARGEST:
                raise ValueError(f"an ONNX file ends at 2 GiB, and this graph has {size} bytes")
            file.write(_head(field.number, size))
            file.writelines(_of_graph(value))
        else:
            file.write(_alone(model, field.name))


def _of_graph(graph: "onnx.GraphProto") -> Iterator[bytes]:
    for field, values in graph.ListFields():
        if field.name == "initializer":
            for tensor in values:
                data = tensor.SerializeToString()
                yield _head(field.number, len(data))
                yield data
        else:
            yield _alone(graph, field.name)


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
