"""Bytes in the event file: one summary per step, metadata once, numbers as they are."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from helpers.event_files import Recorded
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from torch.utils.tensorboard import SummaryWriter

from lightning_calib.dashboard.event_file import Record, RecordWriter, record_writer

VALUE = torch.tensor([[1.5, -1.0], [math.nan, math.inf], [0.0, 1e-30]])
ABOUT = {"kind": "layers", "optimizer": 0}


def summaries(folder):
    (path,) = Path(folder).glob("events*")
    return [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]


def test_records_of_a_step_are_one_summary_and_metadata_come_once():
    with SummaryWriter("logs") as experiment:
        writer = RecordWriter(experiment)
        for step in range(3):
            events = Record("calib/events", {"kind": "events", "optimizer": 0}, '[{"step": 1}]')
            writer.write([Record("calib/layers.x", ABOUT, VALUE), events], step)
    found = summaries("logs")
    assert [event.step for event in found] == [0, 1, 2]
    assert [len(event.summary.value) for event in found] == [2, 2, 2]
    metadata = [[value.metadata for value in event.summary.value] for event in found]
    assert all(one.plugin_data.plugin_name == "lightning_calib" for one in metadata[0])
    assert all(one.data_class == DATA_CLASS_TENSOR for one in metadata[0])
    raw = Path("logs").glob("events*").__next__().read_bytes()
    assert raw.count(b'"kind": "layers"') == 1


def test_numbers_come_back_bit_for_bit():
    with SummaryWriter("logs") as experiment:
        RecordWriter(experiment).write([Record("calib/layers.x", ABOUT, VALUE.double().t())], 7)
    (found,) = Recorded("logs").found
    assert (found.tag, found.step) == ("calib/layers.x", 7)
    torch.testing.assert_close(found.value, VALUE.t(), rtol=0, atol=0, equal_nan=True)


def test_scalars_of_the_same_file_stay_what_they_are():
    with SummaryWriter("logs") as experiment:
        experiment.add_scalar("loss", 0.5, 3)
        RecordWriter(experiment).write([Record("calib/layers.x", ABOUT, VALUE)], 3)
    found = Recorded("logs")
    assert found.others == {"loss"}
    assert len(list(Path("logs").iterdir())) == 1


def test_only_a_summary_writer_is_written_to():
    class Broken:
        @property
        def experiment(self):
            raise RuntimeError("no server")

    class Other:
        experiment = object()

    class Own:
        experiment = SummaryWriter("logs")

    assert record_writer(Broken()) is None
    assert record_writer(Other()) is None
    assert record_writer(object()) is None
    found = record_writer(Own())
    assert isinstance(found, RecordWriter)
    found.experiment.close()
