"""Build an image and run it, without a Docker daemon and without a registry.

    make image-check
    .venv/bin/python docker/image_check.py --target train
    .venv/bin/python docker/image_check.py --engine docker --image sodeploy:cpu    # an image that exists

Debian's base is made by debootstrap and kept in build/image. podman builds in a chroot with the host's network. pip's
settings and the certificates of this machine are secrets of the build. The check compares masks of the container with
masks made here, byte for byte, then starts the service and waits until it is healthy. In the image `train` it exports
the network before. The root file system is read-only, and the user is not the image's. Where a tool is missing, the
check says so and ends with status 0.
"""

import configparser
import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
import typer

from sodeploy import command_line, terminal
from sodeploy.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "image"
RELEASE = "bookworm"  # of Debian: the release of CPU_BASE in the Dockerfile
MIRROR = "http://deb.debian.org/debian"
BASE = f"localhost/sodeploy-debian:{RELEASE}"
TOOLS = ("debootstrap", "podman", "runc")
USER = os.getuid() or 12345  # not the image's; not root, whose files are made by somebody else then
PATIENCE = 300  # seconds until the service must be healthy
NETWORK, SIZE = "u2net_tiny", 128  # pixels; OpenVINO refuses sizes at which a pooling has one pixel
ENGINES = ("onnxruntime", "openvino")
# Left out of the base: names and addresses of this machine, and files that the package manager can fetch again
NOT_IN_BASE = ("etc/resolv.conf", "etc/hostname", "var/cache/apt", "var/lib/apt/lists/*", "var/log/*", "dev/*")


class Target(NamedTuple):
    """A target of the Dockerfile that can be built and run without a GPU.

    Attributes:
        base: the build argument that names its base.
        unwanted: beginnings of the names of packages that it must not hold.
        serves: whether it starts the service, with a health check.
        exports: whether it makes ONNX files.
    """

    base: str
    unwanted: tuple[str, ...] = ()
    serves: bool = False
    exports: bool = False


TargetName = Literal["cpu", "train"]
TARGETS: dict[TargetName, Target] = {
    "cpu": Target("CPU_BASE", unwanted=("torch", "nvidia"), serves=True),
    "train": Target("TRAIN_BASE", exports=True),
}


class Runner(NamedTuple):
    """A program that runs containers, and the options that it needs before and after its word `run`."""

    program: tuple[str, ...]
    limits: tuple[str, ...] = ()

    def container(self, *words: str) -> list[str]:
        """The start of a command line that runs a container as another user, on a read-only root."""
        hardened = ["--read-only", "--tmpfs", "/tmp", "--network", "host", "--user", f"{USER}:{USER}"]
        # The check asks for the health itself: podman needs systemd for it.
        return [*self.program, "run", *self.limits, *hardened, "--no-healthcheck", *words]


def podman() -> Runner:
    """podman with runc. Its own limits may be above those of this process, which cannot always raise them."""
    limits = []
    for name, kind, most in (("nofile", resource.RLIMIT_NOFILE, 65536), ("nproc", resource.RLIMIT_NPROC, 4096)):
        allowed = resource.getrlimit(kind)[1]
        limit = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        limits.append(f"--ulimit={name}={limit}:{limit}")
    return Runner(("podman", "--runtime", "runc"), tuple(limits))


def reason_to_skip() -> str | None:
    """Why the image cannot be built here; None where it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found; as root on Debian or Ubuntu: apt-get install {' '.join(missing)}"
    if os.geteuid() != 0:
        return "debootstrap and builds in a chroot need root"
    return None


def make_base(archive: Path) -> None:
    """A minimal Debian, made by debootstrap, as a tar archive."""
    if archive.is_file():
        return
    terminal.note(f"debootstrap makes {archive}: minutes, once")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        root = Path(folder, "root")
        call(["debootstrap", "--variant=minbase", RELEASE, str(root), MIRROR])
        partial = Path(folder, "base.tar")
        excluded = [f"--exclude=./{path}" for path in NOT_IN_BASE]
        call(["tar", "-C", str(root), "--numeric-owner", *excluded, "-cf", str(partial), "."])
        partial.replace(archive)


def build(runner: Runner, target: TargetName, image: str) -> float:
    """Build a target; returns the seconds that it took."""
    make_base(FOLDER / f"debian-{RELEASE}.tar")
    call([*runner.program, "import", "-q", str(FOLDER / f"debian-{RELEASE}.tar"), BASE])
    started = time.perf_counter()
    with build_secrets() as secrets:
        options = ["--format", "docker", "--isolation", "chroot", "--network", "host", "--layers"]
        options += ["--target", target, "--build-arg", f"{TARGETS[target].base}={BASE}", *secrets, "-t", image]
        call([*runner.program, "build", *options, "-f", str(ROOT / "docker" / "Dockerfile"), str(ROOT)])
    return time.perf_counter() - started


@contextlib.contextmanager
def build_secrets() -> Iterator[list[str]]:
    """The options that lend pip's settings and certificates of this machine to the build, and to nothing after it."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.rsplit(".", 1)[-1]] = value.strip("'\"")
    # Folders of this machine are not there in the build, and versions are those of constraints.txt.
    lent = {name: settings[name] for name in ("index-url", "proxy", "trusted-host", "timeout") if name in settings}
    certificates = settings.get("cert")
    with tempfile.TemporaryDirectory() as folder:
        parser = configparser.RawConfigParser()
        parser["global"] = {**lent, **({"cert": "/run/secrets/certificates"} if certificates else {})}
        file = Path(folder, "pip.conf")
        with file.open("w") as stream:
            parser.write(stream)
        options = ["--secret", f"id=pip,src={file}"]
        yield options + (["--secret", f"id=certificates,src={certificates}"] if certificates else [])


def check_content(runner: Runner, image: str, target: Target) -> None:
    """Nothing of this machine and nothing of the build is in the image."""
    unwanted = ("/etc/pip.conf", "/run/secrets", "/source", "/opt/venv/bin/pip", "/work/pyproject.toml")
    tests = "; ".join(f"test ! -e {path} || echo {path}" for path in unwanted)
    found = output(runner.container("--rm", "--entrypoint", "sh", image, "-c", tests)).split()
    if found:
        raise UserError(f"{image} holds {', '.join(found)}, which belong to the build; correct docker/Dockerfile")
    packages = "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"
    names = output(runner.container("--rm", "--entrypoint", "python", image, "-c", packages)).split()
    heavy = [name for name in names if name.startswith(target.unwanted)] if target.unwanted else []
    if heavy:
        raise UserError(f"{image} is for CPUs and holds {', '.join(heavy)}; correct its extras in docker/Dockerfile")


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """A network with seeded weights and a drawn picture: an ONNX file and a PNG file."""
    import torch

    from sodeploy.export.to_onnx import export
    from sodeploy.training.models import build as build_network

    torch.manual_seed(0)
    torch.save(build_network(NETWORK).state_dict(), folder / "weights.pth")
    export(NETWORK, folder / "weights.pth", folder / "model.onnx", size=(SIZE, SIZE))
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "picture.png"), cv2.resize(picture, (160, 120), interpolation=cv2.INTER_CUBIC))
    return folder / "model.onnx", folder / "picture.png"


def check_export(runner: Runner, image: str, folder: Path) -> None:
    """The container exports the network: the masks that follow are made with its file in place of the one made here."""
    words = ["--model", NETWORK, "--checkpoint", "weights.pth", "--size", str(SIZE), "--output", "exported.onnx"]
    call(runner.container("--rm", "-v", f"{folder}:/work", image, "export", *words))
    (folder / "exported.onnx").replace(folder / "model.onnx")


def check_masks(runner: Runner, image: str, folder: Path) -> None:
    """Masks from the container are those made here, and belong to the user who ran it."""
    for engine in ENGINES:
        words = ["infer", "picture.png", "--model", "model.onnx", "--engine", engine, "--output"]
        call([sys.executable, "-m", "sodeploy", *words, f"here-{engine}.png"], folder)
        call(runner.container("--rm", "-v", f"{folder}:/work", image, *words, f"there-{engine}.png"))
        here, there = (folder / f"{place}-{engine}.png" for place in ("here", "there"))
        if here.read_bytes() != there.read_bytes():
            raise UserError(f"{engine}: the mask from {image} differs from the one made here; compare their versions")
        if there.stat().st_uid != USER:
            raise UserError(f"{engine}: the mask from {image} belongs to user {there.stat().st_uid}, not to --user")


def check_service(runner: Runner, image: str, folder: Path) -> float:
    """The service becomes healthy, makes the same mask and ends on SIGTERM; returns the seconds until healthy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    health = json.loads(output([*runner.program, "image", "inspect", "-f", "{{json .Config.Healthcheck.Test}}", image]))
    name = f"sodeploy-check-{os.getpid()}"
    started = time.perf_counter()
    mount = f"{folder}:/models:ro"
    call(runner.container("-d", "--name", name, "-e", f"PORT={port}", "-v", mount, image))  # the one model in /models
    try:
        while subprocess.run([*runner.program, "exec", name, *health[1:]], capture_output=True, check=False).returncode:
            state = output([*runner.program, "inspect", "-f", "{{.State.Status}}", name]).strip()
            if state != "running" or time.perf_counter() - started > PATIENCE:
                logs = subprocess.run([*runner.program, "logs", name], capture_output=True, text=True, check=True)
                raise UserError(f"{image}: the service is {state} and not healthy: {logs.stderr or logs.stdout}")
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/mask", (folder / "picture.png").read_bytes(), {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            served = cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        here = cv2.imread(str(folder / f"here-{ENGINES[0]}.png"), cv2.IMREAD_UNCHANGED)
        if not np.array_equal(served, here):
            raise UserError(f"{image}: the mask of its service differs from the one made here")
        call([*runner.program, "stop", "-t", "30", name])
        status = output([*runner.program, "inspect", "-f", "{{.State.ExitCode}}", name]).strip()
        if status not in ("0", "143"):
            raise UserError(f"{image}: the service ended with status {status} after SIGTERM")
    finally:
        subprocess.run([*runner.program, "rm", "-f", name], capture_output=True, check=False)
    return seconds


def call(words: Sequence[str], folder: Path = ROOT) -> None:
    """Run a command; its output goes to stderr where the check talks.

    Raises:
        UserError: it ended with another status than 0.
    """
    terminal.debug(" ".join(words))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(words, cwd=folder, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words)} ended with status {done.returncode}; its last lines are above")


def output(words: Sequence[str]) -> str:
    """The standard output of a command.

    Raises:
        UserError: it ended with another status than 0.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words)} ended with status {done.returncode}: {done.stderr}")
    return done.stdout


def main(
    target: Annotated[TargetName, typer.Option(help="target of docker/Dockerfile")] = "cpu",
    image: Annotated[str | None, typer.Option(help="an image that exists; by default one is built")] = None,
    engine: Annotated[str, typer.Option(help="the program that runs containers: podman or docker")] = "podman",
) -> None:
    """Build an image, run it, and compare its masks with masks made here."""
    runner = podman() if engine == "podman" else Runner((engine,))
    results: list[str] = []
    if image is None:
        if reason := reason_to_skip():
            terminal.results.print(f"skipped: {reason}", soft_wrap=True)
            return
        image = f"localhost/sodeploy:{target}"
        results.append(f"built in {build(runner, target, image):.0f} s")
    size = int(output([*runner.program, "image", "inspect", "-f", "{{.Size}}", image]))
    results.append(f"{size / 1e6:.0f} MB")
    check_content(runner, image, TARGETS[target])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_inputs(folder)
        os.chown(folder, USER, -1)
        if TARGETS[target].exports:
            check_export(runner, image, folder)
            results.append("it exports a network")
        check_masks(runner, image, folder)
        results.append(f"masks equal byte for byte with {', '.join(ENGINES)}, as another user on a read-only root")
        if TARGETS[target].serves:
            results.append(f"service healthy after {check_service(runner, image, folder):.1f} s, its mask equal")
    terminal.results.print(f"{image}: {'; '.join(results)}", soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
