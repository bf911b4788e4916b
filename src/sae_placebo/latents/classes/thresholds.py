"""Where one class of latents ends and the next begins."""

from __future__ import annotations

from pydantic import Field

from sae_placebo.core.spec import Spec


class ClassThresholds(Spec):
    """Where one class ends and the next begins. The values are proposals, which are meant to be varied."""

    min_firings: int = Field(8, ge=1)
    """Active held-out tokens below which a latent is not judged. With n tokens, a density below
    min_firings / n differs too little from 0 to describe what the latent fires on."""
    ultra_rare_density: float = Field(1e-6, ge=0, lt=1)
    """Density below which Bricken et al. (2023) call latents ultra-low density. It has an effect only when
    there are more than min_firings / 1e-6 held-out tokens."""
    dense_density: float = Field(0.1, gt=0, lt=1)
    """Density above which Sun et al. (2025, arXiv 2506.15679) call latents dense."""
    mass: float = Field(0.9, gt=0, le=1)
    """Share of a latent's activation that one token, or one family, must hold."""
    recall: float = Field(0.8, ge=0, le=1)
    """Share of a token's occurrences on which a single-token latent must be active."""
    context_recall: float = Field(0.5, ge=0, le=1)
    """Share of its token's occurrences below which a latent may be a token in context."""
    effective_tokens: float = Field(5.0, ge=1)
    """Effective tokens (2 to the token entropy) up to which a latent is on a family of tokens."""
    norm_correlation: float = Field(0.5, gt=0, le=1)
    """Correlation with the norm of the activation, in absolute value, above which it is an artefact."""
    pc_cosine: float = Field(0.8, gt=0, le=1)
    """Cosine with one of the ten leading principal components, in absolute value, above which a latent's
    decoder row is an artefact."""
    antipodality: float = Field(0.8, gt=0, le=1)
    """Antipodality (Sun et al. 2025) above which another latent counts as a latent's mirror image."""
    position_r2: float = Field(0.3, gt=0, le=1)
    """R2 of position alone from which a latent is positional."""
    position_bits: float = Field(0.05, gt=0)
    """Mutual information of position and being active, in bits, from which a latent is positional."""
    ngram_cover: float = Field(0.95, gt=0, le=1)
    """Share of active positions that the five most frequent n-grams must cover."""
    gain_r2: float = Field(0.1, gt=0, le=1)
    """Least R2 that a richer predictor must add for its part to count."""
    previous_r2: float = Field(0.3, gt=0, le=1)
    """R2 of the previous token from which a latent is on the previous token."""
    induction_d: float = Field(0.8, gt=0)
    """Standardized rise on the second occurrence of a random block from which a latent is induction."""
    bag_r2: float = Field(0.3, gt=0, le=1)
    """Least R2 of a decayed bag of previous tokens for a context latent."""
    bag_token_r2: float = Field(0.1, gt=0, le=1)
    """R2 of the current token, which a context latent must stay below."""
    attribute_r2: float = Field(0.3, gt=0, le=1)
    """Share of variance that one attribute of the token must explain."""
    attribute_tokens: float = Field(20.0, ge=1)
    """Effective tokens above which an attribute is a better description than a list of tokens."""
    kurtosis: float = Field(10.0, gt=0)
    """Kurtosis of the direct effect on the vocabulary above which a latent promotes few tokens."""
    output_lift: float = Field(1.5, ge=0)
    """How many times as often promoted tokens must come next as the current token alone implies."""
    domain_precision: float = Field(0.8, gt=0, le=1)
    """Share of a latent's active tokens that lie in one domain."""
    domain_recall: float = Field(0.3, gt=0, le=1)
    """Share of the domain's tokens below which the latent marks only a subset of it."""
    domain_auc: float = Field(0.6, ge=0.5, le=1)
    """AUC of the best simple predictor inside the domain below which a subset is arbitrary."""
    seed_r: float = Field(0.5, gt=0, le=1)
    """Correlation at which a latent counts as found again in another SAE seed; an arbitrary subset stays
    below it. With 1 there is no such condition."""
    set_r2: float = Field(0.5, gt=0, le=1)
    """R2 from which the current token, the pair of tokens, or the tokens around describe a latent that is in
    no class above."""
    partly_r2: float = Field(0.3, gt=0, le=1)
    """R2 from which they describe it in part."""
