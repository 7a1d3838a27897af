"""The service within this process: its answers, its limits, its batches."""

import email
import io
import json
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.policy import HTTP
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs sodeploy[serve]")
from starlette.testclient import TestClient

from sodeploy.errors import UserError
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.pictures import make_picture, parse_look
from sodeploy.runtime.processing import postprocess, predict, preprocess
from sodeploy.runtime.serve import service as service_module
from sodeploy.runtime.serve.app import make_app
from sodeploy.runtime.serve.batching import Batcher
from sodeploy.runtime.serve.refusals import STATUS
from sodeploy.runtime.serve.settings import Settings, digest, parse_models, read_keys
from sodeploy.runtime.session import open_session

pytestmark = pytest.mark.usefixtures("estimation")

SaveModel = Callable[..., Path]


def image(number: int = 0, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def decoded(data: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture.ndim == 2:
        return picture
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA if picture.shape[2] == 4 else cv2.COLOR_BGR2RGB)


@contextmanager
def serving(models: dict[str, Path], **settings: Any) -> Iterator[TestClient]:
    """A client of a service whose models are open."""
    with TestClient(make_app(Settings(models, **settings)), raise_server_exceptions=False) as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").json()["status"] == "loading" and time.monotonic() < deadline:
            time.sleep(0.01)
        yield client


@pytest.fixture
def client(save_model: SaveModel) -> Iterator[TestClient]:
    with serving({"tiny": save_model(batch=None)}) as client:
        yield client


def expected_map(model: Path, picture: np.ndarray) -> np.ndarray:
    with open_session(model) as session:
        return predict(picture, session.contract, session.infer)


class TestPictures:
    def test_a_mask_is_the_map_of_infer(self, save_model: SaveModel) -> None:
        model = save_model(batch=None)
        with serving({"tiny": model}) as client:
            for request in ({"files": {"file": ("a.png", png(image()))}}, {"content": png(image())}):
                answer = client.post("/v1/mask", **request)
                assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
                np.testing.assert_array_equal(decoded(answer.content), expected_map(model, image()))

    @pytest.mark.parametrize(
        ("parameters", "kind"),
        [
            ({}, "rgba"),
            ({"type": "blur"}, "blur"),
            ({"type": "overlay"}, "overlay"),
            ({"bgcolor": "#FF8800"}, "color:#FF8800"),
            ({"bgc": "255,136,0,255"}, "color:#FF8800"),
            ({"bgc": "255,136,0,0"}, "rgba"),
            ({"bg_color": "f80"}, "color:#FF8800"),
            ({"type": "color:#FF8800"}, "color:#FF8800"),
            ({"om": "true"}, "map"),
            ({"om": "false", "af": "240", "size": "auto", "type": "auto", "format": "auto"}, "rgba"),
            ({"channels": "alpha"}, "map"),
        ],
    )
    def test_a_cutout_is_the_picture_of_infer(
        self, save_model: SaveModel, parameters: dict[str, str], kind: str
    ) -> None:
        model = save_model(batch=None)
        wanted = make_picture(Frame(image()), expected_map(model, image()), parse_look(kind))
        with serving({"tiny": model}) as client:
            in_query = client.post("/v1/cutout", params=parameters, files={"file": png(image())})
            in_form = client.post("/v1/cutout", data=parameters, files={"image_file": png(image())})
        for answer in (in_query, in_form):
            np.testing.assert_array_equal(decoded(answer.content), wanted)

    def test_edges_and_threshold(self, save_model: SaveModel) -> None:
        model = save_model(batch=None)
        saliency = expected_map(model, image())
        with serving({"tiny": model}) as client:
            for parameters in ({"edges": "keep", "threshold": "0.5"}, {"a": "false", "ppm": "1"}):
                cut = decoded(client.post("/v1/cutout", data=parameters, files={"file": png(image())}).content)
                np.testing.assert_array_equal(cut[..., 3], np.where(saliency >= 127.5, 255, 0))
                np.testing.assert_array_equal(cut[..., :3], image())

    def test_formats(self, client: TestClient) -> None:
        for name, begin in (("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpg", b"\xff\xd8")):
            answer = client.post("/v1/mask", params={"format": name}, files={"file": png(image())})
            assert answer.content.startswith(begin)
            assert answer.headers["content-type"] == f"image/{name.replace('jpg', 'jpeg')}"

    def test_the_model_that_is_named_makes_the_picture(self, save_model: SaveModel) -> None:
        models = {"red": save_model("a.onnx", weights=(1, 0, 0)), "blue": save_model("b.onnx", weights=(0, 0, 1))}
        with serving(models) as client:
            assert [model["name"] for model in client.get("/v1/models").json()["models"]] == ["red", "blue"]
            for name in ("red", "blue"):
                answer = client.post("/v1/mask", params={"model": name}, files={"file": png(image())})
                assert answer.headers["X-Sodeploy-Model"] == name
                np.testing.assert_array_equal(decoded(answer.content), expected_map(models[name], image()))
            unnamed = client.post("/v1/mask", files={"file": png(image())})
            assert unnamed.headers["X-Sodeploy-Model"] == "red"

    def test_paths_of_other_services(self, client: TestClient) -> None:
        for path in ("/api/remove", "/v1.0/removebg"):
            assert decoded(client.post(path, files={"file": png(image())}).content).shape == (40, 50, 4)

    def test_openvino(self, save_model: SaveModel) -> None:
        pytest.importorskip("openvino")
        model = save_model(batch=None)
        with serving({"tiny": model}, engine="openvino") as client:
            answer = client.post("/v1/mask", files={"file": png(image())})
        difference = decoded(answer.content).astype(int) - expected_map(model, image())
        assert np.abs(difference).max() <= 1


class TestBatch:
    FILES = (("a.png", 0), ("folder\\a.jpg", 1), ("../../etc/b.png", 2))

    def files(self) -> list[tuple[str, tuple[str, bytes]]]:
        found = [("file", (name, png(image(number)))) for name, number in self.FILES]
        return [*found[:1], ("file", ("secret-name.png", b"no picture")), *found[1:]]

    def test_a_zip_has_every_input(self, save_model: SaveModel) -> None:
        model = save_model(batch=None)
        with serving({"tiny": model}) as client:
            answer = client.post("/v1/batch", params={"type": "map"}, files=self.files())
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert archive.namelist() == ["a.png", "a-2.png", "b.png", "results.json"]
        index = json.loads(archive.read("results.json"))
        assert [entry.get("file") for entry in index] == ["a.png", None, "a-2.png", "b.png"]
        assert index[1]["error"]["code"] == "bad_picture"
        for name, number in (("a.png", 0), ("a-2.png", 1), ("b.png", 2)):
            np.testing.assert_array_equal(decoded(archive.read(name)), expected_map(model, image(number)))

    def test_multipart(self, client: TestClient) -> None:
        answer = client.post("/v1/batch", headers={"Accept": "multipart/mixed"}, files=self.files())
        head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + answer.content, policy=HTTP)
        parts = {part.get_filename(): part.get_content_type() for part in message.iter_parts()}
        assert list(parts) == ["results.json", "a.png", "a-2.png", "b.png"]
        assert parts["b.png"] == "image/png"

    def test_too_many(self, save_model: SaveModel) -> None:
        with serving({"tiny": save_model()}, queue=2) as client:
            answer = client.post("/v1/batch", files=self.files())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_files")


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""
    data = bytearray(png(image()))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


PNG = png(image())
BAD = {
    "text": ("/v1/mask", {"files": {"file": b"hello"}}, "bad_picture"),
    "cut short": ("/v1/mask", {"files": {"file": PNG[:200]}}, "bad_picture"),
    "empty": ("/v1/mask", {"content": b""}, "no_picture"),
    "empty file": ("/v1/mask", {"files": {"file": b""}}, "no_picture"),
    "no file": ("/v1/cutout", {"data": {"type": "rgba"}}, "unsupported_media_type"),
    "bomb": ("/v1/mask", {"files": {"file": png_header(30000, 30000)}}, "too_many_pixels"),
    "too large": ("/v1/mask", {"files": {"file": PNG + bytes(200_000)}}, "too_many_bytes"),
    "too large without a length": ("/v1/mask", {"content": [PNG, bytes(10**6)]}, "too_many_bytes"),
    "two files": ("/v1/mask", {"files": [("file", PNG), ("file", PNG)]}, "too_many_files"),
    "other field": ("/v1/mask", {"files": {"picture": PNG}}, "unknown_parameter"),
    "JSON": ("/v1/mask", {"json": {"image_url": "http://example.org"}}, "unsupported_media_type"),
    "URL": ("/v1/cutout", {"data": {"url": "http://127.0.0.1/"}, "files": {"file": PNG}}, "url_refused"),
    "URL alone": ("/v1/cutout?image_url=http://127.0.0.1/", {"content": b""}, "url_refused"),
    "parameter": ("/v1/cutout?crop=true", {"content": PNG}, "unknown_parameter"),
    "type": ("/v1/cutout?type=sepia", {"content": PNG}, "bad_parameter"),
    "file of the server": ("/v1/cutout?type=image:/etc/hostname", {"content": PNG}, "bad_parameter"),
    "same in capitals": ("/v1/cutout?type=IMAGE:/etc/hostname", {"content": PNG}, "bad_parameter"),
    "type of a mask": ("/v1/mask?type=rgba", {"content": PNG}, "bad_parameter"),
    "format": ("/v1/cutout?format=gif", {"content": PNG}, "bad_parameter"),
    "no transparency": ("/v1/cutout?format=jpg", {"content": PNG}, "bad_parameter"),
    "threshold": ("/v1/mask?threshold=2", {"content": PNG}, "bad_parameter"),
    "no threshold": ("/v1/mask?threshold=x", {"content": PNG}, "bad_parameter"),
    "threshold nan": ("/v1/mask?threshold=nan", {"content": PNG}, "bad_parameter"),
    "edges": ("/v1/cutout?edges=soft", {"content": PNG}, "bad_parameter"),
    "color": ("/v1/cutout?bgcolor=red", {"content": PNG}, "bad_parameter"),
    "half transparent color": ("/v1/cutout?bgc=1,2,3,100", {"content": PNG}, "bad_parameter"),
    "contradiction": ("/v1/cutout?bgcolor=fff&bgc=0,0,0", {"content": PNG}, "bad_parameter"),
    "size": ("/v1/cutout?size=preview", {"content": PNG}, "bad_parameter"),
    "flag": ("/v1/cutout?om=maybe", {"content": PNG}, "bad_parameter"),
    "model": ("/v1/mask?model=u2net", {"content": PNG}, "unknown_model"),
    "broken form": (
        "/v1/mask",
        {"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        "bad_request",
    ),
    "form without boundary": (
        "/v1/mask",
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
        "bad_request",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_json(save_model: SaveModel, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, request, code = BAD[case]
    with serving({"tiny": save_model()}, most_pixels=10_000, most_bytes=100_000) as client:
        answer = client.post(path, **request)
        error = answer.json()["error"]
        assert (error["code"], answer.status_code) == (code, STATUS[code])
        assert error["message"].isprintable()
        assert client.post("/v1/mask", content=PNG).status_code == 200
    assert not capfd.readouterr().err


def test_nothing_of_a_request_is_logged(client: TestClient, capfd: pytest.CaptureFixture[str]) -> None:
    for data in (PNG, b"no picture"):
        answer = client.post("/v1/mask?model=secret", files={"file": ("secret.png", data)})
        assert "secret.png" not in answer.text
        client.post("/v1/mask", files={"file": ("secret.png", data)})
    form = b"--x\r\nContent-Disposition: form-data; name=secret\x1c; filename=secret.png\r\n\r\nsecret\r\n--x--\r\n"
    client.post("/v1/mask", content=form, headers={"content-type": "multipart/form-data; boundary=x"})
    assert "secret" not in "".join(capfd.readouterr())
    assert "secret" not in client.get("/metrics").text


def test_paths_that_are_not_there(client: TestClient) -> None:
    for answer in (client.get("/secret"), client.get("/static/../app.py"), client.get("/static/none.js")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert client.get("/v1/mask").json()["error"]["code"] == "method_not_allowed"
    assert client.get("/docs").status_code == 404


def test_every_answer_has_the_headers_for_safety(client: TestClient) -> None:
    answers = [client.get(path) for path in ("/", "/healthz", "/metrics", "/nowhere", "/openapi.json")]
    for answer in (*answers, client.post("/v1/mask", content=PNG), client.post("/v1/mask", content=b"")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


class TestKeys:
    KEY = "0123456789abcdef"

    def test_only_with_a_key(self, save_model: SaveModel) -> None:
        with serving({"tiny": save_model()}, keys=(digest("another key, also valid"), digest(self.KEY))) as client:
            for headers in ({}, {"X-Api-Key": self.KEY[:-1]}, {"X-Api-Key": ""}, {"Authorization": "Basic eDp5"}):
                for method, path in (("POST", "/v1/mask"), ("GET", "/metrics"), ("POST", "/v1.0/removebg")):
                    answer = client.request(method, path, headers=headers)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
            for headers in ({"X-Api-Key": self.KEY}, {"Authorization": f"Bearer {self.KEY}"}):
                assert client.post("/v1/mask", headers=headers, content=PNG).status_code == 200
            for path in ("/", "/healthz", "/readyz"):
                assert client.get(path).status_code == 200

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "holds no key"), (b"short\n", "16 ASCII characters"), (b"\xff" * 20, "it is no text")],
    )
    def test_bad_key_files(self, tmp_path: Path, content: bytes, message: str) -> None:
        file = tmp_path / "keys"
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_keys(file)

    def test_a_key_file(self, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text(f"{self.KEY}\n\n  another key, also valid \n")
        assert read_keys(tmp_path / "keys") == (digest(self.KEY), digest("another key, also valid"))


def test_names_of_models(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.int8.onnx", "x=y.onnx"):
        (tmp_path / name).touch()
    texts = [f"{tmp_path}/a.onnx", f"int8={tmp_path}/b.int8.onnx", f"{tmp_path}/x=y.onnx"]
    assert list(parse_models(texts)) == ["a", "int8", "x-y"]
    for text, message in (
        (f"a={tmp_path}/b.int8.onnx", "stands twice"),
        (f"a b={tmp_path}/a.onnx", "is no name"),
        (f"c={tmp_path}/none.onnx", "none.onnx"),
    ):
        with pytest.raises(UserError, match=message):
            parse_models([texts[0], text])


class Slow:
    """A network that runs when it is told to; it notes the sizes of its batches."""

    precision, metadata = "fp32", {}

    def __init__(self, contract: Any) -> None:
        self.contract, self.sizes, self.go = contract, [], threading.Event()
        self.running, self.warm = threading.Event(), False
        self.broken_at: float | None = None

    def infer(self, batch: np.ndarray) -> np.ndarray:
        if batch.any():
            self.sizes.append(len(batch))
            self.running.set()
            assert self.go.wait(30)
            if self.broken_at is not None and (batch[:, 0, 0, 0] == self.broken_at).any():
                raise UserError("a layer failed on this picture")
        return batch[:, :1]

    def close(self) -> None: ...

    def __enter__(self) -> "Slow":
        return self

    def __exit__(self, *_: object) -> None: ...


class TestBatching:
    def test_pictures_of_several_requests_run_together(self, make_contract: Any) -> None:
        slow = Slow(make_contract(batch=None))
        batcher = Batcher(lambda: slow, 4, 0.0)
        batcher.start()
        batcher.opened.result(10)
        inputs = [np.full((3, 16, 24), 1 + number, np.float32) for number in range(7)]
        futures = [batcher.submit(inputs[0])]
        assert slow.running.wait(10)  # the first is alone; the others come while it runs
        futures += [batcher.submit(tensor) for tensor in inputs[1:]]
        slow.go.set()
        for future, tensor in zip(futures, inputs, strict=True):
            np.testing.assert_array_equal(future.result(10), tensor[0])
        assert slow.sizes == [1, 4, 2]
        batcher.close()

    def test_the_window_waits_for_pictures_on_the_way_only(self, make_contract: Any) -> None:
        slow = Slow(make_contract(batch=None))
        slow.go.set()
        batcher = Batcher(lambda: slow, 4, 60.0)
        batcher.start()
        one = np.ones((3, 16, 24), np.float32)
        batcher.submit(one).result(10)  # nobody else comes: the window of a minute does not matter
        with batcher.expecting():
            first = batcher.submit(one)
            time.sleep(0.2)
            assert not first.done()
            rest = [batcher.submit(one) for _ in range(3)]
            assert [future.result(10).shape for future in (first, *rest)] == [(16, 24)] * 4
        assert slow.sizes == [1, 4]
        batcher.close()

    def test_a_model_of_fixed_batch_gets_no_more(self, make_contract: Any) -> None:
        slow = Slow(make_contract(batch=2))
        batcher = Batcher(lambda: slow, 8, 0.0)
        batcher.start()
        futures = [batcher.submit(np.ones((3, 16, 24), np.float32)) for _ in range(5)]
        slow.go.set()
        assert all(future.result(10) is not None for future in futures)
        assert max(slow.sizes) == 2
        batcher.close()

    def test_a_picture_that_fails_does_not_fail_the_others(self, make_contract: Any) -> None:
        slow = Slow(make_contract(batch=None))
        slow.broken_at = 3.0
        batcher = Batcher(lambda: slow, 8, 0.0)
        batcher.start()
        batcher.opened.result(10)
        futures = [batcher.submit(np.full((3, 16, 24), 1 + number, np.float32)) for number in range(5)]
        slow.go.set()
        failed = [future.exception(10) is not None for future in futures]
        assert failed == [False, False, True, False, False]
        batcher.close()

    def test_a_cancelled_picture_is_left_out(self, make_contract: Any) -> None:
        slow = Slow(make_contract(batch=None))
        batcher = Batcher(lambda: slow, 8, 0.0)
        batcher.start()
        batcher.opened.result(10)
        first = batcher.submit(np.ones((3, 16, 24), np.float32))
        assert slow.running.wait(10)
        gone, kept = (batcher.submit(np.ones((3, 16, 24), np.float32)) for _ in range(2))
        assert gone.cancel()
        slow.go.set()
        assert first.result(10) is not None
        assert kept.result(10) is not None
        assert slow.sizes == [1, 1]
        batcher.close()


@pytest.fixture
def slow(make_contract: Any, monkeypatch: pytest.MonkeyPatch) -> Slow:
    network = Slow(make_contract(batch=None))
    monkeypatch.setattr(service_module, "open_session", lambda *_, **__: network)
    return network


def in_threads(client: TestClient, count: int) -> tuple[list[threading.Thread], list[Any]]:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/v1/mask", content=PNG))) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads, answers


class TestLimits:
    def test_a_full_queue_answers_429(self, slow: Slow, tmp_path: Path) -> None:
        with serving({"tiny": tmp_path}, queue=3, batch=1) as client:
            threads, answers = in_threads(client, 3)
            assert slow.running.wait(10)
            waiting = "sodeploy_accepted_pictures 3.0"
            while waiting not in client.get("/metrics").text:
                time.sleep(0.01)
            refused = client.post("/v1/mask", content=PNG)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
            assert int(refused.headers["Retry-After"]) >= 1
            assert client.get("/healthz").status_code == 200
            slow.go.set()
            for thread in threads:
                thread.join()
            assert [answer.status_code for answer in answers] == [200] * 3
            assert client.post("/v1/mask", content=PNG).status_code == 200
            assert 'sodeploy_refused_total{code="busy"} 1.0' in client.get("/metrics").text

    def test_a_deadline_answers_504(self, slow: Slow, tmp_path: Path) -> None:
        with serving({"tiny": tmp_path}, deadline_s=0.2) as client:
            answer = client.post("/v1/mask", content=PNG)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
            slow.go.set()
            assert client.post("/v1/mask", content=PNG).status_code == 200

    def test_a_network_that_fails_answers_500(
        self, slow: Slow, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        slow.go.set()
        with serving({"tiny": tmp_path}) as client:
            slow.broken_at = preprocess(image(), slow.contract)[0, 0, 0]
            answer = client.post("/v1/mask", content=PNG)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
            assert client.post("/v1/mask", content=png(image(1))).status_code == 200
        assert "model tiny: a layer failed" in capfd.readouterr().err

    def test_a_map_that_is_not_finite_answers_500(self, slow: Slow, tmp_path: Path) -> None:
        slow.go.set()
        with serving({"tiny": tmp_path}) as client:
            infer = slow.infer
            slow.infer = lambda batch: infer(batch) * np.float32("nan")  # type: ignore[method-assign]
            answer = client.post("/v1/mask", content=PNG)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")

    def test_a_defect_answers_500_and_tells_nothing(
        self, slow: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("the text names a picture")

        slow.go.set()
        with serving({"tiny": tmp_path}) as client:
            monkeypatch.setattr(service_module, "finish", broken)
            answer = client.post("/v1/mask", content=PNG)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        logged = capfd.readouterr().err
        assert "a defect of the service: RuntimeError at test_serve.py:" in logged
        assert "names a picture" not in logged + answer.text


class TestStart:
    def test_not_ready_while_a_model_loads(
        self, make_contract: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = threading.Event()
        network = Slow(make_contract())
        network.go.set()

        def load(*_: object, **__: object) -> Slow:
            assert loaded.wait(30)
            return network

        monkeypatch.setattr(service_module, "open_session", load)
        with TestClient(make_app(Settings({"tiny": tmp_path}))) as client:
            assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (503, {"status": "loading"})
            assert client.get("/healthz").status_code == 200
            refused = client.post("/v1/mask", content=PNG)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
            loaded.set()
            while client.get("/readyz").status_code != 200:
                time.sleep(0.01)
            assert client.post("/v1/mask", content=PNG).status_code == 200

    def test_a_model_that_cannot_be_opened(self, save_model: SaveModel) -> None:
        stopped = threading.Event()
        app = make_app(Settings({"tiny": save_model(with_contract=False)}), stopped.set)
        with TestClient(app) as client:
            assert stopped.wait(30)
            answer = client.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["status"] == "failed"
            assert "has no sodeploy contract" in answer.json()["reason"]


def test_the_metrics_count(client: TestClient) -> None:
    for _ in range(3):
        client.post("/v1/mask", content=PNG)
    client.post("/v1/mask", content=b"x")
    text = client.get("/metrics").text
    assert 'sodeploy_requests_total{path="/v1/mask",status="200"} 3.0' in text
    assert 'sodeploy_requests_total{path="/v1/mask",status="422"} 1.0' in text
    assert 'sodeploy_pictures_total{model="tiny"} 3.0' in text
    assert 'sodeploy_batch_pictures_count{model="tiny"} 3.0' in text


def test_the_output_of_the_network_decides(slow: Slow, tmp_path: Path) -> None:
    slow.go.set()
    with serving({"tiny": tmp_path}) as client:
        answer = client.post("/v1/mask", content=PNG)
    tensor = preprocess(image(), slow.contract)
    np.testing.assert_array_equal(decoded(answer.content), postprocess(tensor[0], slow.contract, (40, 50)))
