"""What a catalogue would say of an SAE that a test made up."""

from services.contracts.sae import SaeFacts, SaeOutput
from services.contracts.site import SiteName
from services.methods.context import SaeInUse
from services.saes.sae import Sae


def in_use(
    sae: Sae,
    model: str = "tiny-llama",
    *,
    site: str = "resid_post",
    layer: int = 1,
    bos: bool | None = True,
    writes: tuple[str, int] | None = None,
    mlp_norm: bool = False,
) -> SaeInUse:
    """The SAE under the id `sae`, as one of `model`'s at a site; `writes` is a transcoder's site and layer."""
    output = None
    if writes is not None:
        assert sae.hook_name_out is not None
        output = SaeOutput(
            site=SiteName(writes[0]),
            layer=writes[1],
            width=sae.d_out,
            hook_name=sae.hook_name_out,
            skip=sae.W_skip is not None,
        )
    facts = SaeFacts(
        id="sae",
        model=model,
        architecture=sae.architecture,
        site=SiteName(site),
        layer=layer,
        d_model=sae.d_model,
        mlp_norm=mlp_norm,
        output=output,
        features=sae.d_sae,
        k=sae.k,
        bos=bos,
        norm_threshold=sae.norm_threshold,
        normalize_activations=sae.normalize_activations,
        sha256="0" * 64,
    )
    return SaeInUse(sae, facts)
