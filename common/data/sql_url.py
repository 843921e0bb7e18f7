"""URLs of databases: what is taken, where the password comes from, and what may be said of one in a message.

A password may stand in a file that only its owner can read, in an environment variable, or in the URL itself. It is in no
message, and neither are the user and the URL's options.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DataError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

INSTALL = "pip install 'silorec[sql]'"

SERVERS = {"postgresql": "psycopg", "mysql": "pymysql", "mariadb": "pymysql"}
"""Databases that are servers, and the driver that each is read with."""

FILES = ("sqlite", "duckdb")
"""Databases that are files."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def parse(text: str) -> URL:
    """A URL of a database that silorec can open read only; ``${NAME}`` stays in it.

    Raises
    ------
    DataError
        If it is none; the message holds nothing of it, for what does not parse may be a password.
    """
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError:
        raise DataError(f"a database is read with SQLAlchemy, which is not installed: {INSTALL}") from None
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # whose texts may hold a part of the password
        url = None
    backend = url.get_backend_name() if url is not None else ""
    served = backend not in FILES
    if url is None or (served and "@" in f"{url.host}{url.database}"):
        raise DataError(
            "the database's URL cannot be read; it looks like postgresql://user@host:5432/name. A '@', ':' or '/' in a user's "
            "name or password is written in percent encoding; better, put the password into a password_file"
        )
    if backend not in (*SERVERS, *FILES):
        known = ", ".join(f"{name}://" for name in (*SERVERS, *FILES))
        raise DataError(f"a database of kind {backend!r} is not known; known are: {known}")
    driver = url.drivername.partition("+")[2]
    if driver and driver != SERVERS.get(backend):
        raise DataError(f"the driver {driver!r} is not known; write {backend}:// without a driver")
    if not served and (url.host or url.username or url.query):
        raise DataError(
            f"a URL of {backend} names a file and nothing else: {backend}:///relative/path or {backend}:////absolute/path"
        )
    if served and not url.database:
        raise DataError(f"the URL names no database; it looks like {backend}://user@host/name")
    return url


def place_of(url: str | URL) -> str:
    """What may be said of a URL: kind, host, port and name of the database."""
    from sqlalchemy.engine import URL

    parsed = url if isinstance(url, URL) else parse(url)
    host = parsed.host or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parsed.port}" if parsed.port is not None else ""
    return f"{backend_of(parsed)}://{host}{port}/{parsed.database or ''}"


def backend_of(url: URL) -> str:
    """The kind of database, without the driver."""
    return url.get_backend_name()


def with_secrets(url: URL, password_file: Path | None) -> URL:
    """The URL as the driver needs it; not to be shown.

    Raises
    ------
    DataError
        If there are two passwords, or one cannot be had.
    """
    whole = _expand(url, place_of(url))
    if password_file is None:
        return whole
    if whole.password is not None:
        raise DataError("there is a password in the URL and a password_file: give one of them", place_of(url))
    return whole.set(password=_read_password(password_file))


def _expand(url: URL, place: str) -> URL:
    """``${NAME}`` in any part of the URL is the environment variable; what it holds is taken as it is, not decoded."""

    def expanded(text: str) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise DataError(f"the URL names ${{{match[1]}}}, but there is no environment variable of that name", place)
            return os.environ[match[1]]

        return _VARIABLE.sub(value, text)

    parts: dict[str, Any] = {}
    for part in ("username", "password", "host", "database"):
        text = getattr(url, part)
        if text is not None:
            parts[part] = expanded(str(text))
    query = {
        name: expanded(text) if isinstance(text, str) else tuple(expanded(one) for one in text)
        for name, text in url.query.items()
    }
    return url.set(**parts, query=query)


def _read_password(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise DataError(
                    f"others than its owner can read or change the password (mode {mode:04o}); run: chmod 600 {path}", path
                )
            password = file.read(1 << 12).rstrip("\r\n")
    except OSError as error:
        raise DataError(f"the password cannot be read: {error.strerror}", path) from None
    except UnicodeDecodeError:
        raise DataError("the password is not UTF-8 text", path) from None
    if not password:
        raise DataError("the file of the password is empty", path)
    return password
