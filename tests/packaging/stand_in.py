"""In the place of ``docker``: what ``docker compose run`` starts is run here, each service with a folder for its volume.

    stand_in.py FOLDER compose run --rm --no-deps -T [-v HOST:PLACE:ro] [--entrypoint PROGRAM] SERVICE ARGUMENT …

Other commands are noted in ``FOLDER/noted`` and do nothing. Models are not fetched.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HOME = "/home/silorec"


def main(folder: Path, arguments: list[str]) -> int:
    """Status of the command."""
    if arguments[:2] != ["compose", "run"]:
        with (folder / "noted").open("a") as noted:
            noted.write(" ".join(arguments) + "\n")
        return 0
    parser = argparse.ArgumentParser()
    parser.add_argument("--rm", action="store_true", required=True)
    parser.add_argument("--no-deps", action="store_true", required=True)
    parser.add_argument("-T", action="store_true", required=True)
    parser.add_argument("-v", action="append", default=[])
    parser.add_argument("--entrypoint", default="silorec")
    parser.add_argument("service", choices=("coordinator", "north", "east", "south"))
    parser.add_argument("words", nargs=argparse.REMAINDER)
    said = parser.parse_args(arguments[2:])
    volume = folder / said.service
    volume.mkdir(mode=0o700, exist_ok=True)
    places = {HOME: str(volume), "/data": str(Path.cwd() / "data" / said.service)}
    for mount in said.v:
        host, place, how = mount.split(":")
        if how != "ro" or not Path(host).is_file():
            sys.exit(f"not a file that is mounted read-only: {mount}")
        places[place] = host
    if said.words[:1] == ["fetch"]:
        return 0
    words = [_moved(word, places) for word in said.words]
    program = [sys.executable, "-m", "silorec"] if said.entrypoint == "silorec" else [said.entrypoint]
    return subprocess.run([*program, *words], env={**os.environ, "HOME": str(volume)}, check=False).returncode


def _moved(word: str, places: dict[str, str]) -> str:
    for place, host in places.items():
        if word == place or word.startswith(f"{place}/"):
            return host + word.removeprefix(place)
    return word


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))
