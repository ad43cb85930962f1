"""Which worker is named when a collective does not go on, and which never is."""

import pytest

from revkeras.distribute import membership
from revkeras.distribute.stalls import Progress, Stalls

_HERE = Progress(begun=5, keys=50, ended=5)  # computes for itself
_NEXT = Progress(begun=6, keys=60, ended=5)  # is in the next collective
_OTHER = Progress(begun=6, keys=61, ended=5)


def judged(workers, seconds):
    """The one that is named after so long, of each worker's progress and use of a core."""
    stalls = Stalls(idle=40, busy=1800)
    for rank in range(len(workers)):
        stalls.note(rank, Progress(), 0.0, -1.0)
    for now in range(seconds + 1):
        for rank, (progress, use) in enumerate(workers):
            stalls.note(rank, progress, use * now, float(now))
    return stalls.culprit(float(seconds))


@pytest.mark.parametrize(
    ("workers", "seconds", "named"),
    [
        ([(_NEXT, 0.0), (_HERE, 0.01)], 39, None),
        ([(_NEXT, 0.0), (_HERE, 0.01)], 41, (1, "while it does nothing")),
        ([(_HERE, 0.01), (_NEXT, 1.0), (_NEXT, 1.0)], 41, (0, "while it does nothing")),
        ([(_NEXT, 0.0), (_HERE, 0.5)], 1700, None),
        ([(_NEXT, 0.0), (_HERE._replace(ended=4), 0.0)], 1700, None),  # which still receives
        ([(_NEXT, 0.0), (_HERE, 0.5)], 1900, (1, "while it computes")),
        ([(_NEXT, 0.0), (_HERE, 0.5), (_HERE, 0.0)], 41, (2, "while it does nothing")),
        ([(_HERE, 0.0), (_HERE, 0.0)], 4000, None),  # nobody waits
        ([(_NEXT, 0.0), (_NEXT, 0.0)], 4000, None),  # all are in it, and it takes its time
        ([(_NEXT, 0.0), (_NEXT, 0.0), (_OTHER, 0.0)], 41, (2, "in another collective")),
        ([(_NEXT, 0.0), (_OTHER, 0.0), (_OTHER, 0.0)], 41, (0, "in another collective")),
    ],
)
def test_who_is_named(workers, seconds, named):
    found = judged(workers, seconds)
    if named is None:
        assert found is None
    else:
        assert (found[0], named[1] in found[1]) == (named[0], True)


def test_a_worker_that_comes_late_or_has_left_is_not_named():
    stalls = Stalls(idle=40, busy=1800)
    for now in range(60):
        stalls.note(0, _NEXT, 0.0, float(now))
        stalls.note(1, _HERE if now < 35 else _NEXT, 0.0, float(now))
        assert stalls.culprit(float(now)) is None
    assert stalls.waited(0, 59.0) == 59.0
    stalls.note(2, _HERE, 0.0, 60.0)
    assert stalls.culprit(120.0) is None  # of which nothing more is heard: heartbeats see to that
    stalls.note(2, _HERE, 0.0, 120.0)
    assert stalls.culprit(120.0)[0] == 2
    stalls.forget(2)
    assert stalls.culprit(120.0) is None
    stalls.note(2, _HERE, 0.0, 120.0)
    stalls.postpone(120.0)
    assert stalls.culprit(130.0) is None


def test_a_bad_timeout_is_named(monkeypatch):
    monkeypatch.setenv(membership.HANG_TIMEOUT, "1 min")
    with pytest.raises(ValueError, match="REVKERAS_HANG_TIMEOUT to be a number of seconds"):
        membership.hang_timeout()
