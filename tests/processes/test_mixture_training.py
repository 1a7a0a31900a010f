"""A mix in the training loop: learnt rates, scheduled stages, micro-batches, resume."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from unmask import PPOTS, ExactCount, IndependentMasking, Mixture, ProgressiveUnmasking, Ramp, Trainer, TrainingConfig
from unmask.data.sudoku import load_sudoku
from unmask.recipes import SudokuModel
from unmask.training import read_metrics

MASKING = Mixture(
    ProgressiveUnmasking(stages=Ramp(4, 8, 5), threshold=0.15),
    IndependentMasking(PPOTS(refit_every=3, grid=4, rows=3, masks=1), ExactCount(), "stratified"),
    share=((0, 1.0), (2, 0.5), (5, 0.25)),
)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train in float64; returns the run's folder."""
    root = tmp_path_factory.mktemp("mix")

    def run(name, micro_batch_size=None, resume=False):
        torch.manual_seed(0)
        model = SudokuModel(layers=1, width=16, heads=2).build().double()
        config = TrainingConfig(
            steps=8, batch_size=8, micro_batch_size=micro_batch_size, warmup_steps=2, checkpoint_every=4, log_every=1,
            precision="fp32", threads=1, tracker="none",
        )  # fmt: skip
        rows, held_out = load_sudoku("train", limit=40), load_sudoku("test", limit=5)
        Trainer(model, MASKING, rows, config=config, out=root / name, held_out=held_out).train(resume=resume)
        return root / name

    return run


@pytest.fixture(scope="module")
def whole(train):
    return train("whole")


def final(run, name):
    return run / "checkpoints" / "step-00000008" / name


def test_a_resumed_run_is_the_same_bit_for_bit(train, whole):
    resumed = whole.parent / "resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(final(resumed, ""))
    train("resumed", resume=True)
    for name in ("model/model.safetensors", "rank-0.safetensors", "rank-0.json"):
        assert final(resumed, name).read_bytes() == final(whole, name).read_bytes()


def test_micro_batches_change_neither_rows_nor_weights(train, whole):
    small = train("small", micro_batch_size=3)
    pool, other = (load_file(final(run, "rank-0.safetensors")) for run in (whole, small))
    for name in pool:
        tolerance = 1e-4 if name.endswith("mass") else 1e-9  # a fit carries the last bit of what it is given that far
        torch.testing.assert_close(other[name], pool[name], rtol=tolerance, atol=1e-9)
    weights, others = (load_file(final(run, "model/model.safetensors")) for run in (whole, small))
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], rtol=1e-8, atol=1e-8)


def test_the_log_tells_stages_rows_and_shares(whole):
    lines = read_metrics(whole, "train")
    assert [line["stages"] for line in lines] == [4, 5, 6, 6, 7, 8, 8, 8]
    assert [line["independent_share"] for line in lines] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    rows = [line["rows"] for line in lines]
    assert rows[:2] == [8, 16]
    assert rows == sorted(rows)
    assert len(read_metrics(whole, "time")) == 2  # refits at steps 3 and 6
