"""The command `fcdense`: info, train, predict, tune, bench.

Exit codes: 0 done, 1 `info --check` failed, 2 bad arguments or data, 130 after Ctrl-C, at which `train`
saves the model as it is then.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import fcdense as fc
from fcdense import checkpoint, inference
from fcdense.backends import Device, available_devices, cuda_probes, current_device, device, use_device
from fcdense.data import Dataset, SplitDataset, Standardizer
from fcdense.errors import ArgumentError, DataError, DeviceError, FcdenseError, FormatError, unknown_name
from fcdense.precision import PRECISIONS

Array = np.ndarray[Any, Any]

NAMED: dict[str, Callable[[], Dataset | SplitDataset]] = {
    "digits": fc.data.digits,
    "mnist": fc.data.mnist,
    "fashion-mnist": fc.data.fashion_mnist,
}
HIDDEN = {"mnist": [512, 512], "fashion-mnist": [256, 128]}
MEASURES = {"classification": ("cross_entropy", ["accuracy"]), "regression": ("mse", ["rmse", "r2"])}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["bench"]:
        from fcdense.bench.cli import main as bench

        return int(bench(given[1:], "fcdense bench"))
    options = _parser().parse_args(given)
    try:
        with use_device(_device(options)):
            code = COMMANDS[options.name](options)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # `| head` has read enough; nothing may be written when Python closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FcdenseError, OSError) as error:
        print(f"fcdense {options.name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fcdense {options.name}: interrupted", file=sys.stderr)
        return 130


def _device(options: argparse.Namespace) -> Device:
    """The device that was asked for; for `info`, which tells why there is none, the CPU in its place."""
    try:
        return device(options.device) if options.device else current_device()
    except DeviceError as error:
        if options.name != "info":
            raise
        options.error = error
        return device("cpu")


def _parser() -> Parser:
    parser = Parser(prog="fcdense", description="Train and run networks of dense layers, on the CPU or a GPU.")
    parser.add_argument("--version", action="version", version=f"fcdense {fc.__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND", parser_class=Parser)

    info = commands.add_parser("info", help="show versions, libraries and devices")
    info.add_argument("--check", action="store_true", help="train a tiny network as well")
    info.set_defaults(error=None)

    train = commands.add_parser("train", help="train a network on a data set or a file")
    train.add_argument("data", help="digits, mnist, fashion-mnist, FILE.csv or FILE.npz")
    train.add_argument(
        "--layers", type=_layers, help="units of the hidden layers: 512,512; '' for none (128,64; more for images)"
    )
    train.add_argument("--activation", default="relu", help="of the hidden layers (relu)")
    train.add_argument("--dropout", type=float, default=0.0, help="rate after each hidden layer (0)")
    train.add_argument("--optimizer", default="adam", help="sgd, adam, adamw or rmsprop (adam)")
    train.add_argument("--learning-rate", type=float, help="default: the optimizer's own")
    train.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the products, on a GPU (float32)")
    train.add_argument("--epochs", type=_count, default=20, help="passes over the data (20)")
    train.add_argument("--batch-size", type=_count, default=32, help="rows in a step (32)")
    train.add_argument("--test-size", type=float, default=0.2, help="part held out where the data has none (0.2)")
    train.add_argument("--target", type=_column, help="the CSV file's target column: name or index (the last)")
    train.add_argument("--task", choices=MEASURES, help="of a CSV file; default: as the targets look")
    train.add_argument("--seed", type=int, default=0, help="weights, shuffling and splits follow from it (0)")
    train.add_argument("--out", type=Path, help="file for the model (runs/NAME.safetensors)")

    predict = commands.add_parser("predict", help="run a saved model on a data set or a file")
    predict.add_argument("model", type=Path, help="the file that 'fcdense train' wrote")
    predict.add_argument("data", help="as for train; a CSV file of the features alone")
    predict.add_argument("--target", type=_column, help="a CSV file's target column, to be compared with")
    predict.add_argument("--out", type=Path, help="CSV file for the predictions (standard output)")

    tune = commands.add_parser("tune", help="measure which kernels serve a network best on this GPU, and keep it")
    tune.add_argument("widths", type=_widths, help="features, hidden units and outputs: 784,512,512,10")
    tune.add_argument("--activation", default="relu", help="of the hidden layers (relu)")
    tune.add_argument("--batch-size", type=_count, default=256, help="rows in a step (256)")
    tune.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the products (float32)")

    commands.add_parser("bench", help="compare CPU and GPU (see 'fcdense bench --help')", add_help=False)
    for command in (train, predict):
        command.add_argument("--delimiter", default=",", help="between the cells of a CSV file (,)")
    for command in (info, train, predict, tune):
        command.add_argument("--device", help="auto, cpu, cuda or cuda:N (FCDENSE_DEVICE, else auto)")
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"expected a positive integer, given {text!r}")
    return int(text)


def _layers(text: str) -> list[int]:
    if not re.fullmatch(r"([1-9][0-9]*(,[1-9][0-9]*)*)?", text.replace(" ", "")):
        raise argparse.ArgumentTypeError(f"expected units separated by commas, such as 512,512, given {text!r}")
    return [int(units) for units in text.split(",") if units.strip()]


def _widths(text: str) -> list[int]:
    widths = _layers(text)
    if len(widths) < 2:
        raise argparse.ArgumentTypeError(f"expected features and outputs at least, such as 784,512,10, given {text!r}")
    return widths


def _column(text: str) -> str | int:
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else text


def _tune(options: argparse.Namespace) -> int:
    from fcdense.tune import gpu_of, tune

    gpu_of(current_device())  # before anything that needs one
    *hidden, outputs = options.widths[1:]
    model = fc.nn.Sequential(*(fc.nn.Dense(units, options.activation) for units in hidden), fc.nn.Dense(outputs))
    rng = np.random.default_rng(0)
    x = fc.tensor(rng.normal(size=(options.batch_size, options.widths[0])).astype(np.float32))
    y = rng.integers(0, outputs, options.batch_size)

    def step() -> None:
        fc.losses.cross_entropy(model(x), y).backward()

    with fc.use_precision(options.precision):
        print(tune(step))
    return 0


def _info(options: argparse.Namespace) -> int:
    from fcdense.bench import machine

    blas = machine.blas()
    threads = f"{blas['threads']} threads" if blas["threads"] else "threads unknown"
    facts = [
        ("fcdense", fc.__version__),
        ("Python", f"{platform.python_version()} ({platform.platform()})"),
        ("NumPy", np.__version__),
        ("CPU", machine.cpu()),
        ("BLAS", f"{blas['name']} {blas['version']}, {threads}"),
        (
            "optional",
            ", ".join(map(_version, ("numba", "ml-dtypes", "matplotlib", "scikit-learn", "onnx", "mpi4py"))),
        ),
        *((f"cuda: {probe.name}", f"{'yes' if probe.passed else 'no'}, {probe.detail}") for probe in cuda_probes()),
        ("devices", f"{', '.join(available_devices())}; used now: {'none' if options.error else current_device()}"),
    ]
    for name, text in facts:
        print(f"{name:<16}{text}")
    if options.error:
        raise options.error
    return _check() if options.check else 0


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} -"


def _check() -> int:
    """Train a tiny network and hold a gradient against central differences."""
    fc.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 4))
    y = x.sum(axis=1, keepdims=True)
    model = fc.nn.Sequential(fc.nn.Dense(8, activation="tanh", dtype="float64"), fc.nn.Dense(1, dtype="float64"))
    losses = fc.Trainer(model, "mse", learning_rate=0.02).fit(x, y, epochs=30, verbose=False)["loss"]
    fc.gradcheck(lambda w: fc.losses.mean_squared_error(fc.ops.dense(fc.tensor(x), w), y), np.ones((4, 1)))
    learned = losses[-1] < 0.1 * losses[0]
    print(
        f"check           {'passed' if learned else 'FAILED'}: the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"
    )
    return 0 if learned else 1


def _load(options: argparse.Namespace, target: str | int | None, **csv_options: Any) -> Dataset | SplitDataset:
    """The data set or file that was named."""
    path = Path(options.data)
    if path.suffix.lower() == ".csv":
        return fc.data.load_csv(path, target, options.delimiter, **csv_options)
    if options.target is not None:
        raise ArgumentError(f"--target names a column of a CSV file, which {options.data!r} is not.")
    if path.suffix.lower() == ".npz":
        return fc.data.load_npz(path)
    if options.data not in NAMED:
        unknown_name("data (neither FILE.csv nor FILE.npz)", options.data, NAMED)
    return NAMED[options.data]()


def _names(data: Dataset | SplitDataset) -> list[str]:
    """The features' names, where a file has given them some."""
    return [] if all(re.fullmatch(r"column_[0-9]+", name) for name in data.feature_names) else list(data.feature_names)


def _rows(x: Array, standardizer: Standardizer) -> Array:
    return standardizer.transform(x.reshape(len(x), -1)).astype(np.float32)


def _standardized(train: Array, test: Array) -> tuple[Standardizer, Array, Array]:
    standardizer = Standardizer().fit(train.reshape(len(train), -1))
    return standardizer, _rows(train, standardizer), _rows(test, standardizer)


def _keep(out: Path, *sources: str | Path) -> None:
    """Refuse to write over one of the files that the result is made of."""
    for source in sources:
        if out.exists() and os.path.exists(source) and os.path.samefile(out, source):
            raise ArgumentError(f"--out is {out} and would replace {str(source)!r}, which is read; give another name.")


def _destination(options: argparse.Namespace) -> Path:
    """Where the model goes."""
    out: Path = options.out or Path("runs") / f"{Path(options.data).stem}.safetensors"
    if out.suffix == ".png":
        raise ArgumentError(f"--out is {out}, where the curves go; give the model's file, such as model.safetensors.")
    if options.data not in NAMED:
        _keep(out, options.data)
    return out


def _train(options: argparse.Namespace) -> int:
    out = _destination(options)
    if options.precision != "float32" and not current_device().backend.mixed_precision:
        raise ArgumentError(f"--precision {options.precision} needs a GPU, and the device is {current_device()}.")
    target = -1 if options.target is None else options.target
    found = _load(options, target, task=options.task)
    data = found if isinstance(found, SplitDataset) else found.split(options.test_size, seed=options.seed)
    if options.task not in (None, data.task):
        raise ArgumentError(f"--task is {options.task}, but the targets of {options.data!r} make it a {data.task}.")
    extra: dict[str, Any] = {"task": data.task, "class_names": list(data.class_names), "feature_names": _names(data)}
    x_train, x_test, y_train, y_test = data.x_train, data.x_test, data.y_train, data.y_test
    if options.data not in NAMED:
        standardizer, x_train, x_test = _standardized(x_train, x_test)
        extra["standardizer"] = standardizer.to_data()
    if data.task == "regression":
        units, y_train, y_test = _standardized(y_train, y_test)

    fc.manual_seed(options.seed)
    model = _network(options, data.n_classes or y_train.shape[1], flatten=x_train.ndim > 2)
    loss, metrics = MEASURES[str(data.task)]
    trainer = fc.Trainer(
        model,
        loss,
        options.optimizer,
        metrics=metrics,
        learning_rate=options.learning_rate,
        precision=options.precision,
        seed=options.seed,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.destination(out)

    print(data, flush=True)
    started = time.perf_counter()
    interrupted = False
    try:
        trainer.fit(
            x_train, y_train, epochs=options.epochs, batch_size=options.batch_size, validation_data=(x_test, y_test)
        )
    except KeyboardInterrupt:
        if not trainer.optimizer.steps:
            raise
        interrupted = True
    seconds = time.perf_counter() - started
    if data.task == "regression":
        _speak_in(units, model[-1])
    fc.save(out, model, extra)
    if interrupted:
        epoch = min(len(trainer.history) + 1, options.epochs)
        print(f"fcdense train: interrupted in epoch {epoch} of {options.epochs}. Model: {out}", file=sys.stderr)
        return 130
    print(model.summary())
    _show(trainer.evaluate(x_train, data.y_train), trainer.evaluate(x_test, data.y_test))
    print(f"{options.epochs} epochs in {seconds:.1f} s on {current_device()}. Model: {out}")
    try:
        print(f"Curves: {trainer.history.plot(out.with_suffix('.png'))}")
    except ArgumentError as error:
        print(f"No curves. {error}")
    return 0


def _network(options: argparse.Namespace, outputs: int, *, flatten: bool) -> fc.nn.Sequential:
    layers: list[fc.nn.Module] = [fc.nn.Flatten()] if flatten else []
    for units in HIDDEN.get(options.data, [128, 64]) if options.layers is None else options.layers:
        layers.append(fc.nn.Dense(units, activation=options.activation))
        if options.dropout:
            layers.append(fc.nn.Dropout(options.dropout))
    return fc.nn.Sequential(*layers, fc.nn.Dense(outputs))


def _speak_in(units: Standardizer, last: Any) -> None:
    """Make the last layer, which was trained on standardized targets, put out the targets themselves."""
    last.kernel.assign(last.kernel.numpy() * units.scale)
    last.bias.assign(last.bias.numpy() * units.scale + units.mean)


def _show(training: dict[str, float], test: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "training", "test")
    for name, value in training.items():
        table.add_row(name, f"{value:.4f}", f"{test[name]:.4f}")
    Console().print(table)


def _predict(options: argparse.Namespace) -> int:
    if options.out is not None:
        _keep(options.out, options.model, *([] if options.data in NAMED else [options.data]))
    model, extra = checkpoint.read(options.model)
    classes = extra.get("class_names", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise FormatError(f"{options.model}: 'class_names' is {classes!r}, expected a list of names.")
    about = {} if options.target is None else {"task": extra.get("task"), "class_names": classes or None}
    data = _load(options, options.target, **about)
    expected, given = extra.get("feature_names"), _names(data)
    if expected and given and expected != given:
        raise DataError(f"{options.data} has the features {given}; the model was trained on {expected}, in this order.")
    x, y = (data.x_test, data.y_test) if isinstance(data, SplitDataset) else (data.x, data.y)
    if "standardizer" in extra:
        x = _rows(x, Standardizer.from_data(extra["standardizer"]))
    outputs = inference.predict(model, x)
    outputs = outputs.reshape(len(outputs), -1)
    if extra.get("task") == "classification" and len(classes) != outputs.shape[1]:
        raise FormatError(f"{options.model}: {len(classes)} class names for {outputs.shape[1]} outputs.")
    if y is not None and data.task == extra.get("task"):
        _compare(outputs, y, str(data.task))
    rows: list[Any] = (
        [[classes[k]] for k in outputs.argmax(axis=1)] if classes else [list(map(str, o)) for o in outputs]
    )
    header = ["prediction"] if len(rows[0]) == 1 else [f"prediction_{i}" for i in range(len(rows[0]))]
    if options.out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
    else:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    return 0


def _compare(outputs: Array, y: Array, task: str) -> None:
    """Say on standard error how well predictions and targets agree."""
    for metric in map(fc.metrics.get, MEASURES[task][1]):
        metric.update(outputs, y)
        print(f"{metric.name} {metric.result():.4f} over {len(y)} rows", file=sys.stderr)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "info": _info,
    "train": _train,
    "predict": _predict,
    "tune": _tune,
}
