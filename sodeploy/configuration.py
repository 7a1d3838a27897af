"""Configuration files: YAML whose faults are named by line, and keys that are named where they are wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from sodeploy import artifacts
from sodeploy.errors import UserError

if TYPE_CHECKING:
    import yaml

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: str | Path, remedy: str) -> dict[str, Any]:
    """The keys and values of a YAML file of at most 1 MiB.

    Raises:
        UserError: missing, no text, no YAML, or no keys; the message ends with `remedy`.
    """
    try:
        content = parse_yaml(artifacts.read_bytes(path, remedy, most=1 << 20).decode())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is not YAML: {error}; correct it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} has no keys and values; {remedy}")
    return content


def checked(model: type[Model], content: dict[str, Any], path: str | Path, kind: str) -> Model:
    """The record that `content` describes.

    Args:
        kind: the name of such a file in messages, for example "recipe".

    Raises:
        UserError: a key is unknown or lacks, or a value is wrong; the first is named.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path}: no {kind} has a key {where}; remove it or correct its name") from None
        if first["type"] == "missing":
            raise UserError(f"{path}: the key {where} is missing; add it") from None
        message = first["msg"].removeprefix("Value error, ")
        if where and not isinstance(first["input"], (dict, list)):
            message += f", not {artifacts.one_line(repr(first['input']), 60)}"
        raise UserError(f"{path}: {where + ': ' if where else ''}{message}; correct it") from None


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        ValueError: it is none; the text of the error is one line that shows the line at fault.
    """
    import yaml

    try:
        return _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        lines = text.splitlines()
        shown = lines[mark.line].strip() if mark and mark.line < len(lines) else ""
        where = f"line {mark.line + 1}, {artifacts.one_line(shown, 80)}: " if mark else ""
        raise ValueError(f"{where}{artifacts.one_line(error.problem or error)}") from None
    except yaml.YAMLError as error:
        raise ValueError(artifacts.one_line(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _load(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Its errors name the value; PyYAML's constructors of numbers and dates let Python's errors through."""

        def construct_object(self, node: "yaml.Node", deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
                kind = node.tag.rpartition(":")[2]
                raise yaml.constructor.ConstructorError(None, None, f"this is no {kind}", node.start_mark) from None

    return yaml.load(text, Loader)
