"""Two real processes draw the blocks that one draws."""

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from unmask import Bell, Blockwise, ExactCount, IndependentMasking, MaskedDiffusionLM, ProgressiveUnmasking, RowStream

LENGTHS = [3, 9, 14, 1, 6, 11, 2, 8, 5, 12]
CONFIGS = [
    Blockwise(IndependentMasking(Bell(), coupling="stratified"), 4),
    Blockwise(IndependentMasking(mask=ExactCount(), coupling="antithetic", pair="mirror"), ((0, 2), (5, 3))),
    Blockwise(IndependentMasking(pair="complement"), 4, causal=0.25),
    Blockwise(ProgressiveUnmasking(stages=4, pool="batch"), 4),
    Blockwise(ProgressiveUnmasking(stages=6, threshold=0.4, policy="margin", pool=8), ((0, 1), (4, 3), (8, 20))),
]
STEPS, BATCH, LENGTH, VOCABULARY = 12, 8, 15, 12


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
    """Everything this rank draws, for each config: rows, draws, masks and rates of each step."""
    denoiser, found = model(), {}
    for number, config in enumerate(CONFIGS):
        process = config.start(RowStream(rows(), seed=3, rank=rank, world_size=world_size), BATCH, seed=3)
        steps = []
        for _ in range(STEPS):
            batch = process.draw()
            if process.needs is not None:
                # In micro-batches of two rows: scores do not depend on how rows are grouped.
                parts = [
                    denoiser(batch[slice(i, i + 2)], needs=process.needs).scores for i in range(0, len(batch), 2)
                ]
                names = [name for name in ("log_confidence", "margin", "nll") if getattr(parts[0], name) is not None]
                joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
                process.observe(type(parts[0])(**joined))
            columns = [batch.clean.row[:, None], batch.clean.draw[:, None]]
            real = batch.clean.attention
            for values in (batch.masked, batch.rate * real, batch.block * real):
                columns.append(torch.nn.functional.pad(values, (0, LENGTH - batch.clean.length)))
            steps.append(torch.cat([column.double() for column in columns], 1))
        found[str(number)] = torch.stack(steps)
    return found


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory, forked_ranks):
    """Histories of two processes connected by torch.distributed, joined in rank order."""
    folder = tmp_path_factory.mktemp("ranks")

    def work(rank):
        torch.distributed.init_process_group("gloo")
        save_file(history(rank, 2), folder / f"{rank}.safetensors")

    assert forked_ranks(work, limit=240) == [0, 0]
    parts = [load_file(folder / f"{rank}.safetensors") for rank in range(2)]
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


@pytest.fixture(scope="module")
def one_rank():
    return history(0, 1)


@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=lambda n: str(CONFIGS[n]))
def test_the_blocks_of_two_ranks_are_those_of_one(both_ranks, one_rank, number):
    assert torch.equal(both_ranks[str(number)], one_rank[str(number)])
    assert int(one_rank[str(number)][:, :, 1].max()) >= 1  # more than an epoch went by
