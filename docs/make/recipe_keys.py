"""The keys of a recipe, and the fields of a contract, as Markdown tables, from their pydantic models."""

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sodeploy.runtime.contract import Contract
from sodeploy.training.augment import Augmentation
from sodeploy.training.losses import LOSSES, ForwardLoss
from sodeploy.training.models.network import SaliencyNetwork
from sodeploy.training.optimizers import Optimizer, Schedule
from sodeploy.training.recipe import Backbone, Recipe, Validation


def recipe() -> str:
    """The keys at the top of a recipe, and the keys below `validation` and `backbone`."""
    parts = [_keys(Recipe, ""), _keys(Validation, "validation."), _keys(Backbone, "backbone.")]
    return "\n".join(["| key | values | default | meaning |", "| :-- | :-- | :-- | :-- |", *parts])


def augmentations() -> str:
    """The steps of the list `augment`."""
    return _choices(Augmentation)


def optimizers() -> str:
    """The values of the key `optimizer`."""
    return _choices(Optimizer)


def schedules() -> str:
    """The values of the key `schedule`."""
    return _choices(Schedule)


def _choices(union: Any) -> str:
    rows = ["| name | its keys | meaning |", "| :-- | :-- | :-- |"]
    for model in _members(union):
        fields = model.model_fields
        keys = [f"`{name}` ({_key(field)})" for name, field in fields.items() if name != "name"]
        rows.append(f"| {_type(fields['name'].annotation)} | {', '.join(keys)} | {_first_sentence(model.__doc__)} |")
    return "\n".join(rows)


def _members(union: Any) -> list[type[BaseModel]]:
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    return list(get_args(union)) if get_origin(union) in (Union, types.UnionType) else [union]


def _keys(model: type[BaseModel], prefix: str) -> str:
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        default = "required" if field.is_required() else f"`{_yaml(field.default)}`"
        said = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {_type(field.annotation)} | {default} | {said} |")
    return "\n".join(rows)


def _key(field: FieldInfo) -> str:
    kind = _type(field.annotation)
    parts = [kind, field.description or "", "" if field.default is PydanticUndefined else f"default {field.default}"]
    return "; ".join(part.replace("|", "\\|") for part in parts if part)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not type(None)]
        if all(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds):
            return "see below"
        return " or ".join(dict.fromkeys(map(_type, kinds)))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {_type(arguments[0])}" if _type(arguments[0]) != "see below" else "list, see below"
    if origin is tuple:
        return f"{len(arguments)} numbers"
    if origin is dict:
        return "name: number"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "see below"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(annotation, str(annotation))


def _yaml(value: Any) -> str:
    if isinstance(value, BaseModel):
        return ", ".join(f"{key}: {each}" for key, each in value.model_dump().items())
    return {None: "none", (): "[]"}.get(value, str(value))


def losses() -> str:
    """The terms of the key `loss`."""
    rows = ["| term | network | meaning |", "| :-- | :-- | :-- |"]
    for name, loss in LOSSES.items():
        function = loss.forward if isinstance(loss, ForwardLoss) else loss.of
        only = "any" if loss.network is SaliencyNetwork else loss.network.__name__
        teacher = loss.teacher if isinstance(loss, ForwardLoss) else None
        needs = f" It needs the `teacher` {teacher}." if teacher else ""
        rows.append(f"| `{name}` | {only} | {_first_sentence(function.__doc__)}{needs} |")
    return "\n".join(rows)


def contract() -> str:
    """The fields of a model's contract."""
    return "\n".join(["| field | values | default | meaning |", "| :-- | :-- | :-- | :-- |", _keys(Contract, "")])


def _first_sentence(docstring: str | None) -> str:
    return " ".join((docstring or "").split("\n\n")[0].split()).replace("|", "\\|")
