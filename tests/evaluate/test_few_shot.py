from puna.core.dialog import Dialog
from puna.evaluate.few_shot import Shot, dialog_prompt, text_prompt

SHOTS = (Shot("What is 1 + 1?", "2"), Shot("What is 2 + 3?", "5"))


def test_text_prompt_golden():
    assert text_prompt(SHOTS, "What is 4 + 4?", instruction="Answer.") == (
        "Answer.\n\nQuestion: What is 1 + 1?\nAnswer: 2\n\n"
        "Question: What is 2 + 3?\nAnswer: 5\n\nQuestion: What is 4 + 4?\nAnswer:"
    )
    assert text_prompt((), "Why?") == "Question: Why?\nAnswer:"


def test_dialog_prompt_golden():
    assert dialog_prompt(SHOTS[:1], "Why?", system="Be brief.") == Dialog.of(
        ("system", "Be brief."), ("user", "What is 1 + 1?"), ("assistant", "2"), ("user", "Why?")
    )
