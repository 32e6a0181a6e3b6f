import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malcli.data.boxtable import json_stream
from malcli.data.boxtable.json_stream import JsonText, open_regular
from malcli.errors import DataFormatError

PATH = Path("a.json")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def of(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return JsonText(PATH, io.BytesIO(raw))


def read_list(text):
    reader = of(text)
    values = [value for batch in reader.batches(3) for value in batch]
    reader.finish()
    return values


def failure(text):
    with pytest.raises(DataFormatError) as caught:
        read_list(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("window", [1, 7, 64])
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(VALUES | st.dictionaries(st.text(), VALUES), max_size=8), ascii=st.booleans()
)
def test_any_window_gives_what_the_json_module_gives(window, values, ascii):
    text = json.dumps(values, ensure_ascii=ascii, indent=len(values) % 3 or None)
    try:
        raw = text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can say
        raw = json.dumps(values).encode()
    normal = json_stream.WINDOW
    json_stream.WINDOW = window
    try:
        assert read_list(raw) == values
    finally:
        json_stream.WINDOW = normal


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "number", ["1.5", "1e5", "-1.25E+16", "10", "-Infinity", "true", '"\\ud83d\\ude00"']
)
def test_a_window_that_ends_inside_a_token_reads_on(monkeypatch, window, number):
    monkeypatch.setattr(json_stream, "WINDOW", window)
    assert read_list(f"[7,{number} , {number}]") == [7, *[json.loads(number)] * 2]


def test_members_and_their_values_come_in_the_file_s_order():
    reader = of(' {"b": {"x": [1, {}]}, "a" : [1,2] , "c":-1.5e3}')
    seen = [(key, reader.value()) for key in reader.members()]
    reader.finish()
    assert seen == [("b", {"x": [1, {}]}), ("a", [1, 2]), ("c", -1500.0)]


def test_empty_lists_and_objects_are_read():
    assert read_list(" [ ] ") == []
    assert list(of("{ }").members()) == []


def test_a_list_that_ends_inside_a_window_stops_there():
    reader = of('{"a":[{"n":1},{"n":2}],"b":[{"n":3},{"n":4}]}')
    seen = {key: [v["n"] for batch in reader.batches(9) for v in batch] for key in reader.members()}
    assert seen == {"a": [1, 2], "b": [3, 4]}


def test_nan_and_infinity_are_values():
    nan, infinity = read_list("[NaN, -Infinity]")
    assert nan != nan
    assert infinity == float("-inf")


def test_a_byte_order_mark_is_skipped():
    assert read_list(b"\xef\xbb\xbf[1]") == [1]


def test_batches_hold_about_the_rows_asked_for():
    reader = of(json.dumps(list(range(10))))
    assert [len(batch) for batch in reader.batches(4)] == [4, 4, 2]


@pytest.mark.parametrize("text", ["[1, 2", '[{"a": 1}, {"b', "[", '["abc', "[1,", " "])
def test_a_file_cut_short_says_so(text):
    assert "ends too early" in failure(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a":1}, {"b":}]', "character 16"),
        ("[1 2]", "expected , or ]"),
        ("[1,]", "not valid JSON"),
        ('[{"a":1},]', "not valid JSON"),
        ("[1]]", "after the end"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "too many digits"),
        (b"[\xff]", "not UTF-8"),
        ("[1]".encode("utf-16"), "not UTF-8"),
        ("[tru]", "not valid JSON"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(text, said):
    assert said in failure(text)


def test_an_error_early_in_a_large_file_does_not_read_the_rest():
    file = io.BytesIO(b"[1, nope, " + b"1, " * 3_000_000 + b"1]")
    with pytest.raises(DataFormatError, match="character 5"):
        list(JsonText(PATH, file).batches(10))
    assert file.tell() <= json_stream.WINDOW


def test_a_value_above_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(json_stream, "WINDOW", 100)
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1000)
    assert "longer than" in failure('["' + "a" * 5000 + '"]')


def test_a_key_without_quotes_is_refused():
    with pytest.raises(DataFormatError, match="key in double quotes"):
        list(of("{a: 1}").members())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "compressed"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=said):
        open_regular(path)


def test_a_folder_or_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataFormatError, match="is a folder"):
        open_regular(tmp_path)
    with pytest.raises(DataFormatError, match="No such file"):
        open_regular(tmp_path / "a.json")
    with pytest.raises(DataFormatError, match="cannot be read"):
        open_regular(tmp_path / "a\0.json")
