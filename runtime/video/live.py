"""A webcam in a window: its pictures, or what is made with their maps, as they come."""

import contextlib
import time
from pathlib import Path

from sodeploy.runtime.media.conversion import MotionOptions
from sodeploy.runtime.media.frame import Frame
from sodeploy.runtime.media.items import Item
from sodeploy.runtime.media.mapping import Mapper
from sodeploy.runtime.media.pictures import Look, make_picture
from sodeploy.runtime.video.conversion import frames_with_maps
from sodeploy.runtime.video.webcam import Newest, open_webcam
from sodeploy.runtime.video.window import Window


def output_suffix(look: Look, options: MotionOptions) -> str:
    """A window is no file."""
    return ""


def convert(item: Item, target: Path, mapper: Mapper, look: Look, options: MotionOptions) -> list[str]:
    """Show a webcam until the user closes the window or the camera ends.

    Args:
        item: its name is the number of the webcam.
        target: not used.
        mapper: makes maps, with no frames ahead.

    Returns:
        The frames per second, one line.

    Raises:
        UserError: there is no such webcam or no display, or a frame cannot be processed.
    """
    with Newest(open_webcam(int(item.name))) as newest, Window(f"webcam {item.name}, {look.type}") as window:
        count, begin = 0, time.monotonic()
        made = mapper.maps(newest.pictures(), Frame)
        with contextlib.closing(made):
            for one, saliency in frames_with_maps(made, options.smoothing):
                assert one.frame is not None
                count += 1
                if not window.show(make_picture(one.frame, saliency, look)):
                    break
        seconds = time.monotonic() - begin
    return [f"webcam {item.name}: {count} pictures, {count / seconds:.1f} a second"]
