"""By the names that SAELens' registry has for its own converters: what is read, and why the rest is not."""

from collections.abc import Mapping

from services.saes.formats.gemma_scope_2 import GEMMA_SCOPE_2
from services.saes.formats.llama_scope import LLAMA_SCOPE, LLAMA_SCOPE_R1_DISTILL
from services.saes.formats.origin import Format
from services.saes.formats.qwen_transcoders import QWEN_TRANSCODERS

FORMATS: Mapping[str, Format] = {
    "gemma_3": GEMMA_SCOPE_2,
    "llama_scope": LLAMA_SCOPE,
    "llama_scope_r1_distill": LLAMA_SCOPE_R1_DISTILL,
    "mwhanna_transcoder": QWEN_TRANSCODERS,
}

_PICKLED = "its weights are pickled (.pt), and lensd reads safetensors only"
_PACKED = "its weights are NumPy archives (.npz), and lensd reads safetensors only"

REFUSED: Mapping[str, str] = {
    "connor_rob_hook_z": _PICKLED,
    "deepseek_r1": _PICKLED,
    "dictionary_learning_1": _PICKLED,
    "goodfire": _PICKLED,
    "qwen_scope": _PICKLED,
    "gemma_2": _PACKED,
    "gemma_2_transcoder": _PACKED,
    "mntss_clt_layer_transcoder": "a cross-layer transcoder writes at many layers, and lensd's write at one",
    "temporal": "a temporal SAE's features depend on the tokens before, and lensd encodes token by token",
}

UNKNOWN = "lensd does not know this format"
