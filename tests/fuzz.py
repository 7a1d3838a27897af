"""Read spoiled files of every kind for some minutes, and report: make fuzz MINUTES=10.

Prints the number of files, the tracebacks (with the bytes kept in --keep), reads over 30 s, and the peak of memory.
"""

import argparse
import faulthandler
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutations import is_one_line, make_seeds, mutate

from sodeploy.errors import UserError

_HANG_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--files", type=int, default=10**9, help="stop after so many files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path("build/fuzz"), help="folder for files that end in a traceback"
    )
    chosen = parser.parse_args()
    chance = random.Random(chosen.seed)
    done: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    hangs = 0
    end = time.monotonic() + 60 * chosen.minutes
    with tempfile.TemporaryDirectory() as temporary:
        seeds = [(path, read, path.read_bytes()) for path, read in make_seeds(Path(temporary))]
        while time.monotonic() < end and sum(done.values()) < chosen.files:
            path, read, data = seeds[sum(done.values()) % len(seeds)]
            spoiled = path.with_name(f"spoiled-{path.name}")
            spoiled.write_bytes(mutate(data, chance))
            start = time.monotonic()
            faulthandler.dump_traceback_later(_HANG_S, exit=False)
            try:
                read(spoiled)
                done["read"] += 1
            except UserError as error:
                done["refused"] += 1
                if not is_one_line(error):
                    faults[f"{path.name}: not one line: {str(error)[:80]!r}"] += 1
            except Exception as error:
                done["traceback"] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                key = (
                    f"{path.name}: {type(error).__name__} in {Path(where.filename).name}, line {where.lineno}: {error}"
                )
                faults[key[:200]] += 1
                chosen.keep.mkdir(parents=True, exist_ok=True)
                (chosen.keep / f"{len(faults)}-{path.name}").write_bytes(spoiled.read_bytes())
            faulthandler.cancel_dump_traceback_later()
            hangs += time.monotonic() - start > _HANG_S
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{sum(done.values())} files: {dict(done)}; {hangs} hangs over {_HANG_S} s; peak memory {peak:.0f} MiB")
    for fault, count in faults.most_common():
        print(f"{count} x {fault}")
    return 1 if faults or hangs else 0


if __name__ == "__main__":
    sys.exit(main())
