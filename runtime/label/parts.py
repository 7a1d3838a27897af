"""The parts that a large source is labelled in, each by one worker: files, or the images in a shard.

A shard is a Parquet file, or a tar file as WebDataset writes it. A new kind of shard costs one entry of `SHARDS`.
"""

import contextlib
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from sodeploy.artifacts import one_line
from sodeploy.errors import UserError
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.items import Found, Item, item_of_file
from sodeploy.runtime.media.kinds import IMAGES, kind_of
from sodeploy.runtime.media.reading import decode_frame

_FILES_IN_A_PART = 64  # seconds of work, which are lost when a worker dies


class Part(Protocol):
    """Some images of a source. It is sent to a worker, so it holds names and no pixels."""

    @property
    def size(self) -> int:
        """Bytes of the shard that are read; 0 for files, which are read one by one."""

    def opened(self) -> contextlib.AbstractContextManager[Found]:
        """The images, which can be read until the block ends.

        Raises:
            UserError: the shard is broken or has no images.
        """


@dataclass(frozen=True)
class Fields:
    """The names of the fields of a sample.

    Attributes:
        image: Parquet: the column of encoded images; WebDataset: the ending of the image's name, such as "jpg". By
            default the only one that can be it.
        name: Parquet: the column of the names; by default the number of the row.
    """

    image: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Files:
    """Image files.

    Attributes:
        entries: name below the source, and path.
        size: as of `Part`.
    """

    entries: tuple[tuple[str, Path], ...]
    size: int = 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[Found]:
        yield Found([item_of_file(path, name) for name, path in self.entries])


@dataclass(frozen=True)
class TarShard:
    """A tar file whose members of one name before the first dot are a sample, as WebDataset has it.

    Attributes:
        below: the shard's path below the source, which begins the names of its images.
        size: as of `Part`.
    """

    path: Path
    below: str
    fields: Fields
    size: int

    @contextlib.contextmanager
    def opened(self) -> Iterator[Found]:
        samples = defaultdict[str, dict[str, tarfile.TarInfo]](dict)
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    folder, base = os.path.split(member.name)
                    key, _, ending = base.partition(".")
                    if member.isreg() and key:
                        samples[f"{folder}/{key}" if folder else key].setdefault(ending.lower(), member)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{self.path} cannot be read ({one_line(error)}); write the shard again") from None
        found = Found()
        with open(self.path, "rb") as file:
            for key, members in samples.items():
                endings = [ending for ending in members if self._is_image(ending)]
                if len(endings) != 1:
                    where = f"{self.path}/{key}"
                    found.failed[where] = (
                        f"{where} has {len(endings)} images among its fields {', '.join(members)}; "
                        "name one field with --image-field"
                    )
                    continue
                member = members[endings[0]]
                read = partial(os.pread, file.fileno(), member.size, member.offset_data)  # in several threads
                found.items.append(_item(self.below, f"{key}.{endings[0]}", read))
            yield found

    def _is_image(self, ending: str) -> bool:
        return ending == self.fields.image.lower() if self.fields.image else f".{ending}" in IMAGES


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file. A cell is an encoded image, or a struct with the field `bytes`.

    Attributes:
        below: as of `TarShard`.
        image, name: the columns; `name` None for the numbers of the rows.
        group: index of the row group.
        first: number of its first row in the file.
        size: as of `Part`.
    """

    path: Path
    below: str
    image: str
    name: str | None
    group: int
    first: int
    size: int

    @contextlib.contextmanager
    def opened(self) -> Iterator[Found]:
        columns = [self.image, *([self.name] if self.name else [])]
        with _parquet(self.path) as file:
            table = file.read_row_group(self.group, columns=columns, use_threads=False)
        cells = table.column(self.image)
        found = Found()
        for row in range(table.num_rows):
            name = str(table.column(self.name)[row].as_py()) if self.name else f"{self.first + row:09}"
            found.items.append(_item(self.below, name, partial(_encoded, cells, row)))
        yield found


def parts_of_files(items: Sequence[Item]) -> list[Part]:
    """The parts of image files."""
    entries = [(item.name, item.path) for item in items if item.path is not None]
    return [Files(tuple(entries[at : at + _FILES_IN_A_PART])) for at in range(0, len(entries), _FILES_IN_A_PART)]


def find_shards(source: Path, output: Path) -> list[Path]:
    """The shards that a source is or holds, sorted; none where it is another source.

    Args:
        output: a folder that is not searched.

    Raises:
        UserError: there are images beside shards.
    """
    if source.suffix.lower() in SHARDS and source.is_file():
        return [source]
    shards: list[Path] = []
    image: Path | None = None
    for folder, names, files in os.walk(source):
        if Path(folder) == source and output.parent == source:
            names[:] = [name for name in names if name != output.name]
        for file in (Path(folder, name) for name in files if not name.startswith(".")):
            if file.suffix.lower() in SHARDS:
                shards.append(file)
            elif image is None and kind_of(file):
                image = file
    if shards and image:
        raise UserError(f"{source} holds shards, such as {shards[0]}, and images, such as {image}; give them apart")
    return sorted(shards)


def parts_of_shards(source: Path, shards: Sequence[Path], fields: Fields, failed: dict[str, str]) -> list[Part]:
    """The parts of shards.

    Args:
        failed: takes shards that cannot be read, with the reason.

    Raises:
        UserError: a field is missing, or names are there twice.
    """
    parts: list[Part] = []
    for path in shards:
        below = PurePosixPath(path.relative_to(source) if path != source else path.name).with_suffix("").as_posix()
        try:
            parts += SHARDS[path.suffix.lower()](path, below, fields)
        except BrokenShard as error:
            failed[str(path)] = str(error)
    return parts


class BrokenShard(UserError):
    """A shard that cannot be read; others may be."""


def _tar_parts(path: Path, below: str, fields: Fields) -> list[Part]:
    try:
        return [TarShard(path, below, fields, path.stat().st_size)]
    except OSError as error:
        raise BrokenShard(f"{path} cannot be read ({error.strerror}); correct it") from None


def _parquet_parts(path: Path, below: str, fields: Fields) -> list[Part]:
    with _parquet(path) as file:
        image = fields.image or _only_image_column(path, file.schema_arrow)
        for column in filter(None, (image, fields.name)):
            if column not in file.schema_arrow.names:
                raise UserError(f"{path} has no column {column}; it has {', '.join(file.schema_arrow.names)}")
        if fields.name:
            _require_unique(path, fields.name, file.read(columns=[fields.name]).column(0).to_pylist())
        parts: list[Part] = []
        first = 0
        for group in range(file.num_row_groups):
            facts = file.metadata.row_group(group)
            parts.append(RowGroup(path, below, image, fields.name, group, first, facts.total_byte_size))
            first += facts.num_rows
    return parts


def _only_image_column(path: Path, schema: Any) -> str:
    import pyarrow

    def holds_images(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):  # as the package `datasets` writes them
            return kind.get_field_index("bytes") >= 0
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    columns = [field.name for field in schema if holds_images(field.type)]
    if len(columns) != 1:
        raise UserError(
            f"{path} has {len(columns)} columns that can hold images, of {', '.join(schema.names)}; name one with "
            "--image-field"
        )
    return columns[0]


def _require_unique(path: Path, column: str, names: list[Any]) -> None:
    count = Counter(_stem(str(name)).casefold() for name in names)
    if (twice := next((name for name, times in count.items() if times > 1), None)) is not None:
        raise UserError(
            f"{path}: the name {twice} stands twice in the column {column}; leave --name-field out, and the rows are "
            "numbered"
        )


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise BrokenShard(f"{path} cannot be read ({one_line(error)}); write the shard again") from None


def _encoded(cells: Any, row: int) -> bytes:
    cell = cells[row].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise UserError("the cell holds no bytes of an image")
    return data


def _stem(name: str) -> str:
    """A name without the suffix of an image; other dots belong to the name."""
    return name[: -len(suffix)] if (suffix := PurePosixPath(name).suffix).lower() in IMAGES else name


def _item(below: str, name: str, read: Callable[[], bytes]) -> Item:
    name = f"{below}/{name if name != _stem(name) else name + '.png'}"

    def decode(most_pixels: int, whole: bool) -> Frame:
        try:
            return decode_frame(read(), name, most_pixels, whole)
        except OSError as error:
            raise UserError(f"{name}: {error.strerror}") from None

    return Item(name, decode=decode)


# The end of a shard's name -> its parts, given its path below the source; it raises `BrokenShard`.
SHARDS: dict[str, Callable[[Path, str, Fields], list[Part]]] = {
    ".parquet": _parquet_parts,
    ".tar": _tar_parts,
}
