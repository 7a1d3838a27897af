"""The pictures of a webcam, as they come."""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

import cv2
import numpy as np

from sodeploy.errors import UserError

_PATIENCE_S = 10.0  # for the first picture, and between two


class Capture(Protocol):
    """An open camera."""

    def read(self) -> np.ndarray | None:
        """Wait for the next picture, (H, W, 3) uint8 RGB; None once there are no more."""

    def close(self) -> None: ...


class OpenCvCapture:
    """A camera by its number, by the driver that OpenCV has for this system."""

    def __init__(self, number: int) -> None:
        """
        Raises:
            UserError: there is no such camera, or another program has it.
        """
        self._number = number
        self._video = cv2.VideoCapture(number)
        if not self._video.isOpened():
            raise UserError(
                f"webcam {number} cannot be opened: there is none of that number, or another program uses it; give "
                "another number, 0 is the first"
            )
        self._video.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # pictures that wait in the driver are old

    def read(self) -> np.ndarray | None:
        taken, picture = self._video.read()
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if taken else None

    def close(self) -> None:
        self._video.release()


# How a camera is opened, by the name of the library; tests put a file or an array into the place of a device.
OPENERS: dict[str, Callable[[int], Capture]] = {"opencv": OpenCvCapture}


def open_webcam(number: int) -> Capture:
    """Open a webcam; see `OpenCvCapture`."""
    return OPENERS["opencv"](number)


class Newest:
    """The newest picture of a camera, whenever one is asked for; pictures that nobody asked for in time are dropped.

    So a network that is slower than the camera shows what is now, not what was. A context manager.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._changed = threading.Condition()
        self._picture: np.ndarray | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="webcam", daemon=True)

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield pictures (H, W, 3) uint8 RGB until the camera ends.

        Raises:
            UserError: the camera gives no picture for ten seconds.
        """
        while True:
            with self._changed:
                ready = self._changed.wait_for(lambda: self._picture is not None or self._ended, _PATIENCE_S)
                if not ready:
                    raise UserError(
                        f"the webcam has given no picture for {_PATIENCE_S:.0f} seconds; connect it anew, or give "
                        "another number"
                    )
                picture, self._picture = self._picture, None
            if picture is None:
                if self._error is not None:
                    raise self._error
                return
            yield picture

    def _watch(self) -> None:
        try:
            while not self._ended and (picture := self._capture.read()) is not None:
                with self._changed:
                    self._picture = picture
                    self._changed.notify()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __enter__(self) -> "Newest":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._thread.join(timeout=_PATIENCE_S)
        self._capture.close()
