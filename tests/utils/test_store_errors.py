"""What a store refuses is told with the address and what to do, by its real client."""

from __future__ import annotations

import importlib.util

import fake_gcs
import fsspec
import pytest

from mpo_jax.utils import lease, remote

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="gcsfs is not installed"
)


@pytest.fixture
def bucket(monkeypatch):
    with fake_gcs.serve() as (url, bucket):
        for name, value in fake_gcs.environment(url).items():
            monkeypatch.setenv(name, value)
        kind = fsspec.get_filesystem_class("gs")
        kind.clear_instance_cache()  # it would ask the service of another test
        yield bucket
        kind.clear_instance_cache()


def refusing(code: int):
    def trouble(request) -> bool:
        request._send(code, {"error": {"code": code, "message": "not you"}})
        return True

    return trouble


@pytest.mark.parametrize("code", [401, 403])
def test_a_right_that_is_missing_is_named(bucket, code):
    bucket.trouble = refusing(code)
    folder = remote.Folder("gs://bucket/run")
    with pytest.raises(PermissionError, match=r"gs://bucket/run/a: .*Object Viewer"):
        folder.read("a")
    with pytest.raises(PermissionError, match=r"gs://bucket/run/a: .*Object User"):
        folder.write("a", b"x")


def test_a_bucket_that_is_missing_is_named(bucket):
    with pytest.raises(
        FileNotFoundError, match="gs://none/run/lease.json: there is no"
    ):
        with lease.held("gs://none/run", tell=print, lost=print):
            pass
    assert lease.read("gs://none/run") is None
