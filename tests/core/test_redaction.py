"""Foreign errors in our logs: one line, and no secret of this process or of the text itself."""

import pytest

from mlops_ext.redaction import redact, redacted

SECRET = "s3cr3t-8f1e7a"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgres://me:{SECRET}@db:5432/x", "postgres://***@db:5432/x"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (f"bearer {SECRET}, then more", "bearer ***, then more"),
        ("eyJhbGciOiJI.eyJzdWIiOiI.sig-1 expired", "*** expired"),
        (f"password={SECRET}&user=me", "password=***&user=me"),
        (f"'api_key': '{SECRET}', 'x': 1", "'api_key': '***', 'x': 1"),
        (f'"MY_TOKEN" : "{SECRET}"', '"MY_TOKEN" : "***"'),
        (
            f'{{"name": "DB_PASSWORD", "value": "{SECRET} too"}}',
            '{"name": "DB_PASSWORD", "value": "***"}',
        ),
        ("http://host:80/path and user@host", "http://host:80/path and user@host"),
        ("the tokens were counted: 12 passed", "the tokens were counted: 12 passed"),
        ("a bearer short", "a bearer short"),
    ],
)
def test_what_is_secret_by_its_form_is_masked_and_nothing_else(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    "name", ["DB_PASSWORD", "my_passwd", "X_SECRET_X", "Token", "API_KEY", "CREDENTIALS"]
)
def test_the_values_of_secret_variables_are_masked_wherever_they_stand(monkeypatch, name):
    monkeypatch.setenv(name, "hunter2")
    assert redact("login hunter2failed: hunter2") == "login ***failed: ***"


def test_short_values_and_other_variables_are_left_alone(monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "admin")  # a word that stands everywhere
    monkeypatch.setenv("PLACE", "hunter2")
    assert redact("admin at hunter2") == "admin at hunter2"
    monkeypatch.setenv("DB_PASSWORD", "admin1")
    assert redact("admin1 at hunter2") == "*** at hunter2"


def test_an_error_is_one_line_with_its_type():
    assert redacted(ValueError("one\n  two\tthree")) == "ValueError: one two three"
    assert redacted(ValueError(f"token={SECRET}")) == "ValueError: token=***"
    assert redacted(KeyboardInterrupt()) == "KeyboardInterrupt"
