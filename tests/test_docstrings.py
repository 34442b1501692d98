"""What `help` shows of a public name stands alone: arguments, errors, an example, what is logged and what is saved."""

import inspect
import re

import pytest
from lightning.pytorch.callbacks import Callback

import lightning_calib

NAMES = [name for name in lightning_calib.__all__ if name != "functional"]
CALLBACKS = [
    name for name in NAMES if inspect.isclass(of := getattr(lightning_calib, name)) and issubclass(of, Callback)
]


def sections(name: str) -> dict[str, str]:
    """The text of each section of a docstring, by its title; the beginning under ""."""
    text = inspect.cleandoc(vars(lightning_calib).get(name, getattr(lightning_calib, name)).__doc__ or "")
    parts = re.split(r"^([A-Z]\w+):\n", text, flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "SpikeError"])  # takes what RuntimeError takes
def test_every_argument_is_explained(name: str) -> None:
    found = sections(name)
    told = set(re.findall(r"^    (\w+)(?:, (\w+))?:", found.get("Args", "") + found.get("Attributes", ""), re.M))
    names = {one for pair in told for one in pair if one}
    arguments = set(inspect.signature(getattr(lightning_calib, name)).parameters) - {"args", "kwargs"}
    assert arguments - names == set()


@pytest.mark.parametrize("name", NAMES)
def test_there_is_an_example(name: str) -> None:
    assert ">>> " in sections(name)["Example"]


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_says_what_it_logs_saves_and_refuses(name: str) -> None:
    found = sections(name)
    assert {"Logged", "Checkpoint", "Raises"} <= set(found)
    assert "MisconfigurationException" in found["Raises"] or name == "GradientMonitor"  # it observes, and warns


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_sent_to_the_help_of_another_callback(name: str) -> None:
    assert not re.search(rf"\bAs (?:in )?``(?:{'|'.join(CALLBACKS)})``", str(sections(name)))
