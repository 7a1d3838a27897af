"""Let schemathesis make requests from the service's OpenAPI description, without API keys and with one: make api-check.

It sends valid and broken requests, and judges the statuses, types, headers and bodies of the answers. Parameters that
contradict each other, such as bgcolor with type=blur, are valid in the description and refused by the service: a
refusal alone is no fault. The exit status is 1 if schemathesis found a fault, if the service answered with 5xx, wrote
to its log, or did not end by SIGTERM with status 0. schemathesis has an environment of its own, .venv-api.
"""

import argparse
import contextlib
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from mutations import make_seeds

ROOT = Path(__file__).resolve().parents[1]
_READY_S = 120
_NOTES = ("loading ", "stopped; ")  # of every service


@contextlib.contextmanager
def serving(model: Path, options: list[str], faults: list[str]) -> Iterator[str]:
    """The address of a service that is ready; `faults` takes what it did wrong until it ended."""
    call = [sys.executable, str(ROOT / "runtime" / "serve" / "serve.py"), "--model", str(model), "--port", "0"]
    with subprocess.Popen([*call, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline().strip()
        if not line.startswith("serving at "):
            raise SystemExit(f"serve does not start: {line}")
        address = line.removeprefix("serving at ").rstrip("/")
        try:
            _wait(address)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            log = process.stderr.read()
        faults += [f"the service logged: {said}" for said in log.splitlines() if not said.startswith(_NOTES)]
    if process.returncode:
        faults.append(f"the service ended with status {process.returncode}")


def _wait(address: str) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/readyz", timeout=10):
            return
        time.sleep(0.2)
    raise SystemExit(f"{address} did not become ready in {_READY_S} s")


def check(program: Path, address: str, examples: int, key: str, faults: list[str]) -> None:
    """Run schemathesis against a service, and look at the service's own figures."""
    call = [str(program), "run", f"{address}/openapi.json", "--seed", "1", "--max-examples", str(examples)]
    call += ["--exclude-checks", "positive_data_acceptance", "--continue-on-failure"]
    headers = {"X-Api-Key": key} if key else {}
    call += [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
    if subprocess.run(call, check=False).returncode:
        faults.append("schemathesis found faults, which stand above")
    request = urllib.request.Request(f"{address}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        figures = answer.read().decode()
    faults += re.findall(r'^\w*requests_total\{path="(?!/readyz).*status="5\d\d".*$', figures, re.MULTILINE)


def main() -> int:
    """Both services one after the other; the faults go to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="schemathesis")
    parser.add_argument("--examples", type=int, default=200, help="requests for each operation, about")
    arguments = parser.parse_args()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        model = make_seeds(Path(place), ["onnx"])[0].path
        key, file = secrets.token_hex(24), Path(place, "keys.txt")
        file.write_text(key + "\n")
        for given, options in (("", []), (key, ["--api-key-file", str(file)])):
            with serving(model, options, faults) as address:
                check(arguments.program, address, arguments.examples, given, faults)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
