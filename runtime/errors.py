"""Errors of a GPU. They stand apart from gpu/, so that a machine without a GPU needs nothing of it."""

from sodeploy.errors import UserError


class OutOfDeviceMemory(UserError):
    """The GPU has too little free memory for the request."""


class DeviceError(UserError):
    """Earlier work on the GPU failed, for example a kernel or an engine that wrote out of bounds."""
