"""Outputs: whole or absent, through links and devices, never over an input, one run to a folder."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sodeploy import artifacts, folder_lock
from sodeploy.errors import UserError
from sodeploy.outputs import check_outputs


def test_a_text_never_takes_the_place_of_a_picture(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"a mask")
    with pytest.raises(UserError, match=r"--json .*mask\.png would replace a picture; give a file of another name"):
        check_outputs("bench", ["model.onnx", "--data", str(tmp_path), "--json", str(tmp_path / "mask.png")])
    check_outputs("bench", ["model.onnx", "--json", str(tmp_path / "new.json")])
    assert (tmp_path / "mask.png").read_bytes() == b"a mask"


def test_threads_make_one_folder_together(tmp_path: Path) -> None:
    def write(index: int) -> None:
        artifacts.write_text(tmp_path / f"{index // 4}" / f"{index}", "content")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as writers:
            list(writers.map(write, range(2000)))
    finally:
        sys.setswitchinterval(interval)
    assert len(list(tmp_path.rglob("*"))) == 2500


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    artifacts.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        artifacts.write_text(tmp_path / "pipe", "content")
        assert reader.communicate(timeout=30)[0] == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_leftovers_of_dead_runs_are_removed_and_no_others(tmp_path: Path) -> None:
    with artifacts.atomic_write(tmp_path / "a.png") as mine:
        living = mine.name
        dead = living.replace(f"-{os.getpid()}-", "-4194999-")
        elsewhere = living.replace(".a.", ".a.0")  # of another host
        for name in (dead, elsewhere, ".b.partial.png"):
            (tmp_path / name).touch()
        code = f"from sodeploy import artifacts; artifacts.write_text({str(tmp_path / 'b')!r}, 'b')"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert not (tmp_path / dead).exists()
        assert {living, elsewhere, ".b.partial.png"} <= {path.name for path in tmp_path.iterdir()}


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with folder_lock.locked(tmp_path / "out"):
        code = f"from sodeploy import folder_lock; folder_lock.locked({str(tmp_path / 'out')!r}).__enter__()"
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert re.search(r"another run( \(process \d+\))? is writing into", second.stderr)
    with folder_lock.locked(tmp_path / "out"):
        assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("place", ["folder", "file/x", "file/x/y", "nowhere/x"])
def test_places_where_nothing_can_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("absent")
    with pytest.raises(UserError, match=r"is a folder, and a file is to be|not a folder; choose another output"):
        artifacts.write_text(tmp_path / place, "x")


def test_an_output_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "in.png").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in.png")
    (tmp_path / "hard").hardlink_to(tmp_path / "in.png")
    for name in ("in.png", "IN.PNG", "link", "hard", "../" + tmp_path.name + "/in.png"):
        with pytest.raises(UserError, match=r"would overwrite the input"):
            artifacts.check_apart([tmp_path / name], [tmp_path / "in.png"])
    artifacts.check_apart([tmp_path / "out.png"], [tmp_path / "in.png"])


_PARENT = """
import time
from sodeploy.workers import parallel_map
if __name__ == "__main__":
    with parallel_map(1 + 1) as mapped:
        list(mapped(abs, [1, 2]))
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_their_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(_PARENT)
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        assert len(of_session(parent.pid)) > 1
        parent.kill()
    deadline = time.monotonic() + 20
    while (left := of_session(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def of_session(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, theirs = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(theirs) == session and state != "Z":
            found.append(int(folder.name))
    return found
