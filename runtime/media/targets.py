"""Where the outputs go: a file for each item, never over a source, and never over one that stands there already."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sodeploy.artifacts import check_apart, check_output, check_output_folder
from sodeploy.errors import UserError
from sodeploy.runtime.media.items import Found, Item
from sodeploy.runtime.media.kinds import kind_of


@dataclass
class Targets:
    """The outputs of a source.

    Attributes:
        todo: each item that is to be done, with the file it becomes.
        skipped: items whose file stands there already.
        failed: item -> why it cannot have a file; one line each.
    """

    todo: dict[Item, Path] = field(default_factory=dict)
    skipped: list[Item] = field(default_factory=list)
    failed: dict[Item, str] = field(default_factory=dict)


def plan_targets(
    found: Found,
    output: Path,
    suffixes: dict[str, str],
    *,
    overwrite: bool = False,
    inputs: Iterable[str | Path] = (),
    shard: tuple[int, int] = (1, 1),
) -> Targets:
    """The file that each item becomes: the same name below `output`, or `output` itself where it names a file.

    Args:
        suffixes: kind of item -> suffix of its output.
        overwrite: replace files that stand there, which are left as they are otherwise.
        inputs: further files that must not be replaced.
        shard: (k, n): only the k-th of n parts of the items, 1 <= k <= n.

    Raises:
        UserError: nothing can be written there, an output would replace a source or a mask, or the folder of the
            sources is the folder of the outputs; nothing is written then.
    """
    as_file = is_file_name(output, suffixes.values())
    if as_file and (found.folder is not None or len(found.items) != 1):
        raise UserError(f"--output {output} is a file, and the source has {len(found.items)} items; give a folder")
    if not as_file and len(found.items) == 1 and kind_of(output) and not output.is_dir():
        (item,) = found.items
        wanted = suffixes[item.kind]
        raise UserError(f"--output {output}: {item} becomes a {wanted} file; give such a suffix, or a folder")
    if as_file:
        check_output(output)
    else:
        check_output_folder(output)
        if found.folder is not None or len(found.items) > 1:
            _require_own_folder(found, output)
    targets, owners = Targets(), dict[str, Item]()
    for item in found.items:
        target = output if as_file else output / _below(item, suffixes[item.kind])
        if other := owners.get(str(target).casefold()):
            targets.failed[item] = f"{other} and {item} would both become {target}; rename one"
            continue
        owners[str(target).casefold()] = item
        targets.todo[item] = target
    sources = [item.path for item in found.items if item.path is not None]
    check_apart(targets.todo.values(), [*sources, *(path for path in found.protected if path.is_file()), *inputs])
    part, parts = shard
    for index, (item, target) in enumerate(list(targets.todo.items())):
        if index % parts != part - 1:
            del targets.todo[item]
        elif not overwrite and target.exists() and target.is_file():
            targets.skipped.append(item)
            del targets.todo[item]
    if part != 1:  # an item that cannot be done is told once, not by every part
        targets.failed.clear()
    return targets


def is_file_name(output: Path, suffixes: Iterable[str]) -> bool:
    """Whether a destination names a file, not a folder: its suffix is one of `suffixes`, and no folder is there."""
    return output.suffix.lower() in set(suffixes) and not output.is_dir()


def _below(item: Item, suffix: str) -> str:
    parts = PurePosixPath(item.name).parts
    if ".." in parts or PurePosixPath(item.name).is_absolute():
        raise UserError(f"{item}: its name {item.name} leads out of the destination; rename it in the list")
    return PurePosixPath(item.name).with_suffix(suffix).as_posix()


def _require_own_folder(found: Found, output: Path) -> None:
    """Refuse the folder of the images or of their masks, where pictures would replace them or stand among them."""
    if not output.is_dir():
        return
    folders = {path.parent for item in found.items if (path := item.path) is not None}
    folders |= {found.folder} if found.folder is not None else set()
    if any(output.samefile(folder) for folder in folders if folder.is_dir()):
        raise UserError(
            f"--output {output} is the folder of the images, where pictures would replace them or stand among them; "
            "give another folder"
        )
    if any(output.samefile(path) for path in found.protected if path.is_dir()):
        raise UserError(f"--output {output} holds the masks of these images; give another folder")
