"""The parts `facades` of `accelerator`: a whole training in bfloat16, and in float32 beside it."""

from __future__ import annotations

import time

from p2p_jax import mesh as meshes
from p2p_jax.bench import nets
from p2p_jax.bench.clock import NEEDED
from p2p_jax.bench.facades import DISPATCH, Evaluation, Pairs, Run
from p2p_jax.bench.measuring import Measuring, note
from p2p_jax.bench.rows import Row, row
from p2p_jax.state import Gan


def facades(measuring: Measuring, pairs: tuple[Pairs, Pairs] | None) -> list[Row]:
    """The whole training in bfloat16, and its metrics along the way.

    Args:
      measuring: what all parts share.
      pairs: of train and val, if there are any.
    """
    request, form = measuring.request, measuring.best_form()
    known = row("facades", form, precision="bfloat16", batch_size=request.batch_size)
    rates = [r["images_per_sec"] for r in measuring.ours() if r["batch_size"] == request.batch_size]
    needed = request.images / rates[0] + NEEDED["ours"] if rates else 0.0
    why = "no --data" if pairs is None else measuring.clock.refuses("facades", needed=needed)
    if pairs is None or why:
        return [known | {"skipped": why}]
    mesh = meshes.make_mesh(1)
    gan = nets.standard("bfloat16", form)
    note(f"facades: compiling batch {request.batch_size}, bfloat16")
    run = Run(pairs[0], gan, mesh, request.batch_size, request.lr, request.images)
    note(f"facades: training on {request.images} images")
    # Generators are put aside and evaluated afterwards: nothing interrupts the training.
    kept = {0: run.generator()}
    begin = time.perf_counter()
    for images in range(request.every, request.images + 1, request.every):
        run.train(images)
        kept[images] = run.generator()
    losses = run.losses()
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    evaluation = Evaluation(pairs[1], gan, mesh)
    told = [{"images": images, **evaluation(gen)} for images, gen in kept.items()]
    known |= _figures(run, seconds, losses, told)
    known |= {"evaluate_seconds": time.perf_counter() - begin, "baseline": evaluation.baseline()}
    return [known]


def reference(measuring: Measuring, pairs: tuple[Pairs, Pairs] | None) -> list[Row]:
    """As many images in float32 with batch 1 as there is time for, and both side by side.

    Arguments are those of `facades`.
    """
    request, clock = measuring.request, measuring.clock
    gan = nets.standard()
    known = row("facades", _form(gan), precision="float32", batch_size=1)
    why = "no --data" if pairs is None else clock.refuses("ours")
    if pairs is None or why:
        return [known | {"skipped": why}]
    mesh = meshes.make_mesh(1)
    note("facades: compiling batch 1, float32")
    run = Run(pairs[0], gan, mesh, 1, nets.RECIPE["gen_lr"], request.images)
    evaluation = Evaluation(pairs[1], gan, mesh)
    told = [{"images": 0, **evaluation(run.generator())}]
    seconds = 0.0
    note("facades: training in float32")
    while run.seen < request.images:
        # As far as the next evaluation, or not at all.
        missing = request.every - run.seen % request.every
        if (run.seen and missing * seconds / run.seen > clock.left()) or clock.left() < 0:
            break
        begin = time.perf_counter()
        run.train(run.seen + min(missing, DISPATCH))
        losses = run.losses()
        seconds += time.perf_counter() - begin
        if run.seen % request.every == 0:
            told.append({"images": run.seen, **evaluation(run.generator())})
            known |= _figures(run, seconds, losses, told)
    if not known["images_per_sec"]:
        rate = f"{run.seen / seconds:.3g} images/s" if run.seen else "no time"
        return [known | {"skipped": f"{request.every} images were out of reach at {rate}"}]
    return [known, *_beside(measuring, known)]


def _form(gan: Gan) -> str:
    """Of its convolutions, as `auto` came out on this platform."""
    return gan.generator.style.policy.form  # type: ignore[attr-defined]


def _figures(
    run: Run, seconds: float, losses: dict[str, float], told: list[dict[str, float]]
) -> Row:
    return {
        "images_per_sec": run.seen / seconds,
        "ms": 1e3 * run.batch_size * seconds / run.seen,
        "images": run.seen,
        "lr": run.lr,
        "train_seconds": seconds,
        "compile_seconds": run.compile_seconds,
        "losses": losses,
        "evaluations": list(told),
    }


def _beside(measuring: Measuring, exact: Row) -> list[Row]:
    """The metrics of both runs after the same number of images."""
    images = exact["images"]
    there = [r for r in measuring.found if r["part"] == "facades" and r.get("evaluations")]
    made = []
    for each in [*there, exact]:
        at = [e for e in each["evaluations"] if e["images"] == images]
        made += [
            row("equal", each["form"], precision=each["precision"], batch_size=each["batch_size"])
            | found
            for found in at
        ]
    return made
