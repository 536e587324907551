"""Trouble of a bucket service (``fake_gcs``): requests that are refused, lost or slow.

Which ones is counted, so that a test meets the same trouble every time.
"""

from __future__ import annotations

import http.server
import threading
import time


class Trouble:
    """Answers requests for some names instead of the bucket.

    Args:
      part: of the path of a request; its first one begins the trouble.
      refused: so many requests, to any name, are answered 503 from then on.
      dropped: then so many lose their connection.
      delay_s: all of those wait so long.

    Attributes:
      met: requests that were in trouble.
    """

    def __init__(
        self, part: str, *, refused: int = 0, dropped: int = 0, delay_s: float = 0.0
    ):
        self._part, self._delay_s = part, delay_s
        self._refused, self._dropped = refused, dropped
        self._begun = False
        self._lock = threading.Lock()
        self.met = 0

    def __call__(self, request: http.server.BaseHTTPRequestHandler) -> bool:
        """Whether the request has had its answer, or lost its connection."""
        with self._lock:
            self._begun = self._begun or self._part in request.path
            if not self._begun or self.met >= self._refused + self._dropped:
                return False
            self.met += 1
            refused = self.met <= self._refused
        time.sleep(self._delay_s)
        if refused:
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            request.close_connection = True
        return True
