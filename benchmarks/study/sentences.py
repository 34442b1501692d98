"""The words of the page's claims and of its guide; the figures come from the table."""

from __future__ import annotations

CLAIMS: tuple[tuple[str, str, str], ...] = ()
GUIDE: tuple[tuple[str, str, str, str], ...] = ()
