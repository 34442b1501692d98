"""What is done to the training state about a spike: a step is dropped, an older state is put back, or the newer one."""

from lightning_calib.incidents.drop_step import drop
from lightning_calib.incidents.moving_statistics import MovingStatistics
from lightning_calib.incidents.snapshot import Snapshots, TrainingState
from lightning_calib.incidents.spike_ladder import SETTLED, Action, SpikeLadder
from lightning_calib.steps.gradient_view import GradientView


class SpikeRecovery:
    """Carries out what the ladder has decided about one optimizer's step.

    Args:
        view: The optimizer's.
        statistics: BatchNorm's, of the whole module.
        most: How many snapshots there are, at least 2; 0 where nothing is rewound.
    """

    view: GradientView
    statistics: MovingStatistics

    def __init__(self, view: GradientView, statistics: MovingStatistics, most: int) -> None:
        self.view, self.statistics = view, statistics
        self.snapshots: Snapshots | None = Snapshots(TrainingState(view.module, view), most) if most else None

    @property
    def has_snapshot(self) -> bool:
        """Whether there is anything to go back to."""
        return self.snapshots is not None and bool(self.snapshots.kept)

    def before_forward(self, ladder: SpikeLadder, every: int) -> int:
        """Before the forward pass of a step; returns the size of a snapshot in bytes where one is taken, else 0."""
        snapshots = self.snapshots
        if snapshots is None or not self._due(snapshots, ladder, every):
            return 0
        return snapshots.take(ladder.step, ladder.taken).nbytes

    def _due(self, snapshots: Snapshots, ladder: SpikeLadder, every: int) -> bool:
        if not snapshots.kept:
            return True
        return ladder.step - snapshots.kept[-1].step >= every and not ladder.trouble

    def do(self, action: Action, ladder: SpikeLadder) -> int:
        """Carry it out; returns how many steps back a rewind goes."""
        if action in (Action.TAKE, Action.ACCEPT, Action.STOP):
            return 0
        drop(self.view, routine=False)
        self.statistics.put_back()
        snapshots = self.snapshots
        if snapshots is not None and action is Action.REWIND:
            found = snapshots.before(ladder.began - SETTLED, ladder.rewinds + ladder.trials - 1)
            if found is not None:
                snapshots.rewind(found, ladder.step, ladder.taken)
                ladder.undone = ladder.taken - found.taken
        if snapshots is not None and action is Action.TAKE_BACK:
            snapshots.take_back()
        return ladder.undone

    def keep_rewind(self) -> None:
        """A rewind stands: the state that it has replaced is let go."""
        if self.snapshots is not None and self.snapshots.undo is not None:
            self.snapshots.keep_rewind()
