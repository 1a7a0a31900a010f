"""The lm-eval adapter: the estimator's own numbers, every token once, text cut where it should be."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2Config, PreTrainedTokenizerFast

from unmask import Decoding, IndependentMasking, MaskedDiffusionLM
from unmask.data.tokenizers import character_tokenizer
from unmask.evaluation.harness import LENGTHS, HarnessModel
from unmask.evaluation.likelihood import LikelihoodConfig, likelihood

TEXT = "the cat sat on a mat. "


@dataclass
class Instance:
    """The attributes of lm-eval's Instance that its documentation names."""

    arguments: tuple

    @property
    def args(self) -> tuple:
        return self.arguments


def asked(*arguments) -> list[Instance]:
    return [Instance(a) for a in arguments]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer([TEXT])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "shifted"])
def adapter(request, tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=24, n_embd=16, n_layer=1, n_head=2, bos_token_id=None
    )
    model = MaskedDiffusionLM.from_config(config, tokenizer.mask_token_id, shifted=request.param).double()
    return HarnessModel(model, tokenizer, max_length=24)


@pytest.fixture
def uniform(adapter, monkeypatch):
    """The same model with all logits equal: each token costs log(V - 1) exactly, whatever is masked."""
    for parameter in adapter.model.head.parameters():
        monkeypatch.setattr(parameter, "data", torch.zeros_like(parameter))
    return adapter


def test_loglikelihood_is_the_estimator_s_with_the_context_given(adapter, tokenizer):
    context, answer = "the cat", " sat"
    found = adapter.loglikelihood(asked((context, answer), ("a ", "mat"), ("", "on")))
    first = [tokenizer.eos_token_id] * adapter.model.shifted
    rows = [
        (first + tokenizer.encode(c).tolist(), tokenizer.encode(a).tolist())
        for c, a in ((context, answer), ("a", " mat"), ("", "on"))  # spaces at the seam are the continuation's
    ]
    dataset = Dataset.from_dict(
        {"tokens": [c + a for c, a in rows], "maskable": [[False] * len(c) + [True] * len(a) for c, a in rows]}
    )
    expected = likelihood(adapter.model, dataset, LikelihoodConfig()).nats
    assert torch.allclose(torch.tensor([value for value, _ in found], dtype=torch.float64), -expected, atol=1e-12)


def test_every_token_of_a_text_is_scored_once(uniform, tokenizer):
    each = math.log(tokenizer.vocab_size - 1)
    texts = [TEXT * 5, "a", "", TEXT]
    found = uniform.loglikelihood_rolling(asked(*((text,) for text in texts)))
    for text, value in zip(texts, found, strict=True):
        assert value == pytest.approx(-each * len(tokenizer.encode(text)), abs=1e-4)


def test_nothing_to_predict_is_certain(adapter):
    assert adapter.loglikelihood(asked(("the", ""))) == [(0.0, True)]
    assert adapter.loglikelihood_rolling(asked(("",))) == [0.0]


def test_is_greedy_says_whether_decoding_writes_the_continuation(adapter, tokenizer):
    written = adapter.generate_until(asked(("the cat", {"max_gen_toks": 3, "do_sample": False})))[0]
    other = "cat" if written != "cat" else "mat"
    if len(tokenizer.encode(written)) == 3:  # no end-of-text token in it
        (_, same), (_, different) = adapter.loglikelihood(asked(("the cat", written), ("the cat", other)))
        assert same
        assert not different


class Parrot(nn.Module):
    """A backbone that wants position i to be letter i of a text, however the row begins."""

    def __init__(self, tokens: list[int], size: int) -> None:
        super().__init__()
        self.wish = nn.Parameter(torch.zeros(len(tokens), size))
        with torch.no_grad():
            self.wish[torch.arange(len(tokens)), tokens] = 20.0

    def forward(self, input_ids, attention_mask=None, **_):
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=self.wish[: input_ids.shape[1]].expand(len(input_ids), -1, -1))


@pytest.fixture
def parrot(tokenizer):
    size = tokenizer.vocab_size
    head = nn.Linear(size, size, bias=False)
    nn.init.eye_(head.weight)
    model = MaskedDiffusionLM(Parrot(tokenizer.encode(TEXT).tolist(), size), head, tokenizer.mask_token_id)
    return HarnessModel(model, tokenizer, max_length=len(TEXT))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"until": ["."]}, " cat sat on a mat"),
        ({"until": "on", "max_gen_toks": 12}, " cat sat "),
        ({"until": ["x", "mat", "sat"]}, " cat "),
        ({"max_gen_toks": 4, "until": []}, " cat"),
        ({"max_new_tokens": 4}, " cat"),
        ({"max_tokens": 4}, " cat"),
        ({"max_completion_tokens": 4}, " cat"),
        ({"max_tokens": 8, "max_gen_toks": 4, "max_new_tokens": None}, " cat"),
    ],
)
def test_text_is_cut_at_the_first_stop(parrot, settings, expected):
    assert parrot.generate_until(asked(("the", settings))) == [expected]


@pytest.mark.parametrize("own", [Decoding(), Decoding(temperature=0.7, top_p=0.8)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": False},
        {"do_sample": True},
        {"temperature": 0.3},
        {"temperature": 0.0, "top_p": 0.5},
        {"temperature": 1.0, "top_p": 0.5, "do_sample": True},
        {"temperature": 1.0, "top_p": 0.5, "do_sample": False},
    ],
)
def test_a_task_decides_how_tokens_are_drawn_where_it_says_so(own, settings, adapter, tokenizer, monkeypatch):
    """And the adapter's own decoding elsewhere; greedy choice has no nucleus."""
    seen = []
    made = HarnessModel(adapter.model, tokenizer, max_length=24, decoding=own)
    monkeypatch.setattr(made, "_generate", lambda batch, decoding: seen.append(decoding) or batch.tokens)
    made.generate_until(asked(("the", settings)))
    temperature = 0.0 if settings.get("do_sample") is False else settings.get("temperature", own.temperature)
    top_p = settings.get("top_p", own.top_p) if temperature > 0 else 1.0
    assert seen == [replace(own, temperature=temperature, top_p=top_p)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_beams": 10}, ["num_beams=10"]),
        ({"temperature": 1.0, "top_k": 5, "repetition_penalty": 1.2}, ["top_k=5", "repetition_penalty=1.2"]),
        ({"temperature": 0.0, "top_k": 5, "num_beams": 1, "repetition_penalty": 1.0, "until": ["."]}, []),
    ],
)
def test_what_a_task_asks_for_and_decoding_has_not_is_told_once(settings, told, parrot):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parrot.generate_until(asked(*[("the", settings)] * 3))
        parrot.generate_until(asked(("the", settings)))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(told)
    assert all(name in message for name, message in zip(told, messages, strict=True))


def test_rows_that_are_longer_than_the_model_reads_are_refused_at_once(adapter, tokenizer):
    with pytest.raises(ValueError, match=r"max_length=25.*reads 24"):
        HarnessModel(adapter.model, tokenizer, max_length=25)
    with pytest.raises(ValueError, match="batch_size"):
        HarnessModel(adapter.model, tokenizer, max_length=24, batch_size=0)


def test_lengths_have_all_the_names_that_lm_eval_knows():
    utils = pytest.importorskip("lm_eval.models.utils")
    for number, name in enumerate(LENGTHS):
        later = dict.fromkeys(LENGTHS[number + 1 :], 99)
        assert utils.normalize_gen_kwargs({name: 7, **later})["max_gen_toks"] == 7
    source = inspect.getsource(utils.normalize_gen_kwargs)
    assert set(re.findall(r"kwargs\.pop\(\s*\"(\w+)\"", source)) == set(LENGTHS)


def test_text_stops_at_its_end_and_costs_no_more(tokenizer):
    """A backbone that wants an end-of-text behind four letters: what lies behind it is not decoded."""
    size, wish = tokenizer.vocab_size, [*tokenizer.encode("the ").tolist(), *[tokenizer.eos_token_id] * 20]
    head = nn.Linear(size, size, bias=False)
    nn.init.eye_(head.weight)
    model = MaskedDiffusionLM(Parrot(wish, size), head, tokenizer.mask_token_id)
    seen = []
    predict = model.predict
    model.predict = lambda *a, **k: seen.append(1) or predict(*a, **k)  # type: ignore[method-assign]
    adapter = HarnessModel(model, tokenizer, max_length=24, decoding=Decoding(policy="left_to_right"))
    assert adapter.generate_until(asked(("th", {"max_gen_toks": 20}))) == ["e "]
    assert len(seen) == 3  # two letters and the end


CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}cat: {% endif %}"
)


def test_chats_are_written_by_the_tokenizers_template(adapter, tokenizer):
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer.tokenizer, eos_token="<|endoftext|>")
    with pytest.raises(ValueError, match=r"HarnessModel\(chat="):
        adapter.apply_chat_template([])
    words.chat_template = CHAT
    chats = HarnessModel(adapter.model, tokenizer, max_length=24, chat=words)
    turns = [{"role": "mat", "content": "on a cat"}]
    assert chats.apply_chat_template(turns) == "mat: on a cat\ncat: "
    assert chats.chat_template(True) == CHAT
    assert chats.chat_template(False) is None
    pytest.importorskip("lm_eval")
    lm = chats.as_lm()
    assert lm.apply_chat_template(turns) == chats.apply_chat_template(turns)
    assert lm.tokenizer_name == tokenizer.fingerprint
    assert lm.chat_template(True) == CHAT


def test_greedy_flag_of_a_known_text(parrot):
    assert [same for _, same in parrot.loglikelihood(asked(("the", " cat"), ("the", " mat")))] == [True, False]


def test_contexts_are_cut_on_the_left_and_answers_never(adapter):
    long = TEXT * 10
    assert adapter.loglikelihood(asked((long, "mat"))) == adapter.loglikelihood(asked((long[1:] * 1, "mat")))
    with pytest.raises(ValueError, match="does not fit"):
        adapter.loglikelihood(asked(("", long)))


def test_a_tokenizer_of_another_size_is_refused(adapter):
    with pytest.raises(ValueError, match="the tokenizer's mask token is 4"):
        HarnessModel(adapter.model, character_tokenizer(["ab"]), max_length=8)


def test_inside_lm_eval(parrot):
    """The library's own requests, through its own base class."""
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    api = pytest.importorskip("lm_eval.api.model")
    lm = parrot.as_lm()
    assert isinstance(lm, api.LM)
    asked = [instance("loglikelihood", {}, ("the", a), i) for i, a in enumerate((" cat", " mat"))]
    (good, right), (bad, wrong) = lm.loglikelihood(asked)
    assert good > bad
    assert right
    assert not wrong
    assert lm.loglikelihood_rolling([instance("loglikelihood_rolling", {}, (TEXT,), 0)])[0] > -1e-3
    assert lm.generate_until([instance("generate_until", {}, ("the", {"until": ["."]}), 0)]) == [" cat sat on a mat"]


def test_without_lm_eval_it_says_how_to_get_it(adapter):
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"unmask\[harness\]"):
            adapter.as_lm()


def test_the_config_is_the_estimator_s_protocol(adapter, tokenizer):
    other = HarnessModel(
        adapter.model, tokenizer, max_length=24, config=LikelihoodConfig(IndependentMasking(), samples=2)
    )
    request = asked(("the cat", " sat"))
    assert other.loglikelihood(request)[0][0] != adapter.loglikelihood(request)[0][0]
