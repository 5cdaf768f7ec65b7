"""The same tiny model, pairs and dialogs through TRL's trainers: equal tokens, losses and gradients.

Where TRL differs we leave it aside: it has no format mask, and its likelihood term is a mean over the batch's tokens,
which is our `nll_normalization="token"` when the batch is the whole data set.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from puna.checkpoint.format import save_model
from puna.post.dpo import DpoBatches, DpoConfig, dpo_loss
from puna.post.pairs import encode_pairs
from puna.post.reference import reference_sums
from puna.post.sft import SftBatches, SftConfig, sft_loss
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
