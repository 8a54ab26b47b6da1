"""Train a Top-K SAE on activation rows with SAELens' own trainer and save it in SAELens' own layout.

SAELens and torch are imported when `train` is called.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import ConflictError, DependencyError, InputError, SaestoreError

if TYPE_CHECKING:
    import torch

Batches = Callable[[int], Iterator[NDArray[np.floating]]]
"""Gives the rows of one epoch as shuffled blocks, (m, d_in) each of any m; the argument is the epoch's seed."""

_NORM_ESTIMATE_ROWS = 16_384


def train(
    activations: NDArray[np.floating] | Batches,
    *,
    d_sae: int,
    k: int,
    out: Path,
    samples: int = 200_000,
    lr: float = 3e-3,
    batch_size: int = 1024,
    seed: int = 0,
    hook_name: str | None = None,
    model_name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    record: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Train a Top-K SAE and save it as a SAELens folder.

    The inputs are scaled to an average norm of sqrt(d_in) and the decoder's bias begins at their mean; the scaling is
    folded into the weights at the end, so the saved SAE takes activations as they are. The result is a function of
    the arguments (and, to the last bit, of the number of torch threads).

    Parameters
    ----------
    activations : (n, d_in) float array, or a callable
        Rows to train on, seen again in a new order when `samples` exceeds n; or `Batches`, for rows that do not fit
        in memory.
    d_sae, k : int
        Number of units, and how many are active per row.
    out : Path
        Folder to make; it appears when training is done and not before.
    samples : int
        Rows seen in all, rounded down to whole batches (at least one).
    lr, batch_size, seed
        Of Adam (decaying linearly to a tenth over the last fifth), of each step, and of weights and order.
    hook_name, model_name : str, optional
        Recorded in the SAE's metadata.
    progress : callable, optional
        Called with the rows seen and the rows to see after every step.
    record : mapping of str to mapping, optional
        JSON documents by file name, written beside ``cfg.json`` before the folder appears.

    Returns
    -------
    Path
        `out`, with ``cfg.json`` and ``sae_weights.safetensors``.

    Raises
    ------
    InputError
        If the rows, or k, or another number is not usable.
    ConflictError
        If `out` exists and is not empty.
    DependencyError
        If ``sae_lens`` is not installed.

    Notes
    -----
    The defaults are the cheapest found to do well: on 200,000 rows of MiniLM's fourth hidden state (d_in 384), d_sae
    4,096 and k 32 reach an explained variance of 0.81 on held-out rows with 2% dead units, in about a minute on two
    cores; with lr 1e-3 it is 0.76 and 14%.

    References
    ----------
    Gao et al. 2024, Scaling and evaluating sparse autoencoders; ``SAETrainer`` of SAELens 6.54, driven step by step.
    """
    out = Path(out)
    check_training(d_sae=d_sae, k=k, samples=samples, batch_size=batch_size, lr=lr)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConflictError(f"{out} exists and is not empty; give another folder, or remove it to train again")
    blocks = activations if callable(activations) else _epochs_of(activations, batch_size)
    first = _first_rows(blocks, seed)
    d_in = first.shape[1]
    try:
        import torch
        from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.sae import SAEMetadata
    except ImportError:
        raise DependencyError("training an SAE needs sae_lens: pip install 'saestore[sae]'") from None

    steps = max(1, samples // batch_size)
    scale = d_in**0.5 / max(float(np.linalg.norm(first, axis=1).mean()), 1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        metadata = SAEMetadata(model_name=model_name, hook_name=hook_name, hook_head_index=None)
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, metadata=metadata))
        sae.b_dec.data = torch.from_numpy(first.mean(axis=0) * np.float32(scale))
        trainer = SAETrainer(
            cfg=SAETrainerConfig(
                total_training_samples=steps * batch_size,
                train_batch_size_samples=batch_size,
                lr=lr,
                lr_end=lr / 10,  # SAELens asserts that it is given
                lr_decay_steps=steps // 5,
                dead_feature_window=max(steps // 4, 50),
                feature_sampling_window=steps + 1,
            ),
            sae=sae,
            data_provider=_scaled_batches(blocks, batch_size, d_in, seed, scale),
        )
        for step in range(1, steps + 1):
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1  # SAELens leaves this to whoever drives the trainer
            if progress is not None:
                progress(step * batch_size, steps * batch_size)
        trainer.set_final_sae_metadata()
        sae.fold_activation_norm_scaling_factor(scale)
    return _save(sae.save_inference_model, out, record or {})


def check_training(*, d_sae: int, k: int, samples: int, batch_size: int, lr: float) -> None:
    """Refuse numbers that no training can use.

    Raises
    ------
    InputError
        A number is not positive, or k is larger than d_sae.
    """
    for name, value in {"d_sae": d_sae, "k": k, "samples": samples, "batch_size": batch_size}.items():
        if value < 1:
            raise InputError(f"{name}={value} is not usable; expected a whole number of at least 1")
    if k > d_sae:
        raise InputError(f"k={k} is larger than d_sae={d_sae}; at most every unit can be active")
    if not lr > 0:
        raise InputError(f"lr={lr} is not usable; expected a number above 0")


def _epochs_of(rows: NDArray[np.floating], batch_size: int) -> Batches:
    """Serve an array in memory (or mapped) as shuffled blocks."""
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"activations have shape {rows.shape}; expected (n, d_in) with at least one row")

    def epoch(seed: int) -> Iterator[NDArray[np.floating]]:
        order = np.random.default_rng(seed).permutation(len(rows))
        for start in range(0, len(rows), batch_size):
            yield rows[np.sort(order[start : start + batch_size])]

    return epoch


def _first_rows(blocks: Batches, seed: int) -> NDArray[np.float32]:
    """Return the first rows of the first epoch, from which scale and mean are estimated."""
    taken: list[NDArray[np.float32]] = []
    for block in blocks(seed):
        taken.append(_checked(block))
        if sum(map(len, taken)) >= _NORM_ESTIMATE_ROWS:
            break
    if not taken or not sum(map(len, taken)):
        raise InputError("there are no activation rows to train on; expected at least one")
    return np.concatenate(taken)


def _checked(block: NDArray[np.floating]) -> NDArray[np.float32]:
    rows = np.asarray(block, np.float32)
    if rows.ndim != 2:
        raise InputError(f"a block of activations has shape {rows.shape}; expected (m, d_in)")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise InputError(f"activation row {bad} of a block of {len(rows)} is not finite; leave such rows out")
    return rows


def _scaled_batches(blocks: Batches, batch_size: int, d_in: int, seed: int, scale: float) -> Iterator[torch.Tensor]:
    """Yield batches of exactly `batch_size` rows for ever, over the ends of blocks and epochs."""
    import torch

    pending = np.empty((0, d_in), np.float32)
    epoch = seed
    while True:
        served = 0
        for block in blocks(epoch):
            served += len(block)
            pending = np.concatenate([pending, _checked(block)]) if len(pending) else _checked(block)
            while len(pending) >= batch_size:
                yield torch.from_numpy(pending[:batch_size] * np.float32(scale))
                pending = pending[batch_size:]
        if not served:
            raise InputError(
                f"the activations gave no rows for epoch {epoch - seed}; expected the same rows every epoch"
            )
        epoch += 1


def _save(save: Callable[[Path], object], out: Path, record: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write beside `out` and rename, so that a folder with this name is always whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
        try:
            save(partial)
            for name, document in record.items():
                (partial / name).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            for file in partial.iterdir():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            if out.exists():
                out.rmdir()
            os.replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise SaestoreError(
            f"the trained SAE cannot be written to {out} ({error.strerror or error}); give a folder with room"
        ) from None
    return out
