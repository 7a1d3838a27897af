"""Files of every kind, spoiled: a reader gives a result or one line for the user, never another error."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import Reader, make_seeds, mutate

from sodeploy.errors import UserError


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def test_the_seeds_are_valid(seeds: list) -> None:
    for path, read in seeds:
        read(path)


def refusal(read: Reader, path: Path) -> str:
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 10**6), seed=st.integers(0, 2**32))
def test_spoiled_files(seeds: list, which: int, seed: int) -> None:
    path, read = seeds[which % len(seeds)]
    spoiled = path.with_name(f"spoiled-{path.name}")
    spoiled.write_bytes(mutate(path.read_bytes(), random.Random(seed)))
    message = refusal(read, spoiled)
    assert message.isprintable(), message
    assert not message or spoiled.parent.name in message, message


def test_a_file_that_asks_for_memory_is_refused(seeds: list) -> None:
    folder: Path = seeds[0][0].parent
    rounding = next((path, read) for path, read in seeds if path.name == "rounding.npz")
    data = rounding[0].read_bytes()
    (folder / "no.npz").write_bytes(b"PK" + data[2:40])
    with pytest.raises(UserError, match=r"no.npz holds no rounded weights"):
        rounding[1](folder / "no.npz")
