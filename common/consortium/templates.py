"""The settings that a new folder begins with, for its operator to edit."""

from __future__ import annotations

import json
from pathlib import Path


def settings_template(name: str, coordinator: str, data: Path | None) -> str:
    """``silo.toml`` of a new silo."""
    path = '# path = "interactions.csv"' if data is None else f"path = {_toml(str(data.absolute()))}"
    return f"""# What this silo's operator decides. Nothing here leaves the machine.
name = {_toml(name)}
coordinator = {_toml(coordinator)}

# device = "auto"          # auto, cpu or cuda
# show_budget = false      # whether the coordinator is told how much budget is left
# roster_refresh = 60      # seconds between two looks for a newer roster
# metrics_port = 0         # Prometheus metrics on loopback; 0 is off

# Where the data are. They stay there, and are only read. Either a file or folder ...
[data]
{path}
# format = "auto"          # see: silorec data formats
# columns = {{ user = "customer", item = "article", time = "bought_at" }}

# ... or a database, with a query that gives one row an interaction:
# url = "postgresql+psycopg://reader@localhost/shop"
# query = "SELECT customer AS user, article AS item, bought_at AS time FROM sales"
"""


def policy_template(name: str, declared_users: int, delta: float, coordinator: str) -> str:
    """``policy.toml`` of a new silo: mode ``silo``, one coordinator, a budget of 8 for everything that is ever released."""
    return f"""# What this silo allows, whatever the coordinator asks for. To put it in force:
#     silorec ledger init HOME --policy HOME/policy.toml
silo = {_toml(name)}
declared_users = {declared_users}
coordinators = [{_toml(coordinator)}]
modes = ["silo"]

# The budget of everything that is ever released under this ledger: decide before the first run.
epsilon = 8.0
delta = {delta:g}

# Further limits; what is left out does not limit.
# epsilon_per_run = 4.0
# epsilon_per_day = 1.0
# min_noise_multiplier = 0.8
# max_sampling_probability = 0.1
# max_steps_per_round = 10
# max_rounds_per_run = 50
"""


def coordinator_template(name: str, port: int) -> str:
    """``coordinator.toml`` of a new consortium."""
    return f"""# What the coordinator's operator decides.
name = {_toml(name)}
listen = "0.0.0.0:{port}"
# metrics_port = 0         # Prometheus metrics on loopback; 0 is off
# tensorboard = false      # scalars of a run in its folder, as it goes on
"""


def _toml(text: str) -> str:
    """A basic string; JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\\x7f", "\\\\u007f")
