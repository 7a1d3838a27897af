"""The documentation: its generated blocks are current, its paths, links and options exist, the site builds."""

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import onnx
import pytest
import typer

from sodeploy.errors import UserError
from sodeploy.runtime.contract import Contract, embed
from sodeploy.stages import STAGES
from sodeploy.training.models import NETWORKS
from sodeploy.training.recipe import load_recipe, recipe_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
ROOMS = "sodeploy|calib_data|runtime|quant|training|export|benchmarks|docs|tests|docker"
SCRIPTS = re.compile(rf"python ((?:{ROOMS})/\S+\.py)((?:.*\\\n)*.*)$", re.MULTILINE)
NUMBER = re.compile(r"^\d+$")


@pytest.fixture(autouse=True)
def _makers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "make"))


def maker(name: str) -> ModuleType:
    """A module of docs/make or benchmarks."""
    return importlib.import_module(name)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT / "benchmarks"], ids=name_of)
def test_generated_blocks_are_current(page: Path) -> None:
    assert page.read_text() == maker("blocks").written(page), "run: make docs-text"


def test_the_picture_of_the_house_is_current() -> None:
    assert maker("blocks").PICTURE.read_text() == maker("picture").draw(), "run: make docs-text"


def test_the_picture_shows_every_stage_and_the_demos_way() -> None:
    picture = maker("picture")
    shown = re.findall(r'class="stage"[^>]*>([^<]+)<', picture.draw())
    assert shown == [*picture.demo_stages(), *sorted(STAGES, key=lambda s: (order(picture, s), list(STAGES).index(s)))]
    assert len(picture.demo_stages()) == 4


def order(picture: ModuleType, stage: str) -> int:
    index: int = picture.ROOMS.index(picture.room_of(stage))
    return index


def test_imports_between_rooms_run_to_the_left_of_the_picture() -> None:
    picture = maker("picture")
    for room, imported in picture.imports().items():
        assert all(picture.ROOMS.index(one) < picture.ROOMS.index(room) for one in imported)


def test_every_stage_has_one_page_with_its_options() -> None:
    scripts = {stage.script for stage in STAGES.values()}
    found = [
        script
        for page in (ROOT / "docs" / "stages").glob("*.md")
        for script in re.findall(r"^<!-- options (\S+): begin -->$", page.read_text(), re.MULTILINE)
    ]
    assert len(found) == len(set(found))
    missing = scripts - set(found)
    assert not missing, f"add a page to docs/stages with the block <!-- options {missing}: begin --> and to mkdocs.yml"


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == there | {"contributing.md", "changelog.md", "security.md"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_the_text_exist(page: Path) -> None:
    """`quant/plan.py` and the like; not out/, which a user makes, nor names in capitals, which stand for others."""
    for path in re.findall(rf"(?<![\w/.])((?:{ROOMS})/[\w./-]+\.(?:py|cu|md|ya?ml|json|txt))", page.read_text()):
        if not re.search(r"[A-Z]{3}", path.replace("README", "").replace("CHANGELOG", "")):
            assert (ROOT / path).exists(), f"{name_of(page)} names {path}"


def commands() -> Iterator[tuple[Path, str, list[str]]]:
    """(page, script, arguments) of every command line in the documentation."""
    for page in PAGES:
        for script, rest in SCRIPTS.findall(page.read_text()):
            line = re.split(r"`|\s#\s|\s{4}\(", rest.replace("\\\n", " "))[0].split("\\n")[0]
            if "[" not in line:
                yield page, script, shlex.split(line)


def options_of(script: str, arguments: list[str]) -> set[str]:
    """The names of all options of a script, or of one of its subcommands, old names too."""
    if script.startswith(("benchmarks/", "docs/")):
        command = [sys.executable, str(ROOT / script), "--help"]
        help_text = subprocess.run(command, capture_output=True, text=True, check=True, env=wide()).stdout
        return set(re.findall(r"--[\w-]+", help_text))
    found = dict(maker("options").commands(script))
    command = found[arguments[0]] if len(found) > 1 else next(iter(found.values()))
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def wide() -> dict[str, str]:
    import os

    return {**os.environ, "COLUMNS": "200"}


@pytest.mark.parametrize("page", sorted({page for page, _, _ in commands()}), ids=name_of)
def test_the_options_of_its_commands_exist(page: Path) -> None:
    for where, script, arguments in commands():
        if where == page:
            wanted = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
            missing = wanted - options_of(script, arguments) - {"--help"}
            assert not missing, f"{name_of(page)}: {script} has no {', '.join(missing)}"


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_no_question_needs_more_than_three_files() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| (Wh[^|]+\?) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 10
    for question, answer in rows:
        assert len(re.findall(r"`[\w./]+\.(?:py|cu|json)`", answer)) <= 3, question


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures
    assert all(picture.stat().st_size < 150_000 for picture in pictures)


def test_records_name_no_folder_of_a_machine() -> None:
    records = list((ROOT / "docs" / "records").glob("*.json"))
    assert records
    assert not [record.name for record in records if re.search(r'"/\w', record.read_text())]


def test_a_block_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    marked = maker("marked")
    text = "before\n<!-- one two: begin -->\nold\n<!-- one two: end -->\nafter\n"
    expected = text.replace("old", "made of one two")
    assert marked.rewritten(text, lambda name: f"made of {name}", tmp_path) == expected


def test_a_block_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks the lines"):
        maker("marked").rewritten("<!-- one: begin -->\n", lambda name: name, tmp_path / "page.md")


def test_an_unknown_block_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- nonsense: begin -->\n<!-- nonsense: end -->\n")
    with pytest.raises(UserError, match="no block of the documentation is called 'nonsense'"):
        maker("blocks").written(page)


def test_an_options_table_leaves_hidden_names_out() -> None:
    def command(
        data: str = typer.Option(help="the images"), old: str = typer.Option("", hidden=True, help="old name")
    ) -> None:
        """A command."""

    app = typer.Typer(add_completion=False)
    app.command()(command)
    table = maker("options").table(typer.main.get_command(app))
    assert table.splitlines()[2:] == ["| `--data` | the images | required |"]


def test_the_strip_has_a_column_per_model(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 19]>
        g (float[1, 3, 32, 32] image) => (float[1, 1, 32, 32] saliency) <int64[1] axes = {1}> {
            saliency = ReduceMean <keepdims = 1> (image, axes)
        }""")
    embed(model, Contract(network="mean", height=32, width=32, mean=(0, 0, 0), std=(1, 1, 1)))
    onnx.save(model, tmp_path / "mean.onnx")
    figures = maker("figures")
    drawn = figures.strip({"fp32": tmp_path / "mean.onnx"})
    assert drawn.shape[1] == 3 * figures.SIDE + 2 * figures.GAP
    kept = cv2.imread(str(figures.STRIP))
    assert kept.shape == (drawn.shape[0], 4 * figures.SIDE + 3 * figures.GAP, 3)
    assert (kept[figures.CAPTION :, : figures.SIDE] == drawn[figures.CAPTION :, : figures.SIDE]).all(), (
        "make docs-figures"
    )


def test_methods_are_built_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = maker("methods")
    ran: list[list[str]] = []

    def pretend(arguments: list[str]) -> None:
        ran.append(arguments)
        if "build_engine" in arguments[0]:
            (tmp_path / "net.int8.sim.onnx").write_text(arguments[arguments.index("--method") + 1])

    monkeypatch.setattr(methods, "run", pretend)
    methods.main(Path("net.onnx"), "CALIB", "DATA", tmp_path, tmp_path / "record.json")
    made = [tmp_path / f"net.{method}.int8.sim.onnx" for method in methods.METHODS]
    assert [path.read_text() for path in made] == list(methods.METHODS)
    assert ran[-1][:6] == ["runtime/bench.py", "net.onnx", *map(str, made)]


def write_room(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / "quant" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_arrows_and_circles_are_counted(tmp_path: Path) -> None:
    structure = maker("structure")
    write_room(
        tmp_path,
        build="from sodeploy.quant.emit import cpu, fp16\nfrom sodeploy.runtime.bench import bench\nimport numpy",
        emit__cpu="from sodeploy.quant.emit.fp16 import half\nimport sodeploy.quant.plan",
        emit__fp16="from sodeploy.quant import plan",
        plan="from sodeploy.quant.emit.cpu import x",
    )
    found = structure.structure(tmp_path, "quant")
    assert len(found.arrows) == 6
    assert found.between_places == {("build", "emit"), ("emit", "plan"), ("plan", "emit")}
    assert found.most_inside == 1
    assert structure.circles(found.arrows) == [["emit/cpu", "emit/fp16", "plan"]]
    assert structure.circles(found.between_places) == [["emit", "plan"]]
    with pytest.raises(UserError, match="runtime does not exist"):
        structure.structure(tmp_path, "runtime")


def test_no_file_imports_itself_in_a_circle() -> None:
    structure = maker("structure")
    for room in structure.ROOMS:
        assert not structure.circles(structure.structure(ROOT, room).arrows), room


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install -c constraints.txt -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "int8.html", "contributing.html", "stages/build.html"} <= {
        page.relative_to(tmp_path / "site").as_posix() for page in pages
    }
    for page in pages:
        fetched = re.findall(
            r'<(?:script|img|link rel="(?:stylesheet|preconnect)")[^>]*(?:src|href)="(https?:[^"]+)', page.read_text()
        )
        assert not fetched, f"{page.name} fetches {fetched}"


def test_the_page_of_weights_names_every_network_and_no_sum_of_its_own() -> None:
    text = (ROOT / "docs" / "weights.md").read_text()
    rows = [line.split(" | ") for line in text.split("## ONNX files")[0].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert named == set(NETWORKS)
    found = json.loads((ROOT / "sodeploy" / "published_files.json").read_text())
    published = [one for one in found if "sha256" in one and "bytes" in one]
    listed = {sum_: row for row in rows for sum_ in re.findall(r"\b[0-9a-f]{64}\b", row[-1])}
    assert set(listed) == {one["sha256"] for one in published}
    for one in published:
        row = listed[one["sha256"]]
        assert one["file"] in row[1]
        assert (row[0], row[3]) == (f"| `{one['network']}`", f"{one['bytes']} bytes")


def test_the_page_of_weights_names_the_backbones_of_the_recipes() -> None:
    text = (ROOT / "docs" / "weights.md").read_text().split("## Backbones")[1]
    for name in recipe_names():
        if (file := load_recipe(name).backbone.init) is not None:
            (row,) = [line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line]
            assert f"[{file}](" in row
