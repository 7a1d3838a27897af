"""Check files against their manifests, and everything they were made from.

    sodeploy verify out/u2netp.int8.cpu.onnx
    sodeploy verify out/
    sodeploy verify u2netp.pth --sha256 3c9d...

A manifest (FILE.json) holds the sha256 of its file and of each file that it was made from. These may have manifests
too, which are followed. A checkpoint from elsewhere has none: it is compared with the list of published files
(`sodeploy/published_files.json`), and else with the names and shapes of the weights of our networks.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sodeploy import artifacts, command_line, terminal
from sodeploy.calib_data import open_dataset
from sodeploy.calib_data.lists import LIST_SUFFIXES
from sodeploy.errors import UserError
from sodeploy.file_kinds import CHECKPOINT_SUFFIXES
from sodeploy.stages import install_command

PUBLISHED = Path(__file__).with_name("published_files.json")

Verdict = Literal["ok", "differs", "missing", "unknown"]
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_EMPTY_REGISTER = 0xFFFFFFFF


@dataclass(frozen=True)
class Finding:
    """The result of the check of one file.

    Attributes:
        why: one line; what the file is where it is as it should be.
    """

    file: Path
    verdict: Verdict
    why: str

    def __str__(self) -> str:
        return f"{self.verdict:<8}{self.file}: {self.why}"


def verify(files: Sequence[str | Path]) -> list[Finding]:
    """Check files, and all files that they were made from; each file once.

    Args:
        files: artifacts, their manifests, checkpoints from elsewhere; of a folder all artifacts with manifests in it.

    Raises:
        UserError: a folder holds no manifest, or a manifest is broken.
    """
    chain = _Chain()
    for file in files:
        for artifact in _artifacts(Path(file)):
            chain.follow(artifact)
    return list(chain.findings.values())


def cksum(path: str | Path) -> int:
    """The check sum that POSIX `cksum` prints of a file.

    Its CRC-32 takes the bits of a byte from the highest on, zlib's from the lowest: reversed bytes give the same
    register, reversed. The length of the file follows its bytes.
    """
    register, length = _EMPTY_REGISTER, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            register = zlib.crc32(block.translate(_REVERSED), register)
            length += len(block)
    tail = length.to_bytes(8, "little").rstrip(b"\0")
    register = zlib.crc32(tail.translate(_REVERSED), register) ^ _EMPTY_REGISTER
    return int(f"{register:032b}"[::-1], 2) ^ _EMPTY_REGISTER


def _artifacts(path: Path) -> Iterator[Path]:
    """The artifacts that the user means by a path."""
    if path.is_dir():
        found = [file.with_suffix("") for file in sorted(path.rglob("*.json")) if _is_manifest(file)]
        if not found:
            raise UserError(f"{path} has no manifests (FILE.json); give the files themselves")
        yield from found
    elif path.suffix == ".json" and _is_manifest(path):
        yield path.with_suffix("")
    else:
        yield path


def _is_manifest(path: Path) -> bool:
    with contextlib.suppress(ValueError, OSError, RecursionError):
        content = json.loads(path.read_bytes())
        return isinstance(content, dict) and content.get("artifact") == path.stem and "sha256" in content
    return False


class _Chain:
    """The files that were checked so far.

    Attributes:
        findings: by the file's resolved path, in the order of the checks.
    """

    def __init__(self) -> None:
        self.findings: dict[Path, Finding] = {}
        self._digests: dict[Path, str] = {}

    def follow(self, file: Path, expected: str | None = None) -> None:
        """Check one file, then those that it was made from.

        Args:
            expected: the sha256 that the manifest of another file has recorded.
        """
        place = file.resolve()
        if not file.is_file():
            why = "a folder, not a file" if file.is_dir() else "there is no such file"
            self.findings[place] = Finding(file, "missing", why)
            return
        if place not in self._digests:
            self._digests[place] = artifacts.sha256(file)
        digest = self._digests[place]
        if expected is not None and digest != expected:
            why = f"sha256 {digest}, {expected} when it was read for another artifact"
            self.findings[place] = Finding(file, "differs", why)
        elif place not in self.findings:
            self._follow_manifest(file, digest, expected is not None)

    def _follow_manifest(self, file: Path, digest: str, is_as_read: bool) -> None:
        place, manifest = file.resolve(), artifacts.read_manifest(file)
        if not manifest:
            as_read = Finding(file, "ok", "as it was when it was read") if is_as_read else None
            known = _published(file, digest)
            if known is not None and known.verdict == "ok":
                as_read = known
            self.findings[place] = as_read or known or _from_elsewhere(file)
            return
        if manifest.get("sha256") == digest:
            self.findings[place] = Finding(file, "ok", _made_by(manifest))
        else:
            why = f"sha256 {digest}, {manifest.get('sha256')} in its manifest; make it again"
            self.findings[place] = Finding(file, "differs", why)
        inputs = manifest.get("inputs")
        for recorded in inputs.values() if isinstance(inputs, dict) else ():
            if isinstance(recorded, dict) and isinstance(recorded.get("path"), str):
                self.follow(_found(recorded["path"], file), str(recorded.get("sha256")))
        if file.suffix.lower() in LIST_SUFFIXES and isinstance(manifest.get("images"), dict):
            self.findings.update({one.file.resolve(): one for one in _images(file, manifest["images"])})


def _made_by(manifest: Mapping[str, Any]) -> str:
    count = len(manifest["inputs"]) if isinstance(manifest.get("inputs"), dict) else 0
    return f"as in its manifest, made from {count} file{'s' * (count != 1)}"


def _found(recorded: str, artifact: Path) -> Path:
    """The file at a recorded path.

    Where there is none, the file of that name beside the artifact. A relative path was recorded in the working folder
    of then, which is most often one of the folders above the artifact.
    """
    path = Path(recorded)
    above = [folder / path for folder in artifact.resolve().parents] if not path.is_absolute() else []
    return next((one for one in (path, artifact.with_name(path.name), *above) if one.exists()), path)


def _images(file: Path, recorded: Mapping[str, str]) -> Iterator[Finding]:
    """A finding for each image of a list of `subset` that has changed since."""
    try:
        dataset = open_dataset(file, masks=False)
    except UserError as error:
        yield Finding(file, "differs", str(error))
        return
    digests = set(recorded.values())  # names in a list differ from those in the data set it was chosen from
    for sample in terminal.progress(dataset, "images", total=len(dataset)):
        if sample.digest() not in digests:
            path = getattr(sample, "image_path", Path(sample.name))
            yield Finding(path, "differs", f"the image has changed since {file.name} was made")


def _published(file: Path, sha256: str) -> Finding | None:
    """The finding for a file that its authors have published; None for any other.

    A short sha256 in the list is the beginning of one, as PyTorch's convention puts it into names of files. It counts
    for a file of that name alone.
    """
    sums = {"sha256": sha256, "md5": artifacts.digest(file, "md5")}
    for one in json.loads(PUBLISHED.read_text()):
        kind = "sha256" if "sha256" in one else "md5"
        is_named, is_whole = one["file"] == file.name, len(one[kind]) == len(sums[kind])
        if sums[kind].startswith(one[kind]) and (is_whole or is_named):
            return Finding(file, "ok", f"the published file {one['file']} of {one['network']}, by its {kind}")
        if is_named:
            remedy = f"if it is to be the file of {one['network']}, fetch it again"
            return Finding(file, "differs", f"{kind} {sums[kind]}, {one[kind]} as published; {remedy}")
    return None


def _from_elsewhere(file: Path) -> Finding:
    """The finding for a file of which nothing is recorded."""
    if file.suffix.lower() in CHECKPOINT_SUFFIXES:
        return _by_signature(file)
    return Finding(file, "unknown", f"it has no manifest {artifacts.manifest_path(file).name} and is no published file")


def _by_signature(file: Path) -> Finding:
    try:
        from sodeploy.training.checkpoint import read_weights
        from sodeploy.training.signatures import networks_fitting
    except ModuleNotFoundError as error:
        why = f"no published file; its weights can be compared after {install_command(error.name or 'torch', 'verify')}"
        return Finding(file, "unknown", why)
    try:
        fitting = networks_fitting(read_weights(file))
    except UserError as error:
        return Finding(file, "differs", str(error).removeprefix(f"{file} "))
    if fitting:
        names = " or ".join(fitting)
        return Finding(file, "ok", f"weights with the names and shapes of {names}; their values are on no list")
    return Finding(file, "unknown", "its weights have the names and shapes of none of our networks")


def main(
    files: Annotated[list[Path], typer.Argument(help="artifacts, their manifests, checkpoints; or folders of them")],
    sha256: Annotated[str | None, typer.Option(help="the sha256 that the one file must have")] = None,
    cksum_value: Annotated[
        int | None, typer.Option("--cksum", metavar="N", help="the first number of `cksum` that the one file must have")
    ] = None,
) -> None:
    """Check files against their manifests, and everything they were made from."""
    if sha256 is not None or cksum_value is not None:
        findings = [_against(files, sha256, cksum_value)]
    else:
        findings = verify(files)
    for finding in findings:
        terminal.results.print(str(finding), markup=False, soft_wrap=True)
    bad = [finding for finding in findings if finding.verdict != "ok"]
    if bad:
        raise UserError(f"{len(bad)} of {len(findings)} files are not as they should be: see the lines above")


def _against(files: Sequence[Path], sha256: str | None, cksum_value: int | None) -> Finding:
    """Compare one file with the sums that the user has from its publisher."""
    if len(files) != 1:
        raise UserError(f"--sha256 and --cksum are of one file; {len(files)} are given")
    file = artifacts.require_file(files[0], "give the file that the sum is of")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"--sha256 {sha256} is no sha256, which has 64 hexadecimal digits")
    if sha256 is not None and (digest := artifacts.sha256(file)) != sha256.lower():
        return Finding(file, "differs", f"sha256 {digest}, not {sha256}")
    if cksum_value is not None and (found := cksum(file)) != cksum_value:
        return Finding(file, "differs", f"cksum {found}, not {cksum_value}")
    return Finding(file, "ok", "as its publisher says")


if __name__ == "__main__":
    command_line.run(main)
