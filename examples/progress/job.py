"""The worker process: does the work of one job and publishes how far it is."""

from __future__ import annotations

import random
import sys
import time

from service.client import MessagePublisher

FILES = 30


def work(job: str) -> None:
    """Pretend to convert files for some three seconds."""
    with MessagePublisher(f"job.{job}") as publisher:
        for done in range(FILES + 1):
            publisher.publish_message({"done": done, "of": FILES}, event="progress")
            time.sleep(random.uniform(0.05, 0.15))
        publisher.end("finished")


if __name__ == "__main__":
    work(sys.argv[1])
