"""A GPT-2 of KerasHub, made a momentum network and fine-tuned on the standard library.

The backbone is built from sizes, those of GPT-2 small by default, and trained a little
as it is, so that there is something to keep. Then it is converted: the outputs before
and after are compared, and both models go on training on the source of Python's
standard library, bytes at sequence length 1024. What a training step of each holds and
takes is measured in a process of its own. With all sizes about 40 minutes on two cores:

    python examples/convert_gpt2.py --out out

`--layers 12 --width 256 --heads 4` takes about six. The folder then holds
`convert_gpt2.json` and `.md`. KerasHub is needed: `pip install keras-hub`.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import keras
import numpy as np
from keras_hub import models

import revkeras
from revkeras.memory import ENVIRONMENT, measure_steps

CASES = {"original": "as it was", "converted": "converted"}


def build_backbone(a):
    return models.GPT2Backbone(
        vocabulary_size=256,
        num_layers=a.layers,
        num_heads=a.heads,
        hidden_dim=a.width,
        intermediate_dim=4 * a.width,
        dropout=a.dropout,
        max_sequence_length=a.sequence,
    )


def build_model(backbone, rate):
    """Scores of the next byte, by the embedding's own weights."""
    inputs = backbone.input
    scores = backbone.token_embedding(backbone(inputs), reverse=True)
    model = keras.Model(inputs, scores)
    # XLA off for both, so that they differ in what they keep and in nothing else.
    model.compile(
        keras.optimizers.Adam(rate, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def read_corpus(megabytes):
    """The bytes of the standard library's sources; every tenth file is held out."""
    limit = int(megabytes * 1e6)
    train, held_out, size = [], [], 0
    for index, path in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))):
        text = path.read_bytes()[: limit - size]
        (held_out if index % 10 == 9 else train).append(text)
        size += len(text)
    return tuple(np.frombuffer(b"".join(texts), "uint8") for texts in (train, held_out))


def windows(corpus, sequence, count, rng):
    """`count` windows at random places: what a model reads, and the byte behind each of it."""
    starts = rng.integers(len(corpus) - sequence, size=count)
    taken = corpus[starts[:, None] + np.arange(sequence + 1)].astype("int32")
    tokens = taken[:, :-1]
    return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}, taken[:, 1:]


def train(model, corpus, steps, a, seed):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        model.train_on_batch(*windows(corpus, a.sequence, a.batch, rng))


def held_out_loss(model, corpus, a):
    data = windows(corpus, a.sequence, a.batch, np.random.default_rng(1))
    return model.evaluate(*data, batch_size=a.batch, verbose=0, return_dict=True)["loss"]


def compare(a):
    """Outputs before and after, and the loss of both on held-out files as they go on."""
    corpus, held_out = read_corpus(a.megabytes)
    backbone = build_backbone(a)
    model = build_model(backbone, a.rate)
    print(f"{backbone.count_params():,} parameters, {a.layers} layers of width {a.width}")
    train(model, corpus, a.pretrain, a, seed=0)
    probe, _ = windows(held_out, a.sequence, 1, np.random.default_rng(2))
    before, weights = backbone.predict(probe, verbose=0), model.get_weights()
    loss = held_out_loss(model, held_out, a)
    results = {"loss": {"original": [loss]}, "difference": {}}
    for beta in (*(x for x in (0.0, 1e-6) if x != a.beta), a.beta):
        if results["difference"]:
            revkeras.from_momentum_net(backbone)
        revkeras.to_momentum_net(backbone, beta=beta)
        converted = build_model(backbone, a.rate)
        after = backbone.predict(probe, verbose=0)
        largest = float(np.abs(after - before).max() / np.abs(before).max())
        results["difference"][str(beta)] = largest
        print(f"beta {beta}: outputs differ by {largest:.1e} of the largest")
    results["loss"]["converted"] = [held_out_loss(converted, held_out, a)]
    for case in reversed(CASES):
        if case == "original":
            revkeras.from_momentum_net(backbone)
        trained = build_model(backbone, a.rate)
        trained.set_weights(weights)
        train(trained, corpus, a.steps, a, seed=3)
        results["loss"][case].append(held_out_loss(trained, held_out, a))
    return results


def measure(a):
    """Prints the cost of a step of one model in this process, as JSON."""
    backbone = build_backbone(a)
    if a.measure == "converted":
        revkeras.to_momentum_net(backbone, beta=a.beta)
    model = build_model(backbone, a.rate)
    data = windows(read_corpus(0.5)[0], a.sequence, a.batch, np.random.default_rng(0))
    cost = measure_steps(lambda: model.train_on_batch(*data), steps=a.measure_steps)
    print(json.dumps({"bytes": cost.activation_bytes, "seconds": cost.step_seconds}))


def measure_in_fresh_process(case, a):
    names = "layers", "width", "heads", "sequence", "batch", "beta", "dropout", "measure_steps"
    command = [sys.executable, __file__, "--measure", case]
    for name in names:
        command += [f"--{name.replace('_', '-')}", str(getattr(a, name))]
    env = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(results, a):
    lines = [
        f"{a.layers} layers, width {a.width}, {a.heads} heads, batch {a.batch}, sequence "
        f"{a.sequence}, beta {a.beta}, float32",
        "",
        "| model | held-out loss | after fine-tuning | peak of a step | step time |",
        "|:--|--:|--:|--:|--:|",
    ]
    for case, name in CASES.items():
        before, after = results["loss"][case]
        cost = results["costs"][case]
        lines.append(
            f"| {name} | {before:.3f} | {after:.3f} | {cost['bytes'] / 1e6:.0f} MB | "
            f"{cost['seconds']:.2f} s |"
        )
    lines += ["", "| beta | outputs differ by, of the largest |", "|--:|--:|"]
    lines += [f"| {beta} | {value:.1e} |" for beta, value in results["difference"].items()]
    return "\n".join(lines)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--sequence", type=int, default=1024, help="bytes in a window")
    parser.add_argument("--batch", type=int, default=1, help="windows in a batch")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    parser.add_argument("--pretrain", type=int, default=60, help="steps before the conversion")
    parser.add_argument("--steps", type=int, default=30, help="steps of fine-tuning, of each")
    parser.add_argument("--measure-steps", type=int, default=3, help="steps measured of each")
    parser.add_argument("--megabytes", type=float, default=5, help="size of the corpus, at most")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results")
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    a = parse_arguments(argv)
    keras.utils.set_random_seed(0)
    if a.measure:
        return measure(a)
    results = {"costs": {}}
    for case in CASES:
        print(f"measuring a training step: {CASES[case]}", flush=True)
        results["costs"][case] = measure_in_fresh_process(case, a)
    results.update(compare(a))
    print(f"\n{report(results, a)}")
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "convert_gpt2.json").write_text(json.dumps(results, indent=1) + "\n")
    (a.out / "convert_gpt2.md").write_text(f"{report(results, a)}\n")
    return results


if __name__ == "__main__":
    main()
