import json

import pytest

from malcli.checksums import DamagedError, checksum, seal, unseal

VALUES = {"b": [1, 2.5, "é"], "a": {"z": None, "y": True}}


def test_a_sealed_object_comes_back_in_its_order():
    assert list(unseal(seal(VALUES))) == ["b", "a"]
    assert unseal(seal(VALUES)) == VALUES
    assert unseal(json.dumps(VALUES)) == VALUES  # of an earlier malcli
    assert checksum(VALUES) == checksum(dict(reversed(VALUES.items())))


def test_no_flipped_bit_gives_other_values():
    text = seal(VALUES).encode()
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            values = unseal(bytes(flipped))
        except ValueError:
            continue
        # What is left are blanks, and the name of the checksum.
        assert {key: values[key] for key in VALUES} == VALUES


@pytest.mark.parametrize("text", ["[1]", "3", "", "{"])
def test_what_is_no_object_is_an_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        unseal(text)


def test_a_changed_value_is_named_damage():
    with pytest.raises(DamagedError, match="its checksum differs"):
        unseal(seal(VALUES).replace("2.5", "2.4"))
