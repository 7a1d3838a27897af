"""What may be lost: how it is written, and when a measured loss keeps to it."""

import pytest

from sodeploy.errors import UserError
from sodeploy.runtime.measure.budget import Verdict, parse_budget
from sodeploy.runtime.measure.differences import Delta


def test_budgets() -> None:
    assert parse_budget("s=0.002, mae=0.001") == {"s": 0.002, "mae": 0.001}
    verdict = Verdict({"s": Delta(-0.001, -0.0019, 0), "mae": Delta(0.0005, 0, 0.0012)})
    assert verdict.fits({"s": 0.002})
    assert not verdict.fits({"s": 0.002, "mae": 0.001})
    assert not Verdict({}).fits({"s": 0.002})
    assert Verdict({"s": Delta(-0.001, -0.004, 0.002)}).images_to_fit({"s": 0.002, "mae": 0.1}, 20) is None  # no mae
    assert Verdict({"s": Delta(-0.001, -0.004, 0.002)}).images_to_fit({"s": 0.002}, 20) == 180  # a third of the width
    assert Verdict({"s": Delta(-0.003, -0.004, 0.002)}).images_to_fit({"s": 0.002}, 20) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no metric"),
        ("fscore=0.1", "'fscore' is no metric; .* mae, mean_f"),
        ("s", "'' is no number"),
        ("s=little", "'little' is no number"),
        ("s=0", "s=0 is not between 0 and 1; every rounding changes a map"),
        ("s=-0.1", "s=-0.1 is not between"),
        ("s=nan", "s=nan is not between"),
    ],
)
def test_a_budget_gone_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_budget(text)
