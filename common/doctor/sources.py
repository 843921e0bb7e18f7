"""What a run reads: the operator's settings, the silo's own data, the public catalogue, and the language models in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common.assets import ASSETS, cached
from common.config import Config, DataConfig, load
from common.data.own import OwnSource
from common.data.population import load_catalogue
from common.doctor.finding import Check, Finding, ok, problem, warning
from common.doctor.subject import HOMES, SILO, Subject
from common.errors import SilorecError

#: If fewer of a silo's own items than this are in the catalogue, the ids are probably of another kind.
FEW = 0.5


def look_at_settings(subject: Subject) -> Iterator[Finding]:
    """``silo.toml`` or ``coordinator.toml``."""
    path = subject.home.settings_file
    try:
        subject.home.settings()
    except SilorecError as error:
        yield problem("settings", str(error), f"mend {path}")
    else:
        yield ok("settings", f"{path.name} is valid")


def look_at_config(subject: Subject) -> Iterator[Finding]:
    """The configuration of a run that was named."""
    if subject.config_file is None:
        return
    try:
        load(subject.config_file)
    except SilorecError as error:
        yield problem("configuration", str(error), f"mend {subject.config_file}")
    else:
        yield ok("configuration", f"{subject.config_file.name} is valid")


def look_at_data(subject: Subject) -> Iterator[Finding]:
    """The silo's own data, read once from the first row to the last; no row of it is shown or kept."""
    config, mend = subject.config, f"mend the source, or [data] in {subject.silo.settings_file}"
    public = DataConfig() if config is None else config.data
    try:
        source = _own_source(subject)
        own = source.read(
            format=public.format, columns=public.columns, malformed=public.malformed, min_value=public.min_value, ordered=False
        )
    except SilorecError as error:
        yield problem("data", str(error), mend)
        return
    if not len(own.interactions):
        yield problem("data", f"{source.place}: there is no interaction in it", mend)
        return
    if config is None:
        seen = f"{source.place} can be read; not held against a catalogue: --config names a run's configuration"
        yield ok("data", seen)
        return
    try:
        catalogue = load_catalogue(config)
    except SilorecError as error:
        yield warning("data", f"{source.place} can be read, the run's public catalogue cannot: {error}", "see the assets")
        return
    ids = own.catalogue.ids
    known = sum(item in catalogue.index for item in ids)
    seen = f"{known} of {len(ids)} of the silo's items are in the run's catalogue of {len(catalogue)}"
    do = "the ids must agree: map the column with [data.columns] item, or have the silo's ids translated"
    if known == 0:
        yield problem("data", seen, do)
    elif known < FEW * len(ids):
        yield warning("data", f"{seen}; interactions with the others are left out", do)
    else:
        yield ok("data", seen)


def look_at_assets(subject: Subject) -> Iterator[Finding]:
    """Public models and data that the run names: in the cache, so that a start needs no network."""
    config, told = subject.config, "the run's"
    if config is None:
        config, told = Config(), "the default"
    wanted = {config.model.backbone, config.model.encoder}
    if subject.config is not None:
        wanted.add(config.data.source)
    there: list[str] = []
    lacking: list[str] = []
    for name in sorted(wanted):
        if name in ASSETS:
            (there if cached(name) is not None else lacking).append(name)
        elif Path(name).expanduser().exists():
            there.append(name)
        elif "/" in name:
            seen = f"{name} is neither an asset of silorec nor a path: it is fetched from the model hub when a run starts"
            yield warning("assets", seen, "copy it to a folder of your own and name that, or let the machine reach the hub")
    for name in lacking:
        seen = f"{name} ({told} model or data) is not in the cache, or damaged there: it is fetched when a run starts"
        yield warning("assets", seen, f"silorec fetch {name}")
    if not lacking:
        yield ok("assets", f"in the cache: {', '.join(there)}" if there else f"{told} models need no files")


def _own_source(subject: Subject) -> OwnSource:
    """As ``silo.toml`` says; what it leaves open follows the run's configuration."""
    said = subject.silo_settings.data.model_dump(exclude_none=True)
    return OwnSource(folder=subject.silo.folder, **{key: value for key, value in said.items() if value not in ({}, "auto")})


CHECKS = (
    Check("settings", HOMES, look_at_settings),
    Check("configuration", HOMES, look_at_config),
    Check("data", SILO, look_at_data),
    Check("assets", HOMES, look_at_assets),
)
