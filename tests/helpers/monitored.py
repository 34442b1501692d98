"""A fit measured by the package itself, where a planted run asks for a recorder."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback

from lightning_calib import GradientMonitor, Report
from lightning_calib.report.run import Run


class Monitored:
    """Stands where a `PlainRecorder` would; a monitor that is there already is the one that is asked."""

    def __init__(self, every_n_steps: int = 5) -> None:
        self.every_n_steps = every_n_steps

    def around(self, callbacks: Sequence[Callback]) -> list[Callback]:
        """The callbacks, with a monitor among them."""
        there = next((one for one in callbacks if isinstance(one, GradientMonitor)), None)
        self.monitor = there or GradientMonitor()
        self.monitor.every_n_steps = self.every_n_steps
        return [*callbacks] if there else [*callbacks, self.monitor]

    def report(self) -> Report:
        return self.monitor.report()

    def runs(self) -> list[Run]:
        """One for each optimizer."""
        return list(self.report().runs)
