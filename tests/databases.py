"""Real database servers for tests: started in a folder of their own on a free port, ended with the test.

Where a server's programs are not installed, or it cannot be started here, a test that asks for it is skipped and says why.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "p@ss/wörd:%41"
"""Of the owner; with everything in it that a URL would take for something else."""


@dataclass(frozen=True)
class Server:
    """A running server and its owner, who may write."""

    backend: str
    port: int

    @property
    def url(self) -> str:
        """Without a password."""
        return f"{self.backend}://owner@127.0.0.1:{self.port}/shop"

    def run(self, *statements: str) -> list[Any]:
        """As the owner; the rows of the last statement, if it has any."""
        rows: list[Any] = []
        with self._engine().begin() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
                rows = [tuple(row) for row in result] if result.returns_rows else []
        return rows

    def fill(self, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """Make ``table`` with ``columns`` (names and types) and put ``rows`` in."""
        with self._engine().begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
            connection.exec_driver_sql(f"CREATE TABLE {table} ({columns})")
            if rows:
                places = ", ".join(["%s"] * len(rows[0]))
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({places})", [tuple(row) for row in rows])

    def _engine(self) -> Any:
        from sqlalchemy import create_engine, make_url
        from sqlalchemy.pool import NullPool

        driver = {"postgresql": "psycopg", "mysql": "pymysql"}[self.backend]
        password = PASSWORD if driver == "psycopg" else PASSWORD.encode()
        url = make_url(self.url).set(drivername=f"{self.backend}+{driver}")
        return create_engine(url, poolclass=NullPool, connect_args={"password": password})


@contextmanager
def postgresql() -> Iterator[Server]:
    """PostgreSQL with a database ``shop``."""
    programs = [shutil.which("initdb"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), reverse=True)]
    found = next((Path(program) for program in programs if program), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: there is no initdb")
    with _folder_of("postgres") as (folder, user):
        (folder / "password").write_text(PASSWORD, encoding="utf-8")
        initdb = [str(found), "-D", str(folder / "data"), "-U", "owner", "--auth=scram-sha-256", "--no-sync", "-E", "UTF8"]
        _prepared([*initdb, "--locale=C", f"--pwfile={folder / 'password'}"], user)
        for port in _free_ports():
            options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
            settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
            server = Server("postgresql", port)
            command = [str(found.with_name("postgres")), "-D", str(folder / "data"), *settings]
            with _running(command, user, port, folder) as runs:
                if not runs:
                    continue
                _ask_for_the_database(server)
                yield server
                return


@contextmanager
def mariadb() -> Iterator[Server]:
    """MariaDB with a database ``shop``."""
    installer = shutil.which("mariadb-install-db")
    program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if installer is None or program is None:
        pytest.skip("MariaDB is not installed: there is no mariadbd")
    with _folder_of("mysql") as (folder, user):
        (folder / "start.sql").write_text(
            f"CREATE DATABASE shop CHARACTER SET utf8mb4;\nCREATE USER 'owner'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON *.* TO 'owner'@'127.0.0.1';\n",
            encoding="utf-8",
        )
        data = f"--datadir={folder / 'data'}"
        _prepared([installer, "--no-defaults", data, "--auth-root-authentication-method=normal", "--skip-test-db"], user)
        for port in _free_ports():
            command = [program, "--no-defaults", data, f"--socket={folder / 'socket'}", f"--init-file={folder / 'start.sql'}"]
            command += [f"--port={port}", "--bind-address=127.0.0.1", f"--pid-file={folder / 'pid'}", "--skip-name-resolve"]
            with _running([*command, "--character-set-server=utf8mb4"], user, port, folder) as runs:
                if runs:
                    yield Server("mysql", port)
                    return


def _ask_for_the_database(server: Server) -> None:
    import psycopg

    for attempt in range(100):
        try:
            with psycopg.connect(
                host="127.0.0.1", port=server.port, user="owner", password=PASSWORD, dbname="postgres", autocommit=True
            ) as connection:
                connection.execute("CREATE DATABASE shop")
            return
        except psycopg.OperationalError:  # it still starts
            if attempt == 99:
                raise
            time.sleep(0.1)


@contextmanager
def _folder_of(name: str) -> Iterator[tuple[Path, str | None]]:
    """A folder, and who is to run the server: neither server wants to be root."""
    user = None
    if os.geteuid() == 0:
        known = [entry.pw_name for entry in pwd.getpwall()]
        user = next((candidate for candidate in (name, "nobody") if candidate in known), None)
        if user is None:
            pytest.skip(f"the server does not run as root, and there is neither a user {name!r} nor 'nobody'")
    folder = Path(tempfile.mkdtemp(prefix=f"silorec-{name}-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        yield folder, user
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepared(command: list[str], user: str | None) -> None:
    done = subprocess.run(command, **_as(user), capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"{Path(command[0]).name} failed here: {' '.join((done.stderr or done.stdout).split())[-300:]}")


@contextmanager
def _running(command: list[str], user: str | None, port: int, folder: Path) -> Iterator[bool]:
    """Whether the server came to listen; it ends here."""
    with (folder / "log").open("ab") as log, subprocess.Popen(command, **_as(user), stdout=log, stderr=log) as process:
        try:
            yield _listens(process, port)
        finally:
            process.send_signal(signal.SIGINT if command[0].endswith("postgres") else signal.SIGTERM)  # to both: end now
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    for _ in range(600):
        if process.poll() is not None:
            return False
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.05)
    return False


def _free_ports() -> Iterator[int]:
    """Three tries: another program may take a port before the server does."""
    for _ in range(3):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = int(taken.getsockname()[1])
        yield port
    pytest.skip("the database server did not come to listen on three free ports")


def _as(user: str | None) -> dict[str, Any]:
    """Arguments of :mod:`subprocess`: the user, a folder that they may be in, and an environment without the tests' own."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR")}
    who = {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    return {**who, "cwd": "/", "env": {**environment, "LC_ALL": "C"}}
