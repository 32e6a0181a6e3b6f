"""Damaged images, decoded in a child process: pixels of the stated size or BadImage, no more."""

import io
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

HW = (48, 64)
PIXELS = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
PIXELS[8:40, 8:56] = [200, 30, 90]  # plain, so that run lengths and palettes have work, too
KINDS = {
    "JPEG": [{}, {"progressive": True}],
    "PNG": [{}, {"optimize": True}],
    "GIF": [{}],
    "WEBP": [{}, {"lossless": True}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}],
    "BMP": [{}],
}

CHILD = """
import collections, json, sys
from pathlib import Path
from malcli.data.images.decode import check_image, decode_image, read_size
from malcli.errors import BadImage

hw, counts = (48, 64), collections.Counter()
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, file=sys.stderr, flush=True)  # a signal is that of the last one
    for work in (lambda: read_size(path), lambda: check_image(path, hw)):
        try:
            work()
        except BadImage as error:
            assert error.status == "bad-image" and str(error).isprintable()
    try:
        pixels = decode_image(path, hw)
        assert pixels.shape == (*hw, 3) and pixels.dtype == "uint8"
        counts["decoded"] += 1
    except BadImage as error:
        assert error.status == "bad-image" and str(error).isprintable()
        counts["refused"] += 1
print(json.dumps(counts))
"""


def damage(raw, rng):
    """Flip bytes, most of them in the header's half of the files, and cut some files short."""
    changed = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        end = rng.choice([64, 600, len(raw)])
        changed[rng.randrange(min(end, len(raw)))] = rng.randrange(256)
    return bytes(changed[: rng.randrange(len(raw))] if rng.random() < 0.1 else changed)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_images_never_crash_hang_or_raise_anything_else(tmp_path, count):
    rng = random.Random(count)
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        buffer = io.BytesIO()
        Image.fromarray(PIXELS).save(buffer, kind, **rng.choice(KINDS[kind]))
        (tmp_path / f"{number:03}.{kind.lower()}").write_bytes(damage(buffer.getvalue(), rng))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert counts["decoded"] + counts["refused"] == count
    assert min(counts.values()) > count // 20  # the damage is neither harmless nor always fatal
