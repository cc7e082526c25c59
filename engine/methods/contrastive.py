"""What MoCo and SimCLR share: the loss that picks each query's positive out of its negatives, and two options on it.

InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, equation 4) is the cross-entropy of similarities divided by a
temperature. The options ask what negatives are worth:

- debiased (Chuang et al. 2020, arXiv 2007.00224): some negatives are of the query's own class. Their expected part,
  estimated from the positive, is taken out of the sum.
- MoCHi (Kalantidis et al. 2020, arXiv 2010.01028): most negatives are too easy. Mixtures of the hardest are added.

Shapes: Q queries, L logits of each, M keys that can be negatives, H the hardest of them, s mixtures, C dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from penstock.engine.distributed import Team
from penstock.engine.method import Encoder, Method
from penstock.engine.seeds import derive_seed
from penstock.errors import UserError

WARM_UP = 0.05  # the share of a run before mixtures are added: in the paper 10 of 200 epochs


class Contrastive(Method):
    """A method whose loss is InfoNCE.

    Args:
        temperature: what similarities are divided by.
        debias: τ⁺, the share of negatives that are of the query's class; 0: InfoNCE as it is.
        mochi: how many of the hardest negatives to mix, mixtures of two of them, mixtures of one with the query.
        seed: decides the mixtures.
        encoder, team: see Method.

    Raises:
        UserError: options that do not go together, or mixtures of nothing.
    """

    metrics = ("accuracy", "std")  # how often the positive is nearer than every real negative; see Method

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: float,
        debias: float = 0.0,
        mochi: tuple[int, int, int] | None = None,
        seed: int = 0,
        team: Team | None = None,
    ) -> None:
        super().__init__(encoder, team)
        _check_options(debias, mochi)
        self.temperature, self.debias, self.mochi, self.seed = temperature, debias, mochi, seed
        self.steps = 0
        self._parts = 0  # losses that this step has taken so far

    def info_nce(
        self, q: torch.Tensor, logits: torch.Tensor, right: torch.Tensor, keys: torch.Tensor, *, negatives: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and the accuracy.

        Args:
            q: [Q, C], of unit length.
            logits: [Q, L], similarities over the temperature; −inf where nothing is to be compared.
            right: int64 [Q], the column of each query's positive.
            keys: [M, C], what the last M columns compare with.
            negatives: how many each query has.

        Raises:
            UserError: MoCHi wants more of the hardest than there are negatives.
        """
        accuracy = (logits.detach().argmax(1) == right).float().mean()
        self._parts += 1
        if self.debias:
            share, temperature = self.debias, self.temperature
            return debiased_info_nce(logits, right, negatives=negatives, share=share, temperature=temperature), accuracy
        if self.mochi is not None:
            _check_hardest(self.mochi, negatives)
            if self.progress >= WARM_UP:
                logits = torch.cat([logits, self._mixed_logits(q, logits, right, keys)], dim=1)
        return functional.cross_entropy(logits, right), accuracy

    def _mixed_logits(
        self, q: torch.Tensor, logits: torch.Tensor, right: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """The logits [Q, s + s′] of mixtures of each query's hardest negatives. Gradient flows to the query only."""
        assert self.mochi is not None
        hardest, pairs, with_query = self.mochi
        generator = torch.Generator(q.device)
        generator.manual_seed(derive_seed(self.seed, "mochi", self.steps, self._parts, self.team.rank))
        others = _without(logits.detach(), right)[:, -len(keys) :]  # [Q, M]
        mixtures = mix_hardest(
            q, keys, others.topk(hardest).indices, pairs=pairs, with_query=with_query, generator=generator
        )
        return torch.einsum("qc,qsc->qs", q, mixtures) / self.temperature

    def after_step(self) -> None:
        self.steps += 1
        self._parts = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def debiased_info_nce(
    logits: torch.Tensor, right: torch.Tensor, *, negatives: int, share: float, temperature: float
) -> torch.Tensor:
    """Chuang et al., section 4, with one positive: −log(e⁺ / (e⁺ + Ng)), e⁺ being exp(positive / T), and

        Ng = max((Σ exp(negative / T) − τ⁺·n·e⁺) / (1 − τ⁺), n·exp(−1 / T)).

    The paper's T is .5. At MoCo's lower ones a good positive soon outweighs its share of the negatives, and the bound
    takes over, which pushes no negative away.

    Args:
        logits, right: see `Contrastive.info_nce`.
        negatives: n, how many each query has.
        share: τ⁺.
    """
    largest = logits.detach().amax(1, keepdim=True)  # all below is divided by its exponential, so that none overflows
    positive = logits.gather(1, right[:, None]) - largest  # [Q, 1]
    total = (_without(logits, right) - largest).exp().sum(1, keepdim=True)
    estimate = (total - share * negatives * positive.exp()) / (1 - share)
    least = negatives * (-1 / temperature - largest).exp()
    return ((positive.exp() + torch.maximum(estimate, least)).log() - positive).mean()


@torch.no_grad()
def mix_hardest(
    q: torch.Tensor,
    keys: torch.Tensor,
    hardest: torch.Tensor,
    *,
    pairs: int,
    with_query: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """MoCHi's synthetic negatives [Q, s + s′, C], of unit length: constants, through which nothing flows back.

    α·nᵢ + (1 − α)·nⱼ for two of a query's hardest negatives (Kalantidis et al., section 4.1), and β·q + (1 − β)·nⱼ
    with β below ½, so that the query never prevails (section 4.2).

    The paper leaves open from which distributions members, α and β come, and whether i may equal j. Here all are
    uniform and independent for each mixture, and i ≠ j: equal ones would add a negative that is there already. It
    mixes MoCo's queue; in SimCLR we mix the other images' embeddings.

    Args:
        q: [Q, C], of unit length.
        keys: [M, C], of unit length.
        hardest: int64 [Q, H], which keys are each query's hardest negatives; at least two.
        pairs, with_query: s, s′.
        generator: on the tensors' device.
    """
    (queries, choice), device = hardest.shape, q.device
    i = torch.randint(choice, (queries, pairs), generator=generator, device=device)
    j = (i + torch.randint(1, choice, (queries, pairs), generator=generator, device=device)) % choice
    alpha = torch.rand(queries, pairs, generator=generator, device=device)
    members = torch.stack([hardest.gather(1, i), hardest.gather(1, j)], dim=2)  # [Q, s, 2]
    shares = torch.stack([alpha, 1 - alpha], dim=2)
    of_two = functional.embedding_bag(  # sums rows while it gathers them: one [Q·s, C] in memory instead of three
        members.flatten(0, 1), keys, per_sample_weights=shares.flatten(0, 1), mode="sum"
    )
    one = torch.randint(choice, (queries, with_query), generator=generator, device=device)
    beta = torch.rand(queries, with_query, 1, generator=generator, device=device) / 2
    with_q = torch.lerp(keys[hardest.gather(1, one)], q[:, None], beta)  # [Q, s′, C]
    return functional.normalize(torch.cat([of_two.unflatten(0, (queries, pairs)), with_q], dim=1), dim=2)


def _without(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The logits [Q, L] of negatives: −inf in place of the positive."""
    return logits.scatter(1, right[:, None], -torch.inf)


def _check_options(debias: float, mochi: tuple[int, int, int] | None) -> None:
    if mochi is None:
        return
    if debias:
        raise UserError(
            f"--debias {debias} estimates from negatives that are drawn from the data, and --mochi adds some that are"
            " not: leave one of them out"
        )
    hardest, pairs, with_query = mochi
    if hardest < 2 or min(pairs, with_query) < 0 or pairs + with_query == 0:
        raise UserError(
            f"--mochi {hardest} {pairs} {with_query}: it takes at least 2 hard negatives to make at least 1 mixture;"
            " try --mochi 1024 1024 128"
        )


def _check_hardest(mochi: tuple[int, int, int], negatives: int) -> None:
    hardest, pairs, with_query = mochi
    if hardest > negatives:
        raise UserError(
            f"--mochi asks for the {hardest} hardest of {negatives} negatives: use at most"
            f" --mochi {negatives} {pairs} {with_query}"
        )
