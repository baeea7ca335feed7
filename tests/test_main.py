"""The command line, run as a user runs it, and its parts in this process."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import service.__main__
import service.commands.publish
import service.commands.serve
from service import embedded
from service.__main__ import main
from service.client import MessageSubscriber
from service.settings import Settings
from service.sse import Message
from service.tokens import TokenVerifier
from service.version import VERSION
from tests.forging import Signer
from tests.live_server import until
from tests.valkey import Valkey, free_port

ROOT = Path(__file__).resolve().parents[1]
CREDENTIALS = ("PUBLISH_KEYS", "JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL", "JWT_ALGORITHMS")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Only REDIS_URL is set, to the Valkey of the test if it has one."""
    for name in ("PORT", "HOST", "REDIS_URL", "PUBLISH_OPEN", "GUNICORN_CMD_ARGS", *CREDENTIALS):
        monkeypatch.delenv(name, raising=False)
    if "valkey" in request.fixturenames:
        monkeypatch.setenv("REDIS_URL", request.getfixturevalue("valkey").url)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory with a short path, as the path of a socket is limited."""
    with tempfile.TemporaryDirectory(prefix="pl-") as path:
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.setattr(tempfile, "tempdir", path)
        yield Path(path)


def run(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run a command from another directory to its end."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "service"), *arguments],
        input=data,
        capture_output=True,
        cwd="/",
        timeout=20,
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def check_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """It failed with a single line for a human, which holds `parts`."""
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("pushline: ")
    for part in parts:
        assert part in line


# ----------------------------------------------------------------------------------- as commands


def test_help_names_the_commands() -> None:
    """`--help` lists what there is; no command at all explains itself, and is a usage error."""
    asked, bare = run("--help"), run()
    assert (asked.returncode, asked.stderr) == (0, "")
    assert (bare.returncode, bare.stdout) == (2, "")
    for command, purpose in service.__main__.COMMANDS.items():
        assert re.search(rf"^ +{command}\s", asked.stdout, re.M)
        assert f"  {command:<11} {purpose}\n" in bare.stderr
    first, *_ = bare.stderr.splitlines()
    assert first.startswith(f"Pushline {VERSION}: ")
    examples = re.findall(r"^  (?:python -m service|curl) .*$", bare.stderr, re.M)
    assert len(examples) == 3


def test_the_version() -> None:
    """`--version` prints it, alone."""
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Pushline {VERSION}\n", "")


def test_a_command_loads_what_it_needs() -> None:
    """Each starts fast: what only others need is not imported."""
    code = """
import sys
from service.__main__ import main
main(["keys"])
print({"gevent", "jwt", "redis", "shtab", "ssl"} & sys.modules.keys())
main(["doctor", "http://127.0.0.1:1"])
print({"gevent", "shtab"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=20, check=True)  # fmt: skip
    assert done.stdout.count("set()\n") == 2, done.stdout


def test_publish_and_subscribe(valkey: Valkey) -> None:
    """What `publish` sends, `subscribe` prints: id, name and data, or one JSON object a line; an
    interrupt ends it without a word.
    """
    listeners = [
        subprocess.Popen(
            [sys.executable, "-m", "service", "subscribe", "a", "b", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for options in ([], ["--json"])
    ]
    until(lambda: valkey.cli("PUBSUB", "NUMSUB", "pushline:a")[1] == 2, 10, "both listen")
    done = run("publish", "a", "héllo\nyou", "--event", "tick")
    event_id = done.stdout.strip()
    valkey.cli("PUBLISH", "pushline:b", "raw")
    for listener, expected in zip(
        listeners,
        (
            f"{event_id} tick héllo\nyou\n{event_id} message raw\n",
            json.dumps({"id": event_id, "event": "tick", "data": "héllo\nyou"})
            + "\n"
            + json.dumps({"id": event_id, "event": "message", "data": "raw"})
            + "\n",
        ),
        strict=True,
    ):
        assert listener.stdout is not None
        assert "".join(listener.stdout.readline() for _ in expected.splitlines()) == expected
        listener.send_signal(signal.SIGINT)
        assert listener.communicate(timeout=20) == ("", "")
        assert listener.returncode == 130


def test_lines_of_standard_input(valkey: Valkey) -> None:
    """`publish CHANNEL -` sends each line as it comes, without its line end; the count follows."""
    with MessageSubscriber("a") as subscriber:
        messages = subscriber.listen_messages()
        done = run("publish", "a", "-", data="one\ntwo\r\n\nnaïve".encode())
        assert [next(messages).data for _ in range(4)] == ["one", "two", "", "naïve"]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "4 published\n")


def test_a_line_that_cannot_be_published(valkey: Valkey) -> None:
    """The error names the line, and how many went out before it."""
    done = run("publish", "a", data=b"one\ntwo\n\xff\nfour\n")
    check_one_line(done, "line 3", "not UTF-8", "2 lines were published")


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong, a user gets one line that says what to mend, and no traceback."""
    monkeypatch.setenv("REDIS_URL", f"redis://:secret@127.0.0.1:{free_port()}")
    check_one_line(run("publish", "not a channel", "x"), "not a channel", "A-Z")
    check_one_line(run("publish", "a", "x"), "can't be reached")
    check_one_line(run("subscribe", "a"), "can't be reached")
    monkeypatch.setenv("REDIS_URL", "http://user:secret@example.com")
    done = run("publish", "a", "x")
    check_one_line(done, "REDIS_URL=", "redis://")
    assert "secret" not in done.stderr
    monkeypatch.delenv("REDIS_URL")
    monkeypatch.setenv("PORT", "eighty")
    check_one_line(run("serve"), "PORT='eighty'", "1 to 65535")


def test_keys_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing to a token in two commands: `keys` and `token` print what they make and nothing
    else, so that it can go into a variable.
    """
    key, secret = run("keys"), run("keys", "--jwt")
    for done in (key, secret):
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"[A-Za-z0-9_-]{40,}\n", done.stdout)
    assert len(secret.stdout) > 64, "a secret is long enough for HS512"
    assert Settings.from_environ({"PUBLISH_KEYS": key.stdout.strip()}).publish_keys
    check_one_line(run("token", "--publish", "a"), "JWT_SECRET", "python -m service keys --jwt")
    monkeypatch.setenv("JWT_SECRET", secret.stdout.strip())
    made = run(
        *(
            "token",
            "--publish",
            "orders.*",
            "--publish",
            "log",
            "--subscribe",
            "*",
            "--user",
            "ana",
        ),
        *("--expires", "7d", "--issuer", "us", "--audience", "them"),
    )
    assert (made.returncode, made.stderr) == (0, "")
    environ = {"JWT_SECRET": secret.stdout, "JWT_ISSUER": "us", "JWT_AUDIENCE": "them"}
    verifier = TokenVerifier.of_settings(Settings.from_environ(environ))
    assert verifier is not None
    grant = verifier.verify(made.stdout.removesuffix("\n"))
    assert (grant.publish, grant.subscribe, grant.user) == (("orders.*", "log"), ("*",), "ana")
    check_one_line(run("token", "--publish", "a", "--expires", "soon"), "--expires='soon'", "15m")
    check_one_line(run("token"), "--publish, --subscribe or --admin")


def test_serving_from_nothing(temporary: Path) -> None:
    """`serve` starts a private Valkey and the service, tells in four lines how to use it, and
    leaves nothing behind.
    """
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "service"), "serve", "--port", str(port)],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    banner = [process.stdout.readline().rstrip("\n") for _ in range(4)]
    url = f"http://127.0.0.1:{port}"
    assert banner == [
        f"Demo      {url}/",
        f"Publish   curl -d hello {url}/channels/news",
        f"Stream    curl -N '{url}/stream?channel=news'",
        "Open to this machine only: anyone on it may publish and stream.",
    ]

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    until(ready, 15, "the service is ready")
    assert run("publish", "news", "x").returncode == 1, "another PORT has another Valkey"
    environ = {**os.environ, "PORT": str(port)}
    published = subprocess.run(
        [sys.executable, "-m", "service", "publish", "news", "x"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        check=True,
        timeout=10,
    )
    assert published.stdout.strip()
    process.terminate()
    assert process.wait(15) == 0
    until(lambda: not list(temporary.iterdir()), 5, "the private Valkey is gone")


# ------------------------------------------------------------------------------- in this process


class Started(Exception):
    """Stands for the process becoming gunicorn."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What `serve` would have become: command line and environment."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def become(path: str, command: list[str], environ: dict[str, str]) -> None:
        calls.append((command, environ))
        raise Started

    monkeypatch.setattr(os, "execve", become)
    return calls


def start(*arguments: str) -> None:
    """Run `serve` up to the point where it becomes gunicorn."""
    with pytest.raises(Started):
        main(["serve", *arguments])


def test_serve_becomes_gunicorn(
    served: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Options win over the environment and reach gunicorn through it; the directory doesn't
    matter; with a Redis of one's own the banner warns that everybody may publish.
    """
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("PUBLISH_OPEN", "1")
    monkeypatch.setenv("WEB_CONCURRENCY", "7")
    port = str(free_port())
    start("--port", port, "--workers", "3")
    ((command, environ),) = served
    assert command[:3] == [sys.executable, "-m", "gunicorn"]
    assert command[command.index("--chdir") + 1] == str(ROOT)
    assert command[command.index("--bind") + 1] == f"127.0.0.1:{port}"
    assert (environ["PORT"], environ["WEB_CONCURRENCY"]) == (port, "3")
    assert environ["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert "PUSHLINE_EMBEDDED" not in environ
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "anyone who reaches this address" in lines[3]
    assert os.environ["WEB_CONCURRENCY"] == "7"


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PUBLISH_KEYS": "k" * 16}, "Publishing wants a key or a token"),
        ({"JWT_SECRET": "s" * 32}, "docs/security.md"),
        ({"PUBLISH_KEYS": "k" * 16, "PUBLISH_OPEN": "1"}, "anyone who reaches this address"),
    ],
)
def test_serving_with_credentials(
    served: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variables: dict[str, str],
    shown: str,
) -> None:
    """A credential is enough to start in production; the banner shows how to use it, and not it."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    start("--port", str(free_port()))
    assert len(served) == 1
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4
    assert shown in lines[3]
    assert ("Bearer KEY" in lines[1]) == ("PUBLISH_OPEN" not in variables)
    assert "kkk" not in "".join(lines)


def test_useless_keys_are_refused_before_anything_starts(
    served: list[object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A key that no algorithm can use is a mistake, also in local mode."""
    monkeypatch.setattr(embedded, "start", lambda port: pytest.fail("nothing may be started"))
    monkeypatch.setenv("JWT_SECRET", "s" * 32)
    monkeypatch.setenv("JWT_ALGORITHMS", "RS256")
    assert main(["serve", "--port", str(free_port())]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("pushline: JWT_SECRET has a key that no algorithm")
    assert "sss" not in err
    assert served == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("AUTHORIZE_URL", "http://a..b/may"), ("JWT_JWKS_URL", "https://h:99999/keys")],
)
def test_serve_refuses_an_address_that_is_none(
    served: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    text: str,
) -> None:
    """One line names setting and value, and no Valkey is started for it."""
    monkeypatch.setenv(name, text)
    monkeypatch.setattr(embedded, "start", None)
    assert main(["serve", "--port", str(free_port())]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"pushline: {name}={text!r} can't be used: it takes ")
    assert served == []


def test_serve_starts_a_private_valkey(
    served: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without REDIS_URL the private Valkey of this port is started and handed to the workers."""
    monkeypatch.setattr(embedded, "start", lambda port: f"unix:///x/{port}.sock")
    port = str(free_port())
    start("--port", port)
    ((_, environ),) = served
    assert environ["REDIS_URL"] == f"unix:///x/{port}.sock"
    assert environ["PUSHLINE_EMBEDDED"] == "1"
    assert "this machine only" in capfd.readouterr().out


def test_an_ipv6_address_is_shown_in_brackets(
    served: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The banner's addresses can be used as they stand."""
    monkeypatch.setattr(embedded, "start", lambda port: "unix:///x.sock")
    monkeypatch.setattr(service.commands.serve, "_check_port", lambda settings: None)
    start("--host", "::1", "--port", "8123")
    assert "http://[::1]:8123/" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({"REDIS_URL": "redis://127.0.0.1:1"}, []),
        ({"REDIS_URL": "redis://127.0.0.1:1"}, ["--host", "0.0.0.0"]),
        ({}, ["--host", "0.0.0.0"]),
    ],
)
def test_production_is_refused_while_anyone_could_publish(
    served: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variables: dict[str, str],
    arguments: list[str],
) -> None:
    """With a Redis of its own, or open to other machines, the service doesn't start by mistake."""
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(embedded, "start", lambda port: pytest.fail("nothing may be started"))
    assert main(["serve", "--port", str(free_port()), *arguments]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("pushline: ")
    assert "PUBLISH_OPEN=1" in line
    assert "python -m service keys" in line
    assert served == []


def test_a_port_that_is_taken(served: list[object], capfd: pytest.CaptureFixture[str]) -> None:
    """A port that somebody uses is named at once, before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert main(["serve", "--port", str(listener.getsockname()[1])]) == 1
    err = capfd.readouterr().err
    assert "in use" in err
    assert "--port" in err
    assert served == []


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What the command reads."""
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    return data


def test_progress_on_a_terminal(
    valkey: Valkey, standard_input: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal one line tells how many events went by and how fast; the count stays."""
    monkeypatch.setattr(service.commands.publish, "PROGRESS_SECONDS", 0.0)
    standard_input.write(b"x\n" * 5)
    standard_input.seek(0)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["publish", "a"]) == 0
        terminal.flush()
        shown = ""
        while "published" not in shown:
            shown += os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\r5 events, " in shown
    assert "/s" in shown
    assert shown.endswith("\r\x1b[K5 published\r\n"), "nothing of the progress is left"


def test_the_bad_line_is_named(
    valkey: Valkey, standard_input: io.BytesIO, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal there is no progress, and an error names its line."""
    standard_input.write(b"fine\n\xff\n")
    standard_input.seek(0)
    assert main(["publish", "a", "-"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ("pushline: line 2: the message's bytes are not UTF-8; 1 lines were published\n")


def test_a_program_that_reads_no_more(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """`subscribe a | head -1` ends quietly, as other programs do."""

    class Head(io.StringIO):
        """Standard output whose reader has gone."""

        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return spare

    spare = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", Head())
    monkeypatch.setattr(
        MessageSubscriber, "listen_messages", lambda self: iter([Message("x"), Message("y")])
    )
    assert main(["subscribe", "a"]) == 141
    os.close(spare)


@pytest.mark.parametrize(
    ("arguments", "hint"), [(["keys"], "PUBLISH_KEYS"), (["keys", "--jwt"], "JWT_SECRET")]
)
def test_a_hint_on_a_terminal(
    arguments: list[str],
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Who makes a key at a terminal is told what to do with it, apart from the key."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(arguments) == 0
        terminal.flush()
        made = os.read(ours, 10_000).decode().strip()
    os.close(ours)
    assert re.fullmatch(r"[A-Za-z0-9_-]{40,}", made)
    (line,) = capfd.readouterr().err.splitlines()
    assert hint in line
    assert made not in line


def test_a_private_key_signs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--private-key and --algorithm reach the token."""
    path = tmp_path / "key.pem"
    path.write_bytes(
        Signer(b"").rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    done = main(["token", "--admin", "--private-key", str(path), "--algorithm", "PS512"])
    token = capfd.readouterr().out
    assert done == 0
    assert jwt.get_unverified_header(token.strip())["alg"] == "PS512"


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a command without a traceback."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MessageSubscriber, "listen_messages", interrupt)
    assert main(["subscribe", "a"]) == 130


def test_subscribing_prints_at_once(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lines are flushed, so that a pipe sees them; a message before the first id has `-`."""
    messages = [Message("x"), Message("y", "tick", "1-0")]
    monkeypatch.setattr(MessageSubscriber, "listen_messages", lambda self: iter(messages))
    assert main(["subscribe", "a"]) == 0
    assert capfd.readouterr().out == "- message x\n1-0 tick y\n"
    assert main(["subscribe", "a", "--json"]) == 0
    first = json.loads(capfd.readouterr().out.splitlines()[0])
    assert first == {"id": "", "event": "message", "data": "x"}


def test_publishing_prints_the_id(valkey: Valkey, capfd: pytest.CaptureFixture[str]) -> None:
    """The id of what was published is all that is printed; an id never comes before its time."""
    before = time.time() * 1000 - 1
    assert main(["publish", "a", "x"]) == 0
    out = capfd.readouterr().out
    milliseconds, _, sequence = out.strip().partition("-")
    assert int(milliseconds) >= before
    assert sequence.isdigit()
