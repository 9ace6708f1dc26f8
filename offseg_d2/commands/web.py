"""Show trained models in the browser; the options are in offseg_d2/web/options.py."""

from collections.abc import Sequence

from offseg_d2.utils.cli import report_user_errors
from offseg_d2.web.options import build_parser as make_parser


def run(arguments: Sequence[str] | None) -> None:
    from offseg_d2.web import app

    app.run(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    make_parser().parse_intermixed_args(arguments)  # before the imports of the page
    report_user_errors(run, arguments)
