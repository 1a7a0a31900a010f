"""Two processes train like one with the same global batch."""

from __future__ import annotations

import contextlib
import resource
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from unmask import (
    ELBO,
    PPOTS,
    Bernoulli,
    Beta,
    ExactCount,
    IndependentMasking,
    ProgressiveUnmasking,
    RowMean,
    RowStream,
    Trainer,
    TrainingConfig,
)
from unmask.data.sudoku import load_sudoku
from unmask.recipes import SudokuModel
from unmask.store.checkpoint import CheckpointError
from unmask.store.folder import lock_folder
from unmask.training import read_metrics

# Low rates: in most steps one of the two ranks has no mask at all.
SPARSE = IndependentMasking(time=Beta(a=1.0, b=150.0), mask=Bernoulli())
MASKINGS = {
    "standard": IndependentMasking(mask=ExactCount(), coupling="stratified"),
    "P-POTS": IndependentMasking(PPOTS(3, grid=4, rows=2, masks=1, moment="gradient"), ExactCount()),
    "puma": ProgressiveUnmasking(stages=4, threshold=0.15),
    "sparse": SPARSE,
}
UNUSED = {"steps": 3, "batch_size": 4, "micro_batch_size": 1}
SETTINGS = {"steps": 8, "batch_size": 4, "ema_decay": 0.9, "checkpoint_every": 4, "micro_batch_size": 1}


def sudoku_model(layers=1, width=16):
    return SudokuModel(layers=layers, width=width, heads=2).build()


def with_an_unused_weight():
    """As published models have: poolers, experts without a token."""
    model = sudoku_model().double()
    model.backbone.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    return model


def train_all(out: Path) -> None:
    """By one of two ranks: each run, interrupted and resumed, one after another as the arms of a comparison are."""
    warnings.filterwarnings("error", category=UserWarning, module="unmask")
    for name, masking in MASKINGS.items():
        for stop in (True, False):
            torch.manual_seed(0)

            def evaluate(model, last, stop=stop, name=name):
                if stop and (out / name / "checkpoints" / "step-00000004").exists():
                    raise KeyError("stopped after the first checkpoint")
                return {}

            config = TrainingConfig(
                precision="fp32", threads=1, warmup_steps=2, log_every=1, evaluate_every=3, tracker="none", **SETTINGS
            )
            objective = ELBO() if name == "P-POTS" else RowMean()
            trainer = Trainer(
                sudoku_model().double(), masking, load_sudoku("train", limit=40), objective, config, out=out / name,
                evaluate=evaluate, held_out=load_sudoku("test", limit=5),
            )  # fmt: skip
            assert trainer.accelerator.num_processes == 2
            with contextlib.suppress(KeyError):
                trainer.train(resume=True)
    torch.manual_seed(0)
    config = TrainingConfig(precision="fp32", threads=1, warmup_steps=2, tracker="none", **UNUSED)
    rows = load_sudoku("train", limit=40)
    Trainer(with_an_unused_weight(), MASKINGS["standard"], rows, config=config, out=out / "unused").train()


def fail(out: Path, rank: int) -> None:
    """Another run holds the folder; then only rank 0's own writing fails: rank 1's file fits, the model does not."""

    def train(name):
        config = TrainingConfig(steps=2, batch_size=4, threads=1, precision="fp32", tracker="none")
        rows = load_sudoku("train", limit=40)
        Trainer(sudoku_model(2, 32), IndependentMasking(), rows, config=config, out=out / name).train()

    lock = lock_folder(out / "taken") if rank == 0 else None
    try:
        train("taken")
    except ValueError as error:
        (out / f"taken-{rank}").write_text(str(error))
    del lock
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        train("full")
    except CheckpointError as error:
        (out / f"full-{rank}").write_text(str(error))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, forked_ranks) -> Path:
    """The folder of all runs, each interrupted and resumed, by two processes that gloo connects."""
    folder = tmp_path_factory.mktemp("ranks")
    assert forked_ranks(lambda rank: train_all(folder), limit=180) == [0, 0]  # pitfall 8 is a hang
    return folder


@pytest.mark.parametrize("name", MASKINGS)
def test_two_processes_give_the_weights_of_one(two_processes, trainer, weights_in, name):
    torch.manual_seed(0)
    model = sudoku_model().double()
    one = trainer(model=model, masking=MASKINGS[name], **SETTINGS).train()
    two = two_processes / name / "checkpoints" / one.name
    for which in ("model", "ema"):
        weights, wanted = weights_in(two, which), weights_in(one, which)
        assert weights.keys() == wanted.keys()
        # Weights of the loss are fp32: what a fit leaves of last digits may be the last digit of these.
        close = 2e-7 if name == "P-POTS" else 1e-8
        for tensor in wanted:
            torch.testing.assert_close(weights[tensor], wanted[tensor], rtol=close, atol=1e-8)


def test_a_weight_that_no_forward_uses_stops_no_rank(two_processes, trainer, weights_in):
    """In each of the micro-batches, and from the second step on."""
    torch.manual_seed(0)
    one = trainer(model=with_an_unused_weight(), masking=MASKINGS["standard"], **UNUSED).train()
    weights, wanted = weights_in(two_processes / "unused" / "checkpoints" / one.name), weights_in(one)
    assert wanted["transformer.unused"].tolist() == [1, 1, 1]
    for tensor in wanted:
        torch.testing.assert_close(weights[tensor], wanted[tensor], rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_four_processes_give_the_weights_of_one(trainer, weights_in, forked_ranks, tmp_path):
    """Each a row a step; low rates leave most ranks without a mask in most steps."""
    settings = SETTINGS | {"steps": 4, "batch_size": 8}

    def train(name: str, masking) -> Path:
        torch.manual_seed(0)
        return trainer(name, model=sudoku_model().double(), masking=masking, **settings).train()

    for name in ("standard", "puma", "sparse"):
        assert forked_ranks(lambda rank, name=name: train(f"four-{name}", MASKINGS[name]), 4) == [0] * 4
        wanted = weights_in(one := train(f"one-{name}", MASKINGS[name]))
        found = weights_in(tmp_path / f"four-{name}" / "checkpoints" / one.name)
        for tensor in wanted:
            torch.testing.assert_close(found[tensor], wanted[tensor], rtol=1e-8, atol=1e-8)
        logged = [
            [line["grad_norm"] for line in read_metrics(tmp_path / f"{n}-{name}", "train")] for n in ("four", "one")
        ]
        assert logged[0] == pytest.approx(logged[1], rel=1e-6)  # AdamW itself does not see a gradient's scale


@pytest.mark.parametrize("name", MASKINGS)
def test_two_processes_log_what_one_logs(two_processes, trainer, name):
    torch.manual_seed(0)
    model = sudoku_model().double()
    run = trainer(model=model, masking=MASKINGS[name], **SETTINGS)
    run.train()
    logged = [read_metrics(folder, "train") for folder in (run.out, two_processes / name)]
    for one, two in zip(*logged, strict=True):
        for measure in ("step", "loss", "nll", "grad_norm", "masked_share", "epoch", "tokens"):
            assert two[measure] == pytest.approx(one[measure], rel=1e-6), measure
        for measure in ("rows", "loss", "gradient"):
            found, wanted = ([x or 0 for x in line["by_rate"][measure]] for line in (two, one))
            assert found == pytest.approx(wanted, rel=1e-5), measure


@pytest.mark.parametrize("name", MASKINGS)
def test_what_two_processes_left_one_goes_on_with(two_processes, trainer, weights_in, tmp_path, name):
    """Weights, moments, position and chains: the run ends as if two had gone on."""
    out = tmp_path / "run"
    shutil.copytree(two_processes / name, out)
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    torch.manual_seed(1)  # what the model begins with is overwritten
    model = sudoku_model().double()
    run = trainer(model=model, masking=MASKINGS[name], **SETTINGS)
    assert run.out == out
    one = run.train(resume=True)
    assert run.step == 8
    wanted, weights = weights_in(two_processes / name / "checkpoints" / one.name), weights_in(one)
    for tensor in wanted:
        torch.testing.assert_close(weights[tensor], wanted[tensor], rtol=1e-8, atol=1e-8)


def test_both_ranks_leave_their_state_in_each_checkpoint(two_processes):
    folder = two_processes / "puma" / "checkpoints" / "step-00000008"
    assert {p.name for p in folder.glob("rank-*.json")} == {"rank-0.json", "rank-1.json"}


def test_sparse_masking_leaves_a_rank_without_a_mask(rows):
    """Guards the test above: the case that would hang does occur in it."""
    processes = [SPARSE.start(RowStream(rows, 0, rank, 2), SETTINGS["batch_size"]) for rank in range(2)]
    found = [[bool(process.draw().masked.any()) for process in processes] for _ in range(SETTINGS["steps"])]
    assert any(sum(step) == 1 for step in found)


def test_what_one_rank_meets_all_ranks_raise(tmp_path, forked_ranks):
    """A full disk at rank 0's part of the checkpoint, and a folder that another run holds: no rank waits forever."""
    assert forked_ranks(lambda rank: fail(tmp_path, rank)) == [0, 0]
    said = {name: (tmp_path / name).read_text() for name in ("full-0", "full-1", "taken-0", "taken-1")}
    assert said["full-0"].startswith("could not save step 2")
    assert said["full-1"] == f"rank 0: {said['full-0']}"
    assert said["taken-0"].startswith("another run is training in")
    assert said["taken-1"] == f"rank 0: {said['taken-0']}"
