"""unmask train: one model."""

from __future__ import annotations

from pathlib import Path

from unmask.cli.options import about, configured, flag, masked_as, opened, take_option
from unmask.recipes import RunConfig


def train(words: list[str]) -> None:
    """Train one model: unmask train RECIPE|CONFIG.json --out DIR [--masking NAME] [--resume] [options]."""
    if words and words[0].endswith(".json"):
        modules, words = take_option(words, "--module")
        default, words, settled = RunConfig.load(words[0], modules), words[1:], False
    else:
        recipe, words, settled = opened("train", words)
        masking, words = take_option(words, "--masking")
        if len(masking) > 1:
            raise ValueError(f"--masking takes one value, got {' '.join(masking)}")
        default = masked_as(recipe, masking[0]) if masking else recipe()
    config, options = configured(
        default,
        "train",
        words,
        [
            ("out", about(Path, "Folder of the run: metrics, config, checkpoints."), ...),
            (
                "resume",
                flag("Go on from the newest whole checkpoint in --out; start afresh if there is none."),
                False,
            ),
            ("overwrite", flag("Delete the run that --out holds."), False),
        ],
        settled=settled,
    )
    last = config.train(options["out"], resume=options["resume"], overwrite=options["overwrite"])
    print(f"trained: {last}")
