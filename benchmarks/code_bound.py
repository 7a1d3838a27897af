"""How fast the kernels could run at most, from their machine code: a model, not a measurement.

    python benchmarks/code_bound.py [--json docs/records/code_bound.json] [--before docs/records/code_bound.json]

Compiles the kernels for sm_90, takes the code apart with cuobjdump, and runs blocks of every kernel instruction by
instruction on the CPU (sass_machine.py), with the host code that the product uses. Their instructions, scaled to the
whole image, give the least time that an H100 or H200 needs to issue them. The goal: issuing takes less than the bytes
that must move (kernel_times.py) take at the copy bandwidth of the GPU, so that memory alone is the limit. Not in the
model: latency, caches, bank conflicts, launches. `make gpu-check` measures the time of the same chains.
"""

import functools
import json
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from gpu_check import table
from kernel_times import JUDGED, LARGE_NETWORK, NETWORK, Size, benchmark_contract, postprocess_bytes, preprocess_bytes
from sass_machine import SECTOR, Block, Counts, Instruction, Memory, disassemble

from sodeploy import command_line, terminal
from sodeploy.artifacts import write_text
from sodeploy.errors import UserError
from sodeploy.runtime.composition import STYLES
from sodeploy.runtime.gpu import kernels
from sodeploy.runtime.gpu.processing import CudaProcessing

CLOCK, MULTIPROCESSORS, COPY = 1.755e9, 132, 3.0e12  # Hz; of an H100 SXM or H200; bytes/s, read and written
CAPABILITY = "sm90"
GOAL_PERCENT = 90
SIZE, COUNT = JUDGED
BLOCKS = 24  # of a launch that are run
_MEMORY = 1 << 30
_INSTALL = "install the CUDA toolkit, or: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, and put it on PATH"

# Warps that a multiprocessor issues in a cycle at most: in all, and to each kind of unit (CUDA C++ Programming Guide,
# "Arithmetic Instructions", compute capability 9.0). An instruction that is in none of the lists goes to the integer
# units; IMAD runs on half of the floating point units.
_ISSUE = 4.0
_RATES = {"float": 4.0, "multiply": 2.0, "integer": 2.0, "special": 0.5, "memory": 1.0, "uniform": 2.0, "control": 4.0}
_UNITS = {
    "float": ("FADD", "FMUL", "FFMA"),
    "multiply": ("IMAD",),
    "special": ("MUFU", "REDUX", "I2F", "F2I", "FRND"),
    "memory": ("LDG", "LD", "STG", "ST", "LDS", "STS", "LDGSTS", "SHFL", "ATOMS", "REDG", "LDC", "S2R", "S2UR"),
    "control": ("BRA", "EXIT", "BSSY", "BSYNC", "NOP", "BAR", "WARPSYNC", "CALL", "RET", "LDGDEPBAR", "DEPBAR"),
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names}

Row = dict[str, Any]


@functools.cache
def compiled_kernels(cuobjdump: str) -> dict[str, dict[int, Instruction]]:
    """The kernels by name, compiled for CAPABILITY."""
    code: dict[str, dict[int, Instruction]] = {}
    for module in kernels.MODULES:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(kernels.compile_file(kernels.FOLDER / f"{module}.cu", CAPABILITY))
            cubin.flush()
            code |= disassemble(Path(cubin.name), cuobjdump)
    return code


class MachineCode:
    """A device for `CudaProcessing` that runs some or all blocks of each launch on the CPU.

    Attributes:
        counts: by kernel, what its launches have issued and touched, scaled to all their blocks.
    """

    def __init__(self, cuobjdump: str, blocks: int | None = BLOCKS) -> None:
        """
        Args:
            blocks: of each launch that are run; None for all.
        """
        self._code = compiled_kernels(cuobjdump)
        self._blocks, self._random = blocks, random.Random(0)
        self._memory = Memory(_MEMORY)
        self.counts: dict[str, Counts] = {}

    def allocate(self, size: int) -> "Piece":
        return Piece(self._memory.take(size))

    def pinned(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def upload(self, address: int, data: np.ndarray, stream: Any) -> None:
        self._view(address, data.nbytes)[:] = data.view(np.uint8).reshape(-1)

    def download(self, data: np.ndarray, address: int, stream: Any) -> None:
        data.view(np.uint8).reshape(-1)[:] = self._view(address, data.nbytes)

    def clear(self, address: int, size: int, stream: Any) -> None:
        self._view(address, size)[:] = 0

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: tuple[np.generic, ...],
        stream: Any,
    ) -> None:
        parameters = b""
        for argument in arguments:
            parameters += bytes(-len(parameters) % argument.itemsize) + argument.tobytes()
        total = grid[0] * grid[1] * grid[2]
        chosen = range(total) if self._blocks is None else self._random.sample(range(total), min(self._blocks, total))
        counts = Counts()
        for number in chosen:
            index = (number % grid[0], number // grid[0] % grid[1], number // grid[0] // grid[1])
            Block(self._code[kernel], self._memory, counts, grid, block, index, parameters).run()
        whole = self.counts.setdefault(kernel, Counts())
        for name in ("issued", "bytes", "sectors"):
            for key, value in getattr(counts, name).items():
                getattr(whole, name)[key] += value * total / len(chosen)

    def _view(self, address: int, size: int) -> np.ndarray:
        place = address - self._memory.base
        return self._memory.bytes[place : place + size]


class Piece:
    """A piece of the machine's memory, which is never given back."""

    def __init__(self, address: int) -> None:
        self.address = address

    def free(self) -> None:
        pass


def bounds(counts: Counts) -> dict[str, float]:
    """Least microseconds of the whole GPU for one image: to issue all instructions, and by each kind of unit its share.

    Args:
        counts: of COUNT images.
    """
    units: Counter[str] = Counter()
    for name, warps in counts.issued.items():
        plain = name.split(".")[0]
        units[_UNIT_OF.get(plain, "uniform" if plain.startswith("U") else "integer")] += warps  # type: ignore[assignment]
    cycles = {"issue": sum(units.values()) / _ISSUE} | {unit: warps / _RATES[unit] for unit, warps in units.items()}
    return {unit: value / MULTIPROCESSORS / CLOCK / COUNT * 1e6 for unit, value in cycles.items()}


def rows(cuobjdump: str) -> list[Row]:
    """A row for each chain of kernels: one image's share of the batch that kernel_times.py judges."""
    found = []
    for network, interpolation, divide_by, dtype in (
        (NETWORK, "linear", "255", np.float32),
        (NETWORK, "area", "255", np.float32),
        (NETWORK, "area", "255", np.float16),
        (NETWORK, "linear", "max", np.float32),
        (LARGE_NETWORK, "linear", "255", np.float32),
        (LARGE_NETWORK, "area", "255", np.float32),
    ):
        contract = benchmark_contract(network, interpolation, divide_by)
        device = MachineCode(cuobjdump)
        processing = CudaProcessing(device, contract, None, input_dtype=dtype)
        processing.stage([_image()] * COUNT)
        processing.preprocess()
        name = f"pre {interpolation} {np.dtype(dtype).name}" + (" by maximum" if divide_by == "max" else "")
        found.append(_row(name, network, preprocess_bytes([SIZE], contract, np.dtype(dtype).itemsize), device))
    for style in STYLES:
        device = MachineCode(cuobjdump)
        processing = CudaProcessing(device, benchmark_contract(NETWORK, "linear", "255"), None, style)
        output = processing.stage([_image()] * COUNT).output
        processing.preprocess()
        device.counts.clear()
        device.upload(output, np.random.default_rng(1).random((COUNT, *NETWORK), np.float32), None)
        processing.postprocess()
        found.append(_row(f"post {style}", NETWORK, postprocess_bytes([SIZE], NETWORK, style), device))
    return found


def _row(name: str, network: Size, least: int, device: MachineCode) -> Row:
    floor = least / COPY * 1e6
    each = [bounds(counts) for counts in device.counts.values()]  # kernels follow each other
    issue = sum(bound["issue"] for bound in each)
    total = Counter[str]()
    for bound in each:
        total.update({unit: value for unit, value in bound.items() if unit != "issue"})  # type: ignore[arg-type]
    unit, slowest = total.most_common(1)[0]
    stores = [counts for counts in device.counts.values() if counts.bytes["STG"]]
    return {
        "kernels": name,
        "network": f"{network[1]}x{network[0]}",
        "launches": len(device.counts),
        "floor us": round(floor, 3),
        "instructions of warps": round(sum(sum(counts.issued.values()) for counts in device.counts.values()) / COUNT),
        "issue us": round(issue, 3),
        "issue allows %": round(100 * floor / issue),
        "busiest unit": unit,
        "its us": round(float(slowest), 3),
        "unit allows %": round(100 * floor / float(slowest)),
        "sectors stored / needed": round(
            sum(counts.sectors["STG"] for counts in stores) * SECTOR / sum(counts.bytes["STG"] for counts in stores), 2
        ),
    }


def _image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def find_cuobjdump() -> str:
    """
    Raises:
        UserError: it is not installed.
    """
    found = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")
    if found is None:
        raise UserError(f"cuobjdump is not installed; {_INSTALL}")
    return found


def compiler() -> str:
    """The version of nvcc, on which the machine code depends."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return "NVRTC"
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.strip().splitlines()[-1]


def main(
    json_path: Annotated[Path | None, typer.Option("--json", help="file for the record")] = None,
    before: Annotated[
        Path | None, typer.Option(help="older record, whose figures the new one keeps beside its own")
    ] = None,
) -> None:
    """Bound the time of the kernels by what their machine code issues; no GPU is needed."""
    older = {(row["kernels"], row["network"]): row for row in json.loads(before.read_text())["rows"]} if before else {}
    found = rows(find_cuobjdump())
    for row in found:
        if (row["kernels"], row["network"]) in older:
            old = older[row["kernels"], row["network"]]
            for name in ("issue us", "its us"):  # a record that has older figures hands them on
                row[f"{name} before"] = old.get(f"{name} before", old[name])
    record = {
        "model": {"clock Hz": CLOCK, "multiprocessors": MULTIPROCESSORS, "copy bytes/s": COPY, "code": CAPABILITY},
        "compiler": compiler(),
        "goal %": GOAL_PERCENT,
        "rows": found,
    }
    if json_path:
        write_text(json_path, json.dumps(record, indent=1) + "\n")
    terminal.results.print(table(found), soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
