"""Larger runs with the papers' settings."""

from __future__ import annotations

from unmask.parts import CorpusData, HeldOutLikelihood, PretrainedModel, TextModel, named_masking
from unmask.processes import ProgressiveUnmasking
from unmask.runs.config import RunConfig
from unmask.training import TrainingConfig


def lm1b(masking: str = "bell") -> RunConfig:
    """Train on LM1B from scratch: single sentences of at most 128 BERT tokens (arXiv 2605.13026).

    Size and schedule are those usual on this data (12 layers, 768 wide, 512 rows); the paper's are not known to us.

    Args:
        masking: a name of `unmask.parts.maskings`.
    """
    return RunConfig(
        recipe="lm1b",
        data=CorpusData("lm1b", end_token="[SEP]"),
        model=TextModel(
            vocab_size=30_522, mask_token_id=103, layers=12, width=768, heads=12, inner=2048, init_std=0.02
        ),
        **named_masking(masking),
        training=TrainingConfig(
            steps=1_000_000,
            batch_size=512,
            learning_rate=3e-4,
            warmup_steps=2500,
            schedule="constant",
            ema_decay=0.9999,
            evaluate_every=10_000,
            checkpoint_every=10_000,
        ),
        evaluation=HeldOutLikelihood(),
    )


def tinygsm(masking: str = "puma") -> RunConfig:
    """Train on TinyGSM from scratch, as in the PUMA paper (arXiv 2602.10314): 125M parameters, rows of 512.

    The learning rate is the paper's of Sudoku; that of TinyGSM is not known to us. "puma" has stages from 12 to 42,
    three more every 30,000 steps, and fast-forward at 0.9; its pool is ours, the paper's is --masking.pool batch.

    Args:
        masking: a name of `unmask.parts.maskings`.
    """
    stages = tuple((30_000 * i, 12 + 3 * i) for i in range(11))
    return RunConfig(
        recipe="tinygsm",
        data=CorpusData("tinygsm", tokenizer_name="Qwen/Qwen2-0.5B", length=512),
        model=TextModel(
            vocab_size=151_647, layers=14, width=512, heads=8, inner=1536, positions=512, init_std=0.02, tied=True
        ),
        **named_masking(masking, ProgressiveUnmasking(stages=stages, threshold=0.9)),
        training=TrainingConfig(
            steps=330_000,
            batch_size=256,
            learning_rate=3e-4,
            warmup_steps=1000,
            ema_decay=0.9999,
            evaluate_every=10_000,
            checkpoint_every=10_000,
        ),
        evaluation=HeldOutLikelihood(),
    )


def llada_sft(masking: str = "ppots-mirror") -> RunConfig:
    """Fine-tune LLaDA-8B on GSM8K (arXiv 2511.18159); replies are filled with end-of-text tokens, as LLaDA's are.

    Model and data are the paper's. Batch, steps, row length, learning rate, warm-up and weight decay are our choice:
    the paper's are not known to us.

    Args:
        masking: a name of `unmask.parts.maskings`.
    """
    name = "GSAI-ML/LLaDA-8B-Base"
    return RunConfig(
        recipe="llada_sft",
        data=CorpusData("gsm8k", tokenizer_name=name, mask_token="<|mdm_mask|>", length=512, ending="eos_as_padding"),
        model=PretrainedModel(name, mask_token="<|mdm_mask|>"),
        **named_masking(masking),
        training=TrainingConfig(
            steps=1000,
            batch_size=64,
            micro_batch_size=2,
            learning_rate=2.5e-5,
            warmup_steps=50,
            weight_decay=0.1,
            evaluate_every=200,
            checkpoint_every=200,
        ),
        evaluation=HeldOutLikelihood(),
    )
