"""Whether losses stay below limits, as an exit status and as JUnit XML for a CI server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from sodeploy.artifacts import write_text
from sodeploy.runtime.measure.budget import Budget
from sodeploy.runtime.measure.differences import FEWEST_IMAGES
from sodeploy.runtime.measure.metrics import METRICS
from sodeploy.runtime.measure.record import BenchRecord, Row
from sodeploy.runtime.measure.report import decimal

EXIT_STATUS = 3  # of a bench whose limits are exceeded; 1 is an error, 2 a wrong call


@dataclass(frozen=True)
class Check:
    """One limit on one model.

    Attributes:
        model: the row's name.
        bound: the upper end of the 95 % interval of the loss; None: too few images for one.
    """

    dataset: str
    model: str
    metric: str
    loss: float
    bound: float | None
    allowed: float

    @property
    def passed(self) -> bool:
        return self.bound is not None and self.bound <= self.allowed

    def __str__(self) -> str:
        label, loss, allowed = METRICS[self.metric].label, decimal(self.loss), decimal(self.allowed)
        start = f"{self.model} on {self.dataset}: loss of {label} {loss}"
        if self.bound is None:
            return f"{start}, without an interval, which needs {FEWEST_IMAGES} images; {allowed} allowed"
        return f"{start}, at 95 % up to {decimal(self.bound)}; {allowed} allowed"


def checks(records: Sequence[BenchRecord], limits: Budget) -> list[Check]:
    """Each limit on each model but the baseline."""
    return [
        _check(record.dataset, row, metric, allowed)
        for record in records
        for row in record.rows[1:]
        for metric, allowed in limits.items()
    ]


def junit(found: Sequence[Check]) -> str:
    """JUnit XML: a test case for each check."""
    failures = sum(not check.passed for check in found)
    counts = {"tests": str(len(found)), "failures": str(failures), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "sodeploy bench", **counts})
    for check in found:
        names = {"classname": f"{check.dataset}.{check.model}", "name": METRICS[check.metric].label, "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", names)
        if not check.passed:
            failure = ElementTree.SubElement(case, "failure", {"message": str(check), "type": "loss"})
            failure.text = str(check)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(found: Sequence[Check], path: Path) -> None:
    """Write `junit` to a file."""
    write_text(path, junit(found))


def _check(dataset: str, row: Row, metric: str, allowed: float) -> Check:
    difference, one = row.delta[metric], METRICS[metric]
    bound = None if difference.ci95 is None else max(one.worse_by(end) for end in difference.ci95)
    return Check(dataset, row.name, metric, one.worse_by(difference.value), bound, allowed)
