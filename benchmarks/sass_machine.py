"""Runs a kernel's machine code (SASS of a cubin), warp by warp, and counts what it issues and touches.

Slow, and without time: no caches, no latency. The instructions of a warp, the order of its diverging lanes and the
bytes that it touches are as on the GPU. Lanes that part come together again at the lowest address that any of them has
still to execute: there the compiler lets them meet.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sass_operations import OPERATIONS, Lanes, bits, joined

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z0-9_.]+)\s*(.*?)\s*;")
_MEMORY = {"LDG", "LD", "STG", "ST", "LDS", "STS", "ATOMS", "REDG", "RED", "LDGSTS", "ATOMG"}
_NOTHING = {"NOP", "BSSY", "BSYNC", "WARPSYNC", "LDGDEPBAR", "DEPBAR", "YIELD", "BREAK", "MEMBAR", "ERRBAR", "CCTL"}
_RESERVED_SHARED = 0x400  # bytes at the beginning of a block's shared memory that belong to CUDA
_PARAMETERS = 0x210  # where they begin in the constant bank, from sm_90 on
SECTOR = 32


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: str
    name: str
    modifiers: frozenset[str]
    operands: tuple[str, ...]


@dataclass
class Counts:
    """The work of warps.

    Attributes:
        issued: instructions, by name with modifiers.
        bytes: bytes that lanes asked for, by memory instruction.
        sectors: sectors of 32 bytes that hold them.
    """

    issued: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    sectors: Counter[str] = field(default_factory=Counter)


def disassemble(cubin: Path, cuobjdump: str) -> dict[str, dict[int, Instruction]]:
    """The kernels of a cubin by name: instructions by address."""
    done = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(listing: str) -> dict[str, dict[int, Instruction]]:
    """The kernels of a listing by cuobjdump -sass."""
    kernels: dict[str, dict[int, Instruction]] = {}
    for line in listing.splitlines():
        if "Function :" in line:
            code = kernels.setdefault(line.split(":")[1].strip(), {})
        elif found := _LINE.match(line):
            address, guard, full, operands = found.groups()
            name, *modifiers = full.split(".")
            parts = tuple(part.strip() for part in re.split(r",(?![^\[]*\])", operands)) if operands else ()
            code[int(address, 16)] = Instruction(int(address, 16), guard or "", name, frozenset(modifiers), parts)
    return kernels


class Memory:
    """Global memory: blocks of bytes by address."""

    def __init__(self, size: int) -> None:
        self.base, self.bytes, self.used = 0x7F0000000000, np.zeros(size, np.uint8), 0

    def take(self, size: int) -> int:
        place = self.base + self.used
        self.used += -(-size // 256) * 256
        if self.used > len(self.bytes):
            raise MemoryError("the machine's memory is full")
        return place

    def index(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """(lanes, size) places in `bytes`."""
        places = addresses.astype(np.int64) - self.base
        if len(places) and (places.min() < 0 or places.max() + size > self.used):
            raise IndexError(f"{places.min():#x}..{places.max():#x} + {size} of {self.used:#x} bytes")
        if (addresses % np.uint64(size)).any():
            raise IndexError(f"an access of {size} bytes is not aligned")
        return places[:, None] + np.arange(size)


class Block:
    """One block of threads on its way through a kernel."""

    def __init__(
        self,
        code: dict[int, Instruction],
        memory: Memory,
        counts: Counts,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        index: tuple[int, int, int],
        parameters: bytes,
    ) -> None:
        self._code, self.memory, self.counts = code, memory, counts
        self.shared = np.full(_RESERVED_SHARED + (48 << 10), 0xCB, np.uint8)
        sizes = np.array([*block, *grid], np.uint32).tobytes()
        constants = sizes + bytes(_PARAMETERS - len(sizes)) + parameters
        self._constants = np.frombuffer(constants + bytes(-len(constants) % 8), np.uint32)
        threads = block[0] * block[1] * block[2]
        self._warps = [Warp(self, first, min(32, threads - first), block, index) for first in range(0, threads, 32)]

    def run(self) -> None:
        """All warps to the end, each as far as the next barrier before another goes on."""
        waiting = [warp.run(self._code) for warp in self._warps]
        while waiting:
            waiting = [warp for warp in waiting if next(warp, None) is not None]

    def constant(self, offset: int) -> int:
        return int(self._constants[offset // 4])


class Warp:
    """32 lanes with their registers."""

    def __init__(
        self, block: Block, first: int, lanes: int, size: tuple[int, int, int], index: tuple[int, int, int]
    ) -> None:
        self._block = block
        self._registers = {name: np.zeros((256, 32), np.uint32) for name in ("R", "UR")}
        self._predicates = {name: np.zeros((8, 32), bool) for name in ("P", "UP")}
        self._alive = np.arange(32) < lanes
        threads = np.arange(first, first + 32)
        special = {
            "TID.X": threads % size[0],
            "TID.Y": threads // size[0] % size[1],
            "TID.Z": threads // size[0] // size[1],
            "LANEID": np.arange(32),
            "CgaCtaId": np.zeros(32),
        } | {f"CTAID.{axis}": np.full(32, place) for axis, place in zip("XYZ", index, strict=True)}
        self._special = {f"SR_{name}": value.astype(np.uint32) for name, value in special.items()}

    def run(self, code: dict[int, Instruction]) -> Iterator[bool]:
        """Execute; yields at every barrier of the block."""
        places = {0: self._alive.copy()}
        while places:
            place = min(places)
            lanes = places.pop(place)
            instruction = code[place]
            self._block.counts.issued[".".join([instruction.name, *sorted(instruction.modifiers)])] += 1
            active = lanes & self._predicate(instruction.guard) if instruction.guard else lanes
            onward = {place + 16: lanes}
            if instruction.name in ("BRA", "CALL", "RET", "EXIT"):
                onward = self._targets(instruction, active)
                gone = (
                    active
                    if instruction.name == "EXIT"
                    else np.logical_or.reduce([*onward.values(), np.zeros(32, bool)])
                )
                onward[place + 16] = lanes & ~gone
            elif instruction.name == "BAR":
                yield True
            elif instruction.name not in _NOTHING:
                self._execute(instruction, active)
            for target, mask in onward.items():
                if mask.any():
                    places[target] = places[target] | mask if target in places else mask

    def _targets(self, instruction: Instruction, active: Lanes) -> dict[int, Lanes]:
        """Where a branch takes which lanes."""
        if instruction.name == "EXIT" or "DIV" in instruction.modifiers:  # DIV: only where the warp has parted
            return {}
        *conditions, target = instruction.operands
        if instruction.name == "RET":
            register, offset = target.split()
            returns = self._value(register) + np.uint32(int(offset, 16))
            return {int(place): active & (returns == place) for place in np.unique(returns[active])}
        for condition in conditions:
            active = active & self._predicate(condition)
        return {int(target, 16): active}

    def _execute(self, instruction: Instruction, active: Lanes) -> None:
        name, operands = instruction.name, instruction.operands
        if name in _MEMORY:
            self._touch(instruction, active)
            return
        if name == "SHFL":
            values, lane = self._value(operands[2]), self._value(operands[3]) & 31
            if "IDX" not in instruction.modifiers or not active[lane[active]].all():
                raise NotImplementedError("shuffles by index, from lanes that take part, only")
            self._store(operands[1], values[lane], active)
            return
        if name in ("REDUX", "VOTEU"):
            self._across(instruction, active)
            return
        targets = _target_count(instruction)
        size = 2 if (instruction.modifiers & {"64", "WIDE"} and name not in ("SHF", "USHF")) or name == "CS2R" else 1
        as_float = name.startswith(("F", "HFMA2", "MUFU")) and name not in ("FLO",)
        sources = [self._value(text, as_float, name) for text in operands[targets:]]
        if "WIDE" in instruction.modifiers:
            sources[2] = self._pair(operands[targets + 2])
        if name in ("LDC", "ULDC", "CS2R") and size == 2:
            results: list[Any] = [self._half(operands[targets], half) for half in range(2)]
        else:
            with np.errstate(all="ignore"):
                found = OPERATIONS[name](instruction.modifiers, sources)
            results = found if isinstance(found, list) else [found]
        if size == 2:
            self._store(operands[0], results[0], active)
            self._store(_next(operands[0]), results[1], active)
        else:
            order = results if _is_register(operands[0]) or targets == 1 else _predicates_first(results)
            for text, result in zip(operands[:targets], order, strict=False):
                self._store(text, result, active)

    def _across(self, instruction: Instruction, active: Lanes) -> None:
        *targets, source = instruction.operands
        if instruction.name == "REDUX":
            self._store(targets[0], np.full(32, self._value(source)[active].max(), np.uint32), active)
            return
        votes = self._predicate(source) & active
        ballot = np.uint32(sum(1 << int(lane) for lane in np.flatnonzero(votes)))
        agreed = votes.any() if "ANY" in instruction.modifiers else votes[active].all()
        for target in targets:
            self._store(target, np.full(32, ballot if _is_register(target) else agreed), active)

    def _touch(self, instruction: Instruction, active: Lanes) -> None:
        name = instruction.name
        size = next((int(width) // 8 for width in ("64", "128") if width in instruction.modifiers), 4)
        size = 1 if instruction.modifiers & {"U8", "S8"} else 2 if instruction.modifiers & {"U16", "S16"} else size
        texts = [text for text in instruction.operands if "[" in text]
        addresses = [self._address(text)[active] for text in texts]
        counts, shared = self._block.counts, self._block.shared
        for text, place in zip(texts, addresses, strict=True):
            if text.startswith("desc"):
                counts.bytes[name] += size * len(place)
                counts.sectors[name] += len(np.unique((place[:, None] + np.arange(0, size, 4, np.uint64)) // SECTOR))
        if not active.any():
            return
        if name == "LDGSTS":
            shared[addresses[0].astype(np.int64)[:, None] + np.arange(size)] = self._block.memory.bytes[
                self._block.memory.index(addresses[1], size)
            ]
            return
        if name in ("LDS", "STS", "ATOMS"):
            memory, index = shared, addresses[0].astype(np.int64)[:, None] + np.arange(size)
        else:
            memory, index = self._block.memory.bytes, self._block.memory.index(addresses[0], size)
        data = instruction.operands[-1] if name not in ("LDG", "LD", "LDS") else instruction.operands[0]
        registers = [data := data if number == 0 else _next(data) for number in range(max(1, size // 4))]
        if name in ("LDG", "LD", "LDS"):
            found = np.zeros((len(index), max(4, size)), np.uint8)
            found[:, :size] = memory[index]
            for number, register in enumerate(registers):
                value = np.zeros(32, np.uint32)
                value[active] = found[:, 4 * number : 4 * number + 4].copy().view(np.uint32)[:, 0]
                self._store(register, value, active)
            return
        values = np.stack([self._value(register)[active] for register in registers], 1)
        if name in ("STG", "ST", "STS"):
            memory[index] = np.ascontiguousarray(values).view(np.uint8)[:, :size]
            return
        for lane, place in enumerate(index):  # ATOMS and REDG
            if "MAX" not in instruction.modifiers:
                raise NotImplementedError(f"{name} {instruction.modifiers}")
            memory[place] = np.maximum(memory[place].copy().view(np.uint32), values[lane]).view(np.uint8)

    def _address(self, text: str) -> np.ndarray:
        """Of [R2.64+0x10], desc[UR4][R2.64+UR8+0x10], [R3+UR5], [R3.X4+0x10]."""
        total = np.zeros(32, np.uint64)
        for part in text[text.rindex("[") + 1 : -1].split("+"):
            if part.startswith(("-0x", "0x")):
                total = total + np.uint64(int(part, 16) % 2**64)
            elif part.endswith(".64"):
                total = total + self._pair(part.removesuffix(".64"))
            elif ".X" in part:
                register, factor = part.split(".X")
                total = total + self._value(register).astype(np.uint64) * np.uint64(factor)
            else:
                total = total + self._value(part.removesuffix(".U32")).astype(np.uint64)
        return total

    def _half(self, text: str, half: int) -> Lanes:
        if text == "SRZ":
            return np.zeros(32, np.uint32)
        place = text.split("[")[-1].rstrip("]")
        offset = 0 if place == "RZ" else int(place, 16)
        return np.full(32, self._block.constant(offset + 4 * half), np.uint32)

    def _pair(self, text: str) -> np.ndarray:
        text = text.removesuffix(".reuse")
        if text in ("RZ", "URZ"):
            return np.zeros(32, np.uint64)
        if text.startswith("c["):
            return joined(self._half(text, 0), self._half(text, 1))
        return joined(self._value(text), self._value(_next(text)))

    def _predicate(self, text: str) -> Lanes:
        name, inverted = text.removeprefix("!"), text.startswith("!")
        value = np.ones(32, bool) if name.endswith("T") else self._predicates[name[:-1]][int(name[-1])]
        return ~value if inverted else value

    def _value(self, text: str, as_float: bool = False, name: str = "") -> Any:
        text = text.removesuffix(".reuse")
        if re.fullmatch(r"!?U?P[0-7T]", text):
            return self._predicate(text)
        if text.startswith(("~", "|")):
            value = self._value(text.strip("~|"), as_float)
            return ~value if text[0] == "~" else value & np.uint32(0x7FFFFFFF)
        if text.startswith("-") and not re.match(r"-(\d|INF|QNAN)", text):
            value = self._value(text[1:], as_float)
            if as_float:
                return value ^ np.uint32(0x80000000)
            return 2**32 - value.astype(np.int64) if name.endswith("IADD3") else (~value + np.uint32(1))
        if _is_register(text):
            text = text.removesuffix(".H0_H0")
            if text in ("RZ", "URZ", "SRZ"):
                return np.zeros(32, np.uint32)
            return self._registers[text.rstrip("0123456789")][int(text.lstrip("UR"))]
        if text.startswith("c["):
            return self._half(text, 0)
        if text.startswith("SR_"):
            return self._special[text]
        if "0x" in text:
            return np.full(32, int(text, 16) % 2**32, np.uint32)
        return bits(np.full(32, float(text.replace("QNAN", "nan")), np.float32))

    def _store(self, text: str, value: Any, active: Lanes) -> None:
        if text in ("RZ", "URZ", "PT", "UPT"):
            return
        if re.fullmatch(r"U?P[0-7]", text):
            target: np.ndarray = self._predicates[text[:-1]][int(text[-1])]
        else:
            target = self._registers[text.rstrip("0123456789")][int(text.lstrip("UR"))]
        if text.startswith("U"):
            target[:] = value[np.argmax(active)] if active.any() else target
        else:
            target[active] = value[active]


def _is_register(text: str) -> bool:
    return re.fullmatch(r"(U?R(\d+|Z)|SRZ)(\.H0_H0)?", text) is not None


def _next(register: str) -> str:
    name = register.rstrip("0123456789")
    return register if register in ("RZ", "URZ") else f"{name}{int(register[len(name) :]) + 1}"


def _target_count(instruction: Instruction) -> int:
    """How many operands are targets: a register and predicates behind it, or two predicates."""
    operands, name = instruction.operands, instruction.name
    if name in ("ISETP", "UISETP", "FSETP", "PLOP3", "UPLOP3"):
        return 2
    if name == "FCHK":
        return 1
    if name in ("LOP3", "ULOP3") and not _is_register(operands[0]):
        return 2
    count = 1
    if name in ("IADD3", "UIADD3", "LEA", "ULEA", "LOP3", "ULOP3", "IMAD"):
        while re.fullmatch(r"U?P[0-7T]", operands[count]):
            count += 1
    return count


def _predicates_first(results: list[Any]) -> list[Any]:
    """LOP3 P0, RZ, ...: its predicate stands before its register."""
    return results if results[0].dtype == bool else [results[1], results[0]]
