"""Keys, certificates, roster and standing: each fault is named, with what to do."""

from __future__ import annotations

import shutil
import subprocess
from datetime import timedelta

import pytest

from common.consortium.keys import own_key
from common.privacy.signing import create_key
from tests.common.doctor.deployment import FAR, LONG_AGO, NOW, Deployment
from tests.common.doctor.looking import faults, look, says, the_only

SOON = NOW + timedelta(days=10, hours=1)
SOMEBODY_ELSE = 4321
YESTERDAY = NOW - timedelta(days=1)


@pytest.mark.parametrize("name", ["ledger.key", "node.key", "tls.key"])
def test_a_key_that_others_can_read_is_named_with_the_command_that_mends_it(deployment: Deployment, name: str) -> None:
    path = deployment.silo.folder / name
    path.chmod(0o640)
    found = the_only(look(deployment, "keys"), "problem")
    assert says(found, rf"{name}: others than its owner can read or change the key \(mode 0640\)")
    subprocess.run(found.do, shell=True, check=True)
    assert not faults(look(deployment, "keys"))


@pytest.mark.parametrize("name", ["coordinator.key", "tls.key"])
def test_the_coordinators_keys_are_looked_at_too(deployment: Deployment, name: str) -> None:
    path = deployment.coordinator.folder / name
    path.chmod(0o604)
    assert says(the_only(look(deployment, "keys", "coordinator"), "problem"), r"mode 0604", f"chmod 600 {path}")
    path.unlink()
    assert says(the_only(look(deployment, "keys", "coordinator"), "problem"), "there is no key", f"restore {name}")


def test_a_key_of_another_user_is_refused(deployment: Deployment) -> None:
    found = faults(look(deployment, "keys", user=SOMEBODY_ELSE))
    assert [says(one, rf"belongs to user \d+, this is user {SOMEBODY_ELSE}", "chown") for one in found] == [True] * 3


def test_something_else_in_a_keys_place_is_named(deployment: Deployment) -> None:
    shutil.copy(deployment.silo.node_key, deployment.silo.identity_key)
    assert says(the_only(look(deployment, "keys"), "problem"), r"ledger\.key: not an unencrypted Ed25519 private key", "restore")


def test_a_node_key_in_a_form_that_flower_does_not_read_is_turned_into_the_other(deployment: Deployment) -> None:
    path = deployment.silo.node_key
    path.unlink()
    key = own_key(path)
    found = the_only(look(deployment, "keys"), "problem")
    assert says(found, "Flower reads a node's key in OpenSSH's form only")
    if shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH is not installed")
    subprocess.run(found.do, shell=True, check=True, capture_output=True)
    assert not faults(look(deployment, "keys"))
    assert own_key(path).private_numbers() == key.private_numbers()


def test_keys_that_are_not_the_rosters_are_told_apart(deployment: Deployment) -> None:
    silo = deployment.silo
    silo.node_key.unlink()
    own_key(silo.node_key, openssh=True)
    found = the_only(look(deployment, "keys in roster"), "problem")
    assert says(found, "node.key is not the node key that the roster has for 'north'", f"silorec consortium rotate {silo.folder}")
    silo.identity_key.unlink()
    create_key(silo.identity_key)
    assert says(
        the_only(look(deployment, "keys in roster"), "problem"), "is foreign: version 3 of 'shops'", r"restore ledger\.key"
    )
    silo.identity_key.unlink()
    (found,) = look(deployment, "keys in roster")
    assert (found.outcome, found.seen) == ("not checked", "it needs ledger.key")


def test_another_certificate_than_the_rosters_is_a_warning(deployment: Deployment) -> None:
    deployment.certify_silo()
    assert says(the_only(look(deployment, "keys in roster"), "warning"), r"tls\.pem is not the certificate that the roster has")


def test_the_coordinators_key_and_names_are_held_against_the_roster(deployment: Deployment) -> None:
    deployment.sign(address="federation.example.org:9092")
    found = the_only(look(deployment, "keys in roster", "coordinator"), "problem")
    assert says(
        found, r"tls\.pem is for 127\.0\.0\.1, .*connect to federation\.example\.org", "made anew with federation.example"
    )
    deployment.certify_server("federation.example.org")
    assert not faults(look(deployment, "keys in roster", "coordinator"))
    deployment.coordinator.key.unlink()
    create_key(deployment.coordinator.key)
    found = the_only(look(deployment, "keys in roster", "coordinator"), "problem")
    assert says(found, "silos refuse what it signs", r"restore coordinator\.key")


@pytest.mark.parametrize(
    ("until", "outcome", "words"),
    [
        (NOW + timedelta(days=31), None, ""),
        (NOW + timedelta(days=29, hours=1), "warning", r"tls\.pem expires in 29 days, on 20"),
        (NOW + timedelta(days=1, hours=1), "warning", "expires in 1 day, on"),
        (YESTERDAY, "problem", rf"tls\.pem expired on {YESTERDAY:%Y-%m-%d %H:%M} UTC"),
    ],
    ids=["a month", "29 days", "a day", "expired"],
)
@pytest.mark.parametrize("at", ["silo", "coordinator"])
def test_an_expiry_is_warned_of_thirty_days_ahead(
    deployment: Deployment, at: str, until: object, outcome: str | None, words: str
) -> None:
    certify = deployment.certify_silo if at == "silo" else deployment.certify_server
    certify(until=until)  # type: ignore[arg-type]
    found = look(deployment, "certificates", at)
    if outcome is None:
        assert not faults(found)
    else:
        assert says(the_only(found, outcome), words, "silorec consortium rotate")


def test_a_clock_that_is_far_behind_is_not_taken_for_a_fault_of_the_certificate(deployment: Deployment) -> None:
    before = LONG_AGO.timestamp() - 86400
    found = faults(look(deployment, "certificates", clock=lambda: before))
    assert len(found) == 2
    assert all(says(one, r"is valid from .* this machine's clock says", "set the clock right") for one in found)


def test_certificates_that_do_not_fit_are_told_apart(deployment: Deployment) -> None:
    deployment.certify_server(foreign=True)
    found = the_only(look(deployment, "certificates", "coordinator"), "problem")
    assert says(found, r"tls\.pem was not made by the authority of authority\.pem")
    deployment.certify_server()
    deployment.coordinator.tls_key.unlink()
    own_key(deployment.coordinator.tls_key)
    found = the_only(look(deployment, "certificates", "coordinator"), "problem")
    assert says(found, r"tls\.pem is the certificate of another key than tls\.key")
    deployment.coordinator.tls_certificate.write_text("nothing")
    found = the_only(look(deployment, "certificates", "coordinator"), "problem")
    assert says(found, "there is no certificate that can be read", r"restore tls\.pem")


def test_a_roster_that_was_altered_is_refused(deployment: Deployment) -> None:
    path = deployment.silo.roster
    path.write_bytes(path.read_bytes().replace(b"declared_users = 40", b"declared_users = 41"))
    assert says(the_only(look(deployment, "roster"), "problem"), "the signature is not that of our authority", "restore roster")
    (found,) = look(deployment, "standing")
    assert (found.outcome, found.seen) == ("not checked", "it needs a roster")
    path.unlink()
    assert says(
        the_only(look(deployment, "roster"), "problem"),
        "has not been admitted yet",
        "send the .request file .*--import roster.toml",
    )


@pytest.mark.parametrize("at", ["silo", "coordinator"])
def test_the_rosters_own_validity_counts(deployment: Deployment, at: str) -> None:
    deployment.sign(valid_until=SOON)
    assert says(
        the_only(look(deployment, "roster", at), "warning"), "version 3 of the roster expires in 10 days", "ask the authority"
    )
    deployment.sign(valid_until=YESTERDAY)
    assert says(the_only(look(deployment, "roster", at), "problem"), "version 3 of the roster expired on")


def test_a_silos_own_standing(deployment: Deployment) -> None:
    deployment.sign(member={"valid_until": SOON})
    assert says(the_only(look(deployment, "standing"), "warning"), "the admission of silo 'north' expires in 10 days")
    deployment.sign(member={"valid_until": YESTERDAY})
    assert says(the_only(look(deployment, "standing"), "problem"), "'north' was admitted until .* has expired")
    deployment.sign(member={"valid_until": FAR, "revoked": YESTERDAY, "reason": "left the consortium"})
    assert says(the_only(look(deployment, "standing"), "problem"), "'north' was revoked on .*: left the consortium")


def test_a_coordinator_that_has_moved_is_told(deployment: Deployment) -> None:
    assert not faults(look(deployment, "address"))
    deployment.sign(address="new.example.org:9092")
    found = the_only(look(deployment, "address"), "warning")
    assert says(found, "silo.toml connects to .*, and the roster .* at new.example.org:9092", 'coordinator = "new.example.org')


def test_a_silo_that_calls_itself_otherwise_is_told(deployment: Deployment) -> None:
    deployment.set(name="nord")
    assert says(the_only(look(deployment, "standing"), "warning"), "calls this silo 'nord', .*'north'", 'name = "north"')


def test_the_coordinator_sees_who_takes_no_part(deployment: Deployment) -> None:
    deployment.sign(member={"valid_until": SOON})
    found = look(deployment, "standing", "coordinator")
    assert says(the_only(found, "warning"), "the admission of silo 'north' expires in 10 days")
    assert found[-1].seen == "2 of 2 silos are valid"
    deployment.sign(member={"valid_until": YESTERDAY})
    assert says(the_only(look(deployment, "standing", "coordinator"), "warning"), "'north' was admitted until")
    deployment.sign(members=())
    assert says(the_only(look(deployment, "standing", "coordinator"), "problem"), "none of 0 silos is valid", "consortium invite")
