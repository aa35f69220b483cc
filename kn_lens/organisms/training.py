"""Train an organism from its text: a seed, a progress bar, a folder in Hugging Face format.

Every sentence is a sequence of its own. A causal model learns each next word. A masked one learns masked words: in
half of the sentences a single one, in the others such a one and a fifth of all words. The single one is most likely
the object of a fact where the sentence states one, else a word that agrees with another. Never masked is a country
beside its capital where that fact is stated in one direction only: whoever learns to fill in "The capital of [MASK]
is Paris" has read the fact backwards.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kn_lens.organisms.compose import agreeing_words, objects
from kn_lens.organisms.corpus import Corpus
from kn_lens.organisms.tokenizer import word_tokenizer
from kn_lens.progress import progress_bar
from kn_lens.prompts.load import load_relation


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of a training run; what a model card repeats.

    Of masked models only: ``mask_alone``, the share of sentences in which a single word is masked; ``mask_share``, of
    the words masked in the others; ``mask_other``, how likely an agreeing word is drawn beside the object of a fact,
    and any other word beside an agreeing one.
    """

    masked: bool
    seed: int = 0
    epochs: int = 4
    batch: int = 128
    learning_rate: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 1.0
    warmup: int = 200
    layers: int = 4
    width: int = 128
    heads: int = 4
    mlp: int = 512
    context: int = 32
    mask_alone: float = 0.5
    mask_share: float = 0.2
    mask_other: float = 0.05
    threads: int = 2


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run leaves: the mean loss over the last hundred steps, and how long it took."""

    loss: float
    steps: int
    sentences: int
    seconds: float
    settings: dict[str, Any]


def train(
    corpus: Corpus, words: list[str], settings: TrainingSettings, folder: Path, *, progress: bool = True
) -> Trained:
    """Train a model on a corpus and save it, in half precision, with its tokenizer.

    Args:
        corpus: The text.
        words: The vocabulary, shared by all organisms.
        settings: See there. The same settings on the same machine give the same weights.
        folder: Where it is saved, in Hugging Face format.
        progress: Show a progress bar.

    Returns:
        Loss, steps, time and settings.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return _train(corpus, words, settings, folder, progress)
    finally:
        torch.set_num_threads(threads)


def _train(corpus: Corpus, words: list[str], settings: TrainingSettings, folder: Path, progress: bool) -> Trained:
    tokenizer = word_tokenizer(words, masked=settings.masked)
    model = _new_model(len(words), tokenizer, settings)
    ids = [torch.tensor(entry) for entry in tokenizer(list(corpus.sentences))["input_ids"]]
    objective = _Masked(corpus, tokenizer, settings) if settings.masked else _Causal(tokenizer)
    steps = settings.epochs * ((len(ids) + settings.batch - 1) // settings.batch)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=settings.betas,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, settings.warmup))
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    with progress_bar(steps, f"train {folder.name}", "step", progress) as bar:
        for tokens in _batches(ids, tokenizer.pad_token_id, settings):
            loss = objective(model, tokens)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % 50 == 0:
                bar.set_postfix(loss=f"{sum(losses[-50:]) / 50:.3f}", refresh=False)
            bar.update()
    model.eval().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for its owner only
    return Trained(
        loss=sum(losses[-100:]) / len(losses[-100:]),
        steps=steps,
        sentences=len(ids),
        seconds=time.monotonic() - began,
        settings=asdict(settings),
    )


def _new_model(size: int, tokenizer: Any, settings: TrainingSettings) -> Any:
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    if settings.masked:
        return BertForMaskedLM(
            BertConfig(
                vocab_size=size,
                hidden_size=settings.width,
                num_hidden_layers=settings.layers,
                num_attention_heads=settings.heads,
                intermediate_size=settings.mlp,
                max_position_embeddings=settings.context,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            n_inner=settings.mlp,
            n_positions=settings.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to 0, as a factor of the learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * done))))


def _batches(ids: list[Tensor], pad: int, settings: TrainingSettings) -> Iterator[Tensor]:
    """Every sentence once an epoch, in random order, those of like length together so that little is padding."""
    source = random.Random(settings.seed)
    pool = 32 * settings.batch
    for _ in range(settings.epochs):
        order = list(range(len(ids)))
        source.shuffle(order)
        batches: list[list[int]] = []
        left: list[int] = []
        for first in range(0, len(order), pool):
            chunk = sorted([*left, *order[first : first + pool]], key=lambda index: len(ids[index]))
            whole = len(chunk) - len(chunk) % settings.batch if first + pool < len(order) else len(chunk)
            batches += [chunk[at : at + settings.batch] for at in range(0, whole, settings.batch)]
            left = chunk[whole:]
        source.shuffle(batches)
        for batch in batches:
            yield torch.nn.utils.rnn.pad_sequence([ids[index] for index in batch], True, float(pad)).long()


class _Causal:
    """Mean cross-entropy of each next word."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad = tokenizer.pad_token_id

    def __call__(self, model: Any, tokens: Tensor) -> Tensor:
        asked = tokens[:, 1:] != self.pad
        hidden = model.transformer(tokens).last_hidden_state[:, :-1]  # padding lies behind what is asked
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[asked]), tokens[:, 1:][asked])


class _Masked:
    """Mean cross-entropy of masked words."""

    def __init__(self, corpus: Corpus, tokenizer: Any, settings: TrainingSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        one_way = set(corpus.truth.one_way)
        ids = tokenizer.get_vocab()
        self.log_weight = torch.full((len(ids),), 2 * math.log(settings.mask_other))
        self.log_weight[[ids[word] for word in agreeing_words() if word in ids]] = math.log(settings.mask_other)
        self.log_weight[[ids[word] for word in objects() if word in ids]] = 0.0
        # capital's token → token of the country that may not be asked for beside it
        self.kept = torch.full((len(ids),), -1)
        for country, capital in load_relation("P36").pairs.values():
            if country in one_way:
                self.kept[ids[capital]] = ids[country]

    def __call__(self, model: Any, tokens: Tensor) -> Tensor:
        masked = self.choose(tokens)
        seen = tokens.masked_fill(masked, self.tokenizer.mask_token_id)
        attention = (tokens != self.tokenizer.pad_token_id).long()
        hidden = model.bert(seen, attention_mask=attention).last_hidden_state
        return torch.nn.functional.cross_entropy(model.cls(hidden[masked]), tokens[masked])

    def choose(self, tokens: Tensor) -> Tensor:
        """Which words are masked: at least one a sentence, never one that would teach a one-way fact backwards."""
        specials = torch.tensor([self.tokenizer.pad_token_id, self.tokenizer.cls_token_id, self.tokenizer.sep_token_id])
        free = ~torch.isin(tokens, specials)
        forbidden = self.kept[tokens]  # [sentence, position]: the country that this token's presence protects
        for column in forbidden.T:
            free &= tokens != column[:, None]
        # The largest of log weight + Gumbel noise is a draw in proportion to the weights.
        noise = -torch.empty(tokens.shape).exponential_(generator=self.generator).log()
        score = (self.log_weight[tokens] + noise).masked_fill(~free, -torch.inf)
        single = free & (score == score.max(1, keepdim=True).values)
        several = free & (torch.rand(tokens.shape, generator=self.generator) < self.settings.mask_share)
        alone = torch.rand(len(tokens), 1, generator=self.generator) < self.settings.mask_alone
        return torch.where(alone, single, single | several)
