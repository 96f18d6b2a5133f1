"""POST standard input to a URL; print status, content type and body as JSON.

A script without our packages, since it also runs inside a witness's network namespace.
"""

import json
import sys
import urllib.error
import urllib.request
from typing import Any


def post(url: str, body: bytes) -> dict[str, Any]:
    """Return status, content type and body (as text) of the answer.

    Raises:
        OSError: nobody answered.
    """
    # No proxy: it would see the loopback address as its own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        answer = opener.open(urllib.request.Request(url, body), timeout=20)
    except urllib.error.HTTPError as refusal:
        answer = refusal
    with answer:
        return {
            "status": answer.status,
            "content_type": answer.headers.get("Content-Type", ""),
            "body": answer.read().decode(),
        }


if __name__ == "__main__":
    try:
        print(json.dumps(post(sys.argv[1], sys.stdin.buffer.read())))
    except OSError as error:
        sys.exit(str(error))
