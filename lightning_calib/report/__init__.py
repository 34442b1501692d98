"""From measurements to sentences."""

from lightning_calib.report.finding import Finding as Finding
from lightning_calib.report.report import Report as Report
from lightning_calib.report.shadow import ShadowResult as ShadowResult
