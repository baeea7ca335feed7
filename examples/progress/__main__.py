"""Live progress of jobs: each is a process of its own, which publishes how far it is."""

from __future__ import annotations

import subprocess
import sys
import uuid

from examples.shared.starter import ROOT, application, run

app = application(__name__)


@app.post("/jobs")
def start() -> dict[str, str]:
    """Start a job and return its name. A real application puts it into a queue."""
    job = uuid.uuid4().hex
    worker = [sys.executable, "-m", "examples.progress.job", job]
    subprocess.Popen(worker, cwd=ROOT, process_group=0)  # out of the reach of Ctrl-C
    return {"job": job}


if __name__ == "__main__":
    run(app)
