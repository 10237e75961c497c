"""Projects, users and keys in the ledger, on both databases."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import argon2
import pytest
from sqlalchemy import select, update

from tweezer.ledger.access.credentials import Role, check_key, key_digest, key_id, new_key, read_key_id
from tweezer.ledger.access.keys import (
    USED_S,
    KeyKind,
    KeyLookup,
    NewKey,
    adopt_key,
    create_key,
    create_session,
    end_sessions,
    find_key,
    list_keys,
    list_sessions,
    look_up_key,
    note_used,
    revoke_key,
    rotate_key,
)
from tweezer.ledger.access.projects import (
    create_project,
    find_project,
    list_projects,
    project_no,
    set_retention,
)
from tweezer.ledger.access.users import (
    Login,
    add_to_project,
    check_password,
    create_user,
    find_login,
    find_user,
    hash_password,
    is_password,
    is_user_name,
    list_users,
    needs_rehash,
    open_session,
    remove_from_project,
    set_disabled,
    set_password,
)
from tweezer.ledger.database import Database
from tweezer.ledger.schema import keys, now_ms, users
from tweezer.model.errors import Conflict, InvalidInput, NotFound

PASSWORD = "correct horse battery"
SOME_HASH = "$argon2id$some"


def make_key(database: Database, **options: object) -> NewKey:
    """Make a key of the project ``ours``."""
    with database.write() as connection:
        project_no(connection, "ours")
        given = {"name": "k", "project_id": "ours", **options}
        return create_key(connection, **given)  # type: ignore[arg-type]


def look(database: Database, identity: str) -> KeyLookup:
    with database.read() as connection:
        found = look_up_key(connection, identity)
    assert found is not None
    return found


def shift(database: Database, identity: str, column: str, by_ms: int) -> None:
    """Move a time of a key."""
    with database.write() as connection:
        connection.execute(update(keys).where(keys.c.id == identity).values({column: now_ms() + by_ms}))


# -- projects -------------------------------------------------------------------------------------------------


def test_a_project_has_a_uuid_unless_it_is_given_an_id(database: Database) -> None:
    with database.write() as connection:
        named, given = create_project(connection, "Lab"), create_project(connection, "Lab", "lab-1")
        assert re.fullmatch(r"[0-9a-f-]{36}", named.id)
        assert given.id == "lab-1"
        assert list_projects(connection) == sorted([named, given], key=lambda project: project.id)


@pytest.mark.parametrize("identity", ["", "a b", "a" * 65, "é", "a\n", "../a", "a\x00"])
def test_an_invalid_project_id_is_refused(database: Database, identity: str) -> None:
    with database.write() as connection, pytest.raises(InvalidInput) as caught:
        create_project(connection, "Lab", identity)
    assert caught.value.field == "id"


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_a_project_needs_a_name(database: Database, name: str) -> None:
    with database.write() as connection, pytest.raises(InvalidInput) as caught:
        create_project(connection, name)
    assert caught.value.field == "name"


def test_two_projects_cannot_have_one_id(database: Database) -> None:
    with database.write() as connection:
        create_project(connection, "Lab", "lab")
        with pytest.raises(Conflict):
            create_project(connection, "Another", "lab")
        assert find_project(connection, "lab").name == "Lab"


def test_a_project_named_by_a_producer_is_made_once(database: Database) -> None:
    together = threading.Barrier(4)

    def number(_: int) -> int:
        together.wait()
        with database.write() as connection:
            return project_no(connection, "theirs")

    with ThreadPoolExecutor(4) as pool:
        numbers = set(pool.map(number, range(4)))
    with database.read() as connection:
        (project,) = list_projects(connection)
    assert (numbers, project.name) == ({project.no}, "theirs")


def test_the_retention_of_a_project_can_be_set_and_removed(database: Database) -> None:
    with database.write() as connection:
        create_project(connection, "Lab", "lab")
        for seconds in (3600, 0, None):
            assert set_retention(connection, "lab", seconds).retention_s == seconds
        with pytest.raises(InvalidInput):
            set_retention(connection, "lab", -1)
        with pytest.raises(NotFound):
            set_retention(connection, "nowhere", 1)


# -- the text of a key ----------------------------------------------------------------------------------------


def test_keys_have_an_id_that_may_be_shown_and_a_secret_of_256_bits() -> None:
    made = [new_key() for _ in range(100)]
    assert all(re.fullmatch(r"twz_[a-z2-7]{12}_[a-z2-7]{52}", key) for key in made)
    assert len({key[17:] for key in made}) == 100
    assert [key_id(key) for key in made] == [key[4:16] for key in made]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must begin with twz_"),
        ("sk_abc", "must begin with twz_"),
        ("twz_", "form"),
        ("twz_abc", "form"),
        (f"twz_abc_{'a' * 52}", "id must have 12 characters (got 3)"),
        (f"twz_{'a' * 12}_short", "secret must have 52 characters (got 5)"),
        (f"twz_{'a' * 12}_{'a' * 53}", "secret must have 52 characters (got 53)"),
        (f"twz_{'A' * 12}_{'a' * 52}", "must only contain a-z and 2-7"),
        (f"twz_{'a' * 12}_{'1' * 52}", "must only contain a-z and 2-7"),
        (f"twz_{'a' * 12}_{'a' * 52}\n", "secret must have 52 characters (got 53)"),
        (f"twz_{'a' * 12}_{'a' * 52}_", "form"),
    ],
)
def test_the_error_of_a_malformed_key_does_not_quote_it(text: str, problem: str) -> None:
    assert key_id(text) is None
    with pytest.raises(InvalidInput) as caught:
        check_key(text)
    assert problem in caught.value.message
    assert len(text) < 8 or text not in caught.value.message


def test_a_key_is_found_by_its_id_with_and_without_the_prefix_or_by_its_whole_text() -> None:
    key = new_key()
    assert {read_key_id(text) for text in (key, key[:16], key[4:16])} == {key[4:16]}
    with pytest.raises(InvalidInput) as caught:
        read_key_id(key[:-1])
    assert key[:-1] not in caught.value.message


# -- keys -----------------------------------------------------------------------------------------------------


def test_the_ledger_keeps_only_the_digest_of_a_key(database: Database) -> None:
    made = make_key(database)
    with database.read() as connection:
        row = connection.execute(select(keys)).one()
    assert row.digest == key_digest(made.text)
    assert made.text[17:] not in repr((*row, made, made.about))


def test_a_key_gives_access_to_its_project(database: Database) -> None:
    made = make_key(database, name="laptop")
    found = look(database, made.about.id)
    assert found.principal is not None
    assert (found.principal.role, found.principal.projects) == (Role.USER, frozenset({"ours"}))
    assert (found.principal.sees("ours"), found.principal.sees("theirs")) == (True, False)


def test_an_unknown_key_is_not_found(database: Database) -> None:
    with database.write() as connection:
        assert look_up_key(connection, "a" * 12) is None
        for call in (find_key, revoke_key, rotate_key):
            with pytest.raises(NotFound):
                call(connection, "a" * 12)


@pytest.mark.parametrize(("role", "sees"), [(Role.OPERATOR, True), (Role.METRICS, False)])
def test_keys_of_the_service_belong_to_no_project(database: Database, role: Role, sees: bool) -> None:
    principal = look(database, make_key(database, role=role, project_id=None).about.id).principal
    assert principal is not None
    assert principal.sees("anything") == sees


def test_a_read_key_shares_the_limits_of_its_project(database: Database) -> None:
    found = [look(database, make_key(database, role=role).about.id).principal for role in (Role.USER, Role.READ)]
    assert {principal.account for principal in found if principal is not None} == {"project ours"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"project_id": None}, "project"),
        ({"project_id": None, "role": Role.READ}, "project"),
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"expires_s": 0}, "expires"),
        ({"expires_s": -5.0}, "expires"),
        ({"text": "twz_x"}, "key"),
    ],
)
def test_a_contradictory_key_is_refused(database: Database, options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_key(database, **options)
    assert caught.value.field == field


def test_a_key_of_an_unknown_project_is_refused(database: Database) -> None:
    with pytest.raises(NotFound):
        make_key(database, project_id="nowhere")


def test_a_key_expires(database: Database) -> None:
    made = make_key(database, expires_s=100)
    found = look(database, made.about.id)
    assert found.principal is not None
    assert 0 < found.left_s <= 100
    shift(database, made.about.id, "expires_ms", -1)
    assert look(database, made.about.id).principal is None


def test_a_revoked_key_is_refused_and_stays_in_the_list(database: Database) -> None:
    made = make_key(database)
    with database.write() as connection:
        first = revoke_key(connection, made.about.id)
    with database.write() as connection:
        assert revoke_key(connection, made.about.id) == first
        assert list_keys(connection) == [first]
    assert first.revoked is not None
    assert look(database, made.about.id).principal is None


def test_a_rotated_key_has_a_successor_with_its_rights_and_works_during_the_overlap(database: Database) -> None:
    old = make_key(database, name="cluster", role=Role.OPERATOR, expires_s=86_400 * 90)
    with database.write() as connection:
        new = rotate_key(connection, old.about.id, overlap_s=3600)
        ending = find_key(connection, old.about.id)
    assert (new.about.name, new.about.role, new.about.project) == ("cluster", Role.OPERATOR, "ours")
    assert new.about.id != old.about.id
    assert new.about.expires is not None
    assert old.about.expires is not None
    assert abs((new.about.expires - old.about.expires).total_seconds()) < 60  # valid for as long, from now
    assert ending.expires is not None
    assert abs((ending.expires - new.about.created).total_seconds() - 3600) < 1
    for key in (old, new):
        assert look(database, key.about.id).principal is not None
    shift(database, old.about.id, "expires_ms", -1)
    assert look(database, old.about.id).principal is None


def test_rotation_never_prolongs_the_old_key(database: Database) -> None:
    old = make_key(database, expires_s=60)
    with database.write() as connection:
        rotate_key(connection, old.about.id, overlap_s=3600)
        assert find_key(connection, old.about.id).expires == old.about.expires


def test_an_expired_or_revoked_key_cannot_be_rotated(database: Database) -> None:
    revoked, expired = make_key(database), make_key(database, expires_s=60)
    shift(database, expired.about.id, "expires_ms", -1)
    with database.write() as connection:
        revoke_key(connection, revoked.about.id)
        for key in (revoked, expired):
            with pytest.raises(Conflict):
                rotate_key(connection, key.about.id)


def test_the_list_of_keys_can_be_that_of_a_project(database: Database) -> None:
    ours = make_key(database).about
    with database.write() as connection:
        project_no(connection, "theirs")
        theirs = create_key(connection, name="k", project_id="theirs").about
        assert [key.id for key in list_keys(connection, project_id="theirs")] == [theirs.id]
        assert {key.id for key in list_keys(connection)} == {ours.id, theirs.id}
        with pytest.raises(NotFound):
            list_keys(connection, project_id="nowhere")


def test_use_is_written_once_a_minute(database: Database) -> None:
    made = make_key(database)

    def note() -> int:
        with database.write() as connection:
            note_used(connection, {made.about.id, "b" * 12})
            used: int = connection.execute(select(keys.c.used_ms)).scalar_one()
            return used

    first = note()
    assert abs(first - now_ms()) < 60_000
    assert note() == first
    shift(database, made.about.id, "used_ms", -1000 * USED_S - 1)
    assert note() >= first


def test_a_key_made_elsewhere_can_be_registered_repeatedly(database: Database) -> None:
    text = new_key()
    with database.write() as connection:
        project_no(connection, "ours")
        first = adopt_key(connection, text, name="mine", project_id="ours")
        assert adopt_key(connection, text, name="mine", project_id="ours") == first
    found = look(database, first.id)
    assert (found.digest, found.principal is not None) == (key_digest(text), True)


def test_a_key_made_elsewhere_does_not_replace_another(database: Database) -> None:
    made = make_key(database)
    forged = made.text[:17] + new_key()[17:]
    with database.write() as connection:
        project_no(connection, "theirs")
        for text, project in ((forged, "ours"), (made.text, "theirs")):
            with pytest.raises(Conflict):
                adopt_key(connection, text, name="x", project_id=project)
        revoke_key(connection, made.about.id)
        with pytest.raises(Conflict):
            adopt_key(connection, made.text, name="x", project_id="ours")
    assert look(database, made.about.id).digest == key_digest(made.text)


# -- users ----------------------------------------------------------------------------------------------------


def test_a_session_gives_access_to_all_projects_of_its_user(database: Database) -> None:
    with database.write() as connection:
        for project in ("one", "two", "three"):
            create_project(connection, project, project)
        user = create_user(connection, "ada", SOME_HASH)
        add_to_project(connection, "ada", "one")
        assert add_to_project(connection, user.id, "two").projects == ("one", "two")
        add_to_project(connection, "ada", "two")
        session = create_session(connection, user.id, session_s=60)
    principal = look(database, session.about.id).principal
    assert principal is not None
    assert (principal.projects, principal.user, principal.role) == (frozenset({"one", "two"}), user.id, Role.USER)
    with database.write() as connection:
        remove_from_project(connection, "ada", "one")
    principal = look(database, session.about.id).principal
    assert principal is not None
    assert principal.projects == {"two"}


def test_sessions_are_listed_only_on_request(database: Database) -> None:
    with database.write() as connection:
        user = create_user(connection, "ada", SOME_HASH)
        session = create_session(connection, user.id, session_s=60).about
        assert list_keys(connection) == []
        assert list_keys(connection, sessions=True) == [session]
    assert session.kind is KeyKind.SESSION


def test_old_sessions_are_removed_at_the_next_log_in(database: Database) -> None:
    with database.write() as connection:
        user = create_user(connection, "ada", SOME_HASH)
        old, recent = (create_session(connection, user.id, session_s=60).about.id for _ in range(2))
    key = make_key(database, expires_s=60).about.id
    for identity, days in ((old, 2), (recent, 0.5), (key, 2)):
        shift(database, identity, "expires_ms", round(-days * 86_400_000))
    with database.write() as connection:
        new = create_session(connection, user.id, session_s=60).about.id
        assert {it.id for it in list_keys(connection, sessions=True)} == {recent, new, key}


def test_a_log_in_beyond_the_limit_of_sessions_ends_the_oldest(database: Database) -> None:
    with database.write() as connection:
        user, other = (create_user(connection, name, SOME_HASH).id for name in ("ada", "bob"))
    sessions = []
    for back_ms in (3000, 2000, 1000, 0):
        with database.write() as connection:
            sessions.append(create_session(connection, user, session_s=60, sessions_max=3).about.id)
        shift(database, sessions[-1], "created_ms", -back_ms)
    with database.write() as connection:
        create_session(connection, other, session_s=60, sessions_max=3)
        revoked = {it.id for it in list_keys(connection, sessions=True) if it.revoked is not None}
    assert revoked == {sessions[0]}


def test_a_user_that_loses_access_loses_its_sessions_and_keys(database: Database) -> None:
    with database.write() as connection:
        user = create_user(connection, "ada", SOME_HASH)
        create_project(connection, "ours", "ours")
        add_to_project(connection, "ada", "ours")
    key = make_key(database, user_id=user.id).about.id

    def session() -> str:
        with database.write() as connection:
            return create_session(connection, user.id, session_s=60).about.id

    first, changed = session(), ""
    with database.write() as connection:
        set_password(connection, "ada", "another")
    assert look(database, first).principal is None
    assert look(database, key).principal is not None

    changed = session()
    with database.write() as connection:
        assert set_disabled(connection, "ada", disabled=True).disabled is not None
    assert look(database, changed).principal is None
    assert look(database, key).principal is None
    with database.write() as connection:
        assert set_disabled(connection, "ada", disabled=False).disabled is None
    assert look(database, changed).principal is None
    assert look(database, key).principal is not None

    with database.write() as connection:
        assert remove_from_project(connection, "ada", "ours").projects == ()
    assert look(database, key).principal is None


def test_a_user_is_found_by_name_and_by_id(database: Database) -> None:
    with database.write() as connection:
        ada, bob = create_user(connection, "ada", None), create_user(connection, "bob", None)
        assert find_user(connection, "ada") == find_user(connection, ada.id) == ada
        assert list_users(connection) == [ada, bob]
        for call in (find_user, lambda c, n: set_password(c, n, ""), lambda c, n: add_to_project(c, n, "ours")):
            with pytest.raises(NotFound):
                call(connection, "carol")
        with pytest.raises(NotFound):
            add_to_project(connection, "ada", "nowhere")
        with pytest.raises(Conflict):
            create_user(connection, "ada", None)


@pytest.mark.parametrize("name", ["", " ada", "ada ", "a\nb", "a\x00b", "x" * 201, "\u202e"])
def test_an_unprintable_user_name_is_refused_and_cannot_log_in(database: Database, name: str) -> None:
    assert not is_user_name(name)
    with database.write() as connection:
        with pytest.raises(InvalidInput):
            create_user(connection, name, None)
        assert find_login(connection, name) == Login()


@pytest.mark.parametrize("name", ["ada", "ada@example.org", "Ада Лавлейс", "a" * 200])
def test_other_names_are_accepted(database: Database, name: str) -> None:
    with database.write() as connection:
        assert create_user(connection, name, SOME_HASH).name == name
        assert find_login(connection, name).password == SOME_HASH


def test_a_log_in_fails_if_the_password_changes_meanwhile(database: Database) -> None:
    with database.write() as connection:
        create_user(connection, "ada", "first")
        login = find_login(connection, "ada")
        session = open_session(connection, login, password="first again", session_s=60)
        assert session is not None
        assert find_login(connection, "ada").password == "first again"
        stale = find_login(connection, "ada")
        set_password(connection, "ada", "second")
        assert open_session(connection, stale, password="x", session_s=60) is None
        fresh = find_login(connection, "ada")
        set_disabled(connection, "ada", disabled=True)
        assert open_session(connection, fresh, password="x", session_s=60) is None
        assert find_login(connection, "ada") == find_login(connection, "nobody") == Login()
        assert open_session(connection, Login(), password="x", session_s=60) is None


def test_a_user_without_a_password_cannot_log_in(database: Database) -> None:
    with database.write() as connection:
        create_user(connection, "ada", None)
        login = find_login(connection, "ada")
        assert not is_password("", login.password)
        assert open_session(connection, login, password="x", session_s=60) is None
        assert connection.execute(select(users.c.password)).scalar() is None


# -- passwords ------------------------------------------------------------------------------------------------


def test_a_password_is_hashed_with_argon2id_of_rfc_9106() -> None:
    kept = hash_password(PASSWORD)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert kept != hash_password(PASSWORD)
    assert is_password(PASSWORD, kept)
    assert not is_password(f"{PASSWORD} ", kept)
    assert not needs_rehash(kept)


def test_a_password_hash_with_old_parameters_still_matches_and_needs_a_rehash() -> None:
    older = argon2.PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    assert is_password(PASSWORD, older)
    assert needs_rehash(older)


def test_checking_the_password_of_an_unknown_user_fails_and_takes_as_long() -> None:
    assert not is_password(PASSWORD, None)
    assert not is_password("", None)


def test_a_password_is_normalised_to_one_unicode_form() -> None:
    assert is_password("re\u0301sume\u0301 of ada", hash_password("r\u00e9sum\u00e9 of ada"))


@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 1025])
def test_a_password_that_is_too_short_or_too_long_is_refused(password: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_password(password)
    assert caught.value.field == "password"
    assert not password or password not in caught.value.message


# -- sessions -------------------------------------------------------------------------------------------------


def test_sessions_are_listed_and_ended_one_by_one_or_all(database: Database) -> None:
    with database.write() as connection:
        ada, bob = (create_user(connection, name, None).id for name in ("ada", "bob"))
        ours = [create_session(connection, ada, session_s=100).about.id for _ in range(3)]
        theirs = create_session(connection, bob, session_s=100).about.id
        create_session(connection, ada, session_s=-1)
        assert {session.id for session in list_sessions(connection, ada)} == set(ours)
        for identity in (theirs, "x"):
            with pytest.raises(NotFound):
                end_sessions(connection, ada, identity)
        assert [session.id for session in end_sessions(connection, ada, ours[0])] == ours[:1]
        with pytest.raises(NotFound):
            end_sessions(connection, ada, ours[0])
        assert {session.id for session in end_sessions(connection, ada)} == set(ours[1:])
        assert end_sessions(connection, ada) == list_sessions(connection, ada) == []
        assert [session.id for session in list_sessions(connection, bob)] == [theirs]
