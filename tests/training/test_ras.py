"""RAS, both versions."""

from calibrated_case import CalibratedCase


class TestRASv1(CalibratedCase):
    name = "ras_v1"
    params_m, gmacs, gmacs_size = 24.698, 15.09, 352
    cases = ("C64x64", "C70x100", "C352x352")
    maps = ("score1", "score2", "score3", "score4", "score5")


class TestRASv2(CalibratedCase):
    name = "ras_v2"
    params_m, gmacs, gmacs_size = 24.585, 11.52, 352
    cases = ("C64x64", "C70x100", "C352x352")
    maps = ("score2", "score3", "score4", "score5")
