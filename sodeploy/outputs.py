"""The places that a command line names for its outputs, checked before the stage is imported and anything is done."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sodeploy.artifacts import check_apart, check_output, check_output_folder
from sodeploy.errors import UserError
from sodeploy.stages import STAGES

_TEXTS = ("--json", "--markdown", "--csv")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def check_outputs(stage: str, words: Sequence[str]) -> None:
    """Refuse an output that cannot be written, and one that would overwrite a file that the same line names.

    Args:
        stage: a key of `STAGES`; its `writes` are the options that name outputs.
        words: the command line behind the stage's name.

    Raises:
        UserError: an output file is a folder, lies inside a file or where nothing can be written, or is an input.
    """
    entry = STAGES[stage]
    outputs: list[Path] = []
    others: list[Path] = []
    for option, value in _values(words):
        name = "--output" if option == "-o" else entry.renamed.get(option, option)
        if name not in entry.writes:
            others.append(Path(value))
        elif name == "--output-dir" or (name == "--output" and entry.folder):
            check_output_folder(value)
        elif value != "-":  # stdout
            check_output(value)
            if name in _TEXTS and Path(value).suffix.lower() in _PICTURES and Path(value).exists():
                raise UserError(f"{name} {value} would replace a picture; give a file of another name")
            outputs.append(Path(value))
    if not entry.in_place:
        check_apart(outputs, [file for file in others if file.is_file()])


def _values(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word that is no option's name, with the option right before it; "" where it stands alone."""
    option = ""
    for word in words:
        if word.startswith("--") and "=" in word:
            name, _, value = word.partition("=")
            yield name, value
            option = ""
        elif word.startswith("-") and word != "-":
            option = word
        else:
            yield option, word
            option = ""
