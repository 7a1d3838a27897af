"""Evaluation of folders of maps: what is paired with what, the files written, and what is refused."""

import csv
import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import typer

from sodeploy import command_line
from sodeploy.errors import UserError
from sodeploy.runtime.evaluate import evaluate, main, to_csv, to_record
from sodeploy.runtime.measure import metrics
from sodeploy.runtime.measure.curves import draw_curves
from sodeploy.runtime.measure.report import evaluation_table

pytest.importorskip("py_sod_metrics")

NAMES = ("a", "b", "c")


def disc(index: int, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    cv2.circle(mask, (22 + 3 * index, 20), 8 + index, 255, -1)
    return mask


@pytest.fixture
def truths(tmp_path):
    """Two data sets: one with images and masks, one a folder of masks."""
    for folder in ("full/images", "full/masks", "bare"):
        (tmp_path / folder).mkdir(parents=True)
    for index, name in enumerate(NAMES):
        cv2.imwrite(str(tmp_path / "full" / "images" / f"{name}.jpg"), np.zeros((40, 50, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "full" / "masks" / f"{name}.png"), disc(index))
        cv2.imwrite(str(tmp_path / "bare" / f"{name}.png"), disc(index))
    return [tmp_path / "full", tmp_path / "bare"]


@pytest.fixture
def save_maps(tmp_path):
    """Save a method's maps, blurred discs, in a folder; returns it."""

    def save(place: str, blur: float):
        (tmp_path / place).mkdir(parents=True)
        for index, name in enumerate(NAMES):
            cv2.imwrite(str(tmp_path / place / f"{name}.png"), cv2.GaussianBlur(disc(index), (0, 0), blur))
        return tmp_path / place

    return save


def expected(blur: float) -> dict[str, float]:
    parts = [metrics.score(cv2.GaussianBlur(disc(i), (0, 0), blur), disc(i)) for i in range(len(NAMES))]
    return metrics.join(parts).summary()


def test_methods_and_data_sets_in_order(truths, save_maps, tmp_path):
    for dataset in ("full", "bare"):
        save_maps(f"maps/sharp.v2/{dataset}", 2)
    soft = save_maps("maps/soft", 5)  # one folder that serves both
    found = evaluate([tmp_path / "maps" / "sharp.v2", soft], truths, workers=1)
    assert [(one.dataset, one.method) for one in found] == [
        ("full", "sharp.v2"), ("full", "soft"), ("bare", "sharp.v2"), ("bare", "soft"),
    ]  # fmt: skip
    for one in found:
        assert one.scores.summary() == expected(2 if one.method == "sharp.v2" else 5)
        assert one.resized == 0


def test_a_list_evaluates_only_its_images(truths, save_maps, tmp_path):
    (tmp_path / "some.txt").write_text("full/a\nfull/c\n")
    save_maps("maps/full", 2)
    (one,) = evaluate([tmp_path / "maps"], [tmp_path / "some.txt"], workers=1)
    assert (one.dataset, len(one.scores)) == ("some", 2)


def test_metrics_are_chosen_and_ordered(truths, save_maps):
    (one,) = evaluate([save_maps("maps", 2)], truths[:1], workers=1, keys=("cc", "s"), curves=False)
    record = to_record([one])
    assert list(record.rows[0].metrics) == ["cc", "s"]
    assert to_csv(record).startswith("dataset,method,images,resized,cc,s\n")
    assert evaluation_table(record).header[3:] == ["CC", "S"]


def test_data_sets_by_name_under_a_root(truths, save_maps, tmp_path):
    for dataset in ("full", "bare"):
        save_maps(f"maps/{dataset}", 2)
    found = evaluate([tmp_path / "maps"], ["full,bare"], workers=1, root=tmp_path)
    assert [(one.dataset, one.scores.summary()) for one in found] == [("full", expected(2)), ("bare", expected(2))]


def test_a_map_may_lack_the_folders_and_the_ending_of_its_mask(truths, save_maps, tmp_path):
    maps = save_maps("maps", 2)
    for name in NAMES:
        (tmp_path / "bare" / f"{name}.png").rename(tmp_path / "bare" / f"{name}_mask.png")
    (tmp_path / "some.lst").write_text("full/images/a.jpg full/masks/a.png\n")
    bare, listed = evaluate([maps], [truths[1], tmp_path / "some.lst"], workers=1)
    assert bare.scores.summary() == expected(2)
    assert len(listed.scores) == 1
    shutil.copytree(truths[0], tmp_path / "copy")
    (tmp_path / "two.lst").write_text("full/a\ncopy/a\n")
    with pytest.raises(UserError, match="has one map for several masks of two, the first full/a"):
        evaluate([maps], [tmp_path / "two.lst"], workers=1)


def test_maps_of_another_size_are_resized_and_counted(truths, save_maps):
    maps = save_maps("maps", 2)
    cv2.imwrite(str(maps / "b.png"), disc(1, (80, 100)))
    (one,) = evaluate([maps], truths[:1], workers=1)
    assert one.resized == 1


def test_colour_and_16_bit_maps_score_as_8_bit_grey(truths, save_maps):
    maps = save_maps("maps", 2)
    grey = cv2.imread(str(maps / "a.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(maps / "a.png"), np.dstack([grey] * 3))
    grey = cv2.imread(str(maps / "b.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(maps / "b.png"), grey.astype(np.uint16) * 257)
    (one,) = evaluate([maps], truths[:1], workers=1)
    assert one.scores.summary() == expected(2)


def test_csv_holds_the_record(truths, save_maps):
    record = to_record(evaluate([save_maps("maps", 2)], truths, workers=1))
    rows = list(csv.DictReader(to_csv(record).splitlines()))
    assert [row["dataset"] for row in rows] == ["full", "bare"]
    assert {key: float(rows[0][key]) for key in metrics.default_metrics()} == record.rows[0].metrics


def test_unfit_input_is_refused(truths, save_maps, tmp_path):
    maps = save_maps("maps", 2)
    with pytest.raises(UserError, match="absent is no folder"):
        evaluate([tmp_path / "absent"], truths)
    with pytest.raises(UserError, match="absent does not exist"):
        evaluate([maps], [tmp_path / "absent"])
    with pytest.raises(UserError, match=r"images has no masks, and a\.jpg does not look like one"):
        evaluate([maps], [truths[0] / "images"])
    (maps / "c.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"c\.png is broken"):
        evaluate([maps], truths, workers=1)
    (maps / "c.png").unlink()
    with pytest.raises(UserError, match="maps lacks 1 of 3 maps of full, the first c"):
        evaluate([maps], truths)
    cv2.imwrite(str(maps / "a.bmp"), disc(0))
    with pytest.raises(UserError, match="maps of the same name"):
        evaluate([maps], truths)


def test_curves_are_drawn_whole_or_not_at_all(truths, save_maps, tmp_path):
    pytest.importorskip("matplotlib")
    found = evaluate([save_maps("maps", 2)], truths, workers=1)
    curves = [(one.dataset, one.method, one.scores) for one in found]
    draw_curves(curves, tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape[0] > picture.shape[1] / 2 > 500  # two rows of two
    assert picture.std() > 10
    with pytest.raises(UserError, match=r"curves\.jpeg ends in no known picture format"):
        draw_curves(curves, tmp_path / "curves.jpeg")


def run_command(*words: object) -> None:
    typer.main.get_command(command_line.application_of(main))(list(map(str, words)), standalone_mode=False)


EVAL = """
Model: {name: InSPyReNet}
Eval:
  gt_root: ROOT
  pred_root: ROOT/maps
  methods: [sharp, soft]
  datasets: [full, bare]
  metrics: [Sm, mae, avgFm, nss]
  result_path: ROOT/results
"""


def write_eval(folder, text=EVAL):
    (folder / "eval.yaml").write_text(text.replace("ROOT", str(folder)))
    return folder / "eval.yaml"


def test_a_configuration_of_methods_data_sets_and_metrics(truths, save_maps, tmp_path):
    for dataset in ("full", "bare"):
        save_maps(f"maps/sharp/{dataset}", 2)
        save_maps(f"maps/soft/{dataset}", 5)
    run_command("--config", write_eval(tmp_path), "--workers", 1)
    rows = json.loads((tmp_path / "results" / "evaluation.json").read_text())["rows"]
    assert [(row["dataset"], row["method"]) for row in rows] == [
        ("full", "sharp"), ("full", "soft"), ("bare", "sharp"), ("bare", "soft"),
    ]  # fmt: skip
    assert list(rows[0]["metrics"]) == ["s", "mae", "mean_f", "nss"]
    assert rows[1]["metrics"]["s"] == expected(5)["s"]
    assert (tmp_path / "results" / "evaluation.csv").read_text().count("\n") == 5
    named = EVAL.replace("[sharp, soft]", "{ours: soft}").replace("  result_path: ROOT/results\n", "")
    run_command(
        "--config", write_eval(tmp_path, named), "--workers", 1, "--json", tmp_path / "n.json", "--metrics", "S"
    )
    (row, _) = json.loads((tmp_path / "n.json").read_text())["rows"]
    assert (row["method"], row["metrics"]) == ("ours", {"s": expected(5)["s"]})


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("gt_root", "gt_rot", "no evaluation has a key gt_rot; remove it or correct its name"),
        ("[Sm, mae, avgFm, nss]", "[Sm, XY]", "metrics: Sm,XY: XY is no metric; write some of mae,"),
        ("  datasets: [full, bare]\n", "", "the key datasets is missing; add it"),
        ("[full, bare]", "[]", "datasets: "),
        ("[sharp, soft]", "[]", "methods names no method"),
        ("Eval:", "Eval: [", "is not YAML: line"),
        ("[full, bare]", "[absent]", "has no data set absent; it holds bare, full"),
    ],
)
def test_a_wrong_configuration_names_the_key(truths, tmp_path, old, new, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        run_command("--config", write_eval(tmp_path, EVAL.replace(old, new)), "--workers", 1)


def test_a_list_of_maps_and_masks(truths, save_maps, tmp_path):
    save_maps("maps", 2)
    (tmp_path / "pairs.lst").write_text("".join(f"maps/{name}.png bare/{name}.png\n" for name in NAMES))
    run_command("--pairs", "pairs.lst", "--root", tmp_path, "--workers", 1, "--json", tmp_path / "p.json")
    (row,) = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert (row["dataset"], row["images"], row["metrics"]) == ("pairs", 3, expected(2))
    with pytest.raises(UserError, match="--pairs and --pred and --data each say what is scored"):
        run_command("--pairs", "pairs.lst", "--pred", "maps", "--data", "bare")
    with pytest.raises(UserError, match="--config and --data each say what is scored"):
        run_command("--config", "eval.yaml", "--data", "bare")


def test_the_values_of_curves(truths, save_maps, tmp_path):
    maps = save_maps("maps", 2)
    run_command("--pred", maps, "--data", truths[0], "--workers", 1, "--curves", tmp_path / "c.csv", "--metrics", "mae")
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert [int(row["threshold"]) for row in rows] == list(range(255, -1, -1))
    assert max(float(row["f"]) for row in rows) == expected(2)["max_f"]
    assert float(rows[-1]["recall"]) == 1


def test_two_data_sets_of_one_name_are_refused(truths, save_maps):
    with pytest.raises(UserError, match="two data sets are called full"):
        evaluate([save_maps("maps", 2)], [truths[0], truths[0]], workers=1)


def test_the_command_writes_what_it_is_asked_for(repository, truths, save_maps, tmp_path):
    script = [sys.executable, str(repository / "runtime" / "evaluate.py"), "--pred", str(save_maps("maps", 2))]
    options = [*script, "--gt", str(truths[0]), "--workers", "2", "--markdown", str(tmp_path / "table.md")]
    done = subprocess.run([*options, "--json", "-"], capture_output=True, text=True, cwd=repository, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["metrics"] == expected(2)
    assert "| full | maps | 3 |" in (tmp_path / "table.md").read_text()

    done = subprocess.run(
        [*options, "--curves", "curves.gif"], capture_output=True, text=True, cwd=repository, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: curves.gif ends in no known picture format")


def test_a_turned_map_is_refused(truths, save_maps):
    maps = save_maps("turned", 1)
    cv2.imwrite(str(maps / "b.png"), disc(1).T)
    with pytest.raises(UserError, match=r"b.png is 40x50 but its mask b is 50x40: height and width are swapped"):
        evaluate([maps], truths[:1], workers=1)
