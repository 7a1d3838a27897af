"""The HEALTHCHECK of the images: exit status 0 when the service says that its models are ready.

PORT is the service's port, 8000 by default, as the entry point takes it.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException


def problem(port: int) -> str | None:
    """Why the service on this machine's `port` is not ready; None where it is."""
    connection = HTTPConnection("127.0.0.1", port, timeout=4)  # seconds; below the time-out of the HEALTHCHECK
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(1000).decode(errors="replace")
    except (OSError, HTTPException) as error:
        return f"port {port}: {error or type(error).__name__}"
    finally:
        connection.close()
    return None if answer.status == 200 else f"port {port}: status {answer.status}: {body}"


if __name__ == "__main__":
    sys.exit(problem(int(os.environ.get("PORT", "8000"))))
