"""What `dir` and `help` show of a callback: its arguments, Lightning's hooks, and what a user can call."""

import pytest
from lightning.pytorch.callbacks import Callback

import lightning_calib

OWN = {"GradientMonitor": {"summary"}}
PUBLIC = {name: getattr(lightning_calib, name) for name in lightning_calib.__all__}
KINDS = [name for name, found in PUBLIC.items() if isinstance(found, type) and issubclass(found, Callback)]


@pytest.mark.parametrize("name", KINDS)
def test_only_what_a_user_can_use_is_public(name):
    public = {one for one in dir(PUBLIC[name]) if not one.startswith("_")} - set(dir(Callback))
    assert public - {"name"} == OWN.get(name, set())
