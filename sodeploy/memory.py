"""When this process gives freed memory back to the system."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_BLOCK = 2**19  # bytes; a histogram of calibration, of which most pages are never touched, is twice as large


def free_large_blocks_at_once() -> None:
    """Give a block of half a MiB or more back to the system when it is freed, for the rest of this process.

    glibc does so at first, but from the first freed block of up to 32 MiB on it keeps all blocks of that size and
    below in its heaps, between blocks that live. In a build that is up to half of the peak. The price is that new
    blocks are zeroed by the system. Other C libraries are left as they are.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _BLOCK)
