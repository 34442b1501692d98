"""What stock TensorBoard is given: charts whose patterns match our tags and no others, a text, links."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch.utils.tensorboard import SummaryWriter

from lightning_calib.dashboard.stock_charts import Address, charts, furnish
from lightning_calib.tensorboard.contract import GLOBAL_NAMES

SCALARS = {f"calib/{name}" for name in GLOBAL_NAMES}
LOGGED = SCALARS - {"calib/norm_p10", "calib/norm_p50", "calib/norm_p90"}


@pytest.mark.parametrize("suffixes", [[""], ["/0", "/1"], [f"/{i}" for i in range(12)]])
def test_each_pattern_matches_one_tag_of_its_optimizer(suffixes):
    tags = [tag + suffix for tag in LOGGED for suffix in suffixes]
    tags += [f"{tag}.mine{suffix}" for tag in LOGGED for suffix in suffixes]  # of a named callback
    layout = charts(suffixes)
    assert len(layout) == len(suffixes)
    for suffix, lines in zip(suffixes, layout.values(), strict=True):
        for kind, patterns in lines.values():
            if kind == "Margin":
                assert set(patterns) <= {tag + suffix for tag in LOGGED}
                continue
            for pattern in patterns:
                (tag,) = [tag for tag in tags if re.match(pattern, tag)]
                assert tag.endswith(suffix)


def test_the_band_has_the_value_first_then_its_edges():
    ((kind, tags),) = [chart for chart in charts([""])["gradients"].values() if chart[0] == "Margin"]
    assert kind == "Margin"
    assert tags == ["calib/grad_norm_before", "calib/grad_norm_after", "calib/grad_norm_max"]


def test_what_is_written_once_is_what_tensorboard_reads():
    with SummaryWriter("logs/a run") as experiment:
        furnish(experiment, ["/0", "/1"])
    found = EventAccumulator("logs/a run").Reload()
    (event,) = found.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["gradients of optimizer 0", "gradients of optimizer 1"]
    titles = [chart.title for chart in layout.category[0].chart]
    assert titles[0] == "gradient norm before and after"
    assert len(titles) == 6
    (event,) = found.Tensors("calib/how to read/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "http://localhost:6006/#lightning_calib&p.lightning_calib.run=a%20run" in text
    for tag in re.findall(r"`(calib/\w+)`", text):
        assert tag in LOGGED
    assert max(map(len, text.splitlines()[:-1])) < 120


def test_the_address_of_a_run():
    address = Address("some where/lightning_logs/version_3")
    assert address.command == 'tensorboard --logdir "some where/lightning_logs"'
    assert address.tab == "http://localhost:6006/#lightning_calib&p.lightning_calib.run=version_3"
    assert Address("logs/a & b=c#1/").tab.endswith("run=a%20%26%20b%3Dc%231")
    assert Address("logs/x").command == "tensorboard --logdir logs"


@pytest.mark.parametrize("folder", ["s3://bucket/runs/version_3", "gs://bucket/runs/version_3/"])
def test_a_run_in_a_bucket_is_found_under_the_command_that_is_told(folder):
    address = Address(folder)
    assert address.command == f"tensorboard --logdir {folder[:2]}://bucket/runs"
    assert address.tab.endswith("run=version_3")


@pytest.mark.parametrize("suffixes", [[""], ["/0", "/1"], [f"/{i}" for i in range(12)]])
def test_pinned_cards_are_scalars_of_ours_and_no_more_than_it_pins(suffixes):
    parts = urlsplit(Address("logs/x").pinned(suffixes))
    query = parse_qs(parts.query)
    cards = json.loads(query["pinnedCards"][0])
    assert 1 <= len(cards) <= 10
    assert {card["plugin"] for card in cards} == {"scalars"}
    assert {card["tag"] for card in cards} <= {tag + suffix for tag in LOGGED for suffix in suffixes}
    assert query["smoothing"] == ["0"]
    assert parts.fragment == "timeseries"
    assert unquote(parts.query).count("tagFilter") == 0  # it would hide the pinned ones
