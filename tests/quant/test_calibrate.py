"""Calibration: constant, mergeable, resumable, and loud about values that are not numbers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sodeploy.calib_data import open_dataset
from sodeploy.errors import UserError
from sodeploy.quant.calibration import inspect_graph, parts
from sodeploy.quant.calibration.blocked import block_channels
from sodeploy.quant.calibration.channels import Channels
from sodeploy.quant.calibration.histogram import add_up, count
from sodeploy.quant.calibration.inspect_graph import as_input, opened
from sodeploy.quant.calibration.observer import calibrate, gather, observed_tensors
from sodeploy.quant.calibration.parts import GraphInParts
from sodeploy.quant.calibration.statistics import Statistics, fixed_point, load_statistics
from sodeploy.quant.graph import Network, load_network


def assert_equal(a: Statistics, b: Statistics) -> None:
    assert a.network == b.network
    assert a.images == b.images
    assert a.histograms.keys() == b.histograms.keys()
    for tensor, histogram in a.histograms.items():
        other = b.histograms[tensor]
        assert np.array_equal(histogram.counts, other.counts), tensor
        assert (histogram.maximum, histogram.signed) == (other.maximum, other.signed)
    assert a.half.keys() == b.half.keys()
    for tensor, histogram in a.half.items():
        assert np.array_equal(histogram.counts, b.half[tensor].counts), tensor
    assert a.channel_sums.keys() == b.channel_sums.keys()
    for tensor, sums in a.channel_sums.items():
        assert np.array_equal(sums, b.channel_sums[tensor]), tensor


@pytest.mark.parametrize("part_bytes", [1, 20_000, 10**9])
def test_a_network_in_parts_computes_the_same(
    unet: Network, pictures: list, statistics: Statistics, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", part_bytes)
    assert_equal(statistics, calibrate(unet, pictures))


@pytest.mark.parametrize("cores", [1, 3])
def test_the_number_of_cores_does_not_matter(
    unet: Network, pictures: list, statistics: Statistics, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_graph, "usable_cores", lambda: cores)
    assert_equal(statistics, calibrate(unet, pictures))


def test_large_networks_run_one_image_at_a_time(
    unet: Network, pictures: list, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_graph, "usable_cores", lambda: 3)
    assert inspect_graph.images_at_a_time(unet.model) == 3
    monkeypatch.setattr(inspect_graph, "_LARGE", 1)
    assert inspect_graph.images_at_a_time(unet.model) == 1
    assert_equal(statistics, calibrate(unet, pictures))


def test_order_does_not_matter(unet: Network, pictures: list, statistics: Statistics) -> None:
    assert_equal(statistics, calibrate(unet, pictures[::-1]))


def test_shards_merge_into_the_whole(unet: Network, pictures: list, statistics: Statistics) -> None:
    first, second = calibrate(unet, pictures[:2]), calibrate(unet, pictures[2:])
    first.merge(second)
    assert_equal(statistics, first)


def test_a_saved_part_is_completed(unet: Network, pictures: list, statistics: Statistics, tmp_path: Path) -> None:
    calibrate(unet, pictures[:3]).save(tmp_path / "part.npz")
    resumed = calibrate(unet, pictures, load_statistics(tmp_path / "part.npz"))
    assert_equal(statistics, resumed)


def test_the_same_image_counts_once(unet: Network, pictures: list, statistics: Statistics) -> None:
    renamed = [replace(picture, name="copy") for picture in pictures]
    assert_equal(statistics, calibrate(unet, [*pictures, *renamed]))


def test_merging_refuses_the_same_image_twice(statistics: Statistics) -> None:
    copy = Statistics(statistics.network, images=dict(statistics.images))
    with pytest.raises(UserError, match=r"same 6 image.*picture"):
        copy.merge(statistics)


def test_merging_refuses_another_network(statistics: Statistics) -> None:
    with pytest.raises(UserError, match="two different networks"):
        Statistics("another").merge(statistics)


def test_only_tensors_with_values_of_their_own_are_observed(unet: Network) -> None:
    assert observed_tensors(unet) == ["image", "a", "b", "c", "total", "d", "head", "saliency"]


def test_channel_means_are_those_of_the_network(unet: Network, pictures: list, statistics: Statistics) -> None:
    look = opened(unet.model, ["a"])
    values = [look(as_input(picture, unet.contract))[0].mean(axis=(0, 2, 3)) for picture in pictures]
    pooled = statistics.channel_means("pooled")
    assert statistics.channel_means("joined")[16:] == pytest.approx(np.mean(values, axis=0), abs=1e-5)
    assert pooled.shape == (16,)
    assert np.all(pooled >= np.mean(values, axis=0) - 1e-5)  # a maximum is no less than a mean


def test_means_are_exact(unet: Network, pictures: list) -> None:
    tensors = ["image", "a", "pooled", "joined"]
    look = opened(unet.model, tensors)
    counted = calibrate(unet, pictures[:1])
    for tensor, values in zip(tensors, look(as_input(pictures[0], unet.contract)), strict=True):
        if tensor in counted.channel_sums:
            expected = values.mean(axis=(0, 2, 3), dtype=np.float64)
            assert counted.channel_means(tensor) == pytest.approx(expected, abs=2**-24), tensor


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 3, 5, 7), 1), ((4, 10), -1), ((1, 6, 300), -1), ((3, 5000), -1), ((1, 2), 1)]
)
def test_channels_of_any_layout(shape: tuple[int, ...], axis: int) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    channels = Channels(values, axis, len(shape))
    add_up(channels.rows, channels.sums)
    others = tuple(other for other in range(len(shape)) if other != axis % len(shape))
    assert channels.means() == pytest.approx(values.mean(axis=others, dtype=np.float64), abs=1e-12)
    again = Channels(values, axis, len(shape))
    counted = count(again.rows, again.sums)
    assert np.array_equal(again.sums, channels.sums)
    assert counted.low == values.min()
    assert np.array_equal(counted.counts, count(values).counts)


def test_a_tensor_in_blocks_has_the_values_of_the_ordered_one(unet: Network, pictures: list) -> None:
    image = as_input(pictures[0], unet.contract)
    wanted = ["pooled", *observed_tensors(unet)[1:]]
    ordered, unordered = (
        dict(next(GraphInParts(unet.model, wanted, ordered=flag).run(image))) for flag in (True, False)
    )
    assert ordered.keys() == unordered.keys() == set(wanted)
    in_blocks = [name for name, values in unordered.items() if values.ndim == 5]
    assert in_blocks or not block_channels()
    for name, values in ordered.items():
        found = unordered[name]
        if name in in_blocks:
            found = found.transpose(0, 1, 4, 2, 3).reshape(values.shape)
        assert np.array_equal(found, values), name
        mean = Channels(unordered[name], 1, 4)
        add_up(mean.rows, mean.sums)
        assert mean.means() == pytest.approx(values.mean(axis=(0, 2, 3), dtype=np.float64), abs=1e-12), name


@pytest.mark.filterwarnings("error")
def test_means_beyond_any_use_neither_warn_nor_wrap() -> None:
    sums = fixed_point(np.array([1.5, 3e38, -np.inf, np.nan], np.float32))
    assert sums.tolist() == [3 * 2**23, 2**53, -(2**53), 0]


def test_a_value_that_is_not_finite_names_image_and_tensor(unet_file: Path, pictures: list, tmp_path: Path) -> None:
    model = onnx.load(unet_file)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "b.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full((16, 4, 3, 3), 3e38, np.float32), "b.weight"))
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(UserError, match=r"picture 0, tensor b: \d+ of 4096 values are NaN or infinite"):
        calibrate(load_network(tmp_path / "broken.onnx"), pictures)


def test_no_images(unet: Network) -> None:
    with pytest.raises(UserError, match="holds no image"):
        calibrate(unet, [])


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_broken_file_of_statistics(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npz holds no calibration statistics"):
        load_statistics(path)


class TestCommand:
    @pytest.fixture
    def images(self, pictures: list, tmp_path: Path) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for index, picture in enumerate([*pictures, pictures[0]]):  # one of them twice
            cv2.imwrite(str(folder / f"{index}.png"), picture.image())
        return folder

    def run(self, repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        script = repository / "quant" / "calibrate.py"
        return subprocess.run(
            [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, check=False
        )

    def test_shards_counted_apart_are_the_whole(
        self, repository: Path, unet_file: Path, images: Path, tmp_path: Path
    ) -> None:
        parts = [tmp_path / f"part{part}.npz" for part in (1, 2)]
        for part, file in enumerate(parts, start=1):
            done = self.run(repository, unet_file, "--calib", images, "--shard", f"{part}/2", "--output", file)
            assert done.returncode == 0, done.stderr
            assert len(load_statistics(file).images) == 3
        done = self.run(repository, "--merge", *parts, "--output", tmp_path / "all.npz")
        assert done.returncode == 0, done.stderr
        assert "6 images" in done.stderr
        whole = calibrate(load_network(unet_file), open_dataset(images, masks=False))
        assert_equal(load_statistics(tmp_path / "all.npz"), whole)

    def test_a_shard_goes_on_where_it_stood(self, unet: Network, pictures: list, tmp_path: Path) -> None:
        calibrate(unet, pictures[:2]).save(tmp_path / "x.npz")
        assert_equal(gather(unet, pictures, tmp_path / "x.npz"), calibrate(unet, pictures))

    def test_bad_input_is_one_line(self, repository: Path, unet_file: Path, images: Path, tmp_path: Path) -> None:
        whole = tmp_path / "whole.npz"
        calibrate(load_network(unet_file), open_dataset(images, masks=False)).save(whole)
        for arguments, message in (
            ([unet_file, "--calib", images, "--shard", "3/2"], "--shard 3/2 is not a part such as 1/4"),
            ([unet_file, "--calib", images, "--shard", "half"], "--shard half is not a part"),
            ([unet_file, unet_file, "--calib", images], "give one ONNX file and --calib DATA"),
            (["--merge", whole, whole], "both statistics counted the same 6 image(s)"),
            (["--merge", whole, unet_file], "holds no calibration statistics"),
            (["--merge", whole, "--calib", images], "leave --calib, --shard and --ray out"),
        ):
            done = self.run(repository, *arguments, "--output", tmp_path / "out.npz")
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1, done.stderr
            assert message in done.stderr
        assert not (tmp_path / "out.npz").exists()
