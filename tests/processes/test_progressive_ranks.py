"""Two real processes share one pool. Run as a script, this file is one rank of the run."""

import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask import MaskedDiffusionLM, ProgressiveUnmasking, RowStream

LENGTHS = [3, 9, 14, 1, 6, 11, 2, 8, 5, 12]
CONFIGS = [
    ProgressiveUnmasking(stages=4),
    ProgressiveUnmasking(stages=6, threshold=0.4, policy="margin"),
    ProgressiveUnmasking(stages=20, policy="random", until=0.7),
]
STEPS, POOL, LENGTH, VOCABULARY = 14, 6, 15, 12


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


def history(rank, world_size):
    """Everything this rank draws, for each config: rows, draws and masks of each step."""
    denoiser, found = model(), {}
    for number, config in enumerate(CONFIGS):
        process = config.start(RowStream(rows(), seed=3, rank=rank, world_size=world_size), POOL, seed=3)
        steps = []
        for _ in range(STEPS):
            batch = process.draw()
            with torch.no_grad():
                process.observe(denoiser(batch, needs=process.needs).scores)
            masked = torch.nn.functional.pad(batch.masked, (0, LENGTH - batch.clean.length))
            steps.append(torch.cat([batch.clean.row[:, None], batch.clean.draw[:, None], masked], 1))
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


@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=lambda n: str(CONFIGS[n]))
def test_the_chains_of_two_ranks_are_those_of_one(both_ranks, number):
    one = history(0, 1)[str(number)]
    assert torch.equal(both_ranks[str(number)], one)
    assert int(one[:, :, 1].max()) >= 1  # more than an epoch went by, in refills of unequal size
    refills = (one[1:, :, :2] != one[:-1, :, :2]).any(2)
    assert (refills[:, :3].sum(1) != refills[:, 3:].sum(1)).any()


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
