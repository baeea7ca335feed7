"""A stock ticker: far more prices than a slow reader can take, of which only the newest count."""

from __future__ import annotations

import random
import threading
import time

from examples.shared.starter import application, run
from service.client import MessagePublisher
from service.errors import PushlineError

PRICES = {"ACME": 120.0, "BOLT": 48.0, "CRUX": 310.0, "DUNE": 9.5, "ECHO": 77.0}
CHANGES_PER_SECOND = 500

app = application(
    __name__, HISTORY_RULES="ticker=100/60", OUTBOX_BYTES="8192", SEND_TIMEOUT_SECONDS="60"
)


def trade() -> None:
    """Publish every change of every price for ever, each under its stock's name."""
    with MessagePublisher("ticker") as publisher:
        while True:
            name = random.choice(list(PRICES))
            PRICES[name] *= random.uniform(0.999, 1.001)
            change = {"price": round(PRICES[name], 2), "time": round(time.time() * 1000)}
            try:
                publisher.publish_message(change, event=name)
            except PushlineError:  # Pushline is starting, or stopping
                time.sleep(0.5)
            time.sleep(1 / CHANGES_PER_SECOND)


if __name__ == "__main__":
    threading.Thread(target=trade, daemon=True).start()
    run(app)
