"""Post-training on a CPU, fp32: SFT, DPO, reward model and GRPO steps of ours against TRL, on the same work.

A step is forward, loss, backward, clipping by the global norm and fused AdamW, each side by its own means on a model of
size S (8.5 M parameters; batch 8, 256 tokens): ours as `puna sft`, `dpo`, `rm` and `ppo` make it, TRL with the
collators and `compute_loss` of its trainers (for GRPO `training_step`, which samples first) and its defaults. TRL runs
without its dataloader and logging, which only helps it.

    sft          8 dialogs of 256 tokens, every token a target; tokens/s
    sft packed   dialogs of 64 tokens on average in the same 2,048 places; TRL with packing flattens them into one row
    dpo          8 pairs, prompt and answer 128 + 128 (1:1) or 228 + 28 (8:1) tokens; pairs/s. Both sides run the
                 reference once for each pair, so this is a first epoch; later epochs cost us a forward less (TRL only
                 with precompute_ref_log_probs)
    rm           the same pairs through a reward model; pairs/s
    grpo         8 answers of 128 tokens to a prompt of 128, sampled, judged and learned from once; completions/s

Each side lives in a process of its own, so that its peak memory is its own. Sides take turns step by step, so that
noise of the machine hits both; a ratio is the median of the ratios of neighbouring steps. On a busy machine waiting
threads sleep on both sides, as every training verb chooses it.

    python benchmarks/post_training.py            # about five minutes on two quiet cores
    python benchmarks/post_training.py --quick    # two layers, one round, under 50 s
    python benchmarks/post_training.py --json     # the last line is one JSON object of ratios
"""

import argparse
import contextlib
import copy
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import trl as peer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from puna.checkpoint.format import save_model
from puna.cli.threads import choose_waiting
from puna.core.batch import IGNORE, PackedBatch
from puna.core.dialog import Dialog
from puna.core.run_folder import RunFolder
from puna.infer.engine import Engine
from puna.model.config import ModelConfig
from puna.model.cpu_memory import keep_freed_memory
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.post.dpo import DpoConfig, answer_sums, dpo_loss
from puna.post.pairs import AnswerTokens, EncodedPairs, pack_pairs
from puna.post.policy import PolicyConfig, PolicyLoss
from puna.post.policy_batches import PolicyBatches
from puna.post.rankings import EncodedRankings, RankedPair, Ranking
from puna.post.rejection import Task
from puna.post.reward import RewardConfig, RewardLoss, pack_rankings, with_score_head
from puna.post.rollout import Group, Judged
from puna.post.sft import sft_loss
from puna.post.trees import Tree
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.chat_format import prompt
from puna.train.loss import LossOutput
from puna.train.optim import OptimConfig, build_optimizer, scale_and_clip

SIZE_S = ModelConfig(dim=256, n_layers=6, n_heads=8, n_kv_heads=4, ffn_dim=688, vocab_size=8_192, max_seq_len=1_024)
QUICK = SIZE_S.model_copy(update={"n_layers": 2})
BATCH, LENGTH, PROMPT, ANSWER = 8, 256, 128, 128
TASKS = {
    "sft_ratio_trl": "sft",
    "sft_packed_ratio_trl": "sft packed",
    "dpo_ratio_trl": "dpo 1:1",
    "dpo_ratio_trl_8to1": "dpo 8:1",
    "rm_ratio_trl": "rm 1:1",
    "rm_ratio_trl_8to1": "rm 8:1",
    "grpo_ratio_trl": "grpo",
}
UNITS = {"sft": "tokens/s", "dpo": "pairs/s", "rm": "pairs/s", "grpo": "completions/s"}
AMOUNTS = {"sft": BATCH * LENGTH, "dpo": BATCH, "rm": BATCH, "grpo": BATCH}
Step = Callable[[], float]


def token_ids(n: int, seed: int) -> np.ndarray:
    """Random ordinary tokens."""
    return np.random.default_rng(seed).integers(300, 8_000, n)


def document_lengths() -> list[int]:
    """Lengths of 64 on average that fill eight rows exactly."""
    rng, lengths = np.random.default_rng(0), list[int]()
    while sum(lengths) < BATCH * LENGTH:
        room = LENGTH - sum(lengths) % LENGTH
        lengths.append(min(2 + int(rng.exponential(62)), room) if room > 3 else room)
    return lengths


def pair_ids(ratio: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Prompt, chosen and rejected of eight pairs."""
    n_answer = LENGTH // 2 if ratio == "1:1" else 28
    sizes = (LENGTH - n_answer, n_answer, n_answer)
    return [tuple(token_ids(n, 10 * i + j) for j, n in enumerate(sizes)) for i in range(BATCH)]  # pyright: ignore


# --- ours


def our_step(model: Transformer, loss: Callable[[], LossOutput]) -> Step:
    """The step of `train/loop.py` without its bookkeeping."""
    optimizer = build_optimizer(model.named_parameters(), OptimConfig())

    def step() -> float:
        output = loss()
        output.sum.backward()
        scale_and_clip([p.grad for p in model.parameters() if p.grad is not None], count=output.count, clip_norm=1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(output.sum.detach()) / output.count

    return step


def ours(task: str, size: ModelConfig) -> Step:
    """One of our losses on its batch."""
    model = init_weights(Transformer(size), seed=0)
    kind, _, variant = task.partition(" ")
    if kind == "sft":
        return our_sft(model, packed=variant == "packed")
    if kind == "grpo":
        return our_grpo(model)
    return our_dpo(model, variant) if kind == "dpo" else our_reward(model, variant)


def our_sft(model: Transformer, *, packed: bool) -> Step:
    """Rows of dialogs; a dialog's last token predicts nothing."""
    lengths = document_lengths() if packed else [LENGTH] * BATCH
    tokens = token_ids(BATCH * LENGTH, 0)
    targets = np.append(tokens[1:], IGNORE)
    targets[np.cumsum(lengths) - 1] = IGNORE
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    shape = BATCH, LENGTH
    batch = PackedBatch(
        tokens.reshape(shape),
        targets.reshape(shape),
        positions.reshape(shape),
        np.array(lengths),
        tokens.size - len(lengths),
    )
    return our_step(model, lambda: sft_loss(model, batch))


def our_dpo(model: Transformer, ratio: str) -> Step:
    """Pairs behind shared prompts; the reference's sums are made anew each step, as in a first epoch."""

    def answer(head: np.ndarray, ids: np.ndarray) -> AnswerTokens:
        tokens = np.concatenate((head, ids))
        is_answer = np.arange(len(tokens)) >= len(head)
        return AnswerTokens(tokens[:-1], np.where(is_answer, tokens, IGNORE)[1:], is_answer[1:], len(head))

    answers = [(answer(p, c), answer(p, r)) for p, c, r in pair_ids(ratio)]
    ones = np.ones(BATCH)
    pairs = EncodedPairs(answers, ["x"] * BATCH, ones, ones, Counter(), shared_prefix=True)
    config = DpoConfig(nll_coefficient=0.0)
    length = int(pairs.lengths.sum())
    reference, loss = copy.deepcopy(model), dpo_loss(config, pairs=pairs)

    def output() -> LossOutput:
        rows = [list(range(BATCH))]
        batch = pack_pairs(pairs, rows, sequence_length=length, pad=0, reference=np.zeros((BATCH, 2), np.float32))
        assert batch.reference is not None
        with torch.no_grad():
            batch.reference[:] = answer_sums(reference, batch).contrast.numpy()
        return loss(model, batch)

    return our_step(model, output)


def our_reward(model: Transformer, ratio: str) -> Step:
    """Pairs behind shared prompts through a score head."""
    trees = [Tree(p, (c, r)) for p, c, r in pair_ids(ratio)]
    ranking = Ranking(Dialog(()), ((), ()), (RankedPair(0, 1),))
    config = RewardConfig(sequence_length=sum(tree.n_tokens for tree in trees))
    encoded = EncodedRankings([ranking] * BATCH, trees, Counter())
    batch, scorer = pack_rankings(encoded, [list(range(BATCH))], config, pad=0), with_score_head(model)
    loss = RewardLoss(config)
    return our_step(scorer, lambda: loss(scorer, batch))


def our_grpo(model: Transformer) -> Step:
    """Sample, judge by a number of the text, learn once: an iteration of `puna ppo policy.method=grpo`."""
    tokenizer = byte_tokenizer()
    tasks = [Task(str(i), Dialog.of(("user", question(i, tokenizer)))) for i in range(64)]
    config = PolicyConfig(method="grpo", prompts=1, samples=BATCH, max_tokens=ANSWER, minibatches=1, kl_coefficient=0.0)

    def judge(groups: list[Group]) -> Judged:
        rewards = np.array([float(len(text) % 7) for group in groups for text in group.texts])
        return Judged(rewards, {})

    batches = PolicyBatches(
        tasks,
        config,
        model=model,
        judge=judge,  # pyright: ignore[reportArgumentType]
        make_generator=lambda: Engine(
            model, tokenizer, max_batch=BATCH, max_len=PROMPT + ANSWER + 1, cache_tokens=8_192
        ),
        encode=lambda task: prompt(tokenizer, task.prompt),
        pad=tokenizer.specials.pad,
        run=RunFolder(tempfile.mkdtemp()),
    )
    loss = PolicyLoss(config)
    return our_step(model, lambda: loss(model, batches.next_batch()))


def byte_tokenizer() -> Tokenizer:
    """Bytes and special tokens; the model's vocabulary is larger, which costs both sides the same."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)})


def question(number: int, tokenizer: Tokenizer) -> str:
    """A question that is a prompt of `PROMPT` tokens."""
    frame = len(prompt(tokenizer, Dialog.of(("user", "x")))) - 1
    return f"{number:03d}".ljust(PROMPT - frame, "x")


# --- TRL


def trl_step(model: Any, loss: Callable[[], Any], *, has_backward: bool = False) -> Step:
    """A step of a trainer's own loss with the same clipping and optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)

    def step() -> float:
        value = loss()
        if not has_backward:
            value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    return step


def trl(task: str, size: ModelConfig) -> Step:
    """One of TRL's trainers on its batch."""
    kind, _, variant = task.partition(" ")
    folder = Path(tempfile.mkdtemp())
    model = init_weights(Transformer(size), seed=0)
    model = with_score_head(model) if kind == "rm" else model
    save_model(folder / "model", model, model.config, tokenizer=byte_tokenizer())
    auto = AutoModelForSequenceClassification if kind == "rm" else AutoModelForCausalLM
    hf, tokenizer = (
        auto.from_pretrained(folder / "model", dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder / "model"),
    )
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": BATCH,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
    }
    arguments: dict[str, Any] = {"processing_class": tokenizer}
    if kind == "sft":
        packed = variant == "packed"
        lengths = document_lengths() if packed else [LENGTH] * BATCH
        rows = [
            {"input_ids": part.tolist()} for part in np.split(token_ids(BATCH * LENGTH, 0), np.cumsum(lengths)[:-1])
        ]
        config = peer.SFTConfig(**common, max_length=LENGTH, packing=packed)
        trainer = peer.SFTTrainer(hf, args=config, train_dataset=datasets.Dataset.from_list(rows), **arguments)
        inputs = next(iter(trainer.get_train_dataloader()))
        return trl_step(hf, lambda: trainer.compute_loss(hf, dict(inputs)))
    if kind == "grpo":
        rows = [{"prompt": [{"role": "user", "content": question(i, byte_tokenizer())}]} for i in range(64)]
        config = peer.GRPOConfig(**common, num_generations=BATCH, max_completion_length=ANSWER, steps_per_generation=1)
        trainer = peer.GRPOTrainer(
            hf,
            reward_funcs=lambda completions, **_: [float(len(c[0]["content"]) % 7) for c in completions],
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            **arguments,
        )
        trainer.current_gradient_accumulation_steps = 1
        stream = iter(trainer.get_train_dataloader())
        trainer.model.train()
        return trl_step(
            trainer.model, lambda: trainer.training_step(trainer.model, next(stream), None), has_backward=True
        )
    text = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * BATCH
    if kind == "dpo":
        reference = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        config = peer.DPOConfig(**common, max_length=None)
        trainer = peer.DPOTrainer(
            hf, ref_model=reference, args=config, train_dataset=datasets.Dataset.from_list(text), **arguments
        )
        named = [
            {"prompt_ids": p.tolist(), "chosen_ids": c.tolist(), "rejected_ids": r.tolist()}
            for p, c, r in pair_ids(variant)
        ]
    else:
        config = peer.RewardConfig(**common, max_length=None)
        trainer = peer.RewardTrainer(hf, args=config, train_dataset=datasets.Dataset.from_list(text), **arguments)
        named = [
            {"chosen_ids": np.append(p, c).tolist(), "rejected_ids": np.append(p, r).tolist()}
            for p, c, r in pair_ids(variant)
        ]
    inputs = trainer.data_collator(named)
    return trl_step(hf, lambda: trainer.compute_loss(hf, dict(inputs)))


# --- both


def work(side: str, task: str, size: ModelConfig, threads: int, pipe: Connection) -> None:
    """A process: makes one side, says so, answers each message with a step's seconds; None ends it with the peak."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if side == "ours":
        keep_freed_memory()
    nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        step = (ours if side == "ours" else trl)(task, size)
        step()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (proc(5))
        pipe.send("ready")
        while pipe.recv():
            start = time.perf_counter()
            step()
            pipe.send(time.perf_counter() - start)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    pipe.send(int(peak.split()[1]) / 2**20)  # GiB


def compare(task: str, size: ModelConfig, *, rounds: int, threads: int) -> dict[str, float]:
    """Run both sides in turns, after both have warmed up one after the other."""
    context = multiprocessing.get_context("fork")
    pipes: dict[str, Connection] = {}
    processes = []
    for side in ("ours", "trl"):
        pipes[side], theirs = context.Pipe()
        process = context.Process(target=work, args=(side, task, size, threads, theirs), daemon=True)
        process.start()
        processes.append(process)
        pipes[side].recv()
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    for _ in range(rounds):
        for side, pipe in pipes.items():
            pipe.send(True)
            seconds[side].append(pipe.recv())
    peaks = {}
    for (side, pipe), process in zip(pipes.items(), processes, strict=True):
        pipe.send(None)
        peaks[side] = pipe.recv()
        process.join()
    kind = task.partition(" ")[0]
    return {
        "ours": AMOUNTS[kind] / statistics.median(seconds["ours"]),
        "trl": AMOUNTS[kind] / statistics.median(seconds["trl"]),
        "ratio": statistics.median(b / a for a, b in zip(seconds["ours"], seconds["trl"], strict=True)),
        "peak_gib": peaks["ours"],
        "peak_gib_trl": peaks["trl"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers and one round, under 50 s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object of ratios as the last line")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=tuple(TASKS.values()), nargs="+", help="some tasks")
    arguments = parser.parse_args()
    choose_waiting()
    print("               ours            TRL     ratio   peak GiB (TRL)")
    ratios, size = {}, QUICK if arguments.quick else SIZE_S
    for key, task in TASKS.items():
        if arguments.only and task not in arguments.only:
            continue
        row = compare(task, size, rounds=1 if arguments.quick else arguments.rounds, threads=arguments.threads)
        ratios[key] = round(row["ratio"], 3)
        print(
            f"{task:<10} {row['ours']:9,.2f} {row['trl']:12,.2f} {row['ratio']:9.2f} {row['peak_gib']:9.2f}"
            f" ({row['peak_gib_trl']:.2f})  {UNITS[task.partition(' ')[0]]}",
            flush=True,
        )
    if arguments.json:
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()
