"""A window that shows pictures one after another."""

from types import TracebackType

import cv2
import numpy as np

from sodeploy.errors import UserError

_LARGEST = (1280, 720)  # of a picture in the window, in pixels; a larger one is shown smaller
_CHECK = 16  # pixels of a square of the board behind a transparent picture


class Window:
    """A window on the desktop, by tkinter of Python's standard library; Escape, q or its button closes it."""

    def __init__(self, title: str) -> None:
        """
        Raises:
            UserError: there is no display, or this Python has no tkinter.
        """
        try:
            import tkinter
        except ImportError:
            raise UserError("a window needs tkinter, which this Python lacks: apt-get install python3-tk") from None
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise UserError(
                f"there is no display for a window ({error}); run this on a desktop, or forward its display: ssh -X"
            ) from None
        self._photo_of = tkinter.PhotoImage
        self._root.title(title)
        self._root.resizable(False, False)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._open = True
        self._root.protocol("WM_DELETE_WINDOW", self._end)
        for key in ("<Escape>", "q"):
            self._root.bind(key, lambda _: self._end())

    def show(self, picture: np.ndarray) -> bool:
        """Show a picture in the place of the one before; False once the user has closed the window.

        Args:
            picture: uint8, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, which is shown on a checked board.
        """
        if self._open:
            photo = self._photo_of(data=ppm(picture))
            self._label.configure(image=photo)
            self._shown = photo  # tkinter itself keeps no reference
            self._root.update()
        return self._open

    def close(self) -> None:
        self._root.destroy()

    def _end(self) -> None:
        self._open = False

    def __enter__(self) -> "Window":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ppm(picture: np.ndarray) -> bytes:
    """A picture as a binary PPM file, which every tkinter reads; made smaller to fit the window.

    Args:
        picture: uint8, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA.
    """
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    elif picture.shape[2] == 4:
        picture = _on_board(picture)
    height, width = picture.shape[:2]
    factor = min(1.0, _LARGEST[0] / width, _LARGEST[1] / height)
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    height, width = picture.shape[:2]
    return b"P6 %d %d 255\n" % (width, height) + np.ascontiguousarray(picture).tobytes()


def _on_board(picture: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(picture.shape[:2], sparse=True)
    board = np.where((rows // _CHECK + columns // _CHECK) % 2, np.uint8(200), np.uint8(120))
    alpha = picture[..., 3:].astype(np.float32) / 255
    mixed = picture[..., :3] * alpha + board[..., None] * (1 - alpha)
    return np.rint(mixed).astype(np.uint8)
