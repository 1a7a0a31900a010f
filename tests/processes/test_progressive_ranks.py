"""Two real processes share one pool. Run as a script, this file is one rank of the run."""

import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask import (
    PPOTS,
    IndependentMasking,
    MaskedDiffusionLM,
    Mixture,
    ProgressiveUnmasking,
    Ramp,
    RowStream,
    Scores,
)

LENGTHS = [3, 9, 14, 1, 6, 11, 2, 8, 5, 12]
PURE = [
    ProgressiveUnmasking(stages=4),
    ProgressiveUnmasking(stages=6, threshold=0.4, policy="margin"),
    ProgressiveUnmasking(stages=20, policy="random", until=0.7),
    ProgressiveUnmasking(stages=((0, 3), (4, 9), (9, 5)), policy="entropy", exponent=1.5),
]
MIXED = [
    Mixture(PURE[0], IndependentMasking(coupling="stratified"), share=0.5),
    Mixture(PURE[3], IndependentMasking(mirror=True), share=((0, 1.0), (3, 0.0))),
    Mixture(PURE[1], IndependentMasking(PPOTS(online=True, grid=4), coupling="antithetic"), Ramp(1.0, 0.0, 10)),
]
CONFIGS = PURE + MIXED
STEPS, POOL, LENGTH, VOCABULARY = 14, 8, 15, 12


def rows():
    tokens = [[(7 * r + 3 * p) % (VOCABULARY - 1) for p in range(n + 1)] for r, n in enumerate(LENGTHS)]
    return datasets.Dataset.from_dict({"tokens": tokens, "maskable": [[False] + [True] * n for n in LENGTHS]})


def model():
    from transformers import LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    return MaskedDiffusionLM.from_config(config, VOCABULARY - 1).double().eval()


def scored(denoiser, batch, needs, micro_batch):
    """The scores of a step's rows, by forwards of a few rows each."""
    with torch.no_grad():
        parts = [
            denoiser(batch[start : start + micro_batch], needs=needs).scores
            for start in range(0, len(batch), micro_batch)
        ]
    names = [name for name, value in vars(parts[0]).items() if value is not None]
    return Scores(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def history(rank, world_size, micro_batch=POOL):
    """Everything this rank draws, for each config: slot (unless drawn independently), row, draw, mask, rate."""
    denoiser, found = model(), {}
    for number, config in enumerate(CONFIGS):
        process = config.start(RowStream(rows(), seed=3, rank=rank, world_size=world_size), POOL, seed=3)
        steps = []
        for _ in range(STEPS):
            batch = process.draw()
            process.observe(scored(denoiser, batch, process.needs, micro_batch))
            masked = torch.nn.functional.pad(batch.masked, (0, LENGTH - batch.clean.length))
            group = batch.group if isinstance(config, Mixture) else torch.zeros_like(batch.group)
            columns = [group, batch.clean.row, batch.clean.draw, batch.rate[:, 0]]
            steps.append(torch.cat([torch.stack(columns, 1), masked], 1))
        found[str(number)] = torch.stack(steps)
    return found


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory):
    """Histories of two processes connected by torch.distributed, joined in rank order."""
    folder = tmp_path_factory.mktemp("ranks")
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in started:
            process.kill()
    parts = [load_file(folder / f"{rank}.safetensors") for rank in range(2)]
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def in_order(steps):
    """The rows of each step in an order of their own: the rows of a mix lie in another order on other ranks."""
    return [sorted(step) for step in steps.tolist()]


each = pytest.mark.parametrize("number", range(len(CONFIGS)), ids=lambda n: f"{type(CONFIGS[n]).__name__}-{n}")


@pytest.fixture(scope="module")
def whole():
    """The history of one process that forwards the whole pool at once."""
    return history(0, 1)


@each
def test_the_rows_and_masks_of_two_ranks_are_those_of_one(both_ranks, whole, number):
    two, one = both_ranks[str(number)], whole[str(number)]
    if number < len(PURE):
        assert torch.equal(two, one)  # slot by slot
    else:
        assert in_order(two) == in_order(one)
        assert {(step[:, 0] < 0).double().mean().item() for step in one} >= {0.0, 1.0} or number == len(PURE)
    assert int(one[:, :, 2].max()) >= 1  # more than an epoch went by


@pytest.mark.parametrize("number", range(len(PURE)))
def test_ranks_are_refilled_unevenly(whole, number):
    """Guards the test above: rows are dealt in numbers that differ between the ranks."""
    rows = whole[str(number)][:, :, 1:3]
    refills = (rows[1:] != rows[:-1]).any(2)
    assert (refills[:, : POOL // 2].sum(1) != refills[:, POOL // 2 :].sum(1)).any()


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_size_of_the_forwards_changes_nothing(whole, micro_batch):
    found = history(0, 1, micro_batch)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_refills_over_ranks_that_are_not_connected_raise(stream_of, random_scores):
    process = ProgressiveUnmasking(stages=4).start(stream_of([5] * 4, rank=1, world_size=2), 4)
    batch = process.draw()
    with pytest.raises(RuntimeError, match=r"torch\.distributed"):
        process.observe(random_scores(batch.masked.shape, torch.Generator().manual_seed(0)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    here, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=here, world_size=2
    )
    save_file(history(here, 2), folder / f"{here}.safetensors")
    torch.distributed.destroy_process_group()
