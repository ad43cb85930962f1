"""Agreement at the start; and who is named when a worker dies, hangs, or ends with an error."""

import socket
import threading
from pathlib import Path

import pytest

from revkeras.distribute import membership
from revkeras.distribute import rendezvous as meeting
from revkeras.distribute.cluster import Cluster
from revkeras.distribute.launch import free_ports
from tests.distribute.workers import needs_horovod, run_separately, run_under_horovod

_FAILING = Path(__file__).with_name("failing.py")


@pytest.mark.parametrize(
    ("how", "workers", "message"),
    [
        ("kill:1", 3, "died: its connection closed without a word. Worker"),
        ("kill:0", 2, "died: its connection closed without a word. Worker 1 stops for it."),
        ("stop:1", 2, "hangs: nothing was heard of it for"),
        ("raise:1", 2, "ended with ValueError: no such file. Worker 0 stops for it."),
        ("exit:1", 3, "ended, by `sys.exit()` or at the end of its script, while others wait"),
        ("loop:1", 2, "hangs: others have waited for it in a collective for"),
    ],
)
def test_a_failed_worker_is_named_and_the_others_stop(how, workers, message):
    results, addresses = run_separately(_FAILING, workers, [how])
    failed = int(how[-1])
    for rank, (status, output) in enumerate(results):
        assert "went on" not in output
        assert status != 0
        assert "Rank 0 has stage=3, where rank" in output or "Rank 1 has stage=2, where" in output
        if rank != failed:
            assert f"Worker {failed} ({addresses[failed]}) {message}" in output


@needs_horovod
@pytest.mark.parametrize("how", ["kill:1", "stop:0"])
def test_a_failed_worker_is_named_under_horovod(how):
    status, output = run_under_horovod(_FAILING, 2, [how])
    assert status != 0
    assert "went on" not in output
    what = {"kill": "died: its connection closed", "stop": "hangs: nothing was heard of it"}
    assert f"Worker {how[-1]} {what[how[:4]]}" in output


def test_differences_name_the_rank_and_what():
    facts = [{"stage": 3, "batch": [8, 3]}, {"stage": 3, "batch": [4, 3]}, {"batch": [8, 3]}]
    assert membership._differences(facts) == [
        "Rank 1 has batch=[4, 3], where rank 0, 2 has batch=[8, 3].",
        "Rank 2 has stage=None, where rank 0, 1 has stage=3.",
    ]
    assert membership._differences(facts[:1] * 3) == []


def test_one_process_agrees_with_itself():
    assert membership.exchange({"a": 1}) == [{"a": 1}]
    membership.agree({"a": 1})


class TestMeeting:
    @pytest.fixture(autouse=True)
    def _address(self, monkeypatch):
        monkeypatch.setenv(meeting.START_TIMEOUT, "1.5")
        self.address = f"127.0.0.1:{free_ports(1)[0]}"

    def _cluster(self, rank, size=2, tasks=("a:1", "b:1", "c:1")):
        tasks = tuple(("worker", index, task) for index, task in enumerate(tasks[:size]))
        return Cluster("TF_CONFIG", rank, size, tasks, self.address)

    def _meet(self, host, *others):
        """What rank 0 and each of the others end with: connections, or their errors' texts."""
        results = [None] * (1 + len(others))

        def attempt(place, function, *arguments):
            try:
                results[place] = function(*arguments)
            except RuntimeError as error:
                results[place] = str(error)

        listener = meeting.listen(self.address)
        calls = [(meeting.gather, host, listener, self.address)]
        calls += [(meeting.connect, cluster, self.address) for cluster in others]
        threads = [threading.Thread(target=attempt, args=(n, *c)) for n, c in enumerate(calls)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            for connection in result.values() if isinstance(result, dict) else ():
                connection.close()
        return results

    def test_all_meet(self):
        host, one, two = self._meet(*(self._cluster(rank, 3) for rank in range(3)))
        assert (set(host), set(one), set(two)) == ({1, 2}, {0}, {0})

    def test_other_sizes_addresses_and_ranks(self):
        message = "told by TF_CONFIG that there are 3 workers, worker 0 (a:1) that there are 2"
        for error in self._meet(self._cluster(0), self._cluster(1, 3)):
            assert message in error
        elsewhere = self._cluster(1, tasks=("a:1", "x:1"))
        for error in self._meet(self._cluster(0), elsewhere):
            assert "know different addresses of the workers" in error
        host, *_ = self._meet(self._cluster(0, 3), self._cluster(1, 3), self._cluster(1, 3))
        assert host == "Two workers are told by TF_CONFIG to be rank 1 (b:1)."

    def test_who_does_not_come(self):
        (host,) = self._meet(self._cluster(0, 3))
        assert f"Workers 1 (b:1), 2 (c:1) did not connect to worker 0 at {self.address}" in host

    def test_unreachable(self):
        with pytest.raises(RuntimeError, match=f"Worker 1 cannot reach worker 0 at {self.address}"):
            meeting.connect(self._cluster(1), self.address)

    def test_a_port_in_use(self):
        with (
            socket.create_server(("127.0.0.1", int(self.address.rpartition(":")[2]))),
            pytest.raises(RuntimeError, match=f"cannot listen on {self.address}.* already in use"),
        ):
            meeting.listen(self.address)

    def test_strangers_are_no_workers(self):
        listener = meeting.listen(self.address)
        host, port = listener.getsockname()
        with socket.create_connection((host, port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            other = threading.Thread(target=meeting.connect, args=(self._cluster(1), self.address))
            other.start()
            assert set(meeting.gather(self._cluster(0), listener, self.address)) == {1}
            other.join()
