"""Where the newest checkpoint of a run is."""

import lightning.pytorch as pl

_PATHS = ("_last_checkpoint_saved", "last_model_path", "best_model_path")


def last_checkpoint(trainer: "pl.Trainer") -> str:
    """The path, as far as the Trainer's own callbacks know; empty where there is none."""
    found = [str(getattr(one, name, "")) for one in trainer.checkpoint_callbacks for name in _PATHS]
    return next((path for path in found if path), "")
