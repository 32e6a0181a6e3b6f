"""XML as text of objects: read without document types or entities, written indented.

An element is its text; one with children or attributes an object, in which `@key` is an attribute,
`#text` its text, and a list what several children of a name say.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from malcli.data.boxtable.json_stream import open_regular
from malcli.errors import DataFormatError
from malcli.messages import short
from malcli.records import Record

MAX_XML = 1 << 26  # bytes
MAX_DEPTH = 100  # elements in each other
HEAD, WINDOW = 4096, 1 << 18  # bytes that say the encoding; that are read at a time
OF_MALCLI = ("id", "image_id", "bbox", "category_id", "segmentation", "area", "iscrowd")
_ENCODING = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)""")
_OWN = {"utf-8", "utf-16", "iso8859-1", "ascii"}  # that expat reads itself
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_ROOT = re.compile(rb"<([A-Za-z_][\w.-]*)")
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
    parser = _parser(path, builder)
    with _one_line(path):
        parser.Parse(_decoded(path, data), True)
        root = builder.close()
    _check_root(path, root.tag, tag)
    return root


def stream_xml(path: Path, tag: str) -> Iterator[Element]:
    """Yield the children of the root of a file of any length, which must have a name.

    Raises:
        DataFormatError: As `parse_xml`; also of elements nested too deeply.
    """
    builder = TreeBuilder()
    parser = _parser(path, builder)
    parents: list[Element] = []
    done: list[Element] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if not parents:
            _check_root(path, name, tag)
        if len(parents) > MAX_DEPTH:
            raise DataFormatError(path, "elements are nested too deeply")
        parents.append(builder.start(name, attributes))

    def end(name: str) -> None:
        element = builder.end(name)
        parents.pop()
        if len(parents) == 1:
            done.append(element)
            del parents[0][:]

    parser.StartElementHandler, parser.EndElementHandler = start, end
    with open_regular(path) as file:
        decode = _decoder(path, file.read(HEAD))
        file.seek(0)
        while data := file.read(WINDOW):
            with _one_line(path):
                parser.Parse(decode(data), False)
            yield from done
            done.clear()
        with _one_line(path):
            parser.Parse(decode(b""), True)


def root_name(head: bytes) -> str:
    """Return the name of the first element of a file's start; in UTF-16, too. Empty if none."""
    root = _ROOT.search(_COMMENT.sub(b"", head.replace(b"\0", b"")))
    return root[1].decode("ascii") if root else ""


def _parser(path: Path, builder: TreeBuilder) -> "expat.XMLParserType":
    """Return a parser that refuses document types: entities grow without end, or read files."""
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*declared: object) -> None:
        raise DataFormatError(path, "declares a document type (DTD); remove the DOCTYPE")

    parser.StartDoctypeDeclHandler = refuse
    return parser


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except expat.ExpatError as error:
        said = expat.errors.messages.get(error.code, error.code)
        raise DataFormatError(
            path, f"line {error.lineno}: not well-formed XML ({said}); correct it"
        ) from None


def _check_root(path: Path, found: str, tag: str) -> None:
    if found != tag:
        raise DataFormatError(path, f"holds <{short(found)[1:-1]}>, not <{tag}>")


def _decoded(path: Path, data: bytes) -> bytes | str:
    """Return text for encodings that expat cannot read itself, such as GBK."""
    decode = _decoder(path, data)
    return decode(data) + decode(b"")  # type: ignore[operator]


def _decoder(path: Path, head: bytes) -> Callable[[bytes], bytes | str]:
    """Return what decodes a file piece by piece, an empty one being the end."""
    declared = _ENCODING.match(head.removeprefix(codecs.BOM_UTF8).lstrip())
    if not declared:
        return bytes
    said = declared[1].decode()
    try:
        codec = codecs.lookup(said)
        decoder = codec.incrementaldecoder()
    except (LookupError, TypeError):
        raise _wrong_encoding(path, said) from None
    if codec.name in _OWN:
        return bytes

    def decode(data: bytes) -> str:
        try:
            return decoder.decode(data, final=not data)
        except UnicodeError:
            raise _wrong_encoding(path, said) from None

    return decode


def _wrong_encoding(path: Path, said: str) -> DataFormatError:
    return DataFormatError(path, f"is not in the encoding {short(said)} that it declares")


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


def is_name(text: str) -> bool:
    """Return whether an element or attribute is written; no prefixes of name spaces."""
    return bool(_NAME.fullmatch(text))


def tag_text(value: Record, indent: str = "  ") -> str:
    """Return elements, one a line; what XML has no character for becomes U+FFFD."""
    parts: list[str] = []
    for key, found in value.items():
        for each in found if isinstance(found, list) else [found]:
            if is_name(key):
                parts.append(_element(key, each, indent))
    return "".join(parts)


def _element(key: str, value: Any, indent: str) -> str:  # noqa: ANN401
    if not isinstance(value, dict):
        return f"{indent}<{key}>{escape(_clean(value))}</{key}>\n"
    named = {name[1:]: each for name, each in value.items() if name[:1] == "@"}
    attributes = "".join(
        f" {name}={quoteattr(_clean(each))}" for name, each in named.items() if is_name(name)
    )
    text = escape(_clean(value.get("#text", "")))
    inside = tag_text(value, indent + "  ")
    return (
        f"{indent}<{key}{attributes}>{text}"
        + (f"\n{inside}{indent}" if inside else "")
        + (f"</{key}>\n")
    )


def _clean(value: object) -> str:
    return _NO_XML.sub("\ufffd", "" if value is None else str(value))
