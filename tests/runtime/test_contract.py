"""The contract survives the model's metadata, and a bad one is named."""

import json

import onnx
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.contract import METADATA_KEY, contract_of, embed, parse_contract


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def test_embedding_replaces_an_older_contract(make_contract):
    model = onnx.ModelProto()
    model.metadata_props.add(key="other", value="kept")
    embed(model, make_contract(network="old"))
    embed(model, make_contract(network="new", divide_by="max", batch=None, dynamic_size=True))
    assert len(model.metadata_props) == 2
    assert contract_of(metadata(model), "m.onnx") == make_contract(
        network="new", divide_by="max", batch=None, dynamic_size=True
    )
    assert metadata(model)["other"] == "kept"


def test_a_model_without_contract_is_told_how_to_get_one():
    with pytest.raises(UserError, match=r"m\.onnx has no sodeploy contract.*sodeploy adopt m\.onnx"):
        contract_of({}, "m.onnx")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"std": (0.0, 1.0, 1.0)}, r"std\.0"),
        ({"mean": (0.5, 0.5)}, r"mean\.2"),
        ({"height": 0}, "height"),
        ({"colour": "GRB"}, "colour"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_a_malformed_contract_names_its_field(make_contract, change, field):

    text = json.dumps(json.loads(make_contract().to_json()) | change)
    with pytest.raises(UserError, match=rf"^m\.onnx: contract field {field}: [^\n]*$"):
        contract_of({METADATA_KEY: text}, "m.onnx")


def test_what_is_no_json_is_an_error_in_one_line():
    with pytest.raises(UserError, match=r"^m\.onnx: contract: [^\n]*$"):
        parse_contract("{", "m.onnx")
