"""RevNet, i-RevNet, MomentumNet and Rev-ViT: sizes, shapes, gradients, files, bad input."""

import keras
import numpy as np
import pytest

import revkeras
from revkeras import models
from revkeras.models import rev_vit, revnet
from tests.compiling import compiled
from tests.differentiation import COMPILED
from tests.models.counting import parameters
from tests.modes import run_step

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype("float32")


def small_revnet(bottleneck=False, **options):
    """All that a RevNet has, in a stage each: a start without a change, and a halving."""
    channels = (8, 16, 32) if bottleneck else (8, 8, 12)
    sizes = revnet.RevNetArchitecture((2, 2), channels, (1, 2), bottleneck, (16, 16, 3), 10)
    images = keras.Input((16, 16, 3))
    top = keras.layers.GlobalAveragePooling2D()
    mode = options.pop("memory_mode", "reversible")
    return revnet.revnet(sizes, images, top, mode, "small_revnet")


def small_irevnet(**options):
    options = {"include_top": False, "input_shape": (16, 16, 3), **options}
    return models.IRevNet((1, 2), (2, 2), **options)


def small_momentum_net(**options):
    functions = [
        keras.Sequential([keras.layers.Conv2D(3, 3, padding="same"), keras.layers.ReLU()])
        for _ in range(4)
    ]
    return models.MomentumNet(functions, input_shape=(16, 16, 3), classes=5, **options)


def small_rev_vit(memory_mode="reversible"):
    images = keras.Input((16, 16, 3))
    sizes = rev_vit.ViTArchitecture(width=8, depth=2, heads=2)
    return keras.Model(images, rev_vit.rev_vit_features(sizes, images, 8, 0.0, memory_mode))


BUILDERS = {
    "revnet": small_revnet,
    "revnet-bottleneck": lambda **options: small_revnet(True, **options),
    "irevnet": small_irevnet,
    "momentum_net": small_momentum_net,
    "rev_vit": small_rev_vit,
}


# In millions, as the paper's table gives them.
@pytest.mark.parametrize(("depth", "millions"), [(38, 0.46), (110, 1.73), (164, 1.75)])
def test_revnet_for_cifar_has_the_papers_parameters(depth, millions):
    assert round(parameters(lambda: models.RevNet(depth)) / 1e6, 2) == millions


def test_revnet_for_imagenet_has_the_papers_parameters():
    # The table says 45.2 million; the authors' configuration of the same channels, units and
    # projections has 45.43 million.
    assert parameters(lambda: models.RevNet(104)) == pytest.approx(45.2e6, rel=0.006)
    assert parameters(lambda: models.RevNet(56)) == 27_553_128


@pytest.mark.parametrize("depth", [38, 110, 164, 56, 104])
def test_revnet_is_as_deep_as_its_name(depth):
    with keras.StatelessScope(initialize_variables=False):
        model = models.RevNet(depth)
    counted = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
        and "shortcut" not in layer.name
    ]
    assert len(counted) == depth


@pytest.mark.parametrize(("size", "millions"), [("small", 22.43), ("base", 87.34)])
def test_rev_vit_has_the_papers_parameters(size, millions):
    assert round(parameters(lambda: models.RevViT(size)) / 1e6, 2) == millions


def test_irevnet_has_the_papers_parameters():
    """29 million, of 300 layers; the count is written down from the paper's shapes too."""
    expected, channels, first = 0, 6, True
    for width, blocks in (24, 6), (96, 16), (384, 72), (1536, 6):
        for _ in range(blocks):
            inside = width // 4
            normalized = [inside, inside] if first else [channels, inside, inside]
            expected += channels * inside + 9 * inside * inside + inside * width
            expected += 2 * sum(normalized)
            channels, first = width, False
    expected += 2 * 2 * channels + 2 * channels * 1000 + 1000
    assert parameters(models.IRevNet) == expected
    assert round(expected / 1e6) == 29


def test_momentum_net_has_the_parameters_of_its_functions_and_its_top():
    functions = [keras.layers.Dense(8) for _ in range(3)]
    model = models.MomentumNet(functions, input_shape=(8,), classes=5)
    assert model.count_params() == 3 * (64 + 8) + 8 * 5 + 5


@pytest.mark.parametrize("name", [*BUILDERS])
def test_gradients_are_those_of_plain_training(name):
    reversible, plain = (BUILDERS[name](memory_mode=m) for m in ("reversible", "none"))
    plain.set_weights(reversible.get_weights())
    found, expected = (
        run_step(model, IMAGES, training=True, graph=COMPILED) for model in (reversible, plain)
    )
    norm = np.linalg.norm([np.linalg.norm(g) for g in expected.weight_gradients])
    for ours, theirs in zip(found.weight_gradients, expected.weight_gradients, strict=True):
        assert np.linalg.norm(ours - theirs) < 2e-4 * norm
    for ours, theirs in zip(found.state, expected.state, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["revnet", "irevnet", "momentum_net", "rev_vit"])
def test_saved_and_loaded(name, tmp_path):
    model = BUILDERS[name]()
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded) is type(model)
    np.testing.assert_allclose(loaded(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-6)


def test_rev_vit_with_and_without_a_top():
    sizes = {"input_shape": (32, 32, 3)}
    shapes = {None: (None, 4, 768), "avg": (None, 768), "max": (None, 768)}
    with keras.StatelessScope(initialize_variables=False):
        assert models.RevViT(classes=7, **sizes).output_shape == (None, 7)
        for pooling, shape in shapes.items():
            features = models.RevViT(include_top=False, pooling=pooling, **sizes)
            assert features.output_shape == shape


@pytest.mark.parametrize("initial_downsampling", [True, False])
def test_inverse_of_the_features_is_the_image(initial_downsampling):
    shape = (16, 16, 3) if initial_downsampling else (16, 16, 2)
    model = small_irevnet(input_shape=shape, initial_downsampling=initial_downsampling)
    images = IMAGES[..., : shape[-1]]
    compiled(model, "adam")
    model.train_on_batch(images, np.zeros((2, *model.output_shape[1:])))
    features = model(images)
    assert np.size(features) == images.size
    np.testing.assert_allclose(model.inverse(features), images, atol=1e-5)


def test_inverse_of_a_model_with_a_top_and_of_a_loaded_one(tmp_path):
    model = small_irevnet(include_top=True, classes=3, dropout=0.1)
    assert model(IMAGES).shape == (2, 3)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    features = keras.Model(loaded.input, loaded.get_layer("reversible").output)(IMAGES)
    np.testing.assert_allclose(loaded.inverse(features), IMAGES, atol=1e-5)


@pytest.mark.parametrize("options", [{"include_top": True, "classes": 3}, {"pooling": "avg"}])
def test_what_is_not_the_features_has_no_inverse(options):
    model = small_irevnet(**options)
    with pytest.raises(ValueError, match="`features`: expected .*'reversible', of shape"):
        model.inverse(model(IMAGES))


def test_streams_to_depth_undoes_itself():
    layer = models.irevnet.StreamsToDepth()
    x = np.arange(2 * 4 * 6 * 4, dtype="float32").reshape(2, 4, 6, 4)
    y = layer(x)
    assert y.shape == (2, 2, 3, 16)
    np.testing.assert_array_equal(y[..., :8], revkeras.layers.SpaceToDepth()(x[..., :2]))
    np.testing.assert_array_equal(layer.inverse(y), x)


def test_momentum_net_is_a_residual_network_for_a_small_beta():
    functions = [keras.layers.Dense(4, activation="tanh") for _ in range(3)]
    model = models.MomentumNet(
        functions, include_top=False, input_shape=(4,), beta=1e-6, memory_mode="none"
    )
    x = expected = np.ones((2, 4), "float32")
    for function in functions:
        expected = expected + function(expected)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.RevNet(38, classes=np.int64(3)),
        lambda: models.RevViT(
            input_shape=(32, 32, 3), classes=np.int64(3), patch_size=np.int64(16)
        ),
        lambda: models.IRevNet(
            (np.int64(1),), (2,), True, (16, 16, 3), None, np.int64(3), bottleneck=np.int64(4)
        ),
        lambda: models.MomentumNet([keras.layers.Dense(4)], True, (4,), np.int64(3)),
    ],
    ids=["revnet", "rev_vit", "irevnet", "momentum_net"],
)
def test_sizes_of_numpy(build):
    with keras.StatelessScope(initialize_variables=False):
        assert build().output_shape == (None, 3)


@pytest.mark.parametrize("build", [small_irevnet, small_momentum_net])
def test_weights_of_a_file(build, tmp_path):
    model = build()
    model.save_weights(tmp_path / "m.weights.h5")
    found = build(weights=str(tmp_path / "m.weights.h5"))
    np.testing.assert_array_equal(found(IMAGES), model(IMAGES))
    assert not np.array_equal(build(weights=None)(IMAGES), model(IMAGES))


def test_revnet_without_a_top():
    for pooling, shape in (None, (None, 8, 8, 112)), ("avg", (None, 112)), ("max", (None, 112)):
        with keras.StatelessScope(initialize_variables=False):
            model = models.RevNet(38, include_top=False, pooling=pooling)
        assert model.output_shape == shape


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.RevNet(50), r"`depth`: expected one of \[38, 110, 164, 56, 104\].*50"),
        (lambda: models.RevNet(classes=0), "`classes`: expected a positive integer.*classes=0"),
        (lambda: models.RevNet(input_shape=(32, 32)), r"`input_shape`.*\(height, width, channels"),
        (lambda: models.RevNet(pooling="sum"), "`pooling`: expected one of.*pooling='sum'"),
        (lambda: models.IRevNet((1,), (3,)), "`strides`: expected 1 times 1 or 2"),
        (lambda: models.IRevNet((0,), (1,)), "`blocks`: expected a list of positive"),
        (lambda: models.IRevNet((1,), (2,), bottleneck=0), "`bottleneck`.*bottleneck=0"),
        (lambda: models.IRevNet((1, 1), (2, 2), input_shape=(20, 20, 3)), "divisible by 8"),
        (
            lambda: models.IRevNet((1,), (2,), input_shape=(8, 8, 3), initial_downsampling=False),
            "expected an even number of channels",
        ),
        (lambda: models.MomentumNet([keras.layers.Dense(2)]), "`input_shape`.*input_shape=None"),
        (lambda: models.MomentumNet([], input_shape=(2,)), "expected at least one Keras layer"),
        (
            lambda: models.MomentumNet([keras.layers.Dense(2)], input_shape=(3,)),
            "must keep the shape",
        ),
        (lambda: models.RevViT("huge"), "`size`: expected one of.*size='huge'"),
        (lambda: models.RevViT(input_shape=(30, 32, 3)), "divisible by 16"),
        (lambda: models.RevViT(patch_size=0), "`patch_size`.*patch_size=0"),
        (
            lambda: models.RevViT(input_shape=(None, 32, 3)),
            "`input_shape`: expected a known height",
        ),
        (lambda: models.IRevNet(18), "`blocks`: expected a list of positive.*blocks=18"),
        (lambda: models.IRevNet((1, 1), 2), "`strides`: expected 2 times 1 or 2.*strides=2"),
        (
            lambda: small_momentum_net(weights="imagenet"),
            "`weights`: expected None.*the path.*weights='imagenet'",
        ),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_channels_first():
    keras.config.set_image_data_format("channels_first")
    try:
        for build in (lambda: models.RevNet(38), models.IRevNet, models.RevViT):
            with pytest.raises(ValueError, match="channels last.*is 'channels_first'"):
                build()
        functions = [keras.layers.Conv2D(3, 3, padding="same")]
        net = models.MomentumNet(functions, input_shape=(3, 8, 6), classes=2)
        assert net.get_layer("predictions").kernel.shape == (3, 2)
    finally:
        keras.config.set_image_data_format("channels_last")
