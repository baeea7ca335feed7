"""The worker process: does the work of one job and publishes how far it is."""

from __future__ import annotations

import random
import sys
import time

from service.client import MessagePublisher
from service.errors import RedisError

FILES = 30


def work(job: str) -> None:
    """Pretend to convert files for some three seconds."""
    with MessagePublisher(f"job.{job}") as publisher:
        for done in range(FILES + 1):
            publisher.publish_message({"done": done, "of": FILES}, event="progress")
            time.sleep(random.uniform(0.05, 0.15))
        publisher.end("finished")


if __name__ == "__main__":
    try:
        work(sys.argv[1])
    except RedisError as error:  # a real job would go on, and tell how far it is when it can
        sys.exit(f"job {sys.argv[1]} is given up: {error}")
