"""The table of networks."""

import pytest

from sodeploy.training import networks
from sodeploy.training.models import NETWORKS


def test_the_table_prints_parameters_and_macs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    chosen = {name: NETWORKS[name] for name in ("u2netp", "isnet_gt_encoder", "csnet_x2", "ras_v1")}
    monkeypatch.setattr(networks, "NETWORKS", chosen)
    networks.main(size=None)
    cells = [[cell.strip() for cell in line.strip("│\n").split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["u2netp", "320x320", "1.131", "19.756"] in cells
    assert ["csnet_x2", "224x224", "0.141", "0.496"] in cells
    assert ["ras_v1", "352x352", "24.698", "15.091"] in cells
    assert [row.macs for row in networks.table(320) if row.name == "isnet_gt_encoder"] == [
        pytest.approx(2.295e9, rel=1e-3)
    ]


def test_networks_that_do_not_take_a_size_stand_in_the_table_without_macs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(networks, "NETWORKS", {name: NETWORKS[name] for name in ("u2netp", "csnet_x1")})
    networks.main(size=319)
    printed = capsys.readouterr()
    cells = [[cell.strip() for cell in line.strip("│\n").split("│")] for line in printed.out.splitlines()]
    assert ["u2netp", "319x319", "1.131", "19.672"] in cells
    assert ["csnet_x1", "319x319", "0.094", "-"] in cells
    assert "319x319 is no size of csnet_x1" in " ".join(printed.err.split())
