"""Two processes train like one with the same global batch."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unmask import PPOTS, Bernoulli, Beta, ExactCount, IndependentMasking, ProgressiveUnmasking

# Low rates: in most steps one of the two ranks has no mask at all.
SPARSE = IndependentMasking(time=Beta(a=1.0, b=150.0), mask=Bernoulli())
MASKINGS = {
    "standard": IndependentMasking(mask=ExactCount(), coupling="stratified"),
    "P-POTS": IndependentMasking(PPOTS(3, grid=4, rows=2, masks=1, moment="gradient"), ExactCount()),
    "puma": ProgressiveUnmasking(stages=4, threshold=0.15),
    "sparse": SPARSE,
}
SETTINGS = {"steps": 8, "batch_size": 4, "ema_decay": 0.9, "checkpoint_every": 4, "micro_batch_size": 1}

# The runs follow one another in the same two processes, as the arms of a comparison do.
SCRIPT = """
import sys
from pathlib import Path
import torch
from unmask import *
from unmask.data.sudoku import load_sudoku
from unmask.recipes import SudokuModel

out = Path(sys.argv[1])
for name, masking in {maskings!r}.items():
    for stop in (True, False):
        torch.manual_seed(0)
        model = SudokuModel(layers=1, width=16, heads=2).build().double()
        def evaluate(model, last):
            if stop and (out / name / "checkpoints" / "step-00000004").exists():
                raise KeyError("stopped after the first checkpoint")
            return {{}}
        config = TrainingConfig(
            precision="fp32", threads=1, warmup_steps=2, log_every=1, evaluate_every=3, tracker="none", **{settings!r}
        )
        objective = ELBO() if "PPOTS" in repr(masking) else RowMean()
        trainer = Trainer(model, masking, load_sudoku("train", limit=40), objective, config, out=out / name,
                          evaluate=evaluate, held_out=load_sudoku("test", limit=5))
        assert trainer.accelerator.num_processes == 2
        try:
            trainer.train(resume=True)
        except KeyError:
            pass
"""


# Only rank 0's own writing fails: rank 1's file fits, the model does not. Then a second pair finds the folder taken.
FAILING = """
import os, resource, sys
from pathlib import Path
from unmask import *
from unmask.data.sudoku import load_sudoku
from unmask.recipes import SudokuModel
from unmask.store.checkpoint import CheckpointError
from unmask.store.folder import lock_folder

out, first = Path(sys.argv[1]), os.environ["RANK"] == "0"
def train(name):
    config = TrainingConfig(steps=2, batch_size=4, threads=1, precision="fp32", tracker="none")
    model = SudokuModel(layers=2, width=32, heads=2).build()
    Trainer(model, IndependentMasking(), load_sudoku("train", limit=40), config=config, out=out / name).train()
lock = lock_folder(out / "taken") if first else None
try:
    train("taken")
except ValueError as error:
    (out / f"taken-{os.environ['RANK']}").write_text(str(error))
if first:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    train("full")
except CheckpointError as error:
    (out / f"full-{os.environ['RANK']}").write_text(str(error))
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, each interrupted and resumed, by two processes that gloo connects."""
    folder = tmp_path_factory.mktemp("ranks")
    _run(folder, SCRIPT.format(maskings=MASKINGS, settings=SETTINGS))
    return folder


def _run(folder: Path, script: str) -> None:
    """Run a script in two processes, which both must end well."""
    (folder / "script.py").write_text(script)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(2):
        said = (folder / f"said-{rank}.txt").open("w")
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error::UserWarning:unmask", str(folder / "script.py"), str(folder)]
        ranks.append(subprocess.Popen(command, env={**os.environ, **together, **own}, stderr=said, stdout=said))
    try:
        codes = [process.wait(timeout=180) for process in ranks]  # pitfall 8 is a hang
    finally:
        for process in ranks:
            process.kill()
    assert codes == [0, 0], "\n".join((folder / f"said-{rank}.txt").read_text()[-3000:] for rank in range(2))


@pytest.mark.parametrize("name", MASKINGS)
def test_two_processes_give_the_weights_of_one(two_processes, trainer, weights_in, name):
    from unmask.recipes import SudokuModel

    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build().double()
    one = trainer(model=model, masking=MASKINGS[name], **SETTINGS).train()
    two = two_processes / name / "checkpoints" / one.name
    for which in ("model", "ema"):
        weights, wanted = weights_in(two, which), weights_in(one, which)
        assert weights.keys() == wanted.keys()
        for tensor in wanted:
            torch.testing.assert_close(weights[tensor], wanted[tensor], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MASKINGS)
def test_two_processes_log_what_one_logs(two_processes, trainer, name):
    from unmask.recipes import SudokuModel
    from unmask.training import read_metrics

    torch.manual_seed(0)
    model = SudokuModel(layers=1, width=16, heads=2).build().double()
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
    from unmask.recipes import SudokuModel

    out = tmp_path / "run"
    shutil.copytree(two_processes / name, out)
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    torch.manual_seed(1)  # what the model begins with is overwritten
    model = SudokuModel(layers=1, width=16, heads=2).build().double()
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
    from unmask import RowStream

    processes = [SPARSE.start(RowStream(rows, 0, rank, 2), SETTINGS["batch_size"]) for rank in range(2)]
    found = [[bool(process.draw().masked.any()) for process in processes] for _ in range(SETTINGS["steps"])]
    assert any(sum(step) == 1 for step in found)


def test_what_one_rank_meets_all_ranks_raise(tmp_path):
    """A full disk at rank 0's part of the checkpoint, and a folder that another run holds: no rank waits forever."""
    _run(tmp_path, FAILING)
    said = {name: (tmp_path / name).read_text() for name in ("full-0", "full-1", "taken-0", "taken-1")}
    assert said["full-0"].startswith("could not save step 2")
    assert said["full-1"] == f"rank 0: {said['full-0']}"
    assert said["taken-0"].startswith("another run is training in")
    assert said["taken-1"] == f"rank 0: {said['taken-0']}"
