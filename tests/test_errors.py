from pathlib import Path

import pytest

from malcli import errors
from malcli.errors import DataFormatError, Interrupted, MalcliError, RunError


def all_kinds():
    """Return the classes of `malcli.errors`, not those that other modules derive."""
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    return [kind for kind in kinds if issubclass(kind, MalcliError)]


def test_the_tree_drawn_in_the_docstring_is_the_real_one():
    drawn = {
        word
        for word in errors.__doc__.split()
        if word.endswith(("Error", "Interrupted", "BadImage"))
    }
    assert drawn == {kind.__name__ for kind in all_kinds()}


@pytest.mark.parametrize("kind", all_kinds())
def test_users_mistakes_exit_2_and_failures_while_running_exit_1(kind):
    if kind is not Interrupted:
        assert kind.exit_code == (1 if issubclass(kind, RunError) else 2)


@pytest.mark.parametrize(("signum", "code"), [(2, 130), (15, 143)])
def test_interrupted_exits_as_shells_do(signum, code):
    assert Interrupted("resume with ...", signum).exit_code == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("boxes.json", "not JSON"), "boxes.json: not JSON"),
        (("boxes.json", "gone", "id 7"), "boxes.json: id 7: gone"),
        (("b", "gone", "id 7", "bbox"), "b: id 7, key 'bbox': gone"),
        (("b", "gone", None, "bbox"), "b: key 'bbox': gone"),
    ],
)
def test_data_format_error_names_file_record_and_key(arguments, message):
    error = DataFormatError(*arguments)
    assert str(error) == message
    assert error.path == Path(arguments[0])
