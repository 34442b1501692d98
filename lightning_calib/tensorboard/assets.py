"""The files of the front end: those beside this module, by exact name."""

from pathlib import Path

from lightning_calib.tensorboard.refused import Refused, shown

FOLDER = Path(__file__).parents[1] / "panels"
# TensorBoard forbids the browser to guess, and a Windows registry may call JavaScript plain text.
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".txt": "text/plain",
}


def asset(name: str) -> tuple[bytes, str]:
    """Content and content type of a file.

    Args:
        name: As the request has it. Only what a listing of the folder shows is served, so that no path leads out.

    Raises:
        Refused: If there is no such file.
    """
    files = {path.name: path for path in FOLDER.iterdir() if path.is_file()} if FOLDER.is_dir() else {}
    if name not in files or files[name].suffix not in TYPES:
        raise Refused(f"`file` must be one of the tab's own, got {shown(name)}", 404)
    return files[name].read_bytes(), TYPES[files[name].suffix]
