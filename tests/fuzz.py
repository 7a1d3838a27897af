"""Read spoiled files of every kind for some minutes, and report: make fuzz MINUTES=10.

Prints a line per kind: the files tried, the tracebacks, the reads over 30 s, and the peak of memory; then each fault.
A file at fault is kept in --keep. The exit status is 1 if there was a fault. Each kind runs in a process of its own,
one after another, so that a kind has a peak of its own and a crash of a library is a fault and not the end.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutations import KINDS, Seed, is_one_line, make_seeds, mutate

from sodeploy.errors import UserError

_HANG_S = 30
_GIVE_UP_S = 120  # a read that takes longer ends its process
_STARTS = 20  # of one kind's process, before its crashes are enough


class Report:
    """The counts of one kind, written to a file after each fault, and from time to time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.peak_mib = 0.0
        self.seconds = 0.0  # of reading, without the time that the valid files took to make
        if file.exists():
            kept = json.loads(file.read_text())
            self.counts, self.faults = Counter(kept["counts"]), Counter(kept["faults"])
            self.peak_mib, self.seconds = kept["peak_mib"], kept["seconds"]

    @property
    def files(self) -> int:
        return self.counts["read"] + self.counts["refused"] + self.counts["tracebacks"] + self.counts["crashes"]

    def save(self) -> None:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        facts = {
            "counts": self.counts,
            "faults": self.faults,
            "peak_mib": max(self.peak_mib, own),
            "seconds": self.seconds,
        }
        self.file.write_text(json.dumps(facts))


def try_one(seed: Seed, spoiled: Path, report: Report) -> str | None:
    """Read one spoiled file; the fault, or None."""
    started = time.monotonic()
    faulthandler.dump_traceback_later(_GIVE_UP_S, exit=True)
    fault = None
    try:
        seed.read(spoiled)
        report.counts["read"] += 1
    except UserError as error:
        report.counts["refused"] += 1
        if not is_one_line(error):
            fault = f"not one line: {str(error)[:80]!r}"
    except Exception as error:
        report.counts["tracebacks"] += 1
        where = traceback.extract_tb(error.__traceback__)[-1]
        fault = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}: {error}"
    faulthandler.cancel_dump_traceback_later()
    took = time.monotonic() - started
    report.seconds += took
    if took > _HANG_S:
        report.counts["hangs"] += 1
        fault = fault or f"took {took:.0f} s"
    return fault and f"{seed.path.name}: {fault}"[:200]


def run_kind(kind: str, seconds: float, files: int, chance: random.Random, report: Report, folder: Path) -> None:
    """Try spoiled files of one kind until the time or the number is reached."""
    seeds = make_seeds(folder / f"{os.getpid()}", [kind])
    contents = [seed.path.read_bytes() for seed in seeds]
    while report.seconds < seconds and report.files < files:
        index = chance.randrange(len(seeds))
        seed = seeds[index]
        spoiled = seed.path.with_name(f"spoiled-{seed.path.name}")
        spoiled.write_bytes(mutate(contents[index], chance))
        (folder / "current").write_text(str(spoiled))
        fault = try_one(seed, spoiled, report)
        if fault:
            if fault not in report.faults:
                (folder / f"fault-{len(report.faults)}-{seed.path.name}").write_bytes(spoiled.read_bytes())
            report.faults[fault] += 1
        if fault or report.files % 100 == 0:
            report.save()
    report.save()


def watch_kind(kind: str, seconds: float, files: int, seed: int, keep: Path) -> Report:
    """Run a kind in processes of its own: another one after each crash."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for start in range(_STARTS):
            options: dict[str, Any] = {
                "--kind": kind, "--seconds": seconds, "--files": files, "--seed": seed + start, "--folder": folder
            }  # fmt: skip
            command = [sys.executable, __file__, *(str(part) for pair in options.items() for part in pair)]
            status = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            report = Report(folder / "report.json")
            if status.returncode == 0:
                break
            report.counts["crashes"] += 1
            said = status.stderr.decode(errors="replace").strip().splitlines()[-1:]
            report.faults[f"exit {status.returncode}: {' '.join(said)}"[:200]] += 1
            report.save()
            with contextlib.suppress(OSError):
                spoiled = Path((folder / "current").read_text())
                (folder / f"fault-crash-{start}-{spoiled.name}").write_bytes(spoiled.read_bytes())
        for file in folder.glob("fault-*"):
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{kind.replace(' ', '-')}-{file.name}").write_bytes(file.read_bytes())
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="for all kinds together")
    parser.add_argument("--files", type=int, default=10**9, help="stop a kind after so many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for files at fault")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.kind:
        report = Report(chosen.folder / "report.json")
        run_kind(chosen.kind, chosen.seconds, chosen.files, random.Random(chosen.seed), report, chosen.folder)
        return 0
    total: Counter[str] = Counter()
    peak = 0.0
    faulty = False
    print(f"{'kind':16} {'files':>7} {'tracebacks':>10} {'hangs':>6} {'crashes':>8} {'peak MiB':>9}", flush=True)
    for number, kind in enumerate(chosen.kinds):
        seconds = 60 * chosen.minutes / len(chosen.kinds)
        report = watch_kind(kind, seconds, chosen.files, chosen.seed + 1000 * number, chosen.keep)
        _print_line(kind, report.files, report.counts, report.peak_mib)
        for fault, count in report.faults.most_common():
            print(f"    {count} x {fault}", flush=True)
        faulty |= bool(report.faults)
        total += report.counts + Counter(files=report.files)
        peak = max(peak, report.peak_mib)
    _print_line("all", total["files"], total, peak)
    return 1 if faulty else 0


def _print_line(kind: str, files: int, counts: Counter[str], peak_mib: float) -> None:
    tracebacks, hangs, crashes = (counts[name] for name in ("tracebacks", "hangs", "crashes"))
    print(f"{kind:16} {files:7} {tracebacks:10} {hangs:6} {crashes:8} {peak_mib:9.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
