"""What is read from the environment of each launcher, and what is wrong in it."""

import json

import pytest

from revkeras.distribute.cluster import describe

_TWO = {"worker": ["127.0.0.1:4000", "127.0.0.1:4001"]}


def _tf_config(cluster, job="worker", index=0, **environ):
    config = {"cluster": cluster, "task": {"type": job, "index": index}}
    return {"TF_CONFIG": json.dumps(config), **environ}


def test_alone_without_a_launcher():
    assert (describe({}).source, describe({}).size) == ("alone", 1)
    assert describe({"TF_CONFIG": ""}).size == 1
    assert describe({"TF_CONFIG": "{}"}).size == 1


def test_tf_config():
    cluster = describe(_tf_config(_TWO, index=1))
    assert (cluster.source, cluster.rank, cluster.size) == ("TF_CONFIG", 1, 2)
    assert cluster.tasks[1] == ("worker", 1, "127.0.0.1:4001")
    assert cluster.control_address == "127.0.0.1:14000"
    cluster = describe(_tf_config(_TWO, REVKERAS_CONTROL_PORT="77"))
    assert cluster.control_address == "127.0.0.1:77"


@pytest.mark.parametrize("first", ["chief", "master"])
def test_the_chief_is_rank_0_and_parameter_servers_have_no_rank(first):
    jobs = {"worker": ["b:2222", "c:2222"], first: ["a:2222"], "ps": ["d:2222"]}
    cluster = describe(_tf_config(jobs, index="1"))
    assert (cluster.rank, cluster.size) == (2, 3)
    assert cluster.control_address == "a:12222"
    with pytest.raises(ValueError, match="`task` is ps:0, which is not among the tasks that train"):
        describe(_tf_config(jobs, job="ps"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"cluster": {"worker": ["a:1", "b:1"]',
            "does not parse as JSON: Expecting ',' .* character",
        ),
        ("[]", r"expected an object of the form .* received '\[\]'"),
        ('{"cluster": ["a:1"]}', r"received cluster=\['a:1'\]"),
        ('{"cluster": {"worker": "a:1"}}', "`cluster.worker` to be a list"),
        ('{"cluster": {"worker": ["a"]}}', "address of worker:0 as 'host:port'.* received 'a'"),
        ('{"cluster": {"worker": ["a:0"]}}', "a port from 1 to 65535, received 'a:0'"),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}}',
            "worker:0 and worker:1 have the same address a:1",
        ),
        ('{"cluster": {"worker": ["a:1"]}}', "expected `task` .* received task=None"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 3}}',
            "its `task` is worker:3, which is not among .* worker:0",
        ),
    ],
)
def test_what_is_wrong_in_a_tf_config(text, message):
    with pytest.raises(ValueError, match=message):
        describe({"TF_CONFIG": text})


def test_horovod():
    cluster = describe({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", **_tf_config(_TWO)})
    assert (cluster.source, cluster.rank, cluster.size) == ("Horovod", 1, 2)
    with pytest.raises(ValueError, match="received HOROVOD_RANK=2, HOROVOD_SIZE=2"):
        describe({"HOROVOD_RANK": "2", "HOROVOD_SIZE": "2"})
    with pytest.raises(
        ValueError, match="HOROVOD_SIZE to be an integer, received HOROVOD_SIZE=None"
    ):
        describe({"HOROVOD_RANK": "2"})


def test_slurm(monkeypatch):
    step = {
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
    }
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    cluster = describe()
    assert (cluster.source, cluster.rank, cluster.size) == ("SLURM", 2, 3)
    assert [address for _, _, address in cluster.tasks] == [
        "node1:8888",
        "node1:8889",
        "node2:8888",
    ]
    assert cluster.control_address == "node1:18888"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises((ValueError, RuntimeError), match="4 tasks but only 3|give 3 tasks"):
        describe()
