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
    subprocess.Popen([sys.executable, "-m", "examples.progress.job", job], cwd=ROOT)
    return {"job": job}


if __name__ == "__main__":
    run(app)
