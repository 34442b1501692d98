"""What a page holds, read back without a browser."""

import json
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from typing import Any

import numpy as np


class Elements(HTMLParser):
    """Every element with its attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


def held(page: str) -> dict[str, Any]:
    """The data of a page."""
    (text,) = [text for attributes, text in Elements(page).of("script") if attributes.get("id") == "calib-held"]
    return json.loads(text)


def numbers(text: str, *shape: int) -> np.ndarray:
    """Numbers from their text, as the scripts read them."""
    planes = np.frombuffer(zlib.decompress(b64decode(text)), np.uint8)
    bits = np.zeros(int(np.prod(shape)), np.uint32)
    for place, plane in enumerate(planes.reshape(-1, len(bits))):
        bits |= plane.astype(np.uint32) << np.uint32(24 - 8 * place)
    return bits.view(np.float32).reshape(shape)


def layers(optimizer: dict[str, Any], stat: str) -> np.ndarray:
    """One statistic: one row for each tensor, one column for each step."""
    found = optimizer["layers"]
    return numbers(found["values"][stat], len(found["rows"]), len(found["steps"]))


def scalars(optimizer: dict[str, Any]) -> dict[str, np.ndarray]:
    found = optimizer["globals"]
    columns = numbers(found["columns"], len(found["names"]), len(found["steps"]))
    return dict(zip(found["names"], columns, strict=True))
