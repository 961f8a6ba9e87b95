"""What a catalogue would say of an SAE that a test made up."""

from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName
from services.methods.context import SaeInUse
from services.saes.sae import Sae


def in_use(
    sae: Sae, model: str = "tiny-llama", *, site: str = "resid_post", layer: int = 1, bos: bool | None = True
) -> SaeInUse:
    """The SAE under the id `sae`, as one of `model`'s at a site."""
    facts = SaeFacts(
        id="sae",
        model=model,
        architecture=sae.architecture,
        site=SiteName(site),
        layer=layer,
        d_model=sae.d_model,
        features=sae.d_sae,
        k=sae.k,
        bos=bos,
        norm_threshold=sae.norm_threshold,
        sha256="0" * 64,
    )
    return SaeInUse(sae, facts)
