"""Healthy runs that look odd and are as their authors want them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from report.planted.fit import Case, Learner, adamw, fit, sgd
from report.second import data, nets
from report.second.healthy_plain import by, classes, cosine, curve, images, words
from report.second.train import Outcome, train
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, gaussian_nll_loss, mse_loss
from torch.optim import lr_scheduler


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nets.mlp(24, 48, 8), nets.mlp(4, 48, 24)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return torch.cat([self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance], 1)


def evidence(out: Tensor, y: Tensor) -> Tensor:
    """Summed over the features, the mean over the batch: as in every VAE."""
    made, mean, log_variance = out[:, :24], out[:, 24:28], out[:, 28:]
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
    return (4 * (made - y).square().sum(1) + divergence).mean()


def vae(r: Any) -> Outcome:
    x = data.curve(d=4, out=24)[1]
    return train(r, VAE(), (x, x), lambda p: torch.optim.Adam(p, 2e-3), evidence, batch=64, steps=350)


class GAN(LightningModule):
    """Of two optimizers, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.judge = nets.mlp(4, 32, 32, 2), nets.mlp(2, 32, 32, 1, act=lambda: nn.LeakyReLU(0.2))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (makes, judges), real = self.optimizers(), batch[0]
        made = self.maker(torch.randn(len(real), 4))
        true = torch.ones(len(real), 1)
        loss = binary_cross_entropy_with_logits(self.judge(real), true)
        loss = loss + binary_cross_entropy_with_logits(self.judge(made.detach()), 0 * true)
        judges.zero_grad()
        self.manual_backward(loss)
        judges.step()
        self.toggle_optimizer(makes)
        makes.zero_grad()
        self.manual_backward(binary_cross_entropy_with_logits(self.judge(made), true))
        makes.step()
        self.untoggle_optimizer(makes)

    def configure_optimizers(self) -> Any:
        adam = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))
        return [adam(self.maker.parameters()), adam(self.judge.parameters())]


def gan(r: Any) -> Outcome:
    x = torch.randn(2048, 2) * torch.tensor([0.3, 0.6]) + torch.tensor([2.0, -1.0])
    module = GAN()

    def far() -> float:
        made = module.maker(torch.randn(1000, 4)).detach()
        return float((made.mean(0) - x.mean(0)).norm() + (made.std(0) - x.std(0)).norm())

    before = far()
    fit(r, module, (x, x), steps=400, batch=64)
    return Outcome(before, far())


def memorised(r: Any) -> Outcome:
    """To a loss of nothing, as a test of a new network. Judged on what it learned."""
    x, y = data.clusters(64)
    net = nets.mlp(16, 64, 64, 5)
    return train(r, net, (x.repeat(9, 1), y.repeat(9)), adamw(3e-3), batch=64, steps=300)


def likelihood(out: Tensor, y: Tensor) -> Tensor:
    return gaussian_nll_loss(out[:, :1], y, out[:, 1:].exp())


def negative_loss(r: Any) -> Outcome:
    x, y = data.curve(noise=0.05)
    return train(r, nets.mlp(12, 64, 64, 2), (x, y * 0.2), adamw(2e-3), likelihood, batch=64, steps=350)


def rare_class(r: Any) -> Outcome:
    x, y = data.clusters(classes=16)
    rare = (y == 0).float()[:, None]
    make = lambda p: torch.optim.Adam(p, 3e-3)  # noqa: E731
    return train(r, nets.mlp(16, 64, 1), (x, rare), make, binary_cross_entropy_with_logits, batch=64, steps=300)


def heavy_tails(r: Any) -> Outcome:
    x, y = data.curve()
    y = y + 0.3 * torch.distributions.StudentT(2.0).sample(y.shape)
    loss = nn.SmoothL1Loss(beta=0.5)
    return train(r, nets.mlp(12, 64, 64, 1), (x, y), adamw(2e-3), loss, batch=64, steps=300, gradient_clip_val=1.0)


def pretrained(before: tuple[Tensor, Tensor]) -> nn.Module:
    net = nets.cnn()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        pick = torch.randint(len(before[0]), (64,))
        optimizer.zero_grad()
        cross_entropy(net(before[0][pick]), before[1][pick]).backward()
        optimizer.step()
    return net


def new_head(r: Any) -> Outcome:
    """A frozen body under a head that learns other names."""
    x, y = data.pictures()
    net = pretrained((x, y))
    net[0].requires_grad_(False)
    net[1] = nn.Linear(72, 4)
    return train(r, net, (x, (y + 1) % 4), adamw(3e-3), batch=64, steps=200)


def gentle_body(r: Any) -> Outcome:
    """A body that is pretrained, at a tenth of the head's rate."""
    x, y = data.pictures()
    net = pretrained((x, y))
    net[1] = nn.Linear(72, 4)

    def groups(net: Any) -> list[dict[str, Any]]:
        return [{"params": net[0].parameters(), "lr": 3e-4}, {"params": net[1].parameters(), "lr": 3e-3}]

    return train(r, net, (x, (y + 1) % 4), adamw(), batch=64, steps=200, groups=groups)


def fine_tuned(r: Any) -> Outcome:
    """At a small rate, from weights that are nearly right."""
    x, y = data.pictures()
    net = pretrained((x, y))
    return train(r, net, (x * 0.5 + 0.2, y), adamw(3e-4), batch=64, steps=250)


class Bandit(nn.Module):
    """A policy that draws its action; the loss is minus the reward, less what is usual."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nets.mlp(16, 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x)


def reinforce(logits: Tensor, y: Tensor) -> Tensor:
    policy = torch.distributions.Categorical(logits=logits)
    action = policy.sample()
    reward = (action == y).float()
    return -(policy.log_prob(action) * (reward - reward.mean())).mean()


def missed(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(1) != y).float()


def bandit(r: Any) -> Outcome:
    return train(r, Bandit(), data.clusters(), adamw(3e-3), reinforce, judge=missed, batch=128, steps=400)


class Distilled(Learner):
    """Learns from a teacher, which is a part of the module and not of the optimizer."""

    def __init__(self, net: nn.Module, teacher: nn.Module) -> None:
        super().__init__(net, sgd(0.05))
        self.teacher = teacher.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]) / 2, self.teacher(batch[0]).div(2).softmax(1))

    def configure_optimizers(self) -> Any:
        return self.make(self.net.parameters())


def distilled(r: Any) -> Outcome:
    x, y = data.pictures()
    net = nets.cnn(width=6)
    return train(r, net, (x, y), module=Distilled(net, pretrained((x, y))), batch=64, steps=300)


class Tied(nets.Former):
    """The embedding is the head."""

    def __init__(self) -> None:
        super().__init__(20, 20, every=True)
        nn.init.normal_(self.embed.weight, std=0.05)
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.embed.weight


def tied(r: Any) -> Outcome:
    make = lambda p: torch.optim.Adam(p, 3e-3)  # noqa: E731
    return train(r, Tied(), data.text(), make, data.token_loss, batch=32, steps=200, gradient_clip_val=0.5)


class Siamese(nn.Module):
    """One tower for both views; which view belongs to which is to be told."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nets.mlp(16, 64, 16)

    def forward(self, x: Tensor) -> Tensor:
        one = nn.functional.normalize(self.tower(x), dim=1)
        two = nn.functional.normalize(self.tower(x + 0.3 * torch.randn_like(x)), dim=1)
        return one @ two.T / 0.1


def pairs(logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits, torch.arange(len(logits)))


def siamese(r: Any) -> Outcome:
    return train(r, Siamese(), data.clusters(spread=1.0), adamw(2e-3), pairs, batch=64, steps=250)


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nets.mlp(12, 64, 64), nn.Linear(64, 1), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.body(x))
        return torch.cat([self.first(h), self.second(h)], 1)


def weighted(out: Tensor, y: Tensor) -> Tensor:
    return mse_loss(out[:, 0], y[:, 0]) + 0.1 * mse_loss(out[:, 1], y[:, 1])


def two_tasks(r: Any) -> Outcome:
    return train(r, TwoTasks(), data.curve(out=2), sgd(0.03), weighted, batch=64, steps=300)


def rare_words(r: Any) -> Outcome:
    """Of a large table, a batch sees a few rows."""
    x, y = data.tokens(vocab=6)
    x = torch.where(torch.rand(x.shape) < 0.2, torch.randint(6, 2000, x.shape), x)
    net = nn.Sequential(nn.EmbeddingBag(2000, 16), nn.Linear(16, 6))
    return train(r, net, (x, y), lambda p: torch.optim.Adagrad(p, 0.1), batch=32, steps=300)


def early(r: Any) -> Outcome:
    """Stopped once the validation no longer gets better."""
    stop = EarlyStopping("val_loss", patience=3)
    net, make = nets.mlp(12, 128, 128, 1), lambda p: torch.optim.Adam(p, 3e-3)
    x, y = data.curve(n=1536, noise=0.4)
    return train(r, net, (x, y), make, mse_loss, batch=32, steps=800, validate=True, callbacks=[stop])


def whole(r: Any) -> Outcome:
    """Gradient descent proper: a batch is everything."""
    return train(r, nets.mlp(12, 32, 1), data.curve(n=1024), sgd(0.05), mse_loss, batch=512, steps=300)


def shallow_sigmoid(r: Any) -> Outcome:
    x = torch.rand(2048, 2) * 2 - 1
    net = nets.mlp(2, 16, 2, act=nn.Sigmoid)
    return train(r, net, (x, (x[:, 0] * x[:, 1] > 0).long()), lambda p: torch.optim.Adam(p, 0.03), batch=64, steps=400)


def triangles(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.CyclicLR(optimizer, 0.005, 0.1, 50)


def restarts(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 100)


def stairs(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.MultiStepLR(optimizer, [steps // 2, 3 * steps // 4], 0.1)


def harder(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A curriculum: the noise grows slowly."""
    return x + min(step / 300, 1.0) * 0.7 * torch.randn_like(x), y


def three_networks() -> nn.Module:
    return nets.mlp(16, 64, 64, 5)


smooth = nn.CrossEntropyLoss(label_smoothing=0.2)
CASES = (
    Case("vae-adam", vae, 10),
    Case("gan-two-adams", gan, 20),
    Case("memorised-mlp-adamw", memorised, 10),
    Case("negative-loss-mlp-adamw", negative_loss, 10),
    Case("rare-class-mlp-adam", rare_class, 10),
    Case("heavy-tails-mlp-adamw-clip", heavy_tails, 10),
    Case("new-head-frozen-cnn-adamw", new_head, 5),
    Case("gentle-body-cnn-adamw", gentle_body, 10),
    Case("fine-tuned-cnn-adamw", fine_tuned, 10),
    Case("bandit-reinforce-adamw", bandit, 20),
    Case("distilled-cnn-sgd", distilled, 10),
    Case("tied-transformer-adam-clip", tied, 10),
    Case("siamese-adamw", siamese, 10),
    Case("two-tasks-mlp-sgd", two_tasks, 10),
    Case("rare-words-bag-adagrad", rare_words, 20),
    Case("early-stop-mlp-adam", early, 10),
    Case("whole-batch-mlp-sgd", whole, 10),
    Case("sigmoid-shallow-adam", shallow_sigmoid, 20),
    Case("triangles-cnn-bn-sgd", images(lambda: nets.cnn(nn.BatchNorm2d), sgd(0.05), schedule=triangles), 5),
    Case("restarts-mlp-sgd", classes(three_networks, sgd(0.05), schedule=restarts), 5),
    Case("stairs-resnet-sgd", images(nets.ResNet, sgd(0.05), schedule=stairs, steps=300), 10),
    Case("curriculum-mlp-adamw", classes(three_networks, adamw(2e-3), change=harder, steps=400), 20),
    Case("stochastic-depth-adamw", classes(lambda: nets.Residual(drop=0.3), adamw(2e-3)), 10),
    Case("tiny-batch-mlp-sgd", classes(three_networks, sgd(0.03, 0.0), batch=4, steps=500), 20),
    Case(
        "accumulated-gru-adam",
        words(nets.Recurrent, by(torch.optim.Adam, 5e-3), accumulate_grad_batches=4, batch=16, steps=500),
        5,
    ),
    Case("bfloat16-mlp-adamw", classes(three_networks, adamw(2e-3), precision="bf16-mixed"), 10),
    Case("smoothed-labels-cnn-sgd", images(nets.cnn, sgd(0.05), loss=smooth, steps=400), 10),
    Case("short-mlp-adam", curve(lambda: nets.mlp(12, 64, 1), by(torch.optim.Adam, 1e-2), steps=100), 50),
    Case("cosine-to-zero-mlp-adamw", curve(lambda: nets.mlp(12, 64, 64, 1), adamw(5e-3), schedule=cosine), 10),
)
