"""What operators write in their folders is read strictly, and refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.consortium.home import CoordinatorHome, SiloHome, host_of
from common.errors import ConfigError

NORTH = 'name = "north"\ncoordinator = "federation.example.org:9092"\n'


def silo(folder: Path, text: str) -> SiloHome:
    (folder / "silo.toml").write_text(text)
    return SiloHome(folder)


def test_a_silos_settings_have_defaults(tmp_path: Path) -> None:
    found = silo(tmp_path, NORTH + '[data]\npath = "data/sales.csv"\ncolumns = { user = "customer" }\n').settings()
    assert (found.name, found.coordinator) == ("north", "federation.example.org:9092")
    assert (found.show_budget, found.roster_refresh, found.metrics_port, found.device) == (False, 60.0, 0, "auto")
    assert (found.data.path, found.data.format) == (tmp_path / "data/sales.csv", "auto")
    assert found.data.columns == {"user": "customer"}
    database = silo(tmp_path, NORTH + '[data]\nurl = "sqlite:///x.db"\nquery = "SELECT 1"\n').settings()
    assert (database.data.path, database.data.url, database.data.query) == (None, "sqlite:///x.db", "SELECT 1")
    assert silo(tmp_path, NORTH + '[data]\npath = "/srv/sales"\n').settings().data.path == Path("/srv/sales")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (NORTH, r"silo\.toml: data is missing: where the silo's data are"),
        (NORTH + "[data]\n", "data: give either path"),
        (NORTH + '[data]\npath = "x"\nurl = "sqlite://"\nquery = "q"\n', "data: give either path"),
        (NORTH + '[data]\nurl = "sqlite://"\n', "data: url and query go together"),
        (NORTH + 'datas = 1\n[data]\npath = "x"\n', r"unknown setting 'datas'; did you mean 'data'\? \(allowed: .*coordinator, "),
        (NORTH + '[data]\npaht = "x"\n', r"unknown setting 'data\.paht'; did you mean 'path'\? \(allowed: columns, "),
        (NORTH + '[data]\npath = "x"\nformat = 7\n', r"data\.format = 7: input should be a valid string"),
        (NORTH + 'device = "tpu"\n[data]\npath = "x"\n', "device = 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
        (NORTH + 'roster_refresh = 0\n[data]\npath = "x"\n', "roster_refresh = 0: input should be greater than or equal to 1"),
        ('name = "North"\ncoordinator = "a:1"\n[data]\npath = "x"\n', "name = 'North': a silo's name has up to 63 of a-z"),
        ('name = "north"\ncoordinator = "a"\n[data]\npath = "x"\n', "coordinator = 'a': must be host:port"),
        ('name = "north"\ncoordinator = "a:70000"\n[data]\npath = "x"\n', "coordinator = 'a:70000': must be host:port"),
        ('coordinator = "a:1"\n[data]\npath = "x"\n', "name is missing: the silo's name in the consortium"),
        ("name = ", "not a TOML file"),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refusal:
        silo(tmp_path, text).settings()
    assert str(tmp_path / "silo.toml") in str(refusal.value)


def test_a_coordinators_settings_are_read_alike(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    home.settings_file.write_text('name = "shops"\nlisten = "[::]:9443"\n')
    assert (home.settings().listen, home.settings().metrics_port) == ("[::]:9443", 0)
    home.settings_file.write_text('name = "shops"\nlisten = "9443"\n')
    with pytest.raises(ConfigError, match=r"coordinator\.toml: listen = '9443': must be host:port"):
        home.settings()


@pytest.mark.parametrize(
    ("address", "host"), [("a.example:1", "a.example"), ("10.0.0.1:9092", "10.0.0.1"), ("[fd00::1]:9092", "fd00::1")]
)
def test_a_host_is_what_stands_before_the_port(address: str, host: str) -> None:
    assert host_of(address) == host
