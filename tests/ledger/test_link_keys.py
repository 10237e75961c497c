"""The keys that sign links to results: encrypted at rest, made once, rotated, and migrated from older versions."""

from __future__ import annotations

import asyncio
import base64
import hmac
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update
from tests.support.api_rig import SECRETS_KEY

from tweezer.ledger.access.links import (
    KEYS_MAX,
    NAME,
    OVERLAP_MAX_S,
    OVERLAP_S,
    LinkKey,
    ResultLinks,
    count_sealed_link_keys,
    ensure_link_keys,
    read_link_keys,
    reencrypt_link_keys,
    rotate_link_keys,
)
from tweezer.ledger.access.vault import Vault
from tweezer.ledger.database import Database
from tweezer.ledger.installation import installation_id
from tweezer.ledger.schema import now_ms, secrets
from tweezer.model.errors import InvalidInput, TweezerError

OTHER_KEY = base64.b64encode(b"\1" * 32).decode()
PLAIN = b"p" * 32
JOB = "0199f3a2-7c1e-8b1d-9f04-a1b2c3000000"


@pytest.fixture
def vault() -> Vault:
    return Vault.of(SECRETS_KEY, Path())


def keep_plain(database: Database) -> None:
    """Write a key as older versions did."""
    with database.write() as connection:
        connection.execute(insert(secrets).values(name=NAME, value=PLAIN))


def kept(database: Database) -> bytes:
    with database.read() as connection:
        return bytes(connection.execute(select(secrets.c.value).where(secrets.c.name == NAME)).scalar_one())


def accepted(database: Database, vault: Vault) -> list[LinkKey]:
    with database.write() as connection:
        return ensure_link_keys(connection, vault)


def rotate(database: Database, vault: Vault, overlap_s: float = OVERLAP_S) -> None:
    with database.write() as connection:
        rotate_link_keys(connection, vault, overlap_s=overlap_s)


def test_concurrent_first_uses_make_one_encrypted_key(database: Database, vault: Vault) -> None:
    together = threading.Barrier(4)

    def make(_: int) -> list[LinkKey]:
        together.wait()
        return accepted(database, vault)

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, range(4)))
    assert all(keys == made[0] for keys in made)
    (key,) = made[0]
    assert (len(key.secret), key.until_ms) == (32, None)
    assert key.secret not in kept(database)
    assert base64.b64encode(key.secret) not in kept(database)
    assert repr(key.secret) not in repr(key)


def test_reading_makes_no_key(database: Database, vault: Vault) -> None:
    with database.read() as connection:
        assert read_link_keys(connection, vault) == []
    made = accepted(database, vault)
    with database.read() as connection:
        assert read_link_keys(connection, vault) == made


def test_an_unencrypted_key_of_an_older_version_no_longer_signs_and_is_accepted_for_a_while(
    database: Database, vault: Vault
) -> None:
    keep_plain(database)
    together = threading.Barrier(4)

    def make(_: int) -> list[LinkKey]:
        together.wait()
        return accepted(database, vault)

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, range(4)))
    assert all(keys == made[0] for keys in made)
    key, former = made[0]
    assert (key.secret != PLAIN, key.until_ms) == (True, None)
    assert former.secret == PLAIN
    assert former.until_ms is not None
    assert 0 <= now_ms() + OVERLAP_S * 1000 - former.until_ms < 60_000
    assert PLAIN not in kept(database)


def test_a_rotated_key_is_accepted_until_its_overlap_is_over(database: Database, vault: Vault) -> None:
    (first,) = accepted(database, vault)
    rotate(database, vault)
    second, former = accepted(database, vault)
    assert (former.secret, second.secret != first.secret) == (first.secret, True)
    rotate(database, vault, overlap_s=0.001)
    time.sleep(0.002)
    (third,) = accepted(database, vault)
    assert third.secret not in (first.secret, second.secret)


def test_a_rotation_without_overlap_leaves_only_the_new_key(database: Database, vault: Vault) -> None:
    keep_plain(database)
    for _ in range(2):
        before = accepted(database, vault)
        rotate(database, vault, overlap_s=0)
        (key,) = accepted(database, vault)
        assert key.secret not in {it.secret for it in before}


def test_a_rotation_can_be_the_first_use(database: Database, vault: Vault) -> None:
    rotate(database, vault, overlap_s=0)
    assert len(accepted(database, vault)) == 1


def test_the_number_of_accepted_keys_is_limited_to_the_newest(database: Database, vault: Vault) -> None:
    signed = [accepted(database, vault)[0].secret]
    for _ in range(KEYS_MAX + 2):
        rotate(database, vault)
        signed.insert(0, accepted(database, vault)[0].secret)
    assert [it.secret for it in accepted(database, vault)] == signed[:KEYS_MAX]


@pytest.mark.parametrize("overlap_s", [-1, OVERLAP_MAX_S + 1, float("nan")])
def test_an_overlap_out_of_range_is_refused(database: Database, vault: Vault, overlap_s: float) -> None:
    made = accepted(database, vault)
    with pytest.raises(InvalidInput, match="overlap_s: must be 0 to 2592000 seconds"):
        rotate(database, vault, overlap_s)
    assert accepted(database, vault) == made


def test_another_secrets_key_gives_an_error_with_advice(database: Database, vault: Vault) -> None:
    accepted(database, vault)
    other = Vault.of(OTHER_KEY, Path())
    for work in (lambda: accepted(database, other), lambda: rotate(database, other)):
        with pytest.raises(
            TweezerError, match=r"encrypted with a key that is not in.*tweezer keys rotate-links"
        ) as refused:
            work()
        assert refused.value.code == "secrets_key"
    rotate(database, other, overlap_s=0)
    assert len(accepted(database, other)) == 1


def test_the_secrets_key_is_changed_in_steps(database: Database, vault: Vault) -> None:
    other, both = Vault.of(OTHER_KEY, Path()), Vault.of(f"{OTHER_KEY},{SECRETS_KEY}", Path())
    with database.write() as connection:
        assert reencrypt_link_keys(connection, both) == 0
    made = accepted(database, vault)
    with database.write() as connection:
        assert [count_sealed_link_keys(connection, it) for it in (vault, other, both, None)] == [
            (1, 0),
            (1, 1),
            (1, 0),
            (1, 1),
        ]
        assert reencrypt_link_keys(connection, both) == 1
        assert reencrypt_link_keys(connection, both) == 0
    assert accepted(database, other) == made


def test_the_id_of_the_installation_stays_when_keys_are_made_and_rotated(database: Database, vault: Vault) -> None:
    ours = installation_id(database)
    accepted(database, vault)
    rotate(database, vault, overlap_s=0)
    with database.write() as connection:
        reencrypt_link_keys(connection, Vault.of(f"{OTHER_KEY},{SECRETS_KEY}", Path()))
    assert installation_id(database) == ours


async def test_a_process_uses_the_new_key_once_its_cached_keys_expire(database: Database, vault: Vault) -> None:
    here = ResultLinks(database, lambda: vault, link_s=100)
    there = ResultLinks(database, lambda: vault, link_s=100)
    old = await here.signer()
    assert await here.signer() is old
    rotate(database, vault, overlap_s=0)
    here._signers.forget(None)  # as after a second
    new, other = await asyncio.gather(here.signer(), there.signer())
    for made, valid in ((old, False), (new, True)):
        query = made.link("http://h", JOB).url.partition("?")[2]
        issued, expires, signature = (part.partition("=")[2] for part in query.split("&"))
        assert new.is_valid(JOB, issued, expires, signature) == valid
        assert other.is_valid(JOB, issued, expires, signature) == valid


async def test_links_of_an_older_version_work_until_the_overlap_is_over(database: Database, vault: Vault) -> None:
    keep_plain(database)
    expires = str(int(time.time()) + 100)
    link = (JOB, "", expires, hmac.digest(PLAIN, f"results {JOB} {expires}".encode(), "sha256").hex())
    assert (await ResultLinks(database, lambda: vault, link_s=100).signer()).is_valid(*link)
    rotate(database, vault, overlap_s=0)
    assert not (await ResultLinks(database, lambda: vault, link_s=100).signer()).is_valid(*link)


async def test_keys_that_cannot_be_read_are_an_error_and_are_read_once_they_can(
    database: Database, vault: Vault
) -> None:
    accepted(database, vault)
    vaults = [Vault.of(OTHER_KEY, Path()), vault]
    there = ResultLinks(database, lambda: vaults.pop(0), link_s=100)
    with pytest.raises(TweezerError, match="encrypted with a key that is not in"):
        await there.signer()
    assert await there.signer() is await there.signer()


def test_a_changed_row_is_noticed(database: Database, vault: Vault) -> None:
    accepted(database, vault)
    changed = kept(database)[:-1] + b"\0"
    with database.write() as connection:
        connection.execute(update(secrets).where(secrets.c.name == NAME).values(value=changed))
        with pytest.raises(TweezerError, match="was modified"):
            read_link_keys(connection, vault)
