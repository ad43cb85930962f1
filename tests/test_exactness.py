"""The cases of the exactness benchmark at small depth, with wide margins."""

import json
from pathlib import Path

import exactness
import pytest
from exactness import Configuration, Figure, Measurement, measure

from revkeras.couplings import Momentum
from revkeras.couplings.fixed_point import blocks_per_buffer

pytestmark = pytest.mark.tensorflow("its benchmark measures TensorFlow's arithmetic")

ROOT = Path(__file__).parents[1]
CASES = {"additive, exact": "additive-exact", "momentum 0.9, exact": "momentum-exact"}


def values_of(configuration):
    return {figure.name: figure.value for figure in measure(configuration).figures}


def assert_rebuilt_bit_for_bit(values, blocks):
    assert values["input rebuilt bit for bit"] is True
    assert values["blocks whose input is rebuilt bit for bit"] == blocks
    assert values["elements of f that differ in the rebuild"] == 0


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", ["dense", "convolutional"])
@pytest.mark.parametrize("coupling", list(CASES))
def test_exact_couplings_rebuild_bit_for_bit(coupling, kind, policy):
    """Convolutional blocks have dropout and batch normalization in them."""
    values = values_of(Configuration(CASES[coupling], coupling, 5, kind, policy))
    assert_rebuilt_bit_for_bit(values, 5)
    assert values["gradient error"] < 1e-5


@pytest.mark.parametrize(
    ("coupling", "kind", "policy"),
    [
        ("additive, exact", "convolutional", "float32"),
        ("momentum 0.9, exact", "dense", "mixed_bfloat16"),
    ],
)
def test_exact_couplings_rebuild_bit_for_bit_in_a_graph(coupling, kind, policy):
    values = values_of(Configuration(CASES[coupling], coupling, 3, kind, policy, graph=True))
    assert_rebuilt_bit_for_bit(values, 3)
    # Mode "none" is another graph: where it fuses otherwise, a bfloat16 is off by 1/256.
    assert values["gradient error"] < (1e-5 if policy == "float32" else 0.05)


def test_a_block_gives_the_same_bits_again_where_operations_are_fused(monkeypatch):
    """With oneDNN, the forward pass of a graph has one operation for a product and its GELU."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    configuration = Configuration("block-bits", "additive", 2, graph=True, onednn=True)
    figures = exactness.measure_in_fresh_process(configuration).figures
    values = {figure.name: figure.value for figure in figures}
    assert values["additive, exact: elements of f that differ"] == 0
    assert values.get("additive: largest difference, of the largest f", 0.0) < 1e-5


def test_buffers(monkeypatch):
    """A stack as deep as one buffer holds, and one that is a block deeper."""
    monkeypatch.setitem(exactness.COUPLINGS, "momentum", lambda: Momentum(0.1, exact=True))
    full = blocks_per_buffer(1, 10)
    for blocks, buffers in (full, 1), (full + 1, 2):
        values = values_of(Configuration("momentum-exact", "momentum", blocks))
        assert_rebuilt_bit_for_bit(values, blocks)
        assert values["remainder buffers"] == buffers
        assert values["bits of buffers for each block and element"] == round(
            64 * buffers / blocks, 4
        )


@pytest.mark.parametrize(
    ("configuration", "limit"),
    [
        (Configuration("additive", "additive", 20), 1e-4),
        (Configuration("mixed_bfloat16", "additive", 10, policy="mixed_bfloat16"), 3e-2),
        (Configuration("affine", "affine, sigmoid", 10, scaled=True), 1e-4),
        (Configuration("affine", "affine, exp", 10, scaled=True), 1e-4),
        (Configuration("affine", "affine, exp", 10, streams="float64"), 1e-6),
    ],
    ids=lambda x: x.title if isinstance(x, Configuration) else "",
)
def test_gradient_error(configuration, limit):
    assert values_of(configuration)["gradient error"] < limit


def test_gradient_error_against_another_dtype():
    configuration = Configuration(
        "mixed_bfloat16", "additive", 3, policy="mixed_bfloat16", reference="float32"
    )
    values = values_of(configuration)
    for mode in "none", "reversible":
        error = values[f'gradient error of mode "{mode}" against "none" in float32']
        assert 1e-4 < error < 0.2


@pytest.mark.parametrize(("blocks", "warned"), [(4, False), (5, True)])
def test_momentum_warns_of_its_depth(blocks, warned, monkeypatch):
    monkeypatch.setitem(exactness.COUPLINGS, "momentum", lambda: Momentum(0.1))
    figures = measure(Configuration("momentum", "momentum", blocks)).figures
    values = {figure.name: figure.value for figure in figures}
    assert values["holds up to (blocks)"] == 4
    assert values["warned of at build"] is warned
    assert ("up to about 4 blocks" in values.get("warning", "")) is warned
    assert all(figure.met in (None, True) for figure in figures)


def test_irevnet_gives_its_image_back():
    configuration = Configuration("irevnet", "additive", 7, kind="i-RevNet", scaled=True)
    figures = exactness.measure_irevnet(configuration, size=32, batch=4)
    for figure in figures[:2]:
        assert figure.value < 3e-4


def test_report(tmp_path):
    figures = [
        Figure("error", 2e-3, below=1e-3),
        Figure("error", 5e-4, below=1e-3),
        Figure("error", float("nan"), below=1e-3),
        Figure("rebuilt", True, equals=True),
        Figure("rebuilt", 3, equals=4),
        Figure("depth", 4),
    ]
    assert [figure.met for figure in figures] == [False, True, False, True, False, None]
    measurement = Measurement(Configuration("additive", "additive", 4), figures, 60.0)
    text = exactness.write([measurement], tmp_path)
    assert "| additive | additive | 4 | eager | error | 0.002 | below 0.001 | **no** |" in text
    assert "2 of 5 goals met" in text
    assert text.count("- missed: ") == 3
    assert (tmp_path / "exactness.md").read_text() == text
    (values,) = json.loads((tmp_path / "exactness.json").read_text())["measurements"]
    assert [figure["met"] for figure in values["figures"]] == [figure.met for figure in figures]
    assert values["configuration"]["blocks"] == 4


@pytest.mark.parametrize("quick", [False, True])
def test_rows(quick):
    rows = exactness.configurations(list(exactness.MEASURES), quick)
    assert {row.case for row in rows} == set(exactness.MEASURES)
    assert len(set(rows)) == len(rows)
    assert max(row.blocks for row in rows) == (60 if quick else 1000)
    assert {row.case for row in exactness.configurations(["affine"], quick)} == {"affine"}
