"""Annotation ids as text that an annotation tool carries, and back, their type kept."""

import json
import re

from malcli.data.boxtable.columns import encode_json

_WHOLE = re.compile(r"0|-?[1-9]\d{0,18}")


def text_of_id(number: object) -> str:
    """Return an id as text; in quotes if it could be taken for a number or for quoted text."""
    plain = isinstance(number, str) and not _WHOLE.fullmatch(number) and number.isprintable()
    if isinstance(number, str) and plain and number.strip() == number and number[:1] != '"':
        return number
    return encode_json(number)


def id_of_text(text: str) -> int | str:
    """Return the id that `text_of_id` says, or the text itself."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        value = json.loads(text) if text.startswith('"') else text
    except ValueError:
        return text
    return value if isinstance(value, str) else text
