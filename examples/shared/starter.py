"""Starts an example: Pushline on PORT (8000), and the example's own Flask application one above."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from flask import Flask, Response, render_template, send_from_directory

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
PORT = int(os.environ.setdefault("PORT", "8000"))  # MessagePublisher reads it too
PUSHLINE_URL = f"http://{HOST}:{PORT}"
APPLICATION_URL = f"http://{HOST}:{PORT + 1}"


def application(name: str) -> Flask:
    """A Flask application with the page.html beside the module `name`, and what that needs."""
    app = Flask(name, template_folder=".", static_folder=None)

    @app.get("/")
    def page() -> str:
        return render_template("page.html", pushline=PUSHLINE_URL)

    @app.get("/pushline.js")
    def client() -> Response:
        return send_from_directory(ROOT / "static", "pushline.js")

    @app.get("/look.css")
    def look() -> Response:
        return send_from_directory(Path(__file__).parent, "look.css")

    return app


def run(app: Flask, **settings: str) -> None:
    """Serve Pushline with `settings` and a private Valkey, and `app`, until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    environ = {**os.environ, "CORS_ORIGINS": APPLICATION_URL, "LOG_LEVEL": "warning", **settings}
    environ.pop("REDIS_URL", None)
    serve = [sys.executable, "-m", "service", "serve", "--host", HOST]
    service = subprocess.Popen(serve, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
    try:
        print(f"Open {APPLICATION_URL}/ in two windows; Ctrl-C ends it.", flush=True)
        app.run(HOST, PORT + 1, threaded=True)
    except KeyboardInterrupt:
        print()
    finally:
        service.send_signal(signal.SIGINT)
        service.wait()
