"""Files of every kind, spoiled: a reader gives a result or one line for the user, never another error."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import KINDS, Reader, Seed, make_seeds, mutate

from sodeploy.errors import UserError


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Seed]:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def test_the_seeds_are_valid(seeds: list[Seed]) -> None:
    for _, path, read in seeds:
        read(path)
    assert {seed.kind for seed in seeds} == KINDS.keys()


def refusal(read: Reader, path: Path) -> str:
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(KINDS)), which=st.integers(0, 100), seed=st.integers(0, 2**32))
def test_spoiled_files(seeds: list[Seed], kind: str, which: int, seed: int) -> None:
    of_kind = [each for each in seeds if each.kind == kind]
    _, path, read = of_kind[which % len(of_kind)]
    spoiled = path.with_name(f"spoiled-{path.name}")
    spoiled.write_bytes(mutate(path.read_bytes(), random.Random(seed)))
    message = refusal(read, spoiled)
    assert message.isprintable(), message
    assert not message or spoiled.parents[2].name in message, message


def test_a_file_that_asks_for_memory_is_refused(seeds: list[Seed]) -> None:
    _, path, read = next(seed for seed in seeds if seed.kind == "rounding")
    broken = path.with_name("no.npz")
    broken.write_bytes(b"PK" + path.read_bytes()[2:40])
    with pytest.raises(UserError, match=r"no.npz holds no rounded weights"):
        read(broken)
