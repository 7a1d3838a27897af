"""The CUDA kernels against the CPU path: compiled by g++ (emulated_device.py), and on the GPU where there is one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_device import EmulatedMemory, compile_kernels, peek, poke
from hypothesis import given, settings
from hypothesis import strategies as st

from sodeploy.errors import UserError
from sodeploy.runtime.composition import STYLES, Style, compose
from sodeploy.runtime.contract import Contract
from sodeploy.runtime.errors import OutOfDeviceMemory
from sodeploy.runtime.gpu import processing as cuda_processing
from sodeploy.runtime.gpu.buffers import Buffer
from sodeploy.runtime.gpu.processing import CudaProcessing
from sodeploy.runtime.processing import postprocess, preprocess

MakeContract = Callable[..., Contract]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIZES = [
    (1, 1),
    (3, 7),
    (37, 53),
    (64, 48),
    (101, 200),
    (128, 96),
    (40, 400),
]  # (H, W); 16x24 doubled, enlarged, shrunk


def images(sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def network_input(
    device: Any, contract: Contract, batch: list[np.ndarray], size: tuple[int, int], dtype: type = np.float32
) -> np.ndarray:
    """(N, 3, h, w) as the kernels make it."""
    stream = device.stream()
    processing = CudaProcessing(device, contract, stream, input_dtype=dtype)
    address = processing.stage(batch, size).input
    processing.preprocess()
    made = peek(device, address, (len(batch), 3, *size), dtype, stream)
    processing.release()
    return made


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 130), st.integers(1, 300)), min_size=1, max_size=3),
    target=st.tuples(st.integers(1, 60), st.integers(1, 150)),
    cells=st.sampled_from([None, (1, 1), (2, 2), (2, 3), (3, 3), (5, 2)]),
    interpolation=st.sampled_from(["linear", "area"]),
    seed=st.integers(0, 9),
)
def test_the_network_input_is_the_cpu_paths_to_the_bit(
    device: Any,
    sizes: list[tuple[int, int]],
    target: tuple[int, int],
    cells: tuple[int, int] | None,
    interpolation: str,
    seed: int,
) -> None:
    if cells:  # whole ratios, cv2's special cases
        sizes = [*sizes, (target[0] * cells[0], target[1] * cells[1])]
    contract = Contract(network="tiny", height=target[0], width=target[1], interpolation=interpolation, **IMAGENET)  # type: ignore[arg-type]
    batch = images(sizes, seed)
    made = network_input(device, contract, batch, target)
    for image, result in zip(batch, made, strict=True):
        np.testing.assert_array_equal(result, preprocess(image, contract))


@pytest.mark.parametrize("interpolation", ["linear", "area"])
@pytest.mark.parametrize("size", [(270, 480), (1080, 1920), (2, 4100), (3, 9000)])
def test_sizes_that_fill_a_block_s_memory(
    device: Any, make_contract: MakeContract, interpolation: str, size: tuple[int, int]
) -> None:
    contract = make_contract(height=2, width=140 if size[1] < 3000 else 5, interpolation=interpolation)
    (image,) = images([size])
    made = network_input(device, contract, [image], (contract.height, contract.width))
    np.testing.assert_array_equal(made[0], preprocess(image, contract))


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
@pytest.mark.parametrize("divide_by", ["255", "max"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_way_to_normalise(
    device: Any, make_contract: MakeContract, colour: str, divide_by: str, dtype: type
) -> None:
    contract = make_contract(colour=colour, divide_by=divide_by, **IMAGENET)
    batch = [*images(SIZES), np.full((9, 9, 3), 77, np.uint8), np.zeros((30, 40, 3), np.uint8)]
    made = network_input(device, contract, batch, (16, 24), dtype)
    for image, result in zip(batch, made, strict=True):
        np.testing.assert_array_equal(result, preprocess(image, contract).astype(dtype))


def through(device: Any, contract: Contract, outputs: np.ndarray, batch: list[np.ndarray], style: Style):
    """The pictures of `outputs` (N, 1, h, w), as the product would make them."""
    stream = device.stream()
    processing = CudaProcessing(device, contract, stream, style, output_dtype=outputs.dtype.type)
    address = processing.stage(batch, outputs.shape[2:]).output
    processing.preprocess()
    poke(device, address, outputs, stream)
    processing.postprocess()
    device.wait(stream)
    pictures = processing.pictures()
    processing.release()
    return pictures


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 300)), min_size=1, max_size=3),
    map_size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    output=st.sampled_from(["probability", "logit"]),
    stretch=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float16]),
    seed=st.integers(0, 9),
)
def test_maps_are_within_one_grey_level_of_the_cpu_path(
    device: Any,
    sizes: list[tuple[int, int]],
    map_size: tuple[int, int],
    output: str,
    stretch: bool,
    dtype: type,
    seed: int,
) -> None:
    contract = Contract(network="tiny", height=8, width=8, output=output, stretch=stretch, **IMAGENET)  # type: ignore[arg-type]
    outputs = np.random.default_rng(seed).normal(0.5, 2, (len(sizes), 1, *map_size)).astype(dtype)
    for made, raw, size in zip(through(device, contract, outputs, images(sizes), "map"), outputs, sizes, strict=True):
        expected = postprocess(raw[0].astype(np.float32), contract, size)
        assert np.abs(made.astype(int) - expected).max() <= 1


def test_grey_levels_differ_rarely(device: Any, make_contract: MakeContract) -> None:
    outputs = np.random.default_rng(1).normal(0, 3, (1, 1, 80, 80)).astype(np.float32)
    contract = make_contract(output="logit", stretch=True)
    (made,) = through(device, contract, outputs, images([(270, 481)]), "map")
    assert np.mean(made != postprocess(outputs[0, 0], contract, (270, 481))) < 0.001


@pytest.mark.parametrize("style", STYLES)
def test_pictures_are_the_cpu_paths_to_the_byte(device: Any, make_contract: MakeContract, style: Style) -> None:
    outputs = np.random.default_rng(3).random((len(SIZES), 1, 16, 24), np.float32)
    batch = images(SIZES)
    masks = through(device, make_contract(), outputs, batch, "map")
    for made, image, mask in zip(through(device, make_contract(), outputs, batch, style), batch, masks, strict=True):
        np.testing.assert_array_equal(made, compose(image, mask, style))


@pytest.mark.parametrize("size", [(3, 5), (10, 8)])
def test_a_map_too_large_for_a_block_s_memory(device: Any, make_contract: MakeContract, size: tuple[int, int]) -> None:
    outputs = np.random.default_rng(3).random((1, 1, 300, 400), np.float32)
    contract = make_contract(stretch=True)
    (made,) = through(device, contract, outputs, images([size]), "map")
    assert np.abs(made.astype(int) - postprocess(outputs[0, 0], contract, size)).max() <= 1


def test_pictures_are_the_same_however_many_rows_a_thread_makes(
    device: Any, make_contract: MakeContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = np.random.default_rng(3).random((len(SIZES), 1, 16, 24), np.float32)
    few = through(device, make_contract(), outputs, images(SIZES), "overlay")
    monkeypatch.setattr(cuda_processing, "_FEW_PIXELS", 0)
    for made, expected in zip(through(device, make_contract(), outputs, images(SIZES), "overlay"), few, strict=True):
        np.testing.assert_array_equal(made, expected)


def test_a_panorama_does_not_change_the_blocks_of_its_batch(make_contract: MakeContract) -> None:
    contract = make_contract(height=4, width=64, interpolation="area")
    sent: list[np.ndarray] = []

    class Noting:
        def allocate(self, size: int) -> EmulatedMemory:
            return EmulatedMemory(size)

        def pinned(self, size: int) -> np.ndarray:
            return np.empty(size, np.uint8)

        def upload(self, address: int, data: np.ndarray, stream: Any) -> None:
            sent.append(data)

        def launch(self, *_: Any) -> None:
            pass

    processing = CudaProcessing(Noting(), contract, None)  # type: ignore[arg-type]
    processing.stage(images([(8, 640), (8, 20000)]))
    processing.preprocess()
    place = processing._jobs - processing._up.address
    jobs = sent[0][place : place + 2 * cuda_processing._IMAGE.itemsize].view(cuda_processing._IMAGE)
    assert [int(job["stretch"]) for job in jobs] == [128, 8]


def test_a_constant_map_has_nothing_to_stretch(device: Any, make_contract: MakeContract) -> None:
    outputs = np.full((1, 1, 16, 24), 0.25, np.float32)
    (made,) = through(device, make_contract(stretch=True), outputs, images([(10, 10)]), "map")
    assert (made == 64).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_map_is_an_error_and_the_others_arrive(device: Any, make_contract: MakeContract, value: float) -> None:
    outputs = np.random.default_rng(3).random((3, 1, 16, 24), np.float32)
    outputs[1, 0, 15, 23] = value
    first, broken, last = through(device, make_contract(), outputs, images(SIZES[2:5]), "map")
    assert isinstance(broken, UserError)
    assert "NaN or infinite" in str(broken)
    assert first.shape == SIZES[2]
    assert last.shape == SIZES[4]


def test_infinite_logits_are_certain_not_broken(device: Any, make_contract: MakeContract) -> None:
    outputs = np.full((1, 1, 16, 24), np.inf, np.float32)
    outputs[..., 12:] = -np.inf
    (made,) = through(device, make_contract(output="logit"), outputs, images([(16, 24)]), "map")
    np.testing.assert_array_equal(made, np.repeat(np.uint8([[255, 0]]), 12, 1).repeat(16, 0))


def test_buffers_serve_batches_of_any_size_in_turn(device: Any, make_contract: MakeContract) -> None:
    contract = make_contract(**IMAGENET)
    stream = device.stream()
    processing = CudaProcessing(device, contract, stream)
    for seed, sizes in enumerate([SIZES[:2], SIZES, SIZES[3:4]]):
        batch = images(sizes, seed)
        address = processing.stage(batch).input
        processing.preprocess()
        made = peek(device, address, (len(batch), 3, 16, 24), np.float32, stream)
        np.testing.assert_array_equal(made, np.stack([preprocess(image, contract) for image in batch]))
    processing.release()


def test_an_image_too_wide_for_a_block_is_refused(device: Any, make_contract: MakeContract) -> None:
    with pytest.raises(UserError, match="5000 pixels wide cannot be shrunk to 1 on the GPU"):
        network_input(device, make_contract(interpolation="area"), images([(1, 5000)]), (1, 1))


def test_the_kernels_stay_within_their_memory(tmp_path: Path, repository: Path) -> None:
    """The tests above once more under AddressSanitizer and UndefinedBehaviorSanitizer."""
    if "SODEPLOY_TEST_KERNELS" in os.environ:
        pytest.skip("runs inside itself")
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the kernels")
    runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("this g++ has no libasan")
    sanitize = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    library = compile_kernels(tmp_path / "sanitized.so", *sanitize)
    environment = os.environ | {
        "SODEPLOY_TEST_KERNELS": str(library),
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "OMP_NUM_THREADS": "1",
    }
    chosen = [
        "-k",
        "emulated and (normalise or pictures_are or broken_map or fill_a_block)",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    command = [sys.executable, "-m", "pytest", "-x", "-o", "addopts=", __file__, *chosen]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_buffers_grow_by_half_where_there_is_room() -> None:
    """Images that are each a little larger than the last must not take memory anew each time."""
    taken: list[int] = []

    class Cramped:
        def allocate(self, size: int) -> EmulatedMemory:
            if size > 20 * 4096:
                raise OutOfDeviceMemory("no room")
            taken.append(size // 4096)
            return EmulatedMemory(size)

    buffer = Buffer(Cramped())  # type: ignore[arg-type]
    for pages in (10, 11, 14, 15, 16, 20):
        buffer.reserve(pages * 4096)
    assert taken == [10, 15, 16, 20]  # 24 pages are refused, 20 are not
    with pytest.raises(OutOfDeviceMemory):
        buffer.reserve(21 * 4096)
