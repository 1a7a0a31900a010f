"""Rows drawn by importance through the trainer: the loss stays unbiased, runs resume, chains refuse."""

import pytest
import torch
from datasets import Dataset

from unmask import ELBO, Blockwise, IndependentMasking, ProgressiveUnmasking, RowImportance
from unmask.cli import main
from unmask.recipes import RECIPES
from unmask.runs.config import RunConfig
from unmask.training import read_metrics

UNEVEN = RowImportance(uniform=0.2, memory=0.0)


@pytest.fixture
def single():
    """Rows with one maskable position each: their loss has no noise but that of which rows are drawn."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 9, (24, 4), generator=generator)
    return Dataset.from_dict({"tokens": tokens.tolist(), "maskable": [[False] * 3 + [True]] * 24})


@pytest.mark.filterwarnings("ignore:the first step.s loss")
def test_the_trainers_loss_stays_unbiased_where_its_rows_lean_to_hard_ones(trainer, build, single, masked_batch):
    """A model that hardly moves; the plain mean of what was drawn is the control, and off by far."""
    model = build()
    with torch.no_grad():
        model.head.output.weight.mul_(40)  # some rows are much harder than others
        tokens = torch.tensor(single["tokens"])
        exact = float(model(masked_batch(tokens, torch.arange(4).expand(24, 4) == 3)).nll.sum() / 24)
    run = trainer(
        model=model,
        dataset=single,
        objective=ELBO(),
        importance=UNEVEN,
        steps=100,
        learning_rate=1e-12,
        weight_decay=0.0,
        micro_batch_size=3,
    )
    run.train()
    lines = [line for line in read_metrics(run.out) if line["kind"] == "train"][10:]
    loss, drawn = (torch.tensor([line[name] for line in lines]).double() for name in ("loss", "nll"))
    error = float(loss.std() / len(loss) ** 0.5)
    assert abs(float(loss.mean()) - exact) < 4 * error
    assert float(drawn.mean()) - exact > 10 * error


@pytest.mark.parametrize("masking", [IndependentMasking(), Blockwise(IndependentMasking(), 2)], ids=str)
def test_a_resumed_run_draws_the_same_rows(trainer, build, state_of, stop_at, masking):
    settings = {"masking": masking, "importance": UNEVEN, "steps": 8, "checkpoint_every": 3, "evaluate_every": 1}
    whole = trainer("whole", evaluate=lambda model, last: {}, **settings).train()
    with pytest.raises(stop_at.error):
        trainer("cut", evaluate=stop_at(6), **settings).train()
    assert state_of(
        trainer("cut", model=build(seed=5), evaluate=lambda m, last: {}, **settings).train(True)
    ) == state_of(whole)
    with pytest.raises(ValueError, match="importance"):
        trainer("cut", evaluate=lambda m, last: {}, **settings | {"importance": None, "steps": 9}).train(resume=True)


@pytest.mark.parametrize(
    "masking", [ProgressiveUnmasking(stages=3), Blockwise(ProgressiveUnmasking(stages=3), 2)], ids=str
)
def test_chains_refuse_it_in_words(trainer, masking):
    with pytest.raises(ValueError, match=r"keeps rows .* Leave importance at None"):
        trainer(masking=masking, importance=UNEVEN)


def test_the_command_line_reaches_it_and_refuses_chains_before_rows_are_read(tmp_path, monkeypatch, capsys):
    words = ["train", "sudoku", "--importance", "RowImportance(uniform=0.5)", "--out", str(tmp_path / "run")]
    found = []
    monkeypatch.setattr(RunConfig, "train", lambda config, out, **options: found.append(config))
    main([*words, "--masking", "uniform-count"])
    assert found[0].training.importance == RowImportance(uniform=0.5)
    monkeypatch.undo()
    monkeypatch.setattr(type(RECIPES["sudoku"]().data), "load", lambda data: pytest.fail("rows were read"))
    with pytest.raises(SystemExit):
        main([*words, "--masking", "puma"])
    assert "Leave importance at None" in capsys.readouterr().err
