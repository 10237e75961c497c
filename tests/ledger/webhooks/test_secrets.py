"""The secrets of webhooks: encrypted at rest, made once, rotated without a gap."""

from __future__ import annotations

import base64
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select, update

from tweezer.ledger.access.projects import project_no
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.database import Database
from tweezer.ledger.schema import endpoints, now_ms, webhook_secrets
from tweezer.model.errors import InvalidInput, NotFound, TweezerError
from tweezer.model.signatures import Algorithm, SigningSecret, check_secret, signed_headers, verify_webhook
from tweezer.webhooks.secrets import (
    OVERLAP_MAX_S,
    SIGNING_MAX,
    SecretOwner,
    delete_expired_secrets,
    ensure_secrets,
    read_secrets,
    reencrypt_secrets,
    rotate_secret,
)

KEY, OTHER_KEY = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
BODY = b'{"type":"ping","timestamp":"2026-05-01T10:00:00Z","data":{}}'


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault.of(KEY, tmp_path)


@pytest.fixture
def project(database: Database) -> int:
    with database.write() as connection:
        return project_no(connection, "lab")


@pytest.fixture
def endpoint(database: Database, project: int) -> UUID:
    identity = uuid4()
    row = {"id": identity, "project": project, "kind": "P", "url": "", "types": "", "description": "", "created_ms": 1}
    with database.write() as connection:
        connection.execute(insert(endpoints).values(row))
    return identity


def signing(database: Database, vault: Vault, project: int, endpoint: UUID | None = None) -> list[SigningSecret]:
    with database.write() as connection:
        return ensure_secrets(connection, vault, SecretOwner(project, endpoint))


def rotated(database: Database, vault: Vault, project: int, overlap_s: float = 60, endpoint: UUID | None = None) -> str:
    with database.write() as connection:
        return rotate_secret(connection, vault, SecretOwner(project, endpoint), overlap_s=overlap_s).secret


def test_a_projects_secret_is_made_on_first_use_and_kept(database: Database, vault: Vault, project: int) -> None:
    (secret,) = signing(database, vault, project)
    check_secret(secret.text)
    assert (secret.algorithm, secret.expires) == (Algorithm.HMAC_SHA256, None)
    assert signing(database, vault, project) == [secret]


def test_projects_and_endpoints_have_separate_secrets(
    database: Database, vault: Vault, project: int, endpoint: UUID
) -> None:
    with database.write() as connection:
        other = project_no(connection, "other")
    texts = [
        signing(database, vault, project)[0].text,
        signing(database, vault, other)[0].text,
        signing(database, vault, project, endpoint)[0].text,
    ]
    assert len(set(texts)) == 3
    rotated(database, vault, project, endpoint=endpoint)
    assert [len(signing(database, vault, project, it)) for it in (None, endpoint)] == [1, 2]


def test_concurrent_first_uses_get_the_same_secret(database: Database, vault: Vault, project: int) -> None:
    together = threading.Barrier(6)

    def need(_: int) -> list[SigningSecret]:
        together.wait(timeout=30)
        return signing(database, vault, project)

    with ThreadPoolExecutor(6) as threads:
        got = list(threads.map(need, range(6)))
    assert all(it == got[0] for it in got)
    assert len(got[0]) == 1


def test_concurrent_rotations_leave_one_secret_in_use(database: Database, vault: Vault, project: int) -> None:
    signing(database, vault, project)
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda _: rotated(database, vault, project), range(3)))
    now = signing(database, vault, project)
    assert len(now) == 4
    assert [it.expires is None for it in now] == [True, False, False, False]
    assert now[0].text in made


def test_a_rotated_secret_signs_until_it_expires(database: Database, vault: Vault, project: int) -> None:
    (former,) = signing(database, vault, project)
    new = rotated(database, vault, project, overlap_s=3600)
    now = signing(database, vault, project)
    assert [it.text for it in now] == [new, former.text]
    assert now[1].expires is not None
    assert 3500 < (now[1].expires - datetime.now(UTC)).total_seconds() <= 3600
    signed = signed_headers(now, "evt_1", int(datetime.now(UTC).timestamp()), BODY)
    for receivers in (new, former.text):
        assert verify_webhook(BODY, signed, receivers).id == "evt_1"
    with database.write() as connection:
        rotated_rows = webhook_secrets.c.expires_ms.is_not(None)
        connection.execute(update(webhook_secrets).where(rotated_rows).values(expires_ms=now_ms()))
    assert [it.text for it in signing(database, vault, project)] == [new]


def test_without_an_overlap_the_old_secret_stops_at_once(database: Database, vault: Vault, project: int) -> None:
    signing(database, vault, project)
    new = rotated(database, vault, project, overlap_s=0)
    assert [it.text for it in signing(database, vault, project)] == [new]


def test_a_first_secret_can_come_from_a_rotation(database: Database, vault: Vault, project: int) -> None:
    new = rotated(database, vault, project)
    assert [it.text for it in signing(database, vault, project)] == [new]


def test_the_number_of_signing_secrets_is_limited_to_the_newest(database: Database, vault: Vault, project: int) -> None:
    made = [rotated(database, vault, project) for _ in range(SIGNING_MAX + 3)]
    assert [it.text for it in signing(database, vault, project)] == made[: -SIGNING_MAX - 1 : -1]


@pytest.mark.parametrize("overlap_s", [-1, OVERLAP_MAX_S + 1, float("nan"), float("inf")])
def test_an_invalid_overlap_is_named(database: Database, vault: Vault, project: int, overlap_s: float) -> None:
    with pytest.raises(InvalidInput, match="overlap_s"):
        rotated(database, vault, project, overlap_s)


def test_ed25519_signs_beside_hmac_and_is_rotated(database: Database, vault: Vault, project: int) -> None:
    with database.write() as connection:
        former = rotate_secret(connection, vault, SecretOwner(project), ed25519=True).public_key
        public = rotate_secret(connection, vault, SecretOwner(project), ed25519=True).public_key
    assert former is not None
    assert public is not None
    now = signing(database, vault, project)
    assert sorted(it.algorithm for it in now) == ["v1", "v1a", "v1a"]
    signed = signed_headers(now, "evt_1", int(datetime.now(UTC).timestamp()), BODY)
    for key in (public, former, next(it.text for it in now if it.algorithm is Algorithm.HMAC_SHA256)):
        assert verify_webhook(BODY, signed, key).id == "evt_1"


@pytest.mark.parametrize("ed25519", [False, True])
def test_after_the_key_was_lost_every_secret_is_made_anew(
    database: Database, vault: Vault, project: int, tmp_path: Path, ed25519: bool
) -> None:
    owner, other = SecretOwner(project), Vault.of(OTHER_KEY, tmp_path)
    with database.write() as connection:
        rotate_secret(connection, vault, owner)
        rotate_secret(connection, vault, owner, ed25519=True)
    lost = {it.text for it in signing(database, vault, project)}
    with pytest.raises(TweezerError), database.write() as connection:
        rotate_secret(connection, other, owner, overlap_s=60, ed25519=ed25519)
    with pytest.raises(TweezerError), database.read() as connection:
        read_secrets(connection, other, owner)
    with database.write() as connection:
        rotate_secret(connection, other, owner, overlap_s=0, ed25519=ed25519)
    now = {it.text for it in signing(database, other, project)}
    assert now
    assert not now & lost


def test_no_secret_is_made_for_a_deleted_owner(database: Database, vault: Vault, project: int) -> None:
    for number, endpoint in ((project, uuid4()), (project + 1, None)):
        with pytest.raises(NotFound), database.write() as connection:
            ensure_secrets(connection, vault, SecretOwner(number, endpoint))


def test_expired_secrets_are_forgotten_and_nothing_else(database: Database, vault: Vault, project: int) -> None:
    signing(database, vault, project)
    rotated(database, vault, project, overlap_s=60)
    rotated(database, vault, project, overlap_s=0)
    before = signing(database, vault, project)
    with database.write() as connection:
        assert delete_expired_secrets(connection) == 1
        assert delete_expired_secrets(connection) == 0
    assert signing(database, vault, project) == before
    assert len(before) == 2


def test_reading_returns_existing_secrets_and_makes_none(database: Database, vault: Vault, project: int) -> None:
    def existing() -> list[SigningSecret]:
        with database.read() as connection:
            return read_secrets(connection, vault, SecretOwner(project))

    assert existing() == []
    made = signing(database, vault, project)
    assert existing() == made
    rotated(database, vault, project)
    assert existing() == signing(database, vault, project)
    assert len(existing()) == 2


def test_the_database_alone_reveals_no_secret(database: Database, vault: Vault, project: int) -> None:
    (secret,) = signing(database, vault, project)
    with database.read() as connection:
        (value,) = connection.execute(select(webhook_secrets.c.value)).scalars()
    raw = base64.b64decode(secret.text.removeprefix("whsec_"))
    assert raw not in value
    assert secret.text.encode() not in value


def test_another_key_raises_an_error_with_advice(
    database: Database, vault: Vault, project: int, tmp_path: Path
) -> None:
    signing(database, vault, project)
    with pytest.raises(TweezerError, match="TWEEZER_SECRETS_KEY") as caught:
        signing(database, Vault.of(OTHER_KEY, tmp_path), project)
    assert caught.value.code == "secrets_key"
    new = rotated(database, Vault.of(OTHER_KEY, tmp_path), project, overlap_s=0)
    assert signing(database, Vault.of(OTHER_KEY, tmp_path), project)[0].text == new


def test_the_operators_key_can_be_changed(database: Database, vault: Vault, project: int, tmp_path: Path) -> None:
    before = signing(database, vault, project)
    both = Vault.of(f"{OTHER_KEY}, {KEY}", tmp_path)
    assert signing(database, both, project) == before
    with database.write() as connection:
        assert reencrypt_secrets(connection, both) == 1
        assert reencrypt_secrets(connection, both) == 0
    assert signing(database, Vault.of(OTHER_KEY, tmp_path), project) == before


def test_a_value_that_was_moved_to_another_row_is_refused(database: Database, vault: Vault, project: int) -> None:
    with database.write() as connection:
        other = project_no(connection, "other")
    signing(database, vault, project)
    with database.write() as connection:
        connection.execute(update(webhook_secrets).values(project=other))
    with pytest.raises(TweezerError, match="moved to another row"):
        signing(database, vault, other)


@given(st.text(max_size=200), st.text(max_size=20), st.binary(min_size=1, max_size=4), st.integers(0, 300))
def test_only_an_unchanged_value_can_be_decrypted(text: str, owner: str, flips: bytes, position: int) -> None:
    vault = Vault([b"k" * 32])
    value = bytearray(vault.encrypt(text, owner))
    assert vault.decrypt(bytes(value), owner) == text
    value[position % len(value)] ^= flips[0] or 1
    with pytest.raises(TweezerError):
        vault.decrypt(bytes(value), owner)
    with pytest.raises(TweezerError):
        vault.decrypt(bytes(value[: position % len(value)]), owner)


@pytest.mark.parametrize("key", ["short", "!" * 44, base64.b64encode(b"x" * 31).decode(), f"{KEY},x"])
def test_the_error_of_an_invalid_key_names_its_variable(key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="TWEEZER_SECRETS_KEY") as caught:
        Vault.of(key, tmp_path)
    assert key not in caught.value.message
    assert not any(tmp_path.iterdir())


def test_a_key_in_url_safe_base64_is_accepted(tmp_path: Path) -> None:
    key = base64.urlsafe_b64encode(b"\xff" * 32).decode()
    assert Vault.of(key, tmp_path).decrypt(Vault([b"\xff" * 32]).encrypt("x", ""), "") == "x"


def test_without_a_key_a_file_is_made_that_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "deeper"
    value = Vault.of("", folder).encrypt("x", "owner")
    assert os.listdir(folder) == ["secrets.key"]  # noqa: PTH208  and nothing beside it
    assert stat.S_IMODE((folder / "secrets.key").stat().st_mode) == 0o600
    assert Vault.of(" ", folder).decrypt(value, "owner") == "x"
    assert Vault.of((folder / "secrets.key").read_text(), tmp_path).decrypt(value, "owner") == "x"


def test_processes_that_start_at_once_agree_on_the_key(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def start(_: int) -> bytes:
        together.wait(timeout=30)
        return Vault.of("", tmp_path).encrypt("x", "owner")

    with ThreadPoolExecutor(8) as threads:
        values = list(threads.map(start, range(8)))
    assert {Vault.of("", tmp_path).decrypt(value, "owner") for value in values} == {"x"}
    assert [it.name for it in tmp_path.iterdir()] == ["secrets.key"]


@pytest.mark.parametrize("content", ["", "no key", "é"])
def test_a_file_without_a_valid_key_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "secrets.key").write_text(content)
    with pytest.raises(InvalidInput, match=r"secrets\.key"):
        Vault.of("", tmp_path)


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="TWEEZER_SECRETS_KEY"):
        Vault.of("", tmp_path / "file" / "data")
