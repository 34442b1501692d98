"""Since which torch a mode is right: what is refused below it, and why."""

from typing import NamedTuple

import torch


class Since(NamedTuple):
    """One row of the table.

    Attributes:
        mode: What is refused, as the beginning of a sentence.
        release: The first torch, major and minor, with which the tests of this mode pass.
        reason: What is wrong below it.
        remedy: Another way out than a newer torch.
    """

    mode: str
    release: tuple[int, int]
    reason: str
    remedy: str

    def why_not(self) -> str | None:
        """The sentences, if the torch that is installed is older."""
        if _installed() >= self.release:
            return None
        needed = ".".join(map(str, self.release))
        return (
            f"{self.mode} with torch {torch.__version__}: {self.reason}. Use torch {needed} or newer, or {self.remedy}."
        )


SPREAD = Since(
    "Parameters that processes share (FSDP2, tensor parallel)",
    (2, 9),
    "two processes end with other weights than one",
    "DDP",
)
FLAT = Since("FSDP1", (2, 9), "its gradients cannot be told apart", "DDP")


def _installed() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
