"""Documents and tokenizers that the tests of text data share."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from unmask.data import bpe_tokenizer, character_tokenizer, load_documents

DOCUMENTS = ["One is here. Is two? Yes!", "Mr. Fox had $3.50.\n\nThen \u2013 naïve 🦊 \u201cgone.\u201d The end"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def two_documents():
    return DOCUMENTS


@pytest.fixture(scope="session")
def tokenizers():
    some = load_documents("sotu", "validation")["text"][:5] + DOCUMENTS
    return {
        "27": character_tokenizer(alphabet="27"),
        "characters": character_tokenizer(some),
        "bpe": bpe_tokenizer(some, 400),
    }


@pytest.fixture(params=["27", "characters", "bpe"])
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizers):
    """A small tokenizer of transformers that knows ChatML's tokens; `template` as given, or ChatML."""

    def make(template="chatml", eos="<|im_end|>", **special):
        backend = Tokenizer.from_str(tokenizers["bpe"].tokenizer.to_str())
        backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        names = {"eos_token": eos, "mask_token": "<|mask|>"} | special
        made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        made.chat_template = CHATML if template == "chatml" else template
        return made

    return make


@pytest.fixture(scope="session")
def two_turns():
    """A conversation with two replies."""
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One and one?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "And one?"},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "Thanks!"},
    ]


@pytest.fixture(scope="session")
def pairs():
    def build(*rows):
        return Dataset.from_list([{"prompt": prompt, "response": response} for prompt, response in rows])

    return build


@pytest.fixture(scope="session")
def chats():
    def build(*conversations):
        return Dataset.from_list([{"messages": conversation} for conversation in conversations])

    return build


@pytest.fixture(scope="session")
def replies_of():
    """A function: the texts of the runs of maskable tokens of a row."""

    def texts(row, tokenizer):
        runs, previous = [], False
        for token, maskable in zip(row["tokens"], row["maskable"], strict=True):
            if maskable and not previous:
                runs.append([])
            if maskable:
                runs[-1].append(token)
            previous = maskable
        return [tokenizer.decode(run) for run in runs]

    return texts
