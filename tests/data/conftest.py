"""Documents and tokenizers that the tests of text data share."""

import pytest

from unmask.data import bpe_tokenizer, character_tokenizer, load_documents

DOCUMENTS = ["One is here. Is two? Yes!", "Mr. Fox had $3.50.\n\nThen \u2013 naïve 🦊 \u201cgone.\u201d The end"]


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
