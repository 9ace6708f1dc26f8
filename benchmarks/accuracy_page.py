"""docs/ACCURACY.md from the recorded rows of the accuracy experiment.

Summaries have arms with at least three seeds alone; the others stand at the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accuracy_results import CONFIDENCE, Estimate, Row, by_seed, estimate, paired_differences
from accuracy_suites import ARMS, CHANGES, SUITES, Suite
from page import machine_line, table

FEWEST_SEEDS = 3
HEAD = """\
# Do offsets help?

<!-- Written by benchmarks/make_page.py from benchmarks/results/accuracy; changes get lost. -->

**What we found, and what to do:**

- For your own data take the recipes of `configs/own_data`: their offsets have no norm over the
  classes (`MODEL.SEM_SEG_HEAD.CLASS_NORM False`) and begin at zero
  (`MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD 0`).
- Train plain as well (`MODEL.SEM_SEG_HEAD.CLASSIFIER plain`), and keep what is better on your
  validation images: nothing here proves that offsets are.
- In drawn scenes of 8, 32 and 150 classes this form had a higher mean than the plain classifier,
  each time within the uncertainty of three seeds.
- The result at 8 classes favours it: it was chosen among several forms by the first seed there, on
  the same validation images.
- On CamVid, SegFormer-B0 from scratch, it was below plain in the one seed that we ran.
- The authors' form was below plain in every seed at 8, 32 and 150 classes, and most at 32. With 150
  classes these runs are far too short: no score reaches 10.
- On CamVid the authors' form is below plain, too; there, projections that learn at a tenth of the
  head's rate recover most of it.
- Do not expect the class vectors to come closer to their pixels: most of the class offsets is the
  same for all classes (see the angles).
- Use the authors' form for their checkpoints, which need it. Each checkpoint belongs to one form,
  and is refused for the other.
- Compare with three seeds of your own. None of this speaks of long trainings, nor of 150 classes in
  photographs, for which the paper reports gains of 1 to 3 points.

These are small experiments on a CPU: one recipe, trained with the plain classifier and with
offsets, with several seeds each. The recipe was tuned with the plain classifier only, on
validation data. They do not reproduce scores of the paper.

Each table has the mean mIoU over seeds with its sample standard deviation, the difference to the
plain classifier's runs with the same seeds, and the 95 % interval of its mean (Student's t). An arm
is called better or worse only if this holds for all comparisons of its suite together (Bonferroni
intervals); otherwise it is undecided. An asterisk marks a seed whose two runs were made with
different versions of the code.

- *lr×0.1*: the two projections of offset learning learn at a tenth of the head's rate
  (`SOLVER.OFFSET_LR_FACTOR 0.1`). The factor was chosen on validation data for the offsets.
- *norm*: the offset classifier of the authors' models has a layer norm over the K scores of a
  pixel, which the paper's text does not mention. It limits a score to √(K − 1) times the norm's
  learned gain, plus its bias. *No norm* is `MODEL.SEM_SEG_HEAD.CLASS_NORM False`. *No offsets, no
  norm* is a linear classifier without bias and dropout.
- *from zero*: the projections are zero at first (`MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD 0`).

The arms without offsets and those with *lr×0.1* were added after the first results.
"""
ARM_HEADER = ("condition", "arm", "seeds", "mIoU", "minus plain", "by seed", "verdict")
CHANGE_HEADER = ("from", "to", "condition", "seeds", "mIoU changes by", "by seed")


def accuracy_page(results: Mapping[str, Any]) -> str:
    """The page in Markdown.

    Args:
        results: name of a suite -> content of its file.
    """
    parts = [HEAD]
    few: list[str] = []
    for name in (name for name in SUITES if name in results):
        suite, rows = SUITES[name], results[name]["rows"]
        if list(arm_lines(rows, suite)):
            parts += [f"## {suite.title}", *_suite(name, suite, rows)]
        arms, changes = (
            list(arm_lines(rows, suite, few=True)),
            list(change_lines(rows, suite, True)),
        )
        if arms or changes:
            few.append(f"### {suite.title}, fewer than three seeds")
        few += [table(ARM_HEADER[:-1], [line[:-1] for line in arms])] if arms else []
        few += [table(CHANGE_HEADER, changes)] if changes else []
    if "misalignment" in results:
        parts += misalignment_section(results["misalignment"])
    if few:
        warning = "These rows rest on one or two seeds. They prove nothing and are not summarised."
        parts += ["## Rows with fewer than three seeds", warning, *few]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _suite(name: str, suite: Suite, rows: Sequence[Row]) -> Iterator[str]:
    yield f"Final mIoU on `{suite.test_set or suite.curve_set}`."
    yield table(ARM_HEADER, arm_lines(rows, suite))
    if changes := list(change_lines(rows, suite)):
        yield "Effects of single changes, each interval for its line only:"
        yield table(CHANGE_HEADER, changes)
    curves = "Loss and scores while training: mean and range over seeds"
    for condition in suite.conditions:
        title = f"{curves}, {condition}." if condition else f"{curves}."
        yield f"![{title}]({plot_file(name, 'curves', condition)})\n\n*{title}*"
    if len(suite.conditions) > 1:
        title = f"Difference to plain by {suite.axis}: seeds, mean, 95 % interval."
        yield f"![{title}]({plot_file(name, 'gain')})\n\n*{title}*"
    days = sorted({row["machine"]["date"] for row in rows})
    dates = " to ".join(dict.fromkeys((days[0], days[-1])))
    machine = machine_line({**rows[-1]["machine"], "load": None, "date": dates})
    yield f"`python benchmarks/accuracy.py --suite {name}`  \n{machine}"


def plot_file(name: str, kind: str, condition: str = "") -> str:
    """Picture of a suite in docs/, which ``accuracy.py --plots`` draws."""
    return "_".join(part for part in ("accuracy", name, condition, kind) if part) + ".png"


def arm_lines(rows: Sequence[Row], suite: Suite, few: bool = False) -> Iterator[list[Any]]:
    """Lines of the arms with at least three seeds, or of those with fewer."""
    pairs = [(condition, arm) for condition in suite.conditions for arm in ARMS]
    runs = {pair: by_seed(rows, *pair) for pair in pairs}
    chosen = [pair for pair in pairs if runs[pair] and (len(runs[pair]) < FEWEST_SEEDS) == few]
    comparisons = sum(arm != "plain" for _, arm in chosen)
    confidence = 1 - (1 - CONFIDENCE) / max(comparisons, 1)
    for condition, arm in chosen:
        score = estimate([row["final"]["mIoU"] for row in runs[condition, arm].values()])
        line = [condition or "-", ARMS[arm].title, score.count, _text(score, score.deviation, "")]
        differences = paired_differences(rows, condition, arm) if arm != "plain" else {}
        if differences:
            difference = estimate(list(differences.values()))
            verdict = _verdict(estimate(list(differences.values()), confidence))
            line += [_text(difference, difference.half_width, "+")]
            line += [_seeds(rows, condition, (arm, "plain"), differences), verdict]
        yield line + [None] * (len(ARM_HEADER) - len(line))


def change_lines(rows: Sequence[Row], suite: Suite, few: bool = False) -> Iterator[list[Any]]:
    """Lines of single changes with at least three seeds, or of those with fewer."""
    for before, after in CHANGES:
        for condition in suite.conditions:
            differences = paired_differences(rows, condition, after, before)
            if differences and (len(differences) < FEWEST_SEEDS) == few:
                change = estimate(list(differences.values()))
                yield [
                    *(ARMS[before].title, ARMS[after].title, condition or "-", change.count),
                    _text(change, change.half_width, "+"),
                    _seeds(rows, condition, (after, before), differences),
                ]


def misalignment_section(result: Mapping[str, Any]) -> Iterator[str]:
    """Paragraphs on the angles that ``misalignment.py`` measured."""
    yield "## Angles between class vectors and their pixels"
    yield (
        "Of each image and class: the angle between the mean feature of the class's pixels "
        "(labels of the data set) and its class vector, without and with what the offsets add, in "
        "degrees. What all class vectors share is left out, as it decides nothing. Means over the "
        "images, then over the classes. *Common*: the share of the class offsets' squared lengths "
        "that is the same for all classes."
    )
    header = ("run", "images", "before", "after", "classes that come closer", "common")
    yield table(header, [_angles(row) for row in result["rows"]])
    command = "python benchmarks/misalignment.py output/accuracy/scenes_classes/*both*seed1"
    yield f"`{command} --output ...`  \n{machine_line(result['machine'])}"


def _angles(row: Mapping[str, Any]) -> list[Any]:
    pairs = [
        (before, after)
        for before, after in zip(row["before"], row["after"], strict=True)
        if before is not None
    ]
    before, after = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    closer = sum(after < before for before, after in pairs)
    counts = f"{closer} of {len(pairs)}"
    return [row["run"], row["images"], f"{before:.1f}", f"{after:.1f}", counts, row["common"]]


def _verdict(difference: Estimate) -> str:
    if difference.mean - difference.half_width > 0:
        return "better"
    return "worse" if difference.mean + difference.half_width < 0 else "undecided"


def _seeds(
    rows: Sequence[Row], condition: str, arms: tuple[str, str], differences: Mapping[int, float]
) -> str:
    """Difference of each seed, marked where different versions of the code made its runs."""
    first, second = (by_seed(rows, condition, arm) for arm in arms)

    def versions(row: Row) -> list[str]:
        return [code["digest"] for code in row["code"]]

    return ", ".join(
        f"{seed}: {value:+.2f}{'*' * (versions(first[seed]) != versions(second[seed]))}"
        for seed, value in differences.items()
    )


def _text(value: Estimate, spread: float, sign: str) -> str:
    text = f"{value.mean:{sign}.2f}"
    return text if value.count < 2 else f"{text} ± {spread:.2f}"
