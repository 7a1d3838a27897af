"""GPTQ: the weights of a layer are rounded jointly to minimize the layer's output error.

Rounding a weight to its nearest step errs by up to half a step. The inputs of a layer are correlated, so the weights
that are not rounded yet can make up for most of that error: after each column of the weight is rounded, the other
columns move to minimize the error on the inputs that calibration images give (E. Frantar et al., "GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023, equations 2 and 3; columns with the
largest inputs come first, as in their "act-order"). It is exact arithmetic on the covariance of the inputs: no labels,
no gradients, no training.
"""

import numpy as np
from scipy.linalg.blas import dgemm
from scipy.linalg.lapack import dpotrf, dtrtri

from sodeploy.quant.int8 import STEPS

_DAMPING = 1e-3  # times the mean variance, added to each variance: the samples do not show everything
_BLOCK = 64  # columns whose effect on all later ones is added at once


def round_adaptively(
    weight: np.ndarray, scales: np.ndarray, covariance: np.ndarray, largest: int | np.ndarray = STEPS
) -> np.ndarray:
    """The int8 steps with the smallest error of `weight @ x` for inputs x of the given covariance.

    Args:
        weight: `(groups, C_out, n)`.
        scales: `(groups, C_out)`, the size of a step.
        covariance: `(groups, n, n)`, positive semidefinite; the lower halves are read.
        largest: the largest magnitude in steps, or `(C_out,)` of them.
    """
    limits = np.broadcast_to(np.asarray(largest, np.float64), weight.shape[1:2])
    steps = np.empty(weight.shape, np.int8)
    for group in range(len(weight)):
        _round_group(weight[group], scales[group].astype(np.float64), covariance[group], limits, steps[group])
    return steps


def _round_group(
    weight: np.ndarray, scales: np.ndarray, covariance: np.ndarray, largest: np.ndarray, steps: np.ndarray
) -> None:
    """`round_adaptively` for one group; `steps`, `(C_out, n) int8`, is written."""
    from sodeploy.quant.planning import gptq_loops  # here: compiled code takes long to import

    size = len(covariance)
    variances = np.ascontiguousarray(np.diagonal(covariance))
    damping = _DAMPING * variances.mean() + np.finfo(np.float32).tiny
    order = np.argsort(-variances, kind="stable")
    scale = 1 / np.maximum((variances[order] + damping).mean(), np.finfo(np.float64).tiny)
    factor = _inverse_factor(covariance, order, damping, scale)
    left = weight.T[order].astype(np.float64)  # (n, C_out): BLAS's columns are our rows
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        errors = np.empty((end - begin, len(weight)))
        square, beyond = factor[begin:end, begin:end], factor[begin:end, end:]
        gptq_loops.round_block(
            left[begin:end], np.ascontiguousarray(square), scales, largest, order[begin:end], steps, errors
        )
        if end < size:  # left[end:] -= errors @ beyond, in place
            dgemm(-1, errors.T, np.ascontiguousarray(beyond).T, 1, left[end:].T, trans_b=1, overwrite_c=1)


def _inverse_factor(covariance: np.ndarray, order: np.ndarray, damping: float, scale: float) -> np.ndarray:
    """`(n, n)`: the upper triangular U with U.T @ U = inverse(C), C being the damped, scaled and ordered covariance.

    What lies below U's diagonal has no meaning. Its row i says how later columns make up for an error in column i. Read
    from the last column to the first, C has a lower Cholesky factor whose inverse is U, read likewise: C itself is
    never inverted, which would take three times as long. All is done in the memory of one matrix.
    """
    from sodeploy.quant.planning import gptq_loops

    square = np.empty(covariance.shape)
    gptq_loops.arranged(covariance, order[::-1], damping, scale, square)
    _, failed = dpotrf(square.T, lower=1, clean=0, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError(f"the covariance of a layer's inputs is not positive definite at {failed}")
    gptq_loops.mirror(square)  # LAPACK inverts an upper factor, the transposed one
    dtrtri(square.T, lower=0, overwrite_c=1)
    return square[::-1, ::-1]
