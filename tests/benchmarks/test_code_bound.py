"""The model of the kernels' issue bound: machine code that is run on the CPU."""

import shutil

import code_bound
import numpy as np
import pytest
from code_bound import MachineCode, find_cuobjdump
from kernel_times import benchmark_contract
from sass_machine import Block, Counts, Memory, parse

from sodeploy.errors import UserError
from sodeploy.runtime.composition import STYLES, compose
from sodeploy.runtime.gpu.processing import CudaProcessing
from sodeploy.runtime.processing import postprocess, preprocess

# Every lane adds up the numbers to its own; the lanes leave the loop one after another and meet behind it.
SUMS = """
        Function : sums
    /*0000*/                   S2R R0, SR_TID.X ;            /* 0x0000000000007919 */
    /*0010*/                   LDC.64 R2, c[0x0][0x210] ;
    /*0020*/                   IMAD.WIDE R2, R0, 0x4, R2 ;
    /*0030*/                   CS2R R4, SRZ ;
    /*0040*/                   IADD3 R4, R4, R5, RZ ;
    /*0050*/                   VIADD R5, R5, 0x1 ;
    /*0060*/                   ISETP.GE.AND P0, PT, R0, R5, PT ;
    /*0070*/               @P0 BRA 0x40 ;
    /*0080*/                   ULDC.64 UR4, c[0x0][0x208] ;
    /*0090*/                   STG.E desc[UR4][R2.64], R4 ;
    /*00a0*/                   EXIT ;
"""


def test_lanes_part_and_meet_again_and_everything_is_counted() -> None:
    memory, counts = Memory(1024), Counts()
    place = memory.take(128)
    Block(parse(SUMS)["sums"], memory, counts, (1, 1, 1), (32, 1, 1), (0, 0, 0), np.uint64(place).tobytes()).run()
    np.testing.assert_array_equal(memory.bytes[:128].view(np.uint32), np.cumsum(np.arange(32)))
    assert (counts.issued["IADD3"], counts.issued["STG.E"], counts.issued["EXIT"]) == (32, 1, 1)
    assert (counts.bytes["STG"], counts.sectors["STG"]) == (128, 4)


def test_an_access_outside_of_the_memory_is_an_error() -> None:
    memory = Memory(1024)
    place = memory.take(64) + 512  # beyond
    with pytest.raises(IndexError, match="of 0x100 bytes"):
        Block(parse(SUMS)["sums"], memory, Counts(), (1, 1, 1), (32, 1, 1), (0, 0, 0), np.uint64(place).tobytes()).run()


def test_the_bound_is_the_time_to_issue() -> None:
    counts = Counts()
    warps = code_bound.COUNT * code_bound.MULTIPROCESSORS * int(code_bound.CLOCK // 1_000_000)  # a cycle's worth, 1 us
    counts.issued.update({"FADD": warps, "LOP3.LUT": warps, "STG.128.E": warps})
    found = code_bound.bounds(counts)
    assert found["issue"] == pytest.approx(3 / 4)
    assert (found["float"], found["integer"], found["memory"]) == pytest.approx((1 / 4, 1 / 2, 1))


def test_without_cuobjdump_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="cuobjdump is not installed; install the CUDA toolkit, or: pip install nvidia"):
        find_cuobjdump()


@pytest.fixture(scope="module")
def cuobjdump() -> str:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    try:
        return find_cuobjdump()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["linear", "area"])
def test_the_machine_code_makes_the_cpu_path_s_input(cuobjdump: str, interpolation: str) -> None:
    contract = benchmark_contract((6, 20), interpolation, "255")
    image = np.random.default_rng(0).integers(0, 256, (17, 70, 3), dtype=np.uint8)
    device = MachineCode(cuobjdump, blocks=None)
    processing = CudaProcessing(device, contract, None)
    address = processing.stage([image]).input
    processing.preprocess()
    made = np.empty((3, 6, 20), np.float32)
    device.download(made, address, None)
    np.testing.assert_array_equal(made, preprocess(image, contract))


@pytest.mark.slow
def test_the_machine_code_makes_the_cpu_path_s_pictures(cuobjdump: str) -> None:
    contract = benchmark_contract((9, 12), "linear", "255")
    image = np.random.default_rng(0).integers(0, 256, (21, 40, 3), dtype=np.uint8)
    output = np.random.default_rng(1).random((9, 12), np.float32)
    device = MachineCode(cuobjdump, blocks=None)
    made = {}
    for style in STYLES:
        processing = CudaProcessing(device, contract, None, style)
        address = processing.stage([image]).output
        processing.preprocess()
        device.upload(address, output, None)
        processing.postprocess()
        made[style] = processing.pictures()[0]
    assert np.abs(made["map"].astype(int) - postprocess(output, contract, (21, 40))).max() <= 1
    for style in STYLES:
        np.testing.assert_array_equal(made[style], compose(image, made["map"], style))
