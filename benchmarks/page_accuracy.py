"""Section of ``accuracy.py``: do offsets help?"""

from collections.abc import Iterator
from typing import Any

from accuracy_results import summary
from accuracy_suites import SUITES
from page import machine_line, section


@section("accuracy", "Do offsets help?", order=60)
def accuracy(result: dict[str, Any]) -> Iterator[str]:
    """One table for each suite that has rows."""
    yield (
        "mIoU of one recipe with the plain classifier and with offsets: the mean over seeds with "
        "its sample standard deviation, and the difference to the plain arm's runs of the same "
        "seeds. The recipe was tuned on the plain arm alone. The experiment goes on: a table may "
        "hold fewer than three seeds, and a single one proves nothing."
    )
    for name in (name for name in SUITES if name in result):
        rows = result[name]["rows"]
        yield f"### {result[name]['title']}"
        yield summary(rows, SUITES[name])
        yield (
            f"`python benchmarks/accuracy.py --suite {name}`  \n"
            f"{machine_line({**rows[-1]['machine'], 'load': None})}"
        )
