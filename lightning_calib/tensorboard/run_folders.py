"""Where on the disk the event files of a run lie, from the flags that TensorBoard was started with."""

import re
from pathlib import Path
from typing import Any

from lightning_calib.tensorboard.event_files import RunFiles, files_of
from lightning_calib.tensorboard.refused import Refused, shown

_URI = re.compile(r"[a-zA-Z][0-9a-zA-Z.]*://")
_DRIVE = re.compile(r"[a-zA-Z]:\\")


class RunFolders:
    """The folders below which TensorBoard looks for runs.

    Args:
        flags: TensorBoard's; None has no folder.
    """

    def __init__(self, flags: Any) -> None:
        self._roots: list[tuple[str, Path]] = []
        logdir, several = (getattr(flags, name, None) or "" for name in ("logdir", "logdir_spec"))
        self._elsewhere = bool(_URI.match(logdir) or _URI.search(several))
        for text in [logdir] if logdir else several.split(","):
            if text and not _URI.search(text):
                group, colon, path = text.partition(":")
                named = bool(colon) and not logdir and not text.startswith("/") and not _DRIVE.match(text)
                self._roots.append((group, Path(path)) if named else ("", Path(text)))

    def files(self, run: str) -> RunFiles:
        """The event files of a run.

        Args:
            run: As TensorBoard lists it; the caller has checked that it does.

        Raises:
            Refused: If they do not lie on this machine's disk.
        """
        for group, root in self._roots:
            below = run if not group else "." if run == group else run.removeprefix(f"{group}/")
            if group and below == run:
                continue
            folder = root.expanduser() / below
            if ".." not in Path(below).parts and not Path(below).is_absolute() and (files := files_of(folder)):
                return RunFiles(run, folder, files)
        where = "a file system that only TensorBoard can read" if self._elsewhere else "another place than its logdir"
        raise Refused(f"`run` must have event files on this machine for a report, got {shown(run)}, in {where}", 404)
