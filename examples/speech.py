"""Convolutions and a GRU learn spoken digit sequences with CTC, under NonFiniteGuard, AutoClip and GradientMonitor.

python examples/speech.py                    digits synthesised by formants, 15 speakers: nothing to download
python examples/speech.py --data-dir DIR     wav files named <digit>_<speaker>_<take>.wav, or folders <digit>/*.wav
python examples/speech.py --calibrate none   without the callbacks: one broken recording makes all weights NaN
python examples/speech.py --fast             a few seconds, to see that everything works

Copy speech_data.py, the loader and the synthesis, along with this file.
"""

# ruff: noqa: D102 - Lightning's hooks are documented by Lightning
import argparse
import math
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from speech_data import LONGEST, DataError, Utterances, collate, load, spell, split
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.functional.text import word_error_rate
from torchmetrics.text import WordErrorRate

from lightning_calib import AutoClip, GradientMonitor, NonFiniteGuard

SEED = 1  # of the weights, the order and the speed of the utterances
EPOCHS = 16
UTTERANCES = 960, 240  # made of the recordings, for training and for testing
FAST_EPOCHS = 3
FAST_UTTERANCES = 480, 60
VOICES, TAKES = 15, 6  # synthetic speakers, and how often each says each digit
CUT = 3  # training utterances whose recording stopped at once while the text is whole, as real corpora have them
LOG_EVERY = 10  # steps between two points of a chart
BATCH_SIZE = 16
FAST_BATCH_SIZE = 4  # CTC answers nothing but blanks for the first hundreds of steps: let there be many small ones
MAX_LR = 3e-3  # at the top of the cycle
WEIGHT_DECAY = 1e-2
WIDTH = 96  # channels of the convolutions and of each direction of the GRU
MELS = 40  # bands of the mel filter bank
BLANK = 0  # CTC's symbol for nothing; digit d is symbol d + 1


class Recogniser(LightningModule):
    """Log-mel bands, two convolutions, a GRU in both directions, and CTC over the blank and ten digits."""

    def __init__(self, rate: int):
        super().__init__()
        self.hop, self.fft = rate // 100, 2 ** math.ceil(math.log2(rate / 40))
        self.register_buffer("window", torch.hann_window(rate // 40))
        self.register_buffer("mels", mel_bank(rate, self.fft))
        self.front = nn.Sequential(
            nn.Conv1d(MELS, WIDTH, 5, stride=2, padding=2), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2), nn.ReLU(), nn.Dropout(0.1),
        )  # fmt: skip
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * WIDTH, 11)
        self.errors = WordErrorRate()

    def forward(self, sound: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        spectrum = torch.stft(sound, self.fft, self.hop, len(self.window), self.window, return_complex=True).abs()
        bands = (self.mels @ spectrum.square() + 1e-6).log()
        frames = samples // self.hop + 1
        inside = torch.arange(bands.shape[2], device=bands.device) < frames[:, None, None]
        mean = (bands * inside).sum(2, keepdim=True) / frames[:, None, None]
        bands = (bands - mean) * inside  # without the mean, the microphone is gone
        steps = (frames + 3) // 4  # two strides of 2
        hidden = self.front(bands / 3).transpose(1, 2)
        packed = nn.utils.rnn.pack_padded_sequence(hidden, steps.cpu(), batch_first=True, enforce_sorted=False)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.head(hidden).log_softmax(-1), steps

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of each utterance; inf where there are fewer steps than the text needs."""
        scores, steps = self(batch["sound"], batch["samples"])
        # zero_infinity=True would hide the broken utterances; here they are to be seen.
        scores, texts, lengths = scores.transpose(0, 1), batch["text"], batch["length"]
        return nn.functional.ctc_loss(scores, texts, steps, lengths, BLANK, reduction="none")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = (self.losses(batch) / batch["length"]).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["length"]))
        return loss

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        scores, steps = self(batch["sound"], batch["samples"])
        heard = [row[:n].unique_consecutive() for row, n in zip(scores.argmax(-1), steps, strict=True)]
        texts = [text[:n] for text, n in zip(batch["text"], batch["length"], strict=True)]
        self.errors([spell(row[row != BLANK]) for row in heard], [spell(text) for text in texts])
        self.log("test/wer", self.errors, batch_size=len(texts))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=MAX_LR, weight_decay=WEIGHT_DECAY)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def mel_bank(rate: int, fft: int) -> Tensor:
    """Triangles that are equally wide on the mel scale; shape (MELS, fft // 2 + 1)."""
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, MELS + 2) / 2595) - 1)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = torch.linspace(0, rate / 2, fft // 2 + 1)
    return torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)


def best_constant(train: list[str], test: list[str]) -> tuple[str, float]:
    """Returns the answer (one digit so many times) that is best on the training texts, and its test error rate."""
    answers = [" ".join([str(digit)] * length) for digit in range(10) for length in range(1, LONGEST + 1)]
    best = min(answers, key=lambda answer: float(word_error_rate([answer] * len(train), train)))
    return best, float(word_error_rate([best] * len(test), test))


def tell_broken(folder: Path, model: Recogniser, rate: int) -> int:
    """Names the utterances to blame in the batches that the guard has saved; returns how many there are."""
    told: set[int] = set()
    for path in sorted(folder.glob("*.pt")):
        for saved in torch.load(path, weights_only=True)["batches"]:
            batch = saved["batch"]
            with torch.no_grad():
                bad = (~model.losses(batch).isfinite()).nonzero().flatten().tolist()
            for i in bad:
                number, seconds = int(batch["utterance"][i]), int(batch["samples"][i]) / rate
                if number not in told:
                    text = spell(batch["text"][i, : batch["length"][i]])
                    place = f"{path.name}, batch {saved['batch_idx']}, sample {i}"
                    print(f"{place}: utterance {number} has {seconds:.2f} s of sound for the text {text!r}")
                told.add(number)
    return len(told)


def callbacks(calibrate: str, evidence: Path) -> list[Callback]:
    """What --calibrate asks for."""
    chosen: list[Callback] = []
    if calibrate == "full":
        chosen.append(NonFiniteGuard("skip", save_batch_to=evidence))
    if calibrate in ("clip", "full"):
        chosen.append(AutoClip())
    if calibrate != "none":
        chosen.append(GradientMonitor())
    return chosen


def tensorboard_command(logs: str) -> str:
    """Returns a line for the shell that works from this folder, be the environment activated or not."""
    program = shutil.which("tensorboard", path=os.path.dirname(sys.executable)) or "tensorboard"
    inside = program.startswith(os.getcwd() + os.sep)
    return shlex.join([os.path.relpath(program) if inside else program, "--logdir", logs])


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="train for a few seconds only")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="wav files of spoken digits")
    parser.add_argument(
        "--calibrate", choices=["none", "monitor", "clip", "full"], default="full", help="which callbacks"
    )
    parser.add_argument(
        "--cut", type=int, default=CUT, metavar="N", help="broken training utterances; 0 for clean data"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help=f"default: {EPOCHS}, or {FAST_EPOCHS} with --fast")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--log-dir", default="lightning_logs", metavar="DIR")
    return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, tests, and says what the gradients did and which utterances are broken."""
    parser, options = parse(argv)
    try:
        recordings, rate = load(options.data_dir, VOICES, TAKES)
    except (DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")

    seed_everything(options.seed)
    epochs, size, counts = EPOCHS, BATCH_SIZE, UTTERANCES
    if options.fast:
        epochs, size, counts = FAST_EPOCHS, FAST_BATCH_SIZE, FAST_UTTERANCES
    halves = split(recordings)
    train = Utterances(halves[0], counts[0], rate, cut=options.cut, varied=True)
    test = Utterances(halves[1], counts[1], rate)
    # The sounds are in memory: workers would only copy them from process to process.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between Lightning 2.6 and torch 2.13
    logger = TensorBoardLogger(options.log_dir, name="speech", default_hp_metric=False)
    evidence = Path(logger.log_dir, "bad_batches")
    trainer = Trainer(
        max_epochs=options.epochs or epochs,
        log_every_n_steps=LOG_EVERY,
        logger=logger,
        callbacks=callbacks(options.calibrate, evidence),
        enable_checkpointing=False,
        devices=1,  # too little work to share
    )
    model = Recogniser(rate)
    trainer.fit(model, DataLoader(train, size, shuffle=True, collate_fn=collate))
    (result,) = trainer.test(model, DataLoader(test, 4 * BATCH_SIZE, collate_fn=collate))
    constant, baseline = best_constant(train.texts(), test.texts())
    healthy = all(bool(weights.isfinite().all()) for weights in model.parameters())
    if not healthy:
        print("The weights are not finite: the model hears nothing. --calibrate full skips such steps.")
    broken = tell_broken(evidence, model.cpu(), rate) if healthy else 0
    print(f"test/wer {result['test/wer']:.4f} (trivial baseline: always {constant!r} {baseline:.4f})")
    if options.fast and healthy and result["test/wer"] > baseline:
        print("--fast is too short to reach the trivial baseline; it is there to see that everything works.")
    for monitor in (one for one in trainer.callbacks if isinstance(one, GradientMonitor)):
        print(monitor.summary())
    print(f"to see the charts: {tensorboard_command(options.log_dir)}")
    return {"wer": result["test/wer"], "baseline": baseline, "finite": float(healthy), "broken": float(broken)}


if __name__ == "__main__":
    main()
