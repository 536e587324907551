from __future__ import annotations

import pytest
import serve_parts
from starlette.testclient import TestClient

from mpo_jax.inputs import tokenizer as tokenizer_lib


@pytest.fixture(scope="session")
def qwen2(qwen2_dir) -> tokenizer_lib.ChatTokenizer:
    return tokenizer_lib.load_tokenizer(qwen2_dir)


@pytest.fixture
def make_client(qwen2):
    """Clients of an application in process, and its engine."""
    opened = []

    def make(tokenizer=qwen2, **options):
        app, engine = serve_parts.application(tokenizer, **options)
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client, engine

    yield make
    for client in opened:
        client.__exit__(None, None, None)
