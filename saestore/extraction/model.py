"""Loading a transformers model for extraction: its base, in eval mode, with its tokenizer or image processor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saestore.engine.resources import usable_device
from saestore.errors import DependencyError, InputError, IntegrityError, MissingError
from saestore.extraction.tokens import max_length_of

if TYPE_CHECKING:
    import torch

ModelKind = Literal["text", "image"]
_DTYPES = ("float32", "bfloat16", "float16")
_SAMPLED_BYTES = 1 << 20
_SAMPLES_PER_FILE = 16


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for forward passes.

    Parameters
    ----------
    model : torch.nn.Module
        The base model (no language-model head) in eval mode on `device`.
    tokenizer : transformers tokenizer or None
        Of a text model.
    image_processor : transformers image processor or None
        Of an image model.
    kind : {"text", "image"}
    model_id : str
        The hub id or path it was loaded from.
    revision : str
        The commit of the hub; for a folder, a fingerprint of its configuration and weights.
    d_model, n_layers : int
    max_length : int or None
        Most tokens of a text, specials included; None for an image model.
    patch_size : int or None
        Side of a patch in pixels of the processed image; None for a text model.
    device, dtype : str
    """

    model: torch.nn.Module
    tokenizer: Any
    image_processor: Any
    kind: ModelKind
    model_id: str
    revision: str
    d_model: int
    n_layers: int
    max_length: int | None
    patch_size: int | None
    device: str
    dtype: str


def load_model(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    kind: ModelKind | None = None,
    max_length: int | None = None,
) -> LoadedModel:
    """Load a text or vision model.

    Parameters
    ----------
    path_or_id : str or Path
        A folder in the format of transformers, or an id on the Hugging Face hub.
    revision : str, optional
        Branch, tag or commit on the hub.
    dtype : {"float32", "bfloat16", "float16"}
        Type of weights and hidden states.
    device : str
        ``auto`` takes CUDA, then MPS, then the CPU.
    kind : {"text", "image"}, optional
        By default what the configuration says.
    max_length : int, optional
        A limit on the tokens of a text below that of the model.

    Raises
    ------
    MissingError
        When it cannot be found or fetched.
    InputError
        When it is of a kind that cannot be read (an encoder-decoder) or an option does not fit it.
    IntegrityError
        When weights are missing from the files.
    """
    hub = _transformers()
    import torch

    if dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r} for a model; use one of {', '.join(_DTYPES)}")
    name, where = _place(path_or_id, revision)
    config = _fetched(name, "configuration", lambda: hub.AutoConfig.from_pretrained(name, **where))
    found = _kind_of(config, name)
    if kind is not None and kind != found:
        raise InputError(f"{name} is a model of kind {found} ({config.model_type}), not {kind}; leave kind out")
    chosen = usable_device(device)
    loader = _loader(hub, config, found)
    model = _load_weights(loader, name, where, getattr(torch, dtype))
    model.eval().requires_grad_(False).to(chosen)
    of = model.config.get_text_config() if found == "text" else model.config
    of.use_cache = False

    tokenizer = processor = limit = patch_size = None
    if found == "text":
        tokenizer = _tokenizer(hub, name, where)
        limit = max_length_of(tokenizer, of, max_length=max_length)
    else:
        processor = _fetched(name, "image processor", lambda: hub.AutoImageProcessor.from_pretrained(name, **where))
        patch_size = int(of.patch_size)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        image_processor=processor,
        kind=found,
        model_id=name,
        revision=getattr(config, "_commit_hash", None) or fingerprint(Path(name)),
        d_model=int(of.hidden_size),
        n_layers=int(of.num_hidden_layers),
        max_length=limit,
        patch_size=patch_size,
        device=chosen,
        dtype=dtype,
    )


def load_tokenizer(
    path_or_id: str | Path, *, revision: str | None = None, max_length: int | None = None
) -> tuple[Any, int]:
    """Load the tokenizer of a text model alone, to count tokens before the model is run.

    Parameters
    ----------
    path_or_id, revision, max_length
        As for `load_model`.

    Returns
    -------
    tokenizer : transformers tokenizer
    max_length : int
        Most tokens of a text, specials included.

    Raises
    ------
    MissingError, InputError
        As `load_model`; an image model has no tokenizer.
    """
    hub = _transformers()
    name, where = _place(path_or_id, revision)
    config = _fetched(name, "configuration", lambda: hub.AutoConfig.from_pretrained(name, **where))
    if _kind_of(config, name) != "text":
        raise InputError(f"{name} is a model of images, which have no tokens to count; give a limit of samples")
    tokenizer = _tokenizer(hub, name, where)
    return tokenizer, max_length_of(tokenizer, config.get_text_config(), max_length=max_length)


def fingerprint(folder: Path) -> str:
    """Return a digest of a model folder that reads little of large files.

    It covers the configuration, and of each file of weights the size and 16 samples of 64 KiB spread over it, so that
    another fine-tuning of the same model differs.
    """
    digest = hashlib.sha256()
    files = [*folder.glob("config.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.name}\n{size}\n".encode())
        with file.open("rb") as opened:
            if size <= _SAMPLED_BYTES:
                digest.update(opened.read())
                continue
            span = _SAMPLED_BYTES // _SAMPLES_PER_FILE
            for at in range(_SAMPLES_PER_FILE):
                opened.seek(at * (size - span) // (_SAMPLES_PER_FILE - 1))
                digest.update(opened.read(span))
    return f"sampled-sha256:{digest.hexdigest()}"


def _transformers() -> Any:  # typed in parts only
    try:
        import torch  # noqa: F401 - what is loaded with transformers is run with it
        import transformers
    except ImportError as error:
        raise DependencyError(f"{error.name} is needed to run models; pip install 'saestore[models]'") from error
    return transformers


def _place(path_or_id: str | Path, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return what `from_pretrained` takes: a name, and the revision where it is a hub id."""
    name = str(path_or_id)
    return name, {"revision": revision} if revision and not Path(name).is_dir() else {}


def _tokenizer(transformers: Any, name: str, where: dict[str, Any]) -> Any:
    return _fetched(name, "tokenizer", lambda: transformers.AutoTokenizer.from_pretrained(name, **where))


def _kind_of(config: Any, name: str) -> ModelKind:
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name} is an encoder-decoder ({config.model_type}); only encoders and decoders can be read")
    if config.model_type in ("clip", "siglip"):
        return "image"
    if hasattr(config, "patch_size") and not hasattr(config, "vocab_size"):
        return "image"
    if hasattr(config.get_text_config(), "vocab_size") and not hasattr(config, "vision_config"):
        return "text"
    raise InputError(
        f"{name} is a model of kind {config.model_type}; text models, CLIP, SigLIP, ViT and their kin can be read"
    )


def _loader(transformers: Any, config: Any, kind: ModelKind) -> Any:
    towers = {
        "clip": transformers.CLIPVisionModel,
        "clip_vision_model": transformers.CLIPVisionModel,
        "siglip": transformers.SiglipVisionModel,
        "siglip_vision_model": transformers.SiglipVisionModel,
    }
    return towers.get(config.model_type, transformers.AutoModel) if kind == "image" else transformers.AutoModel


def _load_weights(loader: Any, name: str, where: dict[str, Any], dtype: torch.dtype) -> Any:
    """Load from safetensors, or else from a PyTorch file with ``weights_only``; nothing is unpickled freely."""
    from pickle import UnpicklingError  # what weights_only raises; nothing is unpickled here

    from safetensors import SafetensorError

    def load(use_safetensors: bool) -> Any:
        return loader.from_pretrained(
            name, **where, dtype=dtype, use_safetensors=use_safetensors, weights_only=True, output_loading_info=True
        )

    try:
        with _quiet_loading():
            try:
                model, loading = load(True)
            except OSError:
                model, loading = _fetched(name, "weights", lambda: load(False))
    except (SafetensorError, UnpicklingError) as error:
        raise IntegrityError(
            f"the weights of {name} cannot be read ({str(error).splitlines()[0]}); "
            "fetch them again, or take a checkpoint in safetensors"
        ) from error
    # A pooler is not part of any hidden state, and many checkpoints have none.
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        raise IntegrityError(
            f"the files of {name} lack {len(missing)} weights of {type(model).__name__} ({missing[0]}, ...); "
            "they are of another model, or incomplete: fetch them again"
        )
    return model


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep transformers' bar over the tensors of a file, and its report of a head left out, off the terminal.

    Downloads still show their bars; weights that are missing are our own error.
    """
    import transformers

    logging: Any = transformers.utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _fetched(name: str, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(name).is_dir():
            remedy = f"see that the folder is complete, as save_pretrained of transformers leaves it ({what} is read)"
        else:
            remedy = "give the path of a downloaded folder, or connect to the hub (HF_TOKEN for models with a licence)"
        raise MissingError(f"no {what} of the model {name!r}: {reason}; {remedy}") from error
