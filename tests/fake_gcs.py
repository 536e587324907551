"""A bucket service on this machine: what gcsfs and TensorStore ask of the JSON API.

Objects with generations, preconditions, byte ranges, listing with a delimiter and by
pages, three kinds of upload, copy and move. Enough to hold the real clients to a real
protocol.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import sys
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from mpo_jax.utils import mirror, remote

TIME = "2025-01-01T00:00:00.000Z"


class Bucket:
    """Objects by name: (generation, content).

    Attributes:
      page: most names that one listing gives.
      asked: method, path and prefix of every request.
      failing: how many of the next downloads are answered with 503.
    """

    page = 1000

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing = 0
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.lock = threading.RLock()
        self.count = 0
        self.trouble: Callable[[Handler], bool] | None = None
        """Takes a request; True if it has had its answer (``bucket_in_trouble``)."""

    def put(self, name: str, data: bytes) -> dict[str, Any]:
        self.count += 1
        self.objects[name] = (self.count, data)
        return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        generation, data = self.objects[name]
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        return {
            "kind": "storage#object",
            "bucket": "bucket",
            "name": name,
            "id": f"bucket/{name}/{generation}",
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "md5Hash": digest,
            "etag": str(generation),
            "contentType": "application/octet-stream",
            "timeCreated": TIME,
            "updated": TIME,
            "mediaLink": "",
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else headers wait 40 ms for the client's ACK
    wbufsize = -1  # one packet per answer
    bucket: Bucket

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def _send(self, code: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        kind = "octet-stream" if isinstance(body, bytes) else "json"
        self.send_header("Content-Type", f"application/{kind}")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _handle(self) -> None:
        body = self._body()
        if self.bucket.trouble is not None and self.bucket.trouble(self):
            return
        path, _, query = self.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        with self.bucket.lock:
            told = [urllib.parse.unquote(path), asked.get("prefix", "")]
            self.bucket.asked.append(" ".join([self.command, *told]).rstrip())
            self._answer(path, asked, body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def handle(self) -> None:
        # Clients that are killed leave their connections open.
        with contextlib.suppress(ConnectionResetError):
            super().handle()

    def _answer(self, path: str, asked: dict[str, str], body: bytes) -> None:
        if re.fullmatch(r"/upload/storage/v1/b/bucket/o", path):
            return self._upload(asked, body)
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/bucket(/o)?(/.*)?", path)
        if found is None:
            return self._send(404, {"error": {"message": f"no {path}"}})
        if found[1] is None:
            return self._send(200, {"kind": "storage#bucket", "name": "bucket"})
        if not found[2]:
            return self._list(asked)
        name, _, action = found[2][1:].partition("/")
        name = urllib.parse.unquote(name)
        if action:
            return self._copy(name, action)
        if not self._allowed(name, asked):
            return None
        if name not in self.bucket.objects:
            return self._send(404, {"error": {"code": 404, "message": name}})
        if self.command == "DELETE":
            del self.bucket.objects[name]
            return self._send(204)
        if asked.get("alt") != "media":
            return self._send(200, self.bucket.describe(name))
        return self._media(name)

    def _allowed(self, name: str, asked: dict[str, str]) -> bool:
        generation = self.bucket.objects.get(name, (0, b""))[0]
        wanted = asked.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != generation:
            self._send(412, {"error": {"code": 412}})
            return False
        other = asked.get("ifGenerationNotMatch")
        if other is not None and int(other) == generation:
            self._send(304)
            return False
        return True

    def _media(self, name: str) -> None:
        if self.bucket.failing:
            self.bucket.failing -= 1
            return self._send(503, {"error": {"code": 503, "message": "away"}})
        generation, data = self.bucket.objects[name]
        headers = {"x_goog_generation": str(generation), "ETag": str(generation)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self._send(200, data, **headers)
        size = len(data)
        if wanted[1]:
            start, stop = int(wanted[1]), int(wanted[2] or size - 1) + 1
        else:
            start, stop = max(0, size - int(wanted[2])), size
        if start >= size:
            return self._send(416, b"")
        part = data[start:stop]
        place = f"bytes {start}-{start + len(part) - 1}/{size}"
        return self._send(206, part, Content_Range=place, **headers)

    def _list(self, asked: dict[str, str]) -> None:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter")
        items, prefixes, more = [], set(), ""
        for name in sorted(self.bucket.objects):
            if not name.startswith(prefix) or name < asked.get("startOffset", ""):
                continue
            if "endOffset" in asked and name >= asked["endOffset"]:
                continue
            if name < asked.get("pageToken", ""):
                continue
            if len(items) >= min(self.bucket.page, int(asked.get("maxResults", 1000))):
                more = name
                break
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.bucket.describe(name))
        body = {"kind": "storage#objects", "items": items}
        if more:
            body["nextPageToken"] = more
        self._send(200, body | {"prefixes": sorted(prefixes)})

    def _upload(self, asked: dict[str, str], body: bytes) -> None:
        kind = asked.get("uploadType")
        if "upload_id" in asked:  # a part of a resumable one
            name, data = self.bucket.uploads[asked["upload_id"]]
            data += body
            if self.headers["Content-Range"].endswith(f"/{len(data)}"):
                return self._send(200, self.bucket.put(name, bytes(data)))
            return self._send(308, Range=f"bytes=0-{len(data) - 1}")
        if kind == "multipart":
            boundary = self.headers["Content-Type"].split("boundary=")[1].strip('"')
            _, first, second, _ = body.split(b"--" + boundary.encode(), 3)
            name = json.loads(re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1])["name"]
            data = re.split(rb"\r?\n\r?\n", second, maxsplit=1)[1]
            data = data.removesuffix(b"\n").removesuffix(b"\r")
        elif kind == "resumable":
            key = uuid.uuid4().hex
            name = asked.get("name") or json.loads(body)["name"]
            if self._allowed(name, asked):
                self.bucket.uploads[key] = (name, bytearray())
                place = f"http://{self.headers['Host']}{self.path}&upload_id={key}"
                self._send(200, Location=place)
            return None
        else:
            name, data = asked["name"], body
        if self._allowed(name, asked):
            self._send(200, self.bucket.put(name, data))
        return None

    def _copy(self, name: str, action: str) -> None:
        target = urllib.parse.unquote(action.rpartition("/")[2])
        if name not in self.bucket.objects:
            return self._send(404, {"error": {"code": 404, "message": name}})
        made = self.bucket.put(target, self.bucket.objects[name][1])
        if action.startswith("moveTo"):
            del self.bucket.objects[name]
            return self._send(200, made)
        return self._send(200, {"done": True, "resource": made})


def upload(folder: pathlib.Path, bucket: Bucket, at: str) -> None:
    """Put the files of a folder into a bucket."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.put(f"{at}/{path.relative_to(folder)}", path.read_bytes())


def arrived(bucket: Bucket, prefix: str, folder: pathlib.Path) -> pathlib.Path:
    """What a bucket holds, as files; metrics put together from their parts."""
    for name, (_, content) in bucket.objects.items():
        if name.startswith(prefix):
            path = folder / name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    mirror.fetch_lines(remote.Folder(str(folder)), "metrics.jsonl", folder)
    return folder


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client was killed
            super().handle_error(request, client_address)


def environment(url: str) -> dict[str, str]:
    """What points both clients at a service, for a process of its own."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


@contextlib.contextmanager
def serve() -> Iterator[tuple[str, Bucket]]:
    """A service with one bucket, called ``bucket``: its URL and content."""
    bucket = Bucket()
    handler = type("BucketHandler", (Handler,), {"bucket": bucket})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
