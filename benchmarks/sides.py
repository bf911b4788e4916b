"""What is measured: one trainer of each side, behind one small interface. Runs in every environment.

Each peer is called as its own training loop calls it: forward, loss, backward, and all that it does
around its optimizer (normalization, clipping, firing statistics). Imports of peers are inside the
functions, since no environment has them all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

SAE_SEED = 1
Step = Callable[[torch.Tensor], None]
Reconstruct = Callable[[torch.Tensor], tuple[torch.Tensor, float]]


class Unsupported(Exception):
    """This side has no such architecture, or not with this setting."""


@dataclass(frozen=True)
class Setting:
    """One SAE to train, as every side is told it.

    Attributes:
        kind: topk, batchtopk, relu or jumprelu.
        total_tokens: Length of the run; schedules refer to it.
        learning_rate: Peak; rises over `warmup_share` of the run, falls to zero over `decay_share`.
        sparsity: Weight of the penalty, in each side's own unit; unused by the TopK family.
        target_l0: For sides that steer towards one. `sparsity` is then how hard dictionary-learning
            steers, and what ours divides its target by.
        search: Precision in which ours looks for candidates; empty where the default is meant.
    """

    kind: str
    d_in: int
    d_sae: int
    k: int = 32
    batch_tokens: int = 4096
    total_tokens: int = 10**9
    learning_rate: float = 1e-4
    warmup_share: float = 0.05
    decay_share: float = 0.2
    sparsity: float | None = None
    target_l0: float | None = None
    search: str = ""

    @property
    def steps(self) -> int:
        return max(1, self.total_tokens // self.batch_tokens)

    @property
    def warmup_steps(self) -> int:
        return int(self.warmup_share * self.steps)

    @property
    def decay_steps(self) -> int:
        return int(self.decay_share * self.steps)

    @property
    def sparsity_warmup_steps(self) -> int:
        """Steps over which peers raise their penalty, where they can."""
        return max(1, int(0.1 * self.steps))

    def share(self, step: int) -> float:
        """Return the share of the peak rate, for peers whose schedule is a function of the step."""
        rising = (step + 1) / max(self.warmup_steps, 1)
        falling = (self.steps - step) / max(self.decay_steps, 1)
        return max(0.0, min(1.0, rising, falling))


@dataclass(frozen=True)
class Side:
    """A trainer: its step, what it makes of held-out activations, and the size of its weights."""

    step: Step
    reconstruct: Reconstruct
    n_parameters: int
    notes: dict[str, Any] = field(default_factory=dict)


def active(codes: torch.Tensor) -> float:
    return float((codes > 0).sum())


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def ours(setting: Setting) -> Side:
    from sae_placebo.core.errors import PlaceboError
    from sae_placebo.saes import SAES, parse_sae
    from sae_placebo.saes.training import Fit, TrainingSpec

    if setting.kind not in SAES:
        raise Unsupported(f"kind {setting.kind!r} is not registered")
    fields = SAES[setting.kind].model_fields
    table: dict[str, Any] = {"kind": setting.kind, "d_sae": setting.d_sae}
    if "k" in fields:
        table["k"] = setting.k if fields["k"].annotation is int else float(setting.k)
    if "l0" in fields and setting.target_l0 is not None:
        # it steers itself: to match what is held out, the target is moved, and nothing else
        table["l0"] = setting.target_l0 / (setting.sparsity or 1.0)
    training = TrainingSpec(
        batch_tokens=setting.batch_tokens,
        learning_rate=setting.learning_rate,
        warmup_share=setting.warmup_share,
        decay_share=setting.decay_share,
        **({"search": setting.search} if setting.search else {}),
    )
    try:
        sae = parse_sae(table).create(setting.d_in, SAE_SEED)
    except PlaceboError as problem:
        raise Unsupported(str(problem)) from None
    fit = Fit(sae, training, setting.total_tokens, copied=False)

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        now = fit.sae()
        codes = now.encode(x)
        return now.decode(codes), float(len(codes.values))

    has_compiled = importlib.util.find_spec("sae_placebo.saes.fast") is not None
    notes: dict[str, Any] = {"sae": table, "compiled": False}
    if has_compiled:
        from sae_placebo.saes import fast

        notes["compiled"] = fast.available()
    return Side(fit.step, reconstruct, sum(t.numel() for t in sae.params.values()), notes)


def textbook(setting: Setting) -> Side:
    """Twenty lines of PyTorch, as a paper's appendix would have them."""
    if setting.kind != "topk":
        raise Unsupported("the textbook side is TopK only")
    torch.manual_seed(SAE_SEED)
    encoder = torch.nn.Linear(setting.d_in, setting.d_sae)
    decoder = torch.nn.Linear(setting.d_sae, setting.d_in)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    adam = torch.optim.Adam(parameters, lr=setting.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, setting.share)

    def codes(x: torch.Tensor) -> torch.Tensor:
        values, index = encoder(x - decoder.bias).relu().topk(setting.k, dim=-1)
        return torch.zeros(len(x), setting.d_sae).scatter_(1, index, values)

    def step(x: torch.Tensor) -> None:
        adam.zero_grad()
        loss = (x - decoder(codes(x))).square().sum(dim=1).mean()
        loss.backward()
        adam.step()
        schedule.step()

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        found = codes(x)
        return decoder(found), active(found)

    return Side(step, reconstruct, sum(p.numel() for p in parameters))


def sae_lens(setting: Setting) -> Side:
    import sae_lens as lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(SAE_SEED)
    sizes = {"d_in": setting.d_in, "d_sae": setting.d_sae}
    sparsity = 1.0 if setting.sparsity is None else setting.sparsity
    warmup = setting.sparsity_warmup_steps
    make: dict[str, Callable[[], Any]] = {
        "topk": lambda: lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(k=setting.k, **sizes)),
        "batchtopk": lambda: lens.BatchTopKTrainingSAE(
            lens.BatchTopKTrainingSAEConfig(k=setting.k, **sizes)
        ),
        "relu": lambda: lens.StandardTrainingSAE(
            lens.StandardTrainingSAEConfig(
                l1_coefficient=sparsity, l1_warm_up_steps=warmup, **sizes
            )
        ),
        "jumprelu": lambda: lens.JumpReLUTrainingSAE(
            lens.JumpReLUTrainingSAEConfig(
                l0_coefficient=sparsity, l0_warm_up_steps=warmup, **sizes
            )
        ),
    }
    if setting.kind not in make:
        raise Unsupported(f"sae-lens has no {setting.kind!r} here")
    sae = make[setting.kind]()
    config = SAETrainerConfig(
        total_training_samples=setting.total_tokens,
        train_batch_size_samples=setting.batch_tokens,
        lr=setting.learning_rate,
        lr_end=setting.learning_rate / 10,  # unused where the schedule is constant, but demanded
        lr_warm_up_steps=setting.warmup_steps,
        lr_decay_steps=setting.decay_steps,
    )
    trainer = SAETrainer(config, sae, iter(()))

    def step(x: torch.Tensor) -> None:
        trainer.step(x).loss.item()
        trainer.n_training_steps += 1

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        sae.eval()
        codes = sae.encode(x)
        return sae.decode(codes), active(codes)

    return Side(step, reconstruct, count(sae))


def dictionary_learning(setting: Setting) -> Side:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    torch.manual_seed(SAE_SEED)
    shared: dict[str, Any] = {
        "steps": setting.steps,
        "activation_dim": setting.d_in,
        "dict_size": setting.d_sae,
        "layer": 0,
        "lm_name": "x",
        "device": "cpu",
        "lr": setting.learning_rate,
        "warmup_steps": setting.warmup_steps,
        "decay_start": setting.steps - max(setting.decay_steps, 1),
    }
    sparsity = 1.0 if setting.sparsity is None else setting.sparsity
    warmup = {"sparsity_warmup_steps": setting.sparsity_warmup_steps}
    # thresholds of BatchTopK are averaged from this step on
    early = {"threshold_start_step": min(1000, setting.steps // 2)}
    make: dict[str, Callable[[], Any]] = {
        "topk": lambda: TopKTrainer(k=setting.k, **early, **shared),
        "batchtopk": lambda: BatchTopKTrainer(k=setting.k, **early, **shared),
        "relu": lambda: StandardTrainer(l1_penalty=sparsity, **warmup, **shared),
        "jumprelu": lambda: JumpReluTrainer(
            sparsity_penalty=sparsity, target_l0=setting.target_l0 or 20.0, **warmup, **shared
        ),
    }
    if setting.kind not in make:
        raise Unsupported(f"dictionary-learning has no {setting.kind!r} here")
    trainer = make[setting.kind]()
    # its own loop feeds activations of mean squared norm 1, and JumpReLU's bandwidth is made for them
    scale = setting.d_in**-0.5 if setting.kind == "jumprelu" else 1.0
    done = 0

    def step(x: torch.Tensor) -> None:
        nonlocal done
        done += 1  # step 0 of TopK begins with a geometric median, once
        trainer.update(done, x * scale if scale != 1.0 else x)

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        codes = trainer.ae.encode(x * scale)
        return trainer.ae.decode(codes) / scale, active(codes)

    return Side(step, reconstruct, count(trainer.ae))


def sparsify(setting: Setting) -> Side:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    if setting.kind != "topk":
        raise Unsupported("sparsify has TopK only")
    torch.manual_seed(SAE_SEED)
    config = SparseCoderConfig(num_latents=setting.d_sae, k=setting.k)
    sae = SparseCoder(setting.d_in, config, dtype=torch.float32)
    adam = torch.optim.Adam(sae.parameters(), lr=setting.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, setting.share)
    since_fired = torch.zeros(setting.d_sae, dtype=torch.long)

    # the body of sparsify.Trainer.fit for one hookpoint and one micro-batch; it has no buffer and no
    # loop of its own for activations that are in memory
    def step(x: torch.Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).pow(2).sum()
        out = sae(x=x, y=x, dead_mask=None, total_variance=variance)
        fired = torch.zeros(setting.d_sae, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        (out.fvu + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        schedule.step()
        since_fired.add_(len(x))
        since_fired[fired] = 0

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        codes = sae.encode(x)
        found = sae.decode(codes.top_acts, codes.top_indices)
        return found, active(codes.top_acts)

    return Side(step, reconstruct, count(sae))


def floor(setting: Setting) -> Side:
    """The encoder product alone: x times W_enc, W_enc latent by latent as ours keeps it.

    By `search`: empty, whole; "chunks", 512 tokens at a time into a kept buffer; "threads", one chunk
    per thread at a time, each thread with products of its own.
    """
    torch.manual_seed(SAE_SEED)
    weights = torch.randn(setting.d_sae, setting.d_in).t()
    bias = torch.zeros(setting.d_sae)
    rows = {"": setting.batch_tokens, "chunks": 512, "threads": 256}[setting.search]
    n_threads = torch.get_num_threads() if setting.search == "threads" else 1
    kept = [torch.empty(rows, setting.d_sae) for _ in range(n_threads)]

    def products(x: torch.Tensor, out: torch.Tensor) -> None:
        for part in x.split(rows):
            torch.addmm(bias, part, weights, out=out[: len(part)])

    def step(x: torch.Tensor) -> None:
        products(x, kept[0])

    if n_threads > 1:
        pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
        list(pool.map(lambda _: None, range(n_threads)))

        def step(x: torch.Tensor) -> None:
            torch.set_num_threads(1)
            list(pool.map(products, x.chunk(n_threads), kept))
            torch.set_num_threads(n_threads)

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        raise Unsupported("the floor learns nothing")

    return Side(step, reconstruct, weights.numel())


SIDES: dict[str, Callable[[Setting], Side]] = {
    "ours": ours,
    "sae-lens": sae_lens,
    "dictionary-learning": dictionary_learning,
    "sparsify": sparsify,
    "textbook": textbook,
    "floor": floor,
}
