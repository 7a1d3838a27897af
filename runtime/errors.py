"""Errors of a GPU. They stand apart from gpu/, so that a machine without a GPU needs nothing of it."""

from sodeploy.errors import UserError


class OutOfDeviceMemory(UserError):
    """The GPU has too little free memory for the request."""


class OutOfPinnedMemory(UserError):
    """The host has too little page-locked memory for the request; the GPU may have room."""


class DeviceError(UserError):
    """Work on the GPU failed; work that comes later may succeed."""


class DeviceLost(DeviceError):
    """The GPU's context has ended, for example by an illegal access or an uncorrectable memory error: nothing can
    run in this process any more."""
