"""The documentation says what the code has. Its snippets run in tests/live/test_snippets.py."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest
from flask import Flask

from service import errors
from service.app import create_app
from service.reset import Loss
from service.settings import Settings
from service.subscriber import Ending

ROOT = Path(__file__).resolve().parents[1]


def page(name: str) -> str:
    """The text of a documentation page."""
    return (ROOT / name).read_text()


def shown(default: object) -> str:
    """A default as the settings table writes it."""
    if default in (None, ()):
        return "none"
    if isinstance(default, float | bool):
        return f"{float(default):g}"
    return str(default)


@pytest.mark.parametrize("spec", dataclasses.fields(Settings), ids=lambda spec: str(spec.name))
def test_every_setting_is_documented(spec: dataclasses.Field[object]) -> None:
    """The settings table has each setting with its default, range and meaning."""
    rule = spec.metadata
    row = f"| `{rule['env']}` | {shown(spec.default)} | {rule['accepts']} | {rule['meaning']} |"

    assert row in page("docs/settings.md")


def test_every_route_is_documented() -> None:
    """docs/http.md names each route with its method."""
    app: Flask = create_app(Settings(redis_url="redis://127.0.0.1:1"))
    text = page("docs/http.md")

    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            assert f"`{method} {rule.rule}`" in text


def test_every_error_code_is_documented() -> None:
    """docs/http.md has each code that an answer may carry, with its status."""
    text = page("docs/http.md")
    kinds = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
    answers = [one for one in kinds if one not in (errors.ConfigError, errors.RedisRefused)]

    for kind in answers:
        if issubclass(kind, errors.PushlineError):
            assert re.search(rf"`{kind.code}`.*\| {kind.status} \|", text), kind.code


def test_heroku_sets_only_settings_that_exist() -> None:
    """Each variable of app.json is a setting, and its value is one that the setting takes."""
    generated = "0123456789abcdef" * 4  # what Heroku's generator makes: 64 hexadecimal digits
    environ = {
        name: generated if spec.get("generator") == "secret" else spec["value"]
        for name, spec in json.loads(page("app.json"))["env"].items()
    }
    known = {spec.metadata["env"] for spec in dataclasses.fields(Settings)}

    assert environ.keys() <= known
    settings = Settings.from_environ({**environ, "REDIS_URL": "rediss://:pw@host:6380"})
    settings.check_can_serve()
    assert settings.publish_keys == ((generated, ("*",)),)
    assert settings.jwt_secret == (("", generated),)
    assert settings.public_patterns == (), "what is published is for nobody until somebody says so"
    assert not settings.publish_open


def test_opening_heroku_for_a_demo_is_one_line() -> None:
    """README.md and docs/deploy.md tell how to make tokens there, and how to open streams."""
    for name in ("README.md", "docs/deploy.md"):
        assert "heroku config:set PUBLIC_CHANNELS='*'" in page(name)
        assert 'heroku run "python -m service token ' in page(name)


def test_every_ending_is_documented() -> None:
    """docs/operations.md has each reason for which a stream ends."""
    for ending in Ending:
        assert f"| `{ending.value}` |" in page("docs/operations.md")


def test_every_reset_reason_is_documented() -> None:
    """docs/guarantees.md has each reason for which a stream may be incomplete."""
    for loss in Loss:
        assert f"| `{loss.value}` |" in page("docs/guarantees.md")


def test_the_architecture_page_lists_every_module() -> None:
    """docs/architecture.md places each module in a layer."""
    text = page("docs/architecture.md")
    modules = {path.stem for path in ROOT.glob("service/*.py")} - {"__init__"}

    assert {name for name in modules if f"`{name}`" not in text} == set()
