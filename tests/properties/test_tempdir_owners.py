"""The verdict over owners: no arrangement of evidence condemns a live owner."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlops_ext.files.markers import Marker
from mlops_ext.processes.identity import Evidence, Liveness, ProcessIdentity, verdict

BOOTS = st.sampled_from(["", "boot-1", "boot-2"])
owners = st.builds(
    ProcessIdentity,
    host=st.sampled_from(["a", "b"]),
    boot=BOOTS,
    namespaces=st.sampled_from(["", "pid:1", "pid:2"]),
    pid=st.integers(1, 3),
    started=st.sampled_from(["", "100", "200"]),
)


@given(owners, st.text(), st.integers(0, 2**64))
def test_a_marker_survives_writing_and_reading(owner, directory, inode):
    marker = Marker(owner=owner, directory=directory, inode=inode)
    assert Marker.read(marker.dump()) == marker


@given(owners, st.text(), st.integers(0, 2**64))
def test_a_marker_written_over_the_first_one_of_its_owner_is_whole(owner, directory, inode):
    first = Marker(owner=owner, directory=directory).dump()
    second = Marker(owner=owner, directory=directory, inode=inode).dump()
    assert len(second) >= len(first)


WHOLE = b'{"owner": {"host": "a", "boot": "", "namespaces": "", "pid": 1, "started": ""}, "directory": "d"}'


@given(st.binary(max_size=60))
@example(b"[]")
@example(b"null")
@example(WHOLE.replace(b"1", b"0"))
@example(WHOLE.replace(b"1", b"null"))
@example(WHOLE.replace(b"boot", b"other"))
@example(WHOLE.replace(b'"directory": "d"', b'"inode": 1'))
@example(WHOLE[:-1])
@example(b"[" * 4096)
def test_nonsense_is_no_marker(text):
    assert Marker.read(text) is None
    assert Marker.read(WHOLE) is not None


@st.composite
def live_worlds(draw):
    """A live owner, an observer, and what the observer's system truthfully says."""
    owner, here = draw(owners), draw(owners)
    locked = draw(st.booleans())  # flock worked for the owner
    same_kernel = owner.boot == here.boot and (owner.boot != "" or owner.host == here.host)
    local = draw(st.booleans())
    if local and not same_kernel:
        # A local disk with a live owner on another kernel: a guest over virtiofs. It writes its
        # marker after its host booted.
        booted, written = 1000.0, draw(st.floats(1000, 2000))
    else:
        booted, written = draw(st.sampled_from([None, 1000.0])), draw(st.floats(0, 2000))
    if locked and same_kernel:
        held = True
    elif locked:
        held = draw(st.sampled_from([True, False, None]))  # as the shared system pleases
    else:
        held = False if not (same_kernel and local) else None  # local disks lock
    if same_kernel and owner.namespaces == here.namespaces:
        started = draw(st.sampled_from([owner.started, ""]))
    else:
        started = draw(st.sampled_from([None, "", "100", "200"]))
    return (
        owner,
        here,
        Evidence(
            held=held, started=started, local=local, written=written, now=3000.0, booted=booted
        ),
    )


@given(live_worlds())
def test_a_live_owner_is_never_condemned(world):
    assert verdict(*world) is not Liveness.DEAD


@given(owners, st.booleans(), st.sampled_from([None, "999"]))
def test_a_dead_owner_in_our_own_namespace_is_found(owner, locks_work, started):
    evidence = Evidence(
        held=False if locks_work else None,
        started=started,
        local=True,
        written=0.0,
        now=1.0,
        booted=0.0,
    )
    expected = Liveness.DEAD
    if started is not None and owner.started == "":
        expected = Liveness.ALIVE  # nobody can tell the reused id from the owner's
    if not owner.boot and expected is Liveness.DEAD:
        expected = Liveness.UNKNOWN  # another machine may have the same host name
    assert verdict(owner, owner, evidence) is expected


@given(owners, owners, st.floats(0, 5000))
def test_whoever_holds_the_lock_is_alive(owner, here, written):
    evidence = Evidence(
        held=True, started=None, local=True, written=written, now=1e6, booted=9000.0
    )
    assert verdict(owner, here, evidence) is Liveness.ALIVE


HERE = ProcessIdentity(host="a", boot="boot-2", namespaces="pid:1", pid=1, started="100")
EARLIER = ProcessIdentity(host="a", boot="boot-1", namespaces="pid:1", pid=1, started="100")


@pytest.mark.parametrize(
    ("before_boot_s", "local", "fate"),
    [
        (61.0, True, Liveness.DEAD),
        (59.0, True, Liveness.UNKNOWN),
        (-1.0, True, Liveness.UNKNOWN),
        (61.0, False, Liveness.UNKNOWN),
    ],
)
def test_an_owner_of_an_earlier_boot_is_dead_beyond_the_slack_of_clocks(before_boot_s, local, fate):
    evidence = Evidence(
        held=False, started=None, local=local, written=5000 - before_boot_s, now=9e5, booted=5000.0
    )
    assert verdict(EARLIER, HERE, evidence) is fate


@pytest.mark.parametrize(
    ("age_s", "held", "local", "fate"),
    [
        (86_401.0, False, True, Liveness.DEAD),
        (86_399.0, False, True, Liveness.UNKNOWN),
        (86_401.0, None, True, Liveness.UNKNOWN),
        (86_401.0, False, False, Liveness.UNKNOWN),
        (86_401.0, True, True, Liveness.ALIVE),
    ],
)
def test_a_half_written_marker_is_judged_after_a_day_and_by_its_lock(age_s, held, local, fate):
    evidence = Evidence(held=held, started=None, local=local, written=0.0, now=age_s, booted=None)
    assert verdict(None, HERE, evidence) is fate
