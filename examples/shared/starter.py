"""Starts an example: Pushline on PORT (8010), and the example's own Flask application one above."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from flask import Flask, Response, render_template, send_from_directory
from werkzeug.serving import make_server

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
PORT = int(os.environ.setdefault("PORT", "8010"))  # MessagePublisher reads it too
PUSHLINE_URL = f"http://{HOST}:{PORT}"
APPLICATION_URL = f"http://{HOST}:{PORT + 1}"


def application(name: str, **settings: str) -> Flask:
    """A Flask application with the page.html beside the module `name`, and what that needs.

    `settings` are Pushline's. They go into the environment, for the service and for all publishers,
    which are made after this.
    """
    for elsewhere in ("REDIS_URL", "REDIS_URL_FILE"):
        os.environ.pop(elsewhere, None)
    os.environ.update(settings)
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


def run(app: Flask) -> None:
    """Serve Pushline with a private Valkey, and `app`, until Ctrl-C, SIGTERM or Pushline's end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    environ = {**os.environ, "CORS_ORIGINS": APPLICATION_URL, "LOG_LEVEL": "warning"}
    serve = [sys.executable, "-m", "service", "serve", "--host", HOST]
    service = subprocess.Popen(serve, cwd=ROOT, env=environ, stdout=subprocess.PIPE)
    try:
        if has_begun(service):
            server = make_server(HOST, PORT + 1, app, threaded=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(f"Open {APPLICATION_URL}/ in two windows; Ctrl-C ends it.", flush=True)
        sys.exit(service.wait())
    except KeyboardInterrupt:
        print()
    finally:
        service.send_signal(signal.SIGINT)
        service.wait()


def has_begun(service: subprocess.Popen[bytes]) -> bool:
    """Wait until Pushline takes events. False if it has ended instead, and has said why."""
    assert service.stdout is not None
    if not service.stdout.readline():  # the first line comes once the port is its own
        return False
    while service.poll() is None:
        connection = http.client.HTTPConnection(HOST, PORT, timeout=5)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return True
        time.sleep(0.02)
    return False
