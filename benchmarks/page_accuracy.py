"""Section of ``accuracy.py``: do offsets help?"""

from collections.abc import Iterator
from typing import Any

from accuracy_results import changes, summary, verdicts
from accuracy_suites import SUITES
from page import machine_line, section

# kind of plot (accuracy_plots.py) -> what it shows
_PLOTS = {
    "convergence": "Scores and loss while training: mean and range over seeds.",
    "gain": "Difference to plain by the variation within classes: seeds, mean, and 95 % interval "
    "from three seeds on.",
}


@section("accuracy", "Do offsets help?", order=60)
def accuracy(result: dict[str, Any]) -> Iterator[str]:
    """One table for each suite that has rows."""
    yield (
        "mIoU of one recipe with the plain classifier and with offsets: the mean over seeds with "
        "its sample standard deviation, and the difference to the plain arm's runs of the same "
        "seeds. The recipe was tuned on the plain arm alone. The experiment goes on: a table may "
        "hold fewer than three seeds, and a single one proves nothing."
    )
    yield (
        "Arms with *slow projections* (`--arms class_slow both_slow`): the two projections of "
        "offset learning learn at a tenth of the head's rate (`SOLVER.OFFSET_LR_FACTOR 0.1`). "
        "Features are positive and many, so that one step of a projection may move the class "
        "vectors much further than a step of the vectors themselves, and a head's rate that suits "
        "the plain classifier may be too fast for it. This factor was chosen on validation data "
        "for the offsets; the plain arm had its own tuning."
    )
    yield (
        "Arms with *no norm* (`--arms free class_free both_free`): the offset classifier of the "
        "authors' models, and so that of the other arms, has a layer norm over the K scores of a "
        "pixel, of which the paper's text does not speak. None of these scores can exceed √(K − 1) "
        "times the norm's learned gain, plus its learned bias: with the few classes here, "
        "confidence has to be learned by them; the plots show each arm's training loss. "
        "*Neither offset, norm over classes* (`norm`) has that norm alone, *neither offset, no "
        "norm* (`free`) is a linear classifier without bias and dropout. These two and the arms "
        "with slow projections were added when the first results had come out."
    )
    yield (
        "The suite `scenes_long` is that of the scenes with full variation and four times as many "
        "iterations: does what offsets cost in a short training go away?"
    )
    yield (
        "Arms *from zero* (`--arms both_zero both_free_zero`): the projections are zero at first "
        "(`MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD 0`), so that training begins without offsets."
    )
    for name in (name for name in SUITES if name in result):
        rows = result[name]["rows"]
        yield f"### {result[name]['title']}"
        yield summary(rows, SUITES[name])
        yield from verdicts(rows, SUITES[name])
        if table := changes(rows, SUITES[name]):
            yield (
                "What single changes do, between arms whose recipes differ in nothing else, by "
                "seed and with the 95 % interval of the mean (of each line alone):"
            )
            yield table
        yield from _plots(name, len(SUITES[name].conditions) > 1)
        yield (
            f"`python benchmarks/accuracy.py --suite {name}`  \n"
            f"{machine_line({**rows[-1]['machine'], 'load': None, 'date': _dates(rows)})}"
        )


def _dates(rows: list[dict[str, Any]]) -> str:
    """The day of all rows, or the first and the last one."""
    days = sorted({row["machine"]["date"] for row in rows})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def _plots(suite: str, has_strengths: bool) -> Iterator[str]:
    """The pictures that ``accuracy.py --summary`` draws into docs/."""
    for kind, text in _PLOTS.items():
        if kind != "gain" or has_strengths:
            yield f"![{text}](accuracy_{suite}_{kind}.png)\n\n*{text}*"
