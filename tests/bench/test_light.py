"""The speed of light, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fcdense.bench import light
from fcdense.bench.light import Kernel, Rates, rates
from fcdense.bench.questions.predict import Predict
from fcdense.bench.questions.products import Forward, InputGradient, WeightGradient
from fcdense.bench.questions.train import Train
from fcdense.bench.results import Row
from tests.bench.made_up import results, row

HOPPER = Rates({"bfloat16": 790e12}, 4.3e12, 0.0)
"""What libraries reach on an H200: a product of 8192 x 8192 x 8192, and a copy."""


def seconds(work: list[Kernel], measured: Rates = HOPPER) -> float:
    """Of a row with this work, in bfloat16."""
    found = measured.seconds(made(work))
    assert isinstance(found, float)
    return found


def made(work: list[Kernel], candidate: str = "cuda:0", **changes: Any) -> Row:
    flops = sum(kernel.flops for kernel in work)
    case = {"dtype": "bfloat16"}
    return row(candidate, **{"flops": flops, "work": [list(kernel) for kernel in work], "case": case, **changes})


def test_kernels_by_hand() -> None:
    """A layer of 3 rows, 5 features in and 7 out: 15 + 35 + 21 numbers, and 105 multiplications."""
    assert light.forward(3, 5, 7, 2, "none") == (210, 2 * 71)
    assert light.forward(3, 5, 7, 2, "output") == (210, 2 * 71)
    assert light.forward(3, 5, 7, 2, "derivative") == (210, 2 * (71 + 21))
    assert light.input_gradient(3, 5, 7, 2, "none") == (210, 2 * 71)
    assert light.input_gradient(3, 5, 7, 2, "output") == (210, 2 * (71 + 15))
    assert light.input_gradient(3, 5, 7, 2, "derivative") == (210, 2 * (71 + 15))
    assert light.weight_gradient(3, 5, 7, 2) == (210, 2 * 36 + 4 * 35)
    assert light.weight_gradient(3, 5, 7, 4) == (210, 4 * 36 + 4 * 35)
    assert light.weight_gradient(3, 5, 7, 8) == (210, 8 * 36 + 8 * 35)
    # Adam reads w, g, m, v and writes w, m, v: 28 bytes, and 2 of the copy that is multiplied
    assert light.update(10, 2, 4) == (0, 280)
    assert light.update(10, 2, 2) == (0, 300)
    assert light.update(10, 0, 4) == (0, 120)
    assert light.update(10, 2, 8) == (0, 560)


@pytest.mark.parametrize(("width", "microseconds"), [(1024, 137.8), (2048, 551.0), (4096, 2205.0), (8192, 8819.0)])
def test_a_wide_hidden_layer_is_products_and_the_update(width: int, microseconds: float) -> None:
    """16384 rows, GELU, Adam: 6 M d² operations at 790 TFLOP/s, and 30 d² bytes at 4.3 TB/s."""
    work = [
        light.forward(16384, width, width, 2, "derivative"),
        light.input_gradient(16384, width, width, 2, "derivative"),
        light.weight_gradient(16384, width, width, 2),
        light.update(width * width, 2, 2),
    ]
    assert seconds(work) == pytest.approx(1e-6 * microseconds, rel=1e-3)
    assert seconds(work) == pytest.approx(6 * 16384 * width**2 / 790e12 + 30 * width**2 / 4.3e12, rel=1e-12)


def test_at_512_two_of_the_products_wait_for_memory() -> None:
    """x, y and f' of 16384 x 512, and 512 x 512 weights, 2 bytes each: 50.9 MB at 4.3 TB/s are 11.83 us, the 8.59 GFLOP
    at 790 TFLOP/s 10.87 us; x and dz, and 4 bytes for each weight, 34.6 MB, are 8.05 us."""
    assert seconds([light.forward(16384, 512, 512, 2, "derivative")]) == pytest.approx(11.83e-6, rel=1e-3)
    assert seconds([light.input_gradient(16384, 512, 512, 2, "derivative")]) == pytest.approx(11.83e-6, rel=1e-3)
    assert seconds([light.weight_gradient(16384, 512, 512, 2)]) == pytest.approx(10.87e-6, rel=1e-3)
    assert seconds([light.update(512 * 512, 2, 2)]) == pytest.approx(1.829e-6, rel=1e-3)


def test_kernels_of_a_training_step() -> None:
    """4-3-2 with batch 5: two products forward, their gradients but for that of the input, the update."""
    case = Train("bfloat16", "gelu", 5, (4, 3, 2), "adamw")
    assert case.work == (
        (120, 2 * (20 + 12 + 15 + 15)),  # with f' of the hidden layer
        (60, 2 * (15 + 6 + 10)),
        (120, 2 * (20 + 15) + 4 * 12),
        (60, 2 * (15 + 10) + 4 * 6),
        (60, 2 * (10 + 6 + 15 + 15)),  # which the gradient of its output is multiplied with
        (0, 30 * 18),
    )
    assert sum(kernel.flops for kernel in case.work) == case.flops
    assert sum(kernel.flops for kernel in Predict("float32", "gelu", 5, (4, 3, 2)).work) == 180
    many = Train("bfloat16", "relu", 5, (4, 257), "sgd").work
    assert (0, 2 * 2 * 5 * 257) in many, "rows that no tile holds are read again for the loss"
    assert len(many) == len(Train("bfloat16", "relu", 5, (4, 256), "sgd").work) + 1
    assert Train("float32", "relu", 5, (4, 3), "sgd").work[-1] == (0, 12 * 12)


@pytest.mark.parametrize("kind", [Forward, InputGradient, WeightGradient])
def test_a_product_is_one_kernel(kind: type) -> None:
    case = kind("bfloat16", "gelu_tanh", 5, 4, 3)
    assert [kernel.flops for kernel in case.work] == [case.flops] == [120]


def test_no_kernel_is_shorter_than_the_shortest() -> None:
    measured = Rates({"bfloat16": 1e12}, 1e9, 2e-6)
    assert seconds([Kernel(0, 1)] * 3, measured) == pytest.approx(6e-6)
    assert seconds([Kernel(3_000_000, 1), Kernel(0, 1), Kernel(1, 4_000)], measured) == pytest.approx(9e-6)


def test_rates_are_the_best_of_the_run() -> None:
    product: dict[str, Any] = {"question": "products", "flops": 8_000_000}
    found = rates(
        results(
            row("cuda:0", 4e-6, case={"dtype": "bfloat16"}, **product),
            row("cuda_cupy", 2e-6, case={"dtype": "bfloat16"}, **product),
            row("cuda_simt", 8e-6, case={"dtype": "float32"}, **product),
            row("cpu", 1e-9, case={"dtype": "float32"}, **product),
            row("cuda:0", 1e-6, question="train", case={"dtype": "float32"}),
            row("cuda:0", 2e-6, case={"what": "copy"}, work=[[0, 600]]),
            row("cuda_torch", 3e-6, case={"what": "copy"}, work=[[0, 600]]),
            row("cuda_torch", 1e-9, case={"what": "adamw"}, work=[[0, 600]]),
            row("cuda:0", 1.5e-6, case={"how": "kernel in a graph"}),
            row("cuda:0", 1e-7, case={"how": "kernel from Python"}),
        )
    )
    assert found.flops == {"bfloat16": pytest.approx(4e12), "float32": pytest.approx(1e12)}
    assert found.nbytes == pytest.approx(3e8)
    assert found.kernel == 1.5e-6


@pytest.mark.parametrize(
    "fastest", [("cuda:0", "copy"), ("cuda:0", "memcpy"), ("cuda_cupy", "copy")], ids=lambda who: " ".join(who)
)
def test_an_update_is_held_against_the_fastest_copy(fastest: tuple[str, str]) -> None:
    """All copies take 2 us but one, which takes 1 us; AdamW moves 3.5 times their bytes in 7 us."""
    copies = [
        row(name, 1e-6 if (name, what) == fastest else 2e-6, what, case={"what": what}, work=[[0, 800]])
        for name, what in (("cuda:0", "copy"), ("cuda:0", "memcpy"), ("cuda_cupy", "copy"))
    ]
    update = row("cuda:0", 7e-6, "adamw", case={"what": "adamw"}, work=[[0, 2800]], flops=0)
    light = rates(results(*copies, update)).seconds(update)
    assert light == pytest.approx(3.5e-6)


def test_without_a_rate_there_is_no_light() -> None:
    kernel = Kernel(10, 10)
    assert HOPPER.seconds(made([kernel], "cpu")) is None
    assert HOPPER.seconds(made([])) is None
    assert HOPPER.seconds(made([kernel], case={"dtype": "float32"})) is None
    assert HOPPER.seconds(made([Kernel(0, 10)], case={"what": "copy"})) is not None
    assert rates(results(row("cuda:0"))).seconds(made([kernel])) is None
