"""What an SAE is, apart from its weights: architecture, shapes, normalisation and where it belongs in a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args

from saestore.errors import InputError

Architecture = Literal[
    "standard",
    "jumprelu",
    "gated",
    "topk",
    "abstopk",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
    "topk_transcoder",
    "topk_skip_transcoder",
    "matching_pursuit",
    "temporal",
]
Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]
Reshape = Literal["none", "hook_z"]

ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
RESHAPES: tuple[str, ...] = get_args(Reshape)

TOPK = ("topk", "abstopk", "topk_transcoder", "topk_skip_transcoder")
TRANSCODERS = tuple(name for name in ARCHITECTURES if name.endswith("transcoder"))
DENSE = ("matching_pursuit", "temporal")
"""Architectures whose units depend on each other, so that they cannot be encoded by tiles: SAELens encodes them."""

# Normalisations that SAELens applies by folding them into the weights and by nothing else: unfolded weights with one
# of these names would be encoded wrongly without an error.
_FOLDED_ONLY = {
    "expected_average_only_in": (
        "fold it in with SAELens' sae.fold_activation_norm_scaling_factor(s) and save the SAE again, "
        "or give the factor as norm_scaling_factor"
    ),
    "covariance_whitening": "fold it in with SAELens' sae.fold_activation_whitening(...) and save the SAE again",
}
_TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")

_TYPES: tuple[tuple[str, tuple[type, ...], tuple[str, ...]], ...] = (
    ("true or false", (bool,), ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm")),
    ("true, false or null", (bool, NoneType), ("prepend_bos",)),
    ("a whole number or null", (int, NoneType), ("hook_head_index", "context_size")),
    (
        "a text or null",
        (str, NoneType),
        (
            *("hook_name", "hook_name_out", "model_name", "release", "sae_id", "neuronpedia_id"),
            *("saelens_config", "normalization", "reshape_activations"),
        ),
    ),
)

# The fields on which the codes depend; the others say where the SAE comes from and belongs.
ARITHMETIC_FIELDS = (
    "architecture",
    "d_in",
    "d_out",
    "d_sae",
    "k",
    "apply_b_dec_to_input",
    "normalization",
    "rescale_acts_by_decoder_norm",
    "saelens_config",
)


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """Configuration of one inference SAE, in SAELens' words.

    Parameters
    ----------
    architecture : str
        One of `ARCHITECTURES`: SAELens' names of its inference classes, and the topk transcoders that it lacks.
    d_in, d_sae : int
        Width of the activations and number of units.
    d_out : int, optional
        Width of what the decoder gives; d_in unless this is a transcoder, which must say it.
    k : int, optional
        The K of topk, abstopk and the topk transcoders: at most K units of a row are active. None for the others.
    apply_b_dec_to_input : bool
        Whether ``b_dec`` is subtracted from the (normalised) activation before encoding.
    normalization : {"none", "layer_norm", "constant_norm_rescale"}
        Applied to each activation row first; see `saestore.kernels.normalize`.
    rescale_acts_by_decoder_norm : bool
        For those with a K: pre-activations are multiplied by the norms of the decoder rows before the selection,
        and the decoder divides by them.
    dtype : str
        Dtype of the weights as stored by the source; reading always gives float32.
    hook_name : str, optional
        SAELens (TransformerLens) name of the hook point, e.g. ``blocks.34.hook_resid_post``.
    hook_name_out : str, optional
        Of a transcoder: the hook point whose activations its decoder predicts.
    hook_head_index : int, optional
        The attention head that was read, where the SAE belongs to one.
    reshape_activations : {"none", "hook_z"}
        ``hook_z``: the model gives (n_heads, d_head) per position and the SAE sees it flattened to d_in. Rows in a
        lake are already flat.
    model_name, prepend_bos, context_size
        The model and the way its inputs were made in training, as far as known.
    release, sae_id, neuronpedia_id : str, optional
        Names of the SAE in SAELens' registry and on Neuronpedia.
    source : str
        Where the weights were read from (free text, for people).
    saelens_config : str, optional
        Of the architectures in `DENSE`: SAELens' own configuration as JSON, from which its class is built.

    Raises
    ------
    InputError
        If a field is not usable; the message names the known values or the remedy.
    """

    architecture: Architecture
    d_in: int
    d_sae: int
    d_out: int = 0
    k: int | None = None
    apply_b_dec_to_input: bool = True
    normalization: Normalization = "none"
    rescale_acts_by_decoder_norm: bool = False
    dtype: str = "float32"
    hook_name: str | None = None
    hook_name_out: str | None = None
    hook_head_index: int | None = None
    reshape_activations: Reshape = "none"
    model_name: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    release: str | None = None
    sae_id: str | None = None
    neuronpedia_id: str | None = None
    source: str = ""
    saelens_config: str | None = None

    def __post_init__(self) -> None:
        where = f" ({self.source})" if self.source else ""
        if self.architecture in _TRAINING_ONLY:
            raise InputError(
                f"SAE architecture {self.architecture!r}{where} exists only in training: save it with SAELens' "
                "save_inference_model, which turns it into a jumprelu SAE"
            )
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"SAE architecture {self.architecture!r}{where} is not supported; known: {_list(ARCHITECTURES)}"
            )
        self._check_types(where)
        if not self.d_out and not self.is_transcoder:
            object.__setattr__(self, "d_out", self.d_in)
        for name in ("d_in", "d_sae", "d_out"):
            _check_positive_int(name, getattr(self, name), where)
        if self.normalization in _FOLDED_ONLY:
            raise InputError(
                f"normalisation {self.normalization!r} of the SAE{where} is not folded into its weights: "
                f"{_FOLDED_ONLY[self.normalization]}"
            )
        if self.normalization not in NORMALIZATIONS:
            raise InputError(
                f"SAE normalisation {self.normalization!r}{where} is unknown; known: {_list(NORMALIZATIONS)}"
            )
        if self.reshape_activations not in RESHAPES:
            raise InputError(
                f"SAE reshape_activations {self.reshape_activations!r}{where} is unknown; known: {_list(RESHAPES)}"
            )
        self._check_topk(where)
        self._check_transcoder(where)
        if (self.saelens_config is not None) != (self.architecture in DENSE):
            raise InputError(
                f"a {self.architecture} SAE{where} was given {'a' if self.saelens_config else 'no'} saelens_config; "
                f"only {_list(DENSE)} need one"
            )

    def _check_types(self, where: str) -> None:
        """Refuse values that came from JSON in another type, e.g. the text "false"."""
        for words, kinds, names in _TYPES:
            for name in names:
                value = getattr(self, name)
                if type(value) not in kinds:  # a bool is no number here
                    raise InputError(f"{name}={value!r} of the SAE{where} is not usable; expected {words}")

    def _check_topk(self, where: str) -> None:
        if self.architecture not in TOPK:
            if self.k is not None:
                raise InputError(
                    f"k={self.k} was given for a {self.architecture} SAE{where}; only {_list(TOPK)} have a k: "
                    "leave it out"
                )
            if self.rescale_acts_by_decoder_norm:
                raise InputError(
                    f"rescale_acts_by_decoder_norm is set for a {self.architecture} SAE{where}; "
                    f"only {_list(TOPK)} have it"
                )
            return
        if self.k is None:
            raise InputError(
                f"a {self.architecture} SAE{where} needs k, the number of units that stay active in a row; "
                "none was given"
            )
        _check_positive_int("k", self.k, where)
        if self.k > self.d_sae:
            raise InputError(
                f"k={self.k} of the {self.architecture} SAE{where} is larger than its d_sae={self.d_sae}; "
                "k must be 1 to d_sae"
            )

    def _check_transcoder(self, where: str) -> None:
        if self.is_transcoder:
            if self.apply_b_dec_to_input:
                raise InputError(
                    f"apply_b_dec_to_input is set for a {self.architecture}{where}; its b_dec belongs to the output: "
                    "set it to false"
                )
        elif self.d_out != self.d_in:
            raise InputError(
                f"d_out={self.d_out} was given for a {self.architecture} SAE{where} with d_in={self.d_in}; "
                "only transcoders give another width"
            )

    @property
    def is_transcoder(self) -> bool:
        """Whether the decoder predicts the activations of another hook point."""
        return self.architecture in TRANSCODERS

    @property
    def has_skip(self) -> bool:
        """Whether the reconstruction adds ``x @ W_skip.T`` to what the codes give."""
        return self.architecture.endswith("skip_transcoder")

    @property
    def is_signed(self) -> bool:
        """Whether codes may be negative."""
        return self.architecture == "abstopk"

    @property
    def reads_sequences(self) -> bool:
        """Whether the code of a row depends on the rows before it in its sample."""
        return self.architecture == "temporal"

    def to_json(self) -> str:
        """Return the configuration as one JSON object with every field."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> SAEConfig:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            If the text is not such an object, or holds an unknown or an unusable field.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"SAE configuration is not JSON ({error}); expected what SAEConfig.to_json wrote"
            ) from None
        if not isinstance(fields, dict):
            raise InputError(
                f"SAE configuration is a {type(fields).__name__}; expected a JSON object of SAEConfig fields"
            )
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SAEConfig:
        """Build a configuration from a mapping of fields, naming what is missing or unknown (InputError)."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise InputError(f"unknown SAE configuration field {unknown[0]!r}; known: {_list(known)}")
        missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in fields]
        if missing:
            raise InputError(f"SAE configuration lacks {_list(missing)}; each SAE needs architecture, d_in and d_sae")
        return cls(**fields)

    def arithmetic(self) -> dict[str, object]:
        """Return the fields on which the codes depend, as they enter the content hash."""
        return {name: getattr(self, name) for name in ARITHMETIC_FIELDS}


def _check_positive_int(name: str, value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r} of the SAE{where} is not usable; expected a whole number of at least 1")


def _list(names: Mapping[str, object] | tuple[str, ...] | list[str]) -> str:
    return ", ".join(names)
