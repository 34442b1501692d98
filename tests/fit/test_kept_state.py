"""What a fit changes is kept, and put back in place."""

import random
from collections import OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from helpers.tiny_modules import make_trainer
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_calib.fit.kept_state import KeptState


class Average:
    """Somebody's own class, with tensors that it changes in place."""

    def __init__(self):
        self.weights = {"a": torch.ones(2)}


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2), persistent=False)
        self.average, self.loose = Average(), torch.ones(3)
        self.optimizer = torch.optim.Adam(self.net.parameters())


CONTAINERS = {
    "list": ([1], lambda one: one.append(2)),
    "dict": ({"a": 1}, lambda one: one.update(b=2)),
    "ordered": (OrderedDict(a=1), lambda one: one.move_to_end("a") or one.update(b=1)),
    "default": (defaultdict(list, a=[1]), lambda one: one["a"].append(2) or one["b"].append(1)),
    "deque": (deque([1, 2], maxlen=2), lambda one: one.append(3)),
    "set": ({1}, lambda one: one.add(2)),
    "nested": (({"a": [[1]]},), lambda one: one[0]["a"][0].append(2)),
    "array": (np.ones(3), lambda one: np.copyto(one, 0)),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_an_attribute_is_put_back_in_place(name):
    value, change = CONTAINERS[name]
    module, before = Module(), repr(value)
    module.mine = value
    kept = KeptState(module)
    change(value)
    assert repr(value) != before
    kept.put_back()
    assert module.mine is value
    assert repr(value) == before


def test_attributes_that_come_or_go_are_put_back():
    module = Module()
    kept = KeptState(module)
    module.new, module.net.new = 1, 2
    del module.loose
    module.net.eval()
    kept.put_back()
    assert not hasattr(module, "new")
    assert not hasattr(module.net, "new")
    assert module.loose.tolist() == [1, 1, 1]
    assert module.net.training


def test_tensors_stay_the_same_objects_with_the_values_that_they_had():
    module = Module()
    tensors = {"weight": module.net.weight, "buffer": module.seen, "loose": module.loose}
    tensors["of another object"] = module.average.weights["a"]
    before = {name: one.detach().clone() for name, one in tensors.items()}
    module.net.weight.grad = gradient = torch.ones(2, 2)
    kept = KeptState(module)
    with torch.no_grad():
        for one in tensors.values():
            one.add_(1)
        gradient.add_(1)
    module.net.weight.grad = None
    module.net.weight.requires_grad_(False)
    module.seen = torch.ones(5)
    kept.put_back()
    for name, one in tensors.items():
        torch.testing.assert_close(one.detach(), before[name], rtol=0, atol=0)
    assert module.seen is tensors["buffer"]
    assert module.net.weight.grad is gradient
    assert gradient.tolist() == [[1, 1], [1, 1]]
    assert module.net.weight.requires_grad


def test_a_parameter_gets_its_number_format_back():
    module = Module()
    weight, before = module.net.weight, module.net.weight.detach().clone()
    kept = KeptState(module)
    module.half()
    assert weight.dtype == torch.float16
    kept.put_back()
    assert module.net.weight is weight
    torch.testing.assert_close(weight.detach(), before, rtol=0, atol=0)


def test_an_optimizer_that_the_module_holds_gets_its_state_back():
    module = Module()
    kept = KeptState(module)
    module.net(torch.ones(1, 2)).sum().backward()
    module.optimizer.step()
    module.optimizer.param_groups[0]["lr"] = 7.0
    assert module.optimizer.state
    kept.put_back()
    assert not module.optimizer.state
    assert module.optimizer.param_groups[0]["lr"] == 1e-3
    assert module.net.weight.grad is None


GENERATORS = {
    "torch": (torch.Generator(), lambda one: float(torch.rand((), generator=one))),
    "python": (random.Random(0), lambda one: one.random()),
    "numpy": (np.random.default_rng(0), lambda one: float(one.random())),
    "numpy, old": (np.random.RandomState(0), lambda one: float(one.rand())),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_goes_on_where_it_was(name):
    generator, draw = GENERATORS[name]
    module = Module()
    module.mine = generator
    kept = KeptState(module)
    first = draw(generator)
    kept.put_back()
    assert draw(generator) == first


def test_the_global_generators_go_on_where_they_were():
    kept = KeptState(Module())
    first = (random.random(), float(np.random.rand()), float(torch.rand(())))
    kept.put_back()
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == first


def test_a_loaders_sampler_and_generator_are_kept_and_its_data_are_not_copied():
    data = TensorDataset(torch.zeros(4))
    loader = DataLoader(data, 2, shuffle=True, generator=torch.Generator().manual_seed(0))
    kept = KeptState({"one": loader})
    first = [batch[0].tolist() for batch in loader]
    data.tensors[0].add_(1)
    loader.sampler.epoch = 3
    kept.put_back()
    assert not hasattr(loader.sampler, "epoch")
    assert data.tensors[0].tolist() == [1, 1, 1, 1]
    assert len([batch[0].tolist() for batch in loader]) == len(first)


def test_a_data_module_keeps_its_attributes_and_its_tensors_are_not_copied():
    class Data(LightningDataModule):
        def __init__(self):
            super().__init__()
            self.values, self.folds = torch.zeros(2), [1]

    data = Data()
    kept = KeptState(data)
    data.values.add_(1)
    data.folds.append(2)
    data.train = 1
    kept.put_back()
    assert (data.values.tolist(), data.folds, hasattr(data, "train")) == ([1, 1], [1], False)


def test_callbacks_are_left_alone():
    class Mine(Callback):
        heard = 0

    mine = Mine()
    kept = KeptState(make_trainer([mine]))
    mine.heard = 1
    kept.put_back()
    assert mine.heard == 1
