"""The same tiny model, pairs and dialogs through TRL's trainers: equal tokens, losses and gradients.

Where TRL differs we leave it aside: it has no format mask, and its likelihood term is a mean over the batch's tokens,
which is our `nll_normalization="token"` when the batch is the whole data set.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from puna.checkpoint.format import save_model
from puna.core.dialog import Dialog
from puna.core.generator import Sampling
from puna.infer.engine import Engine
from puna.post.dpo import DpoBatches, DpoConfig, dpo_loss
from puna.post.pairs import encode_pairs
from puna.post.policy import PolicyBatch, PolicyConfig, PolicyLoss, answer_logprobs, pack_groups, token_weights
from puna.post.policy_losses import group_advantages
from puna.post.rankings import encode_rankings, of_preference
from puna.post.reference import reference_sums
from puna.post.rejection import Task
from puna.post.reward import RewardConfig, RewardLoss, pack_rankings, with_score_head
from puna.post.rollout import roll_out
from puna.post.sft import SftBatches, SftConfig, sft_loss
from puna.tokenizer.chat_format import prompt as render_prompt
from puna.tokenizer.chat_format import render
from tests.post.tiny import SPECIALS, TOKENIZER, dialog_rows, preferences, tiny_model

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")
N = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    for name, seed in (("policy", 0), ("reference", 1)):
        model = tiny_model(seed, dtype=torch.float32)
        save_model(folder / name, model, model.config, tokenizer=TOKENIZER)
    return folder


def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def settings(folder):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": N,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "max_length": None,
    }


def assert_same_gradients(ours, hf):
    """Compares what the optimizer would see, through weights that have one name on both sides."""
    pairs = [
        (ours.embedding.weight, hf.model.embed_tokens.weight),
        (ours.head.weight, hf.lm_head.weight),
        (ours.norm.weight, hf.model.norm.weight),
        (ours.layers[0].feed_forward.down.weight, hf.model.layers[0].mlp.down_proj.weight),
        (ours.layers[1].attention.output.weight, hf.model.layers[1].self_attn.o_proj.weight),
    ]
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_dpo_with_a_likelihood_term_equals_trl(folders, tmp_path):
    given = preferences(N)
    model, tokenizer = theirs(folders / "policy")
    trainer = trl.DPOTrainer(
        model,
        ref_model=theirs(folders / "reference")[0],
        args=trl.DPOConfig(**settings(tmp_path), beta=0.1, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]),
        train_dataset=datasets.Dataset.from_list(
            [
                {
                    "prompt": p.prompt.as_messages(),
                    "chosen": [{"role": m.role, "content": m.content} for m in p.chosen],
                    "rejected": [{"role": m.role, "content": m.content} for m in p.rejected],
                }
                for p in given
            ]
        ),
        processing_class=tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()

    config = DpoConfig(rows=1, sequence_length=1024, format_mask="none", nll_normalization="token")
    pairs = encode_pairs(given, TOKENIZER, sequence_length=1024, format_mask="none")
    ids = {
        tuple(row[mask == 1])
        for row, mask in zip(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy(), strict=True)
    }
    assert ids == {(*answer.tokens, SPECIALS.eot) for pair in pairs.answers for answer in pair}
    reference = reference_sums(tiny_model(1, dtype=torch.float32), pairs, config, pad=SPECIALS.pad)
    policy = tiny_model(0, dtype=torch.float32)
    batches = DpoBatches(pairs, config, pad=SPECIALS.pad, reference=reference)
    loss = dpo_loss(config, pairs=pairs)
    outputs = [loss(policy, batches.next_batch()) for _ in range(batches.rows_in_epoch())]
    ours = sum(output.sum for output in outputs) / sum(output.count for output in outputs)
    ours.backward()
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same_gradients(policy, trainer.model)


@pytest.mark.parametrize("row_tokens", [320, 1024])
def test_packed_sft_equals_trl_on_padded_rows(folders, tmp_path, row_tokens):
    rows = dialog_rows(N)
    model, tokenizer = theirs(folders / "policy")
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(**settings(tmp_path)),
        train_dataset=datasets.Dataset.from_list(
            [
                {"input_ids": rendered.tokens, "assistant_masks": [int(s) for s in rendered.supervised]}
                for rendered in (render(TOKENIZER, row.dialog) for row in rows)
            ]
        ),
        processing_class=tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    n_targets = int((inputs["labels"] != -100).sum())
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()

    ours = tiny_model(0, dtype=torch.float32)
    batches = SftBatches(rows, TOKENIZER, SftConfig(rows=1, sequence_length=row_tokens))
    outputs = [sft_loss(ours, batches.next_batch()) for _ in range(batches.rows_in_epoch())]
    mean = sum(output.sum for output in outputs) / sum(output.count for output in outputs)
    mean.backward()
    assert sum(output.count for output in outputs) == n_targets
    assert mean.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same_gradients(ours, trainer.model)


def test_a_reward_model_on_shared_prefixes_equals_trl_on_separate_rows(folders, tmp_path):
    given = preferences(N)
    scorer = with_score_head(tiny_model(0, dtype=torch.float32), seed=3)
    save_model(tmp_path / "scorer", scorer, scorer.config, tokenizer=TOKENIZER)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer", dtype=torch.float32)
    trainer = trl.RewardTrainer(
        model,
        args=trl.RewardConfig(**settings(tmp_path), center_rewards_coefficient=0.01),
        train_dataset=datasets.Dataset.from_list(
            [
                {
                    name: [*p.prompt.as_messages(), *Dialog(getattr(p, name)).as_messages()]
                    for name in ("chosen", "rejected")
                }
                for p in given
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "scorer"),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()

    config = RewardConfig(rows=1, sequence_length=1024, centring=0.01)
    encoded = encode_rankings([of_preference(p) for p in given], TOKENIZER, sequence_length=1024)
    batch = pack_rankings(encoded, [list(range(N))], config, pad=SPECIALS.pad)
    output = RewardLoss(config)(scorer, batch)
    ours = output.sum / output.count
    ours.backward()
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(scorer.score.weight.grad, model.score.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scorer.embedding.weight.grad, model.model.embed_tokens.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "loss_type"), [("grpo", "dapo"), ("grpo", "grpo"), ("dr_grpo", "dr_grpo")])
def test_grpo_on_shared_prefixes_equals_trl_on_separate_rows(folders, tmp_path, method, loss_type):
    model, tokenizer = theirs(folders / "policy")
    model.double()  # ratios far from 1 make fp32's rounding larger than what is compared
    samples, beta = 3, 0.2
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=trl.GRPOConfig(
            **{k: v for k, v in settings(tmp_path).items() if k != "max_length"},
            num_generations=samples,
            max_completion_length=6,
            beta=beta,
            loss_type=loss_type,
            scale_rewards="none" if method == "dr_grpo" else "group",
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "x"}] * N),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    policy, reference = (tiny_model(seed, dtype=torch.float32).double() for seed in (0, 1))
    engine = Engine(policy, TOKENIZER, max_batch=8, max_len=64)
    asked = [Task(str(n), Dialog.of(("user", f"say {n}"))) for n in range(2)]
    groups = roll_out(
        asked,
        engine,
        lambda task: render_prompt(TOKENIZER, task.prompt),
        samples=samples,
        sampling=Sampling(max_tokens=6, seed=4),
    )
    policy.train()
    rewards = np.array([1.0, 0.0, 0.5, 0.0, 0.0, 1.0])
    answers = [answer for group in groups for answer in group.answers]
    sizes, longest = [len(answer) for answer in answers], max(map(len, answers))

    config = PolicyConfig(
        method=method,
        samples=samples,
        prompts=2,
        minibatches=1,
        max_tokens=6,
        kl_coefficient=beta,
        aggregate={"dapo": "token", "grpo": "sequence", "dr_grpo": "constant"}[loss_type],
    )
    forest, places, targets = pack_groups(groups, pad=SPECIALS.pad)
    with torch.no_grad():
        old = answer_logprobs(
            tiny_model(2, dtype=torch.float32).double(), forest, places, targets, temperature=1.0
        ).numpy()
        ref = answer_logprobs(reference, forest, places, targets, temperature=1.0).numpy()
    old = 0.9 * old + 0.1 * ref  # far from the policy, so that ratios are clipped
    advantages = group_advantages(rewards, [samples, samples], kind=method)
    weights, count = token_weights(sizes, aggregation=config.aggregation, max_tokens=6)
    batch = PolicyBatch(
        forest,
        places,
        targets,
        weights,
        count,
        np.repeat(advantages, sizes).astype(np.float32),
        old=old,
        reference=ref,
        kl_coefficient=beta,
    )
    output = PolicyLoss(config)(policy, batch)
    ours = output.sum / output.count
    ours.backward()

    def padded(rows, fill, dtype):
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=dtype)

    cuts = np.cumsum(sizes)[:-1]
    inputs = {
        "prompt_ids": torch.tensor(np.stack([g.prompt for g in groups for _ in g.answers])),
        "prompt_mask": torch.ones(2 * samples, len(groups[0].prompt), dtype=torch.long),
        "completion_ids": padded([a.tolist() for a in answers], SPECIALS.pad, torch.long),
        "completion_mask": padded([[1] * n for n in sizes], 0, torch.long),
        "advantages": torch.tensor(advantages, dtype=torch.float32),
        "old_per_token_logps": padded(np.split(old, cuts), 0.0, torch.float32),
        "ref_per_token_logps": padded(np.split(ref, cuts), 0.0, torch.float32),
        "num_items_in_batch": torch.tensor(sum(sizes)),
    }
    trainer.args.steps_per_generation = 1
    expected = trainer._compute_loss(trainer.model, inputs)
    expected.backward()
    assert float(output.metrics["clipped"]) > 0
    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same_gradients(policy, trainer.model)
