"""Recipes: the shipped ones are valid, and a faulty one is refused by the name of its fault."""

from pathlib import Path

import pytest
import torch
import yaml

from sodeploy.errors import UserError
from sodeploy.training.models import NETWORKS, build
from sodeploy.training.optimizers import Constant, OneCycle, Polynomial, Steps, Triangle
from sodeploy.training.recipe import load_recipe, recipe_names
from sodeploy.training.train import recipe_table

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
DEMO = CONFIGS / "demo.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.network in NETWORKS
    assert recipe.contract().height == recipe.contract().width == recipe.size
    if recipe.teacher:
        assert (path.parent / recipe.teacher).is_file()


def test_u2netp_is_the_published_recipe() -> None:
    recipe = load_recipe(CONFIGS / "u2netp.yaml")
    optimizer = recipe.optimizer.build(build("u2net_tiny").parameters())
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"], recipe.batch) == (1e-3, 0, 12)
    assert recipe.loss == {"bce": 1}
    assert recipe.contract().divide_by == "max"


def write(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def broken(folder: Path, *removed: str, **replaced: object) -> Path:
    content = yaml.safe_load((CONFIGS / "u2netp.yaml").read_text()) | replaced
    return write(folder, yaml.safe_dump({key: value for key, value in content.items() if key not in removed}))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"learning_rate": 1}, r"r.yaml: no recipe has a key learning_rate; remove it or correct its name"),
        ({"optimizer": {"name": "adam", "lr": 1, "momentum": 0}}, r"no recipe has a key optimizer.adam.momentum"),
        ({"optimizer": {"name": "lamb", "lr": 1}}, r"optimizer: .*'lamb'"),
        ({"network": "u3net"}, r"no network is called u3net; known: .*u2netp"),
        ({"loss": {"ssim": 1}}, r"no loss is called ssim; known: bce"),
        ({"loss": {"feature_sync": 1}}, r"the loss feature_sync is for ISNetDIS, not for u2netp"),
        ({"loss": {"expanded_region": 1}}, r"the loss expanded_region is for ISNetIntegrity, not for u2netp"),
        ({"network": "isnet_dis", "loss": {"feature_sync": 1}}, r"the loss feature_sync needs a teacher"),
        ({"teacher": "teacher.pth"}, r"a teacher needs that loss"),
        ({"epochs": 2}, r"give either steps or epochs"),
        ({"validation": {"every": 5}}, r"validation: give either data or hold_out"),
        ({"batch": 0}, r"batch: .*greater than or equal to 1"),
        ({"accumulate": 5}, r"a batch of 12 cannot be divided into 5 passes"),
        ({"augment": [{"name": "resize", "sizes": 3}]}, r"augment.0.resize"),
    ],
)
def test_faults_are_named(tmp_path: Path, replaced: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(broken(tmp_path, **replaced))


def test_what_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.yaml does not exist"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=r"r.yaml is not YAML"):
        load_recipe(write(tmp_path, "a: [1"))
    with pytest.raises(UserError, match=r"r.yaml has no keys and values"):
        load_recipe(write(tmp_path, "u2netp"))
    with pytest.raises(UserError, match=r"r.yaml: the key optimizer is missing"):
        load_recipe(broken(tmp_path, "optimizer"))


def test_overrides() -> None:
    recipe = load_recipe(CONFIGS / "u2netp.yaml", ["batch=4", "optimizer.lr=0.5", "loss={bce: 2}"])
    assert (recipe.batch, recipe.optimizer.lr, recipe.loss) == (4, 0.5, {"bce": 2})
    with pytest.raises(UserError, match=r"no recipe has a key optimizer.adam.lrr"):
        load_recipe(CONFIGS / "u2netp.yaml", ["optimizer.lrr=1"])
    with pytest.raises(UserError, match=r"--set batch: write KEY=VALUE"):
        load_recipe(CONFIGS / "u2netp.yaml", ["batch"])
    with pytest.raises(UserError, match=r"--set batch.size=3: batch has no keys"):
        load_recipe(CONFIGS / "u2netp.yaml", ["batch.size=3"])


def test_epochs_count_samples() -> None:
    recipe = load_recipe(CONFIGS / "u2netp.yaml", ["steps=null", "epochs=3"])
    assert recipe.total_steps(samples=100) == 25


def test_schedules() -> None:
    one_cycle = [OneCycle(name="one_cycle", warmup=0.3).factor(step, 101) for step in range(101)]
    assert one_cycle[0] == pytest.approx(1 / 25)
    assert one_cycle[30] == max(one_cycle) == pytest.approx(1)
    assert one_cycle[-1] == pytest.approx(1e-4)
    steps = Steps(name="steps", milestones=(0.5, 0.8))
    assert [steps.factor(step, 10) for step in (0, 4, 5, 7, 8, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    polynomial = Polynomial(name="polynomial", power=0.9, warmup_steps=10)
    expected = [0.1, 0.55, 0.91, 0.9**0.9, 0.5**0.9]
    assert [polynomial.factor(step, 100) for step in (0, 5, 9, 10, 50)] == pytest.approx(expected)
    triangle = Triangle(name="triangle", floor=0.01)
    assert [triangle.factor(step, 99) for step in (0, 49, 98)] == pytest.approx([0.0298, 1, 0.0298])
    assert Constant(name="constant").factor(7, 10) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: 2020-99-99", r"r.yaml is not YAML: line \d+, seed: 2020-99-99: this is no timestamp"),
        ("seed: 0b_", r"line \d+, seed: 0b_: this is no int"),
        ('seed: !!int ""', r"line \d+, seed: !!int \"\": this is no int"),
        ("seed: !!timestamp x", r"seed: !!timestamp x: this is no timestamp"),
        ("seed: !!bool x", r"seed: !!bool x: this is no bool"),
        ("seed: !!python/name:os.system", r"seed: !!python/name:os.system: could not determine a constructor"),
        ("seed: " + "[" * 3000, r"is nested too deeply|expected"),
        ("seed: *nowhere", r"seed: \*nowhere: found undefined alias"),
        ("steps: .inf", r"steps: .*, not inf"),
        ("seed: -1", r"seed: .*, not -1"),
        ("freeze: ['(']", r"'\(' is no regular expression"),
    ],
)
def test_a_value_at_fault_is_named_with_its_key(tmp_path: Path, line: str, message: str) -> None:
    key = line.partition(":")[0]
    text = "".join(row for row in DEMO.read_text().splitlines(keepends=True) if not row.startswith(key))
    (tmp_path / "r.yaml").write_text(f"{text}\n{line}\n")
    with pytest.raises(UserError, match=message) as error:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["2020-99-99", "0b_", "[" * 3000, "!!int x", "{"])
def test_a_value_on_the_command_line_is_named(value: str) -> None:
    with pytest.raises(UserError, match=r"--set seed=.* is not a YAML value"):
        load_recipe(DEMO, [f"seed={value}"])


def test_a_recipe_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("u2netp") == load_recipe(CONFIGS / "u2netp.yaml")
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(recipe_names())
    assert {row[0] for row in recipe_table().rows} == set(recipe_names())
    (tmp_path / "u2netp").write_text((CONFIGS / "u2net.yaml").read_text())  # a file of the user goes first
    assert load_recipe("u2netp").network == "u2net"
    with pytest.raises(UserError, match=r"no recipe is called u2nep; did you mean u2netp\?"):
        load_recipe("u2nep")
    with pytest.raises(UserError, match=r"configs/u2net.yaml does not exist; the recipe .* is --config u2net$"):
        load_recipe("training/configs/u2net.yaml")


def test_the_length_is_replaced_by_either_key() -> None:
    assert load_recipe("u2netp", ["epochs=3"]).total_steps(120) == 30
    assert load_recipe("ras_v1", ["steps=7"]).total_steps(120) == 7
    with pytest.raises(UserError, match="give either steps or epochs"):
        load_recipe("ras_v1", ["steps=7", "epochs=3"])
