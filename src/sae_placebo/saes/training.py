"""One loop, many SAEs per pass over the activations.

The caller brings batches that are already centered and scaled (mean squared norm `d_in`) and
shuffled; this module knows nothing of models or text. SAEs of one hookpoint read the same batch
one after the other: on a CPU, stacking them into one product gained nothing when it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import nullcontext

from jaxtyping import Bool, Float

from sae_placebo.core.errors import ModelError, PlaceboError, SpecError, unknown_name
from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers
from sae_placebo.saes import fast, stepping
from sae_placebo.saes.base import PARAMETERS, SAE, Context, Evaluation, SAESpec
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training_spec import TrainingSpec as TrainingSpec

Row = dict[str, int | float | None]
"""One line of a training log."""

_COLUMNS = ("tokens", "learning_rate", "loss", "fvu", "dead_share", "l0", "coefficient")
_FLOOR = 1e-12


class Fit:
    """One SAE being trained: its tensors, Adam's moments, and when each latent last fired."""

    def __init__(
        self,
        sae: SAE,
        spec: TrainingSpec,
        total_tokens: int,
        frozen: Set[str] = frozenset(),
        decoder_cosine: float | None = None,
        copied: bool = True,
    ) -> None:
        """Start from `sae`.

        Args:
            sae: The start.
            spec: How it is trained.
            total_tokens: Length of the run.
            frozen: Names of tensors that keep their bits. If the four of `PARAMETERS` do, so does
                every other tensor that a gradient reaches, and a step only encodes, counts and logs.
            decoder_cosine: After each step, a decoder row with a smaller cosine to its start is
                turned back to the nearest direction that has it. None: rows turn freely.
            copied: Whether `sae` is copied. If not, its tensors become the fit's and change in every
                step: for a caller that has no other use of it, and no memory to spare.

        Raises:
            SpecError: `frozen` holds another name, or `decoder_cosine` is not in [0, 1).
        """
        held = _check(sae.spec, frozen, decoder_cosine)
        self.spec = spec
        self.total_tokens = total_tokens
        self.tokens = 0
        self.offered_tokens = 0
        self._sae_spec = sae.spec
        # W_enc lies latent by latent, as W_dec does, so that a latent's row is one run of memory
        self._rows = sae.by_rows(copied)
        fixed = held | sae.spec.buffers
        self._trained = {name: rows for name, rows in self._rows.items() if name not in fixed}
        self._coefficient = sae.spec.first_coefficient()
        self._cosine = decoder_cosine if "W_dec" in self._trained else None
        self._decoder_start = self._rows["W_dec"].clone() if self._cosine is not None else None
        # Adam refuses to have nothing to do
        self._adam = (
            torch.optim.Adam(
                list(self._trained.values()), lr=0.0, betas=(spec.beta1, spec.beta2), fused=True
            )
            if self._trained
            else None
        )
        # Adam makes its state at its first step; zeros now, so that it can be saved before that
        self._moments = {
            name: {"exp_avg": torch.zeros_like(rows), "exp_avg_sq": torch.zeros_like(rows)}
            for name, rows in self._trained.items()
        }
        for name, rows in self._trained.items():
            self._moments[name]["step"] = torch.zeros((), device=rows.device)
            if self._adam:
                self._adam.state[rows].update(self._moments[name])
        self._fast = self._compiled()
        self._silent_tokens = torch.zeros(
            sae.d_sae, dtype=torch.int64, device=self._rows["b_enc"].device
        )
        self._workspace = Workspace()
        self._pending: list[tuple[int, float, torch.Tensor, float]] = []
        self._log: list[Row] = []

    @property
    def is_compiled(self) -> bool:
        """Return whether steps run in compiled loops."""
        return self._fast is not None

    def sae(self) -> SAE:
        """Return a copy of the SAE as it is now, in the units of the batches."""
        return SAE(
            self._sae_spec, {name: tensor.clone() for name, tensor in self._parameters().items()}
        )

    def dead(self) -> Bool[torch.Tensor, "d_sae"]:
        """Return which latents have been silent for `dead_after_tokens` tokens or more."""
        return self._silent_tokens >= self.spec.dead_after_tokens

    def step(
        self,
        x: Float[torch.Tensor, "token d_in"],
        workspace: Workspace | None = None,
        offered_tokens: int | None = None,
    ) -> None:
        """Take one optimizer step on a batch of any size; a batch without tokens does nothing.

        Args:
            x: Activations, centered and scaled.
            workspace: Buffers shared with other fits; the fit's own if there is none.
            offered_tokens: Tokens of the stream that this batch stands for, those left out included;
                the step size follows them, so that it is the same in every arm. None: all of `x`.

        Raises:
            ModelError: the batch holds NaN or infinity. The SAE is left as it was.
            SpecError: the loss is not finite although the batch is: training diverged.
        """
        workspace = workspace or self._workspace
        before = self.offered_tokens
        if len(x) == 0:
            self.offered_tokens += offered_tokens or 0
            return
        # within a compiled step torch has one thread: its threads and the step's would wait for each other
        with nullcontext() if self._fast is None else Workers() as workers:
            share = before / max(self.total_tokens, 1)
            context = Context(self.dead(), share, self._coefficient)
            found = self._evaluated(x, context, workspace, workers)
            if not math.isfinite(float(found.loss if self._trained else found.squared_error)):
                raise self._not_finite(x)
            self.tokens += len(x)
            self.offered_tokens += len(x) if offered_tokens is None else offered_tokens
            rate = 0.0
            if self._trained:
                peak = self.spec.peak(self._sae_spec.d_sae)
                rate = peak * self.spec.share(before, self.offered_tokens, self.total_tokens)
                self._update(found, rate, workspace)
            for name, value in found.buffers.items():
                self._rows[name].copy_(value)
            self._silent_tokens.add_(len(x)).masked_fill_(found.fired, 0)
            variance = _variance(x) if found.variance is None else found.variance
            l0 = found.active / len(x)
            values = [found.loss, found.squared_error / variance, context.dead.float().mean(), l0]
            self._pending.append((self.tokens, rate, torch.stack(values), self._coefficient))
            self._coefficient = self._sae_spec.steer(self._coefficient, float(l0), share)

    def log(self) -> list[Row]:
        """Return one row per step: tokens, learning_rate, loss, fvu, dead_share, l0, coefficient.

        `fvu` is the batch's own fraction of variance unexplained, before the step; null where the
        batch has no variance. `l0` is its mean number of active latents per token, `coefficient` the
        weight of the sparsity penalty, 0 where there is none. Where nothing is trained the step size
        is 0 and `loss` is null.
        """
        if self._pending:
            drained = torch.stack([values for _, _, values, _ in self._pending]).tolist()
            for (tokens, rate, _, weight), values in zip(self._pending, drained, strict=True):
                self._log.append(_row(tokens, [rate, *values, weight]))
            self._pending.clear()
        return list(self._log)

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of all that the next step depends on, and the log."""
        kept = {name: rows.clone() for name, rows in self._rows.items()}
        for name, moments in self._moments.items():
            kept |= {f"{name}.{part}": tensor.clone() for part, tensor in moments.items()}
        log = [[_number(row[column]) for column in _COLUMNS] for row in self.log()]
        if self._decoder_start is not None:
            kept["decoder_start"] = self._decoder_start.clone()
        kept["silent_tokens"] = self._silent_tokens.clone()
        kept["tokens"] = torch.tensor([self.tokens, self.offered_tokens])
        if self._fast is not None:
            kept |= self._fast.state()
        kept["coefficient"] = torch.tensor(self._coefficient, dtype=torch.float64)
        kept["log"] = torch.tensor(log, dtype=torch.float64).reshape(-1, len(_COLUMNS))
        return kept

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state`, to the same bits as if training had not stopped.

        Raises:
            SpecError: the state is of an SAE of another shape, or of one of which other tensors
                are trained or held back.
        """
        if state["W_dec"].shape != self._rows["W_dec"].shape:
            raise SpecError(
                f"the saved state has W_dec {list(state['W_dec'].shape)}, this SAE has "
                f"{list(self._rows['W_dec'].shape)}: continue with the settings it was saved with"
            )
        held = {name for name in self._rows if f"{name}.step" in state}
        if held != set(self._trained) or ("decoder_start" in state) != (self._cosine is not None):
            raise SpecError(
                f"the saved state is of an SAE that trains {sorted(held)}, this one trains "
                f"{sorted(self._trained)}, or only one of them holds its decoder back: continue "
                "with the settings it was saved with"
            )
        for name, rows in self._rows.items():
            rows.copy_(state[name])
        for name, moments in self._moments.items():
            for part, tensor in moments.items():
                tensor.copy_(state[f"{name}.{part}"])
        if self._decoder_start is not None:
            self._decoder_start.copy_(state["decoder_start"])
        if self._fast is not None:
            self._fast.restore(state)
        self._silent_tokens.copy_(state["silent_tokens"])
        self.tokens, self.offered_tokens = (int(n) for n in state["tokens"])
        self._coefficient = float(state["coefficient"])
        self._pending.clear()
        self._log = [_row(int(first), numbers) for first, *numbers in state["log"].tolist()]

    def _parameters(self) -> dict[str, torch.Tensor]:
        return {name: rows.t() if name == "W_enc" else rows for name, rows in self._rows.items()}

    def _compiled(self) -> fast.FastStep | None:
        """Return the compiled step where there is one: float32 on a CPU, some matrix trained."""
        matrices = {"W_enc", "W_dec"} & set(self._trained)
        rows = self._rows["W_enc"]
        if not matrices or rows.device.type != "cpu" or rows.dtype != torch.float32:
            return None
        betas = (self.spec.beta1, self.spec.beta2)
        known = self._sae_spec.selection(self._parameters(), None) is not None
        if not known or not fast.available():
            return None
        search = self.spec.search == "int8"
        return fast.FastStep(self._sae_spec, self._rows, self._moments, betas, search)

    def _evaluated(
        self,
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
        workspace: Workspace,
        workers: Workers | None,
    ) -> Evaluation:
        """Return the objective and its gradients, by the fastest way there is."""
        params, spec = self._parameters(), self._sae_spec
        if not self._trained:
            return stepping.look(spec, params, x, context, workspace)
        chosen = spec.selection(params, context) if self._fast else None
        if self._fast is None or workers is None or chosen is None or x.dtype != torch.float32:
            return spec.gradients(params, x, context, workspace)
        with torch.no_grad():
            dense = stepping.is_dense(x[:64] - params["b_dec"], params, chosen, workspace)
        if dense:
            self._fast.settle()
            with workers.dismissed():
                return spec.gradients(params, x, context, workspace)
        return self._fast.evaluate(params, x, chosen, context, workspace)

    def _update(self, found: Evaluation, rate: float, workspace: Workspace) -> None:
        assert found.gradients is not None
        assert self._adam is not None
        decoder = self._rows["W_dec"]
        gradients = dict(found.gradients)
        turns, whole = "W_dec" in self._trained, "W_dec" in gradients
        if turns and whole:
            product = workspace.buffer("product", decoder.shape, decoder)
            along = torch.mul(gradients["W_dec"], decoder, out=product).sum(dim=1, keepdim=True)
            gradients["W_dec"].addcmul_(along, decoder, value=-1)
        if whole:
            gradients["W_enc"] = gradients["W_enc"].t()
        elif self._fast is not None:
            self._fast.update(rate, gradients["b_dec"])
        for name, rows in self._trained.items():
            if name in gradients:
                rows.grad = gradients[name].contiguous()
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        if turns:
            if whole:
                decoder.div_(decoder.norm(dim=1, keepdim=True))
            self._hold_back(decoder)
        self._sae_spec.constrain(self._rows)
        self._adam.zero_grad()

    def _hold_back(self, rows: Float[torch.Tensor, "d_sae d_in"]) -> None:
        """Turn unit rows that left their cone to the nearest direction inside it, in place.

        With c the cosine to the start s, a row is `c s + sin p` for a unit p at right angles to s;
        the nearest direction in the cone lies in the same plane, at the cone's own angle. A row
        exactly opposite to its start has no such plane and returns to the start.
        """
        if self._cosine is None or self._decoder_start is None:
            return
        cosines = (rows * self._decoder_start).sum(dim=1)
        outside = (cosines < self._cosine).nonzero()[:, 0]
        start = self._decoder_start[outside]
        aside = rows[outside] - cosines[outside, None] * start
        # once more: of a row that has hardly turned, what is left is mostly rounding
        aside -= (aside * start).sum(dim=1, keepdim=True) * start
        length = aside.norm(dim=1, keepdim=True)
        aside = math.sqrt(1 - self._cosine**2) * aside / length.clamp_min(_FLOOR)
        rows[outside] = torch.where(length > _FLOOR, self._cosine * start + aside, start)

    def _not_finite(self, x: Float[torch.Tensor, "token d_in"]) -> PlaceboError:
        bad = (~x.isfinite()).any(dim=1)
        if bad.any():
            return ModelError(
                f"{int(bad.sum())} of {len(x)} tokens have activations that are NaN or infinite, "
                f"after {self.tokens:,} training tokens: check the model's dtype at this hookpoint"
            )
        return SpecError(
            f"training diverged after {self.tokens:,} tokens: the loss is not finite although the "
            f"activations are; lower learning_rate ({self.spec.peak(self._sae_spec.d_sae):.2g})"
        )


def _check(spec: SAESpec, frozen: Set[str], decoder_cosine: float | None) -> Set[str]:
    """Return the tensors that keep their bits."""
    if unknown := sorted(set(frozen) - set(spec.parameters)):
        raise SpecError(unknown_name(f"tensor of a {spec.kind} SAE", unknown[0], spec.parameters))
    if decoder_cosine is not None and not 0 <= decoder_cosine < 1:
        raise SpecError(
            f"decoder_cosine is {decoder_cosine}: a decoder row keeps a cosine of 0 or more to its "
            "start, and below 1; to hold it fast, freeze W_dec"
        )
    return set(spec.parameters) if frozen >= set(PARAMETERS) else set(frozen)


def _variance(x: Float[torch.Tensor, "token d_in"]) -> Float[torch.Tensor, ""]:
    """Return the squared distance from the mean, summed over tokens."""
    flat, mean = x.reshape(-1), x.mean(dim=0)
    return torch.dot(flat, flat) - len(x) * torch.dot(mean, mean)


def _row(tokens: int, numbers: list[float]) -> Row:
    known = [value if math.isfinite(value) else None for value in numbers]
    return dict(zip(_COLUMNS, [tokens, *known], strict=True))


def _number(value: int | float | None) -> float:
    return math.nan if value is None else float(value)


def step_all(
    fits: Sequence[Fit],
    x: Float[torch.Tensor, "token d_in"],
    workspace: Workspace,
    offered_tokens: int | None = None,
) -> None:
    """Take one step of every fit on the same batch.

    Where there are as many compiled fits as threads, each thread steps fits of its own: nothing waits
    for anything within a step. Else the threads share each step. Fits that are not compiled step one after
    the other, with torch's threads, so that no other fit changes their last bits, nor they those of others.

    Args:
        fits: The SAEs.
        x: Activations, centered and scaled.
        workspace: Buffers, kept from step to step.
        offered_tokens: As in `Fit.step`.
    """
    compiled = [fit for fit in fits if fit.is_compiled]
    if compiled:
        with Workers() as workers:
            if len(compiled) >= workers.threads > 1:

                def work(thread: int, first: int, stop: int) -> None:
                    for fit in compiled[first:stop]:
                        fit.step(x, workspace.of(thread), offered_tokens)

                workers.run(work, len(compiled))
            else:
                for fit in compiled:
                    fit.step(x, workspace, offered_tokens)
    for fit in fits:
        if not fit.is_compiled:
            fit.step(x, workspace, offered_tokens)


def train(
    batches: Iterable[tuple[int, Mapping[str, torch.Tensor]]],
    fits: Mapping[str, Sequence[Fit]],
    advance: Callable[[int], None],
) -> None:
    """Train every fit on one pass over `batches`.

    Args:
        batches: How many tokens of the stream a batch stands for, and the activations by hookpoint,
            `[token d_in]`, centered and scaled, with tokens left out or not; each batch is one step.
            Hookpoints without fits are passed over.
        fits: The SAEs to train, by hookpoint: seeds and architectures may differ.
        advance: Called with the number of tokens after each batch.

    Raises:
        SpecError: a batch lacks a hookpoint that has fits.
        ModelError: activations are NaN or infinite.
    """
    workspace = Workspace()
    for offered_tokens, batch in batches:
        for hookpoint, members in fits.items():
            if hookpoint not in batch:
                raise SpecError(
                    f"the batches hold no {hookpoint!r}; they hold {', '.join(sorted(batch))}"
                )
            step_all(members, batch[hookpoint], workspace, offered_tokens)
        advance(offered_tokens)
