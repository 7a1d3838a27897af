"""The memory that `infer` holds for a video, and whether its sound stays in step, for videos of several lengths.

    python benchmarks/video_memory.py out/u2netp.onnx --seconds 10 60 --output-dir out/video

Each video is computed: a square that moves, and a tone. Each conversion is a process of its own, whose peak of memory
is the kernel's account.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import av
import clips
import process_cost

RATE = 25


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of infer for videos of several lengths.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60], help="lengths of the videos")
    parser.add_argument("--size", default="1280x720", help="WIDTHxHEIGHT of the videos")
    parser.add_argument("--type", default="map", help="kind of picture, see infer --help")
    parser.add_argument("--output-dir", type=Path, required=True)
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    given.output_dir.mkdir(parents=True, exist_ok=True)
    print("| video, s | peak, MiB | s | pictures from, till | sound from, till |")
    print("| --: | --: | --: | :-- | :-- |")
    for seconds in given.seconds:
        source = given.output_dir / f"{seconds}s.mp4"
        image = partial(clips.square, height=height, width=width)
        clips.save_clip(source, seconds * RATE, rate=RATE, image=image, preset="ultrafast")
        target = given.output_dir / f"{seconds}s.{given.type}.{'webm' if given.type == 'rgba' else 'mp4'}"
        infer = ["-m", "sodeploy", "infer", source, "--model", given.model, "--output", target, "--overwrite"]
        choices = ["--type", given.type, "--edges", "keep"]
        cost = process_cost.measure([sys.executable, *infer, *choices], given.output_dir / f"{seconds}s.log")
        spans = f"{_span(target, 'video')} | {_span(target, 'audio')}"
        print(f"| {seconds} | {cost.peak_mib:.0f} | {cost.seconds:.0f} | {spans} |", flush=True)


def _span(path: Path, kind: str) -> str:
    """From the first to the end of the last packet of a stream, in seconds."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        begin = min(packet.pts * packet.time_base for packet in packets)
        end = max((packet.pts + packet.duration) * packet.time_base for packet in packets)
    return f"{float(begin):.3f}, {float(end):.3f}"


if __name__ == "__main__":
    main()
