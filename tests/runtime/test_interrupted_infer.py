"""Runs of infer that are killed, have no space, or read from a pipe: as processes of their own."""

import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sodeploy.errors import UserError
from sodeploy.runtime import infer as script
from sodeploy.runtime.errors import DeviceLost
from sodeploy.runtime.infer import infer
from sodeploy.runtime.media import still
from sodeploy.runtime.media.mapping import HostMapper

SaveModel = Callable[..., Path]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "sodeploy", "infer", *map(str, words)]


def draw(folder: Path, count: int) -> None:
    """Small images, some of them one folder deeper."""
    noise = np.random.default_rng(0)
    for index in range(count):
        path = folder / (f"part{index % 7}" if index % 3 else "") / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), noise.integers(0, 256, (24, 32, 3), dtype=np.uint8))


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every output there."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*.png")
        if not path.name.startswith(".")
    }


def killed_after(words: list[str], output: Path, count: int) -> None:
    """Run a command until `count` outputs are there, then kill it as the system does for want of memory."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(stamps(output)) < count and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()


@pytest.mark.parametrize("count", [90, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_three_times_goes_on_where_it_ended(
    save_model: SaveModel, tmp_path: Path, count: int
) -> None:
    draw(tmp_path / "photos", count)
    model, whole, output = save_model(), tmp_path / "whole", tmp_path / "out"
    words = command(tmp_path / "photos", "--model", model, "-o", whole)
    unbroken = subprocess.run(words, check=False, capture_output=True, text=True)
    assert unbroken.returncode == 0, unbroken.stderr
    broken = command(tmp_path / "photos", "--model", model, "-o", output)
    seen: dict[str, tuple[int, int]] = {}
    for part in (1, 2, 3):
        killed_after(broken, output, count * part // 4)
        now = stamps(output)
        assert count * part // 4 <= len(now) < count
        assert now.items() >= seen.items()  # what stood there was not written again
        seen = now
    done = subprocess.run(broken, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = stamps(output)
    assert after.items() >= seen.items()
    assert len(after) == count
    assert f"{count - len(seen)} pictures in {output}, {len(seen)} were there already" in done.stdout
    files = {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    assert files == {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}  # no leftovers
    assert all((output / file).read_bytes() == (whole / file).read_bytes() for file in files)


def test_a_picture_that_cannot_be_written_whole_is_absent(save_model: SaveModel, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 3)

    def limit() -> None:  # writes beyond 100 bytes fail
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    words = command(tmp_path / "photos", "--model", save_model(), "-o", tmp_path / "out")
    done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_full_disk_ends_the_run(save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "photos", 60)
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)

    monkeypatch.setattr(still, "write_bytes", write)
    outcome = infer(save_model(), tmp_path / "photos", tmp_path / "out")
    assert outcome.written == 5
    assert ".png: No space left on device; make room" in outcome.stopped
    assert 0 < len(outcome.failed) < 55  # the rest is not even tried
    with pytest.raises(UserError, match=r"No space left on device; make room or choose another output; the run ended"):
        script.main(str(tmp_path / "photos"), save_model(), tmp_path / "out")


def test_standard_input_to_standard_output(save_model: SaveModel, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 1)
    data = (tmp_path / "photos" / "0000.png").read_bytes()
    done = subprocess.run(command("-", "--model", save_model()), input=data, capture_output=True, check=True)
    made = cv2.imdecode(np.frombuffer(done.stdout, np.uint8), cv2.IMREAD_UNCHANGED)
    assert made.shape == (24, 32)
    assert done.stdout.endswith(b"IEND\xaeB`\x82")  # nothing behind the picture
    for given, reason in [(b"", b"stdin is empty"), (b"text", b"stdin is broken or no image")]:
        done = subprocess.run(command("-", "--model", save_model()), input=given, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (1, b"")
        assert reason in done.stderr


def test_the_summary_and_the_list_of_failures(save_model: SaveModel, tmp_path: Path) -> None:
    draw(tmp_path / "photos", 4)
    (tmp_path / "photos" / "text.jpg").write_text("Dear reader,")
    (tmp_path / "photos" / "0000.png").write_bytes(b"")
    words = command(tmp_path / "photos", "--model", save_model(), "-o", tmp_path / "out")
    for name in ("failed.json", "failed.csv"):
        done = subprocess.run(
            [*words, "--failures", str(tmp_path / name)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 1
        assert "2 of 5 images have no picture: " in done.stderr
    failed = json.loads((tmp_path / "failed.json").read_text())
    assert [os.path.basename(one["source"]) for one in failed] == ["0000.png", "text.jpg"]
    assert "is an empty file" in failed[0]["reason"]
    assert (tmp_path / "failed.csv").read_text().startswith("source,reason\n")


def test_a_lost_gpu_ends_the_run_with_its_summary(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapper fails in the midst of the run; pictures that were made are written, and failures are listed."""
    draw(tmp_path / "photos", 6)
    (tmp_path / "photos" / "0000.png").write_bytes(b"")
    maps = HostMapper.maps

    def lost(self: HostMapper, *given: Any) -> Iterator[Any]:
        for index, one in enumerate(maps(self, *given)):
            if index == 4:
                raise DeviceLost("the GPU is lost to this process; see nvidia-smi, then start again")
            yield one

    monkeypatch.setattr(HostMapper, "maps", lost)
    failures = tmp_path / "failed.json"
    outcome = infer(save_model(), tmp_path / "photos", tmp_path / "out", failures=failures)
    assert outcome.stopped.startswith("the GPU is lost")
    assert (outcome.written, len(outcome.failed)) == (3, 1)
    assert len(json.loads(failures.read_text())) == 1
