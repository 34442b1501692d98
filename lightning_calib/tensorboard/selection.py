"""Which records a request is about: the words of its query, checked, and what they choose."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice

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
        self.name: str = self.word("run")
        text = query.get("optimizer", "0")
        if not _WHOLE.fullmatch(text):
            raise Refused(f"`optimizer` must be a whole number from 0, got {shown(text)}")
        self._run = reader.run(self.name)
        self._optimizer = int(text)
        if self._optimizer not in (known := self._optimizers()):
            self._lack(f"`optimizer` must be one of {known} in run {shown(self.name)}, got {text}")

    def word(self, name: str) -> str:
        """A parameter that the request must have."""
        if name not in self._query:
            raise Refused(f"`{name}` must be given, as in ?{name}=...")
        return self._query[name]

    def records(self, kind: str) -> list[Records]:
        """The standing records of a kind, oldest tag first.

        Raises:
            Refused: If there is no tag of the kind, or one that cannot be read.
        """
        if not self.has(kind):
            self._lack(f"run {shown(self.name)} has no {kind} records")
        found, refused = self._standing(kind, [self._optimizer])
        if refused:
            raise refused[0]
        return found

    def elsewhere(self, kind: str) -> tuple[list[Records], list[Refused]]:
        """The standing records of a kind of the run's other optimizers, and why tags of theirs cannot be read."""
        return self._standing(kind, [other for other in self._optimizers() if other != self._optimizer])

    def has(self, kind: str) -> bool:
        """Whether there is a tag of the kind."""
        return bool(self._of(kind, self._optimizer))

    def _standing(self, kind: str, optimizers: Sequence[int]) -> tuple[list[Records], list[Refused]]:
        """A bad tag of globals is told where globals are asked for; it does not hide the other kinds."""
        pairs = [(self._of(kind, each), [] if kind == GLOBALS else self._of(GLOBALS, each)) for each in optimizers]
        asked = [(tags, clock) for tags, clock in pairs if tags]
        answers = iter(self._reader.records([series for pair in asked for series in chain(*pair)]))
        standing, refused = [], []
        for tags, clock in asked:
            found, times = list(islice(answers, len(tags))), islice(answers, len(clock))
            refused += [each for each in found if isinstance(each, Refused)]
            standing += current(_readable(found), _readable(times))
        return standing, refused

    def _optimizers(self) -> list[int]:
        return sorted({series.about.optimizer for series in self._run.series})

    def _of(self, kind: str, optimizer: int) -> list[Series]:
        return [each for each in self._run.series if (each.about.kind, each.about.optimizer) == (kind, optimizer)]

    def _lack(self, reason: str) -> None:
        if problems := self._run.problems:
            raise Refused(f"{reason}. It has records that cannot be read: {'; '.join(problems)}")
        raise Refused(reason, 404)


def _readable(found: Iterable[Records | Refused]) -> list[Records]:
    return [each for each in found if isinstance(each, Records)]
