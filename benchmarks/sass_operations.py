"""The instructions of NVIDIA's machine code (SASS) that our kernels consist of, for 32 lanes at a time.

NVIDIA documents the names of the instructions (CUDA Binary Utilities, chapter Instruction Set Reference), but not all
that they do. What they do stands here as far as our kernels need it. It is checked by the results: kernels that run on
these instructions give the bytes of the same kernels compiled by g++ (tests/benchmarks/test_code_bound.py).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Lanes = np.ndarray  # (32,) uint32, or bool for a predicate
Operation = Callable[[frozenset[str], list[Any]], Any]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Put a function into the table: (modifiers, source operands) -> what goes into the targets."""

    def put(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return put


def floats(value: Lanes) -> np.ndarray:
    return value.view(np.float32)


def bits(value: np.ndarray) -> Lanes:
    return np.ascontiguousarray(value, np.float32).view(np.uint32)


def wide(value: Lanes, signed: bool = False) -> np.ndarray:
    """As 64 bits."""
    return value.view(np.int32).astype(np.int64) if signed else value.astype(np.int64)


def low(value: np.ndarray) -> Lanes:
    return (value & 0xFFFFFFFF).astype(np.uint32)


def pair(value: np.ndarray) -> list[Lanes]:
    """The two halves of 64 bits."""
    unsigned = value.astype(np.uint64)
    return [low(unsigned), (unsigned >> np.uint64(32)).astype(np.uint32)]


def joined(lower: Lanes, upper: Lanes) -> np.ndarray:
    return lower.astype(np.uint64) | upper.astype(np.uint64) << np.uint64(32)


@operation("MOV", "UMOV", "LDC", "ULDC", "S2R", "S2UR", "R2UR", "CS2R")
def _move(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return sources[0]


@operation("FADD")
def _add(modifiers: frozenset[str], sources: list[Any]) -> Any:
    total = floats(sources[0]) + floats(sources[1])
    return bits(total.clip(0, 1) if "SAT" in modifiers else total)


@operation("FMUL")
def _multiply(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return bits(floats(sources[0]) * floats(sources[1]))


@operation("FFMA")
def _fused(modifiers: frozenset[str], sources: list[Any]) -> Any:
    if modifiers & {"RZ", "RM", "RP"}:
        raise NotImplementedError("FFMA rounds to nearest only")
    a, b, c = (floats(source).astype(np.float64) for source in sources[:3])
    return bits((a * b + c).astype(np.float32))


@operation("MUFU")
def _special(modifiers: frozenset[str], sources: list[Any]) -> Any:
    (kind,) = modifiers & {"RCP", "EX2", "RSQ"}
    value = floats(sources[0]).astype(np.float64)
    with np.errstate(all="ignore"):
        return bits({"RCP": 1 / value, "EX2": np.exp2(value), "RSQ": value**-0.5}[kind].astype(np.float32))


@operation("FMNMX")
def _float_minimum(modifiers: frozenset[str], sources: list[Any]) -> Any:
    a, b = floats(sources[0]), floats(sources[1])
    return bits(np.where(sources[2], np.fmin(a, b), np.fmax(a, b)))


@operation("FRND")
def _round(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return bits(np.rint(floats(sources[0])))


@operation("FCHK")
def _check_divide(modifiers: frozenset[str], sources: list[Any]) -> Any:
    """True where the fast way of a division may be wrong: exponents near the ends of the range."""
    a, b = ((source >> 23 & 255).astype(np.int32) for source in sources[:2])
    return (b == 0) | (b > 252) | (a == 255) | (a - b > 125) | (a - b < -125) | ((a < 24) & (a != 0))


_COMPARE = {"GE": np.greater_equal, "GT": np.greater, "LE": np.less_equal, "LT": np.less,
            "EQ": np.equal, "NE": np.not_equal}  # fmt: skip


def _combined(found: np.ndarray, other: np.ndarray, modifiers: frozenset[str]) -> Any:
    both = [found, ~found]
    if "OR" in modifiers:
        return [value | other for value in both]
    return [value ^ other for value in both] if "XOR" in modifiers else [value & other for value in both]


@operation("FSETP")
def _compare_floats(modifiers: frozenset[str], sources: list[Any]) -> Any:
    a, b = floats(sources[0]), floats(sources[1])
    (kind,) = {name.removesuffix("U") for name in modifiers} & set(_COMPARE)
    found = _COMPARE[kind](a, b)
    if kind + "U" in modifiers:
        found |= np.isnan(a) | np.isnan(b)
    elif kind == "NE":
        found &= ~(np.isnan(a) | np.isnan(b))
    return _combined(found, sources[2], modifiers)


@operation("ISETP", "UISETP")
def _compare(modifiers: frozenset[str], sources: list[Any]) -> Any:
    signed = "U32" not in modifiers
    a, b = wide(sources[0], signed), wide(sources[1], signed)
    (kind,) = modifiers & set(_COMPARE)
    found = _COMPARE[kind](a, b)
    if "EX" in modifiers:  # the upper halves: where they are equal, the lower halves have decided
        found = np.where(a == b, sources[3], found)
    return _combined(found, sources[2], modifiers)


@operation("IADD3", "UIADD3")
def _add_three(modifiers: frozenset[str], sources: list[Any]) -> Any:
    total = sum(wide(source) for source in sources[:3])
    for carry in sources[3:] if "X" in modifiers else []:
        total = total + carry
    return [low(total), total >> 32 > 0, total >> 32 > 1]


@operation("VIADD")
def _add_two(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return low(wide(sources[0]) + wide(sources[1]))


@operation("VIADDMNMX")
def _add_minimum(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return _minimum(modifiers, [low(wide(sources[0]) + wide(sources[1])), *sources[2:]])


@operation("VIMNMX")
def _minimum(modifiers: frozenset[str], sources: list[Any]) -> Any:
    a, b = (wide(source, "U32" not in modifiers) for source in sources[:2])
    return low(np.where(sources[2], np.minimum(a, b), np.maximum(a, b)))


@operation("IMAD", "UIMAD")
def _multiply_add(modifiers: frozenset[str], sources: list[Any]) -> Any:
    signed = "U32" not in modifiers
    if "WIDE" in modifiers:
        product = (wide(sources[0], signed) * wide(sources[1], signed)).astype(np.uint64)
        return pair(product + sources[2])
    if "HI" in modifiers:
        product = wide(sources[0], signed).astype(object) * wide(sources[1], signed).astype(object)
        return low(np.array([int(value) >> 32 for value in product], np.int64) + wide(sources[2]))
    product = wide(sources[0], True) * wide(sources[1], True) + wide(sources[2], True)
    return low(product + (sources[3] if "X" in modifiers else 0))


@operation("LEA", "ULEA")
def _shift_add(modifiers: frozenset[str], sources: list[Any]) -> Any:
    a, b = sources[:2]
    if "HI" not in modifiers:
        total = wide(low(wide(a) << wide(sources[2]))) + wide(b)
        return [low(total), total >> 32 > 0]
    if "SX32" in modifiers:
        whole, shift = wide(a, True).astype(np.uint64), wide(sources[2])
        carries = sources[3:]
    else:
        whole, shift = joined(a, sources[2]), wide(sources[3])
        carries = sources[4:]
    total = wide(pair(whole << shift.astype(np.uint64))[1]) + wide(b)
    return [low(total + (carries[0] if "X" in modifiers else 0)), total >> 32 > 0]


@operation("SHF", "USHF")
def _shift(modifiers: frozenset[str], sources: list[Any]) -> Any:
    lower, amount, upper = sources[:3]
    most = 31 if "W" in modifiers else 63
    shift = (amount & 31 if "W" in modifiers else np.minimum(amount, most)).astype(np.uint64)
    whole = joined(lower, upper)
    if "L" in modifiers:
        return pair(whole << shift)[1 if "HI" in modifiers else 0]
    if "S32" in modifiers or "S64" in modifiers:
        whole = (whole.view(np.int64) >> shift.astype(np.int64)).view(np.uint64)
    else:
        whole = whole >> shift
    return pair(whole)[1 if "HI" in modifiers else 0]


@operation("PRMT", "UPRMT")
def _permute(modifiers: frozenset[str], sources: list[Any]) -> Any:
    a, selector, b = sources[:3]
    whole, result = joined(a, b), np.zeros(32, np.uint64)
    for place in range(4):
        choice = (selector >> np.uint32(4 * place) & 15).astype(np.uint64)
        byte = whole >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        byte = np.where(choice & np.uint64(8), (byte >> np.uint64(7)) * np.uint64(255), byte)
        result |= byte << np.uint64(8 * place)
    return low(result)


@operation("LOP3", "ULOP3")
def _logic(modifiers: frozenset[str], sources: list[Any]) -> Any:
    a, b, c = sources[:3]
    table, result = int(sources[3][0]), np.zeros(32, np.uint32)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return [result, result != 0]


@operation("PLOP3", "UPLOP3")
def _logic_of_predicates(modifiers: frozenset[str], sources: list[Any]) -> Any:
    a, b, c = sources[:3]
    results = []
    for table in (int(source[0]) for source in sources[3:5]):
        result = np.zeros(32, bool)
        for row in range(8):
            if table >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        results.append(result)
    return results


@operation("SEL", "FSEL", "USEL")
def _select(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return np.where(sources[2], sources[0], sources[1])


@operation("IABS")
def _absolute(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return low(np.abs(wide(sources[0], True)))


@operation("I2FP", "I2F")
def _to_float(modifiers: frozenset[str], sources: list[Any]) -> Any:
    value = wide(sources[0], "U32" not in modifiers and "RP" not in modifiers)
    result = value.astype(np.float32)
    if "RP" in modifiers:
        result = np.where(result.astype(np.int64) < value, np.nextafter(result, np.float32(np.inf)), result)
    return bits(result)


@operation("F2I")
def _to_integer(modifiers: frozenset[str], sources: list[Any]) -> Any:
    value = np.nan_to_num(floats(sources[0]).astype(np.float64))
    value = np.trunc(value) if "TRUNC" in modifiers else np.rint(value)
    return low(value.clip(*((0, 2**32 - 1) if "U32" in modifiers else (-(2**31), 2**31 - 1))).astype(np.int64))


@operation("HADD2")
def _half_to_float(modifiers: frozenset[str], sources: list[Any]) -> Any:
    """HADD2.F32 R, -RZ, R.H0_H0: the lower half of a register as float32."""
    return bits(sources[1].astype(np.uint16).view(np.float16).astype(np.float32))


@operation("F2FP")
def _pack_halves(modifiers: frozenset[str], sources: list[Any]) -> Any:
    with np.errstate(over="ignore"):
        upper, lower = (floats(source).astype(np.float16).view(np.uint16).astype(np.uint32) for source in sources[:2])
    return upper << 16 | lower


@operation("HFMA2")
def _two_halves(modifiers: frozenset[str], sources: list[Any]) -> Any:
    """HFMA2.MMA R, -RZ, RZ, upper, lower: how the compiler writes some constants."""
    upper, lower = (floats(source).astype(np.float16).view(np.uint16).astype(np.uint32) for source in sources[2:4])
    return upper << 16 | lower


@operation("UFLO")
def _highest_bit(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return np.array([int(value).bit_length() - 1 for value in sources[0]], np.int64).astype(np.uint32)


@operation("POPC", "UPOPC")
def _count_bits(modifiers: frozenset[str], sources: list[Any]) -> Any:
    return np.array([int(value).bit_count() for value in sources[0]], np.uint32)
