"""Which records a request is about: the words of its query, checked, and what they choose."""

import re
from collections.abc import Mapping

from lightning_calib.tensorboard.contract import GLOBALS
from lightning_calib.tensorboard.merge import current
from lightning_calib.tensorboard.reading import Reader, Records, Series
from lightning_calib.tensorboard.refused import Refused, shown

_WHOLE = re.compile(r"[0-9]{1,6}")


class Selection:
    """One optimizer of one run.

    Args:
        reader: Of this request.
        query: The request's parameters: ``run``, and ``optimizer``, 0 if not given.

    Raises:
        Refused: If a parameter is missing or not a number, or if there is no such run or optimizer.
    """

    def __init__(self, reader: Reader, query: Mapping[str, str]) -> None:
        self._reader, self._query = reader, query
        self.name = self.word("run")
        text = query.get("optimizer", "0")
        if not _WHOLE.fullmatch(text):
            raise Refused(f"`optimizer` must be a whole number from 0, got {shown(text)}")
        run = reader.run(self.name)
        self._problems = run.problems
        self._series = [series for series in run.series if series.about.optimizer == int(text)]
        if not self._series:
            known = sorted({series.about.optimizer for series in run.series})
            self._lack(f"`optimizer` must be one of {known} in run {shown(self.name)}, got {text}")

    def word(self, name: str) -> str:
        """A parameter that the request must have."""
        if name not in self._query:
            raise Refused(f"`{name}` must be given, as in ?{name}=...")
        return self._query[name]

    def records(self, kind: str) -> list[Records]:
        """The standing records of a kind, oldest tag first.

        Raises:
            Refused: If there is no tag of the kind.
        """
        if not (tags := self._of(kind)):
            self._lack(f"run {shown(self.name)} has no {kind} records")
        clock = [] if kind == GLOBALS else self._of(GLOBALS)
        found = self._reader.records([*tags, *clock])
        return current(found[: len(tags)], found[len(tags) :])

    def has(self, kind: str) -> bool:
        """Whether there is a tag of the kind."""
        return bool(self._of(kind))

    def _of(self, kind: str) -> list[Series]:
        return [series for series in self._series if series.about.kind == kind]

    def _lack(self, reason: str) -> None:
        if self._problems:
            raise Refused(f"{reason}. It has records that cannot be read: {'; '.join(self._problems)}")
        raise Refused(reason, 404)
