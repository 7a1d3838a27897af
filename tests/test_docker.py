"""The images: what their Dockerfile copies, installs and runs exists; the entry point, the health check, compose.yaml.

`make image-check` builds an image and runs it.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from sodeploy.errors import UserError
from sodeploy.stages import stage_named

FOLDER = Path(__file__).resolve().parent.parent / "docker"
TARGETS = ("cpu", "gpu", "train")


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of docker/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("entry", monkeypatch)


def dockerfile() -> str:
    """Its instructions, each on one line, without comments."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    return re.sub(r" *\\\n *", " ", text)


def image_stages() -> dict[str, str]:
    """Name of a stage -> its instructions."""
    parts = re.split(r"^(?=FROM )", dockerfile(), flags=re.MULTILINE)[1:]
    return {re.findall(r"^FROM .* AS (\S+)$", part, re.MULTILINE)[0]: part for part in parts}


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    found: dict[str, Any] = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    return found


def test_it_copies_all_that_an_install_needs(repository: Path) -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile(), re.MULTILINE)
        for source in line.split()
    }
    assert all((repository / source).exists() for source in copied)
    context = {line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert context == copied
    packages = project()["tool"]["setuptools"]["packages"]
    assert {package.removeprefix("sodeploy.").split(".")[0] for package in packages} <= copied
    assert {project()["project"]["readme"], *project()["project"]["license-files"]} <= copied


@pytest.mark.parametrize("target", TARGETS)
def test_its_extras_exist_and_fit_the_target(target: str) -> None:
    (extras,) = re.findall(r"'\.\[(.*?)\]'", image_stages()[f"{target}-build"])
    installed = set(extras.split(","))
    assert installed <= set(project()["project"]["optional-dependencies"])
    assert ("train" in installed) == (target == "train")
    assert ("gpu" in installed) == ("tensorrt" in installed) == (target == "gpu")
    assert not {"cpu", "gpu"} <= installed  # two builds of onnxruntime would overwrite one another


@pytest.mark.parametrize("target", TARGETS)
def test_it_needs_no_root_and_can_say_how_it_is(target: str) -> None:
    text = image_stages()[target]
    (user,) = re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)  # a number: Kubernetes cannot tell names from root
    assert int(user) > 0
    assert "tini" in re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0]
    assert ("HEALTHCHECK" in text) == ("EXPOSE" in text) == (target != "train")


def test_its_bases_are_pinned_arguments() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile(), re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+) AS", dockerfile(), re.MULTILINE)) - {"scratch"}
    assert {f"${{{name}}}" for name in arguments} == bases
    assert all(re.search(r":[a-z]*-?\d[\w.-]*\d|@sha256:", base) for base in arguments.values())


def test_what_it_compiles_the_kernels_with_exists(repository: Path) -> None:
    ((name, options),) = re.findall(r"python -m (\S+)((?: --arch sm\d+)+)", dockerfile())
    wide = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", name, "--help"]
    text = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True, env=wide).stdout
    assert all(option in text for option in re.findall(r"--\w+", options))


@pytest.mark.parametrize("target", TARGETS)
def test_numbas_code_is_compiled_for_the_cpu_that_it_runs_on(target: str) -> None:
    built, run = image_stages()[f"{target}-build"], image_stages()[target]
    (kind,) = re.findall(r"NUMBA_CPU_NAME=(\S+) .*numba_ahead\.py /opt/venv/numba$", built, re.MULTILINE)
    assert f"NUMBA_CPU_NAME={kind} " in run
    assert "NUMBA_CACHE_DIR=/tmp/" in run


@pytest.mark.parametrize("page", ["README.md", "docs/docker.md"])
def test_what_the_pages_run_exists(repository: Path, page: str) -> None:
    text = (repository / page).read_text().replace("\\\n", " ")
    stages = re.findall(r"docker run .* sodeploy:\w+ +([a-z]\w*)", text)
    assert stages
    assert all(map(stage_named, stages))
    targets = re.findall(r"docker build .*--target (\w+)", text)
    assert targets
    assert set(targets) <= set(TARGETS)


def test_hadolint_has_no_remark(repository: Path) -> None:
    beside = repository / ".venv-audit" / "bin" / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; make audit installs it")
    done = subprocess.run([hadolint, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


class TestEntry:
    def test_any_stage_runs_as_it_is(self, entry: ModuleType) -> None:
        words = ["bench", "a.onnx", "--data", "ECSSD", "--device", "cuda"]
        assert entry.command(words, {"DEVICE": "cuda"}) == ["sodeploy", *words]
        assert entry.command(["serve", "--help"], {}) == ["sodeploy", "serve", "--help"]
        assert entry.command([], {}) == ["sodeploy", "--help"]

    def test_the_service_listens_to_all_and_the_user_has_the_last_word(self, entry: ModuleType) -> None:
        words = entry.command(["serve", "--model", "a.onnx", "--port", "9", "--model=b=c.onnx"], {"PORT": "7"})
        assert words[:2] == ["sodeploy", "serve"]
        assert words[words.index("--host") + 1] == "0.0.0.0"
        assert [words[place + 1] for place, word in enumerate(words) if word == "--port"] == ["7", "9"]
        assert words[-2:] == ["--model=a.onnx", "--model=b=c.onnx"]

    def test_the_one_model_is_found(self, entry: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(entry, "MODELS", tmp_path)
        with pytest.raises(UserError, match=r"holds no \.onnx file; mount .* serve --model"):
            entry.command(["serve"], {})
        (tmp_path / "a.onnx").touch()
        assert entry.command(["serve"], {})[-1] == f"--model={tmp_path / 'a.onnx'}"
        (tmp_path / "b.onnx").touch()
        with pytest.raises(UserError, match=r"holds a\.onnx, b\.onnx; mount"):
            entry.command(["serve"], {})

    def test_an_engine_is_built_once_and_again_where_it_does_not_fit(
        self, entry: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built, fits = [], [True]

        def check(engine: Path) -> None:
            if not fits[0]:
                raise UserError("built by another TensorRT")

        def build(onnx: Path, engine: Path, builder: str, profile: Any) -> None:
            built.append((engine.name, builder, profile))
            engine.touch()

        from sodeploy.quant import engine as stage
        from sodeploy.runtime.gpu import driver, engine_record

        monkeypatch.setattr(driver, "current_gpu", lambda: driver.Gpu("NVIDIA L4", "sm89"))
        monkeypatch.setattr(engine_record, "check_engine", check)
        monkeypatch.setattr(stage, "choose_builder", lambda: "tensorrt")
        monkeypatch.setattr(stage, "build", build)
        model, engines = tmp_path / "a.onnx", tmp_path / "engines"
        model.write_bytes(b"first")
        first = entry.engine_of(model, engines, None)
        assert entry.engine_of(model, engines, None) == first
        assert [name for name, *_ in built] == [first.name]
        assert first.name.startswith("a-")
        assert first.name.endswith("-sm89.engine")
        fits[0] = False
        entry.engine_of(model, engines, "1x3x8x8:1x3x8x8:2x3x8x8")
        assert [name for name, *_ in built] == [first.name] * 2
        assert built[1][2].max[0] == 2
        fits[0] = True
        model.write_bytes(b"second")
        assert entry.engine_of(model, engines, None) != first
        assert len(built) == 3
        assert entry.engine_of(first, engines, None) == first  # an engine is taken as it is

    def test_numbas_code_is_copied_where_it_can_be_written(self, entry: ModuleType, tmp_path: Path) -> None:
        compiled, cache = tmp_path / "compiled", tmp_path / "cache"
        entry.fill_cache(compiled, str(cache))
        assert not cache.exists()
        compiled.mkdir()
        (compiled / "index").write_text("new")
        entry.fill_cache(compiled, str(cache))
        assert (cache / "index").read_text() == "new"
        (cache / "index").write_text("used")
        entry.fill_cache(compiled, str(cache))
        assert (cache / "index").read_text() == "used"
        entry.fill_cache(compiled, "/proc/nowhere/cache")
        entry.fill_cache(compiled, None)

    def test_it_fails_in_one_line(self) -> None:
        done = subprocess.run(
            [sys.executable, FOLDER / "entry.py", "serve"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: /models holds no .onnx file")
        assert "Traceback" not in done.stderr


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers /readyz with `status`, and its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b"loading")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_health(monkeypatch: pytest.MonkeyPatch) -> None:
    health = module("health", monkeypatch)
    with answering(200) as port:
        assert health.problem(port) is None
    assert "refused" in health.problem(port)
    with answering(503) as port:
        assert health.problem(port) == f"port {port}: status 503: loading"


class TestCompose:
    @pytest.fixture
    def services(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
        return found

    def test_what_it_names_exists(self, services: dict[str, Any]) -> None:
        for service in services.values():
            if build := service.get("build"):
                assert (FOLDER / build["context"] / build["dockerfile"]).is_file()
                assert service["image"] == f"sodeploy:{build['target']}"
                assert build["target"] in TARGETS
            else:
                assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
            for volume in service["volumes"]:
                if volume.startswith("./"):
                    assert (FOLDER / volume.split(":")[0]).is_file()
        ((target,),) = [
            config["targets"]
            for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
            for config in job["static_configs"]
        ]
        name, port = target.split(":")
        assert name in services
        assert f":{port}" in services[name]["ports"][0]

    def test_every_service_is_hardened_and_local(self, services: dict[str, Any]) -> None:
        for service in services.values():
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])

    def test_prometheus_has_the_key_of_the_service(self, services: dict[str, Any]) -> None:
        added = yaml.safe_load((FOLDER / "compose.keys.yaml").read_text())
        assert set(added["services"]) == set(services)
        prometheus = added["services"].pop("prometheus")
        for name, service in added["services"].items():
            assert service["command"][: len(services[name]["command"])] == services[name]["command"]
            option, file = service["command"][len(services[name]["command"]) :]
            assert (option, Path(file).name) == ("--api-key-file", service["secrets"][0])
        (volume,) = prometheus["volumes"]
        assert volume.split(":")[1:] == services["prometheus"]["volumes"][0].split(":")[1:]
        (job,) = yaml.safe_load((FOLDER / volume.split(":")[0]).read_text())["scrape_configs"]
        assert job.pop("authorization") == {"credentials_file": f"/run/secrets/{prometheus['secrets'][0]}"}
        assert [job] == yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
        assert set(added["secrets"]) == {"api_keys", "metrics_key"}


class TestImageCheck:
    def test_without_the_tools_it_is_skipped(self, repository: Path, tmp_path: Path) -> None:
        environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(repository)}
        done = subprocess.run(
            [sys.executable, FOLDER / "image_check.py"], capture_output=True, text=True, check=True, env=environment
        )
        assert done.stdout.startswith("skipped: debootstrap, podman, runc not found; as root")

    def test_the_build_is_lent_no_path_of_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check = module("image_check", monkeypatch)
        listed = "global.cert='/ca.pem'\nuser.find-links='/wheels'\n:env:.index-url='https://index.example/simple'\n"
        answer = subprocess.CompletedProcess([], 0, listed)
        monkeypatch.setattr(check.subprocess, "run", lambda *_, **__: answer)
        with check.build_secrets() as options:
            assert options[2:] == ["--secret", "id=certificates,src=/ca.pem"]
            lent = Path(options[1].removeprefix("id=pip,src="))
            settings = dict(line.split(" = ") for line in lent.read_text().split("\n") if " = " in line)
        assert settings == {"index-url": "https://index.example/simple", "cert": "/run/secrets/certificates"}
        assert not lent.exists()
