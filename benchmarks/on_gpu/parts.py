"""The parts of the GPU benchmark, in their order."""

from benchmarks.on_gpu.correctness import correctness, resume
from benchmarks.on_gpu.sizes import Part, Size
from benchmarks.on_gpu.speed_of_sampling import one_step, pairs
from benchmarks.on_gpu.speed_of_training import loading, matmul, training


def parts(size: Size) -> list[Part]:
    """All parts, what matters most first; loading follows the training whose compiled kernels it finds on disk."""
    first, *others = size.train_large
    return [
        Part("correctness/mlp", 15, lambda bench: correctness(bench, "mlp")),
        Part("correctness/small", 30, lambda bench: correctness(bench, "small")),
        Part("resume", 20, lambda bench: resume(bench)),
        Part("matmul", 10, lambda bench: matmul(bench)),
        Part(f"training/large/{first}", 200, lambda bench: training(bench, "large", first)),
        Part("loading/large", 150, lambda bench: loading(bench, "large")),
        Part(f"training/small/{size.train_small}", 90, lambda bench: training(bench, "small", size.train_small)),
        Part("loading/small", 60, lambda bench: loading(bench, "small")),
        *(
            Part(
                f"pairs/{name}/{batch}",
                20 + batch / 20,
                lambda bench, name=name, batch=batch: pairs(bench, name, batch),
            )
            for name in ("small", "large")
            for batch in size.pairs
        ),
        Part("one step/small", 20, lambda bench: one_step(bench, "small")),
        Part("one step/large", 30, lambda bench: one_step(bench, "large")),
        Part("correctness/compiled", 90, lambda bench: correctness(bench, "small", compiled=True)),
        *(
            Part(
                f"training/large/{batch}",
                200 * max(1, batch / first),
                lambda bench, batch=batch: training(bench, "large", batch),
            )
            for batch in others
        ),
    ]
