"""Settings of what is computed for every latent beside the tokens that it fires on."""

from __future__ import annotations

from pydantic import Field

from sae_placebo.core.spec import Spec
from sae_placebo.latents.ladder.token_features import LadderSpec
from sae_placebo.latents.partners.assignment import AssignmentSpec
from sae_placebo.latents.partners.partners import PartnerSpec
from sae_placebo.latents.rules.rules import RuleSpec


class StructureSpec(Spec):
    """Settings of how latents are compared with placebos, and of what counts as explained.

    Attributes:
        placebo: Arm that latents are compared with. Where none is given, it is a re-draw of the weights: a
            calibrated one, where there is one, and one that keeps the embeddings.
        partners: When two latents are partners.
        assignment: When two latents of one model's SAEs are the same by their directions.
        ladder: How the rungs of the ladder are fitted.
        explained: Held-out R2 from which a latent counts as explained by a rung of the ladder.
        repeat_rows: How many rows of random repeated blocks are read, to look for latents that copy.
        repeat_block: Tokens of a block; each row holds it twice.
        rules: How short rules of replicated latents are built.
        decoy_rate: Share of placebo latents that is allowed among what passes a score's threshold.
    """

    placebo: str | None = None
    partners: PartnerSpec = PartnerSpec()
    assignment: AssignmentSpec = AssignmentSpec()
    ladder: LadderSpec = LadderSpec()
    explained: float = Field(0.5, gt=0, lt=1)
    repeat_rows: int = Field(64, ge=1)
    repeat_block: int = Field(32, ge=2)
    rules: RuleSpec = RuleSpec()
    decoy_rate: float = Field(0.1, gt=0, lt=1)

    @property
    def repeats(self) -> tuple[int, int]:
        """The two numbers that decide the random repeated blocks: rows, and tokens of a block."""
        return self.repeat_rows, self.repeat_block
