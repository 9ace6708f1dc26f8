"""Mistakes of the user: one line and status 2, the same from every tool."""

import pytest

from offseg_d2.checkpoint import CheckpointError
from offseg_d2.utils.cli import MAX_LENGTH, printable, report_user_errors

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


def test_text_from_files_is_escaped_and_cut():
    assert printable("a\x1b[31mred\x07\n\tb\x9b") == "a\\x1b[31mred\\x07\n\tb\\x9b"
    assert printable("x" * MAX_LENGTH) == "x" * MAX_LENGTH
    cut = printable("x" * 90_000_000)
    assert len(cut) == MAX_LENGTH and cut.endswith(" ...")


def test_error_with_a_terminal_escape_is_shown_escaped(capsys):
    with pytest.raises(SystemExit):
        report_user_errors(fail_with, ValueError("class '\x1b]0;title\x07'"))
    assert capsys.readouterr().err == "error: class '\\x1b]0;title\\x07'\n"
