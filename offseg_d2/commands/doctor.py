"""Report what is installed, what does not fit, and what to do about it.

Versions, CUDA and dataset folders; runs in a broken environment too. Exit status 1 if something
necessary is broken.
"""

import argparse
import sys
from collections.abc import Sequence

from offseg_d2 import doctor


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    return argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def main(arguments: Sequence[str] | None = None) -> None:
    make_parser().parse_args(arguments)
    sys.exit(doctor.main())
