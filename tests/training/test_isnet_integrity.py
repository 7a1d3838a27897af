"""The integrity ISNet."""

from calibrated_case import CalibratedCase


class TestISNetIntegrity(CalibratedCase):
    name = "isnet_integrity"
    params_m, gmacs = 63.676, 61.50
    cases = ("C64x64", "C70x100", "C320x320")
    maps = ("out2", "out3", "out4", "out5", "coarse")
    logit_atol = 2e-3
    learning_rate = 1e-4
