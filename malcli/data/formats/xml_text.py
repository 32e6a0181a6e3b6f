"""XML as text of objects: read without document types or entities, written indented.

An element is its text; one with children or attributes an object, in which `@key` is an attribute,
`#text` its text, and a list what several children of a name say.
"""

import codecs
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from malcli.data.boxtable.checks import short
from malcli.data.boxtable.json_stream import open_regular
from malcli.errors import DataFormatError
from malcli.records import Record

MAX_XML = 1 << 26  # bytes
OF_MALCLI = ("id", "image_id", "bbox", "category_id", "segmentation", "area", "iscrowd")
_ENCODING = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)""")
_OWN = {"utf-8", "utf-16", "iso8859-1", "ascii"}  # that expat reads itself
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")


def parse_xml(path: Path, tag: str) -> Element:
    """Return the root of a file, which must have a name.

    Raises:
        DataFormatError: It is not well-formed, declares a document type, or is something else.
    """
    with open_regular(path) as file:
        data = file.read(MAX_XML + 1)
    if len(data) > MAX_XML:
        raise DataFormatError(path, f"is longer than {MAX_XML >> 20} MB; is it an annotation?")
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*declared: object) -> None:  # entities can grow without end, or read other files
        raise DataFormatError(path, "declares a document type (DTD); remove the DOCTYPE")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(_decoded(path, data), True)
        root = builder.close()
    except expat.ExpatError as error:
        said = expat.errors.messages.get(error.code, error.code)
        raise DataFormatError(
            path, f"line {error.lineno}: not well-formed XML ({said}); correct it"
        ) from None
    if root.tag != tag:
        raise DataFormatError(path, f"holds <{short(root.tag)[1:-1]}>, not <{tag}>")
    return root


def _decoded(path: Path, data: bytes) -> bytes | str:
    """Return text for encodings that expat cannot read itself, such as GBK."""
    declared = _ENCODING.match(data.removeprefix(codecs.BOM_UTF8).lstrip())
    if not declared:
        return data
    try:
        name = codecs.lookup(declared[1].decode()).name
        return data if name in _OWN else data.decode(name)
    except (LookupError, UnicodeError):
        said = short(declared[1].decode())
        raise DataFormatError(path, f"is not in the encoding {said} that it declares") from None


def value_of(element: Element) -> Any:  # noqa: ANN401
    """Return an element's text, or an object of its children and attributes."""
    if not len(element) and not element.attrib:
        return (element.text or "").strip()
    value: Record = {f"@{key}": text for key, text in element.attrib.items()}
    for child in element:
        put_value(value, child.tag, value_of(child))
    if text := (element.text or "").strip():
        value["#text"] = text
    return value


def put_value(record: Record, key: str, value: object) -> None:
    """Set a key; the second value of a key makes a list."""
    if key in OF_MALCLI:
        key = f"xml_{key}"  # these have a meaning of their own
    if key not in record:
        record[key] = value
    elif isinstance(record[key], list):
        record[key].append(value)
    else:
        record[key] = [record[key], value]


def tag_text(value: Record, indent: str = "  ") -> str:
    """Return elements, one a line; what XML has no character for becomes U+FFFD."""
    parts: list[str] = []
    for key, found in value.items():
        for each in found if isinstance(found, list) else [found]:
            if _NAME.fullmatch(key):
                parts.append(_element(key, each, indent))
    return "".join(parts)


def _element(key: str, value: Any, indent: str) -> str:  # noqa: ANN401
    if not isinstance(value, dict):
        return f"{indent}<{key}>{escape(_clean(value))}</{key}>\n"
    named = {name[1:]: each for name, each in value.items() if name.startswith("@")}
    attributes = "".join(f" {name}={quoteattr(_clean(each))}" for name, each in named.items())
    text = escape(_clean(value.get("#text", "")))
    inside = tag_text(value, indent + "  ")
    return (
        f"{indent}<{key}{attributes}>{text}"
        + (f"\n{inside}{indent}" if inside else "")
        + (f"</{key}>\n")
    )


def _clean(value: object) -> str:
    return _NO_XML.sub("\ufffd", "" if value is None else str(value))
