"""One self-contained HTML file about a bench: for the person who must say whether int8 may ship."""

import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sodeploy.artifacts import manifest_path, read_manifest, require_file, write_text
from sodeploy.errors import UserError
from sodeploy.runtime.measure.budget import Budget
from sodeploy.runtime.measure.metrics import METRICS
from sodeploy.runtime.measure.report import bench_tables, decimal, interval
from sodeploy.runtime.review import figures
from sodeploy.runtime.review.evidence import Evidence
from sodeploy.runtime.review.gate import checks
from sodeploy.runtime.review.regions import REGIONS
from sodeploy.stages import command

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Extras:
    """Files of the quantizer that a report shows where they are given.

    Attributes:
        plan: a plan that `build_engine` wrote.
        layers: a record that `layers` wrote with --json.
    """

    plan: Path | None = None
    layers: Path | None = None

    def check(self) -> None:
        """
        Raises:
            UserError: a file is missing or is not such a record.
        """
        if self.plan is not None:
            _plan(self.plan)
        if self.layers is not None:
            _costs(self.layers)


def require_page() -> None:
    """
    Raises:
        UserError: a package that reports need is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"a report needs {error.name}; install it: pip install 'sodeploy[report]'") from None


def write_page(
    found: Sequence[Evidence], path: Path, limits: Budget | None = None, extras: Extras | None = None
) -> None:
    """Write the report on one or more data sets.

    Args:
        limits: losses that may not be exceeded; the first screen says whether they are.

    Raises:
        UserError: a package is missing, or a file of `extras` is broken.
    """
    require_page()
    import jinja2

    extras = extras or Extras()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    text = template.render(
        sets=[_section(evidence, limits) for evidence in found],
        title=f"{found[0].record.rows[0].network}: {len(found[0].record.rows)} models",
        regions=REGIONS,
        plan=_plan(extras.plan) if extras.plan else None,
        sensitivity=_sensitivity(extras.layers, extras.plan) if extras.layers else None,
        manifests=[_manifest(Path(row.model)) for row in found[0].record.rows],
        environment=[
            ("hardware", found[0].record.hardware),
            ("CPU threads", found[0].record.threads),
            *found[0].record.versions.items(),
        ],
    )
    write_text(path, text)


def _section(evidence: Evidence, limits: Budget | None) -> dict[str, Any]:
    record = evidence.record
    several = len(record.rows) > 1
    compared = record.rows[evidence.compared] if evidence.compared is not None else None
    drawn = {"Precision, recall and F": figures.curves(evidence), "Time by stage": figures.latency(evidence)}
    if several:
        drawn = {"Differences, with 95 % intervals": figures.forest(evidence), **drawn}
    return {
        "record": record,
        "cards": [_card(evidence, index, limits) for index in range(1, len(record.rows))],
        "advice": record.recommendation.text,
        "tables": bench_tables(record),
        "figures": {name: _inline(drawing) for name, drawing in drawn.items()},
        "regions": _inline(figures.regions(evidence)) if several else None,
        "compared": compared,
        "metric": METRICS[evidence.metric].label,
        "examples": [
            (heading, [(example, _change(example.change), figures.pictures(example)) for example in examples])
            for heading, examples in (("Lost most", evidence.lost), ("Gained most", evidence.gained))
            if examples
        ],
    }


def _card(evidence: Evidence, index: int, limits: Budget | None) -> dict[str, Any]:
    """A model on the first screen: its verdict, its losses and its gain in time and size."""
    record = evidence.record
    row, baseline = record.rows[index], record.rows[0]
    found = [check for check in checks([record], limits or {}) if check.model == row.name]
    verdict = ("passes" if all(check.passed for check in found) else "fails") if found else "no limit given"
    keys = [*(limits or {}), *(key for key in row.metrics if METRICS[key].is_headline and key not in (limits or {}))]
    return {
        "row": row,
        "verdict": verdict,
        "checks": [str(check) for check in found if not check.passed],
        "losses": [
            (METRICS[key].label, decimal(row.metrics[key]), interval(row.delta[key]), (limits or {}).get(key))
            for key in keys
        ],
        "time": None if row.stand_in else row.time_ratio,
        "stand_in": row.stand_in,
        "size": row.size_mib / baseline.size_mib,
    }


def _plan(path: Path) -> dict[str, Any]:
    """How many layers run in each precision and why, and those that stay in float by name."""
    layers = _layers(path)
    return {
        "path": path,
        "counts": Counter((precision, reason) for _, _, precision, reason in layers).most_common(),
        "kept": [layer for layer in layers if layer[2] != "int8"],
    }


def _layers(path: Path) -> list[tuple[str, str, str, str]]:
    """Name, operator, precision and reason of each layer of a plan."""
    plan = _read_json(path, "build_engine writes it")
    try:
        return [(name, layer["op"], layer["precision"], layer["reason"]) for name, layer in plan["layers"].items()]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no plan; give the .plan.json that build_engine wrote") from None


def _sensitivity(path: Path, plan: Path | None) -> dict[str, Any]:
    """The cost of each layer, in the order of the plan's layers where there is one: that of the network."""
    costs, images = _costs(path)
    if plan is not None:
        order = {name: place for place, (name, *_) in enumerate(_layers(plan))}
        costs.sort(key=lambda cost: order.get(cost[0], len(order)))
    return {"path": path, "figure": _inline(figures.sensitivity(costs)), "images": images}


def _costs(path: Path) -> tuple[list[tuple[str, float]], int]:
    """The map's error with each layer alone in int8, as the record has them, and the number of images."""
    report = _read_json(path, "layers --json writes it")
    try:
        return [(str(row["node"]), float(row["map_error"])) for row in report["rows"]], len(report["images"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no report on layers; write one: {command('layers')} --json {path}") from None


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(require_file(path, remedy).read_text())
    except ValueError:
        raise UserError(f"{path} is no JSON; {remedy}") from None


def _manifest(model: Path) -> tuple[str, str]:
    """A model's path and its manifest as text."""
    if not manifest_path(model).is_file():
        return str(model), "no manifest lies beside it"
    return str(model), json.dumps(read_manifest(model), indent=1, ensure_ascii=False)


def _inline(drawing: str) -> Any:
    """A drawing of ours, which the template does not escape."""
    from markupsafe import Markup

    return Markup(drawing)


def _change(change: float) -> str:
    return html.escape(f"{'worse' if change > 0 else 'better'} by {decimal(abs(change))}")
