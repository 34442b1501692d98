"""Steps that Lightning did not announce: an inner optimizer's, or one that goes past Lightning."""

from __future__ import annotations

import pytest
import torch
from helpers.bare_runs import SGD, bare_run, give, network

from lightning_calib.steps.unseen_steps import UnseenSteps


class Watched:
    def __init__(self):
        self.run, self.told = bare_run(), []
        self.unseen = UnseenSteps(lambda: [self.run.view], lambda view, stepped: self.told.append(stepped))

    def __enter__(self):
        self.unseen.attach()
        return self

    def __exit__(self, *_):
        self.unseen.detach()


class Inside(torch.optim.SGD):
    """Steps an optimizer of its own within its step."""

    inner = None
    fails = False

    def step(self, closure=None):
        if closure is not None:
            closure()
        self.inner.step()
        if self.fails:
            raise RuntimeError("out of memory")


def test_an_announced_step_is_seen():
    with Watched() as watched:
        watched.unseen.announce(watched.run.view)
        watched.run.view.optimizer.step()
        assert watched.told == []


def test_a_step_that_nobody_announced_is_told():
    with Watched() as watched:
        optimizer = watched.run.view.optimizer
        optimizer.step()
        assert watched.told[0] is optimizer


def test_the_closure_may_announce_it():
    with Watched() as watched:
        optimizer = watched.run.view.optimizer
        optimizer.step(lambda: watched.unseen.announce(watched.run.view))
        assert watched.told == []
        optimizer.step(lambda: None)  # each step needs an announcement of its own
        assert watched.told == [optimizer]


def test_an_announcement_holds_until_the_batch_ends():
    with Watched() as watched:
        watched.unseen.announce(watched.run.view)
        watched.unseen.end_batch()
        watched.run.view.optimizer.step()
        assert watched.told


def test_another_optimizer_of_the_same_parameters_is_told():
    with Watched() as watched:
        other = SGD(watched.run.view.module.parameters())
        before = watched.run.view.module[0].weight.clone()
        watched.unseen.report = lambda *_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            other.step()
        torch.testing.assert_close(watched.run.view.module[0].weight, before, rtol=0, atol=0)


def test_optimizers_of_other_parameters_are_none_of_our_business():
    with Watched() as watched:
        net = network()
        give(net, 1.0)
        SGD(net.parameters()).step()
        assert watched.told == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_inside_of_an_announced_one_is_a_part_of_it(fails):
    with Watched() as watched:
        view = watched.run.view
        outer = Inside(view.module.parameters(), lr=0.1)
        outer.inner, outer.fails = view.optimizer, fails
        watched.run.view.optimizer = outer
        for _ in range(2):
            watched.unseen.end_batch()
            watched.unseen.announce(view)
            if fails:
                with pytest.raises(RuntimeError, match="out of memory"):
                    outer.step()
            else:
                outer.step()
            assert watched.told == []


def test_detached_nothing_is_told():
    watched = Watched()
    watched.unseen.attach()
    watched.unseen.detach()
    watched.run.view.optimizer.step()
    assert watched.told == []
    assert watched.unseen.handles == []
