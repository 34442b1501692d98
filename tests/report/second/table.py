"""All runs of the second suite."""

from __future__ import annotations

from report.planted.fit import Case
from report.second import fault_clips, fault_incidents, fault_layers, fault_rates, healthy_odd, healthy_plain
from report.second.train import Fault

FAULTS: tuple[Fault, ...] = (*fault_rates.FAULTS, *fault_clips.FAULTS, *fault_layers.FAULTS, *fault_incidents.FAULTS)
HEALTHY: tuple[Case, ...] = (*healthy_plain.CASES, *healthy_odd.CASES)
