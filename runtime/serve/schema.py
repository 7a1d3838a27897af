"""The parts of the OpenAPI description that FastAPI cannot read off our functions: bodies, parameters and answers."""

from typing import Any

from sodeploy.runtime.serve.parameters import ONLY_CUTOUT, OWN
from sodeploy.runtime.serve.pictures import MEDIA_TYPES
from sodeploy.runtime.serve.refusals import STATUS

_FILE = {"type": "string", "format": "binary"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string", "enum": list(STATUS)},
                "message": {"type": "string"},
            },
        }
    },
}


def one_picture(cutout: bool) -> dict[str, Any]:
    """The request of an endpoint that takes one picture, as a form or as the bytes themselves."""
    names = [name for name in OWN if cutout or name not in ONLY_CUTOUT]
    return _request(names, {"file": _FILE}, raw=True)


def several_pictures() -> dict[str, Any]:
    """The request of the batch endpoint."""
    return _request(list(OWN), {"file": {"type": "array", "items": _FILE, "minItems": 1}}, raw=False)


def answers(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """The answers of an endpoint that makes pictures."""
    errors: dict[int, list[str]] = {}
    for code, status in STATUS.items():
        errors.setdefault(status, []).append(code)
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": ", ".join(codes), "content": {"application/json": {"schema": _ERROR}}}
        for status, codes in errors.items()
    }
    found[429]["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    found[200] = {"description": "done", "content": {kind: {"schema": _FILE} for kind in media_types}}
    return found


PICTURES = tuple(MEDIA_TYPES.values())


def _request(names: list[str], files: dict[str, Any], raw: bool) -> dict[str, Any]:
    fields = {name: {**_or_empty(OWN[name].schema), "description": OWN[name].does} for name in names}
    form = {"type": "object", "required": ["file"], "properties": {**files, **fields}}
    content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
    if raw:
        content |= {kind: {"schema": _FILE} for kind in (*PICTURES, "application/octet-stream")}
    return {
        "requestBody": {"required": True, "content": content},
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": OWN[name].does, "schema": schema}
            for name, schema in ((name, _or_empty(OWN[name].schema)) for name in names)
        ],
    }


def _or_empty(schema: dict[str, object]) -> dict[str, object]:
    """A parameter's schema, or no text: a form sends a field that nobody has filled in so, and it counts as absent."""
    return {"anyOf": [schema, {"type": "string", "maxLength": 0}]}
