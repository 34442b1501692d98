"""What TensorBoard imports when it starts.

An exception while this module is imported would keep TensorBoard from starting, with data of ours or without. So it
imports neither torch nor lightning nor numpy, starts nothing, reads nothing, and gives a reason where there can be no
tab.
"""

import logging
from typing import Any

from tensorboard.plugins.base_plugin import TBLoader

from lightning_calib.tensorboard.contract import PLUGIN

log: logging.Logger = logging.getLogger("lightning_calib")


class GradientsLoader(TBLoader):  # type: ignore[misc]  # TensorBoard has no types
    """Makes the "Gradients" tab, or says why not."""

    def fix_flags(self, flags: Any) -> None:
        """Keep every record, unless ``--samples_per_plugin`` says otherwise.

        TensorBoard would draw 100 records (10 without its data server) at random, and spikes would go. The writer has
        thinned long runs already, keeping the spikes, so that 0, which means all, is safe; how much is asked for in
        one read is bounded in the module ``reading``.

        Args:
            flags: The parsed command line.
        """
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(PLUGIN, 0)

    def load(self, context: Any) -> Any:
        """The plugin, or None and a line in the log.

        Args:
            context: TensorBoard's ``TBContext``.
        """
        try:
            from lightning_calib.tensorboard.plugin import GradientsPlugin

            return GradientsPlugin(context)
        except Exception as problem:  # whatever it is, the other tabs must work
            log.warning("No Gradients tab: %s: %s", type(problem).__name__, problem)
            return None
