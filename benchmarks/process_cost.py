"""The cost of a command in a process of its own: seconds, and the most memory it held.

A process is billed for the memory that its parent held when it was started. So a small one stands between: this file,
run as a script, starts the command and prints the bill.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_UNIT = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere; to MiB


class Cost(NamedTuple):
    """From the start of a process to its end."""

    seconds: float
    peak_mib: float
    cpu_seconds: float


class CommandFailed(Exception):
    """The command ended with another status than 0; the message is the last it said."""


def measure(command: Sequence[str | Path], log: Path) -> Cost:
    """Run `command` to its end.

    Args:
        log: takes what it writes to stdout and stderr.

    Raises:
        CommandFailed: it did not end well.
    """
    launcher = [sys.executable, "-I", __file__, str(log), *map(str, command)]
    bill = json.loads(subprocess.run(launcher, check=True, capture_output=True, text=True).stdout)
    if bill["status"]:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise CommandFailed(f"{said[-1] if said else 'it said nothing'} (status {bill['status']})")
    return Cost(bill["seconds"], bill["peak_mib"], bill["cpu_seconds"])


def _launch(log: str, command: list[str]) -> None:
    with open(log, "w") as file:
        start = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
    status = os.waitstatus_to_exitcode(status)  # negative: the signal that ended it, -9 for one out of memory
    cpu = usage.ru_utime + usage.ru_stime
    bill = {"status": status, "seconds": seconds, "peak_mib": usage.ru_maxrss / _UNIT, "cpu_seconds": cpu}
    print(json.dumps(bill))


if __name__ == "__main__":
    _launch(sys.argv[1], sys.argv[2:])
