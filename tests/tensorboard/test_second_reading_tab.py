"""What a second critical reading found about the tab."""

from __future__ import annotations

import pytest

from lightning_calib.dashboard.stock_charts import Address


@pytest.mark.parametrize("folder", ["s3://bucket/runs/version_3", "gs://bucket/runs/version_3/"])
def test_a_run_in_a_bucket_is_found_under_the_command_that_is_told(folder):
    address = Address(folder)
    assert address.command == f"tensorboard --logdir {folder[:2]}://bucket/runs"
    assert address.tab.endswith("run=version_3")
