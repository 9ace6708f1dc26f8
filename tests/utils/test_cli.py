"""Mistakes of the user: one line and status 2, the same from every tool."""

import pytest

from offseg_d2.checkpoint import CheckpointError
from offseg_d2.utils.cli import report_user_errors
from tests.common import ROOT

USER_ERRORS = [
    ValueError("a key"),
    FileNotFoundError("a file"),
    CheckpointError("weights"),
    FloatingPointError("a loss"),
]


def fail_with(error: Exception):
    raise error


@pytest.mark.parametrize("error", USER_ERRORS, ids=lambda error: type(error).__name__)
def test_mistake_of_the_user_becomes_one_line_and_status_2(error, capsys):
    with pytest.raises(SystemExit) as stop:
        report_user_errors(fail_with, error)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_mistake_of_the_program_keeps_its_stack_of_calls():
    with pytest.raises(TypeError, match="ours"):
        report_user_errors(fail_with, TypeError("ours"))


def test_result_is_passed_on():
    assert report_user_errors(max, 1, 3) == 3


@pytest.mark.parametrize(
    "tool", ["train_net", "demo", "convert_checkpoint", "check_dataset", "view_dataset"]
)
def test_tools_share_the_one_report(tool):
    source = (ROOT / f"tools/{tool}.py").read_text()
    assert "from offseg_d2.utils.cli import report_user_errors" in source
    assert "sys.exit(2)" not in source
