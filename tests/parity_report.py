"""Prints how far this project is from the authors' code: ``python -m tests.parity_report DIR``.

DIR holds reference cases (``*.npz``), recognised by their names. One line per compared tensor:
case, tensor, largest difference, tolerance, PASS or FAIL; SKIP with the reason for models that the
project does not build. Exit status 1 if anything fails.
"""

import argparse
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.parity import mask2former, models, modules
from tests.parity.case import ParityCase, Row, SkipCase

Runner = Callable[[ParityCase], Iterator[Row]]

# First match wins; patterns are those of fnmatch.
RUNNERS: tuple[tuple[str, Runner], ...] = (
    ("A_offset_learning_mask*", modules.offset_masks),
    ("A_offset_learning*", modules.offset_classifier),
    ("B_carafe*", modules.carafe_cases),
    ("B_freqfusion_*", modules.freq_fusion),
    ("C_efficientformerv2_*", models.backbone),
    ("D_*", models.segmentor),
    ("DX_*", models.segmentor),
    ("E_*", models.segmentor),
    ("F_*", models.segmentor),
    ("G_mask2former_*_train*", mask2former.training_losses),
    ("G_mask2former_*", mask2former.predictions),
    ("H_mask2former_*", mask2former.pipeline),
    ("H_*", models.pipeline),
    ("I_*", models.training_loss),
    ("J_iou_metric*", modules.iou_metric),
)


def run_case(path: Path) -> list[Row]:
    """All rows of one case.

    Raises:
        SkipCase: if the project does not build the case's model.
    """
    for pattern, runner in RUNNERS:
        if Path(path.stem).match(pattern):
            return list(runner(ParityCase(path)))
    raise SkipCase("no comparison is written for this kind of case")


def _print_case(path: Path) -> bool:
    """Print the rows of one case; False if any failed."""
    start = time.perf_counter()
    try:
        rows = run_case(path)
    except SkipCase as reason:
        print(f"{path.stem:58} {'':42} SKIP ({reason})", flush=True)
        return True
    except Exception as error:  # one broken case must not hide the others
        print(f"{path.stem:58} {'':42} FAIL ({type(error).__name__}: {error})", flush=True)
        traceback.print_exc()
        return False
    for row in rows:
        verdict = "PASS" if row.passed else "FAIL"
        remark = f"  ({row.remark})" if row.remark else ""
        print(
            f"{row.case:58} {row.tensor:42} {row.difference:9.2e} {row.tolerance:9.2e} "
            f"{verdict}{remark}"
        )
    print(f"{path.stem}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return all(row.passed for row in rows)


def main() -> int:
    """Command line entry; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with the reference cases")
    parser.add_argument("--cases", default="*", help="only cases that match, for example 'A_*'")
    args = parser.parse_args()
    paths = sorted(args.folder.glob(f"{args.cases}.npz"))
    if not paths:
        print(f"{args.folder} holds no case {args.cases}.npz.", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.manual_seed(0)
    print(f"{'case':58} {'tensor':42} {'max diff':>9} {'tolerance':>9} verdict")
    results = [_print_case(path) for path in paths]
    print(f"{sum(results)} of {len(results)} cases passed or were skipped.")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
