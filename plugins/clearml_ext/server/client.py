"""Requests to the ClearML API server: one try, a timeout, one clear line on failure.

The SDK's own session retries for hours if the server is away, and creates what it needs on the way.
A check must do neither.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests

from clearml_ext.errors import ServerError
from clearml_ext.sdk import connection

_HIDDEN = "***"
# Characters in JSON that turn the text around them, or that steer a terminal.
_HOSTILE = re.compile(
    r"\\\\|\\u(?:00[01][0-8b-f]|00[78][0-9a-f]|009[0-9a-f]|061c|200[ef]|202[89a-e]|206[6-9])"
    "|[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]",
    re.IGNORECASE,
)
_WHERE = "nothing was enqueued; is it the API server's address?"
# Rows that the server gives at most unless a request asks for more.
_PAGE = 500
# Rows to ask for from a server that scrolls: ten times the largest number known.
_ALL = 100_000


class Client:
    """A client of one API server.

    Attributes:
        host: its address.
        shown: the same, fit for messages.
        server_time: the server's clock when it last answered.
    """

    def __init__(  # what a connection consists of
        self,
        host: str,
        *,
        key: str = "",
        secret: str = "",
        token: Callable[[], str] | None = None,
        timeout_s: float,
        verify: bool | str = True,
    ) -> None:
        self.host = host.rstrip("/")
        self.shown = _without_credentials(self.host)
        self.server_time: dt.datetime | None = None
        self._key, self._secret, self._token = key, secret, token
        self._own_token = ""
        self._timeout_s, self._verify = timeout_s, verify
        self._http = requests.Session()

    @classmethod
    def from_configuration(cls, timeout_s: float) -> Client:
        """Make a client for the server that ClearML is configured for.

        Raises:
            ServerError: there are no credentials; no request was sent.
        """
        found = connection()
        if not (found["token"] or (found["key"] and found["secret"])):
            raise ServerError(
                _without_credentials(found["host"]),
                "was not asked: there are no credentials",
                "run clearml-init, or set CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY",
            )
        return cls(**found, timeout_s=timeout_s)

    def call(self, endpoint: str, request: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Send *request* to *endpoint* and return the data of the answer.

        Raises:
            ServerError: no answer, or not one that can be used.
        """
        headers = {"Authorization": f"Bearer {self.token()}"}
        return self._data(endpoint, self._send(endpoint, dict(request or {}), headers))

    def rows(self, endpoint: str, request: Mapping[str, object], key: str) -> list[dict[str, Any]]:
        """Fetch all rows of *endpoint* under *key*: one request, or one a page on old servers.

        Each row has an ``id``; a request that lists fields has to list it.

        Raises:
            ServerError: no answer, or not one that can be used.
        """
        found: list[dict[str, Any]] = []
        more: dict[str, object] = {"scroll_id": "", "size": _ALL}
        for page in itertools.count(1):
            data = self.call(endpoint, {**request, **more})
            part = data.get(key)
            if not isinstance(part, list) or not all(
                isinstance(row, dict) and "id" in row for row in part
            ):
                break
            found += part
            # A server that scrolls says so, and has given all; an older one ignores the wish.
            if data.get("scroll_id") or len(part) < _PAGE:
                return found
            more = {"page": page, "page_size": _PAGE}
        raise self._error("answered in a form that is not known", "is it a ClearML server?")

    def tasks(self, fields: Sequence[str], **wanted: object) -> list[dict[str, Any]]:
        """Fetch *fields* of all tasks that are as *wanted*, hidden ones too.

        Raises:
            ServerError: no answer, or not one that can be used.
        """
        request = {**wanted, "only_fields": list(fields), "search_hidden": True}
        return self.rows("tasks.get_all", request, "tasks")

    def hand_over(self, controller: str) -> dict[str, object]:
        """Return what another process of this machine needs to ask the same server.

        The result holds a token: write it to a pipe, and nowhere else.
        """
        return {
            "host": self.host,
            "token": self.token(),
            "verify": self._verify,
            "controller": controller,
        }

    def token(self) -> str:
        """Get a token: that of the SDK's session, or of a login.

        Raises:
            ServerError: no answer, or not one that can be used.
        """
        if self._token is not None:
            return self._token()
        if not self._own_token:
            answer = self._send("auth.login", {}, {}, auth=(self._key, self._secret))
            token = self._data("auth.login", answer).get("token")
            if not isinstance(token, str):
                raise self._error("answered auth.login without a token", "is it a ClearML server?")
            self._own_token = token
        return self._own_token

    def _send(
        self,
        endpoint: str,
        request: dict[str, Any],
        headers: dict[str, str],
        auth: tuple[str, str] | None = None,
    ) -> requests.Response:
        try:
            response = self._http.post(
                f"{self.host}/{endpoint}",
                json=request,
                headers=headers,
                auth=auth,
                timeout=self._timeout_s,
                verify=self._verify,
            )
        except requests.exceptions.SSLError as error:
            raise self._error(
                "has a certificate that is not trusted", "see api.verify_certificate"
            ) from error
        except requests.exceptions.Timeout as error:
            raise self._error(
                f"did not answer {endpoint} within {self._timeout_s:g} s",
                "nothing was enqueued; try again, or raise MLOPS_EXT_CLEARML_TIMEOUT_S",
            ) from error
        except (requests.exceptions.RequestException, ValueError) as error:
            raise self._error(
                "cannot be reached", "nothing was enqueued; check its address and the network"
            ) from error
        moment = email.utils.parsedate_to_datetime(
            response.headers.get("Date") or email.utils.formatdate()
        )
        self.server_time = moment.astimezone(dt.timezone.utc)
        return response

    def _data(self, endpoint: str, response: requests.Response) -> dict[str, Any]:
        try:
            document = json.loads(_HOSTILE.sub(_spelt, response.text))
            data = document["data"]
            text = str(document.get("meta", {}).get("result_msg", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            data, text = None, ""
        status = response.status_code
        if status == HTTPStatus.UNAUTHORIZED:
            raise self._error(
                f"refuses the credentials (401 on {endpoint})",
                "nothing was enqueued; renew them with clearml-init",
                status,
            )
        if status >= HTTPStatus.BAD_REQUEST:
            words = f"answered {endpoint} with {status}"
            if text:
                words += f" ({self._clean(text)[:150]})"
            advice = "nothing was enqueued; see its log"
            raise self._error(words, _WHERE if status == HTTPStatus.NOT_FOUND else advice, status)
        if not isinstance(data, dict):
            raise self._error(
                f"answered {endpoint} with something that is not the ClearML API", _WHERE
            )
        return data

    def _clean(self, text: str) -> str:
        for secret in (self._secret, self._key, self._own_token):
            if secret:
                text = text.replace(secret, _HIDDEN)
        return " ".join(text.split())

    def _error(self, problem: str, advice: str, status: int | None = None) -> ServerError:
        return ServerError(self.shown, problem, advice, status=status)


def _spelt(found: re.Match[str]) -> str:
    """Replace a hostile character by its escape as text; keep an escaped backslash."""
    text = found[0]
    if text == r"\\":
        return text
    return rf"\\u{ord(text):04x}" if len(text) == 1 else rf"\{text}"


def _without_credentials(host: str) -> str:
    try:
        parts = urlsplit(host)
    except ValueError:
        return "(an address that cannot be read)"
    if not parts.netloc:  # without "http://" it is read as a path, or as a scheme and a path
        return re.split("[?#]", host.rpartition("@")[2])[0]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
