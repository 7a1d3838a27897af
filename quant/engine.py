"""An ONNX graph -> an engine, by TensorRT 10.8 or newer, TensorRT 11, or TensorRT-RTX, through one small builder.

The network is strongly typed: precision is what the graph says (quant/emit.py), no flag changes it. TensorRT times
kernels on the GPU at hand and builds for that one; TensorRT-RTX compiles for named compute capabilities without a GPU.
"""

import importlib.util
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from quant.graph_input import GraphInput, read_input
from quant.kernels_report import Kernel, kernels_in_inspector, kernels_in_log, summary
from runtime.contract import Contract
from runtime.engine_record import INSTALL, Builder
from runtime.gpu import current_gpu, driver_problem
from sodeploy.artifacts import atomic_write, write_manifest
from sodeploy.errors import UserError
from sodeploy.terminal import phases
