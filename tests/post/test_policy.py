import copy

import numpy as np
import pytest
import torch

from puna.core.config import load
from puna.core.dialog import Dialog
from puna.core.errors import ConfigError, PunaError, UsageError
from puna.core.generator import Sampling
from puna.core.run_folder import RunFolder
from puna.infer.engine import Engine
from puna.post.policy import PolicyConfig, PolicyLoss, attach_critic
from puna.post.policy_batches import PolicyBatches
from puna.post.rejection import Task
from puna.post.reward import Scorer, with_score_head
from puna.post.rollout import Judge, Judged, roll_out
from puna.tokenizer.chat_format import prompt as render_prompt
from puna.train.config import TrainConfig
from puna.train.loop import train
from tests.post.tiny import SPECIALS, TOKENIZER, tiny_model
from tests.reference import policy_naive as naive

PAD = SPECIALS.pad
TASKS = [Task(f"t{n}", Dialog.of(("user", f"say {n}"))) for n in range(12)]


def config(**changes):
    values = {"method": "ppo", "prompts": 4, "samples": 3, "max_tokens": 6, "minibatches": 2, "kl_coefficient": 0.0}
    return PolicyConfig.model_validate(values | changes)


def count_low(groups):
    """A toy judge: the share of tokens below 128, at first a quarter."""
    shares = [float((answer < 128).mean()) for group in groups for answer in group.answers]
    return Judged(np.array(shares), {"share": np.array(shares)})


def encode(task):
    return render_prompt(TOKENIZER, task.prompt)


def batches(model, folder, settings, *, judge=count_low, **changes):
    return PolicyBatches(
        TASKS,
        settings,
        model=model,
        judge=judge,
        make_generator=lambda: Engine(model, TOKENIZER, max_batch=16, max_len=64),
        encode=encode,
        pad=PAD,
        run=RunFolder(folder),
        **changes,
    )


def with_critic(model, seed=9):
    attach_critic(model, with_score_head(tiny_model(seed, dtype=model.embedding.weight.dtype), seed=seed))
    return model


def pairs_of(groups):
    return [[(g.prompt.tolist(), a.tolist()) for a in g.answers] for g in groups]


def test_every_answer_is_the_sampler_s_own_ids_and_its_logprobs_are_the_trainer_s():
    model = tiny_model(dtype=torch.float32)
    engine = Engine(model, TOKENIZER, max_batch=16, max_len=64)
    groups = roll_out(TASKS[:5], engine, encode, samples=3, sampling=Sampling(max_tokens=8, seed=1))
    for group in groups:
        assert group.prompt.tolist() == encode(group.task)
        assert len({tuple(a) for a in group.answers}) > 1
        for answer, sampled, done in zip(group.answers, group.logprobs, group.finished, strict=True):
            ours = naive.logprobs(model, group.prompt.tolist(), answer.tolist()).detach().numpy()
            assert np.abs(ours - sampled).max() < 1e-5
            assert done == (int(answer[-1]) in {SPECIALS.eot, SPECIALS.eom, SPECIALS.end_of_text})


def test_a_ppo_batch_equals_the_naive_twin_after_the_policy_has_moved(tmp_path):
    settings = config(minibatches=1, epochs=2, kl_coefficient=0.3, prompts=3, whiten=True, value_coefficient=0.4)
    policy, reference = with_critic(tiny_model(0)), tiny_model(1)
    stream = batches(policy, tmp_path, settings, reference=reference)
    first = stream.next_batch()
    old_policy, old_critic = copy.deepcopy(policy), copy.deepcopy(policy.critic)
    with torch.no_grad():  # far enough that some ratios and values are clipped
        for seed, parameter in enumerate(policy.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(seed), dtype=parameter.dtype))
    second = stream.next_batch()
    output = PolicyLoss(settings)(policy, second)
    (output.sum / output.count).backward()
    packed = [p.grad.clone() for p in policy.parameters()]
    assert 0 < output.metrics["clipped"] < output.count
    policy.zero_grad()
    groups = stream._experience.groups
    rewards = stream._experience.judged.rewards.tolist()
    expected = naive.ppo_step(
        policy,
        policy.critic,
        old_policy,
        old_critic,
        reference,
        [p for g in pairs_of(groups) for p in g],
        rewards,
        beta=0.3,
        gamma=1.0,
        lam=0.95,
        clip=0.2,
        value_clip=0.2,
        c_v=0.4,
    )
    expected.backward()
    assert (output.sum / output.count).item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(packed, policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)
    assert first.count == second.count


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_grpo_batch_equals_the_naive_twin_after_the_policy_has_moved(tmp_path, temperature):
    settings = config(method="grpo", minibatches=1, epochs=2, kl_coefficient=0.2, temperature=temperature)
    policy, reference = tiny_model(0), tiny_model(1)
    stream = batches(policy, tmp_path, settings, reference=reference)
    stream.next_batch()
    old = copy.deepcopy(policy)
    with torch.no_grad():
        policy.head.weight.add_(0.05 * torch.randn_like(policy.head.weight))
    output = PolicyLoss(settings)(policy, stream.next_batch())
    (output.sum / output.count).backward()
    packed = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    experience = stream._experience
    expected = naive.grpo_step(
        policy,
        old,
        reference,
        pairs_of(experience.groups),
        experience.judged.rewards.reshape(4, 3).tolist(),
        beta=0.2,
        clip=0.2,
        temperature=temperature,
    )
    expected.backward()
    assert (output.sum / output.count).item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(packed, policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_in_the_first_epoch_the_ratio_is_exactly_1(tmp_path, method):
    model = tiny_model(dtype=torch.float32)
    if method == "ppo":
        with_critic(model)
    settings = config(method=method, minibatches=2, epochs=2)
    stream = batches(model, tmp_path, settings)
    for _ in range(2):
        batch = stream.next_batch()
        output = PolicyLoss(settings)(model, batch)
        assert output.metrics["approximate_kl"] == 0.0 and output.metrics["clipped"] == 0.0
        assert float(output.metrics["policy_loss"]) == pytest.approx(-float(batch.advantages.sum()), abs=1e-4)


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_parts_of_an_iteration_add_up_to_the_whole(tmp_path, aggregate):
    def gradient(minibatches, folder):
        model = tiny_model()
        settings = config(method="grpo", minibatches=minibatches, aggregate=aggregate)
        stream, loss = batches(model, folder, settings, accumulation=minibatches), PolicyLoss(settings)
        outputs = [loss(model, stream.next_batch()) for _ in range(minibatches)]
        for output in outputs:
            output.sum.backward()
        count = sum(output.count for output in outputs)
        return [p.grad / count for p in model.parameters()]

    for one, four in zip(gradient(1, tmp_path / "1"), gradient(4, tmp_path / "4"), strict=True):
        torch.testing.assert_close(one, four, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_groups_without_signal_are_left_out_and_the_gradient_is_the_same(tmp_path, monkeypatch, aggregate):
    def some_alike(groups):
        judged = count_low(groups)
        judged.rewards.reshape(len(groups), -1)[1:3] = 0.5
        return judged

    def gradient(folder):
        model = tiny_model()
        settings = config(method="grpo", minibatches=1, aggregate=aggregate)
        batch = batches(model, folder, settings, judge=some_alike).next_batch()
        output = PolicyLoss(settings)(model, batch)
        (output.sum / output.count).backward()
        return len(batch.targets), [p.grad for p in model.parameters()]

    fewer, ours = gradient(tmp_path / "fewer")
    monkeypatch.setattr(PolicyBatches, "_with_signal", lambda self, part: part)
    every, theirs = gradient(tmp_path / "every")
    assert fewer < every
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_answers_of_other_weights_stop_the_run(tmp_path):
    model, other = tiny_model(0, dtype=torch.float32), tiny_model(5, dtype=torch.float32)
    stream = PolicyBatches(
        TASKS,
        config(method="grpo"),
        model=model,
        judge=count_low,
        pad=PAD,
        encode=encode,
        run=RunFolder(tmp_path),
        make_generator=lambda: Engine(other, TOKENIZER, max_batch=16, max_len=64),
    )
    with pytest.raises(PunaError, match="sampler and trainer differ by"):
        stream.next_batch()
    single = config(method="grpo", minibatches=1)
    stream = PolicyBatches(
        TASKS,
        single,
        model=model,
        judge=count_low,
        pad=PAD,
        encode=encode,
        run=RunFolder(tmp_path),
        make_generator=lambda: Engine(other, TOKENIZER, max_batch=16, max_len=64),
    )
    with pytest.raises(PunaError, match="sampler and trainer differ by"):
        PolicyLoss(single)(model, stream.next_batch())


def test_the_judge_adds_its_parts_and_takes_from_answers_that_did_not_end():
    from puna.exercises.verify import Verdict

    model = tiny_model(dtype=torch.float32)
    groups = roll_out(
        TASKS[:6],
        Engine(model, TOKENIZER, max_batch=16, max_len=64),
        encode,
        samples=3,
        sampling=Sampling(max_tokens=8),
    )
    scorer = Scorer(with_score_head(tiny_model(3, dtype=torch.float32)), TOKENIZER)
    judge = Judge(
        lambda task, text: Verdict("a" in text, "a"),
        scorer,
        verifier_weight=2.0,
        reward_weight=0.5,
        unfinished_penalty=3.0,
    )
    judged = judge(groups)
    finished = np.array([done for g in groups for done in g.finished], dtype=float)
    assert 0 <= finished.mean() < 1 and (judged.parts["finished"] == finished).all()
    assert (judged.parts["correct"] <= finished).all()
    expected = 2 * judged.parts["correct"] + 0.5 * judged.parts["score"] - 3 * (1 - finished)
    np.testing.assert_allclose(judged.rewards, expected)
    alone = scorer._model.scores(scorer._model.hidden(torch.tensor([*groups[0].prompt, *groups[0].answers[1]])))[-1]
    assert judged.parts["score"][1] == pytest.approx(alone.item(), abs=1e-5)


def settings_of(steps, **changes):
    values = {
        "steps": steps,
        "device": "cpu",
        "log_every_steps": 1,
        "optim": {"lr": 3e-2, "weight_decay": 0.0},
        "schedule": {"kind": "constant", "warmup_steps": 0},
    }
    return TrainConfig.model_validate(values | changes)


@pytest.mark.parametrize("method", ["ppo", "grpo", "dr_grpo", "rloo"])
def test_rewarded_tokens_become_likelier_while_the_kl_stays_bounded(tmp_path, method):
    policy, reference = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.float32)
    if method == "ppo":
        with_critic(policy)
    settings = config(method=method, prompts=8, samples=8, minibatches=2, kl_coefficient=0.02)
    run = RunFolder(tmp_path)
    stream = batches(policy, tmp_path, settings, reference=reference)
    train(policy, loss=PolicyLoss(settings), batches=stream, config=settings_of(36), run=run, tokenizer=TOKENIZER)
    rollouts = [r for r in run.read_metrics() if r["kind"] == "rollout"]
    rewards = [r["reward"] for r in rollouts]
    assert len(rewards) == 18 and np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.15
    assert rollouts[0]["kl_per_answer"] == pytest.approx(0, abs=1e-4) and rollouts[-1]["kl_per_answer"] < 40
    assert max(r["sampler_difference"] for r in rollouts) < 1e-5


def test_a_run_killed_within_an_iteration_gives_the_same_weights_critic_included(tmp_path):
    settings = config(epochs=2, kl_coefficient=0.05, kl_target=0.5, kl_horizon=50)
    loss = PolicyLoss(settings)

    def session(folder, dies_at=10**9):
        policy, seen = with_critic(tiny_model(dtype=torch.float32)), []

        def mortal(model, batch):
            seen.append(batch)
            if len(seen) > dies_at:
                raise KeyboardInterrupt
            return loss(model, batch)

        run = RunFolder(folder)
        stream = batches(policy, folder, settings, reference=tiny_model(dtype=torch.float32))
        train(
            policy,
            loss=mortal,
            batches=stream,
            config=settings_of(10, save_every_steps=3),
            run=run,
            tokenizer=TOKENIZER,
        )
        return policy, run.read_metrics()

    whole, records = session(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path / "cut", dies_at=7)
    resumed, again = session(tmp_path / "cut")
    for (name, ours), theirs in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert [r["loss"] for r in records if r["kind"] == "train"] == [r["loss"] for r in again if r["kind"] == "train"]
    assert [r["reward"] for r in records if r["kind"] == "rollout"] == [
        r["reward"] for r in again if r["kind"] == "rollout"
    ]
    assert len({r["kl_coefficient"] for r in records if r["kind"] == "rollout"}) > 1


def test_settings_that_cannot_work_are_refused(tmp_path):
    for overrides, message in (
        (["prompts=2", "minibatches=3"], "minibatches is 3 and prompts is 2"),
        (["method=grpo", "samples=1"], "nothing to compare"),
        (["kl_target=6", "kl_coefficient=0"], "start it above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(PolicyConfig, overrides=overrides)
    with pytest.raises(UsageError, match=r"multiple of train\.accumulation"):
        batches(tiny_model(), tmp_path, config(method="grpo"), accumulation=3)
    with pytest.raises(UsageError, match="there are 12 prompts"):
        batches(tiny_model(), tmp_path, config(method="grpo", prompts=13))
