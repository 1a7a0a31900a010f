"""What is no model or no data set is named by every public function that is given it, with what to do instead."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast, TrainingArguments

import unmask
from unmask import (
    ELBO,
    PPOTS,
    Bell,
    Beta,
    Blockwise,
    ExactCount,
    IndependentMasking,
    LikelihoodConfig,
    MaskedBatch,
    MaskedDiffusionLM,
    RowStream,
    Scores,
    Trainer,
    TrainingConfig,
    TrainingStep,
)
from unmask.config import to_json
from unmask.evaluation import exact, generative, likelihood, locality, variance
from unmask.evaluation.tasks import SudokuTask
from unmask.integrations import MaskedDiffusionTrainer
from unmask.kinds import KNOWN, _listed, check_kind, fits
from unmask.processes import Masking, guides
from unmask.recipes import sudoku
from unmask.sampling import Decoding

PUBLIC = {
    name: getattr(unmask, name)
    for name in unmask.__all__
    if inspect.isfunction(getattr(unmask, name)) or inspect.isclass(getattr(unmask, name))
} | {"MaskedDiffusionTrainer": MaskedDiffusionTrainer, "likelihood": likelihood.likelihood}
WRONG = {"model": nn.Linear(2, 2)} | {key: [[1, 2]] for key in ("dataset", "rows", "train_dataset", "batch")}
SAID = {"model": "MaskedDiffusionLM", "batch": "TokenBatch"}
NOT_ASKED = {"MaskedDiffusionLM", "Pretrained"}  # the first is what is asked for, the second holds what was found


def places():
    """Every public function's parameter that takes a model or data."""
    for name, function in PUBLIC.items():
        if name in NOT_ASKED or hasattr(function, "__dataclass_fields__"):
            continue
        for parameter in inspect.signature(function).parameters:
            if parameter in WRONG:
                yield name, parameter


def right(function, parameter, build, rows, tmp_path):
    """Something that the function takes."""
    if parameter in ("dataset", "rows", "train_dataset"):
        return rows
    return {
        "model": build,
        "masking": IndependentMasking,
        "batch_size": lambda: 4,
        "out": lambda: tmp_path,
        "config": lambda: sudoku() if function is unmask.advise else TrainingConfig(steps=1),
        "args": lambda: TrainingArguments(str(tmp_path), max_steps=1, report_to=[]),
        "batch": lambda: RowStream(rows).rows(torch.arange(2)),
        "tokenizer": lambda: PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel())),
        "folder": lambda: tmp_path,
        "backbone": lambda: nn.Linear(2, 2),
        "head": lambda: nn.Linear(2, 2),
        "mask_token_id": lambda: 1,
        "arms": dict,
        "name": lambda: "a/b",
    }[parameter]()


@pytest.mark.parametrize(("name", "wrong"), sorted(places()))
def test_what_is_of_another_kind_is_named(name, wrong, build, rows, tmp_path):
    function = PUBLIC[name]
    given = {
        parameter: WRONG[wrong] if parameter == wrong else right(function, parameter, build, rows, tmp_path)
        for parameter, about in inspect.signature(function).parameters.items()
        if parameter == wrong or (about.default is about.empty and about.kind is not about.VAR_KEYWORD)
    }
    with pytest.raises(TypeError, match=SAID.get(wrong, "expected one datasets.Dataset")):
        function(**given)


def test_the_places_are_found():
    """The control: those that are known to take a model or data are among them."""
    found = set(places())
    assert {("Trainer", "model"), ("Trainer", "dataset"), ("RowStream", "dataset"), ("generate", "batch")} <= found
    assert {("TrainingStep", "dataset"), ("add_order", "rows"), ("likelihood", "model")} <= found
    assert len(found) > 12


def test_scores_take_what_a_process_needs():
    """A process that needs none says None."""
    logits = torch.randn(2, 3, 4)
    none, some = Scores.from_logits(logits, 0, None), Scores.from_logits(logits, 0, ("margin",))
    assert none.margin is None
    assert torch.equal(none.log_confidence, some.log_confidence)
    assert some.margin is not None


def settings():
    """Every field of every dataclass of settings, with an object of that class."""
    unmask.config._our("no such")  # loads all that a config may name
    needed = {"masking": IndependentMasking(), "size": 4, "tokens": (1, 2), "start": 0, "end": 1, "steps": 5}
    needed |= {"tokenizer": "words", "source": "a.csv", "names": ("chain_sum",), "name": "a/b", "folder": "."}
    for kind in sorted((kind for kind in set(KNOWN.values()) if is_settings(kind)), key=lambda kind: kind.__name__):
        own = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        if kind.__name__ in ("RunConfig", "OrderLikelihood", "LikelihoodBy"):  # of parts that are tried themselves
            continue
        made = kind(**{name: needed[name] for name in own})
        yield from ((f"{kind.__name__}.{field.name}", made, field.name) for field in fields(kind) if field.init)


def is_settings(kind):
    return isinstance(kind, type) and is_dataclass(kind) and hasattr(kind.__init__, "checks_kinds")


SETTINGS = {name: (made, field) for name, made, field in settings()}


class Odd:
    """Nothing takes one."""


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_names_itself_where_it_is_of_another_kind(name):
    made, field = SETTINGS[name]
    for wrong in (Odd(), Odd):
        if not fits(wrong, get_type_hints(type(made))[field]):
            with pytest.raises((TypeError, ValueError), match=field):
                replace(made, **{field: wrong})


@pytest.mark.parametrize(
    "name", [name for name, (made, field) in SETTINGS.items() if isinstance(getattr(made, field), float)]
)
@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan"), "0.5", True])
def test_every_number_is_finite(name, wrong):
    made, field = SETTINGS[name]
    with pytest.raises((TypeError, ValueError), match=field):
        replace(made, **{field: wrong})


LISTED = [name for name, (made, field) in SETTINGS.items() if _listed(get_type_hints(type(made))[field])]


@pytest.mark.parametrize("name", LISTED)
def test_a_word_that_is_not_listed_is_told_from_those_that_are(name):
    """Whatever else is wrong: other settings may only make sense with one of the words."""
    made, field = SETTINGS[name]
    words = [word for word in _listed(get_type_hints(type(made))[field]) if isinstance(word, str)]
    if words:
        with pytest.raises(ValueError, match=f"{field} must be .*'{words[0]}'.*, got 'nearby'"):
            replace(made, **{field: "nearby"})


def test_words_are_looked_at_before_what_they_go_with():
    with pytest.raises(ValueError, match="schedule must be 'linear' or 'cosine', got 'cosin'"):
        Decoding(schedule="cosin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pair must be 'mirror' or 'complement' or None, got 'mirrors'"):
        IndependentMasking(pair="mirrors", mirror_below=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="half must be 0 or 1 or None, got 2"):
        SudokuTask(half=2)  # type: ignore[arg-type]


def test_the_settings_are_found():
    assert {"IndependentMasking.coupling", "PPOTS.moment", "TrainingConfig.attention"} <= set(LISTED)
    assert {"IndependentMasking.time", "TrainingConfig.learning_rate", "Beta.a", "LoRA.rank"} <= set(SETTINGS)
    assert len(SETTINGS) > 200


def arguments():
    """Every public function's argument that is neither model nor data, and that an odd object is no kind of."""
    for name, function in PUBLIC.items():
        if hasattr(function, "__dataclass_fields__") or name in ("Pretrained", "ForwardProcess", "MaskedHead"):
            continue
        hints = get_type_hints(function.__init__ if isinstance(function, type) else function)
        for parameter, about in inspect.signature(function).parameters.items():
            taken = parameter in WRONG or about.kind is about.VAR_KEYWORD
            if not taken and parameter in hints and not fits(Odd(), hints[parameter]):
                yield name, parameter


@pytest.mark.parametrize(("name", "wrong"), sorted(arguments()))
def test_every_argument_names_itself_where_it_is_of_another_kind(name, wrong, build, rows, tmp_path):
    function = PUBLIC[name]
    given = {
        parameter: right(function, parameter, build, rows, tmp_path)
        for parameter, about in inspect.signature(function).parameters.items()
        if parameter != wrong and about.default is about.empty and about.kind is not about.VAR_KEYWORD
    }
    with pytest.raises(TypeError, match=f"{wrong} must be"):
        function(**given, **{wrong: Odd()})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda m: IndependentMasking("bell"),
            "time must be a TimeDistribution such as Uniform(), got 'bell': write Bell()",
        ),
        (lambda m: IndependentMasking(Bell), "time must be a TimeDistribution .* got the class Bell: write Bell()"),
        (lambda m: IndependentMasking(mask=ExactCount), "got the class ExactCount: write ExactCount()"),
        (lambda m: LikelihoodConfig(masking=IndependentMasking), "got the class IndependentMasking: write Indep"),
        (lambda m: Beta(a="2", b=1), "Beta: a must be a finite number, got '2'"),
        (lambda m: TrainingConfig(learning_rate="1e-3"), "learning_rate must be a finite number, got '1e-3'"),
        (lambda m: TrainingStep("puma", [], 4), "masking must be a Masking such as IndependentMasking(), got 'puma'"),
        (lambda m: TrainingStep(ExactCount(), [], 4), "masking must be a Masking .* got ExactCount()"),
        (lambda m: TrainingStep(Bell, [], 4), "masking must be a Masking .* got the class Bell$"),
        (lambda m: TrainingStep(Blockwise, [], 4), "got the class Blockwise: write Blockwise(...)"),
        (
            lambda m: Trainer(m, IndependentMasking(), [], "elbo", out="x"),
            "objective must be .*, got 'elbo': write ELBO()",
        ),
        (lambda m: Trainer(m, IndependentMasking(), [], ELBO, out="x"), "got the class ELBO: write ELBO()"),
        (
            lambda m: Trainer(m, IndependentMasking(), [], config={}, out="x"),
            "config must be a TrainingConfig or None",
        ),
        (lambda m: MaskedDiffusionLM.from_logits(m, None), "mask_token_id must be an integer, got None"),
        (lambda m: MaskedDiffusionLM.from_hf(m, "[MASK]"), "mask_token_id must be an integer, got"),
        (lambda m: unmask.from_pretrained(5), "name must be text or a path, got 5"),
    ],
)
def test_what_was_expected_is_said(make, said, build):
    with pytest.raises(TypeError, match=said.replace("()", r"\(\)").replace("(...)", r"\(\.\.\.\)")):
        make(build())


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (3, float, True), (np.float32(0.5), float, True), (float("nan"), float, False), ("3", float, False),
        (np.int64(3), int, True), (True, int, False), (3.0, int, False), (None, int | None, True),
        ("a", Path, True), ([1, 2], tuple[int, ...], True), ((1, 2), tuple[int, int], True),
        ((1,), tuple[int, int], False), (("a",), tuple[int, ...], False), ("ab", tuple[str, ...], False),
        ("a", Literal["a", "b"], True), (1, Literal["a", 1], True), (True, Literal["a", 1], False),
        (len, Callable[[int], int], True), (3, Callable[[int], int], False), ({"a": 1}, Mapping[str, int], True),
        (Bell(), Masking, False), (IndependentMasking(), Masking, True), (IndependentMasking, Masking, False),
        (PPOTS(), object, True), (Bell, type[Bell], True), (Bell, Any, True),
    ],
)  # fmt: skip
def test_what_fits(value, hint, good):
    """The control of all above: values of the kinds that are asked for pass."""
    assert fits(value, hint) == good


def test_a_masking_of_ones_own_needs_its_members_alone():
    class Mine:
        has_density = peeks = False
        support = 0.0, 1.0

        def start(self, rows, batch_size, seed=0, device=None):
            raise NotImplementedError

    check_kind("masking", Mine(), Masking)
    with pytest.raises(TypeError, match="got the class Mine: write Mine"):
        check_kind("masking", Mine, Masking)


def test_numbers_of_numpy_are_saved_as_numbers():
    assert to_json(TrainingConfig(learning_rate=np.float32(0.5)))["learning_rate"] == 0.5


def sized():
    """Every public function of the evaluations and guides that takes a batch size."""
    for module in (exact, generative, likelihood, locality, variance, guides):
        for name, function in vars(module).items():
            own = inspect.isfunction(function) and function.__module__ == module.__name__
            if own and not name.startswith("_") and "batch_size" in inspect.signature(function).parameters:
                yield f"{module.__name__.rpartition('.')[2]}.{name}", function


@pytest.mark.parametrize("function", [function for _, function in sized()], ids=[name for name, _ in sized()])
def test_batches_of_nothing_are_refused_by_their_name(function, build, rows):
    model, batch = build(), RowStream(rows).rows(torch.arange(2))
    able = {
        "model": model,
        "dataset": rows,
        "rows": rows,
        "config": LikelihoodConfig(),
        "masking": IndependentMasking(),
        "arms": {"one": IndependentMasking()},
        "nested": variance.Nested(),
        "seed": 0,
        "guide": lambda clean: clean.tokens,
        "batch": MaskedBatch(batch, batch.maskable, None, None),
        "tokenizer": None,
        "judge": "nowhere",
        "texts": ["a", "b"] if function is generative.judge_texts else 2,
        "length": 4,
        "decoding": Decoding(),
    }
    asked = {
        name: able[name]
        for name, about in inspect.signature(function).parameters.items()
        if about.default is about.empty and name != "batch_size"
    }
    with pytest.raises(ValueError, match="batch_size must be"):
        list(function(**asked, batch_size=0) or ())
