"""The flicker of several models on one video, with and without smoothing: int8 beside fp32.

    python benchmarks/flicker.py out/u2netp.onnx out/u2netp.int8.cpu.onnx --video clip.mp4
    python benchmarks/flicker.py out/u2netp.onnx out/u2netp.int8.cpu.onnx --pan photo.jpg --frames 50 --noise 1

With `--pan` the frames are computed: a window that moves slowly over a photograph, with the noise of a camera if asked.
The figure is `sodeploy.runtime.video.flicker.Flicker`; "difference" is the mean absolute difference of the maps from
the first model's, in [0, 1].
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import clips
import cv2
import numpy as np

from sodeploy import terminal
from sodeploy.calib_data.images import read_image
from sodeploy.errors import UserError
from sodeploy.runtime.processing import predict
from sodeploy.runtime.session import Session, open_session
from sodeploy.runtime.video.flicker import Flicker
from sodeploy.runtime.video.reader import VideoReader
from sodeploy.runtime.video.smoothing import SMOOTHINGS, smoothed


def main() -> None:
    parser = argparse.ArgumentParser(description="Flicker of several models on one video.")
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files or engines")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path)
    source.add_argument("--pan", type=Path, help="a photograph, over which a window moves")
    parser.add_argument("--frames", type=int, default=50, help="frames, at most")
    parser.add_argument("--noise", type=float, default=0.0, help="with --pan: noise of the camera, in grey levels")
    given = parser.parse_args()
    frames = list(_frames(given.video, given.pan, given.frames, given.noise))
    print(f"{len(frames)} frames of {frames[0].shape[1]} x {frames[0].shape[0]}\n")
    print("| model | precision | difference |" + "".join(f" flicker, {name} |" for name in SMOOTHINGS) + " still |")
    print("| :-- | :-- | --: |" + " --: |" * (len(SMOOTHINGS) + 1))
    reference: list[np.ndarray] = []
    with terminal.talking():
        for path in given.models:
            with open_session(path) as session:
                maps = _maps(session, frames, path.name)
                precision = session.precision
            reference = reference or maps
            differences = [cv2.absdiff(one, other).mean() / 255 for one, other in zip(maps, reference, strict=True)]
            difference = float(np.mean(differences))
            figures = [_flicker(frames, maps, name) for name in SMOOTHINGS]
            values = "".join(f" {figure.value:.5f} |" for figure in figures)
            print(f"| {path.name} | {precision} | {difference:.5f} |{values} {figures[0].still_share:.0%} |")


def _frames(video: Path | None, photo: Path | None, count: int, noise: float) -> Iterator[np.ndarray]:
    if video is not None:
        with VideoReader(video) as reader:
            for _, frame in zip(range(count), reader.frames(), strict=False):
                yield frame.image
    elif photo is not None:
        image = read_image(photo)
        size = (int(image.shape[0] * 0.9), int(image.shape[1] * 0.8))
        for number in range(count):
            yield clips.pan(image, number, size, noise)


def _maps(session: Session, frames: list[np.ndarray], label: str) -> list[np.ndarray]:
    return [predict(frame, session.contract, session.infer) for frame in terminal.progress(frames, label)]


def _flicker(frames: list[np.ndarray], maps: list[np.ndarray], smoothing: str) -> Flicker:
    flicker = Flicker()
    for number, saliency in smoothed(enumerate(maps), smoothing, lambda number: frames[number]):
        flicker.add(frames[number], saliency)
    return flicker


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        terminal.fail(str(error))
