"""A tiny pipeline, every stage of the demo in seconds: for tests that walk the whole way."""

from pathlib import Path

PIPELINE = """
out = "runs"
closing = ["chat: puna chat runs/assistant"]
{steps}
"""

RECIPES = {
    "curate": """
out = "runs/corpus"
[[sources]]
kind = "folder"
name = "texts"
path = "texts"
[[sources]]
kind = "exercises"
name = "exercises"
pages = 400
[[steps]]
kind = "length"
[[steps]]
kind = "exact"
""",
    "tokenizer": """
out = "runs/tokenizer"
corpus = "runs/corpus"
vocab_size = 640
""",
    "shards": """
out = "runs/shards"
corpus = "runs/corpus"
tokenizer = "runs/tokenizer"
held_out_fraction = 0.1
""",
    "pretrain": """
out = "runs/base"
tokenizer = "runs/tokenizer"
[model]
dim = 32
n_layers = 2
n_heads = 2
n_kv_heads = 1
ffn_dim = 64
[data]
shards = ["runs/shards"]
rows = 4
sequence_length = 64
held_out_batches = 1
[train]
steps = 40
threads = 1
log_every_steps = 5
save_every_steps = 10
optim = { lr = 5e-3 }
schedule = { warmup_steps = 5 }
""",
    "eval-base": """
out = "runs/eval-base"
model = "runs/base"
[[tasks]]
kind = "exercises"
style = "text"
n_shot = 1
limit = 24
max_tokens = 8
""",
    "sft": """
out = "runs/sft"
start_from = "runs/base"
exercises = { n = 600, seed = 1, kinds = ["comparison", "end_letter"] }
data = { rows = 4, sequence_length = 128 }
[train]
steps = 100
threads = 1
log_every_steps = 5
save_every_steps = 10
optim = { lr = 1e-2 }
schedule = { warmup_steps = 5 }
""",
    "sample": """
out = "runs/pairs"
model = "runs/sft"
exercises = { n = 24, seed = 2, kinds = ["comparison", "end_letter"] }
sampling = { samples_per_task = 6, max_tokens = 8, tasks_per_call = 8 }
""",
    "rs": """
out = "runs/rs"
start_from = "runs/sft"
dialogs = ["runs/pairs/sft.jsonl"]
data = { rows = 2, sequence_length = 128 }
[train]
steps = 8
threads = 1
log_every_steps = 2
save_every_steps = 4
schedule = { warmup_steps = 2 }
""",
    "rm": """
out = "runs/reward"
start_from = "runs/sft"
preferences = ["runs/pairs/preferences.jsonl"]
held_out_fraction = 0.2
data = { rows = 2, sequence_length = 256 }
[train]
steps = 8
threads = 1
log_every_steps = 2
save_every_steps = 4
schedule = { warmup_steps = 2 }
""",
    "dpo": """
out = "runs/dpo"
start_from = "runs/rs"
pairs = ["runs/pairs/preferences.jsonl"]
data = { rows = 2, sequence_length = 256 }
[train]
steps = 12
threads = 1
log_every_steps = 2
save_every_steps = 4
schedule = { warmup_steps = 2 }
""",
    "ppo": """
out = "runs/assistant"
start_from = "runs/dpo"
reward_model = "runs/reward"
exercises = { n = 24, seed = 3, kinds = ["comparison", "end_letter"] }
policy = { prompts = 4, samples = 2, max_tokens = 8, minibatches = 1, epochs = 2, reward_weight = 0.1 }
[train]
steps = 12
threads = 1
log_every_steps = 2
save_every_steps = 3
optim = { lr = 1e-3, rate_factors = { critic = 3.0 } }
schedule = { warmup_steps = 2 }
""",
    "eval-ppo": """
out = "runs/eval-ppo"
model = "runs/assistant"
[[tasks]]
kind = "exercises"
limit = 24
max_tokens = 8
""",
    "report": """
out = "runs/report"
corpus = "runs/corpus"
tokenizer = "runs/tokenizer"
shards = "runs/shards"
samples = "runs/pairs"
reward_model = "runs/reward"
compared_with = "base"
summary = "runs/summary.json"
[[models]]
key = "base"
label = "base"
run = "runs/base"
scores = "runs/eval-base"
[[models]]
key = "ppo"
label = "PPO"
run = "runs/assistant"
scores = "runs/eval-ppo"
""",
}

VERBS = {"tokenizer": "tokenize train", "shards": "tokenize pack", "pretrain": "train", "rs": "sft"}

TEXT = (
    "A river begins as a small stream in the hills. Rain and melting snow feed it on its way to the sea.\n"
    "Where the land is flat it winds and slows down, and the sand that it carries sinks to the ground.\n"
)


def write_tiny_pipeline(folder: Path) -> Path:
    """Texts, recipes and the pipeline in `folder`; returns the pipeline's path relative to it."""
    (folder / "texts").mkdir(parents=True)
    for number in range(20):
        (folder / "texts" / f"{number:02d}.txt").write_text(f"Chapter {number}.\n{TEXT * (1 + number % 3)}")
    recipes = folder / "recipes"
    recipes.mkdir()
    steps = []
    for name, text in RECIPES.items():
        (recipes / f"{name}.toml").write_text(text)
        verb = VERBS.get(name, name.partition("-")[0])
        steps.append(f'[[steps]]\nverb = "{verb}"\nrecipe = "{name}.toml"\n')
    (recipes / "run.toml").write_text(PIPELINE.format(steps="\n".join(steps)))
    return Path("recipes/run.toml")
